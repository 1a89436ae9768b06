//! What a simulated disk may do to those who trust it: the fault model, and how much of it a run gets.
//!
//! # The fault model
//!
//! **Time.** A request takes up to [`Faults::latency_max`], chosen anew for each, so that requests complete in any
//! order. Some stall for [`Faults::stall`] of virtual time, and some discards ([`Faults::slow_discards`]) take many times as
//! long as anything else. The synchronous doors answer now and then.
//!
//! **Landing.** A change (write, zeroing, discard, new length) lands at one moment between its request and its
//! completion; from then on it is read. Some writes ([`Faults::split`]) land in several steps, each a range of whole
//! sectors at a moment of its own, in any order. Until a flush has made it durable a change is volatile. The length is
//! no better off than a sector: it has a durable version and volatile ones, in order. What a write needs of it becomes durable
//! with the write, although another one has made the disk longer that is not durable yet.
//!
//! **Flush** makes durable what was *completed before it was asked for*: whose future had returned. What was in flight
//! then, or was asked for afterwards, is a coin toss, for each sector by itself. A later version that becomes durable
//! replaces earlier ones of its sector.
//!
//! **Dropped futures.** A change whose future is dropped lands some time later, which may be when many other requests have
//! come and gone, or never. The next flush that is asked for after that and succeeds decides: when it returns, the change
//! has landed or never will. Whether it is durable then is a coin toss.
//!
//! **Discard** leaves every whole sector of its range old, zero or full of rubbish, and until it is durable a power loss
//! may choose again. It touches no byte outside its range.
//!
//! **Errors.** A request fails with an I/O error, or, if it writes, with "no space left" ([`io::ErrorKind::StorageFull`]),
//! once or for ever after ([`Faults::sticky`]), by chance or because it is the one that a test has named
//! ([`SimStorage::fail_request`](super::SimStorage::fail_request)). What makes the disk longer than its capacity, if it has
//! one, fails for want of space until there is more
//! ([`SimStorage::set_capacity`](super::SimStorage::set_capacity)). A change that fails has landed in any subset of its sectors, or not at
//! all, and no flush owes it anything. A flush that fails may leave everything as volatile as it was, to be flushed
//! again; or it loses what it was to make durable, as Linux does: each sector goes back to what it was before, or can
//! still be read, although no later flush will ever make it durable, and succeeds all the same. Only if nobody heard of
//! the failure, because the future was dropped, the next flush fails too.
//!
//! **Power loss**, at any moment. Changes in flight land first, in any order and any subset of their sectors, or not.
//! Then each sector keeps its durable version or any volatile one, independently of all others: a request is torn at
//! multiples of 512 bytes, and no order between two sectors survives without a flush between them. So does the length.
//! Bytes past the new length are gone. Sometimes everything volatile is lost, sometimes nothing.
//!
//! What it does not do: flip bits, tear a sector or leave rubbish in it, mistake an address, or forget what it has made
//! durable. An image whose tables are changed in place, as qcow2 has it, does not survive these.

use std::io;
use std::time::Duration;

use super::random::Random;

/// How many times as long slow discards take at most, and how many times as late as anything else a dropped change lands.
const LATE: u64 = 16;

/// How a simulated disk behaves: how long requests take, and how often what goes wrong. Chances are in 1000.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Faults {
    /// The longest that a request takes if it does not stall.
    pub latency_max: Duration,
    /// How often the synchronous door for reads answers.
    pub at_hand: u32,
    /// How often the synchronous door for writes does: the write has landed at once.
    pub at_once: u32,
    /// How often a write of several sectors lands in several steps.
    pub split: u32,
    /// How often a discard takes many times as long as anything else.
    pub slow_discards: u32,
    /// How often a request stalls, and
    pub stalls: u32,
    /// for how long.
    pub stall: Duration,
    /// How often reads fail.
    pub read_errors: u32,
    /// How often writes and zeroings fail.
    pub write_errors: u32,
    /// How often writes, zeroings and changes of length fail for want of space.
    pub no_space: u32,
    /// How often discards fail.
    pub discard_errors: u32,
    /// How often flushes fail, and
    pub flush_errors: u32,
    /// how many of those lose what they were to make durable.
    pub flush_losses: u32,
    /// How often changes of length fail.
    pub set_len_errors: u32,
    /// How many errors are there to stay, for all requests of their kind.
    pub sticky: u32,
}

