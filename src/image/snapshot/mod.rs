//! Internal snapshots of an image in use: an L1 table that is kept, and an entry in the snapshot table.
//!
//! Each change shows on disk in one write of the header, which has the place of the snapshot table and that of the active L1
//! table in its first sector. What it leads to is durable before, references included; what nothing leads to any more loses
//! its references afterwards. In between refcounts and copied flags do not fit each other, in the direction that costs a copy
//! or a leaked cluster and no more: the dirty bit says so meanwhile, where there is one, so that whoever opens the image
//! after a power loss mends that.
//!
//! Source: QEMU, block/qcow2-snapshot.c, `qcow2_snapshot_create`, `qcow2_snapshot_goto`, `qcow2_snapshot_delete`,
//! `qcow2_write_snapshots`; qcow2-refcount.c, `qcow2_update_snapshot_refcount`. There L1 tables are changed in their place.

mod copied;
mod references;

use crate::error::{Error, Result, Structure, Unsupported, UnsupportedKind};
use crate::format::limits::L1_LEN_BYTES_MAX;
use crate::format::{HostOffset, L1Entry, Snapshot, SnapshotTable};
use crate::storage::Storage;
use crate::sync::Ordering;

use super::Image;
use super::alloc::Taken;
use super::free::{Doomed, FreeReason};
use super::mutant::{self, Mutant};
use super::open::select;
use super::options::SnapshotSelector;
use super::ownership::Owner;
use super::writer::Top;

/// What a snapshot that is to be taken says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct NewSnapshot {
    /// The name. It need not be unique, and at most 65535 bytes long.
    pub name: Vec<u8>,
    /// Now, in seconds since 1970: the engine has no clock.
    pub date_sec: u32,
    /// The part of a second, in nanoseconds.
    pub date_nsec: u32,
    /// How long the guest has been running, in nanoseconds.
    pub vm_clock_nsec: u64,
    /// How much VM state [`Image::write_vm_state_at`] has written that belongs to the snapshot, in bytes. The active state
    /// has none afterwards.
    pub vm_state_len: u64,
    /// Count of instructions for record and replay.
    pub icount: Option<u64>,
}

impl NewSnapshot {
    /// A snapshot of this name, taken at the beginning of 1970, without a VM state.
    #[must_use]
    pub fn new(name: impl Into<Vec<u8>>) -> Self {
        Self { name: name.into(), ..Self::default() }
    }
}

impl<S: Storage> Image<S> {
    /// Takes a snapshot of the disk as it is: of every change that has returned, and of none that comes later. Its ID is
    /// the next number. Changes wait meanwhile, reads go on.
    ///
    /// It is durable when this returns, with everything that was written before.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for images with an external data file; [`Error::LimitExceeded`] if there are too many
    /// snapshots, the name is too long, or a refcount has no room for another reference; [`Error::Corrupt`] if the image
    /// contradicts itself; else as [`Self::write_at`]. There is no snapshot then, or, if the storage failed, perhaps one.
    ///
    /// # Cancel safety
    /// There is a snapshot or none.
    pub async fn create_snapshot(&self, new: &NewSnapshot) -> Result<Snapshot> {
        self.begin_alone("no snapshots").await?.top.create_snapshot(new).await
    }

    /// Makes the disk what it was when the snapshot was taken, its size included, and the VM state as well. What it was
    /// before is lost, unless a snapshot has it. Changes wait meanwhile; reads go on, and may read the old and the new.
    ///
    /// It is durable when this returns.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::InvalidArgument`] if the disk had another size, which in version 2 an image with
    /// snapshots cannot change; else as [`Self::create_snapshot`]. The disk is what it was then.
    ///
    /// # Cancel safety
    /// The disk is what it was, or what the snapshot has.
    pub async fn apply_snapshot(&self, selector: &SnapshotSelector) -> Result<()> {
        self.begin_alone("no snapshots").await?.top.apply_snapshot(selector).await
    }

