// The folder in the browser's own storage for what is made there before it is saved. The page remembers nothing of an image: what
// lies in it when the page is opened anew is taken away.

const FOLDER = "kept";
/** Held by every page that is open, for each may still have something to save. */
const LOCK = "kept";

/** The folder, made if need be. */
export async function keptFolder(): Promise<FileSystemDirectoryHandle> {
  const root = await navigator.storage.getDirectory();
  return root.getDirectoryHandle(FOLDER, { create: true });
}

/** Takes away what earlier pages left, unless another is open. Where there is no such storage there is nothing to do. */
export async function clearKept(): Promise<void> {
  if (!("locks" in navigator) || !("getDirectory" in navigator.storage)) return;
  await navigator.locks.request(LOCK, { ifAvailable: true }, async (lock) => {
    if (!lock) return;
    const root = await navigator.storage.getDirectory();
    await root.removeEntry(FOLDER, { recursive: true }).catch(() => undefined);
  });
  // Until the page goes away.
  await navigator.locks.request(LOCK, { mode: "shared" }, () => new Promise(() => undefined));
}
