//! Images to damage: small, of different geometries, with a snapshot and compressed clusters, made by QEMU.

use crate::support::data::pattern_file;
use crate::support::qemu;
use crate::support::tables::Tables;

/// A sound image.
pub struct Base {
    pub name: &'static str,
    pub tables: Tables,
}

/// Guest clusters of the images: two written before the snapshot and again after it, one only before, one only after.
pub const REWRITTEN: u64 = 0;
/// Only the snapshot and the active state share it.
pub const KEPT: u64 = 2;
/// Written after the snapshot.
pub const FRESH: u64 = 5;
/// Compressed, after the snapshot.
pub const PACKED: u64 = 8;
/// Never written.
pub const EMPTY: u64 = 12;
/// In the last L2 table.
pub const FAR: u64 = 62;

/// The images, made once for a test.
pub fn bases() -> Vec<Base> {
    [
        ("8 KiB", 8192, ""),
        ("4 KiB, version 2", 4096, ",compat=0.10"),
        ("512 bytes", 512, ""),
        ("16 KiB, extended L2", 16384, ",extended_l2=on"),
        ("4 KiB, refcounts of 64 bits, zstd", 4096, ",refcount_bits=64,compression_type=zstd"),
    ]
    .into_iter()
    .map(|(name, cluster_size, options)| Base { name, tables: make(cluster_size, options) })
    .collect()
}

fn make(size: u64, options: &str) -> Tables {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image.qcow2");
    // As many clusters as fit one L2 table of the smallest clusters.
    let len = (64 * size).to_string();
    let options = format!("cluster_size={size}{options}");
    qemu::img(dir.path(), ["create", "-q", "-f", "qcow2", "-o", &options, "image.qcow2", &len]);
    let write = |cluster: u64, count: u64, file: usize| {
        let file = pattern_file(file);
        format!("write -q -s {} {} {}", file.display(), cluster * size, count * size)
    };
    let io = |commands: &[String]| qemu::io(dir.path(), "qcow2", "image.qcow2", commands);
    io(&[write(REWRITTEN, 4, 1), write(20, 3, 3), write(FAR, 1, 5)]);
    qemu::img(dir.path(), ["snapshot", "-c", "old", "image.qcow2"]);
    let packed = format!("write -q -c -P 7 {} {}", PACKED * size, size);
    let packed_2 =
        packed.replacen(&(PACKED * size).to_string(), &((PACKED + 1) * size).to_string(), 1);
    io(&[write(REWRITTEN, 2, 7), write(FRESH, 2, 1), packed, packed_2, write(40, 2, 3)]);
    Tables { bytes: std::fs::read(&path).unwrap() }
}
