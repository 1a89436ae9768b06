// The cluster explorer: from a place of the disk through the tables to the file, and from a place in the file back to
// everything that refers to it. Each entry is shown bit by bit.

import { css, html, LitElement, nothing, type TemplateResult } from "lit";
import type { Engine } from "../engine/client.js";
import type { ImageFacts, Progress, Space } from "../engine/protocol.js";
import type { Claim, Owner } from "../model/owner.js";
import { offsetText, parseOffset } from "../model/size.js";
import type { Refcount } from "../model/tables.js";
import { counted, shown } from "../model/text.js";
import type { Bits, End, Step, Trail } from "../model/trail.js";
import { shared, stack } from "../style/shared.js";
import { clusterLink, hexLink, when } from "./parts.js";
import "./progress.js";

type Found =
  | { at: "looking"; progress: Progress | null }
  | { at: "trail"; trail: Trail }
  | { at: "owner"; owner: Owner }
  | { at: "failed"; error: Error };

/** Sooner than this a bar would only flicker. */
const SLOW_MS = 300;

export class CowClusters extends LitElement {
  static override properties = {
    engine: {},
    facts: {},
    space: {},
    offset: {},
    found: { state: true },
    wrong: { state: true },
    slow: { state: true },
  };
  declare engine: Engine;
  declare facts: ImageFacts;
  declare space: Space;
  declare offset: bigint;
  declare private found: Found;
  declare private wrong: string | null;
  declare private slow: boolean;

  #looking: AbortController | null = null;

  constructor() {
    super();
    this.found = { at: "looking", progress: null };
    this.wrong = null;
    this.slow = false;
  }

  static override styles = [
    shared,
    stack,
    css`
      form {
        display: flex;
        flex-wrap: wrap;
        align-items: center;
        gap: 10px 18px;
      }
      fieldset {
        border: 0;
        margin: 0;
        padding: 0;
        display: flex;
        flex-wrap: wrap;
        gap: 6px 16px;
      }
      label {
        display: flex;
        gap: 7px;
        align-items: center;
      }
      .go {
        display: flex;
        gap: 8px;
        flex: 1;
        max-width: 420px;
      }
      .go input {
        flex: 1;
        width: 100%;
      }
      .near {
        display: flex;
        gap: 6px;
      }
      .wrong {
        color: var(--bad);
        font-size: 0.87rem;
        margin-top: 8px;
      }
      ol {
        list-style: none;
        margin: 0;
        padding: 0;
        display: grid;
        grid-template-columns: minmax(0, 1fr);
        gap: 34px;
      }
      .step {
        position: relative;
      }
      .step:not(:last-child)::after {
        content: "";
        position: absolute;
        left: 32px;
        bottom: -35px;
        height: 34px;
        border-left: 2px solid var(--line-strong);
      }
      .step:not(:last-child)::before {
        content: "";
        position: absolute;
        left: 28px;
        bottom: -33px;
        width: 8px;
        height: 8px;
        border: solid var(--line-strong);
        border-width: 0 2px 2px 0;
        transform: rotate(45deg);
      }
      .head {
        display: flex;
        flex-wrap: wrap;
        align-items: baseline;
        gap: 2px 14px;
        margin-bottom: 10px;
      }
      .bits {
        display: flex;
        height: 22px;
        gap: 2px;
        margin: 10px 0 12px;
        font: 0.7rem/22px var(--mono);
      }
      .bits span {
        min-width: 14px;
        flex-basis: 0;
        border-radius: 3px;
        text-align: center;
        overflow: hidden;
        background: var(--sunken);
        color: var(--muted);
        white-space: nowrap;
      }
      .bits .set {
        background: var(--accent-soft);
        color: var(--accent);
      }
      .bits .leads {
        background: var(--accent);
        color: var(--accent-ink);
      }
      .bits .broken {
        background: var(--bad-soft);
        color: var(--bad);
      }
      .bad {
        color: var(--bad);
      }
      dl {
        display: grid;
        grid-template-columns: max-content minmax(0, 1fr);
        gap: 4px 18px;
      }
      dt {
        color: var(--muted);
      }
      .end h3 {
        font-size: 1.07rem;
        margin-bottom: 6px;
      }
      td.meaning {
        min-width: 14em;
      }
      td.number {
        white-space: nowrap;
      }
      .scroll-x {
        margin-top: 12px;
      }
      @media (max-width: 560px) {
        .go {
          flex-basis: 100%;
          max-width: none;
        }
        td.meaning {
          min-width: 0;
        }
        table {
          font-size: 0.85rem;
        }
        td,
        th {
          padding-right: 10px;
        }
      }
    `,
  ];

