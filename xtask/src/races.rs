//! What looks for races: the model checkers.

use std::process::Command;

use crate::process::{cargo, run, step};
use crate::{Result, paths};

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

/// `cargo test` of the package in `model/`, with a checker's locks.
fn model_test(checker: &str) -> Command {
    let mut test = cargo();
    test.env("CARGO_TARGET_DIR", paths::target().join("model"));
    test.args(["test", "--manifest-path", "model/Cargo.toml", "--features", checker]);
    test
}
