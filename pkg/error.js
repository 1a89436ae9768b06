// What promises reject with.

/** An error with a stable `code`, and where it applies the `structure` and the `offset` that it is about. */
export class CowshedError extends Error {
  constructor(message, { code, structure, offset, reference } = {}) {
    super(message);
    this.name = "CowshedError";
    this.code = code ?? "unknown";
    this.structure = structure ?? undefined;
    this.offset = offset ?? undefined;
    this.reference = reference ?? undefined;
  }
}

/** The error as this package's; what the caller's own signal or code threw stays what it is. */
export function asError(thrown) {
  if (thrown instanceof CowshedError) return thrown;
  if (thrown?.name === "CowshedError") return new CowshedError(thrown.message, thrown);
  if (thrown instanceof WebAssembly.RuntimeError || thrown instanceof WebAssembly.CompileError) {
    return new CowshedError(`the engine stopped: ${thrown.message}`, { code: "engine-stopped" });
  }
  return thrown;
}

export function invalid(message) {
  return new CowshedError(message, { code: "invalid-argument" });
}
