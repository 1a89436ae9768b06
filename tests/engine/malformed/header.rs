//! The header, its extensions, and files that end too early.

use super::bases::Base;
use super::{Case, Expected, case, open, place};

const VERSION: u64 = 4;
const BACKING_FILE_OFFSET: u64 = 8;
const BACKING_FILE_SIZE: u64 = 16;
const CLUSTER_BITS: u64 = 20;
const SIZE: u64 = 24;
const CRYPT_METHOD: u64 = 32;
const L1_SIZE: u64 = 36;
const L1_TABLE_OFFSET: u64 = 40;
const REFCOUNT_TABLE_OFFSET: u64 = 48;
const REFCOUNT_TABLE_CLUSTERS: u64 = 56;
const NB_SNAPSHOTS: u64 = 60;
const SNAPSHOTS_OFFSET: u64 = 64;
const INCOMPATIBLE: u64 = 72;
const AUTOCLEAR: u64 = 88;
const REFCOUNT_ORDER: u64 = 96;
const HEADER_LENGTH: u64 = 100;
const COMPRESSION_TYPE: u64 = 104;

const BACKING_FORMAT: u32 = 0xe279_2aca;
const FEATURE_NAMES: u32 = 0x6803_f857;
const BITMAPS: u32 = 0x2385_2875;
const CRYPTO: u32 = 0x0537_be77;

pub(super) fn cases() -> Vec<Case> {
    [fields(), tables(), features(), extensions(), ends()].into_iter().flatten().collect()
}

fn fields() -> Vec<Case> {
    let mut cases = Vec::new();
    for magic in [*b"QFI\xfa", [0; 4], *b"\xfbIFQ"] {
        let name = format!("magic {magic:?}");
        let expected = open("not-qcow2", 0, "image is not in qcow2 format");
        cases.push(case(name, Base::Plain, move |b| b.bytes(0, &magic), expected));
    }
    for version in [0, 1, 4, u32::MAX] {
        let expected = open("version", VERSION, format!("Unsupported qcow2 version {version}"));
        let patch = move |b: &mut super::Bytes| b.u32(VERSION, version);
        cases.push(case(format!("version {version}"), Base::Plain, patch, expected));
    }
    for bits in [0, 1, 8] {
        let text = format!("cluster_bits {bits} is less than 9");
        let expected = open("cluster-bits-too-small", CLUSTER_BITS, text);
        let patch = move |b: &mut super::Bytes| b.u32(CLUSTER_BITS, bits);
        cases.push(case(format!("cluster_bits {bits}"), Base::Plain, patch, expected));
    }
    // Each of these is a shift that panics or wraps where it is used unchecked.
    for bits in [22, 31, 32, 40, 63, 64, u32::MAX] {
        let text = format!("cluster_bits {bits} is greater than 21");
        let expected = open("cluster-bits", CLUSTER_BITS, text);
        let patch = move |b: &mut super::Bytes| b.u32(CLUSTER_BITS, bits);
        cases.push(case(format!("cluster_bits {bits}"), Base::Plain, patch, expected));
    }
    for bits in [9, 13] {
        let text = format!("cluster_bits {bits} is less than 14, which extended L2 entries need");
        let patch = move |b: &mut super::Bytes| {
            b.u32(CLUSTER_BITS, bits);
            b.u8(HEADER_LENGTH + 2, 0);
            b.u8(HEADER_LENGTH + 3, 112);
        };
        let expected = open("extended-l2-cluster-bits", CLUSTER_BITS, text);
        cases.push(case(
            format!("extended L2, cluster_bits {bits}"),
            Base::Extended,
            patch,
            expected,
        ));
    }
    for method in [3, 0x100, u32::MAX] {
        let text = format!("unknown encryption method: {method}");
        let expected = open("crypt-method", CRYPT_METHOD, text);
        let patch = move |b: &mut super::Bytes| b.u32(CRYPT_METHOD, method);
        cases.push(case(format!("crypt_method {method}"), Base::Plain, patch, expected));
    }
    for order in [7, 8, 32, 63, 64, u32::MAX] {
        let text = format!("refcount_order {order} is greater than 6");
        let expected = open("refcount-order", REFCOUNT_ORDER, text);
        let patch = move |b: &mut super::Bytes| b.u32(REFCOUNT_ORDER, order);
        cases.push(case(format!("refcount_order {order}"), Base::Plain, patch, expected));
    }
    for len in [0, 72, 103] {
        let text = format!("header_length {len} is less than 104");
        let expected = open("header-length-too-small", HEADER_LENGTH, text);
        let patch = move |b: &mut super::Bytes| b.u32(HEADER_LENGTH, len);
        cases.push(case(format!("header_length {len}"), Base::Plain, patch, expected));
    }
    for len in [65537, 0x8000_0000, u32::MAX] {
        let text = format!("header_length {len} exceeds the cluster size 65536");
        let expected = open("header-length-exceeds-cluster", HEADER_LENGTH, text);
        let patch = move |b: &mut super::Bytes| b.u32(HEADER_LENGTH, len);
        cases.push(case(format!("header_length {len}"), Base::Plain, patch, expected));
    }
    for offset in [65537, 1 << 32, 1 << 63, u64::MAX] {
        let text = format!(
            "backing file name's offset {offset:#x} is beyond the first cluster, which ends at 0x10000"
        );
        let expected = open("backing-file-offset", BACKING_FILE_OFFSET, text);
        let patch = move |b: &mut super::Bytes| b.u64(BACKING_FILE_OFFSET, offset);
        cases.push(case(format!("backing_file_offset {offset:#x}"), Base::Plain, patch, expected));
    }
    for len in [1024, 65536, u32::MAX] {
        let text = format!("backing file name of {len} bytes is longer than 1023");
        let expected = open("backing-file-name-too-long", BACKING_FILE_SIZE, text);
        let patch = move |b: &mut super::Bytes| b.u32(BACKING_FILE_SIZE, len);
        cases.push(case(format!("backing_file_size {len}"), Base::Backing, patch, expected));
    }
    let patch = |b: &mut super::Bytes| {
        b.u64(BACKING_FILE_OFFSET, 0xfff0);
        b.u32(BACKING_FILE_SIZE, 17);
    };
    let expected = open(
        "backing-file-name-too-long",
        BACKING_FILE_SIZE,
        "backing file name of 17 bytes is longer than 16",
    );
    cases.push(case("backing file's name leaves the cluster", Base::Plain, patch, expected));
    cases
}

