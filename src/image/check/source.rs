//! Reading metadata in bulk: ranges of the file in order, from what is at hand without waiting, else several in flight.

use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::stream::{FuturesOrdered, StreamExt};

use crate::error::{Error, Result};
use crate::storage::{Buf, Storage, StorageLimits};

/// Greatest and least length of one read.
const CHUNK_LEN_MAX: u64 = 1 << 20;
const CHUNK_LEN_MIN: u64 = 64 << 10;
/// Reads in flight when waiting cannot be avoided.
const IN_FLIGHT_MAX: u32 = 16;
/// After this many bytes the executor gets its turn.
const TURN_LEN: u64 = 8 << 20;

/// The image file, for reading.
pub(super) struct Source<'a, S> {
    pub(super) storage: &'a S,
    len: u64,
    pub(super) limits: StorageLimits,
    chunk_len: u64,
}

/// A range of the file to read, with what its reader wants to know of it.
#[derive(Debug, Clone)]
pub(super) struct Piece<T> {
    pub(super) range: Range<u64>,
    pub(super) what: T,
}

impl<'a, S: Storage> Source<'a, S> {
    pub(super) fn new(storage: &'a S, len: u64) -> Self {
        let limits = storage.limits();
        let chunk_len = u64::from(limits.transfer_len_optimal.min(limits.transfer_len_max))
            .clamp(CHUNK_LEN_MIN, CHUNK_LEN_MAX)
            .min(u64::from(limits.transfer_len_max).next_power_of_two())
            .max(u64::from(limits.request_alignment));
        Self { storage, len, limits, chunk_len }
    }

    /// Length of the file in bytes.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Reads every piece in order and hands the bytes over, in parts: the offset in the file, the bytes, what the piece
    /// carries. Parts of a piece start at multiples of 16 from its start. Bytes past the end of the file are left out.
    ///
    /// # Errors
    /// The storage's.
    ///
    /// # Cancel safety
    /// Nothing but reading happens here.
    pub(super) async fn each<T: Clone>(
        &self,
        pieces: impl Iterator<Item = Piece<T>>,
        mut take: impl FnMut(u64, &[u8], &T),
    ) -> Result<()> {
        let mut parts = pieces.flat_map(|piece| self.parts(piece));
        let mut scratch = Vec::new();
        let mut turn = 0;
        while let Some(part) = parts.next() {
            if let Some(bytes) = self.at_hand(&part.range, &mut scratch)? {
                take(part.range.start, bytes, &part.what);
                turn += part.range.end - part.range.start;
                if turn >= TURN_LEN {
                    turn = 0;
                    Turn(false).await;
                }
                continue;
            }
            let mut queue = FuturesOrdered::new();
            queue.push_back(self.wait_for(part));
            let in_flight = self.limits.requests_in_flight.clamp(1, IN_FLIGHT_MAX) as usize;
            loop {
                while queue.len() < in_flight {
                    match parts.next() {
                        Some(part) => queue.push_back(self.wait_for(part)),
                        None => break,
                    }
                }
                let Some(done) = queue.next().await else { break };
                let (part, buf, skip) = done?;
                let len = to_usize(part.range.end - part.range.start);
                take(part.range.start, &buf[skip..skip + len], &part.what);
            }
        }
        Ok(())
    }

    /// Reads one range into `into`, as much of it as the file has.
    ///
    /// # Errors
    /// The storage's.
    pub(super) async fn read(&self, range: Range<u64>, into: &mut Vec<u8>) -> Result<()> {
        into.clear();
        self.each(std::iter::once(Piece { range, what: () }), |_, bytes, ()| {
            into.extend_from_slice(bytes);
        })
        .await
    }

