//! The executor: one thread, a list of ready tasks, and a seed that chooses among them.
//!
//! It finds what other executors hide: tasks that rely on the order in which they are woken, tasks that nobody wakes
//! (nothing is ready and no timer is left), and tasks that go round in circles (too many steps without progress).
//!
//! A task that is woken from another thread is polled, but then the run is no function of its seed any more.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Wake, Waker};

use futures::future::LocalBoxFuture;

use super::clock::Clock;
use super::random::Random;
use super::trace::{Decision, Trace};
use super::workers::SimWorkers;
use crate::sync::{Arc, Mutex};

/// How many steps may go without progress: see [`Executor::steps_max`].
const STEPS_MAX_DEFAULT: u64 = 100_000;

/// In how many of 1000 steps time goes on although tasks are ready: a ready task may have to wait for a processor.
const EARLY_PERMILLE: u32 = 50;

/// Runs futures in an order that its seed decides, in virtual time.
pub struct Executor<'a> {
    seed: u64,
    random: RefCell<Random>,
    trace: Trace,
    clock: Clock,
    ready: Arc<Ready>,
    tasks: Rc<RefCell<Tasks<'a>>>,
    progress: Progress,
    steps_max: Cell<u64>,
}

impl<'a> Executor<'a> {
    /// The world of `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            random: RefCell::new(Random::new(seed)),
            trace: Trace::default(),
            clock: Clock::default(),
            ready: Arc::default(),
            tasks: Rc::default(),
            progress: Progress::default(),
            steps_max: Cell::new(STEPS_MAX_DEFAULT),
        }
    }

    /// The seed.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Choices for something else in this world: a stream of its own, different at each call.
    #[must_use]
    pub fn random(&self) -> Random {
        self.random.borrow_mut().fork()
    }

    /// The clock of this world.
    #[must_use]
    pub fn clock(&self) -> Clock {
        self.clock.clone()
    }

    /// The trace of this world.
    #[must_use]
    pub fn trace(&self) -> Trace {
        self.trace.clone()
    }

    /// What a task tells when it gets on with its work.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.progress.clone()
    }

    /// Sets how many polls and jumps of time in a row may come to nothing, that is without a task that ends and without
    /// [`Progress::note`]. The default is 100,000. A program that has more to do notes its progress.
    pub fn steps_max(&self, steps: u64) {
        self.steps_max.set(steps);
    }

    /// Adds a task. It makes progress while [`Self::run`] runs.
    pub fn spawn<T: 'a>(&self, future: impl Future<Output = T> + 'a) -> Task<'a, T> {
        let result = Rc::new(RefCell::new(Outcome { value: None, waiting: None }));
        let outcome = Rc::clone(&result);
        let whole = async move {
            let value = future.await;
            let waiting = {
                let mut outcome = outcome.borrow_mut();
                outcome.value = Some(value);
                outcome.waiting.take()
            };
            if let Some(waker) = waiting {
                waker.wake();
            }
        };
        let id = {
            let mut tasks = self.tasks.borrow_mut();
            let id = tasks.new_id();
            tasks.futures.insert(id, Some(Box::pin(whole)));
            id
        };
        self.ready.push(id);
        Task { id, tasks: Rc::clone(&self.tasks), result, detached: false }
    }

    /// Runs `future`, and the tasks beside it, until `future` completes. Tasks that are not done then wait for the next
    /// run.
    ///
    /// # Errors
    /// [`Stuck`], which names the seed, if nothing can go on or nothing gets on.
    pub fn run<T>(&self, future: impl Future<Output = T>) -> Result<T, Stuck> {
        match self.run_until(future, || false)? {
            Some(output) => Ok(output),
            // Nobody stops it.
            None => Err(self.stuck(Reason::Asleep)),
        }
    }

    /// As [`Self::run`], and after each poll of a task asks `stop` whether to go on: `None` if it says stop, which drops
    /// `future` where it is. A place to look at the world between any two steps, and to let its power go.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn run_until<T>(
        &self,
        future: impl Future<Output = T>,
        mut stop: impl FnMut() -> bool,
    ) -> Result<Option<T>, Stuck> {
        let mut future = pin!(future);
        let own = self.tasks.borrow_mut().new_id();
        let own_waker = self.waker(own);
        self.ready.push(own);
        self.progress.note();
        loop {
            let steps = self.progress.0.get();
            if steps >= self.steps_max.get() {
                return Err(self.stuck(Reason::Circles(steps)));
            }
            self.progress.0.set(steps + 1);
            let Some(id) = self.choose() else {
                if !self.advance() {
                    return Err(self.stuck(Reason::Asleep));
                }
                continue;
            };
            self.trace.add(Decision::Poll, &[id]);
            if id != own {
                self.poll(id);
            } else if let Poll::Ready(output) =
                future.as_mut().poll(&mut Context::from_waker(&own_waker))
            {
                return Ok(Some(output));
            }
            if stop() {
                return Ok(None);
            }
        }
    }

    /// Workers of this world: jobs become a task that runs them one by one, in any order, some time later.
    #[must_use]
    pub fn workers(&self) -> Arc<SimWorkers> {
        let workers = Arc::new(SimWorkers::default());
        let jobs = Arc::clone(&workers);
        self.spawn(jobs.run(self.random(), self.clock())).detach();
        workers
    }

    /// Takes one of the ready tasks.
    fn choose(&self) -> Option<u64> {
        let mut random = self.random.borrow_mut();
        if random.chance(EARLY_PERMILLE) {
            self.advance();
        }
        let mut ready = self.ready.0.lock();
        if ready.is_empty() {
            return None;
        }
        let index = random.index(ready.len());
        Some(ready.swap_remove(index))
    }

    fn advance(&self) -> bool {
        let advanced = self.clock.advance();
        if advanced {
            let now = self.clock.now();
            self.trace.add(Decision::Time, &[now.as_secs(), u64::from(now.subsec_nanos())]);
        }
        advanced
    }

    fn poll(&self, id: u64) {
        // Taken out, so that the task may spawn and cancel tasks, itself included.
        let Some(mut future) = self.tasks.borrow_mut().futures.get_mut(&id).and_then(Option::take)
        else {
            return;
        };
        let done = future.as_mut().poll(&mut Context::from_waker(&self.waker(id))).is_ready();
        let mut tasks = self.tasks.borrow_mut();
        if done {
            tasks.futures.remove(&id);
            self.progress.note();
        } else if let Some(place) = tasks.futures.get_mut(&id) {
            *place = Some(future);
            return;
        }
        // What a future drops may be a task of this executor.
        drop(tasks);
        drop(future);
    }

    fn waker(&self, id: u64) -> Waker {
        Waker::from(Arc::new(TaskWaker { id, ready: Arc::clone(&self.ready) }))
    }

    fn stuck(&self, reason: Reason) -> Stuck {
        let tasks = self.tasks.borrow().futures.len();
        Stuck { seed: self.seed, tasks, reason }
    }
}

