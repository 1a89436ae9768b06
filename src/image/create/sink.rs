//! Writing a new image: neighbouring pieces together, in requests that the storage takes.

use crate::error::{Error, Result};
use crate::storage::{Buf, Storage};

/// How much is put together before it is written, in bytes.
const PENDING_LEN_BYTES_MAX: usize = 1 << 20;

/// Bytes on their way to a storage.
pub(super) struct Sink<'s, S> {
    storage: &'s S,
    /// Whether the storage reads as zeros where nothing was put.
    is_zero: bool,
    /// What is not written yet, and where it begins.
    pending: Vec<u8>,
    at: u64,
    /// Behind the last byte that was put.
    end: u64,
}

impl<'s, S: Storage> Sink<'s, S> {
    /// For a storage that reads as zeros, or not.
    pub(super) fn new(storage: &'s S, is_zero: bool) -> Self {
        Self { storage, is_zero, pending: Vec::new(), at: 0, end: 0 }
    }

    /// Behind the last byte that was put.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// Puts `bytes` at `offset`. They need not be written before [`Self::drain`] returns.
    ///
    /// Cancel: what is in the way of a new image has no header yet.
    pub(super) async fn put(&mut self, bytes: &[u8], offset: u64) -> Result<()> {
        let adjoins = self.at + self.pending.len() as u64 == offset;
        if !adjoins || self.pending.len() + bytes.len() > PENDING_LEN_BYTES_MAX {
            self.drain().await?;
        }
        if self.pending.is_empty() {
            self.at = offset;
        }
        self.pending.extend_from_slice(bytes);
        self.end = self.end.max(offset + bytes.len() as u64);
        Ok(())
    }

    /// Makes `len` bytes at `offset` part of what was put, as zeros.
    pub(super) async fn put_zeros(&mut self, offset: u64, len: u64) -> Result<()> {
        self.end = self.end.max(offset + len);
        if self.is_zero { Ok(()) } else { self.allocate(offset, len).await }
    }

    /// Makes `len` bytes at `offset` zeros that have their space.
    pub(super) async fn allocate(&mut self, offset: u64, len: u64) -> Result<()> {
        self.drain().await?;
        self.end = self.end.max(offset + len);
        let unit = u64::from(self.storage.limits().request_alignment);
        let (start, end) = (offset.next_multiple_of(unit), (offset + len) / unit * unit);
        if start >= end {
            return self.write_zeros(offset, len).await;
        }
        self.write_zeros(offset, start - offset).await?;
        let zeroed = self.storage.write_zeroes(start, end - start).await;
        zeroed.map_err(|error| Error::storage("write zeroes", start, end - start, error))?;
        self.write_zeros(end, offset + len - end).await
    }

    /// Writes `len` zeros at `offset`.
    pub(super) async fn write_zeros(&mut self, offset: u64, len: u64) -> Result<()> {
        self.drain().await?;
        self.end = self.end.max(offset + len);
        let (mut offset, mut rest) = (offset, len);
        while rest > 0 {
            let piece = usize::try_from(rest)
                .map_or(PENDING_LEN_BYTES_MAX, |n| n.min(PENDING_LEN_BYTES_MAX));
            self.write(&vec![0; piece], offset).await?;
            offset += piece as u64;
            rest -= piece as u64;
        }
        Ok(())
    }

    /// Writes what was put.
    pub(super) async fn drain(&mut self) -> Result<()> {
        let pending = std::mem::take(&mut self.pending);
        self.write(&pending, self.at).await?;
        self.at += pending.len() as u64;
        // The memory serves again.
        self.pending = pending;
        self.pending.clear();
        Ok(())
    }

    /// Writes all of `bytes`, of which a request of the storage may ask to be read what lies around them.
    async fn write(&self, bytes: &[u8], offset: u64) -> Result<()> {
        let limits = self.storage.limits();
        let unit = u64::from(limits.request_alignment);
        // A multiple of the unit, so that pieces meet at its multiples.
        let longest = (u64::from(limits.transfer_len_max) / unit).max(1) * unit;
        let end = offset + bytes.len() as u64;
        let mut at = offset;
        while at < end {
            let start = at / unit * unit;
            let stop = end.min(start + longest);
            let (outer_len, inner) =
                (stop.next_multiple_of(unit) - start, at - offset..stop - offset);
            let mut buf = Buf::aligned(to_usize(outer_len), limits.memory_alignment as usize);
            if outer_len != stop - at {
                let read = self.storage.read_at(buf, start).await;
                buf = read.map_err(|error| Error::storage("read", start, outer_len, error))?;
            }
            let head = to_usize(at - start);
            let piece = &bytes[to_usize(inner.start)..to_usize(inner.end)];
            buf[head..head + piece.len()].copy_from_slice(piece);
            let written = self.storage.write_at(buf, start).await;
            written.map_err(|error| Error::storage("write", start, outer_len, error))?;
            at = stop;
        }
        Ok(())
    }
}

/// A length of something in memory, or of a request: it fits.
fn to_usize(len: u64) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX)
}
