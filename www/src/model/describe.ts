// An image in a sentence, and errors in words.

import type { Reference } from "../engine/contract.js";
import type { ImageFacts } from "../engine/protocol.js";
import { sizeText } from "./size.js";
import { counted } from "./text.js";

/** What `qemu-img info` calls its keys; only those that the page reads. */
export interface Info {
  "virtual-size"?: number;
  encrypted?: boolean;
  "dirty-flag"?: boolean;
  "backing-filename"?: string;
  "format-specific"?: {
    data?: {
      compat?: string;
      "compression-type"?: string;
      "extended-l2"?: boolean;
      "data-file"?: string;
      corrupt?: boolean;
    };
  };
}

/** What the image is, in one sentence or two. Names are left out: they have places of their own. */
export function describe(facts: ImageFacts): string {
  const size = sizeText(facts.virtualSize);
  if (facts.format !== "qcow2") {
    return `A raw disk of ${size}: the file's bytes are the disk's bytes, and nothing in it describes them.`;
  }
  const info = facts.info as Info;
  const data = info["format-specific"]?.data ?? {};
  const version = data.compat === "0.10" ? "2" : "3";
  const has: string[] = [];
  if (facts.snapshots.length > 0) has.push(counted(facts.snapshots.length, "snapshot"));
  if (facts.bitmaps.length > 0) has.push(counted(facts.bitmaps.length, "bitmap"));
  if (info["backing-filename"] !== undefined) has.push("a backing file");
  if (data["data-file"] !== undefined) has.push("its data in a file of its own");
  const withs = has.length > 0 ? `, with ${list(has)}` : "";
  const states: string[] = [];
  if (info.encrypted) states.push("Its contents are encrypted.");
  if (data.corrupt) states.push("It is marked as corrupt.");
  if (info["dirty-flag"]) states.push("It was not closed properly: its reference counts may be out of date.");
  return [`A disk of ${size} in a qcow2 version ${version} image${withs}.`, ...states].join(" ");
}

function list(parts: string[]): string {
  if (parts.length < 2) return parts.join("");
  return `${parts.slice(0, -1).join(", ")} and ${parts.at(-1)}`;
}

/** What a reference is to the image that names it. */
export function roleOf(reference: Pick<Reference, "kind">): string {
  return reference.kind === "backing-file" ? "backing file" : "data file";
}

/** The heading over an error of opening, by the engine's code and structure. */
export function failureHeading(error: { code?: string | null; structure?: string | null; message: string }): string {
  const code = error.code ?? "";
  if (code === "engine-stopped") return "The engine stopped";
  if (code === "cors") return "The server does not let this page read the file";
  if (code === "network") return "The server could not be reached";
  if (code === "no-ranges" || code === "no-length") return "The server does not give out parts of the file";
  if (code === "changed") return "The file has changed on the server";
  if (code === "http-status" || code === "wrong-range" || code === "mixed-content") return "The file could not be fetched";
  if (code === "encrypted") return "This image is encrypted";
  if (/unsupported|encrypt|version|feature/.test(code)) return "This image needs something that is not supported";
  if (/truncat|past-end|beyond|short|too-small/.test(code)) return "This image is cut short or points past its end";
  if (/limit|too-large|too-many/.test(code)) return "This image asks for more than is reasonable";
  if (/refused/.test(code)) return "A file that the image needs was not given";
  if (/storage/.test(code)) return "The file could not be read";
  if (error.structure) return "This image is damaged, or made to look like one";
  return "This image could not be opened";
}
