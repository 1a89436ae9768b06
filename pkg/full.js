// The whole engine: that of `engine/cowshed.js` in a larger module, which decrypts and writes, too.

import load from "./engine/full.js";
import { loaderOf } from "./module.js";

export { createImage, openImage, repairImage } from "./engine/full.js";

/** Loads the module; it is done by itself when something needs it. */
export const init = loaderOf(load, "full");
