//! The order of durability: what a power loss may leave is leaked clusters, never a wrong mapping.
//!
//! A commit makes all changes durable that were made before it began:
//!
//! 1. It copies the dirty L2 slices and L1 entries. What they map was written before they said so.
//! 2. It copies and writes the dirty refcount blocks: they hold the references of what was copied.
//! 3. It flushes: data, refcounts, and the zeros of new tables are durable.
//! 4. It writes the refcount table's dirty entries, whose blocks are durable now, and flushes if there were any.
//! 5. It writes the copies of L2 slices and L1 entries, and flushes.
//! 6. Clusters that were unmapped before are unmapped durably now. Those that no request can still use are punched, if their
//!    space is to be given up, and lose their references.
//!
//! Refcounts of unmapped clusters go down in step 6 only, so that refcount blocks may be written at any time: they never
//! say too little.
//!
//! Source: the rules that QEMU keeps with the dependencies of its caches, block/qcow2-cache.c.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::format::HostOffset;
use crate::storage::{For, Purpose, Storage};
use crate::sync::Ordering;

use super::Image;
use super::free::{Free, FreeReason};
use super::layer::{DataFile, RawLayer, RunKind};
use super::mutant::{self, Mutant};
use super::requests::Chore;
use super::settling::File;
use super::writer::{Target, Top, Writer};

/// How much is copied at a time, in bytes.
const BATCH_LEN_BYTES: u64 = 4 << 20;

/// How many clusters lose their references under one lock of the allocator.
pub(super) const CLUSTERS_PER_TURN: u64 = 1024;

/// Entries of the L1 table in a sector: what is written at a time, so that a torn write is a sector that is old or new.
const L1_ENTRIES_PER_SECTOR: usize = 64;

impl<S: Storage> Image<S> {
    /// Makes durable every write, zeroing, discard and change of size that completed before this call.
    ///
    /// # Errors
    /// [`Error::Storage`] if the storage fails; what was not written is written by the next flush. If the storage's own
    /// flush fails, what became of what it was to make durable cannot be known: from then on every change and every flush
    /// is refused with [`Error::Latched`], until the image is opened again. [`Error::Closed`].
    ///
    /// # Cancel safety
    /// A dropped flush promises nothing, and loses nothing: the next one does its work.
    pub async fn flush(&self) -> Result<()> {
        let op = self.requests.enter_chore().await?;
        self.flush_by(&op).await
    }

    /// As [`Self::flush`], for an operation that is under way.
    pub(super) async fn flush_by(&self, _op: &Chore<'_>) -> Result<()> {
        match self.target() {
            Ok((_, Target::Qcow2(top))) => top.commit().await,
            Ok((writer, Target::Raw(layer))) => writer.flush_raw(layer).await,
            // An image that is read-only has nothing to write.
            Err(_) => Ok(()),
        }
    }
}

impl Writer {
    /// Flushes a raw image. As [`Top::barrier`], one at a time, and a failed one is the last.
    ///
    /// # Errors
    /// [`Error::Storage`], and the image is latched; [`Error::Latched`] if it was.
    pub(super) async fn flush_raw<S: Storage>(&self, layer: &RawLayer<S>) -> Result<()> {
        let _one = self.flushing.lock().await;
        self.must_not_be_latched()?;
        flush(&layer.storage).await.inspect_err(|error| self.latch(error.to_string()))
    }
}

/// Flushes a storage.
pub(super) async fn flush<S: Storage>(storage: &S) -> Result<()> {
    storage.flush().await.map_err(|error| Error::storage("flush", 0, 0, error))
}

