//! Writing a bitmap anew: another table, and new clusters for those of its bits that change. What it was stays as it was on
//! disk until the directory leads to the new table.

use std::ops::Range;

use crate::error::Result;
use crate::format::{BitmapDirectoryEntry, BitmapTableEntry, HostOffset};
use crate::storage::Storage;

use super::super::alloc::Taken;
use super::super::layer::Qcow2Layer;
use super::super::ownership::Owner;
use super::super::writer::Top;
use super::DirtyRanges;
use super::reader::{Cursor, are_all, fill_bits};

/// What is added to a bitmap: ranges of the disk, in order.
pub(super) trait Marks {
    /// The next range.
    async fn next(&mut self) -> Result<Option<Range<u64>>>;
}

/// Nothing.
pub(super) struct NoMarks;

impl Marks for NoMarks {
    async fn next(&mut self) -> Result<Option<Range<u64>>> {
        Ok(None)
    }
}

/// What has changed of the disk.
pub(super) struct Changes<I>(pub(super) I);

impl<I: Iterator<Item = Range<u64>>> Marks for Changes<I> {
    async fn next(&mut self) -> Result<Option<Range<u64>>> {
        Ok(self.0.next())
    }
}

/// What another bitmap of the image marks.
pub(super) struct OfBitmap<'a, S> {
    pub(super) layer: &'a Qcow2Layer<S>,
    pub(super) cursor: Cursor,
}

impl<S: Storage> Marks for OfBitmap<'_, S> {
    async fn next(&mut self) -> Result<Option<Range<u64>>> {
        self.cursor.next(self.layer).await
    }
}

impl<S: Storage> Marks for DirtyRanges<'_, S> {
    async fn next(&mut self) -> Result<Option<Range<u64>>> {
        DirtyRanges::next(self).await
    }
}

/// Marks of which a part may be left.
struct Rest<'m, M> {
    marks: &'m mut M,
    rest: Option<Range<u64>>,
}

impl<M: Marks> Rest<'_, M> {
    /// Of what comes next, what lies before `end`.
    async fn before(&mut self, end: u64) -> Result<Option<Range<u64>>> {
        if self.rest.is_none() {
            self.rest = self.marks.next().await?;
        }
        let Some(range) = self.rest.take_if(|range| range.start < end) else { return Ok(None) };
        if range.end > end {
            self.rest = Some(end..range.end);
        }
        Ok(Some(range.start..range.end.min(end)))
    }
}

/// A bitmap that was written anew and that nothing leads to yet. Dropping it gives its clusters back.
pub(super) struct Rewritten<'a> {
    /// Its directory entry.
    pub(super) entry: BitmapDirectoryEntry,
    taken: Vec<Taken<'a>>,
    /// Host clusters of bits that it does without.
    gone: Vec<HostOffset>,
    /// Its table before.
    old: (HostOffset, u64),
}

