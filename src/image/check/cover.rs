//! Ranges of the file that overlap, seen as segments that do not, each with how many ranges cover it.
//!
//! This is what bounds the work on a hostile image. However many tables claim the same bytes of the file, every byte is
//! read once and counted with its weight: 65,536 snapshots with one L1 table cost as much as one.

use std::ops::Range;

/// How many tables cover a byte of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Weight {
    /// Tables of the active state.
    pub(super) active: u64,
    /// All tables, active ones too.
    pub(super) total: u64,
}

impl Weight {
    pub(super) const ACTIVE: Self = Self { active: 1, total: 1 };
    pub(super) const OTHER: Self = Self { active: 0, total: 1 };

    fn add(self, other: Self) -> Self {
        Self {
            active: self.active.saturating_add(other.active),
            total: self.total.saturating_add(other.total),
        }
    }

    fn sub(self, other: Self) -> Self {
        Self {
            active: self.active.saturating_sub(other.active),
            total: self.total.saturating_sub(other.total),
        }
    }
}

/// A segment that the same ranges cover.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) range: Range<u64>,
    pub(super) weight: Weight,
    /// Start of the range, among those that cover the segment, which starts last.
    pub(super) base: u64,
}

/// Cuts ranges of any length into segments, in order of offset. Empty ranges are left out.
pub(super) fn segments(ranges: &[(Range<u64>, Weight)]) -> Vec<Segment> {
    let mut starts: Vec<_> = ranges.iter().filter(|(range, _)| !range.is_empty()).collect();
    let mut ends = starts.clone();
    starts.sort_unstable_by_key(|(range, _)| range.start);
    ends.sort_unstable_by_key(|(range, _)| range.end);
    let (mut next_start, mut next_end) = (0, 0);
    let mut weight = Weight::default();
    let mut base = 0;
    let mut segments: Vec<Segment> = Vec::new();
    let mut at = 0;
    while let Some((ending, _)) = ends.get(next_end) {
        let end = ending.end;
        let start = starts.get(next_start).map_or(u64::MAX, |(range, _)| range.start);
        let to = start.min(end);
        if weight.total > 0 && at < to {
            segments.push(Segment { range: at..to, weight, base });
        }
        at = to;
        while let Some((range, added)) = starts.get(next_start).filter(|(r, _)| r.start == to) {
            weight = weight.add(*added);
            base = range.start;
            next_start += 1;
        }
        while let Some((_, removed)) = ends.get(next_end).filter(|(r, _)| r.end == to) {
            weight = weight.sub(*removed);
            next_end += 1;
        }
    }
    segments
}

/// Tables of one length, by offset, within a bound on memory: those with the lowest offsets are kept, and
/// [`Tables::limit`] says from where on some may be missing.
#[derive(Debug)]
pub(super) struct Tables {
    from: u64,
    limit: u64,
    capacity: usize,
    tables: Vec<(u64, Weight)>,
}

impl Tables {
    /// Bytes that one table takes.
    pub(super) const TABLE_LEN_BYTES: u64 = size_of::<(u64, Weight)>() as u64;

    /// An empty list for tables at `from` or behind it.
    pub(super) fn new(from: u64, capacity: usize) -> Self {
        Self { from, limit: u64::MAX, capacity: capacity.max(2), tables: Vec::new() }
    }

    /// Adds a table.
    pub(super) fn add(&mut self, offset: u64, weight: Weight) {
        if offset < self.from || offset >= self.limit {
            return;
        }
        if let Some((last, sum)) = self.tables.last_mut()
            && *last == offset
        {
            *sum = sum.add(weight);
            return;
        }
        if self.tables.len() == self.capacity {
            self.sort();
            let half = self.capacity / 2;
            if let Some((first_dropped, _)) = self.tables.get(half) {
                self.limit = *first_dropped;
                self.tables.truncate(half);
                if offset >= self.limit {
                    return;
                }
            }
        }
        self.tables.push((offset, weight));
    }

    /// Sorts by offset, each offset once.
    pub(super) fn sort(&mut self) {
        self.tables.sort_unstable_by_key(|(offset, _)| *offset);
        self.tables.dedup_by(|later, kept| {
            let same = later.0 == kept.0;
            if same {
                kept.1 = kept.1.add(later.1);
            }
            same
        });
    }

