// Images made with QEMU's own tools, in a folder that goes away with the test, and what QEMU says about them.

import { execFileSync } from "node:child_process";
import { closeSync, mkdtempSync, openSync, readSync, rmSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

export function run(command, args) {
  try {
    return execFileSync(command, args, { encoding: "utf8", stdio: ["ignore", "pipe", "pipe"], maxBuffer: 1 << 28 });
  } catch (error) {
    if (error.code === "ENOENT") {
      throw new Error(`${command} is missing: install it (Debian: apt-get install qemu-utils)`, { cause: error });
    }
    throw new Error(`${command} ${args.join(" ")}: ${error.stderr}`, { cause: error });
  }
}

export const qemuImg = (...args) => run("qemu-img", args);
export const qemuIo = (file, ...commands) => run("qemu-io", [...commands.flatMap((one) => ["-c", one]), file]);

/** A folder for images; `remove` when done. */
export function folder() {
  const path = mkdtempSync(join(tmpdir(), "cowshed-page-"));
  return { path, at: (name) => join(path, name), remove: () => rmSync(path, { recursive: true, force: true }) };
}

/** Makes a qcow2 image; `options` as after -o, `commands` for qemu-io. */
export function qcow2(file, size, { options = [], args = [], commands = [] } = {}) {
  const wanted = options.length > 0 ? ["-o", options.join(",")] : [];
  qemuImg("create", "-q", "-f", "qcow2", ...wanted, ...args, file, ...(size === null ? [] : [size]));
  if (commands.length > 0) qemuIo(file, ...commands);
  return file;
}

export const info = (file) => JSON.parse(qemuImg("info", "-U", "--output=json", file));

/** QEMU's map, each extent with the page's word for its kind. */
export function map(file) {
  return JSON.parse(qemuImg("map", "-U", "--output=json", file)).map((extent) => ({ ...extent, kind: kindOf(extent) }));
}

function kindOf({ present, data, compressed, depth }) {
  if (!present) return "Unallocated";
  if (!data) return "Zero";
  if (depth > 0) return "From a backing file";
  return compressed ? "Compressed" : "Data";
}

/** A small disk with something of every kind, on a backing file with something of its own. */
export function layered(at) {
  const base = qcow2(at("base.qcow2"), "64M", {
    commands: ["write -P 0x11 0 1M", "write -P 0x22 20M 3M", "write -P 0x33 40M 64k"],
  });
  const top = qcow2(at("top.qcow2"), null, {
    args: ["-b", "base.qcow2", "-F", "qcow2"],
    commands: [
      "write -P 0xa1 64k 128k",
      "write -P 0xa2 5M 2M",
      "write -z 21M 512k",
      "write -c -P 0xa3 30M 64k",
      "write -c -P 0xa4 30784k 64k",
      "write -P 0xa5 63M 1M",
    ],
  });
  return { base, top };
}

/** Bytes of a file. */
export function bytesOf(file, offset, length) {
  const buffer = Buffer.alloc(length);
  const handle = openSync(file, "r");
  try {
    const got = readSync(handle, buffer, 0, length, offset);
    return buffer.subarray(0, got);
  } finally {
    closeSync(handle);
  }
}

/** The disk as the guest sees it, as `qemu-img convert` writes it. */
export function raw(file, to, ...args) {
  qemuImg("convert", "-U", "-O", "raw", ...args, file, to);
  return to;
}

/** Counts the references of clusters otherwise than they are: one too low, which is an error, and two too high. */
export function damage(file) {
  const handle = openSync(file, "r+");
  const word = (at, length) => {
    const bytes = Buffer.alloc(length);
    readSync(handle, bytes, 0, length, at);
    return bytes;
  };
  const block = Number(word(Number(word(48, 8).readBigUInt64BE()), 8).readBigUInt64BE());
  const counts = word(block, 64);
  const last = [...Array(32).keys()].filter((at) => counts.readUInt16BE(at * 2) === 1).at(-1);
  writeSync(handle, Buffer.from([0, 0]), 0, 2, block + last * 2);
  writeSync(handle, Buffer.from([0, 3]), 0, 2, block + (last - 1) * 2);
  closeSync(handle);
}

/** An encrypted image with what a raw file holds; `how` is "luks" or "aes". */
export function encrypted(file, from, how, passphrase) {
  const secret = ["--object", `secret,id=key,data=${passphrase}`];
  // Few iterations: QEMU would take two seconds for each.
  const options = how === "luks" ? "encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=20" : "encrypt.format=aes,encrypt.key-secret=key";
  qemuImg("convert", "-q", ...secret, "-f", "raw", "-O", "qcow2", "-o", options, from, file);
  return file;
}
