// The messages between the page and its worker. Offsets are bigint throughout: a structured clone keeps them whole.

import type { Fetched } from "cowshed";
import type { Allocation } from "../model/allocation.js";
import type { Owner } from "../model/owner.js";
import type { Trail } from "../model/trail.js";
import type {
  Answer,
  Bytes,
  CheckFinding,
  CheckReport,
  Entry,
  Extension,
  Extent,
  Fault,
  Feature,
  FileKind,
  FileSystemFacts,
  Format,
  HeaderField,
  Layer,
  OperatingSystem,
  Partition,
  Reference,
  RepairReport,
  Snapshot,
  Verdict,
} from "./contract.js";

/** Offsets of the disk that the guest sees, or of the file on the host. */
export type Space = "guest" | "host";

/** Everything that an open image knows without another look at the file. */
export interface ImageFacts {
  image: number;
  format: string;
  formatGuessed: boolean;
  virtualSize: bigint;
  hostSize: bigint;
  clusterSize: number | null;
  header: HeaderField[];
  info: object;
  features: Feature[];
  extensions: Extension[];
  snapshots: Snapshot[];
  bitmaps: { name: string; granularity: number; flags: string[] }[];
  layers: Layer[];
  /** The id of the snapshot that is looked at. */
  snapshot: string | null;
}

export interface OpenArguments {
  source: Bytes;
  name: string;
  format: Format | null;
  snapshot: string | null;
  /** Of everything in the chain that is encrypted; null looks at it without. */
  passphrase: string | null;
}

export interface Progress {
  done: number;
  total: number;
}

/** One side of a comparison: an open image, and how many layers lie above it in the chain that both belong to. */
export interface Side {
  image: number;
  above: number;
}

/** A part of the disk that may have a file system. */
export interface VolumeFacts {
  /** Its partition's; 0 is the disk as a whole. */
  number: number;
  start: bigint;
  length: bigint;
  partition: Partition | null;
  files: FileSystemFacts | null;
  problem: string | null;
  /** The name of what is there instead and not read. */
  foreign: string | null;
}

/** What lies on a disk. */
export interface DiskFacts {
  table: "none" | "dos" | "gpt";
  findings: string[];
  volumes: VolumeFacts[];
}

/** A file or folder: the volume by its place in the list, and the path there. */
export interface FilePlace {
  image: number;
  volume: number;
  path: Uint8Array;
}

/** How far a search is, and what was found since it told last. */
export interface SearchProgress {
  looked: number;
  /** Folders that could not be read. */
  unread: number;
  found: { path: Uint8Array; kind: FileKind; size: bigint; modified: number | null }[];
}

export interface SaveArguments extends FilePlace {
  /** As a tar archive of what is in the folder. */
  tree: boolean;
  to: FileSystemFileHandle | null;
}

export interface SaveResult {
  /** What the browser holds of it, if that is where it went. */
  file: File | null;
  /** What is not in the archive, or not as it was: the first of them. */
  faults: Fault[];
  faultCount: number;
}

/** A repair that was worked out. Lengths and offsets in bytes of the file. */
export interface RepairFacts {
  report: RepairReport;
  /** The first of the ranges that would be others than they are. */
  changes: { offset: number; length: number }[];
  changeCount: number;
  changedLength: number;
  sizeBefore: number;
  size: number;
}

/** How a new qcow2 image is to be. */
export interface Qcow2Options {
  /** In bytes. */
  clusterSize: number;
  compressed: boolean;
}

/** Each call with its arguments, its result, and what it reports on the way. */
export interface Calls {
  open: { arguments: OpenArguments; result: ImageFacts; progress: never };
  read: {
    arguments: { image: number; space: Space; offset: bigint; length: number };
    result: Uint8Array;
    progress: never;
  };
  map: {
    arguments: { image: number; offset: bigint; length: bigint; extentsMax: number };
    result: Extent[];
    progress: never;
  };
  scan: {
    arguments: { image: number; offset: bigint; length: bigint; bucketsMax: number };
    result: Allocation;
    progress: Allocation;
  };
  compare: {
    arguments: { one: Side; other: Side; offset: bigint; length: bigint; bucketsMax: number };
    result: Allocation;
    progress: Allocation;
  };
  verdict: { arguments: { image: number }; result: Verdict; progress: never };
  check: { arguments: { image: number }; result: CheckReport; progress: Progress | CheckFinding };
  /** From a place of the disk through the tables to the file. */
  trail: { arguments: { image: number; offset: bigint }; result: Trail; progress: never };
  /** Everything that refers to a cluster of the file. */
  owner: { arguments: { image: number; offset: bigint }; result: Owner; progress: Progress };
  /** Writes the disk to a file: one of the person's, or one in the browser's own storage, which is given back. */
  export: {
    arguments: { image: number; to: FileSystemFileHandle | null };
    result: File | null;
    progress: Progress;
  };
  exportQcow2: {
    arguments: Qcow2Options & { image: number; to: FileSystemFileHandle | null };
    result: File | null;
    progress: Progress;
  };
  /** Works out a repair of the image's own file, and keeps it until the next one or until the image is closed. */
  planRepair: { arguments: { image: number }; result: RepairFacts; progress: Progress };
  /** Writes the repaired file as a copy. */
  saveRepaired: {
    arguments: { image: number; to: FileSystemFileHandle | null };
    result: File | null;
    progress: Progress;
  };
  /** Replaces the image's own file by the repaired one. */
  applyRepair: { arguments: { image: number; to: FileSystemFileHandle }; result: null; progress: Progress };
  /** The SHA-256 of the disk, in hexadecimal. */
  hash: { arguments: { image: number }; result: string; progress: Progress };
  /** The partitions and file systems on the disk. */
  disk: { arguments: { image: number }; result: DiskFacts; progress: never };
  system: { arguments: { image: number; volume: number }; result: OperatingSystem | null; progress: never };
  entry: { arguments: FilePlace; result: Entry; progress: never };
  list: { arguments: FilePlace; result: Entry[]; progress: never };
  file: { arguments: FilePlace & { offset: bigint; length: number }; result: Uint8Array; progress: never };
  search: { arguments: FilePlace & { name: string }; result: SearchProgress; progress: SearchProgress };
  save: { arguments: SaveArguments; result: SaveResult; progress: number };
  close: { arguments: { image: number }; result: null; progress: never };
}

export type Call = keyof Calls;

export type Request =
  | { [C in Call]: { type: "call"; id: number; call: C; arguments: Calls[C]["arguments"] } }[Call]
  | { type: "cancel"; id: number }
  | { type: "answer"; ask: number; answer: Answer };

/** An error as it crosses the worker's border. `fatal`: the engine cannot be used any more. */
export interface WireError {
  message: string;
  code: string | null;
  structure: string | null;
  offset: bigint | null;
  fatal: boolean;
}

export type Reply =
  | { type: "result"; id: number; value: Calls[Call]["result"] }
  | { type: "progress"; id: number; value: Calls[Call]["progress"] }
  | { type: "error"; id: number; error: WireError }
  | { type: "ask"; id: number; ask: number; reference: Reference }
  /** Bytes have come from an address. */
  | { type: "fetched"; fetched: Fetched };
