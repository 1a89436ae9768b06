//! Refcounts: the refcount table's entries, and the refcounts in a refcount block.
//!
//! Refcount table entry:
//!
//! | bits | field | meaning |
//! |---|---|---|
//! | 0 - 8 | | reserved, 0 |
//! | 9 - 63 | offset | host offset of the refcount block; 0: none, all its refcounts are 0 |
//!
//! A refcount block is one cluster of refcounts of `1 << refcount_order` bits, without a header. Refcounts of 8 bits and
//! more are big-endian numbers. Narrower ones share a byte, and the first is in its least significant bits:
//!
//! | refcount_order | refcount `i` is in |
//! |---|---|
//! | 0 | byte i / 8, bit i % 8 |
//! | 1 | byte i / 4, bits 2 (i % 4) and up |
//! | 2 | byte i / 2, bits 4 (i % 2) and up |
//! | 3 to 6 | bytes i * width / 8 and following |
//!
//! Spec: qcow2, Host cluster management. Matches qcow2-refcount.c:get_refcount_ro0 to ro6.

use super::addr::HostOffset;
use super::geometry::Geometry;
use super::limits::REFCOUNT_ORDER_MAX;
use crate::error::{Corrupt, CorruptKind, Error, Result, Structure};

/// Bits 9 to 63.
const OFFSET_MASK: u64 = !0x1ff;

/// An entry of the refcount table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct RefcountTableEntry(u64);

impl RefcountTableEntry {
    /// Length in bytes of an entry.
    pub const LEN: u64 = 8;

    /// Makes an entry from its number, unchecked.
    #[inline]
    pub const fn from_raw(raw: u64) -> Self {
        Self(raw)
    }

    /// Makes an entry that points to a refcount block.
    #[inline]
    pub const fn new(block: HostOffset) -> Self {
        Self(block.get() & OFFSET_MASK)
    }

    /// Makes an entry from its number and checks that it points to the start of a cluster, as QEMU does when it reads.
    /// Reserved bits are ignored; a check asks for [`RefcountTableEntry::reserved_bits`].
    ///
    /// `index` and `table`, the host offset of the refcount table, are for the message.
    ///
    /// # Errors
    ///
    /// `Corrupt` if the offset is not aligned to a cluster.
    #[inline]
    pub fn parse(raw: u64, index: u64, table: HostOffset, geometry: &Geometry) -> Result<Self> {
        let offset = raw & OFFSET_MASK;
        if geometry.offset_in_cluster(offset) != 0 {
            let alignment = geometry.cluster_size();
            let kind = CorruptKind::RefcountBlockUnaligned { offset, alignment };
            let corrupt = Corrupt::new(kind, Structure::RefcountTable);
            return Err(corrupt.at(table.get()).entry(index).into());
        }
        Ok(Self(raw))
    }

    /// Returns the entry's number.
    #[inline]
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// Returns where the refcount block is; `None` if there is none.
    #[inline]
    pub const fn block(self) -> Option<HostOffset> {
        match self.0 & OFFSET_MASK {
            0 => None,
            offset => Some(HostOffset::new(offset)),
        }
    }

    /// Returns the reserved bits that are set and should not be.
    #[inline]
    pub const fn reserved_bits(self) -> u64 {
        self.0 & !OFFSET_MASK
    }
}

/// Reads refcount `index` of a block, whose refcounts have `1 << order` bits.
///
/// # Panics
///
/// If the block is not long enough, or `order` is greater than 6.
#[inline]
pub fn get(block: &[u8], order: u32, index: u64) -> u64 {
    let (word, _) = place(order, index);
    get_in_word(load(block, word), order, index)
}

/// Writes refcount `index` of a block, whose refcounts have `1 << order` bits.
///
/// # Errors
///
/// `LimitExceeded` if the value needs more bits.
///
/// # Panics
///
/// If the block is not long enough, or `order` is greater than 6.
pub fn set(block: &mut [u8], order: u32, index: u64, value: u64) -> Result<()> {
    let (word, _) = place(order, index);
    let changed = set_in_word(load(block, word), order, index, value)?;
    let start = word * 8;
    block[start..start + 8].copy_from_slice(&changed.to_be_bytes());
    Ok(())
}

/// Returns which word of a block, read as big-endian numbers of 64 bits, holds refcount `index`.
///
/// # Panics
///
/// If `order` is greater than 6.
#[inline]
pub fn word_index(order: u32, index: u64) -> usize {
    place(order, index).0
}

/// Reads refcount `index` of a block from the word that holds it: see [`word_index`].
///
/// # Panics
///
/// If `order` is greater than 6.
#[inline]
pub fn get_in_word(word: u64, order: u32, index: u64) -> u64 {
    let (_, shift) = place(order, index);
    (word >> shift) & max(order)
}

/// Returns the word that holds refcount `index` of a block with that refcount changed: see [`word_index`].
///
/// # Errors
///
/// `LimitExceeded` if the value needs more bits.
///
/// # Panics
///
/// If `order` is greater than 6.
pub fn set_in_word(word: u64, order: u32, index: u64, value: u64) -> Result<u64> {
    let (_, shift) = place(order, index);
    let limit = max(order);
    if value > limit {
        return Err(Error::LimitExceeded { what: "refcount", value, limit });
    }
    Ok(word & !(limit << shift) | value << shift)
}

/// The greatest refcount of `1 << order` bits.
#[inline]
fn max(order: u32) -> u64 {
    u64::MAX >> (64 - (1 << order))
}

/// The word of a block that holds a refcount, and by how much it is shifted up there.
#[inline]
fn place(order: u32, index: u64) -> (usize, u32) {
    assert!(order <= REFCOUNT_ORDER_MAX, "refcount_order {order}");
    let per_word_bits = REFCOUNT_ORDER_MAX - order;
    // An index in a block: at most 2^24.
    #[allow(clippy::cast_possible_truncation)]
    let (word, index) =
        ((index >> per_word_bits) as usize, index as u32 & ((1 << per_word_bits) - 1));
    let bits = 1 << order;
    let shift = if order >= 3 {
        64 - bits * (index + 1)
    } else {
        // The bytes of a word count from its top, the refcounts of a byte from its bottom.
        let per_byte_bits = 3 - order;
        let (byte, in_byte) = (index >> per_byte_bits, index & ((1 << per_byte_bits) - 1));
        56 - 8 * byte + bits * in_byte
    };
    (word, shift)
}

#[inline]
fn load(block: &[u8], word: usize) -> u64 {
    super::bytes::be64(block, word * 8)
}
