//! Changes of the bitmaps themselves: new ones, none, empty ones, enabled or not, one added to another. Each goes alone, and
//! is durable when it returns.

use crate::error::{Error, Result};
use crate::format::limits::{
    BITMAP_GRANULARITY_BITS, BITMAP_LEN_BYTES_MAX, BITMAP_NAME_LEN_MAX, BITMAPS_MAX,
};
use crate::format::{BitmapDirectoryEntry, BitmapFlags, BitmapTableEntry, HostOffset, Version};
use crate::storage::Storage;
use crate::sync::AsyncMutexGuard;

use super::super::Image;
use super::super::requests::Chore;
use super::super::turnstile::Alone;
use super::super::writer::Top;
use super::rewrite::{Marks, OfBitmap, Rewritten};
use super::{Bitmap, Bitmaps, InUse, entries, qcow2};

/// The least granularity that a bitmap gets if none is asked for: clusters may be smaller.
const BITMAP_GRANULARITY_DEFAULT_MIN: u64 = 4096;
/// The greatest granularity that a bitmap gets if none is asked for: clusters may be larger.
const BITMAP_GRANULARITY_DEFAULT_MAX: u64 = 65536;

impl<S: Storage> Image<S> {
    /// Adds a bitmap that marks nothing yet. `granularity` is how many bytes of the disk a bit stands for, a power of two
    /// from 512 to 2 GiB; `None` for the size of a cluster, from 4 KiB to 64 KiB. If it is enabled, it marks every change
    /// from now on.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if there is such a bitmap, it would be too large, or the name or the granularity cannot
    /// be, or the image cannot have bitmaps; [`Error::LimitExceeded`] if there are too many; as [`Self::write_at`].
    ///
    /// # Cancel safety
    /// There is such a bitmap afterwards, or there is none.
    pub async fn add_bitmap(
        &self,
        name: &[u8],
        granularity: Option<u64>,
        enabled: bool,
    ) -> Result<()> {
        let mut edit = self.edit().await?;
        let (top, bitmaps) = edit.parts();
        let entry = new_entry(&top, bitmaps, name, granularity, enabled)?;
        let new = top.write_new_bitmap(&entry, bitmaps.size).await?;
        let mut list = bitmaps.list.clone();
        list.push(Bitmap { entry: new.entry.clone(), is_ours: false });
        top.put_bitmaps(bitmaps, list, || top.keep_bitmap(new)).await
    }

    /// Removes a bitmap, an inconsistent one too.
    ///
    /// # Errors
    /// [`Error::NotFound`]; as [`Self::write_at`].
    ///
    /// # Cancel safety
    /// There is such a bitmap afterwards, or there is none.
    pub async fn remove_bitmap(&self, name: &[u8]) -> Result<()> {
        let mut edit = self.edit().await?;
        let (top, bitmaps) = edit.parts();
        let (index, bitmap) = bitmaps.find(name)?;
        let old = bitmap.entry.clone();
        // A table that cannot be read leaks what it leads to, as with QEMU.
        let table = top.layer.load_bitmap_table(&old).await.unwrap_or_default();
        let mut list = bitmaps.list.clone();
        list.remove(index);
        let free = || {
            for entry in &table {
                if let BitmapTableEntry::Data { host } = entry {
                    top.free_metadata(*host, top.layer.geometry.cluster_size());
                }
            }
            if !table.is_empty() {
                top.free_metadata(old.table_offset, old.table_len());
            }
        };
        top.put_bitmaps(bitmaps, list, free).await
    }

    /// Removes all bitmaps, inconsistent ones too.
    ///
    /// # Errors
    /// As [`Self::write_at`].
    ///
    /// # Cancel safety
    /// Some are there and others are not.
    pub(in crate::image) async fn remove_bitmaps(&self) -> Result<()> {
        loop {
            let mut edit = self.edit().await?;
            let (_, bitmaps) = edit.parts();
            let Some(last) = bitmaps.list.last() else { return Ok(()) };
            let name = last.entry.name.clone();
            drop(edit);
            self.remove_bitmap(&name).await?;
        }
    }

    /// Makes a bitmap mark nothing. Everything that was written before is durable first.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::InvalidArgument`] if it is inconsistent; as [`Self::write_at`].
    ///
    /// # Cancel safety
    /// It is empty afterwards, or as it was.
    pub async fn clear_bitmap(&self, name: &[u8]) -> Result<()> {
        let mut edit = self.edit().await?;
        let (top, bitmaps) = edit.parts();
        let (index, bitmap) = bitmaps.find(name)?;
        bitmap.must_be_usable()?;
        match top.rewrite_empty(&bitmap.entry).await? {
            Some(new) => top.put_rewritten(bitmaps, index, new).await,
            None => Ok(()),
        }
    }

