//! FAT12, FAT16 and FAT32, with long names.
//!
//! Read by hand: the readers that exist follow a chain of clusters that loops, and are no longer kept. Chains are followed
//! through the cache and never further than the file or the volume is long.
//!
//! | offset | size | field of the boot sector |
//! |---|---|---|
//! | 11 | 2 | bytes in a sector |
//! | 13 | 1 | sectors in a cluster |
//! | 14 | 2 | reserved sectors |
//! | 16 | 1 | number of FATs |
//! | 17 | 2 | entries of the root folder (FAT12, FAT16) |
//! | 19 | 2 | sectors, or 0 for the field at 32 |
//! | 21 | 1 | medium |
//! | 22 | 2 | sectors in a FAT (FAT12, FAT16) |
//! | 32 | 4 | sectors |
//! | 36 | 4 | sectors in a FAT (FAT32) |
//! | 44 | 4 | first cluster of the root folder (FAT32) |
//! | 39, 67 | 4 | serial number (FAT12 and FAT16, FAT32) |

use std::cell::RefCell;

use super::blocks::Blocks;
use super::{ENTRIES_MAX, Entry, FileKind, Node, days_before_epoch};
use crate::error::{Error, Result};
use crate::inspect::ReadAt;
use crate::inspect::little_endian::{u16_at, u32_at};

const NAME: &str = "FAT file system";
const ENTRY_BYTES: usize = 32;
/// The longest folder, in bytes: the specification's limit of 65,536 entries.
const FOLDER_BYTES_MAX: u64 = 65_536 * ENTRY_BYTES as u64;
/// The entries that a long name may need.
const LONG_NAME_PARTS_MAX: usize = 20;

const ATTRIBUTE_READ_ONLY: u8 = 0x01;
const ATTRIBUTE_VOLUME_LABEL: u8 = 0x08;
const ATTRIBUTE_FOLDER: u8 = 0x10;
const ATTRIBUTE_LONG_NAME: u8 = 0x0f;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Width {
    Fat12,
    Fat16,
    Fat32,
}

/// Where a file's bytes begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    /// The root folder of FAT12 and FAT16, which lies outside of the clusters.
    FixedRoot,
    /// The first cluster of a chain; less than 2 for no bytes at all.
    Cluster(u32),
}

/// A mounted file system.
pub(super) struct Fat {
    width: Width,
    cluster_bytes: u64,
    /// Where the first FAT lies, in bytes.
    fat_offset: u64,
    /// The root folder of FAT12 and FAT16: where it lies and how long it is, in bytes.
    fixed_root: (u64, u64),
    /// Where cluster 2 lies, in bytes.
    data_offset: u64,
    /// The clusters are those from 2 to below this.
    clusters_end: u32,
    root: Start,
    /// Its serial number as tools print it.
    pub(super) serial: String,
    /// The chain that was followed last, from its first cluster on.
    chain: RefCell<Vec<u32>>,
}

impl Fat {
    /// Mounts the volume, if its boot sector describes a FAT file system that is possible.
    pub(super) async fn open<R: ReadAt>(blocks: &Blocks<R>) -> Result<Option<Self>> {
        let mut sector = [0; 512];
        if blocks.len() < 512 {
            return Ok(None);
        }
        blocks.read(&mut sector, 0).await?;
        Ok(Self::parse(&sector, blocks.len()))
    }

