//! The GUID partition table: both copies, with their checksums.
//!
//! | offset | size | field of the header |
//! |---|---|---|
//! | 0 | 8 | "EFI PART" |
//! | 12 | 4 | header size |
//! | 16 | 4 | CRC-32 of the header, this field taken as zero |
//! | 24 | 8 | sector of this header |
//! | 32 | 8 | sector of the other header |
//! | 72 | 8 | first sector of the entries |
//! | 80 | 4 | number of entries |
//! | 84 | 4 | size of an entry |
//! | 88 | 4 | CRC-32 of the entries |
//!
//! An entry: type GUID (16), identity GUID (16), first sector (8), last sector (8), attributes (8), name (72, UTF-16).
//! UEFI specification, "GUID Partition Table (GPT) Disk Layout".

use super::kind::guid_text;
use super::{Partition, PartitionKind, PartitionTable, Partitions, read_if_there};
use crate::error::Result;
use crate::inspect::ReadAt;
use crate::inspect::little_endian::{array_at, u32_at, u64_at};

const SIGNATURE: &[u8; 8] = b"EFI PART";
const HEADER_BYTES_MIN: u32 = 92;
const ENTRY_BYTES_MIN: u32 = 128;

/// The longest entry that is read, in bytes.
const ENTRY_BYTES_MAX: u32 = 4096;
/// The longest table of entries that is read, in bytes; common ones have 16 KiB.
const ENTRIES_BYTES_MAX: u64 = 1 << 20;

/// Attribute: firmware of old may boot from it.
const LEGACY_BOOTABLE: u64 = 1 << 2;

/// A copy of the table that is whole.
struct Copy {
    other_sector: u64,
    partitions: Vec<Partition>,
}

/// A copy, or what is wrong with it.
type Found = std::result::Result<Copy, String>;

/// Reads the table of `disk`, or `None` if neither copy shows signs of one.
pub(super) async fn read(disk: &impl ReadAt) -> Result<Option<Partitions>> {
    for sector_bytes in [512, 4096] {
        let first = copy(disk, sector_bytes, 1).await?;
        let last_sector = (disk.len() / sector_bytes).saturating_sub(1);
        let backup_sector = match &first {
            Some(Ok(first)) => first.other_sector,
            _ => last_sector,
        };
        let backup =
            if backup_sector > 1 { copy(disk, sector_bytes, backup_sector).await? } else { None };
        if first.is_none() && (backup.is_none() || !is_protected(disk).await?) {
            continue;
        }
        return Ok(Some(judge(first, backup, backup_sector)));
    }
    Ok(None)
}

/// Takes the copy that is whole, and says what is wrong with the other.
fn judge(first: Option<Found>, backup: Option<Found>, backup_sector: u64) -> Partitions {
    let mut findings = Vec::new();
    let missing = || Err("is missing".to_owned());
    let (first, backup) = (first.unwrap_or_else(missing), backup.unwrap_or_else(missing));
    let partitions = match (first, backup) {
        (Ok(first), backup) => {
            match backup {
                Ok(backup) if backup.partitions != first.partitions => findings.push(
                    "the two copies of the GUID partition table differ: the first is shown".into(),
                ),
                Ok(_) => {}
                Err(reason) => findings.push(format!(
                    "the backup of the GUID partition table at sector {backup_sector} {reason}"
                )),
            }
            first.partitions
        }
        (Err(reason), Ok(backup)) => {
            findings.push(format!(
                "the GUID partition table at sector 1 {reason}: its backup is shown"
            ));
            backup.partitions
        }
        (Err(first), Err(backup)) => {
            findings.push(format!("the GUID partition table at sector 1 {first}"));
            findings.push(format!(
                "the backup of the GUID partition table at sector {backup_sector} {backup}"
            ));
            Vec::new()
        }
    };
    Partitions { table: PartitionTable::Gpt, partitions, findings }
}

