//! The real disk: GPT, an EFI partition and an ext4 root with a Debian tree, compressed, snapshotted, written to since.
//!
//! Built by the same code as the demonstration, once for the target folder, and never changed by a test.

#[path = "../../xtask/src/real_image.rs"]
mod builder;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::support::images::{assert_same, snapshot_bytes};
use crate::support::open::{open_in_memory, read_all};
use crate::support::qemu;
use cowshed::image::{OpenOptions, SnapshotSelector};
use futures::executor::block_on;

/// Returns the image's folder and name.
fn image() -> (PathBuf, String) {
    static IMAGE: OnceLock<PathBuf> = OnceLock::new();
    let path = IMAGE.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let path = folder.join(format!("real-{}.qcow2", builder::VERSION));
        if !path.exists() {
            let cache = folder.join("cache");
            builder::build(&path, &cache)
                .unwrap_or_else(|error| panic!("cannot build the real image: {error}"));
        }
        path
    });
    (path.parent().unwrap().to_owned(), path.file_name().unwrap().to_str().unwrap().to_owned())
}

#[test]
fn real_image_is_a_disk_that_qemu_finds_sound() {
    let (dir, name) = image();
    qemu::img(&dir, ["check", "-q", &name]);
    let disk = qemu::raw_bytes(&dir, &["-f", "qcow2"], &name);
    assert_eq!(&disk[512..520], b"EFI PART");
    // The superblock of ext4, 1 KiB into the second partition.
    assert_eq!(disk[(41 << 20) + 1024 + 0x38..][..2], [0x53, 0xef]);
    let fresh = crate::support::images::snapshot_bytes(&dir, &name, "fresh-install");
    let later = crate::support::images::snapshot_bytes(&dir, &name, "before-upgrade");
    assert!(fresh != later && later != disk);
}

#[test]
fn real_image_and_its_snapshots_read_as_in_qemu() {
    let (dir, name) = image();
    block_on(async {
        let opened = open_in_memory(&dir, &name, OpenOptions::default()).await.unwrap();
        let expected = qemu::raw_bytes(&dir, &["-f", "qcow2"], &name);
        assert_same("the real image", &expected, &read_all(&opened, 1 << 20).await.unwrap(), 0);
        for snapshot in ["fresh-install", "before-upgrade"] {
            let mut options = OpenOptions::default();
            options.snapshot = Some(SnapshotSelector::Name(snapshot.into()));
            let opened = open_in_memory(&dir, &name, options).await.unwrap();
            let expected = snapshot_bytes(&dir, &name, snapshot);
            assert_same(snapshot, &expected, &read_all(&opened, 1 << 20).await.unwrap(), 0);
        }
    });
}
