// A repair that is worked out before anything is written: what it changes is kept in memory above the file, can be looked at, and
// is then put with the rest of the file into a new one that takes its place.

import { asError, CowshedError, invalid } from "./error.js";

/** What is kept of a change at least. Bytes. */
const PAGE_LENGTH = 4096;
/** The most that may change. It is kept twice, as it was and as it will be. Bytes. */
const KEPT_LENGTH_MAX = 256 << 20;
/** What is read of a Blob at once, since tables lie close together. Bytes. */
const WINDOW_LENGTH = 256 << 10;
/** What is copied at a time. Bytes. */
const PIECE_LENGTH = 4 << 20;
/** Changes with fewer equal bytes between them are one. */
const WORD_LENGTH = 8;

/** Guards the constructor: a plan is worked out, not made. */
const WORKED_OUT = Symbol("worked out");

/** Works out a repair of an image and changes nothing. */
export async function planRepair(file, what = "all", { signal, onProgress, onFinding } = {}) {
  signal?.throwIfAborted();
  const full = await import("./full.js");
  await full.init();
  try {
    const base = await baseOf(file);
    const changed = new Changed(base);
    const report = await full.repairImage(changed, what, onProgress, onFinding, signal);
    return new RepairPlan(WORKED_OUT, base, changed, report);
  } catch (error) {
    throw asError(error);
  }
}

/** What a repair would make of a file: a source like others, which an image can be opened from. */
export class RepairPlan {
  #base;
  #changed;

  constructor(token, base, changed, report) {
    if (token !== WORKED_OUT) throw new TypeError("use planRepair");
    this.#base = base;
    this.#changed = changed;
    this.report = report;
    this.sizeBefore = base.size;
    this.size = changed.getSize();
    this.changes = changed.ranges();
  }

  /** Reads bytes of the repaired file. */
  async read(offset, length, signal) {
    if (offset < 0 || offset + length > this.size) throw invalid(`the range ends past the end of the file at ${this.size}`);
    const bytes = new Uint8Array(length);
    await this.#base.load(bytes, offset, this.#changed.baseEnd);
    signal?.throwIfAborted();
    this.#changed.lay(bytes, offset);
    return bytes;
  }

  /**
   * Replaces the file by the repaired one. Everything is written to a file of the browser's beside it, which takes its place when it
   * is complete: whatever happens before that, the file is as it was.
   */
  async apply(file, { signal, onProgress } = {}) {
    if (typeof file?.createWritable !== "function") throw invalid("what is to be repaired is no FileSystemFileHandle");
    signal?.throwIfAborted();
    await this.#mustBeAsPlanned(file);
    // Nobody else writes through the browser meanwhile, where it can see to that.
    const stream = await file.createWritable({ keepExistingData: false, mode: "exclusive" });
    try {
      for (let at = 0; at < this.size; at += PIECE_LENGTH) {
        signal?.throwIfAborted();
        const bytes = await this.read(at, Math.min(PIECE_LENGTH, this.size - at), signal);
        // What is passed over reads as zeros, and takes no space where files can have holes.
        if (!isZero(bytes)) await stream.write({ type: "write", position: at, data: bytes });
        onProgress?.(at + bytes.length, this.size);
      }
      await stream.truncate(this.size);
      await this.#mustBeAsPlanned(file);
      signal?.throwIfAborted();
      await stream.close();
    } catch (error) {
      await stream.abort().catch(() => undefined);
      throw asError(error);
    }
  }

  /** What was planned for one state of a file must not replace another: not by its time, nor by the bytes that are to change. */
  async #mustBeAsPlanned(file) {
    const now = await file.getFile();
    const isAsPlanned =
      now.size === this.sizeBefore &&
      (this.#base.lastModified ?? now.lastModified) === now.lastModified &&
      (await this.#changed.isAboveThis(now));
    if (!isAsPlanned) {
      throw new CowshedError("the file has changed since the repair was worked out: nothing was written", { code: "changed" });
    }
  }
}

/** A file that is read, with what was written to it kept in memory: it has the methods of an access handle. */
class Changed {
  #base;
  #size;
  /** By their number, as they are to be and as they were. */
  #pages = new Map();
  /** What lies behind it was cut off, whatever the file came to be later. */
  baseEnd;

  constructor(base) {
    this.#base = base;
    this.#size = base.size;
    this.baseEnd = base.size;
  }

  getSize() {
    return this.#size;
  }

