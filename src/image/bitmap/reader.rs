//! Reading a bitmap: its table, and its bits as the ranges of the disk that they mark. One cluster of bits is in memory at a
//! time.

use std::ops::Range;

use crate::error::{Corrupt, CorruptKind, Result, Structure};
use crate::format::{BitmapDirectoryEntry, BitmapTableEntry};
use crate::storage::{Buf, Storage};

use super::super::layer::Qcow2Layer;

impl<S: Storage> Qcow2Layer<S> {
    /// Loads a bitmap's table.
    ///
    /// # Errors
    /// [`Error::Corrupt`](crate::Error::Corrupt) if it is not in the file, or an entry breaks the format's rules;
    /// [`Error::Storage`](crate::Error::Storage).
    pub(super) async fn load_bitmap_table(
        &self,
        bitmap: &BitmapDirectoryEntry,
    ) -> Result<Vec<BitmapTableEntry>> {
        let at = bitmap.table_offset;
        let bytes =
            self.metadata.load(Structure::BitmapTable, at.get(), bitmap.table_len()).await?;
        // OK to unwrap: the chunks have eight bytes.
        #[allow(clippy::unwrap_used)]
        let raw = |bytes: &[u8]| u64::from_be_bytes(bytes.try_into().unwrap());
        let entries = bytes.chunks_exact(8).map(raw).enumerate();
        entries
            .map(|(index, raw)| BitmapTableEntry::parse(raw, index as u64, at, &self.geometry))
            .collect()
    }

    /// Loads a cluster of a bitmap's bits.
    ///
    /// # Errors
    /// As [`Self::load_bitmap_table`].
    pub(super) async fn load_bits(&self, entry: BitmapTableEntry) -> Result<Buf> {
        let len = self.geometry.cluster_size();
        match entry {
            BitmapTableEntry::Data { host } => {
                self.metadata.load(Structure::BitmapData, host.get(), len).await
            }
            BitmapTableEntry::Zeros | BitmapTableEntry::Ones => {
                // OK to saturate: a cluster is in memory.
                let mut bits = Buf::zeroed(usize::try_from(len).unwrap_or(usize::MAX));
                if entry == BitmapTableEntry::Ones {
                    bits.fill(0xff);
                }
                Ok(bits)
            }
        }
    }

    /// Asks whether a bitmap that is to be used is as large as the disk wants it.
    ///
    /// # Errors
    /// [`Error::Corrupt`](crate::Error::Corrupt) if it is not.
    pub(super) fn bitmap_must_fit(
        &self,
        index: u64,
        bitmap: &BitmapDirectoryEntry,
        size: u64,
    ) -> Result<()> {
        let needed = bitmap.table_entries_for(size, &self.geometry);
        let entries = bitmap.table_entries;
        if u64::from(entries) == needed {
            return Ok(());
        }
        let directory = self.header.get().bitmaps().map(|bitmaps| bitmaps.directory_offset);
        let kind = CorruptKind::BitmapTableSize { entries, needed };
        let corrupt = Corrupt::new(kind, Structure::BitmapDirectory).entry(index);
        Err(corrupt.at(directory.unwrap_or_default().get()).into())
    }
}

/// Where reading a bitmap is. It knows no locks: whoever has it sees to it that the table stays true.
#[derive(Debug)]
pub(super) struct Cursor {
    table: Vec<BitmapTableEntry>,
    granularity_bits: u32,
    /// The size of the disk.
    size: u64,
    /// The next bit.
    bit: u64,
    /// The bits of the cluster that was loaded last, with its index.
    loaded: Option<(u64, Buf)>,
}

impl Cursor {
    /// Begins to read a bitmap whose table is `table`.
    pub(super) fn new(
        bitmap: &BitmapDirectoryEntry,
        table: Vec<BitmapTableEntry>,
        size: u64,
    ) -> Self {
        let granularity_bits = u32::from(bitmap.granularity_bits);
        Self { table, granularity_bits, size, bit: 0, loaded: None }
    }

    /// Goes on with another table of the bitmap.
    pub(super) fn replace(&mut self, other: Self) {
        *self = Self { bit: self.bit, ..other };
    }

    /// The next range of the disk that is marked, as long as it can be; `None` behind the last.
    ///
    /// # Cancel safety
    /// The next call finds the same range.
    pub(super) async fn next<S: Storage>(
        &mut self,
        layer: &Qcow2Layer<S>,
    ) -> Result<Option<Range<u64>>> {
        let Some(start) = self.find(layer, self.bit, true).await? else { return Ok(None) };
        let bits = self.bits();
        let end = self.find(layer, start, false).await?.unwrap_or(bits);
        self.bit = end;
        let offset = |bit: u64| (bit << self.granularity_bits).min(self.size);
        Ok(Some(offset(start)..offset(end)))
    }

