// The package: the class Image over the engine in this thread. `remote.js` has the same class over an engine in a worker.

export { CowshedError } from "./error.js";
export { Image } from "./image.js";

/** Loads the engine before it is needed. */
export async function init(module) {
  const local = await import("./local.js");
  return local.init(module);
}

/** Judges an image without opening it. */
export async function judge(source, options) {
  const local = await import("./local.js");
  return local.judge(source, options);
}
