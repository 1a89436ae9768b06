//! From bytes to a header: what is accepted, what is refused, in which order. As in qcow2.c:qcow2_do_open.

use std::collections::BTreeSet;

use super::{
    AUTOCLEAR_FEATURES, BACKING_FILE_OFFSET, BACKING_FILE_SIZE, CLUSTER_BITS, COMPATIBLE_FEATURES,
    COMPRESSION_TYPE, CRYPT_METHOD, Compression, CryptMethod, HEADER_LENGTH, Header,
    INCOMPATIBLE_FEATURES, L1_SIZE, L1_TABLE_OFFSET, LEN_V2, LEN_V3_MIN, MAGIC, NB_SNAPSHOTS,
    REFCOUNT_ORDER, REFCOUNT_TABLE_CLUSTERS, REFCOUNT_TABLE_OFFSET, SIZE, SNAPSHOTS_OFFSET,
    UNKNOWN_FIELDS, VERSION, to_usize,
};
use crate::error::{Corrupt, CorruptKind, Error, Result, Structure, Unsupported, UnsupportedKind};
use crate::format::addr::HostOffset;
use crate::format::bytes::{be32, be64};
use crate::format::extension::{Extension, RawExtensions};
use crate::format::feature::{
    Autoclear, Compatible, FeatureKind, FeatureNames, Incompatible, Version,
};
use crate::format::geometry::Geometry;
use crate::format::limits::{
    BACKING_NAME_LEN_BYTES_MAX, L1_ENTRIES_MAX, L1_LEN_BYTES_MAX, REFCOUNT_TABLE_LEN_BYTES_MAX,
    SNAPSHOTS_MAX, TABLE_END_MAX,
};

/// `refcount_order` of version 2: 16 bits.
const REFCOUNT_ORDER_V2: u32 = 4;
/// Fixed part of a snapshot table entry, in bytes: the least that each takes.
const SNAPSHOT_LEN_MIN: u64 = 40;

impl Header {
    /// Returns how many bytes from the start of the file [`Header::parse`] needs: the first cluster. Wants the first 512
    /// bytes, or the whole file if it is shorter.
    ///
    /// # Errors
    ///
    /// `Unsupported` if this is not qcow2, nor version 2 or 3, nor a cluster size up to 2 MiB; `Corrupt` if the bytes end
    /// within the header or the cluster size is less than 512.
    pub fn probe_len(first_512: &[u8]) -> Result<usize> {
        let (_, cluster_bits) = probe(first_512)?;
        let geometry = Geometry::new(cluster_bits, false, REFCOUNT_ORDER_V2)?;
        // At most 2 MiB.
        #[allow(clippy::cast_possible_truncation)]
        let len = geometry.cluster_size() as usize;
        Ok(len)
    }

    /// Parses the first cluster, of which `bytes` may lack what lies past the end of a file of `file_len` bytes. An image
    /// with the dirty or the corrupt bit is parsed like any other.
    ///
    /// # Errors
    ///
    /// `Corrupt` and `Unsupported` wherever QEMU refuses to open an image, and if the L1 table ends past the end of the
    /// file.
    pub fn parse(bytes: &[u8], file_len: u64) -> Result<Self> {
        let header = Self::parse_for_check(bytes, file_len)?;
        if header.refcount_table_clusters == 0 {
            return Err(corrupt(CorruptKind::RefcountTableMissing, REFCOUNT_TABLE_CLUSTERS));
        }
        header.validate_snapshot_table()?;
        Ok(header)
    }

