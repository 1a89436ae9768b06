// What differs between browsers and Node: this is Node's side.

import { open, readFile } from "node:fs/promises";
import { parentPort } from "node:worker_threads";

/** Node's fetch does not read file: addresses. */
export function wasm(name) {
  return readFile(new URL(`./engine/${name}_bg.wasm`, import.meta.url));
}

/** A file as a reader; `close` it when done. */
export async function openFileUrl(url) {
  const handle = await open(url, "r");
  const { size } = await handle.stat();
  return {
    size,
    async read(offset, length) {
      const bytes = new Uint8Array(length);
      let got = 0;
      while (got < length) {
        const { bytesRead } = await handle.read(bytes, got, length - got, offset + got);
        if (bytesRead === 0) break;
        got += bytesRead;
      }
      return bytes.subarray(0, got);
    },
    close: () => handle.close(),
  };
}

/** The port of the worker that this runs in. */
export function workerPort() {
  return parentPort;
}
