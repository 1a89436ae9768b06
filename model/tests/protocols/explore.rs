//! Runs a protocol under many schedules.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use shuttle::rand::Rng;
use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
use shuttle::{Config, FailurePersistence, MaxSteps, Runner};

/// Changes of the running task that PCT places, and one.
const DEPTH: usize = 3;
const SCHEDULES_DEFAULT: usize = 4_000;
/// More steps than any schedule of a protocol that ends.
const STEPS_MAX: usize = 200_000;

/// How many schedules a protocol of the cache gets.
pub(crate) fn schedules() -> usize {
    variable("COWSHED_MODEL_SCHEDULES").map_or(SCHEDULES_DEFAULT, |number| number as usize)
}

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap())
}

/// A number below `end` that the checker chooses.
pub(crate) fn choose(end: u64) -> u64 {
    shuttle::rand::thread_rng().gen_range(0..end)
}

/// Runs `protocol` under `schedules` schedules and prints how many a second that were.
pub(crate) fn explore(name: &str, schedules: usize, protocol: impl Fn() + Send + Sync + 'static) {
    let (seed, start) = (variable("COWSHED_MODEL_SEED").unwrap_or(0), Instant::now());
    let protocol = Arc::new(protocol);
    let half = schedules.div_ceil(2);
    run(RandomScheduler::new_from_seed(seed, half), FailurePersistence::Print, &protocol);
    run(PctScheduler::new_from_seed(seed, DEPTH, half), FailurePersistence::Print, &protocol);
    let secs = start.elapsed().as_secs_f64();
    println!(
        "{name}: {} schedules in {secs:.1} s, {:.0} a second",
        2 * half,
        2.0 * half as f64 / secs
    );
}

/// How many schedules it takes to find what is wrong with `protocol`, or `None` if `schedules` do not.
pub(crate) fn find(schedules: usize, protocol: impl Fn() + Send + Sync + 'static) -> Option<u64> {
    let begun = Arc::new(AtomicU64::new(0));
    let counted = {
        let begun = Arc::clone(&begun);
        Arc::new(move || {
            begun.fetch_add(1, Ordering::Relaxed);
            protocol();
        })
    };
    let seed = variable("COWSHED_MODEL_SEED").unwrap_or(0);
    let half = schedules.div_ceil(2);
    let found = catch_unwind(AssertUnwindSafe(|| {
        run(RandomScheduler::new_from_seed(seed, half), FailurePersistence::None, &counted);
        run(PctScheduler::new_from_seed(seed, DEPTH, half), FailurePersistence::None, &counted);
    }));
    found.is_err().then(|| begun.load(Ordering::Relaxed))
}

fn run<P: Fn() + Send + Sync + 'static>(
    scheduler: impl Scheduler + 'static,
    failures: FailurePersistence,
    protocol: &Arc<P>,
) {
    let mut config = Config::new();
    config.stack_size = 256 << 10;
    config.max_steps = MaxSteps::FailAfter(STEPS_MAX);
    config.failure_persistence = failures;
    config.silence_warnings = true;
    let protocol = Arc::clone(protocol);
    Runner::new(scheduler, config).run(move || protocol());
}
