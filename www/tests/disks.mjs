// Disks with files on them, made by the systems' own tools: partition tables by sfdisk, trees by mkfs.ext4, mtools and xorriso.

import { execFileSync } from "node:child_process";
import { chmodSync, closeSync, mkdirSync, openSync, readFileSync, symlinkSync, truncateSync, utimesSync, writeFileSync, writeSync } from "node:fs";
import { join } from "node:path";
import { deflateSync, crc32 } from "node:zlib";
import { qemuImg } from "./images.mjs";

const SECTOR = 512;
const PACKAGES = { sfdisk: "fdisk", "mkfs.ext4": "e2fsprogs", "mkfs.vfat": "dosfstools", mcopy: "mtools", xorriso: "xorriso" };

/** Runs a tool, or fails with what it said or how to install it. */
export function tool(program, args, options = {}) {
  const path = `${process.env.PATH}:/usr/sbin:/sbin`;
  try {
    const env = { ...process.env, PATH: path, LC_ALL: "C.UTF-8", MTOOLS_SKIP_CHECK: "1" };
    return execFileSync(program, args, { env, stdio: ["pipe", "pipe", "pipe"], ...options });
  } catch (error) {
    if (error.code === "ENOENT") throw new Error(`${program} is missing: install it (Debian: apt-get install ${PACKAGES[program]})`, { cause: error });
    throw new Error(`${program} ${args.join(" ")}: ${error.stderr}`, { cause: error });
  }
}

/** A picture of one colour. */
export function png(side) {
  const chunk = (type, data) => {
    const body = Buffer.concat([Buffer.from(type, "latin1"), data]);
    const out = Buffer.alloc(body.length + 8);
    out.writeUInt32BE(data.length, 0);
    body.copy(out, 4);
    out.writeUInt32BE(crc32(body), body.length + 4);
    return out;
  };
  const head = Buffer.alloc(13);
  head.writeUInt32BE(side, 0);
  head.writeUInt32BE(side, 4);
  head.set([8, 2], 8);
  const row = Buffer.concat([Buffer.of(0), Buffer.alloc(side * 3, 0x5a)]);
  const rows = deflateSync(Buffer.concat(Array.from({ length: side }, () => row)));
  return Buffer.concat([Buffer.from("\x89PNG\r\n\x1a\n", "latin1"), chunk("IHDR", head), chunk("IDAT", rows), chunk("IEND", Buffer.alloc(0))]);
}

export const HOSTILE = {
  escape: "esc\u001b[31mred",
  override: "photo\u202egnp.exe",
  markup: "<img src=x onerror=alert(1)>",
  long: `${"a rather long name ".repeat(10)}.txt`,
};

/** A tree of files as an installed system has them. Gives what was put there, by path. */
export function tree(folder) {
  const files = {
    "etc/os-release": 'ID=testos\nVERSION_ID=7\nPRETTY_NAME="Test OS 7 (<b>bold</b>)"\n',
    "etc/hostname": "stable-box\n",
    "etc/fstab": "# device\tmount\nUUID=1\t/\n",
    "home/ada/notes.txt": "Grüße\n\tone\nand more\n",
    "home/ada/data.bin": Buffer.from(Array.from({ length: 5000 }, (_, at) => (at * 7) & 0xff)),
    "home/ada/picture.png": png(64),
    "home/ada/looks-like.png": "this is no picture",
    "home/ada/empty": "",
    "usr/lib/modules/6.1.0-9-amd64/modules.dep": "",
    [`home/hostile/${HOSTILE.escape}`]: "1",
    [`home/hostile/${HOSTILE.override}`]: "2",
    [`home/hostile/${HOSTILE.markup}`]: "3",
    [`home/hostile/${HOSTILE.long}`]: "4",
  };
  for (let number = 0; number < 1200; number += 1) files[`var/many/file${number}.log`] = `${number}\n`;
  for (const [path, bytes] of Object.entries(files)) {
    mkdirSync(join(folder, path, ".."), { recursive: true });
    writeFileSync(join(folder, path), bytes);
    utimesSync(join(folder, path), 1_700_000_000, 1_700_000_000);
  }
  chmodSync(join(folder, "home/ada/notes.txt"), 0o640);
  symlinkSync("/etc/hostname", join(folder, "home/ada/link"));
  return files;
}

/** An ext4 volume of a tree. */
export function ext4(file, folder, label, mib = 48) {
  writeFileSync(file, "");
  truncateSync(file, mib << 20);
  tool("mkfs.ext4", ["-q", "-F", "-L", label, "-E", "root_owner=0:0", "-d", folder, file]);
  return file;
}

/** A FAT volume with what is in a folder. */
export function fat(file, folder, label, mib = 16) {
  writeFileSync(file, "");
  truncateSync(file, mib << 20);
  tool("mkfs.vfat", ["-n", label, file]);
  tool("mcopy", ["-s", "-Q", "-i", file, folder, "::/"]);
  return file;
}

export function iso(file, folder, label) {
  tool("xorriso", ["-as", "mkisofs", "-quiet", "-R", "-J", "-V", label, "-o", file, folder]);
  return file;
}

/** A disk with a partition table of the kind `label` and these volumes in its partitions, as a qcow2 image. */
export function disk(file, label, volumes) {
  const raw = `${file}.raw`;
  let at = 2048;
  const script = [`label: ${label}`];
  const places = volumes.map(({ file: volume, type, name }) => {
    const bytes = volume === null ? Buffer.alloc(1 << 20) : readFileSync(volume);
    const start = at;
    at += bytes.length / SECTOR;
    script.push(`start=${start},size=${bytes.length / SECTOR},type=${type}${name ? `,name="${name}"` : ""}`);
    return { start, bytes };
  });
  writeFileSync(raw, "");
  truncateSync(raw, (at + 2048) * SECTOR);
  tool("sfdisk", ["-q", raw], { input: `${script.join("\n")}\n` });
  const out = openSync(raw, "r+");
  for (const { start, bytes } of places) writeSync(out, bytes, 0, bytes.length, start * SECTOR);
  closeSync(out);
  qemuImg("convert", "-f", "raw", "-O", "qcow2", raw, file);
  return { file, raw };
}
