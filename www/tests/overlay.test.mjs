// Writing by the package in Chromium: to an overlay in the browser's own storage, over a file that stays as it is; and a repair that
// is given up. QEMU reads what was written.

import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import test from "node:test";
import { launch } from "./browser.mjs";
import { folder, qcow2, qemuImg, raw } from "./images.mjs";
import { servePackage } from "./published.mjs";

const files = folder();
const state = {};
test.before(async () => {
  state.server = await servePackage();
  state.browser = await launch();
});
test.after(async () => {
  await state.browser?.close();
  state.server?.close();
  files.remove();
});

/** Runs `work` in a page that has picked `file`, with the package in a worker. Its last result are bytes as text. */
async function inBrowser(file, work) {
  const page = await state.browser.newPage();
  try {
    await page.goto(state.server.origin);
    await page.locator("input").setInputFiles(file);
    await page.evaluate(async () => {
      const { Remote } = await import("/remote.js");
      window.remote = new Remote(new Worker("/worker.js", { type: "module" }));
      window.file = document.querySelector("input").files[0];
      window.folder = await navigator.storage.getDirectory();
      window.textOf = async (handle) => {
        let text = "";
        for (const byte of new Uint8Array(await (await handle.getFile()).arrayBuffer())) text += String.fromCharCode(byte);
        return btoa(text);
      };
    });
    return Buffer.from(await page.evaluate(work), "base64");
  } finally {
    await page.close();
  }
}

test("an_overlay_in_the_browsers_own_storage_is_gone_on_with", async () => {
  const base = qcow2(files.at("base.qcow2"), "16M", { commands: ["write -P 0x11 0 1M", "write -c -P 0x22 5M 1M"] });
  const before = readFileSync(base);
  const overlay = await inBrowser(base, async () => {
    const overlay = await window.folder.getFileHandle("overlay.qcow2", { create: true });
    for (const round of [0, 1]) {
      const image = await window.remote.open(window.file, { overlay });
      if (round === 1 && (await image.read(5_000_000, 1))[0] !== 0x70) throw new Error("what was written is gone");
      await image.write(5_000_000 + round * 3_000_000, new Uint8Array(200_000).fill(0x70 + round));
      await image.writeZeroes(100_000, 50_000);
      await image.flush();
      await image.close();
    }
    return window.textOf(overlay);
  });
  const wanted = readFileSync(raw(base, files.at("base.raw")));
  wanted.fill(0x70, 5_000_000, 5_200_000).fill(0x71, 8_000_000, 8_200_000).fill(0, 100_000, 150_000);
  writeFileSync(files.at("overlay.qcow2"), overlay);
  qemuImg("rebase", "-u", "-b", "base.qcow2", "-F", "qcow2", files.at("overlay.qcow2"));
  assert.ok(wanted.equals(readFileSync(raw(files.at("overlay.qcow2"), files.at("overlay.raw")))));
  qemuImg("check", files.at("overlay.qcow2"));
  assert.ok(before.equals(readFileSync(base)), "the source is as it was");
});

test("a_repair_of_a_long_file_can_be_given_up_in_the_middle", async () => {
  // Four million clusters to count: long enough to be stopped.
  const long = qcow2(files.at("long.qcow2"), "256G", { options: ["preallocation=metadata"] });
  const told = await inBrowser(long, async () => {
    // A worker that works out a repair, and is told to stop while it does.
    const script = `
      import { init } from "${location.origin}/full.js";
      import { planRepair } from "${location.origin}/write.js";
      const abort = new AbortController();
      onmessage = async ({ data }) => {
        if (data === "stop") return abort.abort();
        await init();
        postMessage({ begun: true });
        try {
          await planRepair(data, "all", { signal: abort.signal });
          postMessage({ end: "done" });
        } catch (error) {
          postMessage({ end: error.name });
        }
      };`;
    const worker = new Worker(URL.createObjectURL(new Blob([script], { type: "text/javascript" })), { type: "module" });
    const end = await new Promise((done, fail) => {
      worker.onerror = (event) => fail(new Error(event.message));
      worker.onmessage = ({ data }) => {
        if (data.begun) setTimeout(() => worker.postMessage("stop"), 100);
        if (data.end) done(data.end);
      };
      worker.postMessage(window.file);
    });
    worker.terminate();
    return btoa(end);
  });
  assert.equal(told.toString(), "AbortError");
});
