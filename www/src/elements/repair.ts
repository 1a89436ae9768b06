// The repair of an image: worked out first, shown, and then written to a copy or, where the browser lets the page replace the file
// and the person confirms it, in place of the file.

import { css, html, LitElement, nothing, type TemplateResult } from "lit";
import type { Engine } from "../engine/client.js";
import type { ImageFacts, Progress, RepairFacts } from "../engine/protocol.js";
import { asError } from "../model/error.js";
import { fileName } from "../model/path.js";
import { sizeText } from "../model/size.js";
import { counted, shown } from "../model/text.js";
import { shared } from "../style/shared.js";
import { hexLink, nameOf, sizeOf, when } from "./parts.js";
import { isDismissed, saveAs } from "./saving.js";
import "./progress.js";

type State =
  | { at: "idle" }
  | { at: "running"; label: string; progress: Progress }
  | { at: "planned"; plan: RepairFacts; text: string }
  | { at: "confirming"; plan: RepairFacts }
  | { at: "failed"; text: string; plan: RepairFacts | null };

/** The handle as Chromium has it: a page may ask to write to it. */
type Writable = FileSystemFileHandle & { requestPermission?: (how: { mode: "readwrite" }) => Promise<PermissionState> };

/** Fires `repaired`, with the count of repairs, when the file was replaced. */
export class CowRepair extends LitElement {
  static override properties = { engine: {}, facts: {}, handle: {}, state: { state: true } };
  declare engine: Engine;
  declare facts: ImageFacts;
  /** What the file can be replaced by; null where there is nothing like it. */
  declare handle: FileSystemFileHandle | null;
  declare private state: State;

  #running: AbortController | null = null;

  constructor() {
    super();
    this.handle = null;
    this.state = { at: "idle" };
  }

  static override styles = [
    shared,
    css`
      p {
        max-width: 46em;
      }
      .gap {
        margin-top: 14px;
      }
      .buttons {
        display: flex;
        flex-wrap: wrap;
        gap: 10px;
        margin-top: 16px;
      }
      .sum {
        font-weight: 600;
      }
      .bad {
        color: var(--bad);
      }
      .confirm {
        margin-top: 16px;
        padding: 16px 18px;
        border: 1.5px solid var(--fair);
        border-radius: var(--radius);
        background: var(--fair-soft);
      }
      .confirm h3 {
        display: flex;
        gap: 0.35em;
        margin-bottom: 6px;
      }
      .confirm p + p {
        margin-top: 8px;
      }
      summary {
        cursor: pointer;
      }
      ol {
        list-style: none;
        columns: 16em;
        column-gap: 24px;
        margin-top: 8px;
        font-size: 0.93rem;
      }
      li {
        break-inside: avoid;
      }
    `,
  ];

  override disconnectedCallback(): void {
    super.disconnectedCallback();
    this.#running?.abort();
  }

  protected override willUpdate(changed: Map<PropertyKey, unknown>): void {
    if (changed.has("facts") && changed.get("facts") !== undefined) this.#stop();
  }

  protected override render(): TemplateResult {
    return html`<section class="card" aria-labelledby="repair">
      <h2 id="repair">Repair</h2>
      ${this.#main()}
    </section>`;
  }

  #main(): TemplateResult {
    const { state } = this;
    switch (state.at) {
      case "idle":
        return html`
          <p class="muted">
            Reference counts are corrected, references that lead nowhere are taken out, what is leaked is given back. It is worked out first:
            nothing is written until you have seen what would change.
          </p>
          <p class="buttons"><button @click=${this.#plan}>Work out a repair</button></p>
        `;
      case "running":
        return html`<cow-progress
          .label=${state.label}
          .done=${state.progress.done}
          .total=${state.progress.total}
          @stop=${() => this.#stop()}
        ></cow-progress>`;
      case "failed":
        return html`
          <p class="bad break" role="alert">${shown(state.text)}</p>
          ${state.plan ? this.#choices(state.plan) : html`<p class="buttons"><button @click=${this.#plan}>Try again</button></p>`}
        `;
      case "planned":
        return html`
          ${when(state.text, () => html`<p class="break" role="status">${state.text}</p>`)}
          ${this.#planned(state.plan)} ${this.#choices(state.plan)}
        `;
      case "confirming":
        return html`${this.#planned(state.plan)} ${this.#confirm(state.plan)}`;
    }
  }

  #planned({ report, changes, changeCount, changedLength, sizeBefore, size }: RepairFacts): TemplateResult {
    const errors = report["corruptions-fixed"];
    const leaks = report["leaks-fixed"];
    const left = report.corruptions + report.leaks + report["check-errors"];
    const parts = [
      errors > 0 ? counted(errors, "error") : "",
      leaks > 0 ? counted(leaks, "leaked cluster") : "",
    ].filter((part) => part !== "");
    return html`
      <p class="sum" role="status">
        ${parts.length > 0 ? `This would repair ${parts.join(" and ")}.` : "Nothing could be repaired."}
        ${left === 0 ? "Nothing would be wrong with the image any more." : `${counted(left, "finding")} would be left.`}
      </p>
      <p class="muted">
        ${sizeText(changedLength)} of the file would change, in ${counted(changeCount, "place")}.
        ${size === sizeBefore ? nothing : html`It would be ${sizeOf(size)} long instead of ${sizeOf(sizeBefore)}.`}
      </p>
      ${when(
        changes.length > 0,
        () => html`<details class="gap">
          <summary>Where</summary>
          <ol>
            ${changes.map(
              ({ offset, length }) =>
                html`<li>${offset < sizeBefore ? hexLink("host", offset) : html`<span class="muted">new, at the end:</span>`} <span class="muted">${sizeText(length)}</span></li>`,
            )}
          </ol>
          ${when(changeCount > changes.length, () => html`<p class="muted small">The first ${changes.length} are listed.</p>`)}
        </details>`,
      )}
    `;
  }

  #choices(plan: RepairFacts): TemplateResult {
    return html`
      <p class="buttons">
        <button class="primary" @click=${() => this.#save(plan)}>Save a repaired copy&hellip;</button>
        ${when(
          this.handle !== null && plan.changeCount > 0,
          () => html`<button @click=${() => (this.state = { at: "confirming", plan })}>Repair the file itself&hellip;</button>`,
        )}
        <button class="quiet" @click=${() => this.#stop()}>Not now</button>
      </p>
    `;
  }

