// The messages between the page and its worker. Offsets are bigint throughout: a structured clone keeps them whole.

import type { Allocation } from "../model/allocation.js";
import type {
  Answer,
  Bytes,
  Extension,
  Extent,
  Feature,
  Format,
  HeaderField,
  Layer,
  Reference,
  Snapshot,
  Verdict,
} from "./contract.js";

/** Offsets of the disk that the guest sees, or of the file on the host. */
export type Space = "guest" | "host";

/** Everything that an open image knows without another look at the file. */
export interface ImageFacts {
  image: number;
  format: string;
  virtualSize: bigint;
  hostSize: bigint;
  clusterSize: number | null;
  header: HeaderField[];
  info: object;
  features: Feature[];
  extensions: Extension[];
  snapshots: Snapshot[];
  layers: Layer[];
}

export interface OpenArguments {
  source: Bytes;
  name: string;
  format: Format | null;
  snapshot: string | null;
}

/** Each call with its arguments, its result, and what it reports on the way. */
export interface Calls {
  open: { arguments: OpenArguments; result: ImageFacts; progress: never };
  read: {
    arguments: { image: number; space: Space; offset: bigint; length: number };
    result: Uint8Array;
    progress: never;
  };
  map: {
    arguments: { image: number; offset: bigint; length: bigint; extentsMax: number };
    result: Extent[];
    progress: never;
  };
  scan: {
    arguments: { image: number; offset: bigint; length: bigint; bucketsMax: number };
    result: Allocation;
    progress: Allocation;
  };
  verdict: { arguments: { image: number }; result: Verdict; progress: never };
  close: { arguments: { image: number }; result: null; progress: never };
}

export type Call = keyof Calls;

export type Request =
  | { [C in Call]: { type: "call"; id: number; call: C; arguments: Calls[C]["arguments"] } }[Call]
  | { type: "cancel"; id: number }
  | { type: "answer"; ask: number; answer: Answer };

/** An error as it crosses the worker's border. `fatal`: the engine cannot be used any more. */
export interface WireError {
  message: string;
  code: string | null;
  structure: string | null;
  offset: bigint | null;
  fatal: boolean;
}

export type Reply =
  | { type: "result"; id: number; value: Calls[Call]["result"] }
  | { type: "progress"; id: number; value: Calls[Call]["progress"] }
  | { type: "error"; id: number; error: WireError }
  | { type: "ask"; id: number; ask: number; reference: Reference };
