//! The only door to locks, events and atomics.
//!
//! Everything here can be exchanged in one place: the simulator puts seeded locks here, a model checker its own
//! types. Whoever needs another primitive adds it here and nowhere else.
//!
//! Two kinds of locks:
//! - [`Mutex`] is synchronous and a leaf: it is held for a bounded number of steps, never over an await, and nothing
//!   else is locked under it unless the order stands on the struct that owns both.
//! - [`AsyncMutex`], [`OnceCell`] and [`Event`] are asynchronous: whoever waits on them gives its thread back. None of them
//!   reads a clock.
//!
//! # Under the simulator
//!
//! On the one thread of `sim`'s executor a [`Mutex`] is never contended, and [`OnceCell`] and [`Event`] wake in an order
//! that depends on nothing but the calls. [`AsyncMutex`] wakes everybody who waits, and whom the executor polls first is the
//! next holder: there the seed decides. So what is here is deterministic as it is, and the simulator needs no twins.
//!
//! # Under a model checker
//!
//! With the feature `shuttle` or `loom`, which the package in `model/` has and this one has not, every lock, event and atomic
//! here is the checker's or is made of its locks, in `checked.rs`: at each of them the checker decides who goes on.
//!
//! Waiting as `async-lock` itself waits would not do: natively its `Mutex` reads the wall clock under contention, to be fair
//! to whoever has waited for half a millisecond.

use std::future::{Future, poll_fn};
use std::ops::{Deref, DerefMut};
use std::sync::PoisonError;
use std::task::Poll;

#[cfg(any(feature = "shuttle", feature = "loom"))]
mod checked;

#[cfg(not(any(feature = "shuttle", feature = "loom")))]
mod native {
    pub(crate) use async_lock::{Mutex as TryMutex, MutexGuard as TryMutexGuard, OnceCell};
    pub(crate) use event_listener::Event;
    pub(crate) use std::sync::atomic::{AtomicU64, AtomicUsize};
    pub(crate) use std::sync::{Mutex, MutexGuard};
}

#[cfg(any(feature = "shuttle", feature = "loom"))]
use checked as types;
#[cfg(not(any(feature = "shuttle", feature = "loom")))]
use native as types;

pub(crate) use std::sync::Arc;
pub(crate) use std::sync::atomic::{AtomicU64 as AtomicWord, Ordering, fence};
pub(crate) use types::{AtomicU64, AtomicUsize, Event, MutexGuard, OnceCell};

/// A synchronous lock. A panic under it does not poison it: what it guards must be whole between any two steps.
#[derive(Debug, Default)]
pub(crate) struct Mutex<T>(types::Mutex<T>);

impl<T> Mutex<T> {
    /// Guards `value`.
    pub(crate) fn new(value: T) -> Self {
        Self(types::Mutex::new(value))
    }

    /// Waits for the lock on this thread. The wait is as long as the holder's section: see the module.
    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A lock that may be held over an await. Whoever waits for it and comes first gets it: there is no queue, as those who wait
/// here want the same work done, and the first of them does it for all.
#[derive(Debug, Default)]
pub(crate) struct AsyncMutex<T> {
    inner: types::TryMutex<T>,
    released: Event,
}

impl<T> AsyncMutex<T> {
    /// Waits for the lock.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub(crate) async fn lock(&self) -> AsyncMutexGuard<'_, T> {
        loop {
            if let Some(guard) = self.try_lock() {
                return guard;
            }
            let released = self.released.listen();
            // Looked at again after listening: it may have been released in between.
            if let Some(guard) = self.try_lock() {
                return guard;
            }
            released.await;
        }
    }

    /// Takes the lock if nobody has it.
    pub(crate) fn try_lock(&self) -> Option<AsyncMutexGuard<'_, T>> {
        let inner = self.inner.try_lock()?;
        Some(AsyncMutexGuard { inner: Some(inner), released: &self.released })
    }
}

/// The right to what an [`AsyncMutex`] guards.
#[derive(Debug)]
pub(crate) struct AsyncMutexGuard<'a, T> {
    /// Taken by the drop only, so that the lock is free before anybody is woken.
    inner: Option<types::TryMutexGuard<'a, T>>,
    released: &'a Event,
}

impl<T> Deref for AsyncMutexGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        // OK to unwrap: only the drop takes it.
        #[allow(clippy::unwrap_used)]
        self.inner.as_ref().unwrap()
    }
}

impl<T> DerefMut for AsyncMutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // OK to unwrap: only the drop takes it.
        #[allow(clippy::unwrap_used)]
        self.inner.as_mut().unwrap()
    }
}

impl<T> Drop for AsyncMutexGuard<'_, T> {
    fn drop(&mut self) {
        self.inner = None;
        self.released.notify(usize::MAX);
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
