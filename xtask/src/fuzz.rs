//! Runs the fuzz targets of `fuzz/`, for a while each.

use std::fs;

use crate::process::{self, command, path_with, step};
use crate::{Result, paths, setup};

/// Runs `only`, or every target that `fuzz/fuzz_targets` holds, for `seconds` each.
pub(crate) fn run(seconds: u32, only: Option<&str>) -> Result<()> {
    let path = path_with(&[setup::fuzz_tools()?])?;
    for target in targets()? {
        if only.is_some_and(|only| only != target) {
            continue;
        }
        step(&format!("fuzz {target} for {seconds} s"), || {
            process::run(
                command("cargo")
                    .env("PATH", &path)
                    .args(["+nightly", "fuzz", "run", "--release", &target, "--"])
                    .args([
                        format!("-max_total_time={seconds}"),
                        "-malloc_limit_mb=64".into(),
                        "-rss_limit_mb=512".into(),
                        "-timeout=5".into(),
                        "-print_final_stats=1".into(),
                        "-verbosity=0".into(),
                    ]),
            )
        })?;
    }
    Ok(())
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
