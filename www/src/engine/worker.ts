// The worker: the engine lives here, so that nothing it does can hold up painting. It turns messages into calls of the
// package and knows no view. A cancelled call is given up in the engine too.

import { Image, init, type Fetched } from "cowshed";
import { Allocation } from "../model/allocation.js";
import { compareParts } from "../model/compare.js";
import { ownersOf } from "../model/owner.js";
import { tablesOf, type ReadHost, type Tables } from "../model/tables.js";
import { follow } from "../model/trail.js";
import type { Answer, Bytes, CheckReport, Extent, Reference } from "./contract.js";
import { exportDisk, hashDisk } from "./copy.js";
import { factsOf, leaveDisk, save, search, volumeOf } from "./disks.js";
import type { Volume } from "cowshed/disk";
import type { RepairPlan } from "cowshed/write";
import { exportQcow2, factsOfRepair, saveRepaired, workOut } from "./rewrite.js";
import type { Call, Calls, ImageFacts, Reply, Request, SearchProgress, WireError } from "./protocol.js";

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

// While the person looks for a file.
void init().catch(() => undefined);

const images = new Map<number, { image: Image; source: Bytes; facts: ImageFacts }>();
/** The repairs that were worked out, by their image. */
const plans = new Map<number, RepairPlan>();
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
          ? imageOf(image).read(offset, length, { signal })
          : imageOf(image).readHost(offset, length, { signal }));
      } finally {
        reads.release();
      }
    }
    case "map": {
      const { image, offset, length, extentsMax } = given as Calls["map"]["arguments"];
      return imageOf(image).map(offset, length, extentsMax, { signal });
    }
    case "scan":
      return scan(id, given as Calls["scan"]["arguments"], signal);
    case "compare":
      return compare(id, given as Calls["compare"]["arguments"], signal);
    case "verdict":
      return imageOf((given as Calls["verdict"]["arguments"]).image).verdict({ signal });
    case "check":
      return check(id, imageOf((given as Calls["check"]["arguments"]).image), signal);
    case "trail": {
      const { image, offset } = given as Calls["trail"]["arguments"];
      const { tables, read } = tablesIn(image, signal);
      return follow(tables, offset, read);
    }
    case "owner": {
      const { image, offset } = given as Calls["owner"]["arguments"];
      const { tables, read } = tablesIn(image, signal);
      const tell = teller(id);
      return ownersOf(tables, offset, read, async (done, total) => {
        signal.throwIfAborted();
        if (tell({ done, total })) await turn();
      });
    }
    case "export": {
      const { image, to } = given as Calls["export"]["arguments"];
      return exportDisk(imageOf(image), to, signal, teller(id));
    }
    case "exportQcow2": {
      const { image, to, ...options } = given as Calls["exportQcow2"]["arguments"];
      return exportQcow2(imageOf(image), options, to, signal, teller(id));
    }
    case "planRepair": {
      const { image: handle } = given as Calls["planRepair"]["arguments"];
      plans.delete(handle);
      const { image, source } = openOf(handle);
      const plan = await workOut(image, source, signal, teller(id));
      plans.set(handle, plan);
      return factsOfRepair(plan);
    }
    case "saveRepaired": {
      const { image, to } = given as Calls["saveRepaired"]["arguments"];
      return saveRepaired(planOf(image), to, signal, teller(id));
    }
    case "applyRepair": {
      const { image, to } = given as Calls["applyRepair"]["arguments"];
      const tell = teller(id);
      await planOf(image).apply(to, { signal, onProgress: (done, total) => void tell({ done, total }) });
      return null;
    }
    case "hash":
      return hashDisk(imageOf((given as Calls["hash"]["arguments"]).image), signal, teller(id));
    case "disk": {
      const { image } = given as Calls["disk"]["arguments"];
      return factsOf(image, imageOf(image));
    }
    case "system":
      return (await volumeIn(given as Calls["system"]["arguments"])).system({ signal });
    case "entry": {
      const { path, ...place } = given as Calls["entry"]["arguments"];
      return (await volumeIn(place)).find(path, { signal });
    }
    case "list": {
      const { path, ...place } = given as Calls["list"]["arguments"];
      return (await volumeIn(place)).list(path, { signal });
    }
    case "file": {
      const { path, offset, length, ...place } = given as Calls["file"]["arguments"];
      return (await volumeIn(place)).read(path, offset, length, { signal });
    }
    case "search": {
      const { path, name, ...place } = given as Calls["search"]["arguments"];
      const tell = (value: SearchProgress): void => scope.postMessage({ type: "progress", id, value });
      return search(await volumeIn(place), path, name, signal, tell);
    }
    case "save": {
      const saving = given as Calls["save"]["arguments"];
      return save(await volumeIn(saving), saving, signal, teller<"save">(id));
    }
    case "close": {
      const { image } = given as Calls["close"]["arguments"];
      leaveDisk(image);
      plans.delete(image);
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
  const image = await Image.open(given.source, {
    name: given.name,
    backing: resolve,
    signal,
    onFetch: noteFetched,
    ...(given.format && { format: given.format }),
    ...(given.snapshot !== null && { snapshot: given.snapshot }),
    ...(given.passphrase !== null && { passphrase: given.passphrase }),
  });
  if (signal.aborted) {
    await image.close();
    signal.throwIfAborted();
  }
  const handle = (handles += 1);
  const facts: ImageFacts = {
    image: handle,
    format: image.format,
    formatGuessed: image.formatGuessed,
    virtualSize: image.virtualSize,
    hostSize: image.hostSize,
    clusterSize: image.clusterSize,
    header: image.header,
    info: image.info,
    features: image.features,
    extensions: image.headerExtensions,
    snapshots: image.snapshots,
    bitmaps: image.bitmaps,
    layers: image.layers,
    snapshot: given.snapshot,
  };
  images.set(handle, { image, source: given.source, facts });
  return facts;
}

