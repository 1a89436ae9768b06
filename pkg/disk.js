// What lies on a disk: partitions, file systems and their files. Its module is one of its own, so that who only opens images
// does not load it.

import load, { openDisk } from "./engine/disk.js";
import { asError, invalid } from "./error.js";
import { loaderOf } from "./module.js";
import { streamOf } from "./stream.js";

/** Bytes in each piece of a file's stream. */
const STREAM_PIECE_LENGTH = 1 << 20;
/** Entries that one call of a walk brings over. */
const ENTRIES_A_CALL = 256;

/** Guards the constructors: a disk is opened, not made. */
const OPENED = Symbol("opened");

/** Loads the module; `Disk.open` does it by itself. */
export const init = loaderOf(load, "disk");

/** A disk. Call `close` when done with it, or declare it with `using`. */
export class Disk {
  #engine;

  /** Looks for the volumes of an open image, or of `{ size, read(offset, length, signal) }`. */
  static async open(source, { signal } = {}) {
    signal?.throwIfAborted();
    await init();
    return settled(async () => new Disk(OPENED, await openDisk(readerOf(source), signal)));
  }

  constructor(token, engine) {
    if (token !== OPENED) throw new TypeError("use Disk.open");
    this.#engine = engine;
    const { table, findings } = engine.table();
    this.table = table;
    this.findings = findings;
    this.volumes = engine.volumes().map((facts, index) => new Volume(OPENED, engine, index, facts));
  }

  /** Gives its memory back. The image stays open. */
  close() {
    this.#engine.free();
  }

  [Symbol.dispose ?? Symbol.for("Symbol.dispose")]() {
    this.close();
  }
}

/** A part of a disk that may have a file system. Paths are from its root, in text or in bytes. */
export class Volume {
  #engine;
  #index;

  constructor(token, engine, index, facts) {
    if (token !== OPENED) throw new TypeError("use Disk.open");
    this.#engine = engine;
    this.#index = index;
    Object.assign(this, facts);
  }

  /** The operating system whose root this is, or null. */
  async system({ signal } = {}) {
    return this.#call("system", [], signal);
  }

  /** What a path names; the link itself if the path ends in one and `follow` is false. */
  async find(path, { signal, follow = true } = {}) {
    return this.#call("find", [bytesOf(path), follow], signal);
  }

  /** What is in a folder, in the order on disk. */
  async list(path = "/", { signal } = {}) {
    return this.#call("list", [bytesOf(path)], signal);
  }

  /** Reads up to `length` bytes of a file, fewer at its end. */
  async read(path, offset, length, { signal } = {}) {
    return this.#call("read", [bytesOf(path), BigInt(offset), length], signal);
  }

  /** The bytes of a file; cancelling the stream stops the reading. */
  stream(path, { signal } = {}) {
    const at = bytesOf(path);
    let offset = 0n;
    return streamOf(signal, async (both) => {
      const bytes = await this.#call("read", [at, offset, STREAM_PIECE_LENGTH], both);
      offset += BigInt(bytes.length);
      return bytes.length === 0 ? null : bytes;
    });
  }

  /** Everything from a path on, folders before what is in them, in the order of their names. */
  async *walk(path = "/", { signal } = {}) {
    const walk = await this.#call("walk", [bytesOf(path)], signal);
    try {
      for (;;) {
        const entries = await settled(() => walk.next(ENTRIES_A_CALL, signal));
        if (entries.length === 0) return;
        yield* entries;
      }
    } finally {
      walk.free();
    }
  }

  /**
   * A file, or what is in a folder, as a tar archive. `onFault` is told of what is not in it: devices and sockets, and what is
   * damaged.
   */
  tar(path = "/", { signal, onFault } = {}) {
    const at = bytesOf(path);
    let archive = null;
    return streamOf(signal, async (both) => {
      archive ??= await this.#call("archive", [at], both);
      for (;;) {
        const piece = await settled(() => archive.next(both));
        if (piece === null) archive.free();
        if (piece === null || piece instanceof Uint8Array) return piece;
        onFault?.(piece);
      }
    });
  }

  async #call(method, given, signal) {
    signal?.throwIfAborted();
    return settled(() => this.#engine[method](this.#index, ...given, signal));
  }
}

/** What the module reads from. Its offsets are exact up to 2^53. */
function readerOf(source) {
  if (typeof source?.read !== "function") throw invalid("the disk is neither an Image nor { size, read }");
  const size = source.virtualSize ?? source.size;
  if (BigInt(size) > BigInt(Number.MAX_SAFE_INTEGER)) throw invalid(`a disk of ${size} bytes is too large to look for files on`);
  const read =
    source.virtualSize === undefined
      ? (offset, length, signal) => source.read(offset, length, signal)
      : (offset, length, signal) => source.read(offset, length, { signal });
  return { size: Number(size), read };
}

/** A path as bytes: names on a disk need not be text. */
function bytesOf(path) {
  if (path instanceof Uint8Array) return path;
  if (typeof path === "string") return new TextEncoder().encode(path);
  throw invalid("the path is neither a string nor a Uint8Array");
}

async function settled(call) {
  try {
    return await call();
  } catch (error) {
    throw asError(error);
  }
}
