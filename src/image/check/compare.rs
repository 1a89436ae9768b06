//! References against refcounts, and copied flags against refcounts.
//!
//! QEMU's qcow2-refcount.c: check_refblocks, compare_refcounts, check_oflag_copied.

use std::ops::Range;

use super::counts::{Cell, Shared};
use super::cover::{Segment, Tables};
use super::refcounts::{BLOCK_OFFSET_MASK, Memory, Refcounts, Run, TABLE_RESERVED, refcount};
use super::report::{CheckObserver, FindingKind, Structure};
use super::source::{Piece, Source};
use super::walk::{COPIED, OFFSET_MASK, Pass, words};
use crate::error::Result;
use crate::storage::Storage;

/// Copied flags whose refcounts are looked up one by one: those of clusters past the end of the file, and of clusters
/// with very many references.
const LOOKUPS_MAX: usize = 128 << 10;

/// What a comparison of a window tells.
#[derive(Default)]
pub(super) struct Compared {
    /// The last cluster with a refcount or a reference.
    pub(super) highest: Option<u64>,
    /// Whether a copied flag does not agree with its refcount, so that the tables must be read again to say which.
    pub(super) flags_differ: bool,
}

impl<C: Cell, O: CheckObserver> Pass<'_, '_, C, O> {
    /// Makes the refcount blocks' clusters metadata, before data is counted; reports what is wrong with the refcount
    /// table.
    ///
    /// # Errors
    /// The storage's.
    pub(super) async fn mark_refcount_blocks<S: Storage>(
        &mut self,
        source: &Source<'_, S>,
    ) -> Result<()> {
        let range = self.layout.refcount_table.clone();
        let start = range.start;
        let pieces = std::iter::once(Piece { range, what: () });
        source
            .each(pieces, |at, bytes, ()| {
                for (place, entry) in (at..).step_by(8).zip(words(bytes)) {
                    match self.refcount_block(entry, (place - start) / 8) {
                        Ok(Some(cluster)) => {
                            let structure = Structure::RefcountBlock;
                            let offset = entry & BLOCK_OFFSET_MASK;
                            self.counts.mark(cluster, Shared { structure, offset });
                        }
                        Ok(None) => {}
                        Err(kind) if self.first => {
                            self.tally.found(kind, Structure::RefcountTable, place, 1);
                        }
                        Err(_) => {}
                    }
                }
            })
            .await
    }

    /// The cluster of a refcount block, if the entry of the refcount table has one.
    fn refcount_block(
        &self,
        entry: u64,
        index: u64,
    ) -> std::result::Result<Option<u64>, FindingKind> {
        let offset = entry & BLOCK_OFFSET_MASK;
        let cluster = offset >> self.layout.cluster_bits;
        if entry & TABLE_RESERVED != 0 {
            Err(FindingKind::RefcountTableReserved { index })
        } else if !self.layout.is_aligned(offset) {
            Err(FindingKind::RefcountBlockUnaligned { index })
        } else if cluster >= self.layout.clusters {
            Err(FindingKind::RefcountBlockOutside { index })
        } else {
            Ok((offset != 0).then_some(cluster))
        }
    }

    /// Counts the refcount blocks themselves, after everything else.
    ///
    /// # Errors
    /// The storage's.
    pub(super) async fn count_refcount_blocks<S: Storage>(
        &mut self,
        source: &Source<'_, S>,
    ) -> Result<()> {
        let range = self.layout.refcount_table.clone();
        let start = range.start;
        let window = self.counts.first..self.counts.first + self.counts.cells.len() as u64;
        let pieces = std::iter::once(Piece { range, what: () });
        source
            .each(pieces, |at, bytes, ()| {
                for (place, entry) in (at..).step_by(8).zip(words(bytes)) {
                    let index = (place - start) / 8;
                    let Ok(Some(cluster)) = self.refcount_block(entry, index) else { continue };
                    if !window.contains(&cluster) {
                        continue;
                    }
                    let offset = entry & BLOCK_OFFSET_MASK;
                    let missing = self.layout.missing(&(offset..offset + self.layout.cluster_size));
                    if missing > 0 {
                        let kind = FindingKind::CutShort { missing };
                        self.tally.found(kind, Structure::RefcountBlock, offset, 1);
                    }
                    self.counts.add(cluster, 1);
                    let references = self.counts.count_of(cluster).min(self.layout.refcount_max);
                    if references != 1 {
                        let kind = FindingKind::RefcountBlockShared { index, references };
                        self.tally.found(kind, Structure::RefcountTable, place, 1);
                        self.counts.unshare(cluster);
                    }
                }
            })
            .await
    }

