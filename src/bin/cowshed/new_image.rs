//! Making new images in files: what is opened, locked and emptied, and what goes away again if it fails.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use cowshed::Error;
use cowshed::image::{CreateOptions, Preallocation, create, create_luks_volume};
use cowshed::rt::{FileOptions, FileStorage, LockMode};
use cowshed::storage::{Buf, SendStorage as _};

use crate::failure::Failure;
use crate::format_options::{FormatOptions, LuksOptions, OptionError};
use crate::image_format::ImageFormat;
use crate::names::{Named, named};
use crate::open;
use crate::persona::Persona;
use crate::secret::Secrets;

/// Disks have whole sectors.
const SECTOR_LEN_BYTES: u64 = 512;
/// Zeros that are written at a time, in bytes.
const ZEROS_LEN_BYTES: u64 = 1 << 20;

/// A new image's name, and who makes it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NewImage<'a> {
    /// The file's name.
    pub(crate) name: &'a OsStr,
    /// Who the command is.
    pub(crate) persona: Persona,
    /// The format that an image is converted to, if that is what it is made for.
    pub(crate) converting: Option<&'static str>,
    /// Whether it need not survive a power loss.
    pub(crate) volatile: bool,
}

impl NewImage<'_> {
    /// Something is wrong with it.
    pub(crate) fn failure(self, reason: impl ToString) -> Failure {
        let name = self.name.display();
        let doing = match self.converting {
            Some(format) => format!("{name}: error while converting {format}"),
            None => name.to_string(),
        };
        Failure::image(self.name, doing, reason)
    }

    /// Something is wrong with its options.
    pub(crate) fn wrong_options(self, error: OptionError) -> Failure {
        let hint = error.hint.filter(|_| self.persona == Persona::QemuImg);
        self.failure(error.message).with_hint(hint.map(str::to_owned))
    }

    /// Makes an image of this format by its options. As [`Self::create_qcow2`].
    ///
    /// # Errors
    /// [`Self::failure`].
    pub(crate) async fn create(
        self,
        format: ImageFormat,
        options: &FormatOptions,
        secrets: &Secrets,
        keep: &[(u64, u64)],
    ) -> Result<(), Failure> {
        let wrong = |error| self.wrong_options(error);
        match format {
            ImageFormat::Qcow2 => {
                let options = options.create_options(secrets).map_err(wrong)?;
                self.create_qcow2(&options, keep).await
            }
            ImageFormat::Luks => {
                let options = options.luks_options(secrets).map_err(wrong)?;
                self.create_luks(&options).await
            }
            ImageFormat::Raw => {
                let preallocation = options.raw_preallocation().map_err(wrong)?;
                self.create_raw(options.size().unwrap_or_default(), preallocation).await
            }
        }
    }

    /// Makes a qcow2 image, and its data file next to it, if it has one. An old file is emptied, unless it is locked, is
    /// one of those to `keep`, or the options are wrong. If it fails there is no file.
    ///
    /// # Errors
    /// [`Self::failure`].
    pub(crate) async fn create_qcow2(
        self,
        options: &CreateOptions,
        keep: &[(u64, u64)],
    ) -> Result<(), Failure> {
        options.validate().map_err(|error| self.engine_failure(&error))?;
        let path = self.path()?;
        let image = self.open(&path, keep)?;
        let data_file = match &options.data_file {
            Some(name) => {
                // As it will be looked for when the image is opened.
                let folder = path.parent().unwrap_or(Path::new(""));
                let keep = [keep, &[image.storage.identity()]].concat();
                match self.open(&folder.join(OsStr::from_bytes(name)), &keep) {
                    Ok(data_file) => Some(data_file),
                    Err(failure) => {
                        image.remove();
                        return Err(failure);
                    }
                }
            }
            None => None,
        };
        let storage = data_file.as_ref().map(|data_file| &data_file.storage);
        let created = create(&image.storage, storage, options).await;
        created.map_err(|error| {
            image.remove();
            data_file.iter().for_each(NewFile::remove);
            self.engine_failure(&error)
        })
    }

    /// Makes a raw image of `size` bytes, rounded up to whole sectors. As [`Self::create_qcow2`].
    ///
    /// # Errors
    /// [`Self::failure`].
    async fn create_raw(self, size: u64, preallocation: Preallocation) -> Result<(), Failure> {
        let too_large = || self.failure("The image size is too large for file format 'raw'");
        let size = size.checked_next_multiple_of(SECTOR_LEN_BYTES).ok_or_else(too_large)?;
        let image = self.open(&self.path()?, &[])?;
        image.grow(size, preallocation).await.map_err(|error| {
            image.remove();
            match error.kind() {
                io::ErrorKind::FileTooLarge => too_large(),
                _ => self.failure(open::io_reason(&error)),
            }
        })
    }

    /// Makes a LUKS volume. As [`Self::create_qcow2`].
    ///
    /// # Errors
    /// [`Self::failure`].
    pub(crate) async fn create_luks(self, options: &LuksOptions) -> Result<(), Failure> {
        let LuksOptions { area, size, preallocation } = options;
        let image = self.open(&self.path()?, &[])?;
        let created = create_luks_volume(&image.storage, area, *size, *preallocation).await;
        created.map_err(|error| {
            image.remove();
            self.failure(match &error {
                Error::Storage { source, .. } if source.kind() == io::ErrorKind::FileTooLarge => {
                    "The requested file size is too large".to_owned()
                }
                error => open::reason(error),
            })
        })
    }

    /// Where it is.
    fn path(self) -> Result<PathBuf, Failure> {
        match named(self.name) {
            Ok(Named::File(file)) => Ok(file.into()),
            Ok(Named::Options(_)) => Err(self.failure("images are made in files alone")),
            Err(reason) => Err(self.failure(reason)),
        }
    }

    /// Opens a file to make anew.
    fn open(self, path: &Path, keep: &[(u64, u64)]) -> Result<NewFile, Failure> {
        if identity(path).is_some_and(|identity| keep.contains(&identity)) {
            return Err(self.failure(
                "Error: Trying to create an image with the same filename as the backing file",
            ));
        }
        NewFile::open(path, self.volatile).map_err(|error| {
            let text = match std::fs::metadata(path) {
                Ok(metadata) if metadata.is_dir() => "Is a directory".to_owned(),
                _ => open::io_reason(&error),
            };
            let reason = match (self.persona, error.kind()) {
                (Persona::Cowshed, _) if self.path().is_ok_and(|own| own == path) => {
                    format!("cannot be created: {text}")
                }
                (Persona::Cowshed, _) => {
                    format!("data file '{}' cannot be created: {text}", path.display())
                }
                (_, io::ErrorKind::ResourceBusy) => text,
                _ => format!("Could not create '{}': {text}", path.display()),
            };
            self.failure(reason).with_hint(open::lock_hint(&error, self.persona))
        })
    }

    fn engine_failure(self, error: &Error) -> Failure {
        match error {
            Error::Storage { source, .. } if source.kind() == io::ErrorKind::FileTooLarge => {
                self.failure("The image size is too large for file format 'qcow2' (try using a larger cluster size)")
            }
            error => self.failure(open::reason(error)),
        }
    }
}

