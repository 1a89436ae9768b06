// The check of the metadata: every reference against the refcounts, and every finding with a way to its place.

import { css, html, LitElement, type TemplateResult } from "lit";
import type { Engine } from "../engine/client.js";
import type { CheckFinding, CheckReport } from "../engine/contract.js";
import type { ImageFacts, Progress } from "../engine/protocol.js";
import { asError } from "../model/error.js";
import { counted, shown } from "../model/text.js";
import { shared, stack } from "../style/shared.js";
import { clusterLink, hexLink, when } from "./parts.js";
import "./progress.js";
import "./repair.js";

/** Findings shown before the person asks for more, and with each asking. */
const FINDINGS_A_PAGE = 50;

const CLASSES: Record<CheckFinding["class"], { name: string; tone: string }> = {
  corruption: { name: "error", tone: "bad" },
  leak: { name: "leak", tone: "fair" },
  "check-error": { name: "not checked", tone: "bad" },
};

type State =
  | { at: "idle" }
  | { at: "running"; progress: Progress }
  | { at: "done"; report: CheckReport; image: number }
  | { at: "failed"; error: Error };

export class CowCheck extends LitElement {
  static override properties = {
    engine: {},
    facts: {},
    handle: {},
    reload: {},
    state: { state: true },
    findings: { state: true },
    count: { state: true },
    repaired: { state: true },
  };
  declare engine: Engine;
  declare facts: ImageFacts;
  /** What the file can be replaced by, if the browser gave it. */
  declare handle: FileSystemFileHandle | null;
  /** Opens the image again from its file, which was replaced. */
  declare reload: () => Promise<void>;
  declare private state: State;
  declare private findings: CheckFinding[];
  declare private count: number;
  /** Repairs that were made in the file, which is checked again. */
  declare private repaired: number | null;

  #running: AbortController | null = null;

  constructor() {
    super();
    this.state = { at: "idle" };
    this.findings = [];
    this.count = FINDINGS_A_PAGE;
    this.handle = null;
    this.repaired = null;
  }

  static override styles = [
    shared,
    stack,
    css`
      .lead {
        max-width: 46em;
      }
      .actions {
        margin-top: 16px;
      }
      .line {
        margin-bottom: 12px;
      }
      .outcome {
        font-size: 1.2rem;
        font-weight: 650;
      }
      .outcome.good {
        color: var(--good);
      }
      .outcome.fair {
        color: var(--fair);
      }
      .outcome.bad {
        color: var(--bad);
      }
      .figures {
        display: grid;
        grid-template-columns: repeat(auto-fit, minmax(130px, 1fr));
        gap: 14px 20px;
        margin-top: 18px;
      }
      .figures dt {
        color: var(--muted);
        font-size: 0.87rem;
      }
      .figures dd {
        font-size: 1.3rem;
        font-weight: 600;
      }
      ul {
        list-style: none;
      }
      li {
        display: grid;
        grid-template-columns: 92px minmax(0, 1fr);
        gap: 2px 12px;
        padding: 10px 0;
        border-top: 1px solid var(--line);
      }
      li:first-child {
        border-top: 0;
      }
      .place {
        grid-column: 2;
        font-size: 0.85rem;
        color: var(--muted);
        display: flex;
        flex-wrap: wrap;
        gap: 0 14px;
      }
      .bad {
        color: var(--bad);
      }
      @media (max-width: 460px) {
        li {
          grid-template-columns: minmax(0, 1fr);
        }
        .place {
          grid-column: 1;
        }
      }
    `,
  ];

  override disconnectedCallback(): void {
    super.disconnectedCallback();
    this.#running?.abort();
  }

  protected override willUpdate(changed: Map<PropertyKey, unknown>): void {
    if (changed.has("facts") && changed.get("facts") !== undefined) {
      this.#running?.abort();
      this.state = { at: "idle" };
      this.findings = [];
      if (this.repaired !== null) void this.#start();
    }
  }

