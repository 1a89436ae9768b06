//! Persistent bitmaps of an image: which there are, what they mark, and how they are kept true while the disk changes.
//!
//! # How a bitmap is kept true
//!
//! A bitmap that is enabled must know every change of the disk. Before the first change the image says of it that it is in
//! use, durably: whoever finds it so after a crash knows that it cannot be trusted. From then on each change is noted in
//! memory before it is made. When the image is closed the bitmaps take over what was noted, and when that is durable, the
//! image says that they are true again. In between nothing on disk claims to be true.
//!
//! So does every change of the bitmaps themselves: it goes alone, what was noted goes into the bitmaps first, and the
//! directory leads to what is new in one step.
//!
//! What was noted is bounded: when it becomes much, the bitmaps take it over while they stay in use. Nothing of a bitmap is
//! in memory but its directory entry; tables and clusters of bits are loaded one at a time.
//!
//! Source: QEMU, block/qcow2-bitmap.c and block/dirty-bitmap.c.

mod directory;
mod edit;
mod ranges;
mod reader;
mod rewrite;
mod tracking;

use std::ops::Range;

use crate::error::{Error, Result, Structure, Unsupported, UnsupportedKind};
use crate::format::{BitmapDirectoryEntry, BitmapFlags, BitmapTableEntry};
use crate::storage::Storage;

pub(crate) use tracking::Tracking;

use super::Image;
use super::layer::{Body, Qcow2Layer};
use super::mutant::{self, Mutant};
use super::writer::{Target, Top};
use reader::Cursor;
use rewrite::Changes;

/// The tables of all enabled bitmaps together may have so many bytes: they are read before the first change.
const TABLES_LEN_BYTES_MAX: u64 = 1 << 30;

/// The bitmaps of an image that is open for writing.
#[derive(Debug, Default)]
pub(crate) struct Bitmaps {
    /// In the order on disk.
    list: Vec<Bitmap>,
    /// The size of the disk that they are for.
    size: u64,
}

/// A bitmap.
#[derive(Debug, Clone)]
struct Bitmap {
    /// As it is on disk.
    entry: BitmapDirectoryEntry,
    /// It is in use by this very image.
    is_ours: bool,
}

impl Bitmap {
    fn is_enabled(&self) -> bool {
        self.entry.flags.contains(BitmapFlags::AUTO)
    }

    /// Whether it was left behind in use by somebody else.
    fn is_inconsistent(&self) -> bool {
        self.entry.flags.contains(BitmapFlags::IN_USE) && !self.is_ours
    }

    /// Whether it has extra data that must be known to whoever uses it.
    fn is_foreign(&self) -> bool {
        is_foreign(&self.entry)
    }

    fn is_usable(&self) -> bool {
        !self.is_inconsistent() && !self.is_foreign()
    }

    /// Whether changes of the disk are noted for it.
    fn is_tracking(&self) -> bool {
        self.is_enabled() && self.is_usable()
    }

    /// Asks whether it can be used.
    fn must_be_usable(&self) -> Result<()> {
        must_be_usable(&self.entry, self.is_inconsistent())
    }

    /// What the image says of it to others than itself.
    fn shown(&self) -> BitmapDirectoryEntry {
        let flags = self.entry.flags.with(BitmapFlags::IN_USE, self.is_inconsistent());
        BitmapDirectoryEntry { flags, ..self.entry.clone() }
    }
}

fn is_foreign(entry: &BitmapDirectoryEntry) -> bool {
    !entry.extra.is_empty() && !entry.flags.contains(BitmapFlags::EXTRA_DATA_COMPATIBLE)
}

fn must_be_usable(entry: &BitmapDirectoryEntry, is_inconsistent: bool) -> Result<()> {
    if is_inconsistent {
        return Err(Error::InvalidArgument(format!(
            "Bitmap '{}' is inconsistent and cannot be used",
            String::from_utf8_lossy(&entry.name)
        )));
    }
    if is_foreign(entry) {
        let name = String::from_utf8_lossy(&entry.name).into_owned();
        let kind = UnsupportedKind::BitmapExtraData { name };
        return Err(Unsupported::new(kind, Structure::BitmapDirectory).into());
    }
    Ok(())
}

fn not_found(name: &[u8]) -> Error {
    Error::NotFound { what: "bitmap", name: String::from_utf8_lossy(name).into_owned() }
}

/// The ranges of the disk that a bitmap marks, one after the other: see [`Image::bitmap_ranges`].
#[derive(Debug)]
pub struct DirtyRanges<'a, S> {
    image: &'a Image<S>,
    name: Vec<u8>,
    cursor: Cursor,
    generation: u64,
}

