// The engine in this thread.

import load, { judgeImage, openImage } from "./engine/cowshed.js";
import { derive } from "./derive.js";
import { asError } from "./error.js";
import { loaderOf } from "./module.js";
import { describedSource, gateOf } from "./source.js";

/** Loads the engine; `Image.open` does it by itself. */
export const init = loaderOf(load, "cowshed");

/** The engine that decrypts is another module, which is loaded when there is a passphrase. */
async function opener(passphrase) {
  if (passphrase === undefined || passphrase === null) {
    await init();
    return openImage;
  }
  const crypt = await import("./crypt.js");
  await crypt.init();
  return crypt.openImage;
}

/** Opens an image: a backend and what is known of the image without asking it. */
export async function openLocal(source, options) {
  const { signal, onFetch, passphrase } = options;
  signal?.throwIfAborted();
  const sources = { signal, onFetch, urls: new Map(), files: [] };
  try {
    const open = await opener(passphrase);
    const { source: given, name } = await describedSource(source, sources);
    const engine = await open(given, {
      name: options.name ?? name,
      format: options.format,
      snapshot: options.snapshot,
      resolve: gateOf(options.backing, sources),
      passphrase: typeof passphrase === "function" ? passphrase : () => passphrase,
      derive,
      signal,
    });
    return { backend: new Local(engine, sources.files), facts: factsOf(engine) };
  } catch (error) {
    await closeAll(sources.files);
    throw asError(error);
  }
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
