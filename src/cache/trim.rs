//! Memory that was freed, given back to the system.
//!
//! glibc keeps what is freed below the highest block that is in use: after a pass the resident size would fall or not as
//! chance has it. Other allocators give back by themselves, and this does nothing there.
//!
//! Besides the io_uring, the crate's one file with unsafe code.

use crate::sync::{AtomicU64, Ordering};

/// What has to be freed before it is worth giving back, in bytes.
const WORTH_BYTES: u64 = 1 << 20;

/// Counts what is freed until it is worth giving back.
#[derive(Debug, Default)]
pub(super) struct Trim {
    freed_bytes: AtomicU64,
}

impl Trim {
    /// Notes that `bytes` were freed, and gives back what is free if it is worth it. It takes the allocator's locks meanwhile, some
    /// hundred microseconds for each MiB: to be called in the midst of freeing much, not at its end alone.
    pub(super) fn freed(&self, bytes: u64) {
        let freed_bytes = self.freed_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if freed_bytes >= WORTH_BYTES {
            self.freed_bytes.store(0, Ordering::Relaxed);
            trim();
        }
    }
}

#[cfg(all(
    target_os = "linux",
    target_env = "gnu",
    not(any(miri, feature = "shuttle", feature = "loom"))
))]
#[allow(unsafe_code)]
fn trim() {
    unsafe extern "C" {
        fn malloc_trim(pad: usize) -> std::ffi::c_int;
    }
    // SAFETY: declared as in glibc's malloc.h; may be called at any time by any thread (malloc_trim(3)); touches only
    // pages that no block in use lies in.
    unsafe { malloc_trim(0) };
}

#[cfg(not(all(
    target_os = "linux",
    target_env = "gnu",
    not(any(miri, feature = "shuttle", feature = "loom"))
)))]
fn trim() {}
