// Paths on a disk: bytes, as names need not be text. In the page's address every byte that is not plain is written as %XX.

/** A file or a folder on a volume, by the number of its partition; 0 is the disk as a whole. */
export interface DiskPlace {
  volume: number;
  path: Uint8Array;
}

const SLASH = 0x2f;
/** What RFC 3986 lets stand for itself, and the slash. */
const PLAIN = /[A-Za-z0-9\-._~/]/;

/** The address of a place: `#disk/2/etc/fstab`. */
export function diskHash({ volume, path }: DiskPlace): string {
  let text = "";
  for (const byte of path) {
    const character = String.fromCharCode(byte);
    text += PLAIN.test(character) ? character : `%${byte.toString(16).toUpperCase().padStart(2, "0")}`;
  }
  return `#disk/${volume}${text.startsWith("/") ? "" : "/"}${text}`;
}

/** The place that an address names; null if it names none. */
export function diskPlaceOf(hash: string): DiskPlace | null {
  const parts = /^#?disk\/(\d{1,10})(\/.*)?$/.exec(hash);
  if (!parts) return null;
  return { volume: Number(parts[1]), path: decoded(parts[2] ?? "/") };
}

function decoded(text: string): Uint8Array {
  const plain = new TextEncoder().encode(text);
  const bytes: number[] = [];
  for (let at = 0; at < plain.length; at += 1) {
    const byte = plain[at] ?? 0;
    const digits = byte === 0x25 ? /^[0-9a-f]{2}$/i.exec(String.fromCharCode(...plain.subarray(at + 1, at + 3)))?.[0] : undefined;
    bytes.push(digits === undefined ? byte : parseInt(digits, 16));
    if (digits !== undefined) at += 2;
  }
  return Uint8Array.from(bytes);
}

/** The names on the way to a place, each with the path that leads there. */
export function stepsOf(path: Uint8Array): { name: string; path: Uint8Array }[] {
  const steps: { name: string; path: Uint8Array }[] = [];
  let from = 0;
  for (let at = 0; at <= path.length; at += 1) {
    if (at < path.length && path[at] !== SLASH) continue;
    if (at > from) steps.push({ name: textOf(path.subarray(from, at)), path: path.slice(0, at) });
    from = at + 1;
  }
  return steps;
}

/** A path and a name behind it. */
export function joined(path: Uint8Array, name: Uint8Array): Uint8Array {
  const slash = path.length > 0 && path.at(-1) === SLASH ? [] : [SLASH];
  return Uint8Array.from([...path, ...slash, ...name]);
}

/** Bytes as text; what is not UTF-8 is replaced. */
export function textOf(bytes: Uint8Array): string {
  return new TextDecoder().decode(bytes);
}

/** A name for a file that the browser saves: what file systems would take for a path or refuse is an underscore. */
export function fileName(name: string, otherwise: string): string {
  const safe = name.replace(/[\u0000-\u001f\u007f"*/:<>?\\|\u202a-\u202e\u2066-\u2069]/g, "_").replace(/^[.\s]+|[.\s]+$/g, "");
  return safe === "" ? otherwise : safe.slice(0, 200);
}
