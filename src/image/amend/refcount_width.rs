//! Refcounts of another width: refcount table and blocks are written anew behind the end of the file, and one write of the
//! header leads to them instead of the old ones.
//!
//! The old ones do not tell of the new ones, nor the new ones of the old ones: a power loss leaves one or the other, and
//! nothing leaks.
//!
//! Source: QEMU, block/qcow2-refcount.c, `qcow2_change_refcount_order`, which takes clusters for the new ones from the old.

use std::collections::BTreeSet;
use std::ops::Range;

use crate::error::{Error, Result};
use crate::format::limits::REFCOUNT_TABLE_LEN_BYTES_MAX;
use crate::format::{Geometry, HostOffset, RefcountTableEntry, refcount};
use crate::storage::Storage;

use super::super::alloc::Allocator;
use super::super::ownership::Owner;
use super::super::refcount_slices::Refcounts;
use super::super::refcount_table::RefcountTable;
use super::super::writer::Top;

/// Where the new table and its blocks go.
struct Area {
    /// The first cluster.
    start: u64,
    /// Which entries of the table have blocks, in the order of the blocks.
    blocks: BTreeSet<u64>,
    /// Of the table, which comes behind the blocks.
    table_clusters: u64,
}

impl Area {
    fn table(&self) -> u64 {
        self.start + self.blocks.len() as u64
    }

    fn clusters(&self) -> Range<u64> {
        self.start..self.table() + self.table_clusters
    }
}

impl<S: Storage> Top<'_, S> {
    /// Gives the image refcounts of `1 << order` bits. When this returns the header says so, in memory too, and the caller
    /// goes by it before anything else happens; the flush is the caller's. Nobody makes requests, and everything is written.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if a refcount does not fit, [`Error::LimitExceeded`] if the table would be too long.
    ///
    /// # Cancel safety
    /// The refcounts are those that there were.
    pub(super) async fn rebuild_refcounts(
        &self,
        order: u32,
        progress: &mut impl FnMut(u64, u64),
    ) -> Result<()> {
        let old = self.layer.geometry;
        let new = Geometry::new(old.cluster_bits(), old.extended_l2(), order)?;
        let mut allocator = self.writer.allocator.lock().await;
        let _io = self.writer.refcount_table_io.lock().await;
        let end = allocator.end();
        let area = self.area(&new, end, &mut *progress).await?;
        let gone = self.old_clusters();
        let total = 2 * end.max(1);

        let len = usize::try_from(new.cluster_size()).unwrap_or(usize::MAX);
        let table_len = usize::try_from(area.table_clusters).unwrap_or(usize::MAX) * (len / 8);
        let mut table = vec![0_u64; table_len];
        let per_block = new.refcount_block_entries();
        for (at, index) in (area.start..).zip(&area.blocks) {
            let first = index * per_block;
            let mut block = vec![0; len];
            let mut held = Refcounts::default();
            for cluster in first..(first + per_block).min(area.clusters().end) {
                let count = match cluster {
                    _ if area.clusters().contains(&cluster) => 1,
                    _ if cluster >= end || gone.contains(&cluster) => 0,
                    _ => self.refcount_held(&mut held, cluster).await?,
                };
                refcount::set(&mut block, order, cluster - first, count)?;
            }
            let host = HostOffset::new(at << new.cluster_bits());
            // OK to index and saturate: the table was made that long.
            table[usize::try_from(*index).unwrap_or(usize::MAX)] = host.get();
            // Cancel: nothing leads there.
            self.write_metadata(host, &block).await?;
            progress(end + (first + per_block).min(end), total);
        }
        let table_at = HostOffset::new(area.table() << new.cluster_bits());
        let bytes: Vec<u8> = table.iter().flat_map(|entry| entry.to_be_bytes()).collect();
        self.write_metadata(table_at, &bytes).await?;
        self.barrier().await?;
        // Whatever becomes of the header's write, nothing else may lie there.
        allocator.skip_to(area.clusters().end);
        let table_clusters = u32::try_from(area.table_clusters).unwrap_or(u32::MAX);
        self.update_header(|header| {
            header.refcount_table_offset = table_at;
            header.refcount_table_clusters = table_clusters;
            header.set_geometry(new);
        })
        .await?;

        // Nothing is awaited until all of memory says the same as the header.
        *self.writer.refcount_table.lock() = RefcountTable::new(table_at, table);
        *allocator = Allocator::new(area.clusters().end);
        let mut ownership = self.writer.ownership.lock();
        for cluster in area.clusters() {
            ownership.take(cluster, Owner::Metadata);
        }
        let bits = new.cluster_bits();
        for cluster in gone {
            // In an image that contradicts itself nowhere nothing is pinned.
            let _ = ownership.release(cluster);
            let host = HostOffset::new(cluster << bits);
            self.layer.refcount_cache.forget(host, new.cluster_size());
        }
        Ok(())
    }

    /// Finds out where the new table and blocks go, and that all refcounts fit.
    async fn area(
        &self,
        new: &Geometry,
        end: u64,
        progress: &mut impl FnMut(u64, u64),
    ) -> Result<Area> {
        let per_block = new.refcount_block_entries();
        let limit = new.refcount_max();
        let mut blocks = BTreeSet::new();
        let mut held = Refcounts::default();
        for cluster in 0..end {
            let count = self.refcount_held(&mut held, cluster).await?;
            if count > limit {
                return Err(Error::InvalidArgument(format!(
                    "Cannot decrease refcount entry width to {} bits: Cluster at offset {:#x} has a refcount of {count}",
                    new.refcount_bits(),
                    cluster << new.cluster_bits(),
                )));
            }
            if count > 0 {
                blocks.insert(cluster / per_block);
            }
            if cluster % per_block == 0 {
                progress(cluster, 2 * end);
            }
        }
        let mut area = Area { start: end, blocks, table_clusters: 1 };
        loop {
            let last = (area.clusters().end - 1) / per_block;
            let table_clusters = new.clusters_for((last + 1) * RefcountTableEntry::LEN);
            let before = (area.blocks.len(), area.table_clusters);
            area.table_clusters = table_clusters;
            area.blocks.extend(area.start / per_block..=last);
            if before == (area.blocks.len(), area.table_clusters) {
                break;
            }
        }
        let len = area.table_clusters << new.cluster_bits();
        if len > REFCOUNT_TABLE_LEN_BYTES_MAX {
            return Err(Error::LimitExceeded {
                what: "refcount table bytes",
                value: len,
                limit: REFCOUNT_TABLE_LEN_BYTES_MAX,
            });
        }
        Ok(area)
    }

    /// The clusters of the refcount table and blocks that there are.
    fn old_clusters(&self) -> BTreeSet<u64> {
        let geometry = self.layer.geometry;
        let bits = geometry.cluster_bits();
        let table = self.writer.refcount_table.lock();
        let first = table.offset().get() >> bits;
        let own = first..first + geometry.clusters_for(table.len() * RefcountTableEntry::LEN);
        let block = |index| RefcountTableEntry::from_raw(table.get(index)).block();
        let blocks = (0..table.len()).filter_map(block).map(|host| host.get() >> bits);
        blocks.chain(own).collect()
    }
}
