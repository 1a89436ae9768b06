// The package as it is published, without a bundler, on a page of its own.

import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { fileURLToPath } from "node:url";

const HTML = `<!doctype html><input type="file">`;
const TYPES = { js: "text/javascript", wasm: "application/wasm" };

/** Serves the package beside a page with an input for a file. What Node and bundlers resolve by themselves is written out. */
export async function servePackage() {
  const pkg = fileURLToPath(new URL("../../pkg", import.meta.url));
  const server = createServer(({ url }, response) => {
    if (url === "/") return response.writeHead(200, { "Content-Type": "text/html" }).end(HTML);
    const name = /^\/([a-z0-9_/-]+\.(js|wasm))$/.exec(url);
    if (!name) return response.writeHead(404).end();
    const bytes = readFileSync(`${pkg}/${name[1]}`);
    const body = name[2] === "js" ? bytes.toString().replaceAll(`"#platform"`, `"/platform-web.js"`) : bytes;
    return response.writeHead(200, { "Content-Type": TYPES[name[2]] }).end(body);
  });
  await new Promise((done) => server.listen(0, "127.0.0.1", done));
  return { origin: `http://127.0.0.1:${server.address().port}/`, close: () => server.close() };
}
