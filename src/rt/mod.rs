//! Adapters to what the engine runs on: files, io_uring, executors, timers, threads. One feature each.
//!
//! The engine knows none of them; each stands on the contracts of [`storage`](crate::storage),
//! [`timer`](crate::timer) and [`workers`](crate::workers). This module must not know the cache or the engine's insides.

#[cfg(all(unix, feature = "file"))]
mod file;
#[cfg(all(unix, feature = "file"))]
mod lock;
#[cfg(all(unix, feature = "file"))]
mod posix;

#[cfg(all(unix, feature = "file"))]
pub use file::{FileOptions, FileStorage};
#[cfg(all(unix, feature = "file"))]
pub use lock::{LockError, LockMode};
