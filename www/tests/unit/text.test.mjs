// Names come from strangers. A name that turns the text around it, hides in it or forges a line must show as what it is.

import assert from "node:assert/strict";
import test from "node:test";
import { shown } from "../../.unit/model/text.js";

test("acting_characters_are_written_out", () => {
  assert.equal(shown("a\u202eb"), "a\\u{202e}b");
  assert.equal(shown("a\nb\x1b[31m"), "a\\u{a}b\\u{1b}[31m");
  assert.equal(shown("zero\u200bwidth\ufeff"), "zero\\u{200b}width\\u{feff}");
  assert.equal(shown("\u2066isolate\u2069"), "\\u{2066}isolate\\u{2069}");
  assert.equal(shown("tag\u{e0041}"), "tag\\u{e0041}");
  assert.equal(shown("lone\ud800"), "lone\\u{d800}");
});

test("other_text_is_left_alone", () => {
  for (const text of ["plain", "<b>&amp;", "\u4f60\u597d", "\u05e9\u05dc\u05d5\u05dd", "\u{1f404}", "caf\u00e9"]) {
    assert.equal(shown(text), text);
  }
});
