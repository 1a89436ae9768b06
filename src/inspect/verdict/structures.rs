//! Where the header says that its tables are: outside of the file, on top of each other, larger than they need to be.

use std::ops::Range;

use super::{Findings, ReadAt, Severity, VerdictOptions, read_within, shown};
use crate::error::Result;
use crate::format::limits::SNAPSHOT_TABLE_LEN_BYTES_MAX;
use crate::format::{
    BitmapDirectory, BitmapFlags, Extension, Header, HostOffset, L1Entry, Parsed, Snapshot,
};

/// As many tables are held against each other; the check does it for all.
const TABLES_MAX: usize = 256 << 10;
/// More snapshots than this are suspicious.
const SNAPSHOTS_SUSPICIOUS: u32 = 1000;
/// A table that could be this many times shorter is suspicious, if it is longer than [`TABLE_LEN_SUSPICIOUS`].
const TABLE_EXCESS_SUSPICIOUS: u64 = 16;
const TABLE_LEN_SUSPICIOUS: u64 = 1 << 20;
const L1_SIZE: u64 = 36;
const REFCOUNT_TABLE_CLUSTERS: u64 = 56;
const NB_SNAPSHOTS: u64 = 60;
/// Bytes of a table that are read at once.
const READ_LEN: usize = 64 << 10;

/// A structure and where it is.
struct Place {
    structure: &'static str,
    range: Range<u64>,
}

/// Looks at the tables that the header leads to.
pub(super) async fn look<F: ReadAt>(
    file: &F,
    header: &Header,
    options: &VerdictOptions,
    found: &mut Findings,
) -> Result<()> {
    let cluster_size = header.geometry().cluster_size();
    let mut places = Vec::new();
    let mut place = |structure, offset: HostOffset, len: u64| {
        if len > 0 {
            let range = offset.get()..offset.get().saturating_add(len);
            places.push(Place { structure, range });
        }
    };
    place("header", HostOffset::new(0), cluster_size);
    place("L1 table", header.l1_table_offset, header.l1_table_len());
    place("refcount table", header.refcount_table_offset, header.refcount_table_len());
    if let Some(crypto) = header.crypto_header() {
        place("crypto header", crypto.offset, crypto.len);
    }
    if let Some(bitmaps) = header.bitmaps() {
        place("bitmap directory", bitmaps.directory_offset, bitmaps.directory_len);
    }
    let table = snapshots(file, header, options, found).await?;
    place("snapshot table", header.snapshot_table_offset, table.len);
    for (offset, len) in table.l1_tables {
        place("snapshot L1 table", offset, len);
    }
    excess(header, file.len(), found);
    bitmaps(file, header, found).await?;
    for (structure, offset, len) in [
        ("L2 table", header.l1_table_offset, header.l1_table_len()),
        ("refcount block", header.refcount_table_offset, header.refcount_table_len()),
    ] {
        tables(file, structure, offset.get(), len, cluster_size, &mut places).await?;
    }
    if places.len() >= TABLES_MAX {
        let text = format!("only the first {TABLES_MAX} tables were held against each other");
        found.add(Severity::Info, "tables-not-all-seen", text, "image", None);
    }
    overlaps(places, cluster_size, file.len(), found);
    Ok(())
}

/// What of the snapshot table is held against other tables.
#[derive(Default)]
struct Snapshots {
    /// Length of the table in bytes.
    len: u64,
    l1_tables: Vec<(HostOffset, u64)>,
}

