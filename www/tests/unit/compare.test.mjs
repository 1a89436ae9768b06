// Two disks side by side: the same place of the same file is the same, everything else is not.

import assert from "node:assert/strict";
import test from "node:test";
import { compareParts, DIFFERENCES } from "../../.unit/model/compare.js";

const K = 65536n;
async function* disk(...extents) {
  let offset = 0n;
  for (const [clusters, kind, host = null, depth = 0] of extents) {
    const length = BigInt(clusters) * K;
    yield { offset, length, kind, host, hostLength: null, depth };
    offset += length;
  }
}
async function differences(one, other, end, above = 0) {
  const parts = [];
  const sides = [{ extents: disk(...one), above: 0 }, { extents: disk(...other), above }];
  for await (const { offset, length, kind } of compareParts(...sides, 0n, BigInt(end) * K)) {
    parts.push([Number(offset / K), Number(length / K), DIFFERENCES[kind]]);
  }
  return parts;
}

test("places_decide", async () => {
  const one = [[2, "data", 0n], [2, "zero"], [1, "data", 9n * K], [1, "compressed", 5n]];
  const other = [[1, "data", 0n], [1, "data", 7n * K], [1, "data", 8n * K], [1, "unallocated"], [1, "unallocated"], [1, "compressed", 5n]];
  assert.deepEqual(await differences(one, other, 6), [
    [0, 1, "same"],
    [1, 1, "changed"],
    [2, 1, "other"],
    [3, 1, "empty"],
    [4, 1, "one"],
    [5, 1, "same"],
  ]);
});

test("what_comes_from_a_layer_is_the_same_in_that_layer", async () => {
  assert.deepEqual(await differences([[1, "data", 3n * K, 1], [1, "data", 3n * K, 0]], [[1, "data", 3n * K], [1, "data", 3n * K]], 2, 1), [
    [0, 1, "same"],
    [1, 1, "changed"],
  ]);
});

test("past_the_end_of_the_shorter_is_nothing", async () => {
  assert.deepEqual(await differences([[1, "data", 0n]], [[3, "data", 0n]], 3), [
    [0, 1, "same"],
    [1, 2, "other"],
  ]);
});
