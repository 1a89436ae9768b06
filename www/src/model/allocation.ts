// What lies where on a disk, added up into buckets of equal length: the allocation map's data, small whatever the disk's
// size. It crosses the worker's border, so it is a plain object with functions beside it.
//
// Offsets are kept as numbers: extents begin and end on sectors, and a double holds every multiple of 512 up to 2^62.

import type { Extent } from "../engine/contract.js";

/** The kinds that the map tells apart, in the order in which they are drawn. */
export const KINDS = ["data", "backing", "compressed", "zero", "unallocated"] as const;
export type Kind = (typeof KINDS)[number];

export interface Allocation {
  /** Where the first bucket begins. */
  offset: bigint;
  length: bigint;
  /** How far the scan has come, as an offset. */
  done: bigint;
  bucketLength: bigint;
  bucketCount: number;
  /** Bytes of each kind in each bucket: bucket * KINDS.length + kind. */
  bytes: Float64Array;
  /** Bytes of each kind in all. */
  totals: Float64Array;
}

/** The kind of an extent on the map: what a backing file supplies is told apart from what this file holds. */
export function kindOf(extent: Pick<Extent, "kind" | "depth">): Kind {
  if (extent.depth > 0 && (extent.kind === "data" || extent.kind === "compressed")) return "backing";
  return extent.kind;
}

function empty(offset: bigint, length: bigint, unit: bigint, bucketsMax: number): Allocation {
  const units = (length + unit - 1n) / unit;
  const unitsEach = (units + BigInt(bucketsMax) - 1n) / BigInt(bucketsMax) || 1n;
  const bucketCount = Number((units + unitsEach - 1n) / unitsEach);
  return {
    offset,
    length,
    done: offset,
    bucketLength: unitsEach * unit,
    bucketCount,
    bytes: new Float64Array(bucketCount * KINDS.length),
    totals: new Float64Array(KINDS.length),
  };
}

function add(allocation: Allocation, extent: Extent): void {
  addKind(allocation, extent.offset, extent.length, KINDS.indexOf(kindOf(extent)));
}

/** Adds a part by the index of its kind: the map of a comparison has kinds of its own, as many. */
function addKind(allocation: Allocation, offset: bigint, length: bigint, kind: number): void {
  const bucketLength = Number(allocation.bucketLength);
  let at = Number(offset - allocation.offset);
  let left = Math.min(Number(length), Number(allocation.length) - at);
  allocation.totals[kind] = (allocation.totals[kind] ?? 0) + left;
  while (left > 0) {
    const bucket = Math.floor(at / bucketLength);
    const here = Math.min(left, (bucket + 1) * bucketLength - at);
    const index = bucket * KINDS.length + kind;
    allocation.bytes[index] = (allocation.bytes[index] ?? 0) + here;
    at += here;
    left -= here;
  }
}

/** Bytes of each kind in `count` buckets from `first`. */
function sum(allocation: Allocation, first: number, count: number): number[] {
  const bytes = new Array<number>(KINDS.length).fill(0);
  const end = Math.min(first + count, allocation.bucketCount) * KINDS.length;
  for (let index = first * KINDS.length; index < end; index += 1) {
    const kind = index % KINDS.length;
    bytes[kind] = (bytes[kind] ?? 0) + (allocation.bytes[index] ?? 0);
  }
  return bytes;
}

export const Allocation = { empty, add, addKind, sum };
