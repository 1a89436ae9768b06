//! `check` prints what `qemu-img check` prints, findings, totals and JSON, and ends with its exit codes.

use crate::Folder;

#[track_caller]
fn same(folder: &Folder, image: &str) {
    folder.same(&["check", image]);
    folder.same(&["check", "--output=json", image]);
    folder.same(&["check", "-q", image]);
}

#[test]
fn sound_images_have_no_errors() {
    let folder = Folder::new();
    for (name, options) in [
        ("v2.qcow2", &["-o", "compat=0.10"][..]),
        ("v3.qcow2", &[]),
        ("extended.qcow2", &["-o", "extended_l2=on"]),
        ("small.qcow2", &["-o", "cluster_size=512,refcount_bits=1"]),
        ("data.qcow2", &["-o", "data_file=data.raw"]),
        ("full.qcow2", &["-o", "preallocation=metadata"]),
    ] {
        folder.create(options, name, "3M");
        same(&folder, name);
        folder.qemu_io(name, &["write -P 1 0 1M", "write -P 1 2M 4k"]);
        same(&folder, name);
    }
    folder.create(&[], "empty.qcow2", "0");
    same(&folder, "empty.qcow2");
    folder.qemu_img(&["convert", "-c", "-O", "qcow2", "v3.qcow2", "packed.qcow2"]);
    same(&folder, "packed.qcow2");
    folder.qemu_img(&["snapshot", "-c", "s", "v3.qcow2"]);
    folder.qemu_img(&["bitmap", "--add", "v3.qcow2", "b"]);
    folder.qemu_io("v3.qcow2", &["write -P 2 0 100k"]);
    same(&folder, "v3.qcow2");
}

#[test]
fn raw_files_cannot_be_checked() {
    let folder = Folder::new();
    folder.write("file.raw", vec![7; 4096]);
    let output = folder.same_but_for_errors(&["check", "file.raw"]);
    assert_eq!(output.status.code(), Some(63));
    folder.same(&["check", "--output=json", "file.raw"]);
}

#[test]
fn leaks_and_errors_are_found() {
    let folder = Folder::new();
    folder.create(&[], "image.qcow2", "10M");
    folder.qemu_io("image.qcow2", &["write -P 1 0 1M", "write -P 3 5M 64k"]);
    let block = folder.number("image.qcow2", folder.number("image.qcow2", 48));
    let table = folder.first_l2_table("image.qcow2");
    let refcount = |cluster: u64, refcount: u16| {
        folder.patch("image.qcow2", block + 2 * cluster, &refcount.to_be_bytes())
    };
    let entry = |index: u64, entry: u64| {
        folder.patch("image.qcow2", table + 8 * index, &entry.to_be_bytes())
    };

    // An unused cluster within the file with a refcount.
    let end = folder.read("image.qcow2").len() as u64;
    std::fs::File::options()
        .write(true)
        .open(folder.path("image.qcow2"))
        .unwrap()
        .set_len(end + 65536)
        .unwrap();
    refcount(end / 65536, 1);
    let output = folder.same(&["check", "image.qcow2"]);
    assert_eq!(output.status.code(), Some(3));
    same(&folder, "image.qcow2");

    // A refcount too high, a cluster used twice, one without the copied flag, one with reserved bits, one behind the end of the file.
    refcount(7, 3);
    let first = folder.number("image.qcow2", table);
    entry(1, first);
    entry(2, folder.number("image.qcow2", table + 16) & !(1 << 63));
    entry(4, 0x8000_0001_0000_0000);
    let output = folder.same(&["check", "image.qcow2"]);
    assert_eq!(output.status.code(), Some(2));
    same(&folder, "image.qcow2");
}

#[test]
fn dirty_and_corrupt_images_are_checked() {
    let folder = Folder::new();
    folder.create(&[], "image.qcow2", "1M");
    for bits in 1..=3 {
        folder.patch("image.qcow2", 79, &[bits]);
        same(&folder, "image.qcow2");
    }
}

#[test]
fn memory_changes_no_result() {
    let folder = Folder::new();
    folder.create(&["-o", "cluster_size=512,preallocation=metadata"], "image.qcow2", "20M");
    let roomy = folder.cowshed_prints(&["check", "--memory", "1G", "image.qcow2"]);
    assert_eq!(folder.cowshed_prints(&["check", "--memory", "0", "image.qcow2"]), roomy);
}

#[test]
fn backing_file_is_not_needed() {
    // qemu-img opens it, and fails; to the check it makes no difference.
    let folder = Folder::new();
    folder.create(&["-u", "-b", "gone.qcow2", "-F", "qcow2"], "image.qcow2", "1M");
    folder.cowshed_prints(&["check", "image.qcow2"]);
}

#[test]
fn repair_is_refused() {
    let folder = Folder::new();
    folder.create(&[], "image.qcow2", "1M");
    let before = folder.read("image.qcow2");
    let error = folder.cowshed_fails(&["check", "-r", "all", "image.qcow2"], 1);
    assert!(error.starts_with("image.qcow2: cannot be repaired"), "{error}");
    assert_eq!(folder.read("image.qcow2"), before);
}
