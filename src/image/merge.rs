//! Merging an image into the one below: what `qemu-img commit` does.

use futures::future::try_join_all;

use crate::error::Result;
use crate::storage::Storage;

use super::Image;
use super::map::{Extent, ExtentKind, Extents};
use super::options::{ResizeOptions, ZeroMode};

/// How much is copied in one request, in bytes.
const PIECE_LEN_BYTES: u64 = 1 << 20;

/// How many pieces are copied side by side.
const PIECES_IN_FLIGHT: usize = 8;

/// A merge on its way: see [`Image::merge_into`].
#[derive(Debug)]
pub struct Merge<'a, S, B> {
    extents: Extents<'a, S>,
    image: &'a Image<S>,
    base: &'a Image<B>,
    /// What is left of the extent that was looked at last.
    rest: Option<Extent>,
    /// What is copied now, or is to be copied again because the step before did not end well.
    pieces: Vec<Extent>,
    buffers: Vec<Vec<u8>>,
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
        Ok(Merge {
            extents,
            image: self,
            base,
            rest: None,
            pieces: Vec::new(),
            buffers: vec![Vec::new(); PIECES_IN_FLIGHT],
        })
    }
}

impl<S: Storage, B: Storage> Merge<'_, S, B> {
    /// Copies some more, several pieces side by side, and returns up to where the disk has been merged; `None` when all is,
    /// and durable in the base. Then [`Image::make_empty`] may be called on the image.
    ///
    /// # Errors
    /// What reading the image and writing the base meet. The base has some of the new bytes and some of the old ones: read
    /// through the image it is the same disk as before.
    ///
    /// # Cancel safety
    /// A step that is dropped has done some of its work; the next one does it again.
    pub async fn step(&mut self) -> Result<Option<u64>> {
        while self.pieces.len() < PIECES_IN_FLIGHT {
            // Cancel: what was found is kept.
            let Some(piece) = self.next_piece().await? else { break };
            self.pieces.push(piece);
        }
        let Some(last) = self.pieces.last() else {
            self.base.flush().await?;
            return Ok(None);
        };
        let done = last.offset + last.len;
        let (image, base) = (self.image, self.base);
        let pieces = self.pieces.iter().zip(&mut self.buffers);
        // Cancel: all pieces are copied again.
        try_join_all(pieces.map(|(piece, buffer)| copy(image, base, piece, buffer))).await?;
        self.pieces.clear();
        Ok(Some(done))
    }

    /// The next piece that has to do with the base.
    async fn next_piece(&mut self) -> Result<Option<Extent>> {
        let next = match self.rest.take() {
            Some(rest) => Some(rest),
            // Cancel: the next call finds the same.
            None => self.extents.next().await?,
        };
        Ok(next.map(|extent| {
            let is_data =
                matches!(extent.kind, ExtentKind::Data { .. } | ExtentKind::Compressed { .. });
            let len = if is_data { extent.len.min(PIECE_LEN_BYTES) } else { extent.len };
            if len < extent.len {
                let (offset, len) = (extent.offset + len, extent.len - len);
                self.rest = Some(Extent { offset, len, ..extent });
            }
            Extent { len, ..extent }
        }))
    }
}

/// Gives the base what the image has in one piece.
async fn copy<S: Storage, B: Storage>(
    image: &Image<S>,
    base: &Image<B>,
    piece: &Extent,
    buffer: &mut Vec<u8>,
) -> Result<()> {
    let Extent { offset, len, .. } = *piece;
    match piece.kind {
        ExtentKind::Data { .. } | ExtentKind::Compressed { .. } => {
            // OK to unwrap: it is 1 MiB at most.
            buffer.resize(usize::try_from(len).unwrap_or_default(), 0);
            image.read_at(buffer, offset).await?;
            base.write_at(buffer, offset).await
        }
        // Where a layer ends before the ones above, what is below does not show.
        ExtentKind::Unallocated { .. } if piece.depth + 1 == image.layers.len() => Ok(()),
        ExtentKind::Unallocated { .. } | ExtentKind::Zero { .. } | ExtentKind::Hole { .. } => {
            base.write_zeroes_at(offset, len, ZeroMode::MayUnmap).await
        }
    }
}
