//! Changing what an image was created with: its version, the width of its refcounts, its features, its size.
//!
//! These are things that every request counts on, so that nobody else has the image meanwhile: it is borrowed mutably.
//! Each of them shows on disk in one write of the header's first sector, and until then the image is what it was.
//!
//! Source: QEMU, block/qcow2.c, `qcow2_amend_options`, `qcow2_upgrade`, `qcow2_downgrade`.

mod refcount_width;
mod zero_clusters;

use crate::error::{Corrupt, CorruptKind, Error, Result, Structure};
use crate::format::feature::{Autoclear, Compatible, FeatureNames, Incompatible};
use crate::format::{Compression, Extension, Header, Snapshot, Version};
use crate::storage::Storage;

use super::Image;
use super::layer::Body;
use super::options::ResizeOptions;
use super::shared::own;
use super::writer::Top;

/// Up to this cluster size the header has no room for the feature name table.
const CLUSTER_SIZE_WITHOUT_FEATURE_NAMES_MAX: u64 = 4096;
/// Releasing what was unmapped makes refcounts dirty: then once more.
const ROUNDS_MAX: usize = 4;
const REFCOUNT_BITS_MAX: u32 = 64;
/// The only width that version 2 knows.
const REFCOUNT_BITS_V2: u32 = 16;

/// What an image is to be; `None` leaves it as it is. See [`Image::amend`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct AmendOptions {
    /// `compat`.
    pub version: Option<Version>,
    /// `refcount_bits`.
    pub refcount_bits: Option<u32>,
    /// `lazy_refcounts`.
    pub lazy_refcounts: Option<bool>,
    /// `data_file`: the name of the external data file, which the image must have. An empty one is none, so that it has to
    /// be told when the image is opened.
    pub data_file: Option<Vec<u8>>,
    /// `data_file_raw`: can only be cleared.
    pub data_file_raw: Option<bool>,
    /// `size` of the disk in bytes, a multiple of 512.
    pub size: Option<u64>,
}

impl<S: Storage> Image<S> {
    /// Makes the image what `options` say, and makes it durable. A longer version comes first and a shorter one last, as in
    /// QEMU, so that `compat=0.10` may come with what makes it possible. `progress` is told how much is done of how much.
    ///
    /// The external data file that is open stays the one that was opened.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`], in QEMU's words, if the image cannot be that; [`Error::Corrupt`] if it contradicts itself;
    /// else as [`Self::write_at`]. What came before in the order is done then, and the rest is as it was.
    ///
    /// # Cancel safety
    /// As a power loss: what is being changed is what it was or what it is to be.
    pub async fn amend(
        &mut self,
        options: &AmendOptions,
        mut progress: impl FnMut(u64, u64),
    ) -> Result<()> {
        let op = self.requests.enter_chore().await?;
        drop(self.begin_change(&op).await?);
        drop(op);
        let Some(header) = self.header() else { return Err(invalid(RAW)) };
        let old = header.version;
        let new = options.version.unwrap_or(old);
        if new == Version::V3 && old == Version::V2 {
            self.upgrade().await?;
        }
        if let Some(bits) = options.refcount_bits {
            self.amend_refcount_bits(bits, new, &mut progress).await?;
        }
        self.amend_data_file(options).await?;
        if let Some(lazy) = options.lazy_refcounts {
            self.amend_lazy_refcounts(lazy, new).await?;
        }
        if let Some(size) = options.size {
            let options = ResizeOptions { shrink: true, ..ResizeOptions::default() };
            self.resize(size, &options).await?;
        }
        if new == Version::V2 && old == Version::V3 {
            self.downgrade(&mut progress).await?;
        }
        self.flush().await
    }

    async fn upgrade(&mut self) -> Result<()> {
        let Some(top) = self.top() else { return Ok(()) };
        top.complete_table().await?;
        let mut header = (*top.layer.header.get()).clone();
        header.version = Version::V3;
        header.unknown_fields = Header::new(Version::V3, header.geometry()).unknown_fields;
        if header.geometry().cluster_size() > CLUSTER_SIZE_WITHOUT_FEATURE_NAMES_MAX {
            let names = FeatureNames::new(FeatureNames::QEMU.iter().copied());
            header.extensions.push(Extension::FeatureNames(names));
        }
        self.replace(header).await
    }

    async fn downgrade(&mut self, progress: &mut impl FnMut(u64, u64)) -> Result<()> {
        let Some(top) = self.top() else { return Ok(()) };
        top.may_downgrade()?;
        top.must_be_sound()?;
        top.expand_zero_clusters(progress).await?;
        // Version 2 has no bitmaps.
        if top.layer.header.get().bitmaps().is_some() {
            self.remove_bitmaps().await?;
        }
        top.settle_all().await?;
        let mut header = (*top.layer.header.get()).clone();
        header.version = Version::V2;
        header.incompatible = Incompatible::default();
        header.compatible = Compatible::default();
        header.autoclear = Autoclear::default();
        header.unknown_fields = Vec::new();
        header
            .extensions
            .retain(|it| !matches!(it, Extension::FeatureNames(_) | Extension::Bitmaps(_)));
        self.replace(header).await
    }

