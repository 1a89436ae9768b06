// A person meets more than good images: nothing yet, the wrong file, half a file, a file made to hurt, one that needs another.
// Each has words of its own, names the place, and leaves a way on.

import assert from "node:assert/strict";
import { copyFileSync, readFileSync, truncateSync, writeFileSync } from "node:fs";
import { serve } from "../scripts/serve.mjs";
import { drop, go, openImage, pick } from "./browser.mjs";
import { fixture } from "./fixture.mjs";
import { bytesOf, info, layered, qcow2, qemuImg, qemuIo, raw } from "./images.mjs";

const { files, page } = fixture();
const { base, top } = layered(files.at);
const good = qcow2(files.at("good.qcow2"), "64M", { commands: ["write -P 0x5a 0 8M"] });

/** A copy of the good image with some bytes changed. */
function broken(name, ...changes) {
  const bytes = readFileSync(good);
  for (const [offset, hex] of changes) Buffer.from(hex, "hex").copy(bytes, offset);
  writeFileSync(files.at(name), bytes);
  return files.at(name);
}

const heading = (page) => page.locator("cow-failed h1").innerText();

page("nothing_open_says_what_to_do", async ({ page }) => {
  await page.getByRole("heading", { name: "What is in this disk image?" }).waitFor();
  await page.getByText("Drop an image anywhere on this page").waitFor();
});

page("a_wrong_file_is_named_and_can_be_shown_all_the_same", async ({ page }) => {
  writeFileSync(files.at("notes.txt"), "These are notes, not a disk.\n".repeat(40));
  await drop(page, files.at("notes.txt"));
  assert.equal(await heading(page), "This does not look like a disk image");
  await page.getByRole("button", { name: "Show its bytes as a raw disk" }).click();
  await page.locator("cow-hex .row").getByText("These are notes,").first().waitFor();
});

page("another_kind_of_disk_is_named", async ({ page }) => {
  qemuImg("create", "-q", "-f", "vdi", files.at("box.vdi"), "10M");
  await drop(page, files.at("box.vdi"));
  assert.equal(await heading(page), "This is another kind of disk image");
  await page.getByText("VirtualBox").waitFor();
});

page("an_empty_file_is_called_empty", async ({ page }) => {
  writeFileSync(files.at("nothing.qcow2"), "");
  await drop(page, files.at("nothing.qcow2"));
  assert.equal(await heading(page), "This file is empty");
  assert.equal(await page.getByRole("button", { name: "Show its bytes" }).count(), 0);
});

page("a_raw_disk_opens", async ({ page }) => {
  const file = raw(good, files.at("good.raw"));
  const bytes = readFileSync(file);
  bytes.writeUInt16BE(0x55aa, 510);
  writeFileSync(file, bytes);
  await openImage(page, file);
  await page.getByText("A raw disk of 64 MiB").waitFor();
  await go(page, "Structure");
  await page.getByText("A raw disk has none of its own").waitFor();
  await go(page, "Map");
  await page.locator("cow-map .progress.done").waitFor({ state: "attached" });
  await go(page, "Bytes");
  await page.locator("cow-hex .row.at").getByText("5a 5a").waitFor();
});

page("a_truncated_header_says_where", async ({ page }) => {
  copyFileSync(good, files.at("cut.qcow2"));
  truncateSync(files.at("cut.qcow2"), 60);
  await drop(page, files.at("cut.qcow2"));
  await page.locator("cow-failed dl").getByText("header").first().waitFor();
  assert.match(await heading(page), /cut short|damaged/);
});

page("a_truncated_table_shows_as_an_error_and_never_as_zeros", async ({ page }) => {
  copyFileSync(good, files.at("half.qcow2"));
  const l1 = Number(bytesOf(good, 40, 8).readBigUInt64BE());
  const l2 = Number(bytesOf(good, l1, 8).readBigUInt64BE() & 0x00fffffffffffe00n);
  truncateSync(files.at("half.qcow2"), l2);
  await drop(page, files.at("half.qcow2"));
  await page.locator("cow-overview").waitFor();
  await page.getByText("The map could not be read to its end").waitFor();
  await go(page, "Bytes");
  await page.locator("cow-hex .fault").first().getByText("L2 table").waitFor();
});

page("the_verdict_names_what_a_machine_would_open", async ({ page }) => {
  await openImage(page, good);
  await page.getByText("Safe to hand to a virtual machine").waitFor();
  const name = "/etc/shadow";
  const hostile = qcow2(files.at("hostile.qcow2"), "1M", { args: ["-u", "-b", name, "-F", "raw"] });
  await drop(page, hostile);
  await page.getByRole("button", { name: "Read it as zeros" }).click();
  await page.getByText("Do not hand this to a virtual machine").waitFor();
  await page.locator("cow-verdict li").getByText(name).first().waitFor();
});

for (const [name, changes, where] of [
  ["cluster_bits_of_255", [[20, "000000ff"]], /header/],
  ["l1_table_past_the_end", [[40, "00ffffffffff0000"]], /L1 table|header/],
  ["l1_table_of_billions", [[36, "7fffffff"]], /L1 table|header/],
  ["version_9", [[4, "00000009"]], /header/],
  ["unknown_incompatible_feature", [[72, "8000000000000000"]], /header/],
]) {
  page(`hostile_image_${name}_is_refused_in_words`, async ({ page }) => {
    await drop(page, broken(`${name}.qcow2`, ...changes));
    await page.locator("cow-failed dl").waitFor();
    assert.match(await page.locator("cow-failed dl dd").first().innerText(), where);
    assert.notEqual(await heading(page), "The engine stopped");
    await pick(page, "Choose another file", good);
    await page.getByText("A disk of 64 MiB").waitFor();
  });
}

