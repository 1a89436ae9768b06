//! Entries of an L2 table: where a guest cluster is.
//!
//! | bits | field | meaning |
//! |---|---|---|
//! | 0 - 61 | descriptor | standard or compressed, see below |
//! | 62 | compressed | |
//! | 63 | copied | the cluster's refcount is exactly one; accurate under the active L1 table only; 0 if compressed |
//!
//! Standard cluster descriptor:
//!
//! | bits | field | meaning |
//! |---|---|---|
//! | 0 | zero | reads as zeros; 0 in version 2 and with extended L2 entries |
//! | 1 - 8 | | reserved, 0 |
//! | 9 - 55 | offset | host offset of the cluster; 0: unallocated, or 0 itself in a data file if copied is set |
//! | 56 - 61 | | reserved, 0 |
//!
//! Compressed cluster descriptor, x = 62 - (cluster_bits - 8):
//!
//! | bits | field | meaning |
//! |---|---|---|
//! | 0 - x-1 | offset | host offset of the data, to the byte; bits above 55 are 0 |
//! | x - 61 | sectors | number of sectors of 512 bytes beyond the one that holds the offset |
//!
//! An extended entry is followed by 64 bits more: see [`super::subcluster`](super::SubclusterKind).
//!
//! This is the read path: nothing here allocates, and an entry that is right costs a few instructions.
//!
//! Spec: qcow2, Cluster mapping. What is refused is what QEMU refuses (qcow2-cluster.c:qcow2_get_host_offset).

use super::addr::{GuestOffset, HostOffset};
use super::feature::Version;
use super::geometry::Geometry;
use super::limits::HOST_OFFSET_MAX;
use crate::error::{Corrupt, CorruptKind, Error, Structure};

/// Bits 9 to 55.
const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1;
/// Bits 1 to 8 and 56 to 61.
const STANDARD_RESERVED: u64 = 0x3f00_0000_0000_01fe;
/// The unit in which the length of compressed data is given.
const SECTOR_LEN: u64 = 512;

/// What must be known of an image to understand its L2 entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct L2Context {
    geometry: Geometry,
    version: Version,
    data_file: bool,
}

impl L2Context {
    /// Makes a context; `data_file` says whether guest clusters are in an external data file.
    pub const fn new(geometry: Geometry, version: Version, data_file: bool) -> Self {
        Self { geometry, version, data_file }
    }

    /// Returns the geometry.
    #[inline]
    pub const fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Returns the version.
    #[inline]
    pub const fn version(&self) -> Version {
        self.version
    }

    /// Returns whether guest clusters are in an external data file.
    #[inline]
    pub const fn data_file(&self) -> bool {
        self.data_file
    }
}

/// An entry of an L2 table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct L2Entry {
    descriptor: u64,
    bitmap: u64,
}

impl L2Entry {
    /// Makes an entry from its numbers, unchecked. `bitmap` is 0 without extended L2 entries.
    #[inline]
    pub const fn from_raw(descriptor: u64, bitmap: u64) -> Self {
        Self { descriptor, bitmap }
    }

    /// Makes an entry without a bitmap for a cluster of this kind. `copied` is ignored for what has no host cluster of its
    /// own: unallocated, plain zero and compressed.
    pub fn new(kind: ClusterKind, copied: bool, geometry: Geometry) -> Self {
        let copied = if copied { COPIED } else { 0 };
        let descriptor = match kind {
            ClusterKind::Unallocated => 0,
            ClusterKind::Zero { host: None } => ZERO,
            ClusterKind::Zero { host: Some(host) } => host.get() & OFFSET_MASK | ZERO | copied,
            ClusterKind::Data { host } => host.get() & OFFSET_MASK | copied,
            ClusterKind::Compressed(cluster) => cluster.descriptor(geometry),
        };
        Self { descriptor, bitmap: 0 }
    }

    /// Returns the first 64 bits: the descriptor with its two flags.
    #[inline]
    pub const fn descriptor(self) -> u64 {
        self.descriptor
    }

    /// Returns the last 64 bits of an extended entry.
    #[inline]
    pub const fn bitmap(self) -> u64 {
        self.bitmap
    }

