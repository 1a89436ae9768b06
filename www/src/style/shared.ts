// Styles that several elements share, adopted by each one's shadow root.

import { css } from "lit";

export const shared = css`
  *,
  *::before,
  *::after {
    box-sizing: border-box;
  }
  :host {
    display: block;
  }
  :host([hidden]),
  [hidden] {
    display: none !important;
  }
  h1,
  h2,
  h3,
  p,
  dl,
  dd,
  ul,
  ol,
  figure {
    margin: 0;
    padding: 0;
  }
  h2 {
    font-size: 1.07rem;
    font-weight: 650;
    line-height: 1.3;
    letter-spacing: -0.005em;
  }
  h3 {
    font-size: 0.93rem;
    font-weight: 650;
  }
  .muted {
    color: var(--muted);
  }
  .small {
    font-size: 0.87rem;
  }
  .mono,
  code {
    font-family: var(--mono);
    font-size: 0.88em;
  }
  .number {
    font-variant-numeric: tabular-nums;
  }
  .card {
    background: var(--panel);
    border: 1px solid var(--line);
    border-radius: var(--radius);
    box-shadow: var(--shadow);
    padding: 20px 22px;
    min-width: 0;
  }
  .card > h2 {
    margin-bottom: 12px;
  }
  .clip {
    overflow: hidden;
    text-overflow: ellipsis;
    white-space: nowrap;
    min-width: 0;
  }
  .break {
    overflow-wrap: anywhere;
  }
  button,
  .button {
    font: inherit;
    font-weight: 500;
    line-height: 1.2;
    color: var(--ink);
    background: var(--panel);
    border: 1px solid var(--line-strong);
    border-radius: 8px;
    padding: 8px 14px;
    min-height: 36px;
    cursor: pointer;
  }
  button:hover {
    border-color: var(--ink);
  }
  button.primary {
    background: var(--accent);
    border-color: var(--accent);
    color: var(--accent-ink);
  }
  button.primary:hover {
    background: var(--accent-hover);
    border-color: var(--accent-hover);
  }
  button.quiet {
    border-color: transparent;
    background: none;
    color: var(--accent);
    padding: 4px 8px;
    min-height: 28px;
  }
  button.quiet:hover {
    background: var(--accent-soft);
  }
  button:disabled {
    color: var(--muted);
    border-color: var(--line);
    cursor: default;
  }
  svg {
    flex: none;
  }
  a {
    color: var(--accent);
    text-decoration-color: color-mix(in srgb, currentColor 35%, transparent);
    text-underline-offset: 0.15em;
  }
  a:hover {
    text-decoration-color: currentColor;
  }
  :focus {
    outline: none;
  }
  :focus-visible {
    outline: 2.5px solid var(--accent);
    outline-offset: 2px;
    border-radius: 4px;
  }
  button:focus-visible,
  input:focus-visible {
    border-radius: 8px;
  }
  input[type="text"],
  input[type="password"] {
    font: inherit;
    color: inherit;
    background: var(--panel);
    border: 1px solid var(--line-strong);
    border-radius: 8px;
    padding: 7px 10px;
    min-height: 36px;
    min-width: 0;
  }
  select {
    font: inherit;
    color: inherit;
    background: var(--panel);
    border: 1px solid var(--line-strong);
    border-radius: 8px;
    padding: 6px 8px;
    min-height: 36px;
  }
  select:focus-visible {
    border-radius: 8px;
  }
  input::placeholder {
    color: var(--muted);
    opacity: 1;
  }
  .scroll-x {
    position: relative;
    overflow-x: auto;
    margin: 0 -22px;
    padding: 0 22px;
  }
  table {
    border-collapse: collapse;
    width: 100%;
    font-size: 0.93rem;
    font-variant-numeric: tabular-nums;
  }
  th {
    text-align: left;
    font-weight: 500;
    color: var(--muted);
    font-size: 0.82rem;
    padding: 0 14px 6px 0;
    white-space: nowrap;
    vertical-align: bottom;
  }
  td {
    padding: 7px 14px 7px 0;
    border-top: 1px solid var(--line);
    vertical-align: top;
  }
  th:last-child,
  td:last-child {
    padding-right: 0;
  }
  .right {
    text-align: right;
  }
  .tag {
    display: inline-block;
    font-size: 0.78rem;
    font-weight: 600;
    line-height: 1;
    padding: 4px 7px;
    border-radius: 5px;
    background: var(--sunken);
    color: var(--ink);
    white-space: nowrap;
  }
  .tag.good {
    background: var(--good-soft);
    color: var(--good);
  }
  .tag.fair {
    background: var(--fair-soft);
    color: var(--fair);
  }
  .tag.bad {
    background: var(--bad-soft);
    color: var(--bad);
  }
  .visually-hidden {
    position: absolute;
    width: 1px;
    height: 1px;
    margin: -1px;
    padding: 0;
    overflow: hidden;
    clip-path: inset(50%);
    white-space: nowrap;
    border: 0;
  }
  @media (max-width: 560px) {
    .card {
      padding: 16px;
    }
    .scroll-x {
      margin: 0 -16px;
      padding: 0 16px;
    }
  }
`;

/** An element that is cards, one below the other. */
export const stack = css`
  :host {
    display: grid;
    grid-template-columns: minmax(0, 1fr);
    gap: var(--gap);
  }
`;
