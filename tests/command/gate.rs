//! What an image names is opened only if it is a plain file in the image's own folder or below, or was allowed; under
//! QEMU's name plain files anywhere; protocols never.

use crate::{Folder, text};

fn nested() -> Folder {
    let folder = Folder::new();
    std::fs::create_dir(folder.path("sub")).unwrap();
    folder.write("base.raw", vec![1; 65536]);
    folder.create(&["-u", "-b", "../base.raw", "-F", "raw"], "sub/top.qcow2", "64k");
    folder
}

#[test]
fn backing_file_outside_of_the_folder_is_refused_until_allowed() {
    let folder = nested();
    let error = folder.cowshed_fails(&["map", "sub/top.qcow2"], 1);
    assert!(error.starts_with("sub/top.qcow2: "), "{error}");
    assert!(error.contains("--allow "), "{error}");
    let expected = folder.qemu_img(&["map", "sub/top.qcow2"]);
    assert_eq!(folder.cowshed_prints(&["map", "--allow", ".", "sub/top.qcow2"]), expected);
    assert_eq!(folder.cowshed_prints(&["map", "--allow", "base.raw", "sub/top.qcow2"]), expected);
    let output = folder.stand_in(&["map", "sub/top.qcow2"]);
    assert_eq!(text(&output.stdout), expected);
}

#[test]
fn link_out_of_the_folder_is_refused() {
    let folder = nested();
    std::os::unix::fs::symlink("../base.raw", folder.path("sub/link.raw")).unwrap();
    folder.create(&["-u", "-b", "link.raw", "-F", "raw"], "sub/linked.qcow2", "64k");
    let error = folder.cowshed_fails(&["map", "sub/linked.qcow2"], 1);
    assert!(error.contains("link"), "{error}");
    assert!(folder.stand_in(&["map", "sub/linked.qcow2"]).status.success());
}

#[test]
fn info_and_check_open_nothing_that_is_named() {
    let folder = nested();
    folder.cowshed_prints(&["info", "sub/top.qcow2"]);
    folder.cowshed_prints(&["check", "sub/top.qcow2"]);
}

#[test]
fn protocols_are_refused_by_either_name() {
    let folder = Folder::new();
    for name in [
        "json:{\"driver\":\"file\",\"filename\":\"base.raw\"}",
        "nbd://localhost:1/x",
        "fat:.",
        "file:base.raw",
    ] {
        folder.write("base.raw", vec![1; 65536]);
        folder.create(&["-u", "-b", name, "-F", "raw"], "top.qcow2", "64k");
        folder.cowshed_fails(&["map", "top.qcow2"], 1);
        let output = folder.stand_in(&["map", "top.qcow2"]);
        assert_eq!(output.status.code(), Some(1));
    }
}

#[test]
fn fifo_hangs_no_one() {
    let folder = Folder::new();
    let made = std::process::Command::new("mkfifo").arg(folder.path("fifo")).status().unwrap();
    assert!(made.success());
    folder.create(&["-u", "-b", "fifo", "-F", "raw"], "top.qcow2", "64k");
    folder.cowshed_fails(&["map", "top.qcow2"], 1);
    folder.cowshed_fails(&["info", "fifo"], 1);
    assert_eq!(folder.stand_in(&["map", "top.qcow2"]).status.code(), Some(1));
}

#[test]
fn chain_that_is_a_loop_ends() {
    let folder = Folder::new();
    folder.create(&["-u", "-b", "b.qcow2", "-F", "qcow2"], "a.qcow2", "1M");
    folder.create(&["-u", "-b", "a.qcow2", "-F", "qcow2"], "b.qcow2", "1M");
    folder.cowshed_fails(&["map", "a.qcow2"], 1);
    folder.create(&["-u", "-b", "self.qcow2", "-F", "qcow2"], "other.qcow2", "1M");
    std::fs::rename(folder.path("other.qcow2"), folder.path("self.qcow2")).unwrap();
    folder.cowshed_fails(&["map", "self.qcow2"], 1);
}
