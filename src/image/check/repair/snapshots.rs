//! Mending the snapshot table: too many snapshots, entries with too little or too much extra data.
//!
//! QEMU's qcow2-snapshot.c: qcow2_check_read_snapshot_table, qcow2_check_fix_snapshot_table.

use std::ops::Range;

use super::refcounts::store_refcounts;
use super::{Target, fixed};
use crate::error::Result;
use crate::format::limits::{
    SNAPSHOT_EXTRA_LEN_BYTES_MAX, SNAPSHOT_TABLE_LEN_BYTES_MAX, SNAPSHOTS_MAX,
};
use crate::format::{HostOffset, Parsed, Snapshot};
use crate::image::check::inventory::{
    Inventory, LONG_TABLE_LEN_MAX, SNAPSHOT_EXTRA_LEN_V3, SNAPSHOT_LEN,
};
use crate::image::check::layout::Layout;
use crate::image::check::refcounts::{Memory, Refcounts, Run, refcount};
use crate::image::check::report::{CheckObserver, FindingKind, RepairStep, Structure};
use crate::image::check::source::{Source, Stream};
use crate::image::check::walk::Tally;
use crate::storage::Storage;

/// Offset in the header of the number of snapshots, and behind it of the snapshot table's offset.
const HEADER_SNAPSHOTS: u64 = 60;
/// Bytes of the new table that are written at once.
const WRITE_LEN: usize = 256 << 10;
/// No entry is longer: a length of 32 bits, two of 16 bits, and the fixed part.
const LONG_ENTRY_LEN_MAX: u64 = 1 << 33;
/// Clusters whose refcounts are looked at at once for free ones.
const PART_CLUSTERS: u64 = 64 << 10;

/// What is to be done to the snapshot table when the refcounts are right.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Entries that are mended by writing the table anew.
    pub(super) corruptions: u64,
    /// The old table.
    old: Range<u64>,
    /// Length of the new one in bytes.
    len: u64,
}

/// An entry as it stands.
struct Raw {
    extra_len: u32,
    /// With the extra data cut to the limit.
    snapshot: Snapshot,
    /// Its length on disk, without padding.
    len: u64,
}

/// Looks at the table, and drops snapshots that are too many; `None` if it cannot be read: a check says why.
///
/// # Errors
/// The storage's.
pub(super) async fn scan<S: Storage, O: CheckObserver>(
    layout: &Layout,
    source: &Source<'_, S>,
    target: &Target<'_, S>,
    tally: &mut Tally<'_, O>,
) -> Result<Option<Plan>> {
    let start = layout.snapshot_table_offset;
    let mut plan = Plan { old: start..start, ..Plan::default() };
    let mut count = layout.snapshots;
    let mut dropped = 0;
    if count == 0 {
        return Ok(Some(plan));
    }
    if !layout.is_aligned(start) {
        return Ok(None);
    }
    if count > SNAPSHOTS_MAX {
        dropped = count - SNAPSHOTS_MAX;
        count = SNAPSHOTS_MAX;
        tally.observer.step(&RepairStep::SnapshotsDropped { count: dropped });
    }
    let mut stream = Stream::new(source, start..start.saturating_add(2 * LONG_ENTRY_LEN_MAX));
    let mut cut_len: u64 = 0;
    let mut incomplete = Vec::new();
    for index in 0..count {
        stream.skip(plan.old.end.next_multiple_of(8) - stream.offset());
        let at = stream.offset();
        let Some(raw) = read(&mut stream, layout, index).await? else { return Ok(None) };
        if raw.extra_len > SNAPSHOT_EXTRA_LEN_BYTES_MAX {
            let max = SNAPSHOT_EXTRA_LEN_BYTES_MAX;
            let step = RepairStep::SnapshotExtraDropped { index, len: raw.extra_len, max };
            tally.observer.step(&step);
            plan.corruptions += 1;
        }
        let cut = u64::from(raw.extra_len.saturating_sub(SNAPSHOT_EXTRA_LEN_BYTES_MAX));
        cut_len = cut_len.next_multiple_of(8) + raw.len - cut;
        if cut_len > SNAPSHOT_TABLE_LEN_BYTES_MAX || at + raw.len - start > LONG_TABLE_LEN_MAX {
            let beyond = count - index;
            tally.observer.step(&RepairStep::SnapshotsBeyondTableDropped { count: beyond });
            dropped += beyond;
            count = index;
            break;
        }
        plan.old.end = at + raw.len;
        if layout.version_3 && raw.extra_len < SNAPSHOT_EXTRA_LEN_V3 {
            incomplete.push((index, at));
        }
        let mut entry = Vec::new();
        raw.snapshot.encode(&mut entry)?;
        plan.len += entry.len() as u64;
    }
    if dropped > 0 {
        // Cancel: what the snapshots had is leaked, and found by the check that follows.
        target.write(HEADER_SNAPSHOTS, &count.to_be_bytes()).await?;
        target.flush().await?;
        fixed(tally).corruptions_fixed += u64::from(dropped);
    }
    for (index, at) in incomplete {
        let (kind, table) = (FindingKind::SnapshotIncomplete { index }, Structure::SnapshotTable);
        tally.repaired(kind, table, at);
        // It counts when the new table is there.
        fixed(tally).corruptions_fixed -= 1;
        plan.corruptions += 1;
    }
    Ok(Some(plan))
}

