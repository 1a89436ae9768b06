//! A storage that takes its time, fails and loses power: requests over a simulated disk. What it may do is written at the
//! head of `fault.rs`.
//!
//! A change lands when its time has come, which is noticed by the next one who asks for anything: so it needs no task,
//! and lands although its future was dropped.
//!
//! Locks: the storage's state, then those of the clock and the trace, which are leaves.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::time::Duration;

use super::clock::Clock;
use super::disk::Disk;
use super::executor::Executor;
use super::fault::{Fault, Faults, Operation, Plan};
use super::random::Random;
use super::trace::{Decision, Trace};
use crate::storage::{Buf, SendStorage, StorageExtent, StorageExtentKind};
use crate::sync::{Arc, Mutex, MutexGuard};

/// No simulated disk is longer: 1 TiB, so that arithmetic on offsets is harmless. Only what is written takes memory.
const LEN_MAX: u64 = 1 << 40;

/// A storage of a simulated world, on a disk whose durable state and whose faults are known; clones are the same storage.
///
/// Its requests complete as the world's clock advances: run them on the [`Executor`] that it was made for.
#[derive(Clone)]
pub struct SimStorage {
    state: Arc<Mutex<State>>,
    clock: Clock,
    trace: Trace,
}

struct State {
    disk: Disk,
    random: Random,
    plan: Plan,
    powered: bool,
    /// Numbers requests, and landings and the dropping of futures, in the order in which they happen.
    last_number: u64,
    /// By request. What has landed stays until its future has heard of it.
    in_flight: BTreeMap<u64, InFlight>,
    /// Changes, by landing, which no flush owes anything, as nobody has been told that they are complete; with the
    /// number of the moment when it became clear that nobody ever will be.
    unacknowledged: BTreeMap<u64, Option<u64>>,
}

struct InFlight {
    operation: Operation,
    change: Change,
    due: Duration,
    fault: Option<Fault>,
    /// The landing.
    landed: Option<u64>,
    /// When the future was dropped.
    dropped: Option<u64>,
}

enum Change {
    Write { offset: u64, bytes: Vec<u8> },
    Zero { offset: u64, len: u64 },
    Discard { offset: u64, len: u64 },
    SetLen { len: u64 },
    Flush { asked: u64, unacknowledged: BTreeSet<u64> },
}

impl SimStorage {
    /// A storage in the world of `executor`, on which `bytes` are durable.
    pub fn new(executor: &Executor<'_>, bytes: impl Into<Arc<[u8]>>, faults: Faults) -> Self {
        Self::with(
            Disk::new(bytes.into()),
            executor.random(),
            faults,
            executor.clock(),
            executor.trace(),
        )
    }

    fn with(disk: Disk, random: Random, faults: Faults, clock: Clock, trace: Trace) -> Self {
        let state = State {
            disk,
            random,
            plan: Plan::new(faults),
            powered: true,
            last_number: 0,
            in_flight: BTreeMap::new(),
            unacknowledged: BTreeMap::new(),
        };
        Self { state: Arc::new(Mutex::new(state)), clock, trace }
    }

    /// Sets what goes wrong from now on. Errors that had come to stay are gone.
    pub fn set_faults(&self, faults: Faults) {
        self.state.lock().plan = Plan::new(faults);
    }

    /// The power goes. What is left of the disk comes back as a storage without faults; this one fails every request from
    /// now on, those in flight included.
    #[must_use]
    pub fn crash(&self) -> Self {
        let left = self.crash_state();
        self.state.lock().powered = false;
        left
    }

    /// What would be left if the power went now, as a storage without faults. This one goes on, and may be asked again:
    /// one moment has many outcomes.
    #[must_use]
    pub fn crash_state(&self) -> Self {
        let mut state = self.settled();
        let mut random = state.random.fork();
        let mut disk = state.disk.clone();
        let mut waiting: Vec<&InFlight> =
            state.in_flight.values().filter(|it| it.landed.is_none()).collect();
        let mut number = state.last_number;
        while !waiting.is_empty() {
            let request = waiting.swap_remove(random.index(waiting.len()));
            number += 1;
            if random.toss() {
                request.change.apply(&mut disk, number, &mut random, Fate::Torn);
            }
        }
        drop(waiting);
        let left = disk.after_power_loss(&mut random, |sector, version| {
            self.trace.add(Decision::Crash, &[sector, version as u64]);
        });
        drop(state);
        Self::with(left, random, Faults::none(), self.clock.clone(), self.trace.clone())
    }

