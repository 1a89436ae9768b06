// How the kinds of the allocation map look and what they are called: one place for canvas, legend, bar and tables. Each
// differs from the others in lightness and in pattern, not in colour alone.

import { svg, type TemplateResult } from "lit";
import { KINDS, type Kind } from "../model/allocation.js";
import { DIFFERENCES, type Difference } from "../model/compare.js";

export interface KindWords {
  name: string;
  /** What it means for the disk, in a few words. */
  meaning: string;
}

export const KIND_WORDS: Record<Kind, KindWords> = {
  data: { name: "Data", meaning: "stored in this file" },
  backing: { name: "From a backing file", meaning: "stored in a layer below" },
  compressed: { name: "Compressed", meaning: "stored in this file, compressed" },
  zero: { name: "Zero", meaning: "marked as zeros, nothing stored" },
  unallocated: { name: "Unallocated", meaning: "never written, reads as zeros" },
};

/** A kind as a small square. Its colours come from the page's tokens by class. */
export function swatch(kind: Kind): TemplateResult {
  const marks: Record<Kind, TemplateResult> = {
    data: svg``,
    backing: svg`<path d="M0 4.5h14M0 9.5h14" />`,
    compressed: svg`<path d="M-2 9 9-2M1 14 14 1M7 17 17 7" />`,
    zero: svg`<circle cx="7" cy="7" r="1.6" />`,
    unallocated: svg`<rect x="0.75" y="0.75" width="12.5" height="12.5" rx="2.2" />`,
  };
  return svg`<svg class="swatch ${kind}" width="14" height="14" viewBox="0 0 14 14" aria-hidden="true">
    <rect class="ground" width="14" height="14" rx="3" />${marks[kind]}
  </svg>`;
}

/** The colours of a kind, as the names of the page's tokens. */
export function tokensOf(kind: Kind): { ground: string; mark: string } {
  return { ground: `--map-${kind}`, mark: `--map-${kind}-mark` };
}

/** The differences of a comparison look like kinds, each by its colour and its pattern. */
export const DIFFERENCE_KINDS: Record<Difference, Kind> = {
  changed: "compressed",
  one: "data",
  other: "backing",
  same: "zero",
  empty: "unallocated",
};

export const DIFFERENCE_WORDS: Record<Difference, KindWords> = {
  changed: { name: "Differs", meaning: "both hold data here, kept at different places" },
  one: { name: "Only in this disk", meaning: "the other has nothing here" },
  other: { name: "Only in the other", meaning: "this disk has nothing here" },
  same: { name: "The same", meaning: "both show the same bytes of the same file" },
  empty: { name: "Nothing in either", meaning: "both read as zeros" },
};

/** What a map shows: for each index of its sums the look and the words. */
export interface Look {
  kind: Kind;
  words: KindWords;
}

export const ALLOCATION_LOOKS: Look[] = KINDS.map((kind) => ({ kind, words: KIND_WORDS[kind] }));
export const COMPARISON_LOOKS: Look[] = DIFFERENCES.map((one) => ({ kind: DIFFERENCE_KINDS[one], words: DIFFERENCE_WORDS[one] }));

export { KINDS };