    /// Lets a bitmap mark every change from now on, or none.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::InvalidArgument`] if it is inconsistent; as [`Self::write_at`].
    ///
    /// # Cancel safety
    /// It is enabled or not.
    pub async fn enable_bitmap(&self, name: &[u8], enabled: bool) -> Result<()> {
        let mut edit = self.edit().await?;
        let (top, bitmaps) = edit.parts();
        let (index, bitmap) = bitmaps.find(name)?;
        bitmap.must_be_usable()?;
        if bitmap.is_enabled() == enabled {
            return Ok(());
        }
        top.layer.bitmap_must_fit(index as u64, &bitmap.entry, bitmaps.size)?;
        // One that is to be kept true must be one that can be.
        top.layer.load_bitmap_table(&bitmap.entry).await?;
        let mut list = bitmaps.list.clone();
        let entry = &mut list[index].entry;
        entry.flags = entry.flags.with(BitmapFlags::AUTO, enabled);
        top.put_bitmaps(bitmaps, list, || ()).await
    }

    /// Lets a bitmap mark all that another one of the image marks, too.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::InvalidArgument`] if one of them is inconsistent; as [`Self::write_at`].
    ///
    /// # Cancel safety
    /// It marks what both do, or is as it was.
    pub async fn merge_bitmap(&self, name: &[u8], from: &[u8]) -> Result<()> {
        let mut edit = self.edit().await?;
        let (top, bitmaps) = edit.parts();
        let (index, target) = bitmaps.find(name)?;
        target.must_be_usable()?;
        let (from, source) = bitmaps.find(from)?;
        source.must_be_usable()?;
        if from == index {
            return Ok(());
        }
        let cursor = top.layer.cursor(from, &source.entry, bitmaps.size).await?;
        top.merge(bitmaps, index, &mut OfBitmap { layer: top.layer, cursor }).await
    }

    /// Lets a bitmap mark all that a bitmap of another image marks, too. The disks must have the same size.
    ///
    /// # Errors
    /// As [`Self::merge_bitmap`]; [`Error::InvalidArgument`] if the disks have different sizes.
    ///
    /// # Cancel safety
    /// As [`Self::merge_bitmap`].
    pub async fn merge_bitmap_from<B: Storage>(
        &self,
        name: &[u8],
        image: &Image<B>,
        from: &[u8],
    ) -> Result<()> {
        if std::ptr::from_ref(self).cast::<()>() == std::ptr::from_ref(image).cast() {
            return self.merge_bitmap(name, from).await;
        }
        let mut ranges = image.bitmap_ranges(from).await?;
        let mut edit = self.edit().await?;
        let (top, bitmaps) = edit.parts();
        let (index, target) = bitmaps.find(name)?;
        target.must_be_usable()?;
        let size = image.virtual_size();
        if size != bitmaps.size {
            return Err(Error::InvalidArgument(format!(
                "Bitmaps are of different sizes (destination size is {}, source size is {size}) and can't be merged",
                bitmaps.size
            )));
        }
        top.merge(bitmaps, index, &mut ranges).await
    }

    /// Begins a change of the bitmaps: alone, and when all changes of the disk before are durable and in the bitmaps.
    async fn edit(&self) -> Result<Edit<'_, S>> {
        let top = qcow2(self)?;
        let chore = self.requests.enter_chore().await?;
        self.prepare_change().await?;
        let alone = top.writer.turnstile.alone().await;
        let mut bitmaps = top.writer.bitmaps.lock().await;
        let one = top.writer.commit.lock().await;
        top.writer.must_not_be_latched()?;
        top.commit_locked().await?;
        top.store_bitmaps(&mut bitmaps, InUse::Ends).await?;
        Ok(Edit { top, bitmaps, _one: one, _chore: chore, _alone: alone })
    }
}

/// A change of the bitmaps that is being made.
struct Edit<'a, S> {
    top: Top<'a, S>,
    bitmaps: AsyncMutexGuard<'a, Bitmaps>,
    _one: AsyncMutexGuard<'a, ()>,
    _chore: Chore<'a>,
    _alone: Alone<'a>,
}

impl<'a, S> Edit<'a, S> {
    fn parts(&mut self) -> (Top<'a, S>, &mut Bitmaps) {
        (self.top, &mut self.bitmaps)
    }
}

