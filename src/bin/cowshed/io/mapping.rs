//! `map` and `alloc`: what the image itself has, whatever lies below it.

use cowshed::image::{Extent, ExtentKind};

use crate::open::DiskExtents;

use super::command::Call;
use super::fault::{Fault, strerror};
use super::number::{self, SECTOR_LEN_BYTES, human_bytes};
use super::shell::{Refusal, Shell};

/// Runs `map`.
pub(super) async fn map(shell: &mut Shell<'_>) -> Result<(), Fault> {
    let image = shell.device()?.mapped();
    let size = image.virtual_size();
    let failed =
        |error| Fault::Error(format!("Failed to get allocation status: {}", strerror(&error)));
    let mut extents = image.extents(0, size).map_err(failed)?;
    // Where a run starts, and whether it is allocated.
    let mut run: Option<(u64, bool)> = None;
    loop {
        let extent = shell.wait(extents.next()).await.map_err(failed)?;
        let next = extent.as_ref().map(|extent| (extent.offset, is_allocated(extent)));
        let goes_on = run.is_some() && run.map(|run| run.1) == next.map(|next| next.1);
        if let Some((offset, allocated)) = run.filter(|_| !goes_on) {
            let len = next.map_or(size, |next| next.0) - offset;
            let word = if allocated { "    allocated" } else { "not allocated" };
            shell.say(format_args!(
                "{} ({len:#x}) bytes {word} at offset {} ({offset:#x})\n",
                human_bytes(len),
                human_bytes(offset)
            ))?;
        }
        if !goes_on {
            run = next;
        }
        if extent.is_none() {
            return Ok(());
        }
    }
}

/// Runs `alloc`.
pub(super) async fn alloc(shell: &mut Shell<'_>, call: Call) -> Result<(), Fault> {
    let mut arguments = call.arguments.iter();
    let offset = number::bytes(arguments.next().ok_or(Fault::Usage)?)?;
    let count = arguments.next().map_or(Ok(SECTOR_LEN_BYTES), |text| number::bytes(text))?;
    let image = shell.device()?.mapped();
    // Behind the end of the disk there is nothing to look at; the sum is of what could be.
    let count = count.min(image.virtual_size().saturating_sub(offset));
    let failed = |error| Refusal::Engine(error);
    let result = match count {
        0 => Ok(0),
        _ => match image.extents(offset, count) {
            Ok(mut extents) => shell.wait(allocated(&mut extents)).await.map_err(failed),
            Err(error) => Err(failed(error)),
        },
    };
    let sum = shell.check("is_allocated", result)?;
    shell.say(format_args!("{sum}/{count} bytes allocated at offset {}\n", human_bytes(offset)))
}

async fn allocated(extents: &mut DiskExtents<'_>) -> cowshed::Result<u64> {
    let mut sum = 0;
    while let Some(extent) = extents.next().await? {
        if is_allocated(&extent) {
            sum += extent.len;
        }
    }
    Ok(sum)
}

/// Whether the image itself says what is there.
pub(super) fn is_allocated(extent: &Extent) -> bool {
    extent.depth == 0 && !matches!(extent.kind, ExtentKind::Unallocated { .. })
}
