//! Threads for work that keeps a processor busy.

use std::collections::VecDeque;
use std::fmt;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use crate::workers::Workers;

/// A pool of threads, each started when there is work that no idle one is there for. Dropping it runs the jobs that
/// are queued and joins the threads.
pub struct ThreadWorkers {
    shared: Arc<Shared>,
    threads_max: usize,
}

struct Shared {
    state: Mutex<State>,
    work: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Box<dyn FnOnce() + Send>>,
    idle: usize,
    threads: Vec<JoinHandle<()>>,
    stopping: bool,
}

impl ThreadWorkers {
    /// As many threads as the machine runs at the same time.
    #[must_use]
    pub fn new() -> Self {
        Self::with_threads(thread::available_parallelism().map_or(1, NonZeroUsize::get))
    }

    /// At most `threads` threads, at least one.
    #[must_use]
    pub fn with_threads(threads: usize) -> Self {
        let shared = Shared { state: Mutex::default(), work: Condvar::new() };
        Self { shared: Arc::new(shared), threads_max: threads.max(1) }
    }
}

impl Default for ThreadWorkers {
    fn default() -> Self {
        Self::new()
    }
}

impl Workers for ThreadWorkers {
    fn execute(&self, job: Box<dyn FnOnce() + Send>) {
        let mut state = self.shared.state();
        state.jobs.push_back(job);
        if state.jobs.len() <= state.idle {
            drop(state);
            self.shared.work.notify_one();
            return;
        }
        if state.threads.len() < self.threads_max {
            let shared = Arc::clone(&self.shared);
            let started =
                thread::Builder::new().name("cowshed-worker".into()).spawn(move || shared.run());
            if let Ok(thread) = started {
                state.threads.push(thread);
                return;
            }
            // No thread to be had. With others the job waits its turn; alone, it runs here.
            if state.threads.is_empty() {
                let job = state.jobs.pop_back();
                drop(state);
                job.into_iter().for_each(run);
            }
        }
    }

    fn parallelism(&self) -> usize {
        self.threads_max
    }
}

impl Drop for ThreadWorkers {
    fn drop(&mut self) {
        let threads = {
            let mut state = self.shared.state();
            state.stopping = true;
            std::mem::take(&mut state.threads)
        };
        self.shared.work.notify_all();
        for thread in threads {
            // The last owner may be a job; a thread does not wait for itself, and ends after the job.
            if thread.thread().id() != thread::current().id() {
                // Jobs' panics are caught.
                let _ = thread.join();
            }
        }
    }
}

impl fmt::Debug for ThreadWorkers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ThreadWorkers")
            .field("threads_max", &self.threads_max)
            .finish_non_exhaustive()
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut state = self.state();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                drop(state);
                run(job);
                state = self.state();
            } else if state.stopping {
                return;
            } else {
                state.idle += 1;
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.idle -= 1;
            }
        }
    }
}

/// A job that panics has told whoever waits for it by dropping what it held; the thread goes on.
fn run(job: Box<dyn FnOnce() + Send>) {
    let _ = catch_unwind(AssertUnwindSafe(job));
}
