//! Where a disk has changed since somebody began to look: what a commit into the backing file has to copy again.
//!
//! A change is noted before it is made. Whoever takes the notes while nobody is inside knows that what is noted has been made;
//! what is noted from then on is for the next time.

use std::ops::Range;

use crate::sync::{AtomicU64, Mutex, Ordering};

/// The length of a granule is a power of two, of this one at least.
const GRANULE_BITS_MIN: u32 = 16;

/// No disk is cut into more granules when it is first looked at: a bit for each of them is half a MiB.
const GRANULES_MAX: u64 = 1 << 22;

/// How many words are looked at to find the end of a run.
const RUN_WORDS_MAX: usize = 64;

/// The changes of a disk, while somebody looks at them.
#[derive(Debug, Default)]
pub(crate) struct Changed {
    is_on: AtomicU64,
    granules: Mutex<Granules>,
}

/// A set of parts of a disk, in whole granules.
#[derive(Debug, Default)]
pub(crate) struct Granules {
    granule_bits: u32,
    words: Vec<u64>,
}

impl Changed {
    /// Begins to note changes of a disk of `size` bytes, all of which counts as changed.
    pub(super) fn begin(&self, size: u64) {
        let mut granule_bits = GRANULE_BITS_MIN;
        while size >> granule_bits > GRANULES_MAX {
            granule_bits += 1;
        }
        let mut granules = Granules { granule_bits, words: Vec::new() };
        granules.insert(&(0..size));
        *self.granules.lock() = granules;
        self.is_on.store(1, Ordering::Release);
    }

    /// Notes nothing any more.
    pub(super) fn end(&self) {
        self.is_on.store(0, Ordering::Release);
        *self.granules.lock() = Granules::default();
    }

    /// Whether changes are noted.
    #[inline]
    pub(super) fn is_on(&self) -> bool {
        self.is_on.load(Ordering::Acquire) != 0
    }

    /// Notes that a range of the disk is about to change. For those whom the turnstile has let in, or who are alone.
    #[inline]
    pub(super) fn mark(&self, range: &Range<u64>) {
        if self.is_on() {
            self.granules.lock().insert(range);
        }
    }

    /// Takes what is noted. For those who are alone.
    pub(super) fn take(&self) -> Granules {
        let mut granules = self.granules.lock();
        let none = Granules { granule_bits: granules.granule_bits, words: Vec::new() };
        std::mem::replace(&mut *granules, none)
    }

    /// Whether a change in a range is noted.
    pub(super) fn touches(&self, range: &Range<u64>) -> bool {
        self.granules.lock().touches(range)
    }

    /// The length of what is noted, in bytes.
    pub(super) fn len_bytes(&self) -> u64 {
        self.granules.lock().len_bytes(0)
    }
}

impl Granules {
    /// The granules that a range touches.
    fn numbers(&self, range: &Range<u64>) -> Range<u64> {
        match range.is_empty() {
            true => 0..0,
            false => range.start >> self.granule_bits..((range.end - 1) >> self.granule_bits) + 1,
        }
    }

    fn insert(&mut self, range: &Range<u64>) {
        let numbers = self.numbers(range);
        // OK to saturate: there is memory for all of them, see [`GRANULES_MAX`], and for as many more as the disk has grown.
        let words = usize::try_from(numbers.end.div_ceil(64)).unwrap_or(usize::MAX);
        if self.words.len() < words {
            self.words.resize(words, 0);
        }
        for (word, mask) in masks(&numbers) {
            self.words[word] |= mask;
        }
    }

    fn touches(&self, range: &Range<u64>) -> bool {
        masks(&self.numbers(range))
            .any(|(word, mask)| self.words.get(word).is_some_and(|bits| bits & mask != 0))
    }

    /// The first run of granules that is behind `from` or around it, from there on. It may go on behind its end.
    pub(super) fn next(&self, from: u64) -> Option<Range<u64>> {
        let first = from >> self.granule_bits;
        let mut word = usize::try_from(first / 64).ok()?;
        let mut bits = self.words.get(word)? & (u64::MAX << (first % 64));
        while bits == 0 {
            word += 1;
            bits = *self.words.get(word)?;
        }
        let start = word as u64 * 64 + u64::from(bits.trailing_zeros());
        let last_word = word + RUN_WORDS_MAX;
        let mut clear = !bits & (u64::MAX << (start % 64));
        while clear == 0 && word < last_word {
            word += 1;
            clear = !self.words.get(word).copied().unwrap_or(0);
        }
        let end = word as u64 * 64 + u64::from(clear.trailing_zeros().min(63));
        Some((start << self.granule_bits).max(from)..end << self.granule_bits)
    }

    /// The length of what is behind `from` or around it, in bytes.
    pub(super) fn len_bytes(&self, from: u64) -> u64 {
        let first = from >> self.granule_bits;
        let word = usize::try_from(first / 64).unwrap_or(usize::MAX);
        let mut rest = self.words.get(word..).unwrap_or_default().iter().copied();
        let partial = rest.next().unwrap_or(0) & (u64::MAX << (first % 64));
        let ones = |bits: u64| u64::from(bits.count_ones());
        (ones(partial) + rest.map(ones).sum::<u64>()) << self.granule_bits
    }
}

/// The words that hold numbers, and the bits in them.
fn masks(numbers: &Range<u64>) -> impl Iterator<Item = (usize, u64)> + use<> {
    let (start, end) = (numbers.start, numbers.end);
    (start / 64..end.div_ceil(64)).map(move |word| {
        let (first, last) = (start.max(word * 64) % 64, (end.min(word * 64 + 64) - 1) % 64);
        let mask = (u64::MAX << first) & (u64::MAX >> (63 - last));
        (usize::try_from(word).unwrap_or(usize::MAX), mask)
    })
}
