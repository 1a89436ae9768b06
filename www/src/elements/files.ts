// The files of a volume: a folder's entries or a file, the way there, a search by name, and saving.

import { css, html, LitElement, nothing, type TemplateResult } from "lit";
import type { Engine } from "../engine/client.js";
import type { Entry, Fault } from "../engine/contract.js";
import type { ImageFacts, SearchProgress, VolumeFacts } from "../engine/protocol.js";
import { asError } from "../model/error.js";
import { sorted, type Order, type SortKey } from "../model/order.js";
import { diskHash, fileName, joined, stepsOf, textOf } from "../model/path.js";
import { sizeText } from "../model/size.js";
import { counted, shown } from "../model/text.js";
import { shared } from "../style/shared.js";
import { kindIcon } from "./kindicon.js";
import { dateText, nameOf, sizeOf, when } from "./parts.js";
import { isDismissed, saveAs } from "./saving.js";
import "./file.js";

/** Rows shown before the person asks for more, and with each asking. */
const ROWS_A_PAGE = 500;
/** Files that a search lists; more are not looked for. */
const FOUND_MAX = 2000;
/** Sooner than this the old folder may stand. */
const SLOW_MS = 250;

const COLUMNS: { key: SortKey; name: string }[] = [
  { key: "name", name: "Name" },
  { key: "size", name: "Size" },
  { key: "modified", name: "Changed" },
];

/** What is at the path. */
type View =
  | { at: "loading" }
  | { at: "folder"; path: Uint8Array; entry: Entry; entries: Entry[] }
  | { at: "file"; path: Uint8Array; entry: Entry }
  | { at: "failed"; path: Uint8Array; error: Error };

type Search =
  | { at: "idle" }
  | { at: "running" | "done" | "full"; name: string; sum: SearchProgress }
  | { at: "failed"; error: Error };

type Saving =
  | { at: "idle" }
  | { at: "running"; done: number; total: bigint | null }
  | { at: "done"; text: string; faults: Fault[]; faultCount: number }
  | { at: "failed"; error: Error };

export class CowFiles extends LitElement {
  static override properties = {
    engine: {},
    facts: {},
    volume: {},
    index: {},
    path: {},
    view: { state: true },
    order: { state: true },
    count: { state: true },
    search: { state: true },
    saving: { state: true },
  };
  declare engine: Engine;
  declare facts: ImageFacts;
  declare volume: VolumeFacts;
  declare index: number;
  declare path: Uint8Array;
  declare private view: View;
  declare private order: Order;
  declare private count: number;
  declare private search: Search;
  declare private saving: Saving;

  #looking: AbortController | null = null;
  #searching: AbortController | null = null;
  #saves: AbortController | null = null;

  constructor() {
    super();
    this.view = { at: "loading" };
    this.order = { key: "name", down: false };
    this.count = ROWS_A_PAGE;
    this.search = { at: "idle" };
    this.saving = { at: "idle" };
  }

  static override styles = [
    shared,
    css`
      .way {
        display: flex;
        flex-wrap: wrap;
        align-items: baseline;
        gap: 2px 6px;
        margin-bottom: 14px;
        font-size: 1.02rem;
      }
      .way li {
        display: flex;
        gap: 6px;
        min-width: 0;
        max-width: 100%;
        list-style: none;
      }
      .way li + li::before {
        content: "/";
        color: var(--muted);
      }
      .way a,
      .way span {
        display: flex;
        min-width: 0;
        max-width: 26em;
      }
      .way [aria-current] {
        font-weight: 650;
      }
      .tools {
        display: flex;
        flex-wrap: wrap;
        gap: 10px 12px;
        align-items: center;
        margin-bottom: 16px;
      }
      form {
        display: flex;
        gap: 8px;
        flex: 0 1 420px;
        min-width: 0;
      }
      form input {
        flex: 1;
      }
      th button {
        font: inherit;
        color: inherit;
        border: 0;
        padding: 0;
        min-height: 0;
        background: none;
      }
      th[aria-sort] button {
        color: var(--ink);
        font-weight: 600;
      }
      td .name {
        display: flex;
        align-items: center;
        gap: 9px;
        min-width: 9em;
        max-width: 46em;
      }
      td:first-child {
        width: 60%;
      }
      td.right,
      td.date,
      td.mode {
        white-space: nowrap;
      }
      .arrow {
        color: var(--muted);
        display: flex;
        gap: 5px;
        min-width: 0;
      }
      .bad {
        color: var(--bad);
      }
      .line {
        margin-bottom: 14px;
      }
      .faults {
        margin: 8px 0 0;
        padding-left: 1.2em;
      }
      .found {
        margin-bottom: 22px;
        padding-bottom: 18px;
        border-bottom: 1px solid var(--line);
      }
      .found h3 {
        margin-bottom: 10px;
      }
      @media (max-width: 720px) {
        .mode,
        .owner {
          display: none;
        }
      }
    `,
  ];

