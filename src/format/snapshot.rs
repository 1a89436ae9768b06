//! The snapshot table: entries of variable length, one behind the other, each padded to a multiple of 8.
//!
//! | offset | size | field | meaning |
//! |---|---|---|---|
//! | 0 | 8 | l1_table_offset | host offset of the snapshot's L1 table, aligned to a cluster |
//! | 8 | 4 | l1_size | number of its entries |
//! | 12 | 2 | id_str_size | length of the ID |
//! | 14 | 2 | name_size | length of the name |
//! | 16 | 4 | date_sec | when it was taken, in seconds since 1970 |
//! | 20 | 4 | date_nsec | and nanoseconds |
//! | 24 | 8 | vm_clock_nsec | how long the guest had been running, in nanoseconds |
//! | 32 | 4 | vm_state_size | length of the VM state; ignored if the extra data has it |
//! | 36 | 4 | extra_data_size | length of the extra data |
//! | 40 | - | extra data | see below |
//! | - | - | ID | unique, decimal in QEMU |
//! | - | - | name | |
//! | - | 0 - 7 | padding | |
//!
//! Extra data, each field present if the length reaches its end; version 3 has at least the first two:
//!
//! | offset | size | field | meaning |
//! |---|---|---|---|
//! | 40 | 8 | vm_state_size_large | length of the VM state in bytes |
//! | 48 | 8 | disk_size | size of the virtual disk in bytes |
//! | 56 | 8 | icount | count of instructions for record and replay; -1 if disabled |
//! | 64 | - | | unknown: kept |
//!
//! Spec: qcow2, Snapshots. Matches qcow2-snapshot.c:qcow2_do_read_snapshots.

use super::addr::HostOffset;
use super::bytes::{be16, be32, be64, pad_to_8, put};
use super::geometry::Geometry;
use super::l1::L1Entry;
use super::limits::{
    L1_LEN_BYTES_MAX, SNAPSHOT_EXTRA_LEN_BYTES_MAX, SNAPSHOT_TABLE_LEN_BYTES_MAX, SNAPSHOTS_MAX,
    TABLE_END_MAX,
};
use crate::error::{Corrupt, CorruptKind, Error, Result, Structure, Unsupported, UnsupportedKind};

/// Length of the fixed part.
const FIXED_LEN: usize = 40;
/// Ends of the known fields of the extra data.
const VM_STATE_LEN_END: usize = 8;
const DISK_SIZE_END: usize = 16;
const ICOUNT_END: usize = 24;
/// `icount` where it is disabled.
const ICOUNT_NONE: u64 = u64::MAX;

/// An internal snapshot, as the snapshot table has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Where its L1 table is. Unchecked: see [`Snapshot::validate_l1_table`].
    pub l1_table_offset: HostOffset,
    /// Number of entries of its L1 table. Unchecked.
    pub l1_entries: u32,
    /// The ID, unique in the image.
    pub id: Vec<u8>,
    /// The name.
    pub name: Vec<u8>,
    /// When it was taken, in seconds since 1970.
    pub date_sec: u32,
    /// The part of a second, in nanoseconds.
    pub date_nsec: u32,
    /// How long the guest had been running, in nanoseconds.
    pub vm_clock_nsec: u64,
    /// Length of the VM state in bytes; 0 if there is none.
    pub vm_state_len: u64,
    /// Size of the virtual disk in bytes. Where it is missing, the image's present size counts.
    pub disk_size: Option<u64>,
    /// Count of instructions for record and replay.
    pub icount: Option<u64>,
    /// The extra data as it was read, the known fields included; their values above go over it when it is written, and it
    /// grows as they need. [`Snapshot::EXTRA_LEN`] zeros suit a new snapshot.
    pub extra: Vec<u8>,
}

/// What came of parsing the start of something whose length is not known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parsed<T> {
    /// The value.
    Complete(T),
    /// At least this many bytes are needed, counted from the same start.
    Incomplete {
        /// The number of bytes.
        len_min: u64,
    },
}

impl Snapshot {
    /// Length in bytes of an entry's fixed part.
    pub const FIXED_LEN: usize = FIXED_LEN;
    /// Length in bytes of the extra data that QEMU writes.
    pub const EXTRA_LEN: usize = ICOUNT_END;

