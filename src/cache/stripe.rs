//! One stripe of the cache: some of its slots, an index over them, and the choice of what goes.
//!
//! Everything here is synchronous and runs under the stripe's lock. It must not know I/O, other stripes or budgets.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use super::mutant::{self, Mutant};
use super::slot::{HEAT_USED, Load, Pin, Pins, Slice, Slot, State};
use super::swept::{BATCH_SLICES_MAX, Batch};
use crate::sync::Arc;

/// A stripe that is to hold more grows when it comes to it.
const RESERVED_SLOTS_MAX: u64 = 4096;

/// What somebody who asks for a slice gets.
pub(super) enum Lookup {
    /// The slice.
    Found(Slice),
    /// A share in its load, to be ended by [`Stripe::publish`] or given back by [`Stripe::leave`], and the pin of what is loaded.
    Miss(Arc<Load>, Pin),
}

/// What a stripe counts; see [`CacheStatistics`](super::CacheStatistics).
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Counts {
    pub(super) hits: u64,
    pub(super) misses: u64,
    pub(super) loads: u64,
    pub(super) evictions: u64,
    pub(super) cleaned: u64,
}

/// Slots, addressed by mixed keys.
#[derive(Debug)]
pub(super) struct Stripe {
    /// The slot of each key that is not vacant.
    index: HashMap<u64, u32, BuildHasherDefault<MixedHasher>>,
    slots: Vec<Slot>,
    /// The vacant ones among `slots`.
    vacant: Vec<u32>,
    /// Where eviction looks next.
    hand: usize,
    pins: Pins,
    /// How many slots to take room for at the first load.
    reserve: usize,
    pub(super) counts: Counts,
}

impl Stripe {
    /// An empty stripe that is to hold up to `slots`, or more if it must.
    ///
    /// It takes room for them at its first load: an image that is opened for one read pays for one stripe, and what grew
    /// slot by slot would lie among the slices and keep the allocator from giving their memory back.
    pub(super) fn new(slots: u64) -> Self {
        // OK to cast: bounded.
        #[allow(clippy::cast_possible_truncation)]
        let reserve = slots.min(RESERVED_SLOTS_MAX) as usize;
        Self {
            index: HashMap::default(),
            slots: Vec::new(),
            vacant: Vec::new(),
            hand: 0,
            pins: Pins::default(),
            reserve,
            counts: Counts::default(),
        }
    }

    /// The slice of `key`, if it is here, noting the use.
    #[inline]
    pub(super) fn hit(&mut self, key: u64) -> Option<&Slice> {
        let slot = &mut self.slots[*self.index.get(&key)? as usize];
        let slice = slot.state.slice()?;
        if slot.heat != HEAT_USED || !slot.used_since_pass {
            slot.heat = HEAT_USED;
            slot.used_since_pass = true;
        }
        self.counts.hits += 1;
        Some(slice)
    }

    /// The slice of `key`, which is about to be changed, and whether it becomes dirty by that, noting the use.
    pub(super) fn update(&mut self, key: u64) -> Option<(&Slice, bool)> {
        self.hit(key)?;
        let slot = &mut self.slots[*self.index.get(&key)? as usize];
        let becomes_dirty = match &mut slot.state {
            State::Clean(slice) => {
                let slice = slice.share();
                slot.state = State::Dirty(slice);
                true
            }
            State::Writing { dirty, .. } => !std::mem::replace(dirty, true),
            State::Dirty(_) | State::Vacant | State::Loading { .. } => false,
        };
        slot.state.slice().map(|slice| (slice, becomes_dirty))
    }

    /// Copies the dirty slice of `key` into `bytes` and lets its writing begin. `false` if it is not dirty any more, or
    /// is still being written.
    pub(super) fn begin_writing(&mut self, key: u64, bytes: &mut [u8]) -> bool {
        let Some(&index) = self.index.get(&key) else { return false };
        let slot = &mut self.slots[index as usize];
        let State::Dirty(slice) = &slot.state else { return false };
        let slice = slice.share();
        slice.copy_to(bytes);
        slot.state = State::Writing { slice, dirty: false };
        true
    }

