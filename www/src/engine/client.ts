// The page's side of the worker: typed calls with cancellation. An engine that has died is replaced at the next `open`.

import type { Fetched } from "cowshed";
import workerUrl from "./worker.ts?worker&url";
import type { Answer, Reference } from "./contract.js";
import type { Call, Calls, Reply, Request, WireError } from "./protocol.js";
import { trusted } from "./trusted.js";

/** An error of the engine: a message for people, and what it says about the place. */
export class EngineError extends Error {
  readonly code: string | null;
  readonly structure: string | null;
  readonly offset: bigint | null;
  readonly fatal: boolean;

  constructor(wire: WireError) {
    super(wire.message);
    this.name = "EngineError";
    this.code = wire.code;
    this.structure = wire.structure;
    this.offset = wire.offset;
    this.fatal = wire.fatal;
  }
}

export interface CallOptions<C extends Call> {
  signal?: AbortSignal;
  onProgress?: (value: Calls[C]["progress"]) => void;
  /** Answers what `open` asks for. Without it every reference is refused. */
  onAsk?: (reference: Reference) => Promise<Answer>;
}

interface Pending {
  settle(value: unknown): void;
  fail(error: unknown): void;
  onProgress: ((value: Calls[Call]["progress"]) => void) | undefined;
  onAsk: ((reference: Reference) => Promise<Answer>) | undefined;
}

export class Engine {
  #worker: Worker | null = null;
  #pending = new Map<number, Pending>();
  #calls = 0;
  /** Told whenever bytes have come from an address. */
  onFetched: (fetched: Fetched) => void = () => undefined;

  /** Makes a call. An aborted signal rejects at once with its reason; the worker drops the work. */
  call<C extends Call>(
    call: C,
    given: Calls[C]["arguments"],
    options: CallOptions<C> = {},
  ): Promise<Calls[C]["result"]> {
    const { signal, onProgress, onAsk } = options;
    if (signal?.aborted) return Promise.reject(signal.reason as Error);
    const worker = this.#start();
    const id = (this.#calls += 1);
    return new Promise((resolve, reject) => {
      const abort = (): void => {
        this.#pending.delete(id);
        this.#post({ type: "cancel", id });
        reject(signal?.reason as Error);
      };
      const done = (): void => {
        this.#pending.delete(id);
        signal?.removeEventListener("abort", abort);
      };
      signal?.addEventListener("abort", abort, { once: true });
      this.#pending.set(id, {
        settle: (value) => (done(), resolve(value as Calls[C]["result"])),
        fail: (error) => (done(), reject(error)),
        onProgress: onProgress,
        onAsk,
      });
      worker.postMessage({ type: "call", id, call, arguments: given });
    });
  }

  #start(): Worker {
    if (this.#worker) return this.#worker;
    const worker = new Worker(trusted(workerUrl), { type: "module", name: "cowshed" });
    worker.addEventListener("message", (event: MessageEvent<Reply>) => this.#receive(event.data));
    worker.addEventListener("error", (event) => {
      event.preventDefault();
      this.#die(event.message || "the engine could not be loaded");
    });
    this.#worker = worker;
    return worker;
  }

  #post(request: Request): void {
    this.#worker?.postMessage(request);
  }

  #receive(reply: Reply): void {
    if (reply.type === "fetched") {
      this.onFetched(reply.fetched);
      return;
    }
    const pending = this.#pending.get(reply.id);
    switch (reply.type) {
      case "result":
        pending?.settle(reply.value);
        break;
      case "progress":
        pending?.onProgress?.(reply.value);
        break;
      case "error":
        if (reply.error.fatal) this.#die(reply.error.message);
        else pending?.fail(new EngineError(reply.error));
        break;
      case "ask": {
        const answer = (given: Answer): void => this.#post({ type: "answer", ask: reply.ask, answer: given });
        if (pending?.onAsk) void pending.onAsk(reply.reference).then(answer, () => answer(null));
        else answer(null);
        break;
      }
    }
  }

  /** After a trap the engine's memory cannot be trusted: everything under way fails and the worker goes. */
  #die(message: string): void {
    this.#worker?.terminate();
    this.#worker = null;
    const error = new EngineError({
      message: `the engine stopped: ${message}`,
      code: "engine-stopped",
      structure: null,
      offset: null,
      fatal: true,
    });
    for (const pending of [...this.#pending.values()]) pending.fail(error);
  }
}
