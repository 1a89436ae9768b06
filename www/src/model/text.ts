// Names and bytes from an image are data from a stranger. Everything shown passes here once: characters that act on the
// text around them (controls, bidirectional overrides, invisible ones) are written out. The rest is the text node's work.

/** C0, DEL and C1 controls, soft hyphen, zero-width and bidirectional characters, line separators, byte order mark, tags. */
 
const ACTING = /[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]|[\u{e0000}-\u{e007f}]|\p{Cs}/gu;

/** The text with every acting character as `\u{..}`. */
export function shown(text: string): string {
  return text.replace(ACTING, (c) => `\\u{${(c.codePointAt(0) ?? 0).toString(16)}}`);
}

/** Lines of text, each with its acting characters written out; tabs stay. */
export function linesShown(text: string): string {
  return text
    .split(/\r?\n/)
    .map((line) => line.split("\t").map(shown).join("\t"))
    .join("\n");
}

const ASCII_FIRST = 0x20;
const ASCII_LAST = 0x7e;

/** A byte in a hex view's text column. */
export function asciiOf(byte: number): string {
  return byte >= ASCII_FIRST && byte <= ASCII_LAST ? String.fromCharCode(byte) : ".";
}

export function hexOf(byte: number): string {
  return byte.toString(16).padStart(2, "0");
}

/** "1 snapshot", "2 snapshots". */
export function counted(count: number, one: string, many = `${one}s`): string {
  return `${count.toLocaleString("en")} ${count === 1 ? one : many}`;
}
