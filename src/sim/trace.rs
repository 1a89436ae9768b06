//! The trace: a hash of every decision, in order, by which two runs are compared.

use std::fmt;

use crate::sync::{Arc, Mutex};

/// What a decision was about. The numbers are part of the hash.
#[derive(Debug, Clone, Copy)]
pub(super) enum Decision {
    /// A task was polled.
    Poll = 1,
    /// Time went on.
    Time = 2,
    /// A request was made of a storage.
    Request = 3,
    /// A change of a storage took effect.
    Landing = 4,
    /// A future was dropped before its request was done.
    Abandoned = 5,
    /// The power went.
    Crash = 6,
    /// What the caller notes.
    Caller = 7,
}

/// The hash of all decisions so far; clones share it.
#[derive(Clone, Default)]
pub struct Trace(Arc<Mutex<Hash>>);

#[derive(Debug, Clone, Copy)]
struct Hash {
    hash: u64,
    decisions: u64,
}

impl Default for Hash {
    fn default() -> Self {
        // FNV-1a's offset basis.
        Self { hash: 0xcbf2_9ce4_8422_2325, decisions: 0 }
    }
}

impl Trace {
    /// The hash. Equal for two runs that decided the same, and different otherwise, but for an accident of 64 bits.
    #[must_use]
    pub fn hash(&self) -> u64 {
        self.0.lock().hash
    }

    /// How many decisions there were.
    #[must_use]
    pub fn decisions(&self) -> u64 {
        self.0.lock().decisions
    }

    /// Adds what a test has decided or seen.
    pub fn note(&self, value: u64) {
        self.add(Decision::Caller, &[value]);
    }

    pub(super) fn add(&self, decision: Decision, values: &[u64]) {
        let mut trace = self.0.lock();
        trace.decisions += 1;
        trace.mix(decision as u64);
        for &value in values {
            trace.mix(value);
        }
    }
}

impl Hash {
    /// FNV-1a by words instead of bytes, with a rotation, so that high bits reach low ones.
    fn mix(&mut self, value: u64) {
        self.hash = (self.hash ^ value).wrapping_mul(0x0100_0000_01b3).rotate_left(29);
    }
}

impl fmt::Debug for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Hash { hash, decisions } = *self.0.lock();
        write!(f, "Trace({hash:#018x} after {decisions} decisions)")
    }
}
