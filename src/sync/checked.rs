//! Locks, events and atomics under a model checker: the checker's own, and small ones that are made of its locks.
//!
//! `async-lock` and `event-listener` wait in ways of their own, which no checker sees. What stands here promises the callers
//! the same and no more: an event tells those who listened before it was notified, a cell lets the next one try when the
//! one who tried fails or is dropped.
//!
//! The words of slices stay std's ([`AtomicWord`](super::AtomicWord)): between two points where the checker may change its
//! thread they are read or written, not waited for, and hundreds of points for each slice would hide the others.

use std::collections::BTreeMap;
use std::future::Future;
use std::ops::{Deref, DerefMut};
use std::pin::Pin;
use std::sync::{Arc, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};

#[cfg(feature = "loom")]
pub(crate) use loom::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicU64, AtomicUsize},
};
#[cfg(not(feature = "loom"))]
pub(crate) use shuttle::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicU64, AtomicUsize},
};

use super::Ordering;

/// Tells those who listen.
#[derive(Debug, Default)]
pub(crate) struct Event {
    listeners: Arc<Mutex<Listeners>>,
}

#[derive(Debug, Default)]
struct Listeners {
    next: u64,
    /// Those who have not been told, and how to wake them if they wait.
    waiting: BTreeMap<u64, Option<Waker>>,
}

/// Completes when its event has been notified since it was made.
#[derive(Debug)]
pub(crate) struct EventListener {
    listeners: Arc<Mutex<Listeners>>,
    number: u64,
}

impl Event {
    /// An event that nobody listens to.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Listens from now on.
    pub(crate) fn listen(&self) -> EventListener {
        let mut listeners = lock(&self.listeners);
        let number = listeners.next;
        listeners.next += 1;
        listeners.waiting.insert(number, None);
        EventListener { listeners: Arc::clone(&self.listeners), number }
    }

    /// Tells everybody who listens; the engine never tells fewer.
    pub(crate) fn notify(&self, count: usize) {
        assert_eq!(count, usize::MAX, "only to all");
        let told = std::mem::take(&mut lock(&self.listeners).waiting);
        told.into_values().flatten().for_each(Waker::wake);
    }
}

impl Future for EventListener {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        match lock(&self.listeners).waiting.get_mut(&self.number) {
            Some(waker) => {
                *waker = Some(context.waker().clone());
                Poll::Pending
            }
            None => Poll::Ready(()),
        }
    }
}

impl Drop for EventListener {
    fn drop(&mut self) {
        let waker = lock(&self.listeners).waiting.remove(&self.number);
        drop(waker);
    }
}

/// A value that is made once, by one of those who want it.
#[derive(Debug, Default)]
pub(crate) struct OnceCell<T> {
    value: OnceLock<T>,
    stage: Mutex<Stage>,
    changed: Event,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Stage {
    #[default]
    Empty,
    /// Somebody makes the value.
    Making,
    Made,
}

/// Somebody who makes a value; dropping it lets others go on.
struct Making<'a, T>(&'a OnceCell<T>);

impl<T> OnceCell<T> {
    /// A cell without a value.
    pub(crate) fn new() -> Self {
        Self { value: OnceLock::new(), stage: Mutex::default(), changed: Event::new() }
    }

    /// The value, if it is made.
    pub(crate) fn get(&self) -> Option<&T> {
        self.value.get()
    }

    /// The value, which `make` makes if nobody has.
    pub(crate) async fn get_or_init<F: Future<Output = T>>(&self, make: impl FnOnce() -> F) -> &T {
        let made =
            self.get_or_try_init(|| async { Ok::<_, std::convert::Infallible>(make().await) });
        match made.await {
            Ok(value) => value,
            Err(never) => match never {},
        }
    }

    /// The value, which `make` makes if nobody has.
    pub(crate) async fn get_or_try_init<E, F: Future<Output = Result<T, E>>>(
        &self,
        make: impl FnOnce() -> F,
    ) -> Result<&T, E> {
        loop {
            let changed = self.changed.listen();
            let stage = {
                let mut stage = lock(&self.stage);
                let before = *stage;
                if before == Stage::Empty {
                    *stage = Stage::Making;
                }
                before
            };
            match stage {
                // OK to unwrap: it was made before the stage said so.
                Stage::Made => return Ok(self.value.get().expect("it is made")),
                Stage::Making => changed.await,
                Stage::Empty => break,
            }
        }
        let making = Making(self);
        let value = make().await?;
        assert!(self.value.set(value).is_ok(), "made twice");
        drop(making);
        Ok(self.value.get().expect("it is made"))
    }
}

impl<T> From<T> for OnceCell<T> {
    fn from(value: T) -> Self {
        Self { value: OnceLock::from(value), stage: Mutex::new(Stage::Made), changed: Event::new() }
    }
}

impl<T> Drop for Making<'_, T> {
    fn drop(&mut self) {
        let stage = if self.0.value.get().is_some() { Stage::Made } else { Stage::Empty };
        *lock(&self.0.stage) = stage;
        self.0.changed.notify(usize::MAX);
    }
}

/// A lock that is taken or not, never waited for.
#[derive(Debug, Default)]
pub(crate) struct TryMutex<T> {
    is_held: AtomicUsize,
    value: async_lock::Mutex<T>,
}

/// The right to what a [`TryMutex`] guards.
#[derive(Debug)]
pub(crate) struct TryMutexGuard<'a, T> {
    /// Taken by the drop only, before it says that nobody holds the lock.
    value: Option<async_lock::MutexGuard<'a, T>>,
    is_held: &'a AtomicUsize,
}

impl<T> TryMutex<T> {
    /// Takes the lock if nobody has it.
    pub(crate) fn try_lock(&self) -> Option<TryMutexGuard<'_, T>> {
        self.is_held.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).ok()?;
        Some(TryMutexGuard { value: self.value.try_lock(), is_held: &self.is_held })
    }
}

impl<T> Deref for TryMutexGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        self.value.as_ref().expect("it is held")
    }
}

impl<T> DerefMut for TryMutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.value.as_mut().expect("it is held")
    }
}

impl<T> Drop for TryMutexGuard<'_, T> {
    fn drop(&mut self) {
        self.value = None;
        self.is_held.store(0, Ordering::Release);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
