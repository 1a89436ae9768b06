//! Running on the JavaScript event loop: a single-threaded executor, a timer, and yielding to the page.
//!
//! [`BrowserExecutor`] is async-executor's `LocalExecutor`, driven by microtasks. Microtasks run before the page gets
//! to paint or to see input, so work that never waits for anything would freeze it: after a slice of [`SLICE_MS`] the
//! executor goes on in a task of the event loop (a message to itself), with the page's own work in between.
//!
//! [`JsTimer`] is `setTimeout` of the global object. Both work in windows, in workers and in Node, whose process is kept alive
//! by tasks that have work, not by those that sleep.
//!
//! It must not know the image or the cache.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use async_executor::{LocalExecutor, Task};
use js_sys::Function;
use wasm_bindgen::prelude::*;
use web_sys::MessageChannel;

use crate::timer::Timer;

/// How long the executor runs before it lets the page paint and see input. Milliseconds. One poll of one task is not
/// interrupted.
pub const SLICE_MS: f64 = 5.0;

/// The longest delay that `setTimeout` can express; a longer one fires at once. Milliseconds.
const TIMEOUT_MS_MAX: f64 = 2_147_483_647.0;

#[wasm_bindgen]
extern "C" {
    #[wasm_bindgen(js_name = setTimeout)]
    fn set_timeout(handler: &Function, delay_ms: f64) -> JsValue;
    #[wasm_bindgen(js_name = clearTimeout)]
    fn clear_timeout(handle: &JsValue);
    /// Milliseconds on a clock that only goes forward.
    #[wasm_bindgen(js_namespace = performance, js_name = now)]
    pub(super) fn now_ms() -> f64;
}

/// An executor on the event loop of the window or worker that made it.
///
/// Clones are handles to one executor. When the last handle is dropped, the executor stops at its next turn and drops
/// the tasks that it has.
#[derive(Clone)]
pub struct BrowserExecutor {
    handle: Rc<Handle>,
}

/// Stops the driver when dropped.
struct Handle {
    shared: Rc<Shared>,
}

struct Shared {
    executor: LocalExecutor<'static>,
    turn: Turn,
    stopped: Cell<bool>,
    driver: RefCell<Option<Waker>>,
}

impl BrowserExecutor {
    /// Starts an executor.
    #[must_use]
    pub fn new() -> Self {
        let shared = Rc::new(Shared {
            executor: LocalExecutor::new(),
            turn: Turn::default(),
            stopped: Cell::new(false),
            driver: RefCell::new(None),
        });
        wasm_bindgen_futures::spawn_local(drive(Rc::clone(&shared)));
        Self { handle: Rc::new(Handle { shared }) }
    }

    /// Runs `future` on this executor. Dropping the task ends the future; detaching it lets it run on.
    pub fn spawn<F>(&self, future: F) -> Task<F::Output>
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        self.handle.shared.executor.spawn(future)
    }

    /// How often the executor has given way to the page since it was made.
    #[must_use]
    pub fn turns(&self) -> u64 {
        self.handle.shared.turn.state.count.get()
    }
}

impl Default for BrowserExecutor {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for BrowserExecutor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BrowserExecutor").field("turns", &self.turns()).finish_non_exhaustive()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.stopped.set(true);
        let driver = self.shared.driver.borrow_mut().take();
        if let Some(driver) = driver {
            driver.wake();
        }
    }
}

/// Runs the tasks until the last handle is gone.
async fn drive(shared: Rc<Shared>) {
    loop {
        let mut tick = pin!(shared.executor.tick());
        let ticked = poll_fn(|cx| {
            if shared.stopped.get() {
                return Poll::Ready(false);
            }
            shared.turn.begin();
            let polled = tick.as_mut().poll(cx).map(|()| true);
            if polled.is_pending() {
                shared.turn.pause();
                *shared.driver.borrow_mut() = Some(cx.waker().clone());
            }
            polled
        });
        if !ticked.await {
            return;
        }
        shared.turn.end().await;
    }
}

/// A turn of the event loop: from when the executor first runs a task until a message that it then sent to itself arrives, which
/// is when the page has had its say.
#[derive(Default)]
struct Turn {
    state: Rc<TurnState>,
    loopback: RefCell<Option<Loopback>>,
}

#[derive(Default)]
struct TurnState {
    /// When the turn began; `None` between turns.
    began_ms: Cell<Option<f64>>,
    /// Whether the message that ends the turn is under way.
    sent: Cell<bool>,
    waker: RefCell<Option<Waker>>,
    count: Cell<u64>,
}

/// A channel from the executor to itself.
struct Loopback {
    channel: MessageChannel,
    _on_message: Closure<dyn FnMut()>,
}

impl Turn {
    /// Notes when the turn began, if it has not.
    fn begin(&self) {
        if self.state.began_ms.get().is_none() {
            self.state.began_ms.set(Some(now_ms()));
        }
    }

    /// Forgets a turn in which nothing ran.
    fn pause(&self) {
        if !self.state.sent.get() {
            self.state.began_ms.set(None);
        }
    }

