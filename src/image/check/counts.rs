//! References counted in memory, for a window of host clusters.
//!
//! One byte a cluster is enough for nearly every image: five bits of count, one for metadata, and two that remember how
//! the active state refers to the cluster (with the copied flag, without it), so that a sound image's copied flags are
//! checked without reading its tables again. Clusters with more references go to a map; if that outgrows its bound, the
//! check starts again with eight bytes a cluster and smaller windows.

use std::collections::BTreeMap;
use std::ops::Range;

use super::report::Structure;

/// A cluster's count and marks.
pub(super) trait Cell: Copy + Default + Send + Sync + 'static {
    /// The count's bits. The greatest value means "look in the map".
    const COUNT: u64;
    /// The active state refers to it with the copied flag.
    const COPIED: Self;
    /// The active state refers to it without the copied flag.
    const PLAIN: Self;
    /// It belongs to metadata.
    const METADATA: Self;

    fn bits(self) -> u64;
    fn of(bits: u64) -> Self;
    fn has(self, mark: Self) -> bool {
        self.bits() & mark.bits() != 0
    }
    /// Counts `times` more references to data, if that needs no thought; says whether it did.
    #[inline]
    fn bump(&mut self, mark: Self, times: u64) -> bool {
        let bits = self.bits();
        let sum = (bits & (Self::COUNT | Self::METADATA.bits())).saturating_add(times);
        let simple = sum < Self::COUNT;
        if simple {
            *self = Self::of((bits + times) | mark.bits());
        }
        simple
    }
}

impl Cell for u8 {
    const COUNT: u64 = 0x1f;
    const COPIED: Self = 0x20;
    const PLAIN: Self = 0x40;
    const METADATA: Self = 0x80;

    fn bits(self) -> u64 {
        u64::from(self)
    }

    #[allow(clippy::cast_possible_truncation, reason = "a cell's bits came from a cell")]
    fn of(bits: u64) -> Self {
        bits as Self
    }
}

impl Cell for u64 {
    const COUNT: u64 = (1 << 61) - 1;
    const COPIED: Self = 1 << 61;
    const PLAIN: Self = 1 << 62;
    const METADATA: Self = 1 << 63;

    fn bits(self) -> u64 {
        self
    }

    fn of(bits: u64) -> Self {
        bits
    }
}

/// Metadata that shares a cluster with something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shared {
    pub(super) structure: Structure,
    pub(super) offset: u64,
}

/// Counts for the clusters of a window.
#[derive(Debug)]
pub(super) struct Counts<C> {
    /// Number of the first cluster.
    pub(super) first: u64,
    pub(super) cells: Vec<C>,
    large: BTreeMap<u64, u64>,
    large_max: usize,
    shared: BTreeMap<u64, Shared>,
    shared_max: usize,
    overflowed: bool,
}

/// Entries of the two maps take about this much memory each.
const MAP_ENTRY_LEN_BYTES: u64 = 64;

impl<C: Cell> Counts<C> {
    /// Counts for `clusters`, all zero, with maps of at most `map_bytes_max` together.
    pub(super) fn new(clusters: &Range<u64>, map_bytes_max: u64) -> Self {
        let len = usize::try_from(clusters.end - clusters.start).unwrap_or(usize::MAX);
        let entries =
            usize::try_from(map_bytes_max / MAP_ENTRY_LEN_BYTES / 2).unwrap_or(usize::MAX);
        Self {
            first: clusters.start,
            cells: vec![C::default(); len],
            large: BTreeMap::new(),
            large_max: entries,
            shared: BTreeMap::new(),
            shared_max: entries,
            overflowed: false,
        }
    }

    /// Whether some counts are too low, because the map was full.
    pub(super) fn overflowed(&self) -> bool {
        self.overflowed
    }

    /// The clusters that the window has of a range of the file.
    pub(super) fn within(&self, clusters: &Range<u64>) -> Range<u64> {
        let end = self.first + self.cells.len() as u64;
        clusters.start.clamp(self.first, end)..clusters.end.clamp(self.first, end)
    }

    fn index(&self, cluster: u64) -> Option<usize> {
        let index = usize::try_from(cluster.checked_sub(self.first)?).ok()?;
        (index < self.cells.len()).then_some(index)
    }

    /// Counts `times` references to a cluster; those outside of the window are another window's.
    pub(super) fn add(&mut self, cluster: u64, times: u64) {
        let Some(index) = self.index(cluster) else { return };
        let cell = self.cells[index];
        let count = cell.bits() & C::COUNT;
        let known = if count < C::COUNT { count } else { self.count(index) };
        let sum = known.saturating_add(times);
        if sum < C::COUNT {
            self.cells[index] = C::of(cell.bits() & !C::COUNT | sum);
        } else if self.large.len() < self.large_max || self.large.contains_key(&cluster) {
            self.cells[index] = C::of(cell.bits() | C::COUNT);
            self.large.insert(cluster, sum);
        } else {
            self.overflowed = true;
        }
    }