  #confirm(plan: RepairFacts): TemplateResult {
    return html`<div class="confirm" role="group" aria-labelledby="sure">
      <h3 id="sure"><span>Change this file:</span> ${nameOf(this.handle?.name ?? "")}</h3>
      <p>
        Shut down every virtual machine that uses it first. The browser writes the repaired image, ${sizeText(plan.size)}, to a new file
        beside this one, and puts it in its place when it is complete. Cancelled or interrupted before that, the file stays as it is;
        afterwards the old one is gone.
      </p>
      <p>The browser will ask you once more whether this page may change the file.</p>
      <p class="buttons">
        <button class="primary" @click=${() => this.#apply(plan)}>Change the file</button>
        <button @click=${() => (this.state = { at: "planned", plan, text: "" })}>Leave it as it is</button>
      </p>
    </div>`;
  }

  #stop(): void {
    this.#running?.abort();
    this.state = { at: "idle" };
  }

  /** Runs something long; what it shows is dropped once it was given up. */
  #run(label: string, fail: (error: unknown) => State, work: (how: Running) => Promise<State>): void {
    this.#running?.abort();
    const running = new AbortController();
    this.#running = running;
    const { signal } = running;
    const show = (state: State): void => {
      if (!signal.aborted) this.state = state;
    };
    const onProgress = (progress: Progress): void => show({ at: "running", label, progress });
    const start = (): void => onProgress({ done: 0, total: 0 });
    work({ signal, onProgress, start }).then(show, (error: unknown) => show(fail(error)));
  }

  #plan = (): void => {
    const { image } = this.facts;
    this.#run(
      "Working out the repair",
      (error) => ({ at: "failed", text: `The repair could not be worked out: ${asError(error).message}`, plan: null }),
      async ({ start, ...how }) => {
        start();
        return { at: "planned", plan: await this.engine.call("planRepair", { image }, how), text: "" };
      },
    );
  };

  #save(plan: RepairFacts): void {
    const { image, layers } = this.facts;
    const name = fileName((layers[0]?.name ?? "").replace(/\.qcow2?$/i, ""), "disk");
    this.#run(
      "Writing the repaired copy",
      (error) =>
        isDismissed(error)
          ? { at: "planned", plan, text: "" }
          : { at: "failed", text: `The copy could not be saved: ${asError(error).message}`, plan },
      async ({ start, ...how }) => {
        const text = await saveAs(`${name}-repaired.qcow2`, (to) => {
          start();
          return this.engine.call("saveRepaired", { image, to }, how);
        });
        return { at: "planned", plan, text: `${text}.` };
      },
    );
  }

  #apply(plan: RepairFacts): void {
    const handle = this.handle as Writable;
    const { image } = this.facts;
    this.#run(
      "Writing the repaired file",
      (error) => ({ at: "failed", text: `The file was not changed: ${asError(error).message}`, plan }),
      async ({ start, ...how }) => {
        // While the click counts as one.
        const answer = (await handle.requestPermission?.({ mode: "readwrite" })) ?? "granted";
        if (answer !== "granted") throw new Error("the browser does not let this page write to it.");
        start();
        await this.engine.call("applyRepair", { image, to: handle }, how);
        const { report } = plan;
        const count = report["corruptions-fixed"] + report["leaks-fixed"];
        this.dispatchEvent(new CustomEvent("repaired", { detail: count }));
        return { at: "idle" };
      },
    );
  }
}

interface Running {
  signal: AbortSignal;
  onProgress: (progress: Progress) => void;
  /** Shows that it has begun. */
  start: () => void;
}

customElements.define("cow-repair", CowRepair);
