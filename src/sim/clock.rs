//! Virtual time: it starts at zero, and passes only when somebody advances it to the next timer.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::sync::{Arc, Mutex};
use crate::timer::Timer;

/// A virtual clock; clones are the same clock. An [`Executor`](super::Executor) has one and advances it.
#[derive(Clone, Default)]
pub struct Clock(Arc<Mutex<Timers>>);

#[derive(Default)]
struct Timers {
    now: Duration,
    next_id: u64,
    /// By time, then by age.
    waiting: BTreeMap<(Duration, u64), Waker>,
}

impl Clock {
    /// The time since the beginning of the world.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.0.lock().now
    }

    /// Completes when the time is `deadline`. [`Duration::MAX`] is never.
    pub fn sleep_until(&self, deadline: Duration) -> Sleep {
        let mut timers = self.0.lock();
        timers.next_id += 1;
        Sleep { clock: self.clone(), key: (deadline, timers.next_id) }
    }

    /// Lets time pass until the next timer is due and wakes who waits for it; false if there is none.
    pub fn advance(&self) -> bool {
        let mut timers = self.0.lock();
        let Some((&(now, _), _)) = timers.waiting.first_key_value() else { return false };
        timers.now = timers.now.max(now);
        let later = timers.waiting.split_off(&(now, u64::MAX));
        let due = std::mem::replace(&mut timers.waiting, later);
        drop(timers);
        for waker in due.into_values() {
            waker.wake();
        }
        true
    }
}

impl Timer for Clock {
    fn sleep(&self, duration: Duration) -> impl Future<Output = ()> {
        self.sleep_until(self.now().saturating_add(duration))
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let timers = self.0.lock();
        f.debug_struct("Clock")
            .field("now", &timers.now)
            .field("timers", &timers.waiting.len())
            .finish()
    }
}

/// Waits for a time of a [`Clock`].
#[derive(Debug)]
#[must_use = "nobody sleeps unless this is awaited"]
pub struct Sleep {
    clock: Clock,
    key: (Duration, u64),
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut timers = self.clock.0.lock();
        let deadline = self.key.0;
        if timers.now >= deadline {
            timers.waiting.remove(&self.key);
            return Poll::Ready(());
        }
        if deadline != Duration::MAX {
            timers.waiting.insert(self.key, context.waker().clone());
        }
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        let waker = self.clock.0.lock().waiting.remove(&self.key);
        // A waker may be the last owner of a task, which may sleep too: not to be dropped under the lock.
        drop(waker);
    }
}
