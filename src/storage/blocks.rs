//! Changes at any offset and of any length, on a storage that wants multiples of its alignment.
//!
//! A change that covers a part of a block reads the block, changes its part and writes the whole. While it does, no other
//! change may touch the block, or one of the two would undo what the other has done to its own bytes. So every change
//! of a storage goes through the same [`Blocks`]; with an alignment of 1 they cost nothing.
//!
//! It must not know anything but the contract of [`storage`](super).

use std::io;
use std::ops::Range;

use super::{Buf, Storage, StorageLimits};
use crate::sync::{Event, Mutex};

/// Writes, zeroes and discards ranges of one storage that need not be aligned.
///
/// Changes that overlap are the caller's to order, as on the storage itself; what lies beside them in a block that they
/// share is not: it keeps what was last written there.
#[derive(Debug)]
pub struct Blocks {
    alignment: u64,
    memory_alignment: usize,
    /// A multiple of the alignment.
    transfer_len_max: u64,
    taken: Mutex<Taken>,
    /// A range is no longer held.
    given_back: Event,
}

#[derive(Debug, Default)]
struct Taken {
    ranges: Vec<TakenRange>,
    last_id: u64,
}

#[derive(Debug)]
struct TakenRange {
    id: u64,
    range: Range<u64>,
    /// Parts of blocks are changed; no other change may touch them.
    in_part: bool,
    /// Its future was dropped while the storage was writing its blocks, which may land until the next flush.
    is_adrift: bool,
}

impl Blocks {
    /// For one storage with these limits.
    #[must_use]
    pub fn new(limits: StorageLimits) -> Self {
        let alignment = u64::from(limits.request_alignment.max(1));
        let transfer_len_max = u64::from(limits.transfer_len_max);
        Self {
            alignment,
            memory_alignment: usize::try_from(limits.memory_alignment.max(1)).unwrap_or(1),
            transfer_len_max: (transfer_len_max - transfer_len_max % alignment).max(alignment),
            taken: Mutex::default(),
            given_back: Event::new(),
        }
    }

    /// Writes all of `data` at `offset`, extending the storage if it ends before, to the end of the last block.
    ///
    /// # Errors
    /// As [`Storage::write_at`] and, if a part of a block is written, [`Storage::read_at`]. A part of what comes before
    /// what failed may have been written.
    ///
    /// # Cancel safety
    /// As [`Storage::write_at`]. What lies beside `data` is not touched: the next change there waits until the dropped
    /// one can land no more, by a flush.
    pub async fn write<S: Storage>(&self, storage: &S, data: &[u8], offset: u64) -> io::Result<()> {
        let end = end_of(offset, data.len() as u64)?;
        if data.is_empty() {
            return Ok(());
        }
        let wide = self.widen(offset..end)?;
        if self.alignment == 1
            && data.len() as u64 <= self.transfer_len_max
            && let Some(result) = storage.try_write_at(data, offset)
        {
            return result;
        }
        let mut held = match self.alignment {
            1 => None,
            _ => Some(self.take(storage, wide.clone(), wide != (offset..end)).await?),
        };
        let mut at = wide.start;
        while at < wide.end {
            let piece = at..wide.end.min(at.saturating_add(self.transfer_len_max));
            let buf = self.fill(storage, &piece, data, offset).await?;
            if let Some(held) = &mut held {
                held.is_writing = true;
            }
            // Cancel: what is held stays taken, adrift, until a flush.
            let result = storage.write_at(buf, piece.start).await;
            if let Some(held) = &mut held {
                held.is_writing = false;
            }
            result?;
            at = piece.end;
        }
        Ok(())
    }

    /// Makes `len` bytes from `offset` read as zeros, extending the storage if it ends before.
    ///
    /// # Errors
    /// As [`Self::write`].
    ///
    /// # Cancel safety
    /// As [`Self::write`].
    pub async fn write_zeroes<S: Storage>(
        &self,
        storage: &S,
        offset: u64,
        len: u64,
    ) -> io::Result<()> {
        let end = end_of(offset, len)?;
        if self.alignment == 1 {
            return storage.write_zeroes(offset, len).await;
        }
        let whole = self.narrow(offset..end);
        if whole.is_empty() {
            // At most two blocks, less their ends.
            return self.write(storage, &zeros(len)?, offset).await;
        }
        self.write(storage, &zeros(whole.start - offset)?, offset).await?;
        let held = self.take(storage, whole.clone(), false).await?;
        storage.write_zeroes(whole.start, whole.end - whole.start).await?;
        drop(held);
        self.write(storage, &zeros(end - whole.end)?, whole.end).await
    }

    /// Says that the range's bytes are of no more use, as [`Storage::discard`]; the parts of blocks at its ends stay.
    ///
    /// # Errors
    /// As [`Storage::discard`].
    ///
    /// # Cancel safety
    /// As [`Storage::discard`].
    pub async fn discard<S: Storage>(&self, storage: &S, offset: u64, len: u64) -> io::Result<()> {
        let end = end_of(offset, len)?;
        let whole = self.narrow(offset..end);
        if whole.is_empty() {
            return Ok(());
        }
        let len = whole.end - whole.start;
        if self.alignment == 1 {
            return storage.discard(whole.start, len).await;
        }
        let _held = self.take(storage, whole.clone(), false).await?;
        storage.discard(whole.start, len).await
    }

