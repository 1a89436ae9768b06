//! Zeros and discards: clusters that are told to read as zeros in the L2 table, with or without their space.
//!
//! Source: QEMU, block/qcow2-cluster.c, `zero_in_l2_slice`, `zero_l2_subclusters`, `discard_in_l2_slice`.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::format::{ClusterKind, HostOffset, L2Entry, Version};
use crate::storage::Storage;

use super::Image;
use super::free::FreeReason;
use super::layer::{Below, RawLayer};
use super::map::ExtentKind;
use super::options::ZeroMode;
use super::requests::{Chore, Request};
use super::write::zeros;
use super::writer::{Target, Top};

/// Zeros that have to be written are written so many bytes at a time.
const ZEROS_LEN_BYTES_MAX: u64 = 1 << 20;

impl<S: Storage> Image<S> {
    /// Makes `len` bytes from guest `offset` read as zeros, at any alignment. Whole clusters cost an entry of the L2 table
    /// each, and no data is written.
    ///
    /// # Errors
    /// As [`Self::write_at`].
    ///
    /// # Cancel safety
    /// As [`Self::write_at`].
    pub async fn write_zeroes_at(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<()> {
        let op = self.requests.enter_chore().await?;
        self.write_zeroes_by(&op, offset, len, mode).await
    }

    /// As [`Self::write_zeroes_at`], for an operation that is under way.
    pub(super) async fn write_zeroes_by(
        &self,
        op: &Chore<'_>,
        offset: u64,
        len: u64,
        mode: ZeroMode,
    ) -> Result<()> {
        let mut done = 0;
        loop {
            let change = self.begin_change(op).await?;
            let end = self.range_end(offset, len)?;
            if done < len {
                let todo = offset + done..end;
                change.mark(todo.clone());
                done += match &change.target {
                    Target::Qcow2(top) => top.zero_step(&change.request, todo, mode).await?,
                    Target::Raw(layer) => layer.write_zeroes(todo).await?,
                };
            }
            if done >= len {
                break;
            }
        }
        self.write_through(op).await
    }

    /// Says that the guest does not need `len` bytes from `offset` any more. Whole clusters read as zeros afterwards, and
    /// their space is given up (both after [`WriteOptions`](super::WriteOptions)); the parts of clusters at both ends
    /// stay as they are, but for a last cluster that the disk ends in. In an image of version 2 that has a backing file
    /// nothing changes, as what lies there would be seen again.
    ///
    /// # Errors
    /// As [`Self::write_at`].
    ///
    /// # Cancel safety
    /// As [`Self::write_at`].
    pub async fn discard_at(&self, offset: u64, len: u64) -> Result<()> {
        let op = self.requests.enter_chore().await?;
        let mut done = 0;
        loop {
            let change = self.begin_change(&op).await?;
            let end = self.range_end(offset, len)?;
            if done < len {
                let todo = offset + done..end;
                change.mark(todo.clone());
                done += match &change.target {
                    Target::Qcow2(top) => top.discard_step(&change.request, todo).await?,
                    Target::Raw(layer) => layer.discard(todo).await?,
                };
            }
            if done >= len {
                break;
            }
        }
        self.write_through(&op).await
    }
}

impl<S: Storage> RawLayer<S> {
    async fn write_zeroes(&self, range: Range<u64>) -> Result<u64> {
        let len = range.end - range.start;
        let written = self.blocks.write_zeroes(&self.storage, range.start, len).await;
        written.map_err(|error| Error::storage("write zeroes", range.start, len, error))?;
        Ok(len)
    }

