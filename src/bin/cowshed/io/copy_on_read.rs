//! `-C`: what a read finds below the image becomes the image's own, in whole clusters.
//!
//! Source: QEMU, block/io.c, `bdrv_co_do_copy_on_readv`.

use cowshed::image::ZeroMode;

use crate::node::{Debug, Event, IoType};
use crate::open::DiskImage;

use super::mapping::is_allocated;
use super::read::narrow;
use super::shell::{Refusal, Shell};

/// The longest part that is copied at a time, in bytes.
const PART_LEN_BYTES_MAX: u64 = 16 << 20;

/// Copies what a read of the disk finds below the image, if that was opened with `-C`. Nobody may write meanwhile: waits for
/// the requests of the background.
pub(super) async fn copied(shell: &mut Shell<'_>, offset: u64, len: u64) -> Result<(), Refusal> {
    let Some(device) = shell.device.as_ref().filter(|device| device.copies_on_read()) else {
        return Ok(());
    };
    let (image, debug) = (device.mapped(), device.debug.clone());
    shell.drain().await;
    shell.wait(copy(&image, debug.as_deref(), offset, len)).await
}

async fn copy(
    image: &DiskImage,
    debug: Option<&Debug>,
    offset: u64,
    len: u64,
) -> Result<(), Refusal> {
    let size = image.virtual_size();
    let end = offset.saturating_add(len);
    let Some(geometry) = image.geometry().filter(|_| len > 0 && end <= size) else {
        // A raw image has all of its bytes, and a read past the end fails.
        return Ok(());
    };
    let unit = geometry.subcluster_size();
    let mut at = offset / unit * unit;
    let end = end.next_multiple_of(unit).min(size);
    while at < end {
        let (is_missing, len) = run(image, at, (end - at).min(PART_LEN_BYTES_MAX)).await?;
        if is_missing {
            let mut bytes = vec![0; narrow(len)];
            image.read_at(&mut bytes, at).await?;
            if let Some(debug) = debug {
                debug.happens(Event::CorWrite).await;
                debug.may(IoType::Write, at, len).map_err(Refusal::System)?;
            }
            if bytes.iter().all(|&byte| byte == 0) {
                image.write_zeroes_at(at, len, ZeroMode::KeepSpace).await?;
            } else {
                image.write_at(&bytes, at).await?;
            }
        }
        at += len;
    }
    Ok(())
}

/// Whether the image itself has nothing at `offset`, and for how long that is so.
async fn run(image: &DiskImage, offset: u64, len: u64) -> Result<(bool, u64), Refusal> {
    let mut extents = image.extents(offset, len)?;
    let mut run: Option<(bool, u64)> = None;
    while let Some(extent) = extents.next().await? {
        let is_missing = !is_allocated(&extent);
        match &mut run {
            None => run = Some((is_missing, extent.len)),
            Some((before, sum)) if *before == is_missing => *sum += extent.len,
            Some(_) => break,
        }
    }
    Ok(run.unwrap_or((false, len)))
}
