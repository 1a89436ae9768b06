// What lies on the disk: its partitions, the operating system, and the files of the volume that is chosen.

import { css, html, LitElement, nothing, type TemplateResult } from "lit";
import type { Engine } from "../engine/client.js";
import type { OperatingSystem } from "../engine/contract.js";
import type { DiskFacts, ImageFacts, VolumeFacts } from "../engine/protocol.js";
import { asError } from "../model/error.js";
import { diskHash, type DiskPlace } from "../model/path.js";
import { shown } from "../model/text.js";
import { shared, stack } from "../style/shared.js";
import { hexLink, nameOf, sizeOf, when } from "./parts.js";
import "./files.js";

const ROOT = Uint8Array.of(0x2f);
const TABLES: Record<DiskFacts["table"], string> = {
  none: "It has no partition table.",
  dos: "Its partitions are in a master boot record.",
  gpt: "Its partitions are in a GUID partition table.",
};

/** An operating system, and the volume that it is on. */
interface Found {
  system: OperatingSystem;
  volume: VolumeFacts;
  /** The volume's place in the list. */
  index: number;
}

export class CowDisk extends LitElement {
  static override properties = { engine: {}, facts: {}, locked: {}, place: {}, disk: { state: true }, systems: { state: true } };
  declare engine: Engine;
  declare facts: ImageFacts;
  /** The disk is encrypted: nothing on it can be recognised. */
  declare locked: boolean;
  /** What the address names; null is the volume that the person most probably wants. */
  declare place: DiskPlace | null;
  declare private disk: DiskFacts | Error | null;
  declare private systems: Found[];

  #loading: AbortController | null = null;

  constructor() {
    super();
    this.locked = false;
    this.place = null;
    this.disk = null;
    this.systems = [];
  }

  static override styles = [
    shared,
    stack,
    css`
      .systems {
        list-style: none;
        margin-bottom: 16px;
      }
      .systems li + li {
        margin-top: 8px;
      }
      .system {
        font-size: 1.2rem;
        font-weight: 600;
        letter-spacing: -0.01em;
      }
      .findings {
        margin-top: 14px;
        padding-left: 1.2em;
        color: var(--fair);
      }
      tr[aria-current] td {
        background: var(--accent-soft);
      }
      td:first-child,
      td .foreign,
      td.right {
        white-space: nowrap;
      }
      td .name {
        display: flex;
        min-width: 4em;
        max-width: 22em;
      }
      .bad {
        color: var(--bad);
      }
      .lead {
        margin-bottom: 14px;
      }
    `,
  ];

  override disconnectedCallback(): void {
    super.disconnectedCallback();
    this.#loading?.abort();
  }

  protected override willUpdate(changed: Map<PropertyKey, unknown>): void {
    if ((changed.has("facts") || changed.has("locked")) && !this.locked) void this.#load();
  }

