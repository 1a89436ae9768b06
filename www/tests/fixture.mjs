// What every test of the page shares: a folder of images, the page's server, a browser; and the rule that no test passes
// when the page logged an error, failed a request or asked another site for anything.

import assert from "node:assert/strict";
import test from "node:test";
import { serve } from "../scripts/serve.mjs";
import { launch, openPage } from "./browser.mjs";
import { folder } from "./images.mjs";

/**
 * Sets a test file up. `page(name, run, options)` is a test with a page of its own.
 * @param {{ flags?: string[], image?: () => string }} options
 */
export function fixture({ flags = [] } = {}) {
  const files = folder();
  const state = { browser: null, server: null };
  test.before(async () => {
    state.server = await serve();
    state.browser = await launch(flags);
  });
  test.after(async () => {
    await state.browser?.close();
    await state.server?.close();
    files.remove();
  });
  const page = (name, run, options = {}) =>
    test(name, async () => {
      const { path = "", errors = [], hosts = /^(?!)/, ...context } = options;
      const opened = await openPage(state.browser, state.server.origin + path, context);
      try {
        await run({ ...opened, origin: state.server.origin });
        const unexpected = opened.noted.errors.filter((one) => !errors.some((known) => known.test(one)));
        assert.deepEqual(unexpected, [], "the page logged no error");
        const foreign = opened.noted.requests.filter((url) => !url.startsWith(state.server.origin) && !url.startsWith("blob:") && !hosts.test(url));
        assert.deepEqual(foreign, [], "the page asked no other site for anything");
      } finally {
        await opened.context.close();
      }
    });
  return { files, page, state };
}

/** The texts of a list or table's cells, row by row. */
export const rowsOf = (table) =>
  table.locator("tbody tr").evaluateAll((rows) => rows.map((row) => [...row.cells].map((cell) => cell.innerText.trim())));

/** The exact bytes that a size's title gives. */
export const exact = async (locator) => Number((await locator.getAttribute("title")).replace(/[^0-9]/g, ""));
