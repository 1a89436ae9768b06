//! The engine's only notion of time: something that can sleep.
//!
//! The engine needs no clock: the age of a cached table is counted in passes of the cleaner, and the pause between two
//! passes is a [`Timer::sleep`]. Adapters for runtimes are in `rt`.

use std::future::Future;
use std::time::Duration;

/// Sleeps. Like [`Storage`](crate::storage::Storage) it carries no bounds; a future of the engine that sleeps is `Send`
/// exactly when the timer's future is.
pub trait Timer {
    /// Completes after `duration` of real time that goes on while a guest is paused, or later; never earlier. Any
    /// duration is allowed, more than the platform's own timers can express included.
    ///
    /// # Cancel safety
    /// Dropping the future leaves no timer behind.
    fn sleep(&self, duration: Duration) -> impl Future<Output = ()>;
}
