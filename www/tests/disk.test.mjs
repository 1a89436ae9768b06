// The files on a disk: what was put there by other tools is what the page shows and saves, and no name of a guest's does
// anything to it.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { closeSync, copyFileSync, mkdirSync, openSync, readdirSync, readFileSync, statSync, writeFileSync, writeSync } from "node:fs";
import { disk, ext4, fat, HOSTILE, iso, png, tool, tree } from "./disks.mjs";
import { go, openImage } from "./browser.mjs";
import { exact, fixture, rowsOf } from "./fixture.mjs";
import { qcow2, qemuImg } from "./images.mjs";

const { files, page } = fixture();
const folder = files.at("tree");
mkdirSync(folder);
const put = tree(folder);
mkdirSync(files.at("EFI"));
mkdirSync(files.at("EFI/BOOT"));
copyFileSync(`${folder}/home/ada/data.bin`, files.at("EFI/BOOT/LOADER.EFI"));
const root = ext4(files.at("root.img"), folder, "rootfs");
const efi = fat(files.at("efi.img"), files.at("EFI"), "EFISYS", 34);
const { file: server, raw: serverRaw } = disk(files.at("server.qcow2"), "gpt", [
  { file: efi, type: "U", name: "EFI system partition" },
  { file: root, type: "L", name: "root" },
  { file: null, type: "S", name: "swap" },
]);

const at = (page, path) => page.evaluate((hash) => (location.hash = hash), `#disk/${path}`);
const names = async (page) => (await rowsOf(page.locator("cow-files table").last())).map(([name]) => name);

async function open(page, file) {
  await openImage(page, file);
  await go(page, "Files");
}

/** Saves by the button and gives the bytes and the name that was proposed. */
async function saved(page, button) {
  const [download] = await Promise.all([page.waitForEvent("download"), page.getByRole("button", { name: button }).click()]);
  return { name: download.suggestedFilename(), bytes: readFileSync(await download.path()) };
}

page("partitions_are_those_of_sfdisk_and_the_system_is_named", async ({ page }) => {
  await open(page, server);
  await page.locator("cow-files tbody tr").first().waitFor();
  const said = JSON.parse(tool("sfdisk", ["--json", serverRaw])).partitiontable.partitions;
  const rows = await rowsOf(page.locator("cow-disk table").first());
  assert.deepEqual(rows.map(([name, kind, label]) => [name, kind, label]), [
    ["Partition 1", "fat16", "EFISYS"],
    ["Partition 2", "ext4", "rootfs"],
    ["Partition 3", "none known", "none"],
  ]);
  assert.deepEqual(rows.map((row) => Number(row[4])), said.map(({ start }) => start * 512));
  const sizes = page.locator("cow-disk table").first().locator("td.right .number");
  for (const [index, { size }] of said.entries()) assert.equal(await exact(sizes.nth(index)), size * 512);
  await page.getByText("Test OS 7 (<b>bold</b>)").waitFor();
  await page.getByText("on partition 2, called stable-box, kernel 6.1.0-9-amd64").waitFor();
  // The volume with the system is the one that is shown.
  await page.locator("cow-files").getByRole("link", { name: "etc" }).waitFor();
});

page("folders_are_walked_by_links_and_addresses", async ({ page }) => {
  await open(page, server);
  await page.getByRole("link", { name: "home", exact: true }).click();
  await page.getByRole("link", { name: "ada", exact: true }).click();
  await page.getByRole("link", { name: "notes.txt" }).waitFor();
  assert.equal(new URL(page.url()).hash, "#disk/2/home/ada");
  const rows = await rowsOf(page.locator("cow-files table"));
  const stated = readdirSync(`${folder}/home/ada`).sort();
  assert.deepEqual(rows.map(([name]) => name.split(/\s/)[0]).sort(), stated);
  const notes = rows.find(([name]) => name === "notes.txt");
  assert.equal(notes[1], `${statSync(`${folder}/home/ada/notes.txt`).size} bytes`);
  assert.equal(notes[3], "-rw-r-----");
  const changed = new Date(1_700_000_000 * 1000);
  assert.ok(notes[2].startsWith(String(changed.getFullYear())));
  assert.match(rows.find(([name]) => name.startsWith("link"))[0], /\/etc\/hostname/);
  await page.goBack();
  await page.getByRole("link", { name: "hostile" }).waitFor();
  await at(page, "2/nowhere");
  await page.getByText("not found").waitFor();
});

