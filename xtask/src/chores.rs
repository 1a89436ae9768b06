//! The chores that a newcomer meets: the demonstration and the tests.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process::{cargo, command, run, run_tests, step};
use crate::{Result, fuzz, paths, races, real_image, setup};

/// Shows an image: by the command here, by the page in a browser.
pub(crate) fn demo(image: Option<&Path>, port: u16, serve: bool) -> Result<()> {
    // Named relatively to where the person is, and used from elsewhere.
    let image = match image {
        Some(image) => {
            image.canonicalize().map_err(|error| format!("{}: {error}", image.display()))?
        }
        None => demo_image()?,
    };
    setup::page_tools()?;
    step("build the command", || run(cargo().args(["build", "--release", "--bin", "cowshed"])))?;
    package()?;
    page()?;

    let cowshed = paths::target().join("release/cowshed");
    for (verb, fails) in
        [("info", false), ("verdict", true), ("check", true), ("snapshot -l", false)]
    {
        step(&format!("cowshed {verb} {}", image.display()), || {
            let mut show = command(&cowshed);
            // A verdict or a check that finds something says so by its exit code: it is shown all the same.
            match run(show.args(verb.split(' ')).arg(&image)) {
                Err(error) if fails => {
                    println!("    {error}");
                    Ok(())
                }
                result => result,
            }
        })?;
    }
    println!(
        "\nThe command is {}: try `cowshed map`, `cowshed read` and `cowshed help`.",
        cowshed.display()
    );
    if !serve {
        return Ok(());
    }
    println!(
        "Open the address below in a browser; Ctrl-C ends it. You can drop any other image on the page.\n"
    );
    let mut server = command("node");
    server.args(["www/scripts/serve.mjs", "--port", &port.to_string(), "--image"]).arg(&image);
    run(&mut server)
}

/// Runs every test there is.
pub(crate) fn test(engine: bool, browser: bool, fuzz: bool) -> Result<()> {
    setup::image_tools()?;
    if browser {
        setup::page_tools()?;
        setup::browser()?;
    }
    if fuzz {
        setup::fuzz_tools()?;
    }
    let mut suites = Suites::default();
    if engine {
        suites.run("test the engine and the command", || {
            let mut tests = cargo();
            tests.args(["test", "--workspace", "--all-features", "--no-fail-fast"]);
            run_tests(tests.args(["--lib", "--bins"]).args(native_programs()?))
        });
        suites.run("test the documentation", || {
            run_tests(cargo().args(["test", "--workspace", "--all-features", "--doc"]))
        });
        suites.run("live in the simulator, optimised", || {
            run_tests(simulator().args(["--", "--nocapture"]))
        });
        suites.run("check the protocols of the cache and its cleaner", || races::model(None));
    }
    if browser {
        suites.run("test the engine in Chromium", wasm_tests);
        package()?;
        page()?;
        suites.run("test the page in Chromium", || {
            run_tests(command("npm").current_dir(www()).args(["test", "--silent"]))
        });
    }
    if fuzz {
        for target in fuzz::build()? {
            suites.run(&format!("fuzz {target}"), || {
                fuzz::run_target(&target, FUZZ_SECONDS, Some(FUZZ_SEED))
            });
        }
    }
    suites.end()
}

/// Lives through `seeds` seeds, from `from` on, in the simulator.
pub(crate) fn sim(seeds: u64, from: u64) -> Result<()> {
    setup::image_tools()?;
    step(&format!("live through {seeds} seeds from {from} on"), || {
        run(simulator()
            .env("COWSHED_SIM_SEEDS", seeds.to_string())
            .env("COWSHED_SIM_FROM", from.to_string())
            .args(["lives_of_disks", "--", "--nocapture"]))
    })
}

/// Switches off each rule of writing in turn, and looks whether the simulator notices.
pub(crate) fn sim_mutants() -> Result<()> {
    setup::image_tools()?;
    step("switch off each rule of writing", || {
        run(simulator().args(["each_rule", "--", "--include-ignored", "--nocapture"]))
    })
}

/// The simulator's tests of writing: fast, and with every check.
fn simulator() -> Command {
    let mut simulator = cargo();
    // No profile of its own: what it depends on is compiled as for all other tests, and found there.
    simulator
        .args([
            "test",
            "--config",
            "profile.dev.opt-level=3",
            "--config",
            "profile.dev.debug=false",
        ])
        .args(["--no-default-features", "--features", "sim,encryption", "--test", OPTIMISED]);
    simulator
}

