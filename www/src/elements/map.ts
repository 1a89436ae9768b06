// The allocation map: the whole disk, or a part of it, as cells on a canvas. A cell shows its kinds in proportion; choosing
// one lists what lies there. Arrow keys walk the cells as the pointer does.

import { css, html, LitElement, nothing, type TemplateResult } from "lit";
import type { Engine } from "../engine/client.js";
import type { Extent } from "../engine/contract.js";
import type { ImageFacts } from "../engine/protocol.js";
import { Allocation, kindOf } from "../model/allocation.js";
import { asError } from "../model/error.js";
import { layOut, type Grid } from "../model/grid.js";
import { offsetText, shareText, sizeText } from "../model/size.js";
import { shown } from "../model/text.js";
import { shared } from "../style/shared.js";
import { swatches } from "../style/swatch.js";
import { BUCKETS_MAX, SECTOR_LENGTH, type Comparison, type Rival } from "./desk.js";
import { Painter } from "./painter.js";
import { ALLOCATION_LOOKS, COMPARISON_LOOKS, KIND_WORDS, swatch, type Look } from "./kinds.js";
import { clusterLink, hexLink, hostOf, layerName, sizeOf, when } from "./parts.js";

const EXTENTS_SHOWN_MAX = 40;
/** Cells that a step closer shows. */
const ZOOM_CELLS = 64;
const DETAIL_DELAY_MS = 60;

interface Range {
  offset: bigint;
  length: bigint;
}

interface Detail extends Range {
  extents: Extent[] | Error | null;
  /** There is more than the list shows. */
  more: boolean;
}

export class CowMap extends LitElement {
  static override properties = {
    engine: {},
    facts: {},
    whole: {},
    scanError: {},
    comparison: {},
    ranges: { state: true },
    portion: { state: true },
    grid: { state: true },
    chosen: { state: true },
    hovered: { state: true },
    detail: { state: true },
  };
  declare engine: Engine;
  declare facts: ImageFacts;
  /** The scan of the whole disk as far as it has come. */
  declare whole: Allocation | null;
  declare scanError: Error | null;
  /** What the disk is compared with; null shows the disk alone. Fires `compare` with a rival or null. */
  declare comparison: Comparison | null;
  /** The parts stepped into, the innermost last. */
  declare private ranges: Range[];
  declare private portion: Allocation | Error | null;
  declare private grid: Grid | null;
  declare private chosen: number | null;
  declare private hovered: number | null;
  declare private detail: Detail | null;

  #painter: Painter | null = null;
  #observer = new ResizeObserver(() => this.#measure());
  #scan: AbortController | null = null;
  #look: AbortController | null = null;
  #lookTimer = 0;
  #compared: Comparison["other"] = null;
  #dark = window.matchMedia("(prefers-color-scheme: dark)");

  constructor() {
    super();
    this.comparison = null;
    this.ranges = [];
    this.portion = null;
    this.grid = null;
    this.chosen = null;
    this.hovered = null;
    this.detail = null;
  }

  static override styles = [
    shared,
    swatches,
    css`
      .layout {
        display: grid;
        grid-template-columns: minmax(0, 1fr);
        gap: var(--gap);
        align-items: start;
      }
      .top {
        display: flex;
        flex-wrap: wrap;
        align-items: center;
        justify-content: space-between;
        gap: 8px 20px;
        min-height: 36px;
        margin-bottom: 12px;
      }
      .top h2 {
        min-width: 0;
      }
      .legend {
        list-style: none;
        display: flex;
        flex-wrap: wrap;
        gap: 4px 22px;
        margin-top: 14px;
        font-size: 0.9rem;
      }
      .legend li {
        display: flex;
        align-items: center;
        gap: 7px;
      }
      .frame {
        position: relative;
      }
      canvas {
        display: block;
        width: 100%;
        cursor: crosshair;
        touch-action: manipulation;
      }
      canvas:focus-visible {
        outline-offset: 5px;
        border-radius: 2px;
      }
      .progress {
        height: 3px;
        border-radius: 2px;
        background: var(--sunken);
        margin-bottom: 9px;
        overflow: hidden;
      }
      .progress span {
        display: block;
        height: 100%;
        background: var(--accent);
        transform-origin: 0 0;
      }
      .progress.done {
        visibility: hidden;
      }
      .line {
        min-height: 1.5em;
        margin-top: 12px;
        font-size: 0.9rem;
        font-variant-numeric: tabular-nums;
      }
      .line b {
        font-weight: 600;
      }
      .kind {
        display: flex;
        gap: 7px;
        align-items: center;
        white-space: nowrap;
      }
      @media (max-width: 700px) {
        .line {
          min-height: 3em;
        }
      }
      .bad {
        color: var(--bad);
      }
      .rivals {
        display: flex;
        flex-wrap: wrap;
        align-items: center;
        gap: 6px 10px;
        margin-bottom: 12px;
        font-size: 0.93rem;
      }
      .rivals select {
        max-width: 100%;
      }
      .actions {
        display: flex;
        flex-wrap: wrap;
        gap: 8px;
        align-items: center;
        margin-bottom: 12px;
      }
    `,
  ];