    /// Does what [`Header::parse`] does, and accepts what a check can report and repair: an image without a refcount
    /// table, and any offset and number of snapshots.
    ///
    /// # Errors
    ///
    /// As [`Header::parse`] but for these.
    pub fn parse_for_check(bytes: &[u8], file_len: u64) -> Result<Self> {
        let (version, cluster_bits) = probe(bytes)?;
        // The cluster size comes first: offsets and lengths below are held against it.
        let cluster_size = Geometry::new(cluster_bits, false, REFCOUNT_ORDER_V2)?.cluster_size();
        let fields = VersionFields::parse(bytes, version, cluster_size)?;
        let header_len = fields.header_len;

        let backing_offset = be64(bytes, BACKING_FILE_OFFSET);
        if backing_offset > cluster_size {
            let kind = CorruptKind::BackingFileOffset { offset: backing_offset, max: cluster_size };
            return Err(corrupt(kind, BACKING_FILE_OFFSET));
        }
        let extensions_end = if backing_offset == 0 { cluster_size } else { backing_offset };
        let area = &bytes[..bytes.len().min(to_usize(extensions_end))];

        let compression = fields.compression()?;
        if fields.incompatible.unknown() != 0 {
            return Err(unknown_features(fields.incompatible, area, header_len));
        }
        let extended_l2 = fields.incompatible.contains(Incompatible::EXTENDED_L2);
        let geometry = Geometry::new(cluster_bits, extended_l2, fields.refcount_order)?;
        let crypt = match be32(bytes, CRYPT_METHOD) {
            0 => CryptMethod::None,
            1 => CryptMethod::Aes,
            2 => CryptMethod::Luks,
            value => {
                let kind = UnsupportedKind::CryptMethod { value };
                return Err(unsupported(kind, CRYPT_METHOD));
            }
        };
        let mut header = Self {
            version,
            geometry,
            backing_file: None,
            size: be64(bytes, SIZE),
            crypt,
            l1_entries: be32(bytes, L1_SIZE),
            l1_table_offset: HostOffset::new(be64(bytes, L1_TABLE_OFFSET)),
            refcount_table_offset: HostOffset::new(be64(bytes, REFCOUNT_TABLE_OFFSET)),
            refcount_table_clusters: be32(bytes, REFCOUNT_TABLE_CLUSTERS),
            snapshot_count: be32(bytes, NB_SNAPSHOTS),
            snapshot_table_offset: HostOffset::new(be64(bytes, SNAPSHOTS_OFFSET)),
            incompatible: fields.incompatible,
            compatible: fields.compatible,
            autoclear: fields.autoclear,
            compression,
            unknown_fields: unknown_fields(bytes, header_len),
            extensions: Vec::new(),
        };
        header.validate_refcount_table()?;
        header.validate_l1_table(file_len)?;
        header.parse_extensions(area, header_len)?;
        header.validate_features()?;
        if backing_offset != 0 {
            header.backing_file = backing_name(bytes, backing_offset, cluster_size)?;
        }
        Ok(header)
    }

    /// Returns what the specification forbids in the first cluster and [`Header::parse`], like QEMU, accepts: a length
    /// that is not a multiple of 8, padding that is not zero, an extension that comes twice, a bitmaps bit without the
    /// extension. Says nothing of bytes that it cannot parse.
    pub fn deviations(bytes: &[u8]) -> Vec<Corrupt> {
        let Ok(header) = Self::parse_for_check(bytes, u64::MAX) else {
            return Vec::new();
        };
        let place = |kind, at: usize| Corrupt::new(kind, Structure::Header).at(at as u64);
        let mut found = Vec::new();
        if header.version == Version::V3 {
            let value = be32(bytes, HEADER_LENGTH);
            if !value.is_multiple_of(8) {
                found.push(place(CorruptKind::HeaderLengthUnaligned { value }, HEADER_LENGTH));
            }
            let mut padding = [0; 8];
            for (to, from) in padding.iter_mut().skip(1).zip(&header.unknown_fields) {
                *to = *from;
            }
            let padding = u64::from_be_bytes(padding);
            if padding != 0 {
                found.push(place(CorruptKind::HeaderPadding { padding }, UNKNOWN_FIELDS));
            }
        }
        if header.autoclear.contains(Autoclear::BITMAPS) && header.bitmaps().is_none() {
            found.push(place(CorruptKind::BitmapsExtensionMissing, AUTOCLEAR_FEATURES));
        }
        let mut kinds = BTreeSet::new();
        let mut at = header.header_len();
        for extension in &header.extensions {
            let kind = extension.kind();
            if !kinds.insert(kind) {
                let duplicate = CorruptKind::ExtensionDuplicate { kind };
                found.push(Corrupt::new(duplicate, Structure::HeaderExtension).at(at));
            }
            let mut encoded = Vec::new();
            if extension.encode(&mut encoded).is_ok() {
                at += encoded.len() as u64;
            }
        }
        found
    }
}

