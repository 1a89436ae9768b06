import type { Image } from "./index.js";

/**
 * An image as a disk of the emulator v86: `new V86({ hda: new V86Disk(image), ... })`. What the guest writes is kept in memory
 * and in v86's saved states; the image is not changed. Close the image after the emulator is destroyed.
 */
export class V86Disk {
  constructor(image: Pick<Image, "virtualSize" | "read">);
  /** Size of the disk in bytes. */
  readonly byteLength: number;
  /** v86 sets it; `load` calls it. */
  onload: ((event: object) => void) | undefined;
  onprogress: ((event: object) => void) | undefined;
  /** Called when a read fails, of which v86 cannot be told. Logs by default. */
  onerror: (error: unknown) => void;
  load(): void;
  get(start: number, length: number, done: (bytes: Uint8Array) => void): void;
  get_and_cache(start: number, length: number, done: (bytes: Uint8Array) => void): void;
  get_from_cache(start: number, length: number): Uint8Array | undefined;
  set(start: number, data: Uint8Array, done: () => void): void;
  get_buffer(done: (buffer?: ArrayBuffer) => void): void;
  get_state(): unknown[];
  set_state(state: unknown[]): void;
}
