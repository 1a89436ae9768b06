//! L2 tables of an image that is open for writing: each is made, or copied from one that a snapshot shares, when it is first
//! written to.

use crate::error::{Corrupt, CorruptKind, Result, Structure};
use crate::format::{HostOffset, L1Entry};
use crate::storage::Storage;
use crate::sync::Ordering;

use super::free::{Free, FreeReason};
use super::mutant::{self, Mutant};
use super::ownership::Owner;
use super::writer::Top;

impl<S: Storage> Top<'_, S> {
    /// The L2 table of L1 entry `index`, which nothing else refers to: whoever holds a claim in it may change its own
    /// entries.
    ///
    /// # Errors
    /// What taking a cluster meets, and the storage's. The L1 entry is what it was.
    ///
    /// # Cancel safety
    /// The L1 entry is what it was, or points to the new table.
    pub(super) async fn own_l2_table(&self, index: u64) -> Result<HostOffset> {
        if let Some(table) = self.owned_l2_table(index)? {
            return Ok(table);
        }
        let _one = self.writer.tables.lock().await;
        if let Some(table) = self.owned_l2_table(index)? {
            return Ok(table);
        }
        let geometry = self.layer.geometry;
        let at = HostOffset::new(self.layer.l1_offset().get() + index * L1Entry::LEN);
        self.may_change(Structure::L1Table, at)?;
        let shared = self.l1_entry(index)?.l2_table();
        let taken = self.take_clusters(1, Owner::Metadata).await?;
        let host = taken.host();
        if self.is_lazy() {
            // The references of data may stay behind; where they do, a repair has fewer tables to guess at. As QEMU.
            self.write_all_refcounts().await?;
        }
        match shared {
            None => self.zero_metadata(host, geometry.cluster_size()).await?,
            // Nobody changes a table that is shared, so the disk has what the cache has.
            Some(shared) => {
                let bytes = self
                    .layer
                    .metadata
                    .load(Structure::L2Table, shared.get(), geometry.cluster_size())
                    .await?;
                self.write_metadata(host, &bytes).await?;
            }
        }
        // From here on nothing is awaited and nothing fails.
        self.set_l1(index, L1Entry::new(host, true));
        taken.keep();
        if let Some(shared) = shared {
            self.free(shared, geometry.cluster_size(), FreeReason::Other);
        }
        Ok(host)
    }

    /// Asks whether metadata at `host` may be changed in its place.
    ///
    /// # Errors
    /// [`Error::Corrupt`](crate::Error::Corrupt) if its bytes are read as something else too.
    pub(super) fn may_change(&self, structure: Structure, host: HostOffset) -> Result<()> {
        let cluster = host.get() >> self.layer.geometry.cluster_bits();
        if !self.writer.ownership.lock().is_contested(cluster) {
            return Ok(());
        }
        let reason = format!("cluster {cluster} is used for something else too");
        let kind = CorruptKind::WriteUnsafe { reason };
        Err(Corrupt::new(kind, structure).at(host.get()).into())
    }

    /// Stores L1 entry `index`, to be written by the next commit.
    pub(super) fn set_l1(&self, index: u64, entry: L1Entry) {
        // OK to saturate: there is no such entry, which the table says.
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        self.layer.l1.set(index, entry.raw());
        self.writer.l1_dirty.lock().insert(index);
    }

    /// L1 entry `index`.
    pub(super) fn l1_entry(&self, index: u64) -> Result<L1Entry> {
        let raw = self.layer.l1.get(usize::try_from(index).unwrap_or(usize::MAX));
        L1Entry::parse(raw, index, self.layer.l1_offset(), &self.layer.geometry)
    }

    fn owned_l2_table(&self, index: u64) -> Result<Option<HostOffset>> {
        let entry = self.l1_entry(index)?;
        let cluster = |table: HostOffset| table.get() >> self.layer.geometry.cluster_bits();
        let contested =
            |table: &HostOffset| self.writer.ownership.lock().is_contested(cluster(*table));
        Ok(entry.l2_table().filter(|table| entry.copied() && !contested(table)))
    }

    /// Notes that a reference to `len` bytes from `host` on has gone from memory just now.
    pub(super) fn free(&self, host: HostOffset, len: u64, reason: FreeReason) {
        if len == 0 {
            return;
        }
        let bits = self.layer.geometry.cluster_bits();
        let clusters = host.get() >> bits..(host.get() + len).div_ceil(1 << bits);
        let mut epoch = self.image.requests.epoch();
        if mutant::is(Mutant::ReuseUnderRequests) {
            epoch = 0;
        }
        let mut frees = self.writer.frees.lock();
        frees.add(Free { clusters, reason, epoch });
        if frees.are_many() {
            self.writer.many_frees.store(1, Ordering::Release);
        }
        if mutant::is(Mutant::ReuseBeforeUnmapping) {
            let sealed = frees.seal();
            frees.make_durable(sealed);
        }
    }
}
