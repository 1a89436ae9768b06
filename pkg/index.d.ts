import type {
  AccessHandle,
  Bitmap,
  CheckFinding,
  CheckReport,
  Extent,
  Feature,
  HeaderExtension,
  HeaderField,
  ImageFormat,
  ImageInfo,
  ImageReader,
  ImageReference,
  Layer,
  LockedLayer,
  Snapshot,
  Statistics,
  Verdict,
} from "./engine/cowshed.js";

export type {
  AccessHandle,
  Bitmap,
  CacheStatistics,
  CheckFinding,
  CheckReport,
  Extent,
  ExtentKind,
  Feature,
  HeaderExtension,
  HeaderField,
  ImageFormat,
  ImageInfo,
  ImageReader,
  ImageReference,
  Layer,
  LockedLayer,
  RepairReport,
  Snapshot,
  Statistics,
  Verdict,
  VerdictFinding,
} from "./engine/cowshed.js";

/**
 * What an image can be read from: a `Blob` or `File`, by slices; an address, by HTTP ranges; a handle of a file; bytes in
 * memory; or an object that reads on demand. In Node also a `file:` URL.
 */
export type ImageSource = Blob | URL | string | FileSystemFileHandle | Uint8Array | ArrayBuffer | ImageReader | AccessHandle;

/** A source with what is to be told of it. */
export interface NamedSource {
  source: ImageSource;
  format?: ImageFormat;
  name?: string;
}

/** The answer to what an image names: a source, `"zeros"` to do without, `null` to refuse. */
export type BackingAnswer = ImageSource | NamedSource | "zeros" | null;

/** How far the fetching of an address is. */
export interface Fetched {
  url: string;
  /** In all. */
  bytes: number;
  requests: number;
}

export interface OpenOptions {
  /** What to call the image in messages; files and addresses have a name of their own. */
  name?: string | undefined;
  /** Without it the format is guessed from the first bytes, and `formatGuessed` is true: show that. */
  format?: ImageFormat | undefined;
  /** Opens this internal snapshot, by its id or else its name, instead of the active state. */
  snapshot?: string | undefined;
  /**
   * The passphrase of what is encrypted, or who is asked for that of each layer; `null` does without, and what is encrypted cannot
   * be read then. A wrong one rejects with the code `wrong-key`. Keys are derived by WebCrypto where it can.
   */
  passphrase?:
    | string
    | Uint8Array
    | ((locked: LockedLayer) => Promise<string | Uint8Array | null> | string | Uint8Array | null)
    | undefined;
  /**
   * A file that takes what is written, and leaves the source as it is: a qcow2 image above it, made if the file is empty, and gone on
   * with if it is not. A handle of a file in the browser's own storage, in workers; or an access handle.
   */
  overlay?: FileSystemFileHandle | AccessHandle | undefined;
  /** The source itself is written: a file handle, in workers, or an access handle. */
  writable?: boolean | undefined;
  /**
   * What stands for the files that the image names. Without it such an image is refused. A function is asked for each; a Map
   * knows them by name; a source answers for what the image itself names and for nothing below.
   */
  backing?:
    | ((reference: ImageReference) => BackingAnswer | Promise<BackingAnswer>)
    | Map<string, BackingAnswer>
    | ImageSource
    | NamedSource
    | undefined;
  /** Gives up opening. */
  signal?: AbortSignal | undefined;
  /** Told whenever bytes have come from an address. */
  onFetch?: ((fetched: Fetched) => void) | undefined;
}

export interface Signalled {
  /** Gives up; the promise rejects with the signal's reason. */
  signal?: AbortSignal | undefined;
}

/** A part of the disk; the whole of it where nothing is said. */
export interface PartOptions extends Signalled {
  offset?: bigint | number | undefined;
  length?: bigint | number | undefined;
}

/** What a check tells on its way. The report is the last. */
export type CheckEvent =
  | { type: "progress"; done: number; total: number }
  | { type: "finding"; finding: CheckFinding }
  | { type: "report"; report: CheckReport };

/**
 * An open image. Offsets and sizes are given as `bigint`, and taken as `bigint` or as numbers that are safe integers. Promises
 * reject with a `CowshedError`, or with the reason of the signal that was aborted.
 */