    /// Returns whether the cluster's refcount is exactly one.
    #[inline]
    pub const fn copied(self) -> bool {
        self.descriptor & COPIED != 0
    }

    /// Returns where the cluster is. With extended L2 entries this is the cluster as a whole, `Data` if it has a host
    /// cluster, and [`L2Entry::subcluster_run`] says what its parts are.
    ///
    /// # Errors
    ///
    /// The fault, if the entry cannot be right. See [`L2Fault::at`].
    #[inline]
    pub fn cluster(&self, context: &L2Context) -> Result<ClusterKind, L2Fault> {
        let offset = self.descriptor & OFFSET_MASK;
        if self.descriptor & COMPRESSED != 0 {
            return self.compressed(context).map(ClusterKind::Compressed);
        }
        if context.geometry.offset_in_cluster(offset) != 0 {
            return Err(self.fault(Fault::Unaligned, context));
        }
        if self.descriptor & ZERO != 0 && !context.geometry.extended_l2() {
            if context.version == Version::V2 {
                return Err(self.fault(Fault::ZeroInV2, context));
            }
            let host = if offset == 0 { None } else { Some(HostOffset::new(offset)) };
            return Ok(ClusterKind::Zero { host });
        }
        if offset == 0 && !(context.data_file && self.copied()) {
            return Ok(ClusterKind::Unallocated);
        }
        Ok(ClusterKind::Data { host: HostOffset::new(offset) })
    }

    /// Does what [`L2Entry::cluster`] does, and checks that a cluster in a data file lies where the guest sees it.
    /// `guest` is any offset in the guest cluster.
    ///
    /// # Errors
    ///
    /// As [`L2Entry::cluster`], and if host and guest offset differ in an image with a data file.
    #[inline]
    pub fn cluster_for(
        &self,
        context: &L2Context,
        guest: GuestOffset,
    ) -> Result<ClusterKind, L2Fault> {
        let kind = self.cluster(context)?;
        if context.data_file {
            self.in_data_file(context, kind.host(), guest)?;
        }
        Ok(kind)
    }

    /// Returns the bits that are set, and that this kind of entry should not have: of the descriptor and of the bitmap.
    /// Readers ignore them, a check reports them.
    pub fn reserved_bits(&self, context: &L2Context) -> (u64, u64) {
        if self.descriptor & COMPRESSED != 0 {
            let above = self.descriptor & compressed_offset_mask(context.geometry);
            return (above & !(HOST_OFFSET_MAX - 1), self.bitmap);
        }
        let zero_allowed = context.version == Version::V3 && !context.geometry.extended_l2();
        let reserved = STANDARD_RESERVED | if zero_allowed { 0 } else { ZERO };
        (self.descriptor & reserved, 0)
    }

    #[inline]
    pub(super) fn in_data_file(
        &self,
        context: &L2Context,
        host: Option<HostOffset>,
        guest: GuestOffset,
    ) -> Result<(), L2Fault> {
        let guest = context.geometry.align_down(guest.get());
        match host {
            Some(host) if host.get() != guest => {
                Err(self.fault(Fault::DataFileOffset(GuestOffset::new(guest)), context))
            }
            _ => Ok(()),
        }
    }

    #[cold]
    pub(super) fn fault(&self, fault: Fault, context: &L2Context) -> L2Fault {
        L2Fault { entry: *self, fault, geometry: context.geometry }
    }

    #[inline]
    fn compressed(&self, context: &L2Context) -> Result<CompressedCluster, L2Fault> {
        if context.data_file {
            return Err(self.fault(Fault::CompressedWithDataFile, context));
        }
        let offset = self.descriptor & compressed_offset_mask(context.geometry);
        if offset >= HOST_OFFSET_MAX {
            return Err(self.fault(Fault::CompressedHostOffset, context));
        }
        let sectors =
            (self.descriptor & (COMPRESSED - 1)) >> compressed_offset_bits(context.geometry);
        let len = (sectors + 1) * SECTOR_LEN - offset % SECTOR_LEN;
        Ok(CompressedCluster { host: HostOffset::new(offset), len })
    }
}