    /// Cuts a piece at the end of the file and at multiples of the length of a read.
    fn parts<T: Clone>(&self, piece: Piece<T>) -> impl Iterator<Item = Piece<T>> + use<T, S> {
        let chunk_len = self.chunk_len;
        let end = piece.range.end.min(self.len);
        let mut start = piece.range.start;
        let what = piece.what;
        std::iter::from_fn(move || {
            if start >= end {
                return None;
            }
            let range = start..end.min(start.saturating_add(chunk_len));
            start = range.end;
            Some(Piece { range, what: what.clone() })
        })
    }

    fn widened(&self, range: &Range<u64>) -> (u64, usize, usize) {
        let alignment = u64::from(self.limits.request_alignment).max(1);
        let start = range.start - range.start % alignment;
        let len = (range.end - start).next_multiple_of(alignment);
        (start, to_usize(len), to_usize(range.start - start))
    }

    fn at_hand<'b>(
        &self,
        range: &Range<u64>,
        scratch: &'b mut Vec<u8>,
    ) -> Result<Option<&'b [u8]>> {
        let (start, len, skip) = self.widened(range);
        if scratch.len() < len {
            scratch.resize(len, 0);
        }
        match self.storage.try_read_at(&mut scratch[..len], start) {
            None => Ok(None),
            Some(Ok(())) => Ok(Some(&scratch[skip..skip + to_usize(range.end - range.start)])),
            Some(Err(source)) => Err(Error::storage("read", start, len as u64, source)),
        }
    }

    async fn wait_for<T>(&self, part: Piece<T>) -> Result<(Piece<T>, Buf, usize)> {
        let (start, len, skip) = self.widened(&part.range);
        let buf = Buf::aligned(len, self.limits.memory_alignment.max(1) as usize);
        let buf = self
            .storage
            .read_at(buf, start)
            .await
            .map_err(|source| Error::storage("read", start, len as u64, source))?;
        Ok((part, buf, skip))
    }
}

/// Lengths of reads, which are bounded by the length of a chunk and an alignment.
pub(super) fn to_usize(len: u64) -> usize {
    // OK to unwrap: at most `CHUNK_LEN_MAX` and two alignments, which are `u32`.
    #[allow(clippy::expect_used)]
    usize::try_from(len).expect("the length of a read fits usize")
}

/// Lets the executor poll something else, once.
struct Turn(bool);

impl Future for Turn {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if std::mem::replace(&mut self.0, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

/// Reads a table of entries of any length from front to back, a window at a time.
pub(super) struct Stream<'a, 'b, S> {
    source: &'a Source<'b, S>,
    /// The window: bytes of the file from `at`.
    window: Vec<u8>,
    at: u64,
    end: u64,
}

impl<'a, 'b, S: Storage> Stream<'a, 'b, S> {
    const WINDOW_LEN: u64 = 256 << 10;

    /// A stream over a range, or as much of it as the file has.
    pub(super) fn new(source: &'a Source<'b, S>, range: Range<u64>) -> Self {
        let end = range.end.min(source.len());
        Self { source, window: Vec::new(), at: range.start, end }
    }

    /// Offset of the next byte.
    pub(super) fn offset(&self) -> u64 {
        self.at
    }

    /// Gives the next `len` bytes without taking them, or fewer where the range ends.
    ///
    /// # Errors
    /// The storage's.
    pub(super) async fn peek(&mut self, len: u64) -> Result<&[u8]> {
        let wanted = len.min(self.end.saturating_sub(self.at));
        if (self.window.len() as u64) < wanted {
            let window_end = self.at.saturating_add(wanted.max(Self::WINDOW_LEN)).min(self.end);
            let mut window = std::mem::take(&mut self.window);
            self.source.read(self.at..window_end, &mut window).await?;
            self.window = window;
        }
        let len = to_usize(wanted).min(self.window.len());
        Ok(&self.window[..len])
    }

    /// Takes `len` bytes, which were peeked at.
    pub(super) fn skip(&mut self, len: u64) {
        self.at = self.at.saturating_add(len);
        let known = usize::try_from(len).unwrap_or(usize::MAX).min(self.window.len());
        self.window.drain(..known);
    }
}
