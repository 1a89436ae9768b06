// The worker: the engine lives here, so that nothing it does can hold up painting. It turns messages into calls of the
// package and knows no view. A cancelled call that has not begun never begins; the result of one that has is dropped.

import init, { openImage } from "cowshed";
import { Allocation } from "../model/allocation.js";
import type { Answer, EngineImage, Extent, OpenImage, Reference } from "./contract.js";
import type { Call, Calls, ImageFacts, Reply, Request, WireError } from "./protocol.js";

/** Reads under way at once: a Blob answers eight about twice as fast as one. */
const READS_IN_FLIGHT_MAX = 8;
/** Extents that one call of `map` brings over from the engine. */
const EXTENTS_A_STEP_MAX = 4096;
/** A scan's step is sized to take about this long, and other calls run between two steps. */
const STEP_MS = 25;
const STEP_LENGTH_MIN = 1n << 26n;
const PROGRESS_INTERVAL_MS = 100;

/** The part of a dedicated worker's scope that is used here; the page's types do not know it. */
interface Scope {
  postMessage(message: Reply, transfer?: Transferable[]): void;
  addEventListener(type: "message", listener: (event: MessageEvent<Request>) => void): void;
}
const scope = self as unknown as Scope;

const open: OpenImage = openImage;
const ready = init();

const images = new Map<number, EngineImage>();
const cancellers = new Map<number, AbortController>();
const asks = new Map<number, (answer: Answer) => void>();
let handles = 0;
let asked = 0;

const reads = {
  free: READS_IN_FLIGHT_MAX,
  waiting: [] as (() => void)[],
  async take(): Promise<void> {
    if (this.free > 0) this.free -= 1;
    else await new Promise<void>((go) => this.waiting.push(go));
  },
  release(): void {
    // The newest first: it is what the person looks at now.
    const next = this.waiting.pop();
    if (next) next();
    else this.free += 1;
  },
};

scope.addEventListener("message", (event) => {
  const request = event.data;
  switch (request.type) {
    case "call":
      void run(request.id, request.call, request.arguments);
      break;
    case "cancel":
      cancellers.get(request.id)?.abort();
      break;
    case "answer":
      asks.get(request.ask)?.(request.answer);
      asks.delete(request.ask);
      break;
  }
});

async function run(id: number, call: Call, given: Calls[Call]["arguments"]): Promise<void> {
  const canceller = new AbortController();
  cancellers.set(id, canceller);
  try {
    await ready;
    const value = await perform(id, call, given, canceller.signal);
    const transfer = value instanceof Uint8Array ? [value.buffer] : [];
    scope.postMessage({ type: "result", id, value }, transfer);
  } catch (error) {
    scope.postMessage({ type: "error", id, error: onTheWire(error) });
  } finally {
    cancellers.delete(id);
  }
}

async function perform(
  id: number,
  call: Call,
  given: Calls[Call]["arguments"],
  signal: AbortSignal,
): Promise<Calls[Call]["result"]> {
  switch (call) {
    case "open":
      return openOne(id, given as Calls["open"]["arguments"], signal);
    case "read": {
      const { image, space, offset, length } = given as Calls["read"]["arguments"];
      await reads.take();
      try {
        signal.throwIfAborted();
        return await (space === "guest"
          ? imageOf(image).read(offset, length)
          : imageOf(image).readHost(offset, length));
      } finally {
        reads.release();
      }
    }
    case "map": {
      const { image, offset, length, extentsMax } = given as Calls["map"]["arguments"];
      return imageOf(image).map(offset, length, extentsMax);
    }
    case "scan":
      return scan(id, given as Calls["scan"]["arguments"], signal);
    case "verdict":
      return imageOf((given as Calls["verdict"]["arguments"]).image).verdict();
    case "close": {
      const { image } = given as Calls["close"]["arguments"];
      const closing = imageOf(image);
      images.delete(image);
      await closing.close();
      return null;
    }
  }
}

async function openOne(
  id: number,
  given: Calls["open"]["arguments"],
  signal: AbortSignal,
): Promise<ImageFacts> {
  const resolve = (reference: Reference): Promise<Answer> =>
    new Promise((answer) => {
      if (signal.aborted) return answer(null);
      const ask = (asked += 1);
      asks.set(ask, answer);
      signal.addEventListener("abort", () => {
        asks.delete(ask);
        answer(null);
      });
      scope.postMessage({ type: "ask", id, ask, reference });
    });
  const image = await open(given.source, {
    name: given.name,
    resolve,
    ...(given.format && { format: given.format }),
    ...(given.snapshot !== null && { snapshot: given.snapshot }),
  });
  if (signal.aborted) {
    await image.close();
    signal.throwIfAborted();
  }
  const handle = (handles += 1);
  images.set(handle, image);
  return {
    image: handle,
    format: image.format,
    virtualSize: image.virtualSize,
    hostSize: image.hostSize,
    clusterSize: image.clusterSize ?? null,
    header: image.header(),
    info: image.info(),
    features: image.features(),
    extensions: image.extensions(),
    snapshots: image.snapshots(),
    layers: image.layers(),
  };
}

/** Walks a range of the disk step by step, adding it up into buckets, and reports on the way. */
async function scan(
  id: number,
  { image: handle, offset, length, bucketsMax }: Calls["scan"]["arguments"],
  signal: AbortSignal,
): Promise<Allocation> {
  const image = imageOf(handle);
  const allocation = Allocation.empty(offset, length, BigInt(image.clusterSize ?? 512), bucketsMax);
  const end = offset + length;
  let at = offset;
  let step = STEP_LENGTH_MIN;
  let reported = performance.now();
  while (at < end) {
    signal.throwIfAborted();
    const begun = performance.now();
    const left = end - at;
    const extents: Extent[] = await image.map(at, left < step ? left : step, EXTENTS_A_STEP_MAX);
    for (const extent of extents) Allocation.add(allocation, extent);
    const last = extents.at(-1);
    if (!last || last.offset + last.length <= at) throw new Error(`the map stopped at 0x${at.toString(16)}`);
    at = last.offset + last.length;
    const now = performance.now();
    if (now - begun < STEP_MS) step *= 2n;
    else if (step > STEP_LENGTH_MIN) step /= 2n;
    if (now - reported > PROGRESS_INTERVAL_MS) {
      allocation.done = at;
      scope.postMessage({ type: "progress", id, value: allocation });
      reported = now;
    }
    await turn();
  }
  allocation.done = end;
  return allocation;
}

function imageOf(handle: number): EngineImage {
  const image = images.get(handle);
  if (!image) throw new Error("the image is closed");
  return image;
}

/** Lets the messages that have arrived be handled. A promise alone would not: it runs before them. */
const channel = new MessageChannel();
const turns: (() => void)[] = [];
channel.port1.onmessage = () => turns.shift()?.();
function turn(): Promise<void> {
  return new Promise((go) => {
    turns.push(go);
    channel.port2.postMessage(null);
  });
}

function onTheWire(error: unknown): WireError {
  const given = (typeof error === "object" && error !== null ? error : {}) as Record<string, unknown>;
  const offset = given["offset"];
  return {
    message: typeof given["message"] === "string" ? given["message"] : String(error),
    code: typeof given["code"] === "string" ? given["code"] : null,
    structure: typeof given["structure"] === "string" ? given["structure"] : null,
    offset: typeof offset === "bigint" ? offset : typeof offset === "number" ? BigInt(offset) : null,
    fatal: error instanceof WebAssembly.RuntimeError || error instanceof WebAssembly.CompileError,
  };
}
