import type { AccessHandle, CheckFinding, RepairReport, Signalled } from "./index.js";

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

/** Repairs the image in a file that nobody has open: as `qemu-img check -r leaks` or `-r all`. */
export function repair(
  file: WritableFile,
  what?: "leaks" | "all",
  options?: Signalled & {
    onProgress?: (done: number, total: number) => void;
    onFinding?: (finding: CheckFinding) => void;
  },
): Promise<RepairReport>;
