// The page: its frame, what the address says, what is dropped on it. The desk holds the image; the views only show.

import { css, html, LitElement, nothing, type TemplateResult } from "lit";
import type { Space } from "../engine/protocol.js";
import { diskPlaceOf, type DiskPlace } from "../model/path.js";
import { offsetText, parseOffset, sizeText } from "../model/size.js";
import { counted } from "../model/text.js";
import { iconUrl } from "../style/icon.js";
import { shared } from "../style/shared.js";
import { Desk, type Rival, type Session } from "./desk.js";
import { dropped, picked, type Handed } from "./hand.js";
import { nameOf } from "./parts.js";
import "./ask.js";
import "./check.js";
import "./clusters.js";
import "./disk.js";
import "./export.js";
import "./failed.js";
import "./hex.js";
import "./lock.js";
import "./map.js";
import "./overview.js";
import "./structure.js";
import "./welcome.js";

const VIEWS = ["overview", "disk", "map", "clusters", "hex", "structure", "check", "export"] as const;
type View = (typeof VIEWS)[number];
const VIEW_NAMES: Record<View, string> = {
  overview: "Overview",
  disk: "Files",
  map: "Map",
  clusters: "Clusters",
  hex: "Bytes",
  structure: "Structure",
  check: "Check",
  export: "Export",
};
/** Views that show a place: their address names it. */
const PLACED: readonly View[] = ["disk", "clusters", "hex"];
const TITLE = "cowshed: what is in this disk image?";

/** What the address names. */
interface Place {
  view: View;
  space: Space;
  offset: bigint;
  /** Null until the person has chosen one. */
  disk: DiskPlace | null;
}

const START: Place = { view: "overview", space: "guest", offset: 0n, disk: null };

export class CowApp extends LitElement {
  static override properties = {
    place: { state: true },
    dragging: { state: true },
  };
  declare private place: Place;
  declare private dragging: boolean;

  #desk = new Desk(this);
  /** An image has been opened before: the next one begins at its overview. */
  #opened = false;
  /** The address of an image that the page's own address proposes. It is fetched when the person says so. */
  #proposed = "";

