// Writing by the package, in Node: overlays, new images and repairs are what qemu-img says they are.

import assert from "node:assert/strict";
import { closeSync, copyFileSync, fstatSync, fsyncSync, ftruncateSync, openAsBlob, openSync, readFileSync, readSync, writeFileSync, writeSync } from "node:fs";
import test from "node:test";
import { CowshedError, Image } from "../../../pkg/index.js";
import { create, planRepair, repair, RepairPlan } from "../../../pkg/write.js";
import { encrypted, folder, info, qcow2, qemuImg, raw, run } from "../images.mjs";

const files = folder();
test.after(() => files.remove());
const base = qcow2(files.at("base.qcow2"), "16M", { commands: ["write -P 0x11 0 1M", "write -c -P 0x22 5M 1M"] });
const is = (code) => (error) => error instanceof CowshedError && error.code === code;

/** What a browser's FileSystemSyncAccessHandle is, over a file of Node's. */
function access(path) {
  const fd = openSync(path, "a+");
  closeSync(fd);
  const file = openSync(path, "r+");
  return {
    read: (into, { at }) => readSync(file, into, 0, into.length, at),
    write: (from, { at }) => writeSync(file, from, 0, from.length, at),
    truncate: (length) => ftruncateSync(file, length),
    getSize: () => fstatSync(file).size,
    flush: () => fsyncSync(file),
    close: () => closeSync(file),
  };
}

async function whole(image) {
  const pieces = [];
  for await (const piece of image.stream()) pieces.push(piece);
  return Buffer.concat(pieces);
}

const checked = (file) => JSON.parse(qemuImg("check", "--output=json", file));

test("an_overlay_takes_what_is_written_and_is_gone_on_with", async () => {
  const before = readFileSync(base);
  const wanted = Buffer.from(readFileSync(raw(base, files.at("base.raw"))));
  const path = files.at("overlay.qcow2");
  const pattern = Buffer.alloc(200_000, 0x77);
  for (let round = 0; round < 2; round += 1) {
    const overlay = access(path);
    const image = await Image.open(await openAsBlob(base), { overlay });
    assert.ok(wanted.equals(await whole(image)), `round ${round}`);
    await image.write(5_000_000 + round * 3_000_000, pattern);
    pattern.copy(wanted, 5_000_000 + round * 3_000_000);
    await image.writeZeroes(100_000, 50_000);
    wanted.fill(0, 100_000, 150_000);
    await image.discard(15 << 20, 1 << 20);
    await image.flush();
    assert.ok(wanted.equals(await whole(image)));
    await image.close();
    overlay.close();
  }
  assert.ok(before.equals(readFileSync(base)), "the source is as it was");
  assert.equal(info(path)["backing-filename"], "source");
  qemuImg("rebase", "-u", "-b", "base.qcow2", "-F", "qcow2", path);
  assert.ok(wanted.equals(readFileSync(raw(path, files.at("overlay.raw")))));
  assert.equal(checked(path)["check-errors"], 0);
});

test("a_new_image_is_written_and_qemu_reads_it", async () => {
  const path = files.at("new.qcow2");
  const file = access(path);
  await create(file, { size: 8 << 20, clusterSize: 32768 });
  const image = await Image.open(file, { writable: true });
  const bytes = Buffer.from(Array.from({ length: 65536 }, (_, at) => (at >> 4) & 0xff));
  await image.write(65536, bytes, { compressed: true });
  await image.write(1 << 20, bytes);
  await assert.rejects(image.write((8 << 20) - 1, bytes), is("out-of-bounds"));
  await assert.rejects(image.write(0, "text"), is("invalid-argument"));
  await image.close();
  file.close();
  const disk = readFileSync(raw(path, files.at("new.raw")));
  assert.ok(disk.subarray(65536, 131072).equals(bytes));
  assert.ok(disk.subarray(1 << 20, (1 << 20) + 65536).equals(bytes));
  const { leaks, "compressed-clusters": compressed } = checked(path);
  assert.deepEqual([leaks ?? 0, compressed], [0, 2]);
  assert.equal(info(path)["cluster-size"], 32768);
});

