//! The requests in flight on an image: what lets `close` refuse new ones and wait for the rest, and what tells when nobody
//! can use any more what a request has seen.
//!
//! # Epochs
//!
//! Time is cut into epochs. A request belongs to the epoch in which it came; an epoch may end when every request of the one
//! before it has left. So two epochs after a host cluster was unmapped, no request that may have found it by the old
//! mapping is left, and the cluster may become somebody else's. One number holds it all, so that coming and leaving cost one
//! atomic operation each:
//!
//! | bits | meaning |
//! |---|---|
//! | 0 - 30 | requests of even epochs |
//! | 31 - 61 | requests of odd epochs |
//! | 62 | the epoch is odd |
//! | 63 | closed |
//!
//! A write that was dropped while the storage worked on it holds its epoch on, until a flush has shown that it will not land
//! any more: see [`Request::hold`].

use crate::error::{Error, Result};
use crate::sync::{AtomicU64, AtomicUsize, Event, Ordering};

const COUNT_BITS: u32 = 31;
const COUNT_MASK: u64 = (1 << COUNT_BITS) - 1;
const ODD: u64 = 1 << 62;
const CLOSED: u64 = 1 << 63;

/// Counts requests in flight and refuses them after the close.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    state: AtomicU64,
    /// The number of the epoch; its lowest bit is [`ODD`].
    epoch: AtomicU64,
    /// Dropped writes that hold even and odd epochs on.
    held: [AtomicU64; 2],
    /// Those who work on the image without belonging to an epoch: flushes.
    chores: AtomicUsize,
    drained: Event,
}

/// A request in flight; dropping it ends it.
#[derive(Debug)]
pub(crate) struct Request<'a> {
    requests: &'a Requests,
    odd: bool,
}

/// A chore in flight; dropping it ends it.
#[derive(Debug)]
pub(crate) struct Chore<'a>(&'a Requests);

/// Which kind of epoch a dropped write holds on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Held {
    odd: bool,
}

impl Requests {
    /// Lets a request in.
    ///
    /// # Errors
    /// [`Error::Closed`] after [`Self::close`].
    #[inline]
    pub(crate) fn enter(&self) -> Result<Request<'_>> {
        let mut state = self.state.load(Ordering::Relaxed);
        loop {
            if state & CLOSED != 0 {
                return Err(Error::Closed);
            }
            let odd = state & ODD != 0;
            // A count can not overflow: every request in flight holds memory.
            match self.state.compare_exchange_weak(
                state,
                state + one(odd),
                Ordering::AcqRel,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Ok(Request { requests: self, odd }),
                Err(now) => state = now,
            }
        }
    }

    /// Lets somebody in who must be done before the image is closed and who uses no mapping.
    ///
    /// # Errors
    /// [`Error::Closed`] after [`Self::close`].
    pub(crate) fn enter_chore(&self) -> Result<Chore<'_>> {
        self.chores.fetch_add(1, Ordering::SeqCst);
        let chore = Chore(self);
        if self.state.load(Ordering::SeqCst) & CLOSED == 0 { Ok(chore) } else { Err(Error::Closed) }
    }

    /// Refuses requests from now on and waits until the last one has left. Any number of callers may wait.
    ///
    /// # Cancel safety
    /// The image stays closed; a later call waits again.
    pub(crate) async fn close(&self) {
        self.state.fetch_or(CLOSED, Ordering::SeqCst);
        loop {
            if self.is_drained() {
                return;
            }
            let listener = self.drained.listen();
            // Looked at again after listening: the last request may have left in between.
            if self.is_drained() {
                return;
            }
            listener.await;
        }
    }

    fn is_drained(&self) -> bool {
        self.state.load(Ordering::SeqCst) & !ODD == CLOSED
            && self.chores.load(Ordering::SeqCst) == 0
    }

    /// The epoch now: what is unmapped now can be used by nobody once [`Self::advance`] has returned this plus 2.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::SeqCst)
    }

    /// Ends as many epochs as may end, at most two, and returns the one that is now. One caller at a time.
    pub(crate) fn advance(&self) -> u64 {
        for _ in 0..2 {
            let epoch = self.epoch.load(Ordering::SeqCst);
            let before_is_odd = epoch & 1 == 0;
            // Nobody enters an epoch that is over, and who holds it on does so before leaving: once it is seen to be empty,
            // what is held on of it can only become less.
            let left = self.state.load(Ordering::SeqCst) & (COUNT_MASK * one(before_is_odd)) == 0;
            if !left || self.held[usize::from(before_is_odd)].load(Ordering::SeqCst) != 0 {
                break;
            }
            // The number first: whoever reads it meanwhile waits longer, not shorter.
            self.epoch.fetch_add(1, Ordering::SeqCst);
            self.state.fetch_xor(ODD, Ordering::SeqCst);
        }
        self.epoch()
    }

    /// Ends what a dropped write has held on, after the flush that followed it.
    pub(crate) fn release(&self, held: Held) {
        self.held[usize::from(held.odd)].fetch_sub(1, Ordering::SeqCst);
    }

    fn leave(&self, odd: bool) {
        let before = self.state.fetch_sub(one(odd), Ordering::AcqRel);
        if (before - one(odd)) & !ODD == CLOSED {
            self.drained.notify(usize::MAX);
        }
    }
}

