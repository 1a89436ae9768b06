//! Running a future on the thread that asks, and serving that thread's io_uring while it waits.

use std::cell::Cell;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};

#[cfg(all(target_os = "linux", feature = "uring"))]
use super::rings::Local;

/// Runs a future on this thread until it completes.
///
/// Any executor's `block_on` does; this one serves the requests of `UringStorage` without a
/// hand-off to another thread. For an executor of several threads run `block_on(executor.run(...))` on each.
///
/// What the future has asked of a storage and not waited for is waited for before this returns. A future that was
/// polled here and is then polled on another thread makes progress only while this thread is not blocked elsewhere.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let parker = Arc::new(Parker::new());
    let waker = Waker::from(Arc::clone(&parker));
    let mut context = Context::from_waker(&waker);
    let _driving = Driving::begin();
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
        parker.wait();
    }
}

thread_local! {
    /// How many `block_on` this thread is in.
    static DEPTH: Cell<usize> = const { Cell::new(0) };
}

/// Whether this thread is in [`block_on`]: it waits for the caller's future and for nothing else.
#[cfg(all(unix, feature = "file"))]
pub(super) fn is_driving() -> bool {
    DEPTH.try_with(|depth| depth.get() > 0).unwrap_or(false)
}

/// While it lives, this thread is in `block_on`.
struct Driving;

impl Driving {
    fn begin() -> Self {
        DEPTH.with(|depth| depth.set(depth.get() + 1));
        Self
    }
}

impl Drop for Driving {
    fn drop(&mut self) {
        let depth = DEPTH.with(|depth| {
            depth.set(depth.get() - 1);
            depth.get()
        });
        #[cfg(all(target_os = "linux", feature = "uring"))]
        if depth == 0 {
            super::rings::leave();
        }
        #[cfg(not(all(target_os = "linux", feature = "uring")))]
        let _ = depth;
    }
}

/// Wakes a thread in `block_on`, wherever it waits.
struct Parker {
    state: AtomicU8,
    thread: Thread,
    #[cfg(all(target_os = "linux", feature = "uring"))]
    bell: std::sync::OnceLock<Arc<std::os::fd::OwnedFd>>,
}

/// Being polled.
const RUNNING: u8 = 0;
/// To be polled again.
const WOKEN: u8 = 1;
/// Waiting without a ring.
const PARKED: u8 = 2;
/// Waiting for its ring.
#[cfg(all(target_os = "linux", feature = "uring"))]
const IN_RING: u8 = 3;

impl Parker {
    fn new() -> Self {
        Self {
            state: AtomicU8::new(RUNNING),
            thread: thread::current(),
            #[cfg(all(target_os = "linux", feature = "uring"))]
            bell: std::sync::OnceLock::new(),
        }
    }

    /// Waits until there may be something to poll for. Serves the thread's ring meanwhile.
    fn wait(&self) {
        #[cfg(all(target_os = "linux", feature = "uring"))]
        match Local::existing() {
            Some(local) => self.wait_in_ring(&local),
            None => self.park(),
        }
        #[cfg(not(all(target_os = "linux", feature = "uring")))]
        self.park();
        // Whoever woke it up to here is answered by the poll that follows.
        self.state.swap(RUNNING, Ordering::SeqCst);
    }

    fn park(&self) {
        if self.begin_wait(PARKED) {
            while self.state.load(Ordering::SeqCst) == PARKED {
                thread::park();
            }
        }
    }

    #[cfg(all(target_os = "linux", feature = "uring"))]
    fn wait_in_ring(&self, local: &Local) {
        self.bell.get_or_init(|| local.bell());
        if !self.begin_wait(IN_RING) {
            local.look();
            return;
        }
        local.wait();
        // What completes now needs no bell.
        self.state.swap(RUNNING, Ordering::SeqCst);
        local.reap();
    }

    /// Whether to wait: it was not woken since it was last polled.
    fn begin_wait(&self, how: u8) -> bool {
        self.state.compare_exchange(RUNNING, how, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }
}

impl Wake for Parker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        match self.state.swap(WOKEN, Ordering::SeqCst) {
            PARKED => self.thread.unpark(),
            #[cfg(all(target_os = "linux", feature = "uring"))]
            IN_RING => {
                if let Some(bell) = self.bell.get() {
                    super::rings::ring_bell(bell);
                }
            }
            _ => {}
        }
    }
}
