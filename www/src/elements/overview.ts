// The first view: what the image is, whether it is safe, how large, what it stands on, what snapshots it holds.

import { css, html, LitElement, nothing, type TemplateResult } from "lit";
import type { Snapshot, Verdict } from "../engine/contract.js";
import { KINDS, type Allocation } from "../model/allocation.js";
import { describe, roleOf } from "../model/describe.js";
import { bytesText, shareText, sizeText } from "../model/size.js";
import { shared } from "../style/shared.js";
import { swatches } from "../style/swatch.js";
import type { Session } from "./desk.js";
import { KIND_WORDS, swatch } from "./kinds.js";
import { clockText, dateText, nameOf, sizeOf, when } from "./parts.js";
import "./verdict.js";

/** Fires `choose` with a snapshot's id or null, and `supply` to be asked for the missing files again. */
export class CowOverview extends LitElement {
  static override properties = { session: {}, verdict: {}, allocation: {}, scanError: {} };
  declare session: Session;
  declare verdict: Verdict | Error | null;
  declare allocation: Allocation | null;
  declare scanError: Error | null;

  static override styles = [
    shared,
    swatches,
    css`
      .what {
        font-size: clamp(1.2rem, 2.2vw, 1.5rem);
        line-height: 1.35;
        letter-spacing: -0.012em;
        font-weight: 500;
        max-width: 44em;
        margin-bottom: 22px;
        text-wrap: pretty;
      }
      .columns {
        display: grid;
        grid-template-columns: minmax(0, 1fr) minmax(0, 1fr);
        gap: var(--gap);
        align-items: start;
      }
      .columns > div {
        display: grid;
        grid-template-columns: minmax(0, 1fr);
        gap: var(--gap);
      }
      .wide {
        margin-top: var(--gap);
      }
      @media (max-width: 900px) {
        .columns {
          grid-template-columns: minmax(0, 1fr);
        }
      }
      .figures {
        display: grid;
        grid-template-columns: repeat(auto-fit, minmax(120px, 1fr));
        gap: 14px 20px;
      }
      .figures dt {
        color: var(--muted);
        font-size: 0.87rem;
      }
      .figures dd {
        font-size: 1.45rem;
        font-weight: 600;
        letter-spacing: -0.015em;
        line-height: 1.25;
      }
      .figures dd + dd {
        font-size: 0.82rem;
        font-weight: 400;
        letter-spacing: 0;
        color: var(--muted);
      }
      .bar {
        display: flex;
        gap: 2px;
        height: 14px;
        margin: 20px 0 12px;
        border-radius: 4px;
        overflow: hidden;
        background: var(--sunken);
      }
      .bar span {
        min-width: 3px;
        flex-basis: 0;
      }
      .bar .data {
        background: var(--map-data);
      }
      .bar .backing {
        background: repeating-linear-gradient(0deg, var(--map-backing) 0 3px, var(--map-backing-mark) 3px 4.5px);
      }
      .bar .compressed {
        background: repeating-linear-gradient(
          135deg,
          var(--map-compressed) 0 4px,
          var(--map-compressed-mark) 4px 5.5px
        );
      }
      .bar .zero {
        background: radial-gradient(circle at center, var(--map-zero-mark) 1.5px, var(--map-zero) 2px) 0 0 / 9px 14px;
      }
      .bar .unallocated {
        background: var(--map-unallocated);
        box-shadow: inset 0 0 0 1px var(--map-unallocated-mark);
      }
      .kinds {
        list-style: none;
        display: flex;
        flex-wrap: wrap;
        gap: 4px 20px;
        font-size: 0.87rem;
      }
      .kinds li {
        display: flex;
        align-items: center;
        gap: 7px;
      }
      .more {
        margin-top: 14px;
      }
      .chain {
        list-style: none;
      }
      .chain li {
        position: relative;
        display: grid;
        grid-template-columns: 22px minmax(0, 1fr);
        gap: 0 12px;
        padding-bottom: 18px;
      }
      .chain li:last-child {
        padding-bottom: 0;
      }
      .chain li:not(:last-child)::before {
        content: "";
        position: absolute;
        left: 10.25px;
        top: 22px;
        bottom: -4px;
        border-left: 1.5px solid var(--line-strong);
      }
      .chain i {
        width: 12px;
        height: 12px;
        margin: 5px;
        border-radius: 50%;
        background: var(--accent);
        border: 2px solid var(--accent);
      }
      .chain .below i {
        background: var(--panel);
      }
      .chain .blank i {
        background: var(--panel);
        border: 2px dashed var(--line-strong);
      }
      .chain .layer {
        display: flex;
        min-width: 0;
        font-weight: 600;
      }
      .blank .layer {
        font-weight: 400;
      }
      td .name {
        display: flex;
        min-width: 8em;
        max-width: 26em;
      }
      tr[aria-current] td {
        background: var(--accent-soft);
      }
      td.date {
        white-space: nowrap;
      }
      td.act {
        padding-top: 3px;
        padding-bottom: 3px;
        text-align: right;
        white-space: nowrap;
      }
      @media (max-width: 720px) {
        /* Within reach however far the table is scrolled. */
        td.act {
          position: sticky;
          right: 0;
          background: var(--panel);
          box-shadow:
            28px 0 0 var(--panel),
            -8px 0 8px var(--panel);
        }
      }
      .traits {
        list-style: none;
        display: flex;
        flex-wrap: wrap;
        gap: 8px 12px;
      }
      .traits li {
        display: flex;
        align-items: baseline;
        gap: 8px;
        min-width: 0;
        max-width: 100%;
      }
      .bad {
        color: var(--bad);
      }
    `,
  ];

