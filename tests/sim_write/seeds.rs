//! Many lives, on as many threads as there are; and of one that fails, the fewest requests that still do.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::engine::Engine;
use super::life::{Counts, live};
use super::workload::{Op, Plan};

/// For how long a failing life is tried with fewer requests.
const MINIMISING_MAX: Duration = Duration::from_secs(15);

/// A life that failed.
#[derive(Debug)]
pub struct Failed {
    pub seed: u64,
    pub what: String,
}

/// As [`live`]; a panic is a failure too.
pub fn try_live<E: Engine>(engine: &E, plan: &Plan, ops: &[Op]) -> Result<(Counts, u64), String> {
    let lived = catch_unwind(AssertUnwindSafe(|| live(engine, plan, ops)));
    lived.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned()));
        Err(format!("panic: {}", text.unwrap_or_default()))
    })
}

/// Lives through `seeds`, in order on each thread, until `failures_max` have failed.
pub fn live_all<E: Engine>(
    engine: impl Fn(&Plan) -> E + Sync,
    plan: impl Fn(u64) -> Plan + Sync,
    seeds: std::ops::Range<u64>,
    again_one_in: u64,
    failures_max: usize,
    prepare: impl Fn() + Sync,
) -> (Counts, Vec<Failed>) {
    let next = AtomicU64::new(seeds.start);
    let stop = AtomicBool::new(false);
    let all = Mutex::new((Counts::default(), Vec::new()));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                prepare();
                while !stop.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    let plan = plan(seed);
                    let engine = engine(&plan);
                    let mut lived = try_live(&engine, &plan, &plan.ops);
                    if seed.is_multiple_of(again_one_in) {
                        let again = try_live(&engine, &plan, &plan.ops);
                        if again != lived {
                            lived = Err(format!("the same seed twice: {lived:?} and {again:?}"));
                        }
                    }
                    let mut all = all.lock().unwrap();
                    match lived {
                        Ok((counts, _)) => all.0.add(counts),
                        Err(what) => {
                            println!("seed {seed} fails: {what}");
                            all.1.push(Failed { seed, what });
                            stop.store(all.1.len() >= failures_max, Ordering::Relaxed);
                        }
                    }
                }
            });
        }
    });
    let (counts, mut failed) = all.into_inner().unwrap();
    failed.sort_by_key(|failed| failed.seed);
    (counts, failed)
}

/// Fewer requests of the plan that fail, too: by leaving out ever smaller parts of them.
pub fn minimise<E: Engine>(engine: &E, plan: &Plan) -> (Vec<Op>, String) {
    let mut ops = plan.ops.clone();
    let mut what = String::new();
    let began = Instant::now();
    let mut part = ops.len().div_ceil(2).max(1);
    // What is tried fails over and over: nobody wants to read of each.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    loop {
        let mut at = 0;
        let mut fewer = false;
        while at < ops.len() && began.elapsed() < MINIMISING_MAX {
            let mut rest = ops.clone();
            rest.drain(at..ops.len().min(at + part));
            match try_live(engine, plan, &rest) {
                Err(failure) => (ops, what, fewer) = (rest, failure, true),
                Ok(_) => at += part,
            }
        }
        if (part == 1 && !fewer) || began.elapsed() >= MINIMISING_MAX {
            break;
        }
        part = if fewer { part } else { part.div_ceil(2) };
    }
    std::panic::set_hook(hook);
    (ops, what)
}

/// Tells of a failure, with what it takes to see it again.
pub fn tell<E: Engine>(engine: &E, failed: &Failed) -> String {
    let plan = Plan::new(failed.seed);
    let (ops, what) = minimise(engine, &plan);
    let ops: Vec<String> = ops.iter().map(|op| format!("  {op}")).collect();
    format!(
        "seed {seed} fails: {}\nagain: COWSHED_SEED={seed} cargo test --all-features --test sim_write lives\n{}\n\
         {:?}\n{:?}, ends {:?} after {:?}\nwith {} of {} requests: {what}\n{}",
        failed.what,
        plan.setup,
        plan.how,
        plan.faults,
        plan.ends,
        plan.tails,
        ops.len(),
        plan.ops.len(),
        ops.join("\n"),
        seed = failed.seed,
    )
}
