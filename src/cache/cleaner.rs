//! The cleaner: gives back the memory of what nobody uses, every so often, and ends when it is told to.
//!
//! QEMU's cleaner was a timer callback that raced with requests; then a coroutine that sleeps, takes the driver's
//! lock, passes over the caches, and is awaited by whoever closes the image. This one is a future that the caller runs
//! wherever it likes ([`Cleaner`]) and a control that stays with the image ([`CleanerControl`]).
//!
//! # Protocol
//!
//! All state is in one small lock. The cleaner works in *steps*, each a bounded, synchronous part of a pass:
//!
//! ```text
//!   control                                  cleaner
//!   -------                                  -------
//!                                            listen for a wake-up
//!   stop:  stop := true, take caches away    read the plan: stop -> exit
//!          wake                              sleep, or be woken -> read the plan again
//!   join:  listen for idle                   step: stop -> exit; else working := true, borrow caches
//!          until not working                       sweep or free a part, give caches back
//!                                                  working := false, tell idle
//! ```
//!
//! - **No wake-up is lost.** The cleaner listens before it reads the plan; whoever changes the plan does so before it
//!   wakes. So either the cleaner reads the change, or its listener is told.
//! - **After join no cleaner code touches a cache.** A step begins under the lock, and only without a stop; stop is
//!   set under the same lock and never taken back; and join waits for the step that had begun before. The caches
//!   themselves are taken out of the cleaner's reach.
//! - **Join does not hang.** It waits for a step and for nothing else, and a step awaits nothing: it ends although the
//!   cleaner's executor is gone. A cleaner that was never polled, was dropped or aborted, sleeps for ten minutes, or
//!   lies between two steps in a task that nobody polls any more is not in a step. Whether its future still exists is
//!   for whoever runs it to know.
//! - **At most one.** A control gives out a cleaner only when the one before has exited, or is stopped and not in a
//!   step.
//! - **Aborted anywhere, the caches are whole**: there is no await inside a step.
//!
//! This module must not know images, executors or clocks.

use std::pin::pin;
use std::time::Duration;

use futures::future::{Either, select};

use super::mutant::{self, Mutant};
use super::table::{Stage, TableCache};
use crate::sync::{Arc, Event, Mutex, yield_now};
use crate::timer::Timer;

/// The cleaner of an image's caches: an object for the caller to run, by [`Self::run`], wherever it likes.
///
/// An image works without a running cleaner; it then keeps what it has cached, within its budgets. Dropping the
/// cleaner, or the future that runs it, is allowed at any time.
#[derive(Debug)]
#[must_use = "a cleaner cleans only while its future is run"]
pub struct Cleaner {
    shared: Arc<Shared>,
}

impl Cleaner {
    /// Sleeps for the interval, passes over the caches, and so on, until the image is closed or dropped, or is
    /// configured without a cleaner. Completes soon after that, from whatever it is doing.
    ///
    /// A pass is without I/O; its steps take well below a millisecond each, and it yields between them.
    ///
    /// # Cancel safety
    /// Dropping the future ends the cleaner and leaves the image as it is.
    pub async fn run<T: Timer>(self, timer: T) {
        loop {
            // Before the plan is read: see the module.
            let woken = unless(Mutant::CleanerLooksFirst, || self.shared.wake.listen());
            let Some(interval) = self.shared.interval() else { return };
            let woken = woken.unwrap_or_else(|| self.shared.wake.listen());
            // Cancel: nothing has been begun.
            if let Either::Left(_) = select(woken, pin!(timer.sleep(interval))).await {
                continue;
            }
            let mut place = Some(Place::default());
            while let Some(next) = place {
                match self.shared.step(next) {
                    Step::Paused(at) => {
                        place = Some(at);
                        // Cancel: the pass ends here. What it has not looked at is a pass younger; no more.
                        yield_now().await;
                    }
                    Step::Ended => place = None,
                    Step::Stopped => return,
                }
            }
        }
    }
}

impl Drop for Cleaner {
    fn drop(&mut self) {
        self.shared.plan.lock().exited = true;
    }
}

/// What the owner of the caches has of their cleaner. Dropping it ends the cleaner, without waiting.
///
/// Locks, in order: the settings, then the plan that is shared with the cleaner.
#[derive(Debug)]
pub struct CleanerControl {
    caches: Arc<[Arc<TableCache>]>,
    settings: Mutex<Settings>,
}

#[derive(Debug)]
struct Settings {
    interval: Duration,
    /// The cleaner given out last.
    current: Option<Arc<Shared>>,
}

impl CleanerControl {
    /// The control of a cleaner for `caches`, in the order in which it is to sweep them. None runs yet. An `interval`
    /// of zero means no cleaner.
    pub fn new(caches: impl IntoIterator<Item = Arc<TableCache>>, interval: Duration) -> Self {
        Self {
            caches: caches.into_iter().collect(),
            settings: Mutex::new(Settings { interval, current: None }),
        }
    }

    /// The configured interval, whether or not a cleaner runs.
    pub fn interval(&self) -> Duration {
        self.settings.lock().interval
    }

    /// Gives out a cleaner, unless the interval is zero or the one given out before may still act: that one has to be
    /// stopped and joined, or dropped, first. This is also the way to another executor.
    pub fn start(&self) -> Option<Cleaner> {
        let mut settings = self.settings.lock();
        if settings.interval.is_zero() || settings.current.as_ref().is_some_and(|it| !it.is_over())
        {
            return None;
        }
        let shared = Arc::new(Shared {
            plan: Mutex::new(Plan {
                interval: settings.interval,
                caches: Some(Arc::clone(&self.caches)),
                stop: false,
                working: false,
                exited: false,
            }),
            wake: Event::new(),
            idle: Event::new(),
        });
        settings.current = Some(Arc::clone(&shared));
        Some(Cleaner { shared })
    }

