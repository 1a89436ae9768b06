//! `read` gives the bytes of a range, as they are or as a dump.

use crate::Folder;

fn image() -> Folder {
    let folder = Folder::new();
    folder.create(&[], "image.qcow2", "3M");
    folder
        .qemu_io("image.qcow2", &["write -P 65 0 100k", "write -P 122 1M 1M", "write -P 0 1M 512"]);
    folder.qemu_img(&["snapshot", "-c", "before", "image.qcow2"]);
    folder.qemu_io("image.qcow2", &["write -P 48 0 1k"]);
    folder.qemu_img(&["convert", "-O", "raw", "image.qcow2", "image.raw"]);
    folder
}

#[test]
fn bytes_are_those_of_the_disk() {
    let folder = image();
    let disk = folder.read("image.raw");
    for (offset, length) in [
        ("0", "3M"),
        ("1023", "3"),
        ("100k", "1M"),
        ("3145727", "1"),
        ("1M", "0"),
        ("0x100000", "1k"),
    ] {
        let output = folder.cowshed(&["read", "image.qcow2", offset, length]);
        let number = |text: &str| -> usize {
            match text {
                "0x100000" => 1 << 20,
                _ if text.ends_with('k') => {
                    1024 * text.trim_end_matches('k').parse::<usize>().unwrap()
                }
                _ if text.ends_with('M') => {
                    1048576 * text.trim_end_matches('M').parse::<usize>().unwrap()
                }
                _ => text.parse().unwrap(),
            }
        };
        let (offset, length) = (number(offset), number(length));
        assert!(output.stdout == disk[offset..offset + length], "{offset} {length}");
    }
}

#[test]
fn dump_looks_as_that_of_qemu_io() {
    let folder = image();
    for (offset, length) in [(0, 512), (102_384, 64), (1_048_000, 1600)] {
        let theirs = folder.qemu_io("image.qcow2", &[&format!("read -v {offset} {length}")]);
        let theirs: Vec<_> = theirs.lines().filter(|line| line.get(8..9) == Some(":")).collect();
        let ours = folder.cowshed_prints(&[
            "read",
            "--hex",
            "image.qcow2",
            &offset.to_string(),
            &length.to_string(),
        ]);
        assert_eq!(ours.lines().collect::<Vec<_>>(), theirs);
    }
}

#[test]
fn snapshots_are_read() {
    let folder = image();
    let output = folder.cowshed_prints(&["read", "-l", "before", "image.qcow2", "0", "4"]);
    assert_eq!(output, "AAAA");
    let output = folder.cowshed_prints(&["read", "image.qcow2", "0", "4"]);
    assert_eq!(output, "0000");
}

#[test]
fn bytes_go_to_a_file() {
    let folder = image();
    folder.cowshed_prints(&["read", "image.qcow2", "0", "3M", "-o", "out"]);
    assert!(folder.read("out") == folder.read("image.raw"));
}

#[test]
fn ranges_outside_of_the_disk_are_refused() {
    let folder = image();
    for (offset, length) in [("3M", "1"), ("0", "3145729"), ("7E", "7E")] {
        let error = folder.cowshed_fails(&["read", "image.qcow2", offset, length], 1);
        assert!(error.starts_with("image.qcow2: "), "{error}");
    }
}
