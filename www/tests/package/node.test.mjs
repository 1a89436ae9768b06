// The package in Node, as a program there uses it: every source, streams, iterables, cancelling, errors, a worker. What is
// expected comes from qemu-img or from the file itself.

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { openAsBlob, readFileSync, truncateSync } from "node:fs";
import { open } from "node:fs/promises";
import test from "node:test";
import { pathToFileURL } from "node:url";
import { Worker } from "node:worker_threads";
import { CowshedError, Image, judge } from "../../../pkg/index.js";
import { Remote } from "../../../pkg/remote.js";
import { info, folder, layered, map, qcow2, qemuImg, qemuIo, raw } from "../images.mjs";

const files = folder();
test.after(() => files.remove());
const { base, top } = layered(files.at);
const topRaw = readFileSync(raw(top, files.at("top.raw")));
const big = qcow2(files.at("big.qcow2"), "64M", { commands: ["write -P 0x5a 3M 9M", "write -c -P 0x17 20M 1M"] });
const bigRaw = readFileSync(raw(big, files.at("big.raw")));
const worker = () => new Worker(new URL("../../../pkg/worker.js", import.meta.url));

async function whole(image, options) {
  const pieces = [];
  for await (const piece of image.stream(options)) pieces.push(piece);
  return Buffer.concat(pieces);
}

/** A reader over a file, which notes what it is asked for. */
async function reader(file) {
  const handle = await open(file);
  const { size } = await handle.stat();
  const asked = [];
  return {
    size,
    asked,
    close: () => handle.close(),
    async read(offset, length, signal) {
      asked.push({ offset, length, signal });
      // The same memory again and again: the engine must not keep it.
      const { buffer } = await handle.read(Buffer.alloc(length), 0, length, offset);
      return buffer;
    },
  };
}

test("every_source_reads_the_disk_of_qemu_img_convert", async () => {
  const custom = await reader(big);
  const sources = { blob: await openAsBlob(big), url: pathToFileURL(big), bytes: new Uint8Array(readFileSync(big)), custom };
  for (const [name, source] of Object.entries(sources)) {
    const image = await Image.open(source);
    assert.equal(image.virtualSize, BigInt(info(big)["virtual-size"]), name);
    assert.equal(image.format, "qcow2");
    assert.ok(image.formatGuessed);
    assert.ok(bigRaw.equals(await whole(image)), name);
    await image.close();
  }
  assert.ok(custom.asked.length > 5);
  assert.ok(custom.asked.every(({ length }) => length <= 4 << 20));
  await custom.close();
});

test("a_backing_file_is_given_as_a_source_a_map_or_a_function", async () => {
  const blob = await openAsBlob(top);
  const below = await openAsBlob(base);
  const asked = [];
  const ways = [below, new Map([["base.qcow2", { source: below, format: "qcow2" }]]), (reference) => (asked.push(reference), below)];
  for (const backing of ways) {
    const image = await Image.open(blob, { backing, name: "top" });
    assert.equal(image.layers.length, 2);
    assert.ok(topRaw.equals(await whole(image)));
    await image.close();
  }
  assert.deepEqual(asked, [{ kind: "backing-file", name: "base.qcow2", format: "qcow2", depth: 1, from: "top" }]);
  await assert.rejects(Image.open(blob), (error) => {
    assert.ok(error instanceof CowshedError);
    assert.equal(error.code, "refused");
    assert.deepEqual(error.reference, { kind: "backing-file", name: "base.qcow2" });
    return true;
  });
  const blank = await Image.open(blob, { backing: () => "zeros" });
  assert.deepEqual(await blank.read(0, 4), new Uint8Array(4));
  await blank.close();
});

