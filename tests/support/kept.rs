//! Keeps what QEMU's tools made, so that the tests of one target folder make each image once.
//!
//! Making an image takes about ten processes, copying it one. Kept images are never handed out: a test gets a copy that
//! it may change. They are found by what made them: the tools' version, and the source of the makers.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use super::images::{TestImage, TestSnapshot};
use super::qemu;

/// Returns a copy of the image that is kept as `key`, calling `make` to make it as `image.qcow2` in a folder if there is none.
pub fn image(
    description: &str,
    key: &str,
    make: impl FnOnce(&Path) -> Vec<TestSnapshot>,
) -> TestImage {
    let kept = folder().join(key);
    if !kept.exists() {
        let partial = tempfile::tempdir_in(folder()).expect("a folder for an image");
        let at = partial.path().join("files");
        fs::create_dir(&at).expect("a folder for an image");
        let snapshots = make(&at);
        let reference = qemu::raw_bytes(&at, &["-f", "qcow2"], "image.qcow2");
        fs::write(partial.path().join("reference"), reference).expect("a reference");
        for (index, snapshot) in snapshots.iter().enumerate() {
            let name = format!("{index} {}", snapshot.name);
            fs::write(partial.path().join(name), &snapshot.reference).expect("a reference");
        }
        // Another process may have made the same one: then this one goes.
        let _ = fs::rename(partial.keep(), &kept);
    }
    let dir =
        tempfile::Builder::new().prefix("cowshed-test-").tempdir().expect("a temporary folder");
    // Holes stay holes: the map of a raw file shows them.
    let files = kept.join("files").join(".");
    qemu::run(Command::new("cp").args(["-R", "--sparse=auto"]).arg(files).arg(dir.path()));
    let mut snapshots = Vec::new();
    let mut names: Vec<_> = fs::read_dir(&kept)
        .expect("a kept image")
        .map(|entry| entry.expect("a kept image").file_name())
        .collect();
    names.sort();
    for name in names {
        if let Some((_, snapshot)) = name.to_str().and_then(|name| name.split_once(' ')) {
            let reference = fs::read(kept.join(&name)).expect("a reference");
            snapshots.push(TestSnapshot { name: snapshot.to_owned(), reference });
        }
    }
    let reference = fs::read(kept.join("reference")).expect("a reference");
    let path = dir.path().join("image.qcow2");
    TestImage { dir, path, reference, description: description.to_owned(), snapshots }
}

fn folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let mut makers = DefaultHasher::new();
        qemu::run(qemu::qemu_img().arg("--version")).hash(&mut makers);
        for source in [include_str!("matrix.rs"), include_str!("data.rs"), include_str!("kept.rs")]
        {
            source.hash(&mut makers);
        }
        let parent = Path::new(env!("CARGO_TARGET_TMPDIR")).join("images");
        let folder = parent.join(format!("{:016x}", makers.finish()));
        fs::create_dir_all(&folder).expect("a folder for images");
        for other in fs::read_dir(&parent).expect("the folder of images").flatten() {
            // What other makers made, nobody asks for again.
            if other.path() != folder {
                let _ = fs::remove_dir_all(other.path());
            }
        }
        folder
    })
}
