//! The bitmap directory of an image that is open for writing: where it is changes in one step, and with it which bitmaps
//! there are, where their tables are, and which are in use.
//!
//! A new directory is written elsewhere, and the header's extension led to it in one write within a sector; then the old one
//! goes. Where the extension lies across two sectors and more than the place changes, the autoclear bit is cleared meanwhile,
//! as QEMU does it always: a power loss then leaves no bitmaps, but never wrong ones.

use crate::error::{Error, Result, Structure};
use crate::format::limits::{BITMAP_DIRECTORY_LEN_BYTES_MAX, BITMAPS_MAX};
use crate::format::{
    Autoclear, BitmapDirectory, BitmapDirectoryEntry, BitmapsExtension, Extension, Header,
    HostOffset,
};
use crate::storage::Storage;

use super::super::free::{Free, FreeReason};
use super::super::layer::Qcow2Layer;
use super::super::ownership::Owner;
use super::super::writer::Top;

/// What a power loss leaves old or new as a whole, in bytes.
const SECTOR_LEN_BYTES: usize = 512;

impl<S: Storage> Qcow2Layer<S> {
    /// Loads the bitmap directory.
    ///
    /// # Errors
    /// [`Error::Corrupt`] and [`Error::Unsupported`] if it breaks the format's rules; [`Error::Storage`].
    pub(in crate::image) async fn load_bitmap_directory(&self) -> Result<BitmapDirectory> {
        let Some(extension) = self.header.get().bitmaps() else {
            return Ok(BitmapDirectory::default());
        };
        let (offset, len) = (extension.directory_offset.get(), extension.directory_len);
        let bytes = self.metadata.load(Structure::BitmapDirectory, offset, len).await?;
        BitmapDirectory::parse(&bytes, &extension, &self.geometry)
    }
}

impl<S: Storage> Top<'_, S> {
    /// Makes `bitmaps` the image's bitmaps, durably; what they lead to was written before. For those who have the commit's
    /// lock.
    ///
    /// # Errors
    /// [`Error::LimitExceeded`] if they are too many; what taking clusters meets; [`Error::Storage`]. The bitmaps are the
    /// old ones, or will be after the next commit.
    ///
    /// # Cancel safety
    /// As after an error.
    pub(super) async fn replace_bitmap_directory(
        &self,
        bitmaps: Vec<BitmapDirectoryEntry>,
    ) -> Result<()> {
        let old = self.layer.header.get().bitmaps();
        let count = bitmaps.len();
        let taken = if bitmaps.is_empty() {
            None
        } else {
            let bytes = BitmapDirectory { bitmaps }.encode()?;
            let extension = self.write_directory(&bytes, count).await?;
            Some(extension)
        };
        // What it leads to is durable, with its refcounts.
        self.write_all_refcounts().await?;
        self.barrier().await?;
        // Cancel: the next commit makes the header what memory knows, before anything that was taken is used again.
        self.set_extension(taken.as_ref().map(|(extension, _)| *extension)).await?;
        if let Some((_, taken)) = taken {
            taken.keep();
        }
        if let Some(old) = old {
            self.free_metadata(old.directory_offset, old.directory_len);
        }
        self.writer.tracking.tables_changed();
        Ok(())
    }

    async fn write_directory(
        &self,
        bytes: &[u8],
        count: usize,
    ) -> Result<(BitmapsExtension, super::super::alloc::Taken<'_>)> {
        let exceeded = |what, value: usize, limit| {
            let value = value as u64;
            Error::LimitExceeded { what, value, limit }
        };
        let count = u32::try_from(count)
            .ok()
            .filter(|count| *count <= BITMAPS_MAX)
            .ok_or_else(|| exceeded("bitmaps", count, u64::from(BITMAPS_MAX)))?;
        let directory_len = bytes.len() as u64;
        if directory_len > BITMAP_DIRECTORY_LEN_BYTES_MAX {
            let limit = BITMAP_DIRECTORY_LEN_BYTES_MAX;
            return Err(exceeded("bitmap directory bytes", bytes.len(), limit));
        }
        let clusters = self.layer.geometry.clusters_for(directory_len);
        let taken = self.take_clusters(clusters, Owner::Metadata).await?;
        let directory_offset = taken.host();
        self.write_metadata(directory_offset, bytes).await?;
        Ok((BitmapsExtension { count, reserved: 0, directory_len, directory_offset }, taken))
    }

    /// Makes the header tell of these bitmaps, durably.
    async fn set_extension(&self, extension: Option<BitmapsExtension>) -> Result<()> {
        let old = self.layer.header.get();
        let mut new = (*old).clone();
        let is_bitmaps = |extension: &Extension| matches!(extension, Extension::Bitmaps(_));
        let place = new.extensions.iter().position(is_bitmaps);
        new.extensions.retain(|extension| !is_bitmaps(extension));
        if let Some(extension) = extension {
            let place = place.unwrap_or(new.extensions.len());
            new.extensions.insert(place, Extension::Bitmaps(extension));
        }
        new.autoclear = new.autoclear.with(Autoclear::BITMAPS, extension.is_some());
        if is_one_sector(&old, &new)? {
            self.update_header(|header| *header = new).await?;
        } else if place.is_some() && extension.is_some() {
            let without = |header: &mut Header| {
                header.autoclear = header.autoclear.with(Autoclear::BITMAPS, false);
            };
            self.update_header(without).await?;
            self.barrier().await?;
            let (mut between, last) = (new.clone(), new);
            without(&mut between);
            self.update_header(|header| *header = between).await?;
            self.barrier().await?;
            self.update_header(|header| *header = last).await?;
        } else {
            self.replace_header(new).await?;
        }
        self.barrier().await
    }

    /// Removes the extension that tells of bitmaps which are not to be trusted any more: something that does not know them
    /// has written to the image. Their clusters are leaked, as with QEMU.
    pub(in crate::image) async fn drop_inconsistent_bitmaps(&self) -> Result<()> {
        let header = self.layer.header.get();
        let is_bitmaps = |extension: &Extension| matches!(extension, Extension::Bitmaps(_));
        let is_left = !header.autoclear.contains(Autoclear::BITMAPS)
            && header.extensions.iter().any(is_bitmaps);
        if is_left {
            self.set_extension(None).await?;
        }
        Ok(())
    }

    /// Gives up clusters of metadata that nothing leads to any more.
    pub(super) fn free_metadata(&self, host: HostOffset, len: u64) {
        if len == 0 {
            return;
        }
        let bits = self.layer.geometry.cluster_bits();
        let clusters = host.get() >> bits..host.get().saturating_add(len).div_ceil(1 << bits);
        let epoch = self.image.requests.epoch();
        self.writer.frees.lock().add(Free { clusters, reason: FreeReason::Other, epoch });
    }
}

/// Whether the headers differ in one sector only.
fn is_one_sector(old: &Header, new: &Header) -> Result<bool> {
    let (old, new) = (old.encode()?, new.encode()?);
    let len = old.len().max(new.len());
    let at = |bytes: &[u8], index: usize| bytes.get(index).copied().unwrap_or(0);
    let differs = |index: &usize| at(&old, *index) != at(&new, *index);
    let first = (0..len).find(differs).unwrap_or(0);
    let last = (0..len).rfind(differs).unwrap_or(0);
    Ok(first / SECTOR_LEN_BYTES == last / SECTOR_LEN_BYTES)
}
