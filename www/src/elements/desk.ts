// The one image on the desk: opening it, answering what it asks for, judging and scanning it, and the states on the way.
// It belongs to the page's element and asks it to render; it knows no markup.

import type { ReactiveController, ReactiveControllerHost } from "lit";
import type { Answer, Format, Reference, Source, Verdict } from "../engine/contract.js";
import { Engine } from "../engine/client.js";
import type { ImageFacts } from "../engine/protocol.js";
import { Allocation } from "../model/allocation.js";
import { sniff, type Guess } from "../model/sniff.js";

/** A spinner sooner than this would only flicker. */
const SLOW_MS = 250;
/** Buckets of a scan: more than the cells of any screen. */
export const BUCKETS_MAX = 16_384;
/** A disk without clusters is divided by sectors. */
export const SECTOR_LENGTH = 512;

/** A file as it was given: dropped, picked, or served beside the page. */
export interface Given {
  bytes: Blob;
  name: string;
}

/** What was answered when the image asked for another file. */
export interface Answered {
  reference: Reference;
  answer: Answer;
  /** The name of the file that was given; null for zeros. */
  given: string | null;
}

/** An open image and what the person chose for it. */
export interface Session {
  file: Given;
  facts: ImageFacts;
  /** The id of the snapshot looked at, null for the disk as it is now. */
  snapshot: string | null;
  answered: Answered[];
}

/** A question to the person: the file that an image names. */
export interface Ask {
  reference: Reference;
  answer: (answer: Answer, given: string | null) => void;
}

export type State =
  | { at: "empty"; notice: string | null }
  | { at: "opening"; name: string; ask: Ask | null }
  | { at: "open"; session: Session }
  | { at: "wrong"; file: Given; guess: Guess }
  | { at: "failed"; file: Given; error: Error };

interface OpenHow {
  format?: Format;
  snapshot?: string | null;
  answered?: Answered[];
}

export class Desk implements ReactiveController {
  readonly engine = new Engine();
  #host: ReactiveControllerHost;
  #state: State = { at: "empty", notice: null };
  #verdict: Verdict | Error | null = null;
  #allocation: Allocation | null = null;
  #scanError: Error | null = null;
  #slow = false;
  #opening: AbortController | null = null;
  #scan: AbortController | null = null;
  #slowTimer = 0;

  constructor(host: ReactiveControllerHost) {
    this.#host = host;
    host.addController(this);
  }

  hostDisconnected(): void {
    this.#opening?.abort();
    this.#scan?.abort();
  }

  get state(): State {
    return this.#state;
  }

  get session(): Session | null {
    return this.#state.at === "open" ? this.#state.session : null;
  }

  /** What is asked for now. */
  get ask(): Ask | null {
    return this.#state.at === "opening" ? this.#state.ask : null;
  }

  /** Opening has taken long enough to say so. */
  get slow(): boolean {
    return this.#slow;
  }

  /** Null until it is known. */
  get verdict(): Verdict | Error | null {
    return this.#verdict;
  }

  /** The scan of the whole disk as far as it has come. */
  get allocation(): Allocation | null {
    return this.#allocation;
  }

  get scanError(): Error | null {
    return this.#scanError;
  }

