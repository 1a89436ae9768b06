//! What is in flight on a simulated disk, and how it lands. Knows neither futures nor locks.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::disk::{Disk, SECTOR_LEN};
use super::fault::{Failure, Operation, Plan};
use super::random::Random;
use super::trace::{Decision, Trace};

/// The most steps in which a write lands.
const STEPS_MAX: u64 = 4;

pub(super) struct State {
    pub(super) disk: Disk,
    pub(super) random: Random,
    pub(super) plan: Plan,
    pub(super) powered: bool,
    /// Numbers requests, and landings and the dropping of futures, in the order in which they happen.
    pub(super) last_number: u64,
    /// By request. What has landed stays until its future has heard of it.
    pub(super) in_flight: BTreeMap<u64, InFlight>,
    /// Changes, by landing, which no flush owes anything, as nobody has been told that they are complete; with the
    /// number of the moment when it became clear that nobody ever will be.
    pub(super) unacknowledged: BTreeMap<u64, Option<u64>>,
    /// How many requests there were.
    pub(super) requests: u64,
    /// The request that fails, by that count, and how.
    pub(super) named: Option<(u64, Failure)>,
    /// What makes the disk longer than this fails.
    pub(super) capacity: u64,
    pub(super) flushes_failed: u64,
    /// A flush has failed whose future was dropped before it could say so: the next one says it.
    pub(super) unheard: bool,
}

pub(super) struct InFlight {
    pub(super) operation: Operation,
    /// What has not landed yet.
    pub(super) steps: Vec<Step>,
    pub(super) fault: Option<Failure>,
    /// The landings.
    pub(super) landed: Vec<u64>,
    /// When the future was dropped.
    pub(super) dropped: Option<u64>,
}

/// A part of a change that lands at one moment.
pub(super) struct Step {
    pub(super) due: Duration,
    pub(super) change: Change,
}

pub(super) enum Change {
    Write { offset: u64, bytes: Vec<u8> },
    Zero { offset: u64, len: u64 },
    Discard { offset: u64, len: u64 },
    SetLen { len: u64 },
    Flush { asked: u64, unacknowledged: BTreeSet<u64> },
}

/// Whether a change takes effect in all its sectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Whole,
    Torn,
}

impl State {
    pub(super) fn new_number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    /// The steps of a change that is complete at `due`.
    pub(super) fn steps(&mut self, change: Change, now: Duration, due: Duration) -> Vec<Step> {
        let Change::Write { offset, bytes } = change else { return vec![Step { due, change }] };
        let sector = SECTOR_LEN as u64;
        let first = offset / sector + 1;
        let last = (offset + bytes.len() as u64).div_ceil(sector);
        if last <= first || !self.plan.is_split(&mut self.random) {
            return vec![Step { due, change: Change::Write { offset, bytes } }];
        }
        let random = &mut self.random;
        let cuts = 1 + random.below(STEPS_MAX - 1);
        let cuts: BTreeSet<u64> =
            (0..cuts).map(|_| (first + random.below(last - first)) * sector).collect();
        let wait = u64::try_from((due - now).as_nanos()).unwrap_or(u64::MAX);
        let mut steps = Vec::new();
        let mut rest = bytes;
        for cut in cuts.into_iter().rev() {
            // OK to cast: below the length of a buffer.
            #[allow(clippy::cast_possible_truncation)]
            let bytes = rest.split_off((cut - offset) as usize);
            let due = now + Duration::from_nanos(random.below(wait.max(1)));
            steps.push(Step { due, change: Change::Write { offset: cut, bytes } });
        }
        steps.push(Step { due, change: Change::Write { offset, bytes: rest } });
        steps
    }

    /// Lets everything land that is due, in the order of time.
    pub(super) fn settle(&mut self, now: Duration, trace: &Trace) {
        while let Some((id, step)) = self.powered.then(|| self.next_due(now)).flatten() {
            self.land(id, step, Fate::Whole, trace);
        }
    }

    fn next_due(&self, now: Duration) -> Option<(u64, usize)> {
        let steps = self.in_flight.iter().flat_map(|(&id, request)| {
            request.steps.iter().enumerate().map(move |(index, step)| (step.due, id, index))
        });
        let (_, id, index) = steps.filter(|&(due, ..)| due <= now).min()?;
        Some((id, index))
    }

    fn land(&mut self, id: u64, step: usize, fate: Fate, trace: &Trace) {
        let Some(mut request) = self.in_flight.remove(&id) else { return };
        let number = self.new_number();
        let Step { change, .. } = request.steps.remove(step);
        trace.add(Decision::Landing, &[id, number]);
        if let Change::Flush { asked, unacknowledged } = &change {
            self.land_flush(*asked, unacknowledged, request.fault, trace);
        } else {
            let fate = if request.fault.is_some() { Fate::Torn } else { fate };
            change.apply(&mut self.disk, number, &mut self.random, fate);
            // One that failed is told so, and never that it is complete.
            let hopeless = request.dropped.or(request.fault.map(|_| number));
            self.unacknowledged.insert(number, hopeless);
        }
        if request.dropped.is_none() || !request.steps.is_empty() {
            request.landed.push(number);
            self.in_flight.insert(id, request);
        }
    }

    fn land_flush(
        &mut self,
        asked: u64,
        unacknowledged: &BTreeSet<u64>,
        fault: Option<Failure>,
        trace: &Trace,
    ) {
        self.flushes_failed += u64::from(fault.is_some());
        let covered = |change: u64| change < asked && !unacknowledged.contains(&change);
        match fault {
            None => {}
            Some(Failure::Losing) => return self.disk.lose(&covered, &mut self.random),
            Some(Failure::Io | Failure::NoSpace) => return,
        }
        // It decides on what was dropped before it was asked for.
        let before = |dropped: Option<u64>| dropped.is_some_and(|dropped| dropped < asked);
        let dropped = self.in_flight.iter().filter(|(_, it)| before(it.dropped));
        let mut dropped: Vec<u64> = dropped.map(|(&id, _)| id).collect();
        while !dropped.is_empty() {
            let id = dropped.swap_remove(self.random.index(dropped.len()));
            while let Some(request) = self.in_flight.get_mut(&id) {
                match (request.steps.len().checked_sub(1), self.random.below(3)) {
                    (Some(step), 0) => self.land(id, step, Fate::Whole, trace),
                    (Some(step), 1) => self.land(id, step, Fate::Torn, trace),
                    (Some(step), _) if step > 0 => drop(request.steps.pop()),
                    _ => drop(self.in_flight.remove(&id)),
                }
            }
        }
        self.disk.flush(&covered, &mut self.random);
        self.unacknowledged.retain(|_, &mut hopeless| !before(hopeless));
    }
}

impl Change {
    pub(super) fn apply(&self, disk: &mut Disk, number: u64, random: &mut Random, fate: Fate) {
        let torn = fate == Fate::Torn;
        match self {
            Self::Write { offset, bytes } => {
                disk.write(number, *offset, bytes, torn.then_some(random));
            }
            Self::Zero { offset, len } => disk.zero(number, *offset, *len, torn.then_some(random)),
            Self::Discard { offset, len } => disk.discard(number, *offset, *len, random, torn),
            Self::SetLen { len } => {
                if !torn || random.toss() {
                    disk.set_len(number, *len);
                }
            }
            Self::Flush { .. } => {}
        }
    }
}