/** An image with two leaks. */
async function leaky(path) {
  copyFileSync(base, path);
  // A refcount block's entries behind the end of what is used: leaks.
  const image = await Image.open(await openAsBlob(path));
  const table = Number(image.header.find(({ name }) => name === "refcount_table_offset").value);
  await image.close();
  const file = openSync(path, "r+");
  ftruncateSync(file, 202 << 16);
  const entry = Buffer.alloc(8);
  readSync(file, entry, 0, 8, table);
  writeSync(file, Buffer.from([0, 1, 0, 1]), 0, 4, Number(entry.readBigUInt64BE()) + 2 * 200);
  closeSync(file);
  return path;
}

test("a_damaged_image_is_repaired_as_qemu_checks_it", async () => {
  const path = await leaky(files.at("leaky.qcow2"));
  const before = readFileSync(raw(path, files.at("leaky.raw")));
  const handle = access(path);
  const found = [];
  const report = await repair(handle, "leaks", { onFinding: (finding) => found.push(finding) });
  handle.close();
  assert.equal(report["leaks-fixed"], 2);
  assert.deepEqual([report.leaks, report.corruptions], [0, 0]);
  // Each is told when it is found, and when it is repaired.
  assert.deepEqual(found.map((one) => one.class), ["leak", "leak", "leak", "leak"]);
  assert.equal(checked(path).leaks ?? 0, 0);
  assert.ok(before.equals(readFileSync(raw(path, files.at("leaky.raw")))));
});

/** A FileSystemFileHandle as browsers have them: what is written takes the file's place when it is closed. */
function fileHandle(bytes) {
  const state = { file: new File([bytes], "disk.qcow2", { lastModified: 1 }), closed: 0, aborted: 0, onWrite: () => undefined };
  const createWritable = async () => {
    let swap = Buffer.alloc(0);
    const grow = (length) => (swap = Buffer.concat([swap, Buffer.alloc(Math.max(0, length - swap.length))]));
    return {
      write: async ({ position, data }) => {
        state.onWrite();
        grow(position + data.length).set(data, position);
      },
      truncate: async (length) => void (swap = grow(length).subarray(0, length)),
      close: async () => {
        state.closed += 1;
        state.file = new File([swap], "disk.qcow2", { lastModified: 2 });
      },
      abort: async () => void (state.aborted += 1),
    };
  };
  return { state, getFile: async () => state.file, createWritable };
}

test("a_planned_repair_is_the_one_that_is_made_and_writes_nothing_before", async () => {
  const path = await leaky(files.at("planned.qcow2"));
  const disk = readFileSync(raw(path, files.at("planned.raw")));
  const bytes = readFileSync(path);
  const refuse = () => assert.fail("the file was written");
  const source = { ...access(path), write: refuse, truncate: refuse, flush: refuse };
  const seen = [];
  const plan = await planRepair(source, "all", { onProgress: (done, total) => seen.push([done, total]) });
  assert.ok(plan instanceof RepairPlan);
  assert.equal(plan.report["leaks-fixed"], 2);
  assert.ok(seen.some(([done, total]) => total > 0 && done === total), JSON.stringify(seen));
  assert.ok(seen.every(([done, total]) => done <= total));
  // The same as what writes at once makes of it.
  const twin = files.at("twin.qcow2");
  copyFileSync(path, twin);
  const handle = access(twin);
  await repair(handle);
  handle.close();
  const wanted = readFileSync(twin);
  assert.equal(plan.size, wanted.length);
  assert.equal(plan.sizeBefore, bytes.length);
  assert.ok(wanted.equals(await plan.read(0, plan.size)));
  // The changes are all of them, and nothing else.
  const patched = Buffer.alloc(plan.size);
  bytes.copy(patched);
  for (const { offset, length } of plan.changes) wanted.copy(patched, offset, offset, offset + length);
  assert.ok(patched.equals(wanted));
  assert.ok(plan.changes.reduce((sum, { length }) => sum + length, 0) <= 64, JSON.stringify(plan.changes));
  // It is opened like any source, and put in the file's place.
  const image = await Image.open(plan, { format: "qcow2" });
  assert.ok(disk.equals(await whole(image)));
  await image.close();
  const file = fileHandle(bytes);
  const told = [];
  await plan.apply(file, { onProgress: (done, total) => told.push([done, total]) });
  assert.ok(wanted.equals(Buffer.from(await file.state.file.arrayBuffer())));
  assert.deepEqual(told.at(-1), [plan.size, plan.size]);
  const after = files.at("applied.qcow2");
  writeFileSync(after, wanted);
  assert.equal(checked(after).leaks ?? 0, 0);
});

