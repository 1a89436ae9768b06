//! The order of writes: several pieces are read at once, and written one after the other, so that clusters are taken in the
//! order of the disk.

use std::future::poll_fn;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

/// Whose turn it is.
#[derive(Debug, Default)]
pub(super) struct Order {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    stopped: bool,
    /// Who waits for which turn.
    waiting: Vec<(u64, Waker)>,
}

impl Order {
    /// Waits until all pieces before the one with this number are done. Returns whether it is to be written: it is not when
    /// one before has failed. Nobody else may wait for the same number.
    pub(super) async fn wait_for(&self, number: u64) -> bool {
        poll_fn(|context| {
            let mut state = self.state();
            if state.stopped {
                return Poll::Ready(false);
            }
            if state.next == number {
                return Poll::Ready(true);
            }
            state.waiting.retain(|(other, _)| *other != number);
            state.waiting.push((number, context.waker().clone()));
            Poll::Pending
        })
        .await
    }

    /// The piece with this number is done: wakes whoever has the next one, and nobody else.
    pub(super) fn done(&self, number: u64) {
        let mut state = self.state();
        state.next = number + 1;
        let turn = state.waiting.iter().position(|(other, _)| *other == number + 1);
        let woken = turn.map(|index| state.waiting.swap_remove(index));
        drop(state);
        if let Some((_, waker)) = woken {
            waker.wake();
        }
    }

    /// Nothing more is to be written.
    pub(super) fn stop(&self) {
        let woken = {
            let mut state = self.state();
            state.stopped = true;
            std::mem::take(&mut state.waiting)
        };
        woken.into_iter().for_each(|(_, waker)| waker.wake());
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
