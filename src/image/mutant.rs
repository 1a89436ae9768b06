//! Mutants: the engine with one of its rules switched off, so that the simulator proves that it would notice.
//!
//! Each [`Mutant`] names a rule of writing that stands in the engine at the place where [`is`] asks for it. Without the
//! feature `sim` the answer is a constant, and nothing of this is compiled.
//!
//! This module must not know what finds mutants, nor be used for anything else than leaving a rule out.

#![cfg_attr(
    not(feature = "sim"),
    allow(dead_code, unreachable_pub, reason = "without the simulator nothing makes a mutant")
)]

/// A rule that is left out. Its name says what the engine does instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mutant {
    /// A mapping becomes durable without waiting for the refcounts of what it maps.
    MappingBeforeRefcount,
    /// A mapping becomes durable without waiting for the data in what it maps.
    MappingBeforeData,
    /// A mapping is published, to be read, before the data is written.
    MappingBeforeWrite,
    /// An L1 entry becomes durable without waiting for its new L2 table.
    L1BeforeL2,
    /// An entry of the refcount table becomes durable without waiting for its new refcount block.
    RefcountTableBeforeBlock,
    /// Refcounts go down, and clusters are used again, before their unmapping is durable.
    ReuseBeforeUnmapping,
    /// Clusters are used again while requests that began before they were freed are in flight.
    ReuseUnderRequests,
    /// Clusters are used again while the hole that gives up their space is still being punched.
    ReuseBeforePunch,
    /// What a dropped write may yet land on is used as if it had landed.
    ForgetDroppedWrites,
    /// Two writes may allocate the same guest cluster at the same time.
    NoClaims,
    /// Copy-on-write forgets what lies behind the write in its cluster.
    NoTail,
    /// A table is taken for clean although writing it back has failed or was dropped.
    CleanAfterFailure,
    /// A failed flush is forgotten.
    NoLatch,
    /// Flush writes back metadata and leaves out the storage's flush at the end.
    FlushWithoutFlush,
    /// The header leads to a new snapshot without waiting for the references of what it has.
    SnapshotBeforeReferences,
    /// What a new snapshot shares keeps the flags that say it is the guest's alone.
    KeepCopied,
    /// The disk changes while bitmaps still say that they are true.
    BitmapsStayTrusted,
    /// An image is emptied into its backing file before that is flushed.
    EmptyBeforeFlush,
    /// Clusters that have changed since they were copied into the backing file are emptied, too.
    EmptyWhatChanged,
    /// Settings change while requests are in flight, and others come in between the write-back and the swap.
    ReconfigureUnderRequests,
    /// Settings change without writing back what is dirty.
    ReconfigureWithoutWriteBack,
    /// Who waits at a gate (a close, a pause, the turnstile, a claim) looks whether it may go on, and listens afterwards.
    GateLooksFirst,
    /// The last request to leave tells nobody.
    LeaveWithoutWake,
    /// A close and a pause do not wait for the requests in flight.
    DrainedWithoutWait,
    /// Requests come in during a pause.
    EnterUnderPause,
    /// An epoch ends while requests of the one before it are in flight.
    EpochWithoutLook,
    /// Who wants to be alone does not wait for those who pass.
    AloneWithoutWait,
    /// Others pass while somebody is alone.
    PassUnderAlone,
    /// A claim is granted although it overlaps one that came before.
    ClaimWithoutLook,
    /// A claim that is given up tells nobody.
    ClaimWithoutWake,
}

impl Mutant {
    /// Those of writing, which the simulator finds. The others take tasks and threads that a model checker chooses from.
    pub const ALL: [Self; 17] = [
        Self::MappingBeforeRefcount,
        Self::MappingBeforeData,
        Self::MappingBeforeWrite,
        Self::L1BeforeL2,
        Self::RefcountTableBeforeBlock,
        Self::ReuseBeforeUnmapping,
        Self::ReuseUnderRequests,
        Self::ReuseBeforePunch,
        Self::ForgetDroppedWrites,
        Self::NoClaims,
        Self::NoTail,
        Self::CleanAfterFailure,
        Self::NoLatch,
        Self::FlushWithoutFlush,
        Self::SnapshotBeforeReferences,
        Self::KeepCopied,
        Self::BitmapsStayTrusted,
    ];

    /// Those of a commit into the backing file of an image in use, which has a simulation of its own.
    pub const BACKING: [Self; 2] = [Self::EmptyBeforeFlush, Self::EmptyWhatChanged];

    /// Those of the gates, which the checker of their kernel finds.
    pub const GATES: [Self; 9] = [
        Self::GateLooksFirst,
        Self::LeaveWithoutWake,
        Self::DrainedWithoutWait,
        Self::EnterUnderPause,
        Self::EpochWithoutLook,
        Self::AloneWithoutWait,
        Self::PassUnderAlone,
        Self::ClaimWithoutLook,
        Self::ClaimWithoutWake,
    ];
}

#[cfg(feature = "sim")]
thread_local! {
    /// The simulator lives on one thread, and other tests on others.
    static NOW: std::cell::Cell<Option<Mutant>> = const { std::cell::Cell::new(None) };
}

/// Makes this thread's engine the mutant, or with `None` the engine again.
#[cfg(feature = "sim")]
pub fn set(mutant: Option<Mutant>) {
    NOW.set(mutant);
}

/// Whether this engine is the mutant.
#[cfg(feature = "sim")]
#[must_use]
pub fn is(mutant: Mutant) -> bool {
    NOW.get() == Some(mutant)
}

/// Whether this engine is the mutant: it never is.
#[cfg(not(feature = "sim"))]
#[allow(dead_code, reason = "rules ask one by one")]
#[must_use]
pub(crate) const fn is(_mutant: Mutant) -> bool {
    false
}
