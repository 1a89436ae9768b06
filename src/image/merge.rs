//! Merging an image into the one below: what `qemu-img commit` does.

use crate::error::Result;
use crate::storage::Storage;

use super::Image;
use super::map::{Extent, ExtentKind, Extents};
use super::options::{ResizeOptions, ZeroMode};

/// How much is copied at a time, in bytes.
const PIECE_LEN_BYTES: u64 = 1 << 20;

/// A merge on its way: see [`Image::merge_into`].
#[derive(Debug)]
pub struct Merge<'a, S, B> {
    extents: Extents<'a, S>,
    image: &'a Image<S>,
    base: &'a Image<B>,
    /// What is left of the extent that was looked at last.
    rest: Option<Extent>,
    buffer: Vec<u8>,
}

impl<S: Storage> Image<S> {
    /// Begins to copy into `base` what the layers of this image have: makes its disk as large as this one, if it is smaller.
    /// [`Merge::step`] does the rest.
    ///
    /// `base` is the image below the last layer of this one, opened for writing; this image is opened with a gate that
    /// answers [`Answer::Zeros`](super::Answer::Zeros) for it, so that it is open once. What no layer of this image has is
    /// taken to be in `base`.
    ///
    /// # Errors
    /// As [`Self::resize`], of `base`.
    ///
    /// # Cancel safety
    /// The disk of `base` is as large as before or as this one.
    pub async fn merge_into<'a, B: Storage>(
        &'a self,
        base: &'a Image<B>,
    ) -> Result<Merge<'a, S, B>> {
        let size = self.virtual_size();
        if base.virtual_size() < size {
            base.resize(size, &ResizeOptions::default()).await?;
        }
        let extents = self.extents(0, size)?;
        Ok(Merge { extents, image: self, base, rest: None, buffer: Vec::new() })
    }
}

impl<S: Storage, B: Storage> Merge<'_, S, B> {
    /// Copies some more and returns up to where the disk has been merged; `None` when all is, and durable in the base. Then
    /// [`Image::make_empty`] may be called on the image.
    ///
    /// # Errors
    /// What reading the image and writing the base meet. The base has some of the new bytes and some of the old ones: read
    /// through the image it is the same disk as before.
    ///
    /// # Cancel safety
    /// A step that is dropped has done some of its work; the next one does it again.
    pub async fn step(&mut self) -> Result<Option<u64>> {
        let next = match self.rest {
            Some(rest) => Some(rest),
            None => self.extents.next().await?,
        };
        let Some(extent) = next else {
            self.base.flush().await?;
            return Ok(None);
        };
        self.rest = Some(extent);
        let last = self.image.layers.len() - 1;
        let done = match extent.kind {
            ExtentKind::Data { .. } | ExtentKind::Compressed { .. } => {
                let len = extent.len.min(PIECE_LEN_BYTES);
                // OK to unwrap: it is 1 MiB at most.
                self.buffer.resize(usize::try_from(len).unwrap_or_default(), 0);
                self.image.read_at(&mut self.buffer, extent.offset).await?;
                self.base.write_at(&self.buffer, extent.offset).await?;
                len
            }
            // Where a layer ends before the ones above, what is below does not show.
            ExtentKind::Unallocated { .. } if extent.depth == last => extent.len,
            ExtentKind::Unallocated { .. } | ExtentKind::Zero { .. } | ExtentKind::Hole { .. } => {
                let (offset, len) = (extent.offset, extent.len);
                self.base.write_zeroes_at(offset, len, ZeroMode::MayUnmap).await?;
                len
            }
        };
        let offset = extent.offset + done;
        let len = extent.len - done;
        self.rest = (len > 0).then_some(Extent { offset, len, ..extent });
        Ok(Some(offset))
    }
}
