//! `bitmap`, and what other verbs do with bitmaps: the same images, words and codes as `qemu-img`.

use crate::{Folder, text};

/// Runs both, each on its own copy of the images; output, errors and codes must be the same but for the names of nodes.
#[track_caller]
fn both(folders: &[Folder; 2], arguments: &[&str]) {
    let [theirs, ours] = folders;
    let said = [theirs.run(crate::qemu::qemu_img().args(arguments)), ours.stand_in(arguments)];
    let [theirs, ours] = said.map(|output| {
        let plain = |bytes: &[u8]| {
            let mut text = text(bytes);
            while let Some(at) = text.find("#block") {
                let end = text[at + 6..].find(|c: char| !c.is_ascii_digit()).unwrap_or(0) + at + 6;
                text.replace_range(at..end, "NODE");
            }
            text
        };
        (plain(&output.stdout), plain(&output.stderr), output.status.code())
    });
    assert_eq!(ours, theirs, "qemu-img {} (ours left)", arguments.join(" "));
}

fn info(folder: &Folder, name: &str) -> serde_json::Value {
    let said = folder.qemu_img(&["info", "--output=json", name]);
    let info: serde_json::Value = serde_json::from_str(&said).unwrap();
    info["format-specific"]["data"]["bitmaps"].clone()
}

fn make(folder: &Folder) {
    folder.create(&[], "a.qcow2", "10M");
    folder.create(&[], "b.qcow2", "10M");
    folder.create(&["-o", "cluster_size=1k"], "small.qcow2", "5M");
    folder.create(&["-o", "compat=0.10"], "v2.qcow2", "1M");
    folder.create(&[], "huge.qcow2", "64T");
    folder.write("r.raw", vec![0; 4096]);
    for name in ["a.qcow2", "small.qcow2"] {
        folder.qemu_img(&["bitmap", "--add", "-g", "512", name, "b0"]);
        folder.qemu_img(&["bitmap", "--add", name, "b1"]);
        folder.qemu_img(&["bitmap", "--add", "--disable", name, "off"]);
        folder.qemu_io(name, &["write 1M 70k", "write 100 1", "discard 2M 100k"]);
    }
    // One that was left in use.
    folder.qemu_img(&["bitmap", "--add", "b.qcow2", "lost"]);
    folder.qemu_img(&["bitmap", "--add", "b.qcow2", "kept"]);
    let bytes = folder.read("b.qcow2");
    let at = bytes.windows(4).position(|four| four == [0x23, 0x85, 0x28, 0x75]).unwrap();
    let directory = u64::from_be_bytes(bytes[at + 24..at + 32].try_into().unwrap());
    folder.patch("b.qcow2", directory + 12, &[0, 0, 0, 3]);
}