    async fn discard(&self, range: Range<u64>) -> Result<u64> {
        let len = range.end - range.start;
        let done = self.blocks.discard(&self.storage, range.start, len).await;
        done.map_err(|error| Error::storage("discard", range.start, len, error))?;
        Ok(len)
    }
}

/// What becomes of an entry.
pub(super) enum Becomes {
    /// It stays.
    Same,
    /// Another one, and what the old one refers to stays referred to.
    Other(L2Entry),
    /// Another one, which refers to nothing: the old one's reference goes.
    Unreferenced(L2Entry),
    /// Its data has to be overwritten with zeros.
    Written,
}

impl<S: Storage> Top<'_, S> {
    /// Makes some of a range read as zeros and returns how many bytes of it, from its start.
    pub(super) async fn zero_step(
        &self,
        request: &Request<'_>,
        range: Range<u64>,
        mode: ZeroMode,
    ) -> Result<u64> {
        let geometry = self.layer.geometry;
        let sub = geometry.subcluster_size();
        let (at, end) = (range.start, range.end);
        let disk_end = self.layer.virtual_size();
        // The last cluster may be whole where the disk ends in it.
        let whole_end = if end == disk_end { end.next_multiple_of(sub) } else { end - end % sub };
        let is_v2 = self.layer.context.version() == Version::V2;
        // Entries of version 2 cannot say zero; without a backing file those that say nothing mean it, as in QEMU.
        let as_data = is_v2 && self.image.layers[0].below != Below::Zeros;
        if as_data || !at.is_multiple_of(sub) || at >= whole_end {
            let piece_end = match as_data {
                true => end.min(at + ZEROS_LEN_BYTES_MAX),
                false => end.min((at - at % sub).saturating_add(sub)),
            };
            if !as_data {
                if !is_v2 {
                    self.zero_whole(request, at - at % sub, at..piece_end).await?;
                }
                if self.reads_zero(at).await? {
                    return Ok(piece_end - at);
                }
            }
            return self.write_zero_data(request, at..piece_end).await;
        }
        let end = self.slice_end(at).min(whole_end);
        self.change_entries(request, at..end, FreeReason::Request, |top, entry, guest, part| {
            if is_v2 {
                return top.discarded(entry, guest, false);
            }
            top.zeroed(entry, guest, part, mode)
        })
        .await
        .map(|done| done.min(range.end - at))
    }

    /// Discards some of a range and returns how many bytes of it, from its start, are done with.
    async fn discard_step(&self, request: &Request<'_>, range: Range<u64>) -> Result<u64> {
        let layer = self.layer;
        let cluster_size = layer.geometry.cluster_size();
        let len = range.end - range.start;
        let start = range.start.next_multiple_of(cluster_size);
        let end = match range.end == layer.virtual_size() {
            true => range.end.next_multiple_of(cluster_size),
            false => layer.geometry.align_down(range.end),
        };
        let has_backing = self.image.layers[0].below != Below::Zeros;
        if start >= end || (layer.context.version() == Version::V2 && has_backing) {
            return Ok(len);
        }
        // Where there is no table and nothing below, there is nothing to discard.
        let coverage = layer.geometry.l2_coverage();
        if !has_backing && self.l1_entry(start / coverage)?.l2_table().is_none() {
            let next = (start / coverage + 1).saturating_mul(coverage);
            return Ok(next.min(range.end) - range.start);
        }
        let end = self.slice_end(start).min(end);
        let done = self
            .change_entries(request, start..end, FreeReason::Request, |top, entry, guest, _| {
                top.discarded(entry, guest, has_backing)
            })
            .await?;
        Ok((start + done).min(range.end) - range.start)
    }

