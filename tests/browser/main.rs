//! The engine in a browser: what a page may rely on. One program, as each compiles the engine again; what runs in a worker is
//! another, as a program runs in one or in the other.
#![cfg(target_family = "wasm")]

mod cleaner;
mod executor;
mod package;
mod read;
mod storage;

wasm_bindgen_test::wasm_bindgen_test_configure!(run_in_browser);
