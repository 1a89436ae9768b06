// How the allocation map's buckets become cells on a canvas: as many cells as fit, each a whole number of buckets.

export interface Grid {
  columns: number;
  rows: number;
  cells: number;
  bucketsEach: number;
  /** From one cell to the next, in CSS pixels. */
  pitch: number;
}

const PITCH_MIN = 7;
const PITCH_MAX = 24;

export function layOut(buckets: number, width: number, heightMax: number): Grid {
  const fit = (pitch: number): number =>
    Math.max(1, Math.floor(width / pitch)) * Math.max(1, Math.floor(heightMax / pitch));
  const bucketsEach = Math.max(1, Math.ceil(buckets / fit(PITCH_MIN)));
  const cells = Math.max(1, Math.ceil(buckets / bucketsEach));
  let pitch = PITCH_MAX;
  while (pitch > PITCH_MIN && fit(pitch) < cells) pitch -= 1;
  const columns = Math.max(1, Math.floor(width / pitch));
  return { columns, rows: Math.ceil(cells / columns), cells, bucketsEach, pitch };
}
