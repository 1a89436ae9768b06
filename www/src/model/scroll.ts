// Scrolling over more rows than a browser can lay out. The truth is a row and a fraction of it; the scroll bar shows it to
// scale. Small movements (wheel, touch, keys) move the truth exactly; a movement longer than two screens is the thumb
// being dragged and moves it to scale.

/** Taller than this and browsers round or refuse: Firefox ends at 17.8 million pixels. */
export const HEIGHT_MAX = 8_000_000;
/** The virtual scroller is given three blocks of rows to look at: the one in view and its neighbours. */
const BLOCK_ROWS = 10_000n;

export class RowScroll {
  /** The rows there are. */
  readonly rows: bigint;
  readonly rowHeight: number;
  /** The rows that fit the view, with part of one as one. */
  #viewHeight: number;
  /** The first row in view and how many pixels of it are above the edge. */
  #row = 0n;
  #pixels = 0;

  constructor(rows: bigint, rowHeight: number, viewHeight: number) {
    this.rows = rows;
    this.rowHeight = rowHeight;
    this.#viewHeight = viewHeight;
  }

  get row(): bigint {
    return this.#row;
  }

  get pixels(): number {
    return this.#pixels;
  }

  /** Whether the scroll bar is to scale, not to the pixel. */
  get scaled(): boolean {
    return this.rows * BigInt(this.rowHeight) > BigInt(HEIGHT_MAX);
  }

  /** How high the scrolled content is made. */
  get height(): number {
    return this.scaled ? HEIGHT_MAX : Number(this.rows) * this.rowHeight;
  }

  /** Where the scroll bar stands for the truth. */
  get top(): number {
    const last = this.#last();
    const range = Math.max(0, this.height - this.#viewHeight);
    if (!this.scaled) return Math.min(range, Number(this.#row) * this.rowHeight + this.#pixels);
    if (last.row === 0n) return 0;
    // In units of 2^-20, so that a row of 2^56 keeps its place.
    return (Number((this.#row << 20n) / last.row) / (1 << 20)) * range;
  }

  /** The first row of the window handed to the virtual scroller; it moves in large steps. */
  get windowStart(): bigint {
    const start = (this.#row / BLOCK_ROWS - 1n) * BLOCK_ROWS;
    return start > 0n ? start : 0n;
  }

  get windowCount(): number {
    const left = this.rows - this.windowStart;
    return Number(left < 3n * BLOCK_ROWS ? left : 3n * BLOCK_ROWS);
  }

  /** Where the view begins inside the window, in pixels. */
  get windowOffset(): number {
    return Number(this.#row - this.windowStart) * this.rowHeight + this.#pixels;
  }

  resize(viewHeight: number): void {
    this.#viewHeight = viewHeight;
    this.#clamp();
  }

  /** Moves by pixels, exactly. */
  by(delta: number): void {
    const pixels = this.#pixels + delta;
    const rows = Math.floor(pixels / this.rowHeight);
    this.#row += BigInt(rows);
    this.#pixels = pixels - rows * this.rowHeight;
    this.#clamp();
  }

  /** The scroll bar went from one place to another. */
  moved(from: number, to: number): void {
    const range = Math.max(0, this.height - this.#viewHeight);
    if (!this.scaled) {
      this.#row = 0n;
      this.#pixels = 0;
      this.by(to);
    } else if (to <= 0) {
      this.#row = 0n;
      this.#pixels = 0;
    } else if (to >= range) {
      const last = this.#last();
      this.#row = last.row;
      this.#pixels = last.pixels;
    } else if (Math.abs(to - from) <= 2 * this.#viewHeight) {
      this.by(to - from);
    } else {
      this.#row = (this.#last().row * BigInt(Math.round((to / range) * 2 ** 40))) >> 40n;
      this.#pixels = 0;
      this.#clamp();
    }
  }

  /** Puts a row at the top, or as near as the end allows. */
  to(row: bigint): void {
    this.#row = row;
    this.#pixels = 0;
    this.#clamp();
  }

  /** Moves just so far that the row is wholly in view. */
  reveal(row: bigint): void {
    const fit = BigInt(Math.max(1, Math.floor(this.#viewHeight / this.rowHeight)));
    if (row < this.#row || (row === this.#row && this.#pixels > 0)) this.to(row);
    else if (row >= this.#row + fit) {
      this.to(row - fit + 1n);
      const slack = this.#viewHeight - Number(fit) * this.rowHeight;
      if (slack > 0) this.by(-slack);
    }
  }

  #last(): { row: bigint; pixels: number } {
    const fit = Math.ceil(this.#viewHeight / this.rowHeight);
    if (this.rows <= BigInt(fit) && Number(this.rows) * this.rowHeight <= this.#viewHeight) {
      return { row: 0n, pixels: 0 };
    }
    const row = this.rows - BigInt(fit);
    return { row, pixels: fit * this.rowHeight - this.#viewHeight };
  }

  #clamp(): void {
    const last = this.#last();
    if (this.#row > last.row || (this.#row === last.row && this.#pixels > last.pixels)) {
      this.#row = last.row;
      this.#pixels = last.pixels;
    }
    if (this.#row < 0n) {
      this.#row = 0n;
      this.#pixels = 0;
    }
  }
}
