//! One test for each check of the format: a structure that is right but for one thing, the kind that is reported for it,
//! and where. The structures are written by hand from the specification.

use cowshed::format::{
    BitmapDirectory, BitmapDirectoryEntry, BitmapTableEntry, BitmapsExtension, ClusterKind,
    Geometry, GuestOffset, Header, HostOffset, L1Entry, L2Context, L2Entry, LuksHeader,
    RefcountTableEntry, Snapshot, SnapshotTable, Version,
};
use cowshed::{Error, Result};

const CLUSTER: usize = 0x10000;

/// The first cluster of an image of 1 GiB with clusters of 64 KiB, version 3.
struct FirstCluster(Vec<u8>);

impl FirstCluster {
    fn new() -> Self {
        let mut image = Self(vec![0; CLUSTER]);
        image.0[..4].copy_from_slice(b"QFI\xfb");
        image
            .be32(4, 3) // version
            .be32(20, 16) // cluster_bits
            .be64(24, 1 << 30) // size
            .be32(36, 2) // l1_size
            .be64(40, 0x30000) // l1_table_offset
            .be64(48, 0x10000) // refcount_table_offset
            .be32(56, 1) // refcount_table_clusters
            .be32(96, 4) // refcount_order
            .be32(100, 112) // header_length
    }

    fn be32(mut self, at: usize, value: u32) -> Self {
        self.0[at..at + 4].copy_from_slice(&value.to_be_bytes());
        self
    }

    fn be64(mut self, at: usize, value: u64) -> Self {
        self.0[at..at + 8].copy_from_slice(&value.to_be_bytes());
        self
    }

    fn byte(mut self, at: usize, value: u8) -> Self {
        self.0[at] = value;
        self
    }

    /// Puts one extension behind the header.
    fn extension(self, kind: u32, data: &[u8]) -> Self {
        let mut image = self.be32(112, kind).be32(116, data.len() as u32);
        image.0[120..120 + data.len()].copy_from_slice(data);
        image
    }

    fn bitmaps(self, count: u32, reserved: u32, len: u64, offset: u64) -> Self {
        let data = [
            &count.to_be_bytes()[..],
            &reserved.to_be_bytes(),
            &len.to_be_bytes(),
            &offset.to_be_bytes(),
        ];
        // The autoclear bit says that the extension counts.
        self.byte(95, 1).extension(0x2385_2875, &data.concat())
    }

    fn parse(&self) -> Result<Header> {
        Header::parse(&self.0, 1 << 40)
    }
}

/// Asserts code, structure, offset, index and text of an error.
#[track_caller]
fn assert_error<T: std::fmt::Debug>(
    result: Result<T>,
    code: &str,
    structure: &str,
    offset: impl Into<Option<u64>>,
    index: impl Into<Option<u64>>,
    text: &str,
) {
    let error = result.unwrap_err();
    assert_eq!(error.to_string(), text);
    let found = match &error {
        Error::Corrupt(corrupt) => {
            (corrupt.code(), corrupt.structure(), corrupt.offset(), corrupt.index())
        }
        Error::Unsupported(unsupported) => {
            (unsupported.code(), unsupported.structure(), unsupported.offset(), unsupported.index())
        }
        error => panic!("{error:?}"),
    };
    assert_eq!(found, (code, structure, offset.into(), index.into()));
}

/// As [`assert_error`] for a field of the header.
#[track_caller]
fn assert_header(image: FirstCluster, code: &str, at: u64, text: &str) {
    let text = format!("header at {at:#x}: {text}");
    assert_error(image.parse(), code, "header", at, None, &text);
}

/// As [`assert_error`] for the extension that stands first.
#[track_caller]
fn assert_extension(image: FirstCluster, code: &str, text: &str) {
    let text = format!("header extension at 0x70: {text}");
    assert_error(image.parse(), code, "header extension", 0x70, None, &text);
}

fn geometry() -> Geometry {
    Geometry::new(16, false, 4).unwrap()
}

fn image() -> FirstCluster {
    FirstCluster::new()
}

#[test]
fn image_without_fault_is_accepted() {
    image().parse().unwrap();
    image().bitmaps(1, 0, 32, 0x40000).parse().unwrap();
}

#[test]
fn every_kind_has_a_test() {
    let mut tests = String::new();
    for file in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/engine")).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            tests += &std::fs::read_to_string(path).unwrap();
        }
    }
    let codes = [cowshed::error::Corrupt::CODES, cowshed::error::Unsupported::CODES].concat();
    for (index, code) in codes.iter().enumerate() {
        assert!(
            code.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-')),
            "{code}"
        );
        assert!(!codes[..index].contains(code), "{code} stands for two kinds");
        assert!(tests.contains(&format!("\"{code}\"")), "{code} has no test");
    }
}

// The header.

#[test]
fn other_magic_is_not_qcow2() {
    assert_header(image().byte(3, 0xfa), "not-qcow2", 0, "image is not in qcow2 format");
    assert_error(
        Header::probe_len(b"QF"),
        "not-qcow2",
        "header",
        0,
        None,
        "header at 0x0: image is not in qcow2 format",
    );
}

