//! Opening a LUKS volume: the disk in it is what a raw image lies in.

use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;

use cowshed::Error;
use cowshed::image::{LuksVolume, References};
use cowshed::storage::BoxStorage;

use crate::failure::Failure;
use crate::image_format::ImageFormat;
use crate::node::{Node, Other};
use crate::open::{Opening, reason};
use crate::persona::Persona;

impl Opening {
    /// The disk of the volume called `name` that lies in `below`. Who looks at the image alone needs no passphrase, and reads
    /// nothing.
    ///
    /// # Errors
    /// [`Failure::open`] if it is no volume, or its passphrase is missing or wrong.
    pub(crate) async fn unlocked(&self, name: &OsStr, below: Node) -> Result<Node, Failure> {
        let failed = |reason: String| Failure::open(name, reason);
        let mut options = self.options().clone();
        options.key = match options.references {
            References::Leave => None,
            _ => self.volume_key(Path::new(name)).map_err(failed)?,
        };
        let is_locked = options.key.is_none() && options.references != References::Leave;
        let (identity, debug) = (below.identity(), below.debug().cloned());
        let opened = LuksVolume::open(below, &options).await;
        let volume = Arc::new(opened.map_err(|error| failed(self.reason_of_volume(&error)))?);
        if is_locked {
            return Err(failed(reason(&Error::KeyRequired { method: "LUKS" })));
        }
        Ok(Node::Other(Other {
            driver: ImageFormat::Luks.name(),
            name: name.to_owned(),
            storage: BoxStorage::new(Arc::clone(&volume)),
            debug,
            image: None,
            volume: Some(volume),
            identity,
        }))
    }

    fn reason_of_volume(&self, error: &Error) -> String {
        match error {
            // QEMU asks for the length of the disk when it has the header.
            Error::Corrupt(corrupt)
                if corrupt.code() == "past-end-of-file" && self.persona() != Persona::Cowshed =>
            {
                "Could not refresh total sector count: Input/output error".to_owned()
            }
            error => reason(error),
        }
    }
}
