//! Ranges that do not touch each other, in order.

use std::collections::BTreeMap;
use std::ops::Range;

/// A set of numbers, as the ranges that it is made of. No two of them touch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct RangeSet {
    /// The ends, by the starts.
    ends: BTreeMap<u64, u64>,
}

impl RangeSet {
    /// Adds the numbers of a range.
    pub(super) fn insert(&mut self, range: Range<u64>) {
        let (mut start, mut end) = (range.start, range.end);
        if start >= end {
            return;
        }
        if let Some((&before, &before_end)) = self.ends.range(..=start).next_back()
            && before_end >= start
        {
            if before_end >= end {
                return;
            }
            start = before;
        }
        while let Some((&next, &next_end)) = self.ends.range(start..=end).next() {
            self.ends.remove(&next);
            end = end.max(next_end);
        }
        self.ends.insert(start, end);
    }

    /// Adds another set.
    pub(super) fn append(&mut self, other: Self) {
        if self.ends.is_empty() {
            *self = other;
            return;
        }
        for range in other.iter() {
            self.insert(range);
        }
    }

    /// The number of ranges.
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The ranges in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = Range<u64>> {
        self.ends.iter().map(|(start, end)| *start..*end)
    }
}

#[cfg(test)]
mod tests {
    use super::RangeSet;

    /// Every way to insert three ranges of a small domain, against a set of single numbers.
    #[test]
    fn ranges_are_those_of_the_numbers() {
        let ranges: Vec<_> = (0..6).flat_map(|a| (a..=6).map(move |b| a..b)).collect();
        for a in &ranges {
            for b in &ranges {
                for c in &ranges {
                    let mut set = RangeSet::default();
                    let mut model = [false; 8];
                    for range in [a, b, c] {
                        set.insert(range.clone());
                        for at in range.clone() {
                            model[usize::try_from(at).unwrap()] = true;
                        }
                    }
                    let mut expected = Vec::new();
                    let mut start = None;
                    for at in 0..8_u64 {
                        match (model[usize::try_from(at).unwrap()], start) {
                            (true, None) => start = Some(at),
                            (false, Some(from)) => {
                                expected.push(from..at);
                                start = None;
                            }
                            _ => {}
                        }
                    }
                    assert_eq!(set.iter().collect::<Vec<_>>(), expected, "{a:?} {b:?} {c:?}");
                }
            }
        }
    }
}
