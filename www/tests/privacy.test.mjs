// Nothing leaves the page: no request once it is loaded, whatever is opened; it works without a network; the policy that
// holds it to that is in the document and in the headers; and names from an image stay text.

import assert from "node:assert/strict";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import test from "node:test";
import { drop, go, openImage } from "./browser.mjs";
import { fixture } from "./fixture.mjs";
import { layered, qcow2, qemuImg } from "./images.mjs";

const { files, page, state } = fixture();
const { base, top } = layered(files.at);

async function seeEverything(page) {
  for (const view of ["Map", "Clusters", "Bytes", "Structure", "Check", "Export", "Overview"]) {
    await go(page, view);
    await page.waitForTimeout(150);
  }
}

page("no_request_leaves_once_the_page_is_loaded", async ({ page, noted }) => {
  await openImage(page, base);
  const network = () => noted.requests.filter((url) => !url.startsWith("blob:"));
  const loaded = network().length;
  await drop(page, top);
  await page.locator("cow-ask").waitFor();
  await drop(page, base);
  await page.locator("cow-overview").waitFor();
  await seeEverything(page);
  assert.deepEqual(network().slice(loaded), []);
});

page("it_works_without_a_network", async ({ page, context }) => {
  await openImage(page, base);
  await context.setOffline(true);
  await drop(page, top);
  await page.locator("cow-ask").waitFor();
  await drop(page, base);
  await page.locator("cow-overview").waitFor();
  await seeEverything(page);
});

page("it_loads_again_without_a_network", async ({ page, context }) => {
  await context.setOffline(true);
  await page.reload();
  await page.locator("cow-welcome").waitFor();
  await openImage(page, base);
  await seeEverything(page);
});

test("the_worker_alone_may_fetch_from_other_servers", async () => {
  const worker = readdirSync(new URL("../dist/assets", import.meta.url)).find((name) => /^worker-.*\.js$/.test(name));
  const { headers } = await fetch(`${state.server.origin}assets/${worker}`);
  assert.equal(
    headers.get("content-security-policy"),
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; connect-src 'self' https: http:",
  );
});

test("every_answer_carries_the_policy", async () => {
  const { origin } = state.server;
  const html = await (await fetch(origin)).text();
  const paths = ["", ...[...html.matchAll(/(?:src|href)="\.\/([^"]+)"/g)].map(([, path]) => path)];
  for (const path of [...paths, "missing"]) {
    const { headers } = await fetch(origin + path);
    const policy = headers.get("content-security-policy");
    for (const rule of [
      "default-src 'none'",
      "script-src 'self' 'wasm-unsafe-eval'",
      "style-src 'self'",
      "connect-src 'self'",
      "frame-ancestors 'none'",
      "require-trusted-types-for 'script'",
    ]) {
      assert.ok(policy.split("; ").includes(rule), `${path}: ${rule}`);
    }
    assert.equal(headers.get("cross-origin-opener-policy"), "same-origin");
    assert.equal(headers.get("cross-origin-embedder-policy"), "require-corp");
    assert.equal(headers.get("referrer-policy"), "no-referrer");
  }
  assert.match(html, /<meta http-equiv="Content-Security-Policy" content="default-src (&#39;|')none/);
  for (const [tag] of html.matchAll(/<(?:script|link)[^>]+assets\/[^>]+>/g)) assert.match(tag, /integrity="sha384-/, tag);
});

test("the_server_gives_out_nothing_but_the_page", async () => {
  for (const path of ["../package.json", "%2e%2e/package.json", "..%2fpackage.json", "assets/../../package.json", "assets"]) {
    assert.equal((await fetch(state.server.origin + path)).status, 404, path);
  }
  assert.equal((await fetch(state.server.origin, { method: "POST" })).status, 405);
});

page("inline_script_and_markup_sinks_are_blocked", async ({ page }) => {
  const blocked = await page.evaluate(() => {
    const element = document.createElement("div");
    try {
      element.innerHTML = "<b>x</b>";
      return false;
    } catch {
      return true;
    }
  });
  assert.ok(blocked, "innerHTML needs a trusted type");
}, { errors: [/TrustedHTML|Trusted Type/] });

page("hostile_names_are_text", async ({ page }) => {
  const name = `<img src=x onerror="document.title='owned'"><script>document.title='owned'</script>`;
  const turned = "safe\u202egnp.exe\u2066";
  const file = qcow2(files.at("<b>bold<img src=x onerror=alert(1)>.qcow2"), "1M");
  qemuImg("snapshot", "-c", name, file);
  qemuImg("snapshot", "-c", turned, file);
  // A feature name table with markup in it: the names of QEMU's own are overwritten in place.
  const bytes = readFileSync(file);
  const at = bytes.indexOf("dirty bit");
  bytes.fill(0, at, at + 46);
  bytes.write("<svg onload=alert(1)>", at, "latin1");
  writeFileSync(file, bytes);
  await openImage(page, file);
  await seeEverything(page);
  const found = await page.evaluate(() => {
    const found = [];
    const walk = (root) => {
      for (const element of root.querySelectorAll("*")) {
        const ours = element.closest("head") !== null || element.matches(".brand img");
        if (/^(img|script|b|iframe|object)$/i.test(element.localName) && !ours) found.push(element.localName);
        if (element.shadowRoot) walk(element.shadowRoot);
      }
    };
    walk(document);
    return found;
  });
  assert.deepEqual(found, []);
  assert.notEqual(await page.title(), "owned");
  await page.getByText(name).waitFor();
  await page.getByText("safe\\u{202e}gnp.exe\\u{2066}").waitFor();
});

page("a_hostile_backing_name_is_text", async ({ page }) => {
  const name = `json:{"file":"<img src=x onerror=alert(1)>"}`;
  const file = qcow2(files.at("asks.qcow2"), "1M", { args: ["-u", "-b", name, "-F", "raw"] });
  await drop(page, file);
  assert.equal(await page.locator("cow-ask .wanted").innerText(), name);
  await page.getByRole("button", { name: "Read it as zeros" }).click();
  await page.locator("cow-overview").waitFor();
  await page.locator("cow-verdict .card.bad").waitFor();
});