impl<S: Storage> Top<'_, S> {
    /// Makes all changes durable, and what was unmapped free, as far as nobody uses it.
    ///
    /// # Cancel safety
    /// What was not written is dirty again.
    pub(super) async fn commit(&self) -> Result<()> {
        let _one = self.writer.commit.lock().await;
        self.writer.must_not_be_latched()?;
        self.commit_locked().await
    }

    /// Makes room in the caches and among what waits to be free, if somebody else did not meanwhile.
    pub(super) async fn make_room(&self) -> Result<()> {
        self.commit().await
    }

    /// As [`Self::commit`], for those who have its lock.
    pub(super) async fn commit_locked(&self) -> Result<()> {
        self.settle().await?;
        self.mend_header().await?;
        self.writer.many_frees.store(0, Ordering::Release);
        let sealed = self.writer.frees.lock().seal();
        self.write_back().await?;
        self.barrier_unless(Mutant::FlushWithoutFlush).await?;
        self.writer.frees.lock().make_durable(sealed);
        // What cannot be released now is released another time: all that was asked for is durable.
        let _ = self.release_due().await;
        Ok(())
    }

    /// Waits until no write that was dropped before can land any more.
    pub(super) async fn settle(&self) -> Result<()> {
        if self.writer.settling.is_unsettled() {
            self.barrier().await?;
        }
        Ok(())
    }

    /// Makes durable what the storages have completed, and settles what was dropped before.
    ///
    /// One at a time: a flush that fails may lose what another one, begun meanwhile, would have made durable, and that one
    /// succeeds all the same.
    ///
    /// # Errors
    /// [`Error::Storage`], and the image is latched; [`Error::Latched`] if it was.
    pub(super) async fn barrier(&self) -> Result<()> {
        let _one = self.writer.flushing.lock().await;
        self.writer.must_not_be_latched()?;
        let now = self.writer.settling.now();
        let mut flushed = flush(self.layer.metadata.storage()).await;
        if let (Ok(()), DataFile::Open(data)) = (&flushed, &self.layer.data) {
            flushed = flush(data).await;
        }
        match flushed {
            Ok(()) => {
                self.writer.settling.settle(now, &self.image.requests);
                Ok(())
            }
            Err(error) => {
                // What was written since the last flush may be lost, and no later flush would say so: the storage's next
                // one may succeed all the same. QEMU's file-posix.c does the same, with `page_cache_inconsistent`.
                if !mutant::is(Mutant::NoLatch) {
                    self.writer.latch(error.to_string());
                }
                Err(error)
            }
        }
    }

    async fn barrier_unless(&self, mutant: Mutant) -> Result<()> {
        if mutant::is(mutant) { Ok(()) } else { self.barrier().await }
    }

    /// Whether there are changes that the disk does not have for certain.
    fn has_unwritten(&self) -> bool {
        self.layer.l2_cache.unwritten_bytes() > 0
            || self.layer.refcount_cache.unwritten_bytes() > 0
            || self.writer.refcount_table.lock().is_dirty()
            || !self.writer.l1_dirty.lock().is_empty()
            || !self.writer.frees.lock().is_empty()
    }

    /// Whether nothing is left to write or to release.
    pub(super) fn is_written(&self) -> bool {
        !self.has_unwritten()
    }

    /// Whether no change was ever made.
    pub(super) fn is_untouched(&self) -> bool {
        !self.writer.is_prepared()
    }

    /// Whether so many refcounts are dirty that some must be written, though they may stay behind.
    pub(super) fn refcounts_need_room(&self) -> bool {
        let cache = &self.layer.refcount_cache;
        cache.unwritten_bytes() > cache.budget_bytes() / 2
    }

    /// Writes all that is dirty, in order; the flush after the last write is the caller's.
    async fn write_back(&self) -> Result<()> {
        let layer = self.layer;
        let mut from = 0;
        loop {
            let l1 = L1WriteBack::begin(self);
            let l2 = layer.l2_cache.begin_write_back(from, BATCH_LEN_BYTES);
            let next = l2.end();
            if mutant::is(Mutant::L1BeforeL2) {
                l1.write().await?;
                self.barrier().await?;
                self.write_refcounts().await?;
                self.barrier().await?;
                self.write_l2(l2).await?;
            } else {
                let maps = !l1.entries.is_empty() || !l2.is_empty();
                if !mutant::is(Mutant::MappingBeforeRefcount) {
                    self.write_refcounts().await?;
                }
                if maps {
                    self.barrier_unless(Mutant::MappingBeforeData).await?;
                }
                self.write_l2(l2).await?;
                l1.write().await?;
                if mutant::is(Mutant::MappingBeforeRefcount) {
                    self.barrier().await?;
                    self.write_refcounts().await?;
                }
            }
            if next == u64::MAX {
                return Ok(());
            }
            from = next;
        }
    }

    /// Writes all that is dirty, refcounts that may stay behind too, and releases nothing. For those who have the commit's lock
    /// and are alone.
    pub(super) async fn write_all_dirty(&self) -> Result<()> {
        self.write_back().await?;
        self.write_all_refcounts().await?;
        self.barrier().await
    }

    /// Writes dirty refcount blocks, then the entries of the refcount table that point to new ones. While the dirty bit is
    /// set, refcounts may stay behind.
    async fn write_refcounts(&self) -> Result<()> {
        if self.is_lazy() && !self.refcounts_need_room() {
            return Ok(());
        }
        self.write_all_refcounts().await
    }

    /// Does what [`Self::write_refcounts`] does, lazy or not.
    pub(super) async fn write_all_refcounts(&self) -> Result<()> {
        let _io = self.writer.refcount_table_io.lock().await;
        let table = TableWriteBack::begin(self);
        if mutant::is(Mutant::RefcountTableBeforeBlock) {
            table.write().await?;
            self.barrier().await?;
            return self.write_blocks().await;
        }
        let has_new = !table.entries.is_empty();
        self.write_blocks().await?;
        if has_new {
            self.barrier().await?;
            table.write().await?;
        }
        Ok(())
    }

    async fn write_blocks(&self) -> Result<()> {
        let cache = &self.layer.refcount_cache;
        let mut from = 0;
        while from != u64::MAX {
            let blocks = cache.begin_write_back(from, BATCH_LEN_BYTES);
            from = blocks.end();
            if !blocks.is_empty() {
                let landing = self.writer.settling.begin(None, File::Image, 0..u64::MAX);
                let written = {
                    let metadata = &self.layer.metadata;
                    let storage = For(metadata.storage(), Purpose::Refcounts);
                    blocks.write(&storage, metadata.blocks()).await
                };
                landing.end();
                written.map_err(|error| Error::storage("write", 0, cache.entry_bytes(), error))?;
            }
        }
        Ok(())
    }

    async fn write_l2(&self, l2: crate::cache::WriteBack<'_>) -> Result<()> {
        if l2.is_empty() {
            return Ok(());
        }
        let landing = self.writer.settling.begin(None, File::Image, 0..u64::MAX);
        let len = l2.len_bytes();
        let metadata = &self.layer.metadata;
        let storage = For(metadata.storage(), Purpose::Mapping);
        let written = l2.write(&storage, metadata.blocks()).await;
        landing.end();
        written.map_err(|error| Error::storage("write", 0, len, error))
    }

    /// Takes the references of what was unmapped durably and is used by nobody any more.
    pub(super) async fn release_due(&self) -> Result<()> {
        let epoch = self.image.requests.advance();
        let mut due = Due { top: *self, frees: self.writer.frees.lock().take_due(epoch) };
        while let Some(free) = due.frees.last().cloned() {
            let end = free.clusters.end.min(free.clusters.start + CLUSTERS_PER_TURN);
            let part = free.clusters.start..end;
            match free.reason {
                FreeReason::DataFile => self.punch_data_file(&part).await,
                reason => self.release(part, reason).await?,
            }
            due.done(end);
        }
        self.release_doomed(epoch).await
    }

    /// Takes a reference from each of the clusters, of which there are not too many, and gives up the space of those that
    /// are free then, if that is asked for.
    ///
    /// # Cancel safety
    /// All of the references are taken, or none.
    pub(super) async fn release(&self, part: Range<u64>, reason: FreeReason) -> Result<()> {
        let options = self.options();
        let punches = match reason {
            FreeReason::Request => options.pass_discard_request,
            FreeReason::Snapshot => options.pass_discard_snapshot,
            FreeReason::Other => options.pass_discard_other,
            FreeReason::Unused | FreeReason::DataFile => false,
        };
        let punches_late = mutant::is(Mutant::ReuseBeforePunch);
        if punches && !punches_late {
            for unreferenced in self.last_references(part.clone()).await.unwrap_or_default() {
                self.punch(&unreferenced).await;
            }
        }
        // Nothing is awaited from here to the end, but by the mutant.
        for free in self.drop_references(part).await? {
            if punches && punches_late {
                self.punch(&free).await;
            }
        }
        Ok(())
    }

    /// Gives up the space in the data file of those guest clusters that still have none. That it can is a courtesy: where
    /// something else goes on, or fails, the data file keeps its space.
    async fn punch_data_file(&self, clusters: &Range<u64>) {
        let Ok((file, storage, blocks)) = self.data_target() else { return };
        // Nobody maps them again meanwhile.
        let Some(_claim) = self.writer.claims.try_claim(clusters.start..=clusters.end - 1) else {
            return;
        };
        let bits = self.layer.geometry.cluster_bits();
        let end = self.layer.virtual_size().min(clusters.end << bits);
        let mut at = clusters.start << bits;
        while at < end {
            let Ok(run) = self.image.layers[0].run(at, end - at).await else { return };
            let unmapped = matches!(
                run.kind,
                RunKind::Zero { host: None } | RunKind::Unallocated { host: None }
            );
            // They may have been mapped again since, durably, and unmapped in memory alone: then what is there is what a
            // power loss leaves, and the later unmapping punches.
            let guest = at >> bits..(at + run.len).div_ceil(1 << bits);
            if unmapped && !self.writer.frees.lock().unmaps(&guest) {
                let landing = self.writer.settling.begin(None, file, at..at + run.len);
                let _ = blocks.discard(storage, at, run.len).await;
                landing.end();
            }
            at += run.len;
        }
    }

    /// Gives up the space of clusters that nobody needs. That they can is a courtesy: if the storage refuses, they keep it.
    async fn punch(&self, clusters: &Range<u64>) {
        let bits = self.layer.geometry.cluster_bits();
        let (offset, len) = (clusters.start << bits, (clusters.end - clusters.start) << bits);
        let range = offset..offset.saturating_add(len);
        let landing = self.writer.settling.begin(None, File::Image, range);
        let metadata = &self.layer.metadata;
        let _ = metadata.blocks().discard(metadata.storage(), offset, len).await;
        landing.end();
    }

    /// Writes zeros over metadata that nothing refers to yet, and forgets what the caches knew of its place.
    pub(super) async fn zero_metadata(&self, host: HostOffset, len: u64) -> Result<()> {
        self.forget(host, len);
        let range = host.get()..host.get().saturating_add(len);
        let landing = self.writer.settling.begin(None, File::Image, range.clone());
        let metadata = &self.layer.metadata;
        let written = metadata.blocks().write_zeroes(metadata.storage(), host.get(), len).await;
        landing.end();
        written.map_err(|error| Error::storage("write zeroes", host.get(), len, error))?;
        self.layer.metadata.grow_to(range.end);
        Ok(())
    }

    /// Writes metadata that nothing refers to yet, and forgets what the caches knew of its place.
    pub(super) async fn write_metadata(&self, host: HostOffset, bytes: &[u8]) -> Result<()> {
        let len = bytes.len() as u64;
        self.forget(host, len);
        self.overwrite_metadata(host, bytes).await?;
        self.layer.metadata.grow_to(host.get().saturating_add(len));
        Ok(())
    }

    /// Writes metadata in its place.
    pub(super) async fn overwrite_metadata(&self, host: HostOffset, bytes: &[u8]) -> Result<()> {
        let len = bytes.len() as u64;
        let range = host.get()..host.get().saturating_add(len);
        let landing = self.writer.settling.begin(None, File::Image, range);
        let metadata = &self.layer.metadata;
        let written = metadata.blocks().write(metadata.storage(), bytes, host.get()).await;
        landing.end();
        written.map_err(|error| Error::storage("write", host.get(), len, error))
    }

    fn forget(&self, host: HostOffset, len: u64) {
        let start = HostOffset::new(self.layer.geometry.align_down(host.get()));
        let len = len.next_multiple_of(self.layer.geometry.cluster_size());
        self.layer.l2_cache.forget(start, len);
        self.layer.refcount_cache.forget(start, len);
    }
}

