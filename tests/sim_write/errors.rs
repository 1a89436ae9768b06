//! The fear: an error at the one call that nobody has tried. Each request of each file that belongs to a disk fails once, in
//! each of several lives: what the guest asked for fails or does not, the disk keeps its promises, and the same request works
//! the second time, unless a flush has failed for good; then it works after opening the disk again.

use cowshed::sim::{Failure, Random};

use super::engine::Cow;
use super::seeds::try_live;
use super::setup::Setup;
use super::workload::{End, Looks, Plan, Tail, no_faults};

/// In how many lives.
const LIVES: u64 = 20;

fn plan(seed: u64) -> Plan {
    let random = &mut Random::new(seed);
    let mut plan = Plan::with(seed, Setup::numbered(seed), random);
    plan.faults = no_faults();
    plan.looks = Looks::Some(20, 10);
    plan.ends = vec![End::Close, End::Close];
    // Some are rebased or committed.
    plan.tails.resize(2, Tail::Nothing);
    let mut left = 12;
    plan.ops.retain_mut(|op| {
        // One after the other, and some of them afterwards.
        (op.lane, op.pause, op.polls) = (0, 0, None);
        op.phase = usize::from(left < 4);
        left -= i32::from(left > 0);
        left > 0
    });
    plan
}

#[test]
fn each_call_that_fails_leaves_the_disk_whole_and_the_request_works_the_second_time() {
    let (mut errors, mut states) = (0, 0);
    for seed in 0..LIVES {
        let clean = plan(seed);
        let (counts, _) =
            try_live(&Cow, &clean, &clean.ops).unwrap_or_else(|what| panic!("seed {seed}: {what}"));
        let calls = counts.calls.iter().enumerate();
        for (file, call) in calls.flat_map(|(file, &calls)| (0..calls).map(move |at| (file, at))) {
            // Another way in each life, so that all of them come to each kind of call.
            let failure = [Failure::Io, Failure::NoSpace, Failure::Losing]
                [usize::try_from((call + seed) % 3).unwrap()];
            let plan = Plan { named: Some((file, call, failure)), ..clean.clone() };
            match try_live(&Cow, &plan, &plan.ops) {
                Ok((counts, _)) => states += counts.states,
                Err(what) => {
                    let ops: Vec<String> = plan.ops.iter().map(|op| format!("  {op}")).collect();
                    panic!(
                        "seed {seed}, {failure:?} at call {call} of {} of file {file}: {what}\n{:?}\n{}",
                        counts.calls[file],
                        plan.setup,
                        ops.join("\n")
                    );
                }
            }
            errors += 1;
        }
    }
    println!("{errors} errors in {LIVES} lives, {states} states after a power loss");
    assert!(errors > LIVES * 20);
}