#[test]
fn versions_1_and_4_are_not_supported() {
    for version in [0, 1, 4, u32::MAX] {
        let text = format!("Unsupported qcow2 version {version}");
        assert_header(image().be32(4, version), "version", 4, &text);
    }
}

#[test]
fn file_that_ends_in_the_header_is_refused() {
    let bytes = image().0;
    for len in 4..112 {
        let error = Header::parse(&bytes[..len], len as u64).unwrap_err();
        let Error::Corrupt(corrupt) = error else { panic!("{error}") };
        assert_eq!(corrupt.code(), "header-truncated");
    }
    assert_error(
        Header::parse(&bytes[..71], 71),
        "header-truncated",
        "header",
        0,
        None,
        "header at 0x0: file ends after 71 bytes, 72 are needed",
    );
}

#[test]
fn file_that_ends_in_the_backing_file_name_is_refused() {
    let bytes = image().be64(8, 0x200).be32(16, 8).0;
    assert_error(
        Header::parse(&bytes[..0x204], 1 << 40),
        "header-truncated",
        "header",
        0,
        None,
        "header at 0x0: file ends after 516 bytes, 520 are needed",
    );
}

#[test]
fn clusters_below_512_bytes_are_refused() {
    assert_header(
        image().be32(20, 8),
        "cluster-bits-too-small",
        20,
        "cluster_bits 8 is less than 9",
    );
}

#[test]
fn clusters_above_2_mib_are_not_supported() {
    let text = "cluster_bits 22 is greater than 21";
    assert_header(image().be32(20, 22), "cluster-bits", 20, text);
    let text = "cluster_bits 4294967295 is greater than 21";
    assert_header(image().be32(20, u32::MAX), "cluster-bits", 20, text);
}

#[test]
fn extended_l2_entries_need_clusters_of_16_kib() {
    assert_header(
        image().be32(20, 13).byte(79, 0x10),
        "extended-l2-cluster-bits",
        20,
        "cluster_bits 13 is less than 14, which extended L2 entries need",
    );
    image().be32(20, 14).byte(79, 0x10).be32(36, 64).parse().unwrap();
}

#[test]
fn refcounts_above_64_bits_are_refused() {
    assert_header(image().be32(96, 7), "refcount-order", 96, "refcount_order 7 is greater than 6");
}

#[test]
fn version_3_header_below_104_bytes_is_refused() {
    let text = "header_length 103 is less than 104";
    assert_header(image().be32(100, 103), "header-length-too-small", 100, text);
}

#[test]
fn header_longer_than_a_cluster_is_refused() {
    assert_header(
        image().be32(100, 0x10008),
        "header-length-exceeds-cluster",
        100,
        "header_length 65544 exceeds the cluster size 65536",
    );
    // As long as the cluster is as long as it may be.
    image().be32(100, 0x10000).parse().unwrap();
}

#[test]
fn backing_file_name_beyond_the_first_cluster_is_refused() {
    assert_header(
        image().be64(8, 0x10001),
        "backing-file-offset",
        8,
        "backing file name's offset 0x10001 is beyond the first cluster, which ends at 0x10000",
    );
}

#[test]
fn backing_file_name_above_1023_bytes_is_refused() {
    assert_header(
        image().be64(8, 0x200).be32(16, 1024),
        "backing-file-name-too-long",
        16,
        "backing file name of 1024 bytes is longer than 1023",
    );
    let header = image().be64(8, 0x200).be32(16, 1023).parse().unwrap();
    assert_eq!(header.backing_file.unwrap().len(), 1023);
}

#[test]
fn backing_file_name_that_leaves_the_first_cluster_is_refused() {
    assert_header(
        image().be64(8, 0xfff0).be32(16, 17),
        "backing-file-name-too-long",
        16,
        "backing file name of 17 bytes is longer than 16",
    );
    image().be64(8, 0xfff0).be32(16, 16).parse().unwrap();
}

#[test]
fn compression_bit_without_type_is_refused() {
    assert_header(
        image().byte(79, 8),
        "compression-bit-set",
        72,
        "compression type incompatible feature bit must not be set for compression_type 0",
    );
    // The type does not count where the header ends before it.
    assert_header(
        image().byte(79, 8).byte(104, 1).be32(100, 104).byte(104, 0),
        "compression-bit-set",
        72,
        "compression type incompatible feature bit must not be set for compression_type 0",
    );
}

#[test]
fn compression_type_without_bit_is_refused() {
    assert_header(
        image().byte(104, 1),
        "compression-bit-missing",
        72,
        "compression type incompatible feature bit must be set for compression_type 1",
    );
}

#[test]
fn unknown_compression_type_is_not_supported() {
    for bit in [0, 8] {
        let text = "unknown compression type: 2";
        assert_header(image().byte(104, 2).byte(79, bit), "compression-type", 104, text);
    }
}

