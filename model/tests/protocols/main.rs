//! The fear: an interleaving that nobody has thought of. Every protocol of the cache, its cleaner and the image is run under a
//! model checker that decides, at each lock, event and atomic of `src/sync.rs` and at each request to the storage, which task
//! goes on.
//!
//! # What is checked
//!
//! Each protocol is a function of [`cache`] or [`image`] with two to five tasks; its comment says what it claims. In every
//! schedule the checker sees besides whether a task waits for ever (a lost wake-up, a deadlock) and the engine's own assertions
//! see whether a slot changes its state as it must not.
//!
//! # Bounds
//!
//! - Half of the schedules are random, half are PCT's with depth 3 (every bug that needs at most two changes of the running
//!   task at certain points is found with a probability that has a lower bound). Seeds are numbered from `COWSHED_MODEL_SEED`
//!   (0 if not given); a failure prints its schedule, for `shuttle::replay`.
//! - `COWSHED_MODEL_SCHEDULES` says how many for each protocol of the cache; the image's take a hundred times as long, and get a
//!   tenth of that. If not given: 4,000, a smoke test. `cargo xtask model --schedules 1000000` is the long run.
//! - Caches hold one to four slices of 512 bytes, disks 8 clusters of 512 bytes and more. Requests to the storage take one or two
//!   turns; a write arrives in two halves.
//! - Atomics are sequentially consistent here, and words of slices are no points of choice. What a weak memory may show is
//!   not checked here.
//!
//! # That it can fail
//!
//! [`mutants`] leaves out one rule of the protocols at a time: each mutant must be found, within a bound that stands there.

#![cfg(feature = "shuttle")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a panic is how a test fails")]

mod cache;
mod explore;
mod image;
mod mutants;
mod storage;
