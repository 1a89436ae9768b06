//! The fear: an oracle that finds nothing because it looks at nothing. A disk without any format, whose bytes lie in a
//! file as they are, keeps every promise; each way of breaking one is found within some seeds.

use super::engine::{Flat, FlatFault};
use super::seeds::live_all;
use super::workload::{Plan, Tail, What, can_fail};

/// Within how many seeds each fault is found.
const SEEDS: u64 = 60;

fn flat(fault: Option<FlatFault>) -> impl Fn(&Plan) -> Flat {
    move |plan| Flat { cluster_size: plan.setup.cluster_size(), fault }
}

/// A life that such a disk can lead: its size is the length of its file, which is uncertain after an error, and a write
/// that was dropped makes the file longer at any time.
fn plan(seed: u64) -> Plan {
    let mut plan = Plan::new(seed);
    // It does not know that option, and nothing lies below it.
    plan.how.write_through = false;
    plan.ops.retain(|op| !matches!(op.what, What::Snapshot(..) | What::Empty));
    plan.tails.fill(Tail::Nothing);
    if can_fail(&plan.faults) || plan.ops.iter().any(|op| op.polls.is_some()) {
        plan.ops.retain(|op| op.what != What::Resize);
    }
    plan
}

#[test]
fn disk_without_format_keeps_every_promise() {
    let (counts, failed) = live_all(flat(None), plan, 0..200, 10, 1, || ());
    println!("{counts:?}");
    if let Some(failed) = failed.first() {
        panic!("seed {}: {}", failed.seed, failed.what);
    }
    assert!(counts.states > 1000 && counts.dropped > 20 && counts.failed > 10, "{counts:?}");
}

#[test]
fn each_broken_promise_is_found() {
    for fault in [
        FlatFault::NoFlush,
        FlatFault::ZeroTooFar,
        FlatFault::Shifted,
        FlatFault::RealDiscard,
        FlatFault::StaleGrowth,
        FlatFault::Early,
    ] {
        let (counts, failed) = live_all(flat(Some(fault)), plan, 0..SEEDS, u64::MAX, 1, || ());
        let failed =
            failed.first().unwrap_or_else(|| panic!("{fault:?} is not found in {SEEDS} seeds"));
        println!("{fault:?} is found by seed {} after {} lives", failed.seed, counts.lives);
    }
}
