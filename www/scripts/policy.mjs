// The content security policy of the page, for the document's own meta element and for the server's headers.

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
  // lit-html parses the templates written in our sources; cowshed-worker names the one worker.
  "trusted-types lit-html cowshed-worker",
];

/** What a meta element may say: `frame-ancestors` works in a header only. */
export const META_POLICY = RULES.join("; ");

/** Every header that the server sends with every file. */
export const HEADERS = {
  "Content-Security-Policy": [...RULES, "frame-ancestors 'none'"].join("; "),
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
  "Cross-Origin-Resource-Policy": "same-origin",
  "Referrer-Policy": "no-referrer",
  "X-Content-Type-Options": "nosniff",
};
