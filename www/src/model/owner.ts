// From a place in the file back to whoever refers to it: the fixed structures first, then every L2 table of the disk and of
// the snapshots. What refers to nothing and is counted all the same is leaked.

import {
  compressedAt,
  l2Entries,
  l2EntryLength,
  OFFSET_MASK,
  refcountOf,
  u64,
  type L1Table,
  type ReadHost,
  type Refcount,
  type Tables,
} from "./tables.js";

/** Owners listed; a cluster of compressed data may have dozens. */
export const OWNERS_MAX = 100;
/** The most that is read of a refcount table, an L1 table or a snapshot table at once. Bytes. */
const READ_LENGTH = 1 << 20;
const BITMAPS_EXTENSION = 0x23852875;
const CRYPTO_EXTENSION = 0x0537be77;
const SNAPSHOT_HEAD_LENGTH = 40;

/** One that refers to the cluster. */
export interface Claim {
  /** "header", "L1 table", "L2 table", "data"... */
  structure: string;
  /** The snapshot whose it is; null for the disk as it is now, undefined for what belongs to the whole image. */
  snapshot: string | null | undefined;
  /** Where on the disk it shows, for data and L2 tables. */
  guest: bigint | null;
  /** The entry that refers to it, as a place in the file. */
  by: bigint | null;
}

export interface Owner {
  offset: bigint;
  cluster: bigint;
  claims: Claim[];
  /** There are more than the list holds. */
  more: boolean;
  refcount: Refcount;
}

/** Looks for everything that refers to the cluster of a place in the file. `progress` is told of L2 tables looked at. */
export async function ownersOf(
  tables: Tables,
  offset: bigint,
  read: ReadHost,
  progress: (done: number, total: number) => Promise<void>,
): Promise<Owner> {
  const cluster = offset - (offset % tables.clusterSize);
  const claims: Claim[] = [];
  const claim = (structure: string, by: bigint | null, more: Partial<Claim> = {}): void => {
    claims.push({ structure, snapshot: undefined, guest: null, by, ...more });
  };
  const within = (start: bigint, length: bigint): boolean =>
    length > 0n && start < cluster + tables.clusterSize && start + length > cluster;

  if (cluster === 0n) claim("header", null);
  if (within(tables.refcountTable, tables.refcountTableClusters * tables.clusterSize)) claim("refcount table", 48n);
  if (within(tables.snapshotTable, await snapshotTableLength(tables, read))) claim("snapshot table", 64n);
  for (const { type, offset: at } of tables.extensions) {
    if (type === CRYPTO_EXTENSION) {
      const bytes = await read(BigInt(at) + 8n, 16);
      if (within(u64(bytes), u64(bytes, 8))) claim("encryption header", BigInt(at));
    } else if (type === BITMAPS_EXTENSION) {
      const bytes = await read(BigInt(at) + 8n, 24);
      if (within(u64(bytes, 16), u64(bytes, 8))) claim("bitmap directory", BigInt(at));
    }
  }
  const refcountEntries = (tables.refcountTableClusters * tables.clusterSize) / 8n;
  await eachEntry(tables.refcountTable, refcountEntries, tables, read, (entry, at) => {
    if ((entry & OFFSET_MASK) === cluster && cluster !== 0n) claim("refcount block", at);
  });

  const tablesFound: { l1: L1Table; at: bigint; guest: bigint; by: bigint }[] = [];
  const guestEach = l2Entries(tables) * tables.clusterSize;
  for (const l1 of tables.l1) {
    if (within(l1.offset, BigInt(l1.entries) * 8n)) claim("L1 table", null, { snapshot: l1.snapshot });
    await eachEntry(l1.offset, BigInt(l1.entries), tables, read, (entry, at, index) => {
      const table = entry & OFFSET_MASK;
      if (table === 0n) return;
      if (table === cluster) claim("L2 table", at, { snapshot: l1.snapshot, guest: index * guestEach });
      tablesFound.push({ l1, at: table, guest: index * guestEach, by: at });
    });
  }
  // Snapshots share tables with each other: each is read once.
  const byTable = new Map<bigint, typeof tablesFound>();
  for (const one of tablesFound) byTable.set(one.at, [...(byTable.get(one.at) ?? []), one]);
  let done = 0;
  if (!tables.dataFile || tables.virtualSize > 0n) {
    for (const [table, users] of byTable) {
      await progress(done, byTable.size);
      done += 1;
      if (claims.length > OWNERS_MAX || table + tables.clusterSize > tables.hostSize) continue;
      const bytes = await read(table, Number(tables.clusterSize));
      for (const { index, structure } of entriesAt(bytes, cluster, tables)) {
        for (const { l1, guest } of users) {
          claim(structure, table + index * l2EntryLength(tables), {
            snapshot: l1.snapshot,
            guest: guest + index * tables.clusterSize,
          });
        }
      }
    }
  }
  return {
    offset,
    cluster,
    claims: claims.slice(0, OWNERS_MAX),
    more: claims.length > OWNERS_MAX,
    refcount: await refcountOf(tables, offset, read),
  };
}