  protected override render(): TemplateResult {
    const { facts } = this.session;
    return html`
      <p class="what">${describe(facts)}</p>
      <div class="columns">
        <div>
          <cow-verdict .verdict=${this.verdict}></cow-verdict>
        </div>
        <div>${this.#sizes()} ${this.#chain()} ${this.#traits()}</div>
      </div>
      ${when(facts.snapshots.length > 0, () => this.#snapshots(facts.snapshots))}
    `;
  }

  #sizes(): TemplateResult {
    const { facts } = this.session;
    const { allocation } = this;
    return html`<section class="card" aria-labelledby="sizes">
      <h2 id="sizes">Size</h2>
      <dl class="figures">
        <div>
          <dt>The disk</dt>
          <dd>${sizeOf(facts.virtualSize)}</dd>
          <dd class="number">${bytesText(facts.virtualSize)}</dd>
        </div>
        <div>
          <dt>Holding data</dt>
          ${this.#holding()}
        </div>
        <div>
          <dt>The file</dt>
          <dd>${sizeOf(facts.hostSize)}</dd>
          <dd class="number">${bytesText(facts.hostSize)}</dd>
        </div>
      </dl>
      ${allocation ? this.#bar(allocation) : nothing}
      ${when(
        this.scanError,
        () => html`<p class="bad small more break">The map could not be read to its end: ${this.scanError?.message}</p>`,
      )}
      <p class="more small"><a href="#map">See where it lies on the map</a></p>
    </section>`;
  }

  #holding(): TemplateResult {
    const { allocation } = this;
    if (!allocation) return html`<dd class="muted">&hellip;</dd>`;
    const held = KINDS.reduce(
      (sum, kind, index) =>
        kind === "zero" || kind === "unallocated" ? sum : sum + (allocation.totals[index] ?? 0),
      0,
    );
    const whole = allocation.done >= allocation.offset + allocation.length;
    return html`
      <dd>${sizeOf(held)}</dd>
      <dd class="number">
        ${whole
          ? html`${shareText(held, Number(allocation.length))} of the disk`
          : html`so far, ${shareText(Number(allocation.done - allocation.offset), Number(allocation.length))} looked at`}
      </dd>
    `;
  }

  #bar(allocation: Allocation): TemplateResult {
    const length = Number(allocation.length);
    const parts = KINDS.map((kind, index) => ({ kind, bytes: allocation.totals[index] ?? 0 })).filter(
      ({ bytes }) => bytes > 0,
    );
    return html`
      <div class="bar" aria-hidden="true">
        ${parts.map(({ kind, bytes }) => html`<span class=${kind} .style=${`flex-grow: ${bytes / length}`}></span>`)}
      </div>
      <ul class="kinds">
        ${parts.map(
          ({ kind, bytes }) =>
            html`<li>${swatch(kind)} ${KIND_WORDS[kind].name} <span class="muted number">${sizeText(bytes)}</span></li>`,
        )}
      </ul>
    `;
  }

  #chain(): TemplateResult | typeof nothing {
    const { facts, answered } = this.session;
    const blanks = answered.filter(({ answer }) => answer === "zeros");
    const given = answered.filter(({ given: name }) => name !== null);
    if (facts.layers.length < 2 && blanks.length === 0 && given.length === 0) return nothing;
    const data = given.filter(({ reference }) => reference.kind === "data-file");
    return html`<section class="card" aria-labelledby="chain">
      <h2 id="chain">What it stands on</h2>
      <ol class="chain">
        ${facts.layers.map(
          (layer) =>
            html`<li class=${layer.depth > 0 ? "below" : ""}>
              <i></i>
              <div>
                <span class="layer">${nameOf(layer.name || this.session.file.name)}</span>
                <span class="small muted">
                  ${layer.depth === 0 ? "this file, " : ""}${layer.format}, a disk of ${sizeOf(layer.virtualSize)}
                </span>
              </div>
            </li>`,
        )}
        ${data.map(
          ({ reference, given: name }) =>
            html`<li class="below">
              <i></i>
              <div>
                <span class="layer">${nameOf(name ?? reference.name)}</span>
                <span class="small muted">its ${roleOf(reference)}</span>
              </div>
            </li>`,
        )}
        ${blanks.map(
          ({ reference }) =>
            html`<li class="blank">
              <i></i>
              <div>
                <span class="layer">${nameOf(reference.name)}</span>
                <span class="small muted">${roleOf(reference)}, not given: read as zeros</span>
              </div>
            </li>`,
        )}
      </ol>
      ${when(
        blanks.length > 0,
        () =>
          html`<p class="more">
            <button @click=${() => this.dispatchEvent(new CustomEvent("supply"))}>Supply the missing files</button>
          </p>`,
      )}
    </section>`;
  }

  /** The features by name, and the bitmaps. */
  #traits(): TemplateResult | typeof nothing {
    const { features, bitmaps } = this.session.facts;
    if (features.length === 0 && bitmaps.length === 0) return nothing;
    return html`<section class="card" aria-labelledby="traits">
      <h2 id="traits">Features</h2>
      <ul class="traits">
        ${features.map(
          ({ name, bit, set, known }) =>
            html`<li><span class="tag ${known ? "" : "bad"}" title=${`${set}, bit ${bit}`}>${nameOf(name || `${set} bit ${bit}`)}</span></li>`,
        )}
        ${bitmaps.map(
          ({ name, granularity, flags }) =>
            html`<li>
              <span class="tag">bitmap</span> ${nameOf(name)}
              <span class="muted small">${[`one bit for ${sizeText(granularity)}`, ...flags].join(", ")}</span>
            </li>`,
        )}
      </ul>
    </section>`;
  }

  #snapshots(snapshots: Snapshot[]): TemplateResult {
    const chosen = this.session.snapshot;
    const choose = (id: string | null): void => {
      this.dispatchEvent(new CustomEvent("choose", { detail: id }));
    };
    return html`<section class="card wide" aria-labelledby="snapshots">
      <h2 id="snapshots">Snapshots</h2>
      <div class="scroll-x" tabindex="0" role="group" aria-labelledby="snapshots">
        <table>
          <thead>
            <tr>
              <th scope="col">ID</th>
              <th scope="col">Name</th>
              <th scope="col">Taken</th>
              <th scope="col" class="right">Memory</th>
              <th scope="col" class="right">Guest's clock</th>
              <th scope="col" class="right">Disk</th>
              <th><span class="visually-hidden">Look at it</span></th>
            </tr>
          </thead>
          <tbody>
            ${snapshots.map(
              (one) =>
                html`<tr aria-current=${one.id === chosen ? "true" : nothing}>
                  <td>${nameOf(one.id)}</td>
                  <td><span class="name">${nameOf(one.name)}</span></td>
                  <td class="date">${dateText(one.date)}</td>
                  <td class="right">${one.vmStateSize === 0n ? html`<span class="muted">none</span>` : sizeOf(one.vmStateSize)}</td>
                  <td class="right">${clockText(one.vmClock)}</td>
                  <td class="right">
                    ${one.diskSize === null ? html`<span class="muted">as now</span>` : sizeOf(one.diskSize)}
                  </td>
                  <td class="act">
                    ${one.id === chosen
                      ? html`<button class="quiet" @click=${() => choose(null)}>Back to now</button>`
                      : html`<button class="quiet" @click=${() => choose(one.id)}>Look at it</button>`}
                  </td>
                </tr>`,
            )}
          </tbody>
        </table>
      </div>
    </section>`;
  }
}

customElements.define("cow-overview", CowOverview);
