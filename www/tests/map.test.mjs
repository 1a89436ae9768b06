// The allocation map is held against `qemu-img map`: the totals in its legend to the byte, the extents listed for a cell one
// by one. And it must be usable without a pointer.

import assert from "node:assert/strict";
import { drop, go, openImage, scanned } from "./browser.mjs";
import { exact, fixture, rowsOf } from "./fixture.mjs";
import { layered, map, qcow2 } from "./images.mjs";

const { files, page } = fixture();
const { base, top } = layered(files.at);
const single = qcow2(files.at("single.qcow2"), "1G", {
  commands: ["write -P 1 0 3M", "write -z 500M 64M", "write -c -P 2 700M 64k", "write -P 3 1023M 1M"],
});
const vast = qcow2(files.at("vast.qcow2"), "1T", {
  commands: ["write -P 1 0 64k", "write -P 2 600G 64k", "write -P 3 1023G 64k"],
});

async function open(page, file) {
  await drop(page, file);
  if (file === top) {
    await page.locator("cow-ask").waitFor();
    await drop(page, base);
  }
  await page.locator("cow-overview").waitFor();
  await go(page, "Map");
  await scanned(page);
}

async function legend(page) {
  const totals = {};
  for (const item of await page.locator("cow-map .legend li").all()) {
    const [name] = (await item.innerText()).trim().split(/\s+(?=[\d.]+ )/);
    totals[name] = await exact(item.locator("span span"));
  }
  return totals;
}

for (const [name, file] of Object.entries({ single, vast, layered: top })) {
  page(`totals_are_those_of_qemu_img_map_${name}`, async ({ page }) => {
    await open(page, file);
    const wanted = {};
    for (const { kind, length } of map(file)) wanted[kind] = (wanted[kind] ?? 0) + length;
    const shown = Object.fromEntries(Object.entries(await legend(page)).filter(([, bytes]) => bytes > 0));
    assert.deepEqual(shown, wanted);
  });

  page(`a_cell_lists_the_extents_of_qemu_img_map_${name}`, async ({ page }) => {
    await open(page, file);
    const extents = map(file);
    const canvas = page.locator("cow-map canvas");
    await canvas.focus();
    const seen = new Set();
    for (const key of ["Home", "ArrowRight", "ArrowRight", "ArrowDown", "PageDown", "PageDown", "End", "ArrowLeft"]) {
      await canvas.press(key);
      const heading = await page.locator("cow-map #lies").innerText();
      const [from, last] = heading.match(/0x[0-9a-f]+/g).map(Number);
      await page.waitForFunction(
        () => document.querySelector("cow-app").shadowRoot.querySelector("cow-map").shadowRoot.querySelector("tbody tr"),
      );
      // The list of the cell before stays until the new one is here.
      await page.locator("cow-map tbody tr td:first-child a").first().getByText(`0x${from.toString(16)}`, { exact: true }).waitFor();
      const table = page.locator("cow-map table");
      const rows = await rowsOf(table);
      const lengths = await Promise.all((await table.locator("tbody tr td:nth-child(2) span").all()).map(exact));
      const shown = merge(
        rows.map(([offset, , kind, host], index) => ({
          start: Number(offset),
          length: lengths[index],
          kind,
          host: host.startsWith("0x") ? Number(host.split(/\s/)[0]) : null,
        })),
      );
      const wanted = merge(
        extents
          .filter(({ start, length }) => start <= last && start + length > from)
          .map(({ start, length, kind, offset }) => {
            const begin = Math.max(start, from);
            const host = kind === "Data" || kind === "From a backing file" ? offset + (begin - start) : null;
            return { start: begin, length: Math.min(start + length, last + 1) - begin, kind, host };
          }),
      );
      // QEMU gives no place for compressed clusters, nor for zeros.
      for (const one of shown) if (one.kind === "Compressed" || one.kind === "Zero") one.host = null;
      assert.deepEqual(shown, wanted, `${key}: ${heading}`);
      seen.add(from);
    }
    assert.ok(seen.size >= 6);
  });
}

/** Neighbours of one kind as one: QEMU and the page split compressed runs and zeros at different places. */
function merge(extents) {
  const merged = [];
  for (const extent of extents) {
    const before = merged.at(-1);
    if (before && before.kind === extent.kind && before.host === null && extent.host === null) before.length += extent.length;
    else if (before && before.kind === extent.kind && extent.host !== null && before.host + before.length === extent.host) {
      before.length += extent.length;
    } else merged.push({ ...extent });
  }
  return merged;
}

page("zooming_reaches_single_clusters_and_comes_back", async ({ page }) => {
  await open(page, vast);
  const canvas = page.locator("cow-map canvas");
  await canvas.focus();
  await canvas.press("Home");
  for (let step = 0; step < 8; step += 1) {
    const text = await page.locator("cow-map #lies").innerText();
    const [from, last] = text.match(/0x[0-9a-f]+/g).map(Number);
    if (last - from + 1 <= 65536) break;
    await canvas.press("Enter");
    await scanned(page);
    await page.getByRole("button", { name: "Zoom out" }).waitFor();
    await canvas.press("Home");
  }
  const text = await page.locator("cow-map #lies").innerText();
  assert.equal(text, "What lies at 0x0 \u2013 0xffff");
  await page.locator("cow-map table").getByText("Data").waitFor();
  for (let step = 0; step < 8 && (await page.getByRole("button", { name: "Zoom out" }).isVisible()); step += 1) {
    await canvas.press("Escape");
  }
  await page.getByRole("heading", { name: "The whole disk" }).waitFor();
});

page("choosing_a_cell_leads_to_its_bytes", async ({ page }) => {
  await open(page, single);
  await page.locator("cow-map canvas").click({ position: { x: 3, y: 3 } });
  await page.locator("cow-map").getByRole("link", { name: "Show the bytes" }).click();
  await page.locator("cow-hex .row.at").getByText("01 01 01 01").waitFor();
  assert.match(page.url(), /#hex\/guest\/0x0$/);
});

page("painting_goes_on_while_a_large_disk_is_scanned", async ({ page }) => {
  const busy = qcow2(files.at("busy.qcow2"), "128G", { options: ["preallocation=metadata"] });
  await page.evaluate(() => {
    globalThis.gaps = [];
    let before = performance.now();
    const tick = (now) => {
      globalThis.gaps.push(now - before);
      before = now;
      requestAnimationFrame(tick);
    };
    requestAnimationFrame(tick);
  });
  await openImage(page, busy);
  await go(page, "Map");
  await page.waitForTimeout(1500);
  const gaps = await page.evaluate(() => globalThis.gaps);
  assert.ok(Math.max(...gaps) < 400, `the longest time without a frame was ${Math.max(...gaps)} ms`);
  assert.ok(gaps.length > 30, `${gaps.length} frames`);
});

page("the_map_can_be_walked_and_heard_without_a_pointer", async ({ page }) => {
  await open(page, single);
  const slider = page.getByRole("slider");
  await slider.focus();
  await slider.press("Home");
  assert.match(await slider.getAttribute("aria-valuetext"), /^0x0 .*data 100 %$/);
  await slider.press("End");
  assert.match(await slider.getAttribute("aria-valuetext"), /0x3fffffff: data/);
  assert.equal(await slider.getAttribute("aria-valuenow"), await slider.getAttribute("aria-valuemax"));
});