test("a_repair_that_fails_or_is_given_up_leaves_the_file", async () => {
  const path = await leaky(files.at("kept.qcow2"));
  const bytes = readFileSync(path);
  const plan = await planRepair(access(path));
  const left = ({ state }) => assert.deepEqual([state.closed, state.file.lastModified], [0, 1]);

  const full = fileHandle(bytes);
  full.state.onWrite = () => {
    throw new DOMException("no space", "QuotaExceededError");
  };
  await assert.rejects(plan.apply(full), { name: "QuotaExceededError" });
  left(full);
  assert.equal(full.state.aborted, 1);

  const cancelled = fileHandle(bytes);
  const abort = new AbortController();
  cancelled.state.onWrite = () => abort.abort();
  await assert.rejects(plan.apply(cancelled, { signal: abort.signal }), { name: "AbortError" });
  left(cancelled);
  assert.equal(cancelled.state.aborted, 1);

  // It has changed before, or while it was written.
  const other = fileHandle(Buffer.concat([bytes, Buffer.alloc(512)]));
  await assert.rejects(plan.apply(other), is("changed"));
  left(other);
  const meanwhile = fileHandle(bytes);
  meanwhile.state.onWrite = () => (meanwhile.state.file = new File(["other"], "disk.qcow2", { lastModified: 3 }));
  await assert.rejects(plan.apply(meanwhile), is("changed"));
  assert.deepEqual([meanwhile.state.closed, meanwhile.state.aborted], [0, 1]);

  await assert.rejects(plan.apply({}), is("invalid-argument"));
  await assert.rejects(planRepair(new Blob([bytes])), is("invalid-argument"));
});

test("an_encrypted_image_is_written_with_its_passphrase", async () => {
  writeFileSync(files.at("zeros.raw"), Buffer.alloc(1 << 20));
  const path = encrypted(files.at("luks.qcow2"), files.at("zeros.raw"), "luks", "yes");
  const file = access(path);
  const image = await Image.open(file, { writable: true, passphrase: "yes" });
  await image.write(4096, new Uint8Array(512).fill(9));
  await image.close();
  file.close();
  const secret = ["--object", "secret,id=key,data=yes", "--image-opts", `driver=qcow2,file.filename=${path},encrypt.key-secret=key`];
  assert.match(run("qemu-io", [...secret, "-c", "read -P 9 4096 512"]), /read 512/);
});

test("what_cannot_be_written_says_so", async () => {
  const image = await Image.open(await openAsBlob(base));
  await assert.rejects(image.write(0, new Uint8Array(512)), is("read-only"));
  await image.close();
  await assert.rejects(Image.open(await openAsBlob(base), { writable: true }), is("invalid-argument"));
  await assert.rejects(Image.open(await openAsBlob(base), { overlay: {} }), is("invalid-argument"));
  const full = { ...access(files.at("full.qcow2")), write: (from) => from.length >> 1 };
  await assert.rejects(create(full, { size: 1 << 20 }), (error) => /only \d+ of \d+ bytes could be written/.test(error.message));
  await assert.rejects(create(access(files.at("bad.qcow2")), { size: 1 << 20, clusterSize: 1000 }), is("invalid-argument"));
});
