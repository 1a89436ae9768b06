// From a place of the disk through the L1 and the L2 table to the file: each entry with its raw bits and what they say.

import { compressedAt, l2Entries, l2EntryLength, OFFSET_MASK, refcountOf, u64, type ReadHost, type Refcount, type Tables } from "./tables.js";

/** Some bits of an entry. */
export interface Bits {
  /** The highest and the lowest. */
  high: number;
  low: number;
  name: string;
  value: bigint;
  meaning: string;
  /** Where they lead in the file. */
  leads: bigint | null;
  /** They break the specification. */
  wrong: boolean;
}

export interface Step {
  structure: "L1 entry" | "L2 entry" | "Subclusters";
  index: bigint;
  /** Where the entry is in the file. */
  at: bigint;
  raw: bigint;
  bits: Bits[];
}

export type End =
  | { kind: "data" | "zero" | "compressed"; host: bigint | null; inDataFile: boolean }
  | { kind: "unallocated" }
  | { kind: "broken"; reason: string };

export interface Trail {
  offset: bigint;
  /** The cluster of the disk, and the place in it. */
  cluster: bigint;
  inCluster: bigint;
  steps: Step[];
  end: End;
  /** Of the cluster that the trail ends in. */
  refcount: Refcount | null;
}

/** Follows a place of the disk. */
export async function follow(tables: Tables, offset: bigint, read: ReadHost): Promise<Trail> {
  const cluster = offset >> tables.clusterBits;
  const trail: Trail = {
    offset,
    cluster,
    inCluster: offset & (tables.clusterSize - 1n),
    steps: [],
    end: { kind: "unallocated" },
    refcount: null,
  };
  const l1Index = cluster / l2Entries(tables);
  const l1At = tables.active.offset + l1Index * 8n;
  if (l1Index >= BigInt(tables.active.entries)) {
    return { ...trail, end: { kind: "broken", reason: `the L1 table has ${tables.active.entries} entries, too few for this place` } };
  }
  const broken = (reason: string): Trail => ({ ...trail, end: { kind: "broken", reason } });
  const missing = (at: bigint, length: bigint): boolean => at + length > tables.hostSize;
  if (missing(l1At, 8n)) return broken("the L1 entry is past the end of the file");
  const l1 = u64(await read(l1At, 8));
  trail.steps.push({ structure: "L1 entry", index: l1Index, at: l1At, raw: l1, bits: l1Bits(l1, tables) });
  const table = l1 & OFFSET_MASK;
  if (table === 0n) return trail;
  const l2Index = cluster % l2Entries(tables);
  const entryLength = l2EntryLength(tables);
  const l2At = table + l2Index * entryLength;
  if (table % tables.clusterSize !== 0n) return broken("the L2 table is not aligned to a cluster");
  if (missing(l2At, entryLength)) return broken("the L2 entry is past the end of the file");
  const bytes = await read(l2At, Number(entryLength));
  const l2 = u64(bytes);
  trail.steps.push({ structure: "L2 entry", index: l2Index, at: l2At, raw: l2, bits: l2Bits(l2, tables) });
  const isCompressed = ((l2 >> 62n) & 1n) === 1n;
  if (isCompressed) {
    const { offset: host } = compressedAt(l2, tables);
    trail.end = { kind: "compressed", host, inDataFile: false };
    trail.refcount = await refcountOf(tables, host, read);
    return trail;
  }
  const host = l2 & OFFSET_MASK;
  let isZero = !tables.extendedL2 && (l2 & 1n) === 1n;
  let isAllocated = host !== 0n || (tables.dataFile && ((l2 >> 63n) & 1n) === 1n);
  if (tables.extendedL2) {
    const bitmap = u64(bytes, 8);
    const length = tables.clusterSize / 32n;
    const subcluster = trail.inCluster / length;
    trail.steps.push({ structure: "Subclusters", index: subcluster, at: l2At + 8n, raw: bitmap, bits: subclusterBits(bitmap, subcluster) });
    isZero = ((bitmap >> (32n + subcluster)) & 1n) === 1n;
    isAllocated = isAllocated && ((bitmap >> subcluster) & 1n) === 1n;
  }
  const place = host + trail.inCluster;
  if (isZero) trail.end = { kind: "zero", host: host === 0n ? null : place, inDataFile: tables.dataFile };
  else if (isAllocated) trail.end = { kind: "data", host: place, inDataFile: tables.dataFile };
  if (host !== 0n && host % tables.clusterSize !== 0n) return broken("the host cluster is not aligned to a cluster");
  if (host !== 0n && !tables.dataFile) trail.refcount = await refcountOf(tables, host, read);
  return trail;
}

