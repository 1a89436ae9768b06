//! Giving an image another backing file without a change of its disk: what `qemu-img rebase` does before the name changes.

use crate::error::{Error, Result};
use crate::format::Version;
use crate::storage::Storage;

use super::Image;
use super::map::ExtentKind;
use super::options::ZeroMode;

/// How much is compared at a time, in bytes.
const PIECE_LEN_BYTES: u64 = 1 << 20;

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
        // Entries of version 2 cannot say zero: what is zeros must be written, or `base` would be seen there.
        let is_v2 = self.image.header().is_some_and(|header| header.version == Version::V2);
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
