//! The refcount table in memory: where the refcount blocks are, and which entries the disk does not know yet.
//!
//! This file must not know I/O.

use std::collections::BTreeSet;

use crate::format::HostOffset;

/// The entries of the refcount table of an image that is open for writing.
#[derive(Debug, Default)]
pub(crate) struct RefcountTable {
    offset: HostOffset,
    entries: Vec<u64>,
    dirty: BTreeSet<usize>,
}

impl RefcountTable {
    /// The table at `offset`, with the entries that are there.
    pub(crate) fn new(offset: HostOffset, entries: Vec<u64>) -> Self {
        Self { offset, entries, dirty: BTreeSet::new() }
    }

    /// Where it is.
    pub(crate) fn offset(&self) -> HostOffset {
        self.offset
    }

    /// The number of entries.
    pub(crate) fn len(&self) -> u64 {
        self.entries.len() as u64
    }

    /// Entry `index` as a number: 0, which is no block, past the end.
    pub(crate) fn get(&self, index: u64) -> u64 {
        usize::try_from(index).ok().and_then(|index| self.entries.get(index)).copied().unwrap_or(0)
    }

    /// Points entry `index`, which must exist, to a block.
    pub(crate) fn set(&mut self, index: u64, block: HostOffset) {
        // OK to saturate: then there is no such entry.
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        self.entries[index] = block.get();
        self.dirty.insert(index);
    }

    /// The entries, with 0 for those that the disk does not know yet.
    pub(crate) fn durable(&self) -> Vec<u64> {
        let mut entries = self.entries.clone();
        for index in &self.dirty {
            entries[*index] = 0;
        }
        entries
    }

    /// Moves the table to `offset` and makes it `len` entries long. What is dirty stays so.
    pub(crate) fn replace(&mut self, offset: HostOffset, len: usize) {
        self.offset = offset;
        self.entries.resize(len, 0);
    }

    /// Notes that the disk knows entry `index`, which it was told of by other means than write-back.
    pub(crate) fn store_durable(&mut self, index: u64, block: HostOffset) {
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        self.entries[index] = block.get();
    }

    /// Whether the disk does not know all entries.
    pub(crate) fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// Takes the list of entries that the disk does not know, with what they say now.
    pub(crate) fn take_dirty(&mut self) -> Vec<(usize, u64)> {
        let dirty = std::mem::take(&mut self.dirty);
        dirty.into_iter().map(|index| (index, self.entries[index])).collect()
    }

    /// Gives entries back that could not be written.
    pub(crate) fn give_back(&mut self, entries: &[(usize, u64)]) {
        self.dirty.extend(entries.iter().map(|(index, _)| *index));
    }
}
