// The engine in this thread.

import load, { judgeImage, openImage } from "./engine/cowshed.js";
import { derive } from "./derive.js";
import { asError, CowshedError, invalid } from "./error.js";
import { loaderOf } from "./module.js";
import { describedSource, gateOf } from "./source.js";
import { accessHandleOf, openOverlay } from "./write.js";

/** Loads the engine; `Image.open` does it by itself. */
export const init = loaderOf(load, "cowshed");

/** The whole engine, in a module that is loaded when something needs it. */
async function wholeEngine() {
  const full = await import("./full.js");
  await full.init();
  return full;
}

/** Opens an image: a backend and what is known of the image without asking it. */
export async function openLocal(source, options) {
  const { signal, onFetch, passphrase, overlay, writable } = options;
  signal?.throwIfAborted();
  const sources = { signal, onFetch, urls: new Map(), files: [] };
  const isLocked = passphrase !== undefined && passphrase !== null;
  try {
    const given = {
      format: options.format,
      snapshot: options.snapshot,
      resolve: gateOf(options.backing, sources),
      passphrase: typeof passphrase === "function" ? passphrase : () => passphrase,
      derive,
      signal,
    };
    if (!isLocked && !overlay && !writable) {
      await init();
      const { source: found, name } = await describedSource(source, sources);
      return over(await openImage(found, { ...given, name: options.name ?? name }), sources.files);
    }
    const full = await wholeEngine();
    if (writable) {
      if (overlay) throw invalid("an image is written itself or has an overlay, not both");
      const file = await accessHandleOf(source);
      sources.files.push(file);
      const name = options.name ?? source.name;
      return over(await full.openImage(file.handle, { ...given, name, writable: true }), sources.files);
    }
    const { source: found, name } = await describedSource(source, sources);
    const named = { ...given, name: options.name ?? name };
    if (!overlay) return over(await full.openImage(found, named), sources.files);
    if (given.snapshot !== undefined) throw invalid("an overlay lies above an image as it is now, not above a snapshot");
    const { engine, close } = await openOverlay(full, overlay, { source: found, name: named.name, format: given.format }, given);
    sources.files.push({ close });
    return over(engine, sources.files);
  } catch (error) {
    await closeAll(sources.files);
    throw asError(error);
  }
}

/** An open image as `image.js` takes it. */
function over(engine, files) {
  return { backend: new Local(engine, files), facts: factsOf(engine) };
}

/** Judges an image without opening it: also one that cannot be opened. */
export async function judge(source, { format, signal } = {}) {
  await init();
  const sources = { signal, urls: new Map(), files: [] };
  try {
    const { source: given } = await describedSource(source, sources);
    return await judgeImage(given, { format, signal });
  } catch (error) {
    throw asError(error);
  } finally {
    await closeAll(sources.files);
  }
}

/** Closes the files that were opened for an image. */
async function closeAll(files) {
  await Promise.all(files.splice(0).map((file) => file.close()));
}

class Local {
  #engine;
  #files;

  constructor(engine, files) {
    this.#engine = engine;
    this.#files = files;
  }

  call(method, given, { signal, onEvent } = {}) {
    const engine = this.#engine;
    switch (method) {
      case "check":
        return engine.check(
          (done, total) => onEvent?.({ type: "progress", done, total }),
          (finding) => onEvent?.({ type: "finding", finding }),
          signal,
        );
      case "read":
      case "readHost":
      case "map":
      case "verdict":
        return engine[method](...given, signal);
      case "write":
      case "writeZeroes":
      case "discard":
      case "flush":
        if (!engine[method]) throw new CowshedError("the image was opened for reading", { code: "read-only" });
        return engine[method](...given, signal);
      case "statistics":
        return engine.statistics();
      case "close":
        return engine.close().finally(() => closeAll(this.#files));
      default:
        throw new TypeError(`no method ${method}`);
    }
  }
}

function factsOf(engine) {
  const layers = engine.layers();
  return {
    virtualSize: engine.virtualSize,
    hostSize: engine.hostSize,
    clusterSize: engine.clusterSize ?? null,
    format: engine.format,
    formatGuessed: engine.formatGuessed,
    name: layers[0]?.name ?? "",
    info: engine.info(),
    header: engine.header(),
    features: engine.features(),
    headerExtensions: engine.extensions(),
    snapshots: engine.snapshots(),
    bitmaps: engine.bitmaps(),
    layers,
  };
}
