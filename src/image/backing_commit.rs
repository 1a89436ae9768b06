//! Committing what an image has into its backing file, while it is in use: what QEMU's job `commit` does.
//!
//! Writes go to the image meanwhile, and the image's own clusters are what is read: nothing of the disk changes, whatever
//! becomes of the backing file on the way.
//!
//! 1. The backing file is opened for writing, through the very layer that the image reads ([`super::below`]), and becomes as
//!    large as the image.
//! 2. All that the image has is copied; then what has changed meanwhile, and so on, until so little is left that changes may
//!    wait for it. At that moment the backing file has the disk, and is flushed.
//! 3. If the image is to be emptied, clusters that have not changed since that moment become unallocated: what they held is
//!    durable below. Those that have changed stay. No cluster goes before.
//! 4. The backing file is closed for writing.
//!
//! An internal snapshot reads the backing file too where it has nothing, so that there must be none. If one is made on the way
//! it is as it should be: what is below has changed only where the image had clusters, which the snapshot shares.
//!
//! Source: QEMU, block/mirror.c, `commit_active_start`; block/commit.c.

use std::ops::Range;
use std::sync::Arc;

use futures::future::try_join_all;

use crate::error::{Error, Result};
use crate::storage::Storage;
use crate::sync::AsyncMutexGuard;

use super::Image;
use super::changed::{Changed, Granules};
use super::layer::{Below, RunKind};
use super::mutant::{self, Mutant};
use super::options::{ResizeOptions, WriteOptions, ZeroMode};
use super::requests::Chore;
use super::writer::Top;

/// How much is copied in one request, in bytes.
const PIECE_LEN_BYTES: u64 = 1 << 20;

/// How many pieces are copied side by side.
const PIECES_IN_FLIGHT: usize = 8;

/// Zeros are copied in larger pieces, as they are not read.
const ZEROS_LEN_BYTES: u64 = 64 << 20;

/// Changes wait while so much is copied, in bytes, and not while more is.
const LAST_LEN_BYTES_MAX: u64 = PIECE_LEN_BYTES * PIECES_IN_FLIGHT as u64;

/// How many slices of L2 tables are emptied while changes wait.
const SLICES_PER_TURN: usize = 16;

/// How an image is committed: see [`Image::commit_into_backing`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct BackingCommitOptions {
    /// Takes out of the image what the backing file has, so that it begins anew. Default: the image keeps it.
    pub make_empty: bool,
    /// How the backing file is written to.
    pub write: WriteOptions,
}

/// A commit on its way: see [`Image::commit_into_backing`].
#[derive(Debug)]
pub struct BackingCommit<'a, S> {
    image: &'a Image<S>,
    below: Arc<Image<S>>,
    changed: &'a Changed,
    options: BackingCommitOptions,
    stage: Stage,
    /// What is to be copied in this round.
    todo: Option<Granules>,
    /// Up to where it was looked through.
    offset: u64,
    /// What is copied now, or is to be copied again because the step before did not end well.
    pieces: Vec<Piece>,
    /// A write to the backing file may have been dropped, and may yet land.
    is_unsettled: bool,
    _backing: AsyncMutexGuard<'a, ()>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Begin,
    Copy,
    /// From this guest offset on.
    Empty(u64),
    /// All is copied, and all is emptied that is to be.
    End,
    Done,
}

#[derive(Debug)]
struct Piece {
    range: Range<u64>,
    is_zeros: bool,
}

impl<S: Storage> Image<S> {
    /// Begins to write into the backing file what this image has, and to make the image empty if that is asked for.
    /// [`BackingCommit::step`] does the work. The image may be read, written, resized meanwhile, and its disk stays what it
    /// is: changes that come meanwhile are in the image, and in the backing file as well if they come before the end.
    ///
    /// At the end the backing file, which becomes as large as the image if it was smaller, has the disk as it was at one
    /// moment, durably. While this is under way it has some of it; whatever else lies above the backing file, or reads it,
    /// sees that. Bitmaps of the image see no change; those of the backing file see what is written to it.
    ///
    /// A guest that changes more than the backing file can take holds up the end.
    ///
    /// # Errors
    /// [`Error::ReadOnly`]; [`Error::InvalidArgument`] if there is no backing file, for images with internal snapshots, which
    /// read from the backing file too, and while the backing file is committed into or changed already; [`Error::Refused`] if the
    /// backing file was not opened.
    pub fn commit_into_backing(
        &self,
        options: BackingCommitOptions,
    ) -> Result<BackingCommit<'_, S>> {
        let (writer, _) = self.target()?;
        // OK to index: an image has a layer.
        match self.layers[0].below {
            Below::Layer => {}
            Below::Left => return Err(self.backing_left(0)),
            Below::Zeros => return Err(Error::InvalidArgument("it has no backing file".into())),
        }
        self.must_have_no_snapshots()?;
        Ok(BackingCommit {
            image: self,
            below: self.image_below(),
            changed: &writer.changed,
            options,
            stage: Stage::Begin,
            todo: None,
            offset: 0,
            pieces: Vec::new(),
            is_unsettled: false,
            _backing: writer.hold_backing()?,
        })
    }
}

