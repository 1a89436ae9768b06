//! The smol family of crates: images on async-executor, timers by async-io.

use std::time::Duration;

use async_executor::Executor;

use crate::error::Result;
use crate::image::{Gate, Image, OpenOptions, Settings, Source};
use crate::storage::Storage;
use crate::timer::Timer;

/// Opens an image as [`Image::open`] does and runs its cleaner on `executor`, where it ends when the image is closed or
/// dropped.
///
/// # Errors
/// As [`Image::open`].
///
/// # Cancel safety
/// As [`Image::open`].
pub async fn open_on_executor<S: Storage, G: Gate<Storage = S>>(
    executor: &Executor<'_>,
    source: Source<S>,
    gate: &G,
    options: OpenOptions,
) -> Result<Image<S>> {
    let opened = Image::open(source, gate, options).await?;
    if let Some(cleaner) = opened.cleaner {
        executor.spawn(cleaner.run(SmolTimer)).detach();
    }
    Ok(opened.image)
}

/// Changes the settings of an image as [`Image::reconfigure`] does and runs the cleaner that follows on `executor`, whichever
/// ran the one before.
///
/// # Errors
/// As [`Image::reconfigure`].
///
/// # Cancel safety
/// As [`Image::reconfigure`].
pub async fn reconfigure_on_executor<S: Storage>(
    executor: &Executor<'_>,
    image: &Image<S>,
    settings: Settings,
) -> Result<()> {
    if let Some(cleaner) = image.reconfigure(settings).await? {
        executor.spawn(cleaner.run(SmolTimer)).detach();
    }
    Ok(())
}

/// A timer on async-io's reactor, for any executor.
#[derive(Debug, Clone, Copy, Default)]
pub struct SmolTimer;

impl Timer for SmolTimer {
    async fn sleep(&self, duration: Duration) {
        // A duration past the end of the clock never ends, as it should.
        async_io::Timer::after(duration).await;
    }
}
