// The content security policies: of the page, for the document's own meta element and for the server's headers; and of its
// worker, which alone may fetch from other servers: the address of an image that the person gave.

const RULES = [
  "default-src 'none'",
  "script-src 'self' 'wasm-unsafe-eval'",
  "worker-src 'self'",
  "style-src 'self'",
  "img-src 'self' blob:",
  "connect-src 'self'",
  "base-uri 'none'",
  "form-action 'none'",
  "require-trusted-types-for 'script'",
  // lit-html parses the templates written in our sources; cowshed-worker names the two workers.
  "trusted-types lit-html cowshed-worker",
];

/** What a meta element may say: `frame-ancestors` works in a header only. */
export const META_POLICY = RULES.join("; ");

/** Of the worker, which has neither a document nor a way to one. A worker takes the policy that its script came with. */
export const WORKER_POLICY = [
  "default-src 'none'",
  "script-src 'self' 'wasm-unsafe-eval'",
  "connect-src 'self' https: http:",
].join("; ");

/** Every header that the server sends with every file but the worker's. */
export const HEADERS = {
  "Content-Security-Policy": [...RULES, "frame-ancestors 'none'"].join("; "),
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
  "Cross-Origin-Resource-Policy": "same-origin",
  "Referrer-Policy": "no-referrer",
  "X-Content-Type-Options": "nosniff",
};
