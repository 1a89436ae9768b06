// Everyone can use the page: axe finds nothing in any state, light or dark, and nothing is wider than the window.

import { AxeBuilder } from "@axe-core/playwright";
import assert from "node:assert/strict";
import { copyFileSync, mkdirSync, truncateSync, writeFileSync } from "node:fs";
import { drop, go, openImage, scanned } from "./browser.mjs";
import { fixture } from "./fixture.mjs";
import { damage, encrypted, layered, qcow2, qemuImg } from "./images.mjs";
import { disk, ext4, tree } from "./disks.mjs";

const { files, page } = fixture();
const { base, top } = layered(files.at);
const long = "a-rather-long-name-for-a-snapshot-that-somebody-made-before-the-upgrade-of-the-whole-system";
qemuImg("snapshot", "-c", long, top);
qcow2(files.at(`${long}.qcow2`), "1G", { commands: ["write -P 1 0 1M", "write -z 10M 1M", "write -c -P 2 20M 64k"] });
qcow2(files.at("small.qcow2"), "1M", { commands: ["write -P 1 0 64k"] });
damage(qcow2(files.at("broken.qcow2"), "1M", { commands: ["write -P 7 0 512k"] }));
copyFileSync(base, files.at("cut.qcow2"));
truncateSync(files.at("cut.qcow2"), 300);

mkdirSync(files.at("tree"));
tree(files.at("tree"));
const root = ext4(files.at("root.img"), files.at("tree"), "a long label now");
const { file: server } = disk(files.at("server.qcow2"), "gpt", [
  { file: null, type: "S", name: "a name that takes all the room it" },
  { file: root, type: "L", name: "root" },
]);

writeFileSync(files.at("zeros.raw"), Buffer.alloc(1 << 20));
const luks = encrypted(files.at("luks.qcow2"), files.at("zeros.raw"), "luks", "yes");

const STATES = {
  empty: async () => undefined,
  ask: async (page) => {
    await drop(page, top);
    await page.locator("cow-ask").waitFor();
  },
  failed: async (page) => {
    await drop(page, files.at("cut.qcow2"));
    await page.locator("cow-failed").waitFor();
  },
  overview: async (page) => {
    await drop(page, top);
    await page.locator("cow-ask").waitFor();
    await drop(page, base);
    await page.locator("cow-verdict .head").waitFor();
    await page.locator("cow-overview dd", { hasText: "of the disk" }).waitFor();
  },
  map: async (page) => {
    await openImage(page, files.at(`${long}.qcow2`));
    await go(page, "Map");
    await scanned(page);
    await page.locator("cow-map canvas").click({ position: { x: 4, y: 4 } });
    await page.locator("cow-map tbody").waitFor();
  },
  bytes: async (page) => {
    await openImage(page, files.at(`${long}.qcow2`));
    await go(page, "Bytes");
    await page.locator("cow-hex .row.at").getByText("01 01").waitFor();
  },
  clusters: async (page) => {
    await openImage(page, files.at(`${long}.qcow2`));
    await go(page, "Clusters");
    await page.locator("cow-clusters .end").waitFor();
  },
  owners: async (page) => {
    await openImage(page, files.at(`${long}.qcow2`));
    await page.evaluate(() => (location.hash = "#clusters/host/0x50000"));
    await page.locator("cow-clusters #owners").waitFor();
  },
  files: async (page) => {
    await openImage(page, server);
    await page.evaluate(() => (location.hash = "#disk/2/home/hostile"));
    await page.locator("cow-files tbody").waitFor();
    await page.getByPlaceholder("A part of a name").fill("a");
    await page.getByRole("button", { name: "Find" }).click();
    await page.getByRole("button", { name: "Close" }).waitFor();
  },
  locked: async (page) => {
    await openImage(page, luks);
    await page.getByLabel("Passphrase").fill("no");
    await page.getByRole("button", { name: "Unlock" }).click();
    await page.getByText("That is not its passphrase.").waitFor();
  },
  file: async (page) => {
    await openImage(page, server);
    await page.evaluate(() => (location.hash = "#disk/2/etc/fstab"));
    await page.locator("cow-file pre").waitFor();
  },
  check: async (page) => {
    await openImage(page, files.at(`${long}.qcow2`));
    await go(page, "Check");
    await page.getByRole("button", { name: "Check this image" }).click();
    await page.locator("cow-check .outcome").waitFor();
  },
  repair: async (page) => {
    await openImage(page, files.at("broken.qcow2"));
    await go(page, "Check");
    await page.getByRole("button", { name: "Check this image" }).click();
    await page.getByRole("button", { name: "Work out a repair" }).click();
    await page.getByText("Where", { exact: true }).click();
    await page.getByRole("button", { name: "Repair the file itself" }).click();
    await page.getByRole("button", { name: "Change the file" }).waitFor();
  },
  export: async (page) => {
    await openImage(page, files.at("small.qcow2"));
    await go(page, "Export");
    await page.getByRole("button", { name: "Compute it" }).click();
    await page.locator("cow-export .sum").waitFor();
  },
  structure: async (page) => {
    await openImage(page, files.at(`${long}.qcow2`));
    await go(page, "Structure");
    await page.getByText("As qemu-img info").click();
  },
};

const LOOKS = {
  light_wide: { colorScheme: "light", viewport: { width: 1600, height: 1000 } },
  dark_narrow: { colorScheme: "dark", viewport: { width: 360, height: 740 } },
};

for (const [state, enter] of Object.entries(STATES)) {
  for (const [look, options] of Object.entries(LOOKS)) {
    page(`axe_finds_nothing_${state}_${look}`, async ({ page }) => {
      await enter(page);
      const { violations } = await new AxeBuilder({ page }).analyze();
      const found = violations.map(({ id, nodes }) => `${id}: ${nodes.map((node) => node.target.join(" ")).join(", ")}`);
      assert.deepEqual(found, []);
      const [inner, scroll] = await page.evaluate(() => [innerWidth, document.documentElement.scrollWidth]);
      assert.ok(scroll <= inner, `the page is ${scroll} wide in a window of ${inner}`);
    }, options);
  }
}

page("the_keyboard_reaches_every_view", async ({ page }) => {
  await openImage(page, base);
  const reached = new Set();
  for (let step = 0; step < 16; step += 1) {
    await page.keyboard.press("Tab");
    const name = await page.evaluate(() => {
      let active = document.activeElement;
      while (active?.shadowRoot?.activeElement) active = active.shadowRoot.activeElement;
      return active?.textContent?.trim();
    });
    reached.add(name);
  }
  for (const view of ["Open another", "Overview", "Map", "Clusters", "Bytes", "Structure", "Check", "Export"]) assert.ok(reached.has(view), view);
});
