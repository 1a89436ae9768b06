//! Runs the fuzz targets of `fuzz/`, for a while each.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::SystemTime;

use crate::process::{command, output, path_with, run, step};
use crate::{Result, paths, setup};

/// Runs `only`, or every target that there is, for `seconds` each.
pub(crate) fn run_for(seconds: u32, only: Option<&str>) -> Result<()> {
    let targets = build()?;
    if only.is_some_and(|only| !targets.iter().any(|target| target == only)) {
        return Err(format!("no such target; there are {}", targets.join(", ")).into());
    }
    for target in targets.iter().filter(|target| only.is_none_or(|only| only == *target)) {
        step(&format!("fuzz {target} for {seconds} s"), || run_target(target, seconds, None))?;
    }
    Ok(())
}

/// Builds every target that `fuzz/fuzz_targets` holds, and returns their names.
pub(crate) fn build() -> Result<Vec<String>> {
    step("build the fuzz targets", || run(&mut cargo_fuzz(&["build", "--release"])?))?;
    targets()
}

/// Runs a target for `seconds`; with a `seed` the same inputs come in the same order each time.
///
/// The error of a target that found something holds the input, for where nothing but what was printed can be had.
pub(crate) fn run_target(target: &str, seconds: u32, seed: Option<u32>) -> Result<()> {
    let started = SystemTime::now();
    let corpus = paths::root().join("fuzz/corpus").join(target);
    fs::create_dir_all(&corpus)?;
    let mut fuzz = cargo_fuzz(&["run", "--release", target])?;
    // The first folder takes what is found, the second is only read.
    fuzz.args([&corpus, &seeds()?]).args([
        "--",
        "-dict=fuzz/qcow2.dict",
        "-malloc_limit_mb=64",
        "-rss_limit_mb=1024",
        "-timeout=10",
        "-verbosity=0",
        "-print_funcs=0",
        "-print_final_stats=1",
        // A whole image, or some entries of a table.
        if ["image", "check_repair"].contains(&target) {
            "-max_len=98304"
        } else {
            "-max_len=4096"
        },
        &format!("-max_total_time={seconds}"),
    ]);
    if let Some(seed) = seed {
        fuzz.arg(format!("-seed={seed}"));
    }
    run(&mut fuzz).map_err(|error| match found(target, started) {
        Ok(Some(found)) => format!("{error}\n{found}").into(),
        _ => error,
    })
}

/// Says how to get the input that a target has found since `started`.
fn found(target: &str, started: SystemTime) -> Result<Option<String>> {
    for entry in fs::read_dir(paths::root().join("fuzz/artifacts").join(target))? {
        let path = entry?.path();
        if fs::metadata(&path)?.modified()? >= started {
            let mut pack = command("sh");
            let packed = output(pack.args(["-c", "gzip -9 < \"$0\" | base64 -w 0"]).arg(&path))?;
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            return Ok(Some(format!("echo {packed} | base64 -d | gunzip > {name}")));
        }
    }
    Ok(None)
}

/// `cargo fuzz` with nightly, whatever the caller's toolchain is.
fn cargo_fuzz(arguments: &[&str]) -> Result<Command> {
    let mut fuzz = command("cargo");
    fuzz.env("PATH", path_with(&[setup::fuzz_tools()?])?)
        .args(["+nightly", "fuzz"])
        .args(arguments);
    Ok(fuzz)
}

/// What the targets start from: images of every kind that are as small as they can be, by `qemu-img create -o` and
/// `qemu-io` commands. A mutation of a small file is likely to hit something.
const SEEDS: &[(&str, &str, &[&str])] = &[
    (
        "old",
        "compat=0.10,cluster_size=512",
        &["write -P 1 1k 3k", "write -c -P 2 8k 512", "discard 2k 1k"],
    ),
    (
        "small",
        "cluster_size=512,refcount_bits=1",
        &["write -P 3 0 2k", "write -z 1k 512", "write -P 4 30k 1k"],
    ),
    ("wide", "cluster_size=1k,refcount_bits=64", &["write -P 5 1k 9k", "write -z -u 4k 2k"]),
    (
        "zlib",
        "cluster_size=4k",
        &["write -c -P 6 0 4k", "write -c -P 7 8k 4k", "write -P 8 9k 512"],
    ),
    (
        "zstd",
        "cluster_size=4k,compression_type=zstd",
        &["write -c -P 9 0 4k", "write -c -P 10 4k 4k"],
    ),
    (
        "subclusters",
        "cluster_size=16k,extended_l2=on",
        &["write -P 11 1k 2k", "write -z 512 512", "discard 0 512"],
    ),
    ("metadata", "cluster_size=512,preallocation=metadata,lazy_refcounts=on", &[]),
];

/// Makes [`SEEDS`] in a folder of the target's, and returns the folder.
fn seeds() -> Result<PathBuf> {
    let folder = paths::target().join("fuzz-seeds-1");
    if folder.exists() {
        return Ok(folder);
    }
    setup::image_tools()?;
    step("make small images to start from", || {
        let partial = paths::target().join(format!(".fuzz-seeds-{}", std::process::id()));
        fs::create_dir_all(&partial)?;
        for (name, options, commands) in SEEDS {
            let image = partial.join(name);
            output(
                command("qemu-img")
                    .args(["create", "-q", "-f", "qcow2", "-o", options])
                    .arg(&image)
                    .arg("40k"),
            )?;
            let mut qemu_io = command("qemu-io");
            qemu_io.args(["-f", "qcow2", "-d", "unmap"]);
            for line in *commands {
                qemu_io.args(["-c", line]);
            }
            if !commands.is_empty() {
                output(qemu_io.arg(&image))?;
            }
            if !name.starts_with('s') {
                output(command("qemu-img").args(["snapshot", "-c", "seed"]).arg(&image))?;
            }
            if *name == "wide" {
                output(
                    command("qemu-img")
                        .args(["bitmap", "--add", "-g", "512"])
                        .arg(&image)
                        .arg("seed"),
                )?;
            }
        }
        Ok(fs::rename(&partial, &folder)?)
    })?;
    Ok(folder)
}

fn targets() -> Result<Vec<String>> {
    let mut targets = Vec::new();
    for entry in fs::read_dir(paths::root().join("fuzz/fuzz_targets"))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if let Some(target) = name.strip_suffix(".rs") {
            targets.push(target.to_owned());
        }
    }
    targets.sort();
    Ok(targets)
}
