//! The L1 table in memory: entries that any number of requests read without a lock while writers store into them.
//!
//! The table grows without moving: what is there when the image is opened lies in one piece, and what a growing disk adds
//! lies in further pieces, each twice as long as the one before. This file must not know I/O.

use std::sync::OnceLock;

use crate::sync::{AtomicU64, AtomicUsize, Ordering};

/// The number of entries of the first piece that growth adds.
const PIECE_ENTRIES_MIN: usize = 1024;

/// So many pieces, each twice as long as the one before, hold more than the largest L1 table (32 MiB).
const PIECES_MAX: usize = 13;

/// The entries of an L1 table as numbers.
#[derive(Debug)]
pub(crate) struct L1 {
    opened: Box<[AtomicU64]>,
    added: [OnceLock<Box<[AtomicU64]>>; PIECES_MAX],
    len: AtomicUsize,
}

impl L1 {
    /// The table with these entries.
    pub(crate) fn new(entries: impl Iterator<Item = u64>) -> Self {
        let opened: Box<[AtomicU64]> = entries.map(AtomicU64::new).collect();
        let len = AtomicUsize::new(opened.len());
        Self { opened, added: [const { OnceLock::new() }; PIECES_MAX], len }
    }

    /// The number of entries.
    pub(crate) fn len(&self) -> usize {
        self.len.load(Ordering::Acquire)
    }

    /// Entry `index`; 0, which is no table, past the end.
    #[inline]
    pub(crate) fn get(&self, index: usize) -> u64 {
        match self.opened.get(index) {
            Some(entry) => entry.load(Ordering::Acquire),
            None => self.find_added(index).map_or(0, |entry| entry.load(Ordering::Acquire)),
        }
    }

    /// Stores entry `index`.
    ///
    /// # Panics
    /// If it is past the end.
    pub(crate) fn set(&self, index: usize, value: u64) {
        assert!(index < self.len(), "L1 entry {index} of {}", self.len());
        let entry = self.opened.get(index).or_else(|| self.find_added(index));
        // OK to unwrap: `grow` makes the pieces before it raises the length.
        #[allow(clippy::unwrap_used)]
        entry.unwrap().store(value, Ordering::Release);
    }

    /// Makes the table `len` entries long, if it is shorter. What is added is 0. One caller at a time.
    pub(crate) fn grow(&self, len: usize) {
        if len <= self.len() {
            return;
        }
        if len > self.opened.len() {
            for piece in 0..=place(len - self.opened.len() - 1).0 {
                self.added[piece].get_or_init(|| {
                    (0..PIECE_ENTRIES_MIN << piece).map(|_| AtomicU64::new(0)).collect()
                });
            }
        }
        self.len.store(len, Ordering::Release);
    }

    fn find_added(&self, index: usize) -> Option<&AtomicU64> {
        let (piece, index) = place(index.checked_sub(self.opened.len())?);
        self.added.get(piece)?.get()?.get(index)
    }
}

/// The piece that holds an added entry, and its index there.
fn place(added: usize) -> (usize, usize) {
    let piece = (added / PIECE_ENTRIES_MIN + 1).ilog2() as usize;
    (piece, added - PIECE_ENTRIES_MIN * ((1 << piece) - 1))
}

#[cfg(test)]
mod tests {
    use super::{L1, PIECE_ENTRIES_MIN};

    #[test]
    fn entries_stay_where_they_are_while_the_table_grows() {
        for opened in [0, 1, 700] {
            let l1 = L1::new((0..opened).map(|index| index as u64 + 1));
            let mut len = opened;
            for grown in [opened, opened + 1, PIECE_ENTRIES_MIN, 3 * PIECE_ENTRIES_MIN + 7, 4 << 20]
            {
                l1.grow(grown);
                for index in (len..grown).step_by(97) {
                    assert_eq!(l1.get(index), 0);
                    l1.set(index, index as u64 + 1);
                }
                let set = (0..opened).chain((len..grown).step_by(97));
                for index in set {
                    assert_eq!(l1.get(index), index as u64 + 1);
                }
                len = grown.max(len);
                assert_eq!(l1.len(), len);
            }
        }
    }
}