    /// What reading the whole disk gives now.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        let state = self.settled();
        let mut bytes = vec![0; usize::try_from(state.disk.len()).unwrap_or(usize::MAX)];
        state.disk.read(&mut bytes, 0);
        bytes
    }

    /// The state, after everything has landed that is due.
    fn settled(&self) -> MutexGuard<'_, State> {
        let now = self.clock.now();
        let mut state = self.state.lock();
        state.settle(now, &self.trace);
        state
    }

    /// Begins a request: how long it takes and how it fails.
    fn begin(
        &self,
        state: &mut State,
        operation: Operation,
        offset: u64,
        len: u64,
    ) -> io::Result<(Duration, Option<Fault>)> {
        if !state.powered {
            return Err(no_power());
        }
        if offset.checked_add(len).is_none_or(|end| end > LEN_MAX) && operation != Operation::Read {
            let text = format!("{len} bytes at {offset:#x} reach past {LEN_MAX:#x}");
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
        }
        let latency = state.plan.latency(&mut state.random);
        let fault = state.plan.fault(operation, &mut state.random);
        let due = self.clock.now().saturating_add(latency);
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        let fate = fault.map_or(0, |fault| fault as u64);
        self.trace.add(Decision::Request, &[operation as u64, offset, len, nanos, fate]);
        Ok((due, fault))
    }

    /// Changes something, from beginning to end.
    async fn change(
        &self,
        operation: Operation,
        offset: u64,
        len: u64,
        change: impl FnOnce(&State, u64) -> Change,
    ) -> io::Result<()> {
        let (due, mut request) = {
            let mut state = self.settled();
            let (due, fault) = self.begin(&mut state, operation, offset, len)?;
            let id = state.new_number();
            let change = change(&state, id);
            let request = InFlight { operation, change, due, fault, landed: None, dropped: None };
            state.in_flight.insert(id, request);
            (due, Request { storage: self, id, done: false })
        };
        // Cancel: the request is told by its drop, and what it says happens.
        self.clock.sleep_until(due).await;
        request.acknowledge()
    }
}

impl State {
    fn new_number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    /// Lets everything land that is due, in the order of time.
    fn settle(&mut self, now: Duration, trace: &Trace) {
        while let Some(id) = self.powered.then(|| self.next_due(now)).flatten() {
            self.land(id, Fate::Whole, trace);
        }
    }

    fn next_due(&self, now: Duration) -> Option<u64> {
        let due = self.in_flight.iter().filter(|(_, it)| it.landed.is_none() && it.due <= now);
        due.min_by_key(|(id, it)| (it.due, **id)).map(|(&id, _)| id)
    }

    fn land(&mut self, id: u64, fate: Fate, trace: &Trace) {
        let Some(mut request) = self.in_flight.remove(&id) else { return };
        let number = self.new_number();
        trace.add(Decision::Landing, &[id, number]);
        if let Change::Flush { asked, unacknowledged } = &request.change {
            self.land_flush(*asked, unacknowledged, request.fault, trace);
        } else {
            let fate = if request.fault.is_some() { Fate::Torn } else { fate };
            request.change.apply(&mut self.disk, number, &mut self.random, fate);
            // One that failed is told so, and never that it is complete.
            let hopeless = request.dropped.or(request.fault.map(|_| number));
            self.unacknowledged.insert(number, hopeless);
        }
        if request.dropped.is_none() {
            request.landed = Some(number);
            self.in_flight.insert(id, request);
        }
    }

    fn land_flush(
        &mut self,
        asked: u64,
        unacknowledged: &BTreeSet<u64>,
        fault: Option<Fault>,
        trace: &Trace,
    ) {
        let covered = |change: u64| change < asked && !unacknowledged.contains(&change);
        match fault {
            None => {}
            Some(Fault::Losing) => return self.disk.lose(&covered, &mut self.random),
            Some(Fault::Io | Fault::NoSpace) => return,
        }
        // It decides on what was dropped before it was asked for.
        let before = |dropped: Option<u64>| dropped.is_some_and(|dropped| dropped < asked);
        let dropped = self.in_flight.iter().filter(|(_, it)| before(it.dropped));
        let mut dropped: Vec<u64> = dropped.map(|(&id, _)| id).collect();
        while !dropped.is_empty() {
            let id = dropped.swap_remove(self.random.index(dropped.len()));
            match self.random.below(3) {
                0 => self.land(id, Fate::Whole, trace),
                1 => self.land(id, Fate::Torn, trace),
                _ => drop(self.in_flight.remove(&id)),
            }
        }
        self.disk.flush(&covered, &mut self.random);
        self.unacknowledged.retain(|_, &mut hopeless| !before(hopeless));
    }
}

/// Whether a change takes effect in all its sectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Whole,
    Torn,
}

