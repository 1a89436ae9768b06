//! A page freezes when its event loop is held up, and a timer left behind keeps firing into a closed image. These tests
//! hold the executor to giving way and the timer to leaving nothing.

use std::cell::{Cell, RefCell};
use std::future::pending;
use std::rc::Rc;
use std::time::Duration;

use cowshed::rt::{BrowserExecutor, JsTimer};
use cowshed::timer::Timer;
use futures::future::{Either, join_all, select};
use js_sys::Function;
use wasm_bindgen::prelude::*;
use wasm_bindgen_test::*;

#[wasm_bindgen]
extern "C" {
    #[wasm_bindgen(js_namespace = performance)]
    fn now() -> f64;
}

/// Keeps the processor busy.
fn spin(ms: f64) {
    let start = now();
    while now() - start < ms {}
}

async fn yield_now() {
    let mut yielded = false;
    std::future::poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return std::task::Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        std::task::Poll::Pending
    })
    .await;
}

/// Measures how long the page is kept waiting: a chain of tasks of the event loop, as input and painting are.
struct Heart {
    gaps: Rc<RefCell<Vec<f64>>>,
    stop: Function,
    _beat: Closure<dyn FnMut(f64)>,
}

impl Heart {
    fn start() -> Self {
        let gaps = Rc::new(RefCell::new(Vec::new()));
        let beat = Closure::<dyn FnMut(f64)>::new({
            let gaps = Rc::clone(&gaps);
            move |gap| gaps.borrow_mut().push(gap)
        });
        let start = Function::new_with_args(
            "beat",
            "const channel = new MessageChannel();
            let last = performance.now(), going = true;
            channel.port1.onmessage = () => {
                const now = performance.now();
                beat(now - last);
                last = now;
                if (going) channel.port2.postMessage(null); else channel.port1.close();
            };
            channel.port2.postMessage(null);
            return () => { going = false; };",
        );
        let stop = start.call1(&JsValue::NULL, beat.as_ref()).unwrap().unchecked_into();
        Self { gaps, stop, _beat: beat }
    }

    /// Stops, and returns the gap that half of the gaps do not exceed, and how many there were.
    fn median(&self) -> (f64, usize) {
        self.stop.call0(&JsValue::NULL).unwrap();
        let mut gaps = self.gaps.borrow().clone();
        gaps.sort_by(f64::total_cmp);
        (gaps.get(gaps.len() / 2).copied().unwrap_or(f64::INFINITY), gaps.len())
    }
}

#[wasm_bindgen_test]
async fn busy_tasks_give_way_to_the_page() {
    let executor = BrowserExecutor::new();
    let heart = Heart::start();
    // Four tasks that never wait for anything, 200 ms of work in steps of 0.5 ms.
    let tasks = (0..4).map(|_| {
        executor.spawn(async {
            for _ in 0..100 {
                spin(0.5);
                yield_now().await;
            }
        })
    });
    join_all(tasks.collect::<Vec<_>>()).await;
    let turns = executor.turns();
    assert!(turns >= 20, "{turns} turns in 200 ms of work");
    // The slice is 5 ms and a step 0.5 ms. A machine with more to do stops the whole browser now and then: not the longest
    // gap tells, but that there were many, and most of them short.
    let (median, beats) = heart.median();
    assert!(beats >= 20, "the page had {beats} turns in 200 ms of work");
    assert!(median < 16.0, "the page waited {median} ms half of the time");
}

#[wasm_bindgen_test]
async fn tasks_wake_each_other_without_waiting_for_the_event_loop() {
    let executor = BrowserExecutor::new();
    let count = Rc::new(Cell::new(0));
    let task = executor.spawn({
        let count = Rc::clone(&count);
        async move {
            for _ in 0..10_000 {
                yield_now().await;
                count.set(count.get() + 1);
            }
        }
    });
    let start = now();
    task.await;
    assert_eq!(count.get(), 10_000);
    let took = now() - start;
    assert!(took < 1000.0, "10,000 wake-ups took {took} ms");
}