#[test]
fn unknown_incompatible_features_are_named_by_the_images_table() {
    let entry = |kind: u8, bit: u8, name: &str| {
        let mut entry = vec![kind, bit];
        entry.extend_from_slice(name.as_bytes());
        entry.resize(48, 0);
        entry
    };
    let table = [
        entry(1, 40, "compatible, not asked for"),
        entry(0, 40, "time travel"),
        entry(0, 64, "no bit"),
        entry(0, 5, "sixth bit"),
    ]
    .concat();
    assert_header(
        image().be64(72, 1 << 40 | 1 << 63 | 1 << 62 | 0x21).extension(0x6803_f857, &table),
        "incompatible-features",
        72,
        "Unsupported qcow2 feature(s): time travel, sixth bit, \
         Unknown incompatible feature: c000000000000000",
    );
    assert_header(
        image().be64(72, 0x20),
        "incompatible-features",
        72,
        "Unsupported qcow2 feature(s): Unknown incompatible feature: 20",
    );
}

#[test]
fn unknown_encryption_method_is_not_supported() {
    assert_header(image().be32(32, 3), "crypt-method", 32, "unknown encryption method: 3");
}

#[test]
fn image_without_refcount_table_opens_for_check_only() {
    let text = "image does not contain a refcount table";
    assert_header(image().be32(56, 0), "refcount-table-missing", 56, text);
    Header::parse_for_check(&image().be32(56, 0).0, 1 << 40).unwrap();
}

#[test]
fn refcount_table_above_8_mib_is_not_supported() {
    assert_header(
        image().be32(56, 129),
        "refcount-table-too-large",
        56,
        "refcount table of 0x810000 bytes is too large: the limit is 0x800000",
    );
    image().be32(56, 128).parse().unwrap();
    assert_header(
        image().be32(56, u32::MAX),
        "refcount-table-too-large",
        56,
        "refcount table of 0xffffffff0000 bytes is too large: the limit is 0x800000",
    );
}

#[test]
fn refcount_table_off_its_alignment_is_refused() {
    assert_header(
        image().be64(48, 0x10200),
        "refcount-table-unaligned",
        48,
        "refcount table offset 0x10200 is not aligned to 0x10000",
    );
}

#[test]
fn refcount_table_beyond_2_to_the_63_is_refused() {
    for offset in [0x7fff_ffff_ffff_0000_u64, 0xffff_ffff_ffff_0000] {
        let text = format!("refcount table of 0x10000 bytes at {offset:#x} ends beyond 2^63");
        assert_header(image().be64(48, offset), "refcount-table-overflow", 48, &text);
    }
}

#[test]
fn more_than_65536_snapshots_are_not_supported() {
    let text = "snapshot table of 65537 snapshots is too large: the limit is 65536";
    assert_header(image().be32(60, 65537), "snapshots-too-many", 60, text);
    image().be32(60, 65536).parse().unwrap();
    Header::parse_for_check(&image().be32(60, 65537).0, 1 << 40).unwrap();
    assert_error(
        SnapshotTable::parse(&[], 65537, HostOffset::new(0x50000)),
        "snapshots-too-many",
        "snapshot table",
        0x50000,
        None,
        "snapshot table at 0x50000: snapshot table of 65537 snapshots is too large: the limit is 65536",
    );
}

#[test]
fn snapshot_table_off_its_alignment_is_refused() {
    assert_header(
        image().be64(64, 0x8000),
        "snapshot-table-unaligned",
        64,
        "snapshot table offset 0x8000 is not aligned to 0x10000",
    );
    Header::parse_for_check(&image().be64(64, 0x8000).0, 1 << 40).unwrap();
}

#[test]
fn snapshot_table_beyond_2_to_the_63_is_refused() {
    assert_header(
        image().be32(60, 65536).be64(64, 0x7fff_ffff_ffff_0000),
        "snapshot-table-overflow",
        64,
        "snapshot table of at least 0x280000 bytes at 0x7fffffffffff0000 ends beyond 2^63",
    );
}

#[test]
fn l1_table_above_32_mib_is_not_supported() {
    assert_header(
        image().be32(36, 0x40_0001),
        "l1-table-too-large",
        36,
        "L1 table of 0x2000008 bytes is too large: the limit is 0x2000000",
    );
    image().be32(36, 0x40_0000).parse().unwrap();
}

#[test]
fn l1_table_off_its_alignment_is_refused() {
    assert_header(
        image().be64(40, 0x30001),
        "l1-table-unaligned",
        40,
        "L1 table offset 0x30001 is not aligned to 0x10000",
    );
}

#[test]
fn l1_table_beyond_2_to_the_63_is_refused() {
    assert_header(
        image().be64(40, 0xffff_ffff_ffff_0000),
        "l1-table-overflow",
        40,
        "L1 table of 0x10 bytes at 0xffffffffffff0000 ends beyond 2^63",
    );
}

#[test]
fn l1_table_too_small_for_the_disk_is_refused() {
    assert_header(
        image().be64(24, (1 << 30) + 1),
        "l1-table-too-small",
        36,
        "L1 table is too small: 2 entries, the disk's size needs 3",
    );
}