/// The program of tests that [`simulator`] runs.
const OPTIMISED: &str = "sim_write";

/// `--test NAME` for each program of `tests/` that runs here as it is: the optimised one is compiled once, and nothing is linked
/// that is empty but in a browser.
fn native_programs() -> Result<Vec<String>> {
    let mut arguments = Vec::new();
    for entry in std::fs::read_dir(paths::root().join("tests"))? {
        let path = entry?.path();
        let is_program =
            path.extension().is_some_and(|it| it == "rs") || path.join("main.rs").exists();
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        if is_program && name != OPTIMISED && !name.starts_with("browser") {
            arguments.extend(["--test".to_owned(), name.into_owned()]);
        }
    }
    Ok(arguments)
}

/// How long each fuzz target runs among the tests.
const FUZZ_SECONDS: u32 = 10;
/// What it starts from there: the tests of a commit find the same each time. `cargo xtask fuzz` takes another each time.
const FUZZ_SEED: u32 = 1;

/// Test suites: one that fails does not keep the others from running.
#[derive(Default)]
struct Suites {
    passed: usize,
    failed: Vec<(String, String)>,
}

impl Suites {
    fn run(&mut self, what: &str, suite: impl FnOnce() -> Result<()>) {
        match step(what, suite) {
            Ok(()) => self.passed += 1,
            Err(error) => {
                println!("    FAILED: {error}");
                self.failed.push((what.to_owned(), error.to_string()));
            }
        }
    }

    fn end(self) -> Result<()> {
        println!();
        // Again, where nobody must look for it.
        for (what, error) in &self.failed {
            println!("FAILED: {what}\n{error}");
        }
        println!("suites: {} passed, {} failed", self.passed, self.failed.len());
        if self.failed.is_empty() { Ok(()) } else { Err("tests failed".into()) }
    }
}

/// The modules of the npm package: each one's name and feature.
const MODULES: [(&str, &str); 3] =
    [("cowshed", "browser"), ("full", "browser-full"), ("disk", "browser-disk")];

/// Builds the npm package into `pkg/`.
pub(crate) fn package() -> Result<()> {
    step("build the npm package", || {
        for (name, feature) in MODULES {
            run(command(wasm_pack()?).env("PATH", setup::wasm_path()?).args([
                "build",
                "--mode",
                "no-install",
                "--target",
                "web",
                "--no-pack",
                "--out-dir",
                "pkg/engine",
                "--out-name",
                name,
                "--profile",
                "web",
                "--no-default-features",
                "--features",
                feature,
            ]))?;
        }
        run(command("node").env("PATH", setup::wasm_path()?).arg("xtask/finish-package.mjs"))
    })
}

/// Builds the page into `www/dist/`.
fn page() -> Result<()> {
    step("build the page", || {
        run(command("npm").current_dir(www()).args(["run", "--silent", "build"]))
    })
}

fn wasm_tests() -> Result<()> {
    let driver = paths::program("chromedriver").ok_or("chromedriver is not installed")?;
    run_tests(
        command(wasm_pack()?)
            .env("PATH", setup::wasm_path()?)
            // In seconds; 20 are few where the machine has other work.
            .env("WASM_BINDGEN_TEST_TIMEOUT", "300")
            .args(["test", "--mode", "no-install", "--headless", "--chrome", "--chromedriver"])
            .arg(driver)
            .args(["--no-default-features", "--features", "browser"]),
    )
}

/// The demonstration image, built once for each clone and version of its builder.
fn demo_image() -> Result<PathBuf> {
    let image = paths::target().join("demo").join(format!("debian-{}.qcow2", real_image::VERSION));
    if !image.exists() {
        setup::image_tools()?;
        step("build a Debian disk to look at", || {
            Ok(real_image::build(&image, &paths::cache()?)?)
        })?;
    }
    Ok(image.canonicalize()?)
}

fn wasm_pack() -> Result<PathBuf> {
    let path = setup::wasm_path()?;
    let found = std::env::split_paths(&path)
        .map(|folder| folder.join("wasm-pack"))
        .find(|file| file.is_file());
    Ok(found.ok_or("wasm-pack is not installed")?)
}

fn www() -> PathBuf {
    paths::root().join("www")
}
