//! Sets a fresh machine up. Each part looks first whether its work is done, so that a second run costs nothing.
//!
//! Where things come from: Rust's targets and toolchains from rustup, Rust programs from Cargo at the version that
//! `Cargo.lock` or this file names, the page's packages from npm as `www/package-lock.json` names them, the rest from Debian.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process::{cargo, command, output, path_with, run, step};
use crate::{Result, paths, real_image};

/// Builds npm packages of Rust; runs tests in a browser.
const WASM_PACK: &str = "0.15.1";
/// Runs fuzz targets.
const CARGO_FUZZ: &str = "0.13.2";
/// What Vite asks for.
const NODE_MAJOR_MIN: u32 = 20;

/// Everything that any chore needs.
pub(crate) fn everything() -> Result<()> {
    image_tools()?;
    page_tools()?;
    browser()?;
    fuzz_tools().map(drop)
}

/// Installs what makes and reads images: QEMU's tools for the tests, partition and file system tools.
pub(crate) fn image_tools() -> Result<()> {
    debian_packages("tools for disk images", real_image::TOOLS)?;
    // Other tables and file systems than those of the real image.
    debian_packages("tools for test disks", &[("sfdisk", "fdisk"), ("xorriso", "xorriso")])
}

/// Installs the browser that tests run in.
pub(crate) fn browser() -> Result<()> {
    debian_packages(
        "a browser for tests",
        &[("chromium", "chromium"), ("chromedriver", "chromium-driver"), ("fc-list", "fontconfig")],
    )
}

/// Installs what builds the npm package and the page.
pub(crate) fn page_tools() -> Result<()> {
    wasm_target()?;
    wasm_bindgen()?;
    wasm_pack()?;
    node_packages()
}

/// Returns a `PATH` on which wasm-pack, the right wasm-bindgen and wasm-opt are found first.
pub(crate) fn wasm_path() -> Result<std::ffi::OsString> {
    let binaries = |installed: PathBuf| installed.join("bin");
    path_with(&[
        binaries(wasm_bindgen()?),
        binaries(wasm_pack()?),
        paths::root().join("www/node_modules/.bin"),
    ])
}

/// Installs cargo-fuzz and the nightly toolchain that it needs, and returns the folder of its binary.
pub(crate) fn fuzz_tools() -> Result<PathBuf> {
    nightly(&[])?;
    Ok(cargo_install("cargo-fuzz", CARGO_FUZZ)?.join("bin"))
}

/// Installs the nightly toolchain, and of its components those that are missing.
pub(crate) fn nightly(components: &[&str]) -> Result<()> {
    if !output(command("rustup").args(["toolchain", "list"]))?
        .lines()
        .any(|line| line.starts_with("nightly-"))
    {
        step("install the nightly toolchain", || {
            run(command("rustup").args(["toolchain", "install", "nightly", "--profile", "minimal"]))
        })?;
    }
    let list = ["component", "list", "--installed", "--toolchain", "nightly"];
    let installed = output(command("rustup").args(list))?;
    for component in components {
        // What is for one target only has its name behind it.
        let is_it = |line: &str| line == *component || line.starts_with(&format!("{component}-"));
        if !installed.lines().any(is_it) {
            step(&format!("add {component} to the nightly toolchain"), || {
                run(command("rustup").args([
                    "component",
                    "add",
                    component,
                    "--toolchain",
                    "nightly",
                ]))
            })?;
        }
    }
    Ok(())
}

/// Adds the browser's target to the toolchain in use.
pub(crate) fn wasm_target() -> Result<()> {
    const TARGET: &str = "wasm32-unknown-unknown";
    let sysroot = output(command("rustc").args(["--print", "sysroot"]))?;
    if Path::new(sysroot.trim()).join("lib/rustlib").join(TARGET).join("lib").is_dir() {
        return Ok(());
    }
    step(&format!("add the target {TARGET}"), || {
        run(command("rustup").args(["target", "add", TARGET]))
    })
}

fn wasm_bindgen() -> Result<PathBuf> {
    // Its two halves, the crate and the program, only fit each other at the same version.
    cargo_install("wasm-bindgen-cli", &locked_version("wasm-bindgen")?)
}

fn wasm_pack() -> Result<PathBuf> {
    cargo_install("wasm-pack", WASM_PACK)
}

