//! `break`, `wait_break`, `resume`, `remove_break`: requests wait where `blkdebug` is, until they are let go on.

use super::command::Call;
use super::fault::Fault;
use super::number::shown_text;
use super::shell::Shell;

/// Runs `break`.
pub(super) fn add(shell: &mut Shell<'_>, call: &Call) -> Result<(), Fault> {
    // What waits says so by itself.
    shell.show_at_once();
    let device = shell.device()?;
    let Some(debug) = &device.debug else {
        return failed("Could not set breakpoint", "Operation not supported");
    };
    let [event, tag] = [0, 1].map(|index| text(call, index));
    match debug.add_break(&event, &tag) {
        true => Ok(()),
        false => failed("Could not set breakpoint", "No such file or directory"),
    }
}

/// Runs `remove_break`.
pub(super) fn remove(shell: &mut Shell<'_>, call: &Call) -> Result<(), Fault> {
    let tag = text(call, 0);
    let doing = format!("Could not remove breakpoint {tag}");
    let device = shell.device()?;
    match &device.debug {
        None => failed(&doing, "Operation not supported"),
        Some(debug) if debug.remove_break(&tag) => Ok(()),
        Some(_) => failed(&doing, "No such file or directory"),
    }
}

/// Runs `resume`.
pub(super) async fn resume(shell: &mut Shell<'_>, call: &Call) -> Result<(), Fault> {
    let tag = text(call, 0);
    let doing = "Could not resume request";
    let Some(debug) = shell.device()?.debug.clone() else {
        return failed(doing, "Operation not supported");
    };
    if !debug.resume(&tag) {
        return failed(doing, "No such file or directory");
    }
    // It goes on as far as it gets by itself.
    shell.start_what_can().await;
    Ok(())
}

/// Runs `wait_break`: until a request waits under the name.
pub(super) async fn wait(shell: &mut Shell<'_>, call: &Call) -> Result<(), Fault> {
    let tag = text(call, 0);
    let Some(debug) = shell.device()?.debug.clone() else {
        return Err(Fault::Error("there are no breakpoints to wait for".to_owned()));
    };
    shell.wait(debug.wait_for(&tag)).await;
    Ok(())
}

fn text(call: &Call, index: usize) -> String {
    call.arguments.get(index).map(|text| shown_text(text)).unwrap_or_default()
}

fn failed(doing: &str, why: &str) -> Result<(), Fault> {
    Err(Fault::Output(format!("{doing}: {why}")))
}
