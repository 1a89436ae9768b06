//! `io` is `qemu-io`: the same commands to both, each in a folder of its own with the same images, print the same lines
//! but for the time they took, end with the same code, and leave images that hold the same.

mod access;
mod arguments;
mod faults;
mod read;
mod write;

use std::os::unix::process::CommandExt as _;
use std::process::{Command, Output};

use crate::support::qemu;
use crate::{Folder, text};

/// Two folders with the same images: one for QEMU's program, one for ours.
struct Pair {
    theirs: Folder,
    ours: Folder,
}

impl Pair {
    /// Two folders made by the same steps.
    fn new(make: impl Fn(&Folder)) -> Self {
        let pair = Self { theirs: Folder::new(), ours: Folder::new() };
        make(&pair.theirs);
        make(&pair.ours);
        pair
    }

    /// Runs both with the same arguments, which must print the same.
    #[track_caller]
    fn same(&self, arguments: &[&str]) {
        self.same_with_input(arguments, "");
    }

    /// The same with commands, each behind a `-c`, and options in front of them.
    #[track_caller]
    fn same_commands(&self, options: &[&str], commands: &[&str]) {
        let commands = commands.iter().flat_map(|command| ["-c", command]);
        let arguments: Vec<_> = options.iter().copied().chain(commands).collect();
        self.same(&arguments);
    }

    /// Runs both with the same arguments and the same standard input, which must print the same.
    #[track_caller]
    fn same_with_input(&self, arguments: &[&str], input: &str) {
        let theirs = run(&self.theirs, qemu::qemu_io().args(arguments), input);
        let mut command = Command::new(env!("CARGO_BIN_EXE_cowshed"));
        let ours = run(&self.ours, command.arg0("qemu-io").args(arguments), input);
        let shown = format!("of qemu-io {arguments:?} with {input:?} (ours left)");
        assert_eq!(lines(&ours.stdout), lines(&theirs.stdout), "standard output {shown}");
        assert_eq!(lines(&ours.stderr), lines(&theirs.stderr), "standard error {shown}");
        assert_eq!(ours.status.code(), theirs.status.code(), "exit code {shown}");
    }

    /// Runs ours under its own name, and returns what it printed on standard output and on standard error.
    fn cowshed(&self, arguments: &[&str]) -> (Vec<String>, Vec<String>) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cowshed"));
        let output = run(&self.ours, command.arg0("cowshed").arg("io").args(arguments), "");
        (lines(&output.stdout), lines(&output.stderr))
    }
}

fn run(folder: &Folder, command: &mut Command, input: &str) -> Output {
    folder.write("input", input);
    folder.run_with_input(command, std::fs::File::open(folder.path("input")).unwrap())
}

/// The lines of an output without the times in it, and without QEMU's numbers for nodes.
fn lines(output: &[u8]) -> Vec<String> {
    text(output).lines().map(without_time).collect()
}

fn without_time(line: &str) -> String {
    if let Some((size, _)) = line.split_once(" ops; ") {
        return format!("{size} ops");
    }
    if let Some((before, after)) = line.split_once("'#block") {
        return format!(
            "{before}'#block{}",
            after.trim_start_matches(|c: char| c.is_ascii_digit())
        );
    }
    // bytes,operations,time,bytes/s,operations/s
    match &*line.split(',').collect::<Vec<_>>() {
        [bytes, operations, time, _, _] if time.contains(':') => format!("{bytes},{operations}"),
        _ => line.to_owned(),
    }
}
