// The views that dig: the way of a byte through the tables and back, the check, the comparison of two states. Expected values
// are qemu-img's, or the bytes of the file.

import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { drop, go, openImage, scanned } from "./browser.mjs";
import { exact, fixture, rowsOf } from "./fixture.mjs";
import { bytesOf, layered, map, qcow2, qemuImg, qemuIo } from "./images.mjs";

const { files, page } = fixture();
const { base, top } = layered(files.at);
qemuImg("snapshot", "-c", "before", top);
qemuIo(top, "write -P 0xc1 64k 64k", "write -P 0xc2 10M 2M");

const look = async (page, space, offset) => {
  await page.evaluate((hash) => (location.hash = hash), `#clusters/${space}/0x${offset.toString(16)}`);
  await page.locator("cow-clusters").getByText(space === "guest" ? `0x${offset.toString(16)}` : "of the file, at").first().waitFor();
};

async function openTop(page) {
  await drop(page, top);
  await page.locator("cow-ask").waitFor();
  await drop(page, base);
  await page.locator("cow-overview").waitFor();
}

page("the_way_of_a_byte_ends_where_qemu_img_map_says_and_leads_back", async ({ page }) => {
  await openTop(page);
  for (const { start, length, kind, offset } of map(top).filter((one) => one.depth === 0 && one.kind !== "Unallocated")) {
    const at = start + Math.min(length - 1, 5);
    await look(page, "guest", at);
    const end = page.locator("cow-clusters .end");
    await end.getByText(kind === "Zero" ? "reads as zeros" : kind === "Compressed" ? "Compressed data" : "This byte is at").waitFor();
    const raw = await page.locator("cow-clusters .step .head .mono").allInnerTexts();
    const places = await page.locator("cow-clusters .step .head a").allInnerTexts();
    places.forEach((place, index) => {
      const entry = bytesOf(top, Number(place), 8).toString("hex");
      assert.equal(raw.filter((text) => text.length === 18)[index], `0x${entry}`, `${place} for ${at}`);
    });
    if (kind !== "Data") continue;
    assert.equal(Number(await end.locator("a").first().innerText()), offset + (at - start));
    await look(page, "host", offset);
    const owners = page.locator("cow-clusters table");
    await owners.waitFor();
    const rows = await rowsOf(owners);
    const now = rows.find(([what, of]) => what === "data" && of === "the disk as it is now");
    assert.equal(Number(now[2]), start);
    const count = Number(await page.locator("cow-clusters p b").first().innerText());
    assert.equal(rows.length, count, "as many references as the refcount says");
  }
});

page("every_structure_of_the_file_has_an_owner", async ({ page }) => {
  await openTop(page);
  const field = (offset) => Number(bytesOf(top, offset, 8).readBigUInt64BE());
  const [l1, refcounts, snapshots] = [field(40), field(48), field(64)];
  const l2 = Number(bytesOf(top, l1, 8).readBigUInt64BE() & 0x00fffffffffffe00n);
  const block = Number(bytesOf(top, refcounts, 8).readBigUInt64BE());
  for (const [offset, what] of [[0, "header"], [l1, "L1 table"], [l2, "L2 table"], [refcounts, "refcount table"], [block, "refcount block"], [snapshots, "snapshot table"]]) {
    await look(page, "host", offset);
    await page.locator("cow-clusters tbody").getByText(what, { exact: true }).first().waitFor();
  }
});

page("a_check_finds_what_qemu_img_check_finds_and_leads_there", async ({ page }) => {
  const file = qcow2(files.at("leaky.qcow2"), "64M", { commands: ["write -P 1 0 4M"] });
  await openImage(page, file);
  await go(page, "Check");
  await page.getByRole("button", { name: "Check this image" }).click();
  await page.getByText("No errors were found").waitFor();
  const bytes = readFileSync(file);
  const l1 = Number(bytes.readBigUInt64BE(40));
  const l2 = Number(bytes.readBigUInt64BE(l1) & 0x00fffffffffffe00n);
  bytes.copy(bytes, l2 + 8 * 10, l2 + 8 * 20, l2 + 8 * 21);
  bytes.fill(0, l2 + 8 * 30, l2 + 8 * 33);
  writeFileSync(files.at("broken.qcow2"), bytes);
  let said;
  try {
    qemuImg("check", "--output=json", files.at("broken.qcow2"));
  } catch (error) {
    said = JSON.parse(error.cause.stdout);
  }
  await openImage(page, files.at("broken.qcow2"));
  await go(page, "Check");
  await page.getByRole("button", { name: "Check this image" }).click();
  await page.locator("cow-check .outcome.bad").waitFor();
  const figures = await page.locator("cow-check dd").allInnerTexts();
  assert.deepEqual(figures.slice(0, 3).map(Number), [said.corruptions, said.leaks, said["check-errors"]]);
  const findings = page.locator("cow-check li");
  assert.equal(await findings.count(), said.corruptions + said.leaks);
  await findings.filter({ hasText: "Leaked" }).first().getByRole("link", { name: "whose cluster" }).click();
  await page.getByText("it is leaked").waitFor();
});

page("a_comparison_with_a_snapshot_shows_what_was_written_since", async ({ page }) => {
  await openTop(page);
  await go(page, "Map");
  await scanned(page);
  await page.locator("cow-map select").selectOption({ label: "snapshot before" });
  const legend = async (name) => exact(page.locator("cow-map .legend li", { hasText: name }).locator("span span"));
  await page.locator("cow-map .legend").getByText("Differs").waitFor();
  await scanned(page);
  await page.waitForFunction(() => {
    const root = document.querySelector("cow-app").shadowRoot.querySelector("cow-map").shadowRoot;
    return [...root.querySelectorAll(".legend li")].some((one) => one.textContent.includes("Nothing in either") && !one.textContent.includes("0 bytes"));
  });
  assert.equal(await legend("Differs"), 64 << 10);
  assert.equal(await legend("Only in this disk"), 2 << 20);
  assert.equal(await legend("Only in the other"), 0);
  await page.locator("cow-map select").selectOption({ label: "layer base.qcow2" });
  await page.waitForFunction(() => {
    const root = document.querySelector("cow-app").shadowRoot.querySelector("cow-map").shadowRoot;
    return [...root.querySelectorAll(".legend li")].some((one) => one.textContent.includes("Only in the other") && !one.textContent.includes("0 bytes"));
  });
  // Of the base's 4 MiB and 64 KiB the image shows all but what it writes over.
  const below = map(top).filter(({ kind }) => kind === "From a backing file").reduce((sum, { length }) => sum + length, 0);
  assert.equal(await legend("The same"), below);
  await page.locator("cow-map select").selectOption({ label: "nothing" });
  await page.locator("cow-map .legend").getByText("Unallocated").waitFor();
});
