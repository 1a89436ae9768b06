//! Merging an image into the one below: what `qemu-img commit` does.

use crate::error::{Error, Result};
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

/// Compares what an image sees below itself with another image that is to be below it, and keeps what differs: see
/// [`Image::rebase_onto`].
#[derive(Debug)]
pub struct Rebase<'a, S, B> {
    image: &'a Image<S>,
    base: Option<&'a Image<B>>,
    same_from: Option<usize>,
    compress: bool,
    offset: u64,
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
    /// [`Error::ReadOnly`]; [`Error::InvalidArgument`] for raw images.
    pub fn rebase_onto<'a, B: Storage>(
        &'a self,
        base: Option<&'a Image<B>>,
        same_from: Option<usize>,
        compress: bool,
    ) -> Result<Rebase<'a, S, B>> {
        self.target()?;
        if self.top().is_none() {
            return Err(Error::InvalidArgument("a raw image has no backing file".into()));
        }
        let (old, new) = (Vec::new(), Vec::new());
        Ok(Rebase { image: self, base, same_from, compress, offset: 0, old, new })
    }
}

impl<S: Storage, B: Storage> Rebase<'_, S, B> {
    /// Compares some more and returns up to where the disk has been compared; `None` when all is.
    ///
    /// # Errors
    /// What reading the old backing file and `base` and writing the image meet: the disk is the same all the same.
    ///
    /// # Cancel safety
    /// A step that is dropped has done some of its work; the next one does it again.
    pub async fn step(&mut self) -> Result<Option<u64>> {
        let size = self.image.virtual_size();
        if self.offset >= size {
            return Ok(None);
        }
        let extent = self.image.map(self.offset, (size - self.offset).min(PIECE_LEN_BYTES)).await?;
        let mut end = extent.offset + extent.len;
        let is_own = extent.depth == 0 && !matches!(extent.kind, ExtentKind::Unallocated { .. });
        let is_same = self.same_from.is_some_and(|depth| extent.depth >= depth);
        if !is_own && !is_same {
            let geometry = self.image.geometry();
            let unit = geometry.map_or(1, |geometry| match self.compress {
                true => geometry.cluster_size(),
                false => geometry.subcluster_size(),
            });
            // What is written is written in whole units, so that nothing is copied beside it.
            let start = self.offset - self.offset % unit;
            end = end.next_multiple_of(unit).min(size);
            self.keep_differences(start, end, unit).await?;
        }
        self.offset = end;
        Ok(Some(end))
    }

    /// Writes those units between `start` and `end` that differ.
    async fn keep_differences(&mut self, start: u64, end: u64, unit: u64) -> Result<()> {
        // OK to unwrap: a piece and a cluster at each end.
        let len = |len: u64| usize::try_from(len).unwrap_or_default();
        self.old.resize(len(end - start), 0);
        self.new.clear();
        self.new.resize(len(end - start), 0);
        self.image.read_at(&mut self.old, start).await?;
        if let Some(base) = self.base {
            let there = base.virtual_size().saturating_sub(start).min(end - start);
            if there > 0 {
                base.read_at(&mut self.new[..len(there)], start).await?;
            }
        }
        let unit = len(unit);
        let old_len = self.image.layers().nth(1).map_or(0, |layer| layer.virtual_size);
        let mut units = self.old.chunks(unit).zip(self.new.chunks(unit)).peekable();
        let mut at = 0;
        while let Some((old, new)) = units.next() {
            let differs = old != new;
            let mut run_end = at + old.len();
            while let Some((old, _)) = units.next_if(|(old, new)| (old != new) == differs) {
                run_end += old.len();
            }
            let (offset, bytes) = (start + at as u64, &self.old[at..run_end]);
            at = run_end;
            if !differs {
                continue;
            }
            if offset >= old_len {
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
