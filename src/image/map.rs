//! What lies where: every guest range's kind, layer and host offset, without reading it.

use crate::error::{Error, Result};
use crate::format::{CryptMethod, HostOffset};
use crate::storage::{Storage, StorageExtentKind};
use crate::sync::yield_now;

use super::Image;
use super::layer::{Below, Body, Layer, Run, RunKind};

/// After so many look-ups without an end of the extent, other tasks of the executor get their turn: about a
/// millisecond. A small image can name one table millions of times.
const LOOKUPS_PER_TURN: usize = 1024;

/// A run of guest bytes that one layer answers for in one way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Guest offset of the first byte.
    pub offset: u64,
    /// Length in bytes, at least 1.
    pub len: u64,
    /// What is there.
    pub kind: ExtentKind,
    /// The layer that answers: 0 is the image itself, 1 its backing file, and so on. For what no layer has, the last
    /// layer that was asked.
    pub depth: usize,
}

/// What an extent is. Host offsets are those of its first byte, in the layer's file or in its data file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExtentKind {
    /// Bytes as they are.
    Data {
        /// Where they are.
        host: HostOffset,
    },
    /// Reads as zeros, by the metadata.
    Zero {
        /// The space that is kept for it, if any.
        host: Option<HostOffset>,
    },
    /// Data in the metadata's view, and a hole in the file that holds it: reads as zeros.
    Hole {
        /// Where in the file.
        host: HostOffset,
    },
    /// A part of one compressed cluster.
    Compressed {
        /// Where its stream starts, at any alignment.
        host: HostOffset,
        /// The upper bound of the stream's length in bytes.
        len: u64,
    },
    /// No layer has it, or a backing file that is asked for it ends before: reads as zeros.
    Unallocated {
        /// The space that an extended L2 entry keeps for it all the same, if any.
        host: Option<HostOffset>,
    },
}

impl ExtentKind {
    /// The kind of the bytes that follow `len` bytes of this kind if one extent goes on.
    fn after(self, len: u64) -> Option<Self> {
        Some(match self {
            Self::Unallocated { host: None } | Self::Zero { host: None } => self,
            Self::Unallocated { host: Some(host) } => {
                Self::Unallocated { host: Some(host.checked_add(len)?) }
            }
            Self::Zero { host: Some(host) } => Self::Zero { host: Some(host.checked_add(len)?) },
            Self::Data { host } => Self::Data { host: host.checked_add(len)? },
            Self::Hole { host } => Self::Hole { host: host.checked_add(len)? },
            Self::Compressed { .. } => return None,
        })
    }
}

impl Extent {
    /// Appends `next` if it goes on where and as this extent ends.
    fn extend(&mut self, next: &Self) -> bool {
        let goes_on = self.offset + self.len == next.offset
            && self.depth == next.depth
            && self.kind.after(self.len) == Some(next.kind);
        if goes_on {
            self.len += next.len;
        }
        goes_on
    }
}

/// The extents of a range, one after the other. It borrows the image and holds one extent.
#[derive(Debug)]
pub struct Extents<'a, S> {
    image: &'a Image<S>,
    offset: u64,
    end: u64,
    ahead: Option<Extent>,
    /// By depth, whether holes are looked for under data; layers past the end are not looked at.
    holes: Vec<bool>,
}

impl<S: Storage> Extents<'_, S> {
    /// Looks for holes in the files of some qcow2 layers too, not only in raw ones: in those for which `layers` says so,
    /// in the order of [`Image::layers`]. It costs a call of the storage for every run of data, and is worth it for
    /// layers whose clusters were preallocated and never written.
    #[must_use]
    pub fn with_holes(self, layers: impl IntoIterator<Item = bool>) -> Self {
        Self { holes: layers.into_iter().collect(), ..self }
    }

    /// The next extent, as long as it can be within the range; `None` behind the last.
    ///
    /// # Errors
    /// What the metadata of the layers gives rise to; a later call tries the same place again.
    ///
    /// # Cancel safety
    /// Nothing is lost: the next call goes on where this one began.
    pub async fn next(&mut self) -> Result<Option<Extent>> {
        let _request = self.image.requests.enter().await?;
        let (mut extent, mut offset) = match self.ahead {
            Some(extent) => (extent, self.offset),
            None if self.offset >= self.end => return Ok(None),
            None => {
                let extent =
                    self.image.extent_at(self.offset, self.end - self.offset, &self.holes).await?;
                (extent, self.offset + extent.len)
            }
        };
        let mut ahead = None;
        let mut lookups = 0_usize;
        while offset < self.end {
            lookups += 1;
            if lookups.is_multiple_of(LOOKUPS_PER_TURN) {
                // Cancel: nothing has been changed.
                yield_now().await;
            }
            // What is wrong behind this extent is said by the call that wants it.
            let next = self.image.extent_at(offset, self.end - offset, &self.holes).await;
            let Ok(next) = next else { break };
            if !extent.extend(&next) {
                ahead = Some(next);
                offset += next.len;
                break;
            }
            offset += next.len;
        }
        (self.ahead, self.offset) = (ahead, offset);
        Ok(Some(extent))
    }
}