/// Writes the mended table to the clusters `reserved` or to free ones, and switches to it. Says whether something else may use
/// the old one's clusters: then its copied flags must be looked at again.
///
/// # Errors
/// The storage's.
pub(super) async fn store<S: Storage, O: CheckObserver>(
    plan: &Plan,
    reserved: Option<Range<u64>>,
    inventory: &Inventory,
    refcounts: &Refcounts<'_, '_, S>,
    target: &Target<'_, S>,
    tally: &mut Tally<'_, O>,
) -> Result<bool> {
    let (layout, source) = (refcounts.layout, refcounts.source);
    if plan.len > SNAPSHOT_TABLE_LEN_BYTES_MAX {
        tally.observer.step(&RepairStep::SnapshotTableTooLong);
        tally.report.check_errors += 1;
        tally.report.corruptions += plan.corruptions;
        return Ok(false);
    }
    let clusters = match reserved {
        Some(clusters) => clusters,
        None => {
            let Some(clusters) = find_room(plan, inventory, refcounts).await? else {
                // There was room before refcounts were made right, and nothing has taken it.
                tally.report.check_errors += 1;
                return Ok(false);
            };
            // Cancel: until the header refers to the new table, it is a leak.
            let edits: Vec<_> = clusters.clone().map(|cluster| (cluster, 1)).collect();
            store_refcounts(refcounts, target, &edits).await?;
            clusters
        }
    };
    let offset = clusters.start << layout.cluster_bits;
    let mut stream = Stream::new(source, plan.old.start..plan.old.end);
    let mut end = plan.old.start;
    let (mut at, mut bytes) = (offset, Vec::new());
    for index in 0..layout.snapshots {
        stream.skip(end.next_multiple_of(8) - stream.offset());
        let start = stream.offset();
        let Some(raw) = read(&mut stream, layout, index).await? else { return Ok(false) };
        end = start + raw.len;
        raw.snapshot.encode(&mut bytes)?;
        if bytes.len() >= WRITE_LEN {
            target.write(at, &bytes).await?;
            at += bytes.len() as u64;
            bytes.clear();
        }
    }
    let whole = (clusters.end << layout.cluster_bits) - at;
    bytes.resize(bytes.len().max(usize::try_from(whole).unwrap_or(0)), 0);
    target.write(at, &bytes).await?;
    target.flush().await?;
    let mut header = [0; 12];
    header[..4].copy_from_slice(&layout.snapshots.to_be_bytes());
    header[4..].copy_from_slice(&offset.to_be_bytes());
    target.write(HEADER_SNAPSHOTS, &header).await?;
    target.flush().await?;
    // Cancel: the old table is a leak from here on.
    let old = layout.clusters_of(plan.old.start, plan.old.end - plan.old.start);
    let mut memory = Memory::default();
    let mut edits = Vec::new();
    for cluster in old {
        if let Some(refcount) = refcounts.of(cluster, &mut memory).await?
            && refcount > 0
        {
            edits.push((cluster, refcount - 1));
        }
    }
    store_refcounts(refcounts, target, &edits).await?;
    fixed(tally).corruptions_fixed += plan.corruptions;
    // A reference that is an error may have no refcount of its own.
    let unsound = tally.report.corruptions > 0 || tally.report.check_errors > 0;
    Ok(unsound || edits.iter().any(|(_, refcount)| *refcount > 0))
}

