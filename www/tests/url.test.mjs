// An image on a server, in the page: only what is looked at is fetched, the meter counts it, and what goes wrong has words.

import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import test from "node:test";
import { go } from "./browser.mjs";
import { fixture } from "./fixture.mjs";
import { damage, layered, qcow2, qemuImg } from "./images.mjs";
import { fileServer } from "./server.mjs";

const { files, page } = fixture();
layered(files.at);
qcow2(files.at("big.qcow2"), "1G", { commands: ["write -P 0x5a 0 60M"] });
let server;
test.before(async () => {
  server = await fileServer(files.at);
});
test.after(() => server.close());
const hosts = /^http:\/\/127\.0\.0\.1:/;

async function paste(page, url) {
  await page.locator("cow-address input").fill(url);
  await page.locator("cow-address input").press("Enter");
}

page("a_pasted_address_opens_and_only_what_is_looked_at_is_fetched", async ({ page }) => {
  server.requests.length = 0;
  await paste(page, server.url("big.qcow2"));
  await page.locator("cow-overview .what").waitFor();
  await go(page, "Bytes");
  await page.locator("cow-hex .row.at").getByText("5a 5a").waitFor();
  await page.locator("header .meter").getByText("fetched").waitFor();
  const bytes = Number((await page.locator("header .meter").getAttribute("title")).replace(/ bytes.*/, "").replaceAll(",", ""));
  assert.ok(bytes > 0 && bytes < 12 << 20, `${bytes} bytes`);
  assert.match(page.url(), /\?url=http/);
  assert.ok(server.requests.every(({ range }) => range));
  // A link to this page proposes the address, and fetches nothing by itself.
  const before = server.requests.length;
  await page.reload();
  await page.locator("cow-welcome").waitFor();
  assert.equal(await page.locator("cow-address input").inputValue(), server.url("big.qcow2"));
  assert.equal(server.requests.length, before);
  await page.getByRole("button", { name: server.url("big.qcow2") }).waitFor();
  await page.getByRole("button", { name: "Forget them" }).click();
  assert.equal(await page.evaluate(() => localStorage.length), 0);
}, { hosts });

page("an_image_on_a_server_is_repaired_as_a_copy", async ({ page }) => {
  await page.evaluate(() => (window.showSaveFilePicker = undefined));
  damage(qcow2(files.at("broken.qcow2"), "1M", { commands: ["write -P 7 0 512k"] }));
  await paste(page, server.url("broken.qcow2"));
  await page.locator("cow-overview .what").waitFor();
  await go(page, "Check");
  await page.getByRole("button", { name: "Check this image" }).click();
  await page.getByRole("button", { name: "Work out a repair" }).click();
  await page.getByText("Nothing would be wrong with the image any more.").waitFor();
  assert.equal(await page.getByRole("button", { name: "Repair the file itself" }).count(), 0);
  const [download] = await Promise.all([page.waitForEvent("download"), page.getByRole("button", { name: "Save a repaired copy" }).click()]);
  writeFileSync(files.at("repaired.qcow2"), readFileSync(await download.path()));
  qemuImg("check", files.at("repaired.qcow2"));
  qemuImg("compare", files.at("broken.qcow2"), files.at("repaired.qcow2"));
}, { hosts });

page("a_backing_file_beside_the_image_is_proposed_not_fetched", async ({ page }) => {
  server.requests.length = 0;
  await paste(page, server.url("top.qcow2"));
  await page.locator("cow-ask").waitFor();
  assert.ok(server.requests.every(({ name }) => name === "top.qcow2"));
  assert.equal(await page.locator("cow-ask input").inputValue(), server.url("base.qcow2"));
  await page.locator("cow-ask input").press("Enter");
  await page.locator("cow-overview .what").waitFor();
  await go(page, "Bytes");
  await page.locator("cow-hex .row.at").getByText("11 11").waitFor();
}, { hosts });

page("trouble_with_a_server_is_said_in_words", async ({ page }) => {
  const heading = page.locator("cow-failed h1");
  for (const [behaviour, words] of [
    [{ ranges: false }, "does not give out parts"],
    [{ allow: null }, /does not let this page|could not be reached/],
    [{ status: 404 }, "could not be fetched"],
  ]) {
    const usual = { ...server.behave };
    Object.assign(server.behave, behaviour);
    await page.reload();
    await paste(page, server.url("big.qcow2"));
    await heading.getByText(words).waitFor();
    Object.assign(server.behave, usual);
  }
}, { hosts, errors: [/CORS policy/, /^failed:/, /Failed to load resource/] });
