// Sizes and offsets are what a person reads and writes here: a wrong one sends them to the wrong bytes.

import assert from "node:assert/strict";
import test from "node:test";
import { bytesText, parseOffset, shareText, sizeText } from "../../.unit/model/size.js";

test("offsets_are_read_as_people_write_them", () => {
  const table = [
    ["0", 0n],
    ["65536", 65536n],
    ["0x10000", 65536n],
    ["0X1F", 31n],
    [" 64k ", 65536n],
    ["64 KiB", 65536n],
    ["1.5 GiB", 1610612736n],
    ["1,024", 1024n],
    ["1_000", 1000n],
    ["512b", 512n],
    ["1023p", 1023n << 50n],
    ["0xfffffffffffffff", (1n << 60n) - 1n],
    ["9007199254740993", 9007199254740993n],
  ];
  for (const [text, offset] of table) assert.equal(parseOffset(text), offset, text);
});

test("what_is_no_offset_is_refused", () => {
  for (const text of ["", "0x", "ff", "-1", "1.5", "12q", "k", "0x1g", "1e3x"]) assert.equal(parseOffset(text), null, text);
});

test("sizes_keep_three_digits_and_exact_bytes", () => {
  assert.equal(sizeText(0n), "0 bytes");
  assert.equal(sizeText(1n), "1 byte");
  assert.equal(sizeText(1023n), "1023 bytes");
  assert.equal(sizeText(1024n), "1 KiB");
  assert.equal(sizeText(1459617792n), "1.36 GiB");
  assert.equal(sizeText(1n << 60n), "1 EiB");
  assert.equal(bytesText(9007199254740993n), "9,007,199,254,740,993 bytes");
});

test("a_share_never_rounds_to_none_or_all", () => {
  assert.equal(shareText(1, 1e12), "<0.1 %");
  assert.equal(shareText(1e12 - 1, 1e12), ">99.9 %");
  assert.equal(shareText(0, 10), "0 %");
  assert.equal(shareText(10, 10), "100 %");
  assert.equal(shareText(0, 0), "0 %");
});