impl<S: Storage> DirtyRanges<'_, S> {
    /// The next range, as long as it can be; `None` behind the last.
    ///
    /// # Errors
    /// As [`Image::bitmap_ranges`]; a later call tries the same place again.
    ///
    /// # Cancel safety
    /// Nothing is lost: the next call goes on where this one began.
    pub async fn next(&mut self) -> Result<Option<Range<u64>>> {
        // What the table leads to stays what it is as long as the request is here.
        let _request = self.image.requests.enter().await?;
        let Body::Qcow2(layer) = &self.image.layers[0].body else { return Ok(None) };
        let generation = self.image.bitmap_generation();
        if generation != self.generation {
            self.cursor.replace(self.image.bitmap_cursor(layer, &self.name).await?);
            self.generation = generation;
        }
        self.cursor.next(layer).await
    }
}

impl<S: Storage> Image<S> {
    /// Begins to list what a bitmap marks: the ranges of the disk that have changed since it was made or cleared, in whole
    /// granules. A change that is made meanwhile may be listed or not.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::InvalidArgument`] if the bitmap is inconsistent, as it was not stored after the last
    /// change; [`Error::Unsupported`] if it has extra data that must be known; [`Error::Corrupt`] if its table breaks the
    /// format's rules or is not as long as the disk wants it; [`Error::Storage`]; [`Error::Closed`].
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub async fn bitmap_ranges(&self, name: &[u8]) -> Result<DirtyRanges<'_, S>> {
        let generation = self.bitmap_generation();
        let _request = self.requests.enter().await?;
        let Body::Qcow2(layer) = &self.layers[0].body else { return Err(not_found(name)) };
        let cursor = self.bitmap_cursor(layer, name).await?;
        Ok(DirtyRanges { image: self, name: name.to_vec(), cursor, generation })
    }

    /// How many bytes of the disk a bitmap marks, in whole granules.
    ///
    /// # Errors
    /// As [`Self::bitmap_ranges`].
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub async fn count_bitmap(&self, name: &[u8]) -> Result<u64> {
        let mut ranges = self.bitmap_ranges(name).await?;
        let mut len = 0;
        while let Some(range) = ranges.next().await? {
            len += range.end - range.start;
        }
        Ok(len)
    }

    fn bitmap_generation(&self) -> u64 {
        self.writer.get().map_or(0, |writer| writer.tracking.generation())
    }

    async fn bitmap_cursor(&self, layer: &Qcow2Layer<S>, name: &[u8]) -> Result<Cursor> {
        let Some(top) = self.top().filter(|top| top.writer.is_prepared()) else {
            let list = layer.load_bitmap_directory().await?.bitmaps;
            let index = list.iter().position(|entry| entry.name == name);
            let index = index.ok_or_else(|| not_found(name))?;
            let entry = &list[index];
            must_be_usable(entry, entry.flags.contains(BitmapFlags::IN_USE))?;
            // A snapshot that is open may have another size.
            let size = layer.header.get().size / 512 * 512;
            return layer.cursor(index, entry, size).await;
        };
        let mut bitmaps = top.writer.bitmaps.lock().await;
        if top.writer.tracking.is_on() {
            let _one = top.writer.commit.lock().await;
            top.writer.must_not_be_latched()?;
            top.store_bitmaps(&mut bitmaps, InUse::Stays).await?;
        }
        let (index, bitmap) = bitmaps.find(name)?;
        bitmap.must_be_usable()?;
        layer.cursor(index, &bitmap.entry, bitmaps.size).await
    }
}

impl<S: Storage> Qcow2Layer<S> {
    async fn cursor(
        &self,
        index: usize,
        entry: &BitmapDirectoryEntry,
        size: u64,
    ) -> Result<Cursor> {
        self.bitmap_must_fit(index as u64, entry, size)?;
        let table = self.load_bitmap_table(entry).await?;
        Ok(Cursor::new(entry, table, size))
    }
}

/// What becomes of the mark that bitmaps are in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InUse {
    /// The disk goes on changing.
    Stays,
    /// It does not, for now: nobody is in, and all that was noted is in the bitmaps.
    Ends,
}

impl Bitmaps {
    fn find(&self, name: &[u8]) -> Result<(usize, &Bitmap)> {
        let found = self.list.iter().enumerate().find(|(_, bitmap)| bitmap.entry.name == name);
        found.ok_or_else(|| not_found(name))
    }

    /// What the image has, for those who ask.
    pub(super) fn shown(&self) -> Vec<BitmapDirectoryEntry> {
        self.list.iter().map(Bitmap::shown).collect()
    }

    /// The granularity of the finest bitmap that changes are noted for.
    fn granularity_bits(&self) -> Option<u32> {
        let tracking = self.list.iter().filter(|bitmap| bitmap.is_tracking());
        tracking.map(|bitmap| u32::from(bitmap.entry.granularity_bits)).min()
    }

