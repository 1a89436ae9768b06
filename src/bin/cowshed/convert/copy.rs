//! The copy: several pieces at once, on several threads, in whatever order they come.

use std::ffi::OsStr;
use std::num::NonZeroUsize;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use async_executor::Executor;
use async_lock::Mutex as AsyncMutex;
use futures::future;

use crate::failure::{Failure, warn};
use crate::open::{self, DiskImage};
use crate::persona::Persona;
use crate::progress::Progress;

use super::order::{Order, ReadPiece};
use super::plan::{Piece, Plan};
use super::sparse::{SECTOR_LEN_BYTES, Sparse, is_zero};
use super::target::Target;

/// How much is read and then written at a time where pieces need not be written in order, in bytes: what the cache next to a
/// processor holds.
const PART_LEN_BYTES: u64 = 256 << 10;

/// A source and where it goes in the target.
pub(super) struct Part<'a> {
    pub(super) name: &'a OsStr,
    pub(super) image: &'a DiskImage,
    /// Offset in the target in bytes.
    pub(super) start: u64,
}

/// What to copy where, and how.
pub(super) struct Copy<'a> {
    pub(super) parts: Vec<Part<'a>>,
    /// Length of all sources in bytes.
    pub(super) len: u64,
    pub(super) target: &'a Target,
    /// Whether what a source has in its backing file is left to the target's.
    pub(super) target_has_backing: bool,
    /// Whether pieces are written in whatever order they come.
    pub(super) any_order: bool,
    pub(super) sparse: Sparse,
    /// Bytes a second at most.
    pub(super) rate: Option<u64>,
    /// Whether what cannot be read becomes zeros.
    pub(super) salvage: bool,
    /// Whether that is not even mentioned.
    pub(super) quiet: bool,
    pub(super) persona: Persona,
}

