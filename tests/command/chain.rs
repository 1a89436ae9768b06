//! `commit`, `rebase` and `resize` do to a chain of images what `qemu-img` does: run on copies with both, they print the same,
//! end with the same code, and leave the same disks, sizes and backing files, with nothing wrong in them.

use std::path::Path;

use crate::support::qemu;
use crate::{Folder, text};

/// The images of the folder.
const IMAGES: &[&str] = &["base.qcow2", "middle.qcow2", "top.qcow2", "new.qcow2"];

/// A chain of three, each larger than the one below but the middle, an image to be rebased onto, and a raw one.
fn chain(options: &[&str]) -> Folder {
    let folder = Folder::new();
    folder.create(&[], "base.qcow2", "10M");
    folder.qemu_io("base.qcow2", &["write -P 1 0 2M", "write -P 5 9M 1M"]);
    folder.create(&["-b", "base.qcow2", "-F", "qcow2"], "middle.qcow2", "9M");
    folder.qemu_io("middle.qcow2", &["write -P 2 1M 2M"]);
    folder.create(&[&["-b", "middle.qcow2", "-F", "qcow2"], options].concat(), "top.qcow2", "14M");
    folder.qemu_io(
        "top.qcow2",
        &["write -P 3 11M 2M", "write -P 4 100k 200k", "write -P 7 1500k 3k", "discard 4M 1M"],
    );
    folder.create(&[], "new.qcow2", "12M");
    folder.qemu_io("new.qcow2", &["write -P 1 0 2M", "write -P 8 5M 2M"]);
    let mut raw = vec![b'x'; 3_000_000];
    raw.resize(10 << 20, 0);
    folder.write("image.raw", raw);
    folder
}

fn copy_of(folder: &Folder) -> Folder {
    let copy = Folder::new();
    for name in IMAGES.iter().copied().chain(["image.raw"]) {
        std::fs::copy(folder.path(name), copy.path(name)).unwrap();
    }
    copy
}

/// Which bytes the disk has, and what `info` says of size and backing file.
fn state(folder: &Folder, name: &str) -> (String, Option<Vec<u8>>) {
    let info = folder.qemu_img(&["info", "-U", name]);
    let told = |line: &&str| line.starts_with("virtual size") || line.starts_with("backing");
    let info: Vec<_> = info.lines().filter(told).collect();
    let converted = folder
        .run(qemu::qemu_img().args(["convert", "-O", "raw", name, "content"]))
        .status
        .success();
    (info.join("\n"), converted.then(|| folder.read("content")))
}

/// Runs the command with both on copies of the folder, and holds everything against each other.
#[track_caller]
fn same(folder: &Folder, arguments: &[&str]) -> Folder {
    let (ours, theirs) = (copy_of(folder), copy_of(folder));
    let expected = theirs.run(qemu::qemu_img().args(arguments));
    let output = ours.stand_in(arguments);
    assert_eq!(text(&output.stderr), text(&expected.stderr), "{arguments:?}");
    assert_eq!(text(&output.stdout), text(&expected.stdout), "{arguments:?}");
    assert_eq!(output.status.code(), expected.status.code(), "{arguments:?}");
    for name in IMAGES {
        assert!(state(&ours, name) == state(&theirs, name), "{arguments:?}: {name} differs");
        ours.qemu_img(&["check", "-q", name]);
    }
    assert!(ours.read("image.raw") == theirs.read("image.raw"), "{arguments:?}");
    ours
}

/// As [`same`], of images whose backing file is not there.
#[track_caller]
fn same_info(folder: &Folder, arguments: &[&str]) {
    let (ours, theirs) = (copy_of(folder), copy_of(folder));
    theirs.qemu_img(arguments);
    assert!(ours.stand_in(arguments).status.success(), "{arguments:?}");
    assert_eq!(state(&ours, "top.qcow2").0, state(&theirs, "top.qcow2").0, "{arguments:?}");
}

const TOPS: &[&[&str]] = &[
    &[],
    &["-o", "cluster_size=4k,refcount_bits=1"],
    &["-o", "extended_l2=on"],
    &["-o", "compat=0.10"],
    &["-o", "lazy_refcounts=on"],
];