test("extents_are_those_of_qemu_img_map", async () => {
  const image = await Image.open(await openAsBlob(big));
  const data = [];
  for await (const { offset, length, kind, host } of image.extents()) {
    if (kind === "data") data.push({ start: Number(offset), length: Number(length), offset: Number(host) });
  }
  const wanted = map(big).filter(({ kind }) => kind === "Data");
  assert.deepEqual(data, wanted.map(({ start, length, offset }) => ({ start, length, offset })));
  const part = [];
  for await (const extent of image.extents({ offset: 4 << 20, length: 5n })) part.push([extent.offset, extent.length]);
  assert.deepEqual(part, [[4n << 20n, 5n]]);
  await image.close();
});

test("a_stream_of_a_part_is_that_part_and_can_be_cancelled", async () => {
  const image = await Image.open(await openAsBlob(big));
  const [offset, length] = [(3 << 20) - 1000, 2_345_678];
  assert.ok(bigRaw.subarray(offset, offset + length).equals(await whole(image, { offset, length })));
  const hash = createHash("sha256");
  for await (const piece of image.stream({ pieceLength: 12345 })) hash.update(piece);
  assert.equal(hash.digest("hex"), createHash("sha256").update(bigRaw).digest("hex"));
  const stream = image.stream();
  const one = stream.getReader();
  assert.equal((await one.read()).value.length, 1 << 20);
  await one.cancel();
  assert.equal((await whole(image, { offset: image.virtualSize })).length, 0);
  assert.throws(() => image.stream({ offset: image.virtualSize + 1n }), { code: "invalid-argument" });
  await image.close();
});

test("a_check_tells_findings_and_a_report_like_qemu_img", async () => {
  const file = qcow2(files.at("leaky.qcow2"), "16M", { commands: ["write -P 1 0 1M"] });
  const bytes = new Uint8Array(readFileSync(file));
  const view = new DataView(bytes.buffer);
  const l1 = Number(view.getBigUint64(40));
  const l2 = Number(view.getBigUint64(l1) & 0x00fffffffffffe00n);
  // Two clusters that nothing refers to any more.
  bytes.fill(0, l2, l2 + 16);
  const image = await Image.open(bytes);
  const events = [];
  for await (const event of image.check()) events.push(event);
  const { report } = events.at(-1);
  assert.equal(report.leaks, 2);
  assert.equal(report.corruptions, 0);
  const findings = events.filter(({ type }) => type === "finding").map(({ finding }) => finding);
  assert.deepEqual(findings.map((one) => one.class), ["leak", "leak"]);
  assert.ok(findings.every(({ offset }) => typeof offset === "bigint"));
  for await (const event of image.check()) {
    assert.notEqual(event.type, "report");
    break;
  }
  await image.close();
});

test("a_signal_gives_up_reads_and_opening_and_the_reader_is_told", async () => {
  const hung = await reader(big);
  const image = await Image.open(hung);
  const reason = new Error("enough");
  for (const how of ["before", "during"]) {
    const controller = new AbortController();
    if (how === "before") controller.abort(reason);
    let told = false;
    hung.read = (offset, length, signal) =>
      new Promise((_, reject) => {
        signal.addEventListener("abort", () => ((told = true), reject(signal.reason)));
        setTimeout(() => controller.abort(reason), 5);
      });
    const pending = image.read(20 << 20, 512, { signal: controller.signal });
    await assert.rejects(pending, reason);
    assert.equal(told, how === "during");
  }
  delete hung.read;
  const fresh = await reader(big);
  hung.read = fresh.read;
  // What was given up is fetched anew by the next who wants it.
  assert.deepEqual(await image.read(20 << 20, 4), new Uint8Array(4).fill(0x17));
  await image.close();
  await fresh.close();
  await hung.close();
  const never = { size: 1 << 20, read: () => new Promise(() => undefined) };
  const controller = new AbortController();
  setTimeout(() => controller.abort(reason), 20);
  await assert.rejects(Image.open(never, { signal: controller.signal }), reason);
});