  async #load(): Promise<void> {
    this.#loading?.abort();
    const loading = new AbortController();
    this.#loading = loading;
    this.disk = null;
    this.systems = [];
    const { image } = this.facts;
    const { signal } = loading;
    try {
      const disk = await this.engine.call("disk", { image }, { signal });
      this.disk = disk;
      // Each is shown as it comes, in the order of the volumes.
      for (const [index, volume] of disk.volumes.entries()) {
        if (volume.files) void this.#ask(index, volume, signal);
      }
    } catch (error) {
      if (!signal.aborted) this.disk = asError(error);
    }
  }

  async #ask(index: number, volume: VolumeFacts, signal: AbortSignal): Promise<void> {
    const { image } = this.facts;
    // What is wrong there is said where its files are.
    const system = await this.engine.call("system", { image, volume: index }, { signal }).catch(() => null);
    if (!system || signal.aborted) return;
    this.systems = [...this.systems, { system, volume, index }].sort((one, other) => one.index - other.index);
  }

  protected override render(): TemplateResult {
    const { disk } = this;
    if (this.locked) {
      return html`<section class="card">
        <h2>The files are encrypted</h2>
        <p class="muted">They can be seen once the disk is unlocked with its passphrase.</p>
      </section>`;
    }
    if (disk === null) return html`<section class="card"><p class="muted" role="status">Looking for partitions&hellip;</p></section>`;
    if (disk instanceof Error) {
      return html`<section class="card">
        <h2>The disk could not be looked at</h2>
        <p class="bad break" role="alert">${shown(disk.message)}</p>
      </section>`;
    }
    const index = this.#chosen(disk);
    const volume = disk.volumes[index];
    return html`
      <section class="card" aria-labelledby="volumes">
        <h2 id="volumes">On the disk</h2>
        ${when(this.systems.length > 0, () => html`<ul class="systems">${this.systems.map((found) => this.#system(found))}</ul>`)}
        <p class="muted lead">${TABLES[disk.table]}</p>
        ${this.#volumes(disk, index)}
        ${when(
          disk.findings.length > 0,
          () => html`<ul class="findings">${disk.findings.map((finding) => html`<li class="break">${shown(finding)}</li>`)}</ul>`,
        )}
      </section>
      ${volume ? this.#files(volume, index) : nothing}
    `;
  }

  /** The volume of the address, or else the one with an operating system, or the first with files. */
  #chosen(disk: DiskFacts): number {
    const { place } = this;
    if (place) return disk.volumes.findIndex(({ number }) => number === place.volume);
    const best = this.systems[0]?.volume ?? disk.volumes.find(({ files }) => files !== null) ?? disk.volumes[0];
    return best ? disk.volumes.indexOf(best) : -1;
  }

  #system({ system, volume }: Found): TemplateResult {
    const { name, id, hostname, architecture, kernels } = system;
    const facts = [
      volume.number === 0 ? "" : `on partition ${volume.number}`,
      hostname === "" ? "" : `called ${shown(hostname)}`,
      architecture,
      kernels.length === 0 ? "" : `kernel ${shown(kernels.join(", "))}`,
    ].filter((fact) => fact !== "");
    return html`<li>
      <p class="system break">${nameOf(name || id, "")}</p>
      <p class="muted break">${facts.join(", ")}</p>
    </li>`;
  }

  #volumes(disk: DiskFacts, chosen: number): TemplateResult {
    return html`<div class="scroll-x" tabindex="0" role="group" aria-labelledby="volumes">
      <table>
        <thead>
          <tr>
            <th scope="col">Volume</th>
            <th scope="col">Files</th>
            <th scope="col">Label</th>
            <th scope="col" class="right">Size</th>
            <th scope="col">Starts at</th>
            <th scope="col">For</th>
          </tr>
        </thead>
        <tbody>
          ${disk.volumes.map((volume, index) => this.#volume(volume, index === chosen))}
        </tbody>
      </table>
    </div>`;
  }

  #volume({ number, start, length, partition, files, problem, foreign }: VolumeFacts, isChosen: boolean): TemplateResult {
    const what = number === 0 ? "Whole disk" : `Partition ${number}`;
    const purpose = partition ? (partition.typeName ?? partition.type) : "";
    return html`<tr aria-current=${isChosen ? "true" : nothing}>
      <td><a href=${diskHash({ volume: number, path: ROOT })}>${what}</a></td>
      <td>
        ${files
          ? files.kind
          : problem !== null
            ? html`<span class="tag bad">damaged</span>`
            : foreign !== null
              ? html`<span class="foreign">${foreign} <span class="muted">(not read)</span></span>`
              : html`<span class="muted">none known</span>`}
      </td>
      <td><span class="name">${files && files.label !== "" ? nameOf(files.label) : html`<span class="muted">none</span>`}</span></td>
      <td class="right">${sizeOf(length)}</td>
      <td>${hexLink("guest", start)}</td>
      <td>
        <span class="name">
          ${purpose}${partition?.bootable ? ", bootable" : ""}
          ${partition && partition.name !== "" ? html`&nbsp;${nameOf(`\u201c${partition.name}\u201d`)}` : nothing}
        </span>
      </td>
    </tr>`;
  }

  #files(volume: VolumeFacts, index: number): TemplateResult {
    if (!volume.files) {
      return html`<section class="card">
        <h2>No files to show</h2>
        ${volume.problem === null
          ? html`<p class="muted">
              ${volume.foreign === null
                ? "There is no file system here that is known."
                : `This is ${volume.foreign}, which is recognised and not read.`}
              Files of ext2, ext3, ext4, FAT and ISO 9660 can be shown. Its bytes are at ${hexLink("guest", volume.start)}.
            </p>`
          : html`<p class="bad break">${shown(volume.problem)}</p>`}
      </section>`;
    }
    const path = this.place?.volume === volume.number ? this.place.path : ROOT;
    return html`<cow-files
      .engine=${this.engine}
      .facts=${this.facts}
      .volume=${volume}
      .index=${index}
      .path=${path}
    ></cow-files>`;
  }
}

customElements.define("cow-disk", CowDisk);