/// What is being released; what is left when it is dropped waits on.
struct Due<'a, S> {
    top: Top<'a, S>,
    frees: Vec<Free>,
}

impl<S> Due<'_, S> {
    /// The last one is released up to cluster `end`.
    fn done(&mut self, end: u64) {
        match self.frees.last_mut() {
            Some(last) if end < last.clusters.end => last.clusters.start = end,
            _ => drop(self.frees.pop()),
        }
    }
}

impl<S> Drop for Due<'_, S> {
    fn drop(&mut self) {
        let frees = std::mem::take(&mut self.frees);
        if !frees.is_empty() {
            self.top.writer.frees.lock().give_back(frees);
        }
    }
}

/// Entries of the L1 table on their way to the disk, as they were at one moment.
struct L1WriteBack<'a, S> {
    top: Top<'a, S>,
    /// By sectors of the table.
    entries: Vec<(usize, Vec<u64>)>,
}

impl<'a, S: Storage> L1WriteBack<'a, S> {
    fn begin(top: &Top<'a, S>) -> Self {
        let dirty = std::mem::take(&mut *top.writer.l1_dirty.lock());
        let l1 = &top.layer.l1;
        let mut entries: Vec<(usize, Vec<u64>)> = Vec::new();
        for index in dirty {
            let first = index / L1_ENTRIES_PER_SECTOR * L1_ENTRIES_PER_SECTOR;
            if entries.last().is_none_or(|(last, _)| *last != first) {
                let end = l1.len().min(first + L1_ENTRIES_PER_SECTOR);
                entries.push((first, (first..end).map(|index| l1.get(index)).collect()));
            }
        }
        Self { top: *top, entries }
    }

