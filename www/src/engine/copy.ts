// The whole disk, piece by piece: into a file, or into a hash. What reads as zeros is not read.

import type { Image } from "cowshed";
import { Sha256 } from "../model/sha256.js";
import type { Progress } from "./protocol.js";
import { intoSink } from "./sink.js";

/** What is read and written at a time: as long as the longest slice that the engine fetches. Bytes. */
const PIECE_LENGTH = 4n << 20n;
/** Pieces under way beside the one in use. */
const PIECES_AHEAD = 2;
/** The file in the browser's own storage that an export goes to where there is no other. */
const KEPT_NAME = "export.raw";

type Tell = (progress: Progress) => boolean;

interface Piece {
  offset: bigint;
  length: bigint;
  /** Null where the disk reads as zeros. */
  bytes: Uint8Array<ArrayBuffer> | null;
}

/** Writes the disk to `to`, or to the browser's own storage, and gives the file back in that case. */
export async function exportDisk(
  image: Image,
  to: FileSystemFileHandle | null,
  signal: AbortSignal,
  tell: Tell,
): Promise<File | null> {
  return intoSink(to, KEPT_NAME, async (sink) => {
    for await (const { offset, length, bytes } of pieces(image, signal)) {
      if (bytes) await sink.write(Number(offset), bytes);
      tell({ done: Number(offset + length), total: Number(image.virtualSize) });
    }
    return Number(image.virtualSize);
  });
}

/** The SHA-256 of the disk, as `sha256sum` of its raw file prints it. */
export async function hashDisk(image: Image, signal: AbortSignal, tell: Tell): Promise<string> {
  const hash = new Sha256();
  const zeros = new Uint8Array(1 << 20);
  for await (const { offset, length, bytes } of pieces(image, signal)) {
    if (bytes) hash.update(bytes);
    else {
      for (let left = Number(length); left > 0; left -= zeros.length) {
        hash.update(left < zeros.length ? zeros.subarray(0, left) : zeros);
      }
    }
    tell({ done: Number(offset + length), total: Number(image.virtualSize) });
  }
  return hash.hex();
}

/** The disk in order, in pieces that are read ahead of who uses them. */
async function* pieces(image: Image, signal: AbortSignal): AsyncGenerator<Piece> {
  const ahead: Promise<Piece>[] = [];
  for await (const { offset, length, isZero } of runs(image, signal)) {
    signal.throwIfAborted();
    const piece = readPiece(image, offset, length, isZero, signal);
    // It is awaited in a later turn, or not at all.
    piece.catch(() => undefined);
    ahead.push(piece);
    if (ahead.length > PIECES_AHEAD) yield (await ahead.shift()) as Piece;
  }
  for (const piece of ahead) yield await piece;
}

/** Runs of zeros or of anything else, cut into pieces; neighbouring extents are one run. */
export async function* runs(image: Image, signal: AbortSignal): AsyncGenerator<{ offset: bigint; length: bigint; isZero: boolean }> {
  let run: { offset: bigint; length: bigint; isZero: boolean } | null = null;
  for await (const { offset, length, kind } of image.extents({ signal })) {
    const isZero = kind === "zero" || kind === "unallocated";
    if (run && run.isZero !== isZero) {
      if (run.length > 0n) yield run;
      run = null;
    }
    run ??= { offset, length: 0n, isZero };
    run.length += length;
    while (run.length >= PIECE_LENGTH) {
      yield { ...run, length: PIECE_LENGTH };
      run = { offset: run.offset + PIECE_LENGTH, length: run.length - PIECE_LENGTH, isZero };
    }
  }
  if (run && run.length > 0n) yield run;
}

async function readPiece(image: Image, offset: bigint, length: bigint, isZero: boolean, signal: AbortSignal): Promise<Piece> {
  return { offset, length, bytes: isZero ? null : await image.read(offset, Number(length), { signal }) };
}