fn tables() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut u64_case = |at: u64, name: &str, value: u64, code: &'static str, text: String| {
        let patch = move |b: &mut super::Bytes| b.u64(at, value);
        cases.push(case(format!("{name} {value:#x}"), Base::Plain, patch, open(code, at, text)));
    };
    for (size, code, at, text) in [
        (u64::MAX, "image-too-big", SIZE, format!("image is too big: {} bytes", u64::MAX)),
        (1 << 63, "image-too-big", SIZE, format!("image is too big: {} bytes", 1_u64 << 63)),
    ] {
        u64_case(at, "size", size, code, text);
    }
    for offset in [0x30001, 0x30200, 0x38000] {
        let text = format!("L1 table offset {offset:#x} is not aligned to 0x10000");
        u64_case(L1_TABLE_OFFSET, "l1_table_offset", offset, "l1-table-unaligned", text);
        let text = format!("refcount table offset {offset:#x} is not aligned to 0x10000");
        let code = "refcount-table-unaligned";
        u64_case(REFCOUNT_TABLE_OFFSET, "refcount_table_offset", offset, code, text);
        let text = format!("snapshot table offset {offset:#x} is not aligned to 0x10000");
        let code = "snapshot-table-unaligned";
        u64_case(SNAPSHOTS_OFFSET, "snapshots_offset", offset, code, text);
    }
    for offset in [1 << 63, 0xffff_ffff_ffff_0000] {
        let text = format!("L1 table of 0x10 bytes at {offset:#x} ends beyond 2^63");
        u64_case(L1_TABLE_OFFSET, "l1_table_offset", offset, "l1-table-overflow", text);
        let text = format!("refcount table of 0x10000 bytes at {offset:#x} ends beyond 2^63");
        let code = "refcount-table-overflow";
        u64_case(REFCOUNT_TABLE_OFFSET, "refcount_table_offset", offset, code, text);
    }
    for offset in [0xb0000, 1 << 40, 1 << 62] {
        let text = format!(
            "L1 table of 0x10 bytes at {offset:#x} ends past the end of the file at 0xb0000"
        );
        u64_case(L1_TABLE_OFFSET, "l1_table_offset", offset, "l1-table-past-end", text);
    }
    let mut u32_case = |base, at: u64, name: &str, value: u32, code: &'static str, text: String| {
        let patch = move |b: &mut super::Bytes| b.u32(at, value);
        cases.push(case(format!("{name} {value}"), base, patch, open(code, at, text)));
    };
    for entries in [0, 1] {
        let text = format!("L1 table is too small: {entries} entries, the disk's size needs 2");
        u32_case(Base::Plain, L1_SIZE, "l1_size", entries, "l1-table-too-small", text);
    }
    for entries in [(4 << 20) + 1, 0x2000_0000, u32::MAX] {
        let text = format!(
            "L1 table of {:#x} bytes is too large: the limit is 0x2000000",
            u64::from(entries) * 8
        );
        u32_case(Base::Plain, L1_SIZE, "l1_size", entries, "l1-table-too-large", text);
    }
    for clusters in [129, 0x10000, u32::MAX] {
        let text = format!(
            "refcount table of {:#x} bytes is too large: the limit is 0x800000",
            u64::from(clusters) << 16
        );
        let (at, code) = (REFCOUNT_TABLE_CLUSTERS, "refcount-table-too-large");
        u32_case(Base::Plain, at, "refcount_table_clusters", clusters, code, text);
    }
    let text = "image does not contain a refcount table".into();
    let (at, code) = (REFCOUNT_TABLE_CLUSTERS, "refcount-table-missing");
    u32_case(Base::Plain, at, "refcount_table_clusters", 0, code, text);
    for count in [65537, u32::MAX] {
        let text = format!("snapshot table of {count} snapshots is too large: the limit is 65536");
        u32_case(Base::Plain, NB_SNAPSHOTS, "nb_snapshots", count, "snapshots-too-many", text);
    }
    let patch = |b: &mut super::Bytes| b.u32(L1_SIZE, 4 << 20);
    let text = "L1 table of 0x2000000 bytes at 0x30000 ends past the end of the file at 0xb0000";
    let expected = open("l1-table-past-end", L1_TABLE_OFFSET, text);
    cases.push(case("l1_size 4194304", Base::Plain, patch, expected));
    let patch = |b: &mut super::Bytes| b.u64(SIZE, (1 << 51) + 1);
    let text = "L1 table is too small: 2 entries, the disk's size needs 4194305";
    cases.push(case("size 2^51", Base::Plain, patch, open("l1-table-too-small", L1_SIZE, text)));
    let patch = |b: &mut super::Bytes| b.u64(SNAPSHOTS_OFFSET, 1 << 63);
    let text = "snapshot table of at least 0x50 bytes at 0x8000000000000000 ends beyond 2^63";
    let expected = open("snapshot-table-overflow", SNAPSHOTS_OFFSET, text);
    cases.push(case("snapshots_offset 2^63", Base::Snapshots, patch, expected));
    cases
}

