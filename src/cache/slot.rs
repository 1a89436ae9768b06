//! A slot of the cache and the slice of a table in it.
//!
//! A slot changes its state only under its stripe's lock. This file must not know stripes, budgets or I/O.

use super::mutant::{self, Mutant};
use crate::sync::{Arc, AtomicWord, OnceCell, Ordering, fence};

/// A slice of a table, pinned: a run of its bytes as big-endian words of 64 bits.
///
/// Words are atomic: a reader needs no lock, and sees of each word an old or a new value, never a mixture.
#[derive(Debug)]
pub struct Slice {
    /// Words in the order of bytes that they have on disk, so that loading is copying.
    words: Arc<[AtomicWord]>,
    /// That of whoever holds it; the cache's own has none. Dropped after the words: see [`Pins::any`].
    _pin: Option<Pin>,
}

/// Somebody who holds a slice of a stripe, or waits for its load.
pub(super) type Pin = Arc<()>;

/// How many hold slices of a stripe. Whether somebody holds a certain slice stands in front of its words, which a sweep would have to
/// fetch from memory for each slice; mostly nobody holds any.
#[derive(Debug, Default)]
pub(super) struct Pins(Pin);

impl Pins {
    /// One more. To be asked for under the stripe's lock.
    pub(super) fn pin(&self) -> Pin {
        Arc::clone(&self.0)
    }

    /// Whether there is any. To be asked under the stripe's lock, where new ones are made.
    pub(super) fn any(&self) -> bool {
        let any = Arc::strong_count(&self.0) > 1;
        // Who sees that a pin has gone sees that the slice had been let go before.
        fence(Ordering::Acquire);
        any
    }
}

impl Slice {
    /// A slice of `len_bytes`, a multiple of 8, of zeros.
    pub(super) fn blank(len_bytes: usize) -> Self {
        Self { words: (0..len_bytes / 8).map(|_| AtomicWord::new(0)).collect(), _pin: None }
    }

    /// The same slice once more, for the cache itself.
    pub(super) fn share(&self) -> Self {
        Self { words: Arc::clone(&self.words), _pin: None }
    }

    /// The same slice once more, for whoever pins it.
    pub(super) fn lend(&self, pin: Pin) -> Self {
        Self { words: Arc::clone(&self.words), _pin: Some(pin) }
    }

    /// Where its memory is.
    pub(super) fn address(&self) -> usize {
        self.words.as_ptr().addr()
    }

    /// Becomes `bytes`, which must be as long as the slice.
    ///
    /// # Panics
    /// If somebody shares it.
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

    /// Whether somebody outside of the cache shares it. To be asked under the stripe's lock only, where the cache's own
    /// is the one that others are made from.
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

    /// Whether the slice was used since the last call, or is pinned, which it can be only if there are `pins`. The use is over by that,
    /// but for a pinned slice, whose pin counts as a use until it ends.
    ///
    /// To be asked under the stripe's lock only. A pin begins with a use, so what was not used is not pinned; and nobody pins it
    /// before the lock is free.
    pub(super) fn take_use(&mut self, pins: bool) -> bool {
        if !self.used_since_pass {
            return false;
        }
        let is_pinned = pins && self.state.slice().is_some_and(Slice::is_pinned);
        self.used_since_pass = is_pinned && !mutant::is(Mutant::SweepPinned);
        true
    }
}
