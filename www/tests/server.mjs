// A server of files as there are many: by ranges or not, open to other sites or not, changing under one's hands, busy, lying.

import { closeSync, openSync, readSync, statSync } from "node:fs";
import { createServer } from "node:http";

/**
 * Serves files by name. `behave` may be changed at any time.
 * @param {(name: string) => string} at the path of a file
 */
export async function fileServer(at) {
  const behave = {
    /** Sent to every site; null for none. */
    allow: "*",
    expose: "Content-Range, ETag",
    ranges: true,
    etag: '"one"',
    /** Answers so many requests with 503 first. */
    busy: 0,
    /** Shifts every range. */
    shift: 0,
    status: 0,
    delay: 0,
  };
  const requests = [];
  const server = createServer(async (request, response) => {
    const name = decodeURIComponent(new URL(request.url, "http://localhost").pathname.slice(1));
    requests.push({ name, method: request.method, range: request.headers.range, headers: request.headers });
    if (behave.delay > 0) await new Promise((go) => setTimeout(go, behave.delay));
    const headers = { "Cache-Control": "no-store", "Cross-Origin-Resource-Policy": "cross-origin" };
    if (behave.allow !== null) headers["Access-Control-Allow-Origin"] = behave.allow;
    if (behave.expose !== null) headers["Access-Control-Expose-Headers"] = behave.expose;
    if (behave.busy > 0 || behave.status > 0) {
      const status = behave.busy > 0 ? 503 : behave.status;
      behave.busy = Math.max(0, behave.busy - 1);
      response.writeHead(status, headers).end();
      return;
    }
    const size = statSync(at(name), { throwIfNoEntry: false })?.size;
    if (size === undefined) {
      response.writeHead(404, headers).end();
      return;
    }
    if (behave.etag !== null) headers.ETag = behave.etag;
    const parts = behave.ranges ? /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? "") : null;
    const start = parts ? Number(parts[1]) + behave.shift : 0;
    const end = parts ? Math.min(size, Number(parts[2]) + 1 + behave.shift) : size;
    headers["Content-Length"] = end - start;
    if (parts) headers["Content-Range"] = `bytes ${start}-${end - 1}/${size}`;
    response.writeHead(parts ? 206 : 200, headers);
    if (request.method === "HEAD") {
      response.end();
      return;
    }
    const bytes = Buffer.alloc(end - start);
    const handle = openSync(at(name), "r");
    readSync(handle, bytes, 0, bytes.length, start);
    closeSync(handle);
    response.end(bytes);
  });
  await new Promise((done) => server.listen(0, "127.0.0.1", done));
  const origin = `http://127.0.0.1:${server.address().port}`;
  return {
    origin,
    behave,
    requests,
    url: (name) => `${origin}/${encodeURIComponent(name)}`,
    close: () => new Promise((done) => (server.close(done), server.closeAllConnections())),
  };
}
