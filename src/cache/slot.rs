//! A slot of the cache and the slice of a table in it.
//!
//! A slot changes its state only under its stripe's lock. This file must not know stripes, budgets or I/O.

use crate::sync::{Arc, AtomicWord, OnceCell, Ordering};

/// A slice of a table, pinned: a run of its bytes as big-endian words of 64 bits. A clone is the same slice, and
/// pins it as well.
///
/// Words are atomic: a reader needs no lock, and sees of each word an old or a new value, never a mixture.
#[derive(Debug, Clone)]
pub struct Slice {
    /// Words in the order of bytes that they have on disk, so that loading is copying.
    words: Arc<[AtomicWord]>,
}

impl Slice {
    /// A slice of `len_bytes`, a multiple of 8, of zeros.
    pub(super) fn blank(len_bytes: usize) -> Self {
        Self { words: (0..len_bytes / 8).map(|_| AtomicWord::new(0)).collect() }
    }

    /// Becomes `bytes`, which must be as long as the slice.
    ///
    /// # Panics
    /// If another clone is left.
    pub(super) fn fill(&mut self, bytes: &[u8]) {
        // OK to unwrap: the one caller fills what it made, or what eviction found unpinned and took out of reach.
        #[allow(clippy::expect_used)]
        let words = Arc::get_mut(&mut self.words).expect("a slice that is filled is not pinned");
        let (chunks, _) = bytes.as_chunks::<8>();
        assert_eq!(chunks.len(), words.len(), "a slice changes its length");
        for (word, chunk) in words.iter_mut().zip(chunks) {
            *word.get_mut() = u64::from_ne_bytes(*chunk);
        }
    }

    /// Whether a clone is held outside of the cache. To be asked under the stripe's lock only, where the cache's own
    /// clone is the one that others are made from.
    pub(super) fn is_pinned(&self) -> bool {
        Arc::strong_count(&self.words) > 1
    }

    /// Stores word `index`, which must be less than [`Self::words`]. Only [`TableCache::update`](super::TableCache::update)
    /// hands out slices that may be stored to: whoever stores elsewhere changes what nobody writes back.
    ///
    /// # Panics
    /// As [`Self::word`].
    ///
    /// # Ordering
    /// Release.
    pub fn set_word(&self, index: usize, value: u64) {
        self.words[index].store(value.to_be(), Ordering::Release);
    }

    /// Copies the slice into `bytes`, which must be as long.
    pub(super) fn copy_to(&self, bytes: &mut [u8]) {
        let (chunks, _) = bytes.as_chunks_mut::<8>();
        assert_eq!(chunks.len(), self.words.len(), "a slice changes its length");
        for (word, chunk) in self.words.iter().zip(chunks) {
            *chunk = word.load(Ordering::Acquire).to_ne_bytes();
        }
    }

    /// The number of words: [`TableCache::entry_bytes`](super::TableCache::entry_bytes) / 8.
    #[must_use]
    pub fn words(&self) -> usize {
        self.words.len()
    }

    /// Word `index`, which must be less than [`Self::words`].
    ///
    /// # Panics
    /// If it is not: the caller computes it from offsets that it has checked.
    ///
    /// # Ordering
    /// Acquire: whoever sees a word sees what was done before it was stored.
    #[inline]
    #[must_use]
    pub fn word(&self, index: usize) -> u64 {
        u64::from_be(self.words[index].load(Ordering::Acquire))
    }
}

/// What all who ask for a slice while it is loaded share: one of them loads, the others wait; if it fails or is
/// dropped, the next one tries.
pub(super) type Load = OnceCell<Slice>;

/// The heat of a slice that was loaded and not found again: the hand spares it once, so that those that are older
/// go first.
const HEAT_LOADED: u8 = 1;

/// The heat of a slice that was found: it survives those that a scan loads once.
pub(super) const HEAT_USED: u8 = 2;

/// Where a slot is in its life; see the [module](super).
#[derive(Debug)]
pub(super) enum State {
    /// Holds nothing; listed in its stripe's free list, absent from the index.
    Vacant,
    /// Being loaded by one of those who share the load.
    Loading {
        /// The load.
        load: Arc<Load>,
        /// How many share it; the last one to leave without success makes the slot vacant.
        shares: usize,
    },
    /// Holds what the storage holds.
    Clean(Slice),
    /// Holds what the storage does not hold yet; listed among the cache's dirty slices.
    Dirty(Slice),
    /// Was copied, and the copy is on its way to the storage.
    Writing {
        /// The slice.
        slice: Slice,
        /// Whether it was changed since it was copied; then it is listed among the dirty slices, too.
        dirty: bool,
    },
}

impl State {
    /// The slice, if there is one.
    #[inline]
    pub(super) fn slice(&self) -> Option<&Slice> {
        match self {
            Self::Clean(slice) | Self::Dirty(slice) | Self::Writing { slice, .. } => Some(slice),
            Self::Vacant | Self::Loading { .. } => None,
        }
    }
}

/// A slot: a state, and when it was used.
#[derive(Debug)]
pub(super) struct Slot {
    /// The slice's mixed number, as in the stripe's index.
    pub(super) key: u64,
    pub(super) state: State,
    /// How often the hand of the eviction goes by before it takes the slice.
    pub(super) heat: u8,
    /// Whether the slice was used since the cleaner's last pass.
    pub(super) used_since_pass: bool,
}

impl Slot {
    /// A slot in which `key` is being loaded, which is a use for the cleaner.
    pub(super) fn loading(key: u64, load: Arc<Load>) -> Self {
        let state = State::Loading { load, shares: 1 };
        Self { key, state, heat: HEAT_LOADED, used_since_pass: true }
    }
}
