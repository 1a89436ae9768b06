// What the page uses of the package `cowshed`, as types. The worker checks at compile time that the package fits.

export type Format = "qcow2" | "raw";
export type Bytes = Blob | Uint8Array;

/** Something outside the file that the image names and that the engine asks for. */
export interface Reference {
  kind: "backing-file" | "data-file";
  name: string;
  format: string | null;
  depth: number;
  from: string;
}

export interface Source {
  source: Bytes;
  format?: Format;
  name?: string;
}

/** A source, "read it as zeros", or null for "no". */
export type Answer = Source | "zeros" | null;

export interface OpenOptions {
  name?: string;
  format?: Format;
  snapshot?: string;
  resolve?: (reference: Reference) => Promise<Answer>;
}

export interface HeaderField {
  name: string;
  offset: number;
  length: number;
  value: bigint;
  meaning: string;
}

export interface Feature {
  set: "incompatible" | "compatible" | "autoclear";
  bit: number;
  name: string;
  known: boolean;
}

export interface Extension {
  type: number;
  name: string;
  offset: number;
  length: number;
  text: string;
}

export interface Snapshot {
  id: string;
  name: string;
  vmStateSize: bigint;
  date: number;
  vmClock: bigint;
  diskSize: bigint | null;
  icount: bigint | null;
}

export interface Layer {
  name: string;
  format: string;
  virtualSize: bigint;
  depth: number;
}

export type ExtentKind = "data" | "zero" | "compressed" | "unallocated";

export interface Extent {
  offset: bigint;
  length: bigint;
  kind: ExtentKind;
  depth: number;
  host: bigint | null;
  hostLength: bigint | null;
}

export interface Finding {
  severity: "info" | "caution" | "danger";
  code: string;
  text: string;
  structure: string;
  offset: bigint | null;
}

export interface Verdict {
  conclusion: "safe" | "caution" | "unsafe";
  findings: Finding[];
}

export interface EngineImage {
  readonly virtualSize: bigint;
  readonly hostSize: bigint;
  readonly clusterSize: number | undefined;
  readonly format: string;
  header(): HeaderField[];
  info(): object;
  features(): Feature[];
  extensions(): Extension[];
  snapshots(): Snapshot[];
  layers(): Layer[];
  read(offset: bigint, length: number): Promise<Uint8Array>;
  readHost(offset: bigint, length: number): Promise<Uint8Array>;
  map(offset: bigint, maxLength: bigint, maxExtents: number): Promise<Extent[]>;
  verdict(): Promise<Verdict>;
  statistics(): object;
  close(): Promise<void>;
}

export type OpenImage = (source: Bytes, options?: OpenOptions) => Promise<EngineImage>;
