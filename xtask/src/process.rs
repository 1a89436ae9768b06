//! Running programs, and saying so.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::{Result, paths};

/// Runs one step, saying before what it is and afterwards how long it took.
pub(crate) fn step<T>(what: &str, run: impl FnOnce() -> Result<T>) -> Result<T> {
    println!("\n==> {what}");
    let start = Instant::now();
    let result = run().map_err(|error| format!("{what}: {error}"))?;
    println!("    done in {:.1} s", start.elapsed().as_secs_f64());
    Ok(result)
}

/// Starts a command in the project's root whose output the person sees.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.current_dir(paths::root());
    // `cargo xtask` sets these for this package; the commands below mean others.
    for name in ["CARGO_MANIFEST_DIR", "CARGO_MANIFEST_PATH", "CARGO_PKG_NAME", "CARGO_PKG_VERSION"]
    {
        command.env_remove(name);
    }
    command
}

/// The `cargo` that started this program.
pub(crate) fn cargo() -> Command {
    command(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Runs a command to its end; it must succeed.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    println!("    $ {}", shown(command));
    let status = command.status().map_err(|error| cannot_run(command, &error))?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("{} failed: {status}", shown(command)).into())
    }
}

/// Runs tests to their end; they must succeed. The error says again what failed: in a long log nobody finds it.
pub(crate) fn run_tests(command: &mut Command) -> Result<()> {
    println!("    $ {}", shown(command));
    let mut tests =
        command.stdout(Stdio::piped()).spawn().map_err(|error| cannot_run(command, &error))?;
    let mut failures = Failures::default();
    for line in BufReader::new(tests.stdout.take().ok_or("no output")?).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        println!("{line}");
        failures.line(&line);
    }
    let status = tests.wait()?;
    if status.success() {
        return Ok(());
    }
    Err(format!("{}\n{} failed: {status}", failures.told(), shown(command)).into())
}

/// What test programs say of the tests that failed, out of all that they print.
#[derive(Default)]
struct Failures {
    lines: Vec<String>,
    telling: bool,
}

impl Failures {
    /// Lines that are repeated at most: an assertion may print a whole disk.
    const LINES_MAX: usize = 400;
    /// Characters of a line that are repeated at most.
    const LINE_LEN_MAX: usize = 400;

    fn line(&mut self, line: &str) {
        // What `cargo test`, `node --test` and `wasm-bindgen-test` have above it.
        let plain = line.trim_start();
        if plain.starts_with("failures:") || plain.contains("failing tests:") {
            self.telling = true;
        } else if plain.starts_with("test result:") {
            self.telling = false;
        }
        if self.telling && self.lines.len() < Self::LINES_MAX {
            self.lines.push(line.chars().take(Self::LINE_LEN_MAX).collect());
        }
    }

    fn told(&self) -> String {
        self.lines.join("\n")
    }
}

/// Runs a command that must succeed and returns what it printed.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command.output().map_err(|error| cannot_run(command, &error))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        Err(format!("{} failed: {}\n{said}", shown(command), output.status).into())
    }
}

/// Returns `PATH` with `folders` before everything else.
pub(crate) fn path_with(folders: &[PathBuf]) -> Result<std::ffi::OsString> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    Ok(std::env::join_paths(folders.iter().cloned().chain(std::env::split_paths(&path)))?)
}

fn cannot_run(command: &Command, error: &std::io::Error) -> String {
    format!("cannot run {}: {error}", command.get_program().to_string_lossy())
}

/// The command as a person would type it, without the folders before its name.
fn shown(command: &Command) -> String {
    let program = PathBuf::from(command.get_program());
    let name = program.file_name().unwrap_or(program.as_os_str()).to_string_lossy().into_owned();
    command.get_args().fold(name, |line, argument| line + " " + &argument.to_string_lossy())
}

#[cfg(test)]
mod tests {
    use super::Failures;

    #[test]
    fn what_failed_is_told_and_what_passed_is_not() {
        let mut failures = Failures::default();
        let long = "x".repeat(2 * Failures::LINE_LEN_MAX);
        for line in [
            "test a ... ok",
            "failures:",
            "---- b stdout ----",
            &long,
            "test result: FAILED. 1 passed; 1 failed",
            "test c ... ok",
        ] {
            failures.line(line);
        }
        let cut = &long[..Failures::LINE_LEN_MAX];
        assert_eq!(failures.told(), ["failures:", "---- b stdout ----", cut].join("\n"));
    }
}
