// The first view answers "what is this?": every figure and name on it is held against what qemu-img says of the file.

import assert from "node:assert/strict";
import { statSync } from "node:fs";
import { drop, go, openImage, pick } from "./browser.mjs";
import { exact, fixture, rowsOf } from "./fixture.mjs";
import { bytesOf, info, layered, map, qcow2, qemuImg, qemuIo } from "./images.mjs";

const { files, page } = fixture();
const { base, top } = layered(files.at);

const plain = qcow2(files.at("plain.qcow2"), "300M", {
  options: ["compat=1.1", "lazy_refcounts=on", "refcount_bits=32", "cluster_size=32k"],
  commands: ["write -P 0x5a 1M 7M", "write -z 100M 1M"],
});
const old = qcow2(files.at("old.qcow2"), "10M", { options: ["compat=0.10"], commands: ["write -P 1 0 64k"] });

page("sizes_are_those_of_qemu_img", async ({ page }) => {
  await openImage(page, plain);
  const figures = page.locator("cow-overview .figures div");
  const said = info(plain);
  assert.equal(await exact(figures.nth(0).locator("dd span")), said["virtual-size"]);
  assert.equal(await exact(figures.nth(2).locator("dd span")), statSync(plain).size);
  await page.locator("cow-overview dd", { hasText: "of the disk" }).waitFor();
  const held = map(plain).reduce((sum, { data, length }) => sum + (data ? length : 0), 0);
  assert.equal(await exact(figures.nth(1).locator("dd span")), held);
  assert.equal(await page.locator("cow-overview .what").innerText(), "A disk of 300 MiB in a qcow2 version 3 image.");
  assert.equal(await page.title(), "plain.qcow2 \u2013 cowshed");
});

page("the_file_picker_opens_as_dropping_does", async ({ page }) => {
  await pick(page, "Choose a file", old);
  await page.getByText("A disk of 10 MiB in a qcow2 version 2 image.").waitFor();
  await pick(page, "Open another", plain);
  await page.getByText("A disk of 300 MiB in a qcow2 version 3 image.").waitFor();
});

page("another_image_can_be_dropped_on_the_first", async ({ page }) => {
  await openImage(page, plain);
  await go(page, "Structure");
  await drop(page, old);
  await page.getByText("A disk of 10 MiB").waitFor();
});

page("header_fields_are_the_bytes_of_the_file", async ({ page }) => {
  for (const file of [plain, old]) {
    await drop(page, file);
    await page.getByText(file === plain ? "A disk of 300 MiB" : "A disk of 10 MiB").waitFor();
    await go(page, "Structure");
    const rows = await rowsOf(page.locator("cow-structure table.fields"));
    const header = bytesOf(file, 0, 4096);
    const fixed = rows.filter(([offset]) => Number(offset) < 104);
    assert.equal(fixed.length, file === plain ? 18 : 13);
    let at = 0;
    for (const [offset, length, name, value] of fixed) {
      assert.equal(Number(offset), at, `${name} follows the field before it`);
      at += Number(length);
      const bytes = header.subarray(Number(offset), at);
      const wanted = BigInt(`0x${bytes.toString("hex")}`);
      if (name === "magic") continue;
      assert.equal(BigInt(value.split(/\s/)[0]), wanted, name);
    }
  }
});

page("features_are_named", async ({ page }) => {
  await openImage(page, plain);
  await go(page, "Structure");
  const lines = await page.locator("cow-structure li").allInnerTexts();
  assert.equal(lines.length, 1);
  assert.match(lines[0].replace(/\s+/g, " "), /bit 0 .*lazy refcounts/i);
});

page("information_as_json_is_qemu_imgs", async ({ page }) => {
  for (const file of [plain, old]) {
    await drop(page, file);
    await page.getByText(file === plain ? "A disk of 300 MiB" : "A disk of 10 MiB").waitFor();
    await go(page, "Structure");
    await page.getByText("As qemu-img info --output=json prints it").click();
    const shown = JSON.parse(await page.locator("cow-structure pre").innerText());
    const said = info(file);
    // What a page cannot know: the path, the blocks that the file takes up, the protocol layer below.
    for (const key of ["filename", "actual-size", "children"]) {
      delete said[key];
      delete shown[key];
    }
    assert.deepEqual(shown, said);
  }
});

page("snapshots_are_those_of_qemu_img", async ({ page }) => {
  const file = qcow2(files.at("snapshots.qcow2"), "20M", { commands: ["write -P 1 0 1M"] });
  qemuImg("snapshot", "-c", "one", file);
  qemuIo(file, "write -P 2 512k 1M");
  qemuImg("snapshot", "-c", "two words", file);
  await openImage(page, file);
  const rows = await rowsOf(page.locator("cow-overview table"));
  const said = info(file).snapshots;
  assert.equal(rows.length, said.length);
  said.forEach((snapshot, index) => {
    const [id, name, taken] = rows[index];
    assert.equal(id, snapshot.id);
    assert.equal(name, snapshot.name);
    const date = new Date(snapshot["date-sec"] * 1000);
    const two = (number) => String(number).padStart(2, "0");
    const day = `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}`;
    assert.equal(taken, `${day} ${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`);
  });
});

page("tables_are_where_the_file_says", async ({ page }) => {
  const file = qcow2(files.at("tables.qcow2"), "2G", { options: ["cluster_size=4096"], commands: ["write -P 1 0 1M"] });
  qemuImg("snapshot", "-c", "before", file);
  await openImage(page, file);
  await go(page, "Structure");
  const rows = await rowsOf(page.locator("cow-structure section[aria-labelledby=tables] table"));
  const head = bytesOf(file, 0, 104);
  const at = (offset) => `0x${head.readBigUInt64BE(offset).toString(16)}`;
  const snapshot = bytesOf(file, Number(head.readBigUInt64BE(64)), 12);
  const wanted = [
    ["Refcount table", at(48), (head.readUInt32BE(56) * 512).toLocaleString("en")],
    ["L1 table", at(40), "1,024"],
    ["L1 table of before", `0x${snapshot.readBigUInt64BE(0).toString(16)}`, snapshot.readUInt32BE(8).toLocaleString("en")],
    ["Snapshot table", at(64), "1"],
  ].sort(([, one], [, other]) => Number(one) - Number(other));
  assert.deepEqual(rows.map(([name, offset, entries]) => [name.replaceAll("\n", " "), offset, entries]), wanted);
  // Each leads to who owns it.
  await page.locator("cow-structure").getByRole("link", { name: "look" }).first().click();
  await page.locator("cow-clusters #owners").waitFor();
});

page("the_backing_chain_is_drawn_in_order", async ({ page }) => {
  await drop(page, top);
  await page.locator("cow-ask").waitFor();
  await drop(page, base);
  await page.locator("cow-overview").waitFor();
  const layers = await page.locator("cow-overview .chain .layer").allInnerTexts();
  assert.deepEqual(layers, ["top.qcow2", "base.qcow2"]);
  const held = page.locator("cow-overview .figures div").nth(1).locator("dd span").first();
  await page.locator("cow-overview dd", { hasText: "of the disk" }).waitFor();
  assert.equal(await exact(held), map(top).reduce((sum, { data, length }) => sum + (data ? length : 0), 0));
});