    /// Makes the changes noted or not, as the bitmaps are on disk.
    fn track(&self, tracking: &Tracking) {
        let is_marked = |bitmap: &Bitmap| !bitmap.is_tracking() || bitmap.is_ours;
        match self.granularity_bits() {
            None => tracking.disable(),
            Some(bits) if self.list.iter().all(is_marked) => tracking.enable(bits),
            Some(_) => tracking.arm(),
        }
    }
}

impl<S: Storage> Top<'_, S> {
    /// Prepares the bitmaps for the first change.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if they break the format's rules, and a change could not be kept in one that is enabled;
    /// [`Error::Unsupported`] if one that is enabled has extra data that must be known; [`Error::LimitExceeded`] if their
    /// tables are too long; [`Error::Storage`].
    pub(super) async fn prepare_bitmaps(&self) -> Result<()> {
        let layer = self.layer;
        self.drop_inconsistent_bitmaps().await?;
        let size = layer.virtual_size();
        let entries = layer.load_bitmap_directory().await?.bitmaps;
        let list: Vec<Bitmap> =
            entries.into_iter().map(|entry| Bitmap { entry, is_ours: false }).collect();
        let mut len = 0;
        for (index, bitmap) in list.iter().enumerate() {
            if !bitmap.is_enabled() || bitmap.is_inconsistent() {
                continue;
            }
            bitmap.must_be_usable()?;
            layer.bitmap_must_fit(index as u64, &bitmap.entry, size)?;
            len += u64::from(bitmap.entry.table_entries) * BitmapTableEntry::LEN;
            if len > TABLES_LEN_BYTES_MAX {
                let limit = TABLES_LEN_BYTES_MAX;
                return Err(Error::LimitExceeded { what: "bitmap table bytes", value: len, limit });
            }
            layer.load_bitmap_table(&bitmap.entry).await?;
        }
        let bitmaps = Bitmaps { list, size };
        bitmaps.track(&self.writer.tracking);
        *self.writer.bitmaps.lock().await = bitmaps;
        Ok(())
    }

    /// Marks the bitmaps that are enabled as in use, durably, if they are not: before the first change.
    ///
    /// # Errors
    /// As [`Self::replace_bitmap_directory`].
    ///
    /// # Cancel safety
    /// They are marked or not, and whoever changes something next marks them.
    pub(super) async fn mark_bitmaps_in_use(&self) -> Result<()> {
        let mut bitmaps = self.writer.bitmaps.lock().await;
        if !self.writer.tracking.is_armed() {
            return Ok(());
        }
        self.mark_in_use(&mut bitmaps, Bitmap::is_tracking).await
    }

    /// Lets the bitmaps take over what was noted, as it has become much.
    ///
    /// # Errors
    /// As [`Self::store_bitmaps`].
    ///
    /// # Cancel safety
    /// What they have not is noted still.
    pub(super) async fn relieve_tracking(&self) -> Result<()> {
        let mut bitmaps = self.writer.bitmaps.lock().await;
        if !self.writer.tracking.is_full() {
            return Ok(());
        }
        let _one = self.writer.commit.lock().await;
        self.writer.must_not_be_latched()?;
        self.store_bitmaps(&mut bitmaps, InUse::Stays).await
    }

    /// Prepares the bitmaps for a disk of another size, before it has that: all are in use until they are stored for it.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if one of them cannot be used, or would become too large; [`Error::Corrupt`] if one breaks
    /// the format's rules; as [`Self::replace_bitmap_directory`].
    ///
    /// # Cancel safety
    /// As [`Self::mark_bitmaps_in_use`].
    pub(super) async fn prepare_bitmaps_for_size(&self, size: u64) -> Result<()> {
        let mut bitmaps = self.writer.bitmaps.lock().await;
        for (index, bitmap) in bitmaps.list.iter().enumerate() {
            bitmap.must_be_usable()?;
            edit::must_fit(size, bitmap.entry.granularity_bits)?;
            if !bitmap.is_ours {
                self.layer.bitmap_must_fit(index as u64, &bitmap.entry, bitmaps.size)?;
                self.layer.load_bitmap_table(&bitmap.entry).await?;
            }
        }
        self.mark_in_use(&mut bitmaps, Bitmap::is_usable).await
    }

    /// Lets the bitmaps mark all of the disk, as another state of it is to be active, with `size` bytes. For those who are
    /// alone.
    ///
    /// # Errors
    /// As [`Self::prepare_bitmaps_for_size`].
    ///
    /// # Cancel safety
    /// They may mark what has not changed.
    pub(super) async fn mark_bitmaps_for_state(&self, size: u64) -> Result<()> {
        let old_size = self.layer.virtual_size();
        if size == old_size {
            self.mark_bitmaps_in_use().await?;
        } else {
            self.prepare_bitmaps_for_size(size).await?;
        }
        self.writer.changed.mark(&(0..size.max(old_size)));
        if self.writer.tracking.is_on() {
            self.writer.tracking.mark(0..size.max(old_size));
        }
        Ok(())
    }

    async fn mark_in_use(
        &self,
        bitmaps: &mut Bitmaps,
        which: impl Fn(&Bitmap) -> bool,
    ) -> Result<()> {
        let _one = self.writer.commit.lock().await;
        self.writer.must_not_be_latched()?;
        let mut list = bitmaps.list.clone();
        let mut differs = false;
        for bitmap in list.iter_mut().filter(|bitmap| which(bitmap) && !bitmap.is_ours) {
            let marked = !mutant::is(Mutant::BitmapsStayTrusted);
            bitmap.entry.flags = bitmap.entry.flags.with(BitmapFlags::IN_USE, marked);
            bitmap.is_ours = true;
            differs = true;
        }
        if differs {
            let entries = entries(&list);
            self.replace_bitmap_directory(entries, || bitmaps.list = list).await?;
        } else {
            // They may be marked in memory only, by somebody who was dropped.
            self.mend_header().await?;
            self.barrier().await?;
        }
        // Not before it is durable.
        bitmaps.track(&self.writer.tracking);
        Ok(())
    }

    /// Lets the bitmaps take over what was noted, and the size of the disk, durably. For those who have the commit's lock,
    /// and if their use is to end, are alone.
    ///
    /// # Errors
    /// [`Error::Corrupt`] from their tables; what taking clusters meets; [`Error::Storage`]. What they have not is noted
    /// still, and they are in use.
    ///
    /// # Cancel safety
    /// As after an error.
    pub(super) async fn store_bitmaps(&self, bitmaps: &mut Bitmaps, in_use: InUse) -> Result<()> {
        let marks = self.writer.tracking.take();
        let size = self.layer.virtual_size();
        let mut list = bitmaps.list.clone();
        let (mut rewritten, mut differs) = (Vec::new(), false);
        for bitmap in list.iter_mut().filter(|bitmap| bitmap.is_ours) {
            let noted = bitmap.is_enabled() && !marks.ranges().is_empty();
            if noted || size != bitmaps.size {
                let old = &bitmap.entry;
                let new = match noted {
                    true => {
                        let mut changes = Changes(marks.ranges().iter());
                        self.rewrite_bitmap(old, bitmaps.size, size, &mut changes).await?
                    }
                    false => {
                        self.rewrite_bitmap(old, bitmaps.size, size, &mut rewrite::NoMarks).await?
                    }
                };
                if let Some(new) = new {
                    bitmap.entry = new.entry.clone();
                    rewritten.push(new);
                    differs = true;
                }
            }
            if in_use == InUse::Ends {
                bitmap.entry.flags = bitmap.entry.flags.with(BitmapFlags::IN_USE, false);
                bitmap.is_ours = false;
                differs = true;
            }
        }
        if in_use == InUse::Ends && differs {
            // Cancel: whoever changes something next finds out what the disk says of them.
            self.writer.tracking.arm();
        }
        let entries = entries(&list);
        let switched = || {
            for new in rewritten {
                self.keep_bitmap(new);
            }
            marks.forget();
            *bitmaps = Bitmaps { list, size };
        };
        if differs {
            self.replace_bitmap_directory(entries, switched).await?;
        } else {
            switched();
        }
        bitmaps.track(&self.writer.tracking);
        Ok(())
    }

    /// Stores the bitmaps and ends their use: nobody is in, or comes in before they are marked again.
    pub(super) async fn end_bitmap_use(&self) -> Result<()> {
        let mut bitmaps = self.writer.bitmaps.lock().await;
        let _one = self.writer.commit.lock().await;
        self.writer.must_not_be_latched()?;
        self.store_bitmaps(&mut bitmaps, InUse::Ends).await
    }
}

/// The directory of a list of bitmaps.
fn entries(list: &[Bitmap]) -> Vec<BitmapDirectoryEntry> {
    list.iter().map(|bitmap| bitmap.entry.clone()).collect()
}

/// The image that bitmaps belong to, if it can have any.
fn qcow2<'a, S: Storage>(image: &'a Image<S>) -> Result<Top<'a, S>> {
    match image.target()?.1 {
        Target::Qcow2(top) => Ok(top),
        Target::Raw(_) => {
            Err(Error::InvalidArgument("a raw image has no persistent bitmaps".into()))
        }
    }
}