/// Parts of [`Header::parse_for_check`].
impl Header {
    fn validate_refcount_table(&self) -> Result<()> {
        let (offset, len) = (self.refcount_table_offset, self.refcount_table_len());
        if len > REFCOUNT_TABLE_LEN_BYTES_MAX {
            let max = REFCOUNT_TABLE_LEN_BYTES_MAX;
            let kind = UnsupportedKind::RefcountTableTooLarge { len, max };
            return Err(unsupported(kind, REFCOUNT_TABLE_CLUSTERS));
        }
        let (offset, alignment) = (offset.get(), self.geometry.cluster_size());
        if ends_too_far(offset, len) {
            let kind = CorruptKind::RefcountTableOverflow { offset, len };
            return Err(corrupt(kind, REFCOUNT_TABLE_OFFSET));
        }
        if self.geometry.offset_in_cluster(offset) != 0 {
            let kind = CorruptKind::RefcountTableUnaligned { offset, alignment };
            return Err(corrupt(kind, REFCOUNT_TABLE_OFFSET));
        }
        Ok(())
    }

    fn validate_snapshot_table(&self) -> Result<()> {
        if self.snapshot_count > SNAPSHOTS_MAX {
            let (count, max) = (self.snapshot_count, SNAPSHOTS_MAX);
            return Err(unsupported(
                UnsupportedKind::SnapshotsTooMany { count, max },
                NB_SNAPSHOTS,
            ));
        }
        let offset = self.snapshot_table_offset.get();
        let len = u64::from(self.snapshot_count) * SNAPSHOT_LEN_MIN;
        let alignment = self.geometry.cluster_size();
        if ends_too_far(offset, len) {
            let kind = CorruptKind::SnapshotTableOverflow { offset, len };
            return Err(corrupt(kind, SNAPSHOTS_OFFSET));
        }
        if self.geometry.offset_in_cluster(offset) != 0 {
            let kind = CorruptKind::SnapshotTableUnaligned { offset, alignment };
            return Err(corrupt(kind, SNAPSHOTS_OFFSET));
        }
        Ok(())
    }

    fn validate_l1_table(&self, file_len: u64) -> Result<()> {
        let (offset, len) = (self.l1_table_offset.get(), self.l1_table_len());
        let alignment = self.geometry.cluster_size();
        if len > L1_LEN_BYTES_MAX {
            let kind = UnsupportedKind::L1TableTooLarge { len, max: L1_LEN_BYTES_MAX };
            return Err(unsupported(kind, L1_SIZE));
        }
        if ends_too_far(offset, len) {
            return Err(corrupt(CorruptKind::L1TableOverflow { offset, len }, L1_TABLE_OFFSET));
        }
        if self.geometry.offset_in_cluster(offset) != 0 {
            let kind = CorruptKind::L1TableUnaligned { offset, alignment };
            return Err(corrupt(kind, L1_TABLE_OFFSET));
        }
        let needed = self.geometry.l1_entries_for(self.size);
        if needed > L1_ENTRIES_MAX {
            return Err(unsupported(UnsupportedKind::ImageTooBig { size: self.size }, SIZE));
        }
        if u64::from(self.l1_entries) < needed {
            let kind = CorruptKind::L1TableTooSmall { entries: self.l1_entries, needed };
            return Err(corrupt(kind, L1_SIZE));
        }
        if len != 0 && offset + len > file_len {
            let kind = CorruptKind::L1TablePastEnd { offset, len, file_len };
            return Err(corrupt(kind, L1_TABLE_OFFSET));
        }
        Ok(())
    }

