//! The header, in the first cluster.
//!
//! | offset | size | field | meaning |
//! |---|---|---|---|
//! | 0 | 4 | magic | "QFI\xfb" |
//! | 4 | 4 | version | 2 or 3 |
//! | 8 | 8 | backing_file_offset | where the backing file's name is; 0: no backing file |
//! | 16 | 4 | backing_file_size | its length in bytes, at most 1023 |
//! | 20 | 4 | cluster_bits | 9 to 21, at least 14 with extended L2 entries |
//! | 24 | 8 | size | of the virtual disk in bytes |
//! | 32 | 4 | crypt_method | 0 none, 1 AES, 2 LUKS |
//! | 36 | 4 | l1_size | number of entries of the active L1 table |
//! | 40 | 8 | l1_table_offset | aligned to a cluster |
//! | 48 | 8 | refcount_table_offset | aligned to a cluster |
//! | 56 | 4 | refcount_table_clusters | length of the refcount table |
//! | 60 | 4 | nb_snapshots | number of snapshots |
//! | 64 | 8 | snapshots_offset | aligned to a cluster |
//!
//! Version 2 ends here, at 72 bytes. Version 3:
//!
//! | offset | size | field | meaning |
//! |---|---|---|---|
//! | 72 | 8 | incompatible_features | see [`Incompatible`] |
//! | 80 | 8 | compatible_features | see [`Compatible`] |
//! | 88 | 8 | autoclear_features | see [`Autoclear`] |
//! | 96 | 4 | refcount_order | binary logarithm of the width of refcounts in bits, at most 6 |
//! | 100 | 4 | header_length | at least 104, a multiple of 8 |
//! | 104 | 1 | compression_type | 0 deflate, 1 zstd; absent (0) if header_length is 104 |
//! | 105 | - | | padding and fields that this crate does not know: kept |
//!
//! Header extensions follow, then the backing file's name, all in the first cluster.
//!
//! Spec: qcow2, Header. What is refused, and in which order, is as in qcow2.c:qcow2_do_open.

mod parse;

use super::addr::HostOffset;
use super::bytes::{pad_to_8, put};
use super::extension::{BitmapsExtension, CryptoHeader, Extension};
use super::feature::{Autoclear, Compatible, FeatureNames, Incompatible, Version};
use super::geometry::Geometry;
use super::l1::L1Entry;
use super::l2::L2Context;
use super::limits::BACKING_NAME_LEN_BYTES_MAX;
use crate::error::{Error, Result};

const MAGIC: [u8; 4] = *b"QFI\xfb";

const VERSION: usize = 4;
const BACKING_FILE_OFFSET: usize = 8;
const BACKING_FILE_SIZE: usize = 16;
const CLUSTER_BITS: usize = 20;
const SIZE: usize = 24;
const CRYPT_METHOD: usize = 32;
const L1_SIZE: usize = 36;
const L1_TABLE_OFFSET: usize = 40;
const REFCOUNT_TABLE_OFFSET: usize = 48;
const REFCOUNT_TABLE_CLUSTERS: usize = 56;
const NB_SNAPSHOTS: usize = 60;
const SNAPSHOTS_OFFSET: usize = 64;
const INCOMPATIBLE_FEATURES: usize = 72;
const COMPATIBLE_FEATURES: usize = 80;
const AUTOCLEAR_FEATURES: usize = 88;
const REFCOUNT_ORDER: usize = 96;
const HEADER_LENGTH: usize = 100;
const COMPRESSION_TYPE: usize = 104;
const UNKNOWN_FIELDS: usize = 105;

/// Length of a version 2 header.
const LEN_V2: usize = 72;
/// Least length of a version 3 header.
const LEN_V3_MIN: usize = 104;

/// How compressed clusters are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compression {
    /// Raw deflate, which QEMU calls zlib.
    Deflate,
    /// Zstandard.
    Zstd,
}

/// How guest data is encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CryptMethod {
    /// Not.
    None,
    /// AES-CBC, the old method.
    Aes,
    /// LUKS; the crypto header says the rest.
    Luks,
}

impl CryptMethod {
    const fn number(self) -> u32 {
        match self {
            Self::None => 0,
            Self::Aes => 1,
            Self::Luks => 2,
        }
    }
}

