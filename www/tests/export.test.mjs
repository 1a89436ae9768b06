// The disk out of the browser: byte for byte what qemu-img convert writes, by either way, and cancelled without a rest.

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { drop, go, openImage } from "./browser.mjs";
import { fixture } from "./fixture.mjs";
import { layered, qcow2, raw } from "./images.mjs";

const { files, page } = fixture();
const { base, top } = layered(files.at);
const wanted = readFileSync(raw(top, files.at("top.raw")));
const sum = createHash("sha256").update(wanted).digest("hex");

async function openTop(page) {
  await drop(page, top);
  await page.locator("cow-ask").waitFor();
  await drop(page, base);
  await page.locator("cow-overview").waitFor();
  await go(page, "Export");
}

page("a_download_and_the_sum_are_those_of_the_raw_disk", async ({ page }) => {
  await page.evaluate(() => (window.showSaveFilePicker = undefined));
  await openTop(page);
  const [download] = await Promise.all([page.waitForEvent("download"), page.getByRole("button", { name: "Save as a raw file" }).click()]);
  assert.equal(download.suggestedFilename(), "top.raw");
  assert.ok(wanted.equals(readFileSync(await download.path())));
  await page.getByRole("button", { name: "Compute it" }).click();
  await page.getByText(sum).waitFor();
});

page("nothing_of_an_image_is_left_in_the_browser", async ({ page, context }) => {
  await page.evaluate(() => (window.showSaveFilePicker = undefined));
  const kept = () =>
    page.evaluate(async () => {
      const names = [];
      const walk = async (folder) => {
        for await (const [name, one] of folder.entries()) {
          if (one.kind === "directory") await walk(one);
          else names.push(name);
        }
      };
      await walk(await navigator.storage.getDirectory());
      return names;
    });
  await openTop(page);
  const [download] = await Promise.all([page.waitForEvent("download"), page.getByRole("button", { name: "Save as a raw file" }).click()]);
  await download.path();
  assert.deepEqual(await kept(), ["export.raw"]);
  // Another page may still have something to save: it is not taken away from it.
  const other = await context.newPage();
  await other.goto(page.url().split("#")[0]);
  await other.locator("cow-welcome").waitFor();
  await other.waitForTimeout(300);
  assert.deepEqual(await kept(), ["export.raw"]);
  await other.close();
  await page.reload();
  await page.locator("cow-welcome").waitFor();
  await page.waitForFunction(async () => {
    const root = await navigator.storage.getDirectory();
    return root.getDirectoryHandle("kept").then(() => false, () => true);
  });
  assert.deepEqual(await kept(), []);
});

page("a_file_of_the_persons_is_written_in_place", async ({ page }) => {
  // The dialogue cannot be driven; a file of the browser's own storage stands for what it gives.
  await page.evaluate(() => {
    window.showSaveFilePicker = async ({ suggestedName }) =>
      (await navigator.storage.getDirectory()).getFileHandle(suggestedName, { create: true });
  });
  await openTop(page);
  await page.getByRole("button", { name: "Save as a raw file" }).click();
  await page.getByText("Saved as top.raw").waitFor();
  const written = await page.evaluate(async () => {
    const file = await (await (await navigator.storage.getDirectory()).getFileHandle("top.raw")).getFile();
    const hash = await crypto.subtle.digest("SHA-256", await file.arrayBuffer());
    return [...new Uint8Array(hash)].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  });
  assert.equal(written, sum);
});

page("a_long_export_can_be_cancelled", async ({ page }) => {
  await page.evaluate(() => (window.showSaveFilePicker = undefined));
  const file = qcow2(files.at("long.qcow2"), "100G", { commands: ["write -P 1 0 64k", "write -P 1 99G 64k"] });
  await openImage(page, file);
  await go(page, "Export");
  await page.getByRole("button", { name: "Compute it" }).click();
  await page.getByRole("button", { name: "Cancel" }).click();
  await page.getByRole("button", { name: "Compute it" }).waitFor();
  assert.equal(await page.locator("cow-export .sum").count(), 0);
});