    /// Deletes a snapshot. Changes wait meanwhile, reads go on.
    ///
    /// It is durable when this returns, but for the space that it gives up.
    ///
    /// # Errors
    /// [`Error::NotFound`]; else as [`Self::create_snapshot`]. The snapshot is there then, or, if the storage failed,
    /// perhaps not.
    ///
    /// # Cancel safety
    /// The snapshot is there or gone.
    pub async fn delete_snapshot(&self, selector: &SnapshotSelector) -> Result<()> {
        self.begin_alone("no snapshots").await?.top.delete_snapshot(selector).await
    }
}

impl<'a, S: Storage> Top<'a, S> {
    async fn create_snapshot(&self, new: &NewSnapshot) -> Result<Snapshot> {
        let layer = self.layer;
        self.may_have_snapshots()?;
        let old = layer.snapshots.get();
        let mut snapshot = Snapshot {
            l1_table_offset: HostOffset::default(),
            l1_entries: u32::try_from(layer.l1.len()).unwrap_or(u32::MAX),
            id: next_id(&old).to_string().into_bytes(),
            name: new.name.clone(),
            date_sec: new.date_sec,
            date_nsec: new.date_nsec,
            vm_clock_nsec: new.vm_clock_nsec,
            vm_state_len: new.vm_state_len,
            disk_size: Some(self.image.virtual_size()),
            icount: new.icount,
            extra: vec![0; Snapshot::EXTRA_LEN],
        };
        let mut snapshots = old.to_vec();
        snapshots.push(snapshot.clone());
        // Says whether there is room for it.
        SnapshotTable::encode(&snapshots)?;

        let _one = self.writer.commit.lock().await;
        // The disk has what memory has.
        self.commit_locked().await?;
        let l1 = self.active_l1();
        self.may_raise(&l1).await?;
        self.begin_recount().await?;
        // From here on its L2 tables are copied before they are changed, as those of the snapshot must not change.
        for (index, entry) in (0..).zip(&l1).filter(|(_, entry)| entry.copied()) {
            if mutant::is(Mutant::KeepCopied) {
                break;
            }
            self.set_l1(index, entry.with_copied(false));
        }
        let (host, table) = self.store_l1(&l1).await?;
        let raised = self.raise(&l1).await?;
        if !mutant::is(Mutant::KeepCopied) {
            self.clear_copied(&raised.flagged).await?;
        }
        self.commit_references().await?;
        snapshot.l1_table_offset = host;
        // OK to index: it was pushed.
        let last = snapshots.len() - 1;
        snapshots[last] = snapshot.clone();
        self.replace_table(&snapshots).await?;
        // Before anything is awaited.
        raised.keep();
        if let Some(table) = table {
            table.keep();
        }
        self.has_right_copied();
        self.commit_locked().await?;
        self.discard_vm_state(new.vm_state_len).await?;
        self.end_recount(false).await?;
        Ok(snapshot)
    }

