//! Partition tables: where the volumes of a disk lie, and what is wrong with the tables.
//!
//! A GUID partition table is read from both of its copies, each held against its checksums; the first is believed where it is
//! whole, the other where it is not. An MBR is read with its chain of extended records. Nothing loops: chains and counts are
//! bounded by name.
//!
//! It must not know what lies in a partition.

mod gpt;
mod kind;
mod mbr;

use super::ReadAt;
use crate::error::Result;

pub use kind::PartitionKind;

/// The partition table of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Partitions {
    /// What kind of table there is.
    pub table: PartitionTable,
    /// The partitions, in the order of their numbers.
    pub partitions: Vec<Partition>,
    /// What is wrong, in words: a damaged copy, a chain that loops, a partition past the end of the disk.
    pub findings: Vec<String>,
}

/// A kind of partition table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum PartitionTable {
    /// There is none.
    None,
    /// The table of the master boot record.
    Mbr,
    /// A GUID partition table.
    Gpt,
}

impl PartitionTable {
    /// Its name as partitioning tools print it: `none`, `dos`, `gpt`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Mbr => "dos",
            Self::Gpt => "gpt",
        }
    }
}

/// A partition.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Partition {
    /// The number that Linux gives it: the slot of a GPT or a primary partition, 5 and up for logical ones.
    pub number: u32,
    /// Where it starts on the disk, in bytes.
    pub start: u64,
    /// Its length in bytes, as the table says it: it may reach past the end of the disk.
    pub len: u64,
    /// What it is for.
    pub kind: PartitionKind,
    /// Its name (GPT alone), with code units that are no characters replaced.
    pub name: String,
    /// Its identity (GPT alone), as text.
    pub uuid: Option<String>,
    /// Whether firmware may boot from it.
    pub bootable: bool,
}

/// Reads the partition table of `disk`.
///
/// # Errors
/// What reading says. What is wrong with a table is a finding, never an error.
///
/// # Cancel safety
/// Dropping the future has no effect.
pub async fn partitions(disk: &impl ReadAt) -> Result<Partitions> {
    let mut found = match gpt::read(disk).await? {
        Some(found) => found,
        None => mbr::read(disk).await?,
    };
    let len = disk.len();
    for partition in &found.partitions {
        if partition.start.saturating_add(partition.len) > len {
            found.findings.push(format!(
                "partition {} ends at byte {}, past the end of the disk at {len}",
                partition.number,
                partition.start.saturating_add(partition.len)
            ));
        }
    }
    Ok(found)
}

/// Reads `buf.len()` bytes from `offset`, or says that the disk does not have them.
async fn read_if_there(disk: &impl ReadAt, buf: &mut [u8], offset: u64) -> Result<bool> {
    if offset.checked_add(buf.len() as u64).is_none_or(|end| end > disk.len()) {
        return Ok(false);
    }
    disk.read_at(buf, offset).await?;
    Ok(true)
}
