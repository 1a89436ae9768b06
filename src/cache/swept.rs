//! What a pass has taken and nobody has freed yet.
//!
//! Freeing takes the allocator and the kernel longer than a sweep takes to find what is to be freed. So a sweep puts it here, and
//! steps of their own free it, a few slices at a time. A load takes memory from here before it asks for more.
//!
//! This file must not know stripes or budgets. Its lock is a leaf, held for a bounded number of moves.

use super::slot::Slice;
use crate::sync::Mutex;

/// How many slices go in or out under one hold of a lock.
pub(super) const BATCH_SLICES_MAX: usize = 32;

/// A few slices, on the stack: memory that is allocated in the midst of freeing stays behind and keeps the allocator from
/// shrinking its heap.
#[derive(Default)]
pub(super) struct Batch {
    slices: [Option<Slice>; BATCH_SLICES_MAX],
    count: usize,
}

impl Batch {
    /// Adds a slice; whether it was the last one that fits.
    pub(super) fn push(&mut self, slice: Slice) -> bool {
        self.slices[self.count] = Some(slice);
        self.count += 1;
        self.is_full()
    }

    /// Whether no other slice fits.
    pub(super) fn is_full(&self) -> bool {
        self.count == BATCH_SLICES_MAX
    }

    /// Frees the slices; returns how many there were.
    fn free(mut self) -> u64 {
        let count = std::mem::take(&mut self.count);
        self.slices[..count].fill_with(|| None);
        count as u64
    }
}

/// Slices that are in no stripe any more and still take memory.
#[derive(Debug, Default)]
pub(super) struct Swept(Mutex<Vec<Slice>>);

impl Swept {
    /// Puts a batch aside, and leaves it empty.
    pub(super) fn put(&self, batch: &mut Batch) {
        let count = std::mem::take(&mut batch.count);
        if count > 0 {
            self.0.lock().extend(batch.slices[..count].iter_mut().filter_map(Option::take));
        }
    }

    /// Sorts the slices by where they are, so that what is freed one after the other lies side by side and grows together: else the
    /// allocator is left with thousands of holes, to be given back to the system one by one. Whether there are any.
    pub(super) fn sort(&self) -> bool {
        let mut slices = std::mem::take(&mut *self.0.lock());
        if slices.is_empty() {
            return false;
        }
        slices.sort_unstable_by_key(Slice::address);
        self.0.lock().append(&mut slices);
        true
    }

    /// The memory of one slice, for another.
    pub(super) fn take(&self) -> Option<Slice> {
        self.0.lock().pop()
    }

    /// Frees some slices; returns how many, which is none when there were none.
    pub(super) fn free_some(&self) -> u64 {
        let mut batch = Batch::default();
        let mut slices = self.0.lock();
        while !batch.is_full()
            && let Some(slice) = slices.pop()
        {
            batch.push(slice);
        }
        let list = if slices.is_empty() { std::mem::take(&mut *slices) } else { Vec::new() };
        drop(slices);
        drop(list);
        batch.free()
    }
}
