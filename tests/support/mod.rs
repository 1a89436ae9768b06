//! What the integration tests share: QEMU's tools, images made with them, and the bytes that those images must read as.
//!
//! Used as `mod support;` by each program. It knows nothing of the engine: expected values come from QEMU alone. A tool
//! that is missing is a failure that says how to install it, never a skipped test.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::cast_possible_truncation,
    reason = "each program uses a part of it, and a panic is how a test fails"
)]

pub mod data;
pub mod images;
pub mod kept;
pub mod matrix;
pub mod medium;
pub mod mutants;
pub mod open;
pub mod qemu;
#[cfg(feature = "sim")]
pub mod sectors;
pub mod seeds;
pub mod tables;
pub mod threads;
#[cfg(feature = "sim")]
pub mod three_files;

#[allow(unused_imports, reason = "each program uses a part of it")]
pub use {
    images::TestImage,
    matrix::{Case, cases, for_each_image, images, matrix, small_matrix},
};
