//! Persistent bitmaps: the bitmap directory and the bitmap tables.
//!
//! Entries of the directory have variable length and lie one behind the other, each padded to a multiple of 8:
//!
//! | offset | size | field | meaning |
//! |---|---|---|---|
//! | 0 | 8 | bitmap_table_offset | host offset of the bitmap table, aligned to a cluster |
//! | 8 | 4 | bitmap_table_size | number of its entries |
//! | 12 | 4 | flags | see [`BitmapFlags`] |
//! | 16 | 1 | type | 1: dirty tracking |
//! | 17 | 1 | granularity_bits | binary logarithm of the bytes of the disk that a bit stands for |
//! | 18 | 2 | name_size | length of the name |
//! | 20 | 4 | extra_data_size | length of the extra data; 0 for now |
//! | 24 | - | extra data | kept |
//! | - | - | name | unique |
//! | - | 0 - 7 | padding | |
//!
//! Bitmap table entry:
//!
//! | bits | field | meaning |
//! |---|---|---|
//! | 0 | ones | without an offset: the cluster of bits reads as ones, not zeros |
//! | 1 - 8 | | reserved, 0 |
//! | 9 - 55 | offset | host offset of the cluster of bits; 0: none |
//! | 56 - 63 | | reserved, 0 |
//!
//! Spec: qcow2, Bitmaps. Matches qcow2-bitmap.c:check_dir_entry, bitmap_list_load and check_table_entry, except that extra
//! data is kept, as the specification has it, where QEMU refuses it.

use std::collections::BTreeSet;

use super::addr::HostOffset;
use super::bytes::{be16, be32, be64, pad_to_8};
use super::extension::BitmapsExtension;
use super::geometry::Geometry;
use super::limits::{
    BITMAP_GRANULARITY_BITS, BITMAP_LEN_BYTES_MAX, BITMAP_NAME_LEN_MAX, BITMAP_TABLE_ENTRIES_MAX,
};
use crate::error::{Corrupt, CorruptKind, Error, Result, Structure, Unsupported, UnsupportedKind};

/// Length of the fixed part of a directory entry.
const FIXED_LEN: usize = 24;
/// The only type.
const TYPE_DIRTY_TRACKING: u8 = 1;

/// Bits 9 to 55 of a table entry.
const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
const ONES: u64 = 1;
/// Bits 1 to 8 and 56 to 63.
const RESERVED: u64 = 0xff00_0000_0000_01fe;

/// Flags of a bitmap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct BitmapFlags(u32);

impl BitmapFlags {
    /// It was not saved, and may be wrong: it can only be removed.
    pub const IN_USE: Self = Self(1);
    /// It is enabled: every write must be reflected in it.
    pub const AUTO: Self = Self(1 << 1);
    /// It can be used by those who do not know its extra data.
    pub const EXTRA_DATA_COMPATIBLE: Self = Self(1 << 2);

    const KNOWN: u32 = 0b111;

    /// Makes flags from the entry's field.
    pub const fn from_raw(raw: u32) -> Self {
        Self(raw)
    }

    /// Returns the entry's field.
    pub const fn raw(self) -> u32 {
        self.0
    }

    /// Returns whether all of these flags are set.
    pub const fn contains(self, flags: Self) -> bool {
        self.0 & flags.0 == flags.0
    }

    /// Returns the flags with these set (`true`) or clear.
    #[must_use]
    pub const fn with(self, flags: Self, set: bool) -> Self {
        if set { Self(self.0 | flags.0) } else { Self(self.0 & !flags.0) }
    }
}

/// A bitmap, as the bitmap directory has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BitmapDirectoryEntry {
    /// Where its bitmap table is.
    pub table_offset: HostOffset,
    /// Number of entries of its bitmap table.
    pub table_entries: u32,
    /// Its flags.
    pub flags: BitmapFlags,
    /// Binary logarithm of the bytes of the disk that a bit stands for: 9 to 31.
    pub granularity_bits: u8,
    /// Extra data, which nobody knows yet.
    pub extra: Vec<u8>,
    /// The name.
    pub name: Vec<u8>,
}

impl BitmapDirectoryEntry {
    /// Returns how many bytes of the disk a bit stands for.
    pub fn granularity(&self) -> u64 {
        // At most 31 by construction of those that were parsed.
        1_u64.checked_shl(u32::from(self.granularity_bits)).unwrap_or(0)
    }

    /// Returns the length of the bitmap table in bytes.
    pub fn table_len(&self) -> u64 {
        u64::from(self.table_entries) * BitmapTableEntry::LEN
    }

    /// Returns how many entries the bitmap table needs for a disk of `size` bytes.
    pub fn table_entries_for(&self, size: u64, geometry: &Geometry) -> u64 {
        let bits = size.div_ceil(self.granularity().max(1));
        geometry.clusters_for(bits.div_ceil(8))
    }