#[test]
fn disk_that_no_l1_table_can_map_is_not_supported() {
    assert_header(
        image().be64(24, u64::MAX),
        "image-too-big",
        24,
        "image is too big: 18446744073709551615 bytes",
    );
}

#[test]
fn l1_table_past_the_end_of_the_file_is_refused() {
    assert_error(
        Header::parse(&image().0, 0x3000f),
        "l1-table-past-end",
        "header",
        40,
        None,
        "header at 0x28: L1 table of 0x10 bytes at 0x30000 ends past the end of the file at 0x3000f",
    );
    Header::parse(&image().0, 0x30010).unwrap();
}

#[test]
fn data_file_raw_without_data_file_is_refused() {
    assert_header(
        image().byte(95, 2),
        "data-file-raw-without-data-file",
        88,
        "data-file-raw autoclear bit requires the data file incompatible bit",
    );
    image().byte(95, 2).byte(79, 4).parse().unwrap();
}

// Header extensions.

#[test]
fn extension_cut_by_the_backing_file_name_is_refused() {
    let image = image().be64(8, 0x74).be32(16, 4);
    assert_extension(
        image,
        "extension-truncated",
        "header extension too large: 8 bytes for type and length do not fit before 0x74",
    );
}

#[test]
fn extension_longer_than_the_cluster_is_refused() {
    assert_extension(
        image().be32(112, 0x1234_5678).be32(116, 0xff89),
        "extension-too-large",
        "header extension too large: 0xff89 bytes do not fit before 0x10000",
    );
    image().be32(112, 0x1234_5678).be32(116, 0xff88).parse().unwrap();
    assert_extension(
        image().be32(112, 0x1234_5678).be32(116, u32::MAX),
        "extension-too-large",
        "header extension too large: 0xffffffff bytes do not fit before 0x10000",
    );
}

#[test]
fn backing_format_above_15_bytes_is_not_supported() {
    assert_extension(
        image().extension(0xe279_2aca, &[b'x'; 16]),
        "backing-format-too-long",
        "backing format name of 16 bytes is longer than 15",
    );
    image().extension(0xe279_2aca, &[b'x'; 15]).parse().unwrap();
}

#[test]
fn crypto_extension_without_luks_is_refused() {
    for method in [0, 1] {
        let text = format!(
            "crypto header extension is only expected with the LUKS encryption method, \
             not with crypt_method {method}"
        );
        let image = image().be32(32, method).extension(0x0537_be77, &[0; 16]);
        assert_extension(image, "crypto-extension-unexpected", &text);
    }
}

#[test]
fn crypto_extension_of_other_length_is_refused() {
    assert_extension(
        image().be32(32, 2).extension(0x0537_be77, &[0; 24]),
        "crypto-extension-length",
        "crypto header extension has 24 bytes, not 16",
    );
}

#[test]
fn crypto_header_off_its_alignment_is_refused() {
    assert_extension(
        image()
            .be32(32, 2)
            .extension(0x0537_be77, &[0, 0, 0, 0, 0, 5, 2, 0, 0, 0, 0, 0, 0, 0, 9, 9]),
        "crypto-header-unaligned",
        "crypto header offset 0x50200 is not aligned to 0x10000",
    );
}

#[test]
fn luks_without_crypto_extension_is_refused() {
    assert_header(
        image().be32(32, 2),
        "crypto-extension-missing",
        32,
        "crypt_method 2 needs a crypto header extension",
    );
}

#[test]
fn bitmaps_extension_of_other_length_is_refused() {
    // QEMU says so whether or not the autoclear bit is set.
    for autoclear in [0, 1] {
        assert_extension(
            image().byte(95, autoclear).extension(0x2385_2875, &[0; 20]),
            "bitmaps-extension-length",
            "bitmaps extension has 20 bytes, not 24",
        );
    }
}

#[test]
fn bitmaps_extension_with_reserved_field_is_refused() {
    assert_extension(
        image().bitmaps(1, 7, 32, 0x40000),
        "bitmaps-reserved",
        "reserved field 0x7 of the bitmaps extension is not zero",
    );
    // Without the autoclear bit the numbers mean nothing.
    image().bitmaps(0, 7, u64::MAX, 1).byte(95, 0).parse().unwrap();
}

#[test]
fn bitmaps_extension_without_bitmaps_is_refused() {
    assert_extension(
        image().bitmaps(0, 0, 32, 0x40000),
        "bitmaps-none",
        "bitmaps extension has zero bitmaps",
    );
}

#[test]
fn more_than_65535_bitmaps_are_not_supported() {
    assert_extension(
        image().bitmaps(65536, 0, 32, 0x40000),
        "bitmaps-too-many",
        "bitmaps extension has 65536 bitmaps: the limit is 65535",
    );
}

#[test]
fn bitmap_directory_off_its_alignment_is_refused() {
    assert_extension(
        image().bitmaps(1, 0, 32, 0x40008),
        "bitmap-directory-unaligned",
        "bitmap directory offset 0x40008 is not aligned to 0x10000",
    );
}