    /// Notes how the active state refers to the cluster.
    pub(super) fn note(&mut self, cluster: u64, mark: C) {
        if let Some(index) = self.index(cluster) {
            self.cells[index] = C::of(self.cells[index].bits() | mark.bits());
        }
    }

    /// Makes the cluster one of metadata, and notes it as shared if it was one already.
    pub(super) fn mark(&mut self, cluster: u64, by: Shared) {
        let Some(index) = self.index(cluster) else { return };
        let cell = self.cells[index];
        if cell.has(C::METADATA) {
            self.share(cluster, by);
        }
        self.cells[index] = C::of(cell.bits() | C::METADATA.bits());
    }

    /// Counts `times` references of data to a cluster, and notes it as shared if it is metadata.
    pub(super) fn add_data(&mut self, cluster: u64, times: u64, offset: u64) {
        if self.index(cluster).is_some_and(|index| self.cells[index].has(C::METADATA)) {
            self.share(cluster, Shared { structure: Structure::Data, offset });
        }
        self.add(cluster, times);
    }

    fn share(&mut self, cluster: u64, by: Shared) {
        if self.shared.len() < self.shared_max {
            self.shared.entry(cluster).or_insert(by);
        }
    }

    /// The count of a cell of this window.
    pub(super) fn count(&self, index: usize) -> u64 {
        let count = self.cells[index].bits() & C::COUNT;
        if count < C::COUNT {
            return count;
        }
        self.large.get(&(self.first + index as u64)).copied().unwrap_or(count)
    }

    /// The count of a cluster; 0 outside of the window.
    pub(super) fn count_of(&self, cluster: u64) -> u64 {
        self.index(cluster).map_or(0, |index| self.count(index))
    }

    /// The shared clusters, and whether there are more than these.
    pub(super) fn shared(&self) -> (&BTreeMap<u64, Shared>, bool) {
        (&self.shared, self.shared.len() >= self.shared_max)
    }

    /// Forgets that a cluster is shared.
    pub(super) fn unshare(&mut self, cluster: u64) {
        self.shared.remove(&cluster);
    }

    /// The shared clusters, taken out.
    pub(super) fn take_shared(&mut self) -> BTreeMap<u64, Shared> {
        std::mem::take(&mut self.shared)
    }

    /// Makes the window one of refcounts instead of references: every cell zero, the map empty.
    pub(super) fn clear(&mut self) {
        self.cells.fill(C::default());
        self.large.clear();
        self.shared.clear();
    }

    /// Puts a value in a cell, in place of a count.
    pub(super) fn set(&mut self, index: usize, value: u64) {
        self.cells[index] = C::of(value.min(C::COUNT));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_every_size_are_exact_until_the_map_is_full() {
        let mut counts = Counts::<u8>::new(&(10..20), 4 * MAP_ENTRY_LEN_BYTES);
        for (cluster, times) in [(10, 29), (11, 30), (12, 31), (13, 1 << 40), (9, 1), (20, 1)] {
            for part in [times / 2, times - times / 2] {
                counts.add(cluster, part);
            }
        }
        assert_eq!(counts.count_of(10), 29);
        assert_eq!(counts.count_of(11), 30);
        assert_eq!(counts.count_of(12), 31);
        assert_eq!(counts.count_of(13), 1 << 40);
        assert_eq!(counts.count_of(9) + counts.count_of(20), 0);
        assert!(!counts.overflowed());
        counts.add(14, 500);
        assert!(counts.overflowed());
    }

    #[test]
    fn bump_counts_like_add() {
        let mut by_bump = Counts::<u8>::new(&(0..1), 1 << 10);
        for n in 1..100 {
            if !by_bump.cells[0].bump(u8::COPIED, 1) {
                by_bump.add_data(0, 1, 0);
            }
            assert_eq!(by_bump.count(0), n);
        }
        assert!(by_bump.cells[0].has(u8::COPIED) && !by_bump.cells[0].has(u8::PLAIN));
        assert!(by_bump.take_shared().is_empty());
    }

    #[test]
    fn metadata_is_shared_when_something_else_comes() {
        let by = |structure| Shared { structure, offset: 0 };
        let mut counts = Counts::<u64>::new(&(0..4), 1 << 10);
        counts.mark(0, by(Structure::Header));
        counts.mark(1, by(Structure::L1Table));
        counts.mark(1, by(Structure::RefcountTable));
        assert!(!counts.cells[0].bump(0, 1));
        counts.add_data(0, 1, 512);
        let shared = counts.take_shared();
        assert_eq!(shared[&0], Shared { structure: Structure::Data, offset: 512 });
        assert_eq!(shared[&1], by(Structure::RefcountTable));
        assert_eq!(shared.len(), 2);
    }
}