    async fn apply_snapshot(&self, selector: &SnapshotSelector) -> Result<()> {
        let layer = self.layer;
        self.may_have_snapshots()?;
        let snapshots = layer.snapshots.get();
        let (index, snapshot) = select(&snapshots, selector)?;
        snapshot.validate_l1_table(
            index,
            layer.header.get().snapshot_table_offset,
            &layer.geometry,
        )?;
        let old_size = layer.virtual_size();
        let size = snapshot.disk_size.unwrap_or(old_size);
        if size != old_size {
            self.may_resize()?;
            if !size.is_multiple_of(512) {
                return Err(Error::InvalidArgument(
                    "The new size must be a multiple of 512".into(),
                ));
            }
        }
        let l1 = self.load_l1(snapshot).await?;
        let entries = layer.geometry.l1_entries_for(size).max(layer.l1.len() as u64);
        let entries = self.l1_len(entries.max(l1.len() as u64))?;
        self.mark_bitmaps_for_state(size).await?;

        let _one = self.writer.commit.lock().await;
        self.commit_locked().await?;
        self.may_raise(&l1).await?;
        self.begin_recount().await?;
        let raised = self.raise(&l1).await?;
        self.clear_copied(&raised.flagged).await?;
        self.commit_references().await?;
        let mut new: Vec<L1Entry> = l1;
        new.resize(entries, L1Entry::default());
        let (host, table) = self.store_l1(&new).await?;
        self.write_all_refcounts().await?;
        self.barrier().await?;
        let old_header = layer.header.get();
        self.update_header(|header| {
            header.size = size;
            header.l1_table_offset = host;
            header.l1_entries = u32::try_from(entries).unwrap_or(u32::MAX);
        })
        .await?;

        // Nothing is awaited until all of memory says the same as the header.
        raised.keep();
        if let Some(table) = table {
            table.keep();
        }
        let old = self.active_l1();
        if size < old_size {
            layer.size.store(size, Ordering::Release);
        }
        layer.l1_table.store(host.get(), Ordering::Release);
        layer.l1.grow(entries);
        for (index, entry) in new.iter().enumerate() {
            layer.l1.set(index, entry.with_copied(false).raw());
        }
        layer.size.store(size, Ordering::Release);
        self.doom(old);
        self.free(old_header.l1_table_offset, old_header.l1_table_len(), FreeReason::Other);
        self.has_right_copied();
        self.commit_locked().await?;
        self.end_recount(false).await
    }

    async fn delete_snapshot(&self, selector: &SnapshotSelector) -> Result<()> {
        let layer = self.layer;
        let mut snapshots = layer.snapshots.get().to_vec();
        let (index, snapshot) = select(&snapshots, selector)?;
        self.may_have_snapshots()?;
        snapshot.validate_l1_table(
            index,
            layer.header.get().snapshot_table_offset,
            &layer.geometry,
        )?;
        let l1 = self.load_l1(snapshot).await?;
        let gone = snapshots.remove(usize::try_from(index).unwrap_or(usize::MAX));

        let _one = self.writer.commit.lock().await;
        self.commit_locked().await?;
        self.begin_recount().await?;
        self.replace_table(&snapshots).await?;
        // Before anything is awaited.
        self.doom(l1);
        self.free(gone.l1_table_offset, gone.l1_table_len(), FreeReason::Snapshot);
        self.commit_locked().await?;
        self.end_recount(false).await
    }

    /// Asks whether snapshots of the image can be taken and applied.
    fn may_have_snapshots(&self) -> Result<()> {
        if self.layer.context.data_file() {
            let kind = UnsupportedKind::SnapshotWithDataFile;
            return Err(Unsupported::new(kind, Structure::Header).into());
        }
        self.must_be_sound()
    }

    /// The entries of the active L1 table.
    fn active_l1(&self) -> Vec<L1Entry> {
        let l1 = &self.layer.l1;
        (0..l1.len()).map(|index| L1Entry::from_raw(l1.get(index))).collect()
    }

    /// The entries of a snapshot's L1 table.
    pub(super) async fn load_l1(&self, snapshot: &Snapshot) -> Result<Vec<L1Entry>> {
        let (offset, len) = (snapshot.l1_table_offset, snapshot.l1_table_len());
        let metadata = &self.layer.metadata;
        let bytes = metadata.load(Structure::SnapshotL1Table, offset.get(), len).await?;
        let entry = |(index, bytes): (u64, &[u8])| {
            // OK to unwrap: the chunks have eight bytes.
            #[allow(clippy::unwrap_used)]
            let raw = u64::from_be_bytes(bytes.try_into().unwrap());
            L1Entry::parse(raw, index, offset, &self.layer.geometry)
        };
        (0..).zip(bytes.chunks_exact(8)).map(entry).collect()
    }