    /// Parses the entry that `bytes` start with, and returns how many bytes it takes, without padding: the next entry
    /// starts at the next multiple of 8. `index` and `table`, the host offset of the table, are for the message.
    ///
    /// # Errors
    ///
    /// `Unsupported` if the extra data is longer than 1024 bytes, QEMU's limit.
    pub fn parse(bytes: &[u8], index: u64, table: HostOffset) -> Result<Parsed<(Self, u64)>> {
        let incomplete = |len_min: usize| Ok(Parsed::Incomplete { len_min: len_min as u64 });
        if bytes.len() < FIXED_LEN {
            return incomplete(FIXED_LEN);
        }
        let extra_len = be32(bytes, 36);
        if extra_len > SNAPSHOT_EXTRA_LEN_BYTES_MAX {
            let max = SNAPSHOT_EXTRA_LEN_BYTES_MAX;
            let kind = UnsupportedKind::SnapshotExtraTooLarge { len: extra_len, max };
            let unsupported = Unsupported::new(kind, Structure::SnapshotTable);
            return Err(unsupported.at(table.get()).entry(index).into());
        }
        // At most 1024.
        #[allow(clippy::cast_possible_truncation)]
        let extra_end = FIXED_LEN + extra_len as usize;
        let id_end = extra_end + usize::from(be16(bytes, 12));
        let name_end = id_end + usize::from(be16(bytes, 14));
        if bytes.len() < name_end {
            return incomplete(name_end);
        }
        let extra = &bytes[FIXED_LEN..extra_end];
        let field = |end: usize| if extra.len() < end { None } else { Some(be64(extra, end - 8)) };
        let snapshot = Self {
            l1_table_offset: HostOffset::new(be64(bytes, 0)),
            l1_entries: be32(bytes, 8),
            id: bytes[extra_end..id_end].to_vec(),
            name: bytes[id_end..name_end].to_vec(),
            date_sec: be32(bytes, 16),
            date_nsec: be32(bytes, 20),
            vm_clock_nsec: be64(bytes, 24),
            vm_state_len: field(VM_STATE_LEN_END).unwrap_or(u64::from(be32(bytes, 32))),
            disk_size: field(DISK_SIZE_END),
            icount: field(ICOUNT_END).filter(|&icount| icount != ICOUNT_NONE),
            extra: extra.to_vec(),
        };
        Ok(Parsed::Complete((snapshot, name_end as u64)))
    }

    /// Appends the entry with its padding.
    ///
    /// # Errors
    ///
    /// `LimitExceeded` if ID or name are longer than 65535 bytes or the extra data than 1024.
    pub fn encode(&self, into: &mut Vec<u8>) -> Result<()> {
        let extra = self.encode_extra();
        let string_len = |what, value: &[u8]| {
            u16::try_from(value.len()).map_err(|_| Error::LimitExceeded {
                what,
                value: value.len() as u64,
                limit: u64::from(u16::MAX),
            })
        };
        let id_len = string_len("snapshot ID bytes", &self.id)?;
        let name_len = string_len("snapshot name bytes", &self.name)?;
        let extra_len = u32::try_from(extra.len()).unwrap_or(u32::MAX);
        if extra_len > SNAPSHOT_EXTRA_LEN_BYTES_MAX {
            return Err(Error::LimitExceeded {
                what: "snapshot extra data bytes",
                value: u64::from(extra_len),
                limit: u64::from(SNAPSHOT_EXTRA_LEN_BYTES_MAX),
            });
        }
        // Who reads only 32 bits shall take a longer state for none rather than for a part.
        let vm_state_len = u32::try_from(self.vm_state_len).unwrap_or(0);
        into.extend_from_slice(&self.l1_table_offset.get().to_be_bytes());
        into.extend_from_slice(&self.l1_entries.to_be_bytes());
        into.extend_from_slice(&id_len.to_be_bytes());
        into.extend_from_slice(&name_len.to_be_bytes());
        into.extend_from_slice(&self.date_sec.to_be_bytes());
        into.extend_from_slice(&self.date_nsec.to_be_bytes());
        into.extend_from_slice(&self.vm_clock_nsec.to_be_bytes());
        into.extend_from_slice(&vm_state_len.to_be_bytes());
        into.extend_from_slice(&extra_len.to_be_bytes());
        into.extend_from_slice(&extra);
        into.extend_from_slice(&self.id);
        into.extend_from_slice(&self.name);
        pad_to_8(into);
        Ok(())
    }

    /// Returns the length of the L1 table in bytes.
    pub fn l1_table_len(&self) -> u64 {
        u64::from(self.l1_entries) * L1Entry::LEN
    }

    /// Checks offset and length of the L1 table, which QEMU does when the snapshot is used. `index` and `table`, the host
    /// offset of the snapshot table, are for the message.
    ///
    /// # Errors
    ///
    /// `Corrupt` if the L1 table is not aligned to a cluster, or ends beyond 2^63; `Unsupported` if it is longer than
    /// 32 MiB.
    pub fn validate_l1_table(
        &self,
        index: u64,
        table: HostOffset,
        geometry: &Geometry,
    ) -> Result<()> {
        let (offset, len) = (self.l1_table_offset.get(), self.l1_table_len());
        let corrupt = |kind| {
            let corrupt = Corrupt::new(kind, Structure::SnapshotTable);
            Err(corrupt.at(table.get()).entry(index).into())
        };
        if len > L1_LEN_BYTES_MAX {
            let kind = UnsupportedKind::SnapshotL1TableTooLarge { len, max: L1_LEN_BYTES_MAX };
            let unsupported = Unsupported::new(kind, Structure::SnapshotTable);
            return Err(unsupported.at(table.get()).entry(index).into());
        }
        if offset.checked_add(len).is_none_or(|end| end > TABLE_END_MAX) {
            return corrupt(CorruptKind::SnapshotL1TableOverflow { offset, len });
        }
        if geometry.offset_in_cluster(offset) != 0 {
            let alignment = geometry.cluster_size();
            return corrupt(CorruptKind::SnapshotL1TableUnaligned { offset, alignment });
        }
        Ok(())
    }

