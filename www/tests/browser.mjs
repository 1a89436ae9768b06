// The system's Chromium with the page in it: starting it, giving it files as a person would, and noting everything that it
// says or asks for, so that no console error passes and no request leaves.

import { existsSync } from "node:fs";
import { chromium } from "playwright-core";

export const CHROMIUM = process.env.CHROMIUM ?? "/usr/bin/chromium";

const FLAGS = [
  "--headless",
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
  "--disable-dev-shm-usage",
];

/** Starts Chromium with a new, empty profile; `flags` are added to the usual ones, `options` are the driver's. */
export function launch(flags = [], options = {}) {
  if (!existsSync(CHROMIUM)) {
    throw new Error(`${CHROMIUM} is missing: install it (Debian: apt-get install chromium) or set CHROMIUM`);
  }
  return chromium.launch({ executablePath: CHROMIUM, headless: true, args: [...FLAGS, ...flags], ...options });
}

/**
 * Opens the page in a context of its own. `noted` holds what went wrong and what was asked for, as it happens. The driver cannot
 * answer the dialogue of `showOpenFilePicker`: the page is as in a browser without it.
 */
export async function openPage(browser, origin, options = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, ...options });
  await context.addInitScript(() => (window.showOpenFilePicker = undefined));
  const page = await context.newPage();
  const noted = { errors: [], requests: [] };
  page.on("console", (message) => {
    if (message.type() === "error" || message.type() === "warning") noted.errors.push(`${message.type()}: ${message.text()}`);
  });
  page.on("pageerror", (error) => noted.errors.push(`page error: ${error.message}`));
  page.on("requestfailed", (request) => noted.errors.push(`failed: ${request.url()}: ${request.failure()?.errorText}`));
  context.on("request", (request) => noted.requests.push(request.url()));
  await page.goto(origin);
  await page.locator("cow-app").waitFor();
  // Everything that the page keeps for later has come.
  await page.evaluate(() => navigator.serviceWorker.ready.then(() => undefined));
  return { context, page, noted };
}

/** Picks a file by the button with this text, as the browser's file dialogue would hand it over. */
export async function pick(page, button, file) {
  const [chooser] = await Promise.all([page.waitForEvent("filechooser"), page.getByRole("button", { name: button }).click()]);
  await chooser.setFiles(file);
}

/** Drops files from the disk onto the middle of the page, by the browser's own drag and drop. */
export async function drop(page, ...files) {
  const session = await page.context().newCDPSession(page);
  const { width, height } = page.viewportSize();
  const data = { items: [], files, dragOperationsMask: 1 };
  for (const type of ["dragEnter", "dragOver", "drop"]) {
    await session.send("Input.dispatchDragEvent", { type, x: width / 2, y: height / 2, data });
  }
  await session.detach();
}

/** Opens an image that needs nothing else and waits for its overview. */
export async function openImage(page, file) {
  await drop(page, file);
  await page.locator("cow-overview .what").waitFor();
}

/** Goes to a view by its tab. */
export async function go(page, view) {
  await page.getByRole("navigation").getByRole("link", { name: view }).click();
}

/** Waits until the map of the whole disk is complete. */
export async function scanned(page) {
  await page.locator("cow-map .progress.done").waitFor({ state: "attached" });
}
