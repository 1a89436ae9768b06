//! The fear: two programs write to one image, or one reads what another writes, and nobody notices.
//!
//! QEMU's tools are the other program. What they say, they say; that our locks are the same ones shows when each side
//! is refused by the other in the cases in which QEMU refuses itself, and in no others.
//!
//! A program of its own: a child that another test starts has every open file until it executes, and so keeps locks that
//! have been given up.

#![cfg(not(target_family = "wasm"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::cast_possible_truncation)]
#![cfg(all(target_os = "linux", feature = "file"))]

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};

use cowshed::rt::{FileOptions, FileStorage, LockError, LockMode};

/// A `qemu-io` that holds an image open until it is dropped.
struct Holder {
    process: Child,
    _input: ChildStdin,
    _output: BufReader<ChildStdout>,
}

impl Holder {
    fn new(arguments: &[&str], image: &Path) -> Self {
        let mut process = Command::new("qemu-io")
            .args(arguments)
            .arg(image)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("qemu-io not found; install it with `apt-get install qemu-utils`");
        let mut input = process.stdin.take().unwrap();
        let mut output = BufReader::new(process.stdout.take().unwrap());
        // It answers when it has opened the image.
        input.write_all(b"length\n").unwrap();
        let mut line = String::new();
        while !line.contains("MiB") {
            line.clear();
            assert_ne!(output.read_line(&mut line).unwrap(), 0, "qemu-io did not open the image");
        }
        Self { process, _input: input, _output: output }
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

fn qemu_img(arguments: &[&str], image: &Path) -> Output {
    Command::new("qemu-img")
        .args(arguments)
        .arg(image)
        .output()
        .expect("qemu-img not found; install it with `apt-get install qemu-utils`")
}

/// An image in a folder of its own.
fn image() -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.qcow2");
    let made = qemu_img(&["create", "-q", "-f", "qcow2", "-o", "size=4M"], &path);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    (folder, path)
}

fn open(path: &Path, writable: bool, lock: LockMode) -> std::io::Result<FileStorage> {
    FileStorage::open(path, &FileOptions::new().writable(writable).lock(lock))
}

#[track_caller]
fn assert_refused(result: std::io::Result<FileStorage>, path: &Path, text: &str) {
    let error = result.expect_err("the lock should be refused");
    assert_eq!(error.kind(), std::io::ErrorKind::ResourceBusy);
    assert_eq!(error.to_string(), text);
    let error = error.get_ref().and_then(|error| error.downcast_ref::<LockError>()).unwrap();
    assert_eq!(error.hint(), format!("Is another process using the image [{}]?", path.display()));
    assert_eq!(error.path(), path);
}

#[track_caller]
fn assert_qemu_refused(output: &Output, path: &Path, lock: &str) {
    assert!(!output.status.success());
    let path = path.display();
    assert_eq!(
        String::from_utf8_lossy(&output.stderr),
        format!(
            "qemu-img: Could not open '{path}': Failed to get {lock} lock\n\
             Is another process using the image [{path}]?\n"
        )
    );
}

#[test]
fn qemu_writer_keeps_reader_and_writer_out() {
    let (_folder, path) = image();
    let _holder = Holder::new(&["-f", "qcow2"], &path);
    assert_refused(
        open(&path, false, LockMode::Exclusive),
        &path,
        "Failed to get shared \"write\" lock",
    );
    assert_refused(open(&path, true, LockMode::Exclusive), &path, "Failed to get \"write\" lock");
    assert_refused(open(&path, true, LockMode::Shared), &path, "Failed to get \"write\" lock");
}

#[test]
fn qemu_writer_does_not_keep_out_who_forces() {
    let (_folder, path) = image();
    let _holder = Holder::new(&["-f", "qcow2"], &path);
    open(&path, false, LockMode::ForceShare).unwrap();
    open(&path, false, LockMode::Off).unwrap();
    let error = open(&path, true, LockMode::ForceShare).unwrap_err();
    assert_eq!(error.to_string(), "force-share=on can only be used with read-only images");
}

#[test]
fn qemu_reader_lets_readers_in_and_keeps_writers_out() {
    let (_folder, path) = image();
    let _holder = Holder::new(&["-r", "-f", "qcow2"], &path);
    open(&path, false, LockMode::Exclusive).unwrap();
    open(&path, false, LockMode::Shared).unwrap();
    assert_refused(open(&path, true, LockMode::Exclusive), &path, "Failed to get \"write\" lock");
}

#[test]
fn locks_end_with_their_holder() {
    let (_folder, path) = image();
    drop(Holder::new(&["-f", "qcow2"], &path));
    drop(open(&path, true, LockMode::Exclusive).unwrap());
    drop(open(&path, true, LockMode::Exclusive).unwrap());
    drop(Holder::new(&["-f", "qcow2"], &path));
}

#[test]
fn reader_lets_qemu_read_and_keeps_it_from_writing() {
    let (_folder, path) = image();
    let _storage = open(&path, false, LockMode::Exclusive).unwrap();
    let info = qemu_img(&["info", "-f", "qcow2"], &path);
    assert!(info.status.success(), "{}", String::from_utf8_lossy(&info.stderr));
    let write = qemu_img(&["snapshot", "-c", "one"], &path);
    assert_qemu_refused(&write, &path, "\"write\"");
}

#[test]
fn writer_keeps_qemu_out_unless_it_forces() {
    let (_folder, path) = image();
    let storage = open(&path, true, LockMode::Exclusive).unwrap();
    assert_qemu_refused(&qemu_img(&["info", "-f", "qcow2"], &path), &path, "shared \"write\"");
    assert_qemu_refused(&qemu_img(&["snapshot", "-c", "one"], &path), &path, "\"write\"");
    assert!(qemu_img(&["info", "-U", "-f", "qcow2"], &path).status.success());
    drop(storage);
    assert!(qemu_img(&["snapshot", "-c", "one"], &path).status.success());
}

#[test]
fn forced_and_unlocked_readers_let_qemu_write() {
    for lock in [LockMode::ForceShare, LockMode::Off, LockMode::Shared] {
        let (_folder, path) = image();
        let _storage = open(&path, false, lock).unwrap();
        let write = qemu_img(&["snapshot", "-c", "one"], &path);
        assert!(write.status.success(), "{lock:?}: {}", String::from_utf8_lossy(&write.stderr));
    }
}

#[test]
fn two_of_us_are_kept_apart_in_one_process() {
    let (_folder, path) = image();
    let reader = open(&path, false, LockMode::Exclusive).unwrap();
    let second = open(&path, false, LockMode::Exclusive).unwrap();
    assert_refused(open(&path, true, LockMode::Exclusive), &path, "Failed to get \"write\" lock");
    drop((reader, second));
    let _writer = open(&path, true, LockMode::Exclusive).unwrap();
    assert_refused(
        open(&path, false, LockMode::Exclusive),
        &path,
        "Failed to get shared \"write\" lock",
    );
}

#[test]
fn truncation_waits_for_the_lock() {
    let (_folder, path) = image();
    let before = std::fs::read(&path).unwrap();
    let _holder = Holder::new(&["-r", "-f", "qcow2"], &path);
    let options = FileOptions::new().writable(true).create(true).truncate(true);
    FileStorage::open(&path, &options).unwrap_err();
    assert_eq!(std::fs::read(&path).unwrap(), before, "a refused opener changes nothing");
}
