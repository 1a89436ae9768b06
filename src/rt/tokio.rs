//! tokio: timers.
//!
//! Files need no adapter: [`FileStorage`](super::FileStorage) has its own threads and works on tokio as it is.

use std::time::Duration;

use crate::timer::Timer;

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
