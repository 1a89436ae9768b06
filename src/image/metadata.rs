//! Reading an image's own structures: what is missing is an error, never zeros.

use crate::cache::{Slice, TableCache};
use crate::error::{Corrupt, CorruptKind, Error, Result, Structure};
use crate::format::HostOffset;
use crate::storage::{Blocks, Buf, For, Purpose, Storage};
use crate::sync::{AtomicU64, Ordering};

/// Structures up to this length are looked for at hand first: opening an image that is in memory then waits for
/// nothing.
const AT_HAND_LEN_BYTES_MAX: usize = 1 << 20;

/// An image file and its length: as it was when it was opened, and as far as it was written to since.
pub(crate) struct Metadata<S> {
    storage: S,
    blocks: Blocks,
    len: AtomicU64,
}

impl<S: Storage> Metadata<S> {
    /// The image in `storage`, as long as it is now.
    pub(crate) async fn new(storage: S) -> Result<Self> {
        let len = storage.len().await.map_err(|error| Error::storage("length", 0, 0, error))?;
        let blocks = Blocks::new(storage.limits());
        Ok(Self { storage, blocks, len: AtomicU64::new(len) })
    }

    /// The image file.
    pub(crate) fn storage(&self) -> &S {
        &self.storage
    }

    /// Gives the storage back.
    pub(crate) fn into_storage(self) -> S {
        self.storage
    }

    /// The way of every change to the image file.
    pub(crate) fn blocks(&self) -> &Blocks {
        &self.blocks
    }

    /// Its length in bytes.
    pub(crate) fn file_len(&self) -> u64 {
        self.len.load(Ordering::Acquire)
    }

    /// Looks how long the file is now.
    pub(crate) async fn look_at_len(&self) -> Result<()> {
        let len =
            self.storage.len().await.map_err(|error| Error::storage("length", 0, 0, error))?;
        self.cut_to(len);
        Ok(())
    }

    /// Notes that the file has at least `len` bytes now.
    pub(crate) fn grow_to(&self, len: u64) {
        // Most changes are within the file.
        if self.file_len() < len {
            self.len.fetch_max(len, Ordering::AcqRel);
        }
    }

    /// Notes that the file has `len` bytes now.
    pub(crate) fn cut_to(&self, len: u64) {
        self.len.store(len, Ordering::Release);
    }

    /// Reads `len` bytes of `structure` at `offset`.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the file ends before, [`Error::LimitExceeded`] if memory cannot hold it.
    pub(crate) async fn load(&self, structure: Structure, offset: u64, len: u64) -> Result<Buf> {
        self.must_hold(structure, offset, len)?;
        self.read(offset, len).await
    }

    /// Reads the bytes from `offset` on, at most `len`, that the file has.
    pub(crate) async fn load_some(&self, offset: u64, len: u64) -> Result<Buf> {
        self.read(offset, len.min(self.file_len().saturating_sub(offset))).await
    }

    /// Reads at once what is at hand, and waits for what is not.
    async fn read(&self, offset: u64, len: u64) -> Result<Buf> {
        if let Ok(at_hand) = usize::try_from(len)
            && at_hand <= AT_HAND_LEN_BYTES_MAX
        {
            let mut buf = Buf::zeroed(at_hand);
            if let Some(result) = self.storage.try_read_at(&mut buf, offset) {
                return result
                    .map(|()| buf)
                    .map_err(|error| Error::storage("read", offset, len, error));
            }
        }
        read(&self.storage, offset, len).await
    }

    /// Finds the slice of a table at `offset` through `cache`.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub(crate) async fn load_slice(
        &self,
        cache: &TableCache,
        structure: Structure,
        offset: HostOffset,
    ) -> Result<Slice> {
        self.must_hold(structure, offset.get(), cache.entry_bytes())?;
        let purpose = match structure {
            Structure::RefcountBlock => Purpose::Refcounts,
            _ => Purpose::Mapping,
        };
        cache
            .get(&For(&self.storage, purpose), offset)
            .await
            .map_err(|error| Error::storage("read", offset.get(), cache.entry_bytes(), error))
    }

    /// Asks whether the file holds `len` bytes of `structure` at `offset`.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if it ends before.
    pub(crate) fn must_hold(&self, structure: Structure, offset: u64, len: u64) -> Result<()> {
        match offset.checked_add(len) {
            Some(end) if end <= self.file_len() => Ok(()),
            _ => {
                let kind = CorruptKind::PastEndOfFile { len, file_len: self.file_len() };
                Err(Corrupt::new(kind, structure).at(offset).into())
            }
        }
    }
}

/// Reads exactly `len` bytes at `offset`, in requests that the storage allows. Zeros past the end.
pub(crate) async fn read<S: Storage>(storage: &S, offset: u64, len: u64) -> Result<Buf> {
    let limits = storage.limits();
    let fail = |error| Error::storage("read", offset, len, error);
    let too_large =
        || Error::LimitExceeded { what: "read bytes", value: len, limit: usize::MAX as u64 };
    let alignment = u64::from(limits.request_alignment.max(1));
    let start = offset - offset % alignment;
    let end = offset.checked_add(len).and_then(|end| end.checked_next_multiple_of(alignment));
    let wide = end.and_then(|end| usize::try_from(end - start).ok()).ok_or_else(too_large)?;
    let head = usize::try_from(offset - start).map_err(|_| too_large())?;
    let len = wide.min(usize::try_from(len).map_err(|_| too_large())?);

    let longest = u64::from(limits.transfer_len_max) / alignment * alignment;
    let longest = usize::try_from(longest.max(alignment)).unwrap_or(usize::MAX);
    let memory_alignment = usize::try_from(limits.memory_alignment.max(1)).unwrap_or(1);
    if wide <= longest {
        let buf = Buf::aligned(wide, memory_alignment);
        return Ok(storage.read_at(buf, start).await.map_err(fail)?.narrow(head, len));
    }
    let mut whole = Buf::zeroed(wide);
    let mut at = start;
    for part in whole.chunks_mut(longest) {
        let buf = Buf::aligned(part.len(), memory_alignment);
        part.copy_from_slice(&storage.read_at(buf, at).await.map_err(fail)?);
        at += part.len() as u64;
    }
    Ok(whole.narrow(head, len))
}
