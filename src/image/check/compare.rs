//! References against refcounts.
//!
//! QEMU's qcow2-refcount.c: check_refblocks, compare_refcounts.

use std::ops::Range;

use super::counts::{Cell, Shared};
use super::refcounts::{BLOCK_OFFSET_MASK, Refcounts, Run, TABLE_RESERVED, refcount};
use super::report::{CheckObserver, FindingKind, RepairStep, Structure};
use super::source::{Piece, Source};
use super::walk::{Pass, words};
use crate::error::Result;
use crate::storage::Storage;

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
                    let index = (place - start) / 8;
                    match self.refcount_block(entry, index) {
                        Ok(Some(cluster)) => {
                            let structure = Structure::RefcountBlock;
                            let offset = entry & BLOCK_OFFSET_MASK;
                            self.counts.mark(cluster, Shared { structure, offset });
                            if self.first && cluster >= self.layout.clusters {
                                let kind = FindingKind::RefcountBlockOutside { index };
                                self.tally.repaired(kind, Structure::RefcountTable, place);
                                if let Some(mending) = &mut self.tally.mending {
                                    mending.rebuild = true;
                                }
                            }
                        }
                        Ok(None) => {}
                        Err(kind) if self.first => {
                            let outside = matches!(kind, FindingKind::RefcountBlockOutside { .. });
                            self.tally.found(kind, Structure::RefcountTable, place, 1);
                            if outside && self.tally.mending.as_ref().is_some_and(|m| m.all) {
                                self.tally.observer.step(&RepairStep::ResizeFailed);
                            }
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
        } else if cluster >= self.layout.clusters.max(self.layout.grown_clusters) {
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
                    if missing > 0 && cluster < self.layout.clusters {
                        let kind = FindingKind::CutShort { missing };
                        self.tally.found(kind, Structure::RefcountBlock, offset, 1);
                    }
                    self.counts.add(cluster, 1);
                    let references = self.counts.count_of(cluster);
                    if let Some(mending) = &mut self.tally.mending {
                        // Whatever the width of refcounts: nothing is written over something else.
                        mending.rebuild |= references > 1;
                    }
                    let references = references.min(self.layout.refcount_max);
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
        if let Some(mending) = &mut self.tally.mending {
            mending.take_shared(&self.counts, self.layout);
        }
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
}
