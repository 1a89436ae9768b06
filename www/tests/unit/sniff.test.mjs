// A wrong file must be told from a disk, and a disk never turned away: checked on files that QEMU and others wrote.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { readFileSync, truncateSync, writeFileSync } from "node:fs";
import test from "node:test";
import { gzipSync } from "node:zlib";
import { sniff } from "../../.unit/model/sniff.js";
import { folder, qemuImg } from "../images.mjs";

const files = folder();
test.after(() => files.remove());

const look = (bytes) => sniff(new Blob([bytes]));

test("formats_of_other_hypervisors_are_named", async () => {
  const table = { vmdk: /VMDK/, vdi: /VDI/, vhdx: /VHDX/, vpc: /VHD/, qed: /QED/, parallels: /Parallels/ };
  for (const [format, what] of Object.entries(table)) {
    const file = files.at(`disk.${format}`);
    qemuImg("create", "-q", "-f", format, file, "64M");
    const guess = await look(readFileSync(file));
    assert.equal(guess.kind, "other", format);
    assert.equal(guess.disk, true, format);
    assert.match(guess.what, what);
  }
  qemuImg("create", "-q", "-f", "vpc", "-o", "subformat=fixed", files.at("fixed.vhd"), "1M");
  assert.match((await look(readFileSync(files.at("fixed.vhd")))).what, /VHD/);
});

test("qcow2_of_every_version_is_recognised", async () => {
  for (const compat of ["0.10", "1.1"]) {
    qemuImg("create", "-q", "-f", "qcow2", "-o", `compat=${compat}`, files.at("q.qcow2"), "1M");
    assert.deepEqual(await look(readFileSync(files.at("q.qcow2"))), { kind: "qcow2" });
  }
});

test("raw_disks_and_file_systems_are_recognised", async () => {
  const file = files.at("ext4.raw");
  writeFileSync(file, "");
  truncateSync(file, 8 << 20);
  execFileSync("/sbin/mke2fs", ["-q", "-t", "ext4", file]);
  assert.match((await look(readFileSync(file))).what, /ext/);
  const boot = Buffer.alloc(4096);
  boot.writeUInt16BE(0x55aa, 510);
  assert.equal((await look(boot)).kind, "raw");
});

test("other_files_are_named_or_unknown", async () => {
  assert.equal((await look(Buffer.alloc(0))).kind, "empty");
  assert.equal((await look(Buffer.alloc(100_000))).kind, "unknown");
  assert.match((await look(gzipSync("x"))).what, /gzip/);
  assert.match((await look(readFileSync(process.execPath).subarray(0, 1 << 16))).what, /ELF/);
});