    /// Parses the entry that `bytes` start with, and returns how many bytes it takes with its padding. `index` and
    /// `directory`, the host offset of the directory, are for the message.
    ///
    /// # Errors
    ///
    /// `Corrupt` if the bytes end within the entry, the table is empty, missing or not aligned to a cluster, reserved
    /// flags are set or the type is reserved; `Unsupported` if table, granularity or name are beyond QEMU's limits.
    pub fn parse(
        bytes: &[u8],
        index: u64,
        directory: HostOffset,
        geometry: &Geometry,
    ) -> Result<(Self, u64)> {
        let corrupt = |kind| {
            let corrupt = Corrupt::new(kind, Structure::BitmapDirectory);
            Error::from(corrupt.at(directory.get()).entry(index))
        };
        let unsupported = |kind| {
            let unsupported = Unsupported::new(kind, Structure::BitmapDirectory);
            Error::from(unsupported.at(directory.get()).entry(index))
        };
        let truncated = |needed| {
            corrupt(CorruptKind::BitmapDirectoryTruncated { len: bytes.len() as u64, needed })
        };
        if bytes.len() < FIXED_LEN {
            return Err(truncated(FIXED_LEN as u64));
        }
        let (extra_len, name_len) = (be32(bytes, 20), be16(bytes, 18));
        let extra_end = FIXED_LEN as u64 + u64::from(extra_len);
        let name_end = extra_end + u64::from(name_len);
        let len = name_end.next_multiple_of(8);
        if len > bytes.len() as u64 {
            return Err(truncated(len));
        }
        // Within the slice, so they fit.
        #[allow(clippy::cast_possible_truncation)]
        let (extra_end, name_end) = (extra_end as usize, name_end as usize);
        let (table_offset, table_entries) = (be64(bytes, 0), be32(bytes, 8));
        if table_entries == 0 {
            return Err(corrupt(CorruptKind::BitmapTableEmpty));
        }
        if table_offset == 0 {
            return Err(corrupt(CorruptKind::BitmapTableMissing));
        }
        let alignment = geometry.cluster_size();
        if geometry.offset_in_cluster(table_offset) != 0 {
            let kind = CorruptKind::BitmapTableUnaligned { offset: table_offset, alignment };
            return Err(corrupt(kind));
        }
        let data_len = u64::from(table_entries) << geometry.cluster_bits();
        if table_entries > BITMAP_TABLE_ENTRIES_MAX || data_len > BITMAP_LEN_BYTES_MAX {
            let max = BITMAP_LEN_BYTES_MAX;
            return Err(unsupported(UnsupportedKind::BitmapTooLarge { len: data_len, max }));
        }
        let granularity_bits = bytes[17];
        if !BITMAP_GRANULARITY_BITS.contains(&granularity_bits) {
            return Err(unsupported(UnsupportedKind::BitmapGranularity { granularity_bits }));
        }
        let flags = be32(bytes, 12);
        if flags & !BitmapFlags::KNOWN != 0 {
            return Err(corrupt(CorruptKind::BitmapFlagsReserved { flags }));
        }
        if name_len > BITMAP_NAME_LEN_MAX {
            let max = BITMAP_NAME_LEN_MAX;
            return Err(unsupported(UnsupportedKind::BitmapNameTooLong { len: name_len, max }));
        }
        if bytes[16] != TYPE_DIRTY_TRACKING {
            return Err(corrupt(CorruptKind::BitmapType { value: bytes[16] }));
        }
        let entry = Self {
            table_offset: HostOffset::new(table_offset),
            table_entries,
            flags: BitmapFlags(flags),
            granularity_bits,
            extra: bytes[FIXED_LEN..extra_end].to_vec(),
            name: bytes[extra_end..name_end].to_vec(),
        };
        Ok((entry, len))
    }

    /// Appends the entry with its padding.
    ///
    /// # Errors
    ///
    /// `LimitExceeded` if the name is longer than 1023 bytes, or the extra data than 4 GiB.
    pub fn encode(&self, into: &mut Vec<u8>) -> Result<()> {
        let exceeded =
            |what, value: usize, limit| Error::LimitExceeded { what, value: value as u64, limit };
        let name_len = u16::try_from(self.name.len())
            .ok()
            .filter(|&len| len <= BITMAP_NAME_LEN_MAX)
            .ok_or_else(|| {
                exceeded("bitmap name bytes", self.name.len(), u64::from(BITMAP_NAME_LEN_MAX))
            })?;
        let extra_len = u32::try_from(self.extra.len()).map_err(|_| {
            exceeded("bitmap extra data bytes", self.extra.len(), u64::from(u32::MAX))
        })?;
        into.extend_from_slice(&self.table_offset.get().to_be_bytes());
        into.extend_from_slice(&self.table_entries.to_be_bytes());
        into.extend_from_slice(&self.flags.raw().to_be_bytes());
        into.extend_from_slice(&[TYPE_DIRTY_TRACKING, self.granularity_bits]);
        into.extend_from_slice(&name_len.to_be_bytes());
        into.extend_from_slice(&extra_len.to_be_bytes());
        into.extend_from_slice(&self.extra);
        into.extend_from_slice(&self.name);
        pad_to_8(into);
        Ok(())
    }
}