/// The header with its extensions and the backing file's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The version.
    pub version: Version,
    geometry: Geometry,
    /// The backing file's name as it stands in the image; never empty.
    pub backing_file: Option<Vec<u8>>,
    /// Size of the virtual disk in bytes, as it stands in the image: QEMU rounds it down to a multiple of 512.
    pub size: u64,
    /// How guest data is encrypted.
    pub crypt: CryptMethod,
    /// Number of entries of the active L1 table.
    pub l1_entries: u32,
    /// Where the active L1 table is.
    pub l1_table_offset: HostOffset,
    /// Where the refcount table is.
    pub refcount_table_offset: HostOffset,
    /// Length of the refcount table in clusters.
    pub refcount_table_clusters: u32,
    /// Number of snapshots.
    pub snapshot_count: u32,
    /// Where the snapshot table is.
    pub snapshot_table_offset: HostOffset,
    /// Features without which the image cannot be read. The extended L2 bit follows from the geometry.
    pub incompatible: Incompatible,
    /// Features that can be ignored.
    pub compatible: Compatible,
    /// Features that a writer who does not know them clears.
    pub autoclear: Autoclear,
    /// How compressed clusters are compressed.
    pub compression: Compression,
    /// What follows `compression_type` in the header: padding and fields that this crate does not know. With
    /// `compression_type` a multiple of 8 bytes long, or empty in a header that ends before that field.
    pub unknown_fields: Vec<u8>,
    /// The header extensions in their order.
    pub extensions: Vec<Extension>,
}

impl Header {
    /// Length in bytes of what [`Header::probe_len`] wants to see: a sector.
    pub const PROBE_LEN: usize = 512;

    /// Makes the header of an empty image: a disk of no bytes, no tables, no features but the geometry's.
    pub fn new(version: Version, geometry: Geometry) -> Self {
        let none = HostOffset::new(0);
        Self {
            version,
            geometry,
            backing_file: None,
            size: 0,
            crypt: CryptMethod::None,
            l1_entries: 0,
            l1_table_offset: none,
            refcount_table_offset: none,
            refcount_table_clusters: 0,
            snapshot_count: 0,
            snapshot_table_offset: none,
            incompatible: Incompatible::default()
                .with(Incompatible::EXTENDED_L2, geometry.extended_l2()),
            compatible: Compatible::default(),
            autoclear: Autoclear::default(),
            compression: Compression::Deflate,
            unknown_fields: match version {
                Version::V2 => Vec::new(),
                // Padding behind `compression_type`, as QEMU writes it.
                Version::V3 => vec![0; 7],
            },
            extensions: Vec::new(),
        }
    }

