//! What an image lies in: a file, or the disk of a LUKS volume in one; or, by its options alone, nothing at all (`null-co`),
//! another image, or either below what lets requests fail (`blkdebug`).
//!
//! Nobody but the command line names anything but files: see [`Given`](crate::given::Given).

mod debug;
mod nested;
mod null;
mod rules;

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use cowshed::image::{Format, Identity, LuksVolume, Source};
use cowshed::rt::DiskStorage;
use cowshed::storage::{BoxStorage, Buf, Purpose, SendStorage, StorageExtent, StorageLimits};

use crate::image_format::ImageFormat;
use crate::open::DiskImage;

pub(crate) use debug::Debug;
pub(crate) use nested::Nested;
pub(crate) use null::Null;
pub(crate) use rules::{Event, IoType};

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
    /// What lets requests fail, if that is what it is.
    pub(crate) debug: Option<Arc<Debug>>,
    /// The image whose disk it is.
    pub(crate) image: Option<Arc<DiskImage>>,
    /// The LUKS volume whose disk it is.
    pub(crate) volume: Option<Arc<LuksVolume<Node>>>,
    /// The file below it.
    pub(crate) identity: Option<Identity>,
}

impl Node {
    /// What tells whether two are the same file.
    pub(crate) fn identity(&self) -> Option<Identity> {
        match self {
            Self::File(storage) => {
                let (device, inode) = storage.identity();
                Some(Identity(device, inode))
            }
            Self::Other(other) => other.identity,
        }
    }

    /// What lets requests fail, if anything does.
    pub(crate) fn debug(&self) -> Option<&Arc<Debug>> {
        match self {
            Self::File(_) => None,
            Self::Other(other) => other.debug.as_ref(),
        }
    }

    /// The image whose disk it is.
    pub(crate) fn image(&self) -> Option<&Arc<DiskImage>> {
        match self {
            Self::File(_) => None,
            Self::Other(other) => other.image.as_ref(),
        }
    }

    /// The LUKS volume whose disk it is.
    pub(crate) fn volume(&self) -> Option<&Arc<LuksVolume<Self>>> {
        match self {
            Self::File(_) => None,
            Self::Other(other) => other.volume.as_ref(),
        }
    }

    /// The name of the format that shows its bytes as `format` to the engine.
    pub(crate) fn format_name(&self, format: Format) -> &'static str {
        self.volume().map_or(format.name(), |_| ImageFormat::Luks.name())
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

    async fn read_for(&self, purpose: Purpose, buf: Buf, offset: u64) -> io::Result<Buf> {
        pass!(self, storage => SendStorage::read_for(storage, purpose, buf, offset).await)
    }

    async fn write_for(&self, purpose: Purpose, buf: Buf, offset: u64) -> io::Result<Buf> {
        pass!(self, storage => SendStorage::write_for(storage, purpose, buf, offset).await)
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