/// The bitmap directory.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BitmapDirectory {
    /// The bitmaps in their order.
    pub bitmaps: Vec<BitmapDirectoryEntry>,
}

impl BitmapDirectory {
    /// Parses a directory: `bytes` are the bytes that the extension tells of, all of them.
    ///
    /// # Errors
    ///
    /// `Corrupt` if there are more or fewer bitmaps than the extension says, or two of the same name; as
    /// [`BitmapDirectoryEntry::parse`].
    pub fn parse(bytes: &[u8], extension: &BitmapsExtension, geometry: &Geometry) -> Result<Self> {
        let at = extension.directory_offset;
        let count = u64::from(extension.count);
        let corrupt =
            |kind| Error::from(Corrupt::new(kind, Structure::BitmapDirectory).at(at.get()));
        let mut bitmaps = Vec::new();
        let mut rest = bytes;
        while !rest.is_empty() {
            let index = bitmaps.len() as u64;
            if index == count {
                return Err(corrupt(CorruptKind::BitmapsMoreThanCount { count }));
            }
            let (bitmap, len) = BitmapDirectoryEntry::parse(rest, index, at, geometry)?;
            bitmaps.push(bitmap);
            rest = usize::try_from(len).ok().and_then(|len| rest.get(len..)).unwrap_or_default();
        }
        let found = bitmaps.len() as u64;
        if found != count {
            return Err(corrupt(CorruptKind::BitmapsFewerThanCount { found, count }));
        }
        let mut names = BTreeSet::new();
        for (index, bitmap) in bitmaps.iter().enumerate() {
            if !names.insert(&bitmap.name) {
                let name = String::from_utf8_lossy(&bitmap.name).into_owned();
                let corrupt =
                    Corrupt::new(CorruptKind::BitmapDuplicate { name }, Structure::BitmapDirectory);
                return Err(corrupt.at(at.get()).entry(index as u64).into());
            }
        }
        Ok(Self { bitmaps })
    }

    /// Encodes the directory.
    ///
    /// # Errors
    ///
    /// As [`BitmapDirectoryEntry::encode`].
    pub fn encode(&self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        for bitmap in &self.bitmaps {
            bitmap.encode(&mut bytes)?;
        }
        Ok(bytes)
    }
}

/// An entry of a bitmap table: where a cluster of a bitmap's bits is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BitmapTableEntry {
    /// Nowhere; all its bits are 0.
    Zeros,
    /// Nowhere; all its bits are 1.
    Ones,
    /// In a host cluster.
    Data {
        /// The host cluster.
        host: HostOffset,
    },
}

impl BitmapTableEntry {
    /// Length in bytes of an entry.
    pub const LEN: u64 = 8;

    /// Parses an entry from its number. `index` and `table`, the host offset of the bitmap table, are for the message.
    ///
    /// # Errors
    ///
    /// `Corrupt` if reserved bits are set, bit 0 together with an offset, or the offset is not aligned to a cluster.
    pub fn parse(raw: u64, index: u64, table: HostOffset, geometry: &Geometry) -> Result<Self> {
        let corrupt = |kind| {
            Err(Corrupt::new(kind, Structure::BitmapTable).at(table.get()).entry(index).into())
        };
        if raw & RESERVED != 0 {
            return corrupt(CorruptKind::BitmapTableEntryReserved { bits: raw & RESERVED });
        }
        let offset = raw & OFFSET_MASK;
        if offset == 0 {
            return Ok(if raw & ONES == 0 { Self::Zeros } else { Self::Ones });
        }
        if raw & ONES != 0 {
            return corrupt(CorruptKind::BitmapTableEntryOnesWithOffset { offset });
        }
        if geometry.offset_in_cluster(offset) != 0 {
            let alignment = geometry.cluster_size();
            return corrupt(CorruptKind::BitmapTableEntryUnaligned { offset, alignment });
        }
        Ok(Self::Data { host: HostOffset::new(offset) })
    }

    /// Returns the entry's number.
    pub const fn raw(self) -> u64 {
        match self {
            Self::Zeros => 0,
            Self::Ones => ONES,
            Self::Data { host } => host.get() & OFFSET_MASK,
        }
    }
}