#[test]
fn bitmap_directory_beyond_its_limit_is_not_supported() {
    assert_extension(
        image().bitmaps(1, 0, 0x3ff_fc01, 0x40000),
        "bitmap-directory-too-large",
        "bitmap directory of 0x3fffc01 bytes is too large: the limit is 0x3fffc00",
    );
    image().bitmaps(1, 0, 0x3ff_fc00, 0x40000).parse().unwrap();
}

// What the specification forbids and QEMU accepts.

#[track_caller]
fn assert_deviation(image: FirstCluster, code: &str, text: &str) {
    image.parse().unwrap();
    let found = Header::deviations(&image.0);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!((found[0].code(), found[0].to_string().as_str()), (code, text));
}

#[test]
fn image_without_fault_has_no_deviation() {
    assert_eq!(Header::deviations(&image().bitmaps(1, 0, 32, 0x40000).0), []);
}

#[test]
fn header_length_off_its_alignment_is_a_deviation() {
    assert_deviation(
        image().be32(100, 108),
        "header-length-unaligned",
        "header at 0x64: header_length 108 is not a multiple of 8",
    );
}

#[test]
fn header_padding_is_a_deviation() {
    let text = "header at 0x69: padding 0x1000000000005 is not zero";
    assert_deviation(image().byte(105, 1).byte(111, 5), "header-padding", text);
}

#[test]
fn extension_that_comes_twice_is_a_deviation() {
    assert_deviation(
        image().extension(0x4441_5441, b"12345678").be32(128, 0x4441_5441).be32(132, 0),
        "extension-duplicate",
        "header extension at 0x80: type 0x44415441 appears more than once",
    );
}

#[test]
fn bitmaps_bit_without_extension_is_a_deviation() {
    assert_deviation(
        image().byte(95, 1),
        "bitmaps-extension-missing",
        "header at 0x58: bitmaps autoclear bit is set without a bitmaps extension",
    );
}

// L1 and L2 tables.

const TABLE: HostOffset = HostOffset::new(0x50000);

#[test]
fn l2_table_off_its_alignment_is_refused() {
    assert_error(
        L1Entry::parse(0x8000_0000_0001_8000, 3, TABLE, &geometry()),
        "l1-entry-unaligned",
        "L1 table",
        0x50000,
        3,
        "L1 entry 3 at 0x50000: L2 table offset 0x18000 is not aligned to 0x10000",
    );
}

#[track_caller]
fn assert_l2(descriptor: u64, bitmap: u64, context: &L2Context, code: &str, text: &str) {
    let entry = L2Entry::from_raw(descriptor, bitmap);
    let guest = GuestOffset::new(0x11_0000);
    let result = entry.subcluster_run_for(context, 5, guest).map_err(|fault| fault.at(TABLE, 17));
    let text = format!("L2 entry 17 at 0x50000: {text}");
    assert_error(result, code, "L2 table", 0x50000, 17, &text);
}

fn context(version: Version, data_file: bool) -> L2Context {
    L2Context::new(geometry(), version, data_file)
}

fn extended() -> L2Context {
    L2Context::new(Geometry::new(16, true, 4).unwrap(), Version::V3, false)
}

#[test]
fn cluster_off_its_alignment_is_refused() {
    let text = "host offset 0x1200 is not aligned to 0x10000";
    let version_3 = context(Version::V3, false);
    for descriptor in [0x8000_0000_0000_1200, 0x1200, 0x1201] {
        assert_l2(descriptor, 0, &version_3, "l2-entry-unaligned", text);
    }
    assert_l2(0x1200, 1, &extended(), "l2-entry-unaligned", text);
}

#[test]
fn zero_flag_in_version_2_is_refused() {
    let version_2 = context(Version::V2, false);
    let text = "descriptor 0x1 has the zero flag, which version 2 does not have";
    assert_l2(1, 0, &version_2, "zero-flag-in-v2", text);
    let text = "descriptor 0x60001 has the zero flag, which version 2 does not have";
    assert_l2(0x60001, 0, &version_2, "zero-flag-in-v2", text);
}

#[test]
fn compressed_cluster_with_data_file_is_refused() {
    assert_l2(
        0x4000_0000_0006_0000,
        0,
        &context(Version::V3, true),
        "compressed-with-data-file",
        "descriptor 0x4000000000060000 is a compressed cluster, which an image with a data file cannot have",
    );
}

#[test]
fn compressed_cluster_beyond_2_to_the_56_is_refused() {
    // With clusters of 512 bytes the offset has 61 bits, of which 56 may be used.
    let small = L2Context::new(Geometry::new(9, false, 4).unwrap(), Version::V3, false);
    assert_l2(
        0x4100_0000_0000_0000,
        0,
        &small,
        "compressed-host-offset",
        "compressed cluster's host offset 0x100000000000000 is not below 0x100000000000000",
    );
    let entry = L2Entry::from_raw(0x40ff_ffff_ffff_ffff, 0);
    assert!(matches!(entry.cluster(&small), Ok(ClusterKind::Compressed(_))));
}

