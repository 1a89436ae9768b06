//! Header extensions: typed records between the header and the backing file's name.
//!
//! | offset | size | field | meaning |
//! |---|---|---|---|
//! | 0 | 4 | type | 0 ends the area |
//! | 4 | 4 | length | of the data |
//! | 8 | length | data | |
//! | 8 + length | 0 - 7 | padding | up to a multiple of 8 |
//!
//! | type | data |
//! |---|---|
//! | 0xe2792aca | the backing file's format, a string |
//! | 0x6803f857 | the feature name table, see [`super::feature::FeatureNames`] |
//! | 0x23852875 | where the bitmap directory is, see [`BitmapsExtension`] |
//! | 0x0537be77 | where the encryption header is, see [`CryptoHeader`] |
//! | 0x44415441 | the external data file's name, a string |
//!
//! Spec: qcow2, Header extensions. Matches qcow2.c:qcow2_read_extensions.

use super::addr::HostOffset;
use super::bytes::{be32, be64, pad_to_8};
use super::feature::FeatureNames;
use super::geometry::Geometry;
use super::limits::{BACKING_FORMAT_LEN_BYTES_MAX, BITMAP_DIRECTORY_LEN_BYTES_MAX, BITMAPS_MAX};
use crate::error::{Corrupt, CorruptKind, Error, Result, Structure, Unsupported, UnsupportedKind};

const END: u32 = 0;
const BACKING_FORMAT: u32 = 0xe279_2aca;
const FEATURE_NAMES: u32 = 0x6803_f857;
const BITMAPS: u32 = 0x2385_2875;
const CRYPTO_HEADER: u32 = 0x0537_be77;
const DATA_FILE: u32 = 0x4441_5441;

/// Length of type and length.
const PREFIX_LEN: usize = 8;

/// One header extension. The end of the area is not one of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Extension {
    /// The backing file's format: "qcow2", "raw"...
    BackingFormat(Vec<u8>),
    /// Names of feature bits.
    FeatureNames(FeatureNames),
    /// Where the bitmap directory is.
    Bitmaps(BitmapsExtension),
    /// Where the encryption header is.
    CryptoHeader(CryptoHeader),
    /// The external data file's name.
    DataFile(Vec<u8>),
    /// An extension that this crate does not know. It is kept.
    Unknown {
        /// Its type.
        kind: u32,
        /// Its data, without padding.
        data: Vec<u8>,
    },
}

impl Extension {
    pub(in crate::format) const CRYPTO_HEADER: u32 = CRYPTO_HEADER;
    pub(in crate::format) const FEATURE_NAMES: u32 = FEATURE_NAMES;

    /// Returns the number of the type.
    pub fn kind(&self) -> u32 {
        match self {
            Self::BackingFormat(_) => BACKING_FORMAT,
            Self::FeatureNames(_) => FEATURE_NAMES,
            Self::Bitmaps(_) => BITMAPS,
            Self::CryptoHeader(_) => CRYPTO_HEADER,
            Self::DataFile(_) => DATA_FILE,
            Self::Unknown { kind, .. } => *kind,
        }
    }

    /// Parses one extension's data; `at` is the offset of the extension in the file, for the message.
    ///
    /// # Errors
    ///
    /// `Corrupt` if the data has the wrong length for its type; `Unsupported` if a backing format is longer than 15 bytes.
    pub fn parse(kind: u32, data: &[u8], at: u64) -> Result<Self> {
        // At most 2 MiB, so nothing is lost.
        let len = u32::try_from(data.len()).unwrap_or(u32::MAX);
        Ok(match kind {
            BACKING_FORMAT => {
                if len > BACKING_FORMAT_LEN_BYTES_MAX {
                    let max = BACKING_FORMAT_LEN_BYTES_MAX;
                    let kind = UnsupportedKind::BackingFormatTooLong { len, max };
                    return Err(Unsupported::new(kind, Structure::HeaderExtension).at(at).into());
                }
                Self::BackingFormat(data.to_vec())
            }
            FEATURE_NAMES => Self::FeatureNames(FeatureNames::from_bytes(data.to_vec())),
            BITMAPS => {
                if data.len() != BitmapsExtension::LEN {
                    return Err(corrupt(CorruptKind::BitmapsExtensionLength { len }, at));
                }
                Self::Bitmaps(BitmapsExtension {
                    count: be32(data, 0),
                    reserved: be32(data, 4),
                    directory_len: be64(data, 8),
                    directory_offset: HostOffset::new(be64(data, 16)),
                })
            }
            CRYPTO_HEADER => {
                if data.len() != CryptoHeader::LEN {
                    return Err(corrupt(CorruptKind::CryptoExtensionLength { len }, at));
                }
                Self::CryptoHeader(CryptoHeader {
                    offset: HostOffset::new(be64(data, 0)),
                    len: be64(data, 8),
                })
            }
            DATA_FILE => Self::DataFile(data.to_vec()),
            kind => Self::Unknown { kind, data: data.to_vec() },
        })
    }

