// The only two addresses that may become scripts: the worker and the service worker of this page.

import workerUrl from "./worker.ts?worker&url";

/** Where the build puts the service worker: beside the document, whose scope it then has. */
export const SERVICE_WORKER = "./sw.js";

interface Policy {
  createScriptURL(url: string): string;
}

const policy = (
  globalThis as { trustedTypes?: { createPolicy(name: string, rules: Policy): Policy } }
).trustedTypes?.createPolicy("cowshed-worker", {
  createScriptURL(url: string): string {
    if (url !== workerUrl && url !== SERVICE_WORKER) throw new TypeError("no script of this page");
    return url;
  },
});

/** The address as the browser wants it where scripts must be trusted. */
export function trusted(url: string): string {
  return policy ? policy.createScriptURL(url) : url;
}