#[test]
fn subcluster_both_allocated_and_zero_is_refused() {
    // Whichever subcluster was asked for.
    let text = "subclusters 0x80000001 are both allocated and zero";
    let bitmap = 0x8000_0001_c000_0003;
    assert_l2(0x60000, bitmap, &extended(), "subcluster-allocated-and-zero", text);
}

#[test]
fn subcluster_allocated_without_cluster_is_refused() {
    let text = "subclusters 0x00000100 are allocated, but the host offset is 0";
    assert_l2(0, 0x100, &extended(), "subcluster-allocated-without-cluster", text);
}

#[test]
fn cluster_at_another_offset_of_the_data_file_is_refused() {
    assert_l2(
        0x8000_0000_0006_0000,
        0,
        &context(Version::V3, true),
        "data-file-offset",
        "host offset 0x60000 in the data file is not the guest offset 0x110000",
    );
    // Offset 0 with the copied bit is a cluster there.
    assert_l2(
        0x8000_0000_0000_0000,
        0,
        &context(Version::V3, true),
        "data-file-offset",
        "host offset 0x0 in the data file is not the guest offset 0x110000",
    );
}

// Refcounts.

#[test]
fn refcount_block_off_its_alignment_is_refused() {
    assert_error(
        RefcountTableEntry::parse(0x28000, 9, TABLE, &geometry()),
        "refcount-block-unaligned",
        "refcount table",
        0x50000,
        9,
        "refcount table entry 9 at 0x50000: refcount block offset 0x28000 is not aligned to 0x10000",
    );
}

// Snapshots.

/// A snapshot table entry without extra data, ID and name.
fn snapshot(l1_table_offset: u64, l1_entries: u32, extra_len: u32) -> Vec<u8> {
    let mut bytes = vec![0; 40];
    bytes[..8].copy_from_slice(&l1_table_offset.to_be_bytes());
    bytes[8..12].copy_from_slice(&l1_entries.to_be_bytes());
    bytes[36..40].copy_from_slice(&extra_len.to_be_bytes());
    bytes
}

#[track_caller]
fn assert_snapshot_l1(l1_table_offset: u64, l1_entries: u32, code: &str, text: &str) {
    let parsed = Snapshot::parse(&snapshot(l1_table_offset, l1_entries, 0), 4, TABLE).unwrap();
    let cowshed::format::Parsed::Complete((snapshot, 40)) = parsed else { panic!("{parsed:?}") };
    let text = format!("snapshot 4 at 0x50000: {text}");
    let result = snapshot.validate_l1_table(4, TABLE, &geometry());
    assert_error(result, code, "snapshot table", 0x50000, 4, &text);
}

#[test]
fn snapshot_l1_table_off_its_alignment_is_refused() {
    assert_snapshot_l1(
        0x60010,
        1,
        "snapshot-l1-table-unaligned",
        "L1 table offset 0x60010 is not aligned to 0x10000",
    );
}

#[test]
fn snapshot_l1_table_beyond_2_to_the_63_is_refused() {
    assert_snapshot_l1(
        u64::MAX,
        1,
        "snapshot-l1-table-overflow",
        "L1 table of 0x8 bytes at 0xffffffffffffffff ends beyond 2^63",
    );
}

#[test]
fn snapshot_l1_table_above_32_mib_is_not_supported() {
    assert_snapshot_l1(
        0x60000,
        u32::MAX,
        "snapshot-l1-table-too-large",
        "L1 table of 0x7fffffff8 bytes is too large: the limit is 0x2000000",
    );
}

#[test]
fn snapshot_with_extra_data_above_1024_bytes_is_not_supported() {
    assert_error(
        SnapshotTable::parse(&snapshot(0x60000, 1, 1025), 1, TABLE),
        "snapshot-extra-too-large",
        "snapshot table",
        0x50000,
        0,
        "snapshot 0 at 0x50000: extra data of 1025 bytes is too large: the limit is 1024",
    );
}

#[test]
fn snapshot_table_above_64_mib_is_not_supported() {
    // Entries of 131,112 bytes, each with an ID and a name of 65535: the 512th ends at 511 * 131,112 + 131,110.
    let mut entry = snapshot(0x60000, 1, 0);
    entry[12..16].fill(0xff);
    entry.resize((40 + 2 * 65535_usize).next_multiple_of(8), b'x');
    let table = entry.repeat(1024);
    let result = SnapshotTable::parse(&table, 1024, TABLE).map(|_| ());
    assert_error(
        result,
        "snapshot-table-too-large",
        "snapshot table",
        0x50000,
        None,
        "snapshot table at 0x50000: 0x4004ffe bytes are too large: the limit is 0x4000000",
    );
}

// Bitmaps.

/// A bitmap directory entry with the name "b".
fn bitmap() -> Vec<u8> {
    let mut bytes = vec![0; 32];
    bytes[..8].copy_from_slice(&0x60000_u64.to_be_bytes());
    bytes[8..12].copy_from_slice(&1_u32.to_be_bytes());
    bytes[16] = 1;
    bytes[17] = 16;
    bytes[19] = 1;
    bytes[24] = b'b';
    bytes
}

