//! A storage that takes its time, fails and loses power: requests over a simulated disk. What it may do is written at the
//! head of `fault.rs`.
//!
//! A change lands when its time has come, which is noticed by the next one who asks for anything: so it needs no task,
//! and lands although its future was dropped.
//!
//! Locks: the storage's state, then those of the clock and the trace, which are leaves.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::time::Duration;

use super::clock::Clock;
use super::disk::Disk;
use super::executor::Executor;
use super::fault::{Failure, Faults, Operation, Plan};
use super::random::Random;
use super::state::{Change, InFlight, State};
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
    pub(super) trace: Trace,
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
            requests: 0,
            named: None,
            capacity: LEN_MAX,
            flushes_failed: 0,
            unheard: false,
        };
        Self { state: Arc::new(Mutex::new(state)), clock, trace }
    }

    /// Sets what goes wrong from now on. Errors that had come to stay are gone.
    pub fn set_faults(&self, faults: Faults) {
        self.state.lock().plan = Plan::new(faults);
    }

    /// Makes one request fail: the one with that number, from the beginning of this storage, the first being 0. What reads
    /// through the synchronous door counts too.
    pub fn fail_request(&self, number: u64, failure: Failure) {
        self.state.lock().named = Some((number, failure));
    }

    /// How many requests there were, those through the synchronous door included.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.state.lock().requests
    }

    /// How many flushes have failed: what was written before the last of them may be lost.
    #[must_use]
    pub fn flushes_failed(&self) -> u64 {
        self.state.lock().flushes_failed
    }

    /// Sets how long the disk can become, in bytes; `None` for as long as it likes.
    pub fn set_capacity(&self, len: Option<u64>) {
        self.state.lock().capacity = len.unwrap_or(LEN_MAX);
    }

    /// What reading the whole disk gives now.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        let state = self.settled();
        let mut bytes = vec![0; usize::try_from(state.disk.len()).unwrap_or(usize::MAX)];
        state.disk.read(&mut bytes, 0);
        bytes
    }

    /// What is left of this one, in the same world.
    pub(super) fn left(&self, disk: Disk, random: Random) -> Self {
        Self::with(disk, random, Faults::none(), self.clock.clone(), self.trace.clone())
    }

    /// The state, after everything has landed that is due.
    pub(super) fn settled(&self) -> MutexGuard<'_, State> {
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
    ) -> io::Result<(Duration, Option<Failure>)> {
        if !state.powered {
            return Err(no_power());
        }
        if offset.checked_add(len).is_none_or(|end| end > LEN_MAX) && operation != Operation::Read {
            let text = format!("{len} bytes at {offset:#x} reach past {LEN_MAX:#x}");
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
        }
        let latency = state.plan.latency(operation, &mut state.random);
        let mut fault = state.plan.fault(operation, &mut state.random);
        if let Some((_, failure)) = state.named.filter(|&(number, _)| number == state.requests) {
            fault = Some(failure);
        }
        state.requests += 1;
        if operation == Operation::Flush && std::mem::take(&mut state.unheard) {
            fault = fault.or(Some(Failure::Io));
        }
        let grows = matches!(operation, Operation::Write | Operation::Zero | Operation::SetLen);
        let end = offset.saturating_add(len);
        if fault.is_none() && grows && end > state.capacity.max(state.disk.len()) {
            fault = Some(Failure::NoSpace);
        }
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
            let steps = state.steps(change, self.clock.now(), due);
            let request = InFlight { operation, steps, fault, landed: Vec::new(), dropped: None };
            state.in_flight.insert(id, request);
            (due, Request { storage: self, id, done: false })
        };
        // Cancel: the request is told by its drop, and what it says happens.
        self.clock.sleep_until(due).await;
        request.acknowledge()
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
        for landed in request.landed {
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
        for landed in &request.landed {
            if let Some(hopeless) = state.unacknowledged.get_mut(landed) {
                hopeless.get_or_insert(number);
            }
        }
        if request.operation == Operation::Flush && request.steps.is_empty() {
            state.unheard |= request.fault.is_some();
        }
        // A dropped flush promises nothing, and a power loss may keep what it would have kept.
        if request.steps.is_empty() || request.operation == Operation::Flush {
            return;
        }
        for step in &mut request.steps {
            // At a time of its own, or when a flush says so.
            step.due = match state.random.below(3) {
                0 => Duration::MAX,
                1 => step.due,
                _ => {
                    let wait = state.plan.delay(&mut state.random);
                    step.due.saturating_add(wait)
                }
            };
        }
        request.dropped = Some(number);
        state.in_flight.insert(self.id, request);
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

    fn try_write_at(&self, data: &[u8], offset: u64) -> Option<io::Result<()>> {
        let mut state = self.settled();
        let state = &mut *state;
        if !state.powered || !state.plan.is_written_at_once(&mut state.random) {
            return None;
        }
        let (len, written) = (data.len() as u64, Operation::Write);
        let (_, fault) = match self.begin(state, written, offset, len) {
            Ok(begun) => begun,
            Err(error) => return Some(Err(error)),
        };
        let number = state.new_number();
        self.trace.add(Decision::Landing, &[number, number]);
        let torn = fault.is_some().then_some(&mut state.random);
        state.disk.write(number, offset, data, torn);
        Some(match fault {
            None => Ok(()),
            Some(fault) => {
                state.unacknowledged.insert(number, Some(number));
                Err(fault.error(written))
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
