// Saving a file where the person says: by the browser's own dialogue where it has one, else as a download.

import { shown } from "../model/text.js";

/** The browser's dialogue for saving, where it has one. */
type SavePicker = (options: object) => Promise<FileSystemFileHandle>;

/**
 * Asks where to, has `write` write it, and says where it is. `write` is given null where the browser has no dialogue, and then
 * gives the file that is to be downloaded.
 */
export async function saveAs(name: string, write: (to: FileSystemFileHandle | null) => Promise<File | null>): Promise<string> {
  const picker = (window as unknown as { showSaveFilePicker?: SavePicker }).showSaveFilePicker;
  const to = picker ? await picker.call(window, { suggestedName: name }) : null;
  const file = await write(to);
  if (file) download(file, name);
  return to ? `Saved as ${shown(to.name)}` : `Saved as ${shown(name)}, where your browser puts downloads`;
}

/** Whether the person closed the browser's dialogue. */
export function isDismissed(error: unknown): boolean {
  return error instanceof DOMException && error.name === "AbortError";
}

/** Hands a file of the browser's own storage over as a download. */
function download(file: File, name: string): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(file);
  link.download = name;
  link.click();
  // The download has its own hold on the file.
  window.setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
