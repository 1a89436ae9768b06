//! Building refcount table and blocks anew, from nothing but the references.
//!
//! New tables and blocks lie in clusters to which nothing refers, not even the old refcount table, so that the old
//! structures stay what they are until twelve bytes of the header switch to the new ones. QEMU's qcow2-refcount.c:
//! rebuild_refcount_structure. If all counts fit the memory, clusters are chosen as QEMU chooses them: each block in the
//! first free cluster from where the clusters start that it counts, the table in the first gap. If not, both go to the
//! end of the file.

use std::collections::BTreeSet;
use std::ops::Range;

use super::Target;
use crate::error::Result;
use crate::format::limits::REFCOUNT_TABLE_LEN_BYTES_MAX;
use crate::image::check::counts::{Cell, Counts};
use crate::image::check::layout::Layout;
use crate::image::check::refcounts::set_refcount;
use crate::image::check::source::to_usize;
use crate::storage::Storage;

/// Offset in the header of the refcount table's offset and length.
const HEADER_REFCOUNT_TABLE: u64 = 48;
/// Length of the part of a refcount block that is written at once.
const PART_LEN: u64 = 256 << 10;
const ENTRIES_MAX: u64 = REFCOUNT_TABLE_LEN_BYTES_MAX / 8;

/// The new structures.
#[derive(Debug, Default)]
pub(in crate::image::check) struct Rebuilt {
    /// Where each refcount block is; 0 if there is none.
    table: Vec<u64>,
    /// First cluster of the table.
    table_cluster: u64,
    table_clusters: u64,
    /// Clusters that were free and are not.
    taken: BTreeSet<u64>,
    /// Clusters that were asked for beside the structures.
    pub(super) reserved: Range<u64>,
}

impl Rebuilt {
    /// The clusters that the file has with the new structures.
    pub(super) fn end(&self) -> u64 {
        self.taken.last().map_or(0, |last| last + 1)
    }

    /// Adds the new structures to the references counted in a window, and writes the window's part of the blocks.
    ///
    /// # Errors
    /// The storage's.
    pub(in crate::image::check) async fn store_window<C: Cell, S: Storage>(
        &self,
        counts: &mut Counts<C>,
        layout: &Layout,
        target: &Target<'_, S>,
        window: Range<u64>,
    ) -> Result<()> {
        for cluster in self.taken.range(window.clone()) {
            counts.add(*cluster, 1);
        }
        let (entries, bits) = (layout.block_entries, layout.refcount_bits());
        let last = window.end == layout.cells;
        for index in window.start / entries..=(window.end - 1) / entries {
            let block = self.block(index);
            if block == 0 {
                continue;
            }
            let start = window.start.max(index * entries);
            let mut end = window.end.min((index + 1) * entries);
            if last {
                end = (index + 1) * entries;
            }
            let part_entries = PART_LEN * 8 / bits;
            let mut at = start;
            while at < end {
                let part = at..end.min(at + part_entries);
                at = part.end;
                let mut bytes = vec![0; to_usize(((part.end - part.start) * bits).div_ceil(8))];
                for cluster in counts.within(&part) {
                    let refcount = counts.count_of(cluster).min(layout.refcount_max);
                    if refcount > 0 {
                        let order = layout.refcount_order;
                        set_refcount(&mut bytes, order, cluster - part.start, refcount);
                    }
                }
                target.write(block + part.start % entries * bits / 8, &bytes).await?;
            }
        }
        Ok(())
    }

    /// Writes the table, and switches to it.
    ///
    /// # Errors
    /// The storage's.
    pub(super) async fn switch<S: Storage>(
        &self,
        layout: &Layout,
        target: &Target<'_, S>,
    ) -> Result<()> {
        let offset = self.table_cluster << layout.cluster_bits;
        let mut bytes: Vec<u8> = self.table.iter().flat_map(|entry| entry.to_be_bytes()).collect();
        bytes.resize(to_usize(self.table_clusters * layout.cluster_size), 0);
        target.write(offset, &bytes).await?;
        // Cancel: until the header is written, the image is what it was; nothing refers to what is new.
        target.flush().await?;
        let mut header = [0; 12];
        header[..8].copy_from_slice(&offset.to_be_bytes());
        // OK to cast: the table is within its limit.
        #[allow(clippy::cast_possible_truncation)]
        header[8..].copy_from_slice(&(self.table_clusters as u32).to_be_bytes());
        target.write(HEADER_REFCOUNT_TABLE, &header).await?;
        target.flush().await
    }

    fn block(&self, index: u64) -> u64 {
        usize::try_from(index).ok().and_then(|index| self.table.get(index)).copied().unwrap_or(0)
    }
}

/// Where the new structures go, as far as the windows of counts have told.
#[derive(Debug)]
pub(in crate::image::check) struct Plan {
    /// Clusters wanted for something else beside the structures.
    reserve: u64,
    /// The blocks that something needs, if not all counts fit the memory.
    used: BTreeSet<u64>,
    /// The clusters of the file, and further ones up to the last one that is referred to.
    end: u64,
    done: Option<Option<Rebuilt>>,
}

impl Plan {
    pub(super) fn new(reserve: u64, clusters: u64) -> Self {
        Self { reserve, used: BTreeSet::new(), end: clusters, done: None }
    }

