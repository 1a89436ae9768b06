// The bytes behind the hex view: pages fetched when they are looked at, the few most recent kept, whatever the disk's size.

import type { Space } from "../engine/protocol.js";
import { asError } from "./error.js";

export const PAGE_LENGTH = 4096;
/** One MiB in all. */
const PAGES_MAX = 256;

export type Page = { bytes: Uint8Array } | { error: Error };

/** Fetches bytes; rejects when they cannot be had or when the signal aborts. */
export type Fetch = (space: Space, offset: bigint, length: number, signal: AbortSignal) => Promise<Uint8Array>;

export class Pages {
  #fetch: Fetch;
  #sizes: Record<Space, bigint>;
  #changed: () => void;
  /** In the order of use, oldest first. */
  #held = new Map<string, Page>();
  #wanted = new Map<string, AbortController>();

  constructor(sizes: Record<Space, bigint>, fetch: Fetch, changed: () => void) {
    this.#sizes = sizes;
    this.#fetch = fetch;
    this.#changed = changed;
  }

  size(space: Space): bigint {
    return this.#sizes[space];
  }

  /** The page that holds the offset, if it is here. */
  at(space: Space, offset: bigint): Page | null {
    const key = keyOf(space, offset);
    const page = this.#held.get(key);
    if (!page) return null;
    this.#held.delete(key);
    this.#held.set(key, page);
    return page;
  }

  /** Fetches the pages of a range that are missing and gives up those asked for earlier and not wanted now. */
  want(space: Space, from: bigint, to: bigint): void {
    const length = BigInt(PAGE_LENGTH);
    const keys = new Set<string>();
    for (let at = from - (from % length); at < to && at < this.size(space); at += length) {
      const key = keyOf(space, at);
      keys.add(key);
      if (!this.#held.has(key) && !this.#wanted.has(key)) void this.#load(key, space, at);
    }
    for (const [key, controller] of this.#wanted) {
      if (!keys.has(key)) {
        this.#wanted.delete(key);
        controller.abort();
      }
    }
  }

  /** Gives up everything under way. */
  stop(): void {
    for (const controller of this.#wanted.values()) controller.abort();
    this.#wanted.clear();
  }

  async #load(key: string, space: Space, at: bigint): Promise<void> {
    const controller = new AbortController();
    this.#wanted.set(key, controller);
    const left = this.size(space) - at;
    let page: Page;
    try {
      const length = left < BigInt(PAGE_LENGTH) ? Number(left) : PAGE_LENGTH;
      page = { bytes: await this.#fetch(space, at, length, controller.signal) };
    } catch (error) {
      page = { error: asError(error) };
    }
    if (controller.signal.aborted) return;
    this.#wanted.delete(key);
    this.#held.set(key, page);
    for (const oldest of this.#held.keys()) {
      if (this.#held.size <= PAGES_MAX) break;
      this.#held.delete(oldest);
    }
    this.#changed();
  }
}

function keyOf(space: Space, offset: bigint): string {
  return `${space}:${offset / BigInt(PAGE_LENGTH)}`;
}
