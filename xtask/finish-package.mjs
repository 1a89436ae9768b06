// What wasm-pack leaves to do in pkg/engine/: strips the modules, checks them and the package around them. Run by
// `cargo xtask pkg`, with binaryen's wasm-opt on PATH.

import { execFileSync } from "node:child_process";
import { existsSync, readFileSync, renameSync, rmSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";

/** The modules, each with the most that it may take as it is sent, those that it is loaded with included. Bytes. */
const MODULES = [
    { name: "cowshed", with: [], gzipLenMax: 200 * 1024 },
    { name: "disk", with: ["cowshed"], gzipLenMax: 350 * 1024 },
    // In place of the first.
    { name: "full", with: [], gzipLenMax: 450 * 1024 },
];

const folder = new URL("../pkg/", import.meta.url);
const path = (name) => fileURLToPath(new URL(name, folder));
// npm would obey it and leave the engine out.
rmSync(path("engine/.gitignore"), { force: true });

const manifest = JSON.parse(readFileSync(path("package.json"), "utf8"));
const cargo = readFileSync(new URL("../Cargo.toml", import.meta.url), "utf8");
const [, version] = /^version = "(.*)"/m.exec(cargo.slice(cargo.indexOf("[package]")));
if (manifest.version !== version) {
    throw new Error(`pkg/package.json is of version ${manifest.version}, Cargo.toml of ${version}`);
}
for (const file of Object.values(manifest.exports).flatMap((one) => (typeof one === "string" ? [one] : Object.values(one)))) {
    if (!existsSync(path(file))) throw new Error(`pkg/package.json exports ${file}, which is not there`);
}

const lengths = new Map();
for (const { name, with: others, gzipLenMax } of MODULES) {
    const wasm = `engine/${name}_bg.wasm`;
    const before = readFileSync(path(wasm)).length;
    // No -O: what LLVM wrote packs better. After -O3 it is 4 % longer with gzip, after -Oz 3 %. Functions that are the same and what
    // nobody uses can go, and so can branches and assignments without effect: together 0.7 %.
    const passes = [
        ...["--strip-debug", "--strip-producers", "--strip-target-features"],
        ...["--remove-unused-module-elements", "--duplicate-function-elimination"],
        ...["--remove-unused-brs", "--rse", "--vacuum", "--remove-unused-names"],
    ];
    execFileSync("wasm-opt", [...passes, path(wasm), "-o", path(`${wasm}.partial`)], { stdio: "inherit" });
    renameSync(path(`${wasm}.partial`), path(wasm));
    const bytes = readFileSync(path(wasm));
    const foreign = WebAssembly.Module.imports(new WebAssembly.Module(bytes)).filter(
        ({ module }) => !module.startsWith(`./${name}_bg`) && module !== "wbg",
    );
    if (foreign.length > 0) {
        // A dependency that wants a clock, randomness or a C library.
        throw new Error(`${wasm} imports ${foreign.map((one) => `${one.module}.${one.name}`).join(", ")}`);
    }
    const gzip = gzipSync(bytes, { level: 9 }).length;
    lengths.set(name, gzip);
    const sum = others.reduce((sum, other) => sum + lengths.get(other), gzip);
    console.log(`    ${wasm}: ${before} bytes, ${bytes.length} stripped, ${gzip} with gzip`);
    if (sum > gzipLenMax) throw new Error(`${sum} bytes with gzip are more than ${gzipLenMax}`);
}