impl Request<'_> {
    /// Holds the request's epoch on when the request is gone, until [`Requests::release`].
    pub(crate) fn hold(&self) -> Held {
        self.requests.held[usize::from(self.odd)].fetch_add(1, Ordering::SeqCst);
        Held { odd: self.odd }
    }
}

impl Drop for Request<'_> {
    fn drop(&mut self) {
        self.requests.leave(self.odd);
    }
}

impl Drop for Chore<'_> {
    fn drop(&mut self) {
        self.0.chores.fetch_sub(1, Ordering::SeqCst);
        self.0.drained.notify(usize::MAX);
    }
}

/// One request of an even or an odd epoch.
#[inline]
const fn one(odd: bool) -> u64 {
    if odd { 1 << COUNT_BITS } else { 1 }
}

#[cfg(test)]
mod tests {
    use super::Requests;
    use futures::{FutureExt, pin_mut, poll};

    #[test]
    fn close_waits_for_the_last_request_and_refuses_the_next() {
        let requests = Requests::default();
        let (a, b) = (requests.enter().unwrap(), requests.enter().unwrap());
        let chore = requests.enter_chore().unwrap();
        futures::executor::block_on(async {
            let close = requests.close();
            pin_mut!(close);
            assert!(poll!(&mut close).is_pending());
            assert!(requests.enter().is_err());
            assert!(requests.enter_chore().is_err());
            drop(a);
            assert!(poll!(&mut close).is_pending());
            drop(b);
            assert!(poll!(&mut close).is_pending());
            drop(chore);
            assert!(poll!(&mut close).is_ready());
        });
        assert!(requests.close().now_or_never().is_some());
        assert!(requests.enter().is_err());
    }

    #[test]
    fn two_epochs_pass_only_when_all_earlier_requests_have_left() {
        let requests = Requests::default();
        let old = requests.enter().unwrap();
        let unmapped = requests.epoch();
        assert_eq!(requests.advance(), unmapped + 1);
        let new = requests.enter().unwrap();
        assert_eq!(requests.advance(), unmapped + 1, "an old request is left");
        let held = old.hold();
        drop(old);
        assert_eq!(requests.advance(), unmapped + 1, "its write may land yet");
        requests.release(held);
        assert_eq!(requests.advance(), unmapped + 2);
        assert_eq!(requests.advance(), unmapped + 2, "the new one belongs to the epoch before");
        drop(new);
        assert_eq!(requests.advance(), unmapped + 4);
    }
}
