// A worker's whole script; it exports nothing.
export {};
