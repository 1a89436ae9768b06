//! What is copied in which order: the sources cut into pieces, as `qemu-img` cuts them, so that the same zeros are left
//! out at their borders.

use cowshed::image::{Extent, ExtentKind};

use crate::failure::Failure;
use crate::open::{self, DiskExtents};

use super::copy::Copy;
use super::sparse::SECTOR_LEN_BYTES;

/// How much is copied at a time at most, in bytes.
const PIECE_LEN_BYTES: u64 = 2 << 20;

/// How many clusters are compressed together at least: enough to keep processors busy.
const COMPRESSED_CLUSTERS_MIN: u64 = 4;

/// A piece to copy.
#[derive(Debug)]
pub(super) struct Piece {
    /// How many came before it.
    pub(super) number: u64,
    /// Index of the source that it starts in. Clusters that are compressed may reach into the next.
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

impl Piece {
    /// Takes the first `len` bytes, if there are so many, as a piece of their own.
    pub(super) fn cut_off(&mut self, len: u64) -> Self {
        let len = len.min(self.len);
        // OK to narrow: a piece is a few MiB.
        let cut = usize::try_from(len).unwrap_or(usize::MAX);
        let first = self.runs.partition_point(|end| *end < cut);
        let mut runs: Vec<usize> = self.runs[..first].to_vec();
        runs.push(cut);
        self.runs.retain(|end| *end > cut);
        self.runs.iter_mut().for_each(|end| *end -= cut);
        let part = Self { len, runs, ..*self };
        self.offset += len;
        self.len -= len;
        part
    }
}

/// What a run is to the copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Status {
    Data,
    Zero,
    /// The target's backing file has it.
    Backing,
}

/// What is left to copy.
pub(super) struct Plan<'c> {
    copy: &'c Copy<'c>,
    part: usize,
    offset: u64,
    /// Where the run that holds the offset ends, and what it is.
    run: (u64, Status),
    /// How many pieces were let out.
    number: u64,
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
            run: (0, Status::Data),
            number: 0,
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
            if self.offset >= part.image.virtual_size() {
                self.begin(self.part + 1, 0);
                continue;
            }
            let piece = match self.copy.target.compressed_cluster() {
                Some(cluster_size) => self.clusters(cluster_size).await?,
                None => self.piece().await?,
            };
            if let Some(piece) = piece {
                self.number += 1;
                return Ok(Some(piece));
            }
        }
        Ok(None)
    }

    /// Goes on at an offset of a source.
    fn begin(&mut self, part: usize, offset: u64) {
        let Self { copy, number, warns, stopped, .. } = *self;
        *self = Self { part, offset, number, warns, stopped, ..Self::new(copy) };
    }

    fn empty_piece(&self) -> Piece {
        Piece {
            number: self.number,
            part: self.part,
            offset: self.offset,
            len: 0,
            is_zero: false,
            runs: Vec::new(),
        }
    }

    /// The next piece of this source, which does not end here; `None` if there is nothing to do for what was looked at.
    async fn piece(&mut self) -> Result<Option<Piece>, Failure> {
        let size = self.copy.parts[self.part].image.virtual_size();
        let mut piece = self.empty_piece();
        while self.offset < size {
            match self.find_run().await {
                Ok(()) => {}
                // What lies before goes first; then the error is met again.
                Err(_) if piece.len > 0 => break,
                Err(failure) => return Err(failure),
            }
            let (end, status) = self.run;
            if status != Status::Data {
                if piece.len > 0 {
                    break;
                }
                let mut len = end - self.offset;
                if self.copy.target.writes_zeros() {
                    len = len.min(PIECE_LEN_BYTES);
                }
                self.offset += len;
                let is_zero = status == Status::Zero;
                return Ok(is_zero.then_some(Piece { len, is_zero, ..piece }));
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
        Ok(Some(piece))
    }

    /// The same in whole clusters of the target: where a run is shorter, its cluster is data.
    async fn clusters(&mut self, cluster_size: u64) -> Result<Option<Piece>, Failure> {
        let len_max = PIECE_LEN_BYTES.max(COMPRESSED_CLUSTERS_MIN * cluster_size);
        let mut piece = self.empty_piece();
        while let Some(part) = self.copy.parts.get(self.part).filter(|_| piece.len < len_max) {
            let left = self.copy.len - (part.start + self.offset);
            if left == 0 {
                break;
            }
            match self.find_run().await {
                Ok(()) => {}
                Err(_) if piece.len > 0 => break,
                Err(failure) => return Err(failure),
            }
            let (end, mut status) = self.run;
            let mut len = end - self.offset;
            if len < cluster_size {
                (len, status) = (cluster_size.min(left), Status::Data);
            } else {
                len -= len % cluster_size;
            }
            if status == Status::Data {
                len = len.min(len_max - piece.len);
                piece.len += len;
                self.skip(len);
                continue;
            }
            if piece.len > 0 {
                break;
            }
            if self.copy.target.writes_zeros() {
                len = len.min(len_max);
            }
            self.skip(len);
            let is_zero = status == Status::Zero;
            return Ok(is_zero.then_some(Piece { len, is_zero, ..piece }));
        }
        Ok(Some(piece))
    }

    /// Goes on `len` bytes further, in whatever source that is.
    fn skip(&mut self, mut len: u64) {
        while let Some(part) = self.copy.parts.get(self.part) {
            let rest = part.image.virtual_size() - self.offset;
            if len < rest {
                self.offset += len;
                return;
            }
            len -= rest;
            self.begin(self.part + 1, 0);
        }
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
                // Perhaps less of it can be found out.
                if let Some(extent) = self.sector().await {
                    let status = self.status(&extent);
                    (self.run, self.extents, self.extent, self.ahead) =
                        ((self.offset + extent.len, status), None, None, None);
                    return Ok(());
                }
                if self.warns {
                    let doing =
                        format!("error while reading block status at offset {}", self.offset);
                    self.copy.warn(part, &doing, &error);
                }
                // Perhaps it can be read all the same.
                let end = (self.offset + SECTOR_LEN_BYTES as u64).min(part.image.virtual_size());
                (self.run, self.extents, self.extent, self.ahead) =
                    ((end, Status::Data), None, None, None);
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
        let mut status = self.status(&extent);
        if let Some(backing_len) = self.copy.target.backing_len() {
            // Behind the end of its backing file, a new target reads as zeros by itself.
            let backing_end = backing_len.saturating_sub(part.start);
            if self.offset < backing_end {
                end = end.min(backing_end);
            } else if status == Status::Zero {
                status = Status::Backing;
            }
        }
        self.run = (end, status);
        Ok(())
    }

    /// What is copied of an extent.
    fn status(&self, extent: &Extent) -> Status {
        match extent.kind {
            // A target with a backing file of its own is taken to see there what the source sees in its.
            _ if self.copy.target_has_backing && extent.depth > 0 => Status::Backing,
            ExtentKind::Data { .. } | ExtentKind::Compressed { .. } => Status::Data,
            ExtentKind::Zero { .. } | ExtentKind::Hole { .. } | ExtentKind::Unallocated { .. } => {
                Status::Zero
            }
        }
    }

    /// The extent of the sector at the offset alone, if it can be found out.
    async fn sector(&self) -> Option<Extent> {
        let image = self.copy.parts[self.part].image;
        let len = (SECTOR_LEN_BYTES as u64).min(image.virtual_size() - self.offset);
        image.extents(self.offset, len).ok()?.next().await.ok()?
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
        while extent.len > 0 && extent.offset + extent.len <= self.offset {
            // Whole clusters of the target may hold several.
            extent = self.next_extent().await?;
        }
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
