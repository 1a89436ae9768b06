//! One io_uring: requests go in with everything that the kernel uses until they complete, and come out with it.
//!
//! Besides `cache/trim.rs`, this is the crate's one file with unsafe code. What makes it sound:
//!
//! - A request owns its buffer and its open file, and sits in a slot of the ring from before the kernel sees it until
//!   its completion was taken from the completion queue. No one else can reach the buffer meanwhile. A ring that is
//!   dropped waits for its requests first.
//! - The two queues are touched only under the lock of the slots, so there is never a second producer or consumer.
//!   Entering the kernel needs no lock: it goes by the queues' atomic indexes.
#![allow(unsafe_code)]

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use io_uring::{IoUring, Probe, opcode, squeue, types};

use super::completion::Completion;
use super::file::FileStorage;
use crate::storage::Buf;

/// Requests that are handed to the kernel in one call, at most. More can be in flight.
const QUEUE_ENTRIES: u32 = 256;

/// Marks the completion of the bell's poll; no slot has this index.
const BELL: u64 = u64::MAX;

/// What to do with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Read,
    Write,
    /// `fdatasync`.
    Sync,
}

/// A request and all that it needs.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) action: Action,
    /// Keeps the file open.
    pub(super) storage: FileStorage,
    /// What is read into or written from; not longer than `u32` counts.
    pub(super) buf: Buf,
    /// At most `i64::MAX`.
    pub(super) offset: u64,
    /// Who is told.
    pub(super) completion: Arc<Completion>,
}

/// An io_uring and the requests in it.
///
/// Requests are put in by any thread; [`Self::enter`] and [`Self::reap`] are for the thread that made the ring.
pub(super) struct Ring {
    io: IoUring,
    slots: Mutex<Slots>,
}

#[derive(Default)]
struct Slots {
    requests: Vec<Option<Request>>,
    free: Vec<usize>,
    /// Emptied by whoever takes it; kept for its memory.
    done: Vec<(Request, i32)>,
    /// Polled whenever it is not: the kernel completes something when it is written to.
    bell: Option<Arc<OwnedFd>>,
    bell_is_armed: bool,
}

impl Slots {
    fn in_flight(&self) -> usize {
        self.requests.len() - self.free.len()
    }
}

