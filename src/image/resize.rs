//! Changing the size of a disk.
//!
//! Source: QEMU, block/qcow2.c, `qcow2_co_truncate`; qcow2-cluster.c, `qcow2_grow_l1_table`, `qcow2_shrink_l1_table`.

use crate::error::{Error, Result};
use crate::format::{ClusterKind, CryptMethod, HostOffset, L1Entry, L2Entry, Version};
use crate::storage::Storage;
use crate::sync::Ordering;

use super::Image;
use super::free::{Free, FreeReason};
use super::layer::{Below, NOT_GROWING, RawLayer, RunKind};
use super::options::{Preallocation, ResizeOptions, ZeroMode};
use super::ownership::Owner;
use super::requests::{Chore, Request};
use super::settling::File;
use super::writer::{Target, Top};

impl<S: Storage> Image<S> {
    /// Makes the disk `size` bytes long, in a qcow2 image a multiple of 512. What it gains reads as zeros, whatever a longer backing file
    /// holds; what it loses is lost.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the size is not such a multiple, if the disk would become smaller and that is not
    /// allowed, or the format does not allow the change; [`Error::LimitExceeded`] if the L1 table would become too large;
    /// else as [`Self::write_at`].
    ///
    /// # Cancel safety
    /// The disk has the old size or the new one. A disk that was becoming smaller may have lost a part of its end.
    pub async fn resize(&self, size: u64, options: &ResizeOptions) -> Result<()> {
        if self.header().is_some() && !size.is_multiple_of(512) {
            return Err(Error::InvalidArgument("The new size must be a multiple of 512".into()));
        }
        let (writer, _) = self.target()?;
        let _structure = writer.structure.lock().await;
        let old = self.virtual_size();
        if size < old && !options.shrink {
            return Err(Error::InvalidArgument(
                "Use the --shrink option to perform a shrink operation.".into(),
            ));
        }
        let op = self.requests.enter_chore().await?;
        let change = self.begin_change(&op).await?;
        let is_qcow2 = matches!(change.target, Target::Qcow2(_));
        if let Target::Raw(layer) = &change.target {
            return layer.resize(size, options.preallocation).await;
        }
        drop(change);
        if is_qcow2 && size < old {
            self.shrink(size).await?;
        } else if size > old {
            self.grow(&op, old, size, options.preallocation).await?;
        }
        self.flush_by(&op).await
    }

    async fn grow(
        &self,
        op: &Chore<'_>,
        old: u64,
        size: u64,
        preallocation: Preallocation,
    ) -> Result<()> {
        let Some(top) = self.top() else { return Ok(()) };
        top.may_resize()?;
        let growth = {
            let _alone = top.writer.turnstile.alone().await;
            // A VM state that no snapshot has would become the disk's.
            top.cut_vm_state().await?;
            top.prepare_bitmaps_for_size(size).await?;
            top.grow_l1(size).await?;
            top.writer.changed.mark(&(old..size));
            Growth::begin(top, old, size)
        };
        self.fill_growth(op, top, old, size, preallocation).await?;
        self.flush_by(op).await?;
        // The header comes last: a disk that has the new size on disk reads as zeros there.
        top.update_header(|header| header.size = size).await?;
        // Before anything is awaited: the header in memory and the disk have one size.
        growth.end();
        top.barrier().await?;
        // The cache grows with its tables, as in QEMU.
        let sizes = self.cache_options.lock().resolve(&top.layer.geometry, size);
        if let Ok(sizes) = sizes {
            top.layer.l2_cache.grow(sizes.l2_bytes);
        }
        Ok(())
    }

    async fn fill_growth(
        &self,
        op: &Chore<'_>,
        top: Top<'_, S>,
        old: u64,
        size: u64,
        preallocation: Preallocation,
    ) -> Result<()> {
        // What lies behind the old end in its cluster was never the guest's, and what a backing file has there is not its
        // either.
        let cluster_end = old.next_multiple_of(top.layer.geometry.cluster_size()).min(size);
        // Clusters that are made for it hide what lies below, but where each subcluster says for itself what hides it.
        let is_hidden = preallocation != Preallocation::Off && !top.layer.geometry.extended_l2();
        let below = self.below_len();
        let zero_end = if is_hidden { cluster_end } else { size.min(below.max(cluster_end)) };
        if zero_end > old && (below > old || top.is_allocated(old).await?) {
            let mut at = old;
            while at < zero_end {
                let change = self.begin_change(op).await?;
                let Target::Qcow2(top) = &change.target else { return Ok(()) };
                at += top.zero_step(&change.request, at..zero_end, ZeroMode::KeepSpace).await?;
            }
        }
        if preallocation != Preallocation::Off {
            self.preallocate(op, old, size, preallocation).await?;
        }
        Ok(())
    }

