//! The only door to locks, events and atomics.
//!
//! Everything here can be exchanged in one place: the simulator puts seeded locks here, a model checker its own
//! types. Whoever needs another primitive adds it here and nowhere else.
//!
//! Two kinds of locks:
//! - [`Mutex`] is synchronous and a leaf: it is held for a bounded number of steps, never over an await, and nothing
//!   else is locked under it unless the order stands on the struct that owns both.
//! - [`OnceCell`] and [`Event`] are asynchronous: whoever waits on them gives its thread back. Neither reads a clock.
//!
//! # Under the simulator
//!
//! On the one thread of `sim`'s executor a [`Mutex`] is never contended, and [`OnceCell`] and [`Event`] wake in an order
//! that depends on nothing but the calls. So what is here is deterministic as it is, and the simulator needs no twins.
//!
//! That ends with the first asynchronous lock that is held across an await. Those of `async-lock` must not come in as they
//! are: natively its `Mutex` reads the wall clock under contention, to be fair to whoever has waited for half a
//! millisecond, and so does what is built on it. Whoever adds one adds with it, under the feature `sim`, a twin that
//! chooses the next holder by the world's seed, because an order in which locks are always granted hides what another
//! order shows.

use std::future::{Future, poll_fn};
use std::sync::PoisonError;
use std::task::Poll;

pub(crate) use async_lock::OnceCell;
pub(crate) use event_listener::Event;
pub(crate) use std::sync::Arc;
pub(crate) use std::sync::MutexGuard;
pub(crate) use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// A synchronous lock. A panic under it does not poison it: what it guards must be whole between any two steps.
#[derive(Debug, Default)]
pub(crate) struct Mutex<T>(std::sync::Mutex<T>);

impl<T> Mutex<T> {
    /// Guards `value`.
    pub(crate) fn new(value: T) -> Self {
        Self(std::sync::Mutex::new(value))
    }

    /// Waits for the lock on this thread. The wait is as long as the holder's section: see the module.
    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps what different threads write on different cache lines (two lines, as neighbours are fetched in pairs).
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Padded<T>(pub(crate) T);

/// Lets other tasks of the executor run.
pub(crate) fn yield_now() -> impl Future<Output = ()> {
    let mut yielded = false;
    poll_fn(move |context| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
}