  override connectedCallback(): void {
    super.connectedCallback();
    this.#dark.addEventListener("change", this.#onColours);
  }

  override disconnectedCallback(): void {
    super.disconnectedCallback();
    this.#dark.removeEventListener("change", this.#onColours);
    this.#observer.disconnect();
    this.#scan?.abort();
    this.#look?.abort();
    window.clearTimeout(this.#lookTimer);
  }

  protected override firstUpdated(): void {
    const frame = this.renderRoot.querySelector(".frame");
    if (frame) this.#observer.observe(frame);
    this.#measure();
  }

  protected override willUpdate(changed: Map<PropertyKey, unknown>): void {
    if (changed.has("facts") && changed.get("facts") !== undefined) {
      this.#scan?.abort();
      this.ranges = [];
      this.#forget();
    }
    if (changed.has("comparison") || this.#compared !== (this.comparison?.other ?? null)) {
      this.#compared = this.comparison?.other ?? null;
      // The mounted map has nothing to look at again.
      if (this.comparison || changed.get("comparison")) this.#show([]);
    }
    if (changed.has("facts") || changed.has("ranges") || changed.has("whole") || changed.has("portion")) this.#lay();
  }

  protected override updated(): void {
    const canvas = this.renderRoot.querySelector("canvas");
    if (!canvas || !this.grid) return;
    this.#painter ??= new Painter(canvas);
    this.#painter.paint(this.grid, this.#looks(), this.#allocation(), this.chosen, this.hovered);
  }

  protected override render(): TemplateResult {
    const allocation = this.#allocation();
    const range = this.ranges.at(-1);
    const share = allocation
      ? Number(allocation.done - allocation.offset) / Math.max(1, Number(allocation.length))
      : 0;
    const error = this.#error();
    return html`<div class="layout">
      <section class="card" aria-labelledby="map">
        <div class="top">
          <h2 id="map">${range ? html`Part of the disk: <span class="number">${rangeText(range)}</span>` : "The whole disk"}</h2>
          ${range
            ? html`<span><button @click=${this.#out}>Zoom out</button></span>`
            : html`<span class="muted small">${this.#scale()}</span>`}
        </div>
        ${this.#rivals()}
        <div class="progress ${share >= 1 || error ? "done" : ""}">
          <span .style=${`transform: scaleX(${share})`}></span>
        </div>
        <div class="frame">
          <canvas
            tabindex="0"
            role="slider"
            aria-label="Allocation map: arrow keys move from cell to cell, Enter steps closer"
            aria-valuemin="0"
            aria-valuemax=${(this.grid?.cells ?? 1) - 1}
            aria-valuenow=${this.chosen ?? 0}
            aria-valuetext=${this.chosen === null ? "nothing chosen" : this.#words(this.chosen)}
            @pointermove=${this.#onHover}
            @pointerleave=${() => (this.hovered = null)}
            @click=${this.#onClick}
            @dblclick=${this.#onDouble}
            @keydown=${this.#onKey}
          ></canvas>
        </div>
        <p class="line">
          ${error ? html`<span class="bad">The map could not be read to its end: ${shown(error.message)}</span>` : this.#line()}
        </p>
        ${this.#legend(allocation)}
      </section>
      ${this.#detail()}
    </div>`;
  }

  #error(): Error | null {
    const other = this.comparison?.other;
    if (other instanceof Error) return other;
    if (this.ranges.length === 0 && !this.comparison) return this.scanError;
    return this.portion instanceof Error ? this.portion : null;
  }

  #looks(): Look[] {
    return this.comparison ? COMPARISON_LOOKS : ALLOCATION_LOOKS;
  }

  /** What the disk can be compared with: the other states that the image holds, and the layers below. */
  #rivals(): TemplateResult | typeof nothing {
    const { facts } = this;
    const rivals: { rival: Rival; name: string }[] = [];
    if (facts.snapshot !== null) rivals.push({ rival: { snapshot: null }, name: "the disk as it is now" });
    for (const { id, name } of facts.snapshots) {
      if (id !== facts.snapshot) rivals.push({ rival: { snapshot: id }, name: `snapshot ${shown(name || id)}` });
    }
    for (const { depth } of facts.layers) {
      if (depth > 0) rivals.push({ rival: { layer: depth }, name: `layer ${layerName(facts, depth)}` });
    }
    if (rivals.length === 0) return nothing;
    const chosen = rivals.findIndex(({ rival }) => JSON.stringify(rival) === JSON.stringify(this.comparison?.rival));
    return html`<p class="rivals">
      <label for="rival">Compare with</label>
      <select
        id="rival"
        @change=${(event: Event) => {
          const { value } = event.target as HTMLSelectElement;
          this.dispatchEvent(new CustomEvent("compare", { detail: rivals[Number(value)]?.rival ?? null }));
        }}
      >
        <option value="-1" ?selected=${chosen < 0}>nothing</option>
        ${rivals.map(({ name }, index) => html`<option value=${index} ?selected=${index === chosen}>${name}</option>`)}
      </select>
    </p>`;
  }

  #scale(): string {
    const allocation = this.#allocation();
    if (!allocation || !this.grid) return "";
    return `each cell is ${sizeText(allocation.bucketLength * BigInt(this.grid.bucketsEach))}`;
  }

  #line(): TemplateResult {
    const cell = this.hovered ?? this.chosen;
    if (cell === null) return html`<span class="muted">Point at a cell to see what it holds, choose it to see where.</span>`;
    return html`<b>${rangeText(this.#rangeOf(cell))}</b> &nbsp; ${this.#words(cell, false)}`;
  }

  #legend(allocation: Allocation | null): TemplateResult {
    return html`<ul class="legend" aria-label="What the cells mean">
      ${this.#looks().map(({ kind, words }, index) => {
        const bytes = allocation?.totals[index] ?? 0;
        if (kind === "backing" && bytes === 0 && this.facts.layers.length < 2 && !this.comparison) return nothing;
        return html`<li title=${words.meaning}>
          ${swatch(kind)} ${words.name} <span class="muted">${sizeOf(bytes)}</span>
        </li>`;
      })}
    </ul>`;
  }

  #detail(): TemplateResult | typeof nothing {
    const { detail } = this;
    if (!detail || this.chosen === null) return nothing;
    const { extents } = detail;
    const closer = detail.length > BigInt(this.facts.clusterSize ?? SECTOR_LENGTH);
    return html`<section class="card" aria-labelledby="lies">
      <h2 id="lies">What lies at ${rangeText(detail)}</h2>
      <div class="actions">
        ${when(closer, () => html`<button @click=${() => this.#closer(this.chosen ?? 0)}>Zoom in here</button>`)}
        <span>${hexLink("guest", detail.offset, "Show the bytes")}</span>
        ${when(this.facts.format === "qcow2", () => html`<span>${clusterLink("guest", detail.offset, "Follow it through the tables")}</span>`)}
      </div>
      ${extents === null
        ? html`<p class="muted">Looking&hellip;</p>`
        : extents instanceof Error
          ? html`<p class="bad break">${shown(extents.message)}</p>`
          : this.#extents(extents, detail.more)}
    </section>`;
  }

  #extents(extents: Extent[], more: boolean): TemplateResult {
    return html`
      <div class="scroll-x" tabindex="0" role="group" aria-labelledby="lies">
        <table>
          <thead>
            <tr>
              <th scope="col">Disk offset</th>
              <th scope="col" class="right">Length</th>
              <th scope="col">Kind</th>
              <th scope="col">In the file at</th>
              <th scope="col">Layer</th>
            </tr>
          </thead>
          <tbody>
            ${extents.map(
              (extent) =>
                html`<tr>
                  <td>${hexLink("guest", extent.offset)}</td>
                  <td class="right">${sizeOf(extent.length)}</td>
                  <td><span class="kind">${swatch(kindOf(extent))} ${KIND_WORDS[kindOf(extent)].name}</span></td>
                  <td>${this.#host(extent)}</td>
                  <td>${this.#layer(extent)}</td>
                </tr>`,
            )}
          </tbody>
        </table>
      </div>
      ${when(more, () => html`<p class="muted small">There is more in this cell: zoom in to see it.</p>`)}
    `;
  }

  #host(extent: Extent): TemplateResult {
    if (extent.host === null) return html`<span class="muted">nowhere</span>`;
    const at = hostOf(this.facts, extent, extent.host);
    const length = extent.hostLength;
    return extent.kind === "compressed" && length !== null
      ? html`${at} <span class="muted">${sizeText(length)}</span>`
      : at;
  }

  #layer(extent: Extent): TemplateResult {
    if (extent.kind === "unallocated") return html`<span class="muted">none</span>`;
    if (extent.depth === 0) return html`this image`;
    return html`<span class="break">${layerName(this.facts, extent.depth)}</span>`;
  }

  #allocation(): Allocation | null {
    if (this.ranges.length === 0 && !this.comparison) return this.whole;
    return this.portion instanceof Error ? null : this.portion;
  }

  #rangeOf(cell: number): Range {
    const allocation = this.#allocation();
    if (!allocation || !this.grid) return { offset: 0n, length: 0n };
    const length = allocation.bucketLength * BigInt(this.grid.bucketsEach);
    const from = length * BigInt(cell);
    const left = allocation.length - from;
    return { offset: allocation.offset + from, length: left < length ? left : length };
  }

  /** A cell in words, for the line below the map and for those who hear it. */
  #words(cell: number, withRange = true): string {
    const allocation = this.#allocation();
    if (!allocation || !this.grid) return "";
    const range = this.#rangeOf(cell);
    const each = this.grid.bucketsEach;
    const bytes = Allocation.sum(allocation, cell * each, each);
    const seen = bytes.reduce((sum, one) => sum + one, 0);
    const parts = this.#looks()
      .map(({ words }, index) => ({ words, bytes: bytes[index] ?? 0 }))
      .filter((part) => part.bytes > 0)
      .map((part) => `${part.words.name.toLowerCase()} ${shareText(part.bytes, Number(range.length))}`);
    const words = seen === 0 ? "not looked at yet" : parts.join(", ");
    return withRange ? `${rangeText(range)}: ${words}` : `${sizeText(range.length)}: ${words}`;
  }

  #measure(): void {
    this.#lay();
  }

  #lay(): void {
    const frame = this.renderRoot.querySelector(".frame");
    const allocation = this.#allocation();
    if (!frame || !allocation) return;
    const height = Math.min(560, Math.max(220, window.innerHeight * 0.5));
    const grid = layOut(allocation.bucketCount, frame.clientWidth, height);
    const { grid: before } = this;
    if (before && JSON.stringify(before) === JSON.stringify(grid)) return;
    // Another division of the disk: a chosen cell would be another place.
    if (before && before.bucketsEach !== grid.bucketsEach) this.#forget();
    this.grid = grid;
  }

  #onColours = (): void => {
    this.#painter?.recolour();
    this.requestUpdate();
  };

  #cellAt(event: MouseEvent): number | null {
    const { grid } = this;
    const canvas = event.currentTarget as HTMLCanvasElement;
    if (!grid) return null;
    const box = canvas.getBoundingClientRect();
    const column = Math.floor((event.clientX - box.left) / grid.pitch);
    const row = Math.floor((event.clientY - box.top) / grid.pitch);
    const cell = row * grid.columns + column;
    return column >= 0 && column < grid.columns && cell >= 0 && cell < grid.cells ? cell : null;
  }

  #onHover = (event: PointerEvent): void => {
    this.hovered = this.#cellAt(event);
  };

  #onClick = (event: MouseEvent): void => {
    const cell = this.#cellAt(event);
    if (cell !== null) this.#choose(cell);
  };

  #onDouble = (event: MouseEvent): void => {
    const cell = this.#cellAt(event);
    if (cell !== null) this.#closer(cell);
  };

  #onKey = (event: KeyboardEvent): void => {
    const { grid } = this;
    if (!grid || event.altKey || event.ctrlKey || event.metaKey) return;
    const at = this.chosen ?? 0;
    const page = grid.columns * Math.max(1, Math.floor(grid.rows / 4));
    const steps: Record<string, number> = {
      ArrowLeft: at - 1,
      ArrowRight: at + 1,
      ArrowUp: at - grid.columns,
      ArrowDown: at + grid.columns,
      PageUp: at - page,
      PageDown: at + page,
      Home: 0,
      End: grid.cells - 1,
    };
    const to = this.chosen === null && event.key !== "End" ? 0 : steps[event.key];
    if (event.key === "Enter" || event.key === "+") this.#closer(at);
    else if (event.key === "Escape" || event.key === "-") this.#out();
    else if (event.key in steps && to !== undefined) this.#choose(Math.min(grid.cells - 1, Math.max(0, to)));
    else return;
    event.preventDefault();
  };

  #choose(cell: number): void {
    this.hovered = null;
    this.chosen = cell;
    const range = this.#rangeOf(cell);
    if (!this.detail || this.detail.offset !== range.offset || this.detail.length !== range.length) {
      this.detail = { ...range, extents: null, more: false };
    }
    this.#look?.abort();
    window.clearTimeout(this.#lookTimer);
    this.#lookTimer = window.setTimeout(() => void this.#lookAt(range), DETAIL_DELAY_MS);
  }

  async #lookAt(range: Range): Promise<void> {
    const look = new AbortController();
    this.#look = look;
    try {
      const extents = await this.engine.call(
        "map",
        { image: this.facts.image, ...range, extentsMax: EXTENTS_SHOWN_MAX },
        { signal: look.signal },
      );
      const last = extents.at(-1);
      const more = last !== undefined && last.offset + last.length < range.offset + range.length;
      this.detail = { ...range, extents, more };
    } catch (error) {
      if (look.signal.aborted) return;
      this.detail = { ...range, extents: asError(error), more: false };
    }
  }

  /** Shows the neighbourhood of a cell, larger. */
  #closer(cell: number): void {
    const allocation = this.#allocation();
    const { grid } = this;
    if (!allocation || !grid || this.#rangeOf(cell).length <= BigInt(this.facts.clusterSize ?? SECTOR_LENGTH)) return;
    const first = Math.max(0, Math.min(cell - ZOOM_CELLS / 2, grid.cells - ZOOM_CELLS));
    const last = Math.min(grid.cells - 1, first + ZOOM_CELLS - 1);
    const end = this.#rangeOf(last);
    const { offset } = this.#rangeOf(first);
    const range = { offset, length: end.offset + end.length - offset };
    // The last step: nothing around the cell to leave out, so show the cell alone.
    const isSame = range.length >= allocation.length;
    this.#show([...this.ranges, isSame ? this.#rangeOf(cell) : range]);
  }

  #out = (): void => {
    if (this.ranges.length > 0) this.#show(this.ranges.slice(0, -1));
  };

  #show(ranges: Range[]): void {
    this.#scan?.abort();
    this.#forget();
    this.portion = null;
    this.ranges = ranges;
    const range = ranges.at(-1) ?? (this.comparison ? { offset: 0n, length: this.facts.virtualSize } : null);
    if (range) void this.#scanPart(range);
  }

  async #scanPart(range: Range): Promise<void> {
    const scan = new AbortController();
    this.#scan = scan;
    const keep = (part: Allocation): void => {
      if (!scan.signal.aborted) this.portion = part;
    };
    const how = { signal: scan.signal, onProgress: keep };
    const { image } = this.facts;
    const other = this.comparison?.other;
    if (this.comparison && (!other || other instanceof Error)) return;
    const given = { ...range, bucketsMax: BUCKETS_MAX };
    try {
      keep(
        await (other && !(other instanceof Error)
          ? this.engine.call("compare", { one: { image, above: 0 }, other, ...given }, how)
          : this.engine.call("scan", { image, ...given }, how)),
      );
    } catch (error) {
      if (!scan.signal.aborted) this.portion = asError(error);
    }
  }

  #forget(): void {
    this.#look?.abort();
    window.clearTimeout(this.#lookTimer);
    this.chosen = null;
    this.hovered = null;
    this.detail = null;
  }
}

function rangeText({ offset, length }: Range): string {
  return `${offsetText(offset)} \u2013 ${offsetText(length > 0n ? offset + length - 1n : offset)}`;
}

customElements.define("cow-map", CowMap);
