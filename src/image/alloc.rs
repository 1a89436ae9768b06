//! Taking host clusters: first fit from where the last search ended, as QEMU does it, so that images look the same.
//!
//! A cluster is free if its refcount is 0, nothing that the survey found uses it, and no dropped write may yet land on it.
//! Taking it makes its refcount 1 in the cached refcount block; making that durable before anything refers to the cluster
//! is `commit`'s matter.
//!
//! Source: QEMU, block/qcow2-refcount.c, `alloc_clusters_noref`, `alloc_refcount_block`, `qcow2_alloc_bytes`.

use std::ops::Range;

use crate::error::{Corrupt, CorruptKind, Error, Result, Structure};
use crate::format::limits::{HOST_OFFSET_MAX, REFCOUNT_TABLE_LEN_BYTES_MAX};
use crate::format::{HostOffset, RefcountTableEntry, refcount};
use crate::storage::Storage;

use super::free::{Free, FreeReason};
use super::ownership::Owner;
use super::refcount_slices::Refcounts;
use super::settling::File;
use super::writer::{Top, Writer};

/// What [`Error::LimitExceeded`] calls a refcount.
const REFCOUNT: &str = "refcount";

/// A refcount table that must grow grows by half: it is moved rarely.
const TABLE_GROWTH: (u64, u64) = (3, 2);

/// Where to look for free clusters. Locked while clusters are taken or given back.
#[derive(Debug, Default)]
pub(crate) struct Allocator {
    /// Where the search goes on: the number of a cluster.
    next: u64,
    /// No cluster from this number on was ever used: there the file ends, and what it gains reads as zeros.
    end: u64,
    /// Where the next compressed cluster goes: behind the one before, if its host cluster has room.
    stream_end: Option<u64>,
}

impl Allocator {
    /// Allocates from the file's start, in a file that has `end` clusters.
    pub(super) fn new(end: u64) -> Self {
        Self { next: 0, end, stream_end: None }
    }

    /// The number of the first cluster that was never used.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// Notes that clusters before `end` are used.
    pub(super) fn skip_to(&mut self, end: u64) {
        self.end = self.end.max(end);
    }

    /// Notes that the file was cut to `end` clusters.
    pub(super) fn cut(&mut self, end: u64) {
        self.end = end;
        self.next = self.next.min(end);
        self.stream_end = None;
    }

    /// Notes that a cluster of `1 << cluster_bits` bytes is free.
    fn found_free(&mut self, cluster: u64, cluster_bits: u32) {
        self.next = self.next.min(cluster);
        self.stream_end.take_if(|end| *end >> cluster_bits == cluster);
    }
}

/// Host clusters side by side that were taken. Dropping it gives them back, unless they are kept.
#[must_use]
pub(crate) struct Taken<'a> {
    writer: &'a Writer,
    clusters: Range<u64>,
    cluster_bits: u32,
    /// Their bytes are past the end of what was ever used: they read as zeros.
    pub(super) is_fresh: bool,
    epoch: u64,
    kept: bool,
}

impl Taken<'_> {
    /// Where they start.
    pub(super) fn host(&self) -> HostOffset {
        HostOffset::new(self.clusters.start << self.cluster_bits)
    }

    /// Something refers to them now.
    pub(super) fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if !self.kept {
            let free = Free {
                clusters: self.clusters.clone(),
                reason: FreeReason::Unused,
                epoch: self.epoch,
            };
            self.writer.frees.lock().add(free);
        }
    }
}

