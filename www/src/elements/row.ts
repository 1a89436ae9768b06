// A row of bytes as markup: where each stands, runs of zeros apart from the rest, the cursor's mark.

import { html, type TemplateResult } from "lit";
import { hexOf } from "../model/text.js";

/** Bytes stand in groups of this many, a gap between them. */
const GROUP = 8;

/** The character column at which a byte's two digits stand. */
export function hexAt(byte: number): number {
  return byte * 3 + Math.floor(byte / GROUP);
}

/** The bytes as text, runs of zeros apart from the rest so that they can stand back. */
export function hexParts(bytes: Uint8Array): TemplateResult[] {
  const parts: TemplateResult[] = [];
  let text = "";
  let isZero = false;
  const flush = (): void => {
    if (text !== "") parts.push(isZero ? html`<span class="z">${text}</span>` : html`${text}`);
    text = "";
  };
  bytes.forEach((byte, index) => {
    if ((byte === 0) !== isZero) flush();
    isZero = byte === 0;
    if (index > 0) text += index % GROUP === 0 ? "  " : " ";
    text += hexOf(byte);
  });
  flush();
  return parts;
}

export function waiting(count: number): string {
  let text = "";
  for (let byte = 0; byte < count; byte += 1) text += (byte === 0 ? "" : byte % GROUP === 0 ? "  " : " ") + "\u00b7\u00b7";
  return text;
}

export function mark(at: number, width: number): TemplateResult {
  return html`<span class="cursor" .style=${`left: ${at}ch; width: ${width}ch`}></span>`;
}
