// Where an image's tables lie and what their entries say, as the specification has it: the arithmetic behind the cluster
// explorer. It reads raw bytes itself, so that what is shown is what is in the file.

import type { Extension, Feature, HeaderField, Snapshot } from "../engine/contract.js";

/** Reads bytes of the file. */
export type ReadHost = (offset: bigint, length: number) => Promise<Uint8Array>;

const EXTENDED_L2_BIT = 4;
const DATA_FILE_BIT = 2;
/** Bits 9 to 55 of an L1, L2 or refcount table entry. */
export const OFFSET_MASK = 0x00ff_ffff_ffff_fe00n;

/** What is needed of a header to walk the tables. */
export interface Tables {
  clusterBits: bigint;
  clusterSize: bigint;
  extendedL2: boolean;
  dataFile: boolean;
  virtualSize: bigint;
  /** Length of the file. */
  hostSize: bigint;
  refcountBits: number;
  refcountTable: bigint;
  refcountTableClusters: bigint;
  snapshotTable: bigint;
  snapshotCount: number;
  /** The L1 tables: of the disk as it is now, then of each snapshot. */
  l1: L1Table[];
  /** Which of them the open image reads. */
  active: L1Table;
  extensions: Extension[];
}

export interface L1Table {
  /** The snapshot's name; null for the disk as it is now. */
  snapshot: string | null;
  offset: bigint;
  entries: number;
}

interface Described {
  header: HeaderField[];
  features: Feature[];
  extensions: Extension[];
  snapshots: Snapshot[];
  virtualSize: bigint;
  hostSize: bigint;
  snapshot: string | null;
}

/** The tables of an image; null if it is raw. */
export function tablesOf(facts: Described): Tables | null {
  const fields = new Map(facts.header.map(({ name, value }) => [name, value]));
  const field = (name: string): bigint => fields.get(name) ?? 0n;
  if (fields.size === 0) return null;
  const has = (bit: number): boolean => facts.features.some((one) => one.set === "incompatible" && one.bit === bit);
  const clusterBits = field("cluster_bits");
  const now: L1Table = { snapshot: null, offset: field("l1_table_offset"), entries: Number(field("l1_size")) };
  const others = facts.snapshots.map(
    ({ id, name, l1Offset, l1Entries }): L1Table => ({ snapshot: name || id, offset: l1Offset, entries: l1Entries }),
  );
  const chosen = facts.snapshots.findIndex(({ id }) => id === facts.snapshot);
  return {
    clusterBits,
    clusterSize: 1n << clusterBits,
    extendedL2: has(EXTENDED_L2_BIT),
    dataFile: has(DATA_FILE_BIT),
    virtualSize: facts.virtualSize,
    hostSize: facts.hostSize,
    refcountBits: 1 << Number(fields.get("refcount_order") ?? 4n),
    refcountTable: field("refcount_table_offset"),
    refcountTableClusters: field("refcount_table_clusters"),
    snapshotTable: field("snapshots_offset"),
    snapshotCount: Number(field("nb_snapshots")),
    l1: [now, ...others],
    active: others[chosen] ?? now,
    extensions: facts.extensions,
  };
}

/** A table that the header or a snapshot names. Offset and length in bytes of the file. */
export interface TablePlace {
  name: string;
  /** The snapshot whose it is. */
  of: string | null;
  offset: bigint;
  entries: number;
  /** Null where entries have lengths of their own. */
  length: bigint | null;
}

/** The tables that the header and the snapshots name, in their order in the file. */
export function placesOf(tables: Tables): TablePlace[] {
  const refcounts = tables.refcountTableClusters * tables.clusterSize;
  const places: TablePlace[] = [
    { name: "Refcount table", of: null, offset: tables.refcountTable, entries: Number(refcounts / 8n), length: refcounts },
    ...tables.l1.map(
      ({ snapshot, offset, entries }): TablePlace => ({ name: "L1 table", of: snapshot, offset, entries, length: BigInt(entries) * 8n }),
    ),
  ];
  if (tables.snapshotCount > 0) {
    places.push({ name: "Snapshot table", of: null, offset: tables.snapshotTable, entries: tables.snapshotCount, length: null });
  }
  return places.sort((one, other) => (one.offset < other.offset ? -1 : one.offset > other.offset ? 1 : 0));
}

/** Bytes of an L2 entry. */
export function l2EntryLength(tables: Tables): bigint {
  return tables.extendedL2 ? 16n : 8n;
}

/** Clusters that one L2 table maps. */
export function l2Entries(tables: Tables): bigint {
  return tables.clusterSize / l2EntryLength(tables);
}

/** A big-endian number of eight bytes; fewer are missing bytes of a file that ends before. */
export function u64(bytes: Uint8Array, at = 0): bigint {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength).getBigUint64(at);
}

/** Where a compressed cluster lies, from its L2 entry. Spec: qcow2, Compressed Clusters Descriptor. */
export function compressedAt(entry: bigint, tables: Tables): { offset: bigint; length: bigint; sectors: bigint; shift: bigint } {
  const shift = 62n - (tables.clusterBits - 8n);
  const offset = entry & ((1n << shift) - 1n);
  const sectors = (entry & ((1n << 62n) - 1n)) >> shift;
  return { offset, length: (sectors + 1n) * 512n - (offset & 511n), sectors, shift };
}

/** The refcount of the cluster that holds a byte of the file, and where it is written. */
export interface Refcount {
  cluster: bigint;
  /** The entry of the refcount table. */
  tableIndex: bigint;
  tableAt: bigint;
  tableEntry: bigint | null;
  /** The block and the entry in it, if there is a block. */
  block: bigint | null;
  index: bigint;
  at: bigint | null;
  value: bigint;
}

export async function refcountOf(tables: Tables, offset: bigint, read: ReadHost): Promise<Refcount> {
  const bits = BigInt(tables.refcountBits);
  const cluster = offset >> tables.clusterBits;
  const blockEntries = (tables.clusterSize * 8n) / bits;
  const tableIndex = cluster / blockEntries;
  const index = cluster % blockEntries;
  const tableAt = tables.refcountTable + tableIndex * 8n;
  const none = { cluster, tableIndex, tableAt, tableEntry: null, block: null, index, at: null, value: 0n };
  if (tableIndex >= (tables.refcountTableClusters * tables.clusterSize) / 8n) return none;
  const tableEntry = u64(await read(tableAt, 8));
  const block = tableEntry & OFFSET_MASK;
  if (block === 0n) return { ...none, tableEntry };
  const at = block + (index * bits) / 8n;
  if (bits >= 8n) {
    const bytes = await read(at, Number(bits / 8n));
    return { ...none, tableEntry, block, at, value: bytes.reduce((sum, byte) => (sum << 8n) | BigInt(byte), 0n) };
  }
  // Narrower entries fill their byte from its lowest bit on.
  const [byte = 0] = await read(at, 1);
  const shift = (index * bits) % 8n;
  return { ...none, tableEntry, block, at, value: (BigInt(byte) >> shift) & ((1n << bits) - 1n) };
}
