//! Headers: what QEMU writes is read, and what is read comes out as it was.

use std::process::Command;

use cowshed::format::{
    Autoclear, Compression, Extension, Geometry, GuestOffset, Header, Incompatible, Version,
};

/// Runs `qemu-img create` and returns the file's bytes.
fn created_by_qemu(arguments: &[&str], size: &str) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image.qcow2");
    let output = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2"])
        .args(arguments)
        .arg(&path)
        .arg(size)
        .current_dir(folder.path())
        .output()
        .expect("qemu-img is needed: install it (Debian: apt-get install qemu-utils)");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    std::fs::read(path).unwrap()
}

fn parse(bytes: &[u8]) -> Header {
    let len = Header::probe_len(&bytes[..512]).unwrap();
    Header::parse(&bytes[..len.min(bytes.len())], bytes.len() as u64).unwrap()
}

/// The first cluster encoded again is the first cluster.
fn assert_round_trip(bytes: &[u8]) -> Header {
    let header = parse(bytes);
    let mut encoded = header.encode().unwrap();
    encoded.resize(header.geometry().cluster_size() as usize, 0);
    assert!(encoded == bytes[..encoded.len()], "{header:?}");
    header
}

#[test]
fn default_image_of_qemu_is_read_and_comes_out_the_same() {
    let header = assert_round_trip(&created_by_qemu(&[], "10M"));
    assert_eq!(header.version, Version::V3);
    assert_eq!(header.size, 10 << 20);
    assert_eq!(header.geometry(), Geometry::new(16, false, 4).unwrap());
    assert_eq!(header.header_len(), 112);
    assert_eq!(header.l1_entries, 1);
    assert_eq!(header.refcount_table_clusters, 1);
    assert_eq!(header.compression, Compression::Deflate);
    assert_eq!(header.backing_file, None);
    assert!(matches!(header.extensions[..], [Extension::FeatureNames(_)]));
    let names: Vec<_> = header.feature_names().unwrap().iter().collect();
    assert_eq!(names.len(), 8);
    assert_eq!(names[0].name, b"dirty bit");
}

#[test]
fn version_2_image_of_qemu_comes_out_the_same() {
    let header = assert_round_trip(&created_by_qemu(&["-o", "compat=0.10"], "1G"));
    assert_eq!(header.version, Version::V2);
    assert_eq!(header.header_len(), 72);
    assert_eq!(header.geometry().refcount_bits(), 16);
}

#[test]
fn every_cluster_size_and_refcount_width_of_qemu_comes_out_the_same() {
    for cluster_bits in 9..=21_u32 {
        let refcount_order = cluster_bits % 7;
        let options =
            format!("cluster_size={},refcount_bits={}", 1 << cluster_bits, 1 << refcount_order);
        let header = assert_round_trip(&created_by_qemu(&["-o", &options], "3M"));
        assert_eq!(header.geometry(), Geometry::new(cluster_bits, false, refcount_order).unwrap());
    }
}

#[test]
fn features_of_qemu_are_seen_and_come_out_the_same() {
    let options = "extended_l2=on,compression_type=zstd,lazy_refcounts=on,cluster_size=2M,\
                   data_file=d.raw,data_file_raw=on";
    let header = assert_round_trip(&created_by_qemu(&["-o", options], "3M"));
    assert!(header.geometry().extended_l2());
    assert_eq!(header.geometry().subcluster_size(), 65536);
    assert_eq!(header.compression, Compression::Zstd);
    assert!(header.incompatible.contains(Incompatible::DATA_FILE));
    assert!(header.autoclear.contains(Autoclear::DATA_FILE_RAW));
    assert_eq!(header.data_file(), Some(&b"d.raw"[..]));
    assert_eq!(header.l1_entries, 1);
    assert_eq!(header.geometry().l1_index(GuestOffset::new(1 << 38)), 1);
}

#[test]
fn backing_file_of_qemu_is_read_and_comes_out_the_same() {
    for options in
        ["compat=0.10,cluster_size=512", "compat=1.1,cluster_size=4k", "cluster_size=64k"]
    {
        let arguments = ["-u", "-b", "some/where/base.img", "-F", "raw", "-o", options];
        let header = assert_round_trip(&created_by_qemu(&arguments, "3M"));
        assert_eq!(header.backing_file.as_deref(), Some(&b"some/where/base.img"[..]));
        assert_eq!(header.backing_format(), Some(&b"raw"[..]));
    }
}
