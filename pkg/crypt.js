// The engine that decrypts, too: the same as `engine/cowshed.js` in a module that is larger.

import load from "./engine/crypt.js";
import { loaderOf } from "./module.js";

export { openImage } from "./engine/crypt.js";

/** Loads the module; `Image.open` does it by itself when it is given a passphrase. */
export const init = loaderOf(load, "crypt");
