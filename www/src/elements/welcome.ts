// Nothing is open yet.

import { css, html, LitElement, type TemplateResult } from "lit";
import { shared } from "../style/shared.js";
import { when } from "./parts.js";
import "./address.js";

/** Fires `pick`, or `address` with a URL. Dropping is the page's own affair: the whole window is the target. */
export class CowWelcome extends LitElement {
  static override properties = { notice: {}, address: {} };
  declare notice: string | null;
  /** An address that a link to this page proposes. */
  declare address: string;

  static override styles = [
    shared,
    css`
      :host {
        max-width: 860px;
        margin: 0 auto;
        padding: clamp(8px, 7vh, 84px) 0 20px;
      }
      h1 {
        font-size: clamp(1.7rem, 4.4vw, 2.5rem);
        line-height: 1.15;
        letter-spacing: -0.022em;
        font-weight: 680;
        text-wrap: balance;
      }
      .lead {
        font-size: 1.12rem;
        color: var(--muted);
        margin: 14px 0 30px;
        max-width: 36em;
        text-wrap: pretty;
      }
      .zone {
        display: flex;
        flex-direction: column;
        align-items: center;
        gap: 14px;
        text-align: center;
        padding: clamp(30px, 7vw, 60px) 20px;
        border: 2px dashed var(--line-strong);
        border-radius: 16px;
        background: var(--panel);
      }
      .zone strong {
        font-size: 1.15rem;
        font-weight: 600;
      }
      .zone svg {
        color: var(--accent);
      }
      .address {
        margin-top: 26px;
      }
      .address p {
        margin: 2px 0 10px;
      }
      .notice {
        margin-bottom: 16px;
        padding: 10px 16px;
        border-radius: var(--radius);
        background: var(--fair-soft);
        color: var(--fair);
      }
      ul {
        list-style: none;
        display: grid;
        grid-template-columns: repeat(2, 1fr);
        gap: 14px 32px;
        margin-top: 34px;
      }
      li p {
        color: var(--muted);
        font-size: 0.93rem;
        margin-top: 3px;
        text-wrap: pretty;
      }
      @media (max-width: 700px) {
        ul {
          grid-template-columns: 1fr;
        }
      }
    `,
  ];

  protected override render(): TemplateResult {
    return html`
      <h1>What is in this disk image?</h1>
      <p class="lead">
        Look inside a qcow2 or raw disk image: what it is, whether it is safe and sound, the files on it, every byte of it.
      </p>
      ${when(this.notice, () => html`<p class="notice" role="status">${this.notice}</p>`)}
      <div class="zone">
        <svg width="44" height="44" viewBox="0 0 44 44" fill="none" stroke="currentColor" stroke-width="2" aria-hidden="true">
          <rect x="6" y="26" width="32" height="12" rx="3" />
          <circle cx="31.5" cy="32" r="1.4" fill="currentColor" />
          <path d="M22 4v15m-6-5.5 6 6 6-6" stroke-linecap="round" stroke-linejoin="round" />
        </svg>
        <strong>Drop an image anywhere on this page</strong>
        <button class="primary" @click=${() => this.dispatchEvent(new CustomEvent("pick"))}>Choose a file&hellip;</button>
        <span class="muted small">
          Any size. It is read where it is and never leaves this computer. An image and the files that it stands on can be dropped together.
        </span>
      </div>
      <div class="address">
        <h2>Or open one on a server</h2>
        <p class="muted small">Only the parts that you look at are fetched. The server must let other sites read its files.</p>
        <cow-address
          recent
          .value=${this.address}
          @address=${(event: CustomEvent<URL>) => this.dispatchEvent(new CustomEvent("address", { detail: event.detail }))}
        ></cow-address>
      </div>
      <ul>
        <li>
          <h2>Is it safe?</h2>
          <p>What the image would make a virtual machine open, and what in it is broken or made to mislead.</p>
        </li>
        <li>
          <h2>Is it broken?</h2>
          <p>Every reference checked against its count, every finding with its place, and a repair that you see before it is made.</p>
        </li>
        <li>
          <h2>Can I get my file back?</h2>
          <p>Partitions and folders, as they are now or in a snapshot. Save a file, or a folder as tar.</p>
        </li>
        <li>
          <h2>Where is the data?</h2>
          <p>The whole disk as a map, and every byte: of the disk or of the file, and the way between.</p>
        </li>
      </ul>
    `;
  }
}

customElements.define("cow-welcome", CowWelcome);