    fn parse_extensions(&mut self, area: &[u8], header_len: usize) -> Result<()> {
        for raw in RawExtensions::new(area, header_len) {
            let raw = raw?;
            let extension = match Extension::parse(raw.kind, raw.data, raw.at) {
                // That the method has no extension is said before that the extension is malformed.
                _ if raw.kind == Extension::CRYPTO_HEADER && self.crypt != CryptMethod::Luks => {
                    let kind =
                        CorruptKind::CryptoExtensionUnexpected { method: self.crypt.number() };
                    return Err(Corrupt::new(kind, Structure::HeaderExtension).at(raw.at).into());
                }
                extension => extension?,
            };
            match &extension {
                Extension::CryptoHeader(crypto) => crypto.validate(self.geometry, raw.at)?,
                Extension::Bitmaps(bitmaps) if self.autoclear.contains(Autoclear::BITMAPS) => {
                    bitmaps.validate(self.geometry, raw.at)?;
                }
                _ => {}
            }
            self.extensions.push(extension);
        }
        Ok(())
    }

    fn validate_features(&self) -> Result<()> {
        if self.autoclear.contains(Autoclear::DATA_FILE_RAW) && !self.has_data_file() {
            return Err(corrupt(CorruptKind::DataFileRawWithoutDataFile, AUTOCLEAR_FEATURES));
        }
        if self.crypt == CryptMethod::Luks && self.crypto_header().is_none() {
            return Err(corrupt(CorruptKind::CryptoExtensionMissing, CRYPT_METHOD));
        }
        Ok(())
    }
}

/// What version 3 says and version 2 implies.
struct VersionFields {
    incompatible: Incompatible,
    compatible: Compatible,
    autoclear: Autoclear,
    refcount_order: u32,
    header_len: usize,
    compression_type: u8,
}

impl VersionFields {
    fn parse(bytes: &[u8], version: Version, cluster_size: u64) -> Result<Self> {
        if version == Version::V2 {
            return Ok(Self {
                incompatible: Incompatible::default(),
                compatible: Compatible::default(),
                autoclear: Autoclear::default(),
                refcount_order: REFCOUNT_ORDER_V2,
                header_len: LEN_V2,
                compression_type: 0,
            });
        }
        need(bytes, LEN_V3_MIN)?;
        let value = be32(bytes, HEADER_LENGTH);
        let header_len = to_usize(u64::from(value));
        if header_len < LEN_V3_MIN {
            let kind = CorruptKind::HeaderLengthTooSmall { value, min: 104 };
            return Err(corrupt(kind, HEADER_LENGTH));
        }
        if u64::from(value) > cluster_size {
            let kind = CorruptKind::HeaderLengthExceedsCluster { value, cluster_size };
            return Err(corrupt(kind, HEADER_LENGTH));
        }
        need(bytes, header_len)?;
        Ok(Self {
            incompatible: Incompatible::from_raw(be64(bytes, INCOMPATIBLE_FEATURES)),
            compatible: Compatible::from_raw(be64(bytes, COMPATIBLE_FEATURES)),
            autoclear: Autoclear::from_raw(be64(bytes, AUTOCLEAR_FEATURES)),
            refcount_order: be32(bytes, REFCOUNT_ORDER),
            header_len,
            compression_type: if header_len > COMPRESSION_TYPE {
                bytes[COMPRESSION_TYPE]
            } else {
                0
            },
        })
    }

    /// The compression type, held against its incompatible bit.
    fn compression(&self) -> Result<Compression> {
        let bit = self.incompatible.contains(Incompatible::COMPRESSION_TYPE);
        match (self.compression_type, bit) {
            (0, false) => Ok(Compression::Deflate),
            (1, true) => Ok(Compression::Zstd),
            (0, true) => Err(corrupt(CorruptKind::CompressionBitSet, INCOMPATIBLE_FEATURES)),
            (value @ 1, false) => {
                Err(corrupt(CorruptKind::CompressionBitMissing { value }, INCOMPATIBLE_FEATURES))
            }
            (value, _) => {
                Err(unsupported(UnsupportedKind::CompressionType { value }, COMPRESSION_TYPE))
            }
        }
    }
}