  constructor() {
    super();
    this.place = placeOf(location.hash) ?? START;
    this.dragging = false;
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
      .brand img {
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
      nav {
        display: flex;
        gap: 4px;
        max-width: 1480px;
        margin: 0 auto;
        padding: 0 18px;
        flex-wrap: wrap;
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
      .meter {
        color: var(--muted);
        font-size: 0.87rem;
        white-space: nowrap;
        margin-left: auto;
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
        font-size: 1.4rem;
        font-weight: 650;
        padding: 16px 32px;
        text-align: center;
        background: var(--panel);
        border-radius: 14px;
        box-shadow: var(--shadow);
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
    const asked = new URLSearchParams(location.search);
    const served = asked.get("image");
    this.#proposed = asked.get("url") ?? "";
    if (served !== null) this.#openServed(served);
  }

  override disconnectedCallback(): void {
    super.disconnectedCallback();
    window.removeEventListener("hashchange", this.#onHash);
    window.removeEventListener("dragover", this.#onDragOver);
    window.removeEventListener("dragleave", this.#onDragLeave);
    window.removeEventListener("drop", this.#onDrop);
  }

  protected override render(): TemplateResult {
    const { session, ask } = this.#desk;
    return html`
      <header>
        <div class="bar">
          <div class="brand ${session ? "open" : ""}">${LOGO}<span>cowshed</span></div>
          ${session
            ? html`<div class="file"><h1>${nameOf(session.file.name)}</h1></div>
                ${this.#meter()} <button @click=${this.#pick}>Open another</button>`
            : nothing}
        </div>
        ${session ? this.#nav() : nothing}
      </header>
      <main>${this.#main()}</main>
      <footer>The image is read here, in your browser. Nothing is uploaded.</footer>
      ${this.dragging
        ? html`<div class="drop">
            <div></div>
            <p>${ask ? "Drop the file that is asked for" : "Drop to open"}</p>
          </div>`
        : nothing}
    `;
  }

  protected override updated(): void {
    const name = this.#desk.session?.file.name;
    document.title = name === undefined ? TITLE : `${name} \u2013 cowshed`;
  }

  /** What was fetched for an image on a server. */
  #meter(): TemplateResult | typeof nothing {
    const { meter } = this.#desk;
    if (!meter) return nothing;
    const requests = counted(meter.requests, "request");
    return html`<span class="meter number" title=${`${meter.bytes.toLocaleString("en")} bytes in ${requests}`}>
      ${sizeText(meter.bytes)} fetched
    </span>`;
  }

  #nav(): TemplateResult {
    return html`<nav aria-label="Views">
      ${VIEWS.map(
        (view) =>
          html`<a href=${`#${view}`} aria-current=${this.place.view === view ? "page" : nothing}>${VIEW_NAMES[view]}</a>`,
      )}
    </nav>`;
  }

  #main(): TemplateResult | typeof nothing {
    const desk = this.#desk;
    const { state } = desk;
    switch (state.at) {
      case "empty":
        return html`<cow-welcome
          .notice=${state.notice}
          .address=${this.#proposed}
          @pick=${this.#pick}
          @address=${(event: CustomEvent<URL>) => this.#openUrl(event.detail)}
        ></cow-welcome>`;
      case "opening":
        if (state.ask) {
          const { reference, answer } = state.ask;
          return html`<cow-ask
            .reference=${reference}
            .name=${state.name}
            .base=${state.base}
            @give=${(event: CustomEvent<File | URL>) => desk.give(event.detail)}
            @zeros=${() => answer("zeros", null)}
            @refuse=${() => desk.cancel()}
          ></cow-ask>`;
        }
        return desk.slow
          ? html`<div class="loading" role="status">
              <span class="spinner"></span>
              <p><span>Opening</span> ${nameOf(state.name)}</p>
              ${this.#meter()}
              <button class="quiet" @click=${() => desk.cancel()}>Cancel</button>
            </div>`
          : nothing;
      case "wrong":
      case "failed":
        return html`<cow-failed
          .name=${state.file.name}
          .size=${typeof state.file.bytes === "string" ? null : state.file.bytes.size}
          .guess=${state.at === "wrong" ? state.guess : null}
          .error=${state.at === "failed" ? state.error : null}
          @pick=${this.#pick}
          @raw=${() => {
            location.hash = "#hex/guest/0x0";
            void desk.open(state.file, { format: "raw" });
          }}
        ></cow-failed>`;
      case "open":
        return html`${this.#lock(state.session)} ${this.#snapshotBar(state.session)} ${this.#view(state.session)}`;
    }
  }

  /** Asks for the passphrase of an encrypted disk. Everything that is not encrypted can be seen all the same. */
  #lock(session: Session): TemplateResult | typeof nothing {
    if (!isLocked(session)) return nothing;
    return html`<cow-lock .unlock=${(passphrase: string) => this.#desk.unlock(passphrase)}></cow-lock>`;
  }

  #snapshotBar({ snapshot, facts }: Session): TemplateResult | typeof nothing {
    if (snapshot === null) return nothing;
    const name = facts.snapshots.find(({ id }) => id === snapshot)?.name;
    return html`<div class="snapshot">
      <p><span>Looking at the snapshot</span> ${nameOf(name || snapshot)}</p>
      <button class="quiet" @click=${() => this.#desk.choose(null)}>Back to the disk as it is now</button>
    </div>`;
  }

  #view(session: Session): TemplateResult {
    const { engine, verdict, allocation, scanError } = this.#desk;
    switch (this.place.view) {
      case "overview":
        return html`<cow-overview
          .session=${session}
          .verdict=${verdict}
          .allocation=${allocation}
          .scanError=${scanError}
          @choose=${(event: CustomEvent<string | null>) => this.#desk.choose(event.detail)}
          @supply=${() => this.#desk.askAgain()}
        ></cow-overview>`;
      case "disk":
        return html`<cow-disk
          .engine=${engine}
          .facts=${session.facts}
          .locked=${isLocked(session)}
          .place=${this.place.disk}
        ></cow-disk>`;
      case "map":
        return html`<cow-map
          .engine=${engine}
          .facts=${session.facts}
          .whole=${allocation}
          .scanError=${scanError}
          .comparison=${this.#desk.comparison}
          @compare=${(event: CustomEvent<Rival | null>) => void this.#desk.compare(event.detail)}
        ></cow-map>`;
      case "clusters":
        return html`<cow-clusters
          .engine=${engine}
          .facts=${session.facts}
          .space=${this.place.space}
          .offset=${this.place.offset}
        ></cow-clusters>`;
      case "hex":
        return html`<cow-hex
          .engine=${engine}
          .facts=${session.facts}
          .space=${this.place.space}
          .offset=${this.place.offset}
          @place=${this.#onPlace}
        ></cow-hex>`;
      case "structure":
        return html`<cow-structure .engine=${engine} .facts=${session.facts}></cow-structure>`;
      case "check":
        return html`<cow-check
          .engine=${engine}
          .facts=${session.facts}
          .handle=${session.file.handle}
          .reload=${() => this.#desk.reload()}
        ></cow-check>`;
      case "export":
        return html`<cow-export .engine=${engine} .session=${session}></cow-export>`;
    }
  }

  #onHash = (): void => {
    const place = placeOf(location.hash);
    if (!place) return;
    // "#hex" alone goes back to where the bytes were left.
    const bare = !PLACED.includes(place.view) || !location.hash.includes("/");
    if (bare) this.place = { ...this.place, view: place.view };
    else if (place.view === "disk") this.place = { ...this.place, view: "disk", disk: place.disk };
    else this.place = { ...place, disk: this.place.disk };
  };

  /** The cursor among the bytes has come to rest: the address follows, so that it can be kept. */
  #onPlace = (event: CustomEvent<{ space: Space; offset: bigint }>): void => {
    const { space, offset } = event.detail;
    this.place = { ...this.place, view: "hex", space, offset };
    history.replaceState(null, "", `${location.pathname}${location.search}#hex/${space}/${offsetText(offset)}`);
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
    void dropped(event).then((files) => {
      if (files.length === 0) this.#desk.notice("That was not a file. A folder cannot be opened.");
      else if (this.#desk.ask) this.#desk.giveFiles(files.map(({ file }) => file));
      else this.#openFiles(files);
    });
  };

  #pick = async (): Promise<void> => {
    const given = await picked();
    if (given) this.#openFiles([given]);
  };

  #openFiles(files: Handed[]): void {
    this.#begin(null);
    void this.#desk.openFiles(files);
  }

  #openUrl(url: URL): void {
    this.#begin(url);
    void this.#desk.openUrl(url);
  }

  /** Opens a file that the server of this page offers beside it. */
  #openServed(path: string): void {
    const url = new URL(path, location.href);
    if (url.origin === location.origin) {
      this.#opened = true;
      void this.#desk.openUrl(url);
    } else {
      this.#desk.notice("The address names an image of another site. It is opened when you say so.");
      this.#proposed = url.href;
    }
  }

  /** The place that the page was opened with counts for the first image. The page's address names an image on a server. */
  #begin(url: URL | null): void {
    if (this.#opened) this.place = START;
    this.#opened = true;
    const search = url ? `?url=${encodeURIComponent(url.href)}` : "";
    const hash = this.place === START ? "#overview" : location.hash;
    history.replaceState(null, "", `${location.pathname}${search}${hash}`);
  }
}

/** Whether the disk is encrypted and nobody has said its passphrase. */
function isLocked({ facts, passphrase }: Session): boolean {
  const { encrypted } = facts.info as { encrypted?: boolean };
  return encrypted === true && passphrase === null;
}

const LOGO = html`<img src=${iconUrl} width="26" height="26" alt="" />`;

/** The place that an address names: `#map`, `#hex/guest/0x10000`, `#disk/2/etc/fstab`. */
function placeOf(hash: string): Place | null {
  const [view, space, offset] = hash.replace(/^#/, "").split("/");
  if (!VIEWS.includes(view as View)) return null;
  return {
    view: view as View,
    space: space === "host" ? "host" : "guest",
    offset: view === "disk" ? 0n : (parseOffset(offset ?? "") ?? 0n),
    disk: diskPlaceOf(hash),
  };
}

customElements.define("cow-app", CowApp);
