//! Where the header says that everything is, in the numbers that a check counts with.

use std::ops::Range;

use super::report::Structure;
use crate::format::{Header, Version};

/// The parts of the header that a check needs.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) version_3: bool,
    pub(super) cluster_bits: u32,
    pub(super) cluster_size: u64,
    pub(super) extended_l2: bool,
    pub(super) l2_entry_len: u64,
    pub(super) data_file: bool,
    pub(super) virtual_size: u64,
    pub(super) file_len: u64,
    /// Clusters that the file has, the last of which may be partial.
    pub(super) clusters: u64,
    /// Clusters that can be referred to: one more, for what reaches over the end of the file by less than a cluster.
    pub(super) cells: u64,
    /// Clusters that the file would have if it were extended to the refcount blocks past its end; 0 unless a repair
    /// thinks of that.
    pub(super) grown_clusters: u64,
    /// Whether a snapshot's extra data may be longer than the limit, because a repair will cut it.
    pub(super) long_extra: bool,
    pub(super) l1_table: Range<u64>,
    pub(super) refcount_table: Range<u64>,
    pub(super) refcount_order: u32,
    pub(super) refcount_max: u64,
    /// Clusters that a refcount block counts.
    pub(super) block_entries: u64,
    pub(super) snapshots: u32,
    pub(super) snapshot_table_offset: u64,
    pub(super) crypto_header: Option<Range<u64>>,
    pub(super) bitmaps: Option<Bitmaps>,
}

/// The bitmaps extension.
#[derive(Debug)]
pub(super) struct Bitmaps {
    pub(super) count: u32,
    pub(super) directory: Range<u64>,
}

impl Layout {
    /// The numbers of a header, for a file of `file_len` bytes.
    pub(super) fn new(header: &Header, file_len: u64) -> Self {
        let geometry = header.geometry();
        let clusters = geometry.clusters_for(file_len);
        let range = |offset: u64, len: u64| offset..offset.saturating_add(len);
        let refcount_bits = geometry.refcount_bits();
        Self {
            version_3: header.version == Version::V3,
            cluster_bits: geometry.cluster_bits(),
            cluster_size: geometry.cluster_size(),
            extended_l2: geometry.extended_l2(),
            l2_entry_len: geometry.l2_entry_len(),
            data_file: header.has_data_file(),
            virtual_size: header.size,
            file_len,
            clusters,
            cells: clusters + 1,
            grown_clusters: 0,
            long_extra: false,
            l1_table: range(header.l1_table_offset.get(), header.l1_table_len()),
            refcount_table: range(header.refcount_table_offset.get(), header.refcount_table_len()),
            refcount_order: geometry.refcount_order(),
            refcount_max: u64::MAX >> (64 - refcount_bits),
            block_entries: geometry.refcount_block_entries(),
            snapshots: header.snapshot_count,
            snapshot_table_offset: header.snapshot_table_offset.get(),
            crypto_header: header
                .crypto_header()
                .map(|crypto| range(crypto.offset.get(), crypto.len)),
            bitmaps: header.bitmaps().map(|bitmaps| Bitmaps {
                count: bitmaps.count,
                directory: range(bitmaps.directory_offset.get(), bitmaps.directory_len),
            }),
        }
    }

    /// Counts as if the file had `clusters` clusters.
    pub(super) fn grow(&mut self, clusters: u64) {
        self.clusters = clusters;
        self.cells = clusters + 1;
        self.file_len = clusters << self.cluster_bits;
    }

    /// Clusters of the virtual disk.
    pub(super) fn total_clusters(&self) -> u64 {
        (self.virtual_size & !511).div_ceil(self.cluster_size)
    }

    /// Bits of a refcount.
    pub(super) fn refcount_bits(&self) -> u64 {
        1 << self.refcount_order
    }

    /// The structure to which a cluster belongs, if it is one of those that the header points to.
    pub(super) fn structure_at(&self, cluster: u64) -> Option<Structure> {
        let is_in = |range: &Range<u64>| {
            self.clusters_of(range.start, range.end.saturating_sub(range.start)).contains(&cluster)
        };
        let regions = [
            (Structure::Header, Some(0..self.cluster_size)),
            (Structure::L1Table, Some(self.l1_table.clone())),
            (Structure::RefcountTable, Some(self.refcount_table.clone())),
            (Structure::CryptoHeader, self.crypto_header.clone()),
            (
                Structure::BitmapDirectory,
                self.bitmaps.as_ref().map(|bitmaps| bitmaps.directory.clone()),
            ),
        ];
        let found = regions.iter().find(|(_, range)| range.as_ref().is_some_and(is_in));
        found.map(|(structure, _)| *structure)
    }

    /// Whether a range ends a cluster or more behind the end of the file, which no image may refer to.
    pub(super) fn is_past_end(&self, offset: u64, len: u64) -> bool {
        offset.saturating_add(len) >= self.file_len.saturating_add(self.cluster_size)
    }

    /// The clusters that a range touches.
    pub(super) fn clusters_of(&self, offset: u64, len: u64) -> Range<u64> {
        if len == 0 {
            return 0..0;
        }
        let last = offset.saturating_add(len - 1);
        offset >> self.cluster_bits..(last >> self.cluster_bits) + 1
    }

    pub(super) fn is_aligned(&self, offset: u64) -> bool {
        offset & (self.cluster_size - 1) == 0
    }

    /// How many of a range's bytes the file does not have.
    pub(super) fn missing(&self, range: &Range<u64>) -> u64 {
        range.end.saturating_sub(range.start.max(self.file_len))
    }
}