/// Where a guest cluster is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ClusterKind {
    /// Nowhere: it reads as the backing file, or as zeros if there is none.
    Unallocated,
    /// It reads as zeros; a host cluster may be kept for it, and is not read.
    Zero {
        /// The host cluster kept for it.
        host: Option<HostOffset>,
    },
    /// In a host cluster.
    Data {
        /// The host cluster.
        host: HostOffset,
    },
    /// Compressed.
    Compressed(CompressedCluster),
}

impl ClusterKind {
    /// Returns the host cluster that belongs to the guest cluster; `None` if it is compressed or has none.
    #[inline]
    pub const fn host(self) -> Option<HostOffset> {
        match self {
            Self::Data { host } => Some(host),
            Self::Zero { host } => host,
            Self::Unallocated | Self::Compressed(_) => None,
        }
    }
}

/// Where the data of a compressed cluster is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CompressedCluster {
    /// First byte. Has no alignment.
    pub host: HostOffset,
    /// An upper bound of the length in bytes: up to the end of the last sector of 512 bytes. The stream may end earlier,
    /// the next one may start behind it, and the file may end before the sector does.
    pub len: u64,
}

impl CompressedCluster {
    /// Returns the descriptor with its compressed flag. Parts that do not fit are cut: at most a host offset of 49 bits
    /// and two clusters of data fit every cluster size.
    fn descriptor(self, geometry: Geometry) -> u64 {
        let offset = self.host.get() & compressed_offset_mask(geometry);
        let sectors = (offset % SECTOR_LEN + self.len).div_ceil(SECTOR_LEN).saturating_sub(1);
        (COMPRESSED | offset) | (sectors << compressed_offset_bits(geometry)) & (COMPRESSED - 1)
    }
}

/// What is wrong with an L2 entry. Small and free to make; [`L2Fault::at`] makes an error of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct L2Fault {
    entry: L2Entry,
    fault: Fault,
    geometry: Geometry,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    Unaligned,
    ZeroInV2,
    CompressedWithDataFile,
    CompressedHostOffset,
    SubclusterAllocatedAndZero,
    SubclusterAllocatedWithoutCluster,
    DataFileOffset(GuestOffset),
}

impl L2Fault {
    /// Makes the error: `table` is the host offset of the L2 table, `index` the entry's place in it.
    #[cold]
    pub fn at(self, table: HostOffset, index: u64) -> Error {
        let L2Entry { descriptor, bitmap } = self.entry;
        let offset = descriptor & OFFSET_MASK;
        let kind = match self.fault {
            Fault::Unaligned => {
                CorruptKind::L2EntryUnaligned { offset, alignment: self.geometry.cluster_size() }
            }
            Fault::ZeroInV2 => CorruptKind::ZeroFlagInV2 { descriptor },
            Fault::CompressedWithDataFile => CorruptKind::CompressedWithDataFile { descriptor },
            Fault::CompressedHostOffset => CorruptKind::CompressedHostOffset {
                offset: descriptor & compressed_offset_mask(self.geometry),
                max: HOST_OFFSET_MAX,
            },
            Fault::SubclusterAllocatedAndZero => {
                CorruptKind::SubclusterAllocatedAndZero { bits: bitmap & (bitmap >> 32) }
            }
            Fault::SubclusterAllocatedWithoutCluster => {
                CorruptKind::SubclusterAllocatedWithoutCluster {
                    bits: bitmap & u64::from(u32::MAX),
                }
            }
            Fault::DataFileOffset(guest) => {
                CorruptKind::DataFileOffset { host: offset, guest: guest.get() }
            }
        };
        Corrupt::new(kind, Structure::L2Table).at(table.get()).entry(index).into()
    }
}

/// The specification's x: 49 to 61.
#[inline]
const fn compressed_offset_bits(geometry: Geometry) -> u32 {
    62 - (geometry.cluster_bits() - 8)
}

#[inline]
const fn compressed_offset_mask(geometry: Geometry) -> u64 {
    (1 << compressed_offset_bits(geometry)) - 1
}