    /// Changes the entries of a range, which lies in one slice, as `change` says of each, from the first on, and returns how
    /// many bytes of the range are done with. `change` is given the entry, the start of its cluster and the part of it that
    /// is in the range.
    pub(super) async fn change_entries(
        &self,
        request: &Request<'_>,
        range: Range<u64>,
        reason: FreeReason,
        change: impl Fn(&Self, &L2Entry, u64, &Range<u64>) -> Result<Becomes>,
    ) -> Result<u64> {
        let geometry = self.layer.geometry;
        let (bits, cluster_size) = (geometry.cluster_bits(), geometry.cluster_size());
        let (first, last) = (range.start >> bits, (range.end - 1) >> bits);
        let sectors = self.claim_sectors(range.start, range.end - range.start).await;
        let claim = self.writer.claims.claim(first..=last).await;
        let place = self.own_place(range.start).await?;
        let entries = place.entries(self, last - first + 1);
        let mut new = Vec::with_capacity(entries.len());
        let mut gone: Vec<L2Entry> = Vec::new();
        let mut written = None;
        for (cluster, entry) in (first..=last).zip(&entries) {
            let guest = cluster << bits;
            let part = range.start.max(guest)..range.end.min(guest.saturating_add(cluster_size));
            match change(self, entry, guest, &part)? {
                Becomes::Same => new.push(*entry),
                Becomes::Other(other) => new.push(other),
                Becomes::Unreferenced(other) => {
                    new.push(other);
                    gone.push(*entry);
                }
                Becomes::Written => {
                    written = Some(part);
                    break;
                }
            }
        }
        if let (Some(part), true) = (&written, new.is_empty()) {
            drop(claim);
            drop(sectors);
            let sub = geometry.subcluster_size();
            let end = part.end.min(part.start - part.start % sub + sub);
            return self.write_zero_data(request, part.start..end).await;
        }
        let done = match &written {
            Some(part) => part.start - range.start,
            None => range.end - range.start,
        };
        let is_raw =
            self.layer.header.get().autoclear.contains(crate::format::Autoclear::DATA_FILE_RAW);
        let disk_end = self.layer.virtual_size().min(range.start + done);
        for (cluster, (new, old)) in (first..=last).zip(new.iter().zip(&entries)) {
            // Whoever reads the data file alone must see the zeros, and no more than them.
            let guest = cluster << bits;
            let start = range.start.max(guest);
            let end = disk_end.min(guest.saturating_add(cluster_size));
            if is_raw && new != old && start < end {
                // And whoever reads through the old entry after a power loss sees zeros or what was there: what is
                // encrypted must decrypt to them.
                self.put_data_zeros(request, HostOffset::new(start), start, end - start).await?;
            }
        }
        // From here on nothing is awaited and nothing fails.
        if new.iter().zip(&entries).any(|(new, old)| new != old) {
            place.store(self, &new);
        }
        for entry in &gone {
            self.free_entry(entry, reason);
        }
        if !gone.is_empty() {
            self.free_in_data_file(first..first + new.len() as u64);
        }
        Ok(done)
    }

    /// What a cluster's entry becomes when a part of it is to read as zeros.
    fn zeroed(
        &self,
        entry: &L2Entry,
        guest: u64,
        part: &Range<u64>,
        mode: ZeroMode,
    ) -> Result<Becomes> {
        let geometry = self.layer.geometry;
        let kind = self.layer.cluster_kind(entry, guest)?;
        let compressed = matches!(kind, ClusterKind::Compressed(_));
        let whole = part.start == guest && part.end - part.start == geometry.cluster_size();
        if geometry.extended_l2() && !whole {
            if compressed {
                return Ok(Becomes::Written);
            }
            let zero = self.subclusters(part);
            let bitmap = (entry.bitmap() | zero << 32) & !zero;
            return Ok(other(entry, L2Entry::from_raw(entry.descriptor(), bitmap)));
        }
        let has_host = kind.host().is_some() || compressed;
        let keeps = self.options().discard_no_unref && !compressed;
        let unmaps = (compressed || (mode == ZeroMode::MayUnmap && has_host)) && !keeps;
        let descriptor = if unmaps { 0 } else { entry.descriptor() };
        let new = if geometry.extended_l2() {
            L2Entry::from_raw(descriptor, u64::from(u32::MAX) << 32)
        } else {
            let zero = L2Entry::new(ClusterKind::Zero { host: None }, false, geometry);
            L2Entry::from_raw(descriptor | zero.descriptor(), 0)
        };
        Ok(if unmaps { Becomes::Unreferenced(new) } else { other(entry, new) })
    }

