// A file that is no disk image, or one that cannot be opened: what is wrong, where, and what can be done.

import { css, html, LitElement, nothing, type TemplateResult } from "lit";
import { EngineError } from "../engine/client.js";
import { failureHeading } from "../model/describe.js";
import { offsetText, sizeText } from "../model/size.js";
import type { Guess } from "../model/sniff.js";
import { shown } from "../model/text.js";
import { shared } from "../style/shared.js";
import { nameOf } from "./parts.js";

/** Fires `pick` or `raw`. */
export class CowFailed extends LitElement {
  static override properties = { name: {}, size: {}, guess: {}, error: {} };
  declare name: string;
  /** Null if it is not known. */
  declare size: number | null;
  declare guess: Guess | null;
  declare error: Error | null;

  static override styles = [
    shared,
    css`
      :host {
        max-width: 680px;
        margin: 0 auto;
        padding: clamp(8px, 8vh, 84px) 0 20px;
      }
      h1 {
        font-size: clamp(1.35rem, 3.4vw, 1.7rem);
        line-height: 1.25;
        letter-spacing: -0.015em;
        font-weight: 660;
        text-wrap: balance;
      }
      .what {
        display: flex;
        gap: 0.6em;
        color: var(--muted);
        margin: 8px 0 20px;
      }
      .card p + p {
        margin-top: 8px;
      }
      dl {
        display: grid;
        grid-template-columns: max-content 1fr;
        gap: 4px 18px;
        margin-top: 14px;
        padding-top: 14px;
        border-top: 1px solid var(--line);
        font-size: 0.93rem;
      }
      dt {
        color: var(--muted);
      }
      .actions {
        display: flex;
        flex-wrap: wrap;
        gap: 10px;
        margin-top: 20px;
      }
    `,
  ];

  protected override render(): TemplateResult {
    const { heading, text } = this.#words();
    return html`
      <h1>${heading}</h1>
      <p class="what">${nameOf(this.name)} ${this.size === null ? nothing : html`<span class="number">${sizeText(this.size)}</span>`}</p>
      <div class="card" role="alert">
        ${text.map((line) => html`<p class="break">${line}</p>`)} ${this.#place()}
      </div>
      <div class="actions">
        <button class="primary" @click=${() => this.dispatchEvent(new CustomEvent("pick"))}>Choose another file&hellip;</button>
        ${this.size === null || this.size > 0
          ? html`<button @click=${() => this.dispatchEvent(new CustomEvent("raw"))}>Show its bytes as a raw disk</button>`
          : nothing}
      </div>
    `;
  }

  #words(): { heading: string; text: string[] } {
    const { guess, error } = this;
    if (guess) {
      switch (guess.kind) {
        case "empty":
          return { heading: "This file is empty", text: ["There is nothing in it to show."] };
        case "other":
          return guess.disk
            ? {
                heading: "This is another kind of disk image",
                text: [
                  `It looks like ${guess.what}. The inspector reads qcow2 and raw images.`,
                  "To look inside, convert it first: qemu-img convert -O qcow2 this-image new.qcow2",
                ],
              }
            : { heading: "This is not a disk image", text: [`It looks like ${guess.what}.`] };
        default:
          return {
            heading: "This does not look like a disk image",
            text: [
              "It does not begin as a qcow2 image does, and no partition table or file system was recognised in it.",
              "If it is a raw disk all the same, its bytes can be shown.",
            ],
          };
      }
    }
    if (!error) return { heading: "This image could not be opened", text: [] };
    const known = error instanceof EngineError ? error : { code: null, structure: null, message: error.message };
    return { heading: failureHeading(known), text: [sentence(shown(error.message))] };
  }

  #place(): TemplateResult | typeof nothing {
    const { error } = this;
    if (!(error instanceof EngineError)) return nothing;
    const rows: [string, string][] = [];
    if (error.structure) rows.push(["Where", error.structure]);
    if (error.offset !== null) rows.push(["File offset", offsetText(error.offset)]);
    if (error.code) rows.push(["Code", error.code]);
    if (rows.length === 0) return nothing;
    return html`<dl>
      ${rows.map(([term, text]) => html`<dt>${term}</dt><dd class=${term === "Where" ? "" : "mono"}>${shown(text)}</dd>`)}
    </dl>`;
  }
}

/** The engine's messages begin in lower case and end without a point. */
function sentence(text: string): string {
  const first = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?]$/.test(first) ? first : `${first}.`;
}

customElements.define("cow-failed", CowFailed);