  override disconnectedCallback(): void {
    super.disconnectedCallback();
    this.#looking?.abort();
    this.#searching?.abort();
    this.#saves?.abort();
  }

  protected override willUpdate(changed: Map<PropertyKey, unknown>): void {
    const other = ["facts", "index"].some((name) => changed.has(name));
    if (other || changed.has("path")) {
      this.#stopSearch();
      this.#stopSaving();
      if (other) this.view = { at: "loading" };
      void this.#look();
    }
  }

  get #place(): { image: number; volume: number } {
    return { image: this.facts.image, volume: this.index };
  }

  async #look(): Promise<void> {
    this.#looking?.abort();
    const looking = new AbortController();
    this.#looking = looking;
    const { signal } = looking;
    const { path } = this;
    const slow = window.setTimeout(() => (this.view = { at: "loading" }), SLOW_MS);
    const show = (view: View): void => {
      window.clearTimeout(slow);
      if (signal.aborted) return;
      this.view = view;
      this.count = ROWS_A_PAGE;
    };
    try {
      const entry = await this.engine.call("entry", { ...this.#place, path }, { signal });
      if (entry.kind !== "folder") return show({ at: "file", path, entry });
      const entries = await this.engine.call("list", { ...this.#place, path }, { signal });
      show({ at: "folder", path, entry, entries });
    } catch (error) {
      show({ at: "failed", path, error: asError(error) });
    }
  }

  protected override render(): TemplateResult {
    return html`<section class="card" aria-label="Files" aria-busy=${this.view.at === "loading" ? "true" : "false"}>
      ${this.#way()} ${this.#main()}
    </section>`;
  }

  #href(path: Uint8Array): string {
    return diskHash({ volume: this.volume.number, path });
  }

  /** The names on the way, each a link but the last. */
  #way(): TemplateResult {
    const steps = stepsOf(this.path);
    const top = this.volume.number === 0 ? "Disk" : `Partition ${this.volume.number}`;
    const all = [{ name: top, path: Uint8Array.of(0x2f) }, ...steps];
    return html`<nav aria-label="Folders">
      <ol class="way">
        ${all.map(({ name, path }, index) =>
          index === all.length - 1
            ? html`<li><span aria-current="location">${nameOf(name)}</span></li>`
            : html`<li><a href=${this.#href(path)}>${nameOf(name)}</a></li>`,
        )}
      </ol>
    </nav>`;
  }

  #main(): TemplateResult {
    const { view } = this;
    switch (view.at) {
      case "loading":
        return html`<p class="muted" role="status">Reading&hellip;</p>`;
      case "failed":
        return html`<p class="bad break" role="alert">${shown(view.error.message)}</p>`;
      case "file":
        return html`<div class="tools">
            ${when(
              view.entry.kind === "file",
              () => html`<button class="primary" @click=${() => this.#save(view.path, view.entry)}>Save this file&hellip;</button>`,
            )}
          </div>
          ${this.#saved()}
          <cow-file .engine=${this.engine} .place=${{ ...this.#place, path: view.path }} .entry=${view.entry}></cow-file>`;
      case "folder":
        return html`
          <div class="tools">
            <form role="search" @submit=${this.#onSearch}>
              <input type="text" name="name" placeholder="A part of a name" aria-label="Find names below this folder" spellcheck="false" />
              <button>Find</button>
            </form>
            <button @click=${() => this.#save(view.path, view.entry)}>Save this folder as tar&hellip;</button>
          </div>
          ${this.#saved()} ${this.#found()} ${this.#table(view)}
        `;
    }
  }

  #table({ path, entries }: View & { at: "folder" }): TemplateResult {
    if (entries.length === 0) return html`<p class="muted">This folder is empty.</p>`;
    const rows = sorted(entries, this.order).slice(0, this.count);
    const { key: by, down } = this.order;
    return html`
      <div class="scroll-x" tabindex="0" role="group" aria-label="Entries">
        <table>
          <thead>
            <tr>
              ${COLUMNS.map(
                ({ key, name }) =>
                  html`<th scope="col" class=${key === "size" ? "right" : ""} aria-sort=${key === by ? (down ? "descending" : "ascending") : nothing}>
                    <button @click=${() => this.#sort(key)}>${name}${key === by ? (down ? " \u2193" : " \u2191") : ""}</button>
                  </th>`,
              )}
              <th scope="col" class="mode">Mode</th>
              <th scope="col" class="owner right">Owner</th>
            </tr>
          </thead>
          <tbody>
            ${rows.map((entry) => this.#row(path, entry))}
          </tbody>
        </table>
      </div>
      ${when(
        entries.length > rows.length,
        () => html`<p>
          <button class="quiet" @click=${() => (this.count += ROWS_A_PAGE)}>Show more</button>
          <span class="muted small">${rows.length.toLocaleString("en")} of ${counted(entries.length, "entry", "entries")}</span>
        </p>`,
      )}
    `;
  }

  #row(folder: Uint8Array, entry: Entry): TemplateResult {
    const { kind, name, size, mode, modeText, user, group, modified, target, problem } = entry;
    return html`<tr>
      <td>
        <span class="name">
          ${kindIcon(kind)}
          <a class="clip" href=${this.#href(joined(folder, entry.nameBytes))}>${nameOf(name)}</a>
          ${target === null ? nothing : html`<span class="arrow"><span>&rarr;</span>${nameOf(target)}</span>`}
          ${problem === null ? nothing : html`<span class="tag bad" title=${shown(problem)}>damaged</span>`}
        </span>
      </td>
      <td class="right">${kind === "file" ? sizeOf(size) : html`<span class="muted">${kind === "folder" ? "" : kind}</span>`}</td>
      <td class="date">${modified === null ? html`<span class="muted">unknown</span>` : dateText(modified)}</td>
      <td class="mode mono">${mode === null ? html`<span class="muted">none</span>` : modeText}</td>
      <td class="owner right">${user === null ? html`<span class="muted">none</span>` : `${user}:${group}`}</td>
    </tr>`;
  }

  #sort(key: SortKey): void {
    const { key: by, down } = this.order;
    // What is largest and newest is what one looks for.
    this.order = { key, down: key === by ? !down : key !== "name" };
  }

  #onSearch = (event: SubmitEvent): void => {
    event.preventDefault();
    const name = new FormData(event.target as HTMLFormElement).get("name");
    if (typeof name === "string" && name.trim() !== "") void this.#find(name.trim());
    else this.#stopSearch();
  };

  async #find(name: string): Promise<void> {
    this.#stopSearch();
    const searching = new AbortController();
    this.#searching = searching;
    const { signal } = searching;
    const sum: SearchProgress = { looked: 0, unread: 0, found: [] };
    const add = ({ looked, unread, found }: SearchProgress, at: "running" | "done"): void => {
      if (signal.aborted) return;
      sum.looked = looked;
      sum.unread = unread;
      sum.found.push(...found);
      const isFull = sum.found.length > FOUND_MAX;
      sum.found.length = Math.min(sum.found.length, FOUND_MAX);
      this.search = { at: isFull ? "full" : at, name, sum };
      if (isFull) searching.abort();
    };
    add({ looked: 0, unread: 0, found: [] }, "running");
    try {
      const given = { ...this.#place, path: this.path, name };
      add(await this.engine.call("search", given, { signal, onProgress: (progress) => add(progress, "running") }), "done");
    } catch (error) {
      if (!signal.aborted) this.search = { at: "failed", error: asError(error) };
    }
  }

  #stopSearch(): void {
    this.#searching?.abort();
    this.search = { at: "idle" };
  }

  #found(): TemplateResult | typeof nothing {
    const { search } = this;
    if (search.at === "idle") return nothing;
    if (search.at === "failed") return html`<p class="bad break line" role="alert">${shown(search.error.message)}</p>`;
    const { found, looked, unread } = search.sum;
    const words =
      search.at === "full"
        ? `The first ${FOUND_MAX.toLocaleString("en")} that have \u201c${search.name}\u201d in their name`
        : `${found.length === 0 && search.at === "done" ? "Nothing has" : `${found.length.toLocaleString("en")} with`} \u201c${search.name}\u201d in the name`;
    const skipped = unread > 0 ? `, ${counted(unread, "folder")} could not be read` : "";
    return html`<div class="found">
      <div role="status"><h3>${shown(words)}</h3></div>
      <p class="muted small">
        ${counted(looked, "name")} looked at${skipped}
        <button class="quiet" @click=${() => this.#stopSearch()}>${search.at === "running" ? "Cancel" : "Close"}</button>
      </p>
      ${when(
        found.length > 0,
        () => html`<div class="scroll-x" tabindex="0" role="group" aria-label="Found">
          <table>
            <tbody>
              ${found.map(
                ({ path, kind, size, modified }) =>
                  html`<tr>
                    <td>
                      <span class="name">${kindIcon(kind)} <a class="clip" href=${this.#href(path)}>${nameOf(textOf(path))}</a></span>
                    </td>
                    <td class="right">${kind === "file" ? sizeOf(size) : nothing}</td>
                    <td class="date">${modified === null ? nothing : dateText(modified)}</td>
                  </tr>`,
              )}
            </tbody>
          </table>
        </div>`,
      )}
    </div>`;
  }

  #save(path: Uint8Array, entry: Entry): void {
    const tree = entry.kind === "folder";
    const own = fileName(stepsOf(path).at(-1)?.name ?? this.volume.files?.label ?? "", "disk");
    const name = tree ? `${own}.tar` : own;
    this.#stopSaving();
    const saves = new AbortController();
    this.#saves = saves;
    const { signal } = saves;
    const total = tree ? null : entry.size;
    const show = (saving: Saving): void => {
      if (!signal.aborted) this.saving = saving;
    };
    const result = { faults: [] as Fault[], faultCount: 0 };
    saveAs(name, async (to) => {
      show({ at: "running", done: 0, total });
      const onProgress = (done: number): void => show({ at: "running", done, total });
      const { file, ...rest } = await this.engine.call("save", { ...this.#place, path, tree, to }, { signal, onProgress });
      Object.assign(result, rest);
      return file;
    }).then(
      (text) => show({ at: "done", text, ...result }),
      (error: unknown) => show(isDismissed(error) ? { at: "idle" } : { at: "failed", error: asError(error) }),
    );
  }

  #stopSaving(): void {
    this.#saves?.abort();
    this.saving = { at: "idle" };
  }

  #saved(): TemplateResult | typeof nothing {
    const { saving } = this;
    switch (saving.at) {
      case "idle":
        return nothing;
      case "running":
        return html`<p class="line" role="status">
          Saving: <span class="number">${sizeText(saving.done)}${saving.total === null ? "" : ` of ${sizeText(saving.total)}`}</span>
          <button class="quiet" @click=${() => this.#stopSaving()}>Cancel</button>
        </p>`;
      case "failed":
        return html`<p class="bad break line" role="alert">It could not be saved: ${shown(saving.error.message)}</p>`;
      case "done":
        return html`<div class="line">
          <p class="break" role="status">${saving.text}</p>
          ${when(
            saving.faultCount > 0,
            () => html`<p class="muted small">Not all of it is as it was:</p>
              <ul class="faults small">
                ${saving.faults.map(
                  ({ path, text, damaged }) =>
                    html`<li class="break ${damaged ? "bad" : ""}">${nameOf(path, "")} ${shown(text)}</li>`,
                )}
              </ul>
              ${when(
                saving.faultCount > saving.faults.length,
                () => html`<p class="muted small">and ${counted(saving.faultCount - saving.faults.length, "more", "more")}</p>`,
              )}`,
          )}
        </div>`;
    }
  }
}

customElements.define("cow-files", CowFiles);
