//! The fear: a simulator that would not notice. Each rule of writing is switched off in turn, and within some seeds a
//! life fails.

use cowshed::image::mutant::{self, Mutant};

use super::engine::Cow;
use super::seeds::live_all;
use super::workload::Plan;

/// Within how many seeds each mutant is found.
const SEEDS: u64 = 2000;

#[test]
#[ignore = "takes minutes: run it with --include-ignored"]
fn each_rule_that_is_switched_off_is_missed() {
    let mut survivors = Vec::new();
    for mutant in Mutant::ALL {
        let (counts, failed) =
            live_all(|_| Cow, Plan::new, 0..SEEDS, u64::MAX, 1, || mutant::set(Some(mutant)));
        match failed.first() {
            Some(failed) => {
                let what = failed.what.lines().next().unwrap_or_default().to_owned();
                println!(
                    "{mutant:?} is found by seed {} of {}: {what}",
                    failed.seed,
                    counts.lives + 1
                );
            }
            None => survivors.push(mutant),
        }
    }
    assert!(survivors.is_empty(), "{survivors:?} survive {SEEDS} seeds");
}