    /// The bytes to write to `piece`, a range of whole blocks: those of `data`, which begins at `offset`, and beside them
    /// what is there.
    async fn fill<S: Storage>(
        &self,
        storage: &S,
        piece: &Range<u64>,
        data: &[u8],
        offset: u64,
    ) -> io::Result<Buf> {
        let end = offset + data.len() as u64;
        let inner = piece.start.max(offset)..piece.end.min(end);
        let mut buf = Buf::aligned(index(piece.end - piece.start)?, self.memory_alignment);
        let block_len = index(self.alignment)?;
        let first = piece.start;
        let last = piece.end - self.alignment;
        let (cuts_first, cuts_last) = (inner.start > piece.start, inner.end < piece.end);
        if cuts_first || (cuts_last && first == last) {
            let block = Buf::aligned(block_len, self.memory_alignment);
            let block = storage.read_at(block, first).await?;
            buf[..block_len].copy_from_slice(&block);
        }
        if cuts_last && first != last {
            let block = Buf::aligned(block_len, self.memory_alignment);
            let block = storage.read_at(block, last).await?;
            let start = buf.len() - block_len;
            buf[start..].copy_from_slice(&block);
        }
        let from = &data[index(inner.start - offset)?..index(inner.end - offset)?];
        let start = index(inner.start - piece.start)?;
        buf[start..start + from.len()].copy_from_slice(from);
        Ok(buf)
    }

    /// Waits until no other change is in the way of one of these blocks.
    async fn take<S: Storage>(
        &self,
        storage: &S,
        range: Range<u64>,
        in_part: bool,
    ) -> io::Result<Held<'_>> {
        loop {
            let listener = {
                let mut taken = self.taken.lock();
                match taken.obstacle(&range, in_part) {
                    None => return Ok(self.hold(&mut taken, range, in_part)),
                    Some(true) => None,
                    // Under the lock, so that nothing is given back before.
                    Some(false) => Some(self.given_back.listen()),
                }
            };
            match listener {
                Some(listener) => listener.await,
                // Cancel: what is adrift stays so.
                None => self.settle(storage).await?,
            }
        }
    }

    fn hold(&self, taken: &mut Taken, range: Range<u64>, in_part: bool) -> Held<'_> {
        taken.last_id += 1;
        let id = taken.last_id;
        taken.ranges.push(TakenRange { id, range, in_part, is_adrift: false });
        Held { blocks: self, id, is_writing: false }
    }

    /// Flushes, after which what was adrift before can land no more.
    async fn settle<S: Storage>(&self, storage: &S) -> io::Result<()> {
        let adrift = |range: &&TakenRange| range.is_adrift;
        let ids: Vec<_> = self.taken.lock().ranges.iter().filter(adrift).map(|r| r.id).collect();
        storage.flush().await?;
        self.taken.lock().ranges.retain(|range| !ids.contains(&range.id));
        self.given_back.notify(usize::MAX);
        Ok(())
    }

    fn widen(&self, range: Range<u64>) -> io::Result<Range<u64>> {
        let end = range.end.checked_next_multiple_of(self.alignment).ok_or_else(too_far)?;
        Ok(range.start - range.start % self.alignment..end)
    }

    /// The whole blocks of a range; empty if there are none.
    fn narrow(&self, range: Range<u64>) -> Range<u64> {
        let end = range.end - range.end % self.alignment;
        match range.start.checked_next_multiple_of(self.alignment) {
            Some(start) if start < end => start..end,
            _ => end..end,
        }
    }
}

impl Taken {
    /// What is in the way: `None` if nothing is, or whether it is adrift.
    fn obstacle(&self, range: &Range<u64>, in_part: bool) -> Option<bool> {
        let in_the_way = |other: &&TakenRange| {
            (in_part || other.in_part)
                && other.range.start < range.end
                && range.start < other.range.end
        };
        // What is held is waited for first: it may be adrift by then.
        self.ranges.iter().filter(in_the_way).map(|other| other.is_adrift).reduce(|a, b| a && b)
    }
}

/// Blocks that a change has taken.
struct Held<'a> {
    blocks: &'a Blocks,
    id: u64,
    /// The storage is at a write of them.
    is_writing: bool,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut taken = self.blocks.taken.lock();
        // Of blocks that a change covers as a whole there is no one else's to be undone.
        let is_adrift = |range: &TakenRange| self.is_writing && range.in_part;
        if let Some(at) = taken.ranges.iter().position(|range| range.id == self.id) {
            match is_adrift(&taken.ranges[at]) {
                true => taken.ranges[at].is_adrift = true,
                false => drop(taken.ranges.swap_remove(at)),
            }
        }
        drop(taken);
        self.blocks.given_back.notify(usize::MAX);
    }
}

fn end_of(offset: u64, len: u64) -> io::Result<u64> {
    offset.checked_add(len).ok_or_else(too_far)
}

fn too_far() -> io::Error {
    io::Error::new(io::ErrorKind::FileTooLarge, "the range ends past what an offset can hold")
}

/// For lengths of what is in memory or will be.
fn index(len: u64) -> io::Result<usize> {
    usize::try_from(len).map_err(|_| io::ErrorKind::OutOfMemory.into())
}

fn zeros(len: u64) -> io::Result<Vec<u8>> {
    Ok(vec![0; index(len)?])
}
