// The image names another file and the engine asks for it. Nothing is opened that the person does not hand over.

import { css, html, LitElement, type TemplateResult } from "lit";
import type { Reference } from "../engine/contract.js";
import { roleOf } from "../model/describe.js";
import { shared } from "../style/shared.js";
import { picked } from "./hand.js";
import { nameOf, when } from "./parts.js";
import "./address.js";

/** Fires `give` with a file or a URL, `zeros`, or `refuse`. */
export class CowAsk extends LitElement {
  static override properties = { reference: {}, name: {}, base: {} };
  declare reference: Reference;
  /** The image that is being opened. */
  declare name: string;
  /** Its address, if it has one: what it names may lie beside it. */
  declare base: string | null;

  static override styles = [
    shared,
    css`
      :host {
        max-width: 680px;
        margin: 0 auto;
        padding: clamp(8px, 6vh, 64px) 0 20px;
      }
      h1 {
        font-size: clamp(1.35rem, 3.4vw, 1.7rem);
        line-height: 1.25;
        letter-spacing: -0.015em;
        font-weight: 660;
        text-wrap: balance;
      }
      .lead {
        color: var(--muted);
        margin: 10px 0 22px;
      }
      .wanted {
        font-family: var(--mono);
        font-size: 1.05rem;
        font-weight: 600;
        text-align: center;
        max-width: 100%;
      }
      .zone {
        display: flex;
        flex-direction: column;
        align-items: center;
        gap: 12px;
        padding: 34px 20px;
        border: 2px dashed var(--line-strong);
        border-radius: 16px;
        background: var(--panel);
        text-align: center;
      }
      .elsewhere {
        margin-top: 16px;
      }
      .elsewhere summary {
        cursor: pointer;
        margin-bottom: 8px;
      }
      .others {
        display: flex;
        flex-wrap: wrap;
        gap: 10px;
        margin-top: 18px;
      }
      .note {
        margin-top: 10px;
      }
    `,
  ];

  protected override render(): TemplateResult {
    const { reference } = this;
    const role = roleOf(reference);
    const backing = reference.kind === "backing-file";
    return html`
      <h1>This image needs its ${role}</h1>
      <p class="lead break">
        ${nameOf(reference.from || this.name, "break")}
        ${backing
          ? "holds only what differs from another image. To show the whole disk, hand that image over too."
          : "keeps its data in another file. To show the disk, hand that file over too."}
      </p>
      <div class="zone">
        <span class="muted small">It asks for</span>
        ${nameOf(reference.name, "wanted break")}
        ${when(reference.format, () => html`<span class="muted small">format: ${nameOf(reference.format ?? "", "")}</span>`)}
        <button class="primary" @click=${this.#pick}>Choose the file&hellip;</button>
        <span class="muted small">or drop it anywhere on this page</span>
      </div>
      <details class="elsewhere" ?open=${this.base !== null}>
        <summary>It is on a server</summary>
        <cow-address
          .value=${this.#beside()}
          @address=${(event: CustomEvent<URL>) => this.dispatchEvent(new CustomEvent("give", { detail: event.detail }))}
        ></cow-address>
      </details>
      <div class="others">
        <button @click=${() => this.dispatchEvent(new CustomEvent("zeros"))}>Read it as zeros</button>
        <button class="quiet" @click=${() => this.dispatchEvent(new CustomEvent("refuse"))}>Cancel</button>
      </div>
      <p class="muted small note">
        Read as zeros, the image still shows its structure and its own data; only what the ${role} would supply is blank.
      </p>
    `;
  }

  /** Where the file would be if it lay beside the image. It is proposed, and fetched only if the person agrees. */
  #beside(): string {
    const { name } = this.reference;
    const isPlain = /^[\w][\w .+@-]*$/.test(name);
    return this.base !== null && isPlain ? new URL(encodeURIComponent(name), this.base).href : "";
  }

  #pick = async (): Promise<void> => {
    const given = await picked();
    if (given) this.dispatchEvent(new CustomEvent("give", { detail: given.file }));
  };
}

customElements.define("cow-ask", CowAsk);
