// A file of the disk: what is known of it, and its bytes as text, as a picture, or as they are.

import { css, html, LitElement, nothing, type TemplateResult } from "lit";
import type { Engine } from "../engine/client.js";
import type { Entry } from "../engine/contract.js";
import type { FilePlace } from "../engine/protocol.js";
import { asError } from "../model/error.js";
import { pictureType, textIn } from "../model/preview.js";
import { bytesText, sizeText } from "../model/size.js";
import { asciiOf, linesShown, shown } from "../model/text.js";
import { choice } from "../style/choice.js";
import { shared } from "../style/shared.js";
import { dateText, nameOf, when } from "./parts.js";
import { hexParts } from "./row.js";

/** What is read to be shown, in bytes. */
const HEAD_LENGTH = 256 << 10;
/** A larger picture is not shown. Bytes. */
const PICTURE_LENGTH_MAX = 32 << 20;
/** Bytes of a row, and how many are shown before the person asks for more. */
const ROW_LENGTH = 16;
const BYTES_A_PAGE = 4096;

type Way = "text" | "picture" | "bytes";
const WAY_NAMES: Record<Way, string> = { text: "Text", picture: "Picture", bytes: "Bytes" };

/** What is known of the file's beginning. */
interface Head {
  bytes: Uint8Array;
  text: string | null;
  picture: string | null;
}

export class CowFile extends LitElement {
  static override properties = {
    engine: {},
    place: {},
    entry: {},
    head: { state: true },
    way: { state: true },
    picture: { state: true },
    count: { state: true },
  };
  declare engine: Engine;
  declare place: FilePlace;
  declare entry: Entry;
  declare private head: Head | Error | null;
  declare private way: Way;
  /** The address of the picture, once it is here. */
  declare private picture: string | Error | null;
  declare private count: number;

  #loading: AbortController | null = null;

  constructor() {
    super();
    this.head = null;
    this.way = "bytes";
    this.picture = null;
    this.count = BYTES_A_PAGE;
  }

  static override styles = [
    shared,
    choice,
    css`
      dl {
        display: flex;
        flex-wrap: wrap;
        gap: 10px 28px;
        margin-bottom: 18px;
      }
      dt {
        color: var(--muted);
        font-size: 0.82rem;
      }
      fieldset {
        width: max-content;
        margin-bottom: 12px;
      }
      pre {
        margin: 0;
        padding: 14px 16px;
        max-height: 70vh;
        overflow: auto;
        background: var(--sunken);
        border-radius: 8px;
        font-family: var(--mono);
        font-size: 0.86rem;
        line-height: 1.5;
        tab-size: 8;
      }
      pre .z {
        opacity: 0.45;
      }
      pre .muted {
        color: var(--muted);
      }
      img {
        display: block;
        max-width: 100%;
        max-height: 70vh;
        border: 1px solid var(--line);
        background: repeating-conic-gradient(var(--sunken) 0 25%, var(--panel) 0 50%) 0 0 / 20px 20px;
      }
      .bad {
        color: var(--bad);
      }
      .more {
        margin-top: 8px;
      }
    `,
  ];

  override disconnectedCallback(): void {
    super.disconnectedCallback();
    this.#leave();
  }

  protected override willUpdate(changed: Map<PropertyKey, unknown>): void {
    // The same place may come as another object.
    const before = changed.get("entry");
    if (changed.has("entry") && before !== this.entry) void this.#load();
  }