impl Faults {
    /// Nothing fails. Requests take up to a millisecond, and one in two reads finds its bytes at hand.
    #[must_use]
    pub const fn none() -> Self {
        Self {
            latency_max: Duration::from_millis(1),
            at_hand: 500,
            at_once: 250,
            split: 200,
            slow_discards: 250,
            stalls: 0,
            stall: Duration::from_secs(30),
            read_errors: 0,
            write_errors: 0,
            no_space: 0,
            discard_errors: 0,
            flush_errors: 0,
            flush_losses: 0,
            set_len_errors: 0,
            sticky: 0,
        }
    }

    /// A choice of faults, about half of all kinds: what is rare beside everything else is common in some run.
    #[must_use]
    pub fn random(random: &mut Random) -> Self {
        let mut some = |most: u64| -> u32 {
            if random.toss() {
                return 0;
            }
            // OK to cast: chances are at most 1000.
            #[allow(clippy::cast_possible_truncation)]
            let permille = (1 + random.below(most)) as u32;
            permille
        };
        Self {
            at_hand: some(1000),
            at_once: some(1000),
            split: some(1000),
            slow_discards: some(1000),
            stalls: some(20),
            read_errors: some(50),
            write_errors: some(50),
            no_space: some(50),
            discard_errors: some(100),
            flush_errors: some(200),
            flush_losses: some(1000),
            set_len_errors: some(100),
            sticky: some(50),
            latency_max: Duration::from_micros(u64::from(some(1000)) * 5),
            ..Self::none()
        }
    }
}

/// What is asked of a disk. The numbers are part of the trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    Read,
    Write,
    Zero,
    Discard,
    Flush,
    SetLen,
}

/// How a request goes wrong. The numbers are part of the trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// An I/O error.
    Io = 1,
    /// No space left.
    NoSpace = 2,
    /// An I/O error; of a flush, one that loses what it should have made durable.
    Losing = 3,
}

impl Failure {
    pub(super) fn error(self, operation: Operation) -> io::Error {
        match self {
            Self::Io | Self::Losing => {
                io::Error::other(format!("simulated I/O error of {operation:?}"))
            }
            Self::NoSpace => {
                let text = format!("simulated lack of space for {operation:?}");
                io::Error::new(io::ErrorKind::StorageFull, text)
            }
        }
    }
}

/// The faults of one disk, and those that have come to stay.
#[derive(Debug)]
pub(super) struct Plan {
    faults: Faults,
    sticky: Vec<(Operation, Failure)>,
}

impl Plan {
    pub(super) fn new(faults: Faults) -> Self {
        Self { faults, sticky: Vec::new() }
    }

    /// How long the next request takes.
    pub(super) fn latency(&self, operation: Operation, random: &mut Random) -> Duration {
        if operation == Operation::Discard && random.chance(self.faults.slow_discards) {
            return self.delay(random);
        }
        if random.chance(self.faults.stalls) {
            return self.faults.stall;
        }
        let most = u64::try_from(self.faults.latency_max.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(random.below(most.saturating_add(1).max(1)))
    }

    /// How late something lands that nobody waits for.
    pub(super) fn delay(&self, random: &mut Random) -> Duration {
        let most = u64::try_from(self.faults.latency_max.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(random.below(most.saturating_mul(LATE).saturating_add(1).max(1)))
    }

    /// Whether the synchronous door answers.
    pub(super) fn is_at_hand(&self, random: &mut Random) -> bool {
        random.chance(self.faults.at_hand)
    }

    /// Whether the synchronous door for writes answers.
    pub(super) fn is_written_at_once(&self, random: &mut Random) -> bool {
        random.chance(self.faults.at_once)
    }

    /// Whether the next write lands in several steps.
    pub(super) fn is_split(&self, random: &mut Random) -> bool {
        random.chance(self.faults.split)
    }

    /// How the next request goes wrong, if it does.
    pub(super) fn fault(&mut self, operation: Operation, random: &mut Random) -> Option<Failure> {
        if let Some(&(_, fault)) = self.sticky.iter().find(|(of, _)| *of == operation) {
            return Some(fault);
        }
        let Faults { no_space, .. } = self.faults;
        let (errors, no_space) = match operation {
            Operation::Read => (self.faults.read_errors, 0),
            Operation::Write | Operation::Zero => (self.faults.write_errors, no_space),
            Operation::Discard => (self.faults.discard_errors, 0),
            Operation::Flush => (self.faults.flush_errors, 0),
            Operation::SetLen => (self.faults.set_len_errors, no_space),
        };
        let fault = if random.chance(errors) {
            if operation == Operation::Flush && random.chance(self.faults.flush_losses) {
                Failure::Losing
            } else {
                Failure::Io
            }
        } else if random.chance(no_space) {
            Failure::NoSpace
        } else {
            return None;
        };
        if random.chance(self.faults.sticky) {
            self.sticky.push((operation, fault));
        }
        Some(fault)
    }
}