async fn snapshots<F: ReadAt>(
    file: &F,
    header: &Header,
    options: &VerdictOptions,
    found: &mut Findings,
) -> Result<Snapshots> {
    let place = "snapshot table";
    let count = header.snapshot_count;
    let mut seen = Snapshots::default();
    if count == 0 {
        return Ok(seen);
    }
    let table = header.snapshot_table_offset;
    let text = format!("{count} internal snapshots");
    found.add(Severity::Info, "snapshots", text, place, Some(table.get()));
    if count > SNAPSHOTS_SUSPICIOUS {
        let text = format!("{count} snapshots take time and memory whenever the image is opened");
        found.add(Severity::Caution, "snapshots-many", text, "header", Some(NB_SNAPSHOTS));
    }
    let mut told = Vec::new();
    let (mut window, mut window_start) = (Vec::new(), 0_u64);
    for index in 0..u64::from(count) {
        let at = seen.len.next_multiple_of(8);
        let (snapshot, len) = loop {
            let skip = usize::try_from(at - window_start).unwrap_or(usize::MAX);
            let rest = window.get(skip..).unwrap_or_default();
            match Snapshot::parse(rest, index, table) {
                Ok(Parsed::Complete(parsed)) => break parsed,
                Ok(Parsed::Incomplete { len_min }) => {
                    let end = table.get().saturating_add(at + len_min);
                    if end > file.len() || at + len_min > SNAPSHOT_TABLE_LEN_BYTES_MAX {
                        let text =
                            format!("the table of {count} snapshots ends too far, at {end:#x}");
                        let offset = Some(table.get());
                        found.add(Severity::Danger, "table-past-end", text, place, offset);
                        return Ok(seen);
                    }
                    let len = usize::try_from(len_min).unwrap_or(usize::MAX).max(READ_LEN);
                    window = read_within(file, table.get() + at, len).await?;
                    window_start = at;
                }
                Err(error) => {
                    found.add_error(Severity::Danger, &error);
                    return Ok(seen);
                }
            }
        };
        seen.l1_tables.push((snapshot.l1_table_offset, snapshot.l1_table_len()));
        seen.len = at + len;
        for (severity, code, text) in suspicions(&snapshot, header, options) {
            // The first of each kind says enough.
            if !told.contains(&code) {
                told.push(code);
                found.add(severity, code, text, place, Some(table.get() + at));
            }
        }
    }
    Ok(seen)
}

/// What is to be said of one snapshot.
fn suspicions(
    snapshot: &Snapshot,
    header: &Header,
    options: &VerdictOptions,
) -> Vec<(Severity, &'static str, String)> {
    let mut suspicions = Vec::new();
    let name = || shown(&snapshot.name);
    if snapshot.vm_state_len > 0 {
        let text = format!(
            "snapshot \"{}\" has the state of a virtual machine, which runs when it is loaded",
            name()
        );
        suspicions.push((Severity::Caution, "snapshot-vm-state", text));
    }
    if let Some(size) = snapshot.disk_size.filter(|size| *size > header.size) {
        let over = options.virtual_size_max.is_some_and(|max| size > max);
        let severity = if over { Severity::Danger } else { Severity::Caution };
        let text =
            format!("snapshot \"{}\" has a disk of {size} bytes, larger than the image's", name());
        suspicions.push((severity, "snapshot-larger", text));
    }
    let odd = |name: &[u8]| name.iter().any(u8::is_ascii_control);
    if odd(&snapshot.name) || odd(&snapshot.id) {
        let text = format!("the name of snapshot \"{}\" has control characters", name());
        suspicions.push((Severity::Caution, "snapshot-name-control", text));
    }
    suspicions
}

/// Tables that claim more than they need.
fn excess(header: &Header, file_len: u64, found: &mut Findings) {
    let geometry = header.geometry();
    let excessive = |len: u64, needed: u64| {
        len > TABLE_LEN_SUSPICIOUS && len / TABLE_EXCESS_SUSPICIOUS > needed
    };
    let l1_len = header.l1_table_len();
    // The VM state of a snapshot lies behind the disk: guests' memories are smaller than 64 TiB.
    if excessive(l1_len, geometry.l1_entries_for(header.size) * L1Entry::LEN) {
        let text = format!("the L1 table of {l1_len} bytes is far larger than the disk needs");
        found.add(Severity::Caution, "l1-table-excessive", text, "header", Some(L1_SIZE));
    }
    let refcount_len = header.refcount_table_len();
    let blocks = geometry.clusters_for(file_len) / geometry.refcount_block_entries() + 1;
    if excessive(refcount_len, (blocks * 8).max(geometry.cluster_size())) {
        let text =
            format!("the refcount table of {refcount_len} bytes is far larger than the file needs");
        let offset = Some(REFCOUNT_TABLE_CLUSTERS);
        found.add(Severity::Caution, "refcount-table-excessive", text, "header", offset);
    }
}