#[test]
fn bitmaps_are_changed_in_the_words_of_qemu_img() {
    let folders = [Folder::new(), Folder::new()];
    folders.iter().for_each(make);
    let long = "x".repeat(1024);
    for arguments in [
        &["--add", "a.qcow2", "b1"][..],
        &["--add", "a.qcow2", ""],
        &["--add", "a.qcow2", &long],
        &["--add", "a.qcow2", &long[1..]],
        &["--remove", "a.qcow2", &long[1..]],
        &["--add", "-g", "100", "a.qcow2", "x"],
        &["--add", "-g", "513", "a.qcow2", "x"],
        &["--add", "-g", "256", "a.qcow2", "x"],
        &["--add", "-g", "abc", "a.qcow2", "x"],
        &["--add", "-g", "-1", "a.qcow2", "x"],
        &["--add", "-g", "2G", "a.qcow2", "wide"],
        &["--add", "-g", "0", "a.qcow2", "plain"],
        &["--add", "-g", "512", "huge.qcow2", "x"],
        &["--add", "-g", "64k", "huge.qcow2", "x"],
        &["--add", "v2.qcow2", "x"],
        &["--remove", "v2.qcow2", "x"],
        &["--add", "-f", "raw", "r.raw", "x"],
        &["--remove", "-f", "raw", "r.raw", "x"],
        &["--remove", "a.qcow2", "nope"],
        &["--clear", "a.qcow2", "nope"],
        &["--enable", "a.qcow2", "nope"],
        &["--disable", "a.qcow2", "nope"],
        &["--merge", "nope", "a.qcow2", "b0"],
        &["--merge", "b0", "a.qcow2", "nope"],
        &["--merge", "b0", "a.qcow2", "b0"],
        &["a.qcow2", "b0"],
        &["--add", "a.qcow2"],
        &["--add", "a.qcow2", "b", "c"],
        &["--add"],
        &["--clear", "-g", "512", "a.qcow2", "b0"],
        &["--clear", "-b", "b.qcow2", "a.qcow2", "b0"],
        &["--clear", "-F", "qcow2", "a.qcow2", "b0"],
        &["--merge", "b0", "-F", "qcow2", "a.qcow2", "b0"],
        &["--merge", "b0", "-b", "missing", "a.qcow2", "b0"],
        &["--merge", "b0", "-b", "a.qcow2", "-F", "foo", "b.qcow2", "kept"],
        &["--merge", "b0", "-b", "r.raw", "-F", "raw", "b.qcow2", "kept"],
        &["--merge", "nope", "-b", "a.qcow2", "b.qcow2", "kept"],
        &["--merge", "b0", "-b", "small.qcow2", "b.qcow2", "kept"],
        &["--merge", "b0", "-b", "a.qcow2", "-F", "qcow2", "b.qcow2", "kept"],
        &["--merge", "lost", "-b", "b.qcow2", "a.qcow2", "b0"],
        &["--add", "b.qcow2", "lost"],
        &["--clear", "b.qcow2", "lost"],
        &["--enable", "b.qcow2", "lost"],
        &["--disable", "b.qcow2", "lost"],
        &["--merge", "kept", "b.qcow2", "lost"],
        &["--merge", "lost", "b.qcow2", "kept"],
        &["--add", "--merge", "b0", "--merge", "off", "--disable", "a.qcow2", "copy"],
        &["--disable", "--enable", "--disable", "a.qcow2", "b1"],
        &["--remove", "--add", "-g", "1M", "a.qcow2", "off"],
        &["--remove", "--clear", "a.qcow2", "off"],
        &["--add", "--add", "a.qcow2", "twice"],
        &["--clear", "a.qcow2", "b0"],
        &["--clear", "small.qcow2", "b1"],
        &["--frobnicate", "a.qcow2", "b0"],
        &["--add", "missing", "b0"],
    ] {
        both(&folders, &[&["bitmap"], arguments].concat());
    }
    both(&folders, &["resize", "b.qcow2", "20M"]);
    both(&folders, &["bitmap", "--remove", "b.qcow2", "lost"]);
    both(&folders, &["resize", "b.qcow2", "20M"]);
    both(&folders, &["resize", "a.qcow2", "20M"]);
    both(&folders, &["resize", "--shrink", "small.qcow2", "1600k"]);
    let [theirs, ours] = &folders;
    for name in ["a.qcow2", "b.qcow2", "small.qcow2", "huge.qcow2"] {
        assert_eq!(info(ours, name), info(theirs, name), "{name}");
        ours.qemu_img(&["check", "-q", name]);
        for bitmap in info(theirs, name).as_array().unwrap() {
            let bitmap = bitmap["name"].as_str().unwrap();
            // By one program, so that only what is marked counts.
            let map = ["map", "--output=json", "--bitmap", bitmap, name];
            assert_eq!(ours.cowshed_prints(&map), theirs.cowshed_prints(&map), "{name} {bitmap}");
        }
    }
}

