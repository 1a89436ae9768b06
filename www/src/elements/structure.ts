// What the file says about itself: the header field by field, feature bits, extensions, and `qemu-img info` as JSON.

import { css, html, LitElement, nothing, type TemplateResult } from "lit";
import type { Engine } from "../engine/client.js";
import type { Extension, Feature, HeaderField } from "../engine/contract.js";
import type { ImageFacts } from "../engine/protocol.js";
import { offsetText, sizeText } from "../model/size.js";
import { placesOf, tablesOf } from "../model/tables.js";
import { shown } from "../model/text.js";
import { shared, stack } from "../style/shared.js";
import { regionsOf, toneOf, type Region } from "./headerhex.js";
import { clusterLink, hexLink, nameOf, when } from "./parts.js";

const SETS: Record<Feature["set"], string> = {
  incompatible: "A program that does not know one of these must not open the image.",
  compatible: "A program that does not know one of these may open and write the image.",
  autoclear: "A program that does not know one of these clears it when it writes.",
};

export class CowStructure extends LitElement {
  static override properties = { engine: {}, facts: {}, pointed: { state: true } };
  declare engine: Engine;
  declare facts: ImageFacts;
  /** The field that is pointed at, in the table or among the bytes. */
  declare private pointed: string | null;

  #regions: Region[] = [];

  constructor() {
    super();
    this.pointed = null;
  }

  static override styles = [
    shared,
    stack,
    css`
      .pair {
        display: grid;
        grid-template-columns: minmax(0, 1fr) minmax(0, 1fr);
        gap: var(--gap);
        align-items: start;
      }
      @media (max-width: 900px) {
        .pair {
          grid-template-columns: minmax(0, 1fr);
        }
      }
      .beside {
        display: grid;
        grid-template-columns: minmax(0, 1fr);
        gap: var(--gap);
        align-items: start;
      }
      @media (min-width: 1240px) {
        .beside {
          grid-template-columns: max-content minmax(0, 1fr);
        }
        .beside .hex {
          position: sticky;
          top: 16px;
        }
        .beside td.meaning {
          min-width: 9em;
        }
      }
      .table {
        display: flex;
        gap: 0.35em;
        min-width: 9em;
        max-width: 30em;
      }
      td:first-child,
      .field {
        white-space: nowrap;
      }
      .value {
        max-width: 26em;
        overflow-wrap: anywhere;
      }
      td.meaning {
        min-width: 16em;
        max-width: 40em;
      }
      h3 {
        margin-top: 16px;
        text-transform: capitalize;
      }
      .card > h2 + h3 {
        margin-top: 0;
      }
      ul {
        list-style: none;
        margin-top: 6px;
      }
      li {
        display: flex;
        gap: 10px;
        align-items: baseline;
        padding: 3px 0;
      }
      li .bit {
        min-width: 3.4em;
      }
      summary {
        cursor: pointer;
        font-weight: 650;
        font-size: 1.07rem;
      }
      pre {
        margin: 14px 0 0;
        font: 0.83rem/1.5 var(--mono);
        overflow-x: auto;
        background: var(--sunken);
        border-radius: 8px;
        padding: 14px 16px;
      }
      @media (max-width: 640px) {
        .fields,
        .fields tbody {
          display: block;
        }
        .fields thead {
          position: absolute;
          clip-path: inset(50%);
        }
        .fields tr {
          display: grid;
          grid-template-columns: 5.2em minmax(0, 1fr);
          gap: 1px 0;
          padding: 8px 0;
          border-top: 1px solid var(--line);
        }
        .fields td {
          border: 0;
          padding: 0;
          min-width: 0;
          grid-column: 2;
        }
        .fields td:first-child {
          grid-column: 1;
        }
        .fields .field {
          grid-row: 1;
          font-weight: 600;
        }
        .fields .bytes {
          display: none;
        }
      }
      .key {
        display: inline-block;
        width: 10px;
        height: 10px;
        border-radius: 3px;
        margin-right: 8px;
        box-shadow: inset 0 0 0 1px var(--line);
      }
      .key.t0 {
        background: color-mix(in srgb, var(--accent) 20%, transparent);
      }
      .key.t1 {
        background: color-mix(in srgb, var(--good) 20%, transparent);
      }
      .key.t2 {
        background: color-mix(in srgb, var(--fair) 20%, transparent);
      }
      .key.t3 {
        background: color-mix(in srgb, var(--bad) 20%, transparent);
      }
      tr.on td {
        background: var(--sunken);
      }
      .none {
        color: var(--muted);
      }
    `,
  ];

  protected override willUpdate(changed: Map<PropertyKey, unknown>): void {
    if (changed.has("facts")) this.#regions = regionsOf(this.facts);
  }

