//! What a new image is like: the options, what goes together, and the header that follows. In QEMU's words, and in the order
//! of its questions.

#[cfg(feature = "encryption")]
use crate::crypt::LuksArea;
use crate::error::{Error, Result};
use crate::format::feature::{Autoclear, Compatible, FeatureNames, Incompatible, Version};
use crate::format::limits::{
    BACKING_FORMAT_LEN_BYTES_MAX, BACKING_NAME_LEN_BYTES_MAX, CLUSTER_BITS_MAX, CLUSTER_BITS_MIN,
    CLUSTER_BITS_MIN_EXTENDED_L2, L1_LEN_BYTES_MAX,
};
use crate::format::{
    Compression, CryptMethod, CryptoHeader, Extension, Geometry, Header, HostOffset, L1Entry,
};
use crate::image::options::Preallocation;

use super::clusters::{Clusters, TooLarge};
use super::{SECTOR_LEN_BYTES, cluster_offset, too_large};

/// Above this cluster size the header has room for the feature name table.
const CLUSTER_SIZE_WITHOUT_FEATURE_NAMES_MAX: u64 = 4096;
/// The largest disk.
const SIZE_MAX: u64 = i64::MAX as u64;

/// What a new image is like. Made by [`CreateOptions::new`], which has the defaults of `qemu-img create`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CreateOptions {
    /// The size of the disk in bytes; rounded up to a multiple of 512.
    pub size: u64,
    /// The version: 3 by default.
    pub version: Version,
    /// The size of a cluster in bytes, a power of two from 512 to 2 MiB, at least 16 KiB with extended L2 entries. 64 KiB
    /// by default.
    pub cluster_size: u64,
    /// The width of a refcount in bits, a power of two up to 64. 16 by default, and always in version 2.
    pub refcount_bits: u32,
    /// The name of the backing file, as it stands in the image. It is not opened.
    pub backing_file: Option<Vec<u8>>,
    /// The format of the backing file.
    pub backing_format: Option<Vec<u8>>,
    /// The name of the data file, as it stands in the image.
    pub data_file: Option<Vec<u8>>,
    /// The data file is a raw image by itself. The tables are preallocated then.
    pub data_file_raw: bool,
    /// Writers may write refcounts late.
    pub lazy_refcounts: bool,
    /// L2 entries have 128 bits, and clusters 32 subclusters.
    pub extended_l2: bool,
    /// What is allocated at once.
    pub preallocation: Preallocation,
    /// How compressed clusters will be compressed.
    pub compression: Compression,
    /// What guest data will be encrypted with.
    #[cfg(feature = "encryption")]
    pub encryption: Option<Encryption>,
}

/// What the guest data of a new image will be encrypted with.
#[cfg(feature = "encryption")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Encryption {
    /// AES-128 in mode cbc, with the start of the passphrase as the key: for programs that know nothing else. It is broken.
    Aes,
    /// LUKS, with this encryption header.
    Luks(LuksArea),
}

impl CreateOptions {
    /// An image of version 3 with clusters of 64 KiB, of which nothing is allocated.
    #[must_use]
    pub fn new(size: u64) -> Self {
        Self {
            size,
            version: Version::V3,
            cluster_size: 1 << 16,
            refcount_bits: 16,
            backing_file: None,
            backing_format: None,
            data_file: None,
            data_file_raw: false,
            lazy_refcounts: false,
            extended_l2: false,
            preallocation: Preallocation::Off,
            compression: Compression::Deflate,
            #[cfg(feature = "encryption")]
            encryption: None,
        }
    }

    /// The encryption header that the image gets: what is not zero of it, and the length of it all.
    #[cfg(feature = "encryption")]
    pub(super) fn luks_area(&self) -> Option<(&[u8], u64)> {
        match &self.encryption {
            Some(Encryption::Luks(area)) => Some((&area.bytes, area.len_bytes)),
            Some(Encryption::Aes) | None => None,
        }
    }

    #[cfg(feature = "encryption")]
    fn crypt(&self) -> CryptMethod {
        match &self.encryption {
            None => CryptMethod::None,
            Some(Encryption::Aes) => CryptMethod::Aes,
            Some(Encryption::Luks(_)) => CryptMethod::Luks,
        }
    }