#[test]
fn bitmaps_are_converted_and_measured_as_by_qemu_img() {
    let folders = [Folder::new(), Folder::new()];
    folders.iter().for_each(make);
    for folder in &folders {
        folder.create(&[], "there.qcow2", "10M");
        folder.create(&[], "larger.qcow2", "11M");
        folder.create(&["-b", "a.qcow2", "-F", "qcow2"], "overlay.qcow2", "10M");
        folder.qemu_img(&["bitmap", "--add", "there.qcow2", "b1"]);
    }
    for arguments in [
        &["-O", "qcow2", "a.qcow2", "t1.qcow2"][..],
        &["-c", "-O", "qcow2", "a.qcow2", "t2.qcow2"],
        &["-O", "qcow2", "-o", "cluster_size=512", "small.qcow2", "t3.qcow2"],
        &["-O", "qcow2", "-o", "compat=0.10", "a.qcow2", "t4.qcow2"],
        &["-O", "raw", "a.qcow2", "t5.raw"],
        &["-f", "raw", "-O", "qcow2", "r.raw", "t6.qcow2"],
        &["-O", "qcow2", "v2.qcow2", "t7.qcow2"],
        &["-O", "qcow2", "a.qcow2", "b.qcow2", "t8.qcow2"],
        &["-O", "qcow2", "b.qcow2", "t9.qcow2"],
        &["--skip-broken-bitmaps", "-O", "qcow2", "b.qcow2", "t10.qcow2"],
        &["-n", "-O", "qcow2", "a.qcow2", "there.qcow2"],
        &["-n", "-O", "qcow2", "a.qcow2", "larger.qcow2"],
        &["-O", "qcow2", "overlay.qcow2", "t11.qcow2"],
    ] {
        both(&folders, &[&["convert", "--bitmaps"], arguments].concat());
    }
    both(&folders, &["convert", "--skip-broken-bitmaps", "-O", "qcow2", "a.qcow2", "t.qcow2"]);
    let [theirs, ours] = &folders;
    for name in ["t1.qcow2", "t2.qcow2", "t3.qcow2", "t10.qcow2", "there.qcow2"] {
        assert_eq!(info(ours, name), info(theirs, name), "{name}");
        ours.qemu_img(&["check", "-q", name]);
        for bitmap in info(theirs, name).as_array().unwrap() {
            let bitmap = bitmap["name"].as_str().unwrap();
            let map = ["map", "--output=json", "--bitmap", bitmap, name];
            assert_eq!(ours.cowshed_prints(&map), theirs.cowshed_prints(&map), "{name} {bitmap}");
        }
    }
    for name in ["a.qcow2", "b.qcow2", "small.qcow2", "v2.qcow2"] {
        theirs.same(&["measure", "-O", "qcow2", name]);
        theirs.same(&["measure", "-O", "qcow2", "-o", "cluster_size=512", name]);
        theirs.same(&["measure", "-O", "qcow2", "-o", "compat=0.10", "--output=json", name]);
    }
}

#[test]
fn what_a_bitmap_marks_is_listed() {
    let folder = Folder::new();
    make(&folder);
    assert_eq!(
        folder.cowshed_prints(&["map", "--bitmap", "b1", "small.qcow2"]),
        "Offset          Length\n0               0x1000\n0x100000        0x12000\n0x200000        0x19000\n"
    );
    assert_eq!(
        folder.cowshed_prints(&[
            "map",
            "--output=json",
            "--bitmap",
            "b1",
            "-s",
            "512",
            "-l",
            "1100k",
            "small.qcow2"
        ]),
        "[{ \"start\": 512, \"length\": 3584, \"dirty\": true},\n\
         { \"start\": 4096, \"length\": 1044480, \"dirty\": false},\n\
         { \"start\": 1048576, \"length\": 73728, \"dirty\": true},\n\
         { \"start\": 1122304, \"length\": 4608, \"dirty\": false}]\n"
    );
    let off = folder.cowshed_prints(&["map", "--output=json", "--bitmap", "off", "a.qcow2"]);
    assert_eq!(off, "[{ \"start\": 0, \"length\": 10485760, \"dirty\": false}]\n");
    let missing = folder.cowshed_fails(&["map", "--bitmap", "nope", "a.qcow2"], 1);
    assert_eq!(missing, "Dirty bitmap 'nope' not found");
    let lost = folder.cowshed_fails(&["map", "--bitmap", "lost", "b.qcow2"], 1);
    assert_eq!(lost, "Bitmap 'lost' is inconsistent and cannot be used");
}
