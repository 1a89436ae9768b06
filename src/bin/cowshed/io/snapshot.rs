//! `-s`: writing to an image without changing it. What is written goes to a temporary image above it, which nobody sees and
//! which is gone when it is closed. Matches bdrv_append_temp_snapshot in block.c.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use cowshed::Error;
use cowshed::crypt::Secret;
use cowshed::image::{
    Answer, CreateOptions, Format, Gate, Image, Locked, OpenOptions, Opened, Reference,
    ReferenceKind, Source, WriteOptions, create,
};
use cowshed::rt::{DiskStorage, FileOptions, LockMode};
use rustix::fs::OFlags;

use crate::failure::Failure;
use crate::given::Given;
use crate::node::{Node, of_file};
use crate::open::Opening;

/// The longest name of a backing file in a header, in bytes.
const NAME_LEN_MAX: usize = 1023;

/// Opens a temporary image above the one called `name`, whose file `source` is.
///
/// # Errors
/// As [`Opening::opened`]; the temporary image cannot be made.
pub(super) async fn open(
    opening: &Opening,
    name: &OsStr,
    source: Source<Node>,
    write: Option<WriteOptions>,
) -> Result<Result<Opened<Node>, Error>, Failure> {
    let base =
        Source { location: source.location.clone(), storage: source.storage.clone(), ..source };
    let size = match opening.opened(name, source, None).await? {
        Ok(opened) => opened.image.virtual_size(),
        Err(error) => return Ok(Err(error)),
    };
    let failed = |error: &dyn std::fmt::Display| {
        Failure::open(name, format!("Could not create temporary overlay: {error}"))
    };
    let options = FileOptions::new().writable(true).volatile(true).lock(LockMode::Off);
    let (file, path) = temporary().map_err(|error| failed(&error))?;
    let overlay = DiskStorage::from_file(file, path, &options).map_err(|error| failed(&error))?;
    // A disk is whole sectors.
    let mut options = CreateOptions::new(size.next_multiple_of(512));
    let named = name.as_bytes();
    let named = if named.len() <= NAME_LEN_MAX { named } else { b"base" };
    options.backing_file = Some(named.to_vec());
    options.backing_format = Some(base.format.name().into());
    if let Err(error) = create(&overlay, None, &options).await {
        return Ok(Err(error));
    }
    let gate = OnBase { base: Mutex::new(Some(base)), gate: opening.gate(name)? };
    let mut options: OpenOptions = opening.options().clone();
    options.write = write;
    Ok(Image::open(of_file(overlay.into_source(Format::Qcow2)), &gate, options).await)
}

/// A file without a name, where QEMU makes its own.
fn temporary() -> io::Result<(File, PathBuf)> {
    let folder =
        std::env::var_os("TMPDIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
    let mut options = fs::OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    let unnamed = options.clone().custom_flags(OFlags::TMPFILE.bits().cast_signed()).open(&folder);
    if let Ok(file) = unnamed {
        return Ok((file, folder));
    }
    // A file system that has only files with names.
    for number in 0..u32::MAX {
        let path = folder.join(format!("cowshed.{}.{number}", std::process::id()));
        match options.clone().create_new(true).open(&path) {
            Ok(file) => {
                fs::remove_file(&path)?;
                return Ok((file, path));
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

/// Answers with the image below the temporary one, and leaves what that names to another gate.
struct OnBase {
    base: Mutex<Option<Source<Node>>>,
    gate: Given,
}

impl Gate for OnBase {
    type Storage = Node;

    async fn open(&self, reference: &Reference<'_>) -> cowshed::Result<Answer<Node>> {
        // The temporary image lies above what is asked for, and the options do not speak of it.
        let above = reference.depth.saturating_sub(1);
        let is_base = reference.kind == ReferenceKind::BackingFile && reference.depth == 1;
        let base = match is_base {
            true => self.base.lock().unwrap_or_else(PoisonError::into_inner).take(),
            false => None,
        };
        match base {
            Some(base) => Ok(Answer::Open(base)),
            None => self.gate.open(&Reference { depth: above, ..*reference }).await,
        }
    }
    async fn key(&self, locked: &Locked<'_>) -> cowshed::Result<Option<Secret>> {
        // The temporary image is not encrypted, and what lies below it lies one layer deeper than its passphrases say.
        self.gate.key(&Locked { depth: locked.depth.saturating_sub(1), ..*locked }).await
    }
}
