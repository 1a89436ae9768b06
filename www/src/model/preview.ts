// What the first bytes of a file can be shown as. A picture is told by its signature, never by its name.

const SIGNATURES: [type: string, offset: number, bytes: string][] = [
  ["image/png", 0, "\u0089PNG\r\n\u001a\n"],
  ["image/jpeg", 0, "\u00ff\u00d8\u00ff"],
  ["image/gif", 0, "GIF87a"],
  ["image/gif", 0, "GIF89a"],
  ["image/webp", 8, "WEBP"],
  ["image/bmp", 0, "BM"],
];

/** The type of a picture that browsers show; null if these bytes begin none. */
export function pictureType(bytes: Uint8Array): string | null {
  const begins = (offset: number, text: string): boolean =>
    [...text].every((character, index) => bytes[offset + index] === character.charCodeAt(0));
  const found = SIGNATURES.find(([, offset, text]) => begins(offset, text));
  if (!found || (found[0] === "image/webp" && !begins(0, "RIFF"))) return null;
  // "BM" alone begins many a text: the header's length is 40 or 124 as a rule, and below 256 always.
  if (found[0] === "image/bmp" && (bytes.length < 18 || bytes[14] === 0 || bytes[15] !== 0)) return null;
  return found[0];
}

/** The bytes as text, if they are: UTF-8 without the controls that text does not have. `whole`: nothing was cut off. */
export function textIn(bytes: Uint8Array, whole: boolean): string | null {
  let text: string;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(bytes, { stream: !whole });
  } catch {
    return null;
  }
  return /[\u0000-\u0008\u000e-\u001a\u001c-\u001f]/.test(text) ? null : text;
}
