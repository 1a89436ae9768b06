//! The refcounts of host clusters while they are read and changed: slices of refcount blocks, pinned in their cache.
//!
//! What is changed here is dirty in the cache and no more: making it durable in the right order is `commit`'s matter. Whoever
//! changes refcounts holds the allocator's lock.

use std::ops::Range;

use crate::cache::Slice;
use crate::error::{Result, Structure};
use crate::format::{HostOffset, RefcountTableEntry, refcount};
use crate::storage::Storage;

use super::writer::Top;

/// The refcounts of clusters side by side.
#[derive(Default)]
pub(super) struct Refcounts {
    pub(super) clusters: Range<u64>,
    /// The slice that holds them, pinned, and where it is; `None` for clusters without a refcount block.
    pub(super) slice: Option<(HostOffset, Slice)>,
}

impl Refcounts {
    /// Where the slice is, if it holds the refcounts of all these clusters.
    pub(super) fn slice_of(&self, clusters: &Range<u64>) -> Option<HostOffset> {
        let (at, _) = self.slice.as_ref()?;
        let holds = self.clusters.start <= clusters.start && clusters.end <= self.clusters.end;
        holds.then_some(*at)
    }
}

impl<S: Storage> Top<'_, S> {
    /// Pins the slices that hold the refcounts of these clusters, which have blocks.
    pub(super) async fn refcount_slices(&self, clusters: &Range<u64>) -> Result<Vec<Refcounts>> {
        let mut slices = Vec::new();
        let mut cluster = clusters.start;
        while cluster < clusters.end {
            let slice = self.refcount_slice(cluster).await?;
            cluster = slice.clusters.end;
            slices.push(slice);
        }
        Ok(slices)
    }

    /// Pins the slice that holds a cluster's refcount.
    pub(super) async fn refcount_slice(&self, cluster: u64) -> Result<Refcounts> {
        let layer = self.layer;
        let entries = layer.geometry.refcount_block_entries();
        let index = cluster / entries;
        let (raw, at) = {
            let table = self.writer.refcount_table.lock();
            (table.get(index), table.offset())
        };
        let entry = RefcountTableEntry::parse(raw, index, at, &layer.geometry)?;
        let Some(block) = entry.block() else {
            return Ok(Refcounts { clusters: index * entries..(index + 1) * entries, slice: None });
        };
        let (in_block, clusters) = self.slice_in_block(cluster);
        let at = block.checked_add(in_block).unwrap_or(block);
        let cache = &layer.refcount_cache;
        let slice = layer.metadata.load_slice(cache, Structure::RefcountBlock, at).await?;
        Ok(Refcounts { clusters, slice: Some((at, slice)) })
    }

    /// Where in its block the slice starts that holds a cluster's refcount, and which clusters' refcounts it holds.
    pub(super) fn slice_in_block(&self, cluster: u64) -> (u64, Range<u64>) {
        let entries = self.layer.geometry.refcount_block_entries();
        // Blocks and slices have powers of two of refcounts.
        let in_slice = self.slice_refcounts();
        let first = cluster & !(in_slice - 1);
        let in_block = (first & (entries - 1)) * u64::from(self.layer.geometry.refcount_bits()) / 8;
        (in_block, first..first + in_slice)
    }

    pub(super) fn refcount_in(&self, slices: &[Refcounts], cluster: u64) -> u64 {
        let slice = slices.iter().find(|slice| slice.clusters.contains(&cluster));
        slice.map_or(0, |slice| self.refcount_of(slice, cluster))
    }

    /// The refcount of a cluster that is among those of `refcounts`.
    pub(super) fn refcount_of(&self, refcounts: &Refcounts, cluster: u64) -> u64 {
        let Some((_, slice)) = &refcounts.slice else { return 0 };
        let order = self.layer.geometry.refcount_order();
        let index = cluster & (self.slice_refcounts() - 1);
        refcount::get_in_word(slice.word(refcount::word_index(order, index)), order, index)
    }

    /// Sets a cluster's refcount to a value that fits, in its cached slice. The caller has pinned it.
    pub(super) fn set_refcount(&self, cluster: u64, value: u64) {
        let raw = self
            .writer
            .refcount_table
            .lock()
            .get(cluster / self.layer.geometry.refcount_block_entries());
        // OK to unwrap: whoever has pinned the slice has found the block.
        #[allow(clippy::unwrap_used)]
        let block = RefcountTableEntry::from_raw(raw).block().unwrap();
        let (in_block, _) = self.slice_in_block(cluster);
        let slice = block.checked_add(in_block).unwrap_or(block);
        self.set_refcounts(slice, &(cluster..cluster + 1), value);
    }

    /// Sets the refcounts of clusters that are all in the slice at `slice`, which the caller has pinned, to a value that
    /// fits.
    pub(super) fn set_refcounts(&self, slice: HostOffset, clusters: &Range<u64>, value: u64) {
        let order = self.layer.geometry.refcount_order();
        let in_slice = self.slice_refcounts();
        let stored = self.layer.refcount_cache.update(slice, |slice| {
            for cluster in clusters.clone() {
                let index = cluster & (in_slice - 1);
                let word = refcount::word_index(order, index);
                if let Ok(changed) = refcount::set_in_word(slice.word(word), order, index, value) {
                    slice.set_word(word, changed);
                }
            }
        });
        assert!(
            stored.is_some(),
            "the refcounts of clusters {clusters:?} are changed in a slice that is not pinned"
        );
    }

    fn slice_refcounts(&self) -> u64 {
        self.layer.refcount_cache.entry_bytes() * 8 / u64::from(self.layer.geometry.refcount_bits())
    }
}
