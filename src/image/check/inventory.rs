//! Everything that the header leads to, but for what the L1 tables lead to: the tables' places, in a form whose size
//! is bounded, with what is wrong with the snapshot table and the bitmap directory.

use std::ops::Range;

use super::counts::{Cell, Shared};
use super::cover::{Segment, Weight, segments};
use super::layout::{Bitmaps, Layout};
use super::report::{CheckObserver, FindingKind, Structure};
use super::source::{Piece, Source, Stream};
use super::walk::{Pass, Tally, words};
use crate::error::Result;
use crate::format::limits::{
    BITMAP_DIRECTORY_LEN_BYTES_MAX, BITMAP_GRANULARITY_BITS, BITMAP_LEN_BYTES_MAX,
    BITMAP_NAME_LEN_MAX, BITMAP_TABLE_ENTRIES_MAX, L1_LEN_BYTES_MAX, SNAPSHOT_EXTRA_LEN_BYTES_MAX,
    SNAPSHOT_TABLE_LEN_BYTES_MAX, SNAPSHOTS_MAX,
};
use crate::storage::Storage;

/// Length of the fixed part of a snapshot table entry.
pub(super) const SNAPSHOT_LEN: usize = 40;
/// Extra data that version 3 demands: the large VM state size and the disk size.
pub(super) const SNAPSHOT_EXTRA_LEN_V3: u32 = 16;
/// How far into a snapshot table with too much extra data a repair looks, as in QEMU.
pub(super) const LONG_TABLE_LEN_MAX: u64 = 0x7fff_ffff;
/// Length of the fixed part of a bitmap directory entry.
const BITMAP_LEN: usize = 24;
/// Bits 9 to 55 of a bitmap table entry.
const BITMAP_OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
const BITMAP_RESERVED: u64 = 0xff00_0000_0000_01fe;
/// An entry without an offset stands for ones instead of zeros.
const BITMAP_ALL_ONES: u64 = 1;
/// The only type of bitmap.
const BITMAP_TYPE_DIRTY: u8 = 1;
/// Flags "in use", "auto" and "extra data compatible".
const BITMAP_FLAGS: u32 = 7;
const BITMAP_FLAG_IN_USE: u32 = 1;

/// The places of the tables.
pub(super) struct Inventory {
    /// What belongs to one table and nothing else.
    regions: Vec<(Structure, Range<u64>)>,
    /// Clusters of tables of which there can be very many: snapshots' L1 tables, bitmaps' tables.
    clusters: Vec<(Structure, Segment)>,
    /// The L1 tables, active and of snapshots.
    pub(super) l1: Vec<Segment>,
    /// The bitmaps' tables.
    bitmap_tables: Vec<Segment>,
    /// Clusters of what is read as far as the file has it, and not counted because it ends behind it.
    pub(super) uncounted: Vec<Range<u64>>,
}

/// Collects ranges, and reports those that the file does not have.
struct Collector<'c, 't, O> {
    layout: &'c Layout,
    tally: &'c mut Tally<'t, O>,
    /// Clusters of what ends behind the file, as far as the file has them.
    uncounted: Vec<(Range<u64>, Weight)>,
}

impl<O: CheckObserver> Collector<'_, '_, O> {
    /// Whether a range of the file can be counted.
    fn is_counted(&mut self, structure: Structure, range: &Range<u64>) -> bool {
        if range.is_empty() {
            return false;
        }
        let (offset, len) = (range.start, range.end - range.start);
        if self.layout.is_past_end(offset, len) {
            self.tally.found(FindingKind::PastEnd { offset, len }, structure, offset, 1);
            let there =
                self.layout.clusters_of(offset, self.layout.file_len.saturating_sub(offset));
            if !there.is_empty() {
                self.uncounted.push((there, Weight::OTHER));
            }
            return false;
        }
        let missing = self.layout.missing(range);
        // The first cluster may be cut short: the header ends before.
        if missing > 0 && structure != Structure::Header {
            self.tally.found(FindingKind::CutShort { missing }, structure, offset, 1);
        }
        true
    }

    fn broken_snapshots(&mut self, at: u64, reason: String) {
        let kind = FindingKind::SnapshotTableBroken { reason };
        self.tally.found(kind, Structure::SnapshotTable, at, 1);
    }

    fn broken_bitmaps(&mut self, at: u64, reason: String) {
        let kind = FindingKind::BitmapDirectoryBroken { reason };
        self.tally.found(kind, Structure::BitmapDirectory, at, 1);
    }
}