/// Checks magic, length and version, and reads `cluster_bits`.
fn probe(bytes: &[u8]) -> Result<(Version, u32)> {
    if !bytes.starts_with(&MAGIC) {
        return Err(unsupported(UnsupportedKind::NotQcow2, 0));
    }
    need(bytes, LEN_V2)?;
    let version = match be32(bytes, VERSION) {
        2 => Version::V2,
        3 => Version::V3,
        value => return Err(unsupported(UnsupportedKind::Version { value }, VERSION)),
    };
    Ok((version, be32(bytes, CLUSTER_BITS)))
}

fn need(bytes: &[u8], needed: usize) -> Result<()> {
    if bytes.len() < needed {
        let (len, needed) = (bytes.len() as u64, needed as u64);
        return Err(corrupt(CorruptKind::HeaderTruncated { len, needed }, 0));
    }
    Ok(())
}

/// What follows `compression_type`, filled up with zeros as if the header's length were a multiple of 8.
fn unknown_fields(bytes: &[u8], header_len: usize) -> Vec<u8> {
    if header_len <= COMPRESSION_TYPE {
        return Vec::new();
    }
    let mut fields = bytes[UNKNOWN_FIELDS..header_len].to_vec();
    fields.resize(header_len.next_multiple_of(8) - UNKNOWN_FIELDS, 0);
    fields
}

/// The error that names unknown incompatible features, by the image's feature name table where it can.
fn unknown_features(incompatible: Incompatible, area: &[u8], header_len: usize) -> Error {
    // As in QEMU: what comes behind a malformed extension is not looked at, and the last table counts.
    let table = RawExtensions::new(area, header_len)
        .map_while(|extension| extension.ok())
        .filter(|extension| extension.kind == Extension::FEATURE_NAMES)
        .last()
        .map(|extension| FeatureNames::from_bytes(extension.data.to_vec()));
    let mut unknown = incompatible.unknown();
    let mut names = Vec::new();
    for entry in table.iter().flat_map(FeatureNames::iter) {
        let Some(bit) = 1_u64.checked_shl(u32::from(entry.bit)) else { continue };
        if entry.kind == FeatureKind::Incompatible && unknown & bit != 0 && !entry.name.is_empty() {
            names.push(String::from_utf8_lossy(entry.name).into_owned());
            unknown &= !bit;
        }
    }
    if unknown != 0 {
        names.push(format!("Unknown incompatible feature: {unknown:x}"));
    }
    let names = names.join(", ");
    unsupported(UnsupportedKind::IncompatibleFeatures { names }, INCOMPATIBLE_FEATURES)
}

fn backing_name(bytes: &[u8], offset: u64, cluster_size: u64) -> Result<Option<Vec<u8>>> {
    let len = be32(bytes, BACKING_FILE_SIZE);
    let max = u64::from(BACKING_NAME_LEN_BYTES_MAX).min(cluster_size - offset);
    if u64::from(len) > max {
        let kind = CorruptKind::BackingFileNameTooLong { len, max };
        return Err(corrupt(kind, BACKING_FILE_SIZE));
    }
    let (start, end) = (to_usize(offset), to_usize(offset + u64::from(len)));
    need(bytes, end)?;
    Ok(if len == 0 { None } else { Some(bytes[start..end].to_vec()) })
}

/// Whether a table ends beyond 2^63, where QEMU's offsets do.
fn ends_too_far(offset: u64, len: u64) -> bool {
    offset.checked_add(len).is_none_or(|end| end > TABLE_END_MAX)
}

fn corrupt(kind: CorruptKind, at: usize) -> Error {
    Corrupt::new(kind, Structure::Header).at(at as u64).into()
}

fn unsupported(kind: UnsupportedKind, at: usize) -> Error {
    Unsupported::new(kind, Structure::Header).at(at as u64).into()
}
