// The header's bytes, each field and extension in a colour of its own; pointing at one names it, choosing one leads to it.

import { css, html, LitElement, nothing, type TemplateResult } from "lit";
import type { Engine } from "../engine/client.js";
import type { ImageFacts } from "../engine/protocol.js";
import { asError } from "../model/error.js";
import { asciiOf, hexOf, shown } from "../model/text.js";
import { shared } from "../style/shared.js";

const ROW_LENGTH = 16;
/** More than a header with its extensions and its backing file's name has, as a rule. Bytes. */
const LENGTH_MAX = 1024;
const EXTENSION_HEAD_LENGTH = 8;
const TONES = 4;

/** A named run of the header's bytes. */
export interface Region {
  name: string;
  offset: number;
  length: number;
}

/** The fields, the extensions with their heads, and the backing file's name. */
export function regionsOf({ header, extensions }: ImageFacts): Region[] {
  const regions: Region[] = header.map(({ name, offset, length }) => ({ name, offset, length }));
  for (const { name, offset, length } of extensions) {
    regions.push({ name: `extension: ${name}`, offset, length: EXTENSION_HEAD_LENGTH + Math.ceil(length / 8) * 8 });
  }
  const value = (name: string): number => Number(header.find((field) => field.name === name)?.value ?? 0n);
  const [at, length] = [value("backing_file_offset"), value("backing_file_size")];
  if (at > 0 && length > 0) regions.push({ name: "backing file name", offset: at, length });
  return regions.sort((one, other) => one.offset - other.offset);
}

/** Fires `point` with a region's name or null. */
export class CowHeaderHex extends LitElement {
  static override properties = { engine: {}, facts: {}, pointed: {}, bytes: { state: true } };
  declare engine: Engine;
  declare facts: ImageFacts;
  /** The name of the region that is pointed at, here or elsewhere. */
  declare pointed: string | null;
  declare private bytes: Uint8Array | Error | null;

  #regions: Region[] = [];

  constructor() {
    super();
    this.pointed = null;
    this.bytes = null;
  }

  static override styles = [
    shared,
    css`
      .rows {
        font: 0.8rem/1.7 var(--mono);
        overflow-x: auto;
        white-space: pre;
      }
      .off {
        color: var(--muted);
      }
      .t0 {
        background: color-mix(in srgb, var(--accent) 20%, transparent);
      }
      .t1 {
        background: color-mix(in srgb, var(--good) 20%, transparent);
      }
      .t2 {
        background: color-mix(in srgb, var(--fair) 20%, transparent);
      }
      .t3 {
        background: color-mix(in srgb, var(--bad) 20%, transparent);
      }
      .on {
        outline: 1.5px solid var(--ink);
        outline-offset: -1px;
      }
      .off,
      .text {
        user-select: none;
      }
      .name {
        min-height: 1.5em;
        margin-top: 8px;
        font-size: 0.87rem;
      }
      @media (max-width: 560px) {
        .text {
          display: none;
        }
      }
    `,
  ];

  protected override willUpdate(changed: Map<PropertyKey, unknown>): void {
    if (!changed.has("facts")) return;
    this.#regions = regionsOf(this.facts);
    void this.#read();
  }

  protected override render(): TemplateResult {
    const { bytes } = this;
    if (bytes === null) return html`<p class="muted">&hellip;</p>`;
    if (bytes instanceof Error) return html`<p class="muted break">${shown(bytes.message)}</p>`;
    const rows = Math.ceil(bytes.length / ROW_LENGTH);
    return html`
      <div
        class="rows"
        tabindex="0"
        role="group"
        aria-label="The header's bytes"
        @pointerover=${this.#onPoint}
        @pointerleave=${() => this.#point(null)}
      >${[...Array(rows).keys()].map((row) => this.#row(bytes, row * ROW_LENGTH))}</div>
      <p class="name">${this.pointed === null ? html`<span class="muted">Point at a byte to see whose it is.</span>` : shown(this.pointed)}</p>
    `;
  }

  #row(bytes: Uint8Array, offset: number): TemplateResult {
    const row = bytes.subarray(offset, offset + ROW_LENGTH);
    const text = [...row].map(asciiOf).join("");
    return html`<div><span class="off">${offset.toString(16).padStart(4, "0")}  </span>${[...row].map((byte, index) => this.#byte(byte, offset + index, index))}<span class="text muted">  ${text}</span></div>`;
  }

  #byte(byte: number, at: number, index: number): TemplateResult {
    const region = this.#regions.findIndex((one) => at >= one.offset && at < one.offset + one.length);
    const found = this.#regions[region];
    const gap = index === ROW_LENGTH - 1 ? "" : index === 7 ? "  " : " ";
    if (!found) return html`<span class="muted">${hexOf(byte)}${gap}</span>`;
    const goesOn = at + 1 < found.offset + found.length;
    const tone = `t${region % TONES} ${found.name === this.pointed ? "on" : ""}`;
    // The gap belongs to the field if the next byte does.
    return html`<span class=${tone} data-region=${region}>${hexOf(byte)}${goesOn ? gap : ""}</span>${goesOn ? nothing : gap}`;
  }

  #onPoint = (event: PointerEvent): void => {
    const region = (event.target as HTMLElement).dataset["region"];
    this.#point(region === undefined ? null : (this.#regions[Number(region)]?.name ?? null));
  };

  #point(name: string | null): void {
    if (name !== this.pointed) this.dispatchEvent(new CustomEvent("point", { detail: name }));
  }

  async #read(): Promise<void> {
    const { facts } = this;
    const last = this.#regions.reduce((end, { offset, length }) => Math.max(end, offset + length), 0);
    const length = Math.min(LENGTH_MAX, Math.ceil(last / ROW_LENGTH) * ROW_LENGTH, Number(facts.hostSize));
    let bytes: Uint8Array | Error;
    try {
      bytes = await this.engine.call("read", { image: facts.image, space: "host", offset: 0n, length });
    } catch (error) {
      bytes = asError(error);
    }
    if (this.facts === facts) this.bytes = bytes;
  }
}

/** The class of the colour that a field has among the bytes. */
export function toneOf(regions: Region[], offset: number): string {
  const index = regions.findIndex((region) => region.offset === offset);
  return index < 0 ? "" : `t${index % TONES}`;
}

customElements.define("cow-header-hex", CowHeaderHex);