    /// Writes an L1 table without copied flags to clusters of its own. One without entries takes none.
    async fn store_l1(&self, l1: &[L1Entry]) -> Result<(HostOffset, Option<Taken<'a>>)> {
        let entries = l1.iter().map(|entry| entry.with_copied(false).raw());
        let bytes: Vec<u8> = entries.flat_map(u64::to_be_bytes).collect();
        self.store_metadata(bytes).await
    }

    /// Writes bytes to clusters taken for them, whose rest becomes zeros.
    async fn store_metadata(&self, mut bytes: Vec<u8>) -> Result<(HostOffset, Option<Taken<'a>>)> {
        if bytes.is_empty() {
            return Ok((HostOffset::default(), None));
        }
        let geometry = self.layer.geometry;
        let clusters = geometry.clusters_for(bytes.len() as u64);
        let taken = self.take_clusters(clusters, Owner::Metadata).await?;
        let len = usize::try_from(clusters * geometry.cluster_size()).unwrap_or(usize::MAX);
        bytes.resize(len, 0);
        self.write_metadata(taken.host(), &bytes).await?;
        Ok((taken.host(), Some(taken)))
    }

    /// Writes the snapshot table elsewhere, and the header with its place. The flush after that is the caller's.
    ///
    /// # Cancel safety
    /// The old table is the one that counts, in memory and, after the next commit, on disk.
    async fn replace_table(&self, snapshots: &[Snapshot]) -> Result<()> {
        let layer = self.layer;
        let (host, taken) = self.store_metadata(SnapshotTable::encode(snapshots)?).await?;
        if !mutant::is(Mutant::SnapshotBeforeReferences) {
            self.write_all_refcounts().await?;
        }
        self.barrier().await?;
        let old_len = SnapshotTable::encode(&layer.snapshots.get())?.len() as u64;
        let old = layer.header.get().snapshot_table_offset;
        self.update_header(|header| {
            header.snapshot_count = u32::try_from(snapshots.len()).unwrap_or(u32::MAX);
            header.snapshot_table_offset = host;
        })
        .await?;
        if let Some(taken) = taken {
            taken.keep();
        }
        layer.snapshots.set(snapshots.to_vec());
        self.free(old, old_len, FreeReason::Other);
        Ok(())
    }

    /// Writes the snapshot table anew if an entry lacks what entries of version 3 say: the size of the disk.
    ///
    /// # Cancel safety
    /// As [`Self::replace_table`].
    pub(super) async fn complete_table(&self) -> Result<()> {
        let old = self.layer.snapshots.get();
        if old.iter().all(|snapshot| snapshot.disk_size.is_some()) {
            return Ok(());
        }
        let complete = |snapshot: &Snapshot| {
            let mut extra = snapshot.extra.clone();
            extra.resize(extra.len().max(Snapshot::EXTRA_LEN), 0);
            let disk_size = snapshot.disk_size.or(Some(self.layer.virtual_size()));
            Snapshot { disk_size, extra, ..snapshot.clone() }
        };
        self.replace_table(&old.iter().map(complete).collect::<Vec<_>>()).await
    }

    /// Makes new references durable, and then that the copied flags are gone.
    async fn commit_references(&self) -> Result<()> {
        if mutant::is(Mutant::SnapshotBeforeReferences) {
            return Ok(());
        }
        self.settle().await?;
        self.write_all_refcounts().await?;
        self.barrier().await?;
        self.commit_locked().await
    }

    /// The length of an L1 table of `entries`.
    ///
    /// # Errors
    /// [`Error::LimitExceeded`] if it is too long.
    pub(super) fn l1_len(&self, entries: u64) -> Result<usize> {
        if entries > L1_LEN_BYTES_MAX / L1Entry::LEN {
            return Err(Error::LimitExceeded {
                what: "L1 table bytes",
                value: entries.saturating_mul(L1Entry::LEN),
                limit: L1_LEN_BYTES_MAX,
            });
        }
        // OK to saturate: bounded above.
        Ok(usize::try_from(entries).unwrap_or(usize::MAX))
    }

