//! The commands that move no data: `length`, `info`, `flush`, `sleep`, and what this engine has none of.

use std::time::Duration;

use cowshed::timer::Timer as _;

use crate::info;
use crate::open;

use super::command::Call;
use super::fault::Fault;
use super::number::{self, human_bytes, shown_text};
use super::shell::{Refusal, Shell};

/// Runs `length`.
pub(super) fn length(shell: &mut Shell<'_>) -> Result<(), Fault> {
    let size = shell.device()?.image.virtual_size();
    shell.say(format_args!("{}\n", human_bytes(size)))
}

/// Runs `info`.
pub(super) async fn info(shell: &mut Shell<'_>) -> Result<(), Fault> {
    let image = shell.image()?;
    let driver = shell.device()?.driver();
    if shell.device()?.is_protocol() {
        // Its format and its protocol, which are one.
        return shell.say(format_args!("format name: {driver}\nformat name: {driver}\n"));
    }
    let mut cluster_size = 0;
    let mut vm_state = 0;
    if let Some(geometry) = image.geometry() {
        cluster_size = geometry.cluster_size();
        // The VM state lies behind the last L1 entry that the disk needs.
        let covered = geometry.l2_coverage();
        vm_state = image.virtual_size().div_ceil(covered).saturating_mul(covered);
    }
    shell.say(format_args!(
        "format name: {driver}\ncluster size: {}\nvm state offset: {}\n",
        human_bytes(cluster_size),
        human_bytes(vm_state)
    ))?;
    let failed = |error| Fault::Error(open::reason(&error));
    if let Some(volume) = image.layer_storage(0).volume() {
        let specific = info::specific_of_volume(volume.header());
        return shell.say(format_args!("Format specific information:\n{}", specific.lines(1)));
    }
    let Some(header) = image.header() else { return Ok(()) };
    let bitmaps = match header.bitmaps() {
        Some(_) => shell.wait(image.load_bitmaps()).await.map_err(failed)?,
        None => Vec::new(),
    };
    let luks = shell.wait(image.load_luks_header()).await.map_err(failed)?;
    let specific = info::specific(&header, &bitmaps, luks.as_ref());
    shell.say(format_args!("Format specific information:\n{}", specific.lines(1)))
}

/// Runs `flush`.
pub(super) async fn flush(shell: &mut Shell<'_>) -> Result<(), Fault> {
    let device = shell.device()?;
    if device.no_flush || device.read_only {
        return Ok(());
    }
    let image = shell.image()?;
    let result = shell.wait(image.flush()).await.map_err(Refusal::from);
    // QEMU says nothing; but who asked for a flush wants to know.
    shell.check("flush", result)
}

/// Runs `sleep`.
pub(super) async fn sleep(shell: &mut Shell<'_>, call: &Call) -> Result<(), Fault> {
    let text = call.arguments.first().map(|text| text.to_string_lossy()).unwrap_or_default();
    let Some(milliseconds) = number::integer(&text).and_then(|number| u64::try_from(number).ok())
    else {
        let text = crate::escape::terminal(text.as_bytes());
        return Err(Fault::Output(format!("{text} is not a valid number")));
    };
    let timer = cowshed::rt::SmolTimer;
    shell.wait(timer.sleep(Duration::from_millis(milliseconds))).await;
    Ok(())
}

/// Runs `sigraise`: ends as the signal would end it.
pub(super) fn sigraise(shell: &mut Shell<'_>, call: &Call) -> Result<(), Fault> {
    let text = call.arguments.first().ok_or(Fault::Usage)?;
    let number = number::bytes(text)?;
    let signal = i32::try_from(number).ok().filter(|&number| number <= SIGNAL_MAX);
    let Some(signal) = signal else {
        let text = shown_text(text);
        return Err(Fault::Output(format!(
            "signal argument '{text}' is too large to be a valid signal"
        )));
    };
    shell.show()?;
    if let Some(signal) = rustix::process::Signal::from_named_raw(signal) {
        let own = rustix::process::getpid();
        rustix::process::kill_process(own, signal)
            .map_err(|error| Fault::Error(open::io_reason(&error.into())))?;
    }
    Ok(())
}

/// The largest number of a signal, as in C's `NSIG`.
const SIGNAL_MAX: i32 = 65;

/// What needs something that this engine has not.
pub(super) fn unsupported(doing: &str) -> Result<(), Fault> {
    Err(Fault::Output(format!("{doing}: Operation not supported")))
}