impl Drop for Executor<'_> {
    fn drop(&mut self) {
        // Outside the borrow, and here although it looks like what happens anyway: a task may own the handle of another.
        let futures = std::mem::take(&mut self.tasks.borrow_mut().futures);
        drop(futures);
    }
}

impl fmt::Debug for Executor<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Executor")
            .field("seed", &self.seed)
            .field("clock", &self.clock)
            .field("trace", &self.trace)
            .finish_non_exhaustive()
    }
}

/// A task of an [`Executor`]: a future of what the task returns. Dropping it drops the task, wherever it is.
#[must_use = "a task is dropped with its handle: await it, or let it run by itself with detach"]
pub struct Task<'a, T> {
    id: u64,
    tasks: Rc<RefCell<Tasks<'a>>>,
    result: Rc<RefCell<Outcome<T>>>,
    detached: bool,
}

impl<T> Task<'_, T> {
    /// Lets the task run by itself.
    pub fn detach(mut self) {
        self.detached = true;
    }

    /// Whether it has returned.
    #[must_use]
    pub fn is_done(&self) -> bool {
        !self.tasks.borrow().futures.contains_key(&self.id)
    }
}

impl<T> Future for Task<'_, T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        let mut result = self.result.borrow_mut();
        if let Some(value) = result.value.take() {
            return Poll::Ready(value);
        }
        result.waiting = Some(context.waker().clone());
        Poll::Pending
    }
}

impl<T> Drop for Task<'_, T> {
    fn drop(&mut self) {
        if !self.detached {
            // Dropped outside the borrow: it may own tasks itself.
            let future = self.tasks.borrow_mut().futures.remove(&self.id);
            drop(future);
        }
    }
}

impl<T> fmt::Debug for Task<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Task").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Counts the steps since something was achieved; clones share the count. See [`Executor::steps_max`].
#[derive(Debug, Clone, Default)]
pub struct Progress(Rc<Cell<u64>>);

impl Progress {
    /// Says that something was achieved.
    pub fn note(&self) {
        self.0.set(0);
    }
}

/// A run came to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("seed {seed} is stuck with {tasks} tasks beside its own: {reason}")]
pub struct Stuck {
    seed: u64,
    tasks: usize,
    reason: Reason,
}

impl Stuck {
    /// The seed of the run.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.seed
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
enum Reason {
    #[error("nothing is ready, and no timer is left")]
    Asleep,
    #[error("{0} steps without progress")]
    Circles(u64),
}

/// The tasks that are not done, by the order of their making. None is where a future is being polled.
#[derive(Default)]
struct Tasks<'a> {
    last_id: u64,
    futures: BTreeMap<u64, Option<LocalBoxFuture<'a, ()>>>,
}

impl Tasks<'_> {
    fn new_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }
}

/// What a task returned, and who waits for it.
struct Outcome<T> {
    value: Option<T>,
    waiting: Option<Waker>,
}

/// The tasks to be polled, each once.
#[derive(Default)]
struct Ready(Mutex<Vec<u64>>);

impl Ready {
    fn push(&self, id: u64) {
        let mut ready = self.0.lock();
        if !ready.contains(&id) {
            ready.push(id);
        }
    }
}

struct TaskWaker {
    id: u64,
    ready: Arc<Ready>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.ready.push(self.id);
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.ready.push(self.id);
    }
}
