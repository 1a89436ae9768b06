// The emulator v86 boots from a qcow2 image through the adapter: a firmware of a few instructions loads the first sector, and
// that reads a compressed cluster, writes a sector, and reads it again. What it says on the serial port is compared.

import assert from "node:assert/strict";
import { openAsBlob, writeFileSync } from "node:fs";
import test from "node:test";
import { fileURLToPath } from "node:url";
import { V86 } from "v86";
import { Image } from "../../../pkg/index.js";
import { V86Disk } from "../../../pkg/v86.js";
import { folder, qcow2, qemuImg, qemuIo } from "../images.mjs";

const files = folder();
test.after(() => files.remove());

const SECTOR = 512;
const COM1 = 0x3f8;
const ATA = 0x1f0;
const [READ, WRITE] = [0x20, 0x30];
const ROM_LENGTH = 0x10000;

// Eight machine instructions' worth of assembler.
const word = (value) => [value & 0xff, (value >> 8) & 0xff];
const movDx = (port) => [0xba, ...word(port)];
const out = (port, value) => [...movDx(port), 0xb0, value, 0xee];
/** in al, dx; test al, mask; jump back unless it is as wanted. */
const until = (mask, set) => [0xec, 0xa8, mask, set ? 0x74 : 0x75, 0xfb];
const say = (text) => [...Buffer.from(text)].flatMap((byte) => out(COM1, byte));
/** mov si, address; mov cx, count; mov dx, COM1; lodsb; out dx, al; loop. */
const sayMemory = (address, count) => [0xbe, ...word(address), 0xb9, ...word(count), ...movDx(COM1), 0xac, 0xee, 0xe2, 0xfc];
const command = (lba, what) => [
  ...out(ATA + 6, 0xe0 | (lba >> 24)),
  ...out(ATA + 2, 1),
  ...out(ATA + 3, lba & 0xff),
  ...out(ATA + 4, (lba >> 8) & 0xff),
  ...out(ATA + 5, (lba >> 16) & 0xff),
  ...out(ATA + 7, what),
  ...until(0x80, false),
  ...until(0x08, true),
];
/** mov di, address; mov cx, 256; cld; rep insw. */
const readSector = (lba, address) => [...command(lba, READ), ...movDx(ATA), 0xbf, ...word(address), 0xb9, 0, 1, 0xfc, 0xf3, 0x6d];
/** mov si, address; mov cx, 256; cld; rep outsw; wait for it. */
const writeSector = (lba, address) => [
  ...command(lba, WRITE),
  ...movDx(ATA),
  ...[0xbe, ...word(address), 0xb9, 0, 1, 0xfc, 0xf3, 0x6f],
  ...movDx(ATA + 7),
  ...until(0x80, false),
];
const halt = [0xf4, 0xeb, 0xfd];

/** Loads the first sector and jumps to it. */
function firmware() {
  const rom = new Uint8Array(ROM_LENGTH);
  // cli; xor ax, ax; mov ds, ax; mov es, ax; mov ss, ax; mov sp, 0x7c00
  const start = [0xfa, 0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0, 0xbc, 0x00, 0x7c];
  rom.set([...start, ...readSector(0, 0x7c00), 0xea, 0x00, 0x7c, 0x00, 0x00], 0xe000);
  rom.set([0xea, 0x00, 0xe0, 0x00, 0xf0], 0xfff0);
  return rom.buffer;
}

test("v86_boots_from_a_qcow2_image_and_keeps_what_it_writes", async () => {
  const [far, scratch] = [(12 << 20) / SECTOR, 64];
  const boot = [
    ...say("boot;"),
    ...readSector(far, 0x9000),
    ...sayMemory(0x9000, 8),
    ...say(";"),
    ...writeSector(scratch, 0x9000),
    ...readSector(scratch, 0xa000),
    ...sayMemory(0xa000 + 8, 8),
    ...say("."),
    ...halt,
  ];
  assert.ok(boot.length <= 510, `${boot.length} bytes of boot sector`);
  const sector = Buffer.alloc(SECTOR);
  sector.set(boot);
  sector.writeUInt16BE(0x55aa, 510);
  writeFileSync(files.at("boot.raw"), sector);
  const file = qcow2(files.at("boot.qcow2"), "16M");
  qemuIo(file, `write -s ${files.at("boot.raw")} 0 512`);
  writeFileSync(files.at("far.raw"), Buffer.from("far away in cows".repeat(4096)));
  qemuIo(file, `write -c -s ${files.at("far.raw")} 12M 64k`);
  const before = qemuImg("check", file) + (await digest(file));

  const image = await Image.open(await openAsBlob(file));
  const disk = new V86Disk(image);
  assert.equal(disk.byteLength, 16 << 20);
  const emulator = new V86({
    wasm_path: fileURLToPath(new URL("../../node_modules/v86/build/v86.wasm", import.meta.url)),
    memory_size: 16 << 20,
    bios: { buffer: firmware() },
    hda: disk,
    autostart: true,
    disable_speaker: true,
  });
  try {
    const said = await new Promise((resolve, reject) => {
      let text = "";
      disk.onerror = reject;
      const timer = setTimeout(() => reject(new Error(`the guest said only ${JSON.stringify(text)}`)), 60_000);
      emulator.add_listener("serial0-output-byte", (byte) => {
        text += String.fromCharCode(byte);
        if (text.endsWith(".")) {
          clearTimeout(timer);
          resolve(text);
        }
      });
    });
    assert.equal(said, "boot;far away; in cows.");
    // Kept beside the image, and in the emulator's saved state.
    const [written] = disk.get_state();
    assert.deepEqual(written.map(([block]) => block), [(scratch * SECTOR) / 256, (scratch * SECTOR) / 256 + 1]);
    const again = new V86Disk(image);
    again.set_state(disk.get_state());
    const bytes = await new Promise((done) => again.get(scratch * SECTOR - 256, 1024, done));
    assert.equal(Buffer.from(bytes.subarray(256, 264)).toString(), "far away");
    assert.ok(bytes.subarray(0, 256).every((byte) => byte === 0));
  } finally {
    await emulator.destroy();
    await image.close();
  }
  assert.equal(qemuImg("check", file) + (await digest(file)), before, "the image is not changed");
});

async function digest(file) {
  const bytes = await (await openAsBlob(file)).arrayBuffer();
  return Buffer.from(await crypto.subtle.digest("SHA-256", bytes)).toString("hex");
}