  #leave(): void {
    this.#loading?.abort();
    if (typeof this.picture === "string") URL.revokeObjectURL(this.picture);
    this.picture = null;
  }

  async #load(): Promise<void> {
    this.#leave();
    const loading = new AbortController();
    this.#loading = loading;
    const { signal } = loading;
    this.head = null;
    this.count = BYTES_A_PAGE;
    if (this.entry.kind !== "file") return;
    const { size } = this.entry;
    try {
      const bytes = await this.engine.call("file", { ...this.place, offset: 0n, length: HEAD_LENGTH }, { signal });
      const text = textIn(bytes, size <= BigInt(bytes.length));
      const picture = size <= BigInt(PICTURE_LENGTH_MAX) ? pictureType(bytes) : null;
      this.head = { bytes, text, picture };
      this.way = picture === null ? (text === null ? "bytes" : "text") : "picture";
      if (picture !== null) await this.#loadPicture(picture, bytes, Number(size), signal);
    } catch (error) {
      if (!signal.aborted) this.head = asError(error);
    }
  }

  async #loadPicture(type: string, head: Uint8Array, size: number, signal: AbortSignal): Promise<void> {
    try {
      const rest =
        size > head.length
          ? await this.engine.call("file", { ...this.place, offset: BigInt(head.length), length: size - head.length }, { signal })
          : new Uint8Array();
      const blob = new Blob([head as BlobPart, rest as BlobPart], { type });
      if (!signal.aborted) this.picture = URL.createObjectURL(blob);
    } catch (error) {
      if (!signal.aborted) this.picture = asError(error);
    }
  }

  protected override render(): TemplateResult {
    const { kind, size, mode, modeText, user, group, modified, problem } = this.entry;
    const facts: [string, string][] = [["What", kind]];
    if (kind === "file") facts.push(["Size", size < 1024n ? bytesText(size) : `${sizeText(size)} (${bytesText(size)})`]);
    if (modified !== null) facts.push(["Changed", dateText(modified)]);
    if (mode !== null) facts.push(["Mode", modeText]);
    if (user !== null) facts.push(["Owner", `${user}:${group}`]);
    return html`
      <dl>
        ${facts.map(([term, text]) => html`<div><dt>${term}</dt><dd class=${term === "Mode" ? "mono" : "number"}>${text}</dd></div>`)}
      </dl>
      ${problem === null ? nothing : html`<p class="bad break">${shown(problem)}</p>`} ${kind === "file" ? this.#content() : nothing}
    `;
  }

  #content(): TemplateResult {
    const { head } = this;
    if (head === null) return html`<p class="muted" role="status">Reading&hellip;</p>`;
    if (head instanceof Error) return html`<p class="bad break" role="alert">${shown(head.message)}</p>`;
    if (head.bytes.length === 0) return html`<p class="muted">This file is empty.</p>`;
    const ways: Way[] = ["bytes"];
    if (head.text !== null) ways.unshift("text");
    if (head.picture !== null) ways.unshift("picture");
    return html`
      ${when(
        ways.length > 1,
        () => html`<fieldset aria-label="Show as">
          ${ways.map(
            (way) =>
              html`<label>
                <input type="radio" name="way" .checked=${this.way === way} @change=${() => (this.way = way)} />${WAY_NAMES[way]}
              </label>`,
          )}
        </fieldset>`,
      )}
      ${this.#shown(head)}
    `;
  }

  #shown({ bytes, text }: Head): TemplateResult {
    switch (this.way) {
      case "picture":
        return this.#picture();
      case "text":
        return html`<pre tabindex="0" aria-label="Text">${linesShown(text ?? "")}</pre>
          ${this.#cut(bytes.length)}`;
      case "bytes":
        return this.#bytes(bytes);
    }
  }

  #picture(): TemplateResult {
    const { picture } = this;
    if (picture === null) return html`<p class="muted" role="status">Reading&hellip;</p>`;
    if (picture instanceof Error) return html`<p class="bad break" role="alert">${shown(picture.message)}</p>`;
    return html`<img
      src=${picture}
      alt=${`The picture in ${shown(this.entry.name)}`}
      @error=${() => (this.picture = new Error("The browser cannot show this picture: it is damaged."))}
    />`;
  }

  #bytes(bytes: Uint8Array): TemplateResult {
    const rows = [];
    const end = Math.min(this.count, bytes.length);
    const digits = Math.max(4, (end - 1).toString(16).length);
    for (let at = 0; at < end; at += ROW_LENGTH) {
      const row = bytes.subarray(at, Math.min(at + ROW_LENGTH, end));
      const gap = " ".repeat((ROW_LENGTH - row.length) * 3 + (row.length <= 8 && row.length < ROW_LENGTH ? 1 : 0));
      rows.push(
        html`<span class="muted">${at.toString(16).padStart(digits, "0")}</span>  ${hexParts(row)}${gap}  ${[...row].map(asciiOf).join("")}${"\n"}`,
      );
    }
    return html`<pre tabindex="0" aria-label="Bytes">${rows}</pre>
      ${when(
        bytes.length > end,
        () => html`<p class="more"><button class="quiet" @click=${() => (this.count *= 4)}>Show more</button></p>`,
      )}
      ${bytes.length <= end ? this.#cut(end) : nothing}`;
  }

  /** Says that there is more in the file than is shown. */
  #cut(length: number): TemplateResult | typeof nothing {
    if (BigInt(length) >= this.entry.size) return nothing;
    return html`<p class="muted small more">
      The first ${sizeText(length)} of ${nameOf(this.entry.name, "")}. Save the file to see all of it.
    </p>`;
  }
}

customElements.define("cow-file", CowFile);
