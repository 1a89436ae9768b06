// The page: which state it is in, which image is open, what the address says. The views only show.

import { css, html, LitElement, nothing, type TemplateResult } from "lit";
import type { Answer, Format, Reference, Verdict } from "../engine/contract.js";
import { Engine } from "../engine/client.js";
import type { ImageFacts, Space } from "../engine/protocol.js";
import { Allocation } from "../model/allocation.js";
import { offsetText, parseOffset } from "../model/size.js";
import { sniff, type Guess } from "../model/sniff.js";
import { shared } from "../style/shared.js";
import { droppedFiles, nameOf, pickFile } from "./parts.js";
import "./ask.js";
import "./failed.js";
import "./hex.js";
import { BUCKETS_MAX } from "./map.js";
import "./overview.js";
import "./structure.js";
import "./welcome.js";

/** A file as it was given: dropped, picked, or served beside the page. */
export interface Given {
  bytes: Blob;
  name: string;
}

/** What was answered when the image asked for another file. */
export interface Answered {
  reference: Reference;
  answer: Answer;
  /** The name of the file that was given; null for zeros. */
  given: string | null;
}

/** An open image and what the person chose for it. */
export interface Session {
  file: Given;
  facts: ImageFacts;
  snapshot: string | null;
  answered: Answered[];
}

interface Ask {
  reference: Reference;
  answer: (answer: Answer, given: string | null) => void;
}

type State =
  | { at: "empty"; notice: string | null }
  | { at: "opening"; name: string; ask: Ask | null }
  | { at: "open"; session: Session }
  | { at: "wrong"; file: Given; guess: Guess }
  | { at: "failed"; file: Given; error: Error };

interface OpenHow {
  format?: Format;
  snapshot?: string | null;
  answered?: Answered[];
}

const VIEWS = ["overview", "map", "hex", "structure"] as const;
type View = (typeof VIEWS)[number];
const TITLES: Record<View, string> = { overview: "Overview", map: "Map", hex: "Bytes", structure: "Structure" };

interface Place {
  view: View;
  space: Space;
  offset: bigint;
}

export class CowApp extends LitElement {
  static override properties = {
    state: { state: true },
    place: { state: true },
    dragging: { state: true },
    slow: { state: true },
    verdict: { state: true },
    allocation: { state: true },
    scanError: { state: true },
  };
  declare private state: State;
  declare private place: Place;
  declare private dragging: boolean;
  /** Opening has taken long enough to say so. */
  declare private slow: boolean;
  declare private verdict: Verdict | Error | null;
  /** The scan of the whole disk as far as it has come. */
  declare private allocation: Allocation | null;
  declare private scanError: Error | null;

  #engine = new Engine();
  #opening: AbortController | null = null;
  #scan: AbortController | null = null;
  #slowTimer = 0;
  #opened = false;

  constructor() {
    super();
    this.state = { at: "empty", notice: null };
    this.place = placeOf(location.hash) ?? { view: "overview", space: "guest", offset: 0n };
    this.dragging = false;
    this.slow = false;
    this.verdict = null;
    this.allocation = null;
    this.scanError = null;
  }

