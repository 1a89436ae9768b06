//! How an image divides its bytes: clusters, subclusters, tables, and how an offset splits over them.

use super::addr::GuestOffset;
use super::limits::{
    CLUSTER_BITS_MAX, CLUSTER_BITS_MIN, CLUSTER_BITS_MIN_EXTENDED_L2, REFCOUNT_ORDER_MAX,
};
use crate::error::{Corrupt, CorruptKind, Result, Structure, Unsupported, UnsupportedKind};

/// Header offset of `cluster_bits`, for messages.
const CLUSTER_BITS_AT: u64 = 20;
/// Header offset of `refcount_order`, for messages.
const REFCOUNT_ORDER_AT: u64 = 96;

/// The sizes that follow from the header. Valid by construction, so that no method can fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Geometry {
    cluster_bits: u32,
    refcount_order: u32,
    /// Binary logarithm of the length of an L2 entry: 3 or 4.
    l2_entry_bits: u32,
}

impl Geometry {
    /// Subclusters of a cluster in an image with extended L2 entries.
    pub const SUBCLUSTERS_EXTENDED: u32 = 32;

    /// Makes a geometry from the header's fields.
    ///
    /// # Errors
    ///
    /// `Corrupt` if `cluster_bits` is less than 9, or less than 14 with extended L2 entries, or `refcount_order` greater
    /// than 6; `Unsupported` if `cluster_bits` is greater than 21, QEMU's limit.
    pub fn new(cluster_bits: u32, extended_l2: bool, refcount_order: u32) -> Result<Self> {
        let corrupt = |kind, at| Err(Corrupt::new(kind, Structure::Header).at(at).into());
        if cluster_bits < CLUSTER_BITS_MIN {
            let kind =
                CorruptKind::ClusterBitsTooSmall { value: cluster_bits, min: CLUSTER_BITS_MIN };
            return corrupt(kind, CLUSTER_BITS_AT);
        }
        if cluster_bits > CLUSTER_BITS_MAX {
            let kind = UnsupportedKind::ClusterBits { value: cluster_bits, max: CLUSTER_BITS_MAX };
            return Err(Unsupported::new(kind, Structure::Header).at(CLUSTER_BITS_AT).into());
        }
        if extended_l2 && cluster_bits < CLUSTER_BITS_MIN_EXTENDED_L2 {
            let kind = CorruptKind::ExtendedL2ClusterBits {
                value: cluster_bits,
                min: CLUSTER_BITS_MIN_EXTENDED_L2,
            };
            return corrupt(kind, CLUSTER_BITS_AT);
        }
        if refcount_order > REFCOUNT_ORDER_MAX {
            let kind =
                CorruptKind::RefcountOrder { value: refcount_order, max: REFCOUNT_ORDER_MAX };
            return corrupt(kind, REFCOUNT_ORDER_AT);
        }
        Ok(Self { cluster_bits, refcount_order, l2_entry_bits: if extended_l2 { 4 } else { 3 } })
    }

    /// Returns the binary logarithm of the cluster size: 9 to 21.
    #[inline]
    pub const fn cluster_bits(self) -> u32 {
        self.cluster_bits
    }

    /// Returns the size of a cluster in bytes.
    #[inline]
    pub const fn cluster_size(self) -> u64 {
        1 << self.cluster_bits
    }

    /// Returns whether L2 entries have a subcluster bitmap.
    #[inline]
    pub const fn extended_l2(self) -> bool {
        self.l2_entry_bits == 4
    }

    /// Returns the length of an L2 entry in bytes: 8, or 16 if extended.
    #[inline]
    pub const fn l2_entry_len(self) -> u64 {
        1 << self.l2_entry_bits
    }

    /// Returns the number of entries of an L2 table, which is one cluster.
    #[inline]
    pub const fn l2_entries(self) -> u64 {
        1 << (self.cluster_bits - self.l2_entry_bits)
    }

    /// Returns how many bytes of the virtual disk one L2 table maps.
    #[inline]
    pub const fn l2_coverage(self) -> u64 {
        1 << self.l2_coverage_bits()
    }

    /// Returns the index in the L1 table of the entry for a guest offset.
    #[inline]
    pub const fn l1_index(self, offset: GuestOffset) -> u64 {
        offset.get() >> self.l2_coverage_bits()
    }

    /// Returns the index in its L2 table of the entry for a guest offset.
    #[inline]
    pub const fn l2_index(self, offset: GuestOffset) -> u64 {
        (offset.get() >> self.cluster_bits) & (self.l2_entries() - 1)
    }

    /// Returns the number of L1 entries that a virtual disk of `size` bytes needs.
    #[inline]
    pub const fn l1_entries_for(self, size: u64) -> u64 {
        size.div_ceil(self.l2_coverage())
    }

    /// Returns what is left of an offset (guest or host) in its cluster, in bytes.
    #[inline]
    pub const fn offset_in_cluster(self, offset: u64) -> u64 {
        offset & (self.cluster_size() - 1)
    }

    /// Returns the number of subclusters of a cluster: 32 with extended L2 entries, else 1.
    #[inline]
    pub const fn subclusters(self) -> u32 {
        if self.extended_l2() { Self::SUBCLUSTERS_EXTENDED } else { 1 }
    }

    /// Returns the size of a subcluster in bytes; without extended L2 entries, that of a cluster.
    #[inline]
    pub const fn subcluster_size(self) -> u64 {
        if self.extended_l2() { self.cluster_size() >> 5 } else { self.cluster_size() }
    }

    /// Returns the index in its cluster of the subcluster that holds an offset.
    #[inline]
    pub const fn subcluster_index(self, offset: u64) -> u32 {
        if self.extended_l2() {
            // Less than 32, so nothing is lost.
            #[allow(clippy::cast_possible_truncation)]
            let index = (self.offset_in_cluster(offset) >> (self.cluster_bits - 5)) as u32;
            index
        } else {
            0
        }
    }

    /// Returns the width of a refcount in bits: 1 to 64.
    #[inline]
    pub const fn refcount_bits(self) -> u32 {
        1 << self.refcount_order
    }

    /// Returns the binary logarithm of the width of a refcount: 0 to 6.
    #[inline]
    pub const fn refcount_order(self) -> u32 {
        self.refcount_order
    }

    /// Returns the greatest refcount that fits the width.
    #[inline]
    pub const fn refcount_max(self) -> u64 {
        u64::MAX >> (64 - self.refcount_bits())
    }

    /// Returns the number of refcounts of a refcount block, which is one cluster.
    #[inline]
    pub const fn refcount_block_entries(self) -> u64 {
        1 << (self.cluster_bits + 3 - self.refcount_order)
    }

    /// Returns how many clusters hold `len` bytes.
    #[inline]
    pub const fn clusters_for(self, len: u64) -> u64 {
        len.div_ceil(self.cluster_size())
    }

    /// Rounds an offset or a length down to a multiple of the cluster size.
    #[inline]
    pub const fn align_down(self, value: u64) -> u64 {
        value & !(self.cluster_size() - 1)
    }

    /// Rounds an offset or a length up to a multiple of the cluster size; `None` past 2^64.
    #[inline]
    pub const fn align_up(self, value: u64) -> Option<u64> {
        value.checked_next_multiple_of(self.cluster_size())
    }

    /// Binary logarithm of the bytes of the virtual disk that one L2 table maps: at most 39.
    #[inline]
    const fn l2_coverage_bits(self) -> u32 {
        2 * self.cluster_bits - self.l2_entry_bits
    }
}
