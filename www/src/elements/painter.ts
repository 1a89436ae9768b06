// Draws the allocation map's cells. Every kind has a pattern of its own beside its colour, and a kind that takes any part
// of a cell shows, however small its part is: the one cluster in a terabyte must be seen.

import { Allocation } from "../model/allocation.js";
import type { Grid } from "../model/grid.js";
import { ALLOCATION_LOOKS, tokensOf, type Look } from "./kinds.js";
import type { Kind } from "../model/allocation.js";

/** The least height of a kind's part of a cell, in CSS pixels. */
const PART_MIN = 1.5;
/** The side of a pattern's tile, of the zero kind's dot, and the height that the dot needs. */
const TILE = 6;
const DOT = 2;
const DOT_ROOM = 4;

export class Painter {
  #canvas: HTMLCanvasElement;
  #fills: (CanvasPattern | string)[] | null = null;
  #select = "";
  #outline = "";
  #dot = "";
  #scale = 0;
  #looks: Look[] = ALLOCATION_LOOKS;

  constructor(canvas: HTMLCanvasElement) {
    this.#canvas = canvas;
  }

  /** The page's colours have changed. */
  recolour(): void {
    this.#fills = null;
  }

  paint(grid: Grid, looks: Look[], allocation: Allocation | null, chosen: number | null, hovered: number | null): void {
    if (looks !== this.#looks) this.#fills = null;
    this.#looks = looks;
    const canvas = this.#canvas;
    const context = canvas.getContext("2d");
    if (!context) return;
    const scale = window.devicePixelRatio || 1;
    const width = grid.columns * grid.pitch;
    const height = grid.rows * grid.pitch;
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
    if (scale !== this.#scale) this.#fills = null;
    this.#scale = scale;
    const fills = (this.#fills ??= this.#prepare(context, scale));
    context.setTransform(scale, 0, 0, scale, 0, 0);
    const size = grid.pitch - (grid.pitch > 9 ? 2 : 1);
    for (let cell = 0; cell < grid.cells; cell += 1) {
      const x = (cell % grid.columns) * grid.pitch;
      const y = Math.floor(cell / grid.columns) * grid.pitch;
      const bytes = allocation ? Allocation.sum(allocation, cell * grid.bucketsEach, grid.bucketsEach) : [];
      this.#cell(context, fills, x, y, size, bytes);
    }
    if (hovered !== null) this.#mark(context, grid, hovered, size, 1.5);
    if (chosen !== null) this.#mark(context, grid, chosen, size, 2.5);
  }

  #cell(
    context: CanvasRenderingContext2D,
    fills: (CanvasPattern | string)[],
    x: number,
    y: number,
    size: number,
    bytes: number[],
  ): void {
    const seen = bytes.reduce((sum, one) => sum + one, 0);
    if (seen === 0) {
      context.strokeStyle = this.#outline;
      context.lineWidth = 0.5;
      context.strokeRect(x + 0.5, y + 0.5, size - 1, size - 1);
      return;
    }
    const parts = bytes.map((one) => (one === 0 ? 0 : Math.max(PART_MIN, (one / seen) * size)));
    const over = parts.reduce((sum, one) => sum + one, 0) - size;
    const largest = parts.indexOf(Math.max(...parts));
    parts[largest] = (parts[largest] ?? 0) - over;
    let top = y;
    parts.forEach((part, kind) => {
      if (part <= 0) return;
      context.fillStyle = fills[kind] ?? "";
      context.fillRect(x, top, size, part);
      if (this.#looks[kind]?.kind === "zero" && part >= DOT_ROOM) {
        // In the middle of its part: a repeated pattern would show half a dot here and two there.
        context.fillStyle = this.#dot;
        context.fillRect(x + (size - DOT) / 2, top + (part - DOT) / 2, DOT, DOT);
      }
      if (this.#looks[kind]?.kind === "unallocated" && part === size) {
        context.strokeStyle = this.#outline;
        context.lineWidth = 1;
        context.strokeRect(x + 0.5, y + 0.5, size - 1, size - 1);
      }
      top += part;
    });
  }

  #mark(context: CanvasRenderingContext2D, grid: Grid, cell: number, size: number, line: number): void {
    const x = (cell % grid.columns) * grid.pitch;
    const y = Math.floor(cell / grid.columns) * grid.pitch;
    context.strokeStyle = this.#select;
    context.lineWidth = line;
    context.strokeRect(x + line / 2 - 1, y + line / 2 - 1, size + 2 - line, size + 2 - line);
  }

  #prepare(context: CanvasRenderingContext2D, scale: number): (CanvasPattern | string)[] {
    const style = getComputedStyle(this.#canvas);
    const token = (name: string): string => style.getPropertyValue(name).trim();
    this.#select = token("--map-select");
    this.#outline = token("--map-unallocated-mark");
    this.#dot = token("--map-zero-mark");
    return this.#looks.map(({ kind }) => {
      const { ground, mark } = tokensOf(kind);
      return patternOf(context, kind, token(ground), token(mark), scale);
    });
  }
}

function patternOf(
  context: CanvasRenderingContext2D,
  kind: Kind,
  ground: string,
  mark: string,
  scale: number,
): CanvasPattern | string {
  if (kind !== "compressed" && kind !== "backing") return ground;
  const tile = document.createElement("canvas");
  const size = Math.round(TILE * scale);
  tile.width = size;
  tile.height = size;
  const draw = tile.getContext("2d");
  if (!draw) return ground;
  draw.fillStyle = ground;
  draw.fillRect(0, 0, size, size);
  draw.strokeStyle = mark;
  draw.fillStyle = mark;
  draw.lineWidth = 1.4 * scale;
  if (kind === "compressed") {
    draw.beginPath();
    for (const shift of [-size, 0, size]) {
      draw.moveTo(shift - 1, size + 1);
      draw.lineTo(shift + size + 1, -1);
    }
    draw.stroke();
  } else {
    draw.fillRect(0, Math.round(size / 2), size, Math.max(1, Math.round(1.3 * scale)));
  }
  const pattern = context.createPattern(tile, "repeat");
  pattern?.setTransform(new DOMMatrix().scale(1 / scale));
  return pattern ?? ground;
}
