//! Who submits requests to an io_uring and waits for them.
//!
//! A thread in [`block_on`](super::block_on()) has a ring of its own: what its future asks for while it is polled goes to the kernel in
//! one call, and that call is also how the thread waits. So a request costs one system call and no other thread, which
//! is what a plain `pread` costs. Every other thread (of tokio, of any executor that parks by other means) shares one
//! ring, which a thread of its own serves.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};

use super::block_on::is_driving;
use super::ring::{Request, Ring};

/// A request waits in a thread's own queue for the end of the poll, unless so many do, or none is in flight.
const QUEUED_MAX: usize = 16;

/// A thread that is never idle looks for completions once in so many polls.
const POLLS_BETWEEN_LOOKS: u32 = 8;

/// Whether this kernel lets this process have rings; found out once.
pub(super) fn is_available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| Ring::new().is_ok())
}

/// Hands a request to a ring.
///
/// # Errors
/// Gives it back if there is no ring that takes it.
pub(super) fn submit(request: Request) -> Result<(), Request> {
    if let Some(local) = Local::of_this_thread() {
        return local.submit(request);
    }
    match shared() {
        Some(shared) => shared.submit(request),
        None => Err(request),
    }
}

// ---- A thread's own ring

thread_local! {
    static LOCAL: RefCell<Option<Rc<Local>>> = const { RefCell::new(None) };
}

/// The ring of one thread.
pub(super) struct Local {
    ring: Ring,
    /// Ends a wait when it is written to.
    bell: Arc<OwnedFd>,
    /// Requests that the kernel does not know of yet.
    queued: Cell<usize>,
    polls_since_look: Cell<u32>,
}

impl Local {
    /// The thread's ring if there is one.
    pub(super) fn existing() -> Option<Rc<Self>> {
        LOCAL.try_with(|local| local.borrow().clone()).ok()?
    }

    /// What ends a wait.
    pub(super) fn bell(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.bell)
    }

    /// Submits what is queued and waits until something completes or the bell rings. [`Self::reap`] comes next.
    pub(super) fn wait(&self) {
        self.enter(1);
    }

    /// Tells who waits for what has completed.
    pub(super) fn reap(&self) {
        self.polls_since_look.set(0);
        self.ring.reap();
    }

    /// What a thread does that has no time to wait.
    pub(super) fn look(&self) {
        let polls = self.polls_since_look.get() + 1;
        self.polls_since_look.set(polls);
        if self.queued.get() > 0 || polls >= POLLS_BETWEEN_LOOKS {
            self.enter(0);
            self.reap();
        }
    }

    fn submit(&self, request: Request) -> Result<(), Request> {
        let (queued, in_flight) = self.ring.push(request)?;
        self.queued.set(queued);
        if queued >= QUEUED_MAX || queued == in_flight {
            self.enter(0);
        }
        Ok(())
    }

    fn enter(&self, want: usize) {
        self.queued.set(0);
        or_sleep(self.ring.enter(want));
    }

    /// The thread's ring, made when it is first asked for; `None` outside of `block_on` and without io_uring.
    fn of_this_thread() -> Option<Rc<Self>> {
        if !is_driving() {
            return None;
        }
        let of_this_thread = LOCAL.try_with(|local| {
            let mut local = local.borrow_mut();
            if local.is_none() {
                *local = Self::new().ok().map(Rc::new);
            }
            local.clone()
        });
        of_this_thread.ok()?
    }

    fn new() -> io::Result<Self> {
        let ring = Ring::new()?;
        let bell = new_bell()?;
        ring.set_bell(Arc::clone(&bell));
        Ok(Self { ring, bell, queued: Cell::new(0), polls_since_look: Cell::new(0) })
    }
}

/// What a thread does that leaves its last `block_on`: no one will look at its ring for a while, and someone elsewhere
/// may wait for what is in it.
pub(super) fn leave() {
    if let Some(local) = Local::existing() {
        let _ = local.ring.drain();
    }
}

// ---- The ring of everyone else

/// A ring that any thread puts requests into and that one thread hands to the kernel and waits for.
///
/// The asking threads do not enter the kernel for it: what they submit, the kernel completes on them, and would wake a
/// thread that sleeps in its executor only to have it wake the ring's.
struct Shared {
    ring: Ring,
    bell: Arc<OwnedFd>,
    /// The ring's thread waits for completions and the bell; if not, it looks into the queue before it does.
    is_asleep: AtomicBool,
}

/// The process's shared ring. It and its thread stay; idle, they cost nothing.
fn shared() -> &'static Option<Arc<Shared>> {
    static SHARED: OnceLock<Option<Arc<Shared>>> = OnceLock::new();
    SHARED.get_or_init(|| {
        // The kernel wants a ring with one issuer to be made by it.
        let (made, wait) = std::sync::mpsc::channel();
        let run = move || {
            let Ok(shared) = Shared::new().map(Arc::new) else { return };
            // OK to ignore: whoever asked waits for this.
            let _ = made.send(Arc::clone(&shared));
            shared.run();
        };
        thread::Builder::new().name("cowshed-uring".into()).spawn(run).ok()?;
        wait.recv().ok()
    })
}

impl Shared {
    fn new() -> io::Result<Self> {
        let ring = Ring::new()?;
        let bell = new_bell()?;
        ring.set_bell(Arc::clone(&bell));
        Ok(Self { ring, bell, is_asleep: AtomicBool::new(false) })
    }

    fn submit(&self, request: Request) -> Result<(), Request> {
        self.ring.push(request)?;
        // Either the thread sees what was pushed, or this sees it asleep. One caller wakes it, not all.
        fence(Ordering::SeqCst);
        if self.is_asleep.load(Ordering::SeqCst) && self.is_asleep.swap(false, Ordering::SeqCst) {
            ring_bell(&self.bell);
        }
        Ok(())
    }

    fn run(&self) {
        loop {
            self.is_asleep.store(true, Ordering::SeqCst);
            fence(Ordering::SeqCst);
            let result = self.ring.enter(1);
            self.is_asleep.store(false, Ordering::SeqCst);
            or_sleep(result);
            self.ring.reap();
        }
    }
}

fn new_bell() -> io::Result<Arc<OwnedFd>> {
    Ok(Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
}

/// Ends the wait of the thread whose ring has this bell.
pub(super) fn ring_bell(bell: &OwnedFd) {
    // It cannot be full: the thread empties it whenever it rings.
    let _ = rustix::io::write(bell, &1u64.to_ne_bytes());
}

/// The kernel refusing a ring that it made is not known to happen. Should it, better slow than spinning.
fn or_sleep(result: io::Result<()>) {
    if result.is_err() {
        thread::sleep(Duration::from_millis(1));
    }
}