  /** Says something on the empty page. */
  notice(notice: string): void {
    if (this.#state.at === "empty") this.#set({ at: "empty", notice });
  }

  /** Opens a file as what its first bytes say it is; what looks like no disk is asked about first. */
  async openFile(file: File): Promise<void> {
    const given: Given = { bytes: file, name: file.name };
    const opening = this.#begin(file.name);
    try {
      const guess = await sniff(file);
      if (this.#opening !== opening) return;
      if (guess.kind === "qcow2" || guess.kind === "raw") await this.open(given, { format: guess.kind });
      else this.#rest({ at: "wrong", file: given, guess });
    } catch (error) {
      if (this.#opening === opening) this.#rest({ at: "failed", file: given, error: asError(error) });
    }
  }

  /** Opens a file that the server of this page offers beside it. */
  async openServed(path: string): Promise<void> {
    const url = new URL(path, location.href);
    if (url.origin !== location.origin) {
      this.notice("The address names an image of another site. Only files of your own are opened.");
      return;
    }
    const name = decodeURIComponent(url.pathname.split("/").at(-1) ?? "") || "image";
    const opening = this.#begin(name);
    try {
      const response = await fetch(url, { signal: opening.signal });
      if (!response.ok) throw new Error(`the server answered ${response.status}`);
      const bytes = await response.blob();
      if (this.#opening === opening) await this.openFile(new File([bytes], name));
    } catch (error) {
      if (this.#opening !== opening) return;
      this.#rest({ at: "empty", notice: `The image beside this page could not be fetched: ${asError(error).message}.` });
    }
  }

  /** Opens a file in a format. */
  async open(file: Given, how: OpenHow): Promise<void> {
    const opening = this.#begin(file.name);
    const answered: Answered[] = [];
    const snapshot = how.snapshot ?? null;
    try {
      const facts = await this.engine.call(
        "open",
        { source: file.bytes, name: file.name, format: how.format ?? null, snapshot },
        {
          signal: opening.signal,
          onAsk: (reference) => this.#resolve(reference, opening, how.answered ?? [], answered),
        },
      );
      if (this.#opening !== opening) return;
      this.#rest({ at: "open", session: { file, facts, snapshot, answered } });
      this.#judge(facts);
      this.#scanWhole(facts);
    } catch (error) {
      if (this.#opening === opening) this.#rest({ at: "failed", file, error: asError(error) });
    }
  }

  /** Opens the same image again as a snapshot left it, or as it is now. */
  choose(snapshot: string | null): void {
    if (!this.session) return;
    const { file, answered } = this.session;
    void this.open(file, { ...sameFormat(this.session), snapshot, answered });
  }

  /** Opens the same image again and asks for everything that it names. */
  askAgain(): void {
    if (!this.session) return;
    const { file, snapshot } = this.session;
    void this.open(file, { ...sameFormat(this.session), snapshot });
  }

  /** Answers what is asked for with a file. */
  give(file: File): void {
    if (!this.ask) return;
    const { reference, answer } = this.ask;
    const { format } = reference;
    const source: Source = { source: file, name: file.name };
    // A format that the engine does not read is its to refuse: it names it.
    if (format === "qcow2" || format === "raw") source.format = format;
    answer(source, file.name);
  }

  /** Gives up opening. */
  cancel(): void {
    this.#opening?.abort();
    this.#rest({ at: "empty", notice: null });
  }

  #resolve(
    reference: Reference,
    opening: AbortController,
    before: Answered[],
    answered: Answered[],
  ): Promise<Answer> {
    const same = before.find((one) => isSame(one.reference, reference));
    if (same) {
      answered.push(same);
      return Promise.resolve(same.answer);
    }
    return new Promise((resolve) => {
      if (this.#opening !== opening || this.#state.at !== "opening") return resolve(null);
      const { name } = this.#state;
      const answer: Ask["answer"] = (answer, given) => {
        answered.push({ reference, answer, given });
        this.#set({ at: "opening", name, ask: null });
        resolve(answer);
      };
      this.#set({ at: "opening", name, ask: { reference, answer } });
    });
  }

  #judge(facts: ImageFacts): void {
    const keep = (verdict: Verdict | Error): void => {
      if (this.session?.facts !== facts) return;
      this.#verdict = verdict;
      this.#host.requestUpdate();
    };
    this.engine.call("verdict", { image: facts.image }).then(keep, (error: unknown) => keep(asError(error)));
  }

  #scanWhole(facts: ImageFacts): void {
    const scan = new AbortController();
    this.#scan = scan;
    const unit = BigInt(facts.clusterSize ?? SECTOR_LENGTH);
    const keep = (allocation: Allocation): void => {
      if (scan.signal.aborted) return;
      this.#allocation = allocation;
      this.#host.requestUpdate();
    };
    keep(Allocation.empty(0n, facts.virtualSize, unit, BUCKETS_MAX));
    this.engine
      .call(
        "scan",
        { image: facts.image, offset: 0n, length: facts.virtualSize, bucketsMax: BUCKETS_MAX },
        { signal: scan.signal, onProgress: keep },
      )
      .then(keep, (error: unknown) => {
        if (scan.signal.aborted) return;
        this.#scanError = asError(error);
        this.#host.requestUpdate();
      });
  }

  #begin(name: string): AbortController {
    this.#opening?.abort();
    this.#leave();
    const opening = new AbortController();
    this.#opening = opening;
    this.#slow = false;
    window.clearTimeout(this.#slowTimer);
    this.#slowTimer = window.setTimeout(() => {
      this.#slow = true;
      this.#host.requestUpdate();
    }, SLOW_MS);
    this.#set({ at: "opening", name, ask: null });
    return opening;
  }

  #rest(state: State): void {
    window.clearTimeout(this.#slowTimer);
    this.#opening = null;
    this.#set(state);
  }

  /** Gives the image that was open back to the engine. */
  #leave(): void {
    this.#scan?.abort();
    this.#verdict = null;
    this.#allocation = null;
    this.#scanError = null;
    if (!this.session) return;
    const { image } = this.session.facts;
    // A file that went away, or an engine that stopped, has nothing left to give back.
    this.engine.call("close", { image }).catch(() => undefined);
  }

  #set(state: State): void {
    this.#state = state;
    this.#host.requestUpdate();
  }
}

function isSame(one: Reference, other: Reference): boolean {
  return one.kind === other.kind && one.name === other.name && one.depth === other.depth && one.from === other.from;
}

function sameFormat(session: Session): { format?: Format } {
  const { format } = session.facts;
  return format === "qcow2" || format === "raw" ? { format } : {};
}

function asError(error: unknown): Error {
  return error instanceof Error ? error : new Error(String(error));
}
