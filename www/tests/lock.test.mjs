// Encrypted disks: their structure is seen without a passphrase, their contents with it, and a wrong one is said to be wrong.

import assert from "node:assert/strict";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { go, openImage } from "./browser.mjs";
import { ext4 } from "./disks.mjs";
import { fixture } from "./fixture.mjs";
import { encrypted } from "./images.mjs";

const { files, page } = fixture();
mkdirSync(files.at("tree"));
writeFileSync(`${files.at("tree")}/secret.txt`, "the treasure is under the oak");
const root = ext4(files.at("root.img"), files.at("tree"), "vault", 8);
const luks = encrypted(files.at("luks.qcow2"), root, "luks", "open sesame");
const aes = encrypted(files.at("aes.qcow2"), root, "aes", "open sesame");

async function unlock(page, passphrase) {
  await page.getByLabel("Passphrase").fill(passphrase);
  await page.getByRole("button", { name: "Unlock" }).click();
}

for (const [name, file] of [["luks", luks], ["aes", aes]]) {
  page(`${name}_is_unlocked_and_its_files_are_those_that_were_put_there`, async ({ page }) => {
    await openImage(page, file);
    await page.getByText("This disk is encrypted.").waitFor();
    await go(page, "Structure");
    await page.locator("cow-structure table.fields").waitFor();
    await go(page, "Files");
    await page.getByText("The files are encrypted").waitFor();
    if (name === "luks") {
      await unlock(page, "close sesame");
      await page.getByText("That is not its passphrase.").waitFor();
    }
    await unlock(page, "open sesame");
    await page.getByRole("link", { name: "secret.txt" }).click();
    await page.getByText("the treasure is under the oak").waitFor();
    assert.equal(await page.locator("cow-lock").count(), 0);
    // What it was unlocked with is kept nowhere.
    const kept = await page.evaluate(() => JSON.stringify([{ ...localStorage }, { ...sessionStorage }, location.href]));
    assert.doesNotMatch(kept, /sesame/);
  });
}

page("the_disk_of_an_unlocked_image_is_saved_decrypted", async ({ page }) => {
  await page.evaluate(() => (window.showSaveFilePicker = undefined));
  await openImage(page, luks);
  await unlock(page, "open sesame");
  await page.locator("cow-lock").waitFor({ state: "detached" });
  await go(page, "Export");
  const [download] = await Promise.all([page.waitForEvent("download"), page.getByRole("button", { name: "Save as a raw file" }).click()]);
  assert.ok(readFileSync(root).equals(readFileSync(await download.path())));
});
