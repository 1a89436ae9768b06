// What an image can be opened from, turned into what the engine reads: a Blob, bytes, or a reader.

import { openFileUrl } from "#platform";
import { invalid } from "./error.js";
import { openUrl } from "./url.js";

/**
 * The source as the engine takes it, and its name if it has one. `sources` is shared by one opening: its signal, who is told
 * what was fetched, the addresses seen, so that one address in a chain twice is known for the same, and the files to close.
 */
export async function describedSource(source, sources) {
  if (typeof source === "string" || source instanceof URL) {
    const url = addressOf(source);
    const known = sources.urls.get(url.href) ?? readerOf(url, sources);
    sources.urls.set(url.href, known);
    return { source: await known, name: nameOf(url) };
  }
  if (typeof source?.getFile === "function") {
    const file = await source.getFile();
    return { source: file, name: file.name };
  }
  if (source instanceof ArrayBuffer) return { source: new Uint8Array(source), name: undefined };
  const isBytes = source instanceof Uint8Array || source instanceof Blob;
  if (!isBytes && typeof source?.read !== "function") {
    throw invalid("the source is no Blob, File, URL, file handle, Uint8Array or { size, read }");
  }
  return { source, name: typeof source.name === "string" ? source.name : undefined };
}

/**
 * What the engine asks for the files that an image names. `backing` is a function of the reference, a Map by name, or a source
 * for the one file that the image itself names; each may answer `null` (no) or `"zeros"` (do without).
 */
export function gateOf(backing, sources) {
  if (backing === undefined || backing === null) return undefined;
  return async (reference) => {
    let answer;
    if (typeof backing === "function") answer = await backing(reference);
    else if (backing instanceof Map) answer = backing.get(reference.name) ?? null;
    else answer = reference.depth <= 1 ? backing : null;
    if (answer === null || answer === undefined || answer === "zeros") return answer;
    const described = answer.source === undefined ? { source: answer } : answer;
    const { source, name } = await describedSource(described.source, sources);
    return { source, name: described.name ?? name, format: described.format };
  };
}

function addressOf(source) {
  try {
    return new URL(source, globalThis.location?.href);
  } catch {
    throw invalid(`${JSON.stringify(String(source))} is not an address: write it with https:// or http://`);
  }
}

function readerOf(url, sources) {
  if (url.protocol === "file:") {
    return Promise.resolve(openFileUrl(url)).then((file) => {
      sources.files.push(file);
      return file;
    });
  }
  if (url.protocol === "https:" || url.protocol === "http:") return openUrl(url, sources);
  throw invalid(`addresses that begin with ${url.protocol} cannot be opened: only https:// and http:// can`);
}

function nameOf(url) {
  const last = url.pathname.split("/").at(-1) ?? "";
  try {
    return decodeURIComponent(last) || url.hostname;
  } catch {
    return last;
  }
}
