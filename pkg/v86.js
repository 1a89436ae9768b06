// A disk for the emulator v86: `new V86({ hda: new V86Disk(image), ... })`. v86 takes any object with `get`, `set`, `load` and
// `byteLength`.

/** What is written is kept in blocks of this size: v86 asks for multiples of it. Bytes. */
const BLOCK_LENGTH = 256;

/** An image as a disk of v86. What the guest writes is kept in memory, and in v86's saved states; the image is not changed. */
export class V86Disk {
  #image;
  #written = new Map();

  /** Called by `load` once the disk is ready; v86 sets it. */
  onload = undefined;
  onprogress = undefined;
  /** Called with what went wrong when a read fails; v86 has no way to be told, so the guest waits. */
  onerror = (error) => console.error(error);

  constructor(image) {
    const size = Number(image.virtualSize);
    if (!Number.isSafeInteger(size)) throw new RangeError("the disk is larger than v86 can address");
    this.#image = image;
    this.byteLength = size;
  }

  load() {
    this.onload?.({});
  }

  /** Reads `length` bytes from `start` and hands them to `done`. */
  get(start, length, done) {
    const known = this.get_from_cache(start, length);
    if (known) {
      done(known);
      return;
    }
    this.#image.read(start, length).then(
      (bytes) => {
        this.#overlay(bytes, start);
        done(bytes);
      },
      (error) => this.onerror(error),
    );
  }

  get_and_cache(start, length, done) {
    this.get(start, length, done);
  }

  /** The bytes if all of them have been written here, so that the image need not be asked. */
  get_from_cache(start, length) {
    if (start % BLOCK_LENGTH !== 0 || length % BLOCK_LENGTH !== 0) return undefined;
    const bytes = new Uint8Array(length);
    for (let at = 0; at < length; at += BLOCK_LENGTH) {
      const block = this.#written.get((start + at) / BLOCK_LENGTH);
      if (!block) return undefined;
      bytes.set(block, at);
    }
    return bytes;
  }

  /** Writes `data` at `start`. */
  set(start, data, done) {
    if (start % BLOCK_LENGTH !== 0 || data.length % BLOCK_LENGTH !== 0) {
      throw new RangeError(`a write of ${data.length} bytes at ${start} is not aligned to ${BLOCK_LENGTH}`);
    }
    for (let at = 0; at < data.length; at += BLOCK_LENGTH) {
      this.#written.set((start + at) / BLOCK_LENGTH, data.slice(at, at + BLOCK_LENGTH));
    }
    done();
  }

  /** v86 asks for the whole disk where it would copy it: not here. */
  get_buffer(done) {
    done();
  }

  get_state() {
    return [[...this.#written]];
  }

  set_state([written]) {
    this.#written = new Map(written);
  }

  #overlay(bytes, start) {
    const first = Math.floor(start / BLOCK_LENGTH);
    const last = Math.ceil((start + bytes.length) / BLOCK_LENGTH);
    for (let block = first; block < last; block += 1) {
      const written = this.#written.get(block);
      if (!written) continue;
      const at = block * BLOCK_LENGTH - start;
      const skip = Math.max(0, -at);
      bytes.set(written.subarray(skip, Math.min(BLOCK_LENGTH, bytes.length - at)), at + skip);
    }
  }
}
