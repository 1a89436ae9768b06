//! The command, held against QEMU's own: the same arguments to both, in the same folder, must print the same bytes and
//! end with the same code. Where the command differs on purpose, the test says how.

#![cfg(all(unix, feature = "cli"))]
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[path = "../support/mod.rs"]
mod support;

mod amend;
mod bench;
mod bitmap;
mod chain;
mod check;
mod compare;
mod convert;
mod convert_qcow2;
mod create;
mod dd;
mod errors;
mod files;
mod gate;
mod hostile;
mod info;
mod io;
mod luks;
mod map;
mod matrix;
mod measure;
mod names;
mod read;
mod size;
mod snapshot;
mod verdict;

use std::ffi::OsStr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use support::qemu;

/// How long a command may run. Nothing here is large; the machine may be busy.
const TIME_MAX: Duration = Duration::from_secs(120);

/// A folder with images, in which commands run.
struct Folder {
    path: PathBuf,
    _owned: Option<tempfile::TempDir>,
}

impl Folder {
    /// An empty folder.
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { path: folder.path().to_owned(), _owned: Some(folder) }
    }

    /// A folder that someone else keeps.
    fn at(path: &Path) -> Self {
        Self { path: path.to_owned(), _owned: None }
    }

    /// The path of a file in it.
    fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The bytes of a file in it.
    fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }

    /// Writes a file in it.
    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), bytes).unwrap();
    }

    /// Changes the bytes of a file in it.
    fn patch(&self, name: &str, offset: u64, bytes: &[u8]) {
        let file = std::fs::File::options().write(true).open(self.path(name)).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, bytes, offset).unwrap();
    }

    /// The number of eight bytes at `offset` of a file in it.
    fn number(&self, name: &str, offset: u64) -> u64 {
        let mut bytes = [0; 8];
        let file = std::fs::File::open(self.path(name)).unwrap();
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, offset).unwrap();
        u64::from_be_bytes(bytes)
    }

    /// Where the L2 table that the first entry of the L1 table points to is.
    fn first_l2_table(&self, name: &str) -> u64 {
        self.number(name, self.number(name, 40)) & 0x00ff_ffff_ffff_fe00
    }

    /// Runs QEMU's `qemu-img`, which must succeed.
    fn qemu_img(&self, arguments: &[&str]) -> String {
        qemu::img(&self.path, arguments)
    }

    /// Makes a qcow2 image with QEMU's `qemu-img`.
    fn create(&self, options: &[&str], name: &str, size: &str) {
        self.qemu_img(&[&["create", "-q", "-f", "qcow2"], options, &[name, size]].concat());
    }

    /// Runs `qemu-io` commands on an image, which must succeed.
    fn qemu_io(&self, image: &str, commands: &[&str]) -> String {
        let format = if image.ends_with(".raw") { "raw" } else { "qcow2" };
        qemu::io(&self.path, format, image, commands)
    }

    /// Runs the command under its own name.
    fn cowshed<A: AsRef<OsStr>>(&self, arguments: &[A]) -> Output {
        self.run(Command::new(env!("CARGO_BIN_EXE_cowshed")).arg0("cowshed").args(arguments))
    }

    /// Runs the command under its own name, which must succeed, and returns what it printed.
    #[track_caller]
    fn cowshed_prints(&self, arguments: &[&str]) -> String {
        let output = self.cowshed(arguments);
        assert!(output.status.success(), "cowshed {arguments:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// Runs the command under its own name, which must fail with `code` and one line on standard error, which is
    /// returned without the name in front.
    #[track_caller]
    fn cowshed_fails(&self, arguments: &[&str], code: i32) -> String {
        let output = self.cowshed(arguments);
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "cowshed {arguments:?}: {error}");
        assert_eq!(error.lines().count(), 1, "{error}");
        error.trim_end().strip_prefix("cowshed: ").expect("the command's name").to_owned()
    }

    /// Runs the command under QEMU's name.
    fn stand_in<A: AsRef<OsStr>>(&self, arguments: &[A]) -> Output {
        self.run(Command::new(env!("CARGO_BIN_EXE_cowshed")).arg0("qemu-img").args(arguments))
    }

    /// Runs QEMU's `qemu-img` and the command under its name, and holds them against each other.
    #[track_caller]
    fn compare(&self, arguments: &[&str], errors: Errors) -> Output {
        let theirs = self.run(qemu::qemu_img().args(arguments));
        let ours = self.stand_in(arguments);
        let shown = format!("qemu-img {} (ours left)", arguments.join(" "));
        let error = text(&ours.stderr);
        same_lines(
            &text(&ours.stdout),
            &text(&theirs.stdout),
            &format!("standard output of {shown}; our error: {error}"),
        );
        assert_eq!(
            ours.status.code(),
            theirs.status.code(),
            "exit code of {shown}; our error: {error}"
        );
        match errors {
            Errors::Same => assert_eq!(error, text(&theirs.stderr), "standard error of {shown}"),
            Errors::Own => {
                let silence = (error.is_empty(), theirs.stderr.is_empty());
                assert_eq!(
                    silence.0,
                    silence.1,
                    "silence of {shown}: {error} {}",
                    text(&theirs.stderr)
                );
            }
        }
        // Under its own name it prints the same.
        let own = self.cowshed(arguments);
        same_lines(
            &text(&own.stdout),
            &text(&theirs.stdout),
            &format!("standard output of cowshed for {shown}"),
        );
        assert_eq!(own.status.code(), theirs.status.code(), "exit code of cowshed for {shown}");
        ours
    }

    /// Same standard output, standard error and exit code as `qemu-img`.
    #[track_caller]
    fn same(&self, arguments: &[&str]) -> Output {
        self.compare(arguments, Errors::Same)
    }

    /// Same standard output and exit code as `qemu-img`, and both or neither say something on standard error.
    #[track_caller]
    fn same_but_for_errors(&self, arguments: &[&str]) -> Output {
        self.compare(arguments, Errors::Own)
    }

    /// Runs a command, which must not hang.
    fn run(&self, command: &mut Command) -> Output {
        self.run_with_input(command, Stdio::null())
    }

    /// Runs a command with something on its standard input, which must not hang.
    fn run_with_input(&self, command: &mut Command, input: impl Into<Stdio>) -> Output {
        let shown = format!("{command:?}");
        command.current_dir(&self.path).env("TZ", "Asia/Kolkata").stdin(input);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let child = child.unwrap_or_else(|error| {
            panic!("cannot run {shown}: {error}; qemu-img is in the package qemu-utils")
        });
        let id = child.id();
        let (ended, end) = std::sync::mpsc::channel();
        let waiting = std::thread::spawn(move || {
            let output = child.wait_with_output();
            // The test may have given up.
            let _ = ended.send(());
            output
        });
        if end.recv_timeout(TIME_MAX).is_err() {
            let _ = Command::new("kill").args(["-9", &id.to_string()]).status();
            panic!("{shown} hangs");
        }
        waiting.join().unwrap().unwrap()
    }
}

/// How standard error is held against that of `qemu-img`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Errors {
    /// Byte for byte.
    Same,
    /// It has its own words.
    Own,
}

/// Asserts that two texts are the same, and shows the first lines that differ.
#[track_caller]
fn same_lines(ours: &str, theirs: &str, what: &str) {
    if ours != theirs {
        let (mut our_lines, mut their_lines) = (ours.lines(), theirs.lines());
        let first = (1..).find_map(|number| match (our_lines.next(), their_lines.next()) {
            (ours, theirs) if ours == theirs && ours.is_some() => None,
            differing => Some((number, differing)),
        });
        panic!("{what}: line and lines: {first:?}");
    }
}

/// Output as text, to compare and to show.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
