//! What a repair learns while it counts: what it may mend, and where it must not write.

use std::collections::BTreeSet;

use crate::image::check::counts::{Cell, Counts};
use crate::image::check::layout::Layout;
use crate::image::check::report::{Finding, FindingKind, Structure};

/// Clusters that metadata shares, of which a repair keeps track. With more, no table is written to.
const SHARED_MAX: usize = 128 << 10;

/// What a repair learns from one reading of the metadata.
#[derive(Debug, Default)]
pub(in crate::image::check) struct Mending {
    /// Errors are mended, not only leaks.
    pub(in crate::image::check) all: bool,
    /// Entries that keep an unaligned cluster for zeros are going to be zeroed: they refer to nothing any more.
    pub(in crate::image::check) zeroes_entries: bool,
    /// How many there are.
    pub(in crate::image::check) zeroed_entries: u64,
    /// How many there were that could not be zeroed: they stay what they are.
    pub(super) kept_entries: u64,
    /// An entry that points into a data file lacks its copied flag.
    pub(in crate::image::check) data_flags_differ: bool,
    /// Refcount table and blocks must be built anew.
    pub(in crate::image::check) rebuild: bool,
    /// Bytes that the file lacks behind its end, for a structure to be whole.
    pub(super) missing: u64,
    /// Such structures.
    pub(super) cut_short: u64,
    /// Something is broken in a way that hides what is in use: nothing may be changed.
    pub(super) hides_references: bool,
    /// Something reaches behind the end of the file: clusters with a refcount of zero may be read all the same.
    pub(super) past_end: bool,
    /// Entries of the snapshot table that lack extra data. They hide no references: QEMU's repair of leaks does not mind them.
    pub(super) incomplete_snapshots: u64,
    /// What the comparison of refcounts added to the totals.
    pub(super) compared: Compared,
    /// Totals of what is mended.
    pub(in crate::image::check) corruptions_fixed: u64,
    pub(in crate::image::check) leaks_fixed: u64,
    /// The header's cluster is read as a table too.
    pub(super) header_is_table: bool,
    shared: BTreeSet<u64>,
    shared_full: bool,
}

/// Totals of a comparison of refcounts.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Compared {
    pub(super) check_errors: u64,
    pub(super) corruptions: u64,
    pub(super) leaks: u64,
}

impl Mending {
    pub(super) fn new(all: bool) -> Self {
        Self { all, ..Self::default() }
    }

    /// Forgets what was learnt, for the metadata is read again. What is mended stays mended.
    pub(super) fn forget(&mut self) {
        let Self { all, kept_entries, corruptions_fixed, leaks_fixed, .. } = *self;
        *self = Self { all, kept_entries, corruptions_fixed, leaks_fixed, ..Self::default() };
    }

    /// Learns from a finding, and says whether the repair mends it.
    pub(in crate::image::check) fn note(&mut self, finding: &Finding) -> bool {
        let of_refcounts =
            matches!(finding.structure, Structure::RefcountTable | Structure::RefcountBlock);
        match &finding.kind {
            FindingKind::RefcountTooLow { refcount, .. } => {
                self.compared.corruptions += finding.times;
                // There may be no refcount block for it.
                self.rebuild |= *refcount == 0;
            }
            FindingKind::Leak { .. } => self.compared.leaks += finding.times,
            FindingKind::RefcountUnknown { .. } => {
                self.compared.check_errors += finding.times;
                self.rebuild = true;
            }
            FindingKind::RefcountTableReserved { .. }
            | FindingKind::RefcountBlockUnaligned { .. }
            | FindingKind::RefcountBlockOutside { .. }
            | FindingKind::RefcountBlockShared { .. } => self.rebuild = true,
            FindingKind::CutShort { missing } if self.all && !of_refcounts => {
                self.missing = self.missing.max(*missing);
                self.cut_short += 1;
                return true;
            }
            FindingKind::CutShort { .. } | FindingKind::Overlap { .. } => {
                self.rebuild |= of_refcounts && self.all;
            }
            FindingKind::PastEnd { .. } => {
                self.rebuild |= of_refcounts;
                self.past_end = true;
            }
            FindingKind::SnapshotIncomplete { .. } => self.incomplete_snapshots += finding.times,
            FindingKind::SnapshotTableBroken { .. } | FindingKind::BitmapDirectoryBroken { .. } => {
                self.hides_references = true;
            }
            _ => {}
        }
        false
    }

    /// Remembers the clusters that metadata shares with something.
    pub(in crate::image::check) fn take_shared<C: Cell>(
        &mut self,
        counts: &Counts<C>,
        layout: &Layout,
    ) {
        let (shared, full) = counts.shared();
        self.shared_full |= full || self.shared.len() + shared.len() > SHARED_MAX;
        self.header_is_table |= self.shared_full;
        for (cluster, by) in shared {
            let refcounts = [Structure::RefcountTable, Structure::RefcountBlock];
            // QEMU is content if the refcounts agree; whoever writes next would not be.
            self.rebuild |= self.all
                && (refcounts.contains(&by.structure)
                    || layout.structure_at(*cluster) == Some(Structure::RefcountTable));
            self.header_is_table |= *cluster == 0 && by.structure != Structure::Data;
            if !self.shared_full {
                self.shared.insert(*cluster);
            }
        }
    }

    /// Whether the cluster at an offset belongs to more than one thing, as far as is known: then it is not written to.
    pub(in crate::image::check) fn is_shared(&self, offset: u64, layout: &Layout) -> bool {
        self.shared_full || self.shared.contains(&(offset >> layout.cluster_bits))
    }
}