    /// Ends the writing of `key`. Returns whether the slice has become dirty by that: it was not written.
    pub(super) fn end_writing(&mut self, key: u64, written: bool) -> bool {
        let Some(&index) = self.index.get(&key) else { return false };
        let slot = &mut self.slots[index as usize];
        let State::Writing { slice, dirty } = &slot.state else { return false };
        let dirty = *dirty && !mutant::is(Mutant::CleanThoughChanged);
        let written = written || mutant::is(Mutant::CleanAfterFailure);
        let slice = slice.share();
        slot.state = if written && !dirty { State::Clean(slice) } else { State::Dirty(slice) };
        !written && !dirty
    }

    /// Drops the slice of `key`, if it is clean. Returns whether there was one.
    pub(super) fn forget(&mut self, key: u64) -> bool {
        let Some(&index) = self.index.get(&key) else { return false };
        let clean = matches!(self.slots[index as usize].state, State::Clean(_));
        clean && self.vacate(index).is_some()
    }

    /// The slice of `key`, or a share in its load.
    pub(super) fn get(&mut self, key: u64) -> Lookup {
        let pin = self.pins.pin();
        if let Some(slice) = self.hit(key) {
            return Lookup::Found(slice.lend(pin));
        }
        self.counts.misses += 1;
        if let Some(index) = self.index.get(&key)
            && let State::Loading { load, shares } = &mut self.slots[*index as usize].state
        {
            *shares += 1;
            return Lookup::Miss(Arc::clone(load), pin);
        }
        let load = Arc::new(Load::new());
        let slot = Slot::loading(key, Arc::clone(&load));
        let index = match self.vacant.pop() {
            Some(index) => {
                self.slots[index as usize] = slot;
                index
            }
            None => {
                if self.slots.is_empty() {
                    self.index.reserve(self.reserve);
                    self.slots.reserve_exact(self.reserve);
                    self.vacant.reserve_exact(self.reserve);
                }
                self.slots.push(slot);
                // OK to unwrap: each slot but the vacant stands for 512 bytes of memory or a request in flight.
                #[allow(clippy::unwrap_used)]
                u32::try_from(self.slots.len() - 1).unwrap()
            }
        };
        self.index.insert(key, index);
        Lookup::Miss(load, pin)
    }

    /// Ends the load of `key`, which is in flight, with `slice`.
    pub(super) fn publish(&mut self, key: u64, slice: Slice) {
        // OK to unwrap: a slot that is being loaded is vacated by the last share only, and the one who loads has one.
        #[allow(clippy::expect_used)]
        let index = *self.index.get(&key).expect("a slice that is being loaded has a slot");
        let slot = &mut self.slots[index as usize];
        assert!(matches!(slot.state, State::Loading { .. }), "a slice was loaded twice at a time");
        slot.state = State::Clean(slice);
        self.counts.loads += 1;
    }

    /// Gives back a share in the load of `key` that did not succeed for the one who had it.
    pub(super) fn leave(&mut self, key: u64, share: &Arc<Load>) {
        let Some(&index) = self.index.get(&key) else { return };
        let State::Loading { load, shares } = &mut self.slots[index as usize].state else { return };
        // Another load of the same slice may have begun since, when this one had ended well for somebody else.
        if Arc::ptr_eq(load, share) {
            *shares -= 1;
            if *shares == 0 {
                self.vacate(index);
            }
        }
    }

    /// Moves the hand to the next slice that has cooled down, cooling those on the way, and takes it. `None` when the
    /// hand comes to the end of the stripe; the next call starts from the beginning.
    pub(super) fn evict(&mut self) -> Option<Slice> {
        while self.hand < self.slots.len() {
            let hand = self.hand;
            self.hand += 1;
            let slot = &mut self.slots[hand];
            let State::Clean(slice) = &slot.state else { continue };
            if slot.heat > 0 || slice.is_pinned() {
                slot.heat = slot.heat.saturating_sub(1);
                continue;
            }
            self.counts.evictions += 1;
            // OK to cast: slots are numbered in u32, see `get`.
            #[allow(clippy::cast_possible_truncation)]
            return self.vacate(hand as u32);
        }
        self.hand = 0;
        None
    }