/// Returns the version of a dependency that `Cargo.lock` holds.
fn locked_version(name: &str) -> Result<String> {
    let lock = fs::read_to_string(paths::root().join("Cargo.lock"))?;
    let wanted = format!("name = \"{name}\"");
    let mut lines = lock.lines().skip_while(|line| *line != wanted).skip(1);
    let version =
        lines.next().and_then(|line| line.strip_prefix("version = \"")?.strip_suffix('"'));
    Ok(version.ok_or_else(|| format!("Cargo.lock names no {name}"))?.to_owned())
}

/// Installs a program with Cargo into a folder of the cache, once for each version, and returns the folder.
fn cargo_install(name: &str, version: &str) -> Result<PathBuf> {
    let cache = paths::cache()?;
    let folder = cache.join(format!("{name}-{version}"));
    if fs::read_dir(folder.join("bin")).is_ok_and(|mut programs| programs.next().is_some()) {
        return Ok(folder);
    }
    step(&format!("install {name} {version} (a few minutes, once)"), || {
        fs::create_dir_all(&cache)?;
        // Renamed into place: an interrupted installation is not taken for a whole one.
        let partial = cache.join(format!(".partial-{name}-{}", std::process::id()));
        let install = |locked: &[&str]| {
            let mut install = cargo();
            install
                .args(["install", "--quiet", "--version", version, "--root"])
                .arg(&partial)
                .args(locked)
                .arg(name);
            // The program is not part of this project: its build must not land in the project's target folder.
            install.env_remove("CARGO_TARGET_DIR").current_dir(&cache);
            run(&mut install)
        };
        if install(&["--locked"]).is_err() {
            println!(
                "    the lock file of {name} names a version that the registry does not have: without it"
            );
            install(&[])?;
        }
        let _ = fs::remove_dir_all(&folder);
        Ok(fs::rename(&partial, &folder)?)
    })?;
    Ok(folder)
}

/// Installs the page's packages as its lock file names them.
fn node_packages() -> Result<()> {
    let version = output(command("node").arg("--version")).map_err(|error| {
        format!("{error}: install Node.js {NODE_MAJOR_MIN} or newer (packages nodejs and npm)")
    })?;
    let major = version
        .trim()
        .trim_start_matches('v')
        .split('.')
        .next()
        .and_then(|major| major.parse::<u32>().ok());
    if major.is_none_or(|major| major < NODE_MAJOR_MIN) {
        let version = version.trim();
        return Err(format!(
            "Node.js {version} is too old: the page needs {NODE_MAJOR_MIN} or newer"
        )
        .into());
    }
    let www = paths::root().join("www");
    let lock = www.join("package-lock.json");
    let lock = fs::read(&lock).map_err(|error| format!("{}: {error}", lock.display()))?;
    let stamp = www.join("node_modules/.installed-from");
    if fs::read(&stamp).is_ok_and(|installed| installed == lock) {
        return Ok(());
    }
    step("install the page's npm packages", || {
        run(command("npm").current_dir(&www).args([
            "ci",
            "--ignore-scripts",
            "--no-audit",
            "--no-fund",
        ]))?;
        Ok(fs::write(&stamp, &lock)?)
    })
}

/// Installs the packages of those programs that are not there.
fn debian_packages(what: &str, programs: &[(&str, &str)]) -> Result<()> {
    let mut missing: Vec<&str> = Vec::new();
    for (program, package) in programs {
        if paths::program(program).is_none() && !missing.contains(package) {
            missing.push(package);
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let packages = missing.join(" ");
    let root = output(command("id").arg("-u")).is_ok_and(|id| id.trim() == "0");
    if !root || paths::program("apt-get").is_none() {
        return Err(
            format!("{what} are missing. Install them: sudo apt-get install {packages}").into()
        );
    }
    step(&format!("install {what}: {packages}"), || {
        let apt = || {
            let mut apt: Command = command("apt-get");
            apt.env("DEBIAN_FRONTEND", "noninteractive").arg("-qq");
            apt
        };
        run(apt().arg("update"))?;
        run(apt()
            .args(["install", "--yes", "--no-install-recommends", "-o", "Dpkg::Use-Pty=0"])
            .args(&missing))
    })
}
