//! Where a disk has changed since somebody began to look: what a commit into the backing file has to copy again.
//!
//! A change is noted before it is made. Whoever takes the notes while nobody is inside knows that what is noted has been made;
//! what is noted from then on is for the next time.

use std::ops::Range;

use crate::sync::{AtomicU64, Mutex, Ordering};

/// The length of a granule is a power of two, of this one at least.
const GRANULE_BITS_MIN: u32 = 16;

/// No disk is cut into more whole granules when it is first looked at: a bit for each of them is half a MiB.
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

#[cfg(test)]
mod tests {
    use super::*;

    /// 64 KiB: the length of a granule of a disk that is not vast.
    const GRANULE: u64 = 1 << GRANULE_BITS_MIN;

    /// The changes of a disk of so many granules, none of which has changed.
    fn unchanged(granules: u64) -> Changed {
        let changed = Changed::default();
        changed.begin(granules * GRANULE);
        drop(changed.take());
        changed
    }

    /// The granules of all runs, and that each run ends where the length of what is left says.
    fn numbers(granules: &Granules) -> Vec<u64> {
        let mut found = Vec::new();
        let mut at = 0;
        while let Some(run) = granules.next(at) {
            assert!(run.start >= at && run.end > run.start, "{run:?} from {at:#x}");
            let taken = run.end - run.start;
            assert_eq!(granules.len_bytes(run.start), taken + granules.len_bytes(run.end));
            found.extend(run.start / GRANULE..run.end / GRANULE);
            at = run.end;
        }
        assert_eq!(granules.len_bytes(0), found.len() as u64 * GRANULE);
        found
    }

    #[test]
    fn nothing_is_noted_before_the_beginning_and_after_the_end() {
        let changed = Changed::default();
        changed.mark(&(0..GRANULE));
        assert!(!changed.is_on() && !changed.touches(&(0..GRANULE)));
        changed.begin(GRANULE);
        assert!(changed.is_on());
        changed.end();
        changed.mark(&(0..GRANULE));
        assert!(!changed.is_on() && changed.len_bytes() == 0);
    }

    #[test]
    fn whole_disk_counts_as_changed_at_first() {
        for size in [0, 1, GRANULE, GRANULE + 1, 64 * GRANULE, 64 * GRANULE + 1, 10_000 * GRANULE] {
            let changed = Changed::default();
            changed.begin(size);
            let granules = size.div_ceil(GRANULE);
            assert_eq!(numbers(&changed.take()), (0..granules).collect::<Vec<_>>(), "{size}");
            assert_eq!(changed.len_bytes(), 0, "it was taken");
        }
    }

    #[test]
    fn vast_disk_has_longer_granules() {
        let changed = Changed::default();
        changed.begin((GRANULES_MAX + 1) << GRANULE_BITS_MIN);
        drop(changed.take());
        changed.mark(&(0..1));
        assert_eq!(changed.len_bytes(), 2 * GRANULE);
        assert!(changed.touches(&(GRANULE..2 * GRANULE)));
        // The largest that there is: no more granules than the limit, and the last of them is found.
        changed.begin(u64::MAX);
        let granules = changed.take();
        assert!(granules.words.len() as u64 <= GRANULES_MAX / 64);
        assert!(granules.touches(&(u64::MAX - 1..u64::MAX)));
    }

    #[test]
    fn every_granule_that_a_range_touches_is_noted_and_no_other() {
        // Around the edges of words and granules.
        let edges = [0, 1, 62, 63, 64, 65, 127, 128, 129, 200];
        for start in edges {
            for end in edges.into_iter().filter(|end| *end >= start) {
                for (before, behind) in [(0, 0), (1, 0), (0, 1), (GRANULE - 1, GRANULE - 1)] {
                    let range = start * GRANULE + before..end * GRANULE + behind;
                    let changed = unchanged(200);
                    changed.mark(&range);
                    let expected: Vec<_> = (0..202)
                        .filter(|n| {
                            !range.is_empty()
                                && range.start < (n + 1) * GRANULE
                                && n * GRANULE < range.end
                        })
                        .collect();
                    for n in 0..202 {
                        let touched = changed.touches(&(n * GRANULE..(n + 1) * GRANULE));
                        assert_eq!(touched, expected.contains(&n), "{range:x?}: granule {n}");
                    }
                    assert_eq!(numbers(&changed.take()), expected, "{range:x?}");
                }
            }
        }
    }

    #[test]
    fn empty_range_touches_nothing() {
        let changed = Changed::default();
        changed.begin(3 * GRANULE);
        assert!(!changed.touches(&(GRANULE..GRANULE)));
        assert!(changed.touches(&(GRANULE..GRANULE + 1)));
    }

    #[test]
    fn runs_are_found_from_within_and_are_not_too_long() {
        let changed = unchanged(1);
        // A disk that has grown since.
        changed.mark(&(3 * GRANULE..10_000 * GRANULE));
        let granules = changed.take();
        assert_eq!(granules.next(0).unwrap().start, 3 * GRANULE);
        let run = granules.next(5 * GRANULE + 7).unwrap();
        assert_eq!(run.start, 5 * GRANULE + 7);
        assert!(run.end <= (RUN_WORDS_MAX as u64 + 1) * 64 * GRANULE);
        assert_eq!(numbers(&granules), (3..10_000).collect::<Vec<_>>());
        assert_eq!(granules.next(10_000 * GRANULE), None);
        assert_eq!(granules.next(u64::MAX), None);
        assert_eq!(granules.len_bytes(u64::MAX), 0);
    }

    #[test]
    fn what_changes_after_the_notes_were_taken_is_for_the_next_time() {
        let changed = unchanged(10);
        changed.mark(&(0..1));
        let first = changed.take();
        changed.mark(&(5 * GRANULE..5 * GRANULE + 1));
        assert_eq!(numbers(&first), [0]);
        assert_eq!(numbers(&changed.take()), [5]);
        assert!(changed.is_on());
    }
}
