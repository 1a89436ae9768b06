//! The disk of an image as what another one lies in.

use std::io;
use std::sync::Arc;

use cowshed::image::{ExtentKind, ResizeOptions, ZeroMode};
use cowshed::storage::{Buf, SendStorage, StorageExtent, StorageExtentKind};

use crate::open::DiskImage;

/// An image's disk.
pub(crate) struct Nested(Arc<DiskImage>);

impl Nested {
    /// The disk of this image.
    pub(crate) fn new(image: Arc<DiskImage>) -> Self {
        Self(image)
    }

    /// How much of a range is on the disk.
    fn within(&self, offset: u64, len: u64) -> u64 {
        self.0.virtual_size().saturating_sub(offset).min(len)
    }
}

impl SendStorage for Nested {
    async fn read_at(&self, mut buf: Buf, offset: u64) -> io::Result<Buf> {
        // OK to unwrap: it is no more than the buffer has.
        let len = usize::try_from(self.within(offset, buf.len() as u64)).unwrap_or(0);
        let (there, beyond) = buf.split_at_mut(len);
        beyond.fill(0);
        if !there.is_empty() {
            self.0.read_at(there, offset).await.map_err(io::Error::from)?;
        }
        Ok(buf)
    }

    async fn write_at(&self, buf: Buf, offset: u64) -> io::Result<Buf> {
        self.grow(offset.saturating_add(buf.len() as u64)).await?;
        self.0.write_at(&buf, offset).await.map_err(io::Error::from)?;
        Ok(buf)
    }

    async fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        self.grow(offset.saturating_add(len)).await?;
        self.0.write_zeroes_at(offset, len, ZeroMode::KeepSpace).await.map_err(io::Error::from)
    }

    async fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.0.discard_at(offset, self.within(offset, len)).await.map_err(io::Error::from)
    }

    async fn flush(&self) -> io::Result<()> {
        self.0.flush().await.map_err(io::Error::from)
    }

    async fn len(&self) -> io::Result<u64> {
        Ok(self.0.virtual_size())
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.resize(len, &ResizeOptions::default()).await.map_err(io::Error::from)
    }

    async fn extent_at(&self, offset: u64, len: u64) -> io::Result<StorageExtent> {
        let within = self.within(offset, len);
        if within == 0 {
            return Ok(StorageExtent { kind: StorageExtentKind::Hole, len });
        }
        let extent = self.0.map(offset, within).await.map_err(io::Error::from)?;
        let kind = match extent.kind {
            ExtentKind::Data { .. } | ExtentKind::Compressed { .. } => StorageExtentKind::Data,
            _ => StorageExtentKind::Hole,
        };
        Ok(StorageExtent { kind, len: extent.len })
    }
}

impl Nested {
    /// Makes the disk as long as what is written to it.
    async fn grow(&self, end: u64) -> io::Result<()> {
        match end > self.0.virtual_size() {
            true => self.set_len(end).await,
            false => Ok(()),
        }
    }
}
