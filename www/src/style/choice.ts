// A choice of a few, as a row of radio buttons that look like one control.

import { css } from "lit";

export const choice = css`
  fieldset {
    display: flex;
    margin: 0;
    padding: 3px;
    border: 0;
    border-radius: 10px;
    background: var(--sunken);
    box-shadow: inset 0 0 0 1px var(--line);
  }
  fieldset label {
    position: relative;
    padding: 5px 14px;
    border-radius: 7px;
    font-weight: 500;
    color: var(--muted);
    cursor: pointer;
  }
  fieldset input {
    position: absolute;
    inset: 0;
    opacity: 0;
    margin: 0;
    cursor: pointer;
  }
  fieldset label:has(:checked) {
    background: var(--panel);
    color: var(--ink);
    box-shadow: 0 1px 3px rgb(0 0 0 / 16%);
  }
  fieldset label:has(:focus-visible) {
    outline: 2.5px solid var(--accent);
  }
`;
