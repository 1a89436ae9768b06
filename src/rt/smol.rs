//! The smol family of crates: timers by async-io.

use std::time::Duration;

use crate::timer::Timer;

/// A timer on async-io's reactor, for any executor.
#[derive(Debug, Clone, Copy, Default)]
pub struct SmolTimer;

impl Timer for SmolTimer {
    async fn sleep(&self, duration: Duration) {
        // A duration past the end of the clock never ends, as it should.
        async_io::Timer::after(duration).await;
    }
}