impl Ring {
    /// Makes a ring for this thread to serve, if the kernel has what is needed.
    ///
    /// # Errors
    /// What the kernel says; [`io::ErrorKind::Unsupported`] if it is too old.
    pub(super) fn new() -> io::Result<Self> {
        let io = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .build(QUEUE_ENTRIES)
            .or_else(|_| IoUring::new(QUEUE_ENTRIES))?;
        let mut probe = Probe::new();
        io.submitter().register_probe(&mut probe)?;
        let needed =
            [opcode::Read::CODE, opcode::Write::CODE, opcode::Fsync::CODE, opcode::PollAdd::CODE];
        if !io.params().is_feature_nodrop() || !needed.iter().all(|&code| probe.is_supported(code))
        {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "io_uring is too old"));
        }
        Ok(Self { io, slots: Mutex::default() })
    }

    /// From now on, writing to `bell` ends a wait in [`Self::enter`].
    pub(super) fn set_bell(&self, bell: Arc<OwnedFd>) {
        let mut slots = self.slots();
        slots.bell = Some(bell);
        self.arm_bell(&mut slots);
    }

    /// Puts a request into the queue, from which [`Self::enter`] hands it to the kernel. Says how many are in the queue
    /// and how many in flight, with this one.
    ///
    /// # Errors
    /// Gives the request back if there is no way to take it.
    pub(super) fn push(&self, request: Request) -> Result<(usize, usize), Request> {
        let Ok(len) = u32::try_from(request.buf.len()) else { return Err(request) };
        if request.offset > i64::MAX as u64 {
            return Err(request);
        }
        let mut slots = self.slots();
        let index = slots.free.pop().unwrap_or_else(|| {
            slots.requests.push(None);
            slots.requests.len() - 1
        });
        // First into its slot, then to the kernel.
        let request = slots.requests[index].insert(request);
        let file = match request.action {
            Action::Read => request.storage.file(),
            Action::Write | Action::Sync => request.storage.write_file(),
        };
        let file = types::Fd(file.as_raw_fd());
        let entry = match request.action {
            Action::Read => opcode::Read::new(file, request.buf.as_mut_ptr(), len)
                .offset(request.offset)
                .build(),
            Action::Write => {
                opcode::Write::new(file, request.buf.as_ptr(), len).offset(request.offset).build()
            }
            Action::Sync => opcode::Fsync::new(file).flags(types::FsyncFlags::DATASYNC).build(),
        };
        // SAFETY: the buffer is valid for `len` bytes and the file is open; both stay in the slot, where nothing
        // touches them, until the completion with this index was taken from the queue.
        if let Some(queued) = unsafe { self.push_entry(&slots, &entry.user_data(index as u64)) } {
            return Ok((queued, slots.in_flight()));
        }
        let request = slots.requests[index].take();
        slots.free.push(index);
        match request {
            Some(request) => Err(request),
            None => unreachable!("the request was put into its slot above"),
        }
    }

    /// Hands the queue to the kernel and waits for `want` completions (0 or 1).
    ///
    /// # Errors
    /// What the kernel says; an interrupted or momentarily refused call is none.
    pub(super) fn enter(&self, want: usize) -> io::Result<()> {
        match self.io.submit_and_wait(want) {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
                // A later call does it.
                Some(
                    rustix::io::Errno::INTR | rustix::io::Errno::AGAIN | rustix::io::Errno::BUSY,
                ) => Ok(()),
                _ => Err(error),
            },
        }
    }

    /// Takes what has completed and tells those who wait for it. Says how many requests stay in flight.
    pub(super) fn reap(&self) -> usize {
        let (mut done, in_flight) = {
            let mut slots = self.slots();
            let mut done = std::mem::take(&mut slots.done);
            let mut rung = false;
            // SAFETY: under the lock of the slots there is no other completion queue.
            for entry in unsafe { self.io.completion_shared() } {
                if entry.user_data() == BELL {
                    rung = true;
                    continue;
                }
                // OK to unwrap: an index went into the queue as one.
                let index = usize::try_from(entry.user_data()).unwrap_or(usize::MAX);
                if let Some(request) = slots.requests.get_mut(index).and_then(Option::take) {
                    slots.free.push(index);
                    done.push((request, entry.result()));
                }
            }
            if rung {
                slots.bell_is_armed = false;
            }
            self.arm_bell(&mut slots);
            (done, slots.in_flight())
        };
        // Not under the lock: who is told may ask for more at once.
        for (request, result) in done.drain(..) {
            let Request { buf, completion, storage, .. } = request;
            // Before whoever waits goes on, and perhaps ends the process: the last to let go of a file unlocks it.
            drop(storage);
            completion.complete(result, buf);
        }
        self.slots().done = done;
        in_flight
    }

    /// Waits until nothing is in flight any more.
    pub(super) fn drain(&self) -> io::Result<()> {
        while self.reap() > 0 {
            self.enter(1)?;
        }
        Ok(())
    }

    fn arm_bell(&self, slots: &mut Slots) {
        let Some(bell) = &slots.bell else { return };
        if slots.bell_is_armed {
            return;
        }
        // What was rung before this, the caller has come out of its wait for.
        let _ = rustix::io::read(bell, &mut [0; 8]);
        let poll = opcode::PollAdd::new(types::Fd(bell.as_raw_fd()), libc_pollin()).build();
        // SAFETY: a poll uses no memory. The file is open as long as the ring, which has it.
        let pushed = unsafe { self.push_entry(slots, &poll.user_data(BELL)) };
        // With a full queue it is tried again at the next reap, which comes: something is in flight.
        slots.bell_is_armed = pushed.is_some();
    }

    /// Puts an entry into the queue and says how many are in it. Makes room once if it is full.
    ///
    /// # Safety
    /// What the entry points to must be valid until its completion was taken from the queue.
    unsafe fn push_entry(&self, _locked: &Slots, entry: &squeue::Entry) -> Option<usize> {
        for _ in 0..2 {
            // SAFETY: under the lock of the slots there is no other submission queue.
            let mut queue = unsafe { self.io.submission_shared() };
            // SAFETY: as the caller promises.
            if unsafe { queue.push(entry) }.is_ok() {
                return Some(queue.len());
            }
            drop(queue);
            self.enter(0).ok()?;
        }
        None
    }

    /// A panic under the lock can only come from memory running out, before anything was changed.
    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `POLLIN`, without asking for a crate that only names it.
fn libc_pollin() -> u32 {
    u32::from(rustix::event::PollFlags::IN.bits())
}

impl Drop for Ring {
    fn drop(&mut self) {
        if self.drain().is_err() {
            // The kernel may still use the buffers: they stay where they are for good.
            std::mem::forget(std::mem::take(&mut *self.slots()));
        }
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring").field("in_flight", &self.slots().in_flight()).finish_non_exhaustive()
    }
}
