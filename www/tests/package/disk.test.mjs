// The package's second module in Node: partitions and files of an image, in this thread and in a worker, by paths of any bytes.

import assert from "node:assert/strict";
import { mkdirSync, openAsBlob, readdirSync, writeFileSync } from "node:fs";
import test from "node:test";
import { pathToFileURL } from "node:url";
import { Worker } from "node:worker_threads";
import { Disk } from "../../../pkg/disk.js";
import { CowshedError, Image } from "../../../pkg/index.js";
import { Remote } from "../../../pkg/remote.js";
import { disk, ext4, tool, tree } from "../disks.mjs";
import { folder } from "../images.mjs";

const files = folder();
test.after(() => files.remove());
mkdirSync(files.at("tree"));
const put = tree(files.at("tree"));
const odd = Buffer.from([0x6e, 0xff, 0xfe, 0x0a]);
writeFileSync(Buffer.concat([Buffer.from(`${files.at("tree")}/`), odd]), "odd");
const root = ext4(files.at("root.img"), files.at("tree"), "rootfs");
const { file } = disk(files.at("server.qcow2"), "dos", [{ file: root, type: "83" }]);

async function whole(stream) {
  const pieces = [];
  for await (const piece of stream) pieces.push(piece);
  return Buffer.concat(pieces);
}

async function withDisk(run) {
  const image = await Image.open(await openAsBlob(file));
  const opened = await Disk.open(image);
  await run(opened);
  opened.close();
  await image.close();
}

test("a_disk_tells_its_partitions_and_its_system", () =>
  withDisk(async ({ table, findings, volumes }) => {
    assert.equal(table, "dos");
    assert.deepEqual(findings, []);
    assert.equal(volumes.length, 1);
    const [{ start, length, partition, files, problem }] = volumes;
    assert.deepEqual([start, length], [1n << 20n, 48n << 20n]);
    assert.deepEqual([partition.number, partition.type, partition.typeName], [1, "0x83", "Linux"]);
    assert.deepEqual([files.kind, files.label, problem], ["ext4", "rootfs", null]);
    assert.equal(files.uuid, tool("blkid", ["-o", "value", "-s", "UUID", root]).toString().trim());
    const system = await volumes[0].system();
    assert.deepEqual([system.id, system.version, system.hostname], ["testos", "7", "stable-box"]);
    assert.deepEqual(system.kernels, ["6.1.0-9-amd64"]);
  }));

test("files_are_listed_and_read_as_they_were_put", () =>
  withDisk(async ({ volumes: [volume] }) => {
    const entries = await volume.list("/home/ada");
    assert.deepEqual(entries.map(({ name }) => name).sort(), readdirSync(`${files.at("tree")}/home/ada`).sort());
    const notes = await volume.find("home/ada/notes.txt");
    assert.deepEqual([notes.kind, notes.modeText, notes.modified], ["file", "-rw-r-----", 1_700_000_000]);
    assert.equal((await volume.find("/home/ada/link")).kind, "file");
    assert.equal((await volume.find("/home/ada/link", { follow: false })).target, "/etc/hostname");
    const data = put["home/ada/data.bin"];
    assert.ok(data.equals(await whole(volume.stream("/home/ada/data.bin"))));
    assert.ok(data.subarray(4990).equals(await volume.read("/home/ada/data.bin", 4990, 100)));
    assert.equal((await whole(volume.stream("/home/ada/empty"))).length, 0);
    const path = Uint8Array.from([0x2f, ...odd]);
    assert.equal((await whole(volume.stream(path))).toString(), "odd");
    assert.ok((await volume.list()).some(({ nameBytes }) => odd.equals(nameBytes)));
  }));

test("a_walk_meets_everything_once_and_an_archive_holds_it", () =>
  withDisk(async ({ volumes: [volume] }) => {
    const met = [];
    for await (const found of volume.walk("/var")) met.push(new TextDecoder().decode(found.path));
    const wanted = ["/var", "/var/many", ...Object.keys(put).filter((path) => path.startsWith("var/")).map((path) => `/${path}`)];
    assert.deepEqual([...met].sort(), wanted.sort());
    assert.equal(met[0], "/var");
    const faults = [];
    const tar = await whole(volume.tar("/var", { onFault: (fault) => faults.push(fault) }));
    assert.deepEqual(faults, []);
    const names = tool("tar", ["-tf", "-"], { input: tar }).toString().trim().split("\n");
    assert.deepEqual(names.sort(), ["many/", ...wanted.slice(2).map((path) => path.slice("/var/".length))].sort());
    // Left early: nothing goes on.
    for await (const found of volume.walk("/")) if (found.kind === "file") break;
  }));

test("what_is_not_there_or_given_up_is_an_error_with_a_code", () =>
  withDisk(async ({ volumes: [volume] }) => {
    const is = (code) => (error) => error instanceof CowshedError && error.code === code;
    await assert.rejects(volume.list("/nowhere"), is("not-found"));
    await assert.rejects(volume.list("/etc/fstab"), is("invalid-argument"));
    await assert.rejects(volume.read("/etc", 0, 1), is("invalid-argument"));
    await assert.rejects(volume.list(7), is("invalid-argument"));
    await assert.rejects(volume.list("/", { signal: AbortSignal.abort(new Error("enough")) }), /enough/);
    await assert.rejects(Disk.open({}), is("invalid-argument"));
    await assert.rejects(Disk.open({ size: 2n ** 60n, read: () => new Uint8Array() }), is("invalid-argument"));
  }));

test("a_readers_error_comes_through_and_the_next_read_works", async () => {
  const image = await Image.open(await openAsBlob(file));
  let broken = false;
  const size = image.virtualSize;
  const read = (offset, length) => {
    if (broken) throw Object.assign(new Error("the cable is out"), { code: "cable" });
    return image.read(offset, length);
  };
  const { volumes } = await Disk.open({ size, read });
  broken = true;
  await assert.rejects(whole(volumes[0].stream("/home/ada/data.bin")), (error) => error.code === "cable");
  broken = false;
  assert.ok(put["home/ada/data.bin"].equals(await whole(volumes[0].stream("/home/ada/data.bin"))));
  await image.close();
});

test("an_image_in_a_worker_is_looked_at_from_here", async () => {
  const worker = new Worker(new URL("../../../pkg/worker.js", import.meta.url));
  const image = await new Remote(worker).open(pathToFileURL(file));
  const { volumes } = await Disk.open(image);
  assert.equal((await volumes[0].system()).id, "testos");
  await image.close();
  await worker.terminate();
});
