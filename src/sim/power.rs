//! Losing power: what may be left of a simulated disk.

use super::disk::Disk;
use super::state::{Change, Fate, State};
use super::storage::SimStorage;
use super::trace::Decision;

impl SimStorage {
    /// The power goes. What is left of the disk comes back as a storage without faults; this one fails every request from
    /// now on, those in flight included.
    #[must_use]
    pub fn crash(&self) -> Self {
        let left = self.crash_state();
        self.settled().powered = false;
        left
    }

    /// What would be left if the power went now, as a storage without faults. This one goes on, and may be asked again:
    /// one moment has many outcomes.
    #[must_use]
    pub fn crash_state(&self) -> Self {
        let mut state = self.settled();
        let mut random = state.random.fork();
        let mut disk = state.disk.clone();
        let mut waiting = state.waiting();
        let mut number = state.last_number;
        while !waiting.is_empty() {
            let change = waiting.swap_remove(random.index(waiting.len()));
            number += 1;
            if random.toss() {
                change.apply(&mut disk, number, &mut random, Fate::Torn);
            }
        }
        let left = disk.after_power_loss(&mut random, |sector, version| {
            self.trace.add(Decision::Crash, &[sector, version as u64]);
        });
        drop(state);
        self.left(left, random)
    }

    /// How many outcomes there are if the power goes now, as long as what is in flight lands in the order in which it was
    /// asked for.
    #[must_use]
    pub fn crash_outcomes(&self) -> u64 {
        self.settled().landed().outcomes()
    }

    /// The outcome with that number, below [`Self::crash_outcomes`], as a storage without faults. This one goes on.
    #[must_use]
    pub fn crash_outcome(&self, number: u64) -> Self {
        let mut state = self.settled();
        let left = state.landed().outcome(number);
        let random = state.random.fork();
        drop(state);
        self.left(left, random)
    }
}

impl State {
    /// What has not landed, in the order in which it was asked for.
    fn waiting(&self) -> Vec<&Change> {
        let steps = self.in_flight.values().flat_map(|request| &request.steps);
        steps.map(|step| &step.change).collect()
    }

    /// The disk if everything lands.
    fn landed(&self) -> Disk {
        let mut disk = self.disk.clone();
        let mut random = self.random.clone();
        for (change, number) in self.waiting().into_iter().zip(self.last_number + 1..) {
            change.apply(&mut disk, number, &mut random, Fate::Whole);
        }
        disk
    }
}
