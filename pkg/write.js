// Files that are written: overlays, new images, repairs. A file is an access handle, or a file handle that one is made of, which
// works in workers alone.

import { asError, invalid } from "./error.js";

export { planRepair, RepairPlan } from "./plan.js";

/** What the backing file of an overlay is called in it: whoever opens the overlay says what it is. */
const SOURCE_NAME = "source";

/** The access handle of what was given, and whether it is ours to close. */
export async function accessHandleOf(given) {
  if (isAccessHandle(given)) return { handle: given, close: () => undefined };
  if (typeof given?.createSyncAccessHandle !== "function") {
    throw invalid(
      typeof given?.getFile === "function"
        ? "files are written in workers alone: open the image with Remote"
        : "the file to write is neither a FileSystemFileHandle nor an access handle",
    );
  }
  const handle = await given.createSyncAccessHandle().catch((error) => {
    if (error?.name !== "InvalidStateError") throw error;
    throw invalid("files outside of the browser's own storage are not written at places: planRepair repairs them");
  });
  return { handle, close: () => handle.close() };
}

/** Whether it has the methods of a `FileSystemSyncAccessHandle`. */
export function isAccessHandle(source) {
  return typeof source?.getSize === "function" && typeof source.write === "function";
}

/** Opens `below` with an overlay above it, which is made if its file is empty: `{ engine, close }`. */
export async function openOverlay(full, overlay, below, options) {
  const { handle, close } = await accessHandleOf(overlay);
  try {
    const { signal } = options;
    if (handle.getSize() === 0) {
      const base = await full.openImage(below.source, { ...options, format: below.format, name: below.name });
      const { virtualSize, format } = base;
      await base.close();
      await full.createImage(handle, { size: virtualSize, backingName: SOURCE_NAME, backingFormat: format }, signal);
    }
    const resolve = async (reference) => {
      if (reference.depth === 1 && reference.kind === "backing-file") {
        return { source: below.source, name: below.name, format: below.format ?? reference.format ?? undefined };
      }
      return (await options.resolve?.(reference)) ?? null;
    };
    const engine = await full.openImage(handle, { ...options, resolve, name: "overlay", format: "qcow2", writable: true });
    return { engine, close };
  } catch (error) {
    close();
    throw error;
  }
}

/** Makes a new image in a file, in place of what is there. */
export async function create(file, { size, clusterSize, signal, ...rest }) {
  return withFile(file, (full, handle) => {
    const sizes = clusterSize === undefined ? {} : { clusterSize: BigInt(clusterSize) };
    return full.createImage(handle, { size: BigInt(size), ...sizes, ...rest }, signal);
  });
}

/** Repairs the image in a file. */
export async function repair(file, what = "all", { signal, onProgress, onFinding } = {}) {
  return withFile(file, (full, handle) => full.repairImage(handle, what, onProgress, onFinding, signal));
}

async function withFile(file, work) {
  const full = await import("./full.js");
  await full.init();
  const { handle, close } = await accessHandleOf(file);
  try {
    return await work(full, handle);
  } catch (error) {
    throw asError(error);
  } finally {
    close();
  }
}
