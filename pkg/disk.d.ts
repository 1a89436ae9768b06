import type { Image, Signalled } from "./index.js";

export { CowshedError } from "./index.js";

/** A disk to look at: an open image, or an object that reads on demand. */
export type DiskSource =
  | Image
  | {
      readonly size: number | bigint;
      read(offset: number, length: number, signal: AbortSignal): Promise<Uint8Array> | Uint8Array;
    };

/** A path from the root of a volume. Names on a disk need not be text: in bytes it can name every file. */
export type Path = string | Uint8Array;

/** Looks for partitions and file systems. Offsets and sizes are given as `bigint`, in bytes. */
export class Disk implements Disposable {
  private constructor();

  /** The image must stay open. Damaged file systems are their volumes' `problem`. */
  static open(source: DiskSource, options?: Signalled): Promise<Disk>;

  readonly table: "none" | "dos" | "gpt";
  /** What is wrong with the partition table, in words. */
  readonly findings: string[];
  /** The disk as a whole, if it has a file system or no partitions, then its partitions. */
  readonly volumes: Volume[];

  /** Gives its memory back. The image stays open. */
  close(): void;
  [Symbol.dispose](): void;
}

export interface Partition {
  /** As Linux counts. */
  number: number;
  /** The code that partitioning tools print. */
  type: string;
  /** What that stands for; null for rare ones. */
  typeName: string | null;
  /** Text from a stranger; GPT alone. */
  name: string;
  uuid: string | null;
  bootable: boolean;
}

export interface FileSystemFacts {
  kind: "ext2" | "ext3" | "ext4" | "fat12" | "fat16" | "fat32" | "iso9660";
  label: string;
  uuid: string | null;
}

export type FileKind =
  | "file"
  | "folder"
  | "symlink"
  | "block device"
  | "character device"
  | "fifo"
  | "socket"
  | "unknown";

/** Something in a folder. Its names are text from a stranger: show them, do not interpret them. */
export interface Entry {
  /** What is not UTF-8 in it is replaced. */
  name: string;
  nameBytes: Uint8Array;
  kind: FileKind;
  size: bigint;
  /** The lower twelve bits of `st_mode`; null where the file system has none. */
  mode: number | null;
  /** As `ls -l` shows them. */
  modeText: string;
  user: number | null;
  group: number | null;
  /** Seconds since 1970. */
  modified: number | null;
  /** Of a symbolic link. */
  target: string | null;
  /** What is damaged. */
  problem: string | null;
  /** Whether the name may be used as the name of a file. Who saves must ask. */
  hasPlainName: boolean;
}

/** What a walk meets: an entry with its path, or a folder that cannot be read. */
export type Found = (Entry & { path: Uint8Array; unread?: undefined }) | { path: Uint8Array; unread: string };

export interface OperatingSystem {
  name: string;
  id: string;
  version: string;
  hostname: string;
  kernels: string[];
  architecture: string;
}

/** What is not in an archive, or not as it was. */
export interface Fault {
  path: string;
  text: string;
  /** False for what archives have no place for. */
  damaged: boolean;
}

/** A part of a disk that may have a file system. Without one, every method rejects with the code `not-found`. */
export class Volume {
  private constructor();

  readonly start: bigint;
  /** As its table says it: it may reach past the end of the disk. */
  readonly length: bigint;
  /** Null for the disk as a whole. */
  readonly partition: Partition | null;
  /** Null if there is no file system that is known and whole. */
  readonly files: FileSystemFacts | null;
  /** Why a file system that is known cannot be read. */
  readonly problem: string | null;
  /** What is there instead, known by its name and not read: "NTFS", "XFS", "exFAT", "SquashFS", "LUKS", "LVM", "swap"... */
  readonly foreign: string | null;

  /** The operating system whose root this is. */
  system(options?: Signalled): Promise<OperatingSystem | null>;
  /** What a path names. Links on the way are followed within the volume, the last one unless `follow` is false. */
  find(path: Path, options?: Signalled & { follow?: boolean }): Promise<Entry>;
  /** What is in a folder, in the order on disk. */
  list(path?: Path, options?: Signalled): Promise<Entry[]>;
  /** Reads up to `length` bytes of a file, at most 64 MiB; fewer at its end. */
  read(path: Path, offset: bigint | number, length: number, options?: Signalled): Promise<Uint8Array<ArrayBuffer>>;
  /** The bytes of a file. Cancelling the stream stops the reading. */
  stream(path: Path, options?: Signalled): ReadableStream<Uint8Array<ArrayBuffer>>;
  /** Everything from a path on, folders before what is in them, in the order of their names. */
  walk(path?: Path, options?: Signalled): AsyncGenerator<Found, void, void>;
  /** A file, or what is in a folder, as a tar archive with names that stay below where it is extracted. */
  tar(path?: Path, options?: Signalled & { onFault?: (fault: Fault) => void }): ReadableStream<Uint8Array<ArrayBuffer>>;
}

/** Loads the module, which `Disk.open` does by itself. For bundlers that do not find `disk_bg.wasm`. */
export function init(
  module?: string | URL | Request | Response | BufferSource | WebAssembly.Module | Promise<Response>,
): Promise<void>;
