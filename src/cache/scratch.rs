//! Idle buffers for loads, so that a miss allocates none.

use crate::storage::{Buf, StorageLimits};
use crate::sync::{AtomicUsize, Mutex, Ordering};

/// The most that a cache keeps in idle buffers, in bytes. A buffer longer than this is not kept.
pub const SCRATCH_BYTES_MAX: usize = 64 << 10;

/// A few idle buffers of one length.
#[derive(Debug)]
pub(super) struct Scratch {
    len: AtomicUsize,
    idle: Mutex<Vec<Buf>>,
}

impl Scratch {
    /// Keeps buffers of `len` bytes; none yet.
    pub(super) fn new(len: usize) -> Self {
        Self { len: AtomicUsize::new(len), idle: Mutex::new(Vec::new()) }
    }

    /// Keeps buffers of `len` bytes from now on, and none of those that it has.
    pub(super) fn set_len(&self, len: usize) {
        self.len.store(len, Ordering::Relaxed);
        self.clear();
    }

    /// A buffer of the length that it keeps, its contents anything, fit for a storage with `limits`.
    pub(super) fn take(&self, limits: &StorageLimits) -> Buf {
        let alignment = limits.memory_alignment as usize;
        let idle = self.idle.lock().pop();
        match idle {
            Some(buf) if buf.as_ptr().addr().is_multiple_of(alignment) => buf,
            _ => Buf::aligned(self.len.load(Ordering::Relaxed), alignment),
        }
    }

    /// Keeps `buf` for the next load, if there is room.
    pub(super) fn give(&self, buf: Buf) {
        let len = self.len.load(Ordering::Relaxed);
        let idle_max = SCRATCH_BYTES_MAX / len;
        let mut idle = self.idle.lock();
        if idle.len() < idle_max && buf.len() == len {
            idle.push(buf);
        }
    }

    /// Frees all idle buffers.
    pub(super) fn clear(&self) {
        let idle = std::mem::take(&mut *self.idle.lock());
        drop(idle);
    }
}
