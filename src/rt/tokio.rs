//! tokio: images on its runtimes, and its timers.
//!
//! Files need no adapter: [`DiskStorage`](super::DiskStorage) works on tokio as it is.

use std::time::Duration;

use crate::error::Result;
use crate::image::{Gate, Image, OpenOptions, Settings, Source};
use crate::storage::Storage;
use crate::timer::Timer;

/// Opens an image as [`Image::open`] does and runs its cleaner on the tokio runtime that polls this, where it ends when
/// the image is closed or dropped.
///
/// # Errors
/// As [`Image::open`].
///
/// # Panics
/// Outside of a tokio runtime, or in one whose time driver is not enabled.
///
/// # Cancel safety
/// As [`Image::open`].
pub async fn open_on_tokio<S: Storage, G: Gate<Storage = S>>(
    source: Source<S>,
    gate: &G,
    options: OpenOptions,
) -> Result<Image<S>> {
    let opened = Image::open(source, gate, options).await?;
    if let Some(cleaner) = opened.cleaner {
        drop(tokio::spawn(cleaner.run(TokioTimer)));
    }
    Ok(opened.image)
}

/// Changes the settings of an image as [`Image::reconfigure`] does and runs the cleaner that follows on the tokio runtime
/// that polls this.
///
/// # Errors
/// As [`Image::reconfigure`].
///
/// # Panics
/// As [`open_on_tokio`].
///
/// # Cancel safety
/// As [`Image::reconfigure`].
pub async fn reconfigure_on_tokio<S: Storage>(image: &Image<S>, settings: Settings) -> Result<()> {
    if let Some(cleaner) = image.reconfigure(settings).await? {
        drop(tokio::spawn(cleaner.run(TokioTimer)));
    }
    Ok(())
}

/// A timer on the tokio runtime that polls it, which must have its time driver enabled.
#[derive(Debug, Clone, Copy, Default)]
pub struct TokioTimer;

/// The longest sleep that every timer wheel is sure to express; longer ones are slept in pieces.
const SLEEP_MAX: Duration = Duration::from_secs(365 * 24 * 60 * 60);

impl Timer for TokioTimer {
    async fn sleep(&self, duration: Duration) {
        let mut left = duration;
        loop {
            let piece = left.min(SLEEP_MAX);
            tokio::time::sleep(piece).await;
            left -= piece;
            if left.is_zero() {
                return;
            }
        }
    }
}
