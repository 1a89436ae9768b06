//! What looks for races: the model checkers, ThreadSanitizer, Miri.

use std::path::Path;
use std::process::Command;

use crate::process::{cargo, command, output, run, step};
use crate::{Result, paths, setup};

/// Checks the protocols under `schedules` schedules each, or a smoke test of them.
pub(crate) fn model(schedules: Option<u64>) -> Result<()> {
    let what = match schedules {
        Some(schedules) => format!("check the protocols under {schedules} schedules each"),
        None => "check the protocols under some schedules".to_owned(),
    };
    step(&what, || {
        let mut test = model_test("shuttle");
        if let Some(schedules) = schedules {
            test.env("COWSHED_MODEL_SCHEDULES", schedules.to_string());
        }
        run(test.args(["--test", "protocols", "--", "--nocapture"]))
    })?;
    step("check the kernel of the cleaner and the gates of an image under every schedule", || {
        run(model_test("loom").args(["--test", "kernel", "--", "--nocapture"]))?;
        run(model_test("loom").args(["--lib", "kernel::", "--", "--nocapture"]))
    })
}

/// Tests of threads that ThreadSanitizer watches, files of the program `engine`.
const THREAD_TESTS: &[&str] = &[
    "cleaner_race::",
    "cache_stress::",
    "cache_cleaner::",
    "write_threads::",
    "reconfigure::",
    "runtimes::",
    "requests::",
    "workers::",
];

/// Races on purpose: what does not report it watches nothing.
const RACE: &str = "\
static mut WORD: u64 = 0;
fn main() {
    let thread = std::thread::spawn(|| unsafe { *std::ptr::addr_of_mut!(WORD) += 1 });
    unsafe { *std::ptr::addr_of_mut!(WORD) += 1 };
    thread.join().unwrap();
}
";

/// Watches the tests of threads with ThreadSanitizer; the nine races take `seconds` each. The standard library is compiled for it,
/// too, as its locks and channels would else be races.
pub(crate) fn tsan(seconds: u64) -> Result<()> {
    setup::image_tools()?;
    setup::nightly(&["rust-src"])?;
    let host = host()?;
    let folder = paths::target().join("tsan");
    step("see that ThreadSanitizer reports a race", || {
        std::fs::create_dir_all(&folder)?;
        let (source, race) = (folder.join("race.rs"), folder.join("race"));
        std::fs::write(&source, RACE)?;
        run(command("rustup")
            .args(["run", "nightly", "rustc", "-Zsanitizer=thread"])
            .args(["-Cunsafe-allow-abi-mismatch=sanitizer", "-o"])
            .arg(&race)
            .arg(&source))?;
        let said = command(&race).env("TSAN_OPTIONS", "exitcode=66").output()?;
        let reported = String::from_utf8_lossy(&said.stderr).contains("data race");
        if reported && said.status.code() == Some(66) { Ok(()) } else { Err("no report".into()) }
    })?;
    step("watch the tests of threads with ThreadSanitizer", || {
        let mut test = nightly_cargo(&folder);
        test.env("RUSTFLAGS", "-Zsanitizer=thread")
            .env("TSAN_OPTIONS", "halt_on_error=1")
            .env("COWSHED_RACE_SECONDS", seconds.to_string())
            .args(["test", "-Zbuild-std", "--target", &host, "--no-default-features"])
            .args(["--features", "sim,smol,tokio,file"])
            .args(["--test", "engine", "--"])
            .args(THREAD_TESTS);
        // The mutant without a lock takes locks all the same, for a shorter time: nothing that is reported here.
        run(test.args(["--skip", "cleaner_without_a_lock_is_caught"]))
    })
}

/// Tests of the cache and the format that Miri interprets, of the program `engine`: those that take seconds there, and neither
/// files nor other programs.
const MIRI_TESTS: &[&str] = &[
    "cache_loads::dropped_loader",
    "cache_loads::failed_load",
    "cache_loads::error_of_the_synchronous_door",
    "cache_passes::first_pass",
    "cache_passes::get_of",
    "cache_passes::pass_leaves",
    "cache_passes::failed_load",
    "cache_cleaner::at_most_one",
    "format_entries::",
];

/// Interprets tests of the cache and the format with Miri.
pub(crate) fn miri() -> Result<()> {
    setup::nightly(&["miri", "rust-src"])?;
    step("interpret tests of the cache and the format", || {
        let mut test = nightly_cargo(&paths::target().join("miri"));
        test.env("MIRIFLAGS", "-Zmiri-disable-isolation")
            .args(["miri", "test", "--no-default-features", "--features", "sim"])
            .args(["--test", "engine", "--"])
            .args(MIRI_TESTS);
        run(&mut test)
    })
}

/// `cargo` of the nightly toolchain, which builds in a folder of its own.
fn nightly_cargo(target: &Path) -> Command {
    let mut cargo = command("rustup");
    cargo.args(["run", "nightly", "cargo"]).env("CARGO_TARGET_DIR", target);
    // `cargo xtask` has set these for another toolchain.
    for name in ["CARGO", "RUSTC", "RUSTDOC", "RUSTUP_TOOLCHAIN"] {
        cargo.env_remove(name);
    }
    cargo
}

/// The target that is this machine.
fn host() -> Result<String> {
    let version = output(command("rustc").arg("-vV"))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.ok_or("rustc names no host")?.to_owned())
}

/// `cargo test` of the package in `model/`, with a checker's locks.
fn model_test(checker: &str) -> Command {
    let mut test = cargo();
    test.env("CARGO_TARGET_DIR", paths::target().join("model"));
    test.args(["test", "--manifest-path", "model/Cargo.toml", "--features", checker]);
    test
}