  override disconnectedCallback(): void {
    super.disconnectedCallback();
    this.#looking?.abort();
  }

  protected override willUpdate(changed: Map<PropertyKey, unknown>): void {
    if (changed.has("facts") || changed.has("space") || changed.has("offset")) {
      this.wrong = null;
      void this.#look();
    }
  }

  protected override render(): TemplateResult {
    if (this.facts.format !== "qcow2") {
      return html`<section class="card">
        <h2>No clusters</h2>
        <p class="muted">A raw disk has no tables: byte n of the file is byte n of the disk. <a href="#hex">See its bytes.</a></p>
      </section>`;
    }
    return html`
      <section class="card" aria-labelledby="where">
        <h2 id="where">${this.space === "guest" ? "Where a place of the disk is kept" : "Whose a place in the file is"}</h2>
        ${this.#form()}
      </section>
      ${this.#found()}
    `;
  }

  #form(): TemplateResult {
    const cluster = BigInt(this.facts.clusterSize ?? 1);
    const begin = this.offset - (this.offset % cluster);
    return html`
      <form @submit=${this.#onSubmit} novalidate>
        <fieldset>
          <legend class="visually-hidden">Look from</legend>
          ${(["guest", "host"] as const).map(
            (space) => html`<label>
              <input type="radio" name="space" value=${space} .checked=${this.space === space} @change=${() => this.#show(space, this.offset)} />
              ${space === "guest" ? "The disk" : "The file"}
            </label>`,
          )}
        </fieldset>
        <div class="go">
          <input
            id="place"
            type="text"
            autocomplete="off"
            spellcheck="false"
            aria-label="Offset"
            aria-describedby="wrong"
            placeholder="0x10000, 64K, 1.5 GiB"
            .value=${offsetText(this.offset)}
          />
          <button type="submit">Look</button>
        </div>
        <div class="near">
          <button type="button" ?disabled=${begin === 0n} @click=${() => this.#show(this.space, begin - cluster)}>Cluster before</button>
          <button type="button" ?disabled=${begin + cluster >= this.#size()} @click=${() => this.#show(this.space, begin + cluster)}>
            Next cluster
          </button>
        </div>
      </form>
      <p id="wrong" class="wrong" role="status" ?hidden=${this.wrong === null}>${this.wrong}</p>
    `;
  }

