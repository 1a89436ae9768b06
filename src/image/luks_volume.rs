//! A LUKS volume: an encryption header at the start of a file, and behind it a disk that is encrypted as a whole.
//!
//! The disk is a storage as any other, so that an image can lie in it: a raw one, as QEMU's format `luks` is.
//!
//! Matches block/crypto.c in QEMU.

use std::fmt;
use std::io;
use std::sync::Arc;

use crate::crypt::{DiskCipher, SECTOR_LEN_BYTES};
use crate::error::{Error, Result};
use crate::format::LuksHeader;
use crate::storage::{Buf, SendStorage, Storage, StorageExtent, StorageExtentKind, StorageLimits};
use crate::sync::AsyncMutex;
use crate::workers::Workers;

use super::metadata::Metadata;
use super::options::OpenOptions;
use super::unlock::luks::Keyring;

/// How many zeros are encrypted and written at a time, in bytes.
const ZEROS_LEN_BYTES_MAX: u32 = 1 << 20;

/// The length of a sector.
const SECTOR_LEN: u32 = 512;

/// The disk of a LUKS volume that lies in another storage: what is read is decrypted, and what is written encrypted.
///
/// Offsets and lengths are those of the disk, in bytes; requests are whole sectors of 512 bytes, as its limits say. As the
/// volume's sectors are counted from the start of the payload, the numbers that make initialisation vectors are the disk's.
///
/// Where nobody has written, the disk reads as noise and not as zeros: what [`set_len`](SendStorage::set_len) gains is noise
/// too, and nothing within the disk is a hole. [`discard`](SendStorage::discard) does nothing: it would tell which sectors are
/// in use.
///
/// Sectors are encrypted and decrypted where the request is polled; a write copies its buffer, which comes back as it was.
///
/// Source: QEMU, block/crypto.c.
pub struct LuksVolume<S> {
    pub(super) metadata: Metadata<S>,
    header: LuksHeader,
    /// None if no passphrase was given.
    cipher: Option<DiskCipher>,
    pub(super) workers: Option<Arc<dyn Workers>>,
    /// Held by whoever changes the key slots.
    pub(super) changing_keys: AsyncMutex<()>,
}

impl<S: Storage> LuksVolume<S> {
    /// Opens the volume in `storage` with the key of the options, of which but for that `key_iterations_max` and `workers`
    /// count. Without a key there is nothing to read, but the header and the length of the disk.
    ///
    /// # Errors
    /// [`Error::WrongKey`]; [`Error::Corrupt`] and [`Error::Unsupported`] from the header, which may want too much work done;
    /// [`Error::InvalidArgument`] if the payload is not aligned to what the storage asks of requests; [`Error::Storage`].
    ///
    /// # Cancel safety
    /// Nothing has been changed.
    pub async fn open(storage: S, options: &OpenOptions) -> Result<Self> {
        let metadata = Metadata::new(storage).await?;
        let keyring = Keyring::load_of_volume(&metadata).await?;
        let (limits, payload) = (metadata.storage().limits(), keyring.header.payload_offset);
        let alignment = u64::from(limits.request_alignment.max(1));
        if !payload.is_multiple_of(alignment) {
            return Err(Error::InvalidArgument(format!(
                "the payload at {payload:#x} is not aligned to {alignment:#x}, as requests must be"
            )));
        }
        let cipher = match &options.key {
            None => None,
            Some(key) => {
                let (limit, workers) = (options.key_iterations_max, options.workers.as_ref());
                let found = keyring.find(&metadata, key, limit, workers).await?;
                let (_, master_key) = found.ok_or(Error::WrongKey)?;
                Some(keyring.cipher(&master_key)?)
            }
        };
        let (header, workers) = (keyring.header, options.workers.clone());
        Ok(Self { metadata, header, cipher, workers, changing_keys: AsyncMutex::default() })
    }

    /// What the volume lies in.
    pub fn storage(&self) -> &S {
        self.metadata.storage()
    }

    /// Gives the storage back.
    pub fn into_storage(self) -> S {
        self.metadata.into_storage()
    }
}

impl<S> LuksVolume<S> {
    /// The header as it was when the volume was opened.
    pub fn header(&self) -> &LuksHeader {
        &self.header
    }

