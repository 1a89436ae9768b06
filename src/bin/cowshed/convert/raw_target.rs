//! A raw file that a copy is written to.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _};

use cowshed::image::Preallocation;
use cowshed::rt::{FileOptions, FileStorage, LockMode};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use crate::failure::Failure;
use crate::open;
use crate::persona::Persona;

use super::target::{TargetOptions, too_small};

/// Zeros that are written where a file system cannot make a hole, in bytes at a time.
const ZEROS_LEN_BYTES: usize = 1 << 20;

/// The target, open.
#[derive(Debug)]
pub(super) struct RawTarget {
    name: OsString,
    /// Holds the locks, and the file.
    storage: FileStorage,
    /// What is not written reads as zeros.
    is_zero: bool,
    leave_gaps: bool,
    flush: bool,
}

impl RawTarget {
    /// Opens or makes the file `name`, for `len` bytes.
    ///
    /// # Errors
    /// What the system says; it is a source; it is too short.
    pub(super) fn open(
        name: &OsStr,
        len: u64,
        options: &TargetOptions<'_>,
        preallocation: Preallocation,
    ) -> Result<Self, Failure> {
        let failed = |error: io::Error| match options.create {
            true => {
                let doing = format!("{}: error while converting raw", name.display());
                let reason = match (options.persona, error.kind()) {
                    (Persona::QemuImg | Persona::QemuIo, io::ErrorKind::ResourceBusy) => {
                        open::io_reason(&error)
                    }
                    (Persona::QemuImg | Persona::QemuIo, _) => {
                        format!(
                            "Could not create '{}': {}",
                            name.display(),
                            open::io_reason(&error)
                        )
                    }
                    (Persona::Cowshed, _) => {
                        format!("cannot be created: {}", open::io_reason(&error))
                    }
                };
                Failure::image(name, doing, reason)
                    .with_hint(open::lock_hint(&error, options.persona))
            }
            false => open::open_failure(name, &error, options.persona),
        };
        let file_options = FileOptions::new()
            .writable(true)
            .lock(LockMode::Exclusive)
            .create(options.create)
            .truncate(options.create)
            .block_device(true);
        let storage = FileStorage::open(name, &file_options).map_err(failed)?;
        let metadata = storage.file().metadata().map_err(failed)?;
        let is_file = metadata.file_type().is_file();
        let target = Self {
            name: name.to_owned(),
            is_zero: options.is_zero || (options.create && is_file),
            leave_gaps: options.leave_gaps,
            flush: !options.is_volatile(),
            storage,
        };
        if options.create && is_file {
            target.grow(len, preallocation).map_err(failed)?;
        } else {
            let old_len = if metadata.file_type().is_block_device() {
                rustix::fs::seek(target.file(), rustix::fs::SeekFrom::End(0))
                    .map_err(|error| failed(error.into()))?
            } else {
                metadata.len().next_multiple_of(512)
            };
            if old_len < len {
                return Err(too_small(name));
            }
        }
        Ok(Self {
            // Zeros that are written cannot be left out.
            leave_gaps: target.leave_gaps && preallocation != Preallocation::Full,
            ..target
        })
    }

    /// Whether zeros need not be written.
    pub(super) fn skips_zeros(&self) -> bool {
        self.leave_gaps && self.is_zero
    }

    /// Whether every byte is written, zeros too.
    pub(super) fn writes_zeros(&self) -> bool {
        !self.leave_gaps
    }

    /// Writes all of `bytes` at `offset`.
    pub(super) fn write(&self, bytes: &[u8], offset: u64) -> Result<(), Failure> {
        self.file().write_all_at(bytes, offset).map_err(|error| self.write_failed(offset, &error))
    }

    /// Makes `len` bytes from `offset` zeros: nothing, a hole, or if there is no other way written ones.
    pub(super) fn write_zeros(&self, offset: u64, len: u64) -> Result<(), Failure> {
        if self.skips_zeros() || len == 0 {
            return Ok(());
        }
        if !self.writes_zeros() {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            match fallocate(self.file(), flags, offset, len) {
                Ok(()) => return Ok(()),
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::NODEV) => {}
                Err(error) => return Err(self.write_failed(offset, &error.into())),
            }
        }
        let zeros = vec![0; ZEROS_LEN_BYTES];
        let (mut offset, mut rest) = (offset, len);
        while rest > 0 {
            let piece =
                usize::try_from(rest).map_or(ZEROS_LEN_BYTES, |rest| rest.min(ZEROS_LEN_BYTES));
            self.write(&zeros[..piece], offset)?;
            offset += piece as u64;
            rest -= piece as u64;
        }
        Ok(())
    }

    /// Makes durable what was written, if the cache mode wants it.
    pub(super) fn close(self) -> Result<(), Failure> {
        if self.flush {
            self.file().sync_all().map_err(|error| {
                Failure::image(&self.name, "error while flushing", open::io_reason(&error))
            })?;
        }
        Ok(())
    }

    fn file(&self) -> &File {
        self.storage.file()
    }

    fn grow(&self, len: u64, preallocation: Preallocation) -> io::Result<()> {
        self.file().set_len(len)?;
        if preallocation != Preallocation::Off && len > 0 {
            fallocate(self.file(), FallocateFlags::empty(), 0, len)?;
        }
        Ok(())
    }

    fn write_failed(&self, offset: u64, error: &io::Error) -> Failure {
        let doing = format!("error while writing at byte {offset}");
        Failure::image(&self.name, doing, open::io_reason(error))
    }
}