/** The tables of an open image, and its file to read them from. */
function tablesIn(handle: number, signal: AbortSignal): { tables: Tables; read: ReadHost } {
  const image = imageOf(handle);
  const tables = tablesOf(images.get(handle)?.facts ?? { ...NOTHING, virtualSize: 0n, hostSize: 0n });
  if (!tables) throw new Error("a raw disk has no tables");
  return { tables, read: (offset, length) => image.readHost(offset, length, { signal }) };
}
const NOTHING = { header: [], features: [], extensions: [], snapshots: [], snapshot: null };

/** Tells progress, but not more often than a person can see. */
function teller<C extends Call>(id: number): (value: Calls[C]["progress"]) => boolean {
  let told = 0;
  return (value) => {
    const now = performance.now();
    if (now - told < PROGRESS_INTERVAL_MS) return false;
    told = now;
    scope.postMessage({ type: "progress", id, value });
    return true;
  };
}

let fetchedTimer: ReturnType<typeof setTimeout> | null = null;
const fetchedLately = new Map<string, Fetched>();

/** Tells what has come from an address, a little later and at once. */
function noteFetched(fetched: Fetched): void {
  fetchedLately.set(fetched.url, fetched);
  fetchedTimer ??= setTimeout(() => {
    fetchedTimer = null;
    for (const one of fetchedLately.values()) scope.postMessage({ type: "fetched", fetched: one });
    fetchedLately.clear();
  }, PROGRESS_INTERVAL_MS);
}

async function check(id: number, image: Image, signal: AbortSignal): Promise<CheckReport> {
  for await (const event of image.check({ signal })) {
    if (event.type === "report") return event.report;
    scope.postMessage({
      type: "progress",
      id,
      value: event.type === "finding" ? event.finding : { done: event.done, total: event.total },
    });
  }
  throw new Error("the check ended without a report");
}

/** Walks a range of two disks side by side, adding up how they differ. */
async function compare(
  id: number,
  { one, other, offset, length, bucketsMax }: Calls["compare"]["arguments"],
  signal: AbortSignal,
): Promise<Allocation> {
  const sides = [one, other].map(({ image: handle, above }) => {
    const image = imageOf(handle);
    const from = offset < image.virtualSize ? offset : image.virtualSize;
    const left = image.virtualSize - from;
    return { image, above, extents: image.extents({ offset: from, length: length < left ? length : left, signal }) };
  });
  const [a, b] = sides;
  if (!a || !b) throw new Error("a comparison needs two disks");
  const unit = BigInt(Math.max(a.image.clusterSize ?? 512, b.image.clusterSize ?? 512));
  const sum = Allocation.empty(offset, length, unit, bucketsMax);
  const tell = teller<"compare">(id);
  let turned = performance.now();
  for await (const part of compareParts(a, b, offset, offset + length)) {
    Allocation.addKind(sum, part.offset, part.length, part.kind);
    sum.done = part.offset + part.length;
    if (performance.now() - turned > STEP_MS) {
      tell(sum);
      await turn();
      signal.throwIfAborted();
      turned = performance.now();
    }
  }
  sum.done = offset + length;
  return sum;
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
    const extents: Extent[] = await image.map(at, left < step ? left : step, EXTENTS_A_STEP_MAX, { signal });
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

function volumeIn({ image, volume }: { image: number; volume: number }): Promise<Volume> {
  return volumeOf(image, imageOf(image), volume);
}

function imageOf(handle: number): Image {
  return openOf(handle).image;
}

function openOf(handle: number): { image: Image; source: Bytes } {
  const open = images.get(handle);
  if (!open) throw new Error("the image is closed");
  return open;
}

function planOf(handle: number): RepairPlan {
  const plan = plans.get(handle);
  if (!plan) throw new Error("the repair was not worked out");
  return plan;
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
    fatal: given["code"] === "engine-stopped",
  };
}
