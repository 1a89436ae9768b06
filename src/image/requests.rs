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
//! | 0 - 29 | requests of even epochs |
//! | 30 - 59 | requests of odd epochs |
//! | 60 | the epoch is odd |
//! | 62 | paused |
//! | 63 | closed |
//!
//! # Pauses
//!
//! Whoever has to be alone on the image pauses it ([`Requests::pause`]): those who come wait, those who are inside leave.
//! An operation that consists of several requests holds a [`Chore`] from its begin to its end, and its requests enter by that
//! ([`Requests::enter_by`]): it is waited for as a whole, by a pause and by the close, and waits for nobody in its midst. Who
//! holds a chore or a request must not ask for another one by the other ways: they would wait for each other.
//!
//! A write that was dropped while the storage worked on it holds its epoch on, until a flush has shown that it will not land
//! any more: see [`Request::hold`].

use super::mutant::{self, Mutant};
use crate::error::{Error, Result};
use crate::sync::{AtomicU64, AtomicUsize, Event, Mutex, Ordering};

const COUNT_BITS: u32 = 30;
const COUNT_MASK: u64 = (1 << COUNT_BITS) - 1;
const ODD: u64 = 1 << 60;
const PAUSED: u64 = 1 << 62;
const CLOSED: u64 = 1 << 63;

/// Counts requests in flight and refuses them after the close.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    state: AtomicU64,
    /// The number of the epoch; its lowest bit is [`ODD`].
    epoch: AtomicU64,
    /// Dropped writes that hold even and odd epochs on.
    held: [AtomicU64; 2],
    /// Those who work on the image without belonging to an epoch: flushes, and operations of several requests.
    chores: AtomicUsize,
    /// Held by whoever ends epochs.
    advancing: Mutex<()>,
    drained: Event,
    resumed: Event,
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

/// A pause, in which nobody is inside; dropping it lets those in who wait.
#[derive(Debug)]
pub(crate) struct Paused<'a>(&'a Requests);

/// Which kind of epoch a dropped write holds on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Held {
    odd: bool,
}

