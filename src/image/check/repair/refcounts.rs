//! Mending refcounts in the refcount blocks that are there.
//!
//! QEMU's qcow2-refcount.c: compare_refcounts.

use std::ops::Range;

use super::Target;
use crate::error::Result;
use crate::image::check::compare::Compared;
use crate::image::check::counts::Cell;
use crate::image::check::refcounts::{Refcounts, Run, refcount, set_refcount};
use crate::image::check::report::{CheckObserver, FindingKind, Structure};
use crate::image::check::walk::Pass;
use crate::storage::Storage;

/// Clusters whose refcounts are compared before the wrong ones are written.
const PART_CLUSTERS: u64 = 64 << 10;

/// What a comparison may mend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::image::check) enum May {
    /// Refcounts that are too high. The refcount structures are new, and nothing was said of this image before.
    LowerRebuilt,
    /// Refcounts that are too high.
    Lower,
    /// All refcounts that have a place.
    LowerAndRaise,
}

impl<C: Cell, O: CheckObserver> Pass<'_, '_, C, O> {
    /// Compares the window's references with the refcounts of `clusters`, and makes those right that it may.
    ///
    /// # Errors
    /// The storage's.
    pub(in crate::image::check) async fn mend<S: Storage>(
        &mut self,
        refcounts: &Refcounts<'_, '_, S>,
        target: &Target<'_, S>,
        clusters: Range<u64>,
        may: May,
    ) -> Result<Compared> {
        let mut compared = Compared::default();
        if let Some(mending) = &mut self.tally.mending {
            mending.take_shared(&self.counts, self.layout);
        }
        let order = self.layout.refcount_order;
        let mut shared = self.counts.take_shared();
        let mut at = clusters.start;
        while at < clusters.end {
            let part = at..clusters.end.min(at + PART_CLUSTERS);
            at = part.end;
            let mut edits = Vec::new();
            refcounts
                .each(part, |run, entries| {
                    for cluster in self.counts.within(&run) {
                        let known = match &entries {
                            Run::Zero => Some(0),
                            Run::Unknown => None,
                            Run::Entries(bytes) => {
                                Some(refcount(bytes, order, cluster - run.start))
                            }
                        };
                        self.mend_one(cluster, known, may, &mut edits, &mut compared);
                    }
                })
                .await?;
            for (cluster, _) in &edits {
                // Of these nothing was said, because the refcount was wrong.
                if may != May::LowerRebuilt
                    && let Some(by) = shared.remove(cluster)
                {
                    let with = self.layout.structure_at(*cluster);
                    let with = with.filter(|with| *with != by.structure);
                    let kind = FindingKind::Overlap { cluster: *cluster, with };
                    self.tally.found(kind, by.structure, by.offset, 1);
                }
            }
            store_refcounts(refcounts, target, &edits).await?;
        }
        if may == May::LowerRebuilt {
            for (cluster, by) in shared {
                let with = self.layout.structure_at(cluster).filter(|with| *with != by.structure);
                let kind = FindingKind::Overlap { cluster, with };
                self.tally.found(kind, by.structure, by.offset, 1);
            }
        }
        Ok(compared)
    }

    fn mend_one(
        &mut self,
        cluster: u64,
        known: Option<u64>,
        may: May,
        edits: &mut Vec<(u64, u64)>,
        compared: &mut Compared,
    ) {
        let offset = cluster << self.layout.cluster_bits;
        // OK to cast: within the window, which is in memory.
        #[allow(clippy::cast_possible_truncation)]
        let index = (cluster - self.counts.first) as usize;
        let Some(known) = known else {
            let kind = FindingKind::RefcountUnknown { cluster };
            self.tally.found(kind, Structure::RefcountTable, offset, 1);
            return;
        };
        let count = self.counts.count(index);
        let references = count.min(self.layout.refcount_max);
        if known | references != 0 {
            compared.highest = Some(cluster);
        }
        let structure = Structure::RefcountBlock;
        if count > self.layout.refcount_max && may == May::LowerRebuilt {
            let kind = FindingKind::RefcountOverflow { offset };
            self.tally.found(kind, structure, offset, count - self.layout.refcount_max);
        }
        let mut now = known;
        if known != references {
            let (kind, allowed) = if known > references {
                let kind = FindingKind::Leak { cluster, refcount: known, references };
                (kind, true)
            } else {
                let kind = FindingKind::RefcountTooLow { cluster, refcount: known, references };
                (kind, may == May::LowerAndRaise && known > 0)
            };
            if allowed {
                now = references;
                edits.push((cluster, references));
                self.tally.repaired(kind, structure, offset);
            } else {
                self.tally.found(kind, structure, offset, 1);
            }
        }
        let wrong_mark = if now == 1 { C::PLAIN } else { C::COPIED };
        compared.flags_differ |= self.counts.cells[index].has(wrong_mark);
    }
}

/// Writes refcounts of clusters in order, all of which have a refcount block that is nothing else.
pub(super) async fn store_refcounts<S: Storage>(
    refcounts: &Refcounts<'_, '_, S>,
    target: &Target<'_, S>,
    edits: &[(u64, u64)],
) -> Result<()> {
    let layout = refcounts.layout;
    let (entries, bits) = (layout.block_entries, layout.refcount_bits());
    for edits in edits.chunk_by(|(a, _), (b, _)| a / entries == b / entries) {
        let [(first, _), ..] = *edits else { continue };
        let (last, _) = edits[edits.len() - 1];
        let block = refcounts.block_offset(first).await?;
        if block == 0 || !layout.is_aligned(block) {
            continue;
        }
        let start = first % entries * bits / 8;
        let end = ((last % entries + 1) * bits).div_ceil(8);
        let mut bytes = Vec::new();
        refcounts.source.read(block + start..block + end, &mut bytes).await?;
        // The index of the first refcount that these bytes have.
        let base = start * 8 / bits;
        for (cluster, value) in edits {
            set_refcount(&mut bytes, layout.refcount_order, cluster % entries - base, *value);
        }
        target.write(block + start, &bytes).await?;
    }
    Ok(())
}
