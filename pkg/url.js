// A file on a server as a reader, by HTTP ranges: the first answer says how long it is and which version it is, and every
// later one is held to that. What goes wrong is said in words that a person can act on.

import { CowshedError } from "./error.js";

/** What the first request asks for: the header and, as a rule, the first tables. Bytes. */
const HEAD_LENGTH = 256 << 10;
/** A server that is busy, or a network that hiccups, is asked again after these times. Milliseconds. */
const RETRY_AFTER_MS = [300, 1500];
const STATUS_BUSY = new Set([429, 502, 503, 504]);

/**
 * Opens `url`: a reader with its size.
 * @param {URL} url
 * @param {{ signal?: AbortSignal, onFetch?: (fetched: { url: string, bytes: number, requests: number }) => void }} how
 */
export async function openUrl(url, { signal, onFetch } = {}) {
  const reader = new UrlReader(url, onFetch);
  await reader.open(signal);
  return reader;
}

class UrlReader {
  #url;
  #onFetch;
  #size = 0;
  /** What every answer's `ETag`, or else `Last-Modified`, must be; null if the server shows neither. */
  #version = null;
  /** The first bytes, which came with the first answer. */
  #head = new Uint8Array();
  #bytes = 0;
  #requests = 0;

  constructor(url, onFetch) {
    this.#url = url;
    this.#onFetch = onFetch;
  }

  get size() {
    return this.#size;
  }

  /** Asks for the first bytes and learns the length and the version. */
  async open(signal) {
    if (globalThis.location?.protocol === "https:" && this.#url.protocol === "http:" && !isLocal(this.#url)) {
      throw this.#error("mixed-content", "a page that came by https may not read from an http address: use an https one");
    }
    const response = await this.#ask(0, HEAD_LENGTH, signal);
    const range = rangeOf(response);
    const bytes = await this.#body(response);
    const total = range?.total ?? (await this.#lengthByHead(signal)) ?? null;
    if (total === null) {
      throw this.#error(
        "no-length",
        "the server does not show how long the file is: it must expose Content-Range to other sites " +
          "(Access-Control-Expose-Headers: Content-Range, ETag)",
      );
    }
    if (!Number.isSafeInteger(total) || bytes.length !== Math.min(total, HEAD_LENGTH) || (range && range.start !== 0)) {
      throw this.#error("wrong-range", `asked for the first ${HEAD_LENGTH} bytes of ${total}, the server sent ${bytes.length}`);
    }
    this.#size = total;
    this.#version = versionOf(response);
    this.#head = bytes;
  }

