//! The requests in flight on an image, and the end of them: what lets `close` refuse new ones and wait for the rest.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::sync::Event;

use crate::error::{Error, Result};

/// Set in [`Requests::state`] once the image is closed; the rest of it counts.
const CLOSED: usize = 1 << (usize::BITS - 1);

/// Counts requests in flight and refuses them after the close.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    state: AtomicUsize,
    drained: Event,
}

/// A request in flight; dropping it ends it.
pub(crate) struct Request<'a>(&'a Requests);

impl Requests {
    /// Lets a request in.
    ///
    /// # Errors
    /// [`Error::Closed`] after [`Self::close`].
    pub(crate) fn enter(&self) -> Result<Request<'_>> {
        // The count can not reach the bit: every request in flight holds memory.
        if self.state.fetch_add(1, Ordering::AcqRel) & CLOSED == 0 {
            Ok(Request(self))
        } else {
            self.leave();
            Err(Error::Closed)
        }
    }

    /// Refuses requests from now on and waits until the last one has left. Any number of callers may wait.
    ///
    /// # Cancel safety
    /// The image stays closed; a later call waits again.
    pub(crate) async fn close(&self) {
        self.state.fetch_or(CLOSED, Ordering::AcqRel);
        loop {
            if self.state.load(Ordering::Acquire) == CLOSED {
                return;
            }
            let listener = self.drained.listen();
            // Looked at again after listening: the last request may have left in between.
            if self.state.load(Ordering::Acquire) == CLOSED {
                return;
            }
            listener.await;
        }
    }

    fn leave(&self) {
        if self.state.fetch_sub(1, Ordering::AcqRel) == CLOSED | 1 {
            self.drained.notify(usize::MAX);
        }
    }
}

impl Drop for Request<'_> {
    fn drop(&mut self) {
        self.0.leave();
    }
}

#[cfg(test)]
mod tests {
    use super::Requests;
    use futures::{FutureExt, pin_mut, poll};

    #[test]
    fn close_waits_for_the_last_request_and_refuses_the_next() {
        let requests = Requests::default();
        let (a, b) = (requests.enter().unwrap(), requests.enter().unwrap());
        futures::executor::block_on(async {
            let close = requests.close();
            pin_mut!(close);
            assert!(poll!(&mut close).is_pending());
            assert!(requests.enter().is_err());
            drop(a);
            assert!(poll!(&mut close).is_pending());
            drop(b);
            assert!(poll!(&mut close).is_ready());
        });
        assert!(requests.close().now_or_never().is_some());
        assert!(requests.enter().is_err());
    }
}
