//! The fear: a simulator that would not notice. Each rule of writing is switched off in turn, and within the number of seeds
//! that [`WITHIN`] states a life fails.
//!
//! What is found within [`FEW`] seeds is looked for among all other tests; the rest by `cargo xtask sim --mutants`.
//! `COWSHED_SIM_MUTANT` names one that is looked for alone.

use cowshed::image::mutant::{self, Mutant};

use super::engine::Cow;
use super::seeds::live_all;
use super::workload::Plan;

/// Within how many seeds mutants are found.
const WITHIN: [(Mutant, u64); Mutant::ALL.len()] = [
    (Mutant::MappingBeforeRefcount, 20),
    (Mutant::MappingBeforeData, 20),
    (Mutant::MappingBeforeWrite, 100),
    (Mutant::L1BeforeL2, 20),
    (Mutant::RefcountTableBeforeBlock, 400),
    (Mutant::ReuseBeforeUnmapping, 20),
    (Mutant::ReuseUnderRequests, 400),
    (Mutant::ReuseBeforePunch, 400),
    (Mutant::ForgetDroppedWrites, 200),
    (Mutant::NoClaims, 20),
    (Mutant::NoTail, 20),
    (Mutant::CleanAfterFailure, 300),
    (Mutant::NoLatch, 20),
    (Mutant::FlushWithoutFlush, 20),
    (Mutant::SnapshotBeforeReferences, 100),
    (Mutant::KeepCopied, 20),
    (Mutant::BitmapsStayTrusted, 20),
];

/// A number of seeds that costs little.
const FEW: u64 = 100;

/// Looks for all of these mutants, and says which of them survive.
fn survivors(wanted: impl Fn(u64) -> bool) -> Vec<Mutant> {
    let mut survivors = Vec::new();
    let named = std::env::var("COWSHED_SIM_MUTANT").ok();
    let is_named = |mutant| named.as_ref().is_none_or(|name| *name == format!("{mutant:?}"));
    let wanted = |&(mutant, seeds): &(Mutant, u64)| wanted(seeds) && is_named(mutant);
    for (mutant, seeds) in WITHIN.into_iter().filter(wanted) {
        let (counts, failed) =
            live_all(|_| Cow, Plan::new, 0..seeds, u64::MAX, 1, || mutant::set(Some(mutant)));
        match failed.first() {
            Some(failed) => {
                let what = failed.what.lines().next().unwrap_or_default();
                let lives = counts.lives + 1;
                println!("{mutant:?} is found by seed {} after {lives} lives: {what}", failed.seed);
            }
            None => survivors.push(mutant),
        }
    }
    survivors
}

#[test]
fn rules_that_are_missed_soon() {
    let survivors = survivors(|seeds| seeds <= FEW);
    assert!(survivors.is_empty(), "{survivors:?} survive");
}

#[test]
#[ignore = "takes a minute: cargo xtask sim --mutants"]
fn each_rule_that_is_switched_off_is_missed() {
    let has = |mutant: &Mutant| WITHIN.iter().any(|(found, _)| found == mutant);
    assert!(Mutant::ALL.iter().all(has));
    let survivors = survivors(|_| true);
    assert!(survivors.is_empty(), "{survivors:?} survive");
}
