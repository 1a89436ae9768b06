//! Idle buffers for loads, so that a miss allocates none.

use crate::storage::{Buf, StorageLimits};
use crate::sync::Mutex;

/// The most that a cache keeps in idle buffers, in bytes. A buffer longer than this is not kept.
pub const SCRATCH_BYTES_MAX: usize = 64 << 10;

/// A few idle buffers of one length.
#[derive(Debug)]
pub(super) struct Scratch {
    len: usize,
    idle: Mutex<Vec<Buf>>,
}

impl Scratch {
    /// Keeps buffers of `len` bytes; none yet.
    pub(super) fn new(len: usize) -> Self {
        Self { len, idle: Mutex::new(Vec::new()) }
    }

    /// A buffer of the length given to `new`, its contents anything, fit for a storage with `limits`.
    pub(super) fn take(&self, limits: &StorageLimits) -> Buf {
        let alignment = limits.memory_alignment as usize;
        let idle = self.idle.lock().pop();
        match idle {
            Some(buf) if buf.as_ptr().addr().is_multiple_of(alignment) => buf,
            _ => Buf::aligned(self.len, alignment),
        }
    }

    /// Keeps `buf` for the next load, if there is room.
    pub(super) fn give(&self, buf: Buf) {
        let idle_max = SCRATCH_BYTES_MAX / self.len;
        let mut idle = self.idle.lock();
        if idle.len() < idle_max && buf.len() == self.len {
            idle.push(buf);
        }
    }

    /// Frees all idle buffers.
    pub(super) fn clear(&self) {
        let idle = std::mem::take(&mut *self.idle.lock());
        drop(idle);
    }
}
