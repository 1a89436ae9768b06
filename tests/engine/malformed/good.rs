//! Images that look wrong and are not, or not so wrong that they could not be read: they are read, and as QEMU reads them.

use std::io::{Read, Seek, SeekFrom};

use super::bases::{Base, Bytes, bases};
use super::{opened, read};
use crate::support::qemu;
use cowshed::image::check::CheckOptions;
use futures::executor::block_on;

const L1: u64 = 0x30000;
const L2: u64 = 0x40000;
const REFCOUNT_BLOCK: u64 = 0x20000;
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const SNAPSHOTS: u64 = 0x10_0000;

/// Whether the check finds nothing, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Check {
    Clean,
    Finds,
}

struct Good {
    name: &'static str,
    base: Base,
    patch: fn(&mut Bytes),
    check: Check,
}

const fn good(name: &'static str, base: Base, patch: fn(&mut Bytes)) -> Good {
    Good { name, base, patch, check: Check::Clean }
}

const fn readable(name: &'static str, base: Base, patch: fn(&mut Bytes)) -> Good {
    Good { name, base, patch, check: Check::Finds }
}

const GOOD: &[Good] = &[
    good("header of 104 bytes, without compression_type", Base::Plain, |b| b.u32(100, 104)),
    good("header of 128 bytes with fields that nobody knows", Base::Plain, |b| {
        b.u32(100, 128);
        b.bytes(112, b"sixteen bytes of");
        b.bytes(128, &[0; 8]);
    }),
    good("header of 65536 bytes", Base::Plain, |b| b.u32(100, 65536)),
    good("header_length that is not a multiple of 8", Base::Plain, |b| {
        b.u32(100, 113);
        b.bytes(113, &[0; 8]);
    }),
    good("padding that is not zero", Base::Plain, |b| b.u8(105, 7)),
    good("extension that nobody knows", Base::Plain, |b| b.u32(112, 0x1234_5678)),
    good("empty extension", Base::Plain, |b| {
        b.u32(112, 0x1234_5678);
        b.u32(116, 0);
        b.bytes(120, &[0; 8]);
    }),
    good("feature name table that ends in an entry", Base::Plain, |b| {
        b.u32(116, 380);
    }),
    good("feature name table of one byte", Base::Plain, |b| {
        b.u32(116, 1);
        b.bytes(128, &[0; 8]);
    }),
    good("two feature name tables", Base::Plain, |b| {
        b.u32(116, 48);
        b.u32(168, 0x6803_f857);
        b.u32(172, 0);
        b.bytes(176, &[0; 8]);
    }),
    good("extensions that end with the cluster", Base::Plain, |b| {
        b.u32(504, 0x1234_5678);
        b.u32(508, 65536 - 512);
    }),
    good("bytes behind the end of the extensions", Base::Plain, |b| b.bytes(512, &[0xee; 512])),
    good("size that is not a multiple of 512", Base::Plain, |b| b.u64(24, (1 << 30) - 100)),
    good("size of one byte", Base::Plain, |b| b.u64(24, 1)),
    good("empty disk", Base::Plain, |b| b.u64(24, 0)),
    good("disk that ends in a cluster", Base::Plain, |b| b.u64(24, (600 << 20) + 512)),
    good("L1 table longer than the disk needs", Base::Plain, |b| b.u32(36, 8192)),
    good("unknown compatible features", Base::Plain, |b| b.u64(80, 0xffff_0000_0000_0000)),
    good("unknown autoclear features", Base::Plain, |b| b.u64(88, 0xffff_0000_0000_0000)),
    good("bitmaps bit without the extension", Base::Plain, |b| b.u64(88, 1)),
    good("dirty bit", Base::Plain, |b| b.u64(72, 1)),
    good("corrupt bit", Base::Plain, |b| b.u64(72, 2)),
    good("dirty and corrupt bit", Base::Plain, |b| b.u64(72, 3)),
    good("lazy refcounts", Base::Plain, |b| b.u64(80, 1)),
    good("nothing after the data", Base::Plain, |b| b.cut(0xa_0001)),
    readable("data that the file does not have", Base::Plain, |b| b.cut(0xa_0000)),
    good("bytes after the last cluster", Base::Plain, |b| b.0.extend_from_slice(&[0xee; 12345])),
    good("bytes of a version 3 header in version 2", Base::V2, |b| b.bytes(104, &[0; 8])),
    readable("bitmaps without their bit", Base::Bitmaps, |b| b.u64(88, 0)),
    readable("L1 entry with reserved bits", Base::Plain, |b| b.u64(L1, COPIED | L2 | 1 << 60)),
    readable("L1 entry of flags alone", Base::Plain, |b| b.u64(L1 + 8, COPIED)),
    readable("L1 entry without copied flag", Base::Plain, |b| b.u64(L1, L2)),
    readable("L1 entry with copied flag in vain", Base::Plain, |b| b.u16(REFCOUNT_BLOCK + 8, 2)),
    readable("L2 entry with reserved bits", Base::Plain, |b| {
        b.u64(L2, COPIED | 0x50000 | 1 << 58 | 2);
    }),
    good("L2 entry of flags alone", Base::Plain, |b| b.u64(L2 + 8 * 9, COPIED)),
    readable("L2 entry without copied flag", Base::Plain, |b| b.u64(L2, 0x50000)),
    readable("zero flag and copied flag without a cluster", Base::Plain, |b| {
        // A check says nothing of it either; what it finds is the cluster of before.
        b.u64(L2, COPIED | 1);
    }),
    good("zero cluster kept", Base::Plain, |b| b.u64(L2, COPIED | 0x50001)),
    readable("one cluster twice", Base::Plain, |b| b.u64(L2 + 8, 0x50000)),
    good("one cluster twice, refcounts agree", Base::Plain, |b| {
        b.u64(L2, 0x50000);
        b.u64(L2 + 8, 0x50000);
        b.u16(REFCOUNT_BLOCK + 5 * 2, 2);
        b.u16(REFCOUNT_BLOCK + 6 * 2, 0);
    }),
    readable("one L2 table twice", Base::Plain, |b| b.u64(L1 + 8, L2)),
    readable("refcounts of zero", Base::Plain, |b| b.bytes(REFCOUNT_BLOCK, &[0; 32])),
    readable("no refcount block", Base::Plain, |b| b.u64(0x10000, 0)),
    readable("refcount table of garbage", Base::Plain, |b| b.u64(0x10000, u64::MAX)),
    good("compressed cluster with a sector too many", Base::Plain, |b| {
        b.u64(L2 + 24, COMPRESSED | 1 << 54 | 0x70000);
    }),
    readable("compressed cluster with copied flag", Base::Plain, |b| {
        b.u64(L2 + 24, COPIED | COMPRESSED | 0x70000);
    }),
    good("garbage behind a compressed stream", Base::Plain, |b| {
        b.bytes(0x70000 + 400, &[0xee; 112])
    }),
    good("garbage behind a zstd stream", Base::Zstd, |b| b.0.resize(0x50400, 0xee)),
    good("two guest clusters of one compressed stream", Base::Zstd, |b| {
        let entry = b.get(L2);
        b.u64(L2 + 16, entry);
        b.u16(REFCOUNT_BLOCK + 10, 3);
    }),
    readable("snapshot with extra data of 8 bytes", Base::Snapshots, |b| {
        b.u32(SNAPSHOTS + 36, 8);
        // What it lacks is part of the name.
        b.u16(SNAPSHOTS + 14, 19);
    }),
    good("snapshot with unknown extra data", Base::Snapshots, |b| {
        // The second takes as many bytes more as its name and padding give: none are left for the name.
        b.u32(SNAPSHOTS + 72 + 36, 24 + 4);
        b.u16(SNAPSHOTS + 72 + 12, 0);
        b.u16(SNAPSHOTS + 72 + 14, 0);
    }),
    good("snapshots of one name and id", Base::Snapshots, |b| {
        b.bytes(SNAPSHOTS + 72 + 40 + 24, b"1one");
    }),
    good("snapshot's name is not UTF-8", Base::Snapshots, |b| {
        b.bytes(SNAPSHOTS + 40 + 24 + 1, b"\xff\x1b\0");
    }),
    good("snapshot of an empty disk", Base::Snapshots, |b| b.u64(SNAPSHOTS + 40 + 8, 0)),
    readable("snapshot's L1 table is missing", Base::Snapshots, |b| b.u64(SNAPSHOTS, 1 << 40)),
    good("extended entry: all subclusters unallocated", Base::Extended, |b| b.u64(L2 + 8, 0)),
    good("extended entry: every other subcluster zero", Base::Extended, |b| {
        b.u64(L2 + 8, 0xaaaa_aaaa_5555_5555);
    }),
    good("extended entry: zero subclusters and no cluster", Base::Extended, |b| {
        b.u64(L2 + 16 * 7 + 8, 0x00ff_0000_0000_0000);
    }),
    readable("extended entry with bit 0", Base::Extended, |b| b.u64(L2, COPIED | 0x50001)),
    good("last cluster of 512 bytes is cut", Base::Small, |b| {
        let len = b.len();
        b.cut(len - 100);
    }),
];

