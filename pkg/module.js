// Loading a WebAssembly module once, whoever asks for it.

import { wasm } from "#platform";
import { asError } from "./error.js";

/**
 * A function that loads the module `name` by wasm-bindgen's `load`. It may be given the address, the response, the bytes or the
 * compiled module, for whom the default does not find it.
 */
export function loaderOf(load, name) {
  let ready = null;
  const start = async (module) => {
    const given = module ?? (await wasm(name));
    await (given === undefined ? load() : load({ module_or_path: given }));
  };
  return (module) => {
    ready ??= start(module).catch((error) => {
      // The next one tries again.
      ready = null;
      throw asError(error);
    });
    return ready;
  };
}
