//! The engine by its public API, one module for each noun or fear, whose opening tells the story.
//!
//! They are one program because each program compiles the engine again: what it awaits becomes code where it is awaited.
//! A test that needs a process to itself, for what it measures or for what it does to the process, is a program of its own
//! beside this one. The tests here run beside each other.
#![cfg(not(target_family = "wasm"))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::cast_possible_truncation,
    unreachable_pub,
    reason = "a panic is how a test fails"
)]

#[path = "../gated/mod.rs"]
mod gated;
#[path = "../support/mod.rs"]
mod support;

mod alternate;
#[cfg(all(feature = "file", feature = "sim"))]
mod backing_commit;
mod bitmaps;
#[cfg(all(target_os = "linux", feature = "uring"))]
mod block_on;
mod cache_cleaner;
mod cache_loads;
mod cache_options;
mod cache_passes;
mod cache_stress;
mod chain;
mod check;
#[cfg(feature = "sim")]
mod cleaner_race;
#[cfg(all(feature = "sim", feature = "smol"))]
mod close;
#[cfg(all(unix, feature = "file"))]
mod compressed_streams;
mod corners;
mod corrupt_reads;
mod create;
mod damaged_writes;
#[cfg(feature = "files")]
mod disk_files;
#[cfg(all(feature = "encryption", feature = "write"))]
mod encryption;
mod error_kinds;
mod format_agrees_with_qemu;
mod format_entries;
mod format_errors;
mod format_header;
mod format_round_trip;
#[cfg(all(unix, feature = "file"))]
mod gate;
mod isolation;
mod kept_images;
#[cfg(all(feature = "encryption", feature = "write", feature = "sim"))]
mod luks_volume;
mod malformed;
mod overlap_checks;
mod partitions;
mod read;
mod real_image;
#[cfg(all(feature = "file", feature = "smol"))]
mod reconfigure;
mod repair;
mod requests;
#[cfg(all(feature = "file", feature = "smol", feature = "tokio"))]
mod runtimes;
#[cfg(feature = "sim")]
mod sim_crashes;
#[cfg(feature = "sim")]
mod sim_create;
#[cfg(feature = "sim")]
mod sim_reads;
#[cfg(feature = "sim")]
mod sim_world;
mod storage_blocks;
mod storage_contract;
#[cfg(feature = "sim")]
mod stream;
mod support_works;
mod truncation;
mod verdict;
mod workers;
mod write;
mod write_threads;
