// Where what is saved goes: a file of the person's, or one in the browser's own storage that is then handed over.

import type { AccessHandle } from "cowshed";
import { keptFolder } from "./kept.js";

/** A file that is written at positions. */
export interface Sink {
  write(offset: number, bytes: Uint8Array<ArrayBuffer>): Promise<void>;
  /** Makes the file so long, whatever was written. Gives it back if the browser holds it. */
  end(length: number): Promise<File | null>;
  abort(): Promise<void>;
}

/** Writes to `to`, or to the browser's own storage under a name, by `work`, which gives the length in the end. */
export async function intoSink(
  to: FileSystemFileHandle | null,
  name: string,
  work: (sink: Sink) => Promise<number>,
): Promise<File | null> {
  const sink = to ? await fileSink(to) : await keptSink(name);
  try {
    return await sink.end(await work(sink));
  } catch (error) {
    await sink.abort();
    throw error;
  }
}

/** A file of the person's. It appears under its name when it is complete. */
async function fileSink(handle: FileSystemFileHandle): Promise<Sink> {
  const stream = await handle.createWritable();
  return {
    write: (position, data) => stream.write({ type: "write", position, data }),
    end: async (length) => {
      await stream.truncate(length);
      await stream.close();
      return null;
    },
    abort: () => stream.abort(),
  };
}

/** What the types of pages do not know of files in the browser's own storage: it works in workers alone. */
type SyncHandle = AccessHandle & { close(): void };
type Openable = FileSystemFileHandle & { createSyncAccessHandle(): Promise<SyncHandle> };

/**
 * Has `work` make a file in the browser's own storage, where it can read and write anywhere, and then copies it to `to` or gives it
 * back.
 */
export async function intoKept(
  to: FileSystemFileHandle | null,
  name: string,
  work: (handle: AccessHandle) => Promise<void>,
): Promise<File | null> {
  const { handle, file, remove } = await openKept(name);
  try {
    await work(handle);
    handle.flush();
  } catch (error) {
    handle.close();
    await remove();
    throw error;
  }
  handle.close();
  const made = await file.getFile();
  if (!to) return made;
  await made.stream().pipeTo(await to.createWritable());
  await remove();
  return null;
}

/** An empty file in the browser's own storage, open. */
async function openKept(name: string): Promise<{ handle: SyncHandle; file: Openable; remove(): Promise<void> }> {
  const folder = await keptFolder();
  const file = (await folder.getFileHandle(name, { create: true })) as Openable;
  const handle = await file.createSyncAccessHandle();
  handle.truncate(0);
  return { handle, file, remove: () => folder.removeEntry(name) };
}

/** A file in the browser's own storage, which the browser then hands over as a download. */
async function keptSink(name: string): Promise<Sink> {
  const { handle, file, remove } = await openKept(name);
  return {
    write: (at, bytes) => {
      const written = handle.write(bytes, { at });
      if (written !== bytes.length) throw new Error(`only ${written} of ${bytes.length} bytes could be written: the disk is full`);
      return Promise.resolve();
    },
    end: async (length) => {
      handle.truncate(length);
      handle.flush();
      handle.close();
      return file.getFile();
    },
    abort: async () => {
      handle.close();
      await remove();
    },
  };
}
