import type { Image, ImageSource, OpenOptions } from "./index.js";

export { CowshedError, Image } from "./index.js";

/** What `Remote` needs of a worker: a browser's `Worker`, or one of Node's `worker_threads`. */
export interface WorkerLike {
  postMessage(message: unknown, transfer: never[]): void;
}

/** The engine in a worker that runs the package's `worker` module. */
export class Remote {
  constructor(worker: WorkerLike);
  /** Opens an image in the worker. What `OpenOptions` calls back is called here. */
  open(source: ImageSource, options?: OpenOptions): Promise<Image>;
  /** Lets go of the worker, which may then be terminated. What is under way fails. */
  dispose(): void;
}