page("a_corrupt_table_shows_as_an_error_where_it_lies", async ({ page }) => {
  const l1 = Number(bytesOf(good, 40, 8).readBigUInt64BE());
  const l2 = Number(bytesOf(good, l1, 8).readBigUInt64BE() & 0x00fffffffffffe00n);
  await drop(page, broken("entry.qcow2", [l2, "8000000000000200"]));
  await page.locator("cow-overview").waitFor();
  await go(page, "Bytes");
  const fault = page.locator("cow-hex .fault").first();
  await fault.waitFor();
  assert.match(await fault.innerText(), /L2 entry 0 at 0x[0-9a-f]+/);
  await page.locator("cow-hex #go").fill("1M");
  await page.locator("cow-hex #go").press("Enter");
  await page.locator("cow-hex .row.at").getByText("5a 5a").waitFor();
  await go(page, "Map");
  await page.getByText("The map could not be read to its end").waitFor();
});

page("a_backing_file_is_asked_for_by_name_and_picked", async ({ page }) => {
  await drop(page, top);
  await page.getByRole("heading", { name: "This image needs its backing file" }).waitFor();
  assert.equal(await page.locator("cow-ask .wanted").innerText(), info(top)["backing-filename"]);
  await pick(page, "Choose the file", base);
  await page.locator("cow-overview").waitFor();
  await go(page, "Bytes");
  await page.locator("cow-hex .row.at").getByText("11 11").waitFor();
});

page("files_that_are_dropped_together_answer_for_each_other", async ({ page }) => {
  for (const [first, second] of [[top, base], [base, top]]) {
    await drop(page, first, second);
    await page.locator("cow-overview .chain li").nth(1).waitFor();
    assert.deepEqual(await page.locator("cow-overview .chain .layer").allInnerTexts(), ["top.qcow2", "base.qcow2"]);
  }
});

page("a_backing_file_can_be_read_as_zeros_and_supplied_later", async ({ page }) => {
  await drop(page, top);
  await page.getByRole("button", { name: "Read it as zeros" }).click();
  await page.getByText("not given: read as zeros").waitFor();
  await go(page, "Bytes");
  await page.locator("cow-hex .row.at").getByText("00 00").waitFor();
  await go(page, "Overview");
  await page.getByRole("button", { name: "Supply the missing files" }).click();
  await page.locator("cow-ask").waitFor();
  await drop(page, base);
  await page.locator("cow-overview").waitFor();
  await go(page, "Bytes");
  await page.locator("cow-hex .row.at").getByText("11 11").waitFor();
});

page("asking_can_be_cancelled", async ({ page }) => {
  await drop(page, top);
  await page.getByRole("button", { name: "Cancel" }).click();
  await page.getByRole("heading", { name: "What is in this disk image?" }).waitFor();
  await openImage(page, good);
});

page("a_wrong_backing_file_is_refused_in_words", async ({ page }) => {
  writeFileSync(files.at("wrong.txt"), "not an image".repeat(100));
  await drop(page, top);
  await page.locator("cow-ask").waitFor();
  await drop(page, files.at("wrong.txt"));
  await page.locator("cow-failed").waitFor();
});

page("a_data_file_is_asked_for", async ({ page }) => {
  const file = qcow2(files.at("split.qcow2"), "32M", {
    options: [`data_file=${files.at("split.data")}`],
    commands: ["write -P 0x6d 1M 1M"],
  });
  await drop(page, file);
  await page.getByRole("heading", { name: "This image needs its data file" }).waitFor();
  await drop(page, files.at("split.data"));
  await page.locator("cow-overview").waitFor();
  await go(page, "Bytes");
  await page.locator("cow-hex #go").fill("1M");
  await page.locator("cow-hex #go").press("Enter");
  await page.locator("cow-hex .row.at").getByText("6d 6d").waitFor();
});

page("a_snapshot_can_be_looked_at_and_left", async ({ page }) => {
  const file = qcow2(files.at("snap.qcow2"), "8M", { commands: ["write -P 0xaa 0 1M"] });
  qemuImg("snapshot", "-c", "before", file);
  qemuIo(file, "write -P 0xbb 0 1M");
  await openImage(page, file);
  await page.getByRole("button", { name: "Look at it" }).click();
  await page.getByText("Looking at the snapshot").waitFor();
  await go(page, "Bytes");
  await page.locator("cow-hex .row.at").getByText("aa aa").waitFor();
  await page.getByRole("button", { name: "Back to the disk as it is now" }).click();
  await page.locator("cow-hex .row.at").getByText("bb bb").waitFor();
});

page("a_snapshot_of_a_layered_image_does_not_ask_again", async ({ page }) => {
  copyFileSync(top, files.at("top-snap.qcow2"));
  qemuImg("snapshot", "-c", "here", files.at("top-snap.qcow2"));
  await drop(page, files.at("top-snap.qcow2"));
  await page.locator("cow-ask").waitFor();
  await drop(page, base);
  await page.getByRole("button", { name: "Look at it" }).click();
  await page.getByText("Looking at the snapshot").waitFor();
});

page("the_image_beside_the_page_opens_by_its_address", async ({ page, origin }) => {
  const server = await serve({ image: good });
  try {
    await page.goto(server.url);
    await page.getByText("A disk of 64 MiB").waitFor();
    assert.equal(await page.locator("header h1").innerText(), "good.qcow2");
  } finally {
    await server.close();
  }
  await page.goto(`${origin}?image=https://example.invalid/disk.qcow2`);
  await page.getByText("names an image of another site").waitFor();
}, { hosts: /^http:\/\/127\.0\.0\.1:/ });
