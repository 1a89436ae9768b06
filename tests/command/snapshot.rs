//! `snapshot -l` prints the table of `qemu-img`, in local time; changes are refused.

use crate::Folder;

#[test]
fn snapshots_are_listed() {
    let folder = Folder::new();
    folder.create(&[], "image.qcow2", "1M");
    folder.same(&["snapshot", "-l", "image.qcow2"]);
    for name in ["first", "a name that is longer than its column", "K\u{e4}the"] {
        folder.qemu_img(&["snapshot", "-c", name, "image.qcow2"]);
    }
    folder.same(&["snapshot", "-l", "image.qcow2"]);
    folder.same(&["snapshot", "image.qcow2"]);
    folder.same(&["snapshot", "--list", "-U", "-q", "image.qcow2"]);
    folder.write("file.raw", "x");
    folder.same(&["snapshot", "-l", "file.raw"]);
}

#[test]
fn changes_are_refused() {
    let folder = Folder::new();
    folder.create(&[], "image.qcow2", "1M");
    let before = folder.read("image.qcow2");
    for option in ["-c", "-a", "-d"] {
        let error = folder.cowshed_fails(&["snapshot", option, "s", "image.qcow2"], 1);
        assert!(error.starts_with("image.qcow2: cannot "), "{error}");
    }
    assert_eq!(folder.read("image.qcow2"), before);
}
