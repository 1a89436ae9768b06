//! What is copied in which order: the sources cut into pieces, as `qemu-img` cuts them, so that the same zeros are left
//! out at their borders.

use cowshed::image::{Extent, ExtentKind};

use crate::failure::Failure;
use crate::open::{self, DiskExtents};

use super::copy::Copy;
use super::sparse::SECTOR_LEN_BYTES;

/// How much is copied at a time at most, in bytes.
const PIECE_LEN_BYTES: u64 = 2 << 20;

/// A piece to copy.
pub(super) struct Piece {
    /// Index of the source.
    pub(super) part: usize,
    /// Guest offset in it.
    pub(super) offset: u64,
    /// In bytes; a few MiB at most if it is not zeros.
    pub(super) len: u64,
    /// Whether it is known to be zeros.
    pub(super) is_zero: bool,
    /// Where the runs end that it is made of, in bytes from its start. Gaps are looked for in each.
    pub(super) runs: Vec<usize>,
}

/// What is left to copy.
pub(super) struct Plan<'c> {
    copy: &'c Copy<'c>,
    part: usize,
    offset: u64,
    /// Where the run that holds the offset ends, and whether it is zeros.
    run: (u64, bool),
    extents: Option<DiskExtents<'c>>,
    /// The extent that was looked at last, and one that was found behind it.
    extent: Option<Extent>,
    ahead: Option<Extent>,
    warns: bool,
    stopped: bool,
}

impl<'c> Plan<'c> {
    /// Everything.
    pub(super) fn new(copy: &'c Copy<'c>) -> Self {
        Self {
            copy,
            part: 0,
            offset: 0,
            run: (0, false),
            extents: None,
            extent: None,
            ahead: None,
            warns: true,
            stopped: false,
        }
    }

    /// The same without a word about what cannot be read.
    pub(super) fn silently(self) -> Self {
        Self { warns: false, ..self }
    }

    /// Lets out no more pieces.
    pub(super) fn stop(&mut self) {
        self.stopped = true;
    }

    /// The next piece, from where the one before ended.
    ///
    /// # Errors
    /// It cannot be found out what is there, and that is not to be salvaged.
    pub(super) async fn next(&mut self) -> Result<Option<Piece>, Failure> {
        while let Some(part) = self.copy.parts.get(self.part).filter(|_| !self.stopped) {
            if self.offset < part.image.virtual_size() {
                return self.piece().await.map(Some);
            }
            let (copy, warns) = (self.copy, self.warns);
            *self = Self { part: self.part + 1, warns, ..Self::new(copy) };
        }
        Ok(None)
    }

    /// The next piece of this source, which does not end here.
    async fn piece(&mut self) -> Result<Piece, Failure> {
        let size = self.copy.parts[self.part].image.virtual_size();
        let start = self.offset;
        let mut piece =
            Piece { part: self.part, offset: start, len: 0, is_zero: false, runs: Vec::new() };
        while self.offset < size {
            match self.find_run().await {
                Ok(()) => {}
                // What lies before goes first; then the error is met again.
                Err(_) if piece.len > 0 => break,
                Err(failure) => return Err(failure),
            }
            let (end, is_zero) = self.run;
            if is_zero {
                if piece.len == 0 {
                    self.offset = end;
                    return Ok(Piece { len: end - start, is_zero, ..piece });
                }
                break;
            }
            let len = (end - self.offset).min(PIECE_LEN_BYTES);
            if piece.len > 0 && piece.len + len > PIECE_LEN_BYTES {
                break;
            }
            self.offset += len;
            piece.len += len;
            // OK to narrow: a few MiB.
            piece.runs.push(usize::try_from(piece.len).unwrap_or(usize::MAX));
        }
        Ok(piece)
    }

    /// Finds the run that holds the offset. It ends at a border of clusters, if there is one in it, so that the next one
    /// starts there.
    async fn find_run(&mut self) -> Result<(), Failure> {
        if self.offset < self.run.0 {
            return Ok(());
        }
        let part = &self.copy.parts[self.part];
        let extent = match self.find_extent().await {
            Ok(extent) => extent,
            Err(error) if self.copy.salvage => {
                if self.warns {
                    let doing =
                        format!("error while reading block status at offset {}", self.offset);
                    self.copy.warn(part, &doing, &error);
                }
                // Perhaps it can be read all the same.
                let end = (self.offset + SECTOR_LEN_BYTES as u64).min(part.image.virtual_size());
                (self.run, self.extents, self.extent, self.ahead) =
                    ((end, false), None, None, None);
                return Ok(());
            }
            Err(error) => {
                let doing = format!(
                    "error while reading block status at offset {}",
                    part.start + self.offset
                );
                return Err(Failure::image(part.name, doing, open::reason(&error)));
            }
        };
        let mut end = extent.offset + extent.len;
        let cluster_size = part.image.geometry().map_or(1, |geometry| geometry.cluster_size());
        let over = end % cluster_size;
        if end - self.offset > over {
            end -= over;
        }
        let is_zero = match extent.kind {
            ExtentKind::Data { .. } | ExtentKind::Compressed { .. } => false,
            ExtentKind::Zero { .. } | ExtentKind::Hole { .. } | ExtentKind::Unallocated { .. } => {
                true
            }
        };
        self.run = (end, is_zero);
        Ok(())
    }

    /// The extent that holds the offset; neighbouring compressed clusters are one.
    async fn find_extent(&mut self) -> cowshed::Result<Extent> {
        if let Some(extent) = self.extent.filter(|extent| self.offset < extent.offset + extent.len)
        {
            return Ok(extent);
        }
        let mut extent = match self.ahead.take() {
            Some(extent) => extent,
            None => self.next_extent().await?,
        };
        while matches!(extent.kind, ExtentKind::Compressed { .. }) && extent.len < PIECE_LEN_BYTES {
            // What is wrong behind it is said by the call that wants it.
            let Ok(next) = self.next_extent().await else { break };
            if !matches!(next.kind, ExtentKind::Compressed { .. }) || next.depth != extent.depth {
                self.ahead = Some(next);
                break;
            }
            extent.len += next.len;
        }
        self.extent = Some(extent);
        Ok(extent)
    }

    async fn next_extent(&mut self) -> cowshed::Result<Extent> {
        let image = self.copy.parts[self.part].image;
        let (offset, rest) = (self.offset, image.virtual_size() - self.offset);
        let extents = match &mut self.extents {
            Some(extents) => extents,
            none => none.insert(open::extents(image, offset, rest).await?),
        };
        let extent = extents.next().await?;
        let nothing = Extent {
            offset: image.virtual_size(),
            len: 0,
            kind: ExtentKind::Unallocated { host: None },
            depth: 0,
        };
        Ok(extent.unwrap_or(nothing))
    }
}