impl Inventory {
    /// Reads the snapshot table and the bitmap directory.
    ///
    /// # Errors
    /// The storage's.
    pub(super) async fn load<S: Storage, O: CheckObserver>(
        layout: &Layout,
        source: &Source<'_, S>,
        tally: &mut Tally<'_, O>,
    ) -> Result<Self> {
        let mut collector = Collector { layout, tally, uncounted: Vec::new() };
        let mut regions = Vec::new();
        let mut add = |collector: &mut Collector<'_, '_, O>, structure, range: &Range<u64>| {
            if collector.is_counted(structure, range) {
                regions.push((structure, range.clone()));
            }
        };
        add(&mut collector, Structure::Header, &(0..layout.cluster_size));
        add(&mut collector, Structure::L1Table, &layout.l1_table);
        let (table, snapshots) = load_snapshots(&mut collector, source).await?;
        add(&mut collector, Structure::SnapshotTable, &table);
        add(&mut collector, Structure::RefcountTable, &layout.refcount_table);
        if let Some(range) = &layout.crypto_header {
            add(&mut collector, Structure::CryptoHeader, range);
        }
        let mut bitmaps = Vec::new();
        if let Some(extension) = &layout.bitmaps {
            add(&mut collector, Structure::BitmapDirectory, &extension.directory);
            bitmaps = load_bitmaps(&mut collector, source, extension).await?;
        }
        let mut l1 = vec![(layout.l1_table.clone(), Weight::ACTIVE)];
        l1.extend(snapshots.iter().map(|range| (range.clone(), Weight::OTHER)));
        let mut clusters = Vec::new();
        for (structure, ranges) in
            [(Structure::SnapshotL1Table, &snapshots), (Structure::BitmapTable, &bitmaps)]
        {
            let counted: Vec<_> = ranges
                .iter()
                .filter(|range| collector.is_counted(structure, range))
                .map(|range| {
                    (layout.clusters_of(range.start, range.end - range.start), Weight::OTHER)
                })
                .collect();
            clusters.extend(segments(&counted).into_iter().map(|segment| (structure, segment)));
        }
        let tables: Vec<_> = bitmaps.into_iter().map(|range| (range, Weight::OTHER)).collect();
        Ok(Self {
            regions,
            clusters,
            l1: segments(&l1),
            bitmap_tables: segments(&tables),
            uncounted: segments(&collector.uncounted)
                .into_iter()
                .map(|segment| segment.range)
                .collect(),
        })
    }

    /// Whether a cluster is read as a part of a table that is not counted.
    pub(super) fn reads_uncounted(&self, cluster: u64) -> bool {
        let before = self.uncounted.partition_point(|range| range.end <= cluster);
        self.uncounted.get(before).is_some_and(|range| range.contains(&cluster))
    }
}

impl<C: Cell, O: CheckObserver> Pass<'_, '_, C, O> {
    /// Counts everything of the inventory, as metadata that nothing may share.
    ///
    /// # Errors
    /// The storage's.
    pub(super) async fn count_inventory<S: Storage>(
        &mut self,
        source: &Source<'_, S>,
        inventory: &Inventory,
    ) -> Result<()> {
        for (structure, range) in &inventory.regions {
            let clusters = self.layout.clusters_of(range.start, range.end - range.start);
            let by = Shared { structure: *structure, offset: range.start };
            for cluster in self.counts.within(&clusters) {
                self.counts.mark(cluster, by);
                self.counts.add(cluster, 1);
            }
        }
        for (structure, segment) in &inventory.clusters {
            let offset = segment.base << self.layout.cluster_bits;
            let by = Shared { structure: *structure, offset };
            for cluster in self.counts.within(&segment.range) {
                self.counts.mark(cluster, by);
                if segment.weight.total > 1 {
                    self.counts.mark(cluster, by);
                }
                self.counts.add(cluster, segment.weight.total);
            }
        }
        let pieces = inventory
            .bitmap_tables
            .iter()
            .map(|segment| Piece { range: segment.range.clone(), what: segment.clone() });
        source
            .each(pieces, |at, bytes, segment| {
                for (place, entry) in (at..).step_by(8).zip(words(bytes)) {
                    if entry != 0 {
                        self.bitmap_entry(place, entry, segment);
                    }
                }
            })
            .await
    }

