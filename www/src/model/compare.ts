// Two disks side by side: which parts are the same by their tables alone. Parts that lie at the same place of the same file
// are the same; parts that lie at different places may still hold equal bytes, and count as different.

import type { Extent } from "../engine/contract.js";

/** How a part of one disk stands to the other's, in the order in which the map draws them. */
export const DIFFERENCES = ["changed", "one", "other", "same", "empty"] as const;
export type Difference = (typeof DIFFERENCES)[number];

/** A disk's extents, and how many layers lie above it in the chain that both belong to. */
export interface Walked {
  extents: AsyncIterable<Extent>;
  above: number;
}

export interface Part {
  offset: bigint;
  length: bigint;
  /** Its index in DIFFERENCES. */
  kind: number;
}

/** The parts of two disks from `begin` to `end`, in order; what is past the end of the shorter is empty there. */
export async function* compareParts(one: Walked, other: Walked, begin: bigint, end: bigint): AsyncGenerator<Part> {
  const sides = [new Walker(one, end), new Walker(other, end)] as const;
  for (let at = begin; at < end; ) {
    const [a, b] = [await sides[0].at(at), await sides[1].at(at)];
    const stop = a.end < b.end ? a.end : b.end;
    yield { offset: at, length: stop - at, kind: DIFFERENCES.indexOf(difference(a, b)) };
    at = stop;
  }
}

interface Place {
  end: bigint;
  /** Where its bytes are, as text; null for zeros. */
  place: string | null;
}

function difference(a: Place, b: Place): Difference {
  if (a.place === null && b.place === null) return "empty";
  if (b.place === null) return "one";
  if (a.place === null) return "other";
  return a.place === b.place ? "same" : "changed";
}

class Walker {
  #extents: AsyncIterator<Extent>;
  #above: number;
  #end: bigint;
  #current: Extent | null = null;
  #done = false;

  constructor({ extents, above }: Walked, end: bigint) {
    this.#extents = extents[Symbol.asyncIterator]();
    this.#above = above;
    this.#end = end;
  }

  /** What lies at a place, which never goes back. */
  async at(offset: bigint): Promise<Place> {
    while (!this.#done && (!this.#current || this.#current.offset + this.#current.length <= offset)) {
      const next = await this.#extents.next();
      this.#done = next.done === true;
      this.#current = next.done === true ? null : next.value;
    }
    const extent = this.#current;
    if (!extent) return { end: this.#end, place: null };
    return { end: extent.offset + extent.length, place: this.#place(extent, offset) };
  }

  #place({ kind, depth, host, offset: begin }: Extent, offset: bigint): string | null {
    if (kind === "zero" || kind === "unallocated" || host === null) return null;
    const layer = depth + this.#above;
    // A compressed cluster is one stream, wherever one looks into it.
    return kind === "compressed" ? `${layer} c${host}` : `${layer} d${host + (offset - begin)}`;
  }
}