impl Change {
    fn apply(&self, disk: &mut Disk, number: u64, random: &mut Random, fate: Fate) {
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

/// A change in flight, as its future has it.
struct Request<'a> {
    storage: &'a SimStorage,
    id: u64,
    done: bool,
}

impl Request<'_> {
    /// Tells how it went: from now on the change is complete.
    fn acknowledge(&mut self) -> io::Result<()> {
        let mut state = self.storage.settled();
        self.done = true;
        let Some(request) = state.in_flight.remove(&self.id).filter(|_| state.powered) else {
            return Err(no_power());
        };
        if let Some(fault) = request.fault {
            return Err(fault.error(request.operation));
        }
        if let Some(landed) = request.landed {
            state.unacknowledged.remove(&landed);
        }
        Ok(())
    }
}

impl Drop for Request<'_> {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let mut state = self.storage.settled();
        let state = &mut *state;
        let number = state.new_number();
        self.storage.trace.add(Decision::Abandoned, &[self.id, number]);
        let Some(mut request) = state.in_flight.remove(&self.id) else { return };
        match request.landed {
            Some(landed) => {
                if let Some(hopeless) = state.unacknowledged.get_mut(&landed) {
                    hopeless.get_or_insert(number);
                }
            }
            // A dropped flush promises nothing, and a power loss may keep what it would have kept.
            None if matches!(request.change, Change::Flush { .. }) => {}
            None => {
                // At a time of its own, or when a flush says so.
                request.due = match state.random.below(3) {
                    0 => Duration::MAX,
                    1 => request.due,
                    _ => {
                        let wait = state.plan.latency(&mut state.random);
                        request.due.saturating_add(wait)
                    }
                };
                request.dropped = Some(number);
                state.in_flight.insert(self.id, request);
            }
        }
    }
}

impl SendStorage for SimStorage {
    async fn read_at(&self, mut buf: Buf, offset: u64) -> io::Result<Buf> {
        let (due, fault) =
            self.begin(&mut self.settled(), Operation::Read, offset, buf.len() as u64)?;
        // Cancel: nothing has been begun.
        self.clock.sleep_until(due).await;
        let state = self.settled();
        if !state.powered {
            return Err(no_power());
        }
        if let Some(fault) = fault {
            return Err(fault.error(Operation::Read));
        }
        state.disk.read(&mut buf, offset);
        Ok(buf)
    }

    async fn write_at(&self, buf: Buf, offset: u64) -> io::Result<Buf> {
        if !buf.is_empty() {
            let bytes = buf.to_vec();
            let change = |_: &State, _| Change::Write { offset, bytes };
            self.change(Operation::Write, offset, buf.len() as u64, change).await?;
        }
        Ok(buf)
    }

    async fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        self.change(Operation::Zero, offset, len, |_, _| Change::Zero { offset, len }).await
    }

    async fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        // What lies past the end is nobody's.
        let len = len.min(LEN_MAX.saturating_sub(offset));
        self.change(Operation::Discard, offset.min(LEN_MAX), len, |_, _| Change::Discard {
            offset,
            len,
        })
        .await
    }

    async fn flush(&self) -> io::Result<()> {
        let change = |state: &State, asked| Change::Flush {
            asked,
            unacknowledged: state.unacknowledged.keys().copied().collect(),
        };
        self.change(Operation::Flush, 0, 0, change).await
    }

    async fn len(&self) -> io::Result<u64> {
        let state = self.settled();
        if state.powered { Ok(state.disk.len()) } else { Err(no_power()) }
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(Operation::SetLen, len, 0, |_, _| Change::SetLen { len }).await
    }

    async fn extent_at(&self, offset: u64, len: u64) -> io::Result<StorageExtent> {
        let end = SendStorage::len(self).await?;
        Ok(match end.saturating_sub(offset) {
            0 => StorageExtent { kind: StorageExtentKind::Hole, len },
            rest => StorageExtent { kind: StorageExtentKind::Data, len: len.min(rest) },
        })
    }

    fn try_read_at(&self, buf: &mut [u8], offset: u64) -> Option<io::Result<()>> {
        let mut state = self.settled();
        let state = &mut *state;
        if !state.powered || !state.plan.is_at_hand(&mut state.random) {
            return None;
        }
        // No time passes here; what is at hand can be unreadable all the same.
        let begun = self.begin(state, Operation::Read, offset, buf.len() as u64);
        Some(match begun {
            Err(error) => Err(error),
            Ok((_, Some(fault))) => Err(fault.error(Operation::Read)),
            Ok((_, None)) => {
                state.disk.read(buf, offset);
                Ok(())
            }
        })
    }
}

impl fmt::Debug for SimStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.lock();
        f.debug_struct("SimStorage")
            .field("len", &state.disk.len())
            .field("in_flight", &state.in_flight.len())
            .field("powered", &state.powered)
            .finish_non_exhaustive()
    }
}

fn no_power() -> io::Error {
    io::Error::new(io::ErrorKind::NotConnected, "the power is gone")
}
