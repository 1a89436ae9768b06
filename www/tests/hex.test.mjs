// Every byte shown is held against `qemu-img convert` (the disk) or the file itself, wherever one goes and however.

import assert from "node:assert/strict";
import { drop, go, openImage } from "./browser.mjs";
import { fixture } from "./fixture.mjs";
import { bytesOf, layered, map, qcow2, raw } from "./images.mjs";

const { files, page } = fixture();
const { base, top } = layered(files.at);
const disk = raw(top, files.at("top.raw"));

async function openLayered(page) {
  await drop(page, top);
  await page.locator("cow-ask").waitFor();
  await drop(page, base);
  await page.locator("cow-overview").waitFor();
  await go(page, "Bytes");
  await rows(page);
}

/** The rows in view, once every one of them has its bytes. */
async function rows(page) {
  await page.waitForFunction(() => {
    const root = document.querySelector("cow-app").shadowRoot.querySelector("cow-hex")?.shadowRoot;
    return root?.querySelector(".row .hex") && !root.querySelector(".waiting");
  });
  return page.locator("cow-hex .row").evaluateAll((all) =>
    all.map((row) => ({
      offset: BigInt(row.dataset.offset).toString(),
      label: row.querySelector(".off").textContent,
      hex: row.querySelector(".hex")?.innerText.trim(),
      text: row.querySelector(".text")?.textContent,
      at: row.classList.contains("at"),
    })),
  );
}

async function jump(page, text) {
  await page.locator("cow-hex #go").fill(text);
  await page.locator("cow-hex #go").press("Enter");
}

function holds(shown, file) {
  assert.ok(shown.length > 5);
  for (const { offset, label, hex, text } of shown) {
    const bytes = bytesOf(file, Number(offset), 16);
    assert.equal(Number(`0x${label}`), Number(offset));
    assert.deepEqual(hex.split(/\s+/), bytes.toString("hex").match(/../g), `at ${label}`);
    const plain = [...bytes].map((byte) => (byte >= 32 && byte < 127 ? String.fromCharCode(byte) : ".")).join("");
    assert.equal(text.trimEnd(), plain.trimEnd(), `text at ${label}`);
  }
}

page("bytes_of_the_disk_are_those_of_qemu_img_convert", async ({ page }) => {
  await openLayered(page);
  holds(await rows(page), disk);
  const edges = map(top).flatMap(({ start, length }) => [start, start + length - 1]);
  for (const offset of [...edges, 12345, 0x1234567, (64 << 20) - 1]) {
    await jump(page, `0x${offset.toString(16)}`);
    await page.locator("cow-cursor").getByText(`0x${offset.toString(16)}`, { exact: true }).first().waitFor();
    const shown = await rows(page);
    const at = shown.find((row) => row.at);
    assert.equal(Number(at.offset), offset - (offset % 16), "the cursor's row is in view");
    holds(shown, disk);
  }
});

page("bytes_of_the_file_are_the_file", async ({ page }) => {
  await openLayered(page);
  await page.getByLabel("The file").check();
  await page.waitForFunction(() => location.hash.includes("host"));
  holds(await rows(page), top);
  await jump(page, "64K");
  holds(await rows(page), top);
});

page("the_side_says_what_qemu_img_map_says", async ({ page }) => {
  await openLayered(page);
  for (const extent of map(top)) {
    await jump(page, String(extent.start));
    const side = page.locator("cow-cursor");
    await side.getByText(extent.kind, { exact: false }).first().waitFor();
    const text = await side.locator("dl").first().innerText();
    assert.match(text, new RegExp(`Kind\\s+${extent.kind}`));
    if (extent.kind === "Data") assert.match(text, new RegExp(`In the file\\s+0x${extent.offset.toString(16)}\\b`));
  }
});

page("the_numbers_are_the_bytes_under_the_cursor", async ({ page }) => {
  const file = files.at("numbers.qcow2");
  qcow2(file, "1M", { commands: ["write -P 0xfe 0 1", "write -P 0x01 1 1", "write -P 0x80 7 1"] });
  await openImage(page, file);
  await go(page, "Bytes");
  await rows(page);
  const bytes = bytesOf(raw(file, files.at("numbers.raw")), 0, 8);
  const side = page.locator("cow-cursor dl").nth(1);
  await side.waitFor();
  const shown = Object.fromEntries((await side.innerText()).trim().split("\n").reduce((pairs, line, index, all) => (index % 2 === 0 ? [...pairs, [line, all[index + 1].replaceAll(",", "")]] : pairs), []));
  assert.equal(shown["u8"], String(bytes.readUInt8()));
  assert.equal(shown["u16 BE"], String(bytes.readUInt16BE()));
  assert.equal(shown["u32 LE"], String(bytes.readUInt32LE()));
  assert.equal(shown["u64 BE"], String(bytes.readBigUInt64BE()));
  assert.equal(shown["u64 LE"], String(bytes.readBigUInt64LE()));
});

