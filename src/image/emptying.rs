//! Making an image empty: every cluster becomes unallocated, so that the disk is what lies below it.
//!
//! Source: QEMU, block/qcow2.c, `qcow2_make_empty`, its way without cutting the file.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::format::{ClusterKind, L2Entry};
use crate::storage::Storage;

use super::Image;
use super::free::FreeReason;
use super::requests::Request;
use super::writer::{Target, Top};
use super::zero::Becomes;

impl<S: Storage> Image<S> {
    /// Forgets all that the image itself has of the active disk, as `qemu-img commit` does when its backing file has it. The
    /// disk reads as the backing file does then; without one it reads as zeros. Snapshots keep what they have. L2 tables stay
    /// where they are. Bitmaps note a change wherever there was one.
    ///
    /// It is durable when this returns. After a power loss in the middle some clusters are unallocated and others are not.
    ///
    /// # Errors
    /// As [`Self::write_at`]; [`Error::InvalidArgument`] for raw images, which cannot be without their bytes, and while the
    /// image is committed into its backing file or gets another one.
    ///
    /// # Cancel safety
    /// Some clusters are unallocated and others are not; another call goes on.
    pub async fn make_empty(&self) -> Result<()> {
        let (writer, _) = self.target()?;
        let _backing = writer.hold_backing()?;
        let op = self.requests.enter_chore().await?;
        let mut at = 0;
        loop {
            let change = self.begin_change(&op).await?;
            let Target::Qcow2(top) = &change.target else {
                return Err(Error::InvalidArgument("a raw image cannot be made empty".into()));
            };
            if at >= self.virtual_size() {
                break;
            }
            // Nobody here knows whether what lies below is the same.
            at = top
                .empty_step(&change.request, at, |range| {
                    change.mark(range);
                    false
                })
                .await?;
        }
        self.flush_by(&op).await
    }
}

impl<S: Storage> Top<'_, S> {
    /// Makes clusters unallocated from guest offset `at` on, but for those of which `keeps` says so, and returns where to go
    /// on.
    pub(super) async fn empty_step(
        &self,
        request: &Request<'_>,
        at: u64,
        keeps: impl Fn(Range<u64>) -> bool,
    ) -> Result<u64> {
        let geometry = self.layer.geometry;
        let coverage = geometry.l2_coverage();
        if self.l1_entry(at / coverage)?.l2_table().is_none() {
            return Ok((at / coverage + 1).saturating_mul(coverage));
        }
        let disk_end = self.layer.virtual_size().next_multiple_of(geometry.cluster_size());
        let end = self.slice_end(at).min(disk_end);
        let reason = FreeReason::Snapshot;
        let done = self
            .change_entries(request, at..end, reason, |top, entry, guest, part| {
                if keeps(part.clone()) {
                    return Ok(Becomes::Same);
                }
                let kind = top.layer.cluster_kind(entry, guest)?;
                let new = L2Entry::default();
                let has_host = kind.host().is_some() || matches!(kind, ClusterKind::Compressed(_));
                Ok(match has_host {
                    true => Becomes::Unreferenced(new),
                    false if *entry == new => Becomes::Same,
                    false => Becomes::Other(new),
                })
            })
            .await?;
        Ok(at + done)
    }
}