#[test]
fn commit_merges_into_the_backing_file() {
    for options in TOPS {
        let folder = chain(options);
        let merged = same(&folder, &["commit", "top.qcow2"]);
        // The image is empty: all that is seen comes from below.
        let map = merged.qemu_img(&["map", "top.qcow2"]);
        assert!(!map.contains("top.qcow2"), "{map}");
        same(&folder, &["commit", "-d", "top.qcow2"]);
        same(&folder, &["commit", "-q", "middle.qcow2"]);
        same(&folder, &["commit", "-b", "base.qcow2", "top.qcow2"]);
        same(&folder, &["commit", "-t", "unsafe", "top.qcow2"]);
    }
    let folder = chain(&[]);
    folder.qemu_img(&["snapshot", "-c", "kept", "top.qcow2"]);
    let merged = same(&folder, &["commit", "top.qcow2"]);
    merged.qemu_img(&["check", "-q", "top.qcow2"]);
    folder.create(&["-b", "image.raw", "-F", "raw"], "top.qcow2", "12M");
    folder.qemu_io("top.qcow2", &["write -P 3 11M 1M", "write -z 0 1M"]);
    same(&folder, &["commit", "top.qcow2"]);
}

#[test]
fn commit_is_refused_in_the_same_words() {
    let folder = chain(&[]);
    for arguments in [
        &["commit"][..],
        &["commit", "a", "b"],
        &["commit", "gone.qcow2"],
        &["commit", "base.qcow2"],
        &["commit", "-f", "raw", "top.qcow2"],
        &["commit", "-b", "gone.qcow2", "top.qcow2"],
        &["commit", "-t", "foo", "top.qcow2"],
        &["commit", "-r", "x", "top.qcow2"],
    ] {
        same(&folder, arguments);
    }
}

#[test]
fn commit_writes_only_to_files_that_may_be_read() {
    let folder = chain(&[]);
    std::fs::create_dir(folder.path("inner")).unwrap();
    let outer = Path::new("../base.qcow2").to_str().unwrap();
    folder.qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-b",
        outer,
        "-F",
        "qcow2",
        "inner/image.qcow2",
    ]);
    let before = folder.read("base.qcow2");
    let error = folder.cowshed_fails(&["commit", "inner/image.qcow2"], 1);
    assert!(error.contains("--allow"), "{error}");
    assert!(folder.read("base.qcow2") == before);
    folder.cowshed_prints(&["commit", "--allow", "base.qcow2", "inner/image.qcow2"]);
}

#[test]
fn rebase_keeps_the_disk() {
    for options in TOPS {
        let folder = chain(options);
        let before = state(&folder, "top.qcow2").1;
        for arguments in [
            &["-b", "base.qcow2", "-F", "qcow2"][..],
            &["-b", "new.qcow2", "-F", "qcow2"],
            &["-c", "-b", "new.qcow2", "-F", "qcow2"],
            &["-U", "-b", "image.raw", "-F", "raw"],
            &["-b", ""],
        ] {
            // Where clusters are compressed in part, QEMU ends itself.
            if arguments[0] == "-c" && options.contains(&"extended_l2=on") {
                continue;
            }
            let arguments = [&["rebase"], arguments, &["top.qcow2"]].concat();
            let rebased = same(&folder, &arguments);
            assert!(state(&rebased, "top.qcow2").1 == before, "{arguments:?}");
        }
        same(&folder, &["rebase", "-b", "new.qcow2", "-F", "qcow2", "base.qcow2"]);
    }
}

#[test]
fn unsafe_rebase_changes_the_name_only() {
    for options in TOPS {
        let folder = chain(options);
        same(&folder, &["rebase", "-u", "-b", "new.qcow2", "-F", "qcow2", "top.qcow2"]);
        same(&folder, &["rebase", "-u", "-b", "image.raw", "-F", "raw", "top.qcow2"]);
        same(&folder, &["rebase", "-u", "-b", "", "top.qcow2"]);
        same(&folder, &["rebase", "-u", "top.qcow2"]);
        let long = "x".repeat(600);
        same_info(&folder, &["rebase", "-u", "-b", &long, "-F", "qcow2", "top.qcow2"]);
    }
}

#[test]
fn rebase_is_refused_in_the_same_words() {
    let folder = chain(&[]);
    let long = "x".repeat(1024);
    for arguments in [
        &["rebase", "top.qcow2"][..],
        &["rebase", "-b", "gone.qcow2", "-F", "qcow2", "top.qcow2"],
        &["rebase", "-b", "new.qcow2", "-F", "foo", "top.qcow2"],
        &["rebase", "-u", "-b", "new.qcow2", "top.qcow2"],
        &["rebase", "-b", "top.qcow2", "-F", "qcow2", "top.qcow2"],
        &["rebase", "-b", "new.qcow2", "-F", "qcow2", "image.raw"],
        &["rebase", "-c", "-f", "raw", "-b", "", "image.raw"],
        &["rebase", "-u", "-f", "raw", "-b", "", "image.raw"],
        &["rebase", "-u", "-f", "raw", "image.raw"],
        &["rebase", "-c", "-f", "raw", "-b", "lost", "-F", "nonsense", "image.raw"],
        &["rebase", "-t", "foo", "-b", "new.qcow2", "-F", "qcow2", "top.qcow2"],
        &["rebase", "-T", "foo", "-b", "new.qcow2", "-F", "qcow2", "top.qcow2"],
        &["rebase", "-u", "-b", &long, "-F", "qcow2", "top.qcow2"],
    ] {
        same(&folder, arguments);
    }
}

