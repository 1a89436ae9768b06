#!/usr/bin/env node
// Serves the built page on localhost with the headers it wants.
//
//   node scripts/serve.mjs [--port N] [--host ADDRESS] [--image FILE]
//
// With --image the file is served at /image/NAME, and the printed address opens it at once.

import { createReadStream, existsSync, statSync } from "node:fs";
import { createServer } from "node:http";
import { basename, extname, join, normalize, resolve, sep } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { HEADERS } from "./policy.mjs";

const TYPES = {
  ".html": "text/html; charset=utf-8",
  ".js": "text/javascript; charset=utf-8",
  ".css": "text/css; charset=utf-8",
  ".svg": "image/svg+xml",
  ".wasm": "application/wasm",
};

const DIST = fileURLToPath(new URL("../dist", import.meta.url));

/**
 * Starts the server; port 0 takes a free one. Resolves with the page's address and a way to stop it.
 * @param {{ port?: number, host?: string, image?: string, folder?: string }} options
 */
export async function serve({ port = 0, host = "127.0.0.1", image, folder = DIST } = {}) {
  if (!existsSync(join(folder, "index.html"))) {
    throw new Error(`${folder} holds no page: run \`npm run build\` first`);
  }
  const imagePath = image === undefined ? null : `/image/${basename(image)}`;
  const server = createServer((request, response) => {
    const answer = (status, headers, text) => response.writeHead(status, { ...HEADERS, ...headers }).end(text);
    if (request.method !== "GET" && request.method !== "HEAD") return answer(405, { Allow: "GET, HEAD" });
    let path;
    try {
      path = decodeURIComponent(new URL(request.url ?? "/", "http://localhost").pathname);
    } catch {
      return answer(400, {});
    }
    const file =
      path === imagePath && image !== undefined
        ? resolve(image)
        : join(folder, normalize(path === "/" ? "/index.html" : path));
    if (path !== imagePath && !file.startsWith(folder + sep)) return answer(404, {});
    const status = statSync(file, { throwIfNoEntry: false });
    if (!status?.isFile()) return answer(404, { "Content-Type": "text/plain" }, "not found\n");
    response.writeHead(200, {
      ...HEADERS,
      "Content-Type": (path !== imagePath && TYPES[extname(file)]) || "application/octet-stream",
      "Content-Length": status.size,
      "Cache-Control": path.startsWith("/assets/") ? "public, max-age=31536000, immutable" : "no-cache",
    });
    if (request.method === "HEAD") return response.end();
    return createReadStream(file)
      .on("error", () => response.destroy())
      .pipe(response);
  });
  await new Promise((done, failed) => server.once("error", failed).listen(port, host, done));
  const origin = `http://${host}:${server.address().port}/`;
  return {
    origin,
    url: imagePath === null ? origin : `${origin}?image=${encodeURIComponent(imagePath)}`,
    close: () => new Promise((done) => (server.close(done), server.closeAllConnections())),
  };
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const { values } = parseArgs({
    options: { port: { type: "string" }, host: { type: "string" }, image: { type: "string" } },
  });
  const { url } = await serve({
    port: Number(values.port ?? 8080),
    ...(values.host && { host: values.host }),
    ...(values.image && { image: values.image }),
  });
  console.log(`The page is at ${url}`);
}
