//! The turnstile: changes of the disk's contents go through it side by side, a change of its layout goes alone.

use super::mutant::{self, Mutant};
use crate::sync::{AtomicUsize, Event, Ordering};

/// Set while somebody wants to be alone, or is.
const ALONE: usize = 1 << (usize::BITS - 1);

/// Lets any number pass, or one alone.
#[derive(Debug, Default)]
pub(crate) struct Turnstile {
    state: AtomicUsize,
    changed: Event,
}

/// One of those who pass side by side; dropping it leaves.
#[derive(Debug)]
pub(crate) struct Passing<'a>(&'a Turnstile);

/// The one who is alone; dropping it opens the turnstile.
#[derive(Debug)]
pub(crate) struct Alone<'a>(&'a Turnstile);

impl Turnstile {
    /// Waits until nobody is alone or wants to be.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub(crate) async fn pass(&self) -> Passing<'_> {
        loop {
            let mut state = self.state.load(Ordering::SeqCst);
            // Who may not pass does not count itself either: it would have to wake the others when it takes that back, and two
            // who wait would wake each other without an end.
            while state & ALONE == 0 || mutant::is(Mutant::PassUnderAlone) {
                // The count can not reach the bit: everybody who passes holds memory.
                let (before, order) = (state, Ordering::SeqCst);
                match self.state.compare_exchange_weak(before, before + 1, order, order) {
                    Ok(_) => return Passing(self),
                    Err(now) => state = now,
                }
            }
            let changed = self.changed.listen();
            // Looked at again after listening: it may have been opened in between.
            if mutant::is(Mutant::GateLooksFirst) || self.state.load(Ordering::SeqCst) & ALONE != 0
            {
                changed.await;
            }
        }
    }

    /// Waits until everybody else has left, letting in nobody new.
    ///
    /// # Cancel safety
    /// Dropping the future opens the turnstile.
    pub(crate) async fn alone(&self) -> Alone<'_> {
        loop {
            if self.state.fetch_or(ALONE, Ordering::SeqCst) & ALONE == 0 {
                break;
            }
            let changed = self.changed.listen();
            if self.state.load(Ordering::SeqCst) & ALONE != 0 {
                changed.await;
            }
        }
        let alone = Alone(self);
        loop {
            let changed = self.changed.listen();
            let is_alone = self.state.load(Ordering::SeqCst) == ALONE;
            if is_alone || mutant::is(Mutant::AloneWithoutWait) {
                return alone;
            }
            // Cancel: the drop of `alone` opens the turnstile.
            changed.await;
        }
    }
}

impl Drop for Passing<'_> {
    fn drop(&mut self) {
        if self.0.state.fetch_sub(1, Ordering::SeqCst) & ALONE != 0 {
            self.0.changed.notify(usize::MAX);
        }
    }
}

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        self.0.state.fetch_and(!ALONE, Ordering::SeqCst);
        self.0.changed.notify(usize::MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::Turnstile;
    use futures::{FutureExt, pin_mut, poll};
    use std::future::Future;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::task::{Context, Wake};

    #[test]
    fn one_alone_waits_for_those_inside_and_keeps_the_others_out() {
        let turnstile = Turnstile::default();
        let inside = turnstile.pass().now_or_never().unwrap();
        futures::executor::block_on(async {
            let alone = turnstile.alone();
            pin_mut!(alone);
            assert!(poll!(&mut alone).is_pending());
            assert!(turnstile.pass().now_or_never().is_none());
            drop(inside);
            let alone = alone.await;
            assert!(turnstile.pass().now_or_never().is_none());
            assert!(turnstile.alone().now_or_never().is_none());
            drop(alone);
        });
        assert!(turnstile.pass().now_or_never().is_some());
        assert!(turnstile.alone().now_or_never().is_some());
    }

    /// Otherwise two who wait would poll each other for as long as somebody is alone.
    #[test]
    fn those_who_wait_do_not_wake_each_other() {
        struct Woken(AtomicBool);
        impl Wake for Woken {
            fn wake(self: Arc<Self>) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let turnstile = Turnstile::default();
        let alone = turnstile.alone().now_or_never().unwrap();
        let woken = Arc::new(Woken(AtomicBool::new(false)));
        let waker = Arc::clone(&woken).into();
        let (first, second) = (turnstile.pass(), turnstile.pass());
        pin_mut!(first, second);
        assert!(first.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        assert!(second.now_or_never().is_none());
        assert!(!woken.0.load(Ordering::Relaxed), "woken though nothing has changed");
        drop(alone);
        assert!(woken.0.load(Ordering::Relaxed));
        assert!(first.now_or_never().is_some());
    }

    #[test]
    fn one_who_gives_up_being_alone_opens_the_turnstile() {
        let turnstile = Turnstile::default();
        let inside = turnstile.pass().now_or_never().unwrap();
        assert!(turnstile.alone().now_or_never().is_none());
        assert!(turnstile.pass().now_or_never().is_some());
        drop(inside);
    }
}
