// The one image on the desk: opening it, answering what it asks for, judging and scanning it, and the states on the way.
// It belongs to the page's element and asks it to render; it knows no markup.

import type { ReactiveController, ReactiveControllerHost } from "lit";
import type { Answer, Bytes, Format, Reference, Source, Verdict } from "../engine/contract.js";
import { Engine } from "../engine/client.js";
import type { ImageFacts, Side } from "../engine/protocol.js";
import { Allocation } from "../model/allocation.js";
import { asError } from "../model/error.js";
import type { Handed } from "./hand.js";
import { rememberUrl } from "../model/recent.js";
import { guess, HEAD_LENGTH, sniff, TAIL_LENGTH, type Guess } from "../model/sniff.js";

/** A spinner sooner than this would only flicker. */
const SLOW_MS = 250;
/** Of files that were dropped together, so many are looked at. */
const FILES_MAX = 64;
/** Buckets of a scan: more than the cells of any screen. */
export const BUCKETS_MAX = 16_384;
/** A disk without clusters is divided by sectors. */
export const SECTOR_LENGTH = 512;

/** A file as it was given: dropped or picked, or the address of one. */
export interface Given {
  bytes: Bytes;
  name: string;
  /** What the file can be replaced by, if the browser gave it. */
  handle: FileSystemFileHandle | null;
}

/** What the map compares the disk with: a snapshot (null is the disk as it is now), or a layer by its depth. */
export type Rival = { snapshot: string | null } | { layer: number };

/** A comparison that was asked for. */
export interface Comparison {
  rival: Rival;
  /** The other disk, once it is open. */
  other: Side | Error | null;
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
  /** What unlocked it; null if nothing is encrypted, or nobody has said it. Kept as long as the image is on the desk. */
  passphrase: string | null;
  answered: Answered[];
}

/** A question to the person: the file that an image names. */
export interface Ask {
  reference: Reference;
  answer: (answer: Answer, given: string | null) => void;
}

export type State =
  | { at: "empty"; notice: string | null }
  /** `base` is the address of what is opened, if it has one. */
  | { at: "opening"; name: string; base: string | null; ask: Ask | null }
  | { at: "open"; session: Session }
  | { at: "wrong"; file: Given; guess: Guess }
  | { at: "failed"; file: Given; error: Error };

/** What has come from addresses. */
export interface Meter {
  bytes: number;
  requests: number;
}

interface OpenHow {
  format?: Format;
  snapshot?: string | null;
  passphrase?: string | null;
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
  #comparison: Comparison | null = null;
  #fetched = new Map<string, Meter>();
  /** What was dropped together with the image: what it names may be among it. */
  #beside: File[] = [];

