//! The protocols without one of their rules: each must be found, or the claim of the tests beside this is worth nothing.

use cowshed::cache::mutant::{self, Mutant};
use cowshed::image::mutant as image_mutant;

use crate::explore::find;
use crate::{cache, image};

/// Within so many schedules.
const CACHE_SCHEDULES_MAX: usize = 60_000;
const IMAGE_SCHEDULES_MAX: usize = 20_000;

/// Those that are not found.
#[derive(Default)]
struct Missed(Vec<String>);

impl Missed {
    /// Looks for what `set` makes.
    fn look(&mut self, name: String, schedules_max: usize, set: impl Fn(bool), protocol: fn()) {
        set(true);
        let found = find(schedules_max, protocol);
        set(false);
        println!("{name}: found in schedule {found:?}");
        if found.is_none() {
            self.0.push(name);
        }
    }

    fn cache(&mut self, mutant: Mutant, schedules_max: usize, protocol: fn()) {
        let set = |on: bool| mutant::set(on.then_some(mutant));
        self.look(format!("{mutant:?}"), schedules_max, set, protocol);
    }

    fn image(&mut self, mutant: image_mutant::Mutant, protocol: fn()) {
        let set = |on: bool| image_mutant::set(on.then_some(mutant));
        self.look(format!("{mutant:?}"), IMAGE_SCHEDULES_MAX, set, protocol);
    }
}

#[test]
fn mutants_of_the_cache_are_found() {
    let mut missed = Missed::default();
    for (mutant, protocol) in [
        (Mutant::SweepWithoutLock, cache::dirty_and_sweep as fn()),
        (Mutant::SweepDirty, cache::dirty_and_sweep),
        (Mutant::SweepPinned, cache::dirty_and_sweep),
        (Mutant::CleanThoughChanged, cache::write_back_and_modify),
        (Mutant::CleanAfterFailure, cache::two_flushers),
        (Mutant::CleanAfterFailure, cache::cancel_any),
        (Mutant::StopWithoutWake, cache::cleaner_asleep_and_close),
        (Mutant::CleanerLooksFirst, cache::cleaner_asleep_and_close),
        (Mutant::JoinLooksFirst, cache::cleaner_and_close),
        (Mutant::JoinWithoutWait, cache::cleaner_and_close),
        (Mutant::StepAfterStop, cache::cleaner_and_close),
    ] {
        missed.cache(mutant, CACHE_SCHEDULES_MAX, protocol);
    }
    assert_eq!(missed.0, [""; 0]);
}

#[test]
fn mutants_of_the_image_are_found() {
    image::prepare();
    let mut missed = Missed::default();
    missed.image(image_mutant::Mutant::NoClaims, image::halves_of_a_cluster);
    missed.image(image_mutant::Mutant::ForgetDroppedWrites, image::cancel_any);
    for mutant in [
        image_mutant::Mutant::ReconfigureUnderRequests,
        image_mutant::Mutant::ReconfigureWithoutWriteBack,
    ] {
        missed.image(mutant, image::reconfigure_and_requests);
    }
    for mutant in [Mutant::JoinWithoutWait, Mutant::StopWithoutWake] {
        missed.cache(mutant, IMAGE_SCHEDULES_MAX, image::reconfigure_and_requests);
    }
    missed.cache(Mutant::StopWithoutWake, IMAGE_SCHEDULES_MAX, image::requests_and_close);
    assert_eq!(missed.0, [""; 0]);
}