#[track_caller]
fn assert_bitmap(change: impl FnOnce(&mut Vec<u8>), code: &str, text: &str) {
    let mut bytes = bitmap();
    BitmapDirectoryEntry::parse(&bytes, 2, TABLE, &geometry()).unwrap();
    change(&mut bytes);
    let text = format!("bitmap directory entry 2 at 0x50000: {text}");
    let result = BitmapDirectoryEntry::parse(&bytes, 2, TABLE, &geometry());
    assert_error(result, code, "bitmap directory", 0x50000, 2, &text);
}

#[test]
fn bitmap_directory_that_ends_in_an_entry_is_refused() {
    assert_bitmap(
        |bytes| bytes.truncate(23),
        "bitmap-directory-truncated",
        "directory ends after 23 bytes of the entry, which has 24",
    );
    assert_bitmap(
        |bytes| bytes[20] = 0xff,
        "bitmap-directory-truncated",
        "directory ends after 32 bytes of the entry, which has 4278190112",
    );
}

#[test]
fn bitmap_without_table_is_refused() {
    assert_bitmap(|bytes| bytes[11] = 0, "bitmap-table-empty", "bitmap table has no entries");
    assert_bitmap(|bytes| bytes[5] = 0, "bitmap-table-missing", "bitmap table offset is 0");
}

#[test]
fn bitmap_table_off_its_alignment_is_refused() {
    let text = "bitmap table offset 0x60001 is not aligned to 0x10000";
    assert_bitmap(|bytes| bytes[7] = 1, "bitmap-table-unaligned", text);
}

#[test]
fn bitmap_above_512_mib_is_not_supported() {
    // 8193 clusters of 64 KiB.
    assert_bitmap(
        |bytes| bytes[10] = 0x20,
        "bitmap-too-large",
        "bitmap of 0x20010000 bytes is too large: the limit is 0x20000000",
    );
}

#[test]
fn bitmap_granularity_outside_9_to_31_is_not_supported() {
    for bits in [8, 32] {
        let text = format!("granularity_bits {bits} are not within 9 to 31");
        assert_bitmap(|bytes| bytes[17] = bits, "bitmap-granularity", &text);
    }
}

#[test]
fn bitmap_with_reserved_flags_is_refused() {
    let text = "flags 0x8 have reserved bits";
    assert_bitmap(|bytes| bytes[15] = 8, "bitmap-flags-reserved", text);
}

#[test]
fn bitmap_name_above_1023_bytes_is_not_supported() {
    assert_bitmap(
        |bytes| {
            bytes[18] = 4;
            bytes[19] = 0;
            bytes.resize(24 + 1024, b'b');
        },
        "bitmap-name-too-long",
        "bitmap name of 1024 bytes is longer than 1023",
    );
}

#[test]
fn bitmap_of_reserved_type_is_refused() {
    assert_bitmap(|bytes| bytes[16] = 2, "bitmap-type", "bitmap type 2 is reserved");
}

fn directory(entries: &[Vec<u8>], count: u32) -> Result<BitmapDirectory> {
    let bytes = entries.concat();
    let directory_len = bytes.len() as u64;
    let extension = BitmapsExtension { count, reserved: 0, directory_len, directory_offset: TABLE };
    BitmapDirectory::parse(&bytes, &extension, &geometry())
}

#[test]
fn other_number_of_bitmaps_than_the_header_tells_is_refused() {
    assert_error(
        directory(&[bitmap(), bitmap()], 1),
        "bitmaps-more-than-count",
        "bitmap directory",
        0x50000,
        None,
        "bitmap directory at 0x50000: more bitmaps found than the 1 that the header extension tells of",
    );
    assert_error(
        directory(&[bitmap()], 2),
        "bitmaps-fewer-than-count",
        "bitmap directory",
        0x50000,
        None,
        "bitmap directory at 0x50000: 1 bitmaps found, fewer than the 2 that the header extension tells of",
    );
}

#[test]
fn two_bitmaps_of_one_name_are_refused() {
    assert_error(
        directory(&[bitmap(), bitmap()], 2),
        "bitmap-duplicate",
        "bitmap directory",
        0x50000,
        1,
        "bitmap directory entry 1 at 0x50000: name \"b\" is not unique",
    );
}

#[track_caller]
fn assert_bitmap_table(raw: u64, code: &str, text: &str) {
    let text = format!("bitmap table entry 6 at 0x50000: {text}");
    let result = BitmapTableEntry::parse(raw, 6, TABLE, &geometry());
    assert_error(result, code, "bitmap table", 0x50000, 6, &text);
}

#[test]
fn bitmap_table_entry_with_reserved_bits_is_refused() {
    let text = "reserved bits 0x8000000000000002 are set";
    assert_bitmap_table(0x8000_0000_0006_0002, "bitmap-table-entry-reserved", text);
}

