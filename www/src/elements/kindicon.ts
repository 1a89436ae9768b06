// Small pictures of what an entry is, with the word for whoever does not see them.

import { html, svg, type SVGTemplateResult, type TemplateResult } from "lit";
import type { FileKind } from "../engine/contract.js";

const FILE = svg`<path d="M4 1.5h5.5L13 5v9.5H4z M9.5 1.5V5H13" />`;
const FOLDER = svg`<path d="M1.5 3.5h4.6l1.4 1.7h7v8.3h-13z" />`;
const LINK = svg`<path d="M4 1.5h5.5L13 5v9.5H4z M6 11c0-2.4 1.4-3.4 4.4-3.4 M8.6 5.8l1.9 1.8-1.9 1.8" />`;
const OTHER = svg`<circle cx="8" cy="8" r="5.5" /><circle cx="8" cy="8" r="1.4" />`;

const ICONS: Partial<Record<FileKind, SVGTemplateResult>> = { file: FILE, folder: FOLDER, symlink: LINK };

export function kindIcon(kind: FileKind): TemplateResult {
  const isFolder = kind === "folder";
  return html`<svg
    role="img"
    aria-label=${kind}
    width="16"
    height="16"
    viewBox="0 0 16 16"
    fill=${isFolder ? "var(--accent-soft)" : "none"}
    stroke=${isFolder ? "var(--accent)" : "var(--muted)"}
    stroke-width="1.3"
    stroke-linejoin="round"
  >
    ${ICONS[kind] ?? OTHER}
  </svg>`;
}
