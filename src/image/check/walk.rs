//! From the L1 tables to every cluster that a guest's data uses: counting references, and looking at each entry.
//!
//! What is looked at and how it counts is QEMU's qcow2-refcount.c:check_refcounts_l1 and check_refcounts_l2.

use super::counts::{Cell, Counts, Shared};
use super::cover::{Segment, Tables, Weight};
use super::layout::Layout;
use super::repair::Mending;
use super::report::{CheckObserver, CheckReport, Finding, FindingClass, FindingKind, Structure};
use super::source::{Piece, Source};
use crate::error::Result;
use crate::storage::Storage;

/// Bits 9 to 55 of L1 and L2 entries.
pub(super) const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
pub(super) const COPIED: u64 = 1 << 63;
pub(super) const COMPRESSED: u64 = 1 << 62;
pub(super) const ZERO: u64 = 1;
const L1_RESERVED: u64 = 0x7f00_0000_0000_01ff;
const L2_RESERVED: u64 = 0x3f00_0000_0000_01fe;
pub(super) const SUBCLUSTERS: u64 = 0xffff_ffff;
pub(super) const SECTOR_LEN: u64 = 512;

/// The totals, and who hears of each finding.
pub(super) struct Tally<'a, O> {
    pub(super) report: CheckReport,
    pub(super) observer: &'a mut O,
    /// Nothing is reported: this has been looked at before.
    pub(super) muted: bool,
    /// What a repair wants to know; `None` in a check.
    pub(super) mending: Option<Mending>,
}

impl<'a, O: CheckObserver> Tally<'a, O> {
    pub(super) fn new(observer: &'a mut O, mending: Option<Mending>) -> Self {
        Self { report: CheckReport::default(), observer, muted: false, mending }
    }

    /// Reports something that the repair mends.
    pub(super) fn repaired(&mut self, kind: FindingKind, structure: Structure, offset: u64) {
        let finding = Finding { kind, structure, offset, times: 1, repaired: true };
        if let Some(mending) = &mut self.mending {
            match finding.class() {
                FindingClass::Leak => mending.leaks_fixed += 1,
                _ => mending.corruptions_fixed += 1,
            }
        }
        self.observer.finding(&finding);
    }

    #[cold]
    pub(super) fn found(
        &mut self,
        kind: FindingKind,
        structure: Structure,
        offset: u64,
        times: u64,
    ) {
        if times == 0 || self.muted {
            return;
        }
        let finding = Finding { kind, structure, offset, times, repaired: false };
        if let Some(mending) = &mut self.mending
            && mending.note(&finding)
        {
            self.repaired(finding.kind, structure, offset);
            return;
        }
        let total = match finding.class() {
            FindingClass::Leak => &mut self.report.leaks,
            FindingClass::Corruption => &mut self.report.corruptions,
            FindingClass::CheckError => &mut self.report.check_errors,
        };
        *total = total.saturating_add(times);
        self.observer.finding(&finding);
    }
}

/// One pass over the metadata: the references to one window of host clusters.
pub(super) struct Pass<'p, 't, C, O> {
    pub(super) layout: &'p Layout,
    pub(super) counts: Counts<C>,
    pub(super) tally: &'p mut Tally<'t, O>,
    /// Whether findings of the tables themselves are reported: by the first pass only.
    pub(super) first: bool,
    /// Whether the active state refers to clusters past the end of the file.
    pub(super) outside: bool,
    /// What ends behind the file counts for the clusters that the file has of it: these may be read, so they are not free.
    pub(super) keeps_cut: bool,
    /// Where the next cluster of this L2 table should lie to be contiguous.
    contiguous: u64,
}

impl<'p, 't, C: Cell, O: CheckObserver> Pass<'p, 't, C, O> {
    pub(super) fn new(
        layout: &'p Layout,
        counts: Counts<C>,
        tally: &'p mut Tally<'t, O>,
        first: bool,
    ) -> Self {
        Self { layout, counts, tally, first, outside: false, keeps_cut: false, contiguous: 0 }
    }

    /// Reports what is wrong with a table, in the first pass.
    fn found(&mut self, kind: FindingKind, structure: Structure, offset: u64, times: u64) {
        if self.first {
            self.tally.found(kind, structure, offset, times);
        }
    }