export class Image implements AsyncDisposable {
  private constructor();

  /** Opens an image with the engine in this thread. */
  static open(source: ImageSource, options?: OpenOptions): Promise<Image>;

  /** Size of the disk: of the snapshot, if one is open. */
  readonly virtualSize: bigint;
  /** Length of the image's own file. */
  readonly hostSize: bigint;
  /** Bytes in a cluster; null if the image is raw. */
  readonly clusterSize: number | null;
  readonly format: ImageFormat;
  /** Whether the format was guessed from the first bytes because nobody said it. */
  readonly formatGuessed: boolean;
  readonly name: string;
  /** What `qemu-img info --output=json` says, under its keys. */
  readonly info: ImageInfo;
  /** The fields of the header in their order; none if the image is raw. */
  readonly header: HeaderField[];
  /** The feature bits that are set. */
  readonly features: Feature[];
  readonly headerExtensions: HeaderExtension[];
  readonly snapshots: Snapshot[];
  readonly bitmaps: Bitmap[];
  /** The layers that are open, the image itself first. */
  readonly layers: Layer[];

  /** Reads `length` bytes of the disk, at most 256 MiB. */
  read(offset: bigint | number, length: number, options?: Signalled): Promise<Uint8Array<ArrayBuffer>>;
  /** Reads `length` bytes of the image's own file. */
  readHost(offset: bigint | number, length: number, options?: Signalled): Promise<Uint8Array<ArrayBuffer>>;
  /** The disk, or a part of it, as a stream. Cancelling the stream stops the reading. */
  stream(options?: PartOptions & { pieceLength?: number }): ReadableStream<Uint8Array<ArrayBuffer>>;
  /** What lies where, extent by extent, without reading it. */
  extents(options?: PartOptions): AsyncGenerator<Extent, void, void>;
  /** The first `maxExtents` extents of a part of the disk. */
  map(offset: bigint | number, length: bigint | number, maxExtents: number, options?: Signalled): Promise<Extent[]>;
  /** Checks every reference against the refcounts. Leaving the loop stops the check. */
  check(options?: Signalled): AsyncGenerator<CheckEvent, void, void>;
  /** Writes bytes to the disk: of an image opened with an overlay, or writable. Others reject with the code `read-only`. */
  write(offset: bigint | number, bytes: Uint8Array, options?: Signalled & { compressed?: boolean }): Promise<void>;
  /** Makes a part of the disk read as zeros. */
  writeZeroes(offset: bigint | number, length: bigint | number, options?: Signalled): Promise<void>;
  /** Says that a part of the disk is of no more use. */
  discard(offset: bigint | number, length: bigint | number, options?: Signalled): Promise<void>;
  /** Makes durable what was written before. `close` does, too. */
  flush(options?: Signalled): Promise<void>;
  /** Whether the image is safe to hand to a virtual machine, and why. Takes the same time for every image. */
  verdict(options?: Signalled): Promise<Verdict>;
  /** What the caches and the sources have done so far. */
  statistics(): Promise<Statistics>;
  /** Refuses new requests, waits for those under way, gives everything back. May be called again. */
  close(): Promise<void>;
  [Symbol.asyncDispose](): Promise<void>;
}

/** What promises reject with. */
export class CowshedError extends Error {
  name: "CowshedError";
  /** What it is, in kebab case; stable. */
  readonly code: string;
  /** The structure that is damaged or not supported: "header", "L2 table"... */
  readonly structure: string | undefined;
  /** Where in the file that is. */
  readonly offset: bigint | undefined;
  /** With the code "refused": what the image names. */
  readonly reference: { kind: "backing-file" | "data-file"; name: string } | undefined;
}

/**
 * Loads the engine, which `Image.open` does by itself. For bundlers that do not find `cowshed_bg.wasm`: its address, its
 * response, its bytes, or the module compiled from it.
 */
export function init(
  module?: string | URL | Request | Response | BufferSource | WebAssembly.Module | Promise<Response>,
): Promise<void>;

/** Judges an image without opening it, and nothing that it names: also one that cannot be opened. */
export function judge(source: ImageSource, options?: { format?: ImageFormat } & Signalled): Promise<Verdict>;
