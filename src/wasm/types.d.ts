/** An object that reads on demand. It is asked for up to eight ranges at a time, each at most 4 MiB long. */
export interface ImageReader {
    /** Of all that can be read, in bytes. */
    readonly size: number | bigint;
    /** Gives exactly `length` bytes from `offset`. The signal aborts when nobody waits for them any more. */
    read(offset: number, length: number, signal: AbortSignal): Promise<Uint8Array> | Uint8Array;
}

/** What an image is read from: slices of a `Blob` or `File`, never the whole of it, bytes in memory, or a reader. */
export type ImageSource = Blob | Uint8Array | ImageReader;

export type ImageFormat = "qcow2" | "raw";

/** Another file that an image names, which the page is asked for. */
export interface ImageReference {
    kind: "backing-file" | "data-file";
    /** The name as the image has it: text from a stranger, to show and not to interpret. */
    name: string;
    /** The format that the image states for a backing file. */
    format: string | null;
    /** How many layers lie above: 1 for the backing file of the image itself, 0 for its data file. */
    depth: number;
    /** The name of the layer that refers to it. */
    from: string;
}

/** The page's answer: a file, zeros in its place, or nothing, which refuses. */
export type ImageAnswer = { source: ImageSource; format?: ImageFormat; name?: string } | "zeros" | null;

export interface OpenOptions {
    /** Gives up opening; what is open later knows nothing of it. */
    signal?: AbortSignal;
    /** What to call the image in messages; a `File` has a name of its own. */
    name?: string;
    /** Without it the format is guessed from the first bytes, and `formatGuessed` is true. */
    format?: ImageFormat;
    /** Opens this internal snapshot, by its id or else its name, instead of the active state. */
    snapshot?: string;
    /** Asked for the passphrase of each encrypted layer; `null` opens it without, and what is encrypted cannot be read. */
    passphrase?: (locked: LockedLayer) => Promise<string | Uint8Array | null> | string | Uint8Array | null;
    /** Derives a key by PBKDF2; `null` has the engine do it, which takes longer. */
    derive?: (derivation: Derivation) => Promise<Uint8Array | null>;
    /** Asked for each file that the image or one of its layers names. Without it every such image is refused. */
    resolve?: (reference: ImageReference) => Promise<ImageAnswer> | ImageAnswer;
}

/** A layer that is encrypted. */
export interface LockedLayer {
    /** Its name. */
    name: string;
    /** How many layers lie above: 0 for the image itself. */
    depth: number;
    method: "LUKS" | "AES";
}

/** A key to derive by PBKDF2. */
export interface Derivation {
    /** "sha1", "sha256"... */
    hash: string;
    password: Uint8Array;
    salt: Uint8Array;
    iterations: number;
    /** In bytes. */
    length: number;
}

export interface JudgeOptions {
    signal?: AbortSignal;
    /** Without it the format is guessed from the first bytes. */
    format?: ImageFormat;
}

/** What promises reject with. */
export interface CowshedError extends Error {
    name: "CowshedError";
    /** What it is, in kebab case; stable. */
    code: string;
    /** The structure that is damaged or not supported: "header", "L2 table"... */
    structure?: string;
    /** Where in the file that is. */
    offset?: bigint;
    /** With the code "refused": what the image names. */
    reference?: { kind: "backing-file" | "data-file"; name: string };
}

export interface HeaderField {
    /** The specification's name. */
    name: string;
    offset: number;
    length: number;
    value: bigint;
    meaning: string;
}

/** A feature bit that is set. */
export interface Feature {
    set: "incompatible" | "compatible" | "autoclear";
    bit: number;
    name: string;
    /** Whether this package knows it. */
    known: boolean;
}

export interface HeaderExtension {
    type: number;
    name: string;
    /** Of the extension in the file. */
    offset: number;
    /** Of its data, without type, length and padding. */
    length: number;
    text: string;
}

export interface Snapshot {
    id: string;
    name: string;
    vmStateSize: bigint;
    /** Seconds since 1970. */
    date: number;
    /** How long the guest had been running, in nanoseconds. */
    vmClock: bigint;
    /** `null` where the image does not say: the image's own size. */
    diskSize: bigint | null;
    icount: bigint | null;
    /** Where its L1 table is in the file, and how many entries it has. */
    l1Offset: bigint;
    l1Entries: number;
}

