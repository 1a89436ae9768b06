// A worker's whole script: the engine behind the ports that `Remote` sends. In a worker of your own, import it beside your code.

import { openLocal } from "./local.js";
import { asError } from "./error.js";
import { workerPort } from "#platform";

// Node's parentPort has the event's data at hand; a browser's scope wraps it. Both know addEventListener.
workerPort()?.addEventListener("message", (event) => {
  const port = event.data?.cowshed;
  if (port) serve(port);
});

/** Answers the calls that come through a port. */
function serve(port) {
  const images = new Map();
  const aborts = new Map();
  const asks = new Map();
  let asked = 0;

  const ask = (image, callback, ...given) =>
    new Promise((resolve, reject) => {
      const id = (asked += 1);
      asks.set(id, { resolve, reject });
      port.postMessage({ type: "ask", ask: id, image, callback, given });
    });

  /** A source as it came: a reader of the other side's is asked there. */
  const arrived = (image, source) => {
    if (source?.source !== undefined) return { ...source, source: arrived(image, source.source) };
    if (source?.reader === undefined) return source;
    const { reader, size, name } = source;
    return { size, name, read: (offset, length) => ask(image, "read", reader, offset, length) };
  };

  const open = async (image, [source, { hasBacking, hasPassphrase, ...options }], signal) => {
    const { backend, facts } = await openLocal(arrived(image, source), {
      ...options,
      signal,
      onFetch: (fetched) => void ask(image, "onFetch", fetched),
      passphrase: hasPassphrase ? (locked) => ask(image, "passphrase", locked) : undefined,
      backing: hasBacking ? async (reference) => arrived(image, await ask(image, "backing", reference)) : undefined,
    });
    if (signal.aborted) {
      await backend.call("close", []);
      signal.throwIfAborted();
    }
    images.set(image, backend);
    return facts;
  };

  const run = async ({ id, image, method, given }) => {
    const abort = new AbortController();
    aborts.set(id, abort);
    try {
      const how = { signal: abort.signal, onEvent: (event) => port.postMessage({ type: "event", id, event }) };
      const value = await (method === "open"
        ? open(image, given, abort.signal)
        : imageOf(images, image).call(method, given, how));
      if (method === "close") images.delete(image);
      port.postMessage({ type: "result", id, value }, value instanceof Uint8Array ? [value.buffer] : []);
    } catch (thrown) {
      const { name, message, code, structure, offset, reference } = asError(thrown) ?? {};
      port.postMessage({ type: "error", id, error: { name, message, code, structure, offset, reference } });
    } finally {
      aborts.delete(id);
    }
  };

  port.onmessage = ({ data: message }) => {
    switch (message.type) {
      case "call":
        void run(message);
        break;
      case "abort":
        aborts.get(message.id)?.abort();
        break;
      case "answer": {
        const waiting = asks.get(message.ask);
        asks.delete(message.ask);
        if (message.error) waiting?.reject(Object.assign(new Error(message.error.message), message.error));
        else waiting?.resolve(message.value);
        break;
      }
    }
  };
}

function imageOf(images, image) {
  const backend = images.get(image);
  if (!backend) throw new Error("the image is closed");
  return backend;
}