    /// What an L1 table leads to that nothing leads to any more loses its references.
    fn doom(&self, tables: Vec<L1Entry>) {
        let epoch = self.image.requests.epoch();
        let (clusters, reason) = (Vec::new(), FreeReason::Snapshot);
        self.writer.frees.lock().doom(Doomed { tables, clusters, reason, epoch });
    }

    /// Says on disk that refcounts and copied flags need not fit each other, and in memory that flags may be missing.
    async fn begin_recount(&self) -> Result<()> {
        self.writer.is_recounting.store(1, Ordering::Release);
        self.set_dirty().await?;
        self.writer.copied_is_stale.store(1, Ordering::Release);
        Ok(())
    }

    /// A snapshot has everything that the active L1 table leads to: no flag is due.
    fn has_right_copied(&self) {
        self.writer.copied_is_stale.store(0, Ordering::Release);
    }

    /// Makes copied flags right again and says on disk that all is well, as soon as nothing waits that would change them; if
    /// refcounts may be late, it says so only when the image `closes`. For those who are alone, or the last ones, and have
    /// the commit's lock.
    pub(super) async fn end_recount(&self, closes: bool) -> Result<()> {
        if !self.may_end_recount() {
            return Ok(());
        }
        if self.writer.copied_is_stale.load(Ordering::Acquire) != 0 {
            self.mend_copied().await?;
        }
        if closes || !self.may_be_lazy(&self.options()) {
            self.mark_clean().await?;
        }
        self.writer.is_recounting.store(0, Ordering::Release);
        Ok(())
    }

    /// Ends a recount that had to wait for requests, if nobody else does.
    pub(super) async fn finish_recount(&self) -> Result<()> {
        if !self.may_end_recount() {
            return Ok(());
        }
        let Some(_structure) = self.writer.structure.try_lock() else { return Ok(()) };
        // Cancel: it is to be finished by the next one.
        let _alone = self.writer.turnstile.alone().await;
        let _one = self.writer.commit.lock().await;
        self.commit_locked().await?;
        self.end_recount(false).await
    }

    /// Whether what waits to lose references has nothing to do with the copied flags.
    fn may_end_recount(&self) -> bool {
        let frees = self.writer.frees.lock();
        match self.writer.copied_is_stale.load(Ordering::Acquire) {
            0 => !frees.are_trees(),
            _ => frees.is_empty(),
        }
    }

    /// Unmaps the first `len` bytes of the VM state, which a snapshot has.
    async fn discard_vm_state(&self, len: u64) -> Result<()> {
        let geometry = self.layer.geometry;
        let start = self.layer.vm_state_offset();
        let covered = (self.layer.l1.len() as u64).saturating_mul(geometry.l2_coverage());
        let end = start.saturating_add(len.next_multiple_of(geometry.cluster_size())).min(covered);
        let mut at = start;
        while at < end {
            let slice_end = self.slice_end(at).min(end);
            if self.l1_entry(at / geometry.l2_coverage())?.l2_table().is_some() {
                self.unmap(at, slice_end).await?;
            }
            at = slice_end;
            if self.needs_room() {
                self.commit_locked().await?;
            }
        }
        Ok(())
    }
}

/// The number after the greatest of the IDs.
fn next_id(snapshots: &[Snapshot]) -> u64 {
    let number = |snapshot: &Snapshot| {
        let digits = snapshot.id.iter().take_while(|byte| byte.is_ascii_digit());
        digits.fold(0_u64, |number, digit| {
            number.saturating_mul(10).saturating_add(u64::from(digit - b'0'))
        })
    };
    snapshots.iter().map(number).max().unwrap_or(0).saturating_add(1)
}