    /// Takes the counts of a window.
    pub(in crate::image::check) fn take<C: Cell>(
        &mut self,
        counts: &Counts<C>,
        layout: &Layout,
        window: &Range<u64>,
    ) {
        if *window == (0..layout.cells) {
            let over = u64::from(counts.count_of(layout.clusters) > 0);
            self.done = Some(Gaps::new(counts, layout, layout.clusters + over).plan(self.reserve));
            return;
        }
        let mut cluster = window.start;
        while cluster < window.end {
            let index = cluster / layout.block_entries;
            let next = ((index + 1) * layout.block_entries).min(window.end);
            if let Some(last) = (cluster..next).rev().find(|at| counts.count_of(*at) > 0) {
                self.end = self.end.max(last + 1);
                if self.used.len() as u64 <= ENTRIES_MAX {
                    self.used.insert(index);
                }
            }
            cluster = next;
        }
    }

    /// The structures; `None` if no refcount table is long enough for them.
    pub(super) fn finish(self, layout: &Layout) -> Option<Rebuilt> {
        match self.done {
            Some(done) => done,
            None => self.append(layout),
        }
    }

    /// Everything at the end of the file.
    fn append(self, layout: &Layout) -> Option<Rebuilt> {
        let entries = layout.block_entries;
        let base = self.end;
        let (mut blocks, mut table_clusters) = (self.used, 1);
        loop {
            let len = blocks.len() as u64 + table_clusters + self.reserve;
            let covered = base / entries..(base + len - 1) / entries + 1;
            let entries_needed = covered.end.max(blocks.last().map_or(0, |last| last + 1));
            let clusters_needed = (entries_needed * 8).div_ceil(layout.cluster_size);
            if clusters_needed * layout.cluster_size > REFCOUNT_TABLE_LEN_BYTES_MAX {
                return None;
            }
            let before = blocks.len();
            blocks.extend(covered);
            if blocks.len() == before && clusters_needed <= table_clusters {
                break;
            }
            table_clusters = clusters_needed.max(table_clusters);
        }
        let count = blocks.len() as u64;
        let table_cluster = base + count;
        let mut rebuilt = Rebuilt {
            table: vec![0; to_usize(table_clusters * layout.cluster_size / 8)],
            table_cluster,
            table_clusters,
            taken: (base..table_cluster + table_clusters + self.reserve).collect(),
            reserved: table_cluster + table_clusters..table_cluster + table_clusters + self.reserve,
        };
        for (cluster, index) in (base..).zip(blocks) {
            rebuilt.table[to_usize(index)] = cluster << layout.cluster_bits;
        }
        Some(rebuilt)
    }
}

/// Finds free clusters among all counts.
struct Gaps<'a, C> {
    counts: &'a Counts<C>,
    layout: &'a Layout,
    end: u64,
    rebuilt: Rebuilt,
}

impl<'a, C: Cell> Gaps<'a, C> {
    fn new(counts: &'a Counts<C>, layout: &'a Layout, end: u64) -> Self {
        Self { counts, layout, end, rebuilt: Rebuilt::default() }
    }

    fn plan(mut self, reserve: u64) -> Option<Rebuilt> {
        self.place_blocks(0..self.end)?;
        if reserve > 0 {
            let first = self.take(reserve, &mut 0);
            self.rebuilt.reserved = first..first + reserve;
            self.place_blocks(first..first + reserve)?;
        }
        loop {
            let len = self.rebuilt.table.len() as u64 * 8;
            if len > REFCOUNT_TABLE_LEN_BYTES_MAX {
                return None;
            }
            let clusters = len / self.layout.cluster_size;
            let first = self.take(clusters, &mut 0);
            self.rebuilt.table_cluster = first;
            self.rebuilt.table_clusters = clusters;
            // A table that has become longer needs another place. What it had is a leak until that is repaired.
            if !self.place_blocks(first..first + clusters)? {
                return Some(self.rebuilt);
            }
        }
    }

    fn is_free(&self, cluster: u64) -> bool {
        self.counts.count_of(cluster) == 0 && !self.rebuilt.taken.contains(&cluster)
    }

    /// Finds a place for the blocks of a range of clusters in use, and says whether the table has grown.
    fn place_blocks(&mut self, mut clusters: Range<u64>) -> Option<bool> {
        let entries = self.layout.block_entries;
        let mut first_free = 0;
        let mut grown = false;
        while clusters.start < clusters.end {
            let cluster = clusters.start;
            if self.is_free(cluster) {
                clusters.start += 1;
                continue;
            }
            let index = cluster / entries;
            if self.rebuilt.block(index) == 0 {
                if index >= ENTRIES_MAX {
                    return None;
                }
                // A block that is written already stays as it is.
                first_free = first_free.max(index * entries);
                let block = self.take(1, &mut first_free);
                clusters.end = clusters.end.max(block + 1);
                if self.rebuilt.table.len() as u64 <= index {
                    let len = ((index + 1) * 8).next_multiple_of(self.layout.cluster_size) / 8;
                    self.rebuilt.table.resize(to_usize(len), 0);
                    grown = true;
                }
                self.rebuilt.table[to_usize(index)] = block << self.layout.cluster_bits;
            }
            clusters.start = (index + 1) * entries;
        }
        Some(grown)
    }

    /// Takes `count` free clusters in a row, the first at `from` or behind it, and moves `from` to the first free one.
    fn take(&mut self, count: u64, from: &mut u64) -> u64 {
        let mut at = *from;
        let mut in_row = 0;
        let mut first_gap = None;
        while in_row < count {
            if self.is_free(at) {
                first_gap.get_or_insert(at);
                in_row += 1;
            } else {
                in_row = 0;
            }
            at += 1;
        }
        *from = first_gap.unwrap_or(at);
        let first = at - count;
        self.rebuilt.taken.extend(first..at);
        first
    }
}
