// A page that goes away while an image is open, its cleaner asleep or at work: nothing may go wrong by that, no timer may go on, and
// who comes back finds the image as it was, or opens it anew.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import test from "node:test";
import { fileURLToPath } from "node:url";
import { launch } from "../browser.mjs";
import { folder, qcow2 } from "../images.mjs";

const PAGES = {
  "/": `<title>image</title>
    <script type="importmap">{ "imports": { "#platform": "./platform-web.js" } }</script>
    <script type="module">
      import { Image } from "./index.js";
      const bytes = await (await fetch("/image.qcow2")).arrayBuffer();
      globalThis.image = await Image.open(new Uint8Array(bytes));
      await image.read(0, 512);
    </script>`,
  "/other": "<title>another page</title>",
  "/frame": `<title>frame</title><iframe src="/"></iframe>`,
};

const TYPES = { js: "text/javascript", wasm: "application/wasm" };

/** In every document, before all else: the clock goes so fast that the cleaner's ten minutes are 20 ms, and timers are counted. */
function fastClock() {
  const speed = 30000;
  const [now, set, clear] = [performance.now.bind(performance), setTimeout.bind(window), clearTimeout.bind(window)];
  const waiting = new Set();
  top.fired ??= 0;
  performance.now = () => now() * speed;
  window.setTimeout = (act, delay = 0, ...given) => {
    const fire = () => {
      waiting.delete(id);
      top.fired += 1;
      act(...given);
    };
    const id = set(fire, delay / speed);
    waiting.add(id);
    return id;
  };
  window.clearTimeout = (id) => {
    waiting.delete(id);
    clear(id);
  };
  window.waiting = waiting;
  window.addEventListener("pagehide", () => (window.firedBefore = top.fired));
  window.addEventListener("pageshow", ({ persisted }) => {
    window.restored = persisted;
    window.firedAway = top.fired - window.firedBefore;
  });
}

const files = folder();
const image = qcow2(files.at("image.qcow2"), "64M", { commands: ["write -P 0x5a 0 1M"] });
let server;
let origin;
test.before(async () => {
  server = createServer(async ({ url }, response) => {
    const type = TYPES[url.split(".").at(-1)] ?? "text/html";
    const file = url === "/image.qcow2" ? image : fileURLToPath(new URL(`../../../pkg${url}`, import.meta.url));
    const body = PAGES[url] ?? (await readFile(file).catch(() => null));
    response.writeHead(body === null ? 404 : 200, { "Content-Type": type });
    response.end(body);
  });
  await new Promise((go) => server.listen(0, "127.0.0.1", go));
  origin = `http://127.0.0.1:${server.address().port}`;
});
test.after(() => {
  server.close();
  server.closeAllConnections();
  files.remove();
});

/** Runs `act` on a page; whatever is said there as an error fails it. */
async function onPage(options, act) {
  const browser = await launch([], options);
  try {
    const page = await browser.newPage();
    const errors = [];
    page.on("console", (message) => message.type() === "error" && !/favicon/.test(message.location().url) && errors.push(message.text()));
    page.on("pageerror", (error) => errors.push(error.message));
    await page.addInitScript(fastClock);
    await act(page);
    assert.deepEqual(errors, []);
  } finally {
    await browser.close();
  }
}

/** The image is open, and its cleaner has slept and passed three times from now on. */
async function cleaned(frame) {
  const fired = await frame.evaluate(() => top.fired);
  await frame.waitForFunction((fired) => globalThis.image && top.fired >= fired + 3, fired);
}

/** The image reads, and leaves no timer when it is closed. */
async function worksAndCloses(page) {
  await cleaned(page);
  assert.equal(await page.evaluate(async () => (await image.read(4096, 512)).every((byte) => byte === 0x5a)), true);
  assert.equal(await page.evaluate(() => waiting.size), 1, "the cleaner sleeps");
  await page.evaluate(() => image.close());
  assert.equal(await page.evaluate(() => waiting.size), 0, "a timer is left");
}

test("a_page_that_is_kept_while_another_is_shown_goes_on_with_its_image", async () => {
  // By default the driver turns off what a person's browser does.
  await onPage({ ignoreDefaultArgs: ["--disable-back-forward-cache"] }, async (page) => {
    await page.goto(origin);
    await cleaned(page);
    await page.goto(`${origin}/other`);
    await page.waitForTimeout(200);
    await page.goBack({ waitUntil: "commit" });
    await page.waitForFunction(() => window.restored !== undefined && globalThis.image);
    assert.equal(await page.evaluate(() => restored), true, "the page was not kept");
    assert.ok((await page.evaluate(() => firedAway)) <= 1, "a timer went on meanwhile");
    await worksAndCloses(page);
  });
});

test("a_page_that_is_not_kept_opens_its_image_anew", async () => {
  await onPage({}, async (page) => {
    for (const path of ["/", "/other", "/", "/other"]) {
      await page.goto(origin + path);
      if (path === "/") await cleaned(page);
    }
    await page.goBack();
    assert.equal(await page.evaluate(() => restored), false);
    await worksAndCloses(page);
  });
});

test("no_timer_goes_on_in_a_frame_that_has_gone_elsewhere", async () => {
  await onPage({}, async (page) => {
    await page.goto(`${origin}/frame`);
    const frame = page.frames()[1];
    await cleaned(frame);
    await frame.goto(`${origin}/other`);
    const fired = await page.evaluate(() => top.fired);
    await page.waitForTimeout(300);
    assert.equal(await page.evaluate(() => top.fired), fired);
    await frame.goto(origin);
    await cleaned(frame);
    await page.evaluate(() => document.querySelector("iframe").remove());
    const last = await page.evaluate(() => top.fired);
    await page.waitForTimeout(300);
    assert.equal(await page.evaluate(() => top.fired), last);
  });
});
