// What a file looks like from its first and last bytes, to tell a wrong file from a disk. A suggestion, never a decision:
// the person may always look at the bytes as a raw disk.

export type Guess =
  | { kind: "empty" }
  | { kind: "qcow2" }
  /** Looks like the bytes of a disk. */
  | { kind: "raw"; what: string }
  /** Another format; `disk` when it is a disk image of a kind that the engine does not read. */
  | { kind: "other"; what: string; disk: boolean }
  | { kind: "unknown" };

/** An ISO 9660 volume descriptor lies at 32 KiB. */
export const HEAD_LENGTH = 0x8800;
export const TAIL_LENGTH = 512;

interface Magic {
  at: number;
  bytes: number[] | string;
  what: string;
  disk?: boolean;
}

const OTHERS: Magic[] = [
  { at: 0, bytes: "KDMV", what: "a VMware disk (VMDK)", disk: true },
  { at: 0, bytes: "# Disk DescriptorFile", what: "a VMware disk descriptor (VMDK)", disk: true },
  { at: 0x40, bytes: [0x7f, 0x10, 0xda, 0xbe], what: "a VirtualBox disk (VDI)", disk: true },
  { at: 0, bytes: "vhdxfile", what: "a Hyper-V disk (VHDX)", disk: true },
  { at: 0, bytes: "conectix", what: "a Virtual PC disk (VHD)", disk: true },
  { at: 0, bytes: "QED\0", what: "a QED disk", disk: true },
  { at: 0, bytes: "WithoutFreeSpace", what: "a Parallels disk", disk: true },
  { at: 0, bytes: "WithouFreSpacExt", what: "a Parallels disk", disk: true },
  { at: 0, bytes: [0x89, 0x50, 0x4e, 0x47], what: "a PNG picture" },
  { at: 0, bytes: [0xff, 0xd8, 0xff], what: "a JPEG picture" },
  { at: 0, bytes: "GIF8", what: "a GIF picture" },
  { at: 0, bytes: "%PDF", what: "a PDF document" },
  { at: 0, bytes: "PK\x03\x04", what: "a ZIP archive" },
  { at: 0, bytes: [0x1f, 0x8b], what: "a file compressed with gzip: unpack it first" },
  { at: 0, bytes: [0xfd, 0x37, 0x7a, 0x58, 0x5a], what: "a file compressed with xz: unpack it first" },
  { at: 0, bytes: "BZh", what: "a file compressed with bzip2: unpack it first" },
  { at: 0, bytes: [0x28, 0xb5, 0x2f, 0xfd], what: "a file compressed with zstd: unpack it first" },
  { at: 0, bytes: "7z\xbc\xaf\x27\x1c", what: "a 7-Zip archive" },
  { at: 0, bytes: "\x7fELF", what: "a program (ELF)" },
  { at: 257, bytes: "ustar", what: "a tar archive: an OVA or a container layer, perhaps" },
];

const DISKS: Magic[] = [
  { at: 512, bytes: "EFI PART", what: "a disk with a GUID partition table" },
  { at: 0x438, bytes: [0x53, 0xef], what: "an ext2, ext3 or ext4 file system" },
  { at: 0x8001, bytes: "CD001", what: "an ISO 9660 file system (a CD or DVD)" },
  { at: 0, bytes: "XFSB", what: "an XFS file system" },
  { at: 3, bytes: "NTFS", what: "an NTFS file system" },
  { at: 0, bytes: "hsqs", what: "a SquashFS file system" },
  { at: 0, bytes: "LUKS\xba\xbe", what: "a LUKS volume" },
  { at: 510, bytes: [0x55, 0xaa], what: "a disk with a boot sector" },
];

/** Looks at a file's first and last bytes. */
export async function sniff(file: Blob): Promise<Guess> {
  if (file.size === 0) return { kind: "empty" };
  const [head, tail] = await Promise.all([
    file.slice(0, HEAD_LENGTH).arrayBuffer(),
    file.slice(Math.max(0, file.size - TAIL_LENGTH)).arrayBuffer(),
  ]);
  return guess(new Uint8Array(head), new Uint8Array(tail));
}

/** The guess from the first 34 KiB and the last 512 bytes. */
export function guess(head: Uint8Array, tail: Uint8Array): Guess {
  if (has(head, { at: 0, bytes: [0x51, 0x46, 0x49, 0xfb], what: "" })) return { kind: "qcow2" };
  for (const magic of OTHERS) {
    if (has(head, magic)) return { kind: "other", what: magic.what, disk: magic.disk ?? false };
  }
  if (has(tail, { at: 0, bytes: "conectix", what: "" })) {
    return { kind: "other", what: "a Virtual PC disk (VHD) of fixed size", disk: true };
  }
  for (const magic of DISKS) {
    if (has(head, magic)) return { kind: "raw", what: magic.what };
  }
  return { kind: "unknown" };
}

function has(bytes: Uint8Array, { at, bytes: wanted }: Magic): boolean {
  const list = typeof wanted === "string" ? [...wanted].map((c) => c.charCodeAt(0)) : wanted;
  return list.every((byte, index) => bytes[at + index] === byte);
}