export interface Bitmap {
    flags: ("in-use" | "auto")[];
    name: string;
    /** Bytes of the disk for each bit. */
    granularity: number;
}

export interface Layer {
    name: string;
    format: ImageFormat;
    virtualSize: bigint;
    hostSize: bigint;
    /** 0 is the image itself. */
    depth: number;
}

export type ExtentKind = "data" | "zero" | "compressed" | "unallocated";

/** A run of guest bytes that one layer answers for in one way. */
export interface Extent {
    offset: bigint;
    length: bigint;
    kind: ExtentKind;
    depth: number;
    /** Where it begins in its layer's file, or data file. */
    host: bigint | null;
    /** Of a compressed cluster's stream the upper bound. */
    hostLength: bigint | null;
}

/** Under the keys of `qemu-img info --output=json`. `actual-size` is the length of the file. */
export interface ImageInfo {
    "virtual-size": number;
    filename: string;
    format: ImageFormat;
    "actual-size": number;
    "dirty-flag": boolean;
    "cluster-size"?: number;
    encrypted?: boolean;
    "backing-filename"?: string;
    "full-backing-filename"?: string;
    "backing-filename-format"?: string;
    snapshots?: {
        id: string;
        name: string;
        "date-sec": number;
        "date-nsec": number;
        "vm-clock-sec": number;
        "vm-clock-nsec": number;
        "vm-state-size": number;
        icount?: number;
    }[];
    "format-specific"?: {
        type: "qcow2";
        data: {
            compat: "0.10" | "1.1";
            "compression-type": "zlib" | "zstd";
            "refcount-bits": number;
            bitmaps?: Bitmap[];
            "lazy-refcounts"?: boolean;
            corrupt?: boolean;
            "extended-l2"?: boolean;
            "data-file"?: string | null;
            "data-file-raw"?: boolean;
        };
    };
}

export interface VerdictFinding {
    severity: "info" | "caution" | "danger";
    /** In kebab case; stable. */
    code: string;
    /** One line; names from the image are escaped. */
    text: string;
    structure: string;
    /** In the file, or on the disk for what is on the guest's disk. */
    offset: bigint | null;
}

export interface Verdict {
    conclusion: "safe" | "caution" | "unsafe";
    /** The worst first. */
    findings: VerdictFinding[];
}

export interface CheckFinding {
    class: "leak" | "corruption" | "check-error";
    text: string;
    structure: string;
    /** In the file. */
    offset: bigint;
}

/** Under the keys of `qemu-img check --output=json`, and what was found. */
export interface CheckReport {
    "image-end-offset": number;
    "total-clusters": number;
    "check-errors": number;
    corruptions: number;
    leaks: number;
    "allocated-clusters": number;
    "fragmented-clusters": number;
    "compressed-clusters": number;
    filename: string | null;
    format: "qcow2";
    /** The first thousand. */
    findings: CheckFinding[];
    "findings-total": number;
}

export interface CacheStatistics {
    hits: number;
    misses: number;
    loads: number;
    evictions: number;
    cleaned: number;
    passes: number;
    bytesHeld: number;
}

export interface Statistics {
    /** For each layer, in their order. */
    layers: { l2: CacheStatistics; refcount: CacheStatistics }[];
    /** For each `Blob` that was opened: slices read, bytes in them, bytes held now. */
    blobs: { fetches: number; bytesFetched: number; bytesHeld: number }[];
}

/** A file that is read and written at once: a `FileSystemSyncAccessHandle`, or what has its methods. */
export interface AccessHandle {
    read(into: Uint8Array, how: { at: number }): number;
    write(from: Uint8Array, how: { at: number }): number;
    truncate(length: number): void;
    getSize(): number;
    flush(): void;
}

export interface CreateOptions {
    /** Of the disk, in bytes. */
    size: bigint;
    /** In bytes; 65536 by default. */
    clusterSize?: bigint;
    backingName?: string;
    backingFormat?: string;
    lazyRefcounts?: boolean;
    extendedL2?: boolean;
    compression?: "zlib" | "zstd";
}

/** What is left, and what was repaired. */
export interface RepairReport extends CheckReport {
    "corruptions-fixed": number;
    "leaks-fixed": number;
    /** It was not carried to its end: what stands in the way is among the findings. */
    "gave-up": boolean;
}