  #found(): TemplateResult | typeof nothing {
    const { found } = this;
    switch (found.at) {
      case "looking":
        if (!this.slow) return nothing;
        return html`<section class="card">
          <cow-progress
            label="Looking through the tables"
            .done=${found.progress?.done ?? 0}
            .total=${found.progress?.total ?? 0}
            @stop=${() => this.#looking?.abort()}
          ></cow-progress>
        </section>`;
      case "failed":
        return html`<section class="card"><p class="bad break" role="alert">${shown(found.error.message)}</p></section>`;
      case "trail":
        return this.#trail(found.trail);
      case "owner":
        return this.#owner(found.owner);
    }
  }

  #trail({ steps, end, refcount, cluster, inCluster }: Trail): TemplateResult {
    return html`<ol aria-label="The way through the tables">
      <li class="card step">
        <h3>Cluster ${cluster.toLocaleString("en")} of the disk</h3>
        <p class="muted">${hexLink("guest", this.offset)} is byte ${inCluster.toLocaleString("en")} in it.</p>
      </li>
      ${steps.map((step) => html`<li class="card step">${this.#step(step)}</li>`)}
      <li class="card step end">${this.#end(end)} ${refcount ? this.#refcount(refcount) : nothing}</li>
    </ol>`;
  }

  #step({ structure, index, at, raw, bits }: Step): TemplateResult {
    const id = structure.replace(" ", "");
    return html`
      <div class="head">
        <h3 id=${id}>${structure} ${index.toLocaleString("en")}</h3>
        <span class="muted small">at ${hexLink("host", at)}</span>
        <span class="mono">0x${raw.toString(16).padStart(16, "0")}</span>
      </div>
      <div class="bits" aria-hidden="true">
        ${bits.map(
          (part) =>
            html`<span
              class=${part.wrong ? "broken" : part.leads !== null ? "leads" : part.value !== 0n ? "set" : ""}
              .style=${`flex-grow: ${part.high - part.low + 1}`}
              title=${part.name}
              >${bitsText(part)}</span
            >`,
        )}
      </div>
      <div class="scroll-x" tabindex="0" role="group" aria-labelledby=${id}>
        <table>
          <thead>
            <tr>
              <th scope="col">Bits</th>
              <th scope="col">Name</th>
              <th scope="col">Value</th>
              <th scope="col">Meaning</th>
            </tr>
          </thead>
          <tbody>
            ${bits.map(
              (part) =>
                html`<tr>
                  <td class="number">${bitsText(part)}</td>
                  <td>${part.name}</td>
                  <td class="mono">${part.leads === null ? offsetText(part.value) : clusterLink("host", part.leads)}</td>
                  <td class="meaning ${part.wrong ? "bad" : "muted"}">${part.meaning}</td>
                </tr>`,
            )}
          </tbody>
        </table>
      </div>
    `;
  }

  #end(end: End): TemplateResult {
    switch (end.kind) {
      case "broken":
        return html`<h3 class="bad">The way ends here</h3><p>${shown(end.reason)}</p>`;
      case "unallocated": {
        const below = this.facts.layers.length > 1;
        return html`<h3>Nothing is stored here</h3>
          <p class="muted">${below ? "What the disk shows here comes from the layer below." : "The disk reads as zeros here."}</p>`;
      }
      case "zero":
        return html`<h3>The disk reads as zeros here</h3>
          <p class="muted">${end.host === null ? "No cluster is kept for it." : html`A cluster is kept for it at ${this.#host(end)}.`}</p>`;
      case "compressed":
        return html`<h3>Compressed data</h3>
          <p class="muted">The stream begins at ${this.#host(end)}; this byte is inside it.</p>`;
      case "data":
        return html`<h3>Data</h3>
          <p class="muted">
            This byte is at ${this.#host(end)}${end.inDataFile ? " of the data file" : " of the file"}.
            ${end.inDataFile ? nothing : html`<a href=${`#clusters/host/${offsetText(end.host ?? 0n)}`}>Who else refers to it?</a>`}
          </p>`;
    }
  }

  #host(end: Extract<End, { host: bigint | null }>): TemplateResult {
    return end.inDataFile ? html`<span class="mono">${offsetText(end.host ?? 0n)}</span>` : hexLink("host", end.host ?? 0n);
  }

  #refcount({ value, at, cluster, block }: Refcount): TemplateResult {
    return html`<p class="muted">
      The refcount of cluster ${cluster.toLocaleString("en")} of the file is <b class="number">${value.toLocaleString("en")}</b>${at !== null
        ? html`, at ${hexLink("host", at)}`
        : block === null
          ? ": no refcount block covers it"
          : nothing}.
    </p>`;
  }

  #owner({ cluster, claims, more, refcount }: Owner): TemplateResult {
    const count = BigInt(claims.length);
    const verdict =
      claims.length === 0
        ? refcount.value === 0n
          ? "Nothing refers to this cluster, and its refcount is 0: it is free."
          : `Nothing was found to refer to this cluster, but its refcount is ${refcount.value}: it is leaked, or a bitmap's.`
        : claims.some(({ structure }) => structure !== "compressed data") && count !== refcount.value && !more
          ? `Its refcount is ${refcount.value}, and ${counted(claims.length, "reference")} ${claims.length === 1 ? "was" : "were"} found.`
          : null;
    return html`<section class="card" aria-labelledby="owners">
      <h2 id="owners">Cluster ${refcount.cluster.toLocaleString("en")} of the file, at ${hexLink("host", cluster)}</h2>
      ${this.#refcount(refcount)} ${when(verdict, () => html`<p>${verdict}</p>`)}
      ${when(
        claims.length > 0,
        () => html`<div class="scroll-x" tabindex="0" role="group" aria-labelledby="owners">
          <table>
            <thead>
              <tr>
                <th scope="col">It is</th>
                <th scope="col">Of</th>
                <th scope="col">Disk offset</th>
                <th scope="col">Referred to at</th>
              </tr>
            </thead>
            <tbody>
              ${claims.map((claim) => this.#claim(claim))}
            </tbody>
          </table>
        </div>`,
      )}
      ${when(more, () => html`<p class="muted small">There are more; these are the first.</p>`)}
    </section>`;
  }

  #claim({ structure, snapshot, guest, by }: Claim): TemplateResult {
    const now = this.facts.snapshot === null;
    const of = snapshot === undefined ? "the image" : snapshot === null ? "the disk as it is now" : `the snapshot ${shown(snapshot)}`;
    const isOpen = snapshot === null ? now : this.facts.snapshots.some(({ id, name }) => id === this.facts.snapshot && (name || id) === snapshot);
    return html`<tr>
      <td>${structure}</td>
      <td class="break">${of}</td>
      <td>
        ${guest === null
          ? html`<span class="muted">none</span>`
          : isOpen
            ? clusterLink("guest", guest)
            : html`<span class="mono">${offsetText(guest)}</span>`}
      </td>
      <td>${by === null ? html`<span class="muted">the header</span>` : hexLink("host", by)}</td>
    </tr>`;
  }

  #size(): bigint {
    return this.space === "guest" ? this.facts.virtualSize : this.facts.hostSize;
  }

  /** The address says what is looked at; the page then sets the properties. */
  #show(space: Space, offset: bigint): void {
    location.hash = `#clusters/${space}/${offsetText(offset)}`;
  }

  #onSubmit = (event: SubmitEvent): void => {
    event.preventDefault();
    const offset = parseOffset(this.renderRoot.querySelector<HTMLInputElement>("#place")?.value ?? "");
    if (offset === null) this.wrong = "Not an offset. Write 0x10000, 65536 or 64K.";
    else if (offset >= this.#size()) this.wrong = `Past the end: the last byte is at ${offsetText(this.#size() - 1n)}.`;
    else {
      this.wrong = null;
      this.#show(this.space, offset);
    }
  };

  async #look(): Promise<void> {
    this.#looking?.abort();
    if (this.facts.format !== "qcow2") return;
    const looking = new AbortController();
    this.#looking = looking;
    this.slow = false;
    this.found = { at: "looking", progress: null };
    const timer = window.setTimeout(() => (this.slow = this.#looking === looking), SLOW_MS);
    const given = { image: this.facts.image, offset: this.offset };
    try {
      if (this.offset >= this.#size()) throw new Error(`past the end: the last byte is at ${offsetText(this.#size() - 1n)}`);
      if (this.space === "guest") {
        const trail = await this.engine.call("trail", given, { signal: looking.signal });
        if (this.#looking === looking) this.found = { at: "trail", trail };
      } else {
        const owner = await this.engine.call("owner", given, {
          signal: looking.signal,
          onProgress: (progress) => {
            if (this.#looking === looking) this.found = { at: "looking", progress };
          },
        });
        if (this.#looking === looking) this.found = { at: "owner", owner };
      }
    } catch (error) {
      if (this.#looking !== looking) return;
      const stopped = looking.signal.aborted ? new Error("The search was cancelled.") : error;
      this.found = { at: "failed", error: stopped instanceof Error ? stopped : new Error(String(stopped)) };
    } finally {
      window.clearTimeout(timer);
    }
  }
}

function bitsText({ high, low }: Bits): string {
  return high === low ? String(high) : `${high}\u2013${low}`;
}

customElements.define("cow-clusters", CowClusters);
