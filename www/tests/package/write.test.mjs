// Writing by the package, in Node: overlays, new images and repairs are what qemu-img says they are.

import assert from "node:assert/strict";
import { closeSync, copyFileSync, fstatSync, fsyncSync, ftruncateSync, openAsBlob, openSync, readFileSync, readSync, writeFileSync, writeSync } from "node:fs";
import test from "node:test";
import { CowshedError, Image } from "../../../pkg/index.js";
import { create, repair } from "../../../pkg/write.js";
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

test("a_damaged_image_is_repaired_as_qemu_checks_it", async () => {
  const path = files.at("leaky.qcow2");
  copyFileSync(base, path);
  const before = readFileSync(raw(path, files.at("leaky.raw")));
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
