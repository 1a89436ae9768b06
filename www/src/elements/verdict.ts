// Is the image safe to hand to a virtual machine? The conclusion, and every finding with its severity and its place.

import { css, html, LitElement, type TemplateResult } from "lit";
import type { Finding, Verdict } from "../engine/contract.js";
import type { Space } from "../engine/protocol.js";
import { counted, shown } from "../model/text.js";
import { shared } from "../style/shared.js";
import { hexLink, when } from "./parts.js";

const CONCLUSIONS: Record<Verdict["conclusion"], { tone: string; heading: string; text: string }> = {
  safe: {
    tone: "good",
    heading: "Safe to hand to a virtual machine",
    text: "It names no other file, and nothing was found in it that could do harm.",
  },
  caution: {
    tone: "fair",
    heading: "Look before you run it",
    text: "Nothing here is an attack by itself, but each of these deserves a look.",
  },
  unsafe: {
    tone: "bad",
    heading: "Do not hand this to a virtual machine",
    text: "At least one of these could harm the host, or the data.",
  },
};

const TONES: Record<Finding["severity"], string> = { danger: "bad", caution: "fair", info: "" };
const GUEST_STRUCTURE = "guest disk";
/** Findings shown before the person asks for all of them. */
const FINDINGS_SHOWN = 12;

export class CowVerdict extends LitElement {
  static override properties = { verdict: {}, all: { state: true } };
  declare verdict: Verdict | Error | null;
  declare private all: boolean;

  constructor() {
    super();
    this.all = false;
  }

  static override styles = [
    shared,
    css`
      .card {
        position: relative;
        overflow: hidden;
        padding-top: 24px;
      }
      .card::before {
        content: "";
        position: absolute;
        inset: 0 0 auto;
        height: 4px;
        background: var(--line-strong);
      }
      .card.good::before {
        background: var(--good);
      }
      .card.fair::before {
        background: var(--fair);
      }
      .card.bad::before {
        background: var(--bad);
      }
      .head {
        display: grid;
        grid-template-columns: 30px minmax(0, 1fr);
        gap: 2px 12px;
        align-items: center;
      }
      .head svg {
        width: 30px;
        height: 30px;
        grid-row: span 1;
      }
      .good svg {
        color: var(--good);
      }
      .fair svg {
        color: var(--fair);
      }
      .bad svg {
        color: var(--bad);
      }
      .head h2 {
        font-size: 1.2rem;
      }
      .head p {
        grid-column: 2;
        color: var(--muted);
      }
      ul {
        list-style: none;
        margin-top: 16px;
      }
      li {
        display: grid;
        grid-template-columns: 74px minmax(0, 1fr);
        gap: 2px 12px;
        padding: 10px 0;
        border-top: 1px solid var(--line);
      }
      li:last-child {
        padding-bottom: 0;
      }
      .place {
        grid-column: 2;
        font-size: 0.85rem;
        color: var(--muted);
        display: flex;
        flex-wrap: wrap;
        gap: 0 12px;
      }
      @media (max-width: 460px) {
        li {
          grid-template-columns: minmax(0, 1fr);
        }
        .place {
          grid-column: 1;
        }
      }
      .all {
        margin-top: 10px;
      }
    `,
  ];

  protected override render(): TemplateResult {
    const { verdict } = this;
    if (verdict === null) {
      return html`<section class="card"><p class="muted" role="status">Looking for what could do harm&hellip;</p></section>`;
    }
    if (verdict instanceof Error) {
      return html`<section class="card bad">
        <div class="head">${ICONS.bad}<h2>No verdict</h2><p class="break">${shown(verdict.message)}</p></div>
      </section>`;
    }
    const { tone, heading, text } = CONCLUSIONS[verdict.conclusion];
    const findings = this.all ? verdict.findings : verdict.findings.slice(0, FINDINGS_SHOWN);
    const rest = verdict.findings.length - findings.length;
    return html`<section class="card ${tone}" aria-labelledby="verdict">
      <div class="head">
        ${ICONS[tone]}
        <h2 id="verdict">${heading}</h2>
        <p>${text}</p>
      </div>
      ${when(findings.length > 0, () => html`<ul>${findings.map((finding) => this.#finding(finding))}</ul>`)}
      ${when(
        rest > 0,
        () =>
          html`<p class="all">
            <button class="quiet" @click=${() => (this.all = true)}>Show ${counted(rest, "more finding")}</button>
          </p>`,
      )}
    </section>`;
  }

  #finding(finding: Finding): TemplateResult {
    return html`<li>
      <div><span class="tag ${TONES[finding.severity]}">${shown(finding.severity)}</span></div>
      <p class="break">${shown(finding.text)}</p>
      <p class="place">
        <span class="mono">${shown(finding.code)}</span>
        <span>${shown(finding.structure)}</span>
        ${when(finding.offset !== null, () => html`<span>at ${hexLink(spaceOf(finding), finding.offset ?? 0n)}</span>`)}
      </p>
    </li>`;
  }
}

/** What the guest wrote is on the disk, everything else in the file. */
function spaceOf({ structure }: Finding): Space {
  return structure === GUEST_STRUCTURE ? "guest" : "host";
}

const ICONS: Record<string, TemplateResult> = {
  good: html`<svg viewBox="0 0 30 30" fill="none" stroke="currentColor" stroke-width="2.4" aria-hidden="true">
    <circle cx="15" cy="15" r="12" />
    <path d="m9.5 15.5 4 4 7.5-8.5" stroke-linecap="round" stroke-linejoin="round" />
  </svg>`,
  fair: html`<svg viewBox="0 0 30 30" fill="none" stroke="currentColor" stroke-width="2.4" aria-hidden="true">
    <path d="M15 4 28 26H2Z" stroke-linejoin="round" />
    <path d="M15 12v6.5M15 22v.6" stroke-linecap="round" />
  </svg>`,
  bad: html`<svg viewBox="0 0 30 30" fill="none" stroke="currentColor" stroke-width="2.4" aria-hidden="true">
    <path d="M10 3h10l7 7v10l-7 7H10l-7-7V10Z" stroke-linejoin="round" />
    <path d="m11 11 8 8m0-8-8 8" stroke-linecap="round" />
  </svg>`,
};

customElements.define("cow-verdict", CowVerdict);
