//! Which host clusters a new image uses, and in which order it takes them: QEMU's.
//!
//! Nothing is read or written here. A new image is laid out by taking clusters as QEMU's allocator does, first fit from
//! the lowest cluster that may be free, with its refcount blocks and refcount tables where QEMU's land. What comes out
//! is a list of ranges and the refcount table; refcounts are all 0 or 1 and are made from the ranges when they are
//! written. Matches qcow2-refcount.c: alloc_clusters_noref, alloc_refcount_block, qcow2_refcount_area, update_refcount.

use std::ops::Range;

use crate::format::limits::{HOST_OFFSET_MAX, REFCOUNT_TABLE_LEN_BYTES_MAX};
use crate::format::{Geometry, RefcountTableEntry};

/// The image cannot be so large: clusters lie past the last host offset, or the refcount table is too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TooLarge;

/// Why clusters were not taken.
enum Stop {
    /// A refcount block or a refcount table was made, perhaps where the clusters were to be: look again.
    Again,
    TooLarge,
}

/// The clusters of a new image. All positions and lengths are in clusters.
#[derive(Debug)]
pub(super) struct Clusters {
    geometry: Geometry,
    /// Sorted, apart from each other: there are few, for clusters are taken one behind the other.
    used: Vec<Range<u64>>,
    /// No cluster before this one is free.
    first_free: u64,
    /// Where the refcount table is.
    table: u64,
    /// For each entry of the refcount table, where its refcount block is; 0 for none.
    blocks: Vec<u64>,
}

impl Clusters {
    /// The start of every image: header, refcount table, refcount block.
    pub(super) fn new(geometry: Geometry) -> Result<Self, TooLarge> {
        let mut blocks = vec![0; to_usize(entries_per_cluster(geometry))];
        blocks[0] = 2;
        let mut clusters = Self { geometry, used: Vec::new(), first_free: 0, table: 1, blocks };
        let header = clusters.take(3)?;
        assert_eq!(header, 0, "an empty image has no clusters");
        Ok(clusters)
    }

    /// Takes the first `len` free clusters in a row.
    pub(super) fn take(&mut self, len: u64) -> Result<u64, TooLarge> {
        loop {
            let start = self.find(len).ok_or(TooLarge)?;
            match self.count(start, len) {
                Ok(()) => return Ok(start),
                Err(Stop::Again) => {}
                Err(Stop::TooLarge) => return Err(TooLarge),
            }
        }
    }

    /// Takes up to `len` clusters from `start` on, as far as they are free; says how many.
    pub(super) fn take_at(&mut self, start: u64, len: u64) -> Result<u64, TooLarge> {
        loop {
            let free = match self.next_used(start) {
                Some(used) => used.start.saturating_sub(start).min(len),
                None => len,
            };
            match self.count(start, free) {
                Ok(()) => return Ok(free),
                Err(Stop::Again) => {}
                Err(Stop::TooLarge) => return Err(TooLarge),
            }
        }
    }

    /// Makes a new refcount table behind everything else, for `additional` clusters behind itself, with the refcount
    /// blocks that are missing in front of it. Returns where those clusters may be.
    pub(super) fn reserve(&mut self, additional: u64) -> Result<u64, TooLarge> {
        let start = self.end();
        self.area(start, additional, true, None)
    }

    /// Behind the last cluster that is used.
    pub(super) fn end(&self) -> u64 {
        self.used.last().map_or(0, |range| range.end)
    }

    /// Where the refcount table is.
    pub(super) fn table(&self) -> u64 {
        self.table
    }

    /// How many clusters the refcount table has.
    pub(super) fn table_len(&self) -> u64 {
        self.blocks.len() as u64 / entries_per_cluster(self.geometry)
    }

    /// For each entry of the refcount table, where its refcount block is; 0 for none.
    pub(super) fn blocks(&self) -> &[u64] {
        &self.blocks
    }

    /// What is used of the clusters in `range`.
    pub(super) fn used_in(&self, range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
        let first = self.used.partition_point(|used| used.end <= range.start);
        let end = range.end;
        self.used[first..]
            .iter()
            .take_while(move |used| used.start < end)
            .map(move |used| used.start.max(range.start)..used.end.min(range.end))
    }

    /// Finds free clusters without taking them. What is passed over is not looked at again.
    fn find(&mut self, len: u64) -> Option<u64> {
        let mut start = self.first_free;
        while let Some(used) = self.next_used(start).filter(|used| used.start < start + len) {
            start = used.end;
        }
        self.first_free = start.checked_add(len)?;
        (self.first_free - 1 <= (HOST_OFFSET_MAX - 1) >> self.geometry.cluster_bits())
            .then_some(start)
    }

    /// The first range of used clusters that does not end before `start`.
    fn next_used(&self, start: u64) -> Option<&Range<u64>> {
        self.used.get(self.used.partition_point(|used| used.end <= start))
    }

    /// Counts clusters as used, all or none.
    fn count(&mut self, start: u64, len: u64) -> Result<(), Stop> {
        let (end, per_block) = (start + len, self.geometry.refcount_block_entries());
        let mut at = start;
        while at < end {
            if let Err(stop) = self.block_for(at) {
                self.first_free = self.first_free.min(start);
                self.release(start..at);
                return Err(stop);
            }
            let next = end.min((at / per_block + 1) * per_block);
            self.add(at..next);
            at = next;
        }
        Ok(())
    }