fn features() -> Vec<Case> {
    let mut cases = Vec::new();
    for bit in [5, 8, 31, 32, 63] {
        let patch = move |b: &mut super::Bytes| {
            let bits = b.get(INCOMPATIBLE) | 1 << bit;
            b.u64(INCOMPATIBLE, bits);
        };
        let text = format!(
            "Unsupported qcow2 feature(s): Unknown incompatible feature: {:x}",
            1_u64 << bit
        );
        let expected = open("incompatible-features", INCOMPATIBLE, text);
        cases.push(case(format!("incompatible bit {bit}"), Base::Plain, patch, expected));
    }
    let patch = |b: &mut super::Bytes| {
        b.u64(INCOMPATIBLE, 1 << 9);
        let names = b.extension(FEATURE_NAMES) + 8;
        b.u8(names + 1, 9);
        b.bytes(names + 2, b"time travel\0");
    };
    let text = "Unsupported qcow2 feature(s): time travel";
    let expected = open("incompatible-features", INCOMPATIBLE, text);
    cases.push(case("incompatible bit with a name", Base::Plain, patch, expected));
    let text = "compression type incompatible feature bit must not be set for compression_type 0";
    let expected = open("compression-bit-set", INCOMPATIBLE, text);
    cases.push(case(
        "compression bit without type",
        Base::Plain,
        |b| b.u64(INCOMPATIBLE, 8),
        expected,
    ));
    let text = "compression type incompatible feature bit must be set for compression_type 1";
    let expected = open("compression-bit-missing", INCOMPATIBLE, text);
    cases.push(case(
        "compression type without bit",
        Base::Zstd,
        |b| b.u64(INCOMPATIBLE, 0),
        expected,
    ));
    for kind in [2, 255] {
        let text = format!("unknown compression type: {kind}");
        let expected = open("compression-type", COMPRESSION_TYPE, text);
        let patch = move |b: &mut super::Bytes| b.u8(COMPRESSION_TYPE, kind);
        cases.push(case(format!("compression_type {kind}"), Base::Zstd, patch, expected));
    }
    let text = "data-file-raw autoclear bit requires the data file incompatible bit";
    let expected = open("data-file-raw-without-data-file", AUTOCLEAR, text);
    cases.push(case(
        "data-file-raw without data file",
        Base::Plain,
        |b| b.u64(AUTOCLEAR, 2),
        expected,
    ));
    cases
}