    /// Walks everything below the L1 tables.
    ///
    /// # Errors
    /// The storage's.
    pub(super) async fn walk<S: Storage>(
        &mut self,
        source: &Source<'_, S>,
        l1: &[Segment],
        tables_max: usize,
        mut progress: impl FnMut(&mut O, u64, u64),
    ) -> Result<()> {
        let cluster_size = self.layout.cluster_size;
        // All tables are marked as metadata before any data is counted, so that data on a table is noticed.
        let mut tables = Tables::new(0, tables_max);
        self.l1_tables(source, l1, &mut tables, true).await?;
        self.l2_tables(&tables);
        let mut limit = tables.limit();
        while let Some(from) = limit {
            let mut more = Tables::new(from, tables_max);
            self.l1_tables(source, l1, &mut more, false).await?;
            self.l2_tables(&more);
            limit = more.limit();
        }
        loop {
            let total = tables.len() as u64 * cluster_size;
            let mut done = 0;
            let pieces = tables.segments(cluster_size).map(|segment| Piece {
                range: segment.range,
                what: (segment.weight, segment.base),
            });
            source
                .each(pieces, |at, bytes, (weight, base)| {
                    if at == *base {
                        self.contiguous = 0;
                    }
                    self.l2_entries(at, bytes, *weight, *base);
                    done += bytes.len() as u64;
                    progress(self.tally.observer, done, total);
                })
                .await?;
            let Some(from) = tables.limit() else { return Ok(()) };
            tables = Tables::new(from, tables_max);
            self.l1_tables(source, l1, &mut tables, false).await?;
        }
    }

    /// Reads the L1 tables and collects their L2 tables; counts them too, if it is the first time in this pass.
    async fn l1_tables<S: Storage>(
        &mut self,
        source: &Source<'_, S>,
        l1: &[Segment],
        tables: &mut Tables,
        count: bool,
    ) -> Result<()> {
        let pieces =
            l1.iter().map(|segment| Piece { range: segment.range.clone(), what: segment.weight });
        source
            .each(pieces, |at, bytes, weight| {
                for (place, entry) in (at..).step_by(8).zip(words(bytes)) {
                    if entry == 0 {
                        continue;
                    }
                    if count {
                        self.l1_entry(place, entry, *weight);
                    }
                    let offset = entry & OFFSET_MASK;
                    if offset < self.layout.file_len {
                        tables.add(offset, *weight);
                    }
                }
            })
            .await?;
        tables.sort();
        Ok(())
    }

    fn l1_entry(&mut self, place: u64, entry: u64, weight: Weight) {
        let structure =
            if weight.active > 0 { Structure::L1Table } else { Structure::SnapshotL1Table };
        if entry & L1_RESERVED != 0 {
            self.found(FindingKind::L1Reserved { entry }, structure, place, weight.total);
        }
        let offset = entry & OFFSET_MASK;
        self.reference(offset, self.layout.cluster_size, structure, place, weight.total);
        if !self.layout.is_aligned(offset) {
            let kind = FindingKind::L2TableUnaligned { offset };
            self.found(kind, structure, place, weight.total);
        }
        if weight.active > 0 && offset != 0 {
            self.note(offset, entry);
        }
    }

    /// Counts references to a range of the file.
    fn reference(&mut self, offset: u64, len: u64, by: Structure, place: u64, times: u64) {
        if self.is_past_end(offset, len, by, place, times) {
            return;
        }
        for cluster in self.layout.clusters_of(offset, len) {
            self.counts.add(cluster, times);
        }
    }

    /// Whether a reference does not count because it reaches a cluster or more behind the file; that is reported.
    pub(super) fn is_past_end(
        &mut self,
        offset: u64,
        len: u64,
        by: Structure,
        place: u64,
        times: u64,
    ) -> bool {
        if !self.layout.is_past_end(offset, len) {
            return false;
        }
        self.found(FindingKind::PastEnd { offset, len }, by, place, times);
        if self.keeps_cut {
            let there = self.layout.clusters_of(offset, len);
            for cluster in self.counts.within(&there) {
                self.counts.add(cluster, 1);
            }
        }
        true
    }