    /// Whether it was opened without a key.
    pub fn is_locked(&self) -> bool {
        self.cipher.is_none()
    }

    /// The cipher, if `len` bytes from `offset` are whole sectors.
    fn cipher(&self, offset: u64, len: u64) -> io::Result<&DiskCipher> {
        if !offset.is_multiple_of(SECTOR_LEN_BYTES) || !len.is_multiple_of(SECTOR_LEN_BYTES) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let locked = || Error::KeyRequired { method: "LUKS" };
        self.cipher.as_ref().ok_or_else(|| locked().into())
    }

    /// Where in the storage `offset` is.
    fn place(&self, offset: u64) -> io::Result<u64> {
        let place = self.header.payload_offset.checked_add(offset);
        place.ok_or_else(|| io::ErrorKind::FileTooLarge.into())
    }
}

impl<S> fmt::Debug for LuksVolume<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LuksVolume").field("is_locked", &self.is_locked()).finish_non_exhaustive()
    }
}

impl<S: SendStorage> SendStorage for LuksVolume<S> {
    async fn read_at(&self, buf: Buf, offset: u64) -> io::Result<Buf> {
        let cipher = self.cipher(offset, buf.len() as u64)?;
        let mut buf = SendStorage::read_at(self.storage(), buf, self.place(offset)?).await?;
        let there = SendStorage::len(self).await?.saturating_sub(offset).min(buf.len() as u64);
        // OK to unwrap: it is no more than the buffer has.
        let (there, beyond) = buf.split_at_mut(usize::try_from(there).unwrap_or(usize::MAX));
        cipher.decrypt(offset, offset, there);
        // What is past the end is encrypted by no one.
        beyond.fill(0);
        Ok(buf)
    }

    async fn write_at(&self, buf: Buf, offset: u64) -> io::Result<Buf> {
        let cipher = self.cipher(offset, buf.len() as u64)?;
        let place = self.place(offset)?;
        let alignment = SendStorage::limits(self.storage()).memory_alignment.max(1);
        let mut encrypted = Buf::aligned(buf.len(), alignment as usize);
        encrypted.copy_from_slice(&buf);
        cipher.encrypt(offset, offset, &mut encrypted);
        SendStorage::write_at(self.storage(), encrypted, place).await?;
        Ok(buf)
    }

    async fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        let longest = SendStorage::limits(self).transfer_len_max.min(ZEROS_LEN_BYTES_MAX);
        let (mut at, mut rest) = (offset, len);
        while rest > 0 {
            let piece = rest.min(u64::from(longest));
            // OK to unwrap: 1 MiB at most.
            let zeros = Buf::zeroed(usize::try_from(piece).unwrap_or_default());
            // Cancel: what comes before has been written.
            SendStorage::write_at(self, zeros, at).await?;
            (at, rest) = (at + piece, rest - piece);
        }
        Ok(())
    }

    async fn discard(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }

    async fn flush(&self) -> io::Result<()> {
        SendStorage::flush(self.storage()).await
    }

    async fn len(&self) -> io::Result<u64> {
        // A file has whole sectors to QEMU: of the last one what is missing is zeros, which are decrypted.
        let len = SendStorage::len(self.storage()).await?.next_multiple_of(SECTOR_LEN_BYTES);
        Ok(len.saturating_sub(self.header.payload_offset))
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        SendStorage::set_len(self.storage(), self.place(len)?).await
    }

    async fn extent_at(&self, offset: u64, len: u64) -> io::Result<StorageExtent> {
        Ok(match SendStorage::len(self).await?.saturating_sub(offset) {
            0 => StorageExtent { kind: StorageExtentKind::Hole, len },
            rest => StorageExtent { kind: StorageExtentKind::Data, len: rest.min(len) },
        })
    }

    async fn set_writable(&self, writable: bool) -> io::Result<()> {
        SendStorage::set_writable(self.storage(), writable).await
    }

    fn limits(&self) -> StorageLimits {
        let limits = SendStorage::limits(self.storage());
        let request_alignment = limits.request_alignment.max(SECTOR_LEN);
        let longest = limits.transfer_len_max - limits.transfer_len_max % request_alignment;
        let transfer_len_max = longest.max(request_alignment);
        StorageLimits { request_alignment, transfer_len_max, ..limits }
    }
}