    /// Changes the interval of the running cleaner, which then sleeps for a whole new interval, or leaves it alone if
    /// it is the same. Zero stops and joins the cleaner. From zero, or if the cleaner has been dropped, this gives out
    /// a new one, to be run.
    ///
    /// # Cancel safety
    /// The interval is set and a stop is requested when the future is polled first. Dropped while it waits for the old
    /// cleaner's last step, it gives out no new one; [`Self::start`] does.
    pub async fn set_interval(&self, interval: Duration) -> Option<Cleaner> {
        let current = {
            let mut settings = self.settings.lock();
            settings.interval = interval;
            settings.current.clone()
        };
        if let Some(current) = current {
            if !interval.is_zero() && current.set_interval(interval) {
                return None;
            }
            current.stop();
            // Cancel: see above.
            current.join().await;
        }
        self.start()
    }

    /// Sets the interval and gives out a cleaner, as [`Self::start`] does: the one before has been stopped and joined.
    pub fn start_with(&self, interval: Duration) -> Option<Cleaner> {
        self.settings.lock().interval = interval;
        self.start()
    }

    /// Asks the cleaner to exit, for good, and wakes it. Does not wait; may be called any number of times.
    pub fn stop(&self) {
        let current = self.settings.lock().current.clone();
        if let Some(current) = current {
            current.stop();
        }
    }

    /// Waits until the cleaner, which has been told to stop, can touch the caches no more. Never longer than a step of
    /// a pass takes: see the [`Cleaner`]'s module. Any number of tasks may wait.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub async fn join(&self) {
        let current = self.settings.lock().current.clone();
        if let Some(current) = current {
            current.join().await;
        }
    }
}

impl Drop for CleanerControl {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What a cleaner and its control share.
#[derive(Debug)]
struct Shared {
    plan: Mutex<Plan>,
    /// Tells the cleaner that the plan has changed.
    wake: Event,
    /// Tells those who join that a step has ended.
    idle: Event,
}

#[derive(Debug)]
struct Plan {
    interval: Duration,
    /// What to sweep; taken away by a stop.
    caches: Option<Arc<[Arc<TableCache>]>>,
    /// Never taken back.
    stop: bool,
    /// The cleaner is in a step.
    working: bool,
    /// The cleaner has been dropped, at its end or before.
    exited: bool,
}

/// Where a pass is: in which cache, and what it has to do there next.
#[derive(Debug, Clone, Copy, Default)]
struct Place {
    cache: usize,
    stage: Stage,
}

/// How a step of a pass ended.
enum Step {
    /// There is more to do, from here.
    Paused(Place),
    /// It was the last one of its pass.
    Ended,
    /// It did not begin.
    Stopped,
}

impl Shared {
    /// How long to sleep; `None` after a stop.
    fn interval(&self) -> Option<Duration> {
        let plan = self.plan.lock();
        (!plan.stop).then_some(plan.interval)
    }

    /// Changes the interval, if the cleaner is to go on.
    fn set_interval(&self, interval: Duration) -> bool {
        let mut plan = self.plan.lock();
        if plan.stop || plan.exited {
            return false;
        }
        let changed = std::mem::replace(&mut plan.interval, interval) != interval;
        drop(plan);
        if changed {
            self.wake.notify(usize::MAX);
        }
        true
    }

    /// Does a part of a pass, unless there was a stop.
    fn step(&self, place: Place) -> Step {
        let mut plan = self.plan.lock();
        let Some(caches) = plan.caches.clone() else { return Step::Stopped };
        plan.working = true;
        drop(plan);
        // Dropped in the opposite order: the caches are given back before anybody hears that the step has ended.
        let _working = Working(self);
        let caches = caches;
        let Some(cache) = caches.get(place.cache) else { return Step::Ended };
        match cache.pass_from(place.stage) {
            Some(stage) => Step::Paused(Place { stage, ..place }),
            None if place.cache + 1 < caches.len() => {
                Step::Paused(Place { cache: place.cache + 1, stage: Stage::default() })
            }
            None => Step::Ended,
        }
    }

    fn stop(&self) {
        let mut plan = self.plan.lock();
        plan.stop = true;
        let caches = unless(Mutant::StepAfterStop, || plan.caches.take());
        drop(plan);
        drop(caches);
        unless(Mutant::StopWithoutWake, || self.wake.notify(usize::MAX));
    }

    async fn join(&self) {
        loop {
            let idle = unless(Mutant::JoinLooksFirst, || self.idle.listen());
            if !self.plan.lock().working || mutant::is(Mutant::JoinWithoutWait) {
                return;
            }
            let idle = idle.unwrap_or_else(|| self.idle.listen());
            // Cancel: nothing is held.
            idle.await;
        }
    }

    /// Whether the cleaner will never act again and does not act now.
    fn is_over(&self) -> bool {
        let plan = self.plan.lock();
        plan.exited || (plan.stop && !plan.working)
    }
}

/// Does what `mutant` leaves out.
fn unless<R>(mutant: Mutant, act: impl FnOnce() -> R) -> Option<R> {
    (!mutant::is(mutant)).then(act)
}

/// A step under way; its end is its drop, so that a panic in it ends it too.
struct Working<'a>(&'a Shared);

impl Drop for Working<'_> {
    fn drop(&mut self) {
        self.0.plan.lock().working = false;
        self.0.idle.notify(usize::MAX);
    }
}
