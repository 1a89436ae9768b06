// What a file's beginning is taken for.

import assert from "node:assert/strict";
import test from "node:test";
import { sorted } from "../../.unit/model/order.js";
import { pictureType, textIn } from "../../.unit/model/preview.js";
import { png } from "../disks.mjs";

const bytes = (text) => new TextEncoder().encode(text);

test("pictures_are_told_by_their_signature", () => {
  assert.equal(pictureType(png(2)), "image/png");
  assert.equal(pictureType(Uint8Array.of(0xff, 0xd8, 0xff, 0xe0)), "image/jpeg");
  assert.equal(pictureType(bytes("GIF89a.....")), "image/gif");
  assert.equal(pictureType(bytes("RIFF....WEBP")), "image/webp");
  assert.equal(pictureType(bytes("........WEBP")), null);
  assert.equal(pictureType(bytes("BMW is a maker of cars")), null);
  assert.equal(pictureType(bytes("<svg xmlns='http://www.w3.org/2000/svg'/>")), null);
  assert.equal(pictureType(new Uint8Array()), null);
});

test("text_is_utf8_without_the_controls_of_other_files", () => {
  assert.equal(textIn(bytes("Gr\u00fc\u00dfe\n\ttab\r\n"), true), "Gr\u00fc\u00dfe\n\ttab\r\n");
  // Cut within a character: the beginning is text all the same.
  assert.equal(textIn(bytes("Gr\u00fc").subarray(0, 3), false), "Gr");
  assert.equal(textIn(bytes("Gr\u00fc").subarray(0, 3), true), null);
  assert.equal(textIn(Uint8Array.of(0x7f, 0x45, 0x4c, 0x46, 0), true), null);
});

test("folders_come_first_and_numbers_in_names_count", () => {
  const entry = (name, kind, size, modified = 0) => ({ name, kind, size: BigInt(size), modified });
  const entries = [entry("b10", "file", 1), entry("z", "folder", 9), entry("b9", "file", 2, 5), entry("a", "folder", 1)];
  const names = (order) => sorted(entries, order).map(({ name }) => name);
  assert.deepEqual(names({ key: "name", down: false }), ["a", "z", "b9", "b10"]);
  assert.deepEqual(names({ key: "name", down: true }), ["z", "a", "b10", "b9"]);
  assert.deepEqual(names({ key: "size", down: true }).slice(2), ["b9", "b10"]);
  assert.deepEqual(names({ key: "modified", down: false }).slice(2), ["b10", "b9"]);
});
