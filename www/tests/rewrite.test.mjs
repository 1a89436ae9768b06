// New images out of the page: a repaired copy passes qemu-img check and holds the same disk, a qcow2 export equals the disk.

import assert from "node:assert/strict";
import { closeSync, copyFileSync, openSync, readFileSync, readSync, statSync, writeFileSync, writeSync } from "node:fs";
import { drop, go, openImage } from "./browser.mjs";
import { fixture } from "./fixture.mjs";
import { encrypted, info, layered, qcow2, qemuImg, raw } from "./images.mjs";

const { files, page } = fixture();
const { base, top } = layered(files.at);
const checked = (file) => JSON.parse(qemuImg("check", "--output=json", file));

/** Counts the references of clusters otherwise than they are: one too low, which is an error, and two too high. */
function damage(file) {
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

async function saved(page, button) {
  const [download] = await Promise.all([page.waitForEvent("download"), page.getByRole("button", { name: button }).click()]);
  const file = files.at(`saved-${download.suggestedFilename()}`);
  writeFileSync(file, readFileSync(await download.path()));
  return { name: download.suggestedFilename(), file };
}

page("a_repaired_copy_is_sound_and_the_image_stays_as_it_is", async ({ page }) => {
  await page.evaluate(() => (window.showSaveFilePicker = undefined));
  const broken = files.at("broken.qcow2");
  copyFileSync(qcow2(files.at("whole.qcow2"), "1M", { commands: ["write -P 7 0 512k"] }), broken);
  const disk = readFileSync(raw(broken, files.at("before.raw")));
  damage(broken);
  const before = readFileSync(broken);
  await openImage(page, broken);
  await go(page, "Check");
  await page.getByRole("button", { name: "Check this image" }).click();
  await page.getByText(/^\d+ errors? found$/).waitFor();
  const { name, file } = await saved(page, "Save a repaired copy");
  assert.equal(name, "broken-repaired.qcow2");
  await page.getByText("Nothing is wrong with it any more.").waitFor();
  const { corruptions, leaks, "check-errors": errors } = checked(file);
  assert.deepEqual([corruptions ?? 0, leaks ?? 0, errors], [0, 0, 0]);
  assert.ok(disk.equals(readFileSync(raw(file, files.at("after.raw")))));
  assert.ok(before.equals(readFileSync(broken)));
  // A sound image has nothing to repair.
  await drop(page, files.at("whole.qcow2"));
  await page.locator("cow-overview .what").waitFor();
  await go(page, "Check");
  await page.getByRole("button", { name: "Check this image" }).click();
  await page.getByText("No errors were found").waitFor();
  assert.equal(await page.getByRole("button", { name: "Save a repaired copy" }).count(), 0);
});

page("a_chain_is_saved_as_one_image_plain_and_compressed", async ({ page }) => {
  await page.evaluate(() => (window.showSaveFilePicker = undefined));
  await drop(page, top);
  await page.locator("cow-ask").waitFor();
  await drop(page, base);
  await page.locator("cow-overview").waitFor();
  await go(page, "Export");
  const lengths = [];
  for (const compressed of [false, true]) {
    await page.getByLabel("Clusters of").selectOption({ label: compressed ? "16 KiB" : "1 MiB" });
    await page.getByLabel("compressed").setChecked(compressed);
    const { name, file } = await saved(page, "Save as a qcow2 image");
    assert.equal(name, "top-copy.qcow2");
    const said = info(file);
    assert.equal(said["backing-filename"], undefined);
    assert.equal(said["cluster-size"], compressed ? 16384 : 1 << 20);
    qemuImg("compare", file, top);
    const { leaks, "check-errors": errors, "compressed-clusters": count } = checked(file);
    assert.deepEqual([leaks ?? 0, errors, (count ?? 0) > 0], [0, 0, compressed]);
    lengths.push(statSync(file).size);
    await page.getByText("Saved as top-copy.qcow2").waitFor();
  }
  assert.ok(lengths[1] < lengths[0] / 4, `${lengths}`);
});

page("an_unlocked_disk_is_saved_as_a_plain_image", async ({ page }) => {
  await page.evaluate(() => (window.showSaveFilePicker = undefined));
  const disk = files.at("disk.raw");
  writeFileSync(disk, Buffer.from(Array.from({ length: 1 << 20 }, (_, at) => (at >> 8) & 0xff)));
  await openImage(page, encrypted(files.at("luks.qcow2"), disk, "luks", "yes"));
  await page.getByLabel("Passphrase").fill("yes");
  await page.getByRole("button", { name: "Unlock" }).click();
  await page.locator("cow-lock").waitFor({ state: "detached" });
  await go(page, "Export");
  const { file } = await saved(page, "Save as a qcow2 image");
  assert.equal(info(file).encrypted, undefined);
  qemuImg("compare", "-f", "qcow2", "-F", "raw", file, disk);
});
