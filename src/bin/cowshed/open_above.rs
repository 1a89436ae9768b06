//! Opening an image for writing in two parts: the layers above one, and that one with what is below it, which is written to
//! as well. Only `commit` does that.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use cowshed::crypt::Secret;
use cowshed::image::{Answer, Gate, Image, Locked, Reference, ReferenceKind};

use crate::failure::Failure;
use crate::given::Given;
use crate::node::Node;
use crate::open::{self, DiskImage, Opening};

impl Opening {
    /// Opens the image called `name` down to the layer above `depth`, and the rest of the chain as an image of its own. The
    /// gate lets in for writing what it lets in for reading.
    ///
    /// # Errors
    /// [`Failure::open`].
    pub(crate) async fn open_above(
        &self,
        name: &OsStr,
        depth: usize,
    ) -> Result<(DiskImage, DiskImage), Failure> {
        let (file, opening) = self.resolved(name)?;
        let source = opening.source(&file).await?;
        let gate = StopAt { gate: opening.gate(&file)?, depth, named: Mutex::default() };
        let wrong = |reason: String| Failure::open(name, reason);
        let options = opening.options_with_key().map_err(wrong)?;
        crate::unclean::repair(&source).await;
        let opened = Image::open(source, &gate, options).await;
        let opened = opened.map_err(|error| gate.gate.blame(error));
        let image = opened.map_err(|error| Failure::open(name, open::reason(&error)))?.image;
        let named = gate.named.lock().unwrap_or_else(PoisonError::into_inner).take();
        let named = named.ok_or_else(|| Failure::open(name, "its backing files have changed"))?;
        let reference = Reference {
            kind: ReferenceKind::BackingFile,
            name: &named.name,
            format: named.format.as_deref(),
            from: &named.from,
            depth,
        };
        let failed = |error: cowshed::Error| Failure::open(name, open::reason(&error));
        let source = gate.gate.open_writable(&reference).await.map_err(failed)?;
        let below = opening.below(depth);
        let options = below.options_with_key().map_err(wrong)?;
        crate::unclean::repair(&source).await;
        let base = Image::open(source, &below.gate(&file)?, options).await;
        Ok((image, base.map_err(failed)?.image))
    }
}

/// Lets in what another gate lets in, down to the layer at `depth`, whose name it keeps.
struct StopAt {
    gate: Given,
    depth: usize,
    named: Mutex<Option<Named>>,
}

/// What an image says of its backing file.
struct Named {
    name: Vec<u8>,
    format: Option<Vec<u8>>,
    from: PathBuf,
}

impl Gate for StopAt {
    type Storage = Node;

    async fn open(&self, reference: &Reference<'_>) -> cowshed::Result<Answer<Node>> {
        if reference.kind != ReferenceKind::BackingFile || reference.depth != self.depth {
            return self.gate.open(reference).await;
        }
        *self.named.lock().unwrap_or_else(PoisonError::into_inner) = Some(Named {
            name: reference.name.to_vec(),
            format: reference.format.map(<[u8]>::to_vec),
            from: reference.from.to_path_buf(),
        });
        Ok(Answer::Zeros)
    }

    async fn key(&self, locked: &Locked<'_>) -> cowshed::Result<Option<Secret>> {
        self.gate.key(locked).await
    }
}
