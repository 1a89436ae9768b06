//! `convert` writes the raw files that `qemu-img convert` writes: the same bytes, the same gaps, the same refusals.

use crate::{Folder, text};

/// Converts with both, and holds bytes and space of the results against each other.
#[track_caller]
fn same(folder: &Folder, arguments: &[&str]) {
    folder.qemu_img(&[&["convert"], arguments, &["theirs.raw"]].concat());
    let output = folder.cowshed(&[&["convert"], arguments, &["ours.raw"]].concat());
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "");
    assert!(folder.read("ours.raw") == folder.read("theirs.raw"), "{arguments:?}: other bytes");
    assert_eq!(
        holes(folder, "ours.raw"),
        holes(folder, "theirs.raw"),
        "{arguments:?}: other gaps (ours left)"
    );
}

/// What the file system says of data and holes.
fn holes(folder: &Folder, name: &str) -> String {
    folder.qemu_img(&["map", "-f", "raw", "--output=json", name])
}

/// An image with runs of data and zeros of many lengths.
fn image() -> Folder {
    let folder = Folder::new();
    folder.create(&[], "image.qcow2", "10M");
    let mut commands = vec!["write -P 1 0 1M".to_owned(), "write -z 2M 1M".to_owned()];
    for step in 0..40_u64 {
        commands.push(format!(
            "write -P {} {} {}",
            step + 1,
            (3 << 20) + step * 83 * 512,
            512 * (1 + step % 9)
        ));
    }
    let commands: Vec<_> = commands.iter().map(String::as_str).collect();
    folder.qemu_io("image.qcow2", &commands);
    folder
}

#[test]
fn raw_files_are_the_same_and_as_sparse() {
    let folder = image();
    for size in ["512", "1k", "1536", "4k", "64k", "1M", "0"] {
        same(&folder, &["-S", size, "image.qcow2"]);
    }
    same(&folder, &["image.qcow2"]);
    same(&folder, &["-O", "raw", "-m", "16", "-W", "image.qcow2"]);
    same(&folder, &["-m", "1", "-f", "qcow2", "image.qcow2"]);
    for mode in ["none", "writeback", "directsync", "unsafe", "writethrough"] {
        same(&folder, &["-t", mode, "-T", "writeback", "image.qcow2"]);
    }
    same(&folder, &["-T", "none", "image.qcow2"]);
    // Left to the system the copy has no gaps for zeros within clusters; the bytes are the same.
    folder.cowshed_prints(&["convert", "-C", "image.qcow2", "offloaded.raw"]);
    assert!(folder.read("offloaded.raw") == folder.read("theirs.raw"));
}

#[test]
fn every_kind_of_source_is_converted() {
    let folder = image();
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
    }
    folder.create(&["-b", "image.qcow2", "-F", "qcow2"], "top.qcow2", "12M");
    folder.qemu_io("top.qcow2", &["write -P 9 500k 2M", "write -z 8M 1M"]);
    same(&folder, &["top.qcow2"]);
    folder.write("odd.raw", vec![7; 70001]);
    same(&folder, &["odd.raw"]);
    folder.write("empty.raw", "");
    same(&folder, &["empty.raw"]);
    same(&folder, &["-f", "raw", "image.qcow2"]);
}

#[test]
fn sources_are_put_one_behind_the_other() {
    let folder = image();
    folder.write("odd.raw", vec![7; 70001]);
    same(&folder, &["image.qcow2", "odd.raw", "image.qcow2"]);
    same(&folder, &["odd.raw", "odd.raw"]);
}

#[test]
fn snapshots_are_converted() {
    let folder = image();
    folder.qemu_img(&["snapshot", "-c", "first", "image.qcow2"]);
    folder.qemu_io("image.qcow2", &["write -P 77 0 3M"]);
    folder.qemu_img(&["snapshot", "-c", "2", "image.qcow2"]);
    folder.qemu_io("image.qcow2", &["write -P 78 1M 3M"]);
    for snapshot in
        ["first", "1", "2", "snapshot.id=1", "snapshot.name=2", "snapshot.id=1,snapshot.name=first"]
    {
        same(&folder, &["-l", snapshot, "image.qcow2"]);
    }
    folder.same(&["convert", "-l", "first", "image.qcow2", "image.qcow2", "out.raw"]);
    for snapshot in ["gone", "snapshot.id=7", "snapshot.id=1,snapshot.name=2"] {
        folder.same(&["convert", "-l", snapshot, "image.qcow2", "out.raw"]);
        folder.cowshed_fails(&["convert", "-l", snapshot, "image.qcow2", "out.raw"], 1);
    }
    folder.same_but_for_errors(&["convert", "-l", "snapshot.foo=7", "image.qcow2", "out.raw"]);
    folder.write("odd.raw", "x");
    folder.same(&["convert", "-l", "1", "odd.raw", "out.raw"]);
}

#[test]
fn old_target_is_written_over() {
    let folder = image();
    for options in
        [&["-n"][..], &["-n", "--target-is-zero"], &["-n", "-S", "0"], &["-n", "-S", "64k"]]
    {
        for name in ["ours.raw", "theirs.raw"] {
            folder.write(name, vec![0x55; 11 << 20]);
        }
        same(&folder, &[options, &["image.qcow2"]].concat());
    }
    folder.write("short.raw", vec![0x55; 4096]);
    folder.same(&["convert", "-n", "image.qcow2", "short.raw"]);
    folder.same_but_for_errors(&["convert", "-n", "image.qcow2", "missing.raw"]);
    assert!(!folder.path("missing.raw").exists());
    // Without -n nothing of it is left.
    folder.write("ours.raw", vec![0x55; 11 << 20]);
    same(&folder, &["image.qcow2"]);
}