    /// Where the list ends: tables at this offset or behind it are not in it. `None` if it has them all.
    pub(super) fn limit(&self) -> Option<u64> {
        (self.limit != u64::MAX).then_some(self.limit)
    }

    /// How many there are; each offset once after [`Tables::sort`].
    pub(super) fn len(&self) -> usize {
        self.tables.len()
    }

    /// The tables.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, Weight)> + '_ {
        self.tables.iter().copied()
    }

    /// Cuts the sorted tables, each of `len` bytes, into segments, in order of offset, without taking memory.
    pub(super) fn segments(&self, len: u64) -> impl Iterator<Item = Segment> + '_ {
        let tables = &self.tables;
        let (mut next_start, mut next_end) = (0, 0);
        let mut weight = Weight::default();
        let (mut at, mut base) = (0, 0);
        std::iter::from_fn(move || {
            loop {
                let end = tables.get(next_end)?.0.saturating_add(len);
                let start = tables.get(next_start).map_or(u64::MAX, |(offset, _)| *offset);
                let to = start.min(end);
                let covered = weight.total > 0 && at < to;
                let segment = Segment { range: at..to, weight, base };
                at = to;
                if start == to
                    && let Some((offset, added)) = tables.get(next_start)
                {
                    weight = weight.add(*added);
                    base = *offset;
                    next_start += 1;
                }
                if end == to {
                    weight = weight.sub(tables[next_end].1);
                    next_end += 1;
                }
                if covered {
                    return Some(segment);
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEN: u64 = 4;

    /// Weight of every byte, counted one by one.
    fn bytes(ranges: &[(Range<u64>, Weight)]) -> Vec<Weight> {
        (0..64)
            .map(|at| {
                let covering = ranges.iter().filter(|(range, _)| range.contains(&at));
                covering.fold(Weight::default(), |sum, (_, weight)| sum.add(*weight))
            })
            .collect()
    }

    fn spread(segments: impl Iterator<Item = Segment>) -> Vec<Weight> {
        let mut bytes = vec![Weight::default(); 64];
        let mut last = 0;
        for segment in segments {
            assert!(segment.range.start >= last && !segment.range.is_empty(), "{segment:?}");
            last = segment.range.end;
            for at in segment.range.clone() {
                bytes[usize::try_from(at).unwrap()] = segment.weight;
            }
        }
        bytes
    }

    #[test]
    fn segments_weigh_what_ranges_cover() {
        // All pairs of ranges within 0..6, beside a fixed one.
        for a in 0..6u64 {
            for b in a..6 {
                for c in 0..6 {
                    for d in c..6 {
                        let ranges = [
                            (a..b, Weight::ACTIVE),
                            (c..d, Weight::OTHER),
                            (2..5, Weight { active: 0, total: 3 }),
                        ];
                        let found = spread(segments(&ranges).into_iter());
                        assert_eq!(found, bytes(&ranges), "{ranges:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn tables_weigh_what_ranges_cover() {
        for seed in 0..4096u64 {
            let offsets = [seed & 15, seed >> 4 & 15, seed >> 8 & 15, 3];
            let mut tables = Tables::new(0, 16);
            let mut ranges = Vec::new();
            for offset in offsets {
                tables.add(offset, Weight::ACTIVE);
                ranges.push((offset..offset + LEN, Weight::ACTIVE));
            }
            tables.sort();
            assert_eq!(spread(tables.segments(LEN)), bytes(&ranges), "{offsets:?}");
        }
    }

    #[test]
    fn full_list_keeps_the_lowest_and_says_where_it_ends() {
        let mut seen = Vec::new();
        let mut from = 0;
        loop {
            let mut tables = Tables::new(from, 8);
            for offset in (0..40u64).map(|n| n * 7 % 40) {
                tables.add(offset, Weight::OTHER);
                tables.add(offset, Weight::OTHER);
            }
            tables.sort();
            assert!(tables.len() <= 8);
            seen.extend(tables.iter().map(|(offset, weight)| {
                assert_eq!(weight.total, 2);
                offset
            }));
            match tables.limit() {
                Some(limit) => from = limit,
                None => break,
            }
        }
        assert_eq!(seen, (0..40).collect::<Vec<_>>());
    }
}
