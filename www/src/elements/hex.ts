// The bytes of the disk or of the file, all of them, under one scroll bar. A cursor walks them.

import { css, html, LitElement, nothing, type TemplateResult } from "lit";
import { Virtualizer } from "@tanstack/virtual-core";
import type { Engine } from "../engine/client.js";
import type { ImageFacts, Space } from "../engine/protocol.js";
import { PAGE_LENGTH, Pages, type Page } from "../model/pages.js";
import { RowScroll } from "../model/scroll.js";
import { offsetText, parseOffset } from "../model/size.js";
import { asciiOf, shown } from "../model/text.js";
import { choice } from "../style/choice.js";
import { shared } from "../style/shared.js";
import { hexAt, hexParts, mark, waiting } from "./row.js";
import "./cursor.js";

const ROW_HEIGHT = 22;
/** Characters of a row beside its columns: the gaps between and around them, in a wide window and in a narrow one. */
const GAPS = 8;
const GAPS_NARROW = 4;
const NARROW = window.matchMedia("(max-width: 560px)");
/** What a scroll bar takes, at most. */
const BAR_WIDTH = 18;
const OFFSET_DIGITS_MIN = 8;
const PLACE_DELAY_MS = 300;
/** Bytes that the numbers beside the view are made of. */
const NUMBER_LENGTH_MAX = 8;

/** Fires `place` with the space and the cursor's offset when the cursor has come to rest. */
export class CowHex extends LitElement {
  static override properties = {
    engine: {},
    facts: {},
    space: {},
    offset: {},
    cursor: { state: true },
    perRow: { state: true },
    wrong: { state: true },
  };
  declare engine: Engine;
  declare facts: ImageFacts;
  declare space: Space;
  /** Where to go: the address's offset. */
  declare offset: bigint;
  declare private cursor: bigint;
  declare private perRow: 4 | 8 | 16;
  /** Why the offset that was typed cannot be gone to. */
  declare private wrong: string | null;

  #pages: Pages | null = null;
  #scroll = new RowScroll(0n, ROW_HEIGHT, 0);
  #virtual: Virtualizer<HTMLElement, HTMLElement> | null = null;
  #tellOffset: ((offset: number, isScrolling: boolean) => void) | null = null;
  #stopVirtual: (() => void) | null = null;
  #observer = new ResizeObserver(() => this.#measure());
  #lastTop = 0;
  #charWidth = 8;
  #placeTimer = 0;

  constructor() {
    super();
    this.space = "guest";
    this.offset = 0n;
    this.cursor = 0n;
    this.perRow = 16;
    this.wrong = null;
  }

