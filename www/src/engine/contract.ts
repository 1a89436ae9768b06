// What the page uses of the package `cowshed`, under the page's own names.

import type { ImageFormat } from "cowshed";

export type {
  CheckFinding,
  CheckReport,
  Extent,
  ExtentKind,
  Feature,
  HeaderExtension as Extension,
  HeaderField,
  ImageFormat as Format,
  ImageReference as Reference,
  Layer,
  RepairReport,
  Snapshot,
  Verdict,
  VerdictFinding as Finding,
} from "cowshed";

export type { Entry, Fault, FileKind, FileSystemFacts, OperatingSystem, Partition } from "cowshed/disk";

/** A file of the person's, or the address of one on a server. */
export type Bytes = Blob | string;

export interface Source {
  source: Bytes;
  format?: ImageFormat;
  name?: string;
}

/** A source, "read it as zeros", or null for "no". */
export type Answer = Source | "zeros" | null;