page("a_long_folder_is_shown_in_parts_and_sorted", async ({ page }) => {
  await open(page, server);
  await at(page, "2/var/many");
  await page.getByText("500 of 1,200 entries").waitFor();
  assert.deepEqual((await names(page)).slice(0, 3), ["file0.log", "file1.log", "file2.log"]);
  await page.getByRole("button", { name: /^Name/ }).click();
  assert.deepEqual((await names(page)).slice(0, 2), ["file1199.log", "file1198.log"]);
  await page.getByRole("button", { name: "Show more" }).click();
  assert.equal((await names(page)).length, 1000);
});

page("a_file_is_shown_as_what_it_is_and_saved_as_it_was", async ({ page }) => {
  await page.evaluate(() => (window.showSaveFilePicker = undefined));
  await open(page, server);
  await at(page, "2/home/ada/notes.txt");
  assert.equal(await page.locator("cow-file pre").innerText(), put["home/ada/notes.txt"]);
  for (const [path, name] of [["2/home/ada/data.bin", "data.bin"], ["1/EFI/BOOT/LOADER.EFI", "LOADER.EFI"]]) {
    await at(page, path);
    await page.locator("cow-files [aria-current=location]", { hasText: name }).waitFor();
    await page.locator("cow-file pre[aria-label=Bytes]").waitFor();
    const first = (await page.locator("cow-file pre").innerText()).split("\n")[0];
    const bytes = put["home/ada/data.bin"].subarray(0, 16);
    assert.ok(first.replace(/\s/g, "").startsWith(`0000${bytes.toString("hex")}`), first);
    const got = await saved(page, "Save this file");
    assert.equal(got.name, name);
    assert.ok(got.bytes.equals(put["home/ada/data.bin"]), path);
    await page.getByText(`Saved as ${name}`).waitFor();
  }
  await at(page, "2/home/ada/picture.png");
  await page.locator("cow-file img").waitFor();
  assert.deepEqual(await page.locator("cow-file img").evaluate(async (img) => (await img.decode(), [img.naturalWidth, img.naturalHeight])), [64, 64]);
  // The name does not make it a picture.
  await at(page, "2/home/ada/looks-like.png");
  await page.getByText("this is no picture").waitFor();
  await at(page, "2/home/ada/empty");
  await page.getByText("This file is empty.").waitFor();
});

page("a_link_is_followed_within_the_volume", async ({ page }) => {
  await open(page, server);
  await at(page, "2/home/ada/link");
  await page.getByText("stable-box", { exact: true }).waitFor();
});

page("a_folder_is_saved_as_an_archive_that_tar_reads", async ({ page }) => {
  await page.evaluate(() => (window.showSaveFilePicker = undefined));
  await open(page, server);
  await at(page, "2/home");
  const { name, bytes } = await saved(page, "Save this folder as tar");
  assert.equal(name, "home.tar");
  const out = files.at("out");
  mkdirSync(out);
  tool("tar", ["-xf", "-", "-C", out], { input: bytes });
  execFileSync("diff", ["-r", "--no-dereference", `${folder}/home`, out]);
});

page("names_are_found_below_a_folder", async ({ page }) => {
  await open(page, server);
  const find = async (text) => {
    await page.getByPlaceholder("A part of a name").fill(text);
    await page.getByRole("button", { name: "Find" }).click();
  };
  await find("OS-REL");
  await page.getByText("1 with \u201cOS-REL\u201d in the name").waitFor();
  await find("file119");
  await page.getByText("11 with \u201cfile119\u201d in the name").waitFor();
  await find("no such thing");
  await page.getByText("Nothing has \u201cno such thing\u201d in the name").waitFor();
  await find("os-release");
  await page.getByRole("link", { name: "/etc/os-release" }).click();
  await page.getByText("VERSION_ID=7").waitFor();
});

