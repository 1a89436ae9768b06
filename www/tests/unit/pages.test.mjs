// The hex view holds what is looked at and nothing more: memory must not grow, and what scrolled away must not be read.

import assert from "node:assert/strict";
import test from "node:test";
import { PAGE_LENGTH, Pages } from "../../.unit/model/pages.js";

const settle = () => new Promise((done) => setTimeout(done));

test("pages_are_fetched_once_and_the_last_is_short", async () => {
  const asked = [];
  let changes = 0;
  const pages = new Pages(
    { guest: BigInt(2 * PAGE_LENGTH + 10), host: 0n },
    async (space, offset, length) => (asked.push([space, offset, length]), new Uint8Array(length)),
    () => (changes += 1),
  );
  pages.want("guest", 5n, 3n * BigInt(PAGE_LENGTH));
  pages.want("guest", 5n, 3n * BigInt(PAGE_LENGTH));
  await settle();
  pages.want("guest", 5n, 3n * BigInt(PAGE_LENGTH));
  await settle();
  assert.deepEqual(asked, [
    ["guest", 0n, PAGE_LENGTH],
    ["guest", BigInt(PAGE_LENGTH), PAGE_LENGTH],
    ["guest", BigInt(2 * PAGE_LENGTH), 10],
  ]);
  assert.equal(changes, 3);
  assert.equal(pages.at("guest", BigInt(2 * PAGE_LENGTH + 3)).bytes.length, 10);
});

test("a_page_no_longer_wanted_is_given_up", async () => {
  const signals = [];
  const pages = new Pages(
    { guest: 1n << 60n, host: 0n },
    (_, __, length, signal) => {
      signals.push(signal);
      return new Promise((done) => setTimeout(() => done(new Uint8Array(length)), 5));
    },
    () => undefined,
  );
  pages.want("guest", 0n, 1n);
  pages.want("guest", 1n << 59n, (1n << 59n) + 1n);
  assert.deepEqual(signals.map((signal) => signal.aborted), [true, false]);
  await new Promise((done) => setTimeout(done, 20));
  assert.equal(pages.at("guest", 0n), null);
  assert.ok(pages.at("guest", 1n << 59n));
});

test("a_page_that_cannot_be_read_says_why", async () => {
  const pages = new Pages(
    { guest: 1n << 20n, host: 0n },
    () => Promise.reject(new Error("cluster is corrupt")),
    () => undefined,
  );
  pages.want("guest", 0n, 1n);
  await settle();
  assert.equal(pages.at("guest", 0n).error.message, "cluster is corrupt");
});

test("what_is_held_stays_within_a_mebibyte", async () => {
  const pages = new Pages(
    { guest: 1n << 60n, host: 0n },
    async (_, __, length) => new Uint8Array(length),
    () => undefined,
  );
  const length = BigInt(PAGE_LENGTH);
  for (let page = 0n; page < 2000n; page += 1n) {
    pages.want("guest", page * length, (page + 1n) * length);
    await Promise.resolve();
  }
  await settle();
  let held = 0;
  for (let page = 0n; page < 2000n; page += 1n) held += pages.at("guest", page * length) ? PAGE_LENGTH : 0;
  assert.ok(held <= 1 << 20, `${held} bytes held`);
});
