// The disk as a raw file, streamed to where the person says, and its SHA-256.

import { css, html, LitElement, type TemplateResult } from "lit";
import type { Engine } from "../engine/client.js";
import type { Progress } from "../engine/protocol.js";
import { asError } from "../model/error.js";
import { sizeText } from "../model/size.js";
import { shown } from "../model/text.js";
import { shared } from "../style/shared.js";
import type { Session } from "./desk.js";
import { when } from "./parts.js";
import { isDismissed, saveAs } from "./saving.js";
import "./progress.js";

type Job =
  | { at: "idle" }
  | { at: "running"; progress: Progress }
  | { at: "done"; text: string }
  | { at: "failed"; error: Error };

/** What is done here, each by itself. */
type Key = "raw" | "qcow2" | "sum";

const IDLE: Job = { at: "idle" };
const ALL_IDLE: Record<Key, Job> = { raw: IDLE, qcow2: IDLE, sum: IDLE };
const CLUSTER_SIZES = [4096, 16_384, 65_536, 262_144, 1_048_576, 2_097_152];
const CLUSTER_SIZE_USUAL = 65_536;

export class CowExport extends LitElement {
  static override properties = { engine: {}, session: {}, jobs: { state: true } };
  declare engine: Engine;
  declare session: Session;
  declare private jobs: Record<Key, Job>;

  #running = new Map<Key, AbortController>();

  constructor() {
    super();
    this.jobs = ALL_IDLE;
  }

  static override styles = [
    shared,
    css`
      :host {
        display: grid;
        grid-template-columns: minmax(0, 1fr) minmax(0, 1fr);
        gap: var(--gap);
        align-items: start;
      }
      .actions {
        margin-top: 16px;
      }
      .bad {
        color: var(--bad);
      }
      .sum {
        background: var(--sunken);
        border-radius: 8px;
        padding: 12px 14px;
        margin-top: 12px;
        font-size: 0.93rem;
      }
      .options {
        display: flex;
        flex-wrap: wrap;
        align-items: center;
        gap: 8px 20px;
        margin-top: 12px;
      }
      .what {
        display: flex;
        gap: 0.35em;
        min-width: 0;
      }
      @media (max-width: 900px) {
        :host {
          grid-template-columns: minmax(0, 1fr);
        }
      }
    `,
  ];

  override disconnectedCallback(): void {
    super.disconnectedCallback();
    for (const running of this.#running.values()) running.abort();
  }

  protected override willUpdate(changed: Map<PropertyKey, unknown>): void {
    if (changed.has("session") && changed.get("session") !== undefined) {
      for (const running of this.#running.values()) running.abort();
      this.jobs = ALL_IDLE;
    }
  }

  protected override render(): TemplateResult {
    const size = sizeText(this.session.facts.virtualSize);
    return html`
      <section class="card" aria-labelledby="raw">
        <h2 id="raw">Save the disk as a raw file</h2>
        <p class="muted">
          ${size}, written as the guest sees it${this.session.snapshot === null ? "" : " in this snapshot"}. It goes straight to a file,
          piece by piece; parts that read as zeros are not written where the browser can leave holes.
        </p>
        ${this.#job("raw", "Writing the disk", "Save as a raw file\u2026", this.#saveRaw)}
      </section>
      <section class="card" aria-labelledby="qcow2">
        <h2 id="qcow2">Save the disk as a qcow2 image</h2>
        <p class="muted">
          A new image of ${size} that stands alone: without snapshots, without a backing file, not encrypted. It is made in the browser's
          own storage first.
        </p>
        <p class="options">
          <label>Clusters of
            <select name="cluster">
              ${CLUSTER_SIZES.map((one) => html`<option value=${one} ?selected=${one === CLUSTER_SIZE_USUAL}>${sizeText(one)}</option>`)}
            </select>
          </label>
          <label><input type="checkbox" name="compressed" /> compressed</label>
        </p>
        ${this.#job("qcow2", "Writing the image", "Save as a qcow2 image\u2026", this.#saveQcow2)}
      </section>
      <section class="card" aria-labelledby="sum">
        <h2 id="sum">SHA-256 of the disk</h2>
        <p class="muted">Of all ${size} as the guest sees them: what <code>sha256sum</code> prints of the raw file.</p>
        ${this.#job("sum", "Reading the disk", "Compute it", this.#sum)}
      </section>
    `;
  }

  #job(key: Key, doing: string, todo: string, start: () => void): TemplateResult {
    const job = this.jobs[key];
    if (job.at === "running") {
      return html`<div class="actions">
        <cow-progress .label=${doing} .done=${job.progress.done} .total=${job.progress.total} @stop=${() => this.#stop(key)}></cow-progress>
      </div>`;
    }
    return html`
      ${when(
        job.at === "done",
        () => html`<p class="sum mono break" role="status" tabindex="0">${job.at === "done" ? job.text : ""}</p>`,
      )}
      ${when(
        job.at === "failed",
        () => html`<p class="actions bad break" role="alert">${job.at === "failed" ? shown(job.error.message) : ""}</p>`,
      )}
      <p class="actions"><button class=${key === "raw" ? "primary" : ""} @click=${start}>${todo}</button></p>
    `;
  }

  #stop(key: Key): void {
    this.#running.get(key)?.abort();
    this.jobs = { ...this.jobs, [key]: IDLE };
  }

  /** The name of the file without what says its format. */
  get #name(): string {
    return this.session.file.name.replace(/\.(qcow2?|img|raw)$/i, "") || "disk";
  }

  #saveQcow2 = (): void => {
    const find = <E extends Element>(selector: string): E | null => this.renderRoot.querySelector<E>(selector);
    const clusterSize = Number(find<HTMLSelectElement>("[name=cluster]")?.value ?? CLUSTER_SIZE_USUAL);
    const compressed = find<HTMLInputElement>("[name=compressed]")?.checked === true;
    void this.#run("qcow2", (signal, onProgress) => {
      const { image } = this.session.facts;
      return saveAs(`${this.#name}-copy.qcow2`, (to) =>
        this.engine.call("exportQcow2", { image, to, clusterSize, compressed }, { signal, onProgress }),
      );
    });
  };

  #saveRaw = (): void => {
    void this.#run("raw", async (signal, onProgress) => {
      const name = `${this.#name}.raw`;
      const { image } = this.session.facts;
      return saveAs(name, (to) => this.engine.call("export", { image, to }, { signal, onProgress }));
    });
  };

  #sum = (): void => {
    void this.#run("sum", (signal, onProgress) =>
      this.engine.call("hash", { image: this.session.facts.image }, { signal, onProgress }),
    );
  };

  async #run(
    key: Key,
    work: (signal: AbortSignal, onProgress: (progress: Progress) => void) => Promise<string>,
  ): Promise<void> {
    const running = new AbortController();
    this.#running.set(key, running);
    const show = (job: Job): void => {
      if (!running.signal.aborted) this.jobs = { ...this.jobs, [key]: job };
    };
    try {
      const pending = work(running.signal, (progress) => show({ at: "running", progress }));
      show({ at: "running", progress: { done: 0, total: 0 } });
      show({ at: "done", text: await pending });
    } catch (error) {
      if (isDismissed(error)) show(IDLE);
      else show({ at: "failed", error: asError(error) });
    }
  }
}

customElements.define("cow-export", CowExport);
