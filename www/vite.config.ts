// Builds the page: one document, one module, one worker, the engine. Everything is a file of its own origin, so that the
// content security policy needs no exception.

import { createHash } from "node:crypto";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { join, resolve } from "node:path";
import { defineConfig, type Plugin } from "vite";
import { META_POLICY } from "./scripts/policy.mjs";

const here = fileURLToPath(new URL(".", import.meta.url));

/** Puts the policy into the document and pins its script and its style sheet by hash. */
function sealed(): Plugin {
  let folder = "";
  return {
    name: "cowshed-sealed",
    apply: "build",
    configResolved(config) {
      folder = resolve(config.root, config.build.outDir);
    },
    transformIndexHtml: {
      order: "post",
      handler: () => [
        {
          tag: "meta",
          attrs: { "http-equiv": "Content-Security-Policy", content: META_POLICY },
          injectTo: "head-prepend",
        },
      ],
    },
    closeBundle() {
      const file = join(folder, "index.html");
      const html = readFileSync(file, "utf8").replace(
        /<(script|link)\b([^>]*?)\b(src|href)="\.?\/?(assets\/[^"]+)"([^>]*)>/g,
        (_, tag: string, before: string, attribute: string, path: string, after: string) => {
          const hash = createHash("sha384").update(readFileSync(join(folder, path))).digest("base64");
          return `<${tag}${before}${attribute}="./${path}" integrity="sha384-${hash}"${after}>`;
        },
      );
      writeFileSync(file, html);
      keep(folder);
    },
  };
}

/** Writes the service worker, which keeps every file of the page. */
function keep(folder: string): void {
  const assets = readdirSync(join(folder, "assets")).sort();
  const files = ["./", ...assets.map((name) => `./assets/${name}`)];
  const version = createHash("sha256").update(readFileSync(join(folder, "index.html"))).update(files.join()).digest("hex");
  const script = readFileSync(join(here, "scripts/sw.js"), "utf8")
    .replace("__FILES__", JSON.stringify(files))
    .replace("__VERSION__", JSON.stringify(version.slice(0, 16)));
  writeFileSync(join(folder, "sw.js"), script);
}

export default defineConfig({
  root: here,
  base: "./",
  resolve: {
    alias: [
      { find: /^cowshed$/, replacement: resolve(here, "../pkg/index.js") },
      { find: /^cowshed\/(.*)$/, replacement: `${resolve(here, "../pkg")}/$1.js` },
    ],
  },
  server: { fs: { allow: [resolve(here, "..")] } },
  worker: { format: "es" },
  build: {
    target: "es2022",
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    reportCompressedSize: true,
  },
  plugins: [sealed()],
});
