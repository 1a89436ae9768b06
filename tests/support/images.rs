//! One image made by QEMU, and what it must read as.

use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;

use super::qemu;

/// An image in a temporary folder of its own, with the bytes that QEMU reads from it.
pub struct TestImage {
    /// The folder; it holds the image's backing and data files too, named relatively.
    pub dir: TempDir,
    /// The image.
    pub path: PathBuf,
    /// What the whole virtual disk reads as, from `qemu-img convert -O raw`.
    pub reference: Vec<u8>,
    /// What kind of image it is: for messages.
    pub description: String,
    /// Internal snapshots, oldest first.
    pub snapshots: Vec<TestSnapshot>,
}

/// An internal snapshot of a [`TestImage`].
pub struct TestSnapshot {
    /// Its name; QEMU numbers the ids from 1.
    pub name: String,
    /// What the disk read as when it was taken, from `qemu-img convert -l`. Its length is the disk's size then.
    pub reference: Vec<u8>,
}

impl TestImage {
    /// The image's file name in its folder.
    pub fn name(&self) -> &str {
        self.path.file_name().and_then(|name| name.to_str()).expect("a plain name")
    }

    /// The image file's own bytes.
    pub fn file_bytes(&self) -> Vec<u8> {
        std::fs::read(&self.path).expect("the image")
    }

    /// `qemu-img info --output=json`.
    pub fn info_json(&self) -> Value {
        self.json(&["info"])
    }

    /// `qemu-img map --output=json`: the extents with start, length, depth, present, zero, data, compressed, offset.
    pub fn map_json(&self) -> Value {
        self.json(&["map"])
    }

    /// `qemu-img check --output=json`; the image must be one that checks clean.
    pub fn check_json(&self) -> Value {
        self.json(&["check"])
    }

    fn json(&self, verb: &[&str]) -> Value {
        let rest = ["-f", "qcow2", "--output=json", self.name()];
        let text = qemu::img(self.dir.path(), verb.iter().chain(&rest));
        serde_json::from_str(&text).expect("JSON from qemu-img")
    }

    /// Reads the image again through QEMU, after its files were changed.
    pub fn refresh(&mut self) {
        self.reference = qemu::raw_bytes(self.dir.path(), &["-f", "qcow2"], self.name());
        for snapshot in &mut self.snapshots {
            snapshot.reference = snapshot_bytes(
                self.dir.path(),
                self.path.file_name().unwrap().to_str().unwrap(),
                &snapshot.name,
            );
        }
    }

    /// Asserts that `actual`, read at `offset`, is what QEMU reads there; the message names the first wrong byte.
    pub fn assert_reads(&self, actual: &[u8], offset: u64) {
        assert_same(&self.description, &self.reference, actual, offset);
    }
}

impl TestSnapshot {
    /// As [`TestImage::assert_reads`].
    pub fn assert_reads(&self, description: &str, actual: &[u8], offset: u64) {
        assert_same(
            &format!("{description}, snapshot {}", self.name),
            &self.reference,
            actual,
            offset,
        );
    }
}

/// Returns what the snapshot `name` of `image` in `dir` reads as.
pub fn snapshot_bytes(dir: &Path, image: &str, name: &str) -> Vec<u8> {
    qemu::raw_bytes(dir, &["-f", "qcow2", "-l", &format!("snapshot.name={name}")], image)
}

/// Asserts that `actual` is `reference[offset..]` of the same length, naming the first difference.
pub fn assert_same(description: &str, reference: &[u8], actual: &[u8], offset: u64) {
    let start = usize::try_from(offset).unwrap();
    let expected = reference.get(start..start + actual.len()).unwrap_or_else(|| {
        panic!(
            "{description}: {} bytes at {offset:#x} reach past {:#x}",
            actual.len(),
            reference.len()
        )
    });
    if expected == actual {
        return;
    }
    let first = expected.iter().zip(actual).position(|(a, b)| a != b).unwrap();
    let wrong = expected.iter().zip(actual).filter(|(a, b)| a != b).count();
    let shown = first..actual.len().min(first + 16);
    panic!(
        "{description}: {wrong} of {} bytes read at {offset:#x} differ from QEMU's, the first at {:#x}:\n  expected \
         {:02x?}\n  found    {:02x?}",
        actual.len(),
        start + first,
        &expected[shown.clone()],
        &actual[shown]
    );
}