  static override styles = [
    shared,
    css`
      :host {
        min-height: 100vh;
        display: flex;
        flex-direction: column;
      }
      header {
        background: var(--panel);
        border-bottom: 1px solid var(--line);
      }
      .bar,
      main,
      footer {
        width: 100%;
        max-width: 1480px;
        margin: 0 auto;
        padding: 0 28px;
      }
      .bar {
        display: flex;
        align-items: center;
        gap: 14px;
        min-height: 60px;
      }
      .brand {
        display: flex;
        align-items: center;
        gap: 9px;
        font-weight: 650;
        letter-spacing: -0.01em;
      }
      .brand svg {
        display: block;
        flex: none;
      }
      .file {
        display: flex;
        align-items: baseline;
        gap: 14px;
        flex: 1;
        min-width: 0;
        padding-left: 14px;
        border-left: 1px solid var(--line);
        font-size: 1rem;
      }
      .file h1 {
        font: inherit;
        font-weight: 600;
        min-width: 0;
        display: flex;
      }
      .grow {
        flex: 1;
      }
      nav {
        display: flex;
        gap: 4px;
        max-width: 1480px;
        margin: 0 auto;
        padding: 0 18px;
        overflow-x: auto;
      }
      nav a {
        padding: 8px 10px 9px;
        color: var(--muted);
        text-decoration: none;
        font-weight: 500;
        border-bottom: 2.5px solid transparent;
      }
      nav a:hover {
        color: var(--ink);
      }
      nav a[aria-current] {
        color: var(--ink);
        font-weight: 600;
        border-bottom-color: var(--accent);
      }
      nav a:focus-visible {
        outline-offset: -3px;
      }
      main {
        flex: 1;
        padding-top: 24px;
        padding-bottom: 40px;
      }
      .snapshot {
        display: flex;
        flex-wrap: wrap;
        align-items: center;
        gap: 6px 14px;
        background: var(--accent-soft);
        border-radius: var(--radius);
        padding: 8px 16px;
        margin-bottom: 20px;
      }
      .snapshot p {
        display: flex;
        gap: 0.35em;
        min-width: 0;
      }
      .snapshot bdi {
        font-weight: 600;
        max-width: 24em;
      }
      .loading {
        display: flex;
        gap: 14px;
        align-items: center;
        justify-content: center;
        padding: 22vh 0;
        color: var(--muted);
        min-width: 0;
      }
      .loading p {
        display: flex;
        gap: 0.35em;
        min-width: 0;
      }
      .spinner {
        width: 18px;
        height: 18px;
        border: 2.5px solid var(--line);
        border-top-color: var(--accent);
        border-radius: 50%;
        animation: turn 0.9s linear infinite;
        flex: none;
      }
      @keyframes turn {
        to {
          transform: rotate(1turn);
        }
      }
      @media (prefers-reduced-motion: reduce) {
        .spinner {
          animation-duration: 4s;
        }
      }
      footer {
        color: var(--muted);
        font-size: 0.87rem;
        padding-top: 14px;
        padding-bottom: 22px;
      }
      .drop {
        position: fixed;
        inset: 0;
        z-index: 10;
        display: grid;
        place-items: center;
        pointer-events: none;
        background: color-mix(in srgb, var(--paper) 82%, transparent);
      }
      .drop div {
        position: absolute;
        inset: 14px;
        border: 3px dashed var(--accent);
        border-radius: 18px;
      }
      .drop p {
        font-size: 1.5rem;
        font-weight: 650;
        padding: 0 30px;
        text-align: center;
      }
      @media (max-width: 560px) {
        .bar,
        main,
        footer {
          padding-left: 16px;
          padding-right: 16px;
        }
        nav {
          padding: 0 6px;
        }
        .brand.open span {
          display: none;
        }
        .file {
          padding-left: 12px;
        }
        main {
          padding-top: 16px;
        }
      }
    `,
  ];