    async fn amend_data_file(&mut self, options: &AmendOptions) -> Result<()> {
        let Some(header) = self.header() else { return Ok(()) };
        let is_raw = header.autoclear.contains(Autoclear::DATA_FILE_RAW);
        if options.data_file_raw == Some(true) && !is_raw {
            return Err(invalid("data-file-raw cannot be set on existing images"));
        }
        let mut new = (*header).clone();
        if options.data_file_raw == Some(false) {
            new.autoclear = new.autoclear.with(Autoclear::DATA_FILE_RAW, false);
        }
        if let Some(name) = &options.data_file {
            if !header.has_data_file() {
                return Err(invalid(
                    "data-file can only be set for images that use an external data file",
                ));
            }
            let is_name = |it: &Extension| matches!(it, Extension::DataFile(_));
            let at = new.extensions.iter().position(is_name);
            new.extensions.retain(|it| !is_name(it));
            if !name.is_empty() {
                let at = at.unwrap_or(new.extensions.len());
                new.extensions.insert(at, Extension::DataFile(name.clone()));
            }
        }
        if new == *header { Ok(()) } else { self.replace(new).await }
    }

    /// `version` is what the image is to have in the end.
    async fn amend_lazy_refcounts(&mut self, lazy: bool, version: Version) -> Result<()> {
        let Some(top) = self.top() else { return Ok(()) };
        let header = top.layer.header.get();
        if lazy && version == Version::V2 {
            return Err(invalid(
                "Lazy refcounts only supported with compatibility level 1.1 and above (use compat=1.1 or greater)",
            ));
        }
        if header.compatible.contains(Compatible::LAZY_REFCOUNTS) == lazy {
            return Ok(());
        }
        if !lazy {
            top.settle_all().await?;
        }
        top.update_header(|header| {
            header.compatible = header.compatible.with(Compatible::LAZY_REFCOUNTS, lazy);
        })
        .await?;
        top.barrier().await
    }

    /// `version` is what the image is to have in the end.
    async fn amend_refcount_bits(
        &mut self,
        bits: u32,
        version: Version,
        progress: &mut impl FnMut(u64, u64),
    ) -> Result<()> {
        let Some(top) = self.top() else { return Ok(()) };
        let header = top.layer.header.get();
        if !bits.is_power_of_two() || bits > REFCOUNT_BITS_MAX {
            return Err(invalid(
                "Refcount width must be a power of two and may not exceed 64 bits",
            ));
        }
        if version == Version::V2 && bits != REFCOUNT_BITS_V2 {
            return Err(invalid(
                "Refcount widths other than 16 bits require compatibility level 1.1 or above (use compat=1.1 or greater)",
            ));
        }
        if header.geometry().refcount_bits() == bits {
            return Ok(());
        }
        top.must_be_sound()?;
        top.settle_all().await?;
        top.rebuild_refcounts(bits.ilog2(), progress).await?;
        // Before anything is awaited.
        self.follow_header();
        self.flush().await
    }

    /// Writes another header, and goes by it.
    async fn replace(&mut self, header: Header) -> Result<()> {
        header.encode()?;
        self.flush().await?;
        let Some(top) = self.top() else { return Ok(()) };
        top.replace_header(header).await?;
        // Before anything is awaited.
        self.follow_header();
        Ok(())
    }

    /// Takes from the header what is kept beside it because it never changes while requests are made.
    fn follow_header(&mut self) {
        // Nobody else has the image itself. OK to index: it is a layer.
        let Some(layer) = own(&mut self.layers[0]) else { return };
        if let Body::Qcow2(layer) = &mut layer.body {
            let header = layer.header.get();
            layer.geometry = header.geometry();
            layer.context = header.l2_context();
        }
    }
}

impl<S: Storage> Top<'_, S> {
    /// Asks whether version 2 knows everything that the image has.
    fn may_downgrade(&self) -> Result<()> {
        let header = self.layer.header.get();
        if header.geometry().refcount_bits() != REFCOUNT_BITS_V2 {
            return Err(invalid("compat=0.10 requires refcount_bits=16"));
        }
        if header.has_data_file() {
            return Err(invalid("Cannot downgrade an image with a data file"));
        }
        let size = self.layer.virtual_size();
        let differs = |snapshot: &Snapshot| {
            snapshot.vm_state_len != 0 || snapshot.disk_size.is_some_and(|it| it != size)
        };
        if self.layer.snapshots.get().iter().any(differs) {
            return Err(invalid("Internal snapshots prevent downgrade of image"));
        }
        let features = header.incompatible.with(Incompatible::DIRTY, false).raw();
        if features != 0 || header.compression != Compression::Deflate {
            return Err(Error::InvalidArgument(format!(
                "Cannot downgrade an image with incompatible features {features:#x} set"
            )));
        }
        Ok(())
    }

    /// Refuses images in which refcounts and tables contradict each other.
    pub(super) fn must_be_sound(&self) -> Result<()> {
        if self.writer.is_sound() {
            return Ok(());
        }
        let reason = "refcounts and tables contradict each other".to_owned();
        let kind = CorruptKind::WriteUnsafe { reason };
        Err(Corrupt::new(kind, Structure::Header).into())
    }

    /// Writes everything, refcounts that may be late included, and lets go of what waits to be free. Nobody makes requests.
    async fn settle_all(&self) -> Result<()> {
        let _one = self.writer.commit.lock().await;
        for _ in 0..ROUNDS_MAX {
            self.commit_locked().await?;
            if self.is_written() {
                break;
            }
        }
        self.end_recount(true).await?;
        self.write_all_refcounts().await?;
        self.barrier().await
    }
}

const RAW: &str = "Format driver 'raw' does not support option amendment";

fn invalid(text: &str) -> Error {
    Error::InvalidArgument(text.to_owned())
}
