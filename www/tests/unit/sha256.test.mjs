// The sum is held against Node's own, over every way in which bytes can come in pieces.

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import test from "node:test";
import { Sha256 } from "../../.unit/model/sha256.js";

const sum = (...pieces) => {
  const hash = new Sha256();
  for (const piece of pieces) hash.update(piece);
  return hash.hex();
};
const wanted = (bytes) => createHash("sha256").update(bytes).digest("hex");
const bytes = Uint8Array.from({ length: 1000 }, (_, index) => (index * 7919) >> 3);

test("every_length_has_the_sum_of_node", () => {
  for (let length = 0; length <= 200; length += 1) assert.equal(sum(bytes.subarray(0, length)), wanted(bytes.subarray(0, length)), `${length}`);
});

test("pieces_do_not_matter", () => {
  for (const each of [1, 3, 55, 63, 64, 65, 127, 999]) {
    const pieces = [];
    for (let at = 0; at < bytes.length; at += each) pieces.push(bytes.subarray(at, at + each));
    assert.equal(sum(...pieces), wanted(bytes), `${each}`);
  }
});