page("names_of_a_guest_are_text_and_nothing_else", async ({ page }) => {
  await page.evaluate(() => (window.showSaveFilePicker = undefined));
  await open(page, server);
  await at(page, "2/home/hostile");
  await page.getByRole("link", { name: HOSTILE.markup }).waitFor();
  const shown = await names(page);
  assert.equal(await page.locator("cow-files table img").count(), 0);
  assert.ok(shown.includes("esc\\u{1b}[31mred"));
  assert.ok(shown.includes("photo\\u{202e}gnp.exe"));
  assert.ok(shown.some((name) => name.startsWith("a rather long name")));
  for (const name of Object.values(HOSTILE)) {
    await page.getByRole("link", { name: name.startsWith("esc") ? /^esc/ : name.startsWith("photo") ? /^photo/ : name }).click();
    await page.locator("cow-file pre").waitFor();
    const got = await saved(page, "Save this file");
    assert.doesNotMatch(got.name, /[\u0000-\u001f<>:"/\\|?*\u202e]/);
    assert.equal(got.bytes.toString(), put[`home/hostile/${name}`]);
    await page.goBack();
    await page.locator("cow-files tbody").waitFor();
  }
});

page("a_disk_without_partitions_an_iso_and_a_raw_disk_are_looked_at_too", async ({ page }) => {
  const plain = files.at("plain.qcow2");
  qemuImg("convert", "-f", "raw", "-O", "qcow2", root, plain);
  const cd = iso(files.at("cd.iso"), `${folder}/home`, "A_DISC");
  for (const [file, kind, name] of [[plain, "ext4", "etc"], [cd, "iso9660", "ada"], [serverRaw, "ext4", "etc"]]) {
    await open(page, file);
    await page.locator("cow-disk").getByText(kind, { exact: true }).first().waitFor();
    await page.locator("cow-files").getByRole("link", { name, exact: true }).waitFor();
  }
});

page("a_disk_with_nothing_and_a_damaged_one_say_so", async ({ page }) => {
  const empty = qcow2(files.at("empty.qcow2"), "10M");
  await open(page, empty);
  await page.getByText("It has no partition table.").waitFor();
  await page.getByText("No files to show").waitFor();
  const damaged = files.at("damaged.raw");
  copyFileSync(serverRaw, damaged);
  const file = openSync(damaged, "r+");
  const [{ start }] = JSON.parse(tool("sfdisk", ["--json", serverRaw])).partitiontable.partitions.slice(1);
  // The superblock keeps its magic and loses its count of blocks; the table loses its first copy.
  writeSync(file, Buffer.alloc(4), 0, 4, start * 512 + 1024 + 0x20);
  writeSync(file, Buffer.from("??"), 0, 2, 512 + 60);
  closeSync(file);
  await open(page, damaged);
  await page.getByText("damaged", { exact: true }).waitFor();
  await page.locator("cow-disk .findings li").first().waitFor();
  await at(page, "2/");
  await page.locator("cow-disk p.bad", { hasText: "ext file system" }).waitFor();
});

page("what_is_not_read_is_named", async ({ page }) => {
  const swap = files.at("swap.img");
  writeFileSync(swap, Buffer.alloc(1 << 20));
  tool("mkswap", [swap]);
  const ntfs = files.at("ntfs.img");
  writeFileSync(ntfs, Buffer.concat([Buffer.from("\xeb\x52\x90NTFS    ", "latin1"), Buffer.alloc((1 << 20) - 11)]));
  const { file } = disk(files.at("foreign.qcow2"), "dos", [
    { file: swap, type: "82" },
    { file: ntfs, type: "7" },
    { file: root, type: "83" },
  ]);
  await open(page, file);
  await page.getByText("Test OS 7").waitFor();
  const kinds = (await rowsOf(page.locator("cow-disk table").first())).map(([, kind]) => kind);
  assert.deepEqual(kinds, ["swap (not read)", "NTFS (not read)", "ext4"]);
  await at(page, "2/");
  await page.getByText("This is NTFS, which is recognised and not read.").waitFor();
});

page("systems_are_shown_in_the_order_of_their_volumes", async ({ page }) => {
  const { file } = disk(files.at("two.qcow2"), "gpt", [
    { file: root, type: "L", name: "one" },
    { file: efi, type: "U", name: "none" },
    { file: root, type: "L", name: "two" },
  ]);
  await open(page, file);
  await page.locator("cow-disk .systems li").nth(1).waitFor();
  const where = await page.locator("cow-disk .systems li p:last-child").allInnerTexts();
  assert.deepEqual(where.map((text) => /on partition \d/.exec(text)?.[0]), ["on partition 1", "on partition 3"]);
});

page("a_search_ends_with_the_folder", async ({ page }) => {
  await open(page, server);
  await page.getByPlaceholder("A part of a name").fill("e");
  await page.getByRole("button", { name: "Find" }).click();
  await page.getByRole("link", { name: "etc", exact: true }).click();
  await page.getByRole("link", { name: "fstab" }).waitFor();
  assert.equal(await page.locator("cow-files .found").count(), 0);
});

page("a_picture_that_is_cut_off_is_said_to_be_damaged", async ({ page }) => {
  const folder = files.at("broken");
  mkdirSync(folder);
  writeFileSync(`${folder}/cut.png`, png(64).subarray(0, 40));
  const file = ext4(files.at("broken.img"), folder, "broken", 8);
  await open(page, file);
  await at(page, "0/cut.png");
  await page.getByText("The browser cannot show this picture").waitFor();
});
