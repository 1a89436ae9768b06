// A 100 GiB file must open as fast as a small one, and looking around in it must not make memory grow with it.

import assert from "node:assert/strict";
import { statSync } from "node:fs";
import { go, openImage, scanned } from "./browser.mjs";
import { fixture } from "./fixture.mjs";
import { qcow2 } from "./images.mjs";

// Asks for a measurement at once, not at the next convenient collection.
const { files, page } = fixture({ flags: ["--enable-blink-features=ForceEagerMeasureMemory"] });

const small = qcow2(files.at("small.qcow2"), "64M", { commands: ["write -P 0x5a 1M 1M"] });
const large = qcow2(files.at("large.qcow2"), "100G", {
  options: ["preallocation=metadata"],
  commands: ["write -P 0x5a 50G 1M", "write -P 0x5b 99G 1M"],
});

/** Time from the drop to the overview, the best of three, each in a page that has loaded its engine. */
async function timeToOpen(page, file) {
  const times = [];
  for (let run = 0; run < 3; run += 1) {
    await page.goto("about:blank");
    await page.goto(page.origin);
    await page.locator("cow-welcome").waitFor();
    const begun = performance.now();
    await openImage(page, file);
    times.push(performance.now() - begun);
  }
  return Math.min(...times);
}

page("a_hundred_gibibytes_open_as_fast_as_one_megabyte", async ({ page, origin }) => {
  page.origin = origin;
  assert.ok(statSync(large).size > 100 * 2 ** 30);
  const first = await timeToOpen(page, small);
  const second = await timeToOpen(page, large);
  console.log(`opened in ${Math.round(first)} ms (64 MiB) and ${Math.round(second)} ms (100 GiB)`);
  assert.ok(second < first * 2 + 150, `${second} ms against ${first} ms`);
});

const measure = (page) =>
  page.evaluate(async () => {
    const { bytes } = await performance.measureUserAgentSpecificMemory();
    return bytes;
  });

page("memory_does_not_grow_with_the_file", async ({ page }) => {
  assert.ok(await page.evaluate(() => crossOriginIsolated));
  const used = {};
  for (const [name, file] of Object.entries({ small, large })) {
    await openImage(page, file);
    await go(page, "Map");
    await scanned(page);
    await go(page, "Bytes");
    for (let step = 1; step <= 20; step += 1) {
      const offset = Math.floor((step * (name === "small" ? 64 * 2 ** 20 : 100 * 2 ** 30)) / 21);
      await page.evaluate((at) => (location.hash = `#hex/guest/0x${at.toString(16)}`), offset);
      await page.locator("cow-hex .row.at").waitFor();
      await page.waitForTimeout(40);
    }
    used[name] = await measure(page);
  }
  const mib = (bytes) => (bytes / 2 ** 20).toFixed(1);
  console.log(`memory after looking around: ${mib(used.small)} MiB (64 MiB disk), ${mib(used.large)} MiB (100 GiB)`);
  assert.ok(used.large < 2 ** 27, `${mib(used.large)} MiB`);
  assert.ok(used.large - used.small < 48 * 2 ** 20, `${mib(used.small)} -> ${mib(used.large)} MiB`);
});
