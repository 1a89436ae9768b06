//! Dropping a future at its nth await: what a caller may do to any future of the engine.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;

/// Runs `future` for at most `polls` polls and then drops it; `None` if it was not done by then.
///
/// With 0 it is not polled at all. Counting up until the result is `Some` drops a future at each of its awaits in turn.
///
/// # Cancel safety
/// That of `future`.
pub async fn cut<T>(future: impl Future<Output = T>, polls: u64) -> Option<T> {
    let mut future = pin!(future);
    let mut left = polls;
    poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        match future.as_mut().poll(context) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            // Dropped at once, not when something wakes it up again.
            Poll::Pending if left == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}
