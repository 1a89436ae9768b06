//! Writing the disk.

use crate::error::{Error, Result};
use crate::storage::Storage;

use super::Image;
use super::options::{ResizeOptions, ZeroMode};

impl<S: Storage> Image<S> {
    /// Writes `data` to the disk at guest `offset`, at any alignment.
    ///
    /// # Errors
    /// [`Error::ReadOnly`], [`Error::OutOfBounds`], [`Error::Storage`], [`Error::Corrupt`], [`Error::Closed`].
    ///
    /// # Cancel safety
    /// A dropped write may have any effect on its own range until the next flush returns, and none elsewhere.
    pub async fn write_at(&self, data: &[u8], offset: u64) -> Result<()> {
        self.range_end(offset, data.len() as u64)?;
        Err(Error::ReadOnly("writing is not finished".into()))
    }

    /// Makes `len` bytes from guest `offset` read as zeros.
    ///
    /// # Errors
    /// As [`Self::write_at`].
    ///
    /// # Cancel safety
    /// As [`Self::write_at`].
    pub async fn write_zeroes_at(&self, offset: u64, len: u64, _mode: ZeroMode) -> Result<()> {
        self.range_end(offset, len)?;
        Err(Error::ReadOnly("writing is not finished".into()))
    }

    /// Discards `len` bytes from guest `offset`.
    ///
    /// # Errors
    /// As [`Self::write_at`].
    ///
    /// # Cancel safety
    /// As [`Self::write_at`].
    pub async fn discard_at(&self, offset: u64, len: u64) -> Result<()> {
        self.range_end(offset, len)?;
        Err(Error::ReadOnly("writing is not finished".into()))
    }

    /// Writes `data` compressed: whole clusters, or the tail of the disk.
    ///
    /// # Errors
    /// As [`Self::write_at`].
    ///
    /// # Cancel safety
    /// As [`Self::write_at`].
    pub async fn write_compressed_at(&self, data: &[u8], offset: u64) -> Result<()> {
        self.range_end(offset, data.len() as u64)?;
        Err(Error::ReadOnly("writing is not finished".into()))
    }

    /// Makes everything that was written before this call durable.
    ///
    /// # Errors
    /// [`Error::Storage`]; [`Error::Closed`].
    ///
    /// # Cancel safety
    /// A dropped flush promises nothing.
    pub async fn flush(&self) -> Result<()> {
        let _request = self.requests.enter()?;
        Ok(())
    }

    /// Changes the size of the disk to `size` bytes.
    ///
    /// # Errors
    /// As [`Self::write_at`]; [`Error::InvalidArgument`] for what the format does not allow.
    ///
    /// # Cancel safety
    /// The disk has the old size or the new one.
    pub async fn resize(&self, _size: u64, _options: &ResizeOptions) -> Result<()> {
        Err(Error::ReadOnly("writing is not finished".into()))
    }
}