fn extension(code: &'static str, offset: u64, text: impl Into<String>) -> Expected {
    Expected::Open(place(code, "header extension", offset, text))
}

/// Its name, how an extension at an offset gets it, the code and the text.
type Fault = (&'static str, fn(&mut super::Bytes, u64), &'static str, String);

fn extensions() -> Vec<Case> {
    let mut cases = Vec::new();
    // The first extension of these images stands at 112.
    for len in [0xffff, 0x8000_0000, u32::MAX] {
        let text = format!("header extension too large: {len:#x} bytes do not fit before 0x10000");
        let patch = move |b: &mut super::Bytes| b.u32(116, len);
        let expected = extension("extension-too-large", 112, text);
        cases.push(case(format!("extension of {len:#x} bytes"), Base::Plain, patch, expected));
    }
    // QEMU puts the format first, and the name behind all.
    let patch = |b: &mut super::Bytes| {
        b.u64(BACKING_FILE_OFFSET, 132);
    };
    let text = "header extension too large: 8 bytes for type and length do not fit before 0x84";
    let expected = extension("extension-truncated", 0x80, text);
    cases.push(case("extensions end in an extension's type", Base::Backing, patch, expected));
    let patch = |b: &mut super::Bytes| {
        let at = b.extension(BACKING_FORMAT);
        b.u32(at + 4, 16);
    };
    let text = "backing format name of 16 bytes is longer than 15";
    let expected = extension("backing-format-too-long", 112, text);
    cases.push(case("backing format of 16 bytes", Base::Backing, patch, expected));
    let bitmaps: [Fault; 6] = [
        (
            "length 16",
            |b, at| b.u32(at + 4, 16),
            "bitmaps-extension-length",
            "bitmaps extension has 16 bytes, not 24".into(),
        ),
        (
            "reserved field",
            |b, at| b.u32(at + 12, 7),
            "bitmaps-reserved",
            "reserved field 0x7 of the bitmaps extension is not zero".into(),
        ),
        (
            "no bitmaps",
            |b, at| b.u32(at + 8, 0),
            "bitmaps-none",
            "bitmaps extension has zero bitmaps".into(),
        ),
        (
            "65536 bitmaps",
            |b, at| b.u32(at + 8, 65536),
            "bitmaps-too-many",
            "bitmaps extension has 65536 bitmaps: the limit is 65535".into(),
        ),
        (
            "directory off its alignment",
            |b, at| b.u64(at + 24, 0x1d_0008),
            "bitmap-directory-unaligned",
            "bitmap directory offset 0x1d0008 is not aligned to 0x10000".into(),
        ),
        (
            "directory of 2^40 bytes",
            |b, at| b.u64(at + 16, 1 << 40),
            "bitmap-directory-too-large",
            "bitmap directory of 0x10000000000 bytes is too large: the limit is 0x3fffc00".into(),
        ),
    ];
    for (name, patch, code, text) in bitmaps {
        let patch = move |b: &mut super::Bytes| {
            let at = b.extension(BITMAPS);
            patch(b, at);
        };
        let name = format!("bitmaps extension: {name}");
        cases.push(case(name, Base::Bitmaps, patch, extension(code, 504, text)));
    }
    let crypto: [Fault; 2] = [
        (
            "length 8",
            |b, at| b.u32(at + 4, 8),
            "crypto-extension-length",
            "crypto header extension has 8 bytes, not 16".into(),
        ),
        (
            "off its alignment",
            |b, at| b.u64(at + 8, 0x3_0200),
            "crypto-header-unaligned",
            "crypto header offset 0x30200 is not aligned to 0x10000".into(),
        ),
    ];
    for (name, patch, code, text) in crypto {
        let patch = move |b: &mut super::Bytes| {
            let at = b.extension(CRYPTO);
            patch(b, at);
        };
        let name = format!("crypto header extension: {name}");
        cases.push(case(name, Base::Luks, patch, extension(code, 112, text)));
    }
    let text = "crypto header extension is only expected with the LUKS encryption method, not with crypt_method 0";
    let expected = extension("crypto-extension-unexpected", 112, text);
    cases.push(case(
        "crypto header extension without LUKS",
        Base::Luks,
        |b| b.u32(CRYPT_METHOD, 0),
        expected,
    ));
    let expected = open(
        "crypto-extension-missing",
        CRYPT_METHOD,
        "crypt_method 2 needs a crypto header extension",
    );
    cases.push(case(
        "LUKS without crypto header extension",
        Base::Plain,
        |b| b.u32(CRYPT_METHOD, 2),
        expected,
    ));
    cases
}

