//! A storage in memory: what tests, the simulator's disks and small images in the browser use.
//!
//! It answers [`SendStorage::try_read_at`] and [`SendStorage::try_write_at`] always, and its futures never wait. It must not know anything but the
//! contract of [`storage`](super).

use std::fmt;
use std::io;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::{Buf, SendStorage, StorageExtent, StorageExtentKind};

/// Bytes in memory. Flushing does nothing: what is written is as durable as it gets.
///
/// It grows to at most [`MemoryStorage::LEN_MAX`] bytes; what would end past that is refused with
/// [`io::ErrorKind::FileTooLarge`].
///
/// To use one storage from several places, put it into an [`Arc`](std::sync::Arc), which is a storage too.
#[derive(Default)]
pub struct MemoryStorage {
    bytes: RwLock<Vec<u8>>,
}

impl MemoryStorage {
    /// How long it grows, in bytes: 4 GiB. The system grants more memory than there is and ends the process that uses
    /// it, so a write to a far offset must be refused here.
    pub const LEN_MAX: u64 = 1 << 32;

    /// A storage that holds `bytes`.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        Self { bytes: RwLock::new(bytes) }
    }

    /// A copy of all bytes.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        self.bytes().clone()
    }

    /// The bytes themselves.
    #[must_use]
    pub fn into_vec(self) -> Vec<u8> {
        self.bytes.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// A panic under the lock (there is none in this file but for a bug) leaves bytes, and bytes have no invariant.
    fn bytes(&self) -> RwLockReadGuard<'_, Vec<u8>> {
        self.bytes.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn bytes_mut(&self) -> RwLockWriteGuard<'_, Vec<u8>> {
        self.bytes.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn copy_out(&self, buf: &mut [u8], offset: u64) {
        let bytes = self.bytes();
        // What does not fit into usize is past the end of any Vec.
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
        let len = buf.len().min(bytes.len() - start);
        buf[..len].copy_from_slice(&bytes[start..start + len]);
        buf[len..].fill(0);
    }

    fn copy_in(&self, data: &[u8], offset: u64) -> io::Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        let mut bytes = self.bytes_mut();
        let range = grow(&mut bytes, offset, data.len() as u64)?;
        bytes[range].copy_from_slice(data);
        Ok(())
    }
}

impl From<Vec<u8>> for MemoryStorage {
    fn from(bytes: Vec<u8>) -> Self {
        Self::new(bytes)
    }
}

impl fmt::Debug for MemoryStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStorage").field("len", &self.bytes().len()).finish_non_exhaustive()
    }
}

impl SendStorage for MemoryStorage {
    async fn read_at(&self, mut buf: Buf, offset: u64) -> io::Result<Buf> {
        self.copy_out(&mut buf, offset);
        Ok(buf)
    }

    async fn write_at(&self, buf: Buf, offset: u64) -> io::Result<Buf> {
        self.copy_in(&buf, offset)?;
        Ok(buf)
    }

    async fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        let mut bytes = self.bytes_mut();
        let range = grow(&mut bytes, offset, len)?;
        bytes[range].fill(0);
        Ok(())
    }

    async fn discard(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }

    async fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    async fn len(&self) -> io::Result<u64> {
        Ok(self.bytes().len() as u64)
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        let mut bytes = self.bytes_mut();
        if len > bytes.len() as u64 {
            let from = bytes.len() as u64;
            grow(&mut bytes, from, len - from)?;
        } else {
            // OK: not longer than the Vec, so it fits.
            bytes.truncate(usize::try_from(len).unwrap_or(usize::MAX));
        }
        Ok(())
    }

    async fn extent_at(&self, offset: u64, len: u64) -> io::Result<StorageExtent> {
        let end = self.bytes().len() as u64;
        Ok(match end.checked_sub(offset) {
            None | Some(0) => StorageExtent { kind: StorageExtentKind::Hole, len },
            Some(rest) => StorageExtent { kind: StorageExtentKind::Data, len: len.min(rest) },
        })
    }

    fn try_read_at(&self, buf: &mut [u8], offset: u64) -> Option<io::Result<()>> {
        self.copy_out(buf, offset);
        Some(Ok(()))
    }

    fn try_write_at(&self, data: &[u8], offset: u64) -> Option<io::Result<()>> {
        Some(self.copy_in(data, offset))
    }
}

/// Makes `bytes` long enough for `len` bytes at `offset` and says where they are.
fn grow(bytes: &mut Vec<u8>, offset: u64, len: u64) -> io::Result<std::ops::Range<usize>> {
    let bound = MemoryStorage::LEN_MAX.max(bytes.len() as u64);
    let end = offset.checked_add(len).filter(|end| *end <= bound);
    let Some(end) = end.and_then(|end| usize::try_from(end).ok()) else {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("{len} bytes at {offset:#x} end past {bound:#x}"),
        ));
    };
    if end > bytes.len() {
        bytes.try_reserve(end - bytes.len()).map_err(io::Error::from)?;
        bytes.resize(end, 0);
    }
    // OK: both are at most `end`, which fits.
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    Ok(end - len..end)
}