impl Copy<'_> {
    /// Copies everything, `parallel` pieces at once.
    ///
    /// # Errors
    /// The first that any piece met; what was written stays.
    pub(super) fn run(&self, parallel: usize, progress: &mut Progress) -> Result<(), Failure> {
        if progress.is_shown() {
            let total = open::block_on(self.len_to_copy())?;
            progress.start(total);
        }
        let shared = Shared {
            plan: AsyncMutex::new(Plan::new(self)),
            order: (self.target.keeps_order() && !self.any_order)
                .then(|| Order::new(parallel.max(1))),
            progress: Mutex::new((progress, 0)),
            pace: Mutex::new((Instant::now(), 0)),
            failure: Mutex::new(None),
        };
        let executor = Executor::new();
        let tasks: Vec<_> =
            (0..parallel.max(1)).map(|_| executor.spawn(self.work(&shared))).collect();
        let done = event_listener::Event::new();
        let threads =
            std::thread::available_parallelism().map_or(1, NonZeroUsize::get).min(parallel.max(1));
        std::thread::scope(|scope| {
            for _ in 1..threads {
                let (listener, executor) = (done.listen(), &executor);
                scope.spawn(move || open::block_on(executor.run(listener)));
            }
            open::block_on(executor.run(future::join_all(tasks)));
            done.notify(usize::MAX);
        });
        drop(executor);
        let failure = shared.failure.into_inner().unwrap_or_else(PoisonError::into_inner);
        failure.map_or(Ok(()), Err)
    }

    /// How many bytes will be written rather than left out, as far as can be known before.
    async fn len_to_copy(&self) -> Result<u64, Failure> {
        let mut total = 0;
        let mut plan = Plan::new(self).silently();
        while let Some(piece) = plan.next().await? {
            let is_copied = !piece.is_zero || self.target.writes_zeros();
            total += if is_copied { piece.len } else { 0 };
        }
        Ok(total)
    }

    /// Copies pieces until there are no more.
    async fn work(&self, shared: &Shared<'_, '_>) {
        let done = match &shared.order {
            Some(order) => self.copy_in_order(order, shared).await,
            None => self.copy_in_any_order(shared).await,
        };
        if let Err(failure) = done {
            shared.fail(failure).await;
        }
    }

    async fn copy_in_any_order(&self, shared: &Shared<'_, '_>) -> Result<(), Failure> {
        let mut buffer = Vec::new();
        while let Some(piece) = shared.next_piece().await? {
            if self.is_data(&piece) && !piece.is_zero && self.target.compressed_cluster().is_none()
            {
                self.copy_parts(&piece, &mut buffer).await?;
            } else {
                self.read_if_data(&piece, &mut buffer).await?;
                self.write_piece(&piece, &buffer).await?;
            }
            self.copied(&piece, shared).await?;
        }
        Ok(())
    }

    async fn copy_in_order(&self, order: &Order, shared: &Shared<'_, '_>) -> Result<(), Failure> {
        while let Some(mut buffer) = order.buffer().await {
            let Some(piece) = shared.next_piece().await? else {
                order.end();
                break;
            };
            self.read_if_data(&piece, &mut buffer).await?;
            let mut next = order.hand_in(ReadPiece { piece, buffer });
            while let Some(ReadPiece { piece, buffer }) = next {
                self.write_piece(&piece, &buffer).await?;
                self.copied(&piece, shared).await?;
                next = order.written(buffer);
            }
        }
        Ok(())
    }

    /// Whether bytes of the piece are written.
    fn is_data(&self, piece: &Piece) -> bool {
        !piece.is_zero || self.target.writes_zeros()
    }

    /// Makes the buffer what is to be written of the piece, if bytes of it are.
    async fn read_if_data(&self, piece: &Piece, buffer: &mut Vec<u8>) -> Result<(), Failure> {
        if !self.is_data(piece) {
            return Ok(());
        }
        if piece.is_zero {
            buffer.clear();
        }
        // OK to narrow: a piece is a few MiB.
        buffer.resize(usize::try_from(piece.len).unwrap_or(0), 0);
        if piece.is_zero { Ok(()) } else { self.read_piece(piece, buffer).await }
    }

    async fn write_piece(&self, piece: &Piece, buffer: &[u8]) -> Result<(), Failure> {
        let start = self.parts[piece.part].start + piece.offset;
        match (self.is_data(piece), self.target.compressed_cluster()) {
            (false, _) => self.target.write_zeros(start, piece.len).await,
            (true, None) => self.write_runs(piece, buffer, start).await,
            (true, Some(cluster_size)) => self.write_clusters(cluster_size, buffer, start).await,
        }
    }

    /// Tells of what was copied.
    async fn copied(&self, piece: &Piece, shared: &Shared<'_, '_>) -> Result<(), Failure> {
        if self.is_data(piece) { shared.wrote(piece.len, self.rate).await } else { Ok(()) }
    }

    /// Reads and writes a part of the piece after the other, so that a part is still in the processor's cache when it is
    /// written.
    async fn copy_parts(&self, piece: &Piece, buffer: &mut Vec<u8>) -> Result<(), Failure> {
        let start = self.parts[piece.part].start + piece.offset;
        let mut rest = Piece { runs: piece.runs.clone(), ..*piece };
        let mut at = start;
        while rest.len > 0 {
            let cut = match self.sparse.can_be_cut_at(PART_LEN_BYTES) {
                true => PART_LEN_BYTES - at % PART_LEN_BYTES,
                false => u64::MAX,
            };
            let part = rest.cut_off(cut);
            // OK to narrow: a piece is a few MiB.
            buffer.resize(usize::try_from(part.len).unwrap_or(0), 0);
            self.read_piece(&part, buffer).await?;
            self.write_runs(&part, buffer, at).await?;
            at += part.len;
        }
        Ok(())
    }

    /// Writes what is not zeros in each of the piece's runs.
    async fn write_runs(&self, piece: &Piece, buffer: &[u8], start: u64) -> Result<(), Failure> {
        if self.target.writes_zeros() {
            return self.target.write(buffer, start).await;
        }
        let mut at = 0;
        for &end in &piece.runs {
            while at < end {
                let offset = start + at as u64;
                let (len, is_data) = self.sparse.run(&buffer[at..end], offset);
                if is_data {
                    self.target.write(&buffer[at..at + len], offset).await?;
                } else {
                    self.target.write_zeros(offset, len as u64).await?;
                }
                at += len;
            }
        }
        Ok(())
    }

    /// Writes whole clusters, those together that are not zeros.
    async fn write_clusters(
        &self,
        cluster_size: u64,
        buffer: &[u8],
        start: u64,
    ) -> Result<(), Failure> {
        // OK to saturate: a cluster is in memory.
        let chunk = usize::try_from(cluster_size).unwrap_or(usize::MAX);
        let is_gap = |cluster: &[u8]| !self.target.writes_zeros() && is_zero(cluster);
        let mut clusters = buffer.chunks(chunk).map(is_gap).peekable();
        let mut at = 0;
        while let Some(gap) = clusters.next() {
            let mut end = (at + chunk).min(buffer.len());
            while clusters.next_if_eq(&gap).is_some() {
                end = (end + chunk).min(buffer.len());
            }
            let offset = start + at as u64;
            match gap {
                true => self.target.write_zeros(offset, (end - at) as u64).await?,
                false => self.target.write(&buffer[at..end], offset).await?,
            }
            at = end;
        }
        Ok(())
    }

    /// Reads a piece, which may go on in the next sources.
    async fn read_piece(&self, piece: &Piece, mut buffer: &mut [u8]) -> Result<(), Failure> {
        let mut offset = piece.offset;
        for part in &self.parts[piece.part..] {
            let rest = part.image.virtual_size() - offset;
            // OK to saturate: no more than the buffer is taken.
            let len = usize::try_from(rest).unwrap_or(usize::MAX).min(buffer.len());
            let (now, later) = buffer.split_at_mut(len);
            if len > 0 {
                self.read(part, now, offset).await?;
            }
            (buffer, offset) = (later, 0);
            if buffer.is_empty() {
                break;
            }
        }
        Ok(())
    }

    async fn read(&self, part: &Part<'_>, buffer: &mut [u8], offset: u64) -> Result<(), Failure> {
        let error = match part.image.read_at(buffer, offset).await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        if !self.salvage {
            let doing = format!("error while reading at byte {}", part.start + offset);
            return Err(Failure::image(part.name, doing, open::reason(&error)));
        }
        // Whatever sectors can be had.
        for (sector, offset) in
            buffer.chunks_mut(SECTOR_LEN_BYTES).zip((offset..).step_by(SECTOR_LEN_BYTES))
        {
            if let Err(error) = part.image.read_at(sector, offset).await {
                self.warn(part, &format!("error while reading offset {offset}"), &error);
                sector.fill(0);
            }
        }
        Ok(())
    }

    pub(super) fn warn(&self, part: &Part<'_>, doing: &str, error: &cowshed::Error) {
        if !self.quiet {
            let reason = open::reason(error);
            match self.persona {
                Persona::QemuImg | Persona::QemuIo => {
                    warn(&format!("qemu-img: warning: {doing}: {reason}"));
                }
                Persona::Cowshed => {
                    let name = crate::escape::path(std::path::Path::new(part.name));
                    warn(&format!("cowshed: {name}: {reason}; zeros are written instead"));
                }
            }
        }
    }
}

