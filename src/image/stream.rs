//! Copying into an image what it reads from the layers below, while it is in use: what QEMU's job `stream` does.
//!
//! Nothing of the disk changes, whoever reads or writes meanwhile, and whenever it ends. A cluster is copied under a claim, as
//! a write of a part of it would copy the rest, so that a write comes before or after; bitmaps do not see it, as it changes
//! no byte. When all is copied the image is looked through once more while no change is in, and only then loses the name of
//! the backing file.
//!
//! Source: QEMU, block/stream.c.

use std::ops::Range;

use futures::future::try_join_all;

use crate::error::{Error, Result};
use crate::format::{ClusterKind, L2Entry, Version};
use crate::storage::Storage;

use super::Image;
use super::layer::RunKind;
use super::map::{Extent, ExtentKind};
use super::requests::Request;
use super::writer::{Target, Top};

/// How much is copied in one request, in bytes.
const PIECE_LEN_BYTES: u64 = 1 << 20;

/// How many pieces are copied side by side.
const PIECES_IN_FLIGHT: usize = 8;

/// The layer that an image keeps below itself: see [`Image::stream`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamBase<'a> {
    /// How deep it lies: 2 for the backing file of the backing file.
    pub depth: usize,
    /// Its name as seen from the image's folder, byte for byte.
    pub name: &'a [u8],
    /// Its format.
    pub format: &'a [u8],
}

/// A stream on its way: see [`Image::stream`].
#[derive(Debug)]
pub struct Stream<'a, S> {
    image: &'a Image<S>,
    base: Option<StreamBase<'a>>,
    /// Up to where pieces were looked for.
    offset: u64,
    /// What is copied now, or is to be copied again because the step before did not end well.
    pieces: Vec<Range<u64>>,
    is_done: bool,
}

impl<S: Storage> Image<S> {
    /// Begins to copy into this image what it reads from the layers between itself and `base`, or from all of them; then the
    /// image names `base` as its backing file, or none. [`Stream::step`] does the work. The image may be read, written,
    /// resized meanwhile.
    ///
    /// The layers stay open until the image is closed, though nothing is read from them any more.
    ///
    /// # Errors
    /// [`Error::ReadOnly`]; [`Error::InvalidArgument`] for raw images, if `base` is not below the backing file, and for images
    /// with internal snapshots, which read from the backing file too.
    pub fn stream<'a>(&'a self, base: Option<StreamBase<'a>>) -> Result<Stream<'a, S>> {
        self.target()?;
        if self.top().is_none() {
            return Err(Error::InvalidArgument("a raw image has no backing file".into()));
        }
        if let Some(base) = base.filter(|base| !(2..self.layers.len()).contains(&base.depth)) {
            return Err(Error::InvalidArgument(format!(
                "the layer at depth {} is not below the backing file",
                base.depth
            )));
        }
        self.must_have_no_snapshots()?;
        Ok(Stream { image: self, base, offset: 0, pieces: Vec::new(), is_done: false })
    }

    pub(super) fn must_have_no_snapshots(&self) -> Result<()> {
        match self.snapshots().is_empty() {
            true => Ok(()),
            false => Err(Error::InvalidArgument(
                "its internal snapshots read from the backing file too".into(),
            )),
        }
    }
}

impl<S: Storage> Stream<'_, S> {
    /// Copies some more, several pieces side by side, and returns up to which byte the disk has been copied: that may go back
    /// if the disk was changed as a whole. `None` when all is copied and the image, durably, names the other backing file.
    ///
    /// # Errors
    /// What reading the layers below and writing the image meet; as [`Image::set_backing_file`]; [`Error::InvalidArgument`] if
    /// there is a snapshot now, or the image is committed into its backing file. The disk is the same all the same, and another step goes on.
    ///
    /// # Cancel safety
    /// A step that is dropped has done some of its work; the next one, or another stream, finds that done and does the rest.
    pub async fn step(&mut self) -> Result<Option<u64>> {
        if self.is_done {
            return Ok(None);
        }
        let first = self.offset;
        while self.pieces.len() < PIECES_IN_FLIGHT
            && self.offset - first < PIECE_LEN_BYTES * PIECES_IN_FLIGHT as u64
        {
            // Cancel: what was found is kept.
            let (offset, size) = (self.offset, self.image.virtual_size());
            if offset >= size {
                break;
            }
            let extent = self.image.map(offset, (size - offset).min(PIECE_LEN_BYTES)).await?;
            self.offset = offset + extent.len;
            if self.is_below(&extent) {
                self.pieces.push(offset..self.offset);
            }
        }
        let this = &*self;
        // Cancel: all pieces are copied again, as far as they are not.
        try_join_all(this.pieces.iter().map(|piece| this.copy(piece.clone()))).await?;
        self.pieces.clear();
        if self.offset < self.image.virtual_size() {
            return Ok(Some(self.offset));
        }
        // Cancel: it is looked through again.
        match self.finish().await? {
            None => {
                self.is_done = true;
                Ok(None)
            }
            Some(left) => {
                self.offset = left;
                Ok(Some(left))
            }
        }
    }

    /// Whether an extent has to be copied.
    fn is_below(&self, extent: &Extent) -> bool {
        let is_zeros = match extent.kind {
            ExtentKind::Data { .. } | ExtentKind::Compressed { .. } => false,
            ExtentKind::Unallocated { .. } | ExtentKind::Zero { .. } | ExtentKind::Hole { .. } => {
                true
            }
        };
        let is_own = extent.depth == 0 && !matches!(extent.kind, ExtentKind::Unallocated { .. });
        match self.base {
            Some(base) => {
                let is_of_base = extent.depth >= base.depth;
                !is_own && !is_of_base
            }
            // Without a backing file, what nobody has is zeros.
            None => !is_own && !is_zeros,
        }
    }

    /// Copies one piece.
    async fn copy(&self, piece: Range<u64>) -> Result<()> {
        let op = self.image.requests.enter_chore().await?;
        let mut at = piece.start;
        while at < piece.end {
            let change = self.image.begin_change(&op).await?;
            let Target::Qcow2(top) = &change.target else { return Ok(()) };
            // It may have become smaller.
            let end = piece.end.min(self.image.virtual_size());
            if at >= end {
                return Ok(());
            }
            at = top.copy_up(&change.request, at..end).await?;
        }
        Ok(())
    }

    /// Changes the name of the backing file, if all is copied; else says from where on it is not.
    async fn finish(&self) -> Result<Option<u64>> {
        let (writer, _) = self.image.target()?;
        let _backing = writer.hold_backing()?;
        self.image.flush().await?;
        let op = self.image.requests.enter_chore().await?;
        let alone = self.image.begin_alone_by(&op, "no backing file").await?;
        self.image.must_have_no_snapshots()?;
        {
            let _request = self.image.requests.enter_by(&op);
            let (mut offset, size) = (0, self.image.virtual_size());
            while offset < size {
                // In here nobody may be asked to be let in: who waits for all to leave would wait for us.
                let extent = self.image.extent_at(offset, size - offset, &[]).await?;
                if self.is_below(&extent) {
                    return Ok(Some(offset));
                }
                offset += extent.len;
            }
        }
        // Cancel: as a power loss while the name changes.
        alone.top.commit().await?;
        let backing = self.base.map(|base| (base.name, base.format));
        alone.top.set_backing_file(backing).await?;
        Ok(None)
    }
}

