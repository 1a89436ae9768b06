// The styles of a kind's swatch, for every element that shows one.

import { css } from "lit";

export const swatches = css`
  .swatch {
    display: inline-block;
    flex: none;
    vertical-align: -2px;
    border-radius: 3px;
    overflow: hidden;
    stroke-width: 1.6;
    fill: none;
  }
  .swatch.data .ground {
    fill: var(--map-data);
  }
  .swatch.backing {
    stroke: var(--map-backing-mark);
  }
  .swatch.backing .ground {
    fill: var(--map-backing);
    stroke: none;
  }
  .swatch.compressed {
    stroke: var(--map-compressed-mark);
  }
  .swatch.compressed .ground {
    fill: var(--map-compressed);
    stroke: none;
  }
  .swatch.zero .ground {
    fill: var(--map-zero);
  }
  .swatch.zero circle {
    fill: var(--map-zero-mark);
  }
  .swatch.unallocated {
    stroke: var(--map-unallocated-mark);
  }
  .swatch.unallocated .ground {
    fill: var(--map-unallocated);
    stroke: none;
  }
`;