impl<'a, S: Storage> Top<'a, S> {
    /// Takes `count` host clusters side by side for `owner`.
    ///
    /// # Errors
    /// [`Error::LimitExceeded`] if the format has no room for them; what reading and writing refcount blocks meets. Nothing
    /// is taken then.
    ///
    /// # Cancel safety
    /// Dropping the future takes nothing.
    pub(super) async fn take_clusters(&self, count: u64, owner: Owner) -> Result<Taken<'a>> {
        self.mark_dirty().await?;
        let mut allocator = self.writer.allocator.lock().await;
        self.take_in(&mut allocator, count, owner).await
    }

    async fn take_in(
        &self,
        allocator: &mut Allocator,
        count: u64,
        owner: Owner,
    ) -> Result<Taken<'a>> {
        loop {
            let (clusters, last) = self.find_free(allocator, count).await?;
            if let Some(slice) = last.slice_of(&clusters) {
                return self.take_in_slice(allocator, clusters, owner, slice);
            }
            if !self.is_covered(&clusters) {
                self.cover(allocator, &clusters).await?;
                // The block lies behind the clusters, which are free still.
                allocator.next = allocator.next.min(clusters.start);
                continue;
            }
            self.may_count(&clusters)?;
            let pinned = self.refcount_slices(&clusters).await?;
            // From here on nothing is awaited and nothing fails.
            let is_fresh = clusters.start >= allocator.end;
            for cluster in clusters.clone() {
                self.set_refcount(cluster, 1);
                self.writer.ownership.lock().take(cluster, owner);
            }
            drop(pinned);
            allocator.end = allocator.end.max(clusters.end);
            return Ok(self.taken(clusters, is_fresh));
        }
    }

    /// Takes free clusters whose refcounts are all in one slice, which is pinned.
    fn take_in_slice(
        &self,
        allocator: &mut Allocator,
        clusters: Range<u64>,
        owner: Owner,
        slice: HostOffset,
    ) -> Result<Taken<'a>> {
        self.may_change(Structure::RefcountBlock, slice)?;
        // From here on nothing fails.
        let is_fresh = clusters.start >= allocator.end;
        self.set_refcounts(slice, &clusters, 1);
        {
            let mut ownership = self.writer.ownership.lock();
            clusters.clone().for_each(|cluster| ownership.take(cluster, owner));
        }
        allocator.end = allocator.end.max(clusters.end);
        Ok(self.taken(clusters, is_fresh))
    }

    pub(super) fn taken(&self, clusters: Range<u64>, is_fresh: bool) -> Taken<'a> {
        Taken {
            writer: self.writer,
            clusters,
            cluster_bits: self.layer.geometry.cluster_bits(),
            is_fresh,
            epoch: self.image.requests.epoch(),
            kept: false,
        }
    }

    /// Takes `len_bytes`, at most a cluster, for a compressed cluster, at any alignment: behind the one before, if its host
    /// cluster has room or the next one is free. Returns them and where they start.
    ///
    /// # Errors
    /// As [`Self::take_clusters`].
    ///
    /// # Cancel safety
    /// Dropping the future takes nothing, but for the rest of a host cluster.
    pub(super) async fn take_bytes(&self, len_bytes: u64) -> Result<(Taken<'a>, HostOffset)> {
        self.mark_dirty().await?;
        let geometry = self.layer.geometry;
        let (bits, cluster_size) = (geometry.cluster_bits(), geometry.cluster_size());
        let mut allocator = self.writer.allocator.lock().await;
        // Failed or dropped: the rest of the cluster is not used, no more.
        let before = allocator.stream_end.take();
        let room = before.map_or(0, |start| start.next_multiple_of(cluster_size) - start);
        let (start, clusters) = match before {
            Some(start) if len_bytes <= room && self.share(start >> bits).await? => {
                (start, start >> bits..(start >> bits) + 1)
            }
            _ => {
                let more = self.take_in(&mut allocator, 1, Owner::Shared).await?;
                let next = more.clusters.start;
                let start = match before {
                    Some(start)
                        if len_bytes > room
                            && next == (start >> bits) + 1
                            && self.share(start >> bits).await? =>
                    {
                        start
                    }
                    _ => next << bits,
                };
                more.keep();
                (start, start >> bits..next + 1)
            }
        };
        let end = start + len_bytes;
        allocator.stream_end = (!end.is_multiple_of(cluster_size)).then_some(end);
        Ok((self.taken(clusters, false), HostOffset::new(start)))
    }

    /// Adds a reference to a cluster of compressed data, unless its refcount can take no more.
    async fn share(&self, cluster: u64) -> Result<bool> {
        self.may_count(&(cluster..cluster + 1))?;
        let slices = self.refcount_slices(&(cluster..cluster + 1)).await?;
        let now = self.refcount_in(&slices, cluster);
        if now == 0 || now >= self.layer.geometry.refcount_max() {
            return Ok(false);
        }
        self.set_refcount(cluster, now + 1);
        Ok(true)
    }

    /// Adds a reference to each of the clusters, which are in use.
    ///
    /// # Errors
    /// [`Error::LimitExceeded`] if a refcount has no room for it; what reading refcount blocks meets. Nothing has changed
    /// then.
    ///
    /// # Cancel safety
    /// Dropping the future adds nothing.
    pub(super) async fn add_references(&self, clusters: Range<u64>) -> Result<()> {
        let _allocator = self.writer.allocator.lock().await;
        self.may_count(&clusters)?;
        let slices = self.refcount_slices(&clusters).await?;
        self.must_fit(&slices, &clusters)?;
        // From here on nothing is awaited and nothing fails.
        for cluster in clusters {
            self.set_refcount(cluster, self.refcount_in(&slices, cluster) + 1);
        }
        Ok(())
    }

    /// Asks whether each of the clusters, which are in use, can have one more reference.
    ///
    /// # Errors
    /// As [`Self::add_references`].
    pub(super) async fn may_be_referenced(&self, clusters: Range<u64>) -> Result<()> {
        let slices = self.refcount_slices(&clusters).await?;
        self.must_fit(&slices, &clusters)
    }

    fn must_fit(&self, slices: &[Refcounts], clusters: &Range<u64>) -> Result<()> {
        let limit = self.layer.geometry.refcount_max();
        for cluster in clusters.clone() {
            let value = self.refcount_in(slices, cluster);
            if value == 0 {
                // The survey has seen that there is none.
                let reason = format!("cluster {cluster} is in use and has refcount 0");
                let kind = CorruptKind::WriteUnsafe { reason };
                return Err(Corrupt::new(kind, Structure::RefcountBlock).into());
            }
            if value >= limit {
                return Err(Error::LimitExceeded {
                    what: REFCOUNT,
                    value: value.saturating_add(1),
                    limit,
                });
            }
        }
        Ok(())
    }

    /// Takes a reference from each of the clusters and returns those that are free now.
    ///
    /// # Errors
    /// What reading refcount blocks meets; nothing has changed then.
    pub(super) async fn drop_references(&self, clusters: Range<u64>) -> Result<Vec<Range<u64>>> {
        let mut allocator = self.writer.allocator.lock().await;
        let slices = self.refcount_slices(&clusters).await?;
        let mut free: Vec<Range<u64>> = Vec::new();
        for cluster in clusters {
            // What the survey found to be used more often than its refcount says keeps it.
            if self.writer.ownership.lock().is_pinned(cluster) {
                continue;
            }
            // Leaked: its refcount is something else too.
            if self.may_count(&(cluster..cluster + 1)).is_err() {
                continue;
            }
            // A refcount that is too low is the image's fault, and a check's matter.
            let Some(less) = self.refcount_in(&slices, cluster).checked_sub(1) else { continue };
            self.set_refcount(cluster, less);
            if less > 0 || !self.writer.ownership.lock().release(cluster) {
                continue;
            }
            allocator.found_free(cluster, self.layer.geometry.cluster_bits());
            match free.last_mut() {
                Some(last) if last.end == cluster => last.end = cluster + 1,
                _ => free.push(cluster..cluster + 1),
            }
        }
        Ok(free)
    }

    /// Those of the clusters that have one reference only, and that nobody can get another one to meanwhile.
    pub(super) async fn last_references(&self, clusters: Range<u64>) -> Result<Vec<Range<u64>>> {
        let mut allocator = self.writer.allocator.lock().await;
        let bits = self.layer.geometry.cluster_bits();
        let slices = self.refcount_slices(&clusters).await?;
        allocator.stream_end.take_if(|end| clusters.contains(&(*end >> bits)));
        let ownership = self.writer.ownership.lock();
        let mut last: Vec<Range<u64>> = Vec::new();
        for cluster in clusters {
            let kept = ownership.is_pinned(cluster) || ownership.is_contested(cluster);
            if kept || self.refcount_in(&slices, cluster) != 1 {
                continue;
            }
            match last.last_mut() {
                Some(last) if last.end == cluster => last.end = cluster + 1,
                _ => last.push(cluster..cluster + 1),
            }
        }
        Ok(last)
    }

    /// The number of the first of the free clusters behind the last one that is in use.
    pub(super) async fn used_end(&self) -> Result<u64> {
        let allocator = self.writer.allocator.lock().await;
        let mut end = allocator.end;
        while end > 1 {
            let slices = [self.refcount_slice(end - 1).await?];
            let used = self.refcount_in(&slices, end - 1) > 0
                || self.writer.ownership.lock().owner(end - 1) != Owner::Free;
            if used {
                break;
            }
            end -= 1;
        }
        Ok(end)
    }

    /// The refcount of the cluster that holds `offset`, as it is in memory.
    pub(super) async fn refcount(&self, offset: HostOffset) -> Result<u64> {
        let cluster = offset.get() >> self.layer.geometry.cluster_bits();
        let slice = self.refcount_slice(cluster).await?;
        Ok(self.refcount_of(&slice, cluster))
    }

    /// As [`Self::refcount`] of a cluster by its number, for many that lie near each other: `held` has those looked at last.
    pub(super) async fn refcount_held(&self, held: &mut Refcounts, cluster: u64) -> Result<u64> {
        if !held.clusters.contains(&cluster) {
            *held = self.refcount_slice(cluster).await?;
        }
        Ok(self.refcount_of(held, cluster))
    }

    /// The next `count` free clusters side by side, and the refcounts that were looked at last.
    async fn find_free(
        &self,
        allocator: &mut Allocator,
        count: u64,
    ) -> Result<(Range<u64>, Refcounts)> {
        let from = allocator.next;
        let found = self.search(allocator, count).await;
        if found.is_err() {
            allocator.next = from;
        }
        found
    }

    async fn search(
        &self,
        allocator: &mut Allocator,
        count: u64,
    ) -> Result<(Range<u64>, Refcounts)> {
        let geometry = self.layer.geometry;
        let clusters_max = HOST_OFFSET_MAX >> geometry.cluster_bits();
        let mut run = 0;
        let mut at_hand = Refcounts::default();
        while run < count {
            let cluster = allocator.next;
            if cluster >= clusters_max {
                return Err(Error::LimitExceeded {
                    what: "clusters of the image file",
                    value: cluster,
                    limit: clusters_max,
                });
            }
            if !at_hand.clusters.contains(&cluster) {
                at_hand = self.refcount_slice(cluster).await?;
            }
            let count = self.refcount_of(&at_hand, cluster);
            let free = count == 0 && cluster > 0 && self.is_unused(allocator, cluster);
            // What may yet land there has to be waited for: it may be anywhere, so that no other cluster is better.
            let bits = geometry.cluster_bits();
            let range = cluster << bits..(cluster + 1) << bits;
            if free && self.writer.settling.overlaps(File::Image, &range) {
                self.settle().await?;
                continue;
            }
            run = if free { run + 1 } else { 0 };
            allocator.next += 1;
        }
        Ok((allocator.next - count..allocator.next, at_hand))
    }

    /// Whether nothing but the refcount could say that the cluster is in use.
    fn is_unused(&self, allocator: &Allocator, cluster: u64) -> bool {
        let ownership = self.writer.ownership.lock();
        let unused = match ownership.is_known() {
            true => ownership.owner(cluster) == Owner::Free,
            false => cluster >= allocator.end && ownership.owner(cluster) == Owner::Free,
        };
        drop(ownership);
        unused
    }

    /// Whether all these clusters have a refcount block.
    fn is_covered(&self, clusters: &Range<u64>) -> bool {
        let entries = self.layer.geometry.refcount_block_entries();
        let table = self.writer.refcount_table.lock();
        (clusters.start / entries..=(clusters.end - 1) / entries)
            .all(|index| RefcountTableEntry::from_raw(table.get(index)).block().is_some())
    }

    /// Asks whether the refcounts of these clusters may be changed.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if a refcount block is something else too.
    fn may_count(&self, clusters: &Range<u64>) -> Result<()> {
        let entries = self.layer.geometry.refcount_block_entries();
        for index in clusters.start / entries..=(clusters.end - 1) / entries {
            let raw = self.writer.refcount_table.lock().get(index);
            if let Some(block) = RefcountTableEntry::from_raw(raw).block() {
                self.may_change(Structure::RefcountBlock, block)?;
            }
        }
        Ok(())
    }

    /// Makes one of the refcount blocks that these clusters lack.
    async fn cover(&self, allocator: &mut Allocator, clusters: &Range<u64>) -> Result<()> {
        let entries = self.layer.geometry.refcount_block_entries();
        let has = |index: u64| {
            let table = self.writer.refcount_table.lock();
            RefcountTableEntry::from_raw(table.get(index)).block().is_some()
        };
        let table = self.writer.refcount_table.lock().offset();
        let mut indexes = clusters.start / entries..=(clusters.end - 1) / entries;
        let Some(mut index) = indexes.find(|index| !has(*index)) else { return Ok(()) };
        // A block is told of by itself or by one that there is; else that one comes first.
        let block = loop {
            let block = self.find_free(allocator, 1).await?.0.start;
            let told_by = block / entries;
            if told_by == index || has(told_by) {
                break block;
            }
            index = told_by;
        };
        if index >= self.writer.refcount_table.lock().len() {
            return self.grow_refcount_table(allocator, index).await;
        }
        let at = HostOffset::new(table.get() + index * RefcountTableEntry::LEN);
        self.may_change(Structure::RefcountTable, at)?;
        if has(block / entries) {
            self.may_count(&(block..block + 1))?;
        }
        self.install_block(allocator, index, block).await
    }

    /// Makes `cluster` the refcount block of table entry `index`.
    async fn install_block(
        &self,
        allocator: &mut Allocator,
        index: u64,
        cluster: u64,
    ) -> Result<()> {
        let geometry = self.layer.geometry;
        let entries = geometry.refcount_block_entries();
        let host = HostOffset::new(cluster << geometry.cluster_bits());
        self.zero_metadata(host, geometry.cluster_size()).await?;
        let told_by_itself = cluster / entries == index;
        let pinned = if told_by_itself {
            let in_block = self.slice_in_block(cluster);
            let slice = host.checked_add(in_block.0).unwrap_or(host);
            let layer = self.layer;
            layer
                .metadata
                .load_slice(&layer.refcount_cache, Structure::RefcountBlock, slice)
                .await?
        } else {
            match self.refcount_slice(cluster).await?.slice {
                Some((_, slice)) => slice,
                // Whoever calls has seen to that.
                None => return Ok(()),
            }
        };
        // From here on nothing is awaited and nothing fails.
        self.writer.refcount_table.lock().set(index, host);
        self.set_refcount(cluster, 1);
        drop(pinned);
        self.writer.ownership.lock().take(cluster, Owner::Metadata);
        allocator.end = allocator.end.max(cluster + 1);
        Ok(())
    }

    /// Moves the refcount table to where it has room for entry `index`: with blocks that describe themselves and it, behind
    /// everything, in one write of the header.
    async fn grow_refcount_table(&self, allocator: &mut Allocator, index: u64) -> Result<()> {
        let geometry = self.layer.geometry;
        let (bits, entries) = (geometry.cluster_bits(), geometry.refcount_block_entries());
        let cluster_size = geometry.cluster_size();
        let _io = self.writer.refcount_table_io.lock().await;
        let (old_offset, old_len) = {
            let table = self.writer.refcount_table.lock();
            (table.offset(), table.len())
        };
        // The first cluster of a block's own, behind all that is used.
        let first_block =
            allocator.end.max(old_len * entries).max(index * entries).div_ceil(entries);
        let mut len = (old_len * TABLE_GROWTH.0 / TABLE_GROWTH.1).max(first_block + 1);
        let (table_clusters, blocks) = loop {
            let table_clusters = geometry.clusters_for(len * RefcountTableEntry::LEN);
            let mut blocks = 1;
            while blocks * entries < blocks + table_clusters {
                blocks += 1;
            }
            if len >= first_block + blocks {
                break (table_clusters, blocks);
            }
            len = first_block + blocks;
        };
        let len_bytes = table_clusters << bits;
        if len_bytes > REFCOUNT_TABLE_LEN_BYTES_MAX {
            return Err(Error::LimitExceeded {
                what: "refcount table bytes",
                value: len_bytes,
                limit: REFCOUNT_TABLE_LEN_BYTES_MAX,
            });
        }
        let area = first_block * entries;
        let table_at = HostOffset::new((area + blocks) << bits);
        let fit = |bytes: u64| {
            usize::try_from(bytes).map_err(|_| Error::LimitExceeded {
                what: "refcount table bytes",
                value: bytes,
                limit: usize::MAX as u64,
            })
        };

        let mut refcounts = vec![0; fit(blocks * cluster_size)?];
        let block_len = fit(cluster_size)?;
        for cluster in 0..blocks + table_clusters {
            let block = fit(cluster / entries)? * block_len;
            let bytes = &mut refcounts[block..block + block_len];
            refcount::set(bytes, geometry.refcount_order(), cluster % entries, 1)?;
        }
        let mut table = self.writer.refcount_table.lock().durable();
        table.resize(fit(len_bytes / RefcountTableEntry::LEN)?, 0);
        for block in 0..blocks {
            table[fit(first_block + block)?] = (area + block) << bits;
        }
        let table: Vec<u8> = table.iter().flat_map(|entry| entry.to_be_bytes()).collect();
        // Whatever becomes of what follows, this place is not taken for one that reads as zeros.
        allocator.end = allocator.end.max(area + blocks + table_clusters);
        self.write_metadata(HostOffset::new(area << bits), &refcounts).await?;
        self.write_metadata(table_at, &table).await?;
        self.barrier().await?;
        let clusters = u32::try_from(table_clusters).unwrap_or(u32::MAX);
        self.update_header(|header| {
            header.refcount_table_offset = table_at;
            header.refcount_table_clusters = clusters;
        })
        .await?;
        // From here on nothing is awaited and nothing fails: the header and the table in memory are one.
        let len = table.len() / 8;
        let mut table = self.writer.refcount_table.lock();
        table.replace(table_at, len);
        for block in 0..blocks {
            let host = HostOffset::new((area + block) << bits);
            table.store_durable(first_block + block, host);
        }
        drop(table);
        let mut ownership = self.writer.ownership.lock();
        for cluster in area..area + blocks + table_clusters {
            ownership.take(cluster, Owner::Metadata);
        }
        drop(ownership);
        // The old table becomes free by the next commit, which makes the header's change durable.
        let old = old_offset.get() >> bits;
        let old = old..old + geometry.clusters_for(old_len * RefcountTableEntry::LEN);
        let epoch = self.image.requests.epoch();
        self.writer.frees.lock().add(Free { clusters: old, reason: FreeReason::Other, epoch });
        Ok(())
    }
}
