//! What decides which files an image may name, and what the command line says of them: `backing.driver=...` and the like.
//!
//! A name in an image is a stranger's: it is a file's and nothing else, and the gate for folders opens it or not. What the
//! command line gives in its place is the caller's own, and is opened as any other image of the command line.

use std::sync::{Mutex, PoisonError};

use cowshed::Error;
use cowshed::crypt::Secret;
use cowshed::image::{Answer, Gate, Locked, Reference, ReferenceKind, Source};
use cowshed::rt::FolderGate;

use crate::image_format::ImageFormat;
use crate::names::Names;
use crate::node::{self, Node};
use crate::open::Opening;
use crate::persona::Persona;
use crate::secret::Keys;
use crate::wording;

/// The gate of the command.
pub(crate) struct Given {
    folders: FolderGate,
    opening: Opening,
    /// How many layers lie above what was asked for last, once something was.
    asked: Mutex<Option<usize>>,
}

impl Given {
    /// Lets in what `folders` lets in, and what the options of `opening` name.
    pub(crate) fn new(folders: FolderGate, opening: Opening) -> Self {
        Self { folders, opening, asked: Mutex::default() }
    }

    /// As [`Gate::open`], for writing.
    ///
    /// # Errors
    /// As [`Gate::open`].
    pub(crate) async fn open_writable(
        &self,
        reference: &Reference<'_>,
    ) -> cowshed::Result<Source<Node>> {
        if self.is_without(reference) {
            return Err(reference.refused("the options say that there is none"));
        }
        self.source(reference, true).await
    }

    /// An error that opening the image met, under the names of QEMU's tools in their words: layers are opened one after the
    /// other, so it is about what was asked for last.
    pub(crate) fn blame(&self, error: Error) -> Error {
        let asked = *self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        match (self.opening.persona(), asked) {
            (Persona::Cowshed, _) | (_, None) => error,
            (_, Some(depth)) => Error::InvalidArgument(wording::of_layer(&error, depth)),
        }
    }

    async fn source(
        &self,
        reference: &Reference<'_>,
        writable: bool,
    ) -> cowshed::Result<Source<Node>> {
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner) = Some(reference.depth);
        let mut given = options_of(self.opening.named(), reference);
        let driver = given.remove("driver");
        let format = driver.as_deref().map(str::as_bytes).or(reference.format);
        if format == Some(ImageFormat::Luks.name().as_bytes())
            && given.keys().all(|name| name == "key-secret")
        {
            let key = given.get("key-secret").map(String::as_str);
            return self.volume_in_folders(reference, key, writable).await;
        }
        if !given.is_empty() {
            // A data file is raw, whatever it lies in: the name of a file is enough.
            let is_file =
                reference.kind == ReferenceKind::DataFile && given.contains_key("filename");
            let driver = driver.or_else(|| is_file.then(|| "file".to_owned()));
            given.extend(driver.map(|driver| ("driver".to_owned(), driver)));
            let opening = self.opening.for_named(writable);
            let opened = opening.source_of(given).await;
            return opened.map_err(|failure| reference.refused(failure.reason()));
        }
        let opened = self.in_folders(reference, driver, writable).await;
        match opened {
            // QEMU says the name as the image has it.
            Err(Error::Open { source, .. })
                if reference.kind == ReferenceKind::DataFile
                    && self.opening.persona() != Persona::Cowshed =>
            {
                let path = String::from_utf8_lossy(reference.name).into_owned().into();
                Err(Error::Open { path, source })
            }
            opened => opened,
        }
    }

    /// Whether the options say that there is no such file.
    fn is_without(&self, reference: &Reference<'_>) -> bool {
        let name = "backing.".repeat(reference.depth);
        let name = name.trim_end_matches('.');
        reference.kind == ReferenceKind::BackingFile
            && self.opening.named().get(name).is_some_and(String::is_empty)
    }

    /// The disk of the LUKS volume that is a file in the folders; `key` is the id of its passphrase.
    async fn volume_in_folders(
        &self,
        reference: &Reference<'_>,
        key: Option<&str>,
        writable: bool,
    ) -> cowshed::Result<Source<Node>> {
        let format = ImageFormat::Luks.engine().name().to_owned();
        let mut source = self.in_folders(reference, Some(format), writable).await?;
        let keys = Keys::new(self.opening.secrets().clone(), key);
        let opening = self.opening.for_named(writable).keys(keys, None);
        let opened = opening.unlocked(source.location.as_os_str(), source.storage).await;
        source.storage = opened.map_err(|failure| reference.refused(failure.reason()))?;
        Ok(source)
    }

    async fn in_folders(
        &self,
        reference: &Reference<'_>,
        driver: Option<String>,
        writable: bool,
    ) -> cowshed::Result<Source<Node>> {
        let format = driver.as_deref().map(str::as_bytes).or(reference.format);
        let reference = Reference { format, ..*reference };
        if writable {
            return self.folders.open_writable(&reference).await.map(node::of_file);
        }
        match self.folders.open(&reference).await? {
            Answer::Open(source) => Ok(node::of_file(source)),
            // The gate for folders does not answer that.
            Answer::Zeros => Err(reference.refused("it is not to be had")),
        }
    }
}

impl Gate for Given {
    type Storage = Node;

    async fn open(&self, reference: &Reference<'_>) -> cowshed::Result<Answer<Node>> {
        if self.is_without(reference) {
            return Ok(Answer::Zeros);
        }
        let writable = self.opening.is_writable()
            && reference.kind == ReferenceKind::DataFile
            && reference.depth == 0;
        let named = options_of(self.opening.named(), reference);
        // The gate for folders knows by itself what it opens for writing.
        let writable = writable && named.keys().any(|name| name != "driver");
        self.source(reference, writable).await.map(Answer::Open)
    }

    async fn key(&self, locked: &Locked<'_>) -> cowshed::Result<Option<Secret>> {
        self.folders.key(locked).await
    }
}

/// What the options say of a file that an image names.
fn options_of(named: &Names, reference: &Reference<'_>) -> Names {
    let mut prefix = "backing.".repeat(reference.depth);
    if reference.kind == ReferenceKind::DataFile {
        prefix.push_str("data-file.");
    }
    let own = named.iter().filter_map(|(name, value)| Some((name.strip_prefix(&prefix)?, value)));
    let is_deeper = |name: &str| name.starts_with("backing.") || name.starts_with("data-file.");
    own.filter(|(name, _)| *name != "backing" && !is_deeper(name) && !name.ends_with("node-name"))
        .map(|(name, value)| (name.to_owned(), value.clone()))
        .collect()
}
