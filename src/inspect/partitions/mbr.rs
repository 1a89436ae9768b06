//! The partition table of a master boot record, and the chain of extended boot records.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 446 | 16 each | four entries: status, CHS start, type, CHS end, LBA start (u32), sectors (u32) |
//! | 510 | 2 | 0x55 0xaa |
//!
//! In an extended record the first entry is a logical partition, its start counted from the record; the second is the
//! next record, its start counted from the extended partition.

use super::{Partition, PartitionKind, PartitionTable, Partitions, read_if_there};
use crate::error::Result;
use crate::inspect::ReadAt;
use crate::inspect::little_endian::u32_at;

const SECTOR_BYTES: u64 = 512;
const ENTRIES_OFFSET: usize = 446;
const ENTRY_BYTES: usize = 16;
const SIGNATURE_OFFSET: usize = 510;

/// The longest chain of extended records that is followed: twice what Linux gives names to.
const LOGICAL_PARTITIONS_MAX: u32 = 256;

/// An entry of a record.
#[derive(Debug, Clone, Copy)]
struct Entry {
    status: u8,
    kind: u8,
    start_sector: u64,
    sectors: u64,
}

impl Entry {
    fn is_empty(self) -> bool {
        self.kind == 0 || self.sectors == 0
    }

    fn is_extended(self) -> bool {
        PartitionKind::Mbr(self.kind).is_extended()
    }

    /// The partition, its start counted from `base` in sectors.
    fn partition(self, number: u32, base: u64) -> Partition {
        Partition {
            number,
            // Three numbers of 32 bits: no overflow.
            start: (base + self.start_sector) * SECTOR_BYTES,
            len: self.sectors * SECTOR_BYTES,
            kind: PartitionKind::Mbr(self.kind),
            name: String::new(),
            uuid: None,
            bootable: self.status == 0x80,
        }
    }
}

/// The four entries of a record, if it is one: its signature is there, and every status is one of the two that exist, which
/// tells a table from the boot code of a file system.
fn parse(sector: &[u8; 512]) -> Option<[Entry; 4]> {
    if sector[SIGNATURE_OFFSET..] != [0x55, 0xaa] {
        return None;
    }
    let entries = [0, 1, 2, 3].map(|index| {
        let entry = &sector[ENTRIES_OFFSET + index * ENTRY_BYTES..][..ENTRY_BYTES];
        Entry {
            status: entry[0],
            kind: entry[4],
            start_sector: u32_at(entry, 8).into(),
            sectors: u32_at(entry, 12).into(),
        }
    });
    entries.iter().all(|entry| matches!(entry.status, 0 | 0x80)).then_some(entries)
}

/// Reads the table of `disk`; without one the result has none.
pub(super) async fn read(disk: &impl ReadAt) -> Result<Partitions> {
    let mut found =
        Partitions { table: PartitionTable::None, partitions: Vec::new(), findings: Vec::new() };
    let mut sector = [0; 512];
    if !read_if_there(disk, &mut sector, 0).await? {
        return Ok(found);
    }
    let Some(entries) = parse(&sector) else { return Ok(found) };
    if entries.iter().all(|entry| entry.is_empty()) {
        return Ok(found);
    }
    found.table = PartitionTable::Mbr;
    let mut logical = 5;
    for (number, entry) in (1..).zip(entries) {
        if entry.is_empty() {
            continue;
        }
        found.partitions.push(entry.partition(number, 0));
        if entry.is_extended() {
            follow(disk, entry, &mut logical, &mut found).await?;
        }
    }
    found.partitions.sort_by_key(|partition| partition.number);
    Ok(found)
}

/// Follows the chain of records in the extended partition `extended`.
async fn follow(
    disk: &impl ReadAt,
    extended: Entry,
    number: &mut u32,
    found: &mut Partitions,
) -> Result<()> {
    let base = extended.start_sector;
    let mut record = base;
    let mut seen = std::collections::BTreeSet::new();
    loop {
        if !seen.insert(record) {
            found.findings.push(format!(
                "the chain of extended boot records comes back to the one at sector {record}"
            ));
            return Ok(());
        }
        if *number >= 5 + LOGICAL_PARTITIONS_MAX {
            found.findings.push(format!(
                "more than {LOGICAL_PARTITIONS_MAX} logical partitions: the rest is not read"
            ));
            return Ok(());
        }
        let mut sector = [0; 512];
        let there = read_if_there(disk, &mut sector, record * SECTOR_BYTES).await?;
        let Some(entries) = there.then(|| parse(&sector)).flatten() else {
            found.findings.push(format!("no extended boot record at sector {record}"));
            return Ok(());
        };
        if !entries[0].is_empty() {
            found.partitions.push(entries[0].partition(*number, record));
            *number += 1;
        }
        if entries[1].is_empty() {
            return Ok(());
        }
        record = base + entries[1].start_sector;
    }
}
