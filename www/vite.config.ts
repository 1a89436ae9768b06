// Builds the page: one document, one module, one worker, the engine. Everything is a file of its own origin, so that the
// content security policy needs no exception.

import { createHash } from "node:crypto";
import { readFileSync, writeFileSync } from "node:fs";
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
    },
  };
}

export default defineConfig({
  root: here,
  base: "./",
  resolve: { alias: { cowshed: resolve(here, "../pkg/cowshed.js") } },
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
