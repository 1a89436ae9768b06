//! What a copy is written to: a raw file, a qcow2 image or a LUKS volume, made anew or already there.

use std::ffi::OsStr;
use std::path::PathBuf;

use cowshed::format::BitmapDirectoryEntry;

use crate::failure::Failure;
use crate::format_options::{FormatOptions, OptionError};
use crate::image_format::ImageFormat;
use crate::open::DiskImage;
use crate::persona::Persona;
use crate::secret::Secrets;

use super::image_target::ImageTarget;
use super::raw_target::RawTarget;

/// How the target is made and what is known of it.
#[derive(Debug)]
pub(super) struct TargetOptions<'a> {
    /// Whether it is made anew.
    pub(super) create: bool,
    /// Whether an old one is known to be all zeros.
    pub(super) is_zero: bool,
    /// Whether zeros are left out.
    pub(super) leave_gaps: bool,
    /// Whether clusters are compressed.
    pub(super) compress: bool,
    /// The options of its format.
    pub(super) format: &'a FormatOptions,
    /// The backing file that it has, by whatever option: its name as seen from the target's folder.
    pub(super) backing: Option<&'a str>,
    /// QEMU's name of the cache mode.
    pub(super) cache: &'a str,
    /// What it may name beside that.
    pub(super) allow: Vec<PathBuf>,
    /// The passphrases of the command line.
    pub(super) secrets: &'a Secrets,
    /// Whether its name is options of it.
    pub(super) image_opts: bool,
    /// Who the command is.
    pub(super) persona: Persona,
}

impl TargetOptions<'_> {
    /// Whether it need not survive a power loss.
    pub(super) fn is_volatile(&self) -> bool {
        self.cache == "unsafe"
    }
}

/// The target, open.
#[derive(Debug)]
pub(super) enum Target {
    /// A raw file.
    Raw(RawTarget),
    /// A qcow2 image or a LUKS volume.
    Image(Box<ImageTarget>),
}

impl Target {
    /// Opens or makes the target called `name`, for `len` bytes.
    ///
    /// # Errors
    /// What the system says; it is a source; it is too short; its options are wrong.
    pub(super) async fn open(
        name: &OsStr,
        format: ImageFormat,
        len: u64,
        options: &TargetOptions<'_>,
    ) -> Result<Self, Failure> {
        if !crate::options::is_cache_mode(options.cache) {
            return Err(Failure::message(format!("Invalid cache option: {}", options.cache)));
        }
        let failed = |error: OptionError| {
            let doing = format!("{}: error while converting {}", name.display(), format.name());
            Failure::image(name, doing, error.message)
        };
        match format {
            ImageFormat::Raw => {
                let preallocation = options.format.raw_preallocation().map_err(failed)?;
                RawTarget::open(name, len, options, preallocation).map(Self::Raw)
            }
            ImageFormat::Qcow2 | ImageFormat::Luks => {
                let target = ImageTarget::open(name, format, len, options, failed).await?;
                Ok(Self::Image(Box::new(target)))
            }
        }
    }

    /// Whether every byte is written, zeros too.
    pub(super) fn writes_zeros(&self) -> bool {
        match self {
            Self::Raw(target) => target.writes_zeros(),
            Self::Image(target) => target.writes_zeros(),
        }
    }

    /// The length of what is compressed at a time in bytes, if the target is.
    pub(super) fn compressed_cluster(&self) -> Option<u64> {
        match self {
            Self::Raw(_) => None,
            Self::Image(target) => target.compressed_cluster(),
        }
    }

    /// From where on the target reads as zeros if it is not written to, in spite of its backing file; `None` if it has none
    /// or that is not known.
    pub(super) fn backing_len(&self) -> Option<u64> {
        match self {
            Self::Raw(_) => None,
            Self::Image(target) => target.backing_len(),
        }
    }

    /// Whether the order of writes shows in the file.
    pub(super) fn keeps_order(&self) -> bool {
        matches!(self, Self::Image(_))
    }

    /// Writes all of `bytes` at `offset`, compressed if the target is: whole clusters then.
    pub(super) async fn write(&self, bytes: &[u8], offset: u64) -> Result<(), Failure> {
        match self {
            Self::Raw(target) => target.write(bytes, offset),
            Self::Image(target) => target.write(bytes, offset).await,
        }
    }

    /// Makes `len` bytes from `offset` zeros, at as little cost as can be.
    pub(super) async fn write_zeros(&self, offset: u64, len: u64) -> Result<(), Failure> {
        match self {
            Self::Raw(target) => target.write_zeros(offset, len),
            Self::Image(target) => target.write_zeros(offset, len).await,
        }
    }

    /// Asks whether it can have bitmaps.
    pub(super) fn must_have_bitmaps(&self) -> Result<(), Failure> {
        match self {
            Self::Image(target) if target.can_have_bitmaps() => Ok(()),
            Self::Raw(_) | Self::Image(_) => {
                let format = if matches!(self, Self::Raw(_)) { "raw" } else { "qcow2" };
                Err(Failure::message(format!("Format driver '{format}' does not support bitmaps")))
            }
        }
    }

    /// Whether it cannot have a copy of a bitmap of a disk of `len` bytes.
    pub(super) async fn refuses_bitmap(&self, bitmap: &BitmapDirectoryEntry, len: u64) -> bool {
        match self {
            Self::Raw(_) => false,
            Self::Image(target) => target.refuses_bitmap(bitmap, len).await,
        }
    }

    /// Gives it a bitmap of a source, with what that marks.
    pub(super) async fn copy_bitmap(
        &self,
        source: &DiskImage,
        bitmap: &BitmapDirectoryEntry,
    ) -> Result<(), Failure> {
        match self {
            Self::Raw(_) => Ok(()),
            Self::Image(target) => target.copy_bitmap(source, bitmap).await,
        }
    }

    /// Ends writing; makes durable what was written, if the cache mode wants it.
    pub(super) async fn close(self) -> Result<(), Failure> {
        match self {
            Self::Raw(target) => target.close(),
            Self::Image(target) => target.close().await,
        }
    }
}

/// The error for a target that is there and has no room for the sources.
pub(super) fn too_small(name: &OsStr) -> Failure {
    Failure::image(name, "", "output file is smaller than input file")
}
