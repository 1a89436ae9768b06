//! `compare` says what `qemu-img compare` says, at the same offset, and ends with its exit codes.

use crate::Folder;

fn images() -> Folder {
    let folder = Folder::new();
    folder.create(&[], "a.qcow2", "10M");
    folder.qemu_io("a.qcow2", &["write -P 1 0 1M", "write -P 3 5M 64k"]);
    folder.qemu_img(&["convert", "-O", "raw", "a.qcow2", "a.raw"]);
    folder.qemu_img(&["convert", "-c", "-O", "qcow2", "a.qcow2", "packed.qcow2"]);
    folder.create(&[], "empty.qcow2", "10M");
    folder.create(&[], "longer.qcow2", "12M");
    folder.qemu_io("longer.qcow2", &["write -P 1 0 1M", "write -P 3 5M 64k"]);
    folder.create(&["-b", "a.qcow2", "-F", "qcow2"], "over.qcow2", "10M");
    folder.create(&["-b", "a.qcow2", "-F", "qcow2"], "other.qcow2", "10M");
    folder.qemu_io("other.qcow2", &["write -P 4 6000k 1536"]);
    folder.create(&["-b", "longer.qcow2", "-F", "qcow2"], "tail.qcow2", "12M");
    folder.qemu_io("tail.qcow2", &["write -P 4 11M 512"]);
    folder.create(&[], "zeros.qcow2", "10M");
    folder.qemu_io("zeros.qcow2", &["write -P 0 0 64k", "write -z 1M 64k"]);
    folder
}

const NAMES: [&str; 10] = [
    "a.qcow2",
    "a.raw",
    "packed.qcow2",
    "empty.qcow2",
    "longer.qcow2",
    "over.qcow2",
    "other.qcow2",
    "tail.qcow2",
    "zeros.qcow2",
    "a.qcow2",
];

#[test]
fn images_are_compared() {
    let folder = images();
    for first in NAMES {
        for second in NAMES {
            folder.same(&["compare", first, second]);
        }
        folder.same(&["compare", "-q", first, "a.qcow2"]);
        folder.same(&["compare", "-f", "raw", "-F", "raw", first, "a.raw"]);
    }
}

#[test]
fn strict_comparison_tells_allocation_apart() {
    let folder = images();
    for (first, second) in [
        ("a.qcow2", "a.qcow2"),
        ("a.qcow2", "packed.qcow2"),
        ("a.qcow2", "longer.qcow2"),
        ("empty.qcow2", "zeros.qcow2"),
        ("zeros.qcow2", "empty.qcow2"),
        ("over.qcow2", "a.qcow2"),
        ("empty.qcow2", "empty.qcow2"),
    ] {
        folder.same(&["compare", "-s", first, second]);
        folder.same(&["compare", "--strict", "-q", first, second]);
    }
}

#[test]
fn scattered_clusters_are_no_difference() {
    // To qemu-img, whether one look-up reached the end of the disk is a part of what is compared strictly.
    let folder = Folder::new();
    folder.create(&[], "a.qcow2", "1M");
    folder.qemu_io("a.qcow2", &["write -P 1 0 1M"]);
    folder.create(&[], "b.qcow2", "1M");
    folder.qemu_io("b.qcow2", &["write -P 1 512k 512k", "write -P 1 0 512k"]);
    assert_eq!(
        folder.cowshed_prints(&["compare", "-s", "a.qcow2", "b.qcow2"]),
        "Images are identical.\n"
    );
}

#[test]
fn progress_ends_with_the_result() {
    let folder = images();
    for (first, second) in
        [("a.qcow2", "a.raw"), ("a.qcow2", "other.qcow2"), ("a.qcow2", "longer.qcow2")]
    {
        let output = folder.stand_in(&["compare", "-p", first, second]);
        let theirs = folder.run(crate::qemu::qemu_img().args(["compare", "-p", first, second]));
        let last = |bytes: &[u8]| crate::text(bytes).rsplit('\r').next().unwrap().to_owned();
        assert_eq!(last(&output.stdout), last(&theirs.stdout));
        assert!(crate::text(&output.stdout).starts_with("    (0.00/100%)\r"));
        assert_eq!(output.status.code(), theirs.status.code());
    }
    folder.same(&["compare", "-p", "-q", "a.qcow2", "a.raw"]);
}

#[test]
fn images_that_cannot_be_read_have_codes_of_their_own() {
    let folder = images();
    folder.same_but_for_errors(&["compare", "missing", "a.qcow2"]);
    folder.same_but_for_errors(&["compare", "a.qcow2", "missing"]);
    let table = folder.first_l2_table("other.qcow2");
    let index = 6000 * 1024 / 65536;
    folder.patch("other.qcow2", table + 8 * index, &0x8000_0000_0009_9800_u64.to_be_bytes());
    let output = folder.same_but_for_errors(&["compare", "other.qcow2", "a.qcow2"]);
    assert_eq!(output.status.code(), Some(3));
    // Compressed data that is not.
    let table = folder.first_l2_table("packed.qcow2");
    let entry = folder.number("packed.qcow2", table) & ((1 << 54) - 1);
    folder.patch("packed.qcow2", entry, &[0xff; 16]);
    let output = folder.same_but_for_errors(&["compare", "a.qcow2", "packed.qcow2"]);
    assert_eq!(output.status.code(), Some(4));
}
