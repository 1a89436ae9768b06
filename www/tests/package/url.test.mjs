// An image on a server: read by ranges, the version pinned, and everything that goes wrong said in words. The bytes are held
// against the file's.

import assert from "node:assert/strict";
import { readFileSync, truncateSync } from "node:fs";
import test from "node:test";
import { Image } from "../../../pkg/index.js";
import { folder, layered, qcow2, raw } from "../images.mjs";
import { fileServer } from "../server.mjs";

const files = folder();
const { top } = layered(files.at);
const topRaw = readFileSync(raw(top, files.at("top.raw")));
qcow2(files.at("big.qcow2"), "200M", { commands: ["write -P 0x5a 0 60M"] });

let server;
const USUAL = { allow: "*", expose: "Content-Range, ETag", ranges: true, etag: '"one"', busy: 0, shift: 0, status: 0, delay: 0 };
test.before(async () => {
  server = await fileServer(files.at);
});
test.after(async () => {
  await server.close();
  files.remove();
});
test.beforeEach(() => {
  Object.assign(server.behave, USUAL);
  server.requests.length = 0;
});

test("a_chain_is_read_from_addresses", async () => {
  const fetched = new Map();
  const image = await Image.open(server.url("top.qcow2"), {
    backing: ({ name }) => server.url(name),
    onFetch: ({ url, bytes }) => fetched.set(url, bytes),
  });
  assert.equal(image.name, "top.qcow2");
  const pieces = [];
  for await (const piece of image.stream()) pieces.push(piece);
  assert.ok(topRaw.equals(Buffer.concat(pieces)));
  assert.deepEqual([...fetched.keys()], [server.url("top.qcow2"), server.url("base.qcow2")]);
  assert.ok(fetched.get(server.url("top.qcow2")) > 3 << 20);
  for (const { headers, range } of server.requests) {
    assert.match(range, /^bytes=\d+-\d+$/);
    assert.equal(headers.cookie, undefined);
    assert.equal(headers.referer, undefined);
  }
  await image.close();
});

test("looking_costs_little_and_reading_on_doubles_what_is_fetched", async () => {
  let bytes = 0;
  const image = await Image.open(server.url("big.qcow2"), { onFetch: (fetched) => (bytes = fetched.bytes) });
  await image.map(0, image.virtualSize, 100);
  assert.ok(bytes <= 2 << 20, `${bytes} bytes to open and map`);
  for await (const piece of image.stream({ length: 40 << 20 })) assert.equal(piece[5], 0x5a);
  const lengths = server.requests.map(({ range }) => {
    const [, from, to] = /(\d+)-(\d+)/.exec(range);
    return Number(to) - Number(from) + 1;
  });
  const longest = Math.max(...lengths);
  assert.equal(longest, 4 << 20, "the pieces grow to 4 MiB");
  assert.ok(lengths.length < 40, `${lengths.length} requests for 40 MiB`);
  await image.close();
});

for (const [name, behaviour, code, words] of [
  ["a_server_without_ranges", { ranges: false }, "no-ranges", /whole file.*200.*206/],
  ["a_server_that_refuses", { status: 403 }, "http-status", /refuses/],
  ["a_server_that_fails", { status: 500 }, "http-status", /500/],
  ["a_server_that_sends_other_bytes", { shift: 512 }, "wrong-range", /first/],
]) {
  test(`${name}_is_named`, async () => {
    Object.assign(server.behave, behaviour);
    await assert.rejects(Image.open(server.url("big.qcow2")), (error) => {
      assert.equal(error.code, code);
      assert.match(error.message, words);
      assert.match(error.message, /127\.0\.0\.1/);
      return true;
    });
  });
}

test("no_file_and_no_server_are_named", async () => {
  await assert.rejects(Image.open(server.url("none.qcow2")), { code: "http-status", message: /no such file/ });
  await assert.rejects(Image.open("http://127.0.0.1:9/x.qcow2"), { code: "network", message: /could not be reached/ });
  await assert.rejects(Image.open("ftp://127.0.0.1/x"), { code: "invalid-argument", message: /ftp:/ });
});

test("a_busy_server_is_asked_again", async () => {
  server.behave.busy = 1;
  const image = await Image.open(server.url("big.qcow2"));
  assert.equal(server.requests.length > 1, true);
  await image.close();
});

test("a_file_that_changes_is_an_error_not_a_mixture", async () => {
  const image = await Image.open(server.url("big.qcow2"));
  assert.equal((await image.read(0, 1))[0], 0x5a);
  server.behave.etag = '"two"';
  await assert.rejects(image.read(50 << 20, 512), { code: "changed", message: /changed on the server.*one.*two/ });
  server.behave.etag = '"one"';
  assert.equal((await image.read(50 << 20, 1))[0], 0x5a);
  server.behave.shift = 4096;
  await assert.rejects(image.read(20 << 20, 512), { code: "wrong-range" });
  await image.close();
});

test("a_file_that_ends_before_its_tables_is_an_error_not_zeros", async () => {
  qcow2(files.at("short.qcow2"), "64M", { commands: ["write -P 0x5a 0 8M"] });
  truncateSync(files.at("short.qcow2"), 262_144);
  const image = await Image.open(server.url("short.qcow2"));
  await assert.rejects(image.read(0, 512), ({ structure }) => structure === "L2 table");
  await image.close();
});

test("closing_gives_up_what_is_fetched_ahead", async () => {
  const image = await Image.open(server.url("big.qcow2"));
  const reader = image.stream({ length: 8 << 20 }).getReader();
  for (let piece = 0; piece < 4; piece += 1) await reader.read();
  server.behave.delay = 5000;
  const begun = performance.now();
  await reader.cancel();
  await image.close();
  assert.ok(performance.now() - begun < 3000);
});
