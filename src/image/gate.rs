//! The gate: who decides whether something that an image names is opened.
//!
//! An image is input from a stranger, and so are the names in it. The engine never turns a name into a file by itself:
//! it shows the name, byte for byte, to the caller's [`Gate`], which answers with an opened storage or refuses. The
//! default, [`RefuseAll`], refuses everything.
//!
//! The format of a layer is always explicit. A guest can write whatever it likes into a raw disk, a qcow2 header
//! included; [`detect`](super::detect()) only makes a suggestion for what a person has just picked.

use std::future::Future;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use crate::crypt::Secret;
use crate::error::{Error, Result};
use crate::storage::Storage;

/// What an image refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ReferenceKind {
    /// The backing file: what unallocated clusters read.
    BackingFile,
    /// The external data file: where the guest's clusters are. Always raw.
    DataFile,
}

impl ReferenceKind {
    /// What messages call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::BackingFile => "backing file",
            Self::DataFile => "data file",
        }
    }
}

/// A name in an image, as the gate sees it.
#[derive(Debug, Clone, Copy)]
pub struct Reference<'a> {
    /// What it refers to.
    pub kind: ReferenceKind,
    /// The name, byte for byte as the image holds it; hostile. Empty if the image has a data file but does not name
    /// it.
    pub name: &'a [u8],
    /// The format that the image states for a backing file, byte for byte.
    pub format: Option<&'a [u8]>,
    /// Where the layer that names it came from: its [`Source::location`]. Relative names resolve against its folder.
    pub from: &'a Path,
    /// How many layers lie above what is named: 1 for the backing file of the image itself, 0 for its data file.
    pub depth: usize,
}

impl Reference<'_> {
    /// The error that refuses this reference, for the given reason.
    #[must_use]
    pub fn refused(&self, reason: impl Into<String>) -> Error {
        Error::refused(self.kind.name(), self.name, reason)
    }
}

/// A layer whose guest data is encrypted, as the gate sees it.
#[derive(Debug, Clone, Copy)]
pub struct Locked<'a> {
    /// Where the layer came from: its [`Source::location`].
    pub location: &'a Path,
    /// How many layers lie above it: 0 for the image itself.
    pub depth: usize,
    /// With what it is encrypted: "LUKS", "AES".
    pub method: &'static str,
}

/// A key that is to be derived from a passphrase, by PBKDF2.
#[derive(Clone, Copy)]
pub struct Derivation<'a> {
    /// The hash of its HMAC, as headers name it: "sha1", "sha256"...
    pub hash: &'static str,
    /// The passphrase: a secret.
    pub password: &'a [u8],
    /// The salt.
    pub salt: &'a [u8],
    /// The iterations.
    pub iterations: u32,
    /// The length of the key in bytes.
    pub len: usize,
}

/// The format of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// A qcow2 image, version 2 or 3.
    Qcow2,
    /// The guest's bytes and nothing else.
    Raw,
}

impl Format {
    /// The name that QEMU uses for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Qcow2 => "qcow2",
            Self::Raw => "raw",
        }
    }
}

/// What tells two files apart, whatever their names: on Unix the device and inode numbers. It is how a loop in a
/// backing chain is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Identity(pub u64, pub u64);

/// An opened storage and what its opener knows of it.
#[derive(Debug, Clone)]
pub struct Source<S> {
    /// The bytes.
    pub storage: S,
    /// How to understand them; explicit, never guessed by the engine.
    pub format: Format,
    /// Where they came from, for messages and for names that are relative to it. The engine does not interpret it.
    pub location: PathBuf,
    /// What the storage is, if its opener can tell.
    pub identity: Option<Identity>,
}

impl<S> Source<S> {
    /// A qcow2 image called `location`.
    pub fn qcow2(storage: S, location: impl Into<PathBuf>) -> Self {
        Self { storage, format: Format::Qcow2, location: location.into(), identity: None }
    }

    /// A raw image called `location`.
    pub fn raw(storage: S, location: impl Into<PathBuf>) -> Self {
        Self { storage, format: Format::Raw, location: location.into(), identity: None }
    }
}

/// What the gate answers when it does not refuse.
#[derive(Debug)]
pub enum Answer<S> {
    /// Here it is.
    Open(Source<S>),
    /// Do without: what is missing reads as zeros. For looking at an image whose other parts are lost.
    Zeros,
}

/// Decides what an image may refer to, and opens it.
///
/// One method rather than a closure: the futures of generic asynchronous closures cannot be shown to be `Send`.
pub trait Gate {
    /// The storage that it opens; all layers of an image have the same.
    type Storage: Storage;

    /// Opens what `reference` names, or refuses.
    ///
    /// # Errors
    /// [`Error::Refused`] to refuse; whatever opening met otherwise.
    fn open(
        &self,
        reference: &Reference<'_>,
    ) -> impl Future<Output = Result<Answer<Self::Storage>>>;

    /// Gives the passphrase of an encrypted layer, unless the [`OpenOptions`](super::OpenOptions) have it. `None` opens the
    /// layer all the same, and what is encrypted cannot be read or written. By default there is none.
    ///
    /// # Errors
    /// Whatever looking for it met; the image is not opened then.
    fn key(&self, locked: &Locked<'_>) -> impl Future<Output = Result<Option<Secret>>> {
        let _ = locked;
        std::future::ready(Ok(None))
    }

    /// Derives a key outside the engine, where something is faster at it: a browser's own cryptography. `None` has the engine do
    /// it, and so it is by default.
    ///
    /// # Errors
    /// Whatever went wrong; the image is not opened then.
    fn derive(&self, derivation: &Derivation<'_>) -> impl Future<Output = Result<Option<Secret>>> {
        let _ = derivation;
        std::future::ready(Ok(None))
    }
}

/// The default gate: nothing that an image names is opened.
#[derive(Debug)]
pub struct RefuseAll<S>(PhantomData<fn() -> S>);

impl<S> RefuseAll<S> {
    /// The gate that refuses.
    #[must_use]
    pub const fn new() -> Self {
        Self(PhantomData)
    }
}

impl<S> Default for RefuseAll<S> {
    fn default() -> Self {
        Self::new()
    }
}

impl<S: Storage> Gate for RefuseAll<S> {
    type Storage = S;

    async fn open(&self, reference: &Reference<'_>) -> Result<Answer<S>> {
        Err(reference.refused("nothing that an image names may be opened"))
    }
}
