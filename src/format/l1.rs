//! Entries of the L1 table.
//!
//! | bits | field | meaning |
//! |---|---|---|
//! | 0 - 8 | | reserved, 0 |
//! | 9 - 55 | offset | host offset of the L2 table; 0: none, all its clusters are unallocated |
//! | 56 - 62 | | reserved, 0 |
//! | 63 | copied | the L2 table's refcount is exactly one; accurate in the active L1 table only |
//!
//! Spec: qcow2, Cluster mapping.

use super::addr::HostOffset;
use super::geometry::Geometry;
use crate::error::{Corrupt, CorruptKind, Result, Structure};

/// Bits 9 to 55.
const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
const COPIED: u64 = 1 << 63;

/// An entry of an L1 table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct L1Entry(u64);

impl L1Entry {
    /// Length in bytes of an entry.
    pub const LEN: u64 = 8;

    /// Makes an entry from its number, unchecked.
    #[inline]
    pub const fn from_raw(raw: u64) -> Self {
        Self(raw)
    }

    /// Makes an entry that points to an L2 table.
    #[inline]
    pub const fn new(l2_table: HostOffset, copied: bool) -> Self {
        Self(l2_table.get() & OFFSET_MASK | if copied { COPIED } else { 0 })
    }

    /// Makes an entry from its number and checks that it points to the start of a cluster, as QEMU does when it reads.
    /// Reserved bits are ignored; a check asks for [`L1Entry::reserved_bits`].
    ///
    /// `index` and `table`, the host offset of the L1 table, are for the message.
    ///
    /// # Errors
    ///
    /// `Corrupt` if the offset is not aligned to a cluster.
    #[inline]
    pub fn parse(raw: u64, index: u64, table: HostOffset, geometry: &Geometry) -> Result<Self> {
        let offset = raw & OFFSET_MASK;
        if geometry.offset_in_cluster(offset) != 0 {
            return Err(unaligned(offset, index, table, geometry));
        }
        Ok(Self(raw))
    }

    /// Returns the entry's number.
    #[inline]
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// Returns where the L2 table is; `None` if there is none.
    #[inline]
    pub const fn l2_table(self) -> Option<HostOffset> {
        match self.0 & OFFSET_MASK {
            0 => None,
            offset => Some(HostOffset::new(offset)),
        }
    }

    /// Returns whether the L2 table's refcount is exactly one.
    #[inline]
    pub const fn copied(self) -> bool {
        self.0 & COPIED != 0
    }

    /// Returns the entry with the copied flag set or not.
    #[inline]
    #[must_use]
    pub const fn with_copied(self, copied: bool) -> Self {
        Self(self.0 & !COPIED | if copied { COPIED } else { 0 })
    }

    /// Returns the reserved bits that are set and should not be.
    #[inline]
    pub const fn reserved_bits(self) -> u64 {
        self.0 & !(OFFSET_MASK | COPIED)
    }
}

#[cold]
fn unaligned(offset: u64, index: u64, table: HostOffset, geometry: &Geometry) -> crate::Error {
    let kind = CorruptKind::L1EntryUnaligned { offset, alignment: geometry.cluster_size() };
    Corrupt::new(kind, Structure::L1Table).at(table.get()).entry(index).into()
}