impl<'a, S: Storage> Top<'a, S> {
    /// Writes a bitmap of a disk that had `old_size` bytes anew for one of `size`, with `marks` added. What the disk gains is
    /// not marked. `None` if that is what it is.
    ///
    /// # Errors
    /// What reading it and taking clusters meet, and the storage's. It is what it was.
    ///
    /// # Cancel safety
    /// As after an error.
    pub(super) async fn rewrite_bitmap(
        &self,
        bitmap: &BitmapDirectoryEntry,
        old_size: u64,
        size: u64,
        marks: &mut impl Marks,
    ) -> Result<Option<Rewritten<'a>>> {
        let geometry = self.layer.geometry;
        let table = self.layer.load_bitmap_table(bitmap).await?;
        let entries = bitmap.table_entries_for(size, &geometry);
        let granularity_bits = u32::from(bitmap.granularity_bits);
        let bits_in = |bytes: u64| bytes.div_ceil(1 << granularity_bits);
        let (old_bits, bits) = (bits_in(old_size), bits_in(size));
        let per_cluster = geometry.cluster_size() * 8;
        let mut marks = Rest { marks, rest: None };
        let mut new = Vec::with_capacity(usize::try_from(entries).unwrap_or(0));
        let (mut taken, mut gone) = (Vec::new(), Vec::new());
        let mut differs = entries != u64::from(bitmap.table_entries);
        for index in 0..entries {
            let first = index * per_cluster;
            let end = bits.min(first + per_cluster);
            let in_table = usize::try_from(index).ok().and_then(|index| table.get(index));
            let old = in_table.copied().unwrap_or(BitmapTableEntry::Zeros);
            let ends_here = end == bits && end - first < per_cluster;
            let is_cut = old != BitmapTableEntry::Zeros
                && (old_bits < end || (old_bits > bits && ends_here));
            let mut mark = marks.before(end << granularity_bits).await?;
            if (mark.is_none() && !is_cut) || (old == BitmapTableEntry::Ones && !is_cut) {
                while mark.is_some() {
                    mark = marks.before(end << granularity_bits).await?;
                }
                new.push(old);
                continue;
            }
            let mut bytes = self.layer.load_bits(old).await?;
            // Whatever stands behind the end counts for nothing, and must not when the disk grows.
            fill_bits(&mut bytes, old_bits.clamp(first, end) - first..per_cluster, false);
            let mut adds = is_cut;
            while let Some(range) = mark {
                let from = (range.start >> granularity_bits).max(first) - first;
                let to = bits_in(range.end).min(end) - first;
                if from < to && !are_all(&bytes, from..to, true) {
                    fill_bits(&mut bytes, from..to, true);
                    adds = true;
                }
                mark = marks.before(end << granularity_bits).await?;
            }
            if !adds {
                new.push(old);
                continue;
            }
            differs = true;
            if let BitmapTableEntry::Data { host } = old {
                gone.push(host);
            }
            new.push(if are_all(&bytes, 0..end - first, true) {
                BitmapTableEntry::Ones
            } else if are_all(&bytes, 0..end - first, false) {
                BitmapTableEntry::Zeros
            } else {
                let cluster = self.take_clusters(1, Owner::Metadata).await?;
                let host = cluster.host();
                self.write_metadata(host, &bytes).await?;
                taken.push(cluster);
                BitmapTableEntry::Data { host }
            });
        }
        let beyond = table.get(new.len()..).unwrap_or_default().iter();
        gone.extend(beyond.filter_map(|entry| match entry {
            BitmapTableEntry::Data { host } => Some(*host),
            _ => None,
        }));
        if !differs {
            return Ok(None);
        }
        let (host, cluster) = self.write_bitmap_table(&new).await?;
        taken.push(cluster);
        Ok(Some(self.rewritten(bitmap, host, new.len(), taken, gone)))
    }

    /// Writes a bitmap anew that marks nothing, for the disk as it is.
    ///
    /// # Errors
    /// As [`Self::rewrite_bitmap`].
    ///
    /// # Cancel safety
    /// As [`Self::rewrite_bitmap`].
    pub(super) async fn rewrite_empty(
        &self,
        bitmap: &BitmapDirectoryEntry,
    ) -> Result<Option<Rewritten<'a>>> {
        let table = self.layer.load_bitmap_table(bitmap).await?;
        if table.iter().all(|entry| *entry == BitmapTableEntry::Zeros) {
            return Ok(None);
        }
        let (host, cluster) =
            self.write_bitmap_table(&vec![BitmapTableEntry::Zeros; table.len()]).await?;
        let data = table.iter().filter_map(|entry| match entry {
            BitmapTableEntry::Data { host } => Some(*host),
            _ => None,
        });
        Ok(Some(self.rewritten(bitmap, host, table.len(), vec![cluster], data.collect())))
    }

    /// Writes the table of a new bitmap that marks nothing, on a disk of `size` bytes; `bitmap` says the rest.
    ///
    /// # Errors
    /// As [`Self::rewrite_bitmap`].
    ///
    /// # Cancel safety
    /// As [`Self::rewrite_bitmap`].
    pub(super) async fn write_new_bitmap(
        &self,
        bitmap: &BitmapDirectoryEntry,
        size: u64,
    ) -> Result<Rewritten<'a>> {
        let entries = bitmap.table_entries_for(size, &self.layer.geometry);
        let entries = usize::try_from(entries).unwrap_or(usize::MAX);
        let (host, cluster) =
            self.write_bitmap_table(&vec![BitmapTableEntry::Zeros; entries]).await?;
        let mut new = self.rewritten(bitmap, host, entries, vec![cluster], Vec::new());
        new.old = (HostOffset::new(0), 0);
        Ok(new)
    }

    async fn write_bitmap_table(
        &self,
        table: &[BitmapTableEntry],
    ) -> Result<(HostOffset, Taken<'a>)> {
        let bytes: Vec<u8> = table.iter().flat_map(|entry| entry.raw().to_be_bytes()).collect();
        let clusters = self.layer.geometry.clusters_for(bytes.len() as u64);
        let taken = self.take_clusters(clusters, Owner::Metadata).await?;
        let host = taken.host();
        self.write_metadata(host, &bytes).await?;
        Ok((host, taken))
    }

    fn rewritten(
        &self,
        bitmap: &BitmapDirectoryEntry,
        table_offset: HostOffset,
        entries: usize,
        taken: Vec<Taken<'a>>,
        gone: Vec<HostOffset>,
    ) -> Rewritten<'a> {
        // OK to saturate: a bitmap's length is bounded.
        let table_entries = u32::try_from(entries).unwrap_or(u32::MAX);
        let entry = BitmapDirectoryEntry { table_offset, table_entries, ..bitmap.clone() };
        Rewritten { entry, taken, gone, old: (bitmap.table_offset, bitmap.table_len()) }
    }

    /// Gives up what a bitmap was before it was written anew, and keeps what it is: the directory leads to it.
    pub(super) fn keep_bitmap(&self, rewritten: Rewritten<'_>) {
        for taken in rewritten.taken {
            taken.keep();
        }
        for host in rewritten.gone {
            self.free_metadata(host, self.layer.geometry.cluster_size());
        }
        self.free_metadata(rewritten.old.0, rewritten.old.1);
    }
}

impl<S> std::fmt::Debug for OfBitmap<'_, S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OfBitmap").field("cursor", &self.cursor).finish_non_exhaustive()
    }
}