    /// Compares the window's references with the refcounts of `clusters`.
    ///
    /// # Errors
    /// The storage's.
    pub(super) async fn compare<S: Storage>(
        &mut self,
        refcounts: &Refcounts<'_, '_, S>,
        clusters: Range<u64>,
    ) -> Result<Compared> {
        let mut compared = Compared::default();
        let order = self.layout.refcount_order;
        refcounts
            .each(clusters, |run, entries| match entries {
                Run::Zero => self.compare_run(run, &mut compared, |_| Some(0)),
                Run::Unknown => self.compare_run(run, &mut compared, |_| None),
                // The usual widths get loops of their own.
                Run::Entries(bytes) if order == 4 => {
                    let (words, _) = bytes.as_chunks::<2>();
                    self.compare_run(run, &mut compared, |index| {
                        words.get(index).map(|word| u64::from(u16::from_be_bytes(*word)))
                    });
                }
                Run::Entries(bytes) => self.compare_run(run, &mut compared, |index| {
                    Some(refcount(bytes, order, index as u64))
                }),
            })
            .await?;
        for (cluster, shared) in self.counts.take_shared() {
            let with = self.layout.structure_at(cluster).filter(|with| *with != shared.structure);
            let kind = FindingKind::Overlap { cluster, with };
            self.tally.found(kind, shared.structure, shared.offset, 1);
        }
        Ok(compared)
    }

    fn compare_run(
        &mut self,
        run: Range<u64>,
        compared: &mut Compared,
        refcount_at: impl Fn(usize) -> Option<u64>,
    ) {
        let range = self.counts.within(&run);
        // OK to cast: both lie within the window, which is in memory.
        #[allow(clippy::cast_possible_truncation)]
        let (from, skipped, len) = (
            (range.start - self.counts.first) as usize,
            (range.start - run.start) as usize,
            (range.end - range.start) as usize,
        );
        let mut last = None;
        for place in 0..len {
            let index = from + place;
            let cell = self.counts.cells[index];
            let count = cell.bits() & C::COUNT;
            let refcount = refcount_at(skipped + place);
            let Some(known) = refcount else {
                let kind = FindingKind::RefcountUnknown { cluster: range.start + place as u64 };
                let offset = (range.start + place as u64) << self.layout.cluster_bits;
                self.tally.found(kind, Structure::RefcountTable, offset, 1);
                continue;
            };
            if known | count != 0 {
                last = Some(place);
            }
            let wrong_mark = if known == 1 { C::PLAIN } else { C::COPIED };
            compared.flags_differ |= cell.has(wrong_mark);
            if known != count || count == C::COUNT || count > self.layout.refcount_max {
                self.mismatch(index, known);
            }
        }
        if let Some(last) = last {
            compared.highest = Some(range.start + last as u64);
        }
    }

    #[cold]
    fn mismatch(&mut self, index: usize, refcount: u64) {
        let cluster = self.counts.first + index as u64;
        let offset = cluster << self.layout.cluster_bits;
        let mut references = self.counts.count(index);
        let max = self.layout.refcount_max;
        if references > max {
            let kind = FindingKind::RefcountOverflow { offset };
            self.tally.found(kind, Structure::RefcountBlock, offset, references - max);
            self.counts.unshare(cluster);
            references = max;
        }
        let kind = match refcount.cmp(&references) {
            std::cmp::Ordering::Equal => return,
            std::cmp::Ordering::Less => {
                FindingKind::RefcountTooLow { cluster, refcount, references }
            }
            std::cmp::Ordering::Greater => FindingKind::Leak { cluster, refcount, references },
        };
        if references > refcount {
            self.counts.unshare(cluster);
        }
        self.tally.found(kind, Structure::RefcountBlock, offset, 1);
    }

