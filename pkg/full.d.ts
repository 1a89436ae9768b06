/** Loads the whole engine, which is done by itself when something needs it. For bundlers that do not find `full_bg.wasm`. */
export function init(
  module?: string | URL | Request | Response | BufferSource | WebAssembly.Module | Promise<Response>,
): Promise<void>;
