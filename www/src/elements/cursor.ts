// What lies under the cursor among the bytes, and what the bytes there say as numbers.

import { css, html, LitElement, type TemplateResult } from "lit";
import type { Engine } from "../engine/client.js";
import type { Extent } from "../engine/contract.js";
import type { ImageFacts, Space } from "../engine/protocol.js";
import { kindOf } from "../model/allocation.js";
import { asError } from "../model/error.js";
import { offsetText } from "../model/size.js";
import { hexOf, shown } from "../model/text.js";
import { shared } from "../style/shared.js";
import { swatches } from "../style/swatch.js";
import { SECTOR_LENGTH } from "./desk.js";
import { KIND_WORDS, swatch } from "./kinds.js";
import { hostOf, layerName, when } from "./parts.js";

/** The cursor must have come to rest before the engine is asked. */
const LOOK_DELAY_MS = 120;
/** A cluster of subclusters has at most this many extents. */
const EXTENTS_MAX = 64;

export class CowCursor extends LitElement {
  static override properties = { engine: {}, facts: {}, space: {}, offset: {}, bytes: {}, extent: { state: true } };
  declare engine: Engine;
  declare facts: ImageFacts;
  declare space: Space;
  declare offset: bigint;
  /** The bytes from the cursor on that are at hand, eight at most. */
  declare bytes: Uint8Array;
  declare private extent: Extent | Error | null;

  #look: AbortController | null = null;
  #lookTimer = 0;

  constructor() {
    super();
    this.extent = null;
  }

  static override styles = [
    shared,
    swatches,
    css`
      .card > h2 {
        margin-bottom: 8px;
      }
      dl {
        display: grid;
        grid-template-columns: max-content minmax(0, 1fr);
        gap: 3px 16px;
        font-size: 0.9rem;
        font-variant-numeric: tabular-nums;
      }
      dt {
        color: var(--muted);
      }
      dd {
        overflow-wrap: anywhere;
      }
      h3 {
        margin: 16px 0 6px;
        padding-top: 14px;
        border-top: 1px solid var(--line);
      }
      .bad {
        color: var(--bad);
      }
      .bad {
        color: var(--bad);
      }
    `,
  ];

  override disconnectedCallback(): void {
    super.disconnectedCallback();
    this.#look?.abort();
    window.clearTimeout(this.#lookTimer);
  }

  protected override willUpdate(changed: Map<PropertyKey, unknown>): void {
    if (changed.has("facts") || changed.has("space")) this.extent = null;
    if (changed.has("facts") || changed.has("space") || changed.has("offset")) this.#lookAt();
  }

  protected override render(): TemplateResult {
    const { offset, bytes } = this;
    return html`<section class="card" aria-labelledby="cursor">
      <h2 id="cursor">At the cursor</h2>
      <dl aria-live="polite">
        <dt>Offset</dt>
        <dd><span class="mono">${offsetText(offset)}</span><br /><span class="muted">${offset.toLocaleString("en")}</span></dd>
        ${when(this.space === "guest", () => this.#lies())}
      </dl>
      ${when(bytes.length > 0, () => numbers(bytes))}
    </section>`;
  }

  #lies(): TemplateResult {
    const { extent } = this;
    if (extent === null) return html`<dt>Kind</dt><dd class="muted">&hellip;</dd>`;
    if (extent instanceof Error) return html`<dt>Kind</dt><dd class="bad">${shown(extent.message)}</dd>`;
    const kind = kindOf(extent);
    const { host } = extent;
    const within = this.offset - extent.offset;
    return html`
      <dt>Kind</dt>
      <dd>${swatch(kind)} ${KIND_WORDS[kind].name}<br /><span class="muted">${KIND_WORDS[kind].meaning}</span></dd>
      ${when(host !== null, () => {
        const at = (host ?? 0n) + (extent.kind === "compressed" ? 0n : within);
        return html`<dt>In the file</dt>
          <dd>${hostOf(this.facts, extent, at)}${extent.depth === 0 ? "" : html`, ${layerName(this.facts, extent.depth)}`}</dd>`;
      })}
    `;
  }

  /** Finds out what lies under the cursor, once it rests. */
  #lookAt(): void {
    this.#look?.abort();
    window.clearTimeout(this.#lookTimer);
    const { offset, facts } = this;
    if (this.space !== "guest" || facts.virtualSize === 0n) return;
    const known = this.extent;
    const isSame =
      known !== null && !(known instanceof Error) && offset >= known.offset && offset < known.offset + known.length;
    if (isSame) return;
    this.extent = null;
    const look = new AbortController();
    this.#look = look;
    this.#lookTimer = window.setTimeout(() => {
      const cluster = BigInt(facts.clusterSize ?? SECTOR_LENGTH);
      const start = offset - (offset % cluster);
      const left = facts.virtualSize - start;
      this.engine
        .call(
          "map",
          { image: facts.image, offset: start, length: left < cluster ? left : cluster, extentsMax: EXTENTS_MAX },
          { signal: look.signal },
        )
        .then((extents) => {
          this.extent =
            extents.find((one) => offset >= one.offset && offset < one.offset + one.length) ?? extents[0] ?? null;
        })
        .catch((error: unknown) => {
          if (!look.signal.aborted) this.extent = asError(error);
        });
    }, LOOK_DELAY_MS);
  }
}

/** What the bytes at the cursor say as numbers, in both byte orders. */
function numbers(bytes: Uint8Array): TemplateResult {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const rows: [string, string, string][] = [["u8", String(view.getUint8(0)), hexOf(view.getUint8(0))]];
  const both = (name: string, big: bigint | number, little: bigint | number): void => {
    rows.push([`${name} BE`, big.toLocaleString("en"), big.toString(16)]);
    rows.push([`${name} LE`, little.toLocaleString("en"), little.toString(16)]);
  };
  if (bytes.length >= 2) both("u16", view.getUint16(0), view.getUint16(0, true));
  if (bytes.length >= 4) both("u32", view.getUint32(0), view.getUint32(0, true));
  if (bytes.length >= 8) both("u64", view.getBigUint64(0), view.getBigUint64(0, true));
  return html`<h3>As a number</h3>
    <dl>
      ${rows.map(([name, text, hex]) => html`<dt>${name}</dt><dd title=${`0x${hex}`}>${text}</dd>`)}
    </dl>`;
}

customElements.define("cow-cursor", CowCursor);
