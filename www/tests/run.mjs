// Builds the page and runs every test of it: the models by themselves, then the page in Chromium on images made by
// qemu-img. `npm test -- map` runs the files whose name contains "map". The last line says "N passed, N failed".

import { spawnSync } from "node:child_process";
import { existsSync, readdirSync } from "node:fs";
import { fileURLToPath } from "node:url";

const here = fileURLToPath(new URL(".", import.meta.url));
const www = fileURLToPath(new URL("..", import.meta.url));
const bin = (name) => `${www}node_modules/.bin/${name}`;

if (!existsSync(`${www}../pkg/engine/cowshed.js`)) {
  console.error("pkg/ is not built: run `cargo xtask pkg`, or `cargo xtask setup` first");
  process.exit(1);
}

for (const [command, ...args] of [
  [bin("vite"), "build", "--logLevel", "warn"],
  [bin("tsc"), "-p", "tsconfig.unit.json"],
]) {
  const { status } = spawnSync(command, args, { cwd: www, stdio: "inherit" });
  if (status !== 0) process.exit(status ?? 1);
}

const only = process.argv.slice(2);
const files = ["unit", "package", "."]
  .flatMap((folder) => readdirSync(`${here}${folder}`).map((name) => `${here}${folder}/${name}`))
  .filter((file) => file.endsWith(".test.mjs"))
  .filter((file) => only.length === 0 || only.some((part) => file.slice(here.length).includes(part)));

const { status } = spawnSync(
  process.execPath,
  [
    "--test",
    "--test-concurrency=1",
    "--test-timeout=600000",
    `--test-reporter=${here}reporter.mjs`,
    "--test-reporter-destination=stdout",
    ...files,
  ],
  { cwd: www, stdio: "inherit" },
);
process.exit(status ?? 1);
