//! Giving an image another backing file without a change of its disk: what `qemu-img rebase` does before the name changes.

use std::ops::Range;

use futures::future::try_join_all;

use crate::error::{Error, Result};
use crate::format::Version;
use crate::storage::Storage;
use crate::sync::AsyncMutexGuard;

use super::Image;
use super::map::ExtentKind;
use super::options::ZeroMode;

/// How much is compared in one request, in bytes.
const PIECE_LEN_BYTES: u64 = 1 << 20;

/// How many pieces are compared side by side.
const PIECES_IN_FLIGHT: usize = 8;

/// Compares what an image sees below itself with another image that is to be below it, and keeps what differs: see
/// [`Image::rebase_onto`].
#[derive(Debug)]
pub struct Rebase<'a, S, B> {
    image: &'a Image<S>,
    base: Option<&'a Image<B>>,
    same_from: Option<usize>,
    compress: bool,
    /// Up to where pieces were looked for.
    offset: u64,
    /// What is compared now, or is to be compared again because the step before did not end well. They are whole units, so
    /// that no two of them share one.
    pieces: Vec<Range<u64>>,
    buffers: Vec<Buffers>,
    /// Until all is compared: what was found must stay.
    backing: Option<AsyncMutexGuard<'a, ()>>,
}

/// What the image sees below itself and what it is to see there, of one piece.
#[derive(Debug, Clone, Default)]
struct Buffers {
    old: Vec<u8>,
    new: Vec<u8>,
}

impl<S: Storage> Image<S> {
    /// Begins to make this image independent of the difference between its backing file and `base`, the one that it is to
    /// have instead (`None`: none). [`Rebase::step`] does the work; then [`Self::set_backing_file`] may name `base`. Until
    /// then nothing of the disk changes, whatever happens.
    ///
    /// Layers from depth `same_from` on are `base`, if it is one of this image's own layers: what comes from there need not
    /// be compared. With `compress`, clusters that are kept are compressed.
    ///
    /// # Errors
    /// [`Error::ReadOnly`]; [`Error::InvalidArgument`] for raw images, and while the image is committed into its backing file or
    /// gets another one.
    pub fn rebase_onto<'a, B: Storage>(
        &'a self,
        base: Option<&'a Image<B>>,
        same_from: Option<usize>,
        compress: bool,
    ) -> Result<Rebase<'a, S, B>> {
        let (writer, _) = self.target()?;
        if self.top().is_none() {
            return Err(Error::InvalidArgument("a raw image has no backing file".into()));
        }
        let (pieces, buffers) = (Vec::new(), vec![Buffers::default(); PIECES_IN_FLIGHT]);
        let backing = Some(writer.hold_backing()?);
        Ok(Rebase { image: self, base, same_from, compress, offset: 0, pieces, buffers, backing })
    }
}

impl<S: Storage, B: Storage> Rebase<'_, S, B> {
    /// Compares some more, several pieces side by side, and returns up to where the disk has been compared; `None` when all
    /// is.
    ///
    /// # Errors
    /// What reading the old backing file and `base` and writing the image meet: the disk is the same all the same.
    ///
    /// # Cancel safety
    /// A step that is dropped has done some of its work; the next one does it again.
    pub async fn step(&mut self) -> Result<Option<u64>> {
        let size = self.image.virtual_size();
        if self.pieces.is_empty() && self.offset >= size {
            self.backing = None;
            return Ok(None);
        }
        let (first, unit) = (self.offset, self.unit());
        while self.pieces.len() < PIECES_IN_FLIGHT
            && self.offset < size
            && self.offset - first < PIECE_LEN_BYTES * PIECES_IN_FLIGHT as u64
        {
            // Cancel: what was found is kept.
            self.find_piece(size, unit).await?;
        }
        let mut buffers = std::mem::take(&mut self.buffers);
        buffers.resize_with(PIECES_IN_FLIGHT, Buffers::default);
        let pieces = self.pieces.iter().zip(&mut buffers);
        // Cancel: all pieces are compared again.
        try_join_all(pieces.map(|(piece, buffers)| self.keep_differences(piece, unit, buffers)))
            .await?;
        self.buffers = buffers;
        self.pieces.clear();
        Ok(Some(self.offset))
    }

    /// What is written is written in whole units of so many bytes, so that nothing is copied beside it.
    fn unit(&self) -> u64 {
        self.image.geometry().map_or(1, |geometry| match self.compress {
            true => geometry.cluster_size(),
            false => geometry.subcluster_size(),
        })
    }

    /// Goes on to the end of an extent, which is a piece if it has to be compared.
    async fn find_piece(&mut self, size: u64, unit: u64) -> Result<()> {
        let extent = self.image.map(self.offset, (size - self.offset).min(PIECE_LEN_BYTES)).await?;
        let mut end = extent.offset + extent.len;
        let is_own = extent.depth == 0 && !matches!(extent.kind, ExtentKind::Unallocated { .. });
        let is_same = self.same_from.is_some_and(|depth| extent.depth >= depth);
        if !is_own && !is_same {
            end = end.next_multiple_of(unit).min(size);
            self.pieces.push(self.offset - self.offset % unit..end);
        }
        self.offset = end;
        Ok(())
    }

    /// Writes those units of a piece that differ.
    async fn keep_differences(
        &self,
        piece: &Range<u64>,
        unit: u64,
        buffers: &mut Buffers,
    ) -> Result<()> {
        let (start, end) = (piece.start, piece.end);
        let Buffers { old, new } = buffers;
        // OK to unwrap: a piece and a cluster at each end.
        let len = |len: u64| usize::try_from(len).unwrap_or_default();
        old.resize(len(end - start), 0);
        new.clear();
        new.resize(len(end - start), 0);
        self.image.read_at(old, start).await?;
        if let Some(base) = self.base {
            let there = base.virtual_size().saturating_sub(start).min(end - start);
            if there > 0 {
                base.read_at(&mut new[..len(there)], start).await?;
            }
        }
        let unit = len(unit);
        let old_len = self.image.layers().nth(1).map_or(0, |layer| layer.virtual_size);
        // Entries of version 2 cannot say zero: what is zeros must be written, or `base` would be seen there.
        let is_v2 = self.image.header().is_some_and(|header| header.version == Version::V2);
        let mut units = old.chunks(unit).zip(new.chunks(unit)).peekable();
        let mut at = 0;
        while let Some((was, is)) = units.next() {
            let differs = was != is;
            let mut run_end = at + was.len();
            while let Some((was, _)) = units.next_if(|(was, is)| (was != is) == differs) {
                run_end += was.len();
            }
            let (offset, bytes) = (start + at as u64, &old[at..run_end]);
            at = run_end;
            if !differs {
                continue;
            }
            if offset >= old_len && !is_v2 {
                // Nothing was there but zeros.
                let len = bytes.len() as u64;
                self.image.write_zeroes_at(offset, len, ZeroMode::KeepSpace).await?;
            } else if self.compress && self.is_unallocated(offset, bytes.len() as u64).await? {
                self.image.write_compressed_at(bytes, offset).await?;
            } else {
                self.image.write_at(bytes, offset).await?;
            }
        }
        Ok(())
    }

    /// Whether the image itself has nothing of a range.
    async fn is_unallocated(&self, offset: u64, len: u64) -> Result<bool> {
        let mut extents = self.image.extents(offset, len)?;
        while let Some(extent) = extents.next().await? {
            if extent.depth == 0 && !matches!(extent.kind, ExtentKind::Unallocated { host: None }) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