#[test]
fn resize_changes_the_size() {
    for options in TOPS {
        let folder = chain(options);
        for arguments in [
            &["top.qcow2", "+1M"][..],
            &["top.qcow2", "20M"],
            &["-q", "top.qcow2", "+1M"],
            &["top.qcow2", "+0"],
            &["--shrink", "top.qcow2", "-5M"],
            &["--shrink", "top.qcow2", "1M"],
            &["--preallocation=full", "top.qcow2", "+1M"],
            &["--preallocation=metadata", "new.qcow2", "+1M"],
            &["image.raw", "+1M"],
            &["-f", "raw", "--preallocation=falloc", "image.raw", "+1M"],
            &["-f", "raw", "--shrink", "image.raw", "-1M"],
        ] {
            same(&folder, &[&["resize"], arguments].concat());
        }
    }
}

#[test]
fn preallocation_begins_in_the_middle_of_a_cluster() {
    let folder = Folder::new();
    folder.write("base.raw", vec![1; 128 << 10]);
    // Subclusters that are preallocated read what lies below, unless they say that they are zeros.
    for mode in ["metadata", "falloc", "full"] {
        folder.create(&["-b", "base.raw", "-F", "raw", "-o", "extended_l2=on"], "sub.qcow2", "31k");
        let resize = ["resize", "-q", &format!("--preallocation={mode}"), "sub.qcow2", "200k"];
        folder.cowshed_prints(&resize);
        folder.qemu_img(&["check", "-q", "sub.qcow2"]);
        folder.qemu_io("sub.qcow2", &["read -q -P 1 0 31k", "read -q -P 0 31k 169k"]);
    }
    for size in ["31k", "33k"] {
        for new_size in ["96k", "128k", "200k"] {
            for mode in ["metadata", "falloc", "full"] {
                let mut lens = Vec::new();
                for image in ["theirs.qcow2", "ours.qcow2"] {
                    folder.create(&["-b", "base.raw", "-F", "raw"], image, size);
                    let resize =
                        ["resize", "-q", &format!("--preallocation={mode}"), image, new_size];
                    match image {
                        "theirs.qcow2" => drop(folder.qemu_img(&resize)),
                        _ => drop(folder.cowshed_prints(&resize)),
                    }
                    lens.push(folder.read(image).len());
                }
                assert_eq!(lens[0], lens[1], "{size} {new_size} {mode}");
                folder.qemu_img(&["compare", "-q", "theirs.qcow2", "ours.qcow2"]);
                folder.qemu_img(&["check", "-q", "ours.qcow2"]);
                let zeros = format!("read -q -P 0 {size} 60k");
                folder.qemu_io("ours.qcow2", &[&format!("read -q -P 1 0 {size}"), &zeros]);
            }
        }
    }
}

#[test]
fn resize_is_refused_in_the_same_words() {
    let folder = chain(&[]);
    for arguments in [
        &[][..],
        &["top.qcow2"],
        &["top.qcow2", "x"],
        &["+5M", "top.qcow2"],
        &["top.qcow2", "5M"],
        &["top.qcow2", "-5M"],
        &["top.qcow2", "--", "-5M"],
        &["--shrink", "top.qcow2", "-50M"],
        &["--shrink", "top.qcow2", "0"],
        &["top.qcow2", "20000001"],
        &["--preallocation=foo", "top.qcow2", "+1M"],
        &["--preallocation=metadata", "--shrink", "top.qcow2", "-1M"],
        &["-f", "raw", "--preallocation=metadata", "image.raw", "+1M"],
        &["gone", "+1M"],
        &["top.qcow2", "+99999P"],
        &["top.qcow2", "8E"],
        &["top.qcow2", "a", "+1M"],
    ] {
        same(&folder, &[&["resize"], arguments].concat());
    }
}

#[test]
fn rebase_of_version_2_without_a_backing_file_keeps_its_zeros() {
    let folder = Folder::new();
    folder.create(&["-o", "compat=0.10"], "old.qcow2", "1M");
    folder.qemu_io("old.qcow2", &["write -P 5 128k 64k"]);
    folder.create(&[], "base.qcow2", "1M");
    folder.qemu_io("base.qcow2", &["write -P 1 0 1M"]);
    let before = state(&folder, "old.qcow2").1;
    folder.cowshed_prints(&["rebase", "-b", "base.qcow2", "-F", "qcow2", "old.qcow2"]);
    assert!(state(&folder, "old.qcow2").1 == before);
}