    fn bits(&self) -> u64 {
        self.size.div_ceil(1 << self.granularity_bits)
    }

    /// The first bit from `bit` on that is set, or with `false` that is not.
    async fn find<S: Storage>(
        &mut self,
        layer: &Qcow2Layer<S>,
        mut bit: u64,
        set: bool,
    ) -> Result<Option<u64>> {
        let per_cluster = layer.geometry.cluster_size() * 8;
        let bits = self.bits();
        while bit < bits {
            let index = bit / per_cluster;
            let cluster_end = bits.min((index + 1) * per_cluster);
            // OK to saturate: there is no such entry, which reads as zeros.
            let entry = usize::try_from(index).ok().and_then(|index| self.table.get(index));
            let found = match entry.copied().unwrap_or(BitmapTableEntry::Zeros) {
                BitmapTableEntry::Zeros => (!set).then_some(bit),
                BitmapTableEntry::Ones => set.then_some(bit),
                entry @ BitmapTableEntry::Data { .. } => {
                    if self.loaded.as_ref().is_none_or(|(loaded, _)| *loaded != index) {
                        self.loaded = Some((index, layer.load_bits(entry).await?));
                    }
                    let bytes = self.loaded.as_ref().map_or(&[][..], |(_, bytes)| bytes);
                    let first = index * per_cluster;
                    find_bit(bytes, bit - first..cluster_end - first, set).map(|at| first + at)
                }
            };
            if found.is_some() {
                return Ok(found);
            }
            bit = cluster_end;
        }
        Ok(None)
    }
}

/// The first bit in a range of bits that is set, or with `false` that is not. Bits are counted from the lowest of each byte.
fn find_bit(bytes: &[u8], range: Range<u64>, set: bool) -> Option<u64> {
    let flip = if set { 0 } else { u64::MAX };
    let mut at = range.start;
    while at < range.end {
        // OK to saturate: the range lies within the bytes.
        let word_at = usize::try_from(at / 64 * 8).unwrap_or(usize::MAX);
        let word = bytes.get(word_at..word_at.saturating_add(8))?.first_chunk::<8>()?;
        let word = (u64::from_le_bytes(*word) ^ flip) & (u64::MAX << (at % 64));
        if word != 0 {
            let found = at / 64 * 64 + u64::from(word.trailing_zeros());
            return (found < range.end).then_some(found);
        }
        at = (at / 64 + 1) * 64;
    }
    None
}

/// Sets or clears a range of bits.
pub(super) fn fill_bits(bytes: &mut [u8], range: Range<u64>, set: bool) {
    let mut at = range.start;
    while at < range.end {
        let end = range.end.min(at / 8 * 8 + 8);
        let whole_end = range.end / 8 * 8;
        // OK to saturate: the range lies within the bytes.
        let index = |bit: u64| usize::try_from(bit / 8).unwrap_or(usize::MAX);
        if at.is_multiple_of(8) && whole_end > at {
            bytes[index(at)..index(whole_end)].fill(if set { 0xff } else { 0 });
            at = whole_end;
            continue;
        }
        let mask = (0xff_u8 << (at % 8)) & (0xff >> ((8 - end % 8) % 8));
        let byte = &mut bytes[index(at)];
        *byte = if set { *byte | mask } else { *byte & !mask };
        at = end;
    }
}

/// Whether all bits of a range are set, or with `false` that none is.
pub(super) fn are_all(bytes: &[u8], range: Range<u64>, set: bool) -> bool {
    find_bit(bytes, range, !set).is_none()
}

#[cfg(test)]
mod tests {
    use super::{are_all, fill_bits, find_bit};

    /// Every range of three words, against single bits.
    #[test]
    fn bits_are_found_and_filled_as_one_by_one() {
        for start in 0..130_u64 {
            for end in start..=160 {
                let mut bytes = [0_u8; 24];
                fill_bits(&mut bytes, start..end, true);
                let is_set = |bit: u64| bytes[usize::try_from(bit / 8).unwrap()] >> (bit % 8) & 1;
                assert!((0..192).all(|bit| (is_set(bit) == 1) == (start..end).contains(&bit)));
                assert_eq!(find_bit(&bytes, 0..192, true), (start < end).then_some(start));
                assert_eq!(find_bit(&bytes, start..192, false), Some(end));
                assert!(are_all(&bytes, start..end, true) && are_all(&bytes, end..192, false));
                let mut inverse = [0xff_u8; 24];
                fill_bits(&mut inverse, start..end, false);
                assert!(bytes.iter().zip(inverse).all(|(byte, inverse)| *byte == !inverse));
            }
        }
    }
}