  static override styles = [
    shared,
    choice,
    css`
      .tools {
        display: flex;
        flex-wrap: wrap;
        gap: 10px 18px;
        align-items: center;
        margin-bottom: 14px;
      }
      form {
        display: flex;
        gap: 8px;
        align-items: center;
        flex: 0 1 360px;
        min-width: 0;
      }
      form input {
        flex: 1;
        font-family: var(--mono);
        font-size: 0.9rem;
      }
      form input[aria-invalid="true"] {
        border-color: var(--bad);
      }
      .wrong {
        color: var(--bad);
        font-size: 0.9rem;
      }
      .layout {
        display: grid;
        grid-template-columns: minmax(0, max-content) minmax(240px, 350px);
        gap: var(--gap);
        align-items: start;
      }
      @media (max-width: 1080px) {
        .layout {
          grid-template-columns: minmax(0, 1fr);
        }
      }
      .pane {
        position: relative;
        padding: 0;
        overflow: hidden;
      }
      .measure {
        position: absolute;
        visibility: hidden;
        white-space: pre;
      }
      .scroller,
      .measure {
        font-family: var(--mono);
        font-size: 13.5px;
        line-height: ${ROW_HEIGHT}px;
        font-variant-ligatures: none;
      }
      .scroller {
        position: relative;
        height: clamp(300px, calc(100vh - 285px), 1200px);
        overflow-y: scroll;
        overflow-x: hidden;
        overscroll-behavior: contain;
      }
      .scroller:focus-visible {
        outline: none;
      }
      .pane:has(.scroller:focus-visible) {
        outline: 2.5px solid var(--accent);
        outline-offset: 1px;
      }
      .sheet {
        position: sticky;
        top: 0;
        overflow: hidden;
        cursor: text;
      }
      .row {
        position: absolute;
        top: 0;
        left: 0;
        display: flex;
        gap: 2ch;
        height: ${ROW_HEIGHT}px;
        padding: 0 2ch;
        white-space: pre;
        min-width: 100%;
      }
      .row.at {
        background: var(--accent-soft);
      }
      .off {
        color: var(--muted);
        user-select: none;
      }
      .hex,
      .text {
        position: relative;
      }
      .z {
        color: var(--muted);
      }
      .text {
        color: var(--ink);
      }
      .waiting {
        color: var(--muted);
      }
      .fault {
        color: var(--bad);
        overflow: hidden;
        text-overflow: ellipsis;
        font-family: var(--font);
        font-size: 13px;
      }
      .cursor {
        position: absolute;
        top: 1px;
        bottom: 1px;
        border-radius: 3px;
        background: color-mix(in srgb, var(--accent) 26%, transparent);
        box-shadow: 0 0 0 1px var(--accent);
        pointer-events: none;
      }
      @media (max-width: 560px) {
        .scroller,
        .measure {
          font-size: 12px;
        }
        .scroller {
          height: clamp(300px, calc(100vh - 330px), 900px);
        }
        .row {
          gap: 1ch;
          padding: 0 1ch;
        }
        form {
          flex: 1 1 100%;
        }
      }
    `,
  ];

  override disconnectedCallback(): void {
    super.disconnectedCallback();
    this.#observer.disconnect();
    this.#stopVirtual?.();
    this.#pages?.stop();
    window.clearTimeout(this.#placeTimer);
  }

  protected override willUpdate(changed: Map<PropertyKey, unknown>): void {
    if (changed.has("facts")) {
      this.#pages?.stop();
      const { image, virtualSize, hostSize } = this.facts;
      this.#pages = new Pages(
        { guest: virtualSize, host: hostSize },
        (space, offset, length, signal) =>
          this.engine.call("read", { image, space, offset, length }, { signal }),
        () => this.requestUpdate(),
      );
    }
    const isMoved = changed.has("offset") && this.offset !== this.cursor;
    if (changed.has("facts") || changed.has("space") || changed.has("perRow")) this.#reset();
    if (changed.has("facts") || changed.has("space") || isMoved) this.#go(this.offset);
  }