impl<'a, S: Storage> Top<'a, S> {
    async fn merge(
        &self,
        bitmaps: &mut Bitmaps,
        index: usize,
        marks: &mut impl Marks,
    ) -> Result<()> {
        let target = &bitmaps.list[index].entry;
        self.layer.bitmap_must_fit(index as u64, target, bitmaps.size)?;
        match self.rewrite_bitmap(target, bitmaps.size, bitmaps.size, marks).await? {
            Some(new) => self.put_rewritten(bitmaps, index, new).await,
            None => Ok(()),
        }
    }

    async fn put_rewritten(
        &self,
        bitmaps: &mut Bitmaps,
        index: usize,
        new: Rewritten<'a>,
    ) -> Result<()> {
        let mut list = bitmaps.list.clone();
        list[index].entry = new.entry.clone();
        self.put_bitmaps(bitmaps, list, || self.keep_bitmap(new)).await
    }

    /// Makes `list` the image's bitmaps; `switched` is called when they are.
    async fn put_bitmaps(
        &self,
        bitmaps: &mut Bitmaps,
        list: Vec<Bitmap>,
        switched: impl FnOnce(),
    ) -> Result<()> {
        let entries = entries(&list);
        let switched = || {
            switched();
            bitmaps.list = list;
            // None is in use: those that are enabled are marked before the next change.
            bitmaps.track(&self.writer.tracking);
        };
        self.replace_bitmap_directory(entries, switched).await
    }
}

/// The directory entry of a bitmap that is to be added.
fn new_entry<S: Storage>(
    top: &Top<'_, S>,
    bitmaps: &Bitmaps,
    name: &[u8],
    granularity: Option<u64>,
    enabled: bool,
) -> Result<BitmapDirectoryEntry> {
    let refused = |text: String| Err(Error::InvalidArgument(text));
    if name.is_empty() {
        return refused("Bitmap name cannot be empty".into());
    }
    let least = 1_u64 << BITMAP_GRANULARITY_BITS.start();
    if granularity.is_some_and(|bytes| bytes < least || !bytes.is_power_of_two()) {
        return refused(format!("Granularity must be power of 2 and at least {least}"));
    }
    let granularity = granularity.unwrap_or_else(|| {
        let cluster_size = top.layer.geometry.cluster_size();
        cluster_size.clamp(BITMAP_GRANULARITY_DEFAULT_MIN, BITMAP_GRANULARITY_DEFAULT_MAX)
    });
    if bitmaps.find(name).is_ok() {
        let name = String::from_utf8_lossy(name);
        return refused(format!("Bitmap already exists: {name}"));
    }
    if top.layer.context.version() == Version::V2 {
        return refused("Cannot store dirty bitmaps in qcow2 v2 files".into());
    }
    // OK to cast: at most 63.
    #[allow(clippy::cast_possible_truncation)]
    let granularity_bits = granularity.trailing_zeros() as u8;
    if !BITMAP_GRANULARITY_BITS.contains(&granularity_bits) {
        let most = 1_u64 << BITMAP_GRANULARITY_BITS.end();
        return refused(format!("Granularity exceeds maximum ({most} bytes)"));
    }
    must_fit(bitmaps.size, granularity_bits)?;
    if name.len() > usize::from(BITMAP_NAME_LEN_MAX) {
        return refused(format!("Name length exceeds maximum ({BITMAP_NAME_LEN_MAX} characters)"));
    }
    if bitmaps.list.len() >= usize::try_from(BITMAPS_MAX).unwrap_or(usize::MAX) {
        return refused("Maximum number of persistent bitmaps is already reached".into());
    }
    Ok(BitmapDirectoryEntry {
        table_offset: HostOffset::new(0),
        table_entries: 0,
        flags: BitmapFlags::default().with(BitmapFlags::AUTO, enabled),
        granularity_bits,
        extra: Vec::new(),
        name: name.to_vec(),
    })
}

/// Asks whether a bitmap of this granularity can be for a disk of `size` bytes.
pub(super) fn must_fit(size: u64, granularity_bits: u8) -> Result<()> {
    let bits = size.div_ceil(1 << granularity_bits);
    if bits == 0 {
        return Err(Error::InvalidArgument("A disk of 0 bytes has no persistent bitmaps".into()));
    }
    if bits.div_ceil(8) > BITMAP_LEN_BYTES_MAX {
        return Err(Error::InvalidArgument(
            "Too much space will be occupied by the bitmap. Use larger granularity".into(),
        ));
    }
    Ok(())
}
