//! Adapters to what the engine runs on: files, io_uring, executors, timers, threads. One feature each.
//!
//! The engine knows none of them; each stands on the contracts of [`storage`](crate::storage),
//! [`timer`](crate::timer) and [`workers`](crate::workers). This module must not know the cache or the engine's insides.

#[cfg(all(target_family = "wasm", feature = "browser"))]
mod blob;
#[cfg(all(target_family = "wasm", feature = "browser"))]
mod browser;
#[cfg(all(unix, feature = "file"))]
mod file;
#[cfg(all(unix, feature = "file"))]
mod lock;
#[cfg(all(unix, feature = "file"))]
mod posix;
#[cfg(any(test, all(target_family = "wasm", feature = "browser")))]
mod window;

#[cfg(all(target_family = "wasm", feature = "browser"))]
pub use blob::{BlobStatistics, BlobStorage, Uint8ArrayStorage};
#[cfg(all(target_family = "wasm", feature = "browser"))]
pub use browser::{BrowserExecutor, JsTimer, SLICE_MS};
#[cfg(all(unix, feature = "file"))]
pub use file::{FileOptions, FileStorage};
#[cfg(all(unix, feature = "file"))]
pub use lock::{LockError, LockMode};