/// Files that end where something is missing.
fn ends() -> Vec<Case> {
    let mut cases = Vec::new();
    for (len, needed) in
        [(4, 72), (24, 72), (71, 72), (72, 104), (103, 104), (104, 112), (111, 112)]
    {
        let text = format!("file ends after {len} bytes, {needed} are needed");
        let expected = open("header-truncated", 0, text);
        cases.push(case(
            format!("file of {len} bytes"),
            Base::Plain,
            move |b| b.cut(len),
            expected,
        ));
    }
    for len in [0, 1, 3] {
        let expected = open("not-qcow2", 0, "image is not in qcow2 format");
        cases.push(case(
            format!("file of {len} bytes"),
            Base::Plain,
            move |b| b.cut(len),
            expected,
        ));
    }
    for len in [0x30000, 0x30008, 0x3000f] {
        let text =
            format!("L1 table of 0x10 bytes at 0x30000 ends past the end of the file at {len:#x}");
        let expected = open("l1-table-past-end", L1_TABLE_OFFSET, text);
        cases.push(case(
            format!("file of {len:#x} bytes"),
            Base::Plain,
            move |b| b.cut(len),
            expected,
        ));
    }
    for len in [0x40000, 0x40200, 0x4ffff] {
        let text = format!("end past the end of the file at {len:#x}");
        // A slice of the L2 table: the part that maps the last of its guest clusters is missing in each.
        let expected = Expected::Read(
            (512 << 20) - 65536,
            place("past-end-of-file", "L2 table", 0x4f000, text),
        );
        cases.push(case(
            format!("file of {len:#x} bytes"),
            Base::Plain,
            move |b| b.cut(len),
            expected,
        ));
    }
    cases
}
