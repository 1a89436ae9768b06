//! cowshed: a qcow2 engine.

// Whatever can differ between two runs comes in through Storage, Timer, Workers and the executor: see clippy.toml.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]
#![warn(clippy::unwrap_used, clippy::expect_used, clippy::cast_possible_truncation)]
#![deny(clippy::print_stdout, clippy::print_stderr, clippy::dbg_macro)]
// What only writing uses is not compiled into a program that does not write.
#![cfg_attr(not(all(feature = "write", feature = "encryption")), allow(dead_code, unused_imports))]

pub mod cache;
pub mod crypt;
pub mod error;
pub mod format;
pub mod image;
pub mod inspect;
#[allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "adapters are where effects live"
)]
pub mod rt;
#[cfg(feature = "sim")]
pub mod sim;
pub mod storage;
mod sync;
pub mod timer;
#[cfg(all(target_family = "wasm", feature = "web"))]
pub mod wasm;
pub mod workers;

pub use error::{Error, Result};

/// Runs the README's examples with the documentation's.
#[cfg(all(doctest, feature = "file", not(target_family = "wasm")))]
#[doc = include_str!("../README.md")]
struct Readme;