/// What tells whether two names are the same file, if there is one.
pub(crate) fn identity(path: &Path) -> Option<(u64, u64)> {
    std::fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

/// A file that was made, or emptied.
struct NewFile {
    path: PathBuf,
    storage: FileStorage,
}

impl NewFile {
    /// Makes the file, or empties it under its lock.
    fn open(path: &Path, volatile: bool) -> io::Result<Self> {
        let options = FileOptions::new()
            .writable(true)
            .volatile(volatile)
            .lock(LockMode::Exclusive)
            .create(true)
            .truncate(true)
            .block_device(true);
        Ok(Self { path: path.to_owned(), storage: FileStorage::open(path, &options)? })
    }

    /// Makes the file, which is empty, `size` bytes long.
    async fn grow(&self, size: u64, preallocation: Preallocation) -> io::Result<()> {
        let storage = &self.storage;
        if !storage.file().metadata()?.is_file() {
            return match storage.len().await? < size {
                true => Err(io::Error::other("the device is too small")),
                false => Ok(()),
            };
        }
        storage.set_len(size).await?;
        match preallocation {
            Preallocation::Off | Preallocation::Metadata => return Ok(()),
            Preallocation::Falloc => storage.write_zeroes(0, size).await?,
            Preallocation::Full => {
                let mut offset = 0;
                while offset < size {
                    let len = ZEROS_LEN_BYTES.min(size - offset);
                    // OK to unwrap: 1 MiB at most.
                    let zeros = Buf::zeroed(usize::try_from(len).unwrap_or_default());
                    storage.write_at(zeros, offset).await?;
                    offset += len;
                }
            }
        }
        storage.flush().await
    }

    /// Removes the file, of which nothing is of use any more.
    fn remove(&self) {
        if self.storage.file().metadata().is_ok_and(|metadata| metadata.is_file()) {
            // There is an error to report already.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