/** The entries of an L2 table that lead to a cluster of the file. The words are compared as two halves: a table has thousands. */
function entriesAt(bytes: Uint8Array, cluster: bigint, tables: Tables): { index: bigint; structure: string }[] {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const high = Number(cluster >> 32n);
  const low = Number(cluster & 0xffff_ffffn);
  const step = Number(l2EntryLength(tables));
  const found: { index: bigint; structure: string }[] = [];
  for (let at = 0; at < bytes.length; at += step) {
    const first = view.getUint32(at);
    const second = view.getUint32(at + 4);
    if ((first & 0x4000_0000) !== 0) {
      const { offset, length } = compressedAt(view.getBigUint64(at), tables);
      if (offset < cluster + tables.clusterSize && offset + length > cluster) {
        found.push({ index: BigInt(at / step), structure: "compressed data" });
      }
    } else if (!tables.dataFile && (first & 0x00ff_ffff) === high && (second & 0xffff_fe00) >>> 0 === low && cluster !== 0n) {
      found.push({ index: BigInt(at / step), structure: "data" });
    }
  }
  return found;
}

/** Every entry of a table of eight-byte entries, as far as the file has it. */
async function eachEntry(
  table: bigint,
  entries: bigint,
  { hostSize }: Tables,
  read: ReadHost,
  visit: (entry: bigint, at: bigint, index: bigint) => void,
): Promise<void> {
  const end = table + entries * 8n < hostSize ? table + entries * 8n : hostSize - ((hostSize - table) % 8n);
  for (let at = table; at < end; ) {
    const length = Number(end - at < BigInt(READ_LENGTH) ? end - at : BigInt(READ_LENGTH));
    const bytes = await read(at, length);
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    for (let i = 0; i + 8 <= length; i += 8) {
      const entry = view.getBigUint64(i);
      if (entry !== 0n) visit(entry, at + BigInt(i), (at + BigInt(i) - table) / 8n);
    }
    at += BigInt(length);
  }
}

/** The snapshot table has entries of their own lengths. Spec: qcow2, Snapshots. */
async function snapshotTableLength({ snapshotTable, snapshotCount, hostSize }: Tables, read: ReadHost): Promise<bigint> {
  let at = snapshotTable;
  for (let entry = 0; entry < snapshotCount && at + BigInt(SNAPSHOT_HEAD_LENGTH) <= hostSize; entry += 1) {
    const bytes = await read(at, SNAPSHOT_HEAD_LENGTH);
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    const length = SNAPSHOT_HEAD_LENGTH + view.getUint32(36) + view.getUint16(12) + view.getUint16(14);
    at += BigInt(Math.ceil(length / 8) * 8);
  }
  return at - snapshotTable;
}
