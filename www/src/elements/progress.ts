// How far something long has come, or that it goes on where nobody can say how far, with a way to stop it.

import { css, html, LitElement, nothing, type TemplateResult } from "lit";
import { shareText } from "../model/size.js";
import { shared } from "../style/shared.js";

/** Fires `stop`. A total of 0 is one that is not known. */
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
      .bar span.somewhere {
        width: 30%;
        animation: along 1.6s ease-in-out infinite alternate;
      }
      @keyframes along {
        to {
          transform: translateX(233%);
        }
      }
      @media (prefers-reduced-motion: reduce) {
        .bar span.somewhere {
          animation-duration: 8s;
        }
      }
    `,
  ];

  protected override render(): TemplateResult {
    const isKnown = this.total > 0;
    const share = isKnown ? Math.min(1, this.done / this.total) : 0;
    return html`
      <div class="line">
        <span>${this.label}</span>
        ${isKnown ? html`<span class="muted number">${shareText(this.done, this.total)}</span>` : nothing}
        <button class="quiet" @click=${() => this.dispatchEvent(new CustomEvent("stop"))}>Cancel</button>
      </div>
      <div
        class="bar"
        role="progressbar"
        aria-label=${this.label}
        aria-valuemin="0"
        aria-valuemax="100"
        aria-valuenow=${isKnown ? Math.round(share * 100) : nothing}
      >
        ${isKnown ? html`<span .style=${`transform: scaleX(${share})`}></span>` : html`<span class="somewhere"></span>`}
      </div>
    `;
  }
}

customElements.define("cow-progress", CowProgress);