function l1Bits(entry: bigint, { clusterSize }: Tables): Bits[] {
  const table = entry & OFFSET_MASK;
  return [
    copied(entry),
    reserved(entry, 62, 56),
    {
      ...part(entry, 55, 9, "L2 table"),
      value: table,
      meaning: table === 0n ? "none: nothing is mapped here" : table % clusterSize === 0n ? "where the L2 table is" : "not aligned to a cluster",
      leads: table === 0n ? null : table,
      wrong: table % clusterSize !== 0n,
    },
    reserved(entry, 8, 0),
  ];
}

function l2Bits(entry: bigint, tables: Tables): Bits[] {
  const compressed = ((entry >> 62n) & 1n) === 1n;
  const flag = { ...part(entry, 62, 62, "compressed"), meaning: compressed ? "the cluster is compressed" : "the cluster is not compressed" };
  if (compressed) {
    const { offset, sectors, shift } = compressedAt(entry, tables);
    const low = Number(shift);
    return [
      copied(entry),
      flag,
      { ...part(entry, 61, low, "additional sectors"), meaning: `the stream reaches into ${sectors} more sectors of 512 bytes` },
      { ...part(entry, low - 1, 0, "host offset"), meaning: "where the compressed stream begins", leads: offset },
    ];
  }
  const host = entry & OFFSET_MASK;
  const aligned = host % tables.clusterSize === 0n;
  return [
    copied(entry),
    flag,
    reserved(entry, 61, 56),
    {
      ...part(entry, 55, 9, "host cluster"),
      value: host,
      meaning: host === 0n ? "none" : aligned ? `where the cluster is${tables.dataFile ? " in the data file" : ""}` : "not aligned to a cluster",
      leads: host === 0n || tables.dataFile ? null : host,
      wrong: !aligned,
    },
    reserved(entry, 8, 1),
    tables.extendedL2
      ? reserved(entry, 0, 0)
      : { ...part(entry, 0, 0, "zero"), meaning: (entry & 1n) === 1n ? "the cluster reads as zeros" : "the cluster reads as what it holds" },
  ];
}

function subclusterBits(bitmap: bigint, subcluster: bigint): Bits[] {
  const allocated = ((bitmap >> subcluster) & 1n) === 1n;
  const zero = ((bitmap >> (32n + subcluster)) & 1n) === 1n;
  return [
    { ...part(bitmap, 63, 32, "reads as zeros"), meaning: `subcluster ${subcluster}: ${zero ? "yes" : "no"}` },
    {
      ...part(bitmap, 31, 0, "allocated"),
      meaning: `subcluster ${subcluster}: ${allocated ? "yes" : "no"}`,
      wrong: allocated && zero,
    },
  ];
}

function copied(entry: bigint): Bits {
  const set = entry >> 63n === 1n;
  return {
    ...part(entry, 63, 63, "copied"),
    meaning: set ? "the refcount is exactly one: it may be written in place" : "shared, or nothing: it is copied before it is written",
  };
}

function reserved(entry: bigint, high: number, low: number): Bits {
  const bits = part(entry, high, low, "reserved");
  return { ...bits, meaning: bits.value === 0n ? "must be zero" : "must be zero, and is not", wrong: bits.value !== 0n };
}

function part(entry: bigint, high: number, low: number, name: string): Bits {
  const value = (entry >> BigInt(low)) & ((1n << BigInt(high - low + 1)) - 1n);
  return { high, low, name, value, meaning: "", leads: null, wrong: false };
}