    /// Remembers how the active state refers to a cluster.
    fn note(&mut self, offset: u64, entry: u64) {
        let cluster = offset >> self.layout.cluster_bits;
        self.outside |= cluster >= self.layout.clusters;
        self.counts.note(cluster, if entry & COPIED != 0 { C::COPIED } else { C::PLAIN });
    }

    /// Marks the L2 tables as metadata, and reports those that the file does not have whole.
    fn l2_tables(&mut self, tables: &Tables) {
        for (offset, weight) in tables.iter() {
            let end = offset.saturating_add(self.layout.cluster_size);
            if end > self.layout.file_len {
                let kind = FindingKind::CutShort { missing: end - self.layout.file_len };
                self.found(kind, Structure::L2Table, offset, weight.total);
            }
            for cluster in self.layout.clusters_of(offset, self.layout.cluster_size) {
                self.counts.mark(cluster, Shared { structure: Structure::L2Table, offset });
            }
        }
    }

    fn l2_entries(&mut self, at: u64, bytes: &[u8], weight: Weight, base: u64) {
        if self.layout.extended_l2 {
            let (entries, _) = bytes.as_chunks::<16>();
            for (place, entry) in (at..).step_by(16).zip(entries) {
                let both = u128::from_be_bytes(*entry);
                if both != 0 {
                    #[allow(clippy::cast_possible_truncation, reason = "the low half is meant")]
                    self.l2_entry(place, (both >> 64) as u64, both as u64, weight, base);
                }
            }
            return;
        }
        if self.layout.data_file {
            for (place, entry) in (at..).step_by(8).zip(words(bytes)) {
                self.l2_entry(place, entry, 0, weight, base);
            }
            return;
        }
        self.standard_entries(at, bytes, weight, base);
    }

    /// The loop that a check spends its time in: standard entries, most of them right.
    fn standard_entries(&mut self, at: u64, bytes: &[u8], weight: Weight, base: u64) {
        let Layout { cluster_size, cluster_bits, .. } = *self.layout;
        let simple = COPIED | (OFFSET_MASK & !(cluster_size - 1));
        // Only clusters that the file has; the cell behind them is for what reaches over its end.
        let clusters = self.layout.clusters.saturating_sub(self.counts.first);
        let first = self.counts.first;
        let count_shape = self.first && weight.active > 0;
        let (mut allocated, mut fragmented) = (0, 0);
        for (place, entry) in (at..).step_by(8).zip(words(bytes)) {
            if entry & !simple != 0 {
                self.l2_entry(place, entry, 0, weight, base);
                continue;
            }
            let offset = entry & !COPIED;
            if offset == 0 {
                continue;
            }
            if count_shape {
                allocated += 1;
                fragmented += u64::from(self.contiguous != 0 && offset != self.contiguous);
                self.contiguous = offset + cluster_size;
            }
            let mark = match (weight.active > 0, entry & COPIED != 0) {
                (false, _) => C::default(),
                (true, true) => C::COPIED,
                (true, false) => C::PLAIN,
            };
            let index = (offset >> cluster_bits).wrapping_sub(first);
            let cells = &mut self.counts.cells;
            let counted = index < clusters
                && usize::try_from(index)
                    .ok()
                    .and_then(|index| cells.get_mut(index))
                    .is_some_and(|cell| cell.bump(mark, weight.total));
            if !counted {
                self.data(place, entry, offset, weight);
            }
        }
        let report = &mut self.tally.report;
        report.allocated_clusters += allocated * weight.active;
        report.fragmented_clusters += fragmented * weight.active;
    }

    /// References from an entry to a data cluster.
    fn data(&mut self, place: u64, entry: u64, offset: u64, weight: Weight) {
        self.data_reference(offset, self.layout.cluster_size, place, weight.total);
        if weight.active > 0 {
            self.note(offset, entry);
        }
    }

    fn data_reference(&mut self, offset: u64, len: u64, place: u64, times: u64) {
        if self.is_past_end(offset, len, Structure::L2Table, place, times) {
            return;
        }
        for cluster in self.layout.clusters_of(offset, len) {
            self.counts.add_data(cluster, times, place);
        }
    }