    /// What a cluster's entry becomes when the guest has no use for the cluster any more.
    fn discarded(&self, entry: &L2Entry, guest: u64, has_backing: bool) -> Result<Becomes> {
        let geometry = self.layer.geometry;
        let kind = self.layer.cluster_kind(entry, guest)?;
        let compressed = matches!(kind, ClusterKind::Compressed(_));
        let has_host = kind.host().is_some() || compressed;
        if !has_backing && !has_host {
            // It reads as zeros as it is.
            return Ok(Becomes::Same);
        }
        let keeps = has_host && self.options().discard_no_unref && !compressed;
        let descriptor = if keeps { entry.descriptor() } else { 0 };
        let new = if geometry.extended_l2() {
            L2Entry::from_raw(descriptor, u64::from(u32::MAX) << 32)
        } else if self.layer.context.version() == Version::V2 {
            // Nothing is below it, so it reads as zeros.
            L2Entry::default()
        } else {
            let zero = L2Entry::new(ClusterKind::Zero { host: None }, false, geometry);
            L2Entry::from_raw(descriptor | zero.descriptor(), 0)
        };
        Ok(if has_host && !keeps { Becomes::Unreferenced(new) } else { other(entry, new) })
    }

    async fn write_zero_data(&self, request: &Request<'_>, range: Range<u64>) -> Result<u64> {
        let end = range.end.min(self.layer.virtual_size());
        let bytes = zeros(end - range.start)?;
        let done = self.write_step(request, &bytes, range.start).await? as u64;
        // What lies behind the end of the disk is done with, too.
        Ok(if range.start + done == end { range.end - range.start } else { done })
    }

    /// Makes the subcluster at `start` zeros by its entry, if the image has no data for it and all of it but `asked`, which
    /// is to be zeros, reads as zeros already.
    async fn zero_whole(&self, request: &Request<'_>, start: u64, asked: Range<u64>) -> Result<()> {
        let whole = start..start.saturating_add(self.layer.geometry.subcluster_size());
        let is_unallocated = |kind| matches!(kind, super::layer::RunKind::Unallocated { .. });
        if !is_unallocated(self.image.layers[0].run(start, 1).await?.kind) {
            return Ok(());
        }
        let end = whole.end.min(self.layer.virtual_size());
        let mut at = start;
        while at < end {
            if asked.contains(&at) {
                at = asked.end;
                continue;
            }
            // What cannot be looked up is not known to be zeros.
            let upto = if at < asked.start { asked.start } else { end };
            let Ok(extent) = self.image.extent_at(at, upto - at, &[]).await else { return Ok(()) };
            if matches!(extent.kind, ExtentKind::Data { .. } | ExtentKind::Compressed { .. }) {
                return Ok(());
            }
            at += extent.len;
        }
        // What lies below cannot change, but the entry may have.
        let changed =
            self.change_entries(request, whole, FreeReason::Request, |top, entry, guest, part| {
                let kind = top.layer.cluster_kind(entry, guest)?;
                let zero = top.subclusters(part);
                let has_data = match top.layer.geometry.extended_l2() {
                    true => {
                        matches!(kind, ClusterKind::Compressed(_)) || entry.bitmap() & zero != 0
                    }
                    false => !matches!(kind, ClusterKind::Unallocated | ClusterKind::Zero { .. }),
                };
                match has_data {
                    true => Ok(Becomes::Same),
                    false => top.zeroed(entry, guest, part, ZeroMode::KeepSpace),
                }
            });
        changed.await.map(drop)
    }

    /// Whether the subcluster that holds `at` reads as zeros without anybody having to look.
    async fn reads_zero(&self, at: u64) -> Result<bool> {
        let run = self.image.layers[0].run(at, 1).await?;
        Ok(match run.kind {
            super::layer::RunKind::Zero { .. } => true,
            super::layer::RunKind::Unallocated { .. } => self.image.layers[0].below == Below::Zeros,
            _ => false,
        })
    }
}

fn other(old: &L2Entry, new: L2Entry) -> Becomes {
    if *old == new { Becomes::Same } else { Becomes::Other(new) }
}