/// Whether the MBR says that the disk has a GUID partition table.
async fn is_protected(disk: &impl ReadAt) -> Result<bool> {
    let mut sector = [0; 512];
    Ok(read_if_there(disk, &mut sector, 0).await?
        && sector[510..] == [0x55, 0xaa]
        && (0..4).any(|index| sector[446 + 16 * index + 4] == 0xee))
}

/// Reads the copy whose header is at `sector`; `None` if there is no sign of one.
async fn copy(disk: &impl ReadAt, sector_bytes: u64, sector: u64) -> Result<Option<Found>> {
    // OK to unwrap: 512 or 4096.
    let mut header = vec![0; usize::try_from(sector_bytes).unwrap_or(512)];
    let Some(offset) = sector.checked_mul(sector_bytes) else { return Ok(None) };
    if !read_if_there(disk, &mut header, offset).await? || header[..8] != *SIGNATURE {
        return Ok(None);
    }
    let size = u32_at(&header, 12);
    if size < HEADER_BYTES_MIN || u64::from(size) > sector_bytes {
        return Ok(Some(Err(format!("has a header of {size} bytes"))));
    }
    let checksum = u32_at(&header, 16);
    let mut summed = header[..size as usize].to_vec();
    summed[16..20].fill(0);
    if crc32(&summed) != checksum {
        return Ok(Some(Err(format!(
            "has a damaged header: its checksum is not {checksum:#010x}"
        ))));
    }
    if u64_at(&header, 24) != sector {
        return Ok(Some(Err(format!("says that it lies at sector {}", u64_at(&header, 24)))));
    }
    let (count, entry_bytes) = (u32_at(&header, 80), u32_at(&header, 84));
    let entries_bytes = u64::from(count) * u64::from(entry_bytes);
    if !(ENTRY_BYTES_MIN..=ENTRY_BYTES_MAX).contains(&entry_bytes)
        || entries_bytes > ENTRIES_BYTES_MAX
    {
        return Ok(Some(Err(format!("has {count} entries of {entry_bytes} bytes"))));
    }
    // OK to unwrap: at most the limit.
    let mut entries = vec![0; usize::try_from(entries_bytes).unwrap_or(0)];
    let entries_sector = u64_at(&header, 72);
    let there = match entries_sector.checked_mul(sector_bytes) {
        Some(offset) => read_if_there(disk, &mut entries, offset).await?,
        None => false,
    };
    if !there {
        return Ok(Some(Err(format!(
            "has its entries at sector {entries_sector}, past the end of the disk"
        ))));
    }
    if crc32(&entries) != u32_at(&header, 88) {
        return Ok(Some(Err("has damaged entries: their checksum differs".to_owned())));
    }
    let partitions = (1..)
        .zip(entries.chunks_exact(entry_bytes as usize))
        .filter_map(|(number, entry)| partition(number, entry, sector_bytes))
        .collect();
    Ok(Some(Ok(Copy { other_sector: u64_at(&header, 32), partitions })))
}

/// The partition of an entry; `None` if it is unused or its sectors are impossible.
fn partition(number: u32, entry: &[u8], sector_bytes: u64) -> Option<Partition> {
    let kind = array_at(entry, 0);
    if kind == [0; 16] {
        return None;
    }
    let (first, last) = (u64_at(entry, 32), u64_at(entry, 40));
    let sectors = last.checked_sub(first)?.checked_add(1)?;
    let name: Vec<u16> = entry[56..128]
        .as_chunks::<2>()
        .0
        .iter()
        .map(|unit| u16::from_le_bytes(*unit))
        .take_while(|unit| *unit != 0)
        .collect();
    Some(Partition {
        number,
        start: first.checked_mul(sector_bytes)?,
        len: sectors.checked_mul(sector_bytes)?,
        kind: PartitionKind::Gpt(kind),
        name: String::from_utf16_lossy(&name),
        uuid: Some(guid_text(&array_at(entry, 16))),
        bootable: u64_at(entry, 48) & LEGACY_BOOTABLE != 0,
    })
}

/// The checksum that UEFI uses, of less than 2^32 bytes.
fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}
