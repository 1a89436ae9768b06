// What differs between browsers and Node: this is the browsers' side.

import { invalid } from "./error.js";

/** The engine's own glue finds the module beside itself. */
export function wasm() {
  return undefined;
}

export function openFileUrl() {
  throw invalid("a browser does not open file: addresses; let the person choose the file");
}

/** The port of the worker that this runs in. */
export function workerPort() {
  return globalThis;
}
