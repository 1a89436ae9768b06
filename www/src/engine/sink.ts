// Where what is saved goes: a file of the person's, or one in the browser's own storage that is then handed over.

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

interface SyncHandle {
  truncate(length: number): void;
  write(bytes: Uint8Array, options: { at: number }): number;
  flush(): void;
  close(): void;
}

/** A file in the browser's own storage, which the browser then hands over as a download. */
async function keptSink(name: string): Promise<Sink> {
  const folder = await navigator.storage.getDirectory();
  const file = await folder.getFileHandle(name, { create: true });
  const handle = await (file as unknown as { createSyncAccessHandle(): Promise<SyncHandle> }).createSyncAccessHandle();
  handle.truncate(0);
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
      await folder.removeEntry(name);
    },
  };
}