impl<S: Storage> BackingCommit<'_, S> {
    /// Does some more, several pieces side by side, and returns how many bytes of the disk are left to be looked at and
    /// copied: that may be more than before if they were changed. `None` when the backing file has all of them, and the image
    /// is empty if it is to be, durably.
    ///
    /// # Errors
    /// What opening the backing file for writing, resizing and writing it, and reading and changing the image meet;
    /// [`Error::InvalidArgument`] if there is a snapshot now. The disk is the same all the same, and another step goes on.
    ///
    /// # Cancel safety
    /// A step that is dropped has done some of its work; the next one does the rest.
    pub async fn step(&mut self) -> Result<Option<u64>> {
        if self.is_unsettled {
            // What was dropped may land on what is written now: not behind this.
            self.below.flush().await?;
            self.is_unsettled = false;
        }
        match self.stage {
            Stage::Begin => self.begin().await?,
            Stage::Copy if self.todo.is_none() => self.begin_round().await?,
            Stage::Copy => self.copy_some().await?,
            Stage::Empty(offset) => self.empty_some(offset).await?,
            Stage::End => {
                self.end().await?;
                self.stage = Stage::Done;
            }
            Stage::Done => {}
        }
        Ok((self.stage != Stage::Done).then(|| self.left()))
    }

    /// Gives it up: the backing file keeps what it has got, durably, and is closed for writing. The image keeps what it has.
    ///
    /// A commit that is dropped without this leaves the backing file open for writing, until another one ends or the image
    /// is closed; else nothing differs.
    ///
    /// # Errors
    /// As [`Image::flush`], of the backing file.
    ///
    /// # Cancel safety
    /// As if this had not been called.
    pub async fn cancel(mut self) -> Result<()> {
        match self.stage {
            Stage::Done => Ok(()),
            _ => self.end().await,
        }
    }

    /// In bytes.
    fn left(&self) -> u64 {
        let size = self.image.virtual_size();
        let left = match (self.stage, &self.todo) {
            (Stage::Begin, _) => size,
            (Stage::Copy, None) => self.changed.len_bytes(),
            (Stage::Copy, Some(todo)) => {
                self.changed.len_bytes().saturating_add(todo.len_bytes(self.offset))
            }
            (Stage::Empty(_) | Stage::End | Stage::Done, _) => 0,
        };
        left.min(size)
    }

    async fn begin(&mut self) -> Result<()> {
        // Cancel: the backing file may be open for writing, and be larger.
        self.image.set_below_writable(Some(self.options.write)).await?;
        self.grow().await?;
        let op = self.image.requests.enter_chore().await?;
        self.below.prepare_change().await?;
        drop(op);
        self.changed.begin(self.image.virtual_size());
        (self.todo, self.stage) = (None, Stage::Copy);
        self.pieces.clear();
        Ok(())
    }

    /// Makes the backing file as large as the image.
    async fn grow(&self) -> Result<()> {
        let size = self.image.virtual_size();
        if self.below.virtual_size() < size {
            self.below.resize(size, &ResizeOptions::default()).await?;
        }
        Ok(())
    }

    /// Whether changes have been noted without a gap; else all begins anew.
    fn knows_changes(&mut self) -> bool {
        let knows = self.changed.is_on();
        if !knows {
            self.stage = Stage::Begin;
        }
        knows
    }

    /// Takes what has changed. If that is little it is copied at once.
    async fn begin_round(&mut self) -> Result<()> {
        let image = self.image;
        let op = image.requests.enter_chore().await?;
        let alone = image.begin_alone_by(&op, "no backing file").await?;
        image.must_have_no_snapshots()?;
        if !self.knows_changes() {
            return Ok(());
        }
        if self.below.virtual_size() < image.virtual_size() {
            drop(alone);
            drop(op);
            return self.grow().await;
        }
        // What was written by those who gave up is there, or will never be.
        alone.top.settle().await?;
        let todo = self.todo.insert(self.changed.take());
        self.offset = 0;
        if todo.len_bytes(0) > LAST_LEN_BYTES_MAX {
            return Ok(());
        }
        // Cancel: it is copied as in another round.
        loop {
            self.find_pieces(&op).await?;
            if self.pieces.is_empty() {
                break;
            }
            self.is_unsettled = true;
            let this = &*self;
            try_join_all(this.pieces.iter().map(|piece| this.copy(&op, piece))).await?;
            self.is_unsettled = false;
            self.pieces.clear();
        }
        // The backing file has the disk.
        if !mutant::is(Mutant::EmptyBeforeFlush) {
            self.below.flush_by(&op).await?;
        }
        self.todo = None;
        self.stage = if self.options.make_empty { Stage::Empty(0) } else { Stage::End };
        Ok(())
    }

    /// Copies some of what is to be copied, while changes go on.
    async fn copy_some(&mut self) -> Result<()> {
        {
            let image = self.image;
            let op = image.requests.enter_chore().await?;
            // Cancel: what was found is kept.
            self.find_pieces(&op).await?;
        }
        if self.pieces.is_empty() {
            self.todo = None;
            return Ok(());
        }
        self.is_unsettled = true;
        let this = &*self;
        let copies = this.pieces.iter().map(|piece| async move {
            let op = this.image.requests.enter_chore().await?;
            let _change = this.image.begin_change(&op).await?;
            // There will be none before this is done.
            this.image.must_have_no_snapshots()?;
            this.copy(&op, piece).await
        });
        // Cancel: all pieces are copied again.
        try_join_all(copies).await?;
        self.is_unsettled = false;
        self.pieces.clear();
        Ok(())
    }

    /// Finds what the image itself has of what is to be copied, several pieces; none at the end.
    async fn find_pieces(&mut self, op: &Chore<'_>) -> Result<()> {
        let _request = self.image.requests.enter_by(op);
        let Some(todo) = &self.todo else { return Ok(()) };
        // What has been added to the disk since is not in this round.
        let end = self.image.virtual_size().min(self.below.virtual_size());
        while self.pieces.len() < PIECES_IN_FLIGHT {
            let Some(range) = todo.next(self.offset).filter(|range| range.start < end) else {
                self.offset = u64::MAX;
                return Ok(());
            };
            let (start, len) = (range.start, range.end.min(end) - range.start);
            // OK to index: an image has a layer.
            let run = self.image.layers[0].run(start, len).await?;
            let max = match run.kind {
                RunKind::Unallocated { .. } => len,
                RunKind::Zero { .. } => ZEROS_LEN_BYTES,
                RunKind::Data { .. } | RunKind::Compressed(_) => PIECE_LEN_BYTES,
            };
            self.offset = start + run.len.min(max);
            if !matches!(run.kind, RunKind::Unallocated { .. }) {
                let is_zeros = matches!(run.kind, RunKind::Zero { .. });
                self.pieces.push(Piece { range: start..self.offset, is_zeros });
            }
        }
        Ok(())
    }

    /// Copies one piece. Nothing of the disk but the bytes themselves may change meanwhile.
    async fn copy(&self, op: &Chore<'_>, piece: &Piece) -> Result<()> {
        let (image, below) = (self.image, &self.below);
        // It may have become smaller.
        let (start, end) = (piece.range.start, piece.range.end.min(image.virtual_size()));
        if start >= end {
            return Ok(());
        }
        if piece.is_zeros {
            return below.write_zeroes_by(op, start, end - start, ZeroMode::MayUnmap).await;
        }
        let mut bytes = super::write::zeros(end - start)?;
        {
            let _request = image.requests.enter_by(op);
            image.read_range(&mut bytes, start).await?;
        }
        below.write_by(op, &bytes, start).await
    }

    /// Empties some of the image.
    async fn empty_some(&mut self, mut offset: u64) -> Result<()> {
        let image = self.image;
        let op = image.requests.enter_chore().await?;
        let alone = image.begin_alone_by(&op, "no backing file").await?;
        image.must_have_no_snapshots()?;
        if !self.knows_changes() {
            return Ok(());
        }
        let request = image.requests.enter_by(&op);
        let changed = self.changed;
        for _ in 0..SLICES_PER_TURN {
            let Some(at) = alone.top.next_table(offset)? else {
                self.stage = Stage::End;
                return Ok(());
            };
            // Cancel: a part is empty; it is looked at again.
            let keeps = |range| changed.touches(&range) && !mutant::is(Mutant::EmptyWhatChanged);
            offset = alone.top.empty_step(&request, at, keeps).await?;
            self.stage = Stage::Empty(offset);
        }
        Ok(())
    }

    async fn end(&mut self) -> Result<()> {
        if self.options.make_empty {
            self.image.flush().await?;
        }
        self.changed.end();
        self.image.set_below_writable(None).await
    }
}

impl<S: Storage> Top<'_, S> {
    /// The guest offset behind `offset`, or `offset` itself, for which there is an L2 table.
    fn next_table(&self, offset: u64) -> Result<Option<u64>> {
        let coverage = self.layer.geometry.l2_coverage();
        let mut at = offset;
        while at < self.layer.virtual_size() {
            if self.l1_entry(at / coverage)?.l2_table().is_some() {
                return Ok(Some(at));
            }
            at = (at / coverage + 1).saturating_mul(coverage);
        }
        Ok(None)
    }
}

impl<S> Drop for BackingCommit<'_, S> {
    fn drop(&mut self) {
        self.changed.end();
    }
}