    /// Waits for the end of the turn if its slice is over.
    async fn end(&self) {
        let Some(began_ms) = self.state.began_ms.get() else { return };
        if !self.state.sent.get() {
            self.send();
        }
        if now_ms() - began_ms < SLICE_MS {
            return;
        }
        poll_fn(|cx| {
            if self.state.began_ms.get().is_none() {
                return Poll::Ready(());
            }
            *self.state.waker.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Sends the message that ends the turn. Without channels (nothing known lacks them) turns never end by slice.
    fn send(&self) {
        let mut loopback = self.loopback.borrow_mut();
        if loopback.is_none() {
            *loopback = Loopback::new(&self.state);
        }
        let sent = loopback
            .as_ref()
            .is_some_and(|loopback| loopback.channel.port2().post_message(&JsValue::NULL).is_ok());
        if sent {
            hold_process(loopback.as_ref().map(|loopback| loopback.channel.port1()), true);
            self.state.sent.set(true);
        } else {
            self.state.began_ms.set(None);
        }
    }
}

impl Loopback {
    fn new(state: &Rc<TurnState>) -> Option<Self> {
        let channel = MessageChannel::new().ok()?;
        let state = Rc::clone(state);
        let port = channel.port1();
        let on_message = Closure::<dyn FnMut()>::new(move || {
            hold_process(Some(port.clone()), false);
            state.sent.set(false);
            state.began_ms.set(None);
            state.count.set(state.count.get() + 1);
            let waker = state.waker.borrow_mut().take();
            if let Some(waker) = waker {
                waker.wake();
            }
        });
        channel.port1().set_onmessage(Some(on_message.as_ref().unchecked_ref()));
        hold_process(Some(channel.port1()), false);
        Some(Self { channel, _on_message: on_message })
    }
}

impl Drop for Loopback {
    fn drop(&mut self) {
        self.channel.port1().set_onmessage(None);
        self.channel.port1().close();
        self.channel.port2().close();
    }
}

/// Whether what it is asked of (a port, a timeout) keeps the process alive by itself: in Node, where it can say so.
fn hold_process(what: Option<impl Into<JsValue>>, hold: bool) {
    let Some(what) = what.map(Into::into) else { return };
    let method = JsValue::from_str(if hold { "ref" } else { "unref" });
    let method = js_sys::Reflect::get(&what, &method).ok();
    if let Some(method) = method.and_then(|method| method.dyn_into::<Function>().ok()) {
        // It throws nothing.
        let _ = method.call0(&what);
    }
}

thread_local! {
    /// Timeouts set and neither fired nor cleared.
    static TIMEOUTS: Cell<usize> = const { Cell::new(0) };
}

/// A [`Timer`] on `setTimeout`.
///
/// A delay longer than `setTimeout` can express is split. A hidden page's timeouts are throttled by the browser: the
/// sleep is then longer, never shorter.
#[derive(Debug, Default, Clone, Copy)]
pub struct JsTimer;

impl JsTimer {
    /// How many timeouts this window or worker has waiting through [`JsTimer`].
    #[must_use]
    pub fn waiting() -> usize {
        TIMEOUTS.get()
    }
}

impl Timer for JsTimer {
    fn sleep(&self, duration: Duration) -> impl Future<Output = ()> {
        Sleep { duration, deadline_ms: None, timeout: None }
    }
}

struct Sleep {
    duration: Duration,
    /// On the clock of [`now_ms`]; from the first poll.
    deadline_ms: Option<f64>,
    timeout: Option<Timeout>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let now = now_ms();
        let deadline = *this.deadline_ms.get_or_insert(now + this.duration.as_secs_f64() * 1000.0);
        if let Some(timeout) = &this.timeout {
            if !timeout.state.fired.get() {
                timeout.wake_by(cx);
                return Poll::Pending;
            }
            if now >= deadline {
                this.timeout = None;
                return Poll::Ready(());
            }
        }
        // The first, the next part of a long delay, or one that fired a little early.
        let timeout = Timeout::new((deadline - now).max(0.0));
        timeout.wake_by(cx);
        this.timeout = Some(timeout);
        Poll::Pending
    }
}

/// A timeout of the event loop; cleared when dropped.
struct Timeout {
    handle: JsValue,
    state: Rc<TimeoutState>,
    _on_fire: Closure<dyn FnMut()>,
}

#[derive(Default)]
struct TimeoutState {
    fired: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Timeout {
    fn new(delay_ms: f64) -> Self {
        let state = Rc::new(TimeoutState::default());
        let on_fire = Closure::<dyn FnMut()>::new({
            let state = Rc::clone(&state);
            move || {
                state.fired.set(true);
                TIMEOUTS.set(TIMEOUTS.get() - 1);
                let waker = state.waker.borrow_mut().take();
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
        });
        let delay_ms = delay_ms.ceil().min(TIMEOUT_MS_MAX);
        let handle = set_timeout(on_fire.as_ref().unchecked_ref(), delay_ms);
        hold_process(Some(handle.clone()), false);
        TIMEOUTS.set(TIMEOUTS.get() + 1);
        Self { handle, state, _on_fire: on_fire }
    }

    fn wake_by(&self, cx: &Context<'_>) {
        *self.state.waker.borrow_mut() = Some(cx.waker().clone());
    }
}

impl Drop for Timeout {
    fn drop(&mut self) {
        if !self.state.fired.get() {
            clear_timeout(&self.handle);
            TIMEOUTS.set(TIMEOUTS.get() - 1);
        }
    }
}
