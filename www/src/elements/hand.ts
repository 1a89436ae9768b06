// Files that a person hands over, dropped or picked: each with the handle that it can be replaced by, where the browser gives one.

/** A file, and its handle if there is one. */
export interface Handed {
  file: File;
  handle: FileSystemFileHandle | null;
}

/** What the types do not know yet: Chromium has them. */
type Item = DataTransferItem & { getAsFileSystemHandle?: () => Promise<FileSystemHandle | null> };
type OpenPicker = () => Promise<FileSystemFileHandle[]>;

/** The files of a drop, the folders among them left out. */
export function dropped(event: DragEvent): Promise<Handed[]> {
  const items: Item[] = [...(event.dataTransfer?.items ?? [])];
  // All is asked for now: when this turn ends, the items are gone.
  const asked = items
    .filter((item) => item.kind === "file" && item.webkitGetAsEntry()?.isDirectory !== true)
    .map((item) => ({ file: item.getAsFile(), handle: item.getAsFileSystemHandle?.() }));
  return Promise.all(
    asked.map(async ({ file, handle }) => {
      const given = await handle?.catch(() => null);
      return file ? { file, handle: given?.kind === "file" ? (given as FileSystemFileHandle) : null } : null;
    }),
  ).then((all) => all.filter((one) => one !== null));
}

/** Asks for a file with the browser's own dialogue; null when the person closes it. */
export async function picked(): Promise<Handed | null> {
  const picker = (window as unknown as { showOpenFilePicker?: OpenPicker }).showOpenFilePicker;
  if (!picker) return pickedByInput();
  try {
    const [handle] = await picker.call(window);
    return handle ? { file: await handle.getFile(), handle } : null;
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") return null;
    return pickedByInput();
  }
}

function pickedByInput(): Promise<Handed | null> {
  return new Promise((resolve) => {
    const input = document.createElement("input");
    input.type = "file";
    input.addEventListener(
      "change",
      () => {
        const file = input.files?.[0];
        resolve(file ? { file, handle: null } : null);
      },
      { once: true },
    );
    input.addEventListener("cancel", () => resolve(null), { once: true });
    input.click();
  });
}
