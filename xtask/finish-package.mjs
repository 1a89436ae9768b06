// What wasm-pack leaves to do in pkg/: optimises the module, lists it in package.json's exports, and checks it. Run by
// `cargo xtask pkg`, with binaryen's wasm-opt on PATH.

import { execFileSync } from "node:child_process";
import { readFileSync, renameSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";

/** The most that the engine may take as it is sent, in bytes. The aim is 200,000, which it has outgrown. */
const GZIP_LEN_MAX = 220_000;

const folder = new URL("../pkg/", import.meta.url);
const path = (name) => fileURLToPath(new URL(name, folder));
const wasm = "cowshed_bg.wasm";

const before = readFileSync(path(wasm)).length;
execFileSync("wasm-opt", ["-O3", "--strip-debug", "--strip-producers", path(wasm), "-o", path(`${wasm}.partial`)], {
    stdio: "inherit",
});
renameSync(path(`${wasm}.partial`), path(wasm));

const manifest = JSON.parse(readFileSync(path("package.json"), "utf8"));
manifest.exports = {
    ".": { types: "./cowshed.d.ts", default: "./cowshed.js" },
    [`./${wasm}`]: `./${wasm}`,
    "./package.json": "./package.json",
};
manifest.sideEffects = false;
if (manifest.name !== "cowshed" || manifest.type !== "module") {
    throw new Error("package.json is not that of the module cowshed");
}
writeFileSync(path("package.json"), `${JSON.stringify(manifest, null, 4)}\n`);

const bytes = readFileSync(path(wasm));
const foreign = WebAssembly.Module.imports(new WebAssembly.Module(bytes)).filter(
    ({ module }) => !module.startsWith("./cowshed_bg") && module !== "wbg",
);
if (foreign.length > 0) {
    // A dependency that wants a clock, randomness or a C library.
    throw new Error(`the module imports ${foreign.map(({ module, name }) => `${module}.${name}`).join(", ")}`);
}
const gzip = gzipSync(bytes, { level: 9 }).length;
console.log(`    ${wasm}: ${before} bytes, ${bytes.length} after wasm-opt, ${gzip} with gzip`);
if (gzip > GZIP_LEN_MAX) {
    throw new Error(`${gzip} bytes with gzip are more than ${GZIP_LEN_MAX}`);
}