  protected override render(): TemplateResult {
    const { facts } = this;
    if (facts.format !== "qcow2") {
      return html`<section class="card">
        <h2>No structure</h2>
        <p class="muted">A raw disk has none of its own: byte n of the file is byte n of the disk. <a href="#hex">See its bytes.</a></p>
      </section>`;
    }
    return html`
      <div class="beside">
      <section class="card hex" aria-labelledby="bytes">
        <h2 id="bytes">The header's bytes</h2>
        <cow-header-hex
          .engine=${this.engine}
          .facts=${facts}
          .pointed=${this.pointed}
          @point=${(event: CustomEvent<string | null>) => (this.pointed = event.detail)}
        ></cow-header-hex>
      </section>
      <section class="card" aria-labelledby="header">
        <h2 id="header">Header</h2>
        <div class="scroll-x" tabindex="0" role="group" aria-labelledby="header">
          <table class="fields" role="table">
            <thead role="rowgroup">
              <tr role="row">
                <th role="columnheader">Offset</th>
                <th role="columnheader" class="right">Bytes</th>
                <th role="columnheader">Field</th>
                <th role="columnheader">Value</th>
                <th role="columnheader">Meaning</th>
              </tr>
            </thead>
            <tbody role="rowgroup">
              ${facts.header.map((field) => this.#field(field))}
            </tbody>
          </table>
        </div>
      </section>
      </div>
      ${this.#tables()}
      <div class="pair">
        <section class="card" aria-labelledby="features">
          <h2 id="features">Features</h2>
          ${(["incompatible", "compatible", "autoclear"] as const).map((set) => this.#set(set))}
        </section>
        <section class="card" aria-labelledby="extensions">
          <h2 id="extensions">Header extensions</h2>
          ${facts.extensions.length === 0 ? html`<p class="none">None.</p>` : this.#extensions(facts.extensions)}
        </section>
      </div>
      <section class="card">
        <details>
          <summary>As <code>qemu-img info --output=json</code> prints it</summary>
          <pre tabindex="0" role="group" aria-label="Information as JSON">${shownLines(JSON.stringify(facts.info, asJson, 4))}</pre>
        </details>
      </section>
    `;
  }

  #field(field: HeaderField): TemplateResult {
    return html`<tr
      role="row"
      class=${field.name === this.pointed ? "on" : ""}
      @pointerenter=${() => (this.pointed = field.name)}
      @pointerleave=${() => (this.pointed = null)}
    >
      <td role="cell"><span class="key ${toneOf(this.#regions, field.offset)}"></span>${hexLink("host", field.offset)}</td>
      <td class="right muted bytes" role="cell">${field.length}</td>
      <td class="field" role="cell">${shown(field.name)}</td>
      <td class="mono value" role="cell">${valueText(field)}</td>
      <td class="muted meaning" role="cell">${shown(field.meaning)}</td>
    </tr>`;
  }

  /** Where the tables lie that the header names. */
  #tables(): TemplateResult {
    const tables = tablesOf({ ...this.facts });
    const places = tables ? placesOf(tables) : [];
    return html`<section class="card" aria-labelledby="tables">
      <h2 id="tables">Tables</h2>
      <div class="scroll-x" tabindex="0" role="group" aria-labelledby="tables">
        <table>
          <thead>
            <tr>
              <th scope="col">Table</th>
              <th scope="col">Offset</th>
              <th scope="col" class="right">Entries</th>
              <th scope="col" class="right">Length</th>
              <th scope="col">Cluster</th>
            </tr>
          </thead>
          <tbody>
            ${places.map(
              ({ name, of, offset, entries, length }) =>
                html`<tr>
                  <td><span class="table"><span>${name}</span>${of === null ? nothing : html`<span>of</span> ${nameOf(of)}`}</span></td>
                  <td>${hexLink("host", offset)}</td>
                  <td class="right">${entries.toLocaleString("en")}</td>
                  <td class="right">${length === null ? html`<span class="muted">as it comes</span>` : sizeText(length)}</td>
                  <td>${clusterLink("host", offset, "look")}</td>
                </tr>`,
            )}
          </tbody>
        </table>
      </div>
    </section>`;
  }

  #set(set: Feature["set"]): TemplateResult {
    const features = this.facts.features.filter((feature) => feature.set === set);
    return html`
      <h3>${set}</h3>
      <p class="muted small">${SETS[set]}</p>
      ${features.length === 0
        ? html`<p class="none small">None is set.</p>`
        : html`<ul>
            ${features.map(
              ({ bit, name, known }) =>
                html`<li>
                  <span class="muted small number bit">bit ${bit}</span>
                  ${nameOf(name || "without a name", "break")}
                  ${when(!known, () => html`<span class="tag bad">unknown</span>`)}
                </li>`,
            )}
          </ul>`}
    `;
  }

  #extensions(extensions: Extension[]): TemplateResult {
    return html`<div class="scroll-x" tabindex="0" role="group" aria-labelledby="extensions">
      <table>
        <thead>
          <tr>
            <th scope="col">Offset</th>
            <th scope="col">Extension</th>
            <th scope="col" class="right">Length</th>
            <th scope="col">Says</th>
          </tr>
        </thead>
        <tbody>
          ${extensions.map(
            ({ type, name, offset, length, text }) =>
              html`<tr>
                <td>${hexLink("host", offset)}</td>
                <td>${shown(name)} <span class="mono muted">${offsetText(type)}</span></td>
                <td class="right">${sizeText(length)}</td>
                <td class="break">${shown(text)}</td>
              </tr>`,
          )}
        </tbody>
      </table>
    </div>`;
  }
}

/** A field as people write it: offsets and bits in hexadecimal, counts and sizes not. */
function valueText({ name, value }: HeaderField): string {
  return /magic|offset|features/.test(name) ? offsetText(value) : value.toString();
}

/** The engine's integers may be bigint, which JSON does not know. */
function asJson(_: string, value: unknown): unknown {
  if (typeof value !== "bigint") return value;
  const number = Number(value);
  return Number.isSafeInteger(number) ? number : value.toString();
}

function shownLines(text: string): string {
  return text.split("\n").map(shown).join("\n");
}

customElements.define("cow-structure", CowStructure);
