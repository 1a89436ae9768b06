/** Loads the engine that decrypts, which `Image.open` does by itself. For bundlers that do not find `crypt_bg.wasm`. */
export function init(
  module?: string | URL | Request | Response | BufferSource | WebAssembly.Module | Promise<Response>,
): Promise<void>;
