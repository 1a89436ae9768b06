// How far something long has come, with a way to stop it.

import { css, html, LitElement, type TemplateResult } from "lit";
import { shareText } from "../model/size.js";
import { shared } from "../style/shared.js";

/** Fires `stop`. */
export class CowProgress extends LitElement {
  static override properties = { label: {}, done: {}, total: {} };
  declare label: string;
  declare done: number;
  declare total: number;

  static override styles = [
    shared,
    css`
      .line {
        display: flex;
        align-items: center;
        gap: 8px 14px;
        flex-wrap: wrap;
      }
      .bar {
        height: 6px;
        border-radius: 3px;
        background: var(--sunken);
        overflow: hidden;
        margin-top: 10px;
      }
      .bar span {
        display: block;
        height: 100%;
        background: var(--accent);
        transform-origin: 0 0;
      }
    `,
  ];

  protected override render(): TemplateResult {
    const share = this.total > 0 ? Math.min(1, this.done / this.total) : 0;
    return html`
      <div class="line">
        <span>${this.label}</span>
        <span class="muted number">${shareText(this.done, this.total)}</span>
        <button class="quiet" @click=${() => this.dispatchEvent(new CustomEvent("stop"))}>Cancel</button>
      </div>
      <div
        class="bar"
        role="progressbar"
        aria-label=${this.label}
        aria-valuemin="0"
        aria-valuemax="100"
        aria-valuenow=${Math.round(share * 100)}
      >
        <span .style=${`transform: scaleX(${share})`}></span>
      </div>
    `;
  }
}

customElements.define("cow-progress", CowProgress);