  constructor(host: ReactiveControllerHost) {
    this.#host = host;
    host.addController(this);
    this.engine.onFetched = ({ url, bytes, requests }) => {
      this.#fetched.set(url, { bytes, requests });
      host.requestUpdate();
    };
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

  get comparison(): Comparison | null {
    return this.#comparison;
  }

  /** What has come from addresses for the image on the desk; null if nothing of it has one. */
  get meter(): Meter | null {
    if (this.#fetched.size === 0) return null;
    const meter = { bytes: 0, requests: 0 };
    for (const { bytes, requests } of this.#fetched.values()) {
      meter.bytes += bytes;
      meter.requests += requests;
    }
    return meter;
  }

  /** Says something on the empty page. */
  notice(notice: string): void {
    if (this.#state.at === "empty") this.#set({ at: "empty", notice });
  }

  /** Opens a file, or of several the one that stands on the others. */
  async openFiles(files: Handed[]): Promise<void> {
    const [first] = files;
    if (!first) return;
    const opening = this.#begin(givenOf(first));
    const top = files.length > 1 ? await this.#topOf(files.slice(0, FILES_MAX), opening.signal) : first;
    if (this.#opening !== opening) return;
    this.#beside = files.filter((one) => one !== top).map(({ file }) => file);
    await this.#openFile(top);
  }

  /** The first of the files that none of the others names. */
  async #topOf(files: Handed[], signal: AbortSignal): Promise<Handed> {
    const named = new Set<string>();
    for (const { file } of files) {
      const onAsk = ({ name }: Reference): Promise<Answer> => {
        named.add(lastPart(name));
        return Promise.resolve("zeros");
      };
      const given = { source: file, name: file.name, format: null, snapshot: null, passphrase: null };
      // One that cannot be opened says why when it is its turn.
      const facts = await this.engine.call("open", given, { signal, onAsk }).catch(() => null);
      if (facts) this.#close(facts.image);
    }
    return files.find(({ file }) => !named.has(file.name)) ?? (files[0] as Handed);
  }

  /** Opens a file as what its first bytes say it is; what looks like no disk is asked about first. */
  async #openFile(handed: Handed): Promise<void> {
    const { file } = handed;
    const given = givenOf(handed);
    const opening = this.#begin(given);
    try {
      const seen = await sniff(file);
      if (this.#opening !== opening) return;
      if (seen.kind === "qcow2" || seen.kind === "raw") await this.open(given, { format: seen.kind });
      else this.#rest({ at: "wrong", file: given, guess: seen });
    } catch (error) {
      if (this.#opening === opening) this.#rest({ at: "failed", file: given, error: asError(error) });
    }
  }

  /** Opens what lies at an address as what its first bytes say it is. */
  async openUrl(url: URL): Promise<void> {
    const name = nameOf(url);
    const file: Given = { bytes: url.href, name, handle: null };
    this.#beside = [];
    await this.open(file, {});
    const { session } = this;
    if (!session || session.file !== file) return;
    if (session.facts.format === "raw") await this.#doubt(session);
    if (this.session === session) rememberUrl(url.href);
  }

  /** What was opened as a raw disk because it is no qcow2 image may be no disk at all. */
  async #doubt(session: Session): Promise<void> {
    const { image, hostSize } = session.facts;
    const read = (offset: bigint, length: number): Promise<Uint8Array> =>
      this.engine.call("read", { image, space: "host", offset, length });
    const length = Number(hostSize < BigInt(HEAD_LENGTH) ? hostSize : BigInt(HEAD_LENGTH));
    const tail = Number(hostSize < BigInt(TAIL_LENGTH) ? hostSize : BigInt(TAIL_LENGTH));
    const [first, last] = await Promise.all([read(0n, length), read(hostSize - BigInt(tail), tail)]).catch(() => []);
    if (!first || !last || this.session !== session) return;
    const seen = guess(first, last);
    if (seen.kind === "raw") return;
    this.#leave();
    this.#rest({ at: "wrong", file: session.file, guess: seen });
  }

  /** Opens a file in a format. */
  async open(file: Given, how: OpenHow): Promise<void> {
    const opening = this.#begin(file);
    if (!how.answered) this.#fetched.clear();
    const answered: Answered[] = [];
    const snapshot = how.snapshot ?? null;
    const passphrase = how.passphrase ?? null;
    try {
      const facts = await this.engine.call(
        "open",
        { source: file.bytes, name: file.name, format: how.format ?? null, snapshot, passphrase },
        {
          signal: opening.signal,
          onAsk: (reference) => this.#resolve(reference, opening, how.answered ?? [], answered),
        },
      );
      if (this.#opening !== opening) return;
      this.#show({ file, facts, snapshot, passphrase, answered });
    } catch (error) {
      if (this.#opening === opening) this.#rest({ at: "failed", file, error: asError(error) });
    }
  }

  /** Opens the same image again as a snapshot left it, or as it is now. */
  choose(snapshot: string | null): void {
    if (!this.session) return;
    const { file, passphrase, answered } = this.session;
    void this.open(file, { ...sameFormat(this.session.facts), snapshot, passphrase, answered });
  }

  /** Opens the same image again and asks for everything that it names. */
  askAgain(): void {
    if (!this.session) return;
    const { file, snapshot, passphrase } = this.session;
    void this.open(file, { ...sameFormat(this.session.facts), snapshot, passphrase });
  }

  /** Opens the same image again with its passphrase. Rejects if that is wrong, and the image stays as it is. */
  async unlock(passphrase: string): Promise<void> {
    const { session } = this;
    if (session) await this.#exchange(session, { ...session, passphrase });
  }

  /** Opens the same image again after its file was replaced. */
  async reload(): Promise<void> {
    const { session } = this;
    if (!session?.file.handle) return;
    const bytes = await session.file.handle.getFile();
    // The old one is gone: the snapshot may be, too.
    await this.#exchange(session, { ...session, file: { ...session.file, bytes }, snapshot: null });
  }

  /** Opens an image for another session, which then takes the place of the one that is there. */
  async #exchange(session: Session, next: Session): Promise<void> {
    const { file, snapshot, passphrase, answered } = next;
    const facts = await this.engine.call(
      "open",
      { source: file.bytes, name: file.name, format: sameFormat(session.facts).format ?? null, snapshot, passphrase },
      { onAsk: answerAsBefore(answered) },
    );
    if (this.session !== session) return this.#close(facts.image);
    this.#leave();
    this.#show({ ...next, facts });
  }

  /** Puts an open image on the desk, and looks at it as a whole. */
  #show(session: Session): void {
    this.#rest({ at: "open", session });
    this.#judge(session.facts);
    this.#scanWhole(session.facts);
  }

  /** Compares the disk with another: one that the same image holds, or a layer below. Null ends that. */
  async compare(rival: Rival | null): Promise<void> {
    this.#leaveComparison();
    const { session } = this;
    if (!session || !rival) return this.#host.requestUpdate();
    const comparison: Comparison = { rival, other: null };
    this.#comparison = comparison;
    this.#host.requestUpdate();
    const other = await this.#openRival(session, rival).catch(asError);
    if (this.#comparison === comparison) this.#comparison = { rival, other };
    else if (!(other instanceof Error)) this.#close(other.image);
    this.#host.requestUpdate();
  }

  async #openRival({ file, facts, passphrase, answered }: Session, rival: Rival): Promise<Side> {
    const above = "layer" in rival ? rival.layer : 0;
    const below = answered.filter(({ reference }) => reference.kind === "backing-file")[above - 1]?.answer;
    if (above > 0 && (!below || below === "zeros")) throw new Error("that layer was not given");
    const source: Source = above > 0 ? (below as Source) : { source: file.bytes, name: file.name, ...sameFormat(facts) };
    const opened = await this.engine.call(
      "open",
      {
        source: source.source,
        name: source.name ?? file.name,
        format: source.format ?? null,
        snapshot: "snapshot" in rival ? rival.snapshot : null,
        passphrase,
      },
      { onAsk: answerAsBefore(answered) },
    );
    return { image: opened.image, above };
  }

  #leaveComparison(): void {
    const other = this.#comparison?.other;
    if (other && !(other instanceof Error)) this.#close(other.image);
    this.#comparison = null;
  }

  /** A file that went away, or an engine that stopped, has nothing left to give back. */
  #close(image: number): void {
    this.engine.call("close", { image }).catch(() => undefined);
  }

  /** Answers what is asked for with one of several files; what is asked for next may be among the others. */
  giveFiles(files: File[]): void {
    const wanted = this.ask ? lastPart(this.ask.reference.name) : "";
    const file = files.find(({ name }) => name === wanted) ?? files[0];
    if (!file) return;
    this.#beside.push(...files.filter((one) => one !== file));
    this.give(file);
  }

  /** Answers what is asked for with a file, or with an address. */
  give(file: File | URL): void {
    if (!this.ask) return;
    const { reference, answer } = this.ask;
    const source = sourceFor(reference, file);
    answer(source, source.name ?? null);
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
    const wanted = lastPart(reference.name);
    const beside = this.#beside.find(({ name }) => name === wanted);
    if (beside) {
      const answer = sourceFor(reference, beside);
      answered.push({ reference, answer, given: beside.name });
      return Promise.resolve(answer);
    }
    return new Promise((resolve) => {
      if (this.#opening !== opening || this.#state.at !== "opening") return resolve(null);
      const { name, base } = this.#state;
      const answer: Ask["answer"] = (answer, given) => {
        answered.push({ reference, answer, given });
        this.#set({ at: "opening", name, base, ask: null });
        resolve(answer);
      };
      this.#set({ at: "opening", name, base, ask: { reference, answer } });
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

  #begin({ name, bytes }: Given): AbortController {
    this.#opening?.abort();
    this.#leave();
    const base = typeof bytes === "string" ? bytes : null;
    const opening = new AbortController();
    this.#opening = opening;
    this.#slow = false;
    window.clearTimeout(this.#slowTimer);
    this.#slowTimer = window.setTimeout(() => {
      this.#slow = true;
      this.#host.requestUpdate();
    }, SLOW_MS);
    this.#set({ at: "opening", name, base, ask: null });
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
    this.#leaveComparison();
    if (this.session) this.#close(this.session.facts.image);
  }

  #set(state: State): void {
    this.#state = state;
    this.#host.requestUpdate();
  }
}

function isSame(one: Reference, other: Reference): boolean {
  return one.kind === other.kind && one.name === other.name && one.depth === other.depth && one.from === other.from;
}

/** What is named was named before, from one layer or another further up. */
function answerAsBefore(answered: Answered[]): (reference: Reference) => Promise<Answer> {
  return ({ kind, name }) =>
    Promise.resolve(answered.find(({ reference }) => reference.kind === kind && reference.name === name)?.answer ?? null);
}

function givenOf({ file, handle }: Handed): Given {
  return { bytes: file, name: file.name, handle };
}

/** A file or an address, as what was asked for. */
function sourceFor({ format }: Reference, file: File | URL): Source {
  const source: Source = file instanceof URL ? { source: file.href, name: nameOf(file) } : { source: file, name: file.name };
  // A format that the engine does not read is its to refuse: it names it.
  if (format === "qcow2" || format === "raw") source.format = format;
  return source;
}

/** What a name of an image says after its folders. */
function lastPart(name: string): string {
  return name.split("/").at(-1) ?? name;
}

/** The last part of an address, as a name. */
function nameOf(url: URL): string {
  const last = url.pathname.split("/").at(-1) ?? "";
  try {
    return decodeURIComponent(last) || url.hostname;
  } catch {
    return last;
  }
}

function sameFormat({ format }: ImageFacts): { format?: Format } {
  return format === "qcow2" || format === "raw" ? { format } : {};
}