    /// The size of what lies below the image itself.
    fn below_len(&self) -> u64 {
        match (self.layers[0].below, self.layers.get(1)) {
            (Below::Zeros, _) => 0,
            (_, Some(layer)) => layer.virtual_size(),
            // It is not known, so it may be anything.
            (_, None) => u64::MAX,
        }
    }

    async fn shrink(&self, size: u64) -> Result<()> {
        let Some(top) = self.top() else { return Ok(()) };
        top.may_resize()?;
        let _alone = top.writer.turnstile.alone().await;
        top.prepare_bitmaps_for_size(size).await?;
        top.writer.changed.mark(&(size..self.virtual_size()));
        top.cut(size).await?;
        top.commit().await?;
        top.update_header(|header| header.size = size).await?;
        // Before anything is awaited, as above.
        top.layer.size.store(size, Ordering::Release);
        top.barrier().await?;
        // Now, so that they forget what was there, whatever size the disk gets next.
        top.end_bitmap_use().await?;
        top.trim_file().await
    }

    /// Maps every cluster between `start` and `end` that is not mapped.
    async fn preallocate(
        &self,
        op: &Chore<'_>,
        start: u64,
        end: u64,
        mode: Preallocation,
    ) -> Result<()> {
        let mut at = start;
        while at < end {
            let change = self.begin_change(op).await?;
            let Target::Qcow2(top) = &change.target else { return Ok(()) };
            at = top.preallocate_step(&change.request, at, end, mode).await?;
        }
        Ok(())
    }
}

/// A disk that is becoming longer: those who come by the door see the old size as long as not everything behind it is zeros.
/// Dropping it gives the disk its old size.
struct Growth<'a, S> {
    top: Top<'a, S>,
    old: u64,
    ended: bool,
}

impl<'a, S> Growth<'a, S> {
    fn begin(top: Top<'a, S>, old: u64, size: u64) -> Self {
        top.layer.size_while_growing.store(old, Ordering::Release);
        top.layer.size.store(size, Ordering::Release);
        Self { top, old, ended: false }
    }

    fn end(mut self) {
        self.ended = true;
    }
}

impl<S> Drop for Growth<'_, S> {
    fn drop(&mut self) {
        if !self.ended {
            self.top.layer.size.store(self.old, Ordering::Release);
        }
        self.top.layer.size_while_growing.store(NOT_GROWING, Ordering::Release);
    }
}

impl<S: Storage> RawLayer<S> {
    async fn resize(&self, size: u64, preallocation: Preallocation) -> Result<()> {
        let old = self.len();
        let resized = self.storage.set_len(size).await;
        resized.map_err(|error| Error::storage("set length", size, 0, error))?;
        let takes_space = matches!(preallocation, Preallocation::Falloc | Preallocation::Full);
        if let (true, Some(len)) = (takes_space, size.checked_sub(old).filter(|&len| len > 0)) {
            // Cancel: the disk has its new size, and not all of the space for it.
            let zeroed = self.blocks.write_zeroes(&self.storage, old, len).await;
            zeroed.map_err(|error| Error::storage("write zeroes", old, len, error))?;
        }
        // In whole sectors, as when it was opened.
        let size = size.checked_next_multiple_of(512).unwrap_or(size);
        self.size.store(size, Ordering::Release);
        Ok(())
    }
}

