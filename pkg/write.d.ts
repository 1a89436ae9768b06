import type { AccessHandle, CheckFinding, ImageReader, RepairReport, Signalled } from "./index.js";

/** A file to write: a handle of one in the browser's own storage, in workers alone; or an access handle, which stays open. */
export type WritableFile = FileSystemFileHandle | AccessHandle;

export interface CreateOptions extends Signalled {
  /** Of the disk, in bytes. */
  size: bigint | number;
  /** In bytes, a power of two from 512 to 2 MiB; 64 KiB by default. */
  clusterSize?: bigint | number;
  /** The backing file's name as it stands in the image. Nothing is opened. */
  backingName?: string;
  backingFormat?: string;
  lazyRefcounts?: boolean;
  extendedL2?: boolean;
  compression?: "zlib" | "zstd";
}

/** Makes a new qcow2 image in a file, in place of what is there. Open it with `writable`. */
export function create(file: WritableFile, options: CreateOptions): Promise<void>;

export interface RepairOptions extends Signalled {
  /** How much of the tables was looked through, of how much. It begins again when the repair itself begins. */
  onProgress?: (done: number, total: number) => void;
  onFinding?: (finding: CheckFinding) => void;
}

/** Repairs the image in a file that nobody has open: as `qemu-img check -r leaks` or `-r all`. */
export function repair(file: WritableFile, what?: "leaks" | "all", options?: RepairOptions): Promise<RepairReport>;

/**
 * Works out a repair and changes nothing: of a file of the person's, which can be replaced but not written at places, or to see first
 * what would be done. In workers alone but for access handles. What changes is kept in memory, at most 256 MiB of it.
 */
export function planRepair(
  file: Blob | FileSystemFileHandle | AccessHandle,
  what?: "leaks" | "all",
  options?: RepairOptions,
): Promise<RepairPlan>;

/** What a repair would make of a file. It can be read, so that an image is opened from it as from any source. */
export class RepairPlan implements ImageReader {
  private constructor();

  /** What would be repaired, and what would be left. */
  readonly report: RepairReport;
  /** The bytes of the file that would be others, in order. */
  readonly changes: { offset: number; length: number }[];
  readonly sizeBefore: number;
  /** Of the repaired file. */
  readonly size: number;

  /** Reads bytes of the repaired file. */
  read(offset: number, length: number, signal?: AbortSignal): Promise<Uint8Array<ArrayBuffer>>;

  /**
   * Replaces the file, whose handle may be written (`requestPermission`). The browser writes the whole of it to a file beside it,
   * which takes its place when it is complete: what fails or is given up before leaves the file as it was. Rejects with the code
   * `changed` if the file is not what the repair was worked out for. A program that has the file open goes on with the old one.
   */
  apply(file: FileSystemFileHandle, options?: Signalled & { onProgress?: (done: number, total: number) => void }): Promise<void>;
}
