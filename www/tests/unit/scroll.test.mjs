// The hex view scrolls over up to 2^56 rows under a scroll bar of a few million pixels. What could go wrong: rows that no
// movement reaches, wheel steps that skip rows, a bar that runs backwards.

import assert from "node:assert/strict";
import test from "node:test";
import { HEIGHT_MAX, RowScroll } from "../../.unit/model/scroll.js";

const ROW = 22;
const VIEW = 500;
const COUNTS = [1n, 10n, 22n, 23n, 24n, 1000n, 363_636n, 363_637n, 1n << 30n, 1n << 56n, (1n << 60n) / 8n - 3n];

test("wheel_steps_are_exact_anywhere", () => {
  const rows = 1n << 56n;
  for (const start of [0n, 1n, 12345n, rows / 3n, rows / 2n + 7n, rows - 1000n]) {
    const scroll = new RowScroll(rows, ROW, VIEW);
    scroll.to(start);
    for (let step = 1n; step <= 40n; step += 1n) {
      scroll.by(ROW);
      assert.equal(scroll.row, start + step);
      assert.equal(scroll.pixels, 0);
    }
    for (let step = 0; step < 80; step += 1) scroll.by(-ROW / 2);
    assert.equal(scroll.row, start);
  }
});

test("both_ends_are_reached_by_the_bar", () => {
  for (const rows of COUNTS) {
    const scroll = new RowScroll(rows, ROW, VIEW);
    const range = Math.max(0, scroll.height - VIEW);
    scroll.moved(0, range);
    const bottom = scroll.row * BigInt(ROW) + BigInt(Math.round(scroll.pixels)) + BigInt(VIEW);
    assert.ok(bottom >= rows * BigInt(ROW), `${rows} rows: the last is in view`);
    assert.ok(Math.abs(scroll.top - range) < 1, `${rows} rows: the bar stays at its end`);
    scroll.moved(range, 0);
    assert.equal(scroll.row, 0n);
    assert.equal(scroll.pixels, 0);
  }
});

test("the_bar_never_runs_backwards", () => {
  for (const rows of COUNTS) {
    const scroll = new RowScroll(rows, ROW, VIEW);
    let before = -1;
    for (let part = 0n; part <= 64n; part += 1n) {
      scroll.to((rows * part) / 64n);
      assert.ok(scroll.top >= before, `${rows} rows, at ${part}/64`);
      assert.ok(scroll.top <= scroll.height);
      before = scroll.top;
    }
    assert.ok(scroll.height <= HEIGHT_MAX);
  }
});

test("dragging_the_thumb_and_coming_back_agree", () => {
  const rows = 1n << 56n;
  const scroll = new RowScroll(rows, ROW, VIEW);
  const range = scroll.height - VIEW;
  for (const part of [0.1, 0.25, 0.5, 0.75, 0.99]) {
    scroll.moved(0, range * part);
    assert.ok(Math.abs(scroll.top - range * part) < 10, `at ${part}`);
  }
});

test("the_window_holds_what_is_in_view", () => {
  for (const rows of COUNTS) {
    for (let part = 0n; part <= 16n; part += 1n) {
      const scroll = new RowScroll(rows, ROW, VIEW);
      scroll.to((rows * part) / 16n);
      const first = scroll.row - scroll.windowStart;
      assert.ok(first >= 0n && first < BigInt(scroll.windowCount));
      assert.equal(scroll.windowOffset, Number(first) * ROW + scroll.pixels);
      const needed = rows - scroll.row < 24n ? rows - scroll.row : 24n;
      assert.ok(first + needed <= BigInt(scroll.windowCount));
    }
  }
});

test("revealing_a_row_moves_no_further_than_needed", () => {
  const scroll = new RowScroll(1n << 40n, ROW, VIEW);
  scroll.to(1000n);
  scroll.reveal(1005n);
  assert.equal(scroll.row, 1000n);
  scroll.reveal(999n);
  assert.equal(scroll.row, 999n);
  scroll.reveal(1100n);
  const top = Number(scroll.row) * ROW + scroll.pixels;
  assert.equal(top + VIEW, 1101 * ROW);
});

test("a_resized_view_stays_inside", () => {
  const scroll = new RowScroll(100n, ROW, VIEW);
  scroll.to(99n);
  scroll.resize(2 * VIEW);
  assert.ok(Number(scroll.row) * ROW + scroll.pixels + 2 * VIEW <= 100 * ROW);
  scroll.resize(100 * ROW + 50);
  assert.equal(scroll.row, 0n);
  assert.equal(scroll.pixels, 0);
});