    fn parse(sector: &[u8; 512], len: u64) -> Option<Self> {
        let half = |at: usize| u64::from(u16_at(sector, at));
        let word = |at: usize| u64::from(u32_at(sector, at));
        let either = |short: u64, long: u64| if short != 0 { short } else { long };

        let (sector_bytes, cluster_sectors) = (half(11), u64::from(sector[13]));
        let (reserved, fats, root_entries) = (half(14), u64::from(sector[16]), half(17));
        let jumps = sector[0] == 0xeb || sector[0] == 0xe9;
        let sectors = either(half(19), word(32));
        let fat_sectors = either(half(22), word(36));
        if !jumps
            || !matches!(sector_bytes, 512 | 1024 | 2048 | 4096)
            || !cluster_sectors.is_power_of_two()
            || reserved == 0
            || !(1..=2).contains(&fats)
            || sector[21] < 0xf0
            || sectors == 0
            || fat_sectors == 0
        {
            return None;
        }
        let fat_offset = reserved * sector_bytes;
        let root_offset = fat_offset + fats * fat_sectors * sector_bytes;
        let root_bytes = (root_entries * ENTRY_BYTES as u64).next_multiple_of(sector_bytes);
        let data_offset = root_offset + root_bytes;
        let cluster_bytes = sector_bytes * cluster_sectors;
        let clusters = (sectors * sector_bytes).checked_sub(data_offset)? / cluster_bytes;
        let width = match clusters {
            0..4085 => Width::Fat12,
            4085..65_525 => Width::Fat16,
            _ => Width::Fat32,
        };
        // Only FAT32 leaves the short field empty, and only it has no fixed root folder.
        if (width == Width::Fat32) != (half(22) == 0) || (root_entries == 0) != (half(22) == 0) {
            return None;
        }
        let fat_bits = match width {
            Width::Fat12 => 12,
            Width::Fat16 => 16,
            Width::Fat32 => 32,
        };
        // A FAT may be too short for the volume, and the volume for the disk: what is not there is not followed.
        let there = len.saturating_sub(data_offset).div_ceil(cluster_bytes);
        let known = (fat_sectors * sector_bytes * 8 / fat_bits).saturating_sub(2);
        let clusters = clusters.min(there).min(known).min(0x0fff_fff5);
        let serial = word(if width == Width::Fat32 { 67 } else { 39 });
        Some(Self {
            width,
            cluster_bytes,
            fat_offset,
            fixed_root: (root_offset, root_bytes),
            data_offset,
            // OK to unwrap: less than 2^28.
            clusters_end: u32::try_from(clusters).unwrap_or(0) + 2,
            root: match width {
                // OK to unwrap: 32 bits were read.
                Width::Fat32 => Start::Cluster(u32::try_from(word(44)).unwrap_or(0)),
                Width::Fat12 | Width::Fat16 => Start::FixedRoot,
            },
            serial: format!("{:04x}-{:04x}", serial >> 16, serial & 0xffff),
            chain: RefCell::new(Vec::new()),
        })
    }

