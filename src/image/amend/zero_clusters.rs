//! Clusters that read as zeros by their entry become what version 2 knows: nothing, where nothing is below, or clusters
//! of zeros.
//!
//! No byte of any disk changes, so that it may end anywhere. Tables of snapshots are changed in their place as well: what
//! several L1 tables share has as many references as they are.
//!
//! Source: QEMU, block/qcow2-cluster.c, `qcow2_expand_zero_clusters`. There a cluster that is kept for zeros is overwritten
//! although a snapshot may have data in it.

use crate::error::{Result, Structure};
use crate::format::{ClusterKind, CryptMethod, HostOffset, L1Entry, L2Entry};
use crate::storage::Storage;

use super::super::alloc::Taken;
use super::super::free::FreeReason;
use super::super::layer::Below;
use super::super::ownership::Owner;
use super::super::requests::Request;
use super::super::writer::Top;

/// What becomes of an entry.
enum Becomes {
    /// Nothing: what lies below are zeros.
    Unallocated,
    /// A cluster of zeros, which it has already.
    Own(HostOffset),
    /// A cluster of zeros, which must be taken.
    New,
}

impl<'a, S: Storage> Top<'a, S> {
    /// Leaves no zero cluster in any table. Nobody else makes requests.
    ///
    /// # Cancel safety
    /// Some are left.
    pub(super) async fn expand_zero_clusters(
        &self,
        progress: &mut impl FnMut(u64, u64),
    ) -> Result<()> {
        self.commit().await?;
        let l1 = &self.layer.l1;
        let active: Vec<L1Entry> =
            (0..l1.len()).map(|index| L1Entry::from_raw(l1.get(index))).collect();
        let snapshots = self.layer.snapshots.get();
        let inactive: u64 = snapshots.iter().map(|it| u64::from(it.l1_entries)).sum();
        let total = active.len() as u64 + inactive;
        let mut done = 0;
        let request = self.image.requests.enter().await?;
        self.expand_in(&request, &active, &mut done, total, progress).await?;
        for (index, snapshot) in (0..).zip(snapshots.iter()) {
            let table = self.layer.header.get().snapshot_table_offset;
            snapshot.validate_l1_table(index, table, &self.layer.geometry)?;
            let l1 = self.load_l1(snapshot).await?;
            self.expand_in(&request, &l1, &mut done, total, progress).await?;
        }
        Ok(())
    }

    async fn expand_in(
        &self,
        request: &Request<'_>,
        l1: &[L1Entry],
        done: &mut u64,
        total: u64,
        progress: &mut impl FnMut(u64, u64),
    ) -> Result<()> {
        // Version 2 has entries of one word.
        let geometry = self.layer.geometry;
        let slice_coverage = self.layer.l2_cache.entry_bytes() / 8 * geometry.cluster_size();
        for (index, entry) in (0..).zip(l1) {
            if let Some(table) = entry.l2_table() {
                self.may_change(Structure::L2Table, table)?;
                let references = self.refcount(table).await?;
                let mut guest = geometry.l2_coverage().saturating_mul(index);
                for slice in self.slices_of(table) {
                    self.expand_slice(request, slice, guest, references).await?;
                    guest = guest.saturating_add(slice_coverage);
                }
                if self.needs_room() {
                    self.make_room().await?;
                }
            }
            *done += 1;
            progress(*done, total);
        }
        Ok(())
    }

    /// Changes the entries of a slice of a table that has so many references, from guest offset `start` on.
    async fn expand_slice(
        &self,
        request: &Request<'_>,
        slice: HostOffset,
        start: u64,
        references: u64,
    ) -> Result<()> {
        let (layer, geometry) = (self.layer, self.layer.geometry);
        let cluster_size = geometry.cluster_size();
        let cache = &layer.l2_cache;
        let pinned = layer.metadata.load_slice(cache, Structure::L2Table, slice).await?;
        let is_bare = self.image.layers[0].below == Below::Zeros;
        let mut changed: Vec<(usize, Becomes)> = Vec::new();
        let mut gone: Vec<HostOffset> = Vec::new();
        for word in 0..pinned.words() {
            let entry = L2Entry::from_raw(pinned.word(word), 0);
            // What is wrong with an entry is said when it is used.
            let Ok(ClusterKind::Zero { host }) = entry.cluster(&layer.context) else { continue };
            let becomes = match host {
                // Whatever else refers to the cluster may have data in it.
                Some(host) if self.refcount(host).await? == references => Becomes::Own(host),
                Some(host) => {
                    gone.push(host);
                    if is_bare { Becomes::Unallocated } else { Becomes::New }
                }
                None if is_bare => Becomes::Unallocated,
                None => Becomes::New,
            };
            changed.push((word, becomes));
        }
        if changed.is_empty() {
            return Ok(());
        }
        let guest = |word: usize| start.saturating_add((word as u64).saturating_mul(cluster_size));
        let is_new = |(word, becomes): &(usize, Becomes)| {
            matches!(becomes, Becomes::New).then(|| guest(*word))
        };
        let new: Vec<u64> = changed.iter().filter_map(is_new).collect();
        // Cancel: what was taken is given back.
        let (base, taken) = self.take_zeros(request, &new, references).await?;
        for (word, becomes) in &changed {
            if let Becomes::Own(host) = becomes {
                self.put_data_zeros(request, *host, guest(*word), cluster_size).await?;
            }
        }
        // From here on nothing is awaited and nothing fails.
        let mut next = base;
        cache.update(slice, |slice| {
            for (word, becomes) in &changed {
                let old = L2Entry::from_raw(slice.word(*word), 0);
                let entry = match becomes {
                    Becomes::Unallocated => L2Entry::default(),
                    Becomes::Own(host) => {
                        L2Entry::new(ClusterKind::Data { host: *host }, old.copied(), geometry)
                    }
                    Becomes::New => {
                        let kind = ClusterKind::Data { host: HostOffset::new(next) };
                        next += cluster_size;
                        L2Entry::new(kind, references == 1, geometry)
                    }
                };
                slice.set_word(*word, entry.descriptor());
            }
        });
        taken.into_iter().for_each(Taken::keep);
        for host in gone {
            for _ in 0..references {
                self.free(host, cluster_size, FreeReason::Other);
            }
        }
        Ok(())
    }

    /// Takes clusters of zeros side by side for what is at these guest offsets, each with so many references.
    async fn take_zeros(
        &self,
        request: &Request<'_>,
        guests: &[u64],
        references: u64,
    ) -> Result<(u64, Vec<Taken<'a>>)> {
        let (count, cluster_size) = (guests.len() as u64, self.layer.geometry.cluster_size());
        if count == 0 {
            return Ok((0, Vec::new()));
        }
        let first = self.take_clusters(count, Owner::Data).await?;
        let host = first.host();
        let start = host.get() >> self.layer.geometry.cluster_bits();
        let mut taken = vec![first];
        for _ in 1..references {
            self.add_references(start..start + count).await?;
            taken.push(self.taken(start..start + count, false));
        }
        if self.layer.crypt == CryptMethod::None {
            self.put_zeros(request, host, count * cluster_size).await?;
            return Ok((host.get(), taken));
        }
        // Each by itself: ciphers may count by where it is on the disk.
        for (index, guest) in (0..).zip(guests) {
            let at = HostOffset::new(host.get() + index * cluster_size);
            self.put_data_zeros(request, at, *guest, cluster_size).await?;
        }
        Ok((host.get(), taken))
    }
}