impl Requests {
    /// Lets a request in, behind a pause.
    ///
    /// # Errors
    /// [`Error::Closed`] after [`Self::close`].
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    #[inline]
    pub(crate) async fn enter(&self) -> Result<Request<'_>> {
        let unless = if mutant::is(Mutant::EnterUnderPause) { CLOSED } else { CLOSED | PAUSED };
        loop {
            if let Some(request) = self.try_enter(unless) {
                return Ok(request);
            }
            self.resumed().await?;
        }
    }

    /// Lets a request of a chore in, whatever has begun since the chore.
    #[inline]
    pub(crate) fn enter_by<'a>(&'a self, _chore: &Chore<'_>) -> Request<'a> {
        loop {
            if let Some(request) = self.try_enter(0) {
                return request;
            }
        }
    }

    #[inline]
    fn try_enter(&self, unless: u64) -> Option<Request<'_>> {
        let mut state = self.state.load(Ordering::Relaxed);
        loop {
            if state & unless != 0 {
                return None;
            }
            let odd = state & ODD != 0;
            // A count can not overflow: every request in flight holds memory.
            match self.state.compare_exchange_weak(
                state,
                state + one(odd),
                Ordering::AcqRel,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Some(Request { requests: self, odd }),
                Err(now) => state = now,
            }
        }
    }

    /// Lets somebody in, behind a pause, who must be done before the image is closed or paused and who uses no mapping, or
    /// only by requests of its own.
    ///
    /// # Errors
    /// [`Error::Closed`] after [`Self::close`].
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    #[inline]
    pub(crate) async fn enter_chore(&self) -> Result<Chore<'_>> {
        loop {
            self.chores.fetch_add(1, Ordering::SeqCst);
            let chore = Chore(self);
            if self.state.load(Ordering::SeqCst) & (CLOSED | PAUSED) == 0 {
                return Ok(chore);
            }
            drop(chore);
            self.resumed().await?;
        }
    }

    /// Waits until there is no pause.
    #[cold]
    async fn resumed(&self) -> Result<()> {
        loop {
            let listener = self.resumed.listen();
            // Looked at after listening: it may have ended in between.
            match self.state.load(Ordering::SeqCst) {
                state if state & CLOSED != 0 => return Err(Error::Closed),
                state if state & PAUSED == 0 => return Ok(()),
                _ => listener.await,
            }
        }
    }

    /// Lets nobody in any more and waits until everybody has left. One caller at a time.
    ///
    /// # Errors
    /// [`Error::Closed`] after [`Self::close`], or if that comes meanwhile.
    ///
    /// # Cancel safety
    /// Dropping the future lets everybody in again.
    pub(crate) async fn pause(&self) -> Result<Paused<'_>> {
        self.state.fetch_or(PAUSED, Ordering::SeqCst);
        let paused = Paused(self);
        loop {
            let listener = self.drained.listen();
            let state = self.state.load(Ordering::SeqCst);
            if state & CLOSED != 0 {
                return Err(Error::Closed);
            }
            let is_drained = is_empty(state) && self.chores.load(Ordering::SeqCst) == 0;
            if is_drained || mutant::is(Mutant::DrainedWithoutWait) {
                return Ok(paused);
            }
            // Cancel: the drop of `paused` ends the pause.
            listener.await;
        }
    }

    /// Refuses requests from now on and waits until the last one has left. Any number of callers may wait.
    ///
    /// # Cancel safety
    /// The image stays closed; a later call waits again.
    pub(crate) async fn close(&self) {
        self.state.fetch_or(CLOSED, Ordering::SeqCst);
        self.resumed.notify(usize::MAX);
        self.drained.notify(usize::MAX);
        loop {
            if self.is_drained() {
                return;
            }
            let listener = self.drained.listen();
            // Looked at again after listening: the last request may have left in between.
            if !mutant::is(Mutant::GateLooksFirst) && self.is_drained() {
                return;
            }
            listener.await;
        }
    }

    fn is_drained(&self) -> bool {
        let no_request = is_empty(self.state.load(Ordering::SeqCst));
        (no_request && self.chores.load(Ordering::SeqCst) == 0)
            || mutant::is(Mutant::DrainedWithoutWait)
    }

    /// The epoch now: what is unmapped now can be used by nobody once [`Self::advance`] has returned this plus 2.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::SeqCst)
    }

    /// Ends as many epochs as may end, at most two, and returns the one that is now.
    pub(crate) fn advance(&self) -> u64 {
        let _one = self.advancing.lock();
        for _ in 0..2 {
            let epoch = self.epoch.load(Ordering::SeqCst);
            let before_is_odd = epoch & 1 == 0;
            // Nobody enters an epoch that is over, and who holds it on does so before leaving: once it is seen to be empty,
            // what is held on of it can only become less.
            let left = self.state.load(Ordering::SeqCst) & (COUNT_MASK * one(before_is_odd)) == 0;
            let left = left || mutant::is(Mutant::EpochWithoutLook);
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
        let was_last = before & (CLOSED | PAUSED) != 0 && is_empty(before - one(odd));
        if was_last && !mutant::is(Mutant::LeaveWithoutWake) {
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
        if self.0.state.load(Ordering::SeqCst) & (CLOSED | PAUSED) != 0 {
            self.0.drained.notify(usize::MAX);
        }
    }
}

impl Drop for Paused<'_> {
    fn drop(&mut self) {
        self.0.state.fetch_and(!PAUSED, Ordering::SeqCst);
        self.0.resumed.notify(usize::MAX);
    }
}

/// Whether no request is in flight.
const fn is_empty(state: u64) -> bool {
    state & (COUNT_MASK | COUNT_MASK << COUNT_BITS) == 0
}

