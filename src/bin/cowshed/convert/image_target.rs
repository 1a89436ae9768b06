//! A qcow2 image or a LUKS volume that a copy is written to: an image that is open.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::sync::Arc;

use cowshed::Error;
use cowshed::format::{BitmapDirectoryEntry, BitmapFlags, Version};
use cowshed::image::{WriteOptions, ZeroMode};
use cowshed::rt::ThreadWorkers;

use crate::escape;
use crate::failure::Failure;
use crate::format_options::OptionError;
use crate::image_format::ImageFormat;
use crate::names::beside;
use crate::new_image::{NewImage, identity};
use crate::open::{self, DiskImage, Opening};
use crate::persona::Persona;
use crate::secret::Keys;

use super::target::{TargetOptions, too_small};

/// The target, open.
#[derive(Debug)]
pub(super) struct ImageTarget {
    name: OsString,
    image: DiskImage,
    /// What is not written reads as zeros.
    is_zero: bool,
    leave_gaps: bool,
    compress: bool,
    backing_len: Option<u64>,
    persona: Persona,
}

impl ImageTarget {
    /// Opens or makes the image `name`, for `len` bytes; `wrong` makes a failure of wrong options.
    ///
    /// # Errors
    /// What the system and the engine say; it is a source; its disk is too small.
    pub(super) async fn open(
        name: &OsStr,
        format: ImageFormat,
        len: u64,
        options: &TargetOptions<'_>,
        wrong: impl Fn(OptionError) -> Failure,
    ) -> Result<Self, Failure> {
        let persona = options.persona;
        let backing = options.backing.map(|backing| beside(name, backing.as_ref()));
        if options.create {
            let keep = backing.as_ref().and_then(|path| identity(Path::new(path)));
            let image = NewImage {
                name,
                persona,
                converting: Some(format.name()),
                volatile: options.is_volatile(),
            };
            if format == ImageFormat::Luks {
                let create = options.format.luks_options(options.secrets).map_err(wrong)?;
                image.create_luks(&create).await?;
            } else {
                let create = options.format.create_options(options.secrets).map_err(wrong)?;
                image.create_qcow2(&create, keep.as_slice()).await?;
            }
        }
        // A backing file that the command line names is approved of.
        let mut allow = options.allow.clone();
        allow.extend(backing.map(Into::into).filter(|path: &std::path::PathBuf| path.exists()));
        let image = Opening::new(persona)
            .format(Some(format.name().to_owned()))
            .keys(Keys::new(options.secrets.clone(), options.format.encryption("key-secret")), None)
            .image_opts(options.image_opts)
            .allow(allow)
            .direct(["none", "off", "directsync"].contains(&options.cache))
            .volatile(options.is_volatile())
            .workers(Arc::new(ThreadWorkers::new()))
            .writable(WriteOptions::default())
            .open(name)
            .await?;
        if image.virtual_size() < len {
            return Err(too_small(name));
        }
        let backing_len = match options.create && options.backing.is_some() {
            true => image.layers().nth(1).map(|layer| layer.virtual_size),
            false => None,
        };
        // What is new in a volume reads as noise.
        let is_new_zero = options.create
            && options.leave_gaps
            && options.backing.is_none()
            && format != ImageFormat::Luks;
        Ok(Self {
            name: name.to_owned(),
            is_zero: options.is_zero || is_new_zero,
            leave_gaps: options.leave_gaps,
            compress: options.compress,
            backing_len,
            persona,
            image,
        })
    }

    /// Whether every byte is written, zeros too.
    pub(super) fn writes_zeros(&self) -> bool {
        !self.leave_gaps
    }

    /// The cluster size in bytes, if clusters are compressed.
    pub(super) fn compressed_cluster(&self) -> Option<u64> {
        let geometry = self.image.geometry().filter(|_| self.compress);
        geometry.map(|geometry| geometry.cluster_size())
    }

    /// The size of the backing file's disk in bytes, if the image was made with one.
    pub(super) fn backing_len(&self) -> Option<u64> {
        self.backing_len
    }

    /// Writes all of `bytes` at `offset`, compressed if it is to be: whole clusters then.
    pub(super) async fn write(&self, bytes: &[u8], offset: u64) -> Result<(), Failure> {
        let written = match self.compress {
            true => self.image.write_compressed_at(bytes, offset).await,
            false => self.image.write_at(bytes, offset).await,
        };
        written.map_err(|error| self.write_failed(offset, &error))
    }

    /// Makes `len` bytes from `offset` zeros, unless they are.
    pub(super) async fn write_zeros(&self, offset: u64, len: u64) -> Result<(), Failure> {
        if self.is_zero || len == 0 {
            return Ok(());
        }
        let written = self.image.write_zeroes_at(offset, len, ZeroMode::MayUnmap).await;
        written.map_err(|error| self.write_failed(offset, &error))
    }

    /// Whether it cannot have a copy of a bitmap of a disk of `len` bytes.
    pub(super) async fn refuses_bitmap(&self, bitmap: &BitmapDirectoryEntry, len: u64) -> bool {
        let has_it = |list: Vec<BitmapDirectoryEntry>| list.iter().any(|it| it.name == bitmap.name);
        self.image.virtual_size() != len || self.image.load_bitmaps().await.is_ok_and(has_it)
    }

    /// Whether its version has bitmaps.
    pub(super) fn can_have_bitmaps(&self) -> bool {
        self.image.header().is_some_and(|header| header.version == Version::V3)
    }

    /// Gives it a bitmap of a source, with what that marks.
    pub(super) async fn copy_bitmap(
        &self,
        source: &DiskImage,
        bitmap: &BitmapDirectoryEntry,
    ) -> Result<(), Failure> {
        let name = &bitmap.name;
        let failed = |what: &str, error: &Error| {
            let name = escape::terminal(name);
            let reason = crate::bitmap::reason(error);
            Failure::message(format!("Failed to {what} bitmap {name}: {reason}"))
        };
        let enabled = bitmap.flags.contains(BitmapFlags::AUTO);
        let added = self.image.add_bitmap(name, Some(bitmap.granularity()), enabled).await;
        added.map_err(|error| failed("create", &error))?;
        let merged = self.image.merge_bitmap_from(name, source, name).await;
        merged.map_err(|error| failed("populate", &error))
    }

    /// Writes what is left and closes the image.
    pub(super) async fn close(self) -> Result<(), Failure> {
        let closed = self.image.close().await;
        closed.map_err(|error| {
            Failure::image(&self.name, "error while flushing", self.reason(&error))
        })
    }

    fn write_failed(&self, offset: u64, error: &Error) -> Failure {
        let doing = format!("error while writing at byte {offset}");
        Failure::image(&self.name, doing, self.reason(error))
    }

    fn reason(&self, error: &Error) -> String {
        match self.persona {
            Persona::Cowshed => open::reason(error),
            Persona::QemuImg | Persona::QemuIo => crate::io::strerror(error).to_string(),
        }
    }
}
