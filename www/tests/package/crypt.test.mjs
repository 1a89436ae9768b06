// Encrypted images by the package in Node: each passphrase for its layer, a wrong one, none, and in a worker.

import assert from "node:assert/strict";
import { openAsBlob, readFileSync, writeFileSync } from "node:fs";
import test from "node:test";
import { pathToFileURL } from "node:url";
import { Worker } from "node:worker_threads";
import { CowshedError, Image } from "../../../pkg/index.js";
import { Remote } from "../../../pkg/remote.js";
import { encrypted, folder, qemuImg } from "../images.mjs";

const files = folder();
test.after(() => files.remove());
const raw = files.at("disk.raw");
const wanted = Buffer.from(Array.from({ length: 1 << 20 }, (_, at) => (at * 31 + (at >> 9)) & 0xff));
writeFileSync(raw, wanted);
const luks = encrypted(files.at("luks.qcow2"), raw, "luks", "open sesame");
const aes = encrypted(files.at("aes.qcow2"), raw, "aes", "open sesame");
const is = (code) => (error) => error instanceof CowshedError && error.code === code;

async function whole(image) {
  const pieces = [];
  for await (const piece of image.stream()) pieces.push(piece);
  return Buffer.concat(pieces);
}

test("a_passphrase_opens_what_qemu_encrypted", async () => {
  for (const file of [luks, aes]) {
    for (const passphrase of ["open sesame", new TextEncoder().encode("open sesame"), () => Promise.resolve("open sesame")]) {
      const image = await Image.open(await openAsBlob(file), { passphrase });
      assert.ok(wanted.equals(await whole(image)));
      await image.close();
    }
  }
});

test("keys_are_derived_here_where_the_platform_cannot", async () => {
  const { subtle } = globalThis.crypto;
  let asked = 0;
  const counting = { importKey: (...given) => ((asked += 1), subtle.importKey(...given)), deriveBits: (...given) => subtle.deriveBits(...given) };
  Object.defineProperty(globalThis.crypto, "subtle", { value: counting, configurable: true });
  try {
    const image = await Image.open(await openAsBlob(luks), { passphrase: "open sesame" });
    // The slot's key and the digest.
    assert.equal(asked, 2);
    await image.close();
    Object.defineProperty(globalThis.crypto, "subtle", { value: undefined, configurable: true });
    const other = await Image.open(await openAsBlob(luks), { passphrase: "open sesame" });
    assert.ok(wanted.equals(await whole(other)));
    await other.close();
  } finally {
    Object.defineProperty(globalThis.crypto, "subtle", { value: subtle, configurable: true });
  }
});

test("a_wrong_passphrase_and_none_are_told_apart", async () => {
  await assert.rejects(Image.open(await openAsBlob(luks), { passphrase: "close sesame" }), is("wrong-key"));
  for (const options of [{}, { passphrase: () => null }]) {
    const image = await Image.open(await openAsBlob(luks), options);
    assert.equal(image.info.encrypted, true);
    await assert.rejects(image.read(0, 512), is("key-required"));
    await image.close();
  }
  await assert.rejects(Image.open(await openAsBlob(luks), { passphrase: () => Promise.reject(new Error("no idea")) }), /no idea/);
});

test("each_layer_is_asked_for_its_own", async () => {
  const top = files.at("top.qcow2");
  const secrets = ["--object", "secret,id=a,data=top", "--object", "secret,id=b,data=open sesame"];
  const below = JSON.stringify({ driver: "qcow2", "encrypt.format": "luks", "encrypt.key-secret": "b", file: { driver: "file", filename: luks } });
  qemuImg("create", "-q", "-u", ...secrets, "-f", "qcow2", "-o", "encrypt.format=luks,encrypt.key-secret=a,encrypt.iter-time=20", "-b", `json:${below}`, "-F", "qcow2", top, "1M");
  const asked = [];
  const image = await Image.open(await openAsBlob(top), {
    backing: () => openAsBlob(luks),
    passphrase: (locked) => (asked.push(locked), locked.depth === 0 ? "top" : "open sesame"),
  });
  assert.ok(wanted.equals(await whole(image)));
  assert.deepEqual(asked.map(({ depth, method }) => [depth, method]).sort(), [[0, "LUKS"], [1, "LUKS"]]);
  await image.close();
});

test("a_worker_asks_over_its_port", async () => {
  const worker = new Worker(new URL("../../../pkg/worker.js", import.meta.url));
  try {
    const image = await new Remote(worker).open(pathToFileURL(luks), { passphrase: async () => "open sesame" });
    assert.ok(wanted.equals(await whole(image)));
    assert.deepEqual(readFileSync(raw).length, Number(image.virtualSize));
    await image.close();
  } finally {
    await worker.terminate();
  }
});