    /// Its name: `fat12`, `fat16` or `fat32`.
    pub(super) fn name(&self) -> &'static str {
        match self.width {
            Width::Fat12 => "fat12",
            Width::Fat16 => "fat16",
            Width::Fat32 => "fat32",
        }
    }

    pub(super) fn root(&self) -> Entry {
        Entry::new(Vec::new(), FileKind::Folder, 0, Node::Fat(self.root))
    }

    /// The label, which is an entry of the root folder.
    pub(super) async fn label<R: ReadAt>(&self, blocks: &Blocks<R>) -> Result<Vec<u8>> {
        let folder = self.folder(blocks, self.root).await?;
        let (entries, _) = folder.as_chunks::<ENTRY_BYTES>();
        let label = entries
            .iter()
            .take_while(|entry| entry[0] != 0)
            .find(|entry| entry[0] != 0xe5 && entry[11] & 0x3f == ATTRIBUTE_VOLUME_LABEL);
        Ok(label.map_or_else(Vec::new, |entry| entry[..11].trim_ascii_end().to_vec()))
    }

    /// The entries of a folder, without itself and its parent.
    pub(super) async fn read_dir<R: ReadAt>(
        &self,
        blocks: &Blocks<R>,
        start: Start,
    ) -> Result<Vec<Entry>> {
        let folder = self.folder(blocks, start).await?;
        let mut long = LongName::default();
        let mut entries = Vec::new();
        let (records, _) = folder.as_chunks::<ENTRY_BYTES>();
        for record in records {
            match record[0] {
                0 => break,
                0xe5 => long = LongName::default(),
                _ if record[11] & 0x3f == ATTRIBUTE_LONG_NAME => long.push(record),
                _ if record[11] & ATTRIBUTE_VOLUME_LABEL != 0 => long = LongName::default(),
                _ => {
                    let name = std::mem::take(&mut long)
                        .finish(record)
                        .unwrap_or_else(|| short_name(record));
                    if record[0] != b'.' {
                        entries.push(self.entry(name, record));
                    }
                }
            }
            if entries.len() > ENTRIES_MAX {
                break;
            }
        }
        Ok(entries)
    }

    fn entry(&self, name: Vec<u8>, record: &[u8; ENTRY_BYTES]) -> Entry {
        let half = |at: usize| u16_at(record, at);
        let high = if self.width == Width::Fat32 { u32::from(half(20)) << 16 } else { 0 };
        let start = Start::Cluster(high | u32::from(half(26)));
        let is_folder = record[11] & ATTRIBUTE_FOLDER != 0;
        let len = u32_at(record, 28);
        let kind = if is_folder { FileKind::Folder } else { FileKind::File };
        let mut mode = if is_folder { 0o755 } else { 0o644 };
        if record[11] & ATTRIBUTE_READ_ONLY != 0 {
            mode &= 0o555;
        }
        Entry {
            mode: Some(mode),
            modified: time(half(24), half(22)),
            ..Entry::new(name, kind, if is_folder { 0 } else { len.into() }, Node::Fat(start))
        }
    }

    /// The bytes of a folder.
    async fn folder<R: ReadAt>(&self, blocks: &Blocks<R>, start: Start) -> Result<Vec<u8>> {
        let (mut cluster, mut bytes) = match start {
            Start::FixedRoot => {
                let (offset, len) = self.fixed_root;
                // OK to unwrap: a count of 16 bits times 32.
                let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
                blocks.read(&mut bytes, offset).await?;
                return Ok(bytes);
            }
            Start::Cluster(cluster) => (Some(cluster), Vec::new()),
        };
        while let Some(number) = cluster {
            let offset = self.cluster_offset(number)?;
            let len = self.cluster_bytes.min(blocks.len().saturating_sub(offset));
            if bytes.len() as u64 + len > FOLDER_BYTES_MAX {
                // The end of what a folder may be, or a loop: what was found is shown.
                break;
            }
            let from = bytes.len();
            // OK to unwrap: a cluster has at most 512 KiB.
            bytes.resize(from + usize::try_from(len).unwrap_or(0), 0);
            blocks.read(&mut bytes[from..], offset).await?;
            if bytes[from..].as_chunks::<ENTRY_BYTES>().0.iter().any(|record| record[0] == 0) {
                break;
            }
            cluster = self.next(blocks, number).await?;
        }
        Ok(bytes)
    }

    /// Fills `buf` from `offset` of a file, which must be within it.
    pub(super) async fn read<R: ReadAt>(
        &self,
        blocks: &Blocks<R>,
        start: Start,
        offset: u64,
        buf: &mut [u8],
    ) -> Result<()> {
        let Start::Cluster(first) = start else {
            return Err(Error::volume(NAME, 0, "a file lies in the root folder's place"));
        };
        let mut at = offset;
        let mut rest = buf;
        while !rest.is_empty() {
            let (mut number, skip) = (at / self.cluster_bytes, at % self.cluster_bytes);
            let host = self.cluster_offset(self.cluster(blocks, first, number).await?)?;
            // What lies one behind the other is read at once.
            let mut run = self.cluster_bytes;
            while run - skip < rest.len() as u64 {
                number += 1;
                let next = self.cluster(blocks, first, number).await?;
                if self.cluster_offset(next)? != host + run {
                    break;
                }
                run += self.cluster_bytes;
            }
            // OK to unwrap: at most what is left of the buffer.
            let len = usize::try_from((run - skip).min(rest.len() as u64)).unwrap_or(0);
            let (now, later) = rest.split_at_mut(len);
            blocks.read_through(now, host + skip).await?;
            rest = later;
            at += len as u64;
        }
        Ok(())
    }

    /// Cluster `number` of the file whose first one is `first`.
    async fn cluster<R: ReadAt>(&self, blocks: &Blocks<R>, first: u32, number: u64) -> Result<u32> {
        let ended =
            || Error::volume(NAME, 0, format!("the chain of cluster {first} ends before the file"));
        // OK to unwrap: a file has less than 2^32 bytes.
        let number = usize::try_from(number).map_err(|_| ended())?;
        let mut chain = self.chain.take();
        if chain.first() != Some(&first) {
            chain = vec![first];
        }
        // Cancel: the chain is lost, and followed anew.
        while chain.len() <= number {
            // OK to unwrap: it begins with one.
            let last = chain.last().copied().unwrap_or(first);
            let next = self.next(blocks, last).await?.ok_or_else(ended)?;
            chain.push(next);
        }
        let cluster = chain[number];
        self.chain.replace(chain);
        Ok(cluster)
    }

    /// The cluster behind `cluster`, or `None` at the end of the chain.
    async fn next<R: ReadAt>(&self, blocks: &Blocks<R>, cluster: u32) -> Result<Option<u32>> {
        let number = u64::from(cluster);
        let (offset, len) = match self.width {
            Width::Fat12 => (number + number / 2, 2),
            Width::Fat16 => (number * 2, 2),
            Width::Fat32 => (number * 4, 4),
        };
        let mut bytes = [0; 4];
        let offset = self.fat_offset + offset;
        blocks.read(&mut bytes[..len], offset).await?;
        let word = u32::from_le_bytes(bytes);
        let (next, end) = match self.width {
            Width::Fat12 if cluster % 2 == 1 => (word >> 4, 0xff8),
            Width::Fat12 => (word & 0xfff, 0xff8),
            Width::Fat16 => (word, 0xfff8),
            Width::Fat32 => (word & 0x0fff_ffff, 0x0fff_fff8),
        };
        if next >= end {
            return Ok(None);
        }
        if !(2..self.clusters_end).contains(&next) {
            let reason =
                format!("the entry of cluster {cluster} is {next:#x}, which is no cluster");
            return Err(Error::volume("FAT", offset, reason));
        }
        Ok(Some(next))
    }

    fn cluster_offset(&self, cluster: u32) -> Result<u64> {
        if !(2..self.clusters_end).contains(&cluster) {
            return Err(Error::volume(NAME, 0, format!("{cluster:#x} is no cluster")));
        }
        Ok(self.data_offset + u64::from(cluster - 2) * self.cluster_bytes)
    }
}