    #[cfg(not(feature = "encryption"))]
    pub(super) fn luks_area(&self) -> Option<(&[u8], u64)> {
        None
    }

    #[cfg(not(feature = "encryption"))]
    fn crypt(&self) -> CryptMethod {
        CryptMethod::None
    }

    /// Says what is wrong with the options, which [`create`](super::create()) would say too: before a file is touched.
    ///
    /// # Errors
    /// `InvalidArgument`, in QEMU's words.
    pub fn validate(&self) -> Result<()> {
        self.image().map(drop)
    }

    /// The geometry, if the options go together. The order of the questions is QEMU's.
    fn geometry(&self) -> Result<Geometry> {
        let v2 = self.version == Version::V2;
        if self.extended_l2 && v2 {
            return needs_v3(
                "Extended L2 entries are only supported with compatibility level 1.1 and above",
            );
        }
        self.check_cluster_size()?;
        if self.backing_file.is_some()
            && self.preallocation != Preallocation::Off
            && !self.extended_l2
        {
            return wrong(
                "Backing file and preallocation can only be used at the same time if extended_l2 is on",
            );
        }
        if self.backing_format.is_some() && self.backing_file.is_none() {
            return wrong("Backing format cannot be used without backing file");
        }
        if self.lazy_refcounts && v2 {
            return needs_v3(
                "Lazy refcounts only supported with compatibility level 1.1 and above",
            );
        }
        self.check_refcount_bits("version=v3")?;
        if self.crypt() != CryptMethod::None && v2 && self.preallocation != Preallocation::Off {
            // Only later versions can say of a cluster that it has its space and reads as zeros.
            return wrong(
                "Encryption and preallocation can only be used at the same time with compatibility level 1.1 and above",
            );
        }
        if self.data_file_raw && self.data_file.is_none() {
            return wrong("data-file-raw requires data-file");
        }
        if self.data_file_raw && self.backing_file.is_some() {
            return wrong("Backing file and data-file-raw cannot be used at the same time");
        }
        if self.data_file.is_some() && v2 {
            return needs_v3(
                "External data files are only supported with compatibility level 1.1 and above",
            );
        }
        if self.compression != Compression::Deflate && v2 {
            return needs_v3(
                "Non-zlib compression type is only supported with compatibility level 1.1 and above",
            );
        }
        let bits = self.cluster_size.trailing_zeros();
        Geometry::new(bits, self.extended_l2, self.refcount_bits.trailing_zeros())
    }

    /// Whether there are clusters of this size.
    pub(in crate::image) fn check_cluster_size(&self) -> Result<()> {
        let (size, bits) = (self.cluster_size, self.cluster_size.trailing_zeros());
        if !size.is_power_of_two() || !(CLUSTER_BITS_MIN..=CLUSTER_BITS_MAX).contains(&bits) {
            let (min, max) = (1 << CLUSTER_BITS_MIN, 1 << (CLUSTER_BITS_MAX - 10));
            return wrong(format!("Cluster size must be a power of two between {min} and {max}k"));
        }
        if self.extended_l2 && bits < CLUSTER_BITS_MIN_EXTENDED_L2 {
            let min = 1 << CLUSTER_BITS_MIN_EXTENDED_L2;
            return wrong(format!(
                "Extended L2 entries are only supported with cluster sizes of at least {min} bytes"
            ));
        }
        Ok(())
    }

    /// Whether there are refcounts of this width; `v3` is the option for what is needed.
    pub(in crate::image) fn check_refcount_bits(&self, v3: &str) -> Result<()> {
        if self.refcount_bits > 64 || !self.refcount_bits.is_power_of_two() {
            return wrong("Refcount width must be a power of two and may not exceed 64 bits");
        }
        if self.refcount_bits != 16 && self.version == Version::V2 {
            return wrong(format!(
                "Different refcount widths than 16 bits require compatibility level 1.1 or above (use {v3} or greater)"
            ));
        }
        Ok(())
    }