  override connectedCallback(): void {
    super.connectedCallback();
    window.addEventListener("hashchange", this.#onHash);
    window.addEventListener("dragover", this.#onDragOver);
    window.addEventListener("dragleave", this.#onDragLeave);
    window.addEventListener("drop", this.#onDrop);
    const served = new URLSearchParams(location.search).get("image");
    if (served !== null) void this.#openServed(served);
  }

  override disconnectedCallback(): void {
    super.disconnectedCallback();
    window.removeEventListener("hashchange", this.#onHash);
    window.removeEventListener("dragover", this.#onDragOver);
    window.removeEventListener("dragleave", this.#onDragLeave);
    window.removeEventListener("drop", this.#onDrop);
  }

  protected override render(): TemplateResult {
    const session = this.state.at === "open" ? this.state.session : null;
    return html`
      <header>
        <div class="bar">
          <div class="brand ${session ? "open" : ""}">${LOGO}<span>cowshed</span></div>
          ${session
            ? html`<div class="file"><h1>${nameOf(session.file.name)}</h1></div>`
            : html`<div class="grow"></div>`}
          ${session ? html`<button @click=${this.#pick}>Open another</button>` : nothing}
        </div>
        ${session ? this.#nav() : nothing}
      </header>
      <main>${this.#main()}</main>
      <footer>The image is read here, in your browser. Nothing is uploaded.</footer>
      ${this.dragging
        ? html`<div class="drop">
            <div></div>
            <p>${this.state.at === "opening" && this.state.ask ? "Drop the file that is asked for" : "Drop to open"}</p>
          </div>`
        : nothing}
    `;
  }

  #nav(): TemplateResult {
    return html`<nav aria-label="Views">
      ${VIEWS.map(
        (view) =>
          html`<a href=${`#${view}`} aria-current=${this.place.view === view ? "page" : nothing}>${TITLES[view]}</a>`,
      )}
    </nav>`;
  }

  #main(): TemplateResult | typeof nothing {
    const state = this.state;
    switch (state.at) {
      case "empty":
        return html`<cow-welcome .notice=${state.notice} @pick=${this.#pick}></cow-welcome>`;
      case "opening":
        if (state.ask) {
          const { reference, answer } = state.ask;
          return html`<cow-ask
            .reference=${reference}
            .name=${state.name}
            @give=${(event: CustomEvent<File>) => this.#give(event.detail)}
            @zeros=${() => answer("zeros", null)}
            @refuse=${() => this.#cancel()}
          ></cow-ask>`;
        }
        return this.slow
          ? html`<div class="loading" role="status">
              <span class="spinner"></span>
              <p><span>Opening</span> ${nameOf(state.name)}</p>
              <button class="quiet" @click=${() => this.#cancel()}>Cancel</button>
            </div>`
          : nothing;
      case "wrong":
      case "failed":
        return html`<cow-failed
          .name=${state.file.name}
          .size=${state.file.bytes.size}
          .guess=${state.at === "wrong" ? state.guess : null}
          .error=${state.at === "failed" ? state.error : null}
          @pick=${this.#pick}
          @raw=${() => {
            location.hash = "#hex/guest/0x0";
            void this.#open(state.file, { format: "raw" });
          }}
        ></cow-failed>`;
      case "open":
        return html`${this.#snapshotBar(state.session)} ${this.#view(state.session)}`;
    }
  }

  #snapshotBar(session: Session): TemplateResult | typeof nothing {
    const chosen = session.snapshot;
    if (chosen === null) return nothing;
    const snapshot = session.facts.snapshots.find((one) => one.id === chosen);
    return html`<div class="snapshot">
      <p><span>Looking at the snapshot</span> ${nameOf(snapshot?.name || chosen)}</p>
      <button class="quiet" @click=${() => this.#choose(null)}>Back to the disk as it is now</button>
    </div>`;
  }

  #view(session: Session): TemplateResult {
    switch (this.place.view) {
      case "overview":
        return html`<cow-overview
          .session=${session}
          .verdict=${this.verdict}
          .allocation=${this.allocation}
          .scanError=${this.scanError}
          @choose=${(event: CustomEvent<string | null>) => this.#choose(event.detail)}
          @supply=${() => this.#open(session.file, { ...sameFormat(session), snapshot: session.snapshot })}
        ></cow-overview>`;
      case "map":
        return html`<cow-map .engine=${this.#engine} .facts=${session.facts} .whole=${this.allocation} .scanError=${this.scanError}></cow-map>`;
      case "hex":
        return html`<cow-hex
          .engine=${this.#engine}
          .facts=${session.facts}
          .space=${this.place.space}
          .offset=${this.place.offset}
          @place=${this.#onPlace}
        ></cow-hex>`;
      case "structure":
        return html`<cow-structure .facts=${session.facts}></cow-structure>`;
    }
  }

  #onHash = (): void => {
    const place = placeOf(location.hash);
    if (!place) return;
    // "#hex" alone goes back to where the bytes were left.
    const bare = place.view !== "hex" || !location.hash.includes("/");
    this.place = bare ? { ...this.place, view: place.view } : place;
  };

  /** The cursor among the bytes has come to rest: the address follows, so that it can be kept. */
  #onPlace = (event: CustomEvent<{ space: Space; offset: bigint }>): void => {
    const { space, offset } = event.detail;
    this.place = { view: "hex", space, offset };
    history.replaceState(null, "", `#hex/${space}/${offsetText(offset)}`);
  };

  #onDragOver = (event: DragEvent): void => {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    event.dataTransfer.dropEffect = "copy";
    this.dragging = true;
  };

  #onDragLeave = (event: DragEvent): void => {
    if (event.relatedTarget === null) this.dragging = false;
  };

  #onDrop = (event: DragEvent): void => {
    event.preventDefault();
    this.dragging = false;
    const [file] = droppedFiles(event);
    if (!file) {
      if (this.state.at === "empty") this.state = { at: "empty", notice: "That was not a file. A folder cannot be opened." };
      return;
    }
    if (this.state.at === "opening" && this.state.ask) this.#give(file);
    else void this.#openFile(file);
  };

  #pick = async (): Promise<void> => {
    const file = await pickFile();
    if (file) await this.#openFile(file);
  };

  /** Opens a file that the server of this page offers beside it, as `?image=/path`. */
  async #openServed(path: string): Promise<void> {
    const url = new URL(path, location.href);
    if (url.origin !== location.origin) {
      this.state = { at: "empty", notice: "The address names an image of another site. Only files of your own are opened." };
      return;
    }
    const name = decodeURIComponent(url.pathname.split("/").at(-1) ?? "") || "image";
    this.#begin(name);
    try {
      const response = await fetch(url, { signal: this.#opening?.signal ?? null });
      if (!response.ok) throw new Error(`the server answered ${response.status}`);
      await this.#open({ bytes: await response.blob(), name }, {});
    } catch (error) {
      if (this.state.at !== "opening" || this.state.name !== name) return;
      const reason = error instanceof Error ? error.message : String(error);
      this.state = { at: "empty", notice: `The image beside this page could not be fetched: ${reason}.` };
    }
  }

  async #openFile(file: File): Promise<void> {
    const given: Given = { bytes: file, name: file.name };
    // Another image begins at its overview; the address that the page was opened with counts for the first.
    if (this.#opened) location.hash = "#overview";
    this.place = this.#opened ? { view: "overview", space: "guest", offset: 0n } : this.place;
    this.#opened = true;
    this.#begin(file.name);
    const opening = this.#opening;
    try {
      const guess = await sniff(file);
      if (this.#opening !== opening) return;
      if (guess.kind === "qcow2") await this.#open(given, { format: "qcow2" });
      else if (guess.kind === "raw") await this.#open(given, { format: "raw" });
      else this.#rest({ at: "wrong", file: given, guess });
    } catch (error) {
      if (this.#opening === opening) this.#rest({ at: "failed", file: given, error: asError(error) });
    }
  }

  async #open(file: Given, how: OpenHow): Promise<void> {
    this.#begin(file.name);
    const opening = this.#opening;
    if (!opening) return;
    const answered: Answered[] = [];
    const snapshot = how.snapshot ?? null;
    try {
      const facts = await this.#engine.call(
        "open",
        { source: file.bytes, name: file.name, format: how.format ?? null, snapshot },
        {
          signal: opening.signal,
          onAsk: (reference) => this.#resolve(reference, opening, how.answered ?? [], answered),
        },
      );
      if (this.#opening !== opening) return;
      this.#rest({ at: "open", session: { file, facts, snapshot, answered } });
      this.#judge(facts);
      this.#scanWhole(facts);
    } catch (error) {
      if (this.#opening === opening) this.#rest({ at: "failed", file, error: asError(error) });
    }
  }

  #resolve(
    reference: Reference,
    opening: AbortController,
    before: Answered[],
    answered: Answered[],
  ): Promise<Answer> {
    const same = before.find((one) => isSame(one.reference, reference));
    if (same) {
      answered.push(same);
      return Promise.resolve(same.answer);
    }
    return new Promise((resolve) => {
      if (this.#opening !== opening || this.state.at !== "opening") return resolve(null);
      const name = this.state.name;
      this.state = {
        at: "opening",
        name,
        ask: {
          reference,
          answer: (answer, given) => {
            answered.push({ reference, answer, given });
            this.state = { at: "opening", name, ask: null };
            resolve(answer);
          },
        },
      };
    });
  }

  /** Answers what is asked for with a file. */
  #give(file: File): void {
    if (this.state.at !== "opening" || !this.state.ask) return;
    const { reference, answer } = this.state.ask;
    const format = reference.format;
    answer(
      { source: file, name: file.name, ...((format === "qcow2" || format === "raw") && { format }) },
      file.name,
    );
  }

  /** Opens the same image again as a snapshot left it, or as it is now. */
  #choose(snapshot: string | null): void {
    if (this.state.at !== "open") return;
    const { file, answered } = this.state.session;
    void this.#open(file, { ...sameFormat(this.state.session), snapshot, answered });
  }

  #judge(facts: ImageFacts): void {
    this.verdict = null;
    const isCurrent = (): boolean => this.state.at === "open" && this.state.session.facts === facts;
    this.#engine.call("verdict", { image: facts.image }).then(
      (verdict) => isCurrent() && (this.verdict = verdict),
      (error: unknown) => isCurrent() && (this.verdict = asError(error)),
    );
  }

  #scanWhole(facts: ImageFacts): void {
    this.#scan?.abort();
    const scan = new AbortController();
    this.#scan = scan;
    const unit = BigInt(facts.clusterSize ?? 512);
    this.allocation = Allocation.empty(0n, facts.virtualSize, unit, BUCKETS_MAX);
    this.scanError = null;
    const keep = (allocation: Allocation): void => {
      if (!scan.signal.aborted) this.allocation = allocation;
    };
    this.#engine
      .call(
        "scan",
        { image: facts.image, offset: 0n, length: facts.virtualSize, bucketsMax: BUCKETS_MAX },
        { signal: scan.signal, onProgress: keep },
      )
      .then(keep, (error: unknown) => {
        if (!scan.signal.aborted) this.scanError = asError(error);
      });
  }

  #begin(name: string): void {
    this.#opening?.abort();
    this.#opening = new AbortController();
    this.#leave();
    this.state = { at: "opening", name, ask: null };
    this.slow = false;
    window.clearTimeout(this.#slowTimer);
    this.#slowTimer = window.setTimeout(() => (this.slow = true), SLOW_MS);
  }

  #rest(state: State): void {
    window.clearTimeout(this.#slowTimer);
    this.#opening = null;
    this.state = state;
  }

  /** Gives the image that was open back to the engine. */
  #leave(): void {
    if (this.state.at !== "open") return;
    this.#scan?.abort();
    const { image } = this.state.session.facts;
    // A file that went away, or an engine that stopped, has nothing left to give back.
    this.#engine.call("close", { image }).catch(() => undefined);
  }