/// What QEMU reads: the size, and the bytes of some ranges.
fn by_qemu(bytes: &[u8]) -> (u64, Vec<(u64, Vec<u8>)>) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("image.qcow2"), bytes).unwrap();
    let arguments = ["convert", "-q", "-f", "qcow2", "-O", "raw", "image.qcow2", "image.raw"];
    qemu::img(dir.path(), arguments);
    let mut raw = std::fs::File::open(dir.path().join("image.raw")).unwrap();
    let size = raw.metadata().unwrap().len();
    let ranges = [(0, 1 << 20), (600 << 20, 128 << 10)].map(|(start, len): (u64, u64)| {
        let (start, end) = (start.min(size), (start + len).min(size));
        let mut bytes = vec![0; (end - start) as usize];
        raw.seek(SeekFrom::Start(start)).unwrap();
        raw.read_exact(&mut bytes).unwrap();
        (start, bytes)
    });
    (size, ranges.into())
}

#[test]
fn odd_images_are_read_as_qemu_reads_them() {
    let bases = bases();
    let mut wrong = Vec::new();
    for good in GOOD {
        let mut bytes = bases[&good.base].clone();
        (good.patch)(&mut bytes);
        let image = match opened(bytes.0.clone(), None) {
            Ok(image) => image,
            Err(error) => {
                wrong.push(format!("{}: not opened: {error}", good.name));
                continue;
            }
        };
        let (size, ranges) = by_qemu(&bytes.0);
        if image.virtual_size() != size {
            wrong.push(format!("{}: {} bytes instead of {size}", good.name, image.virtual_size()));
            continue;
        }
        for (offset, expected) in ranges {
            let mut found = vec![0xa5; expected.len()];
            match block_on(image.read_at(&mut found, offset)) {
                Ok(()) if found == expected => {}
                Ok(()) => wrong.push(format!("{}: other bytes at {offset:#x}", good.name)),
                Err(error) => wrong.push(format!("{}: {error}", good.name)),
            }
        }
        let mut findings: Vec<cowshed::image::check::Finding> = Vec::new();
        let report = block_on(image.check(&CheckOptions::default(), &mut findings)).unwrap();
        let check = if report.is_clean() { Check::Clean } else { Check::Finds };
        if check != good.check {
            wrong.push(format!("{}: the check is {check:?}: {findings:?}", good.name));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), GOOD.len(), wrong.join("\n"));
    println!("{} odd images", GOOD.len());
}

