//! Writing to an image under repair: bytes anywhere, words of tables, and what makes them durable.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::image::check::source::{Source, to_usize};
use crate::storage::{Buf, Storage, StorageLimits};

/// Words that lie no further apart are written together with what is between them.
const GAP_LEN_MAX: u64 = 4 << 10;
/// The longest write.
const WRITE_LEN_MAX: u64 = 1 << 20;

/// A word of a table to be written.
#[derive(Debug, Clone, Copy)]
pub(in crate::image::check) struct Word {
    /// Its offset in the file.
    pub(in crate::image::check) place: u64,
    pub(in crate::image::check) value: u64,
}

/// The image file, for writing.
pub(in crate::image::check) struct Target<'a, S> {
    storage: &'a S,
    limits: StorageLimits,
}

impl<'a, S: Storage> Target<'a, S> {
    pub(super) fn new(storage: &'a S) -> Self {
        Self { storage, limits: storage.limits() }
    }

    /// Writes bytes at an offset.
    ///
    /// # Errors
    /// The storage's.
    ///
    /// # Cancel safety
    /// Any part of the bytes may be written: callers write nothing that is needed whole in a place that is in use.
    pub(super) async fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let mut at = offset;
        for part in bytes.chunks(to_usize(WRITE_LEN_MAX)) {
            self.write_part(at, part).await?;
            at += part.len() as u64;
        }
        Ok(())
    }

    async fn write_part(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let alignment = u64::from(self.limits.request_alignment).max(1);
        let start = offset - offset % alignment;
        let end = offset.saturating_add(bytes.len() as u64);
        let end = end.checked_next_multiple_of(alignment).unwrap_or(end);
        let len = to_usize(end - start);
        let skip = to_usize(offset - start);
        let mut buf = Buf::aligned(len, self.limits.memory_alignment.max(1) as usize);
        if len > bytes.len() {
            buf = self
                .storage
                .read_at(buf, start)
                .await
                .map_err(|source| Error::storage("read", start, len as u64, source))?;
        }
        buf[skip..skip + bytes.len()].copy_from_slice(bytes);
        let written = self.storage.write_at(buf, start).await;
        written.map_err(|source| Error::storage("write", start, len as u64, source))?;
        Ok(())
    }

    /// Writes words, and forgets them. Each is whole or not written at all after a crash.
    ///
    /// # Errors
    /// The storage's.
    pub(in crate::image::check) async fn write_words(&self, words: &mut Vec<Word>) -> Result<()> {
        words.sort_unstable_by_key(|word| word.place);
        let mut rest = &words[..];
        while let Some(first) = rest.first() {
            let mut range: Range<u64> = first.place..first.place + 8;
            let mut count = 1;
            for word in &rest[1..] {
                if word.place > range.end + GAP_LEN_MAX
                    || word.place + 8 > range.start + WRITE_LEN_MAX
                {
                    break;
                }
                range.end = word.place + 8;
                count += 1;
            }
            let source = Source::new(self.storage, range.end);
            let mut bytes = Vec::new();
            source.read(range.clone(), &mut bytes).await?;
            for word in &rest[..count] {
                let at = to_usize(word.place - range.start);
                if let Some(bytes) = bytes.get_mut(at..at + 8) {
                    bytes.copy_from_slice(&word.value.to_be_bytes());
                }
            }
            self.write(range.start, &bytes).await?;
            rest = &rest[count..];
        }
        words.clear();
        Ok(())
    }

    /// Makes durable what was written before.
    ///
    /// # Errors
    /// The storage's.
    pub(super) async fn flush(&self) -> Result<()> {
        self.storage.flush().await.map_err(|source| Error::storage("flush", 0, 0, source))
    }

    /// Makes the file at least `len` bytes long.
    ///
    /// # Errors
    /// The storage's.
    pub(super) async fn grow(&self, len: u64) -> Result<()> {
        let grown = self.storage.set_len(len).await;
        grown.map_err(|source| Error::storage("set the length to", len, 0, source))
    }
}
