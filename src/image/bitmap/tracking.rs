//! What has changed of the disk and is not in the bitmaps yet.
//!
//! One set of ranges is kept for all enabled bitmaps, as they all see the same changes; each takes it over by its own
//! granularity when it is stored. A change is noted before it is made: whatever becomes of it, the note is there.

use std::ops::Range;

use crate::sync::{AtomicU64, AtomicUsize, Mutex, Ordering};

use super::ranges::RangeSet;

/// With more ranges than this it is time to take them over: with what a map of them needs about 32 MiB.
const RANGES_MAX: usize = 1 << 19;

/// No bitmap is enabled.
const OFF: u64 = 0;
/// One is, and the image says that it is consistent: it must be marked before anything is changed.
const ARMED: u64 = 1;
/// Those that are enabled are marked as in use.
const ON: u64 = 2;

/// The changes that are not in the bitmaps yet.
#[derive(Debug, Default)]
pub(crate) struct Tracking {
    state: AtomicU64,
    ranges_len: AtomicUsize,
    /// Counts the changes of the bitmaps' tables.
    generation: AtomicU64,
    marks: Mutex<Marks>,
}

#[derive(Debug, Default)]
struct Marks {
    /// Of the finest bitmap.
    granularity_bits: u32,
    /// Guest offsets, in whole granules.
    ranges: RangeSet,
}

/// Changes that are on their way to the bitmaps. Dropping them gives them back.
#[derive(Debug)]
pub(super) struct TakenMarks<'a> {
    tracking: &'a Tracking,
    ranges: RangeSet,
}

impl Tracking {
    /// Whether a bitmap must be marked as in use before anything is changed.
    #[inline]
    pub(crate) fn is_armed(&self) -> bool {
        self.state.load(Ordering::Acquire) == ARMED
    }

    /// Whether so many changes are noted that the bitmaps should take them over.
    #[inline]
    pub(crate) fn is_full(&self) -> bool {
        self.ranges_len.load(Ordering::Relaxed) > RANGES_MAX
    }

    /// Whether changes are noted.
    #[inline]
    pub(crate) fn is_on(&self) -> bool {
        self.state.load(Ordering::Acquire) == ON
    }

    /// Notes that a range of the disk is about to change. For those whom the turnstile has let in.
    pub(crate) fn mark(&self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let mut marks = self.marks.lock();
        let granularity = 1_u64 << marks.granularity_bits;
        let start = range.start / granularity * granularity;
        let end = range.end.checked_next_multiple_of(granularity).unwrap_or(u64::MAX);
        marks.ranges.insert(start..end);
        self.ranges_len.store(marks.ranges.len(), Ordering::Relaxed);
    }

    /// Nothing is enabled.
    pub(super) fn disable(&self) {
        self.state.store(OFF, Ordering::Release);
    }

    /// Something is enabled, and consistent on disk.
    pub(super) fn arm(&self) {
        self.state.store(ARMED, Ordering::Release);
    }

    /// What is enabled is marked as in use; the finest bitmap has this granularity.
    pub(super) fn enable(&self, granularity_bits: u32) {
        self.marks.lock().granularity_bits = granularity_bits;
        self.state.store(ON, Ordering::Release);
    }

    /// Takes what is noted.
    pub(super) fn take(&self) -> TakenMarks<'_> {
        let ranges = std::mem::take(&mut self.marks.lock().ranges);
        self.ranges_len.store(0, Ordering::Relaxed);
        TakenMarks { tracking: self, ranges }
    }

    /// Counts a change of the bitmaps' tables.
    pub(super) fn tables_changed(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    /// How often the bitmaps' tables were changed.
    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }
}

impl TakenMarks<'_> {
    /// What was noted.
    pub(super) fn ranges(&self) -> &RangeSet {
        &self.ranges
    }

    /// The bitmaps have it.
    pub(super) fn forget(mut self) {
        self.ranges = RangeSet::default();
    }
}

impl Drop for TakenMarks<'_> {
    fn drop(&mut self) {
        let ranges = std::mem::take(&mut self.ranges);
        if ranges.is_empty() {
            return;
        }
        let mut marks = self.tracking.marks.lock();
        marks.ranges.append(ranges);
        self.tracking.ranges_len.store(marks.ranges.len(), Ordering::Relaxed);
    }
}
