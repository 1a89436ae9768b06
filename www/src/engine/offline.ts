// Keeps the page's files for when there is no network, once it has been loaded.

import { SERVICE_WORKER, trusted } from "./trusted.js";

export function keepForOffline(): void {
  // Without it, in private windows say, the page works as before, with a network. In development nothing is kept.
  if (!import.meta.env.PROD || !("serviceWorker" in navigator)) return;
  navigator.serviceWorker.register(trusted(SERVICE_WORKER)).catch(() => undefined);
}
