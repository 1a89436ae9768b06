//! Mutants of the cache and its cleaner: one rule of their protocol left out, so that the tests of races prove that they would
//! notice; and pauses inside a pass, so that a race has time.
//!
//! Both belong to a thread, and act where that thread runs the code: a mutant of the cleaner is one where its thread is. Without
//! the feature `sim` nothing of this is compiled.
//!
//! This module must not know what finds mutants, nor be used for anything else than leaving a rule out.

#![cfg_attr(
    not(feature = "sim"),
    allow(dead_code, unreachable_pub, reason = "without the simulator nothing makes a mutant")
)]

/// A rule that is left out. Its name says what is done instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mutant {
    /// A pass notes what it may take, pauses, and takes that without looking again: what a cleaner does that scans the slots
    /// while nobody holds a lock, as QEMU's did until 2025.
    SweepWithoutLock,
    /// A pass takes slices that were changed and not written.
    SweepDirty,
    /// A pass takes slices that somebody holds.
    SweepPinned,
    /// A slice that was changed while it was written counts as written.
    CleanThoughChanged,
    /// A write-back that failed or was dropped counts as written.
    CleanAfterFailure,
    /// A stop does not wake the cleaner.
    StopWithoutWake,
    /// The cleaner reads its plan, and listens for changes of it afterwards.
    CleanerLooksFirst,
    /// Who joins looks whether the cleaner works, and listens for its end afterwards.
    JoinLooksFirst,
    /// Who joins does not wait for the step that has begun.
    JoinWithoutWait,
    /// A step begins although there was a stop.
    StepAfterStop,
}

impl Mutant {
    /// Every mutant.
    pub const ALL: [Self; 10] = [
        Self::SweepWithoutLock,
        Self::SweepDirty,
        Self::SweepPinned,
        Self::CleanThoughChanged,
        Self::CleanAfterFailure,
        Self::StopWithoutWake,
        Self::CleanerLooksFirst,
        Self::JoinLooksFirst,
        Self::JoinWithoutWait,
        Self::StepAfterStop,
    ];
}

#[cfg(feature = "sim")]
mod now {
    use std::cell::{Cell, RefCell};

    use super::Mutant;

    thread_local! {
        static MUTANT: Cell<Option<Mutant>> = const { Cell::new(None) };
        static PAUSE: RefCell<Option<Box<dyn FnMut()>>> = const { RefCell::new(None) };
    }

    /// Makes this thread's cache the mutant, or with `None` the cache again.
    pub fn set(mutant: Option<Mutant>) {
        MUTANT.set(mutant);
    }

    /// Whether this is the mutant.
    #[must_use]
    pub fn is(mutant: Mutant) -> bool {
        MUTANT.get() == Some(mutant)
    }

    /// What this thread does at every pause of a pass: once under the lock of each stripe that it sweeps, and between finding and
    /// freeing.
    pub fn set_pause(pause: Option<Box<dyn FnMut()>>) {
        PAUSE.set(pause);
    }

    /// Pauses.
    pub(crate) fn pause() {
        PAUSE.with_borrow_mut(|pause| {
            if let Some(pause) = pause {
                pause();
            }
        });
    }
}

#[cfg(not(feature = "sim"))]
mod now {
    use super::Mutant;

    /// Whether this is the mutant: it never is.
    #[must_use]
    pub(crate) const fn is(_mutant: Mutant) -> bool {
        false
    }

    /// Pauses: it never does.
    pub(crate) const fn pause() {}
}

#[cfg(not(feature = "sim"))]
pub(crate) use now::is;
pub(crate) use now::pause;
#[cfg(feature = "sim")]
pub use now::{is, set, set_pause};
