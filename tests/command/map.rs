//! `map` prints what `qemu-img map` prints, byte for byte, as text and as JSON.

use crate::Folder;

#[track_caller]
fn same(folder: &Folder, arguments: &[&str]) {
    folder.same(&[&["map"], arguments].concat());
    folder.same(&[&["map", "--output=json"], arguments].concat());
}

#[test]
fn every_kind_of_cluster_is_mapped() {
    let folder = Folder::new();
    folder.create(&[], "image.qcow2", "10M");
    same(&folder, &["image.qcow2"]);
    folder.qemu_io(
        "image.qcow2",
        &["write -P 1 0 1M", "write -z 2M 1M", "write -P 3 5M 64k", "write -P 2 8M 192k"],
    );
    folder.qemu_io("image.qcow2", &["write -z 8256k 64k", "write -z -u 0 64k", "discard 128k 64k"]);
    same(&folder, &["image.qcow2"]);
}

#[test]
fn ranges_are_mapped() {
    let folder = Folder::new();
    folder.create(&[], "image.qcow2", "1M");
    folder.qemu_io("image.qcow2", &["write -P 1 64k 192k"]);
    for (start, length) in [
        ("0", "0"),
        ("1", "1"),
        ("100k", "1M"),
        ("65535", "2"),
        ("1M", "1"),
        ("2M", "1M"),
        ("1000000", "1000001"),
        ("7E", "7E"),
    ] {
        same(&folder, &["-s", start, "-l", length, "image.qcow2"]);
        same(&folder, &[&format!("--start-offset={start}"), "image.qcow2"]);
        same(&folder, &[&format!("--max-length={length}"), "image.qcow2"]);
    }
}

#[test]
fn depths_of_a_chain_are_mapped() {
    let folder = Folder::new();
    folder.create(&[], "base.qcow2", "3M");
    folder.qemu_io("base.qcow2", &["write -P 1 0 2M", "write -z 1M 64k"]);
    folder.create(&["-b", "base.qcow2", "-F", "qcow2"], "mid.qcow2", "2M");
    folder.qemu_io("mid.qcow2", &["write -P 2 512k 128k", "write -z 64k 64k"]);
    folder.create(&["-b", "mid.qcow2", "-F", "qcow2", "-o", "cluster_size=4k"], "top.qcow2", "4M");
    folder.qemu_io("top.qcow2", &["write -P 3 0 4k", "write -P 3 3M 8k"]);
    for image in
        ["mid.qcow2", "top.qcow2", "./top.qcow2", folder.path("top.qcow2").to_str().unwrap()]
    {
        same(&folder, &[image]);
    }
}

#[test]
fn raw_files_are_mapped_by_their_holes() {
    let folder = Folder::new();
    let file = std::fs::File::create(folder.path("file.raw")).unwrap();
    file.set_len(5 << 20).unwrap();
    drop(file);
    same(&folder, &["file.raw"]);
    folder.patch("file.raw", 1 << 20, &[1; 65536]);
    folder.patch("file.raw", (5 << 20) - 4096, &[1; 4096]);
    same(&folder, &["file.raw"]);
    folder.create(&["-b", "file.raw", "-F", "raw"], "top.qcow2", "6M");
    same(&folder, &["top.qcow2"]);
    folder.write("odd.raw", vec![7; 1000]);
    same(&folder, &["odd.raw"]);
}

#[test]
fn compressed_clusters_are_mapped() {
    let folder = Folder::new();
    folder.create(&[], "image.qcow2", "3M");
    folder.qemu_io("image.qcow2", &["write -P 1 0 2M"]);
    for kind in ["zlib", "zstd"] {
        let option = format!("compression_type={kind}");
        folder.qemu_img(&[
            "convert",
            "-c",
            "-O",
            "qcow2",
            "-o",
            &option,
            "image.qcow2",
            "packed.qcow2",
        ]);
        same(&folder, &["packed.qcow2"]);
        folder.qemu_io("packed.qcow2", &["write -P 2 1M 64k"]);
        same(&folder, &["packed.qcow2"]);
    }
}

#[test]
fn data_files_are_mapped() {
    let folder = Folder::new();
    folder.create(&["-o", "data_file=data.raw,data_file_raw=on"], "raw-data.qcow2", "2M");
    folder.create(&["-o", "data_file=other.raw"], "data.qcow2", "2M");
    folder.qemu_io("data.qcow2", &["write -P 1 1M 128k"]);
    same(&folder, &["data.qcow2"]);
    same(&folder, &["raw-data.qcow2"]);
}

#[test]
fn subclusters_are_mapped() {
    let folder = Folder::new();
    folder.create(&["-o", "extended_l2=on"], "image.qcow2", "10M");
    folder.qemu_io(
        "image.qcow2",
        &["write -P 3 128k 12k", "write -z 144k 8k", "write -P 1 1M 200k", "write -z 1100k 10k"],
    );
    same(&folder, &["image.qcow2"]);
    folder.create(
        &["-b", "image.qcow2", "-F", "qcow2", "-o", "extended_l2=on,cluster_size=128k"],
        "top.qcow2",
        "10M",
    );
    folder.qemu_io("top.qcow2", &["write -P 3 130k 12k", "write -z 1M 8k", "write -P 1 9M 2k"]);
    same(&folder, &["top.qcow2"]);
}

#[test]
fn preallocated_clusters_are_mapped() {
    let folder = Folder::new();
    for mode in ["metadata", "falloc", "full"] {
        folder.create(&["-o", &format!("preallocation={mode}")], "image.qcow2", "10M");
        same(&folder, &["image.qcow2"]);
        folder.qemu_io("image.qcow2", &["write -P 1 1M 128k"]);
        same(&folder, &["image.qcow2"]);
    }
}

#[test]
fn broken_table_ends_the_map_with_an_error() {
    let folder = Folder::new();
    folder.create(&[], "image.qcow2", "1M");
    folder.qemu_io("image.qcow2", &["write -P 1 0 1M"]);
    let table = folder.first_l2_table("image.qcow2");
    folder.patch("image.qcow2", table + 3 * 8, &0x8000_0000_0009_9800_u64.to_be_bytes());
    folder.same_but_for_errors(&["map", "--output=json", "image.qcow2"]);
    let output = folder.same_but_for_errors(&["map", "image.qcow2"]);
    let error = crate::text(&output.stderr);
    assert_eq!(error, "qemu-img: Could not read file metadata: Input/output error\n");
    let error = folder.cowshed_fails(&["map", "image.qcow2"], 1);
    assert!(error.starts_with("image.qcow2: L2 entry 3 at"), "{error}");
}
