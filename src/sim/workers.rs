//! Workers of a simulated world: jobs wait, and a task of the world runs them.

use std::fmt;
use std::future::poll_fn;
use std::task::{Poll, Waker};
use std::time::Duration;

use super::clock::Clock;
use super::random::Random;
use crate::sync::{Arc, Mutex};
use crate::timer::Timer;
use crate::workers::Workers;

/// The longest that a job waits for a processor of its own.
const WAIT_MICROS_MAX: u64 = 200;

type Job = Box<dyn FnOnce() + Send>;

/// Runs each job some virtual time after it was given, on the world's one thread, in an order that the seed decides. Made
/// by [`Executor::workers`](super::Executor::workers).
#[derive(Default)]
pub struct SimWorkers {
    jobs: Mutex<Jobs>,
}

#[derive(Default)]
struct Jobs {
    waiting: Vec<Job>,
    runner: Option<Waker>,
}

impl SimWorkers {
    /// Runs jobs for ever.
    pub(super) async fn run(self: Arc<Self>, mut random: Random, clock: Clock) {
        loop {
            poll_fn(|context| {
                let mut jobs = self.jobs.lock();
                if jobs.waiting.is_empty() {
                    jobs.runner = Some(context.waker().clone());
                    return Poll::Pending;
                }
                Poll::Ready(())
            })
            .await;
            clock.sleep(Duration::from_micros(random.below(WAIT_MICROS_MAX))).await;
            let job = {
                let mut jobs = self.jobs.lock();
                let index = random.index(jobs.waiting.len());
                jobs.waiting.swap_remove(index)
            };
            // Outside the lock: it may give the next job.
            job();
        }
    }
}

impl Workers for SimWorkers {
    fn execute(&self, job: Job) {
        let mut jobs = self.jobs.lock();
        jobs.waiting.push(job);
        let runner = jobs.runner.take();
        drop(jobs);
        if let Some(runner) = runner {
            runner.wake();
        }
    }

    fn parallelism(&self) -> usize {
        2
    }
}

impl fmt::Debug for SimWorkers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let waiting = self.jobs.lock().waiting.len();
        f.debug_struct("SimWorkers").field("waiting", &waiting).finish()
    }
}
