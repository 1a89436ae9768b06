//! What an image needs and this crate does not have: one kind for each.

use super::place::{Placed, Structure, kinds};

kinds! {
    /// Something that an image needs and this crate does not have. The image may be valid.
    pub Unsupported
    /// One kind for each thing.
    UnsupportedKind {
        "not-qcow2" NotQcow2 => "image is not in qcow2 format",
        "bitmap-extra-data" BitmapExtraData { name: String } =>
            "extra data of bitmap {name:?} must be known to use it",
        "compression-with-data-file" CompressionWithDataFile => "images with an external data file have no compressed clusters",
        "snapshot-with-data-file" SnapshotWithDataFile => "images with an external data file have no snapshots",
        "compression-with-encryption" CompressionWithEncryption =>
            "compressed clusters are not encrypted, so images that are take no new ones",
        "version" Version { value: u32 } => "Unsupported qcow2 version {value}",
        "cluster-bits" ClusterBits { value: u32, max: u32 } => "cluster_bits {value} is greater than {max}",
        "incompatible-features" IncompatibleFeatures { names: String } => "Unsupported qcow2 feature(s): {names}",
        "compression-type" CompressionType { value: u8 } => "unknown compression type: {value}",
        "crypt-method" CryptMethod { value: u32 } => "unknown encryption method: {value}",
        "l1-table-too-large" L1TableTooLarge { len: u64, max: u64 } =>
            "L1 table of {len:#x} bytes is too large: the limit is {max:#x}",
        "refcount-table-too-large" RefcountTableTooLarge { len: u64, max: u64 } =>
            "refcount table of {len:#x} bytes is too large: the limit is {max:#x}",
        "snapshots-too-many" SnapshotsTooMany { count: u32, max: u32 } =>
            "snapshot table of {count} snapshots is too large: the limit is {max}",
        "image-too-big" ImageTooBig { size: u64 } => "image is too big: {size} bytes",
        "backing-format-too-long" BackingFormatTooLong { len: u32, max: u32 } =>
            "backing format name of {len} bytes is longer than {max}",
        "bitmaps-too-many" BitmapsTooMany { count: u32, max: u32 } =>
            "bitmaps extension has {count} bitmaps: the limit is {max}",
        "bitmap-directory-too-large" BitmapDirectoryTooLarge { len: u64, max: u64 } =>
            "bitmap directory of {len:#x} bytes is too large: the limit is {max:#x}",
        "snapshot-table-too-large" SnapshotTableTooLarge { len: u64, max: u64 } =>
            "{len:#x} bytes are too large: the limit is {max:#x}",
        "snapshot-extra-too-large" SnapshotExtraTooLarge { len: u32, max: u32 } =>
            "extra data of {len} bytes is too large: the limit is {max}",
        "snapshot-l1-table-too-large" SnapshotL1TableTooLarge { len: u64, max: u64 } =>
            "L1 table of {len:#x} bytes is too large: the limit is {max:#x}",
        "bitmap-too-large" BitmapTooLarge { len: u64, max: u64 } =>
            "bitmap of {len:#x} bytes is too large: the limit is {max:#x}",
        "bitmap-granularity" BitmapGranularity { granularity_bits: u8 } =>
            "granularity_bits {granularity_bits} are not within 9 to 31",
        "bitmap-name-too-long" BitmapNameTooLong { len: u16, max: u16 } =>
            "bitmap name of {len} bytes is longer than {max}",
        "luks-version" LuksVersion { value: u16 } => "LUKS version {value} is not supported",
        "luks-key-length" LuksKeyLength { len: u32, max: u32 } =>
            "master key of {len} bytes: keys have 1 to {max}",
        "luks-iterations" LuksIterations { value: u32, max: u32 } =>
            "key derivation of {value} iterations: the limit is {max}",
        "luks-algorithm" LuksAlgorithm { what: &'static str, name: String } =>
            "{what} '{name}' is not supported",
        "encryption" Encryption { method: &'static str } => "guest data is encrypted with {method}, and this program was built without the feature encryption",
    }
}