/// The parts of a long name, which precede its entry, the last part first.
#[derive(Debug, Default)]
struct LongName {
    parts: Vec<[u16; 13]>,
    /// The number of the part that must follow.
    next: u8,
    checksum: u8,
}

impl LongName {
    fn push(&mut self, record: &[u8; ENTRY_BYTES]) {
        let order = record[0];
        let number = order & 0x1f;
        if order & 0x40 != 0 {
            *self = Self { parts: Vec::new(), next: number, checksum: record[13] };
        }
        if number == 0
            || number != self.next
            || usize::from(number) > LONG_NAME_PARTS_MAX
            || record[13] != self.checksum
        {
            *self = Self::default();
            return;
        }
        let mut part = [0; 13];
        let places = (1..11).step_by(2).chain((14..26).step_by(2)).chain((28..32).step_by(2));
        for (unit, at) in part.iter_mut().zip(places) {
            *unit = u16_at(record, at);
        }
        self.parts.push(part);
        self.next = number - 1;
    }

    /// The name, if it is whole and belongs to `record`.
    fn finish(self, record: &[u8; ENTRY_BYTES]) -> Option<Vec<u8>> {
        let sum =
            record[..11].iter().fold(0u8, |sum, byte| sum.rotate_right(1).wrapping_add(*byte));
        if self.parts.is_empty() || self.next != 0 || self.checksum != sum {
            return None;
        }
        let units: Vec<u16> =
            self.parts.iter().rev().flatten().copied().take_while(|unit| *unit != 0).collect();
        Some(String::from_utf16_lossy(&units).into_bytes())
    }
}

/// The short name of an entry, in lower case where its flags say so.
fn short_name(record: &[u8; ENTRY_BYTES]) -> Vec<u8> {
    const BASE_IS_LOWER: u8 = 0x08;
    const EXTENSION_IS_LOWER: u8 = 0x10;
    let part = |bytes: &[u8], lower: bool| {
        let text = bytes.trim_ascii_end();
        if lower { text.to_ascii_lowercase() } else { text.to_vec() }
    };
    let mut name = part(&record[..8], record[12] & BASE_IS_LOWER != 0);
    // 0xe5 marks an entry that is free; a name that begins with it has 5 there.
    if name.first() == Some(&0x05) {
        name[0] = 0xe5;
    }
    let extension = part(&record[8..11], record[12] & EXTENSION_IS_LOWER != 0);
    if !extension.is_empty() {
        name.push(b'.');
        name.extend_from_slice(&extension);
    }
    name
}

/// Seconds since 1970 of a date and a time; FAT knows no zone, and they are taken as UTC.
fn time(date: u16, time: u16) -> Option<i64> {
    if date == 0 {
        return None;
    }
    let (year, month, day) = (1980 + i64::from(date >> 9), date >> 5 & 15, date & 31);
    let seconds =
        i64::from(time >> 11) * 3600 + i64::from(time >> 5 & 63) * 60 + i64::from(time & 31) * 2;
    Some(days_before_epoch(year, month.into(), day.into())? * 86_400 + seconds)
}
