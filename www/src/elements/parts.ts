// Small pieces of markup that several elements use. A name from an image comes in as a text node and nothing else.

import { html, nothing, type TemplateResult } from "lit";
import type { Extent } from "../engine/contract.js";
import type { ImageFacts, Space } from "../engine/protocol.js";
import { bytesText, offsetText, sizeText } from "../model/size.js";
import { shown } from "../model/text.js";

/** A name from an image or of a file: isolated from the text around it, cut with an ellipsis, whole in its title. */
export function nameOf(text: string, style = "clip"): TemplateResult {
  const safe = shown(text);
  return html`<bdi class=${style} title=${safe}>${safe === "" ? "(no name)" : safe}</bdi>`;
}

/** A size in binary units, exact in its title. */
export function sizeOf(bytes: bigint | number): TemplateResult {
  const exact = typeof bytes === "bigint" ? bytes : BigInt(Math.round(bytes));
  return html`<span class="number" title=${bytesText(exact)}>${sizeText(exact)}</span>`;
}

/** An offset that leads to its bytes. */
export function hexLink(space: Space, offset: bigint | number, text?: string): TemplateResult {
  const at = offsetText(offset);
  const title = space === "guest" ? `Show the disk's bytes at ${at}` : `Show the file's bytes at ${at}`;
  return html`<a class="mono" href=${`#hex/${space}/${at}`} title=${title}>${text ?? at}</a>`;
}

/** An offset that leads to its cluster in the explorer. */
export function clusterLink(space: Space, offset: bigint | number, text?: string): TemplateResult {
  const at = offsetText(offset);
  return html`<a class=${text === undefined ? "mono" : ""} href=${`#clusters/${space}/${at}`}>${text ?? at}</a>`;
}

/** The incompatible feature bit of an image whose data lie in a file of their own. */
const DATA_FILE_BIT = 2;

/** Where an extent lies on the host: a link where that is the image's own file. */
export function hostOf(facts: ImageFacts, extent: Extent, at: bigint): TemplateResult {
  const hasDataFile = facts.features.some(({ set, bit }) => set === "incompatible" && bit === DATA_FILE_BIT);
  const inThisFile = extent.depth === 0 && (!hasDataFile || extent.kind === "compressed");
  return inThisFile ? hexLink("host", at) : html`<span class="mono">${offsetText(at)}</span>`;
}

/** The name of a layer of the backing chain. */
export function layerName(facts: ImageFacts, depth: number): string {
  return shown(facts.layers.find((layer) => layer.depth === depth)?.name ?? `layer ${depth}`);
}

/** The `date` of a snapshot: seconds since 1970. */
export function dateText(seconds: number): string {
  const date = new Date(seconds * 1000);
  if (Number.isNaN(date.getTime())) return String(seconds);
  const two = (n: number): string => String(n).padStart(2, "0");
  return (
    `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())} ` +
    `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`
  );
}

/** The guest's clock as QEMU writes it: hours, minutes, seconds and milliseconds. */
export function clockText(nanoseconds: bigint): string {
  const milliseconds = nanoseconds / 1_000_000n;
  const part = (value: bigint, digits: number): string => String(value).padStart(digits, "0");
  const seconds = milliseconds / 1000n;
  return (
    `${part(seconds / 3600n, 2)}:${part((seconds / 60n) % 60n, 2)}:${part(seconds % 60n, 2)}` +
    `.${part(milliseconds % 1000n, 3)}`
  );
}

/** Shown only when there is something to show. */
export function when(condition: unknown, then: () => TemplateResult): TemplateResult | typeof nothing {
  return condition ? then() : nothing;
}
