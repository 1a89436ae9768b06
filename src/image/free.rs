//! Host clusters on their way to be free.
//!
//! A cluster that nothing refers to any more is reused only when
//!
//! 1. its unmapping is durable, so that no crash brings the old mapping back to what is somebody else's by then;
//! 2. every request has left that may have found it by the old mapping;
//! 3. its hole is punched, if its space is to be given up.
//!
//! Then its refcount goes down. Until then the refcount says that it is in use, which a crash makes a leak of. This file
//! keeps the lists; `commit` works them off.

use std::ops::Range;

use crate::format::L1Entry;

/// With more unmapped clusters than this, it is time for a commit.
const UNMAPPED_MANY: u64 = 4096;

/// Why a reference to clusters goes, by QEMU's classes: whether their space is given up depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum FreeReason {
    /// The guest said so.
    Request,
    /// A snapshot goes.
    Snapshot,
    /// Something else took their place.
    Other,
    /// They were taken and never used: there is nothing in them.
    Unused,
    /// The guest said so, and they are guest clusters, whose place in the data file nobody else can have.
    DataFile,
}

/// Host clusters that have lost one reference each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Free {
    /// Numbers of the clusters.
    pub(crate) clusters: Range<u64>,
    pub(crate) reason: FreeReason,
    /// The epoch in which they were unmapped.
    pub(crate) epoch: u64,
}

/// References that an L1 table gave, to its L2 tables and to what they refer to. Nothing changes these tables any more.
#[derive(Debug)]
pub(crate) struct Doomed {
    /// The entries of the L1 table whose L2 tables still are to be looked at.
    pub(crate) tables: Vec<L1Entry>,
    /// Clusters of the table that was looked at last.
    pub(crate) clusters: Vec<Range<u64>>,
    pub(crate) reason: FreeReason,
    /// The epoch in which they were unmapped.
    pub(crate) epoch: u64,
}

/// How much was unmapped at one moment.
#[derive(Debug, Clone, Copy)]
#[must_use]
pub(crate) struct Sealed {
    unmapped: usize,
    doomed: usize,
}

/// The clusters that wait.
#[derive(Debug, Default)]
pub(crate) struct Frees {
    /// Unmapped in memory only.
    unmapped: Vec<Free>,
    /// The first so many of them are not added to: a commit counts on them.
    sealed: usize,
    unmapped_clusters: u64,
    /// Durably unmapped.
    durable: Vec<Free>,
    /// Whole trees that are unmapped in memory only.
    unmapped_trees: Vec<Doomed>,
    /// Whole trees that are unmapped durably.
    durable_trees: Vec<Doomed>,
}

impl Frees {
    /// Adds what was unmapped just now. What never was mapped is durably so.
    pub(crate) fn add(&mut self, free: Free) {
        if free.reason == FreeReason::Unused {
            self.durable.push(free);
            return;
        }
        self.unmapped_clusters += free.clusters.end - free.clusters.start;
        if self.unmapped.len() > self.sealed
            && let Some(last) = self.unmapped.last_mut()
            && last.clusters.end == free.clusters.start
            && (last.reason, last.epoch) == (free.reason, free.epoch)
        {
            last.clusters.end = free.clusters.end;
            return;
        }
        self.unmapped.push(free);
    }

    /// Whether so much waits that it should be worked off.
    pub(crate) fn are_many(&self) -> bool {
        self.unmapped_clusters > UNMAPPED_MANY
    }

    /// Adds a tree that was unmapped just now.
    pub(crate) fn doom(&mut self, doomed: Doomed) {
        self.unmapped_trees.push(doomed);
    }

    /// Whether guest clusters wait whose unmapping the disk may not know yet.
    pub(crate) fn unmaps(&self, guest: &Range<u64>) -> bool {
        self.unmapped.iter().any(|free| {
            free.reason == FreeReason::DataFile
                && free.clusters.start < guest.end
                && guest.start < free.clusters.end
        })
    }

    /// Whether anything waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.unmapped.is_empty() && self.durable.is_empty() && !self.are_trees()
    }

    /// Whether whole trees wait.
    pub(crate) fn are_trees(&self) -> bool {
        !self.unmapped_trees.is_empty() || !self.durable_trees.is_empty()
    }

    /// How many entries are unmapped in memory only: the first ones, which a commit that begins now makes durable.
    pub(crate) fn seal(&mut self) -> Sealed {
        self.sealed = self.unmapped.len();
        Sealed { unmapped: self.sealed, doomed: self.unmapped_trees.len() }
    }

    /// Notes that what was unmapped at that moment is so durably.
    pub(crate) fn make_durable(&mut self, sealed: Sealed) {
        self.sealed = 0;
        for free in self.unmapped.drain(..sealed.unmapped) {
            self.unmapped_clusters -= free.clusters.end - free.clusters.start;
            self.durable.push(free);
        }
        self.durable_trees.extend(self.unmapped_trees.drain(..sealed.doomed));
    }

    /// Takes a tree that was durably unmapped two epochs before `epoch`.
    pub(crate) fn take_tree_due(&mut self, epoch: u64) -> Option<Doomed> {
        let due = self.durable_trees.iter().position(|doomed| doomed.epoch + 2 <= epoch)?;
        Some(self.durable_trees.swap_remove(due))
    }

    /// Gives a tree back that could not be worked off.
    pub(crate) fn give_tree_back(&mut self, doomed: Doomed) {
        self.durable_trees.push(doomed);
    }

    /// Takes what was durably unmapped two epochs before `epoch`. Neighbours are put together, in whatever order they were
    /// unmapped: what was written all over the disk lies side by side in the file. Those in a data file stay apart, as each of
    /// them is left alone if somebody else works there.
    pub(crate) fn take_due(&mut self, epoch: u64) -> Vec<Free> {
        let due = self.durable.extract_if(.., |free| free.epoch + 2 <= epoch);
        let mut due: Vec<Free> = due.collect();
        due.sort_unstable_by_key(|free| (free.reason, free.clusters.start));
        due.dedup_by(|next, free| {
            let goes_on = next.reason == free.reason
                && next.reason != FreeReason::DataFile
                && next.clusters.start == free.clusters.end;
            if goes_on {
                free.clusters.end = next.clusters.end;
                free.epoch = free.epoch.max(next.epoch);
            }
            goes_on
        });
        due
    }

    /// Gives back what could not be worked off.
    pub(crate) fn give_back(&mut self, frees: Vec<Free>) {
        self.durable.extend(frees);
    }
}

#[cfg(test)]
mod tests {
    use super::{Free, FreeReason, Frees};

    #[test]
    fn neighbours_become_due_together_and_what_is_free_twice_stays_two() {
        let mut frees = Frees::default();
        let free = |start: u64, end: u64, epoch| Free {
            clusters: start..end,
            reason: FreeReason::Snapshot,
            epoch,
        };
        for free in [free(7, 8, 3), free(5, 6, 3), free(9, 10, 4), free(6, 7, 2), free(5, 6, 3)] {
            frees.add(free);
        }
        let count = frees.seal();
        frees.make_durable(count);
        assert_eq!(frees.take_due(3), []);
        let due: Vec<_> = frees.take_due(5).into_iter().map(|free| free.clusters).collect();
        assert_eq!(due, [5..6, 5..8], "the one of the next epoch waits");
        assert_eq!(frees.take_due(6).len(), 1);
        assert!(frees.is_empty());
    }
}
