//! The limits of the format and of this crate, each with its name. They are QEMU's: an image within them can be opened
//! by both.

/// Least `cluster_bits`: clusters of 512 bytes.
pub const CLUSTER_BITS_MIN: u32 = 9;
/// Greatest `cluster_bits`: clusters of 2 MiB.
pub const CLUSTER_BITS_MAX: u32 = 21;
/// Least `cluster_bits` with extended L2 entries: clusters of 16 KiB, subclusters of 512 bytes.
pub const CLUSTER_BITS_MIN_EXTENDED_L2: u32 = 14;
/// Greatest `refcount_order`: refcounts of 64 bits.
pub const REFCOUNT_ORDER_MAX: u32 = 6;
/// Greatest length of an L1 table, active or of a snapshot.
pub const L1_LEN_BYTES_MAX: u64 = 32 << 20;
/// Greatest length of the refcount table.
pub const REFCOUNT_TABLE_LEN_BYTES_MAX: u64 = 8 << 20;
/// Greatest number of snapshots.
pub const SNAPSHOTS_MAX: u32 = 65536;
/// Greatest length of the snapshot table.
pub const SNAPSHOT_TABLE_LEN_BYTES_MAX: u64 = 64 << 20;
/// Greatest length of the extra data of a snapshot.
pub const SNAPSHOT_EXTRA_LEN_BYTES_MAX: u32 = 1024;
/// Greatest number of bitmaps.
pub const BITMAPS_MAX: u32 = 65535;
/// Greatest length of the bitmap directory.
pub const BITMAP_DIRECTORY_LEN_BYTES_MAX: u64 = 65535 * 1024;
/// Greatest number of entries of a bitmap table.
pub const BITMAP_TABLE_ENTRIES_MAX: u32 = 0x800_0000;
/// Greatest length of one bitmap's data.
pub const BITMAP_LEN_BYTES_MAX: u64 = 0x2000_0000;
/// Greatest length of a bitmap's name.
pub const BITMAP_NAME_LEN_MAX: u16 = 1023;
/// Least and greatest `granularity_bits` of a bitmap.
pub const BITMAP_GRANULARITY_BITS: std::ops::RangeInclusive<u8> = 9..=31;
/// Greatest length of the backing file's name.
pub const BACKING_NAME_LEN_BYTES_MAX: u32 = 1023;
/// Greatest length of the backing file's format.
pub const BACKING_FORMAT_LEN_BYTES_MAX: u32 = 15;
/// Greatest number of L1 entries that a disk's size may ask for.
pub const L1_ENTRIES_MAX: u64 = 0x7fff_ffff;
/// Tables end at or before this: QEMU's offsets have 63 bits.
pub const TABLE_END_MAX: u64 = (1 << 63) - 1;
/// Host offsets of clusters lie below this: L1 and L2 entries have bits 9 to 55 for them.
pub const HOST_OFFSET_MAX: u64 = 1 << 56;