  protected override render(): TemplateResult {
    if (this.facts.format !== "qcow2") {
      return html`<section class="card">
        <h2>Nothing to check</h2>
        <p class="muted">A raw disk has no tables and no reference counts: nothing in it can contradict itself.</p>
      </section>`;
    }
    return html`
      <section class="card" aria-labelledby="check">
        <h2 id="check">Check the tables</h2>
        ${when(
          this.repaired !== null,
          () => html`<p class="line" role="status">
            The file was repaired: ${counted(this.repaired ?? 0, "repair")} made. This is what is there now.
          </p>`,
        )}
        ${this.#top()}
      </section>
      ${when(this.#canRepair, () => html`<cow-repair .engine=${this.engine} .facts=${this.facts} .handle=${this.handle} @repaired=${this.#onRepaired}></cow-repair>`)}
      ${when(this.findings.length > 0, () => this.#list())}
    `;
  }

  /** There is something to repair. A snapshot's disk is looked at: the file is checked as a whole all the same. */
  get #canRepair(): boolean {
    const { state } = this;
    return state.at === "done" && state.report.corruptions + state.report.leaks > 0;
  }

  #onRepaired = (event: CustomEvent<number>): void => {
    this.repaired = event.detail;
    this.reload().catch((error: unknown) => {
      this.state = { at: "failed", error: asError(error) };
    });
  };

  #top(): TemplateResult {
    const { state } = this;
    switch (state.at) {
      case "idle":
        return html`
          <p class="muted lead">
            Every cluster has a reference count. A check follows every reference in the image and compares: what is counted too
            low may be overwritten (an error), what is counted too high is only space lost (a leak). Nothing is changed.
          </p>
          <p class="actions"><button class="primary" @click=${this.#start}>Check this image</button></p>
        `;
      case "running":
        return html`<cow-progress
          label="Following every reference"
          .done=${state.progress.done}
          .total=${state.progress.total}
          @stop=${this.#stop}
        ></cow-progress>`;
      case "failed":
        return html`
          <p class="bad break" role="alert">The check could not be made: ${shown(state.error.message)}</p>
          <p class="actions"><button @click=${this.#start}>Try again</button></p>
        `;
      case "done":
        return this.#report(state.report);
    }
  }

  #report(report: CheckReport): TemplateResult {
    const { corruptions, leaks } = report;
    const errors = report["check-errors"];
    const [tone, words] =
      corruptions > 0
        ? ["bad", `${counted(corruptions, "error")} found`]
        : errors > 0
          ? ["bad", "Not everything could be checked"]
          : leaks > 0
            ? ["fair", `${counted(leaks, "leaked cluster")}, no error`]
            : ["good", "No errors were found"];
    const means =
      corruptions > 0
        ? "Do not write to this image before it is repaired: here, or by `cowshed check -r all` or `qemu-img check -r all`."
        : leaks > 0
          ? "Leaks waste space and do no harm."
          : "Every reference agrees with its count.";
    const figures: [string, number][] = [
      ["Errors", corruptions],
      ["Leaked clusters", leaks],
      ["Not checked", errors],
      ["Clusters in use", report["allocated-clusters"]],
      ["Of them compressed", report["compressed-clusters"]],
      ["Not in sequence", report["fragmented-clusters"]],
    ];
    return html`
      <p class="outcome ${tone}" role="status">${words}</p>
      <p class="muted">${means}</p>
      <dl class="figures">
        ${figures.map(([term, number]) => html`<div><dt>${term}</dt><dd class="number">${number.toLocaleString("en")}</dd></div>`)}
      </dl>
      <p class="actions"><button @click=${this.#start}>Check again</button></p>
    `;
  }

  #list(): TemplateResult {
    const { findings } = this;
    const shownNow = findings.slice(0, this.count);
    const total = this.state.at === "done" ? this.state.report["findings-total"] : findings.length;
    return html`<section class="card" aria-labelledby="findings">
      <h2 id="findings">${counted(total, "finding")}</h2>
      <ul>
        ${shownNow.map((finding) => this.#finding(finding))}
      </ul>
      ${when(
        findings.length > shownNow.length,
        () => html`<p><button class="quiet" @click=${() => (this.count += FINDINGS_A_PAGE)}>Show more</button></p>`,
      )}
      ${when(
        total > findings.length && shownNow.length === findings.length,
        () => html`<p class="muted small">The first ${findings.length.toLocaleString("en")} are listed.</p>`,
      )}
    </section>`;
  }

  #finding({ class: kind, text, structure, offset }: CheckFinding): TemplateResult {
    const { name, tone } = CLASSES[kind];
    return html`<li>
      <div><span class="tag ${tone}">${name}</span></div>
      <p class="break">${shown(text)}</p>
      <p class="place">
        <span>${shown(structure)}</span>
        <span>at ${hexLink("host", offset)}</span>
        <span>${clusterLink("host", offset, "whose cluster is this?")}</span>
      </p>
    </li>`;
  }

  #stop = (): void => {
    this.#running?.abort();
    this.state = { at: "idle" };
    this.findings = [];
  };

  #start = async (): Promise<void> => {
    this.#running?.abort();
    const running = new AbortController();
    this.#running = running;
    this.findings = [];
    this.count = FINDINGS_A_PAGE;
    this.state = { at: "running", progress: { done: 0, total: 0 } };
    const { image } = this.facts;
    try {
      const report = await this.engine.call(
        "check",
        { image },
        {
          signal: running.signal,
          onProgress: (event) => {
            if (running.signal.aborted) return;
            if ("done" in event) this.state = { at: "running", progress: event };
            else this.findings = [...this.findings, event];
          },
        },
      );
      if (!running.signal.aborted) this.state = { at: "done", report, image };
    } catch (error) {
      if (running.signal.aborted) return;
      this.state = { at: "failed", error: asError(error) };
    }
  };
}

customElements.define("cow-check", CowCheck);