    fn bitmap_entry(&mut self, place: u64, entry: u64, segment: &Segment) {
        let (offset, times) = (entry & BITMAP_OFFSET_MASK, segment.weight.total);
        let table = Structure::BitmapTable;
        let invalid = entry & BITMAP_RESERVED != 0
            || (offset != 0 && (entry & BITMAP_ALL_ONES != 0 || !self.layout.is_aligned(offset)));
        if invalid {
            if self.first {
                let index = (place - segment.base) / 8;
                self.tally.found(FindingKind::BitmapEntry { index, entry }, table, place, times);
            }
            return;
        }
        if offset == 0 {
            return;
        }
        let len = self.layout.cluster_size;
        if self.is_past_end(offset, len, table, place, times) {
            return;
        }
        for cluster in self.layout.clusters_of(offset, len) {
            self.counts.mark(cluster, Shared { structure: Structure::BitmapData, offset });
            self.counts.add(cluster, times);
        }
    }
}

/// Reads the snapshot table: its range, and the L1 tables that its snapshots have.
async fn load_snapshots<S: Storage, O: CheckObserver>(
    collector: &mut Collector<'_, '_, O>,
    source: &Source<'_, S>,
) -> Result<(Range<u64>, Vec<Range<u64>>)> {
    let layout = collector.layout;
    let start = layout.snapshot_table_offset;
    let nothing = (start..start, Vec::new());
    let count = layout.snapshots;
    if count == 0 {
        return Ok(nothing);
    }
    if count > SNAPSHOTS_MAX {
        let reason = format!("{count} snapshots exceed the limit of {SNAPSHOTS_MAX}");
        collector.broken_snapshots(start, reason);
        return Ok(nothing);
    }
    if !layout.is_aligned(start) {
        let reason = format!("its offset {start:#x} is not aligned to {:#x}", layout.cluster_size);
        collector.broken_snapshots(start, reason);
        return Ok(nothing);
    }
    if layout.data_file {
        let kind = FindingKind::SnapshotsWithDataFile { count };
        collector.tally.found(kind, Structure::SnapshotTable, start, 1);
    }
    let mut tables = Vec::new();
    let len_max = if layout.long_extra { LONG_TABLE_LEN_MAX } else { SNAPSHOT_TABLE_LEN_BYTES_MAX };
    let mut stream = Stream::new(source, start..start.saturating_add(len_max));
    let mut end = start;
    for index in 0..count {
        stream.skip(end.next_multiple_of(8) - stream.offset());
        let at = stream.offset();
        let header = stream.peek(SNAPSHOT_LEN as u64).await?;
        let Some(fields) = header.first_chunk::<SNAPSHOT_LEN>().copied() else {
            let reason = format!(
                "entry {index} at {at:#x} is missing: the file ends at {:#x}",
                layout.file_len
            );
            collector.broken_snapshots(at, reason);
            break;
        };
        let extra_len = be32(&fields, 36);
        if extra_len > SNAPSHOT_EXTRA_LEN_BYTES_MAX && !layout.long_extra {
            let reason = format!(
                "Too much extra metadata in snapshot table entry {index}: {extra_len} bytes exceed the limit of \
                 {SNAPSHOT_EXTRA_LEN_BYTES_MAX}"
            );
            collector.broken_snapshots(at, reason);
            break;
        }
        let (id_len, name_len) = (be16(&fields, 12), be16(&fields, 14));
        let names = SNAPSHOT_LEN as u64 + u64::from(extra_len);
        let len = names + u64::from(id_len) + u64::from(name_len);
        end = at + len;
        stream.skip(names);
        let entry = stream.peek(len - names).await?;
        // Without a name nothing is read behind the extra data.
        if (entry.len() as u64) < len - names || end > layout.file_len {
            let reason = format!(
                "entry {index} at {at:#x} ends at {end:#x}, behind the end of the file at {:#x}",
                layout.file_len
            );
            collector.broken_snapshots(at, reason);
            break;
        }
        let (id, name) = entry.split_at(usize::from(id_len).min(entry.len()));
        let table = Structure::SnapshotTable;
        // A repair has looked at that before.
        if layout.version_3 && extra_len < SNAPSHOT_EXTRA_LEN_V3 && !layout.long_extra {
            collector.tally.found(FindingKind::SnapshotIncomplete { index }, table, at, 1);
        }
        let (offset, entries) = (be64(&fields, 0), be32(&fields, 8));
        let id = String::from_utf8_lossy(id).into_owned();
        let name = String::from_utf8_lossy(name).into_owned();
        let l1_len = u64::from(entries) * 8;
        if !layout.is_aligned(offset) {
            let kind = FindingKind::SnapshotL1Unaligned { id, name, offset };
            collector.tally.found(kind, table, at, 1);
        } else if l1_len > L1_LEN_BYTES_MAX {
            let kind = FindingKind::SnapshotL1TooLarge { id, name, entries };
            collector.tally.found(kind, table, at, 1);
        } else {
            tables.push(offset..offset.saturating_add(l1_len));
        }
        if end - start > len_max {
            let reason = format!("it exceeds the limit of {SNAPSHOT_TABLE_LEN_BYTES_MAX} bytes");
            collector.broken_snapshots(at, reason);
            break;
        }
    }
    Ok((start..end, tables))
}