/// How many clusters the new table takes.
pub(super) fn clusters(plan: &Plan, layout: &Layout) -> u64 {
    plan.len.div_ceil(layout.cluster_size)
}

/// Reads the next entry, and takes it from the stream; `None` if the file does not have it whole.
async fn read<S: Storage>(
    stream: &mut Stream<'_, '_, S>,
    layout: &Layout,
    index: u32,
) -> Result<Option<Raw>> {
    let at = stream.offset();
    let Some(mut fixed) = stream.peek(SNAPSHOT_LEN as u64).await?.first_chunk().copied() else {
        return Ok(None);
    };
    let fixed: &mut [u8; SNAPSHOT_LEN] = &mut fixed;
    let extra_len = u32::from_be_bytes([fixed[36], fixed[37], fixed[38], fixed[39]]);
    let names_len = u64::from(u16::from_be_bytes([fixed[12], fixed[13]]))
        + u64::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    let len = SNAPSHOT_LEN as u64 + u64::from(extra_len) + names_len;
    if at + len > layout.file_len {
        return Ok(None);
    }
    let kept = extra_len.min(SNAPSHOT_EXTRA_LEN_BYTES_MAX);
    fixed[36..].copy_from_slice(&kept.to_be_bytes());
    let mut bytes = fixed.to_vec();
    stream.skip(SNAPSHOT_LEN as u64);
    bytes.extend_from_slice(stream.peek(u64::from(kept)).await?);
    stream.skip(u64::from(extra_len));
    bytes.extend_from_slice(stream.peek(names_len).await?);
    stream.skip(names_len);
    let table = HostOffset::new(layout.snapshot_table_offset);
    let Parsed::Complete((mut snapshot, _)) = Snapshot::parse(&bytes, u64::from(index), table)?
    else {
        return Ok(None);
    };
    // As QEMU writes it: with all the fields that it knows.
    snapshot.extra.resize(snapshot.extra.len().max(Snapshot::EXTRA_LEN), 0);
    snapshot.disk_size.get_or_insert(layout.virtual_size & !511);
    Ok(Some(Raw { extra_len, snapshot, len }))
}

/// The first clusters for the new table, in a row, that are free and have a refcount block.
pub(super) async fn find_room<S: Storage>(
    plan: &Plan,
    inventory: &Inventory,
    refcounts: &Refcounts<'_, '_, S>,
) -> Result<Option<Range<u64>>> {
    let layout = refcounts.layout;
    let count = clusters(plan, layout);
    let table_entries = (layout.refcount_table.end - layout.refcount_table.start) / 8;
    // Within the file: behind its end something may be referred to.
    let whole = layout.file_len >> layout.cluster_bits;
    let end = table_entries.saturating_mul(layout.block_entries).min(whole);
    let mut found = None;
    let (mut at, mut row) = (0, 0..0);
    while at < end && found.is_none() {
        let part = at..end.min(at + PART_CLUSTERS);
        at = part.end;
        refcounts
            .each(part, |run, entries| {
                let Run::Entries(bytes) = entries else {
                    row = run.end..run.end;
                    return;
                };
                for cluster in run.clone() {
                    let free = refcount(bytes, layout.refcount_order, cluster - run.start) == 0;
                    if !free || cluster == 0 || inventory.reads_uncounted(cluster) {
                        row = cluster + 1..cluster + 1;
                        continue;
                    }
                    row.end = cluster + 1;
                    if row.end - row.start == count && found.is_none() {
                        found = Some(row.clone());
                    }
                }
            })
            .await?;
    }
    Ok(found)
}