/// What the copying futures share.
struct Shared<'c, 'p> {
    plan: AsyncMutex<Plan<'c>>,
    /// In which order pieces are written, if that matters.
    order: Option<Order>,
    /// The display, and how much is done in bytes.
    progress: Mutex<(&'p mut Progress, u64)>,
    /// When the copy began, and how much is written in bytes.
    pace: Mutex<(Instant, u64)>,
    failure: Mutex<Option<Failure>>,
}

impl Shared<'_, '_> {
    /// The next piece to read.
    async fn next_piece(&self) -> Result<Option<Piece>, Failure> {
        // The plan is unlocked before a failure stops it.
        self.plan.lock().await.next().await
    }

    /// Keeps the first failure, and lets no more pieces out.
    async fn fail(&self, failure: Failure) {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(failure);
        if let Some(order) = &self.order {
            order.stop();
        }
        self.plan.lock().await.stop();
    }

    /// Shows progress, and waits if the copy is faster than `rate`.
    async fn wrote(&self, len: u64, rate: Option<u64>) -> Result<(), Failure> {
        {
            let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
            progress.1 += len;
            let done = progress.1;
            progress.0.set(done)?;
        }
        let Some(rate) = rate.filter(|&rate| rate > 0) else { return Ok(()) };
        let pause = {
            let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
            pace.1 += len;
            #[allow(clippy::cast_precision_loss, reason = "a pause")]
            let due = pace.1 as f64 / rate as f64;
            Duration::try_from_secs_f64(due)
                .unwrap_or(Duration::MAX)
                .saturating_sub(pace.0.elapsed())
        };
        async_io::Timer::after(pause).await;
        Ok(())
    }
}
