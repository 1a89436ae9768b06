//! Writing the VM state: guest data behind the end of the disk, which snapshots take with them.
//!
//! Source: QEMU, block/qcow2.c, `qcow2_co_save_vmstate`; qcow2.h, `qcow2_vm_state_offset`.

use crate::error::{Error, Result, Structure, Unsupported, UnsupportedKind};
use crate::storage::Storage;

use super::Image;
use super::writer::Target;

impl<S: Storage> Image<S> {
    /// Writes `data` as VM state of the active state, from `offset` within it, at any alignment. The L1 table grows as it
    /// must. [`Self::create_snapshot`] takes it along, and [`Self::apply_snapshot`] brings it back.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for images with an external data file; [`Error::LimitExceeded`] if the L1 table would become
    /// too long; [`Error::InvalidArgument`] for raw images; else as [`Self::write_at`].
    ///
    /// # Cancel safety
    /// As [`Self::write_at`].
    pub async fn write_vm_state_at(&self, data: &[u8], offset: u64) -> Result<()> {
        let op = self.requests.enter_chore().await?;
        let mut done = 0;
        while done < data.len() {
            let change = self.begin_change(&op).await?;
            let Target::Qcow2(top) = &change.target else {
                return Err(Error::InvalidArgument("a raw image has no VM state".into()));
            };
            if top.layer.context.data_file() {
                let kind = UnsupportedKind::SnapshotWithDataFile;
                return Err(Unsupported::new(kind, Structure::Header).into());
            }
            let want = data.len() as u64;
            let start = top.layer.vm_state_offset();
            let end = offset.checked_add(want).and_then(|end| start.checked_add(end));
            let end = end.ok_or_else(|| Error::out_of_bounds(offset, want, u64::MAX))?;
            let entries = end.div_ceil(top.layer.geometry.l2_coverage());
            if entries > top.layer.l1.len() as u64 {
                top.l1_len(entries)?;
                drop(change);
                let alone = self.begin_alone_by(&op, "no VM state").await?;
                // Cancel: the table is as long as it was, or as it must be.
                alone.top.grow_l1_to(entries).await?;
                continue;
            }
            let at = start + offset + done as u64;
            done += top.write_step(&change.request, &data[done..], at).await?;
        }
        self.write_through(&op).await
    }
}