  protected override firstUpdated(): void {
    const scroller = this.#scroller();
    this.#observer.observe(scroller);
    this.#observer.observe(this);
    // Not passive: to scale, the wheel's own scrolling would jump.
    scroller.addEventListener("wheel", this.#onWheel, { passive: false });
    this.#virtual = new Virtualizer<HTMLElement, HTMLElement>({
      count: this.#scroll.windowCount,
      getScrollElement: () => scroller,
      estimateSize: () => ROW_HEIGHT,
      overscan: 2,
      // The view moves by its own rows; the virtual scroller only says which of them are to be there.
      scrollToFn: () => undefined,
      observeElementRect: (_, tell) => {
        const say = (): void => tell({ width: scroller.clientWidth, height: scroller.clientHeight });
        const observer = new ResizeObserver(say);
        observer.observe(scroller);
        say();
        return () => observer.disconnect();
      },
      observeElementOffset: (_, tell) => {
        this.#tellOffset = tell;
        tell(this.#scroll.windowOffset, false);
        return () => (this.#tellOffset = null);
      },
      onChange: () => this.requestUpdate(),
    });
    this.#stopVirtual = this.#virtual._didMount();
    this.#virtual._willUpdate();
    this.#measure();
    this.#go(this.offset);
  }

  protected override render(): TemplateResult {
    const { space } = this;
    const size = this.#size();
    return html`
      <div class="tools">
        <fieldset>
          <legend class="visually-hidden">Whose bytes</legend>
          ${this.#choice("guest", "The disk")} ${this.#choice("host", "The file")}
        </fieldset>
        <form @submit=${this.#onGo}>
          <label class="visually-hidden" for="go">Go to offset</label>
          <input
            id="go"
            type="text"
            placeholder="Offset: 0x10000, 65536, 64K"
            autocomplete="off"
            spellcheck="false"
            aria-invalid=${this.wrong ? "true" : "false"}
            aria-describedby="wrong"
            @input=${() => (this.wrong = null)}
          />
          <button>Go</button>
        </form>
        <span id="wrong" class="wrong" role="status">${this.wrong ?? ""}</span>
      </div>
      <div class="layout">
        <div class="card pane">
          <span class="measure" aria-hidden="true">${"0".repeat(100)}</span>
          <div
            class="scroller"
            tabindex="0"
            role="group"
            aria-label=${`Bytes of the ${space === "guest" ? "disk" : "file"}; arrow keys move the cursor`}
            .style=${`width: ${this.#width()}px; min-width: 100%; max-width: 100%`}
            @scroll=${this.#onScroll}
            @scrollend=${this.#onScrollEnd}
            @keydown=${this.#onKey}
          >
            <div .style=${`height: ${this.#scroll.height}px`}>
              <div class="sheet" @click=${this.#onClick} .style=${`height: ${this.#viewHeight()}px`}>
                ${size === 0n ? html`<span class="row muted">no bytes</span>` : this.#rows()}
              </div>
            </div>
          </div>
        </div>
        <cow-cursor
          .engine=${this.engine}
          .facts=${this.facts}
          .space=${space}
          .offset=${this.cursor}
          .bytes=${this.#bytesAt(this.cursor)}
        ></cow-cursor>
      </div>
    `;
  }

  protected override updated(): void {
    if (this.#virtual && this.#virtual.options.count !== this.#scroll.windowCount) {
      this.#virtual.setOptions({ ...this.#virtual.options, count: this.#scroll.windowCount });
      this.requestUpdate();
    }
  }

  #choice(space: Space, text: string): TemplateResult {
    return html`<label>
      <input
        type="radio"
        name="space"
        .checked=${this.space === space}
        @change=${() => (location.hash = `#hex/${space}/${offsetText(0n)}`)}
      />
      ${text}
    </label>`;
  }

  #rows(): TemplateResult[] {
    const scroll = this.#scroll;
    const items = this.#virtual?.getVirtualItems() ?? [];
    const perRow = BigInt(this.perRow);
    const first = items[0];
    const last = items.at(-1);
    if (!first || !last) return [];
    const rowOf = (index: number): bigint => scroll.windowStart + BigInt(index);
    this.#pages?.want(this.space, rowOf(first.index) * perRow, (rowOf(last.index) + 1n) * perRow);
    return items
      .filter((item) => rowOf(item.index) < scroll.rows)
      .map((item) => this.#row(rowOf(item.index) * perRow, item.start - scroll.windowOffset));
  }

  #row(offset: bigint, y: number): TemplateResult {
    const isAt = this.cursor >= offset && this.cursor < offset + BigInt(this.perRow);
    const page = this.#pages?.at(this.space, offset) ?? null;
    return html`<div class="row ${isAt ? "at" : ""}" data-offset=${offset.toString()} .style=${`transform: translateY(${y}px)`}>
      <span class="off">${offset.toString(16).padStart(this.#digits(), "0")}</span>
      ${this.#content(page, offset, isAt)}
    </div>`;
  }

  #content(page: Page | null, offset: bigint, isAt: boolean): TemplateResult {
    if (page && "error" in page) return html`<span class="fault" title=${shown(page.error.message)}>${shown(page.error.message)}</span>`;
    const size = this.#size();
    const left = size - offset;
    const count = left < BigInt(this.perRow) ? Number(left) : this.perRow;
    const cursor = isAt ? Number(this.cursor - offset) : null;
    const from = Number(offset % BigInt(PAGE_LENGTH));
    const bytes = page ? page.bytes.subarray(from, from + count) : null;
    return html`<span class="hex ${bytes ? "" : "waiting"}" .style=${`width: ${this.#hexChars()}ch`}
        >${bytes ? hexParts(bytes) : waiting(count)}${cursor === null ? nothing : mark(hexAt(cursor), 2)}</span
      ><span class="text ${bytes ? "" : "waiting"}"
        >${bytes ? [...bytes].map(asciiOf).join("") : " ".repeat(count)}${cursor === null ? nothing : mark(cursor, 1)}</span
      >`;
  }

  #size(): bigint {
    return this.#pages?.size(this.space) ?? 0n;
  }

  #digits(): number {
    const size = this.#size();
    return Math.max(OFFSET_DIGITS_MIN, (size > 0n ? size - 1n : 0n).toString(16).length);
  }

  #hexChars(): number {
    return hexAt(this.perRow - 1) + 2;
  }

  #chars(perRow: number): number {
    return this.#digits() + (NARROW.matches ? GAPS_NARROW : GAPS) + hexAt(perRow - 1) + 2 + perRow;
  }

  #width(): number {
    return Math.ceil(this.#chars(this.perRow) * this.#charWidth) + BAR_WIDTH;
  }

  #scroller(): HTMLElement {
    return this.renderRoot.querySelector<HTMLElement>(".scroller") ?? this;
  }

  #viewHeight(): number {
    return this.hasUpdated ? this.#scroller().clientHeight : 0;
  }

  /** The bytes from an offset on that are here already. */
  #bytesAt(offset: bigint): Uint8Array {
    const page = this.#pages?.at(this.space, offset);
    if (!page || "error" in page) return new Uint8Array();
    const from = Number(offset % BigInt(PAGE_LENGTH));
    return page.bytes.subarray(from, from + NUMBER_LENGTH_MAX);
  }

  #measure(): void {
    const probe = this.renderRoot.querySelector<HTMLElement>(".measure");
    const layout = this.renderRoot.querySelector<HTMLElement>(".layout");
    if (!probe || !layout) return;
    this.#charWidth = probe.getBoundingClientRect().width / 100 || 8;
    const room = layout.clientWidth;
    const fits = (perRow: number): boolean => this.#chars(perRow) * this.#charWidth + BAR_WIDTH <= room;
    this.perRow = fits(16) ? 16 : fits(8) ? 8 : 4;
    this.#scroll.resize(this.#viewHeight());
    this.#sync();
  }

  #reset(): void {
    const perRow = BigInt(this.perRow);
    const rows = (this.#size() + perRow - 1n) / perRow;
    const keep = this.cursor / perRow;
    this.#scroll = new RowScroll(rows, ROW_HEIGHT, this.#viewHeight());
    this.#scroll.to(keep);
    void this.updateComplete.then(() => this.#sync());
  }

  /** Puts the cursor on an offset, a little below the top of the view. */
  #go(offset: bigint): void {
    this.#setCursor(offset);
    const above = BigInt(Math.floor(this.#viewHeight() / ROW_HEIGHT / 4));
    const row = this.cursor / BigInt(this.perRow);
    this.#scroll.to(row > above ? row - above : 0n);
    void this.updateComplete.then(() => this.#sync());
  }

  #setCursor(offset: bigint): void {
    const size = this.#size();
    const clamped = offset < 0n ? 0n : offset >= size ? (size > 0n ? size - 1n : 0n) : offset;
    this.cursor = clamped;
    window.clearTimeout(this.#placeTimer);
    this.#placeTimer = window.setTimeout(() => {
      this.dispatchEvent(new CustomEvent("place", { detail: { space: this.space, offset: clamped } }));
    }, PLACE_DELAY_MS);
  }

  /** Brings the scroll bar and the virtual scroller to where the rows are. */
  #sync(): void {
    const scroller = this.#scroller();
    const { top } = this.#scroll;
    if (Math.abs(scroller.scrollTop - top) >= 1) scroller.scrollTop = top;
    this.#lastTop = scroller.scrollTop;
    this.#tell();
  }

  #tell(): void {
    const virtual = this.#virtual;
    if (virtual && virtual.options.count !== this.#scroll.windowCount) {
      virtual.setOptions({ ...virtual.options, count: this.#scroll.windowCount });
    }
    this.#tellOffset?.(this.#scroll.windowOffset, false);
    this.requestUpdate();
  }

  #onScroll = (): void => {
    const { scrollTop } = this.#scroller();
    if (scrollTop === this.#lastTop) return;
    this.#scroll.moved(this.#lastTop, scrollTop);
    this.#lastTop = scrollTop;
    this.#tell();
  };

  #onScrollEnd = (): void => {
    if (this.#scroll.scaled) this.#sync();
  };

  #onWheel = (event: WheelEvent): void => {
    if (!this.#scroll.scaled || event.ctrlKey || event.shiftKey) return;
    event.preventDefault();
    const unit = event.deltaMode === WheelEvent.DOM_DELTA_LINE ? ROW_HEIGHT : event.deltaMode === WheelEvent.DOM_DELTA_PAGE ? this.#viewHeight() : 1;
    this.#scroll.by(event.deltaY * unit);
    this.#sync();
  };

  #onKey = (event: KeyboardEvent): void => {
    if (event.altKey || event.metaKey) return;
    const row = BigInt(this.perRow);
    const page = row * BigInt(Math.max(1, Math.floor(this.#viewHeight() / ROW_HEIGHT) - 1));
    const { cursor } = this;
    const inRow = cursor % row;
    const steps: Record<string, bigint> = {
      ArrowLeft: cursor - 1n,
      ArrowRight: cursor + 1n,
      ArrowUp: cursor - row,
      ArrowDown: cursor + row,
      PageUp: cursor - page,
      PageDown: cursor + page,
      Home: event.ctrlKey ? 0n : cursor - inRow,
      End: event.ctrlKey ? this.#size() - 1n : cursor - inRow + row - 1n,
    };
    const to = steps[event.key];
    if (to === undefined) return;
    event.preventDefault();
    // Up from the first row and down from the last keep their column: they do not move.
    const isRowStep = event.key === "ArrowUp" || event.key === "ArrowDown";
    if (isRowStep && (to < 0n || to >= this.#size())) return;
    this.#setCursor(to);
    this.#scroll.reveal(this.cursor / row);
    this.#sync();
  };

  #onClick = (event: MouseEvent): void => {
    const row = (event.target as Element).closest<HTMLElement>(".row");
    const offset = row?.dataset["offset"];
    if (!row || offset === undefined) return;
    const hex = row.querySelector(".hex")?.getBoundingClientRect();
    const text = row.querySelector(".text")?.getBoundingClientRect();
    if (!hex || !text) return;
    const chars = (x: number): number => Math.floor(x / this.#charWidth);
    let byte = 0;
    if (event.clientX >= text.left) byte = chars(event.clientX - text.left);
    else {
      const at = Math.max(0, chars(event.clientX - hex.left));
      while (byte + 1 < this.perRow && hexAt(byte + 1) <= at) byte += 1;
    }
    this.#setCursor(BigInt(offset) + BigInt(Math.min(this.perRow - 1, Math.max(0, byte))));
  };

  #onGo = (event: SubmitEvent): void => {
    event.preventDefault();
    const input = this.renderRoot.querySelector<HTMLInputElement>("#go");
    const text = input?.value ?? "";
    const offset = parseOffset(text);
    const size = this.#size();
    if (offset === null) this.wrong = text.trim() === "" ? null : "Not an offset. Write 0x10000, 65536 or 64K.";
    else if (offset >= size) this.wrong = `Past the end: the last byte is at ${offsetText(size > 0n ? size - 1n : 0n)}.`;
    else {
      this.wrong = null;
      this.#go(offset);
      this.#scroller().focus({ preventScroll: true });
    }
  };
}

customElements.define("cow-hex", CowHex);
