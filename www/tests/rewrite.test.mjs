// New images out of the page: a repaired file, in place or a copy, passes qemu-img check and holds the same disk, a qcow2 export
// equals the disk.

import assert from "node:assert/strict";
import { copyFileSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { drop, go, openImage, pick } from "./browser.mjs";
import { fixture } from "./fixture.mjs";
import { damage, encrypted, info, layered, qcow2, qemuImg, raw } from "./images.mjs";

const { files, page } = fixture();
const { base, top } = layered(files.at);
const checked = (file) => JSON.parse(qemuImg("check", "--output=json", file));

async function saved(page, button) {
  const [download] = await Promise.all([page.waitForEvent("download"), page.getByRole("button", { name: button }).click()]);
  const file = files.at(`saved-${download.suggestedFilename()}`);
  writeFileSync(file, readFileSync(await download.path()));
  return { name: download.suggestedFilename(), file };
}

const whole = qcow2(files.at("whole.qcow2"), "1M", { commands: ["write -P 7 0 512k"] });
const broken = files.at("broken.qcow2");
copyFileSync(whole, broken);
const disk = readFileSync(raw(broken, files.at("before.raw")));
damage(broken);

/** Checks the image that is open and has its repair worked out. */
async function workOut(page) {
  await go(page, "Check");
  await page.getByRole("button", { name: "Check this image" }).click();
  await page.getByText(/^\d+ errors? found$/).waitFor();
  await page.getByRole("button", { name: "Work out a repair" }).click();
  await page.getByText("This would repair 1 error and 1 leaked cluster. Nothing would be wrong with the image any more.").waitFor();
}

/** Puts a file in the browser's own storage and has the page's dialogue pick it: its handle is one that can be written. */
async function pickKept(page, file) {
  await page.evaluate(async ([name, bytes]) => {
    const folder = await navigator.storage.getDirectory();
    const handle = await folder.getFileHandle(name, { create: true });
    const stream = await handle.createWritable();
    await stream.write(Uint8Array.from(atob(bytes), (one) => one.charCodeAt(0)));
    await stream.close();
    window.kept = handle;
    window.showOpenFilePicker = async () => [handle];
  }, [file.split("/").at(-1), readFileSync(file).toString("base64")]);
  await page.getByRole("button", { name: /Choose a file/ }).click();
  await page.locator("cow-overview .what").waitFor();
}

/** What that file holds now. */
async function kept(page) {
  const text = await page.evaluate(async () => {
    const bytes = new Uint8Array(await (await window.kept.getFile()).arrayBuffer());
    let text = "";
    for (const byte of bytes) text += String.fromCharCode(byte);
    return btoa(text);
  });
  return Buffer.from(text, "base64");
}

page("a_repaired_copy_is_sound_and_the_image_stays_as_it_is", async ({ page }) => {
  await page.evaluate(() => (window.showSaveFilePicker = undefined));
  const before = readFileSync(broken);
  await openImage(page, broken);
  await workOut(page);
  const { name, file } = await saved(page, "Save a repaired copy");
  assert.equal(name, "broken-repaired.qcow2");
  await page.getByText("Saved as broken-repaired.qcow2").waitFor();
  const { corruptions, leaks, "check-errors": errors } = checked(file);
  assert.deepEqual([corruptions ?? 0, leaks ?? 0, errors], [0, 0, 0]);
  assert.ok(disk.equals(readFileSync(raw(file, files.at("after.raw")))));
  assert.ok(before.equals(readFileSync(broken)));
  // A sound image has nothing to repair.
  await drop(page, whole);
  await page.locator("cow-overview .what").waitFor();
  await go(page, "Check");
  await page.getByRole("button", { name: "Check this image" }).click();
  await page.getByText("No errors were found").waitFor();
  assert.equal(await page.getByRole("button", { name: "Work out a repair" }).count(), 0);
});

page("the_file_itself_is_repaired_when_the_person_says_so", async ({ page }) => {
  await pickKept(page, broken);
  await workOut(page);
  await page.getByText("Where", { exact: true }).click();
  // The counts are written anew at the end, and the header's field says so.
  assert.equal(await page.locator("cow-repair ol").innerText(), "0x30 8 bytes\nnew, at the end: 128 KiB");
  await page.getByRole("button", { name: "Repair the file itself" }).click();
  await page.getByRole("button", { name: "Leave it as it is" }).click();
  assert.ok((await kept(page)).equals(readFileSync(broken)), "nothing was written");
  await page.getByRole("button", { name: "Repair the file itself" }).click();
  await page.getByRole("button", { name: "Change the file" }).click();
  await page.getByText("The file was repaired: 2 repairs made.").waitFor();
  await page.getByText("No errors were found").waitFor();
  const after = files.at("in-place.qcow2");
  writeFileSync(after, await kept(page));
  const { corruptions, leaks, "check-errors": errors } = checked(after);
  assert.deepEqual([corruptions ?? 0, leaks ?? 0, errors], [0, 0, 0]);
  assert.ok(disk.equals(readFileSync(raw(after, files.at("in-place.raw")))));
  // What is open now is the new file.
  await go(page, "Bytes");
  await page.locator("cow-hex .row").first().waitFor();
});

page("a_file_that_has_changed_or_may_not_be_written_is_left_as_it_is", async ({ page }) => {
  await pickKept(page, broken);
  await workOut(page);
  const apply = async () => {
    await page.getByRole("button", { name: "Repair the file itself" }).click();
    await page.getByRole("button", { name: "Change the file" }).click();
  };
  await page.evaluate(() => {
    window.ask = FileSystemFileHandle.prototype.requestPermission;
    FileSystemFileHandle.prototype.requestPermission = async () => "denied";
  });
  await apply();
  await page.getByText("The file was not changed: the browser does not let this page write to it.").waitFor();
  assert.ok((await kept(page)).equals(readFileSync(broken)));
  await page.evaluate(async () => {
    FileSystemFileHandle.prototype.requestPermission = window.ask;
    const stream = await window.kept.createWritable({ keepExistingData: true });
    await stream.write({ type: "write", position: 0, data: "other" });
    await stream.close();
  });
  await apply();
  await page.getByText(/^The file was not changed: /).waitFor();
  const now = await kept(page);
  assert.equal(now.subarray(0, 5).toString(), "other");
  assert.ok(now.subarray(5).equals(readFileSync(broken).subarray(5)));
});

page("a_dropped_file_can_be_repaired_and_one_without_a_handle_cannot", async ({ page }) => {
  await openImage(page, broken);
  await workOut(page);
  assert.equal(await page.getByRole("button", { name: "Repair the file itself" }).count(), 1);
  await pick(page, "Open another", broken);
  await page.locator("cow-overview .what").waitFor();
  await workOut(page);
  assert.equal(await page.getByRole("button", { name: "Repair the file itself" }).count(), 0);
  assert.equal(await page.getByRole("button", { name: "Save a repaired copy" }).count(), 1);
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
