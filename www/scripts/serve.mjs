#!/usr/bin/env node
// Serves the built page on localhost with the headers it wants.
//
//   node scripts/serve.mjs [--port N] [--host ADDRESS] [--image FILE]
//
// With --image the file is served at /image/NAME, by ranges, and the printed address opens it at once.

import { createReadStream, existsSync, statSync } from "node:fs";
import { createServer } from "node:http";
import { basename, extname, join, normalize, resolve, sep } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { HEADERS, WORKER_POLICY } from "./policy.mjs";

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
    const range = rangeOf(request.headers.range, status.size);
    if (range === null) return answer(416, { "Content-Range": `bytes */${status.size}` });
    const headers = {
      ...HEADERS,
      "Content-Type": (path !== imagePath && TYPES[extname(file)]) || "application/octet-stream",
      "Content-Length": range.end - range.start,
      "Accept-Ranges": "bytes",
      ETag: `"${status.ino}-${status.size}-${status.mtimeMs}"`,
      "Cache-Control": path.startsWith("/assets/") ? "public, max-age=31536000, immutable" : "no-cache",
      ...(range.isPart && { "Content-Range": `bytes ${range.start}-${range.end - 1}/${status.size}` }),
      ...(/^\/assets\/worker-[^/]+\.js$/.test(path) && { "Content-Security-Policy": WORKER_POLICY }),
    };
    response.writeHead(range.isPart ? 206 : 200, headers);
    if (request.method === "HEAD" || range.end === range.start) return response.end();
    return createReadStream(file, { start: range.start, end: range.end - 1 })
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

/** The part of a file that a request asks for: all of it without a range, null if it has none of that. */
function rangeOf(header, size) {
  const parts = /^bytes=(\d+)-(\d*)$/.exec(header ?? "");
  if (!parts) return { start: 0, end: size, isPart: false };
  const start = Number(parts[1]);
  const end = parts[2] === "" ? size : Math.min(size, Number(parts[2]) + 1);
  return start < end ? { start, end, isPart: true } : null;
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