    /// The header, without what says where things are.
    fn header(&self, geometry: Geometry, size: u64) -> Header {
        let mut header = Header::new(self.version, geometry);
        header.size = size;
        header.backing_file.clone_from(&self.backing_file);
        header.incompatible = header
            .incompatible
            .with(Incompatible::DATA_FILE, self.data_file.is_some())
            .with(Incompatible::COMPRESSION_TYPE, self.compression != Compression::Deflate);
        header.compatible = header.compatible.with(Compatible::LAZY_REFCOUNTS, self.lazy_refcounts);
        header.autoclear = header.autoclear.with(Autoclear::DATA_FILE_RAW, self.data_file_raw);
        header.compression = self.compression;
        header.extensions.extend(self.backing_format.clone().map(Extension::BackingFormat));
        header.extensions.extend(self.data_file.clone().map(Extension::DataFile));
        header.crypt = self.crypt();
        // Where it is is found out when everything else has its place.
        header.extensions.extend(self.luks_area().map(|(_, len)| {
            let offset = HostOffset::new(geometry.cluster_size());
            Extension::CryptoHeader(CryptoHeader { offset, len })
        }));
        if self.version == Version::V3
            && geometry.cluster_size() > CLUSTER_SIZE_WITHOUT_FEATURE_NAMES_MAX
        {
            let names = FeatureNames::new(FeatureNames::QEMU.iter().copied());
            header.extensions.push(Extension::FeatureNames(names));
        }
        header
    }

    /// The start of the image, laid out: everything but what is preallocated.
    pub(super) fn image(&self) -> Result<NewImage> {
        let geometry = self.geometry()?;
        let size = self.size.checked_next_multiple_of(SECTOR_LEN_BYTES);
        let size = size.filter(|&size| size <= SIZE_MAX).ok_or_else(|| too_large(TooLarge))?;
        let l1_entries = geometry.l1_entries_for(size);
        let l1_len = l1_entries.saturating_mul(L1Entry::LEN);
        if l1_len > L1_LEN_BYTES_MAX {
            return Err(too_large(TooLarge));
        }
        self.check_names()?;
        let mut clusters = Clusters::new(geometry).map_err(too_large)?;
        let l1_clusters = geometry.clusters_for(l1_len);
        let l1_cluster = match l1_clusters {
            0 => 0,
            len => clusters.take(len).map_err(too_large)?,
        };
        let mut header = self.header(geometry, size);
        // OK to unwrap: at most 32 MiB of entries.
        header.l1_entries = u32::try_from(l1_entries).unwrap_or(u32::MAX);
        header.l1_table_offset = HostOffset::new(l1_cluster << geometry.cluster_bits());
        let image = NewImage { header, clusters };
        // Says now if it does not fit.
        image.encoded_header()?;
        Ok(image)
    }

    /// Whether the names can stand in an image.
    fn check_names(&self) -> Result<()> {
        let limits = [
            ("backing file name bytes", &self.backing_file, BACKING_NAME_LEN_BYTES_MAX),
            ("backing file format bytes", &self.backing_format, BACKING_FORMAT_LEN_BYTES_MAX),
        ];
        for (what, name, limit) in limits {
            let (value, limit) = (name.as_ref().map_or(0, Vec::len) as u64, u64::from(limit));
            if value > limit {
                return Err(Error::LimitExceeded { what, value, limit });
            }
        }
        if self.backing_file.as_ref().is_some_and(Vec::is_empty) {
            let text = "Expected backing file name, got empty string";
            return Err(Error::InvalidArgument(text.to_owned()));
        }
        Ok(())
    }
}

impl Default for CreateOptions {
    /// An image of no bytes.
    fn default() -> Self {
        Self::new(0)
    }
}

/// An image that is not written yet.
pub(super) struct NewImage {
    pub(super) header: Header,
    pub(super) clusters: Clusters,
}

impl NewImage {
    fn encoded_header(&self) -> Result<Vec<u8>> {
        let mut header = self.header.clone();
        header.refcount_table_offset = cluster_offset(header.geometry(), self.clusters.table());
        header.refcount_table_clusters = 1;
        header.encode()
    }
}

fn wrong<T>(text: impl Into<String>) -> Result<T> {
    Err(Error::InvalidArgument(text.into()))
}

fn needs_v3<T>(text: &str) -> Result<T> {
    wrong(format!("{text} (use version=v3 or greater)"))
}