    /// Reads the active tables again, and says which copied flags do not agree with the refcounts of this window's
    /// clusters; in the last window, of those past the end of the file too.
    ///
    /// # Errors
    /// The storage's.
    pub(super) async fn copied_flags<S: Storage>(
        mut self,
        refcounts: &Refcounts<'_, '_, S>,
        l1: &[Segment],
        tables_max: usize,
        last: bool,
    ) -> Result<()> {
        let order = self.layout.refcount_order;
        self.counts.clear();
        let window = self.counts.first..self.counts.first + self.counts.cells.len() as u64;
        refcounts
            .each(window, |run, entries| {
                let within = self.counts.within(&run);
                for cluster in within {
                    // OK to cast: within the window, which is in memory.
                    #[allow(clippy::cast_possible_truncation)]
                    let index = (cluster - self.counts.first) as usize;
                    match &entries {
                        Run::Zero => {}
                        Run::Unknown => self.counts.cells[index] = C::METADATA,
                        Run::Entries(bytes) => {
                            self.counts.set(index, refcount(bytes, order, cluster - run.start));
                        }
                    }
                }
            })
            .await?;
        let mut flags = Flags { pass: self, last, later: Vec::new() };
        let source = refcounts.source;
        let active = || l1.iter().filter(|segment| segment.weight.active > 0);
        let mut from = 0;
        loop {
            let mut tables = Tables::new(from, tables_max);
            let pieces = active()
                .map(|segment| Piece { range: segment.range.clone(), what: segment.weight });
            source
                .each(pieces, |at, bytes, weight| {
                    for (place, entry) in (at..).step_by(8).zip(words(bytes)) {
                        let offset = entry & OFFSET_MASK;
                        if offset == 0 {
                            continue;
                        }
                        if from == 0 {
                            flags.compare(place, entry, weight.active, true);
                        }
                        if offset < flags.pass.layout.file_len {
                            tables.add(offset, *weight);
                        }
                    }
                })
                .await?;
            tables.sort();
            let len = flags.pass.layout.cluster_size;
            let pieces = tables
                .segments(len)
                .map(|segment| Piece { range: segment.range, what: segment.weight.active });
            if !flags.pass.layout.data_file {
                source.each(pieces, |at, bytes, times| flags.table(at, bytes, *times)).await?;
            }
            match tables.limit() {
                Some(limit) => from = limit,
                None => break,
            }
        }
        flags.look_up(refcounts).await
    }
}

/// A copied flag to compare when the refcount is known.
struct Later {
    cluster: u64,
    place: u64,
    entry: u64,
    times: u64,
    is_l1: bool,
}

struct Flags<'p, 't, C, O> {
    pass: Pass<'p, 't, C, O>,
    last: bool,
    later: Vec<Later>,
}

impl<C: Cell, O: CheckObserver> Flags<'_, '_, C, O> {
    fn table(&mut self, at: u64, bytes: &[u8], times: u64) {
        let layout = self.pass.layout;
        let entry_len = layout.l2_entry_len;
        let step = if layout.extended_l2 { 2 } else { 1 };
        for (n, entry) in words(bytes).enumerate().step_by(step) {
            let place = at + n as u64 * 8;
            debug_assert_eq!((place - at) % entry_len, 0);
            if entry & OFFSET_MASK != 0 && entry & (1 << 62) == 0 {
                self.compare(place, entry, times, false);
            }
        }
    }

    fn compare(&mut self, place: u64, entry: u64, times: u64, is_l1: bool) {
        let layout = self.pass.layout;
        let cluster = (entry & OFFSET_MASK) >> layout.cluster_bits;
        let counts = &self.pass.counts;
        let cell = cluster
            .checked_sub(counts.first)
            .and_then(|index| usize::try_from(index).ok())
            .and_then(|index| counts.cells.get(index));
        let later = Later { cluster, place, entry, times, is_l1 };
        match cell {
            Some(cell) if cell.has(C::METADATA) => {}
            Some(cell) if cell.bits() & C::COUNT == C::COUNT => {
                if self.later.len() < LOOKUPS_MAX {
                    self.later.push(later);
                } else {
                    self.found(&later, C::COUNT);
                }
            }
            Some(cell) => self.found(&later, cell.bits() & C::COUNT),
            None if self.last && cluster >= layout.cells => {
                if self.later.len() < LOOKUPS_MAX {
                    self.later.push(later);
                } else {
                    let skipped = &mut self.pass.tally.report.flags_skipped;
                    *skipped = skipped.saturating_add(times);
                }
            }
            None => {}
        }
    }

    fn found(&mut self, flag: &Later, refcount: u64) {
        let Later { place, entry, times, is_l1, .. } = *flag;
        if (refcount == 1) == (entry & COPIED != 0) {
            return;
        }
        let (kind, structure) = if is_l1 {
            let index = place.saturating_sub(self.pass.layout.l1_table.start) / 8;
            (FindingKind::L1Copied { index, entry, refcount }, Structure::L1Table)
        } else {
            (FindingKind::DataCopied { entry, refcount }, Structure::L2Table)
        };
        self.pass.tally.found(kind, structure, place, times);
    }

    async fn look_up<S: Storage>(mut self, refcounts: &Refcounts<'_, '_, S>) -> Result<()> {
        let mut later = std::mem::take(&mut self.later);
        later.sort_unstable_by_key(|flag| (flag.cluster, flag.place));
        let mut memory = Memory::default();
        for flag in later {
            if let Some(refcount) = refcounts.of(flag.cluster, &mut memory).await? {
                self.found(&flag, refcount);
            }
        }
        Ok(())
    }
}
