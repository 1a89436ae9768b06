//! A file as storage by the best means that this machine has.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::file::{FileOptions, FileStorage};
#[cfg(all(target_os = "linux", feature = "uring"))]
use super::uring::UringStorage;
use crate::image::{Format, Identity, Source};
use crate::storage::{Buf, SendStorage, StorageExtent, StorageLimits};

/// A file as storage, by whatever [`open_storage`] found to be best. Clones are the same storage.
#[derive(Debug, Clone)]
pub struct DiskStorage(Kind);

#[derive(Debug, Clone)]
enum Kind {
    File(FileStorage),
    #[cfg(all(target_os = "linux", feature = "uring"))]
    Uring(UringStorage),
}

/// Opens the file at `path` by the best means that this machine has.
///
/// # Errors
/// As [`FileStorage::open`].
pub fn open_storage(path: impl AsRef<Path>, options: &FileOptions) -> io::Result<DiskStorage> {
    FileStorage::open(path, options).map(DiskStorage::best)
}

impl DiskStorage {
    /// Takes over an open file, as [`FileStorage::from_file`] does.
    ///
    /// # Errors
    /// As [`FileStorage::open`].
    pub fn from_file(
        file: File,
        path: impl Into<PathBuf>,
        options: &FileOptions,
    ) -> io::Result<Self> {
        FileStorage::from_file(file, path, options).map(Self::best)
    }

    /// The path it was opened by.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.file_storage().path()
    }

    /// What tells whether two paths are the same file: device and inode.
    #[must_use]
    pub fn identity(&self) -> (u64, u64) {
        self.file_storage().identity()
    }

    /// The file as the source of an image of the given format.
    #[must_use]
    pub fn into_source(self, format: Format) -> Source<Self> {
        let (device, inode) = self.identity();
        let location = self.path().to_path_buf();
        Source { storage: self, format, location, identity: Some(Identity(device, inode)) }
    }

    /// The open file.
    #[must_use]
    pub fn file(&self) -> &File {
        self.file_storage().file()
    }

    fn file_storage(&self) -> &FileStorage {
        match &self.0 {
            Kind::File(storage) => storage,
            #[cfg(all(target_os = "linux", feature = "uring"))]
            Kind::Uring(storage) => storage.file_storage(),
        }
    }

    #[cfg(all(target_os = "linux", feature = "uring"))]
    fn best(storage: FileStorage) -> Self {
        match UringStorage::from_storage(storage) {
            Ok(storage) => Self(Kind::Uring(storage)),
            Err(storage) => Self(Kind::File(storage)),
        }
    }

    #[cfg(not(all(target_os = "linux", feature = "uring")))]
    fn best(storage: FileStorage) -> Self {
        Self(Kind::File(storage))
    }
}

impl From<FileStorage> for DiskStorage {
    /// Uses the file as it is, without io_uring.
    fn from(storage: FileStorage) -> Self {
        Self(Kind::File(storage))
    }
}

#[cfg(all(target_os = "linux", feature = "uring"))]
impl From<UringStorage> for DiskStorage {
    fn from(storage: UringStorage) -> Self {
        Self(Kind::Uring(storage))
    }
}

/// Passes a call on to whichever storage it is.
macro_rules! pass {
    ($self:ident, $storage:ident => $call:expr) => {
        match &$self.0 {
            Kind::File($storage) => $call,
            #[cfg(all(target_os = "linux", feature = "uring"))]
            Kind::Uring($storage) => $call,
        }
    };
}

impl SendStorage for DiskStorage {
    async fn read_at(&self, buf: Buf, offset: u64) -> io::Result<Buf> {
        pass!(self, storage => SendStorage::read_at(storage, buf, offset).await)
    }

    async fn write_at(&self, buf: Buf, offset: u64) -> io::Result<Buf> {
        pass!(self, storage => SendStorage::write_at(storage, buf, offset).await)
    }

    async fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        pass!(self, storage => SendStorage::write_zeroes(storage, offset, len).await)
    }

    async fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        pass!(self, storage => SendStorage::discard(storage, offset, len).await)
    }

    async fn flush(&self) -> io::Result<()> {
        pass!(self, storage => SendStorage::flush(storage).await)
    }

    async fn len(&self) -> io::Result<u64> {
        pass!(self, storage => SendStorage::len(storage).await)
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        pass!(self, storage => SendStorage::set_len(storage, len).await)
    }

    async fn extent_at(&self, offset: u64, len: u64) -> io::Result<StorageExtent> {
        pass!(self, storage => SendStorage::extent_at(storage, offset, len).await)
    }

    async fn set_writable(&self, writable: bool) -> io::Result<()> {
        pass!(self, storage => SendStorage::set_writable(storage, writable).await)
    }

    fn limits(&self) -> StorageLimits {
        pass!(self, storage => SendStorage::limits(storage))
    }

    fn try_read_at(&self, buf: &mut [u8], offset: u64) -> Option<io::Result<()>> {
        pass!(self, storage => SendStorage::try_read_at(storage, buf, offset))
    }

    fn try_write_at(&self, data: &[u8], offset: u64) -> Option<io::Result<()>> {
        pass!(self, storage => SendStorage::try_write_at(storage, data, offset))
    }
}