page("the_cursor_walks_by_key_and_by_pointer", async ({ page }) => {
  await openLayered(page);
  const scroller = page.locator("cow-hex .scroller");
  const at = async () => BigInt((await page.locator("cow-cursor dd .mono").first().innerText()).trim());
  await scroller.focus();
  const table = [
    ["ArrowRight", 1n],
    ["ArrowDown", 17n],
    ["End", 31n],
    ["Home", 16n],
    ["ArrowUp", 0n],
    ["ArrowUp", 0n],
    ["ArrowLeft", 0n],
    ["Control+End", (64n << 20n) - 1n],
    ["ArrowRight", (64n << 20n) - 1n],
    ["Control+Home", 0n],
  ];
  for (const [key, offset] of table) {
    await page.keyboard.press(key);
    assert.equal(await at(), offset, key);
  }
  holds(await rows(page), disk);
  const hex = page.locator("cow-hex .row .hex").nth(2);
  const box = await hex.boundingBox();
  const character = box.width / 48;
  await page.mouse.click(box.x + character * (5 * 3 + 0.5), box.y + 5);
  assert.equal(await at(), 37n);
  await page.mouse.click(box.x + character * (9 * 3 + 1 + 0.5), box.y + 5);
  assert.equal(await at(), 41n);
});

page("what_is_no_offset_is_said_to_be_none", async ({ page }) => {
  await openLayered(page);
  await jump(page, "nonsense");
  await page.getByText("Not an offset").waitFor();
  await jump(page, "64M");
  await page.getByText("Past the end: the last byte is at 0x3ffffff.").waitFor();
  await jump(page, "0x3ffffff");
  assert.equal(await page.locator("cow-hex .wrong").innerText(), "");
});

page("a_link_to_a_place_opens_there_and_the_address_follows", async ({ page }) => {
  await openLayered(page);
  await page.evaluate(() => (location.hash = "#hex/guest/0x500000"));
  const row = page.locator("cow-hex .row.at");
  await row.getByText("a2 a2").waitFor();
  await page.locator("cow-hex .scroller").focus();
  await page.keyboard.press("ArrowDown");
  await page.waitForFunction(() => location.hash === "#hex/guest/0x500010");
  await go(page, "Overview");
  await go(page, "Bytes");
  await page.locator("cow-hex .row.at").waitFor();
  assert.equal(await page.locator("cow-cursor dd .mono").first().innerText(), "0x500010");
});

page("an_exbibyte_scrolls_by_the_row_and_by_the_thumb", async ({ page }) => {
  const size = 1n << 60n;
  const file = qcow2(files.at("huge.qcow2"), "1E", {
    options: ["cluster_size=2M"],
    commands: ["write -P 0x41 1023P 64k", "write -P 0x42 512P 64k"],
  });
  await openImage(page, file);
  await go(page, "Bytes");
  await jump(page, "512P");
  await page.locator("cow-hex .row.at").getByText("42 42").waitFor();
  const first = async () => BigInt((await rows(page)).map(({ offset }) => BigInt(offset)).sort((a, b) => (a < b ? -1 : 1))[0]);
  const before = await first();
  await page.locator("cow-hex .scroller").hover();
  for (let step = 1n; step <= 5n; step += 1n) {
    await page.mouse.wheel(0, 22);
    await page.waitForTimeout(80);
    assert.equal((await first()) - before, 16n * step, "one row a step");
  }
  await page.mouse.wheel(0, -22 * 5);
  await page.waitForTimeout(80);
  assert.equal(await first(), before);
  await page.evaluate(() => {
    const scroller = document.querySelector("cow-app").shadowRoot.querySelector("cow-hex").shadowRoot.querySelector(".scroller");
    scroller.scrollTop = scroller.scrollHeight;
  });
  await page.waitForTimeout(150);
  assert.equal((await rows(page)).map(({ offset }) => BigInt(offset)).sort((a, b) => (a < b ? 1 : -1))[0], size - 16n);
  await page.evaluate(() => {
    const scroller = document.querySelector("cow-app").shadowRoot.querySelector("cow-hex").shadowRoot.querySelector(".scroller");
    scroller.scrollTop = scroller.scrollHeight / 4;
  });
  await page.waitForTimeout(150);
  const quarter = await first();
  assert.ok(quarter > size / 5n && quarter < size / 3n, `a quarter of the bar is at ${quarter}`);
  await jump(page, "1023P");
  await page.locator("cow-hex .row.at").getByText("41 41").waitFor();
});

page("a_disk_that_ends_inside_a_row_ends_there", async ({ page }) => {
  const file = qcow2(files.at("short.qcow2"), "1536", { commands: ["write -P 0x77 0 1536"] });
  await openImage(page, file);
  await go(page, "Bytes");
  await rows(page);
  await page.locator("cow-hex .scroller").focus();
  await page.keyboard.press("Control+End");
  assert.equal(await page.locator("cow-cursor dd .mono").first().innerText(), "0x5ff");
  const shown = await rows(page);
  assert.equal(shown.map(({ offset }) => Number(offset)).sort((a, b) => b - a)[0], 1520);
});