test("errors_name_code_structure_and_offset", async () => {
  const cut = files.at("cut.qcow2");
  qemuImg("convert", "-O", "qcow2", big, cut);
  truncateSync(cut, 70);
  await assert.rejects(Image.open(await openAsBlob(cut)), (error) => {
    assert.ok(error instanceof CowshedError);
    assert.equal(error.structure, "header");
    return true;
  });
  const { conclusion } = await judge(await openAsBlob(cut));
  assert.equal(conclusion, "unsafe");
  const image = await Image.open(await openAsBlob(big));
  for (const offset of [-1, 1.5, 2 ** 53, -1n, 1n << 64n, "0", null]) {
    await assert.rejects(image.read(offset, 1), { code: "invalid-argument" }, String(offset));
  }
  await assert.rejects(image.read(image.virtualSize, 1), { code: "out-of-bounds" });
  await assert.rejects(image.read(0, 2 ** 31), { code: "limit-exceeded" });
  const failing = { size: 1 << 20, read: () => Promise.reject(Object.assign(new Error("no such luck"), { code: "my-code" })) };
  await assert.rejects(Image.open(failing, { format: "raw" }).then((one) => one.read(0, 1)), { code: "my-code", message: /no such luck/ });
  for (const size of [-1, 1.5, NaN, "5", 2 ** 60, undefined]) {
    await assert.rejects(Image.open({ size, read: () => new Uint8Array(1) }), { code: "invalid-argument" });
  }
  await assert.rejects(Image.open(42), { code: "invalid-argument" });
  await assert.rejects(Image.open("disk.qcow2"), { code: "invalid-argument", message: /not an address/ });
  await image.close();
  await image.close();
  await assert.rejects(image.read(0, 1), { code: "closed" });
});

test("offsets_beyond_2_to_the_53_are_exact", async () => {
  const vast = files.at("vast.qcow2");
  qemuImg("create", "-q", "-f", "qcow2", "-o", "cluster_size=2M", vast, "16P");
  const image = await Image.open(await openAsBlob(vast));
  assert.equal(image.virtualSize, 16n << 50n);
  const at = image.virtualSize - 1n;
  const [extent] = await image.map(at, 1n, 1);
  assert.equal(extent.offset, at);
  await image.close();
});

test("a_snapshot_is_opened_by_name_and_dispose_closes", async () => {
  const file = qcow2(files.at("snap.qcow2"), "4M", { commands: ["write -P 0xaa 0 64k"] });
  qemuImg("snapshot", "-c", "before", file);
  qemuIo(file, "write -P 0xbb 0 64k");
  const image = await Image.open(await openAsBlob(file), { snapshot: "before" });
  assert.equal((await image.read(0, 1))[0], 0xaa);
  assert.equal(image.snapshots[0].name, "before");
  await image[Symbol.asyncDispose]();
  await assert.rejects(image.read(0, 1), { code: "closed" });
});

test("a_worker_does_the_same_from_the_other_side", async () => {
  const thread = worker();
  const remote = new Remote(thread);
  const custom = await reader(base);
  const asked = [];
  // Node does not clone a Blob that stands for a file.
  const image = await remote.open(new Blob([readFileSync(top)]), {
    backing: (reference) => (asked.push(reference.name), custom),
  });
  assert.deepEqual(asked, ["base.qcow2"]);
  assert.ok(custom.asked.length > 0);
  assert.ok(topRaw.equals(await whole(image)));
  const events = [];
  for await (const { type } of image.check()) events.push(type);
  assert.equal(events.at(-1), "report");
  const reason = new Error("enough");
  const controller = new AbortController();
  const pending = image.read(0, 1 << 20, { signal: controller.signal });
  controller.abort(reason);
  await assert.rejects(pending, reason);
  await image.close();
  await assert.rejects(
    remote.open(new Uint8Array(3)).then((one) => one.check().next()),
    CowshedError,
  );
  await custom.close();
  await thread.terminate();
  await assert.rejects(remote.open(new Uint8Array(3)), { code: "engine-stopped" });
});