#[test]
fn space_is_taken_in_advance() {
    let folder = image();
    for mode in ["off", "falloc", "full"] {
        same(&folder, &["-o", &format!("preallocation={mode}"), "image.qcow2"]);
    }
    folder.same_but_for_errors(&["convert", "-o", "a=b", "image.qcow2", "out.raw"]);
}

#[test]
fn source_is_not_its_own_target() {
    let folder = image();
    let before = folder.read("image.qcow2");
    folder.same(&["convert", "image.qcow2", "image.qcow2"]);
    folder.same(&["convert", "-n", "image.qcow2", "image.qcow2"]);
    folder.write("file.raw", vec![1; 4096]);
    folder.same(&["convert", "file.raw", "file.raw"]);
    folder.cowshed_fails(&["convert", "image.qcow2", "image.qcow2"], 1);
    assert!(folder.read("image.qcow2") == before);
    assert_eq!(folder.read("file.raw"), vec![1; 4096]);
}

#[test]
fn target_that_cannot_be_made_is_named() {
    let folder = image();
    std::fs::create_dir(folder.path("folder")).unwrap();
    folder.same_but_for_errors(&["convert", "image.qcow2", "folder"]);
    folder.same(&["convert", "image.qcow2", "nowhere/out.raw"]);
    let error = folder.cowshed_fails(&["convert", "image.qcow2", "nowhere/out.raw"], 1);
    assert_eq!(error, "nowhere/out.raw: cannot be created: No such file or directory");
}

#[test]
fn broken_source_ends_the_copy_with_an_error() {
    let folder = image();
    let table = folder.first_l2_table("image.qcow2");
    folder.patch("image.qcow2", table + 3 * 8, &0x8000_0000_0009_9800_u64.to_be_bytes());
    folder.same_but_for_errors(&["convert", "image.qcow2", "out.raw"]);
    let error = folder.cowshed_fails(&["convert", "image.qcow2", "out.raw"], 1);
    assert!(error.starts_with("image.qcow2: L2 entry 3 at"), "{error}");
    // What is left is saved.
    same_salvage(&folder);
    folder.patch("image.qcow2", table + 3 * 8, &0_u64.to_be_bytes());
    folder.qemu_img(&["convert", "-c", "-O", "qcow2", "image.qcow2", "packed.qcow2"]);
    let table = folder.first_l2_table("packed.qcow2");
    let entry = folder.number("packed.qcow2", table + 16) & ((1 << 54) - 1);
    folder.patch("packed.qcow2", entry, &[0xff; 16]);
    folder.same_but_for_errors(&["convert", "packed.qcow2", "out.raw"]);
}

#[track_caller]
fn same_salvage(folder: &Folder) {
    folder.qemu_img(&["convert", "--salvage", "-q", "image.qcow2", "theirs.raw"]);
    let output = folder.cowshed(&["convert", "--salvage", "image.qcow2", "ours.raw"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("zeros are written instead"));
    assert!(folder.read("ours.raw") == folder.read("theirs.raw"));
}

#[test]
fn progress_is_shown() {
    let folder = image();
    let output = folder.stand_in(&["convert", "-p", "image.qcow2", "out.raw"]);
    let shown = text(&output.stdout);
    assert!(shown.starts_with("    (0.00/100%)\r"), "{shown:?}");
    assert!(shown.ends_with("    (100.00/100%)\r\n"), "{shown:?}");
    folder.same(&["convert", "-p", "-q", "image.qcow2", "out.raw"]);
}

#[test]
fn rate_is_kept() {
    let folder = image();
    let start = std::time::Instant::now();
    folder.cowshed_prints(&["convert", "-r", "4M", "image.qcow2", "out.raw"]);
    // About 3 MiB of data.
    assert!(start.elapsed().as_millis() > 300, "{:?}", start.elapsed());
}

#[test]
fn sectors_that_cannot_be_read_are_salvaged_around() {
    let folder = Folder::new();
    folder.create(&[], "image.qcow2", "1M");
    folder.qemu_io("image.qcow2", &["write -q -P 7 0 1M"]);
    let rule = |what: &str, sector: u32| {
        format!("{{'event': 'none', 'iotype': '{what}', 'errno': 5, 'sector': {sector}}}")
    };
    let rules =
        [rule("block-status", 8), rule("block-status", 100), rule("read", 100), rule("read", 1000)];
    let source = format!(
        "json:{{'driver': 'blkdebug', 'image': {{'driver': 'qcow2', 'file.filename': \
         'image.qcow2'}}, 'inject-error': [{}]}}",
        rules.join(", ")
    );
    folder.same_but_for_errors(&["convert", "--salvage", "-O", "raw", &source, "salvaged.raw"]);
    let salvaged = folder.read("salvaged.raw");
    let is_lost = |at: usize| [100, 1000].contains(&(at / 512));
    assert!(salvaged.iter().enumerate().all(|(at, byte)| *byte == 7 * u8::from(!is_lost(at))));
    folder.same_but_for_errors(&["convert", "-O", "raw", &source, "none.raw"]);
}
