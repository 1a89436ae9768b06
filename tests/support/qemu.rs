//! QEMU's tools: finds them, runs them, and fails loudly.
//!
//! `QEMU_IMG` and `QEMU_IO` name other builds of the tools than those on `PATH`.

use std::ffi::OsStr;
use std::io::{Read as _, Seek as _};
use std::path::Path;
use std::process::{Command, Output};

/// The command `qemu-img`, to add arguments to.
pub fn qemu_img() -> Command {
    tool("QEMU_IMG", "qemu-img")
}

/// The command `qemu-io`, to add arguments to.
pub fn qemu_io() -> Command {
    tool("QEMU_IO", "qemu-io")
}

fn tool(variable: &str, name: &str) -> Command {
    let program = std::env::var_os(variable).unwrap_or_else(|| name.into());
    let mut command = Command::new(program);
    // Messages are compared: they must not be translated.
    command.env("LC_ALL", "C").env_remove("LANGUAGE");
    command
}

/// Runs a command to its end, whatever its exit code.
///
/// # Panics
///
/// If the program cannot be started; the message says how to install it.
pub fn output(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| {
        panic!(
            "cannot run {:?}: {error}\n  This test compares with QEMU's tools. Install them with `apt-get install \
             qemu-utils` (Debian), `dnf install qemu-img` (Fedora) or `brew install qemu` (macOS),\n  or let `cargo \
             xtask test` do it.",
            command.get_program()
        )
    })
}

/// Runs a command to its end, or kills it when the time is over.
///
/// # Panics
///
/// As [`output`].
pub fn output_within(command: &mut Command, time: std::time::Duration) -> Option<Output> {
    let mut said = [tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap()];
    let [stdout, stderr] = &said;
    command.stdout(stdout.try_clone().unwrap()).stderr(stderr.try_clone().unwrap());
    let mut child = command.spawn().unwrap_or_else(|_| {
        // Says how to install it.
        output(command);
        unreachable!("it could not be started before")
    });
    let start = std::time::Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if start.elapsed() > time {
            child.kill().unwrap();
            child.wait().unwrap();
            return None;
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    };
    let [stdout, stderr] = said.each_mut().map(|file| {
        let mut bytes = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut bytes).unwrap();
        bytes
    });
    Some(Output { status, stdout, stderr })
}

/// Runs a command that must succeed, and returns what it printed.
///
/// # Panics
///
/// If it cannot be started or fails; the message holds everything that it said.
pub fn run(command: &mut Command) -> String {
    let output = output(command);
    assert!(
        output.status.success(),
        "{command:?}: {}\nstdout: {}\nstderr: {}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs `qemu-img ARGS` in `dir`; it must succeed.
pub fn img<I, A>(dir: &Path, args: I) -> String
where
    I: IntoIterator<Item = A>,
    A: AsRef<OsStr>,
{
    run(qemu_img().current_dir(dir).args(args))
}

/// Runs `commands` by one `qemu-io` on `image` of `format` in `dir`; every one must succeed.
pub fn io<C: AsRef<str>>(dir: &Path, format: &str, image: &str, commands: &[C]) -> String {
    if commands.is_empty() {
        return String::new();
    }
    let mut command = qemu_io();
    // Nobody pulls the plug: no flush reaches the disk.
    command.current_dir(dir).args(["-f", format, "-d", "unmap", "-t", "unsafe"]);
    for line in commands {
        command.args(["-c", line.as_ref()]);
    }
    let said = run(command.arg(image));
    // Some failures are only words.
    assert!(!said.contains("failed"), "{command:?}: {said}");
    said
}

/// Returns what `image` (in `dir`, with QEMU's `options` before it) reads as, by `qemu-img convert`.
pub fn raw_bytes(dir: &Path, options: &[&str], image: &str) -> Vec<u8> {
    let raw = tempfile::NamedTempFile::new().expect("a temporary file");
    let mut command = qemu_img();
    command
        .current_dir(dir)
        .args(["convert", "-t", "unsafe", "-O", "raw"])
        .args(options)
        .arg(image);
    run(command.arg(raw.path()));
    std::fs::read(raw.path()).expect("the converted image")
}
