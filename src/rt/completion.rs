//! How a request in a ring and the future that waits for it find each other, on whatever threads they are.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use event_listener::Event;

use crate::storage::Buf;

/// The place where a request's result is left.
#[derive(Debug)]
pub(super) struct Completion {
    state: Mutex<State>,
}

#[derive(Debug)]
enum State {
    Waiting(Option<Waker>),
    Done(i32, Buf),
    /// No one waits. Who counts dropped changes is told.
    Dropped(Option<Arc<DroppedChanges>>),
    Taken,
}

impl Completion {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(State::Waiting(None)) })
    }

    /// Leaves the kernel's result and the buffer.
    pub(super) fn complete(&self, result: i32, buf: Buf) {
        let before = {
            let mut state = self.state();
            match &mut *state {
                State::Waiting(_) => std::mem::replace(&mut *state, State::Done(result, buf)),
                other => std::mem::replace(other, State::Taken),
            }
        };
        match before {
            State::Waiting(Some(waker)) => waker.wake(),
            State::Dropped(Some(changes)) => changes.one_ended(),
            _ => {}
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits for a request: the kernel's result and the buffer.
#[derive(Debug)]
pub(super) struct Waiting {
    completion: Arc<Completion>,
    /// For a change: who must know if it is dropped.
    change: Option<Arc<DroppedChanges>>,
}

impl Waiting {
    pub(super) fn new(completion: Arc<Completion>, change: Option<Arc<DroppedChanges>>) -> Self {
        Self { completion, change }
    }
}

impl Future for Waiting {
    type Output = (i32, Buf);

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.completion.state();
        match std::mem::replace(&mut *state, State::Taken) {
            State::Done(result, buf) => Poll::Ready((result, buf)),
            State::Waiting(waker) => {
                let waker = match waker {
                    Some(waker) if waker.will_wake(context.waker()) => waker,
                    _ => context.waker().clone(),
                };
                *state = State::Waiting(Some(waker));
                Poll::Pending
            }
            State::Dropped(_) | State::Taken => unreachable!("polled after completion"),
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut state = self.completion.state();
        if matches!(*state, State::Waiting(_)) {
            let change = self.change.take();
            if let Some(change) = &change {
                // Under the lock, so that it is counted before it can end.
                change.count.fetch_add(1, Ordering::SeqCst);
            }
            *state = State::Dropped(change);
        }
    }
}

/// Changes whose futures were dropped and that are still in flight.
#[derive(Debug, Default)]
pub(super) struct DroppedChanges {
    count: AtomicUsize,
    ended: Event,
}

impl DroppedChanges {
    /// Waits until there is none.
    pub(super) async fn settle(&self) {
        while self.count.load(Ordering::SeqCst) > 0 {
            let ended = self.ended.listen();
            // Looks again, now that it would be told.
            if self.count.load(Ordering::SeqCst) > 0 {
                ended.await;
            }
        }
    }

    fn one_ended(&self) {
        if self.count.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.ended.notify(usize::MAX);
        }
    }
}