impl<S: Storage> Image<S> {
    /// The extent that starts at guest `offset`, as long as it can be up to `len` bytes (at least 1).
    ///
    /// # Errors
    /// [`Error::OutOfBounds`] if the range is not within the disk; [`Error::Corrupt`] and [`Error::Storage`] from the
    /// layers' metadata; [`Error::Refused`] if a backing file that has the range was not opened.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub async fn map(&self, offset: u64, len: u64) -> Result<Extent> {
        match self.extents(offset, len)?.next().await? {
            Some(extent) => Ok(extent),
            None => Err(Error::out_of_bounds(offset, len, self.virtual_size())),
        }
    }

    /// The extents of `len` bytes from guest `offset`.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`] if the range is not within the disk.
    pub fn extents(&self, offset: u64, len: u64) -> Result<Extents<'_, S>> {
        let end = self.range_end(offset, len)?;
        Ok(Extents { image: self, offset, end, ahead: None, holes: Vec::new() })
    }

    /// The extent at `offset`, as long as one look-up tells.
    pub(super) async fn extent_at(
        &self,
        offset: u64,
        mut len: u64,
        holes: &[bool],
    ) -> Result<Extent> {
        let mut depth = 0;
        // What the layer above has, which is nothing.
        let mut above = ExtentKind::Unallocated { host: None };
        loop {
            let layer = &self.layers[depth];
            let rest = layer.size_at(depth).saturating_sub(offset);
            if rest == 0 {
                // Behind the end of a short backing file nothing is looked for: it hides what is below.
                let depth = depth.saturating_sub(1);
                return Ok(Extent { offset, len, kind: above, depth });
            }
            len = len.min(rest);
            let run = match layer.run_cached(offset, len) {
                Some(run) => run?,
                None => layer.run(offset, len).await?,
            };
            len = run.len;
            let (kind, len_of_kind) =
                layer.extent_kind(&run, holes.get(depth) == Some(&true)).await?;
            match (kind, layer.below) {
                (ExtentKind::Unallocated { .. }, Below::Layer) => {
                    (above, depth) = (kind, depth + 1)
                }
                (ExtentKind::Unallocated { .. }, Below::Left) => {
                    return Err(self.backing_left(depth));
                }
                _ => return Ok(Extent { offset, len: len_of_kind, kind, depth }),
            }
        }
    }
}

impl<S: Storage> Layer<S> {
    /// The kind of a run that this layer has, and how much of it is of that kind.
    async fn extent_kind(&self, run: &Run, holes: bool) -> Result<(ExtentKind, u64)> {
        Ok(match run.kind {
            RunKind::Unallocated { host } => (ExtentKind::Unallocated { host }, run.len),
            RunKind::Zero { host } => (ExtentKind::Zero { host }, run.len),
            RunKind::Compressed(cluster) => {
                (ExtentKind::Compressed { host: cluster.host, len: cluster.len }, run.len)
            }
            RunKind::Data { host } => {
                // A raw layer has no metadata: what its file says is all there is to know.
                let storage = match &self.body {
                    Body::Raw(layer) => &layer.storage,
                    // Zeros in the file are not zeros on a disk that is encrypted.
                    Body::Qcow2(layer) => match self.data_storage() {
                        Ok(Some(storage)) if holes && layer.crypt == CryptMethod::None => storage,
                        _ => return Ok((ExtentKind::Data { host }, run.len)),
                    },
                };
                let extent = storage
                    .extent_at(host.get(), run.len)
                    .await
                    .map_err(|error| Error::storage("extent", host.get(), run.len, error))?;
                let kind = match extent.kind {
                    StorageExtentKind::Data => ExtentKind::Data { host },
                    StorageExtentKind::Hole => ExtentKind::Hole { host },
                };
                (kind, extent.len.clamp(1, run.len))
            }
        })
    }
}