async fn bitmaps<F: ReadAt>(file: &F, header: &Header, found: &mut Findings) -> Result<()> {
    let place = "bitmap directory";
    let Some(extension) = header.bitmaps() else {
        if header.extensions.iter().any(|e| matches!(e, Extension::Bitmaps(_))) {
            let text = "bitmaps are there and not to be relied on: the autoclear bit is clear";
            found.add(Severity::Info, "bitmaps-stale", text, "header extension", None);
        }
        return Ok(());
    };
    let offset = extension.directory_offset.get();
    let text = format!("{} persistent bitmaps", extension.count);
    found.add(Severity::Info, "bitmaps", text, place, Some(offset));
    let len = usize::try_from(extension.directory_len).unwrap_or(usize::MAX);
    let bytes = read_within(file, offset, len).await?;
    if bytes.len() < len {
        let text = format!("the file ends within the directory of {len} bytes");
        found.add(Severity::Danger, "table-past-end", text, place, Some(offset));
        return Ok(());
    }
    match BitmapDirectory::parse(&bytes, &extension, &header.geometry()) {
        Ok(directory) => {
            let in_use = |flags: BitmapFlags| flags.contains(BitmapFlags::IN_USE);
            if let Some(bitmap) = directory.bitmaps.iter().find(|bitmap| in_use(bitmap.flags)) {
                let text = format!(
                    "bitmap \"{}\" was in use when the image was last written: it is inconsistent",
                    shown(&bitmap.name)
                );
                found.add(Severity::Caution, "bitmap-in-use", text, place, Some(offset));
            }
        }
        Err(error) => found.add_error(Severity::Danger, &error),
    }
    Ok(())
}

/// Collects what the entries of a table point to.
async fn tables<F: ReadAt>(
    file: &F,
    structure: &'static str,
    offset: u64,
    len: u64,
    cluster_size: u64,
    places: &mut Vec<Place>,
) -> Result<()> {
    const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
    let end = offset.saturating_add(len).min(file.len());
    let mut at = offset;
    while at < end {
        let len = usize::try_from(end - at).unwrap_or(usize::MAX).min(READ_LEN);
        let bytes = read_within(file, at, len).await?;
        for entry in bytes.as_chunks::<8>().0 {
            let offset = u64::from_be_bytes(*entry) & OFFSET_MASK;
            if offset != 0 && places.len() < TABLES_MAX {
                places.push(Place { structure, range: offset..offset + cluster_size });
            }
        }
        at += len as u64;
    }
    Ok(())
}

/// Reports tables outside of the file, and the first that lies on another one.
fn overlaps(mut places: Vec<Place>, cluster_size: u64, file_len: u64, found: &mut Findings) {
    let clusters =
        |range: &Range<u64>| range.start / cluster_size..range.end.div_ceil(cluster_size);
    if let Some(place) = places.iter().find(|p| p.structure != "header" && p.range.end > file_len) {
        let text = format!(
            "the {} ends at {:#x}, and the file at {file_len:#x}",
            place.structure, place.range.end
        );
        found.add(
            Severity::Danger,
            "table-past-end",
            text,
            place.structure,
            Some(place.range.start),
        );
    }
    places.sort_by_key(|place| (place.range.start, place.range.end));
    let mut before: Option<&Place> = None;
    let mut count = 0_u64;
    let mut first = None;
    for place in &places {
        if let Some(before) = before
            && clusters(&place.range).start < clusters(&before.range).end
        {
            count += 1;
            first = first.or(Some((before, place)));
        }
        if before.is_none_or(|before| before.range.end < place.range.end) {
            before = Some(place);
        }
    }
    if let Some((a, b)) = first {
        let mut text = format!(
            "the {} at {:#x} and the {} at {:#x} overlap",
            a.structure, a.range.start, b.structure, b.range.start
        );
        if count > 1 {
            text += &format!(", and {} more", count - 1);
        }
        found.add(Severity::Danger, "metadata-overlap", text, b.structure, Some(b.range.start));
    }
}