    /// Any entry, whatever is wrong with it.
    fn l2_entry(&mut self, place: u64, entry: u64, bitmap: u64, weight: Weight, base: u64) {
        let index = (place - base) / self.layout.l2_entry_len;
        let table = Structure::L2Table;
        if entry & COMPRESSED != 0 {
            self.compressed(place, entry, bitmap, index, weight);
            return;
        }
        let extended = self.layout.extended_l2;
        // Readers refuse this flag in version 2 and ignore it beside subclusters; QEMU's check says nothing of it.
        let zero_reserved = extended || !self.layout.version_3;
        let reserved = L2_RESERVED | if zero_reserved { ZERO } else { 0 };
        if entry & reserved != 0 {
            self.found(FindingKind::L2Reserved { entry }, table, place, weight.total);
        }
        let offset = entry & OFFSET_MASK;
        let zero = entry & ZERO != 0 && !extended;
        let in_data_file = self.layout.data_file && entry & COPIED != 0 && !zero;
        if offset == 0 && !in_data_file {
            if bitmap & SUBCLUSTERS != 0 {
                self.found(FindingKind::UnallocatedBitmap, table, place, weight.total);
            }
            return;
        }
        if bitmap & (bitmap >> 32) != 0 {
            let kind = FindingKind::SubclusterBitmap { offset };
            self.found(kind, table, place, weight.total);
        }
        if !self.layout.is_aligned(offset) {
            let holds_data = if extended { bitmap & SUBCLUSTERS != 0 } else { !zero };
            let kind = if holds_data {
                FindingKind::DataUnaligned { offset }
            } else {
                FindingKind::PreallocatedUnaligned { offset }
            };
            let zeroed = !holds_data
                && self.tally.mending.as_ref().is_some_and(|mending| mending.zeroes_entries);
            if zeroed {
                if self.first {
                    self.tally.repaired(kind, table, place);
                    if let Some(mending) = &mut self.tally.mending {
                        mending.zeroed_entries += 1;
                    }
                }
                return;
            }
            self.found(kind, table, place, weight.total);
        }
        if self.first && weight.active > 0 {
            let report = &mut self.tally.report;
            report.allocated_clusters += weight.active;
            if self.contiguous != 0 && offset != self.contiguous {
                report.fragmented_clusters += weight.active;
            }
            self.contiguous = offset + self.layout.cluster_size;
        }
        if !self.layout.data_file {
            self.data(place, entry, offset, weight);
        } else if let Some(mending) = &mut self.tally.mending {
            // The pass over the copied flags mends it.
            mending.data_flags_differ |= entry & COPIED == 0 && weight.active > 0;
        } else if entry & COPIED == 0 && base != 0 {
            let kind = FindingKind::DataCopied { entry, refcount: 1 };
            self.found(kind, table, place, weight.active);
        }
    }

    fn compressed(&mut self, place: u64, entry: u64, bitmap: u64, index: u64, weight: Weight) {
        let table = Structure::L2Table;
        let offset_bits = 62 - (self.layout.cluster_bits - 8);
        let offset = entry & ((1 << offset_bits) - 1);
        if entry & COPIED != 0 {
            let kind = FindingKind::CompressedCopied { offset };
            self.found(kind, table, place, weight.total);
        }
        let entry = entry & !COPIED;
        if self.layout.data_file {
            let kind = FindingKind::CompressedWithDataFile { index, entry };
            self.found(kind, table, place, weight.total);
            return;
        }
        if bitmap != 0 {
            let kind = FindingKind::CompressedWithBitmap { index, entry };
            self.found(kind, table, place, weight.total);
            return;
        }
        let sectors = ((entry & (COMPRESSED - 1)) >> offset_bits) + 1;
        let len = sectors * SECTOR_LEN - offset % SECTOR_LEN;
        self.data_reference(offset, len, place, weight.total);
        if self.first && weight.active > 0 {
            let report = &mut self.tally.report;
            report.allocated_clusters += weight.active;
            report.compressed_clusters += weight.active;
            report.fragmented_clusters += weight.active;
        }
    }
}

/// The entries of a table, in the order of bytes of the machine.
pub(super) fn words(bytes: &[u8]) -> impl Iterator<Item = u64> + '_ {
    bytes.as_chunks::<8>().0.iter().map(|word| u64::from_be_bytes(*word))
}
