// The class Image: conversions, iterables and streams over a backend, which is the engine in this thread (`local.js`) or in a
// worker (`remote.js`). A backend has `call(method, arguments, { signal, onEvent })`.

import { asError, invalid } from "./error.js";
import { streamOf } from "./stream.js";

/** Extents that one call brings over from the engine. */
const EXTENTS_A_CALL = 4096;
/** Bytes in each piece of a stream. */
const STREAM_PIECE_LENGTH = 1 << 20;
const OFFSET_MAX = (1n << 64n) - 1n;

/** Guards the constructor: an image is opened, not made. */
const OPENED = Symbol("opened");

/** An open image. Call `close` when done with it, or declare it with `await using`. */
export class Image {
  #backend;
  #facts;
  #closed = null;

  /** Opens an image in this thread. */
  static async open(source, options = {}) {
    const { openLocal } = await import("./local.js");
    return opened(await openLocal(source, options));
  }

  constructor(token, backend, facts) {
    if (token !== OPENED) throw new TypeError("use Image.open");
    this.#backend = backend;
    this.#facts = facts;
  }

  get virtualSize() {
    return this.#facts.virtualSize;
  }

  get hostSize() {
    return this.#facts.hostSize;
  }

  get clusterSize() {
    return this.#facts.clusterSize;
  }

  get format() {
    return this.#facts.format;
  }

  get formatGuessed() {
    return this.#facts.formatGuessed;
  }

  get name() {
    return this.#facts.name;
  }

  get info() {
    return this.#facts.info;
  }

  get header() {
    return this.#facts.header;
  }

  get features() {
    return this.#facts.features;
  }

  get headerExtensions() {
    return this.#facts.headerExtensions;
  }

  get snapshots() {
    return this.#facts.snapshots;
  }

  get bitmaps() {
    return this.#facts.bitmaps;
  }

  get layers() {
    return this.#facts.layers;
  }

  /** Reads bytes of the disk. */
  async read(offset, length, { signal } = {}) {
    return this.#call("read", [position(offset), count(length)], { signal });
  }

  /** Reads bytes of the image's own file. */
  async readHost(offset, length, { signal } = {}) {
    return this.#call("readHost", [position(offset), count(length)], { signal });
  }

  /** A part of the disk as a stream of bytes; cancelling it stops the reading. */
  stream({ offset = 0n, length, signal, pieceLength = STREAM_PIECE_LENGTH } = {}) {
    const [begin, end] = this.#range(offset, length);
    const piece = BigInt(count(pieceLength));
    if (piece === 0n) throw invalid("pieceLength is 0");
    let at = begin;
    return streamOf(signal, async (both) => {
      if (at >= end) return null;
      const left = end - at;
      const bytes = await this.read(at, Number(left < piece ? left : piece), { signal: both });
      at += BigInt(bytes.length);
      return bytes;
    });
  }

  /** Up to `maxExtents` extents of a part of the disk, at once. */
  async map(offset, length, maxExtents, { signal } = {}) {
    return this.#call("map", [position(offset), position(length), count(maxExtents)], { signal });
  }

  /** What lies where, extent by extent, without reading it. */
  async *extents({ offset = 0n, length, signal } = {}) {
    const [begin, end] = this.#range(offset, length);
    let at = begin;
    while (at < end) {
      const extents = await this.map(at, end - at, EXTENTS_A_CALL, { signal });
      yield* extents;
      const last = extents.at(-1);
      if (!last) return;
      at = last.offset + last.length;
    }
  }

  /**
   * Checks the metadata, every reference against the refcounts: yields progress and findings as they come and the report at
   * the end. Leaving the loop stops the check.
   */
  async *check({ signal } = {}) {
    const left = new AbortController();
    const both = signal ? AbortSignal.any([signal, left.signal]) : left.signal;
    const events = [];
    let wake = () => undefined;
    let ended = false;
    const push = (event) => {
      // Progress that nobody has taken yet is replaced by what is newer.
      if (event.type === "progress" && events.at(-1)?.type === "progress") events.pop();
      events.push(event);
      wake();
    };
    const report = this.#call("check", [], { signal: both, onEvent: push }).finally(() => {
      ended = true;
      wake();
    });
    // It is awaited below; should the loop be left before, nobody waits for it.
    report.catch(() => undefined);
    try {
      for (;;) {
        while (events.length > 0) yield events.shift();
        if (ended) break;
        await new Promise((resolve) => {
          wake = resolve;
          if (ended || events.length > 0) resolve();
        });
      }
      yield { type: "report", report: await report };
    } finally {
      left.abort();
    }
  }

  /** Writes bytes to the disk: of an image opened with an overlay, or writable. */
  async write(offset, bytes, { signal, compressed = false } = {}) {
    if (!(bytes instanceof Uint8Array)) throw invalid("what is to be written is no Uint8Array");
    return this.#call("write", [position(offset), bytes, compressed], { signal });
  }

  /** Makes a part of the disk read as zeros. */
  async writeZeroes(offset, length, { signal } = {}) {
    return this.#call("writeZeroes", [position(offset), position(length)], { signal });
  }

  /** Says that a part of the disk is of no more use. */
  async discard(offset, length, { signal } = {}) {
    return this.#call("discard", [position(offset), position(length)], { signal });
  }

  /** Makes durable what was written before. */
  async flush({ signal } = {}) {
    return this.#call("flush", [], { signal });
  }

  /** Whether the image is safe to hand to a virtual machine, and why. */
  verdict({ signal } = {}) {
    return this.#call("verdict", [], { signal });
  }

  /** What the caches and the sources have done so far. */
  statistics() {
    return this.#call("statistics", []);
  }

  /** Refuses new requests, waits for those under way, gives everything back. May be called again. */
  close() {
    return (this.#closed ??= this.#call("close", []));
  }

  /** What `await using` calls. */
  [Symbol.asyncDispose ?? Symbol.for("Symbol.asyncDispose")]() {
    return this.close();
  }

  async #call(method, given, how = {}) {
    how.signal?.throwIfAborted();
    try {
      return await this.#backend.call(method, given, how);
    } catch (error) {
      throw asError(error);
    }
  }

  /** Where a part of the disk begins and ends. */
  #range(offset, length) {
    const begin = position(offset);
    const { virtualSize } = this;
    if (begin > virtualSize) throw invalid(`offset ${begin} is past the end of the disk at ${virtualSize}`);
    const end = length === undefined ? virtualSize : begin + position(length);
    if (end > virtualSize) throw invalid(`the range ends at ${end}, past the end of the disk at ${virtualSize}`);
    return [begin, end];
  }
}

/** An image over a backend: for `remote.js`. */
export function opened({ backend, facts }) {
  return new Image(OPENED, backend, facts);
}

/** An offset or a length of any size, without loss: a bigint, or a number that is a safe integer. */
function position(value) {
  if (typeof value === "number" && Number.isSafeInteger(value) && value >= 0) return BigInt(value);
  if (typeof value === "bigint" && value >= 0n && value <= OFFSET_MAX) return value;
  throw invalid(`${String(value)} is no offset or length: neither a bigint below 2^64 nor a safe integer`);
}

/** A length that memory has room for. */
function count(value) {
  const number = Number(value);
  if (Number.isInteger(number) && number >= 0 && number <= 0xffffffff) return number;
  throw invalid(`${String(value)} is not a whole number below 2^32`);
}
