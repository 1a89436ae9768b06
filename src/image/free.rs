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

/// With more unmapped clusters than this, it is time for a commit.
const UNMAPPED_MANY: u64 = 4096;

/// Why a reference to clusters goes, by QEMU's classes: whether their space is given up depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
        self.unmapped.is_empty() && self.durable.is_empty()
    }

    /// How many entries are unmapped in memory only: the first ones, which a commit that begins now makes durable.
    pub(crate) fn seal(&mut self) -> usize {
        self.sealed = self.unmapped.len();
        self.sealed
    }

    /// Notes that the first `count` unmappings are durable.
    pub(crate) fn make_durable(&mut self, count: usize) {
        self.sealed = 0;
        for free in self.unmapped.drain(..count) {
            self.unmapped_clusters -= free.clusters.end - free.clusters.start;
            self.durable.push(free);
        }
    }

    /// Takes what was durably unmapped two epochs before `epoch`.
    pub(crate) fn take_due(&mut self, epoch: u64) -> Vec<Free> {
        self.durable.extract_if(.., |free| free.epoch + 2 <= epoch).collect()
    }

    /// Gives back what could not be worked off.
    pub(crate) fn give_back(&mut self, frees: Vec<Free>) {
        self.durable.extend(frees);
    }
}
