//! The subcluster bitmap of an extended L2 entry: bits 64 to 127 of the entry.
//!
//! | bits | field | meaning |
//! |---|---|---|
//! | 0 - 31 | allocated | bit x: subcluster x is in the host cluster |
//! | 32 - 63 | zero | bit 32 + x: subcluster x reads as zeros; then it is not allocated |
//!
//! With neither bit a subcluster reads as the backing file. In a compressed cluster all bits are reserved.
//!
//! Spec: qcow2, Extended L2 entries. Matches qcow2.h:qcow2_get_subcluster_type.

use super::addr::{GuestOffset, HostOffset};
use super::geometry::Geometry;
use super::l2::{ClusterKind, CompressedCluster, Fault, L2Context, L2Entry, L2Fault};

/// What a subcluster is. Host offsets are those of the whole host cluster: add the offset in the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SubclusterKind {
    /// It has no host cluster and reads as the backing file.
    Unallocated,
    /// It reads as the backing file, though its cluster has a host cluster.
    UnallocatedAllocated {
        /// The host cluster.
        host: HostOffset,
    },
    /// It reads as zeros.
    Zero {
        /// The host cluster, if there is one; it is not read.
        host: Option<HostOffset>,
    },
    /// It is in the host cluster.
    Data {
        /// The host cluster.
        host: HostOffset,
    },
    /// Its cluster is compressed.
    Compressed(CompressedCluster),
}

impl SubclusterKind {
    /// Returns the host cluster that belongs to the guest cluster; `None` if it is compressed or has none.
    #[inline]
    pub const fn host(self) -> Option<HostOffset> {
        match self {
            Self::Data { host } | Self::UnallocatedAllocated { host } => Some(host),
            Self::Zero { host } => host,
            Self::Unallocated | Self::Compressed(_) => None,
        }
    }
}

impl From<ClusterKind> for SubclusterKind {
    #[inline]
    fn from(kind: ClusterKind) -> Self {
        match kind {
            ClusterKind::Unallocated => Self::Unallocated,
            ClusterKind::Zero { host } => Self::Zero { host },
            ClusterKind::Data { host } => Self::Data { host },
            ClusterKind::Compressed(cluster) => Self::Compressed(cluster),
        }
    }
}

impl L2Entry {
    /// Returns what the subcluster with this index is, and how many from it on are the same, itself included. Serves
    /// images without extended L2 entries as well: their clusters have one subcluster.
    ///
    /// `index` must be less than [`Geometry::subclusters`]; a greater one is taken modulo 32.
    ///
    /// # Errors
    ///
    /// The fault, if the entry cannot be right: as [`L2Entry::cluster`], and if any subcluster of the cluster is both
    /// allocated and zero, or allocated without a host cluster.
    #[inline]
    pub fn subcluster_run(
        &self,
        context: &L2Context,
        index: u32,
    ) -> Result<(SubclusterKind, u32), L2Fault> {
        let cluster = self.cluster(context)?;
        if !context.geometry().extended_l2() {
            return Ok((cluster.into(), 1));
        }
        self.run_in(cluster, context, index)
    }

    /// Does what [`L2Entry::subcluster_run`] does, and checks that a cluster in a data file lies where the guest sees it.
    /// `guest` is any offset in the guest cluster.
    ///
    /// # Errors
    ///
    /// As [`L2Entry::subcluster_run`], and if host and guest offset differ in an image with a data file.
    #[inline]
    pub fn subcluster_run_for(
        &self,
        context: &L2Context,
        index: u32,
        guest: GuestOffset,
    ) -> Result<(SubclusterKind, u32), L2Fault> {
        let (kind, run) = self.subcluster_run(context, index)?;
        if context.data_file() {
            self.in_data_file(context, kind.host(), guest)?;
        }
        Ok((kind, run))
    }

    fn run_in(
        &self,
        cluster: ClusterKind,
        context: &L2Context,
        index: u32,
    ) -> Result<(SubclusterKind, u32), L2Fault> {
        let index = index % SUBCLUSTERS;
        let left = SUBCLUSTERS - index;
        let (allocated, zero) = halves(self.bitmap());
        let host = match cluster {
            // Its bitmap is reserved, and readers ignore what is in it.
            ClusterKind::Compressed(cluster) => {
                return Ok((SubclusterKind::Compressed(cluster), left));
            }
            ClusterKind::Data { host } => {
                if allocated & zero != 0 {
                    return Err(self.fault(Fault::SubclusterAllocatedAndZero, context));
                }
                Some(host)
            }
            ClusterKind::Unallocated | ClusterKind::Zero { .. } => {
                if allocated != 0 {
                    return Err(self.fault(Fault::SubclusterAllocatedWithoutCluster, context));
                }
                None
            }
        };
        // The bits of the run come first; `left` bounds what the shift filled in.
        let (allocated, zero) = (allocated >> index, zero >> index);
        let (kind, run) = match host {
            _ if zero & 1 != 0 => (SubclusterKind::Zero { host }, zero.trailing_ones()),
            Some(host) if allocated & 1 != 0 => {
                (SubclusterKind::Data { host }, allocated.trailing_ones())
            }
            Some(host) => {
                (SubclusterKind::UnallocatedAllocated { host }, (allocated | zero).trailing_zeros())
            }
            None => (SubclusterKind::Unallocated, zero.trailing_zeros()),
        };
        Ok((kind, run.min(left)))
    }
}

const SUBCLUSTERS: u32 = Geometry::SUBCLUSTERS_EXTENDED;

/// The allocated and the zero bits.
#[inline]
const fn halves(bitmap: u64) -> (u32, u32) {
    // Each half has 32 bits: nothing is lost.
    #[allow(clippy::cast_possible_truncation)]
    let halves = (bitmap as u32, (bitmap >> 32) as u32);
    halves
}