impl<S: Storage> Top<'_, S> {
    /// Gives the image what it reads from below in a range of the disk, up to where this returns.
    ///
    /// # Cancel safety
    /// Some clusters are the image's own and others are not.
    async fn copy_up(&self, request: &Request<'_>, range: Range<u64>) -> Result<u64> {
        let geometry = self.layer.geometry;
        let (bits, sub) = (geometry.cluster_bits(), geometry.subcluster_size());
        let disk_end = self.layer.virtual_size();
        // What is copied is copied in whole units: an entry says of no less where it is.
        let mut at = range.start - range.start % sub;
        let end = range.end.min(self.slice_end(at)).next_multiple_of(sub);
        let end = end.min(disk_end);
        let _claim = self.writer.claims.claim(at >> bits..=(end - 1) >> bits).await;
        while at < end {
            let run = self.image.layers[0].run(at, end - at).await?;
            if let RunKind::Unallocated { .. } = run.kind {
                let mut bytes = super::write::zeros(run.len)?;
                self.image.read_beside(&mut bytes, at).await?;
                self.put_copied(request, &bytes, at).await?;
            }
            at += run.len;
        }
        Ok(end.max(range.start))
    }

    /// Writes what was read from below from guest offset `start` on, which the image has nothing of. For those who have the
    /// claim.
    async fn put_copied(&self, request: &Request<'_>, bytes: &[u8], start: u64) -> Result<()> {
        // OK to saturate: a subcluster is in memory.
        let sub = usize::try_from(self.layer.geometry.subcluster_size()).unwrap_or(usize::MAX);
        let mut units = bytes.chunks(sub).peekable();
        let mut at = 0;
        while let Some(unit) = units.next() {
            let is_zeros = super::write::is_zeros(unit);
            let mut run_end = at + unit.len();
            while let Some(unit) = units.next_if(|unit| super::write::is_zeros(unit) == is_zeros) {
                run_end += unit.len();
            }
            let (offset, run) = (start + at as u64, &bytes[at..run_end]);
            at = run_end;
            // Entries of version 2 cannot say zero.
            if !is_zeros || self.layer.context.version() == Version::V2 {
                let mut done = 0;
                while done < run.len() {
                    done += self.write_claimed(request, &run[done..], offset + done as u64).await?;
                }
            } else {
                self.zero_claimed(offset..offset + run.len() as u64).await?;
            }
        }
        Ok(())
    }

    /// Makes whole subclusters that the image has nothing of zeros of its own.
    async fn zero_claimed(&self, range: Range<u64>) -> Result<()> {
        let geometry = self.layer.geometry;
        let (bits, cluster_size) = (geometry.cluster_bits(), geometry.cluster_size());
        let (first, last) = (range.start >> bits, (range.end - 1) >> bits);
        let place = self.own_place(range.start).await?;
        let mut entries = place.entries(self, last - first + 1);
        for (cluster, entry) in (first..=last).zip(&mut entries) {
            let guest = cluster << bits;
            let part = range.start.max(guest)..range.end.min(guest.saturating_add(cluster_size));
            *entry = match geometry.extended_l2() {
                true => {
                    let zero = self.subclusters(&part) << 32;
                    L2Entry::from_raw(entry.descriptor(), entry.bitmap() | zero)
                }
                false => L2Entry::new(ClusterKind::Zero { host: None }, false, geometry),
            };
        }
        place.store(self, &entries);
        Ok(())
    }
}