    /// The extra data with the known fields in their places.
    fn encode_extra(&self) -> Vec<u8> {
        let mut extra = self.extra.clone();
        let needed = if self.icount.is_some() {
            ICOUNT_END
        } else if self.disk_size.is_some() {
            DISK_SIZE_END
        } else if self.vm_state_len > u64::from(u32::MAX) {
            VM_STATE_LEN_END
        } else {
            0
        };
        extra.resize(extra.len().max(needed), 0);
        let mut field = |end: usize, value: u64| {
            if extra.len() >= end {
                put(&mut extra, end - 8, value.to_be_bytes());
            }
        };
        field(VM_STATE_LEN_END, self.vm_state_len);
        if let Some(disk_size) = self.disk_size {
            field(DISK_SIZE_END, disk_size);
        }
        field(ICOUNT_END, self.icount.unwrap_or(ICOUNT_NONE));
        extra
    }
}

/// The snapshots of an image in their order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SnapshotTable {
    /// The snapshots.
    pub snapshots: Vec<Snapshot>,
    /// Length in bytes of the table that they were read from, without the last entry's padding, as QEMU counts it.
    pub len: u64,
}

impl SnapshotTable {
    /// Parses a table of `count` snapshots at the host offset `table`. The file does not say how long it is: `bytes` are as
    /// many as are at hand, and if they are not enough the answer says how many are needed at least.
    ///
    /// # Errors
    ///
    /// `Unsupported` if there are more than 65536 snapshots, or if the table is longer than 64 MiB; as
    /// [`Snapshot::parse`].
    pub fn parse(bytes: &[u8], count: u32, table: HostOffset) -> Result<Parsed<Self>> {
        if count > SNAPSHOTS_MAX {
            let kind = UnsupportedKind::SnapshotsTooMany { count, max: SNAPSHOTS_MAX };
            return Err(Unsupported::new(kind, Structure::SnapshotTable).at(table.get()).into());
        }
        let mut parsed = Self::default();
        for index in 0..u64::from(count) {
            let start = parsed.len.next_multiple_of(8);
            let rest = usize::try_from(start).ok().and_then(|start| bytes.get(start..));
            match Snapshot::parse(rest.unwrap_or_default(), index, table)? {
                Parsed::Complete((snapshot, len)) => {
                    parsed.snapshots.push(snapshot);
                    parsed.len = start + len;
                }
                Parsed::Incomplete { len_min } => {
                    check_len(start + len_min, table)?;
                    return Ok(Parsed::Incomplete { len_min: start + len_min });
                }
            }
            check_len(parsed.len, table)?;
        }
        Ok(Parsed::Complete(parsed))
    }

    /// Encodes the snapshots, each with its padding.
    ///
    /// # Errors
    ///
    /// `LimitExceeded` as [`Snapshot::encode`], and if there are more than 65536 snapshots or the table is longer than
    /// 64 MiB.
    pub fn encode(snapshots: &[Snapshot]) -> Result<Vec<u8>> {
        let exceeded = |what, value, limit| Err(Error::LimitExceeded { what, value, limit });
        let count = snapshots.len() as u64;
        if count > u64::from(SNAPSHOTS_MAX) {
            return exceeded("snapshots", count, u64::from(SNAPSHOTS_MAX));
        }
        let mut bytes = Vec::new();
        for snapshot in snapshots {
            snapshot.encode(&mut bytes)?;
            let len = bytes.len() as u64;
            if len > SNAPSHOT_TABLE_LEN_BYTES_MAX {
                return exceeded("snapshot table bytes", len, SNAPSHOT_TABLE_LEN_BYTES_MAX);
            }
        }
        Ok(bytes)
    }
}

fn check_len(len: u64, table: HostOffset) -> Result<()> {
    if len > SNAPSHOT_TABLE_LEN_BYTES_MAX {
        let kind =
            UnsupportedKind::SnapshotTableTooLarge { len, max: SNAPSHOT_TABLE_LEN_BYTES_MAX };
        return Err(Unsupported::new(kind, Structure::SnapshotTable).at(table.get()).into());
    }
    Ok(())
}
