//! What an image says about itself and what lies on its disk: looks at bytes, opens nothing.
//!
//! Everything here sees a [`ReadAt`] and the format's types. It must not know how the image finds its bytes.

#[cfg(feature = "files")]
pub mod files;
#[cfg(feature = "files")]
mod foreign;
mod little_endian;
pub mod partitions;
mod verdict;
#[cfg(feature = "files")]
mod volumes;
mod window;

use std::future::Future;
use std::ops::Deref;

pub use verdict::{Conclusion, Severity, Verdict, VerdictFinding, VerdictOptions, verdict};
#[cfg(feature = "files")]
pub use volumes::{Volume, volumes};
pub use window::Window;

use crate::error::{Error, Result};
use crate::image::Image;
use crate::storage::{Buf, Storage};

/// Bytes to look at: of a disk, as its guest sees them, or of an image file.
pub trait ReadAt {
    /// How many bytes there are.
    fn len(&self) -> u64;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads `buf.len()` bytes from `offset`.
    ///
    /// # Errors
    /// What the medium says, and [`Error::OutOfBounds`] if the range is not within the bytes.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> impl Future<Output = Result<()>>;
}

impl<R: ReadAt> ReadAt for &R {
    fn len(&self) -> u64 {
        R::len(self)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> impl Future<Output = Result<()>> {
        R::read_at(self, buf, offset)
    }
}

/// The disk as its guest sees it.
impl<S: Storage> ReadAt for Image<S> {
    fn len(&self) -> u64 {
        self.virtual_size()
    }

    async fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        Image::read_at(self, buf, offset).await
    }
}

/// The bytes of an open image's own file.
#[derive(Debug)]
pub struct HostBytes<'a, S>(pub &'a Image<S>);

impl<S: Storage> ReadAt for HostBytes<'_, S> {
    fn len(&self) -> u64 {
        self.0.layers().next().map_or(0, |layer| layer.file_len)
    }

    async fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.0.read_host(buf, offset).await
    }
}

/// The bytes of a storage, behind any pointer to one: an image file that need not be one that can be opened, or a disk.
#[derive(Debug, Clone)]
pub struct StorageBytes<P> {
    storage: P,
    len: u64,
}

impl<P: Deref<Target: Storage>> StorageBytes<P> {
    /// Asks the storage for its length.
    ///
    /// # Errors
    /// [`Error::Storage`].
    pub async fn new(storage: P) -> Result<Self> {
        let len = storage.len().await.map_err(|source| Error::storage("length", 0, 0, source))?;
        Ok(Self { storage, len })
    }
}

impl<P: Deref<Target: Storage>> ReadAt for StorageBytes<P> {
    fn len(&self) -> u64 {
        self.len
    }

    async fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let len = buf.len() as u64;
        must_lie_within(offset, len, self.len)?;
        let failed = |source| Error::storage("read", offset, len, source);
        let limits = self.storage.limits();
        let alignment = u64::from(limits.request_alignment).max(1);
        if alignment == 1
            && let Some(done) = self.storage.try_read_at(buf, offset)
        {
            return done.map_err(failed);
        }
        let start = offset - offset % alignment;
        // OK to unwrap: less than an alignment, which is u32, more than what is in memory already.
        let skip = usize::try_from(offset - start).unwrap_or(0);
        let wide = (skip + buf.len()).next_multiple_of(usize::try_from(alignment).unwrap_or(1));
        let wide = Buf::aligned(wide, limits.memory_alignment.max(1) as usize);
        let wide = self.storage.read_at(wide, start).await.map_err(failed)?;
        buf.copy_from_slice(&wide[skip..skip + buf.len()]);
        Ok(())
    }
}

/// Refuses a range that reaches past the end of `size` bytes.
fn must_lie_within(offset: u64, len: u64, size: u64) -> Result<()> {
    match offset.checked_add(len) {
        Some(end) if end <= size => Ok(()),
        _ => Err(Error::out_of_bounds(offset, len, size)),
    }
}

/// Nothing at all: for want of a disk.
impl ReadAt for () {
    fn len(&self) -> u64 {
        0
    }

    async fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        Err(Error::OutOfBounds { offset, len: buf.len() as u64, size: 0 })
    }
}
