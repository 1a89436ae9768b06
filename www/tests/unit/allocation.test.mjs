// The map adds extents up into buckets: every byte must be counted once, under its kind, in its place.

import assert from "node:assert/strict";
import test from "node:test";
import { Allocation, KINDS, kindOf } from "../../.unit/model/allocation.js";
import { layOut } from "../../.unit/model/grid.js";

/** A small generator of random numbers, so that a failure can be run again. */
function random(seed) {
  let state = seed >>> 0;
  return (below) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
}

test("every_byte_is_counted_once_in_its_bucket", () => {
  for (let seed = 1; seed <= 200; seed += 1) {
    const next = random(seed);
    const unit = 512 << next(8);
    const units = 1 + next(300);
    const length = units * unit - (next(2) === 0 ? 0 : 512 % unit);
    const start = next(5) * unit;
    const allocation = Allocation.empty(BigInt(start), BigInt(length), BigInt(unit), 1 + next(64));
    const each = Number(allocation.bucketLength);
    const wanted = new Float64Array(allocation.bucketCount * KINDS.length);
    for (let at = 0; at < length; ) {
      const size = Math.min(length - at, 512 * (1 + next(100)));
      const kind = ["data", "zero", "compressed", "unallocated"][next(4)];
      const depth = kind === "unallocated" ? 0 : next(2);
      Allocation.add(allocation, { offset: BigInt(start + at), length: BigInt(size), kind, depth });
      const index = KINDS.indexOf(kindOf({ kind, depth }));
      for (let sector = at; sector < at + size; sector += 512) {
        wanted[Math.floor(sector / each) * KINDS.length + index] += Math.min(512, at + size - sector);
      }
      at += size;
    }
    assert.deepEqual(allocation.bytes, wanted, `seed ${seed}`);
    const all = Allocation.sum(allocation, 0, allocation.bucketCount);
    assert.deepEqual(all, [...allocation.totals], `seed ${seed}`);
    assert.equal(all.reduce((a, b) => a + b), length, `seed ${seed}`);
  }
});

test("buckets_are_whole_clusters_and_few", () => {
  for (const length of [512n, 65536n, 100n << 30n, 1n << 40n, 1n << 60n]) {
    const allocation = Allocation.empty(0n, length, 65536n, 16384);
    assert.equal(allocation.bucketLength % 65536n, 0n);
    assert.ok(allocation.bucketCount <= 16384);
    assert.ok(allocation.bucketLength * BigInt(allocation.bucketCount) >= length);
  }
});

test("one_cluster_in_an_exbibyte_is_not_lost", () => {
  const allocation = Allocation.empty(0n, 1n << 60n, 65536n, 16384);
  const offset = (1n << 59n) + 65536n * 12345n;
  Allocation.add(allocation, { offset, length: 65536n, kind: "data", depth: 0 });
  const bucket = Number(offset / allocation.bucketLength);
  assert.equal(Allocation.sum(allocation, bucket, 1)[0], 65536);
});

test("cells_fit_their_canvas_and_cover_every_bucket", () => {
  for (const buckets of [1, 7, 100, 2048, 16384]) {
    for (const width of [280, 328, 700, 1200, 1424]) {
      const grid = layOut(buckets, width, 500);
      assert.ok(grid.columns * grid.pitch <= width || grid.columns === 1);
      assert.ok(grid.rows * grid.pitch <= 500 + grid.pitch, `${buckets} on ${width}`);
      assert.ok(grid.cells * grid.bucketsEach >= buckets);
      assert.ok(grid.rows * grid.columns >= grid.cells);
      assert.ok((grid.cells - 1) * grid.bucketsEach < buckets);
    }
  }
});
