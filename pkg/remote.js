// The engine in a worker, from the other side: `Remote.open` gives the same class Image. The worker runs `worker.js`.

import { CowshedError } from "./error.js";
import { opened } from "./image.js";

export { CowshedError } from "./error.js";
export { Image } from "./image.js";

/** The engine in a worker that runs the package's `worker` module. */
export class Remote {
  #port;
  #pending = new Map();
  #callbacks = new Map();
  #ids = 0;
  #dead = null;

  /** `worker` is a browser's Worker or one of Node's `worker_threads`. */
  constructor(worker) {
    const { port1, port2 } = new MessageChannel();
    this.#port = port1;
    port1.onmessage = ({ data }) => this.#receive(data);
    const die = (event) => this.#die(event?.message ?? "the worker ended");
    if (worker.on) {
      worker.on("error", die);
      worker.on("exit", () => die());
    } else {
      worker.addEventListener("error", die);
    }
    worker.postMessage({ cowshed: port2 }, [port2]);
    this.#rest();
  }

  /** Opens an image in the worker. */
  async open(source, options = {}) {
    const { signal, backing, passphrase, onFetch, ...plain } = options;
    const readers = [];
    const callbacks = {
      backing: async (reference) => {
        if (typeof backing === "function") return this.#crossing(await backing(reference), readers);
        if (backing instanceof Map) return this.#crossing(backing.get(reference.name) ?? null, readers);
        return reference.depth <= 1 ? this.#crossing(backing, readers) : null;
      },
      passphrase: (locked) => (typeof passphrase === "function" ? passphrase(locked) : passphrase),
      onFetch,
      read: (reader, offset, length) => readers[reader].read(offset, length, new AbortController().signal),
    };
    const image = (this.#ids += 1);
    this.#callbacks.set(image, callbacks);
    try {
      const facts = await this.#call(
        image,
        "open",
        [this.#crossing(source, readers), { ...plain, hasBacking: isGiven(backing), hasPassphrase: isGiven(passphrase) }],
        { signal },
      );
      return opened({ backend: { call: (...given) => this.#callImage(image, ...given) }, facts });
    } catch (error) {
      this.#callbacks.delete(image);
      throw error;
    }
  }

  /** Lets go of the worker, which may then be terminated. What is under way fails. */
  dispose() {
    this.#die("the connection to the worker was closed");
  }

  async #callImage(image, method, given, how) {
    const result = await this.#call(image, method, given, how);
    if (method === "close") this.#callbacks.delete(image);
    return result;
  }

  #call(image, method, given, { signal, onEvent } = {}) {
    if (this.#dead) return Promise.reject(this.#dead);
    if (signal?.aborted) return Promise.reject(signal.reason);
    const id = (this.#ids += 1);
    return new Promise((resolve, reject) => {
      const abort = () => {
        settle();
        this.#port.postMessage({ type: "abort", id });
        reject(signal.reason);
      };
      const settle = () => {
        this.#pending.delete(id);
        signal?.removeEventListener("abort", abort);
        this.#rest();
      };
      signal?.addEventListener("abort", abort, { once: true });
      this.#pending.set(id, {
        resolve: (value) => (settle(), resolve(value)),
        reject: (error) => (settle(), reject(error)),
        onEvent,
      });
      this.#port.ref?.();
      this.#port.postMessage({ type: "call", id, image, method, given });
    });
  }

  /** In Node a port keeps the process alive: only while something is under way. */
  #rest() {
    if (this.#pending.size === 0) this.#port.unref?.();
  }

  async #receive(message) {
    const pending = this.#pending.get(message.id);
    switch (message.type) {
      case "result":
        pending?.resolve(message.value);
        break;
      case "error":
        pending?.reject(errorOf(message.error));
        break;
      case "event":
        pending?.onEvent?.(message.event);
        break;
      case "ask": {
        const { ask, image, callback, given } = message;
        try {
          const value = await this.#callbacks.get(image)?.[callback]?.(...given);
          this.#port.postMessage({ type: "answer", ask, value });
        } catch (error) {
          this.#port.postMessage({ type: "answer", ask, error: { message: String(error?.message ?? error), code: error?.code } });
        }
        break;
      }
    }
  }

  #die(reason) {
    this.#dead ??= new CowshedError(`the engine stopped: ${reason}`, { code: "engine-stopped" });
    for (const pending of [...this.#pending.values()]) pending.reject(this.#dead);
    this.#port.close();
  }

  /** A source as it crosses to the worker: a reader stays here and is called back. */
  #crossing(source, readers) {
    if (source === null || source === undefined || source === "zeros") return source ?? null;
    if (source instanceof URL) return source.href;
    if (source.source !== undefined) return { ...source, source: this.#crossing(source.source, readers) };
    if (typeof source.read !== "function" || source instanceof Blob) return source;
    readers.push(source);
    return { reader: readers.length - 1, size: source.size, name: source.name };
  }
}

function isGiven(value) {
  return value !== undefined && value !== null;
}

function errorOf({ name, message, ...rest }) {
  if (name === "CowshedError") return new CowshedError(message, rest);
  const error = new Error(message);
  error.name = name;
  return error;
}