    /// Appends type, length, data and padding.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` if an unknown extension has type 0, which ends the area, or the data is too long for its length
    /// field.
    pub fn encode(&self, into: &mut Vec<u8>) -> Result<()> {
        let fixed: Vec<u8>;
        let data = match self {
            Self::BackingFormat(data) | Self::DataFile(data) | Self::Unknown { data, .. } => data,
            Self::FeatureNames(names) => names.as_bytes(),
            Self::Bitmaps(bitmaps) => {
                fixed = bitmaps.encode();
                &fixed
            }
            Self::CryptoHeader(crypto) => {
                fixed = crypto.encode();
                &fixed
            }
        };
        let kind = self.kind();
        if kind == END {
            return Err(Error::InvalidArgument("header extension of type 0".to_owned()));
        }
        let len = u32::try_from(data.len())
            .map_err(|_| Error::InvalidArgument("header extension beyond 4 GiB".to_owned()))?;
        into.extend_from_slice(&kind.to_be_bytes());
        into.extend_from_slice(&len.to_be_bytes());
        into.extend_from_slice(data);
        pad_to_8(into);
        Ok(())
    }

    /// Appends the mark that ends the area.
    pub(in crate::format) fn encode_end(into: &mut Vec<u8>) {
        into.extend_from_slice(&[0; PREFIX_LEN]);
    }
}

/// The data of the bitmaps extension.
///
/// | offset | size | field | meaning |
/// |---|---|---|---|
/// | 0 | 4 | nb_bitmaps | number of bitmaps, at least 1 |
/// | 4 | 4 | | reserved, 0 |
/// | 8 | 8 | bitmap_directory_size | length of the bitmap directory in bytes |
/// | 16 | 8 | bitmap_directory_offset | host offset of the bitmap directory, aligned to a cluster |
///
/// It is consistent only while the bitmaps autoclear bit is set; without it, any numbers may stand here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BitmapsExtension {
    /// Number of bitmaps.
    pub count: u32,
    /// Reserved.
    pub reserved: u32,
    /// Length of the bitmap directory in bytes.
    pub directory_len: u64,
    /// Where the bitmap directory is.
    pub directory_offset: HostOffset,
}

impl BitmapsExtension {
    /// Length in bytes of the data.
    pub const LEN: usize = 24;

    /// Checks the numbers; `at` is the offset of the extension in the file, for the message. QEMU does it if the bitmaps
    /// autoclear bit is set.
    ///
    /// # Errors
    ///
    /// `Corrupt` if there is no bitmap, the reserved field is not zero or the directory is not aligned; `Unsupported` if
    /// there are more than 65535 bitmaps or the directory is longer than QEMU's limit.
    pub fn validate(&self, geometry: Geometry, at: u64) -> Result<()> {
        if self.reserved != 0 {
            return Err(corrupt(CorruptKind::BitmapsReserved { value: self.reserved }, at));
        }
        if self.count > BITMAPS_MAX {
            let kind = UnsupportedKind::BitmapsTooMany { count: self.count, max: BITMAPS_MAX };
            return Err(Unsupported::new(kind, Structure::HeaderExtension).at(at).into());
        }
        if self.count == 0 {
            return Err(corrupt(CorruptKind::BitmapsNone, at));
        }
        let alignment = geometry.cluster_size();
        if !self.directory_offset.is_aligned(alignment) {
            let offset = self.directory_offset.get();
            return Err(corrupt(CorruptKind::BitmapDirectoryUnaligned { offset, alignment }, at));
        }
        if self.directory_len > BITMAP_DIRECTORY_LEN_BYTES_MAX {
            let kind = UnsupportedKind::BitmapDirectoryTooLarge {
                len: self.directory_len,
                max: BITMAP_DIRECTORY_LEN_BYTES_MAX,
            };
            return Err(Unsupported::new(kind, Structure::HeaderExtension).at(at).into());
        }
        Ok(())
    }

