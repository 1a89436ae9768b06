//! A part of a disk, as a disk of its own: a partition.

use super::{ReadAt, must_lie_within};
use crate::error::Result;

/// `len` bytes of `disk` from `start`. What reaches past the disk's end reads as an error, as it does there.
#[derive(Debug, Clone)]
pub struct Window<R> {
    disk: R,
    start: u64,
    len: u64,
}

impl<R: ReadAt> Window<R> {
    /// The `len` bytes from `start`, both in bytes; cut where the disk ends.
    pub fn new(disk: R, start: u64, len: u64) -> Self {
        let len = len.min(disk.len().saturating_sub(start));
        Self { disk, start, len }
    }

    /// Where it starts on the disk, in bytes.
    #[must_use]
    pub fn start(&self) -> u64 {
        self.start
    }
}

impl<R: ReadAt> ReadAt for Window<R> {
    fn len(&self) -> u64 {
        self.len
    }

    async fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        must_lie_within(offset, buf.len() as u64, self.len)?;
        // The end of the window is a position on the disk, so that this cannot overflow.
        self.disk.read_at(buf, self.start + offset).await
    }
}
