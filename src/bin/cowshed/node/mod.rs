//! What an image lies in: a file; or, by its options alone, nothing at all (`null-co`) or another image.
//!
//! Nobody but the command line names anything but files: see [`Given`](crate::given::Given).

mod nested;
mod null;

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;

use cowshed::image::{Format, Identity, Source};
use cowshed::rt::DiskStorage;
use cowshed::storage::{BoxStorage, Buf, SendStorage, StorageExtent, StorageLimits};

pub(crate) use nested::Nested;
pub(crate) use null::Null;

/// What an image lies in. Clones are the same.
#[derive(Clone)]
pub(crate) enum Node {
    /// A file.
    File(DiskStorage),
    /// Something else.
    Other(Other),
}

/// What is no file.
#[derive(Clone)]
pub(crate) struct Other {
    /// QEMU's name for what it is.
    pub(crate) driver: &'static str,
    /// What it is called.
    pub(crate) name: OsString,
    pub(crate) storage: BoxStorage,
}

impl Node {
    /// What tells whether two are the same file.
    pub(crate) fn identity(&self) -> Option<Identity> {
        match self {
            Self::File(storage) => {
                let (device, inode) = storage.identity();
                Some(Identity(device, inode))
            }
            Self::Other(_) => None,
        }
    }

    /// As the source of an image called `location`.
    pub(crate) fn into_source(self, format: Format, location: impl Into<PathBuf>) -> Source<Self> {
        let identity = self.identity();
        Source { storage: self, format, location: location.into(), identity }
    }
}

/// A file's source as a node's.
pub(crate) fn of_file(source: Source<DiskStorage>) -> Source<Node> {
    let Source { storage, format, location, identity } = source;
    Source { storage: Node::File(storage), format, location, identity }
}

/// Passes a call on to whatever it is.
macro_rules! pass {
    ($self:ident, $storage:ident => $call:expr) => {
        match $self {
            Self::File($storage) => $call,
            Self::Other(Other { storage: $storage, .. }) => $call,
        }
    };
}

impl SendStorage for Node {
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