#[test]
fn bitmap_table_entry_with_ones_and_offset_is_refused() {
    let text = "bit 0 is set together with host offset 0x60000";
    assert_bitmap_table(0x60001, "bitmap-table-entry-ones-with-offset", text);
}

#[test]
fn bitmap_cluster_off_its_alignment_is_refused() {
    let text = "host offset 0x60200 is not aligned to 0x10000";
    assert_bitmap_table(0x60200, "bitmap-table-entry-unaligned", text);
}

// LUKS.

/// A LUKS header for keys of 16 bytes, whose key slots are not in use: each takes 128 sectors.
fn luks() -> Vec<u8> {
    let mut bytes = vec![0; 592];
    bytes[..8].copy_from_slice(b"LUKS\xba\xbe\x00\x01");
    let mut put = |at: usize, value: u32| bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
    put(104, 8 + 8 * 128);
    put(108, 16);
    put(164, 1000);
    for slot in 0..8 {
        put(208 + slot * 48, 0xdead);
        put(248 + slot * 48, 8 + slot as u32 * 128);
        put(252 + slot * 48, 4000);
    }
    bytes
}

/// Asserts that a header with one number changed is refused for a key slot.
#[track_caller]
fn assert_luks_slot(at: usize, value: u32, code: &str, slot: u64, text: &str) {
    let mut bytes = luks();
    bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
    let text = format!("key slot {slot} at 0x50000: {text}");
    assert_error(LuksHeader::parse(&bytes, TABLE), code, "crypto header", 0x50000, slot, &text);
}

#[track_caller]
fn assert_luks(change: impl FnOnce(&mut Vec<u8>), code: &str, text: &str) {
    let mut bytes = luks();
    LuksHeader::parse(&bytes, TABLE).unwrap();
    change(&mut bytes);
    let text = format!("crypto header at 0x50000: {text}");
    assert_error(LuksHeader::parse(&bytes, TABLE), code, "crypto header", 0x50000, None, &text);
}

#[test]
fn luks_header_below_592_bytes_is_refused() {
    let text = "LUKS header has 591 bytes, 592 are needed";
    assert_luks(|bytes| bytes.truncate(591), "luks-truncated", text);
}

#[test]
fn luks_header_with_other_magic_is_refused() {
    let text = "LUKS header does not start with its magic";
    assert_luks(|bytes| bytes[5] = 0, "luks-magic", text);
}

#[test]
fn luks_version_2_is_not_supported() {
    assert_luks(|bytes| bytes[7] = 2, "luks-version", "LUKS version 2 is not supported");
}

#[test]
fn luks_name_without_an_end_is_refused() {
    for (at, field) in [(8, "cipher-name"), (40, "cipher-mode"), (72, "hash-spec")] {
        let text = format!("{field} has no zero at its end");
        assert_luks(|bytes| bytes[at..at + 32].fill(b'x'), "luks-name-unterminated", &text);
    }
}

#[test]
fn luks_key_of_no_cipher_is_not_supported() {
    let text = "master key of 65 bytes: keys have 1 to 64";
    assert_luks(|bytes| bytes[111] = 65, "luks-key-length", text);
    let text = "master key of 0 bytes: keys have 1 to 64";
    assert_luks(|bytes| bytes[111] = 0, "luks-key-length", text);
}

#[test]
fn luks_payload_in_the_header_is_refused() {
    let text = "payload at 0xe00 overlaps the LUKS header";
    assert_luks(
        |bytes| bytes[104..108].copy_from_slice(&[0, 0, 0, 7]),
        "luks-payload-offset",
        text,
    );
}

#[test]
fn luks_key_derivation_without_iterations_is_refused() {
    let text = "key derivation has no iterations";
    assert_luks(|bytes| bytes[164..168].fill(0), "luks-no-iterations", text);
    assert_luks_slot(208 + 48, 0x00ac_71f3, "luks-no-iterations", 1, text);
}

#[test]
fn luks_key_slot_with_other_stripes_is_refused() {
    assert_luks_slot(252 + 96, 4001, "luks-stripes", 2, "4001 stripes, not 4000");
}

#[test]
fn luks_key_slot_outside_of_its_place_is_refused() {
    let text = "key material at 0xe00 overlaps the LUKS header";
    assert_luks_slot(248, 7, "luks-slot-in-header", 0, text);
    let text = "key material up to 0x81200 overlaps the payload at 0x81000";
    assert_luks_slot(248 + 7 * 48, 8 + 7 * 128 + 4, "luks-slot-in-payload", 7, text);
    let text = "key material overlaps that of key slot 1";
    assert_luks_slot(248, 9 + 3, "luks-slots-overlap", 0, text);
}

#[test]
fn luks_key_slot_in_neither_state_is_refused() {
    let mut bytes = luks();
    bytes[208 + 48] = 1;
    assert_error(
        LuksHeader::parse(&bytes, TABLE),
        "luks-slot-state",
        "crypto header",
        0x50000,
        1,
        "key slot 1 at 0x50000: state 0x0100dead is neither 0x00ac71f3 nor 0x0000dead",
    );
}
