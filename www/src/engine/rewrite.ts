// New images out of the one that is open: its file repaired, or a qcow2 image of its disk.

import { Image } from "cowshed";
import { create, planRepair, type RepairPlan } from "cowshed/write";
import type { Bytes } from "./contract.js";
import { runs } from "./copy.js";
import type { Progress, Qcow2Options, RepairFacts } from "./protocol.js";
import { intoKept, intoSink } from "./sink.js";

/** What is read at a time: a multiple of every cluster size. Bytes. */
const PIECE_LENGTH = 4n << 20n;
/** The names in the browser's own storage. */
const KEPT_FETCHED = "fetched.qcow2";
const KEPT_REPAIRED = "repaired.qcow2";
const KEPT_QCOW2 = "export.qcow2";

/** Changes that the page is told of; more are counted. */
const CHANGES_MAX = 200;

type Tell = (progress: Progress) => boolean;

/** Works out a repair of the image's own file, which `source` is. */
export async function workOut(image: Image, source: Bytes, signal: AbortSignal, tell: Tell): Promise<RepairPlan> {
  const file = typeof source === "string" ? await fetched(image, signal, tell) : source;
  return planRepair(file, "all", { signal, onProgress: (done, total) => void tell({ done, total }) });
}

/** The image's own file, brought here from a server: a repair reads at once what it wants. */
async function fetched(image: Image, signal: AbortSignal, tell: Tell): Promise<File> {
  const file = await intoKept(null, KEPT_FETCHED, async (handle) => {
    const total = Number(image.hostSize);
    for (let at = 0; at < total; at += Number(PIECE_LENGTH)) {
      const bytes = await image.readHost(at, Math.min(Number(PIECE_LENGTH), total - at), { signal });
      if (handle.write(bytes, { at }) !== bytes.length) throw new Error("the browser's storage is full");
      tell({ done: at + bytes.length, total });
    }
  });
  if (!file) throw new Error("the browser kept nothing");
  return file;
}

/** What the page is told of a repair. */
export function factsOfRepair({ report, changes, sizeBefore, size }: RepairPlan): RepairFacts {
  return {
    report,
    changes: changes.slice(0, CHANGES_MAX),
    changeCount: changes.length,
    changedLength: changes.reduce((sum, { length }) => sum + length, 0),
    sizeBefore,
    size,
  };
}

/** Writes the repaired file as a copy. */
export async function saveRepaired(
  plan: RepairPlan,
  to: FileSystemFileHandle | null,
  signal: AbortSignal,
  tell: Tell,
): Promise<File | null> {
  const total = plan.size;
  return intoSink(to, KEPT_REPAIRED, async (sink) => {
    for (let at = 0; at < total; at += Number(PIECE_LENGTH)) {
      signal.throwIfAborted();
      const bytes = await plan.read(at, Math.min(Number(PIECE_LENGTH), total - at), signal);
      // Where nothing is written the copy reads as zeros.
      if (bytes.some((byte) => byte !== 0)) await sink.write(at, bytes);
      tell({ done: at + bytes.length, total });
    }
    return total;
  });
}

/** Writes the disk as a new qcow2 image without snapshots or backing file. */
export async function exportQcow2(
  image: Image,
  { clusterSize, compressed }: Qcow2Options,
  to: FileSystemFileHandle | null,
  signal: AbortSignal,
  tell: Tell,
): Promise<File | null> {
  return intoKept(to, KEPT_QCOW2, async (handle) => {
    const size = image.virtualSize;
    await create(handle, { size, clusterSize, signal });
    const copy = await Image.open(handle, { writable: true, signal });
    try {
      for await (const offset of windows(image, signal)) {
        const left = size - offset;
        const bytes = await image.read(offset, Number(left < PIECE_LENGTH ? left : PIECE_LENGTH), { signal });
        for (const { at, length } of filled(bytes, clusterSize)) {
          await copy.write(offset + BigInt(at), bytes.subarray(at, at + length), { compressed, signal });
        }
        tell({ done: Number(offset) + bytes.length, total: Number(size) });
      }
    } finally {
      await copy.close();
    }
  });
}

/** Where the pieces of the disk begin that may hold something. */
async function* windows(image: Image, signal: AbortSignal): AsyncGenerator<bigint> {
  let next = 0n;
  for await (const { offset, length, isZero } of runs(image, signal)) {
    if (isZero) continue;
    let at = offset - (offset % PIECE_LENGTH);
    if (at < next) at = next;
    for (; at < offset + length; at += PIECE_LENGTH) {
      yield at;
      next = at + PIECE_LENGTH;
    }
  }
}

/** Runs of whole clusters that are not all zeros. */
function* filled(bytes: Uint8Array<ArrayBuffer>, clusterSize: number): Generator<{ at: number; length: number }> {
  let begin = -1;
  for (let at = 0; at < bytes.length; at += clusterSize) {
    const cluster = bytes.subarray(at, at + clusterSize);
    if (cluster.some((byte) => byte !== 0)) {
      if (begin < 0) begin = at;
    } else if (begin >= 0) {
      yield { at: begin, length: at - begin };
      begin = -1;
    }
  }
  if (begin >= 0) yield { at: begin, length: bytes.length - begin };
}
