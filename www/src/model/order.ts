// The order of a folder's entries.

export type SortKey = "name" | "size" | "modified";

export interface Order {
  key: SortKey;
  down: boolean;
}

interface Sortable {
  name: string;
  kind: string;
  size: bigint;
  modified: number | null;
}

// "file2" stands before "file10".
const NAMES = new Intl.Collator("en", { numeric: true });

/** The entries in order: folders first, and by their names what is otherwise the same. */
export function sorted<E extends Sortable>(entries: readonly E[], { key, down }: Order): E[] {
  const sign = down ? -1 : 1;
  return [...entries].sort((a, b) => {
    const folders = Number(b.kind === "folder") - Number(a.kind === "folder");
    if (folders !== 0) return folders;
    const byName = NAMES.compare(a.name, b.name) || (a.name < b.name ? -1 : 1);
    if (key === "name") return sign * byName;
    const [one, other] = key === "size" ? [a.size, b.size] : [a.modified ?? -Infinity, b.modified ?? -Infinity];
    return one === other ? byName : sign * (one < other ? -1 : 1);
  });
}