    /// Encodes header, extensions and the backing file's name: what the first cluster starts with. The rest of the cluster
    /// is zeros.
    ///
    /// # Errors
    ///
    /// `LimitExceeded` if it does not fit the first cluster; `InvalidArgument` if the fields contradict each other (say,
    /// version 2 with feature bits, or zstd without the compression type bit), or what [`Header::parse_for_check`] says
    /// of it.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let mut bytes = vec![0; LEN_V2];
        put(&mut bytes, 0, MAGIC);
        put(&mut bytes, VERSION, self.version.number().to_be_bytes());
        put(&mut bytes, CLUSTER_BITS, self.geometry.cluster_bits().to_be_bytes());
        put(&mut bytes, SIZE, self.size.to_be_bytes());
        put(&mut bytes, CRYPT_METHOD, self.crypt.number().to_be_bytes());
        put(&mut bytes, L1_SIZE, self.l1_entries.to_be_bytes());
        put(&mut bytes, L1_TABLE_OFFSET, self.l1_table_offset.get().to_be_bytes());
        put(&mut bytes, REFCOUNT_TABLE_OFFSET, self.refcount_table_offset.get().to_be_bytes());
        put(&mut bytes, REFCOUNT_TABLE_CLUSTERS, self.refcount_table_clusters.to_be_bytes());
        put(&mut bytes, NB_SNAPSHOTS, self.snapshot_count.to_be_bytes());
        put(&mut bytes, SNAPSHOTS_OFFSET, self.snapshot_table_offset.get().to_be_bytes());
        if self.version == Version::V3 {
            self.encode_v3(&mut bytes);
        }
        for extension in &self.extensions {
            extension.encode(&mut bytes)?;
        }
        Extension::encode_end(&mut bytes);
        if let Some(name) = &self.backing_file {
            let len = u32::try_from(name.len()).unwrap_or(u32::MAX);
            if len > BACKING_NAME_LEN_BYTES_MAX {
                return Err(Error::LimitExceeded {
                    what: "backing file name bytes",
                    value: u64::from(len),
                    limit: u64::from(BACKING_NAME_LEN_BYTES_MAX),
                });
            }
            let offset = bytes.len() as u64;
            put(&mut bytes, BACKING_FILE_OFFSET, offset.to_be_bytes());
            put(&mut bytes, BACKING_FILE_SIZE, len.to_be_bytes());
            bytes.extend_from_slice(name);
        }
        let (len, cluster_size) = (bytes.len() as u64, self.geometry.cluster_size());
        if len > cluster_size {
            let what = "header bytes";
            return Err(Error::LimitExceeded { what, value: len, limit: cluster_size });
        }
        // Nothing is written that would not be read as what was meant. The cluster's rest counts: a reader sees zeros.
        let encoded_len = bytes.len();
        bytes.resize(to_usize(cluster_size), 0);
        if Self::parse_for_check(&bytes, u64::MAX)? != *self {
            return Err(Error::InvalidArgument("header fields contradict each other".to_owned()));
        }
        bytes.truncate(encoded_len);
        Ok(bytes)
    }

    /// Returns the geometry.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Sets the geometry. Only the width of refcounts can change in an image that has data.
    pub(crate) fn set_geometry(&mut self, geometry: Geometry) {
        self.geometry = geometry;
    }

    /// Returns what is needed to understand L2 entries.
    pub fn l2_context(&self) -> L2Context {
        L2Context::new(self.geometry, self.version, self.has_data_file())
    }

    /// Returns the length of the header without extensions, in bytes: 72 for version 2, else at least 104.
    pub fn header_len(&self) -> u64 {
        let len = match (self.version, self.compression) {
            (Version::V2, _) => LEN_V2,
            (Version::V3, Compression::Deflate) if self.unknown_fields.is_empty() => LEN_V3_MIN,
            (Version::V3, _) => (UNKNOWN_FIELDS + self.unknown_fields.len()).next_multiple_of(8),
        };
        len as u64
    }

    /// Returns the length of the active L1 table in bytes.
    pub fn l1_table_len(&self) -> u64 {
        u64::from(self.l1_entries) * L1Entry::LEN
    }

    /// Returns the length of the refcount table in bytes.
    pub fn refcount_table_len(&self) -> u64 {
        u64::from(self.refcount_table_clusters) << self.geometry.cluster_bits()
    }

    /// Returns whether guest clusters are in an external data file.
    pub fn has_data_file(&self) -> bool {
        self.incompatible.contains(Incompatible::DATA_FILE)
    }

    /// Returns the backing file's format, if an extension tells it. Of several the last counts, as in QEMU.
    pub fn backing_format(&self) -> Option<&[u8]> {
        self.extensions.iter().rev().find_map(|extension| match extension {
            Extension::BackingFormat(format) => Some(format.as_slice()),
            _ => None,
        })
    }

    /// Returns the external data file's name, if an extension tells it.
    pub fn data_file(&self) -> Option<&[u8]> {
        self.extensions.iter().rev().find_map(|extension| match extension {
            Extension::DataFile(name) => Some(name.as_slice()),
            _ => None,
        })
    }

    /// Returns where the bitmap directory is, if there is one and the autoclear bit says that it can be relied on.
    pub fn bitmaps(&self) -> Option<BitmapsExtension> {
        if !self.autoclear.contains(Autoclear::BITMAPS) {
            return None;
        }
        self.extensions.iter().rev().find_map(|extension| match extension {
            Extension::Bitmaps(bitmaps) => Some(*bitmaps),
            _ => None,
        })
    }

    /// Returns where the encryption header is.
    pub fn crypto_header(&self) -> Option<CryptoHeader> {
        self.extensions.iter().rev().find_map(|extension| match extension {
            Extension::CryptoHeader(crypto) => Some(*crypto),
            _ => None,
        })
    }

    /// Returns the feature name table.
    pub fn feature_names(&self) -> Option<&FeatureNames> {
        self.extensions.iter().rev().find_map(|extension| match extension {
            Extension::FeatureNames(names) => Some(names),
            _ => None,
        })
    }

    fn encode_v3(&self, bytes: &mut Vec<u8>) {
        let header_len = u32::try_from(self.header_len()).unwrap_or(u32::MAX);
        bytes.resize(LEN_V3_MIN, 0);
        put(bytes, INCOMPATIBLE_FEATURES, self.incompatible.raw().to_be_bytes());
        put(bytes, COMPATIBLE_FEATURES, self.compatible.raw().to_be_bytes());
        put(bytes, AUTOCLEAR_FEATURES, self.autoclear.raw().to_be_bytes());
        put(bytes, REFCOUNT_ORDER, self.geometry.refcount_order().to_be_bytes());
        put(bytes, HEADER_LENGTH, header_len.to_be_bytes());
        if self.header_len() > LEN_V3_MIN as u64 {
            bytes.push(match self.compression {
                Compression::Deflate => 0,
                Compression::Zstd => 1,
            });
            bytes.extend_from_slice(&self.unknown_fields);
            pad_to_8(bytes);
        }
    }
}

/// An offset or a length in the first cluster: at most 32 bits, and a `usize` has at least as many on every target.
#[allow(clippy::cast_possible_truncation)]
fn to_usize(value: u64) -> usize {
    value as usize
}