  /** Gives `length` bytes from `offset`. */
  async read(offset, length, signal) {
    const end = offset + length;
    if (end <= this.#head.length) return this.#head.slice(offset, end);
    const response = await this.#ask(offset, length, signal);
    const version = versionOf(response);
    if (version !== this.#version) {
      await response.body?.cancel();
      throw this.#error("changed", `the file has changed on the server: its version was ${this.#version} and is ${version}`);
    }
    const range = rangeOf(response);
    if (range && (range.start !== offset || range.end !== end || (range.total !== null && range.total !== this.#size))) {
      await response.body?.cancel();
      throw this.#error("wrong-range", `asked for bytes ${offset} to ${end - 1}, the server sent others: ${range.text}`);
    }
    const bytes = await this.#body(response);
    if (bytes.length !== length) {
      throw this.#error("wrong-range", `asked for ${length} bytes at ${offset}, the server sent ${bytes.length}`);
    }
    return bytes;
  }

  /** Asks for a range until there is an answer; resolves with a 206. */
  async #ask(offset, length, signal) {
    for (let attempt = 0; ; attempt += 1) {
      signal?.throwIfAborted();
      this.#requests += 1;
      const wait = RETRY_AFTER_MS[attempt];
      let response;
      try {
        response = await fetch(this.#url, {
          ...ANONYMOUS,
          headers: { Range: `bytes=${offset}-${offset + length - 1}` },
          signal: signal ?? null,
        });
      } catch (error) {
        if (signal?.aborted) throw error;
        // The first request decides whether the server can be asked at all.
        if (wait === undefined || this.#bytes === 0) throw await this.#unreachable(error);
        await pause(wait, signal);
        continue;
      }
      if (response.status === 206) return response;
      await response.body?.cancel();
      if (!STATUS_BUSY.has(response.status) || wait === undefined) throw this.#refused(response);
      await pause(wait, signal);
    }
  }

  async #body(response) {
    const bytes = new Uint8Array(await response.arrayBuffer());
    this.#bytes += bytes.length;
    this.#onFetch?.({ url: this.#url.href, bytes: this.#bytes, requests: this.#requests });
    return bytes;
  }

  /** A server that hides Content-Range from other sites may still show Content-Length, which needs no leave. */
  async #lengthByHead(signal) {
    this.#requests += 1;
    const response = await fetch(this.#url, { ...ANONYMOUS, method: "HEAD", signal: signal ?? null }).catch(() => null);
    const length = response?.ok ? response.headers.get("Content-Length") : null;
    return length !== null && /^\d+$/.test(length) ? Number(length) : null;
  }

  #refused({ status }) {
    switch (status) {
      case 200:
        return this.#error(
          "no-ranges",
          "the server sends only the whole file, not parts of it (it answered 200, not 206): download the file and open it from there",
        );
      case 401:
      case 403:
        return this.#error("http-status", `the server refuses to give out the file (${status})`);
      case 404:
      case 410:
        return this.#error("http-status", `there is no such file on the server (${status})`);
      case 416:
        return this.#error("http-status", "the file is empty, or shorter than it was (416)");
      default:
        return this.#error("http-status", `the server answered ${status}`);
    }
  }

  /** A page is not told why a request failed; whether the server answers at all can be found out. */
  async #unreachable(error) {
    const isForeign = globalThis.location !== undefined && this.#url.origin !== globalThis.location.origin;
    const answers =
      isForeign &&
      (await fetch(this.#url, { ...ANONYMOUS, method: "HEAD", mode: "no-cors" }).then(
        () => true,
        () => false,
      ));
    if (answers) {
      return this.#error(
        "cors",
        "the server is there, but does not let pages of other sites read the file. Its owner must send " +
          "Access-Control-Allow-Origin: * and Access-Control-Expose-Headers: Content-Range, ETag; or download the file and open it",
      );
    }
    const reason = isForeign
      ? "the server could not be reached, or does not let pages of other sites read the file (CORS)"
      : "the server could not be reached";
    return this.#error("network", `${reason}: ${error.cause?.message ?? error.message}`);
  }

  #error(code, message) {
    return new CowshedError(`${this.#url.href}: ${message}`, { code });
  }
}

/** Nothing of the person goes along, and nothing fills the browser's cache. */
const ANONYMOUS = { credentials: "omit", referrerPolicy: "no-referrer", cache: "no-store" };

/** The range that an answer says it holds; null if it does not show one. */
function rangeOf(response) {
  const text = response.headers.get("Content-Range");
  const parts = /^bytes (\d+)-(\d+)\/(\d+|\*)$/.exec(text ?? "");
  if (!parts) return null;
  return { text, start: Number(parts[1]), end: Number(parts[2]) + 1, total: parts[3] === "*" ? null : Number(parts[3]) };
}

/** What names the version of a file. */
function versionOf(response) {
  return response.headers.get("ETag") ?? response.headers.get("Last-Modified");
}

function isLocal({ hostname }) {
  return hostname === "localhost" || hostname === "127.0.0.1" || hostname === "[::1]";
}

function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const onAbort = () => {
      clearTimeout(timer);
      reject(signal.reason);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", onAbort);
      resolve();
    }, milliseconds);
    signal?.addEventListener("abort", onAbort, { once: true });
  });
}