/// One request of an even or an odd epoch.
#[inline]
const fn one(odd: bool) -> u64 {
    if odd { 1 << COUNT_BITS } else { 1 }
}

#[cfg(test)]
mod tests {
    use super::{Chore, Request, Requests};
    use crate::error::Result;
    use futures::{FutureExt, pin_mut, poll};

    fn enter(requests: &Requests) -> Result<Request<'_>> {
        requests.enter().now_or_never().unwrap()
    }

    fn enter_chore(requests: &Requests) -> Result<Chore<'_>> {
        requests.enter_chore().now_or_never().unwrap()
    }

    #[test]
    fn close_waits_for_the_last_request_and_refuses_the_next() {
        let requests = Requests::default();
        let (a, b) = (enter(&requests).unwrap(), enter(&requests).unwrap());
        let chore = enter_chore(&requests).unwrap();
        futures::executor::block_on(async {
            let close = requests.close();
            pin_mut!(close);
            assert!(poll!(&mut close).is_pending());
            assert!(enter(&requests).is_err());
            assert!(enter_chore(&requests).is_err());
            drop(a);
            assert!(poll!(&mut close).is_pending());
            drop(b);
            assert!(poll!(&mut close).is_pending());
            drop(requests.enter_by(&chore));
            drop(chore);
            assert!(poll!(&mut close).is_ready());
        });
        assert!(requests.close().now_or_never().is_some());
        assert!(enter(&requests).is_err());
    }

    #[test]
    fn a_pause_waits_for_those_inside_and_makes_the_others_wait() {
        let requests = Requests::default();
        let (request, chore) = (enter(&requests).unwrap(), enter_chore(&requests).unwrap());
        futures::executor::block_on(async {
            let pause = requests.pause();
            pin_mut!(pause);
            assert!(poll!(&mut pause).is_pending());
            let (next, next_chore) = (requests.enter(), requests.enter_chore());
            pin_mut!(next, next_chore);
            assert!(poll!(&mut next).is_pending() && poll!(&mut next_chore).is_pending());
            drop(request);
            assert!(poll!(&mut pause).is_pending());
            let by = requests.enter_by(&chore);
            drop(chore);
            assert!(poll!(&mut pause).is_pending(), "its request is inside");
            drop(by);
            let paused = pause.await.unwrap();
            assert!(poll!(&mut next).is_pending() && poll!(&mut next_chore).is_pending());
            drop(paused);
            assert!(next.await.is_ok() && next_chore.await.is_ok());
        });
    }

    #[test]
    fn a_pause_that_is_given_up_lets_everybody_in() {
        let requests = Requests::default();
        let inside = enter(&requests).unwrap();
        assert!(requests.pause().now_or_never().is_none());
        assert!(enter(&requests).is_ok());
        drop(inside);
    }

    #[test]
    fn a_close_ends_those_who_wait_for_the_end_of_a_pause_and_the_wait_for_one() {
        let requests = Requests::default();
        futures::executor::block_on(async {
            let paused = requests.pause().await.unwrap();
            let next = requests.enter();
            pin_mut!(next);
            assert!(poll!(&mut next).is_pending());
            assert!(requests.close().now_or_never().is_some(), "nobody is inside");
            assert!(next.await.is_err());
            drop(paused);
            assert!(requests.pause().await.is_err());
        });
        let requests = Requests::default();
        let inside = enter(&requests).unwrap();
        futures::executor::block_on(async {
            let pause = requests.pause();
            pin_mut!(pause);
            assert!(poll!(&mut pause).is_pending());
            assert!(requests.close().now_or_never().is_none());
            assert!(pause.await.is_err());
            drop(inside);
        });
    }

    #[test]
    fn two_epochs_pass_only_when_all_earlier_requests_have_left() {
        let requests = Requests::default();
        let old = enter(&requests).unwrap();
        let unmapped = requests.epoch();
        assert_eq!(requests.advance(), unmapped + 1);
        let new = enter(&requests).unwrap();
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