/// Reads the bitmap directory: the tables of its bitmaps.
async fn load_bitmaps<S: Storage, O: CheckObserver>(
    collector: &mut Collector<'_, '_, O>,
    source: &Source<'_, S>,
    extension: &Bitmaps,
) -> Result<Vec<Range<u64>>> {
    let layout = collector.layout;
    let Range { start, end } = extension.directory;
    let mut tables = Vec::new();
    if end - start > BITMAP_DIRECTORY_LEN_BYTES_MAX || layout.missing(&(start..end)) > 0 {
        let reason = format!("{} bytes at {start:#x} are too many", end - start);
        collector.broken_bitmaps(start, reason);
        return Ok(tables);
    }
    let mut stream = Stream::new(source, start..end);
    let mut index = 0;
    while stream.offset() < end {
        let at = stream.offset();
        let fields = stream.peek(BITMAP_LEN as u64).await?.first_chunk::<BITMAP_LEN>();
        let Some(fields) = fields.copied() else {
            collector.broken_bitmaps(at, format!("entry {index} at {at:#x} is cut short"));
            break;
        };
        let (name_len, extra_len) = (be16(&fields, 18), be32(&fields, 20));
        let len =
            (BITMAP_LEN as u64 + u64::from(name_len) + u64::from(extra_len)).next_multiple_of(8);
        let reason = if index == extension.count {
            Some(format!("it has more than the {} bitmaps of the header", extension.count))
        } else if len > end - at {
            Some(format!("entry {index} at {at:#x} is cut short"))
        } else {
            bitmap_fault(layout, &fields).map(|fault| format!("bitmap {index} at {at:#x}: {fault}"))
        };
        if let Some(reason) = reason {
            collector.broken_bitmaps(at, reason);
            return Ok(tables);
        }
        let table = be64(&fields, 0);
        tables.push(table..table.saturating_add(u64::from(be32(&fields, 8)) * 8));
        stream.skip(len);
        index += 1;
    }
    if index < extension.count {
        let reason = format!("it has {index} bitmaps instead of {}", extension.count);
        collector.broken_bitmaps(start, reason);
    }
    Ok(tables)
}

/// What is wrong with an entry of the bitmap directory (qcow2-bitmap.c:check_dir_entry). Extra data is not, by the
/// specification, though QEMU does not open an image that has some.
fn bitmap_fault(layout: &Layout, fields: &[u8; BITMAP_LEN]) -> Option<String> {
    let (table, entries) = (be64(fields, 0), be32(fields, 8));
    let flags = be32(fields, 12);
    let (kind, granularity) = (fields[16], fields[17]);
    let name_len = be16(fields, 18);
    let len = u64::from(entries).saturating_mul(layout.cluster_size);
    let fault = if kind != BITMAP_TYPE_DIRTY {
        format!("type {kind} is not known")
    } else if !BITMAP_GRANULARITY_BITS.contains(&granularity) {
        format!("granularity_bits {granularity} is not in {BITMAP_GRANULARITY_BITS:?}")
    } else if flags & !BITMAP_FLAGS != 0 {
        format!("flags {flags:#x} are reserved")
    } else if name_len > BITMAP_NAME_LEN_MAX {
        format!("name of {name_len} bytes exceeds the limit of {BITMAP_NAME_LEN_MAX}")
    } else if table == 0 || !layout.is_aligned(table) {
        format!("table offset {table:#x} is not aligned to {:#x}", layout.cluster_size)
    } else if entries == 0 || entries > BITMAP_TABLE_ENTRIES_MAX || len > BITMAP_LEN_BYTES_MAX {
        format!("table of {entries} entries is out of bounds")
    } else if flags & BITMAP_FLAG_IN_USE == 0
        && u128::from(layout.virtual_size) > (u128::from(len) * 8) << granularity
    {
        // One that is in use may be for a disk of another size.
        format!("table of {entries} entries is too small for the virtual disk")
    } else {
        return None;
    };
    Some(fault)
}

fn be16<const N: usize>(bytes: &[u8; N], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn be32<const N: usize>(bytes: &[u8; N], at: usize) -> u32 {
    (u32::from(be16(bytes, at)) << 16) | u32::from(be16(bytes, at + 2))
}

fn be64<const N: usize>(bytes: &[u8; N], at: usize) -> u64 {
    (u64::from(be32(bytes, at)) << 32) | u64::from(be32(bytes, at + 4))
}