    /// Makes the refcount block for a cluster, unless it exists.
    fn block_for(&mut self, cluster: u64) -> Result<(), Stop> {
        let per_block = self.geometry.refcount_block_entries();
        let index = cluster / per_block;
        if self.blocks.get(to_usize(index)).is_some_and(|&block| block != 0) {
            return Ok(());
        }
        let block = self.find(1).ok_or(Stop::TooLarge)?;
        if block / per_block == index {
            self.add(block..block + 1);
        } else {
            // Counted elsewhere; that ends at a block that counts itself.
            self.count(block, 1)?;
        }
        if let Some(entry) = self.blocks.get_mut(to_usize(index)) {
            *entry = block;
            return Err(Stop::Again);
        }
        let blocks_used = (cluster.max(block) + 1).div_ceil(per_block);
        match self.area(blocks_used * per_block, 0, false, Some((index, block))) {
            Ok(_) => Err(Stop::Again),
            Err(TooLarge) => Err(Stop::TooLarge),
        }
    }

    /// Makes a new refcount table from `start` on, where nothing is used any more, with the refcount blocks that are
    /// missing in front of it. They count themselves and `additional` clusters behind them.
    fn area(
        &mut self,
        start: u64,
        additional: u64,
        exact: bool,
        block: Option<(u64, u64)>,
    ) -> Result<u64, TooLarge> {
        let per_cluster = entries_per_cluster(self.geometry);
        let clusters = start.checked_add(additional).ok_or(TooLarge)?;
        let needed = refcount_clusters(self.geometry, clusters, !exact).blocks;
        let entries = if exact { needed } else { needed + needed.div_ceil(2) };
        let entries = entries.next_multiple_of(per_cluster);
        if entries > REFCOUNT_TABLE_LEN_BYTES_MAX / RefcountTableEntry::LEN {
            return Err(TooLarge);
        }
        let mut blocks = self.blocks.clone();
        blocks.resize(to_usize(entries), 0);
        if let Some((index, block)) = block {
            blocks[to_usize(index)] = block;
        }
        let mut table = start;
        let first = start / self.geometry.refcount_block_entries();
        for entry in &mut blocks[to_usize(first)..to_usize(needed)] {
            if *entry == 0 {
                *entry = table;
                table += 1;
            }
        }
        let end = table + entries / per_cluster;
        self.add(start..end);
        let old = self.table..self.table + self.table_len();
        (self.blocks, self.table) = (blocks, table);
        self.release(old);
        Ok(end)
    }

    /// Notes clusters as used that are free.
    fn add(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let at = self.used.partition_point(|used| used.end < range.start);
        let Some(before) = self.used.get_mut(at).filter(|used| used.end == range.start) else {
            match self.used.get_mut(at).filter(|used| used.start == range.end) {
                Some(after) => after.start = range.start,
                None => self.used.insert(at, range),
            }
            return;
        };
        before.end = range.end;
        if self.used.get(at + 1).is_some_and(|after| after.start == range.end) {
            self.used[at].end = self.used.remove(at + 1).end;
        }
    }

    /// Gives up clusters that are used: all of one range.
    fn release(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        self.first_free = self.first_free.min(range.start);
        let at = self.used.partition_point(|used| used.end <= range.start);
        let used = self.used[at].clone();
        assert!(used.start <= range.start && range.end <= used.end, "{range:?} is not in {used:?}");
        let rest = [used.start..range.start, range.end..used.end];
        self.used.splice(at..=at, rest.into_iter().filter(|rest| !rest.is_empty()));
    }
}

/// How many clusters the refcount structures of an image have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::image) struct RefcountClusters {
    /// Of the refcount table.
    pub(in crate::image) table: u64,
    /// Refcount blocks.
    pub(in crate::image) blocks: u64,
}

/// The refcount structures for `clusters` clusters and for themselves: the least that suffices, or with `generous` as
/// much as a table that is half as long again needs. Matches qcow2_refcount_metadata_size in qcow2-refcount.c.
pub(in crate::image) fn refcount_clusters(
    geometry: Geometry,
    mut clusters: u64,
    mut generous: bool,
) -> RefcountClusters {
    let mut found = RefcountClusters::default();
    let mut last = None;
    loop {
        let all = clusters + found.table + found.blocks;
        let blocks = all.div_ceil(geometry.refcount_block_entries());
        found = RefcountClusters { table: blocks.div_ceil(entries_per_cluster(geometry)), blocks };
        let sum = clusters + found.table + found.blocks;
        if last != Some(sum) {
            last = Some(sum);
        } else if generous {
            clusters += found.table.div_ceil(2);
            (generous, last) = (false, None);
        } else {
            return found;
        }
    }
}

/// Entries of a refcount table in a cluster.
fn entries_per_cluster(geometry: Geometry) -> u64 {
    geometry.cluster_size() / RefcountTableEntry::LEN
}

/// An index of the refcount table: within its limit, so it fits, or past every table.
fn to_usize(index: u64) -> usize {
    usize::try_from(index).unwrap_or(usize::MAX)
}