  read(into, { at }) {
    const length = Math.max(0, Math.min(into.length, this.#size - at));
    const bytes = into.subarray(0, length);
    this.#base.read(bytes, at, this.baseEnd);
    this.lay(bytes, at);
    return length;
  }

  write(from, { at }) {
    for (let done = 0; done < from.length; ) {
      const number = Math.floor((at + done) / PAGE_LENGTH);
      const skip = at + done - number * PAGE_LENGTH;
      const length = Math.min(PAGE_LENGTH - skip, from.length - done);
      this.#page(number).set(from.subarray(done, done + length), skip);
      done += length;
    }
    this.#size = Math.max(this.#size, at + from.length);
    return from.length;
  }

  truncate(length) {
    if (length < this.#size) {
      this.baseEnd = Math.min(this.baseEnd, length);
      for (const [number, { bytes }] of this.#pages) {
        const end = length - number * PAGE_LENGTH;
        if (end <= 0) this.#pages.delete(number);
        else if (end < PAGE_LENGTH) bytes.fill(0, end);
      }
    }
    this.#size = length;
  }

  /** Nothing lasts before the plan is carried out. */
  flush() {}

  /** Lays what was written over bytes of the file. */
  lay(bytes, at) {
    if (this.#pages.size === 0) return;
    const last = Math.floor((at + bytes.length - 1) / PAGE_LENGTH);
    for (let number = Math.floor(at / PAGE_LENGTH); number <= last; number += 1) {
      const page = this.#pages.get(number);
      if (!page) continue;
      const begin = number * PAGE_LENGTH - at;
      const from = Math.max(0, -begin);
      bytes.set(page.bytes.subarray(from, Math.min(PAGE_LENGTH, bytes.length - begin)), begin + from);
    }
  }

  /** Where bytes are other than they were, in order. */
  ranges() {
    const ranges = [];
    for (const number of this.#numbers()) {
      const { bytes, before } = this.#pages.get(number);
      const start = number * PAGE_LENGTH;
      const end = Math.min(PAGE_LENGTH, this.#size - start);
      for (let at = 0; at < end; at += WORD_LENGTH) {
        const to = Math.min(at + WORD_LENGTH, end);
        const isNew = start + to > this.#base.size;
        if (!isNew && isSame(bytes.subarray(at, to), before.subarray(at, to))) continue;
        const last = ranges.at(-1);
        if (last && last.offset + last.length === start + at) last.length += to - at;
        else ranges.push({ offset: start + at, length: to - at });
      }
    }
    return ranges;
  }

  /** Whether the file has the bytes that were there before what was written. */
  async isAboveThis(file) {
    const numbers = this.#numbers();
    for (let first = 0; first < numbers.length; ) {
      // Neighbours are read together.
      let next = first + 1;
      while (numbers[next] === numbers[first] + next - first && next - first < PIECE_LENGTH / PAGE_LENGTH) next += 1;
      const start = numbers[first] * PAGE_LENGTH;
      const there = new Uint8Array(await file.slice(start, start + (next - first) * PAGE_LENGTH).arrayBuffer());
      for (let at = 0; at < there.length; at += PAGE_LENGTH) {
        const { before } = this.#pages.get(numbers[first] + at / PAGE_LENGTH);
        const bytes = there.subarray(at, at + PAGE_LENGTH);
        if (!isSame(bytes, before.subarray(0, bytes.length))) return false;
      }
      first = next;
    }
    return true;
  }

  #numbers() {
    return [...this.#pages.keys()].sort((a, b) => a - b);
  }

  #page(number) {
    const known = this.#pages.get(number);
    if (known) return known.bytes;
    if ((this.#pages.size + 1) * PAGE_LENGTH > KEPT_LENGTH_MAX) {
      const limit = `${KEPT_LENGTH_MAX >> 20} MiB`;
      throw new CowshedError(`the repair would change more than ${limit} of the file`, { code: "limit-exceeded" });
    }
    const before = new Uint8Array(PAGE_LENGTH);
    const start = number * PAGE_LENGTH;
    this.#base.read(before, start, this.#base.size);
    const bytes = before.slice();
    bytes.fill(0, Math.min(PAGE_LENGTH, Math.max(0, this.baseEnd - start)));
    this.#pages.set(number, { bytes, before });
    return bytes;
  }
}

/** The file as it is: `read` at once, `load` in its time, both up to `end` and no further. */
async function baseOf(file) {
  const given = typeof file?.getFile === "function" ? await file.getFile() : file;
  if (given instanceof Blob) return new BlobBase(given);
  if (typeof given?.getSize === "function" && typeof given.read === "function") return new HandleBase(given);
  throw invalid("the file to repair is no Blob, File, FileSystemFileHandle or access handle");
}

class BlobBase {
  #blob;
  #reader;
  #window = { at: 0, bytes: new Uint8Array(0) };

  constructor(blob) {
    if (typeof FileReaderSync === "undefined") {
      throw invalid("files are read at once in workers of browsers alone: give an access handle");
    }
    this.#blob = blob;
    this.#reader = new FileReaderSync();
    this.size = blob.size;
    this.lastModified = blob.lastModified;
  }

  read(into, at, end) {
    const length = Math.max(0, Math.min(into.length, end - at));
    for (let done = 0; done < length; ) {
      const bytes = this.#at(at + done).subarray(0, length - done);
      into.set(bytes, done);
      done += bytes.length;
    }
  }

  async load(into, at, end) {
    if (at >= end) return;
    into.set(new Uint8Array(await this.#blob.slice(at, Math.min(at + into.length, end)).arrayBuffer()));
  }

  /** The bytes from a place on, as many as are at hand. */
  #at(place) {
    const { at, bytes } = this.#window;
    if (place >= at && place < at + bytes.length) return bytes.subarray(place - at);
    const start = place - (place % WINDOW_LENGTH);
    const read = new Uint8Array(this.#reader.readAsArrayBuffer(this.#blob.slice(start, start + WINDOW_LENGTH)));
    if (start + read.length <= place) throw new Error(`the file ends at ${start + read.length}`);
    this.#window = { at: start, bytes: read };
    return read.subarray(place - start);
  }
}

class HandleBase {
  #handle;

  constructor(handle) {
    this.#handle = handle;
    this.size = handle.getSize();
    this.lastModified = undefined;
  }

  read(into, at, end) {
    const bytes = into.subarray(0, Math.max(0, Math.min(into.length, end - at)));
    if (bytes.length > 0 && this.#handle.read(bytes, { at }) !== bytes.length) throw new Error(`the file ends before ${at + bytes.length}`);
  }

  async load(into, at, end) {
    this.read(into, at, end);
  }
}

function isSame(one, other) {
  return one.every((byte, index) => byte === other[index]);
}

/** Whether there is nothing but zeros. */
function isZero(bytes) {
  const words = new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.length >> 2);
  return words.every((word) => word === 0) && bytes.subarray(words.length << 2).every((byte) => byte === 0);
}