    /// Takes the slices that are not pinned and were not used since the sweep before, beginning with slot number
    /// `first`. Returns where to go on when `batch` is full, or `None` at the end.
    pub(super) fn sweep(&mut self, first: usize, batch: &mut Batch) -> Option<usize> {
        let pins = self.pins.any();
        for index in first..self.slots.len() {
            let slot = &mut self.slots[index];
            let is_clean = match slot.state {
                State::Clean(_) => true,
                State::Dirty(_) => mutant::is(Mutant::SweepDirty),
                State::Vacant | State::Loading { .. } | State::Writing { .. } => false,
            };
            if !is_clean || slot.take_use(pins) {
                continue;
            }
            self.counts.cleaned += 1;
            // OK to cast: slots are numbered in u32, see `get`.
            #[allow(clippy::cast_possible_truncation)]
            if let Some(slice) = self.vacate(index as u32)
                && batch.push(slice)
            {
                return Some(index + 1);
            }
        }
        if self.index.is_empty() {
            self.slots.clear();
            self.vacant.clear();
            self.hand = 0;
        }
        None
    }

    /// Drops every clean slice; returns how many there were.
    pub(super) fn clear(&mut self) -> u64 {
        let mut count = 0;
        for index in 0..self.slots.len() {
            if matches!(self.slots[index].state, State::Clean(_)) {
                // OK to cast: slots are numbered in u32, see `get`.
                #[allow(clippy::cast_possible_truncation)]
                let dropped = self.vacate(index as u32);
                count += u64::from(dropped.is_some());
            }
        }
        count
    }

    /// What [`Mutant::SweepWithoutLock`] does first: it notes what a sweep would take, and where to go on.
    pub(super) fn note(&mut self, first: usize) -> (Vec<u32>, Option<usize>) {
        let mut noted = Vec::new();
        let pins = self.pins.any();
        for index in first..self.slots.len() {
            let slot = &mut self.slots[index];
            if matches!(slot.state, State::Clean(_)) && !slot.take_use(pins) {
                noted.extend(u32::try_from(index));
            }
            if noted.len() == BATCH_SLICES_MAX {
                return (noted, Some(index + 1));
            }
        }
        (noted, None)
    }

    /// What [`Mutant::SweepWithoutLock`] does then: it takes what it has noted, whatever is there now.
    pub(super) fn take_noted(&mut self, noted: Vec<u32>, batch: &mut Batch) {
        for index in noted {
            let is_there =
                self.slots.get(index as usize).is_some_and(|it| it.state.slice().is_some());
            if is_there && let Some(slice) = self.vacate(index) {
                self.counts.cleaned += 1;
                batch.push(slice);
            }
        }
    }

    /// The number of slots, vacant ones included.
    pub(super) fn slots(&self) -> usize {
        self.slots.len()
    }

    /// Makes a slot vacant and returns the slice that it held.
    fn vacate(&mut self, index: u32) -> Option<Slice> {
        let slot = &mut self.slots[index as usize];
        self.index.remove(&slot.key);
        self.vacant.push(index);
        match std::mem::replace(&mut slot.state, State::Vacant) {
            State::Clean(slice) => Some(slice),
            State::Dirty(slice) | State::Writing { slice, .. } => {
                let is_mutant =
                    mutant::is(Mutant::SweepDirty) || mutant::is(Mutant::SweepWithoutLock);
                assert!(is_mutant, "only clean slices go");
                Some(slice)
            }
            State::Vacant | State::Loading { .. } => None,
        }
    }
}

/// Passes on a key that is mixed already.
#[derive(Debug, Default)]
struct MixedHasher(u64);

impl Hasher for MixedHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, key: u64) {
        self.0 = key;
    }
}
