//! The references that an L1 table gives: one to each of its L2 tables and to what each of their entries refers to.
//!
//! A tree gets its references before anything on disk leads to it, and loses them when nothing does any more. They are
//! given and taken table by table, so that no more than one L2 table's clusters are in memory. Meanwhile nothing may change
//! the tree's L2 tables: those of the active L1 table have no copied flag then, and are copied before they are written to.

use std::ops::Range;

use crate::error::{Result, Structure};
use crate::format::{ClusterKind, HostOffset, L1Entry, L2Entry};
use crate::storage::Storage;

use super::super::commit::CLUSTERS_PER_TURN;
use super::super::free::{Doomed, FreeReason};
use super::super::writer::Top;

/// Refcounts of so many bits can overflow after few snapshots: there it is asked before anything changes.
const REFCOUNT_MAX_ASKED: u64 = 0xff;

/// The references of a tree, as far as they were given. Dropping it takes them back, unless they are kept.
#[must_use]
pub(super) struct Raised<'a, S> {
    top: Top<'a, S>,
    given: Doomed,
    /// The L2 tables with entries that have the copied flag.
    pub(super) flagged: Vec<HostOffset>,
    kept: bool,
}

impl<S> Raised<'_, S> {
    /// Something leads to the tree now.
    pub(super) fn keep(mut self) {
        self.kept = true;
    }
}

impl<S> Drop for Raised<'_, S> {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        let Doomed { tables, clusters, reason, epoch } = &mut self.given;
        let given = Doomed {
            tables: std::mem::take(tables),
            clusters: std::mem::take(clusters),
            reason: *reason,
            epoch: *epoch,
        };
        self.top.writer.frees.lock().doom(given);
    }
}

/// What an L2 table refers to.
struct References {
    /// In the order of its entries, and then itself.
    clusters: Vec<Range<u64>>,
    /// Whether an entry has the copied flag.
    is_flagged: bool,
}

impl<'a, S: Storage> Top<'a, S> {
    /// Asks whether everything in a tree can have one more reference, where refcounts are so narrow that it may not be so.
    ///
    /// # Errors
    /// [`Error::LimitExceeded`](crate::Error::LimitExceeded) if something cannot.
    pub(super) async fn may_raise(&self, l1: &[L1Entry]) -> Result<()> {
        let limit = self.layer.geometry.refcount_max();
        let snapshots = self.layer.snapshots.get().len() as u64;
        if limit > REFCOUNT_MAX_ASKED && snapshots + 2 < limit {
            return Ok(());
        }
        for table in l1.iter().filter_map(|entry| entry.l2_table()) {
            // The table itself first: where nothing can be shared, no table has to be read.
            let cluster = table.get() >> self.layer.geometry.cluster_bits();
            self.may_be_referenced(cluster..cluster + 1).await?;
            for clusters in self.references_of(table).await?.clusters {
                self.may_be_referenced(clusters).await?;
            }
        }
        Ok(())
    }

    /// Gives a tree its references, in memory. Its L2 tables must be on disk as they are.
    ///
    /// # Cancel safety
    /// What was given is taken back by the next commit.
    pub(super) async fn raise(&self, l1: &[L1Entry]) -> Result<Raised<'a, S>> {
        let epoch = self.image.requests.epoch();
        let reason = FreeReason::Unused;
        let given = Doomed { tables: Vec::new(), clusters: Vec::new(), reason, epoch };
        let mut raised = Raised { top: *self, given, flagged: Vec::new(), kept: false };
        for entry in l1 {
            let Some(table) = entry.l2_table() else { continue };
            let references = self.references_of(table).await?;
            if references.is_flagged {
                raised.flagged.push(table);
            }
            for clusters in references.clusters {
                // Cancel: `raised` knows what was given.
                self.add_references(clusters.clone()).await?;
                raised.given.clusters.push(clusters);
            }
            raised.given.clusters.clear();
            raised.given.tables.push(*entry);
            if self.refcounts_need_room() {
                self.settle().await?;
                self.write_all_refcounts().await?;
            }
        }
        Ok(raised)
    }

    /// Takes the references of trees that nothing leads to durably, and that nobody uses any more.
    pub(in super::super) async fn release_doomed(&self, epoch: u64) -> Result<()> {
        loop {
            let Some(doomed) = self.writer.frees.lock().take_tree_due(epoch) else { return Ok(()) };
            let mut due = Due { top: *self, doomed: Some(doomed) };
            while let Some(doomed) = &mut due.doomed {
                if let Some(clusters) = doomed.clusters.last().cloned() {
                    self.release(clusters, doomed.reason).await?;
                    doomed.clusters.pop();
                } else if let Some(entry) = doomed.tables.last() {
                    if let Some(table) = entry.l2_table() {
                        doomed.clusters = self.references_of(table).await?.clusters;
                    }
                    doomed.tables.pop();
                } else {
                    due.doomed = None;
                }
                if self.refcounts_need_room() {
                    self.write_all_refcounts().await?;
                }
            }
        }
    }

    /// What the L2 table at `table` refers to on disk.
    async fn references_of(&self, table: HostOffset) -> Result<References> {
        let geometry = self.layer.geometry;
        let bytes = self
            .layer
            .metadata
            .load(Structure::L2Table, table.get(), geometry.cluster_size())
            .await?;
        let bits = geometry.cluster_bits();
        let mut references = References { clusters: Vec::new(), is_flagged: false };
        let entry_len = usize::try_from(geometry.l2_entry_len()).unwrap_or(8);
        for (index, entry) in (0..).zip(bytes.chunks_exact(entry_len)) {
            // OK to unwrap: an entry has one or two words of eight bytes.
            #[allow(clippy::unwrap_used)]
            let word = u64::from_be_bytes(entry[..8].try_into().unwrap());
            let entry = L2Entry::from_raw(word, 0);
            references.is_flagged |= entry.copied();
            let kind = entry.cluster(&self.layer.context).map_err(|it| it.at(table, index))?;
            let (host, len) = match kind {
                ClusterKind::Data { host } | ClusterKind::Zero { host: Some(host) } => {
                    (host, geometry.cluster_size())
                }
                ClusterKind::Compressed(cluster) => (cluster.host, cluster.len),
                ClusterKind::Zero { host: None } | ClusterKind::Unallocated => continue,
            };
            let first = host.get() >> bits;
            let end = (host.get() + len).div_ceil(geometry.cluster_size());
            match references.clusters.last_mut() {
                Some(last) if last.end == first && end - last.start <= CLUSTERS_PER_TURN => {
                    last.end = end;
                }
                _ => references.clusters.push(first..end),
            }
        }
        let own = table.get() >> bits;
        references.clusters.push(own..own + 1);
        Ok(references)
    }
}

/// A tree that is losing its references; what is left when it is dropped waits on.
struct Due<'a, S> {
    top: Top<'a, S>,
    doomed: Option<Doomed>,
}

impl<S> Drop for Due<'_, S> {
    fn drop(&mut self) {
        if let Some(doomed) = self.doomed.take() {
            self.top.writer.frees.lock().give_tree_back(doomed);
        }
    }
}
