//! What can go wrong, as types.
//!
//! One enum, [`Error`], whose variants are what a caller can act on. What is wrong inside an image is opaque:
//! [`Corrupt`] and [`Unsupported`] hold one private kind for each check that the crate makes, so that new checks can be
//! added without breaking anyone. Programs tell kinds apart by [`Corrupt::code`], people by the message.
//!
//! This module must not know how anything is read: it stands above every layer.

mod corrupt;
mod place;
mod unsupported;

use std::io;
use std::path::PathBuf;

pub use corrupt::Corrupt;
pub(crate) use corrupt::CorruptKind;
pub(crate) use place::Structure;
pub use unsupported::Unsupported;
pub(crate) use unsupported::UnsupportedKind;

/// The crate's result.
pub type Result<T> = std::result::Result<T, Error>;

/// Everything that the engine reports.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The image breaks a rule of its format. Reading on would be guessing.
    #[error(transparent)]
    Corrupt(#[from] Corrupt),
    /// The image may be valid, and needs something that this crate does not have.
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
    /// A storage failed.
    #[error("{operation} of {len} bytes at {offset:#x}: {source}")]
    Storage {
        /// What was asked of the storage: "read", "write", "flush"...
        operation: &'static str,
        /// Where, as a byte offset in the storage.
        offset: u64,
        /// How many bytes.
        len: u64,
        /// What the storage said.
        source: io::Error,
    },
    /// A file could not be opened.
    #[error("could not open '{}': {source}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The gate did not let a file be opened that the image names.
    #[error("{kind} {name:?} refused: {reason}")]
    Refused {
        /// What it is to the image: "backing file", "data file".
        kind: &'static str,
        /// The name as the image gives it, with bytes that are not UTF-8 replaced.
        name: String,
        /// Why.
        reason: String,
    },
    /// A request reaches past the end of the virtual disk.
    #[error("request of {len} bytes at {offset:#x} reaches past the end of {size} bytes")]
    OutOfBounds {
        /// Start of the request in bytes.
        offset: u64,
        /// Length of the request in bytes.
        len: u64,
        /// Size in bytes of what was asked.
        size: u64,
    },
    /// The image was closed.
    #[error("image is closed")]
    Closed,
    /// The image cannot be written to; says why.
    #[error("image is read-only: {0}")]
    ReadOnly(String),
    /// The image takes no more changes, because a flush failed while metadata was on its way, or its metadata was found to be
    /// damaged; says which. What was flushed before is safe. Reading goes on; opening it again finds out what is there.
    #[error("image takes no more changes: {0}")]
    Latched(String),
    /// Something asked for by name is not there.
    #[error("{what} {name:?} not found")]
    NotFound {
        /// What was looked for: "snapshot", "bitmap"...
        what: &'static str,
        /// The name asked for.
        name: String,
    },
    /// What lies on the disk breaks a rule of its own format, or needs what this crate does not have: a partition table, a
    /// file system. The image may be sound all the same.
    #[error("{structure} at {offset:#x}: {reason}")]
    Volume {
        /// What was looked at: "GPT header", "FAT", "ext4 file system"...
        structure: &'static str,
        /// Where it lies, in bytes from the start of the volume (of the disk for partition tables).
        offset: u64,
        /// What is wrong with it, with the value that was found.
        reason: String,
    },
    /// Guest data is encrypted, and no passphrase was given.
    #[error("guest data is encrypted with {method}, and no passphrase was given")]
    KeyRequired {
        /// With what: "AES", "LUKS".
        method: &'static str,
    },
    /// The passphrase opens none of the key slots: it is a wrong one, or its slot was tampered with.
    #[error("Invalid password, cannot unlock any keyslot")]
    WrongKey,
    /// An argument of the caller makes no sense; says which and why.
    #[error("{0}")]
    InvalidArgument(String),
    /// A named limit of this crate was exceeded, before memory was taken.
    #[error("{what} {value} exceeds the limit of {limit}")]
    LimitExceeded {
        /// What was counted, with its unit: "snapshot table bytes".
        what: &'static str,
        /// The value found.
        value: u64,
        /// The limit.
        limit: u64,
    },
}

impl Error {
    /// A storage's failure of `operation` on `len` bytes at `offset`.
    pub(crate) fn storage(
        operation: &'static str,
        offset: u64,
        len: u64,
        source: io::Error,
    ) -> Self {
        Self::Storage { operation, offset, len, source }
    }

    /// A request for `len` bytes at `offset` of something that has `size`.
    pub(crate) fn out_of_bounds(offset: u64, len: u64, size: u64) -> Self {
        Self::OutOfBounds { offset, len, size }
    }

    /// What is wrong with a structure on the disk.
    #[cfg(feature = "files")]
    pub(crate) fn volume(structure: &'static str, offset: u64, reason: impl Into<String>) -> Self {
        Self::Volume { structure, offset, reason: reason.into() }
    }

    /// A gate's refusal of a name that an image holds.
    pub(crate) fn refused(kind: &'static str, name: &[u8], reason: impl Into<String>) -> Self {
        let name = String::from_utf8_lossy(name).into_owned();
        Self::Refused { kind, name, reason: reason.into() }
    }
}

impl From<Error> for io::Error {
    /// Wraps the error, keeping it as the source; a storage's own error comes out as it went in.
    fn from(error: Error) -> Self {
        let kind = match error {
            Error::Storage { source, .. } => return source,
            Error::Open { ref source, .. } => source.kind(),
            Error::Corrupt(_) | Error::Volume { .. } => io::ErrorKind::InvalidData,
            Error::Unsupported(_) | Error::LimitExceeded { .. } => io::ErrorKind::Unsupported,
            Error::Refused { .. } | Error::KeyRequired { .. } | Error::WrongKey => {
                io::ErrorKind::PermissionDenied
            }
            Error::OutOfBounds { .. } | Error::InvalidArgument(_) => io::ErrorKind::InvalidInput,
            Error::Closed => io::ErrorKind::NotConnected,
            Error::Latched(_) => io::ErrorKind::Other,
            Error::ReadOnly(_) => io::ErrorKind::ReadOnlyFilesystem,
            Error::NotFound { .. } => io::ErrorKind::NotFound,
        };
        Self::new(kind, error)
    }
}