#[wasm_bindgen_test]
async fn an_idle_executor_takes_no_turns() {
    let executor = BrowserExecutor::new();
    executor.spawn(async {}).await;
    JsTimer.sleep(Duration::from_millis(30)).await;
    let before = executor.turns();
    JsTimer.sleep(Duration::from_millis(50)).await;
    assert_eq!(executor.turns(), before);
}

#[wasm_bindgen_test]
async fn dropping_the_executor_drops_its_tasks() {
    struct Dropped(Rc<Cell<bool>>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            self.0.set(true);
        }
    }
    let executor = BrowserExecutor::new();
    let dropped = Rc::new(Cell::new(false));
    let guard = Dropped(Rc::clone(&dropped));
    executor
        .spawn(async move {
            let _guard = guard;
            JsTimer.sleep(Duration::from_secs(600)).await;
        })
        .detach();
    JsTimer.sleep(Duration::from_millis(5)).await;
    assert_eq!(JsTimer::waiting(), 1);
    assert!(!dropped.get());
    drop(executor.clone());
    JsTimer.sleep(Duration::from_millis(5)).await;
    assert!(!dropped.get(), "another handle was left");
    drop(executor);
    JsTimer.sleep(Duration::from_millis(5)).await;
    assert!(dropped.get());
    assert_eq!(JsTimer::waiting(), 0);
}

#[wasm_bindgen_test]
async fn a_cancelled_task_ends() {
    let executor = BrowserExecutor::new();
    let task = executor.spawn(pending::<()>());
    assert!(task.cancel().await.is_none());
}

#[wasm_bindgen_test]
async fn a_sleep_is_never_too_short() {
    for ms in [0, 1, 2, 7, 20, 33] {
        let start = now();
        JsTimer.sleep(Duration::from_millis(ms)).await;
        let took = now() - start;
        assert!(took >= ms as f64, "a sleep of {ms} ms took {took} ms");
    }
}

#[wasm_bindgen_test]
async fn a_sleep_longer_than_set_timeout_can_express_does_not_end_at_once() {
    for duration in [Duration::from_millis(1 << 31), Duration::from_secs(1 << 40), Duration::MAX] {
        let long = Box::pin(JsTimer.sleep(duration));
        let short = Box::pin(JsTimer.sleep(Duration::from_millis(20)));
        match select(long, short).await {
            Either::Left(_) => panic!("a sleep of {duration:?} ended at once"),
            Either::Right((_, long)) => drop(long),
        }
        assert_eq!(JsTimer::waiting(), 0);
    }
}

#[wasm_bindgen_test]
async fn a_dropped_sleep_leaves_no_timer_behind() {
    let mut sleeps: Vec<_> =
        (0..10).map(|_| Box::pin(JsTimer.sleep(Duration::from_secs(3600)))).collect();
    assert_eq!(JsTimer::waiting(), 0, "a sleep that was never polled sets no timer");
    for sleep in &mut sleeps {
        assert!(futures::poll!(sleep.as_mut()).is_pending());
    }
    assert_eq!(JsTimer::waiting(), 10);
    sleeps.truncate(4);
    assert_eq!(JsTimer::waiting(), 4);
    drop(sleeps);
    assert_eq!(JsTimer::waiting(), 0);
}

#[wasm_bindgen_test]
async fn a_fired_sleep_that_is_not_polled_again_is_not_counted() {
    let mut sleep = Box::pin(JsTimer.sleep(Duration::from_millis(1)));
    assert!(futures::poll!(sleep.as_mut()).is_pending());
    JsTimer.sleep(Duration::from_millis(20)).await;
    assert_eq!(JsTimer::waiting(), 0);
    drop(sleep);
    assert_eq!(JsTimer::waiting(), 0);
}
