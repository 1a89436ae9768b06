//! Runs the fuzz targets of `fuzz/`, for a while each.

use std::fs;
use std::path::PathBuf;

use crate::process::{command, output_bytes, path_with, run, step};
use crate::{Result, paths, setup};

/// Runs `only`, or every target that `fuzz/fuzz_targets` holds, for `seconds` each.
pub(crate) fn run_for(seconds: u32, only: Option<&str>) -> Result<()> {
    let path = path_with(&[setup::fuzz_tools()?])?;
    let cargo_fuzz = |arguments: &[&str]| {
        let mut fuzz = command("cargo");
        // It builds for the host with nightly, whatever the caller's toolchain is.
        fuzz.env("PATH", &path).args(["+nightly", "fuzz"]).args(arguments);
        fuzz
    };
    step("build the fuzz targets", || run(&mut cargo_fuzz(&["build", "--release"])))?;
    let seeds = seeds()?;
    let targets = targets()?;
    if only.is_some_and(|only| !targets.iter().any(|target| target == only)) {
        return Err(format!("no such target; there are {}", targets.join(", ")).into());
    }
    for target in targets.iter().filter(|target| only.is_none_or(|only| only == *target)) {
        let corpus = paths::root().join("fuzz/corpus").join(target);
        fs::create_dir_all(&corpus)?;
        step(&format!("fuzz {target} for {seconds} s"), || {
            let mut fuzz = cargo_fuzz(&["run", "--release", target]);
            // The first folder takes what is found, the second is only read.
            fuzz.args([&corpus, &seeds]).args([
                "--",
                "-dict=fuzz/qcow2.dict",
                "-malloc_limit_mb=64",
                "-rss_limit_mb=1024",
                "-timeout=10",
                "-verbosity=0",
                "-print_final_stats=1",
                // A whole image, or some entries of a table.
                if target == "image" { "-max_len=65536" } else { "-max_len=4096" },
                &format!("-max_total_time={seconds}"),
            ]);
            run(&mut fuzz)
        })?;
    }
    Ok(())
}

/// Small images of many kinds, for the targets to start from.
fn seeds() -> Result<PathBuf> {
    let seeds = paths::target().join("fuzz-seeds");
    fs::create_dir_all(&seeds)?;
    for entry in fs::read_dir(paths::root().join("tests/browser_images"))? {
        let path = entry?.path();
        let name = path.file_stem().unwrap_or_default();
        if path.to_string_lossy().ends_with(".qcow2.gz") {
            fs::write(seeds.join(name), output_bytes(command("gzip").arg("-dc").arg(&path))?)?;
        }
    }
    Ok(seeds)
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
