//! Adapters to what the engine runs on: files, io_uring, executors, timers, threads. One feature each.
//!
//! The engine knows none of them; each stands on the contracts of [`storage`](crate::storage),
//! [`timer`](crate::timer) and [`workers`](crate::workers). Only the gate and the calls that open an image and run its
//! cleaner know the engine, by its public items. This module must not know the cache or the engine's insides.

#[cfg(all(target_family = "wasm", feature = "web", feature = "write"))]
mod access;
#[cfg(all(unix, feature = "file"))]
mod at_once;
#[cfg(all(target_family = "wasm", feature = "web"))]
mod blob;
#[cfg(not(target_family = "wasm"))]
mod block_on;
#[cfg(all(target_family = "wasm", feature = "web"))]
mod browser;
#[cfg(all(target_os = "linux", feature = "uring"))]
mod completion;
#[cfg(all(unix, feature = "file"))]
mod disk;
#[cfg(all(unix, feature = "file"))]
mod entropy;
#[cfg(all(unix, feature = "file"))]
mod file;
#[cfg(all(unix, feature = "file"))]
mod gate;
#[cfg(all(unix, feature = "file"))]
mod lock;
#[cfg(all(unix, feature = "file"))]
mod posix;
#[cfg(all(target_os = "linux", feature = "uring"))]
mod ring;
#[cfg(all(target_os = "linux", feature = "uring"))]
mod rings;
#[cfg(all(not(target_family = "wasm"), feature = "smol"))]
mod smol;
#[cfg(all(not(target_family = "wasm"), feature = "tokio"))]
mod tokio;
#[cfg(all(target_os = "linux", feature = "uring"))]
mod uring;
#[cfg(any(test, all(target_family = "wasm", feature = "web")))]
mod window;
#[cfg(not(target_family = "wasm"))]
mod workers;

#[cfg(all(target_family = "wasm", feature = "web", feature = "write"))]
pub use access::{AccessHandle, AccessStorage};
#[cfg(all(target_family = "wasm", feature = "web"))]
pub(crate) use blob::Thrown;
#[cfg(all(target_family = "wasm", feature = "web"))]
pub use blob::{BlobStatistics, BlobStorage, Reader, Uint8ArrayStorage};
#[cfg(not(target_family = "wasm"))]
pub use block_on::block_on;
#[cfg(all(target_family = "wasm", feature = "web"))]
pub use browser::{BrowserExecutor, JsTimer, SLICE_MS};
#[cfg(all(unix, feature = "file"))]
pub use disk::{DiskStorage, open_storage};
#[cfg(all(unix, feature = "file"))]
pub use entropy::SystemEntropy;
#[cfg(all(unix, feature = "file"))]
pub use file::{FileOptions, FileStorage};
#[cfg(all(unix, feature = "file"))]
pub use gate::FolderGate;
#[cfg(all(unix, feature = "file"))]
pub use lock::{LockError, LockMode};
#[cfg(all(not(target_family = "wasm"), feature = "smol"))]
pub use smol::{SmolTimer, open_on_executor, reconfigure_on_executor};
#[cfg(all(not(target_family = "wasm"), feature = "tokio"))]
pub use tokio::{TokioTimer, open_on_tokio, reconfigure_on_tokio};
#[cfg(all(target_os = "linux", feature = "uring"))]
pub use uring::UringStorage;
#[cfg(not(target_family = "wasm"))]
pub use workers::ThreadWorkers;