    async fn write(mut self) -> Result<()> {
        while let Some((first, entries)) = self.entries.last() {
            let bytes: Vec<u8> = entries.iter().flat_map(|entry| entry.to_be_bytes()).collect();
            let at = self.top.layer.l1_offset().get() + *first as u64 * 8;
            self.top.overwrite_metadata(HostOffset::new(at), &bytes).await?;
            self.entries.pop();
        }
        Ok(())
    }
}

impl<S> Drop for L1WriteBack<'_, S> {
    fn drop(&mut self) {
        if !self.entries.is_empty() && !mutant::is(Mutant::CleanAfterFailure) {
            let first = self.entries.iter().map(|(first, _)| *first);
            self.top.writer.l1_dirty.lock().extend(first);
        }
    }
}

/// Entries of the refcount table on their way to the disk.
struct TableWriteBack<'a, S> {
    top: Top<'a, S>,
    at: HostOffset,
    entries: Vec<(usize, u64)>,
}

impl<'a, S: Storage> TableWriteBack<'a, S> {
    fn begin(top: &Top<'a, S>) -> Self {
        let mut table = top.writer.refcount_table.lock();
        Self { top: *top, at: table.offset(), entries: table.take_dirty() }
    }

    async fn write(mut self) -> Result<()> {
        while let Some((index, entry)) = self.entries.last() {
            let at = self.at.get() + *index as u64 * 8;
            self.top.overwrite_metadata(HostOffset::new(at), &entry.to_be_bytes()).await?;
            self.entries.pop();
        }
        Ok(())
    }
}

impl<S> Drop for TableWriteBack<'_, S> {
    fn drop(&mut self) {
        if !self.entries.is_empty() && !mutant::is(Mutant::CleanAfterFailure) {
            self.top.writer.refcount_table.lock().give_back(&self.entries);
        }
    }
}
