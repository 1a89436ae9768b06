//! What is wrong with an image: one kind for each check.

use super::place::{Placed, Structure, kinds};

kinds! {
    /// A rule of the format that an image breaks: where, which value, which rule.
    pub Corrupt
    /// One kind for each check.
    CorruptKind {
        "header-truncated" HeaderTruncated { len: u64, needed: u64 } =>
            "file ends after {len} bytes, {needed} are needed",
        "cluster-bits-too-small" ClusterBitsTooSmall { value: u32, min: u32 } =>
            "cluster_bits {value} is less than {min}",
        "extended-l2-cluster-bits" ExtendedL2ClusterBits { value: u32, min: u32 } =>
            "cluster_bits {value} is less than {min}, which extended L2 entries need",
        "refcount-order" RefcountOrder { value: u32, max: u32 } => "refcount_order {value} is greater than {max}",
        "header-length-too-small" HeaderLengthTooSmall { value: u32, min: u32 } =>
            "header_length {value} is less than {min}",
        "header-length-exceeds-cluster" HeaderLengthExceedsCluster { value: u32, cluster_size: u64 } =>
            "header_length {value} exceeds the cluster size {cluster_size}",
        "header-length-unaligned" HeaderLengthUnaligned { value: u32 } =>
            "header_length {value} is not a multiple of 8",
        "header-padding" HeaderPadding { padding: u64 } =>
            "padding {padding:#x} is not zero",
        "backing-file-offset" BackingFileOffset { offset: u64, max: u64 } =>
            "backing file name's offset {offset:#x} is beyond the first cluster, which ends at {max:#x}",
        "backing-file-name-too-long" BackingFileNameTooLong { len: u32, max: u64 } =>
            "backing file name of {len} bytes is longer than {max}",
        "compression-bit-set" CompressionBitSet =>
            "compression type incompatible feature bit must not be set for compression_type 0",
        "compression-bit-missing" CompressionBitMissing { value: u8 } =>
            "compression type incompatible feature bit must be set for compression_type {value}",
        "data-file-raw-without-data-file" DataFileRawWithoutDataFile =>
            "data-file-raw autoclear bit requires the data file incompatible bit",
        "refcount-table-missing" RefcountTableMissing => "image does not contain a refcount table",
        "refcount-table-unaligned" RefcountTableUnaligned { offset: u64, alignment: u64 } =>
            "refcount table offset {offset:#x} is not aligned to {alignment:#x}",
        "refcount-table-overflow" RefcountTableOverflow { offset: u64, len: u64 } =>
            "refcount table of {len:#x} bytes at {offset:#x} ends beyond 2^63",
        "snapshot-table-unaligned" SnapshotTableUnaligned { offset: u64, alignment: u64 } =>
            "snapshot table offset {offset:#x} is not aligned to {alignment:#x}",
        "snapshot-table-overflow" SnapshotTableOverflow { offset: u64, len: u64 } =>
            "snapshot table of at least {len:#x} bytes at {offset:#x} ends beyond 2^63",
        "l1-table-unaligned" L1TableUnaligned { offset: u64, alignment: u64 } =>
            "L1 table offset {offset:#x} is not aligned to {alignment:#x}",
        "l1-table-overflow" L1TableOverflow { offset: u64, len: u64 } =>
            "L1 table of {len:#x} bytes at {offset:#x} ends beyond 2^63",
        "l1-table-too-small" L1TableTooSmall { entries: u32, needed: u64 } =>
            "L1 table is too small: {entries} entries, the disk's size needs {needed}",
        "l1-table-past-end" L1TablePastEnd { offset: u64, len: u64, file_len: u64 } =>
            "L1 table of {len:#x} bytes at {offset:#x} ends past the end of the file at {file_len:#x}",
        "extension-truncated" ExtensionTruncated { end: u64 } =>
            "header extension too large: 8 bytes for type and length do not fit before {end:#x}",
        "extension-too-large" ExtensionTooLarge { len: u32, end: u64 } =>
            "header extension too large: {len:#x} bytes do not fit before {end:#x}",
        "extension-duplicate" ExtensionDuplicate { kind: u32 } => "type {kind:#010x} appears more than once",
        "crypto-extension-unexpected" CryptoExtensionUnexpected { method: u32 } =>
            "crypto header extension is only expected with the LUKS encryption method, not with crypt_method {method}",
        "crypto-extension-length" CryptoExtensionLength { len: u32 } =>
            "crypto header extension has {len} bytes, not 16",
        "crypto-extension-missing" CryptoExtensionMissing => "crypt_method 2 needs a crypto header extension",
        "crypto-header-unaligned" CryptoHeaderUnaligned { offset: u64, alignment: u64 } =>
            "crypto header offset {offset:#x} is not aligned to {alignment:#x}",
        "bitmaps-extension-length" BitmapsExtensionLength { len: u32 } =>
            "bitmaps extension has {len} bytes, not 24",
        "bitmaps-extension-missing" BitmapsExtensionMissing =>
            "bitmaps autoclear bit is set without a bitmaps extension",
        "bitmaps-reserved" BitmapsReserved { value: u32 } => "reserved field {value:#x} of the bitmaps extension is not zero",
        "bitmaps-none" BitmapsNone => "bitmaps extension has zero bitmaps",
        "bitmap-directory-unaligned" BitmapDirectoryUnaligned { offset: u64, alignment: u64 } =>
            "bitmap directory offset {offset:#x} is not aligned to {alignment:#x}",
        "l1-entry-unaligned" L1EntryUnaligned { offset: u64, alignment: u64 } =>
            "L2 table offset {offset:#x} is not aligned to {alignment:#x}",
        "l2-entry-unaligned" L2EntryUnaligned { offset: u64, alignment: u64 } =>
            "host offset {offset:#x} is not aligned to {alignment:#x}",
        "zero-flag-in-v2" ZeroFlagInV2 { descriptor: u64 } =>
            "descriptor {descriptor:#x} has the zero flag, which version 2 does not have",
        "compressed-with-data-file" CompressedWithDataFile { descriptor: u64 } =>
            "descriptor {descriptor:#x} is a compressed cluster, which an image with a data file cannot have",
        "compressed-host-offset" CompressedHostOffset { offset: u64, max: u64 } =>
            "compressed cluster's host offset {offset:#x} is not below {max:#x}",
        "subcluster-allocated-and-zero" SubclusterAllocatedAndZero { bits: u64 } =>
            "subclusters {bits:#010x} are both allocated and zero",
        "subcluster-allocated-without-cluster" SubclusterAllocatedWithoutCluster { bits: u64 } =>
            "subclusters {bits:#010x} are allocated, but the host offset is 0",
        "data-file-offset" DataFileOffset { host: u64, guest: u64 } =>
            "host offset {host:#x} in the data file is not the guest offset {guest:#x}",
        "refcount-block-unaligned" RefcountBlockUnaligned { offset: u64, alignment: u64 } =>
            "refcount block offset {offset:#x} is not aligned to {alignment:#x}",
        "snapshot-l1-table-unaligned" SnapshotL1TableUnaligned { offset: u64, alignment: u64 } =>
            "L1 table offset {offset:#x} is not aligned to {alignment:#x}",
        "snapshot-l1-table-overflow" SnapshotL1TableOverflow { offset: u64, len: u64 } =>
            "L1 table of {len:#x} bytes at {offset:#x} ends beyond 2^63",
        "bitmap-directory-truncated" BitmapDirectoryTruncated { len: u64, needed: u64 } =>
            "directory ends after {len} bytes of the entry, which has {needed}",
        "bitmaps-more-than-count" BitmapsMoreThanCount { count: u64 } =>
            "more bitmaps found than the {count} that the header extension tells of",
        "bitmaps-fewer-than-count" BitmapsFewerThanCount { found: u64, count: u64 } =>
            "{found} bitmaps found, fewer than the {count} that the header extension tells of",
        "bitmap-duplicate" BitmapDuplicate { name: String } => "name {name:?} is not unique",
        "bitmap-table-empty" BitmapTableEmpty => "bitmap table has no entries",
        "bitmap-table-missing" BitmapTableMissing => "bitmap table offset is 0",
        "bitmap-table-unaligned" BitmapTableUnaligned { offset: u64, alignment: u64 } =>
            "bitmap table offset {offset:#x} is not aligned to {alignment:#x}",
        "bitmap-table-size" BitmapTableSize { entries: u32, needed: u64 } =>
            "bitmap table has {entries} entries, and the disk needs {needed}",
        "bitmap-flags-reserved" BitmapFlagsReserved { flags: u32 } => "flags {flags:#x} have reserved bits",
        "bitmap-type" BitmapType { value: u8 } => "bitmap type {value} is reserved",
        "bitmap-table-entry-reserved" BitmapTableEntryReserved { bits: u64 } => "reserved bits {bits:#x} are set",
        "bitmap-table-entry-ones-with-offset" BitmapTableEntryOnesWithOffset { offset: u64 } =>
            "bit 0 is set together with host offset {offset:#x}",
        "bitmap-table-entry-unaligned" BitmapTableEntryUnaligned { offset: u64, alignment: u64 } =>
            "host offset {offset:#x} is not aligned to {alignment:#x}",
        "luks-truncated" LuksTruncated { len: u64, needed: u64 } =>
            "LUKS header has {len} bytes, {needed} are needed",
        "luks-magic" LuksMagic => "LUKS header does not start with its magic",
        "luks-slot-state" LuksSlotState { value: u32 } =>
            "state {value:#010x} is neither 0x00ac71f3 nor 0x0000dead",
        "luks-name-unterminated" LuksNameUnterminated { field: &'static str } =>
            "{field} has no zero at its end",
        "luks-payload-offset" LuksPayloadOffset { offset: u64 } =>
            "payload at {offset:#x} overlaps the LUKS header",
        "luks-no-iterations" LuksNoIterations => "key derivation has no iterations",
        "luks-stripes" LuksStripes { value: u32, expected: u32 } => "{value} stripes, not {expected}",
        "luks-slot-in-header" LuksSlotInHeader { offset: u64 } =>
            "key material at {offset:#x} overlaps the LUKS header",
        "luks-slot-in-payload" LuksSlotInPayload { end: u64, payload: u64 } =>
            "key material up to {end:#x} overlaps the payload at {payload:#x}",
        "luks-slots-overlap" LuksSlotsOverlap { other: u64 } => "key material overlaps that of key slot {other}",
        "luks-slot-outside" LuksSlotOutside { end: u64, len: u64 } =>
            "key material up to {end:#x} lies outside of the crypto header, which has {len:#x} bytes",
        "past-end-of-file" PastEndOfFile { len: u64, file_len: u64 } =>
            "its {len:#x} bytes end past the end of the file at {file_len:#x}",
        "stream-invalid" StreamInvalid { len: u64 } =>
            "{len} bytes are not a stream of the image's compression type",
        "stream-short" StreamShort { len: u64, cluster_size: u64 } =>
            "stream within {len} bytes ends before it has made a cluster of {cluster_size}",
        "write-unsafe" WriteUnsafe { reason: String } =>
            "writing could destroy what the image holds, repair it first: {reason}",
        "invalid-write" InvalidWrite { on: &'static str, with: &'static str } =>
            "Preventing invalid write on {on} (overlaps with {with})",
        "dirty-not-repaired" DirtyNotRepaired => "could not repair dirty image",
        "chain-loop" ChainLoop { depth: usize } => "layer {depth} is the same file as a layer above it",
    }
}