#[test]
fn stream_at_the_end_of_a_cut_file_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let commands = ["write -c -P 7 0 64k", "write -c -P 8 64k 64k"];
    for options in ["compression_type=zlib", "compression_type=zstd"] {
        qemu::img(dir.path(), ["create", "-q", "-f", "qcow2", "-o", options, "a.qcow2", "1M"]);
        qemu::io(dir.path(), "qcow2", "a.qcow2", &commands);
        let mut bytes = std::fs::read(dir.path().join("a.qcow2")).unwrap();
        // What the entry says ends with a sector, and what the file has ends with the stream.
        assert_ne!(bytes.len() % 512, 0, "{options}");
        let image = opened(bytes.clone(), None).unwrap();
        assert_eq!(read(&image, 0).unwrap(), [7; 512], "{options}");
        assert_eq!(read(&image, 64 << 10).unwrap(), [8; 512], "{options}");
        // The stream itself cut is another matter.
        bytes.truncate(bytes.len() - 16);
        let cut = opened(bytes, None).unwrap();
        assert_eq!(read(&cut, 0).unwrap(), [7; 512], "{options}");
        let error = read(&cut, 64 << 10).unwrap_err().to_string();
        assert!(error.contains("compressed cluster"), "{options}: {error}");
        let report = block_on(image.check(&CheckOptions::default(), &mut ())).unwrap();
        assert!(report.is_clean(), "{options}: {report:?}");
    }
}