  #cancel(): void {
    this.#opening?.abort();
    this.#rest({ at: "empty", notice: null });
  }

  protected override updated(): void {
    const name = this.state.at === "open" ? this.state.session.file.name : null;
    document.title = name === null ? "cowshed: what is in this disk image?" : `${name} \u2013 cowshed`;
  }
}

/** A spinner sooner than this would only flicker. */
const SLOW_MS = 250;

const LOGO = html`<svg width="26" height="26" viewBox="0 0 32 32" aria-hidden="true">
  <rect width="32" height="32" rx="7" fill="#24508f" />
  <g fill="#fff">
    <rect x="7" y="7" width="8" height="8" rx="1.5" />
    <rect x="17" y="7" width="8" height="8" rx="1.5" opacity=".45" />
    <rect x="7" y="17" width="8" height="8" rx="1.5" opacity=".45" />
    <rect x="17" y="17" width="8" height="8" rx="1.5" />
  </g>
</svg>`;

function isSame(one: Reference, other: Reference): boolean {
  return one.kind === other.kind && one.name === other.name && one.depth === other.depth && one.from === other.from;
}

function sameFormat(session: Session): { format?: Format } {
  const { format } = session.facts;
  return format === "qcow2" || format === "raw" ? { format } : {};
}

function asError(error: unknown): Error {
  return error instanceof Error ? error : new Error(String(error));
}

/** The place that an address names: `#map`, `#hex/guest/0x10000`. */
function placeOf(hash: string): Place | null {
  const [view, space, offset] = hash.replace(/^#/, "").split("/");
  if (!VIEWS.includes(view as View)) return null;
  return {
    view: view as View,
    space: space === "host" ? "host" : "guest",
    offset: parseOffset(offset ?? "") ?? 0n,
  };
}

customElements.define("cow-app", CowApp);