    fn encode(&self) -> Vec<u8> {
        let mut data = Vec::with_capacity(Self::LEN);
        data.extend_from_slice(&self.count.to_be_bytes());
        data.extend_from_slice(&self.reserved.to_be_bytes());
        data.extend_from_slice(&self.directory_len.to_be_bytes());
        data.extend_from_slice(&self.directory_offset.get().to_be_bytes());
        data
    }
}

/// The data of the full disk encryption header pointer.
///
/// | offset | size | field | meaning |
/// |---|---|---|---|
/// | 0 | 8 | offset | host offset of the encryption header, aligned to a cluster |
/// | 8 | 8 | length | of the encryption header in bytes |
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CryptoHeader {
    /// Where the encryption header is.
    pub offset: HostOffset,
    /// Its length in bytes.
    pub len: u64,
}

impl CryptoHeader {
    /// Length in bytes of the data.
    pub const LEN: usize = 16;

    /// Checks that the header starts at a cluster; `at` is the offset of the extension in the file, for the message.
    ///
    /// # Errors
    ///
    /// `Corrupt` if it does not.
    pub fn validate(&self, geometry: Geometry, at: u64) -> Result<()> {
        let alignment = geometry.cluster_size();
        if !self.offset.is_aligned(alignment) {
            let kind = CorruptKind::CryptoHeaderUnaligned { offset: self.offset.get(), alignment };
            return Err(corrupt(kind, at));
        }
        Ok(())
    }

    fn encode(&self) -> Vec<u8> {
        let mut data = Vec::with_capacity(Self::LEN);
        data.extend_from_slice(&self.offset.get().to_be_bytes());
        data.extend_from_slice(&self.len.to_be_bytes());
        data
    }
}

/// One extension as it lies in the file.
#[derive(Debug, Clone, Copy)]
pub(in crate::format) struct RawExtension<'a> {
    /// Offset in the file.
    pub(in crate::format) at: u64,
    pub(in crate::format) kind: u32,
    pub(in crate::format) data: &'a [u8],
}

/// Splits the area of header extensions, without looking into them.
#[derive(Debug)]
pub(in crate::format) struct RawExtensions<'a> {
    /// The image from offset 0 to the end of the area.
    bytes: &'a [u8],
    at: usize,
}

impl<'a> RawExtensions<'a> {
    /// Looks at `bytes`, which start at offset 0 of the file, from `start` on.
    pub(in crate::format) fn new(bytes: &'a [u8], start: usize) -> Self {
        Self { bytes, at: start }
    }
}

impl<'a> Iterator for RawExtensions<'a> {
    type Item = Result<RawExtension<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = self.bytes.get(self.at..).filter(|rest| !rest.is_empty())?;
        // An offset in the first cluster, so nothing is lost.
        let at = self.at as u64;
        let end = self.bytes.len() as u64;
        // Whatever comes of it, after an error there is nothing more.
        self.at = self.bytes.len();
        if rest.len() < PREFIX_LEN {
            return Some(Err(corrupt(CorruptKind::ExtensionTruncated { end }, at)));
        }
        let (kind, len) = (be32(rest, 0), be32(rest, 4));
        let rest = &rest[PREFIX_LEN..];
        let data = usize::try_from(len).ok().and_then(|len| rest.get(..len));
        let Some(data) = data else {
            return Some(Err(corrupt(CorruptKind::ExtensionTooLarge { len, end }, at)));
        };
        if kind == END {
            return None;
        }
        let len = PREFIX_LEN + data.len().next_multiple_of(8);
        self.at = (self.bytes.len() - rest.len() - PREFIX_LEN).saturating_add(len);
        Some(Ok(RawExtension { at, kind, data }))
    }
}

fn corrupt(kind: CorruptKind, at: u64) -> Error {
    Corrupt::new(kind, Structure::HeaderExtension).at(at).into()
}
