// New images out of the one that is open: a repaired copy of its file, or a qcow2 image of its disk.

import { Image } from "cowshed";
import { create, repair } from "cowshed/write";
import type { RepairReport } from "./contract.js";
import { runs } from "./copy.js";
import type { Progress, Qcow2Options } from "./protocol.js";
import { intoKept } from "./sink.js";

/** What is read at a time: a multiple of every cluster size. Bytes. */
const PIECE_LENGTH = 4n << 20n;
/** The names in the browser's own storage. */
const KEPT_REPAIRED = "repaired.qcow2";
const KEPT_QCOW2 = "export.qcow2";

type Tell = (progress: Progress) => boolean;

/** Copies the image's own file and repairs the copy. */
export async function repairedCopy(
  image: Image,
  to: FileSystemFileHandle | null,
  signal: AbortSignal,
  tell: Tell,
): Promise<{ file: File | null; report: RepairReport }> {
  let report: RepairReport | null = null;
  const file = await intoKept(to, KEPT_REPAIRED, async (handle) => {
    const total = Number(image.hostSize);
    for (let at = 0; at < total; at += Number(PIECE_LENGTH)) {
      const bytes = await image.readHost(at, Math.min(Number(PIECE_LENGTH), total - at), { signal });
      if (handle.write(bytes, { at }) !== bytes.length) throw new Error("the browser's storage is full");
      tell({ done: at + bytes.length, total });
    }
    // The copy is half of the work, as far as anyone can tell.
    report = await repair(handle, "all", { signal, onProgress: (done, total) => void tell({ done, total }) });
  });
  if (!report) throw new Error("the repair ended without a report");
  return { file, report };
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