impl<S: Storage> Top<'_, S> {
    /// Asks whether the format allows another size.
    pub(super) fn may_resize(&self) -> Result<()> {
        let snapshots = self.layer.snapshots.get();
        if !snapshots.is_empty() && self.layer.context.version() == Version::V2 {
            return Err(Error::InvalidArgument(
                "Can't resize a v2 image which has snapshots".into(),
            ));
        }
        Ok(())
    }

    /// Cuts off the clusters at the end of the file that are free. Nobody may be writing.
    async fn trim_file(&self) -> Result<()> {
        let end = self.used_end().await?;
        let len = end << self.layer.geometry.cluster_bits();
        let metadata = &self.layer.metadata;
        if len >= metadata.file_len() {
            return Ok(());
        }
        // Cancel: it may yet land, on what is written behind the new end.
        let landing = self.writer.settling.begin(None, File::Image, len..u64::MAX);
        let cut = metadata.storage().set_len(len).await;
        landing.end();
        // A courtesy, as a device has the length that it has. What is behind the end is zeros only if it was cut off.
        if cut.is_ok() {
            metadata.cut_to(len);
            // Cancel: zeros are written where there would be zeros.
            self.writer.allocator.lock().await.cut(end);
        }
        Ok(())
    }

    /// Makes the L1 table long enough for a disk of `size` bytes.
    async fn grow_l1(&self, size: u64) -> Result<()> {
        self.grow_l1_to(self.layer.geometry.l1_entries_for(size)).await
    }

    /// Makes the L1 table at least `needed` entries long: elsewhere, and in one write of the header. For those who are alone.
    pub(super) async fn grow_l1_to(&self, needed: u64) -> Result<()> {
        let layer = self.layer;
        if needed <= layer.l1.len() as u64 {
            return Ok(());
        }
        // Exactly what is needed, as QEMU does it when it is told a size, which keeps images alike.
        let entries = needed;
        let new_len = self.l1_len(entries)?;
        let _one = self.writer.commit.lock().await;
        // What the old table says on disk is what the new one must say.
        self.commit_locked().await?;
        let clusters = layer.geometry.clusters_for(entries * L1Entry::LEN);
        let taken = self.take_clusters(clusters, Owner::Metadata).await?;
        let host = taken.host();
        let len = usize::try_from(clusters * layer.geometry.cluster_size() / L1Entry::LEN)
            .unwrap_or(usize::MAX);
        let bytes: Vec<u8> = (0..len).flat_map(|index| layer.l1.get(index).to_be_bytes()).collect();
        self.write_metadata(host, &bytes).await?;
        self.write_all_refcounts().await?;
        self.barrier().await?;
        let old = layer.header.get();
        // OK to saturate: bounded above.
        let entries_field = u32::try_from(entries).unwrap_or(u32::MAX);
        let switched = self
            .update_header(|header| {
                header.l1_table_offset = host;
                header.l1_entries = entries_field;
            })
            .await;
        if let Err(error) = switched {
            // The header on disk may point to the new table until it is mended.
            taken.keep();
            return Err(error);
        }
        taken.keep();
        layer.l1_table.store(host.get(), Ordering::Release);
        layer.l1.grow(new_len);
        // Before anything is awaited: it becomes free by the next commit, as everything that was unmapped.
        let old_len = old.l1_table_len();
        if old_len > 0 {
            let bits = layer.geometry.cluster_bits();
            let first = old.l1_table_offset.get() >> bits;
            let clusters = first..first + layer.geometry.clusters_for(old_len);
            let epoch = self.image.requests.epoch();
            self.writer.frees.lock().add(Free { clusters, reason: FreeReason::Other, epoch });
        }
        self.barrier().await
    }

    /// Whether the cluster that holds guest offset `at` has data of its own, there or behind it.
    async fn is_allocated(&self, at: u64) -> Result<bool> {
        let cluster_size = self.layer.geometry.cluster_size();
        // With extended L2 entries its parts may be of different kinds, and what is behind `at` counts.
        let mut at = at;
        let end = at.next_multiple_of(cluster_size);
        while at < end {
            let run = self.image.layers[0].run(at, end - at).await?;
            if !matches!(run.kind, RunKind::Unallocated { .. } | RunKind::Zero { .. }) {
                return Ok(true);
            }
            at += run.len;
        }
        Ok(false)
    }

    /// Unmaps the VM state. Nobody else may be in.
    async fn cut_vm_state(&self) -> Result<()> {
        let start = self.layer.vm_state_offset();
        let first = start / self.layer.geometry.l2_coverage();
        for index in first..self.layer.l1.len() as u64 {
            if self.l1_entry(index)?.l2_table().is_some() {
                return self.cut(start).await;
            }
        }
        Ok(())
    }

    /// Unmaps everything behind `size`. Nobody else may be in.
    async fn cut(&self, size: u64) -> Result<()> {
        let layer = self.layer;
        let geometry = layer.geometry;
        let (cluster_size, coverage) = (geometry.cluster_size(), geometry.l2_coverage());
        let keep_end = size.next_multiple_of(cluster_size);
        let first = size.div_ceil(cluster_size) * cluster_size / coverage;
        for index in first..layer.l1.len() as u64 {
            if self.l1_entry(index)?.l2_table().is_none() {
                continue;
            }
            let table_start = index * coverage;
            let mut at = keep_end.max(table_start);
            let is_whole = at == table_start;
            let end = table_start.saturating_add(coverage);
            while at < end {
                let slice_end = self.slice_end(at).min(end);
                self.unmap(at, slice_end).await?;
                at = slice_end;
            }
            if is_whole && let Some(table) = self.l1_entry(index)?.l2_table() {
                self.set_l1(index, L1Entry::default());
                self.free(table, cluster_size, FreeReason::Other);
            }
            if self.needs_room() {
                self.make_room().await?;
            }
        }
        Ok(())
    }

    /// Makes the entries from guest offset `start` to `end`, in one slice, unallocated, and gives up what they refer to.
    pub(super) async fn unmap(&self, start: u64, end: u64) -> Result<()> {
        let bits = self.layer.geometry.cluster_bits();
        let clusters = start >> bits..end >> bits;
        // Nobody else is in, but for a commit that punches holes where nothing is mapped.
        let _claim = self.writer.claims.claim(clusters.start..=clusters.end - 1).await;
        let place = self.own_place(start).await?;
        let old = place.entries(self, clusters.end - clusters.start);
        if old.iter().all(|entry| *entry == L2Entry::default()) {
            return Ok(());
        }
        place.store(self, &vec![L2Entry::default(); old.len()]);
        for entry in &old {
            self.free_entry(entry, FreeReason::Request);
        }
        self.free_in_data_file(clusters);
        Ok(())
    }

    /// Maps clusters from guest offset `at` on, at most up to `end`, that have none, and returns how far it came.
    async fn preallocate_step(
        &self,
        request: &Request<'_>,
        at: u64,
        end: u64,
        mode: Preallocation,
    ) -> Result<u64> {
        let geometry = self.layer.geometry;
        let (bits, cluster_size) = (geometry.cluster_bits(), geometry.cluster_size());
        let start = geometry.align_down(at);
        let slice_end = self.slice_end(at).min(end.next_multiple_of(cluster_size));
        let (first, last) = (start >> bits, (slice_end - 1) >> bits);
        let _claim = self.writer.claims.claim(first..=last).await;
        let place = self.own_place(start).await?;
        let entries = place.entries(self, last - first + 1);
        let free = entries.iter().take_while(|entry| entry.descriptor() == 0).count();
        if free == 0 {
            let mapped = entries.iter().take_while(|entry| entry.descriptor() != 0).count();
            return Ok(start + mapped as u64 * cluster_size);
        }
        let len = free as u64 * cluster_size;
        let (base, taken) = if self.layer.context.data_file() {
            (HostOffset::new(start), None)
        } else {
            let taken = self.take_clusters(free as u64, Owner::Data).await?;
            (taken.host(), Some(taken))
        };
        let is_fresh = taken.as_ref().is_some_and(|taken| taken.is_fresh);
        // What is in the file is no zeros for a disk that is encrypted: its entries must say it, or zeros are encrypted.
        let is_encrypted = self.layer.crypt != CryptMethod::None;
        let says_zero = is_encrypted
            && mode != Preallocation::Full
            && self.layer.context.version() != Version::V2;
        let mode = if is_encrypted && !says_zero { Preallocation::Full } else { mode };
        match mode {
            Preallocation::Full => {
                let zeros = vec![0; 1 << 20];
                let mut done = 0;
                while done < len {
                    let part = &zeros[..usize::try_from((len - done).min(1 << 20)).unwrap_or(0)];
                    let host = HostOffset::new(base.get() + done);
                    self.put_data(request, part, host, start + done).await?;
                    done += part.len() as u64;
                }
            }
            _ if is_fresh && mode == Preallocation::Metadata => {
                // The file must reach so far that the clusters are there.
                let last = HostOffset::new(base.get() + len - 1);
                self.put(request, &[0], last).await?;
            }
            _ => self.put_zeros(request, base, len).await?,
        }
        let entry = |index: u64| {
            let host = HostOffset::new(base.get() + index * cluster_size);
            // Subclusters stay as they were: the space is there, and is not read.
            let kind = match says_zero && !geometry.extended_l2() {
                true => ClusterKind::Zero { host: Some(host) },
                false => ClusterKind::Data { host },
            };
            let descriptor = L2Entry::new(kind, true, geometry).descriptor();
            let index = usize::try_from(index).unwrap_or(usize::MAX);
            L2Entry::from_raw(descriptor, entries[index].bitmap())
        };
        let new: Vec<L2Entry> = (0..free as u64).map(entry).collect();
        // From here on nothing is awaited and nothing fails.
        place.store(self, &new);
        if let Some(taken) = taken {
            taken.keep();
        }
        Ok(start + len)
    }
}
