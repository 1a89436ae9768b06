//! The cleaner: that it does its work, and above all that it ends.
//!
//! QEMU's cleaner raced with requests for years, and the coroutine that replaced it can miss the wake-up of whoever
//! stops it: between reading its interval and going to sleep. Each test here puts the cleaner into one place (never
//! polled, in that window, asleep, in the middle of a pass, aborted, forgotten by its executor) and ends it there.
//! Time is the test's: the timer completes when the test says so.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak, mpsc};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Duration;

use crate::gated::Gated;
use cowshed::cache::{Cleaner, CleanerControl, TableCache};
use cowshed::format::HostOffset;
use cowshed::timer::Timer;
use futures::FutureExt;
use futures::channel::oneshot;
use futures::executor::block_on;
use futures::future::{AbortHandle, abortable};

const SLICE: u64 = 4096;
const INTERVAL: Duration = Duration::from_secs(600);

/// A timer that the test turns. Clones are the same one.
#[derive(Clone, Default)]
struct Hand {
    sleeps: Arc<Mutex<Vec<Sleep>>>,
    started: Arc<AtomicUsize>,
    /// What to do when the cleaner goes to sleep: after it has read its plan, before its sleep is polled.
    on_sleep: Arc<Mutex<Option<Action>>>,
}

type Sleep = (Duration, oneshot::Sender<()>);
type Action = Box<dyn FnOnce() + Send>;

impl Hand {
    /// The sleeps that go on now. One whose future was dropped does not.
    fn asleep(&self) -> Vec<Duration> {
        let mut sleeps = self.sleeps.lock().unwrap();
        sleeps.retain(|(_, sender)| !sender.is_canceled());
        sleeps.iter().map(|(duration, _)| *duration).collect()
    }

    /// Ends the one sleep that goes on.
    fn ring(&self) {
        assert_eq!(self.asleep().len(), 1, "one cleaner sleeps once at a time");
        let (_, sender) = self.sleeps.lock().unwrap().pop().unwrap();
        sender.send(()).unwrap();
    }

    fn on_sleep(&self, action: impl FnOnce() + Send + 'static) {
        *self.on_sleep.lock().unwrap() = Some(Box::new(action));
    }

    fn started(&self) -> usize {
        self.started.load(Ordering::SeqCst)
    }
}

impl Timer for Hand {
    async fn sleep(&self, duration: Duration) {
        // An `async fn` starts when it is polled; see `Eager` for the window before that.
        let (sender, receiver) = oneshot::channel();
        self.sleeps.lock().unwrap().push((duration, sender));
        self.started.fetch_add(1, Ordering::SeqCst);
        let action = self.on_sleep.lock().unwrap().take();
        if let Some(action) = action {
            action();
        }
        receiver.await.unwrap();
    }
}

/// A timer that acts when `sleep` is called, before anything is polled.
struct Eager(Hand);

impl Timer for Eager {
    fn sleep(&self, duration: Duration) -> impl Future<Output = ()> {
        let action = self.0.on_sleep.lock().unwrap().take();
        if let Some(action) = action {
            action();
        }
        self.0.sleep(duration)
    }
}

/// A cache with something in it, its control and its timer.
struct Scene {
    cache: Arc<TableCache>,
    second: Arc<TableCache>,
    control: Arc<CleanerControl>,
    hand: Hand,
}

type Run = Pin<Box<dyn Future<Output = ()> + Send>>;

impl Scene {
    fn new(interval: Duration) -> Self {
        let cache = Arc::new(TableCache::new(1024 * SLICE, SLICE));
        let second = Arc::new(TableCache::new(1024 * SLICE, SLICE));
        let control = CleanerControl::new([cache.clone(), second.clone()], interval);
        let scene = Self { cache, second, control: Arc::new(control), hand: Hand::default() };
        scene.load(0..10);
        scene
    }

    fn load(&self, numbers: std::ops::Range<u64>) {
        for number in numbers {
            for cache in [&self.cache, &self.second] {
                block_on(cache.get(&Gated::open(), HostOffset::new(number * SLICE))).unwrap();
            }
        }
    }

    fn start(&self) -> Run {
        self.run(self.control.start().unwrap())
    }

    fn run(&self, cleaner: Cleaner) -> Run {
        Box::pin(cleaner.run(self.hand.clone()))
    }

    /// Both caches are swept alike, so one number says it.
    fn passes(&self) -> u64 {
        let passes = self.cache.statistics().passes;
        assert_eq!(self.second.statistics().passes, passes);
        passes
    }

    fn held(&self) -> u64 {
        self.cache.statistics().bytes_held + self.second.statistics().bytes_held
    }

    /// Stops and joins, which must not wait for anything.
    fn close(&self) {
        self.control.stop();
        self.control.join().now_or_never().expect("join waits although no step is under way");
    }
}

/// Polls until nothing moves; whether the future is done.
fn poll(run: &mut Run) -> bool {
    // The cleaner yields between steps by waking itself; a bounded number of polls is enough for any pass here.
    (0..100).any(|_| run.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready())
}

#[test]
fn cleaner_passes_over_every_cache_once_an_interval() {
    let scene = Scene::new(INTERVAL);
    let mut run = scene.start();
    assert!(!poll(&mut run));
    assert_eq!((scene.hand.asleep(), scene.passes()), (vec![INTERVAL], 0));
    scene.hand.ring();
    assert!(!poll(&mut run));
    assert_eq!((scene.hand.asleep(), scene.passes()), (vec![INTERVAL], 1));
    assert_eq!(scene.held(), 20 * SLICE);
    scene.hand.ring();
    assert!(!poll(&mut run));
    assert_eq!((scene.passes(), scene.held()), (2, 0));
    assert_eq!(scene.hand.started(), 3);
}

#[test]
fn no_cleaner_is_given_out_while_the_interval_is_zero() {
    assert!(Scene::new(Duration::ZERO).control.start().is_none());
}

#[test]
fn stop_ends_a_sleeping_cleaner_without_a_pass_and_without_a_timer_left() {
    let scene = Scene::new(INTERVAL);
    let mut run = scene.start();
    assert!(!poll(&mut run));
    scene.close();
    assert!(poll(&mut run));
    assert_eq!((scene.hand.asleep(), scene.passes()), (vec![], 0));
}

#[test]
fn stop_wakes_the_task_that_runs_the_cleaner() {
    let scene = Scene::new(INTERVAL);
    let run = scene.start();
    let thread = thread::spawn(move || block_on(run));
    while scene.hand.asleep().is_empty() {
        thread::yield_now();
    }
    scene.close();
    thread.join().unwrap();
}

#[test]
fn stop_between_reading_the_plan_and_sleeping_is_not_lost() {
    let scene = Scene::new(INTERVAL);
    let control = scene.control.clone();
    scene.hand.on_sleep(move || control.stop());
    let cleaner = scene.control.start().unwrap();
    let mut run: Run = Box::pin(cleaner.run(Eager(scene.hand.clone())));
    assert!(poll(&mut run), "the cleaner sleeps for ten minutes although it was told to stop");
    scene.close();
}

#[test]
fn stop_while_the_sleep_is_polled_first_is_not_lost() {
    let scene = Scene::new(INTERVAL);
    let control = scene.control.clone();
    scene.hand.on_sleep(move || control.stop());
    let run = scene.start();
    // A real waker: the cleaner has been polled once, and only a wake-up brings the second poll.
    block_on(run);
    scene.close();
}

#[test]
fn stop_before_the_first_poll_ends_the_cleaner_at_it() {
    let scene = Scene::new(INTERVAL);
    let mut run = scene.start();
    scene.close();
    assert!(poll(&mut run));
    assert_eq!((scene.hand.started(), scene.passes()), (0, 0));
}

#[test]
fn stop_and_join_may_be_repeated_in_any_order_and_without_a_cleaner() {
    let scene = Scene::new(INTERVAL);
    scene.close();
    let mut run = scene.start();
    poll(&mut run);
    for _ in 0..3 {
        scene.close();
    }
    assert!(poll(&mut run));
    scene.close();
    drop(run);
    scene.close();
}

#[test]
fn join_returns_whatever_became_of_the_cleaner() {
    type End = fn(&Scene, Run);
    let ends: [(&str, End); 6] = [
        ("never polled", |scene, run| {
            scene.close();
            drop(run);
        }),
        ("dropped", |scene, run| {
            drop(run);
            scene.close();
        }),
        ("dropped while asleep", |scene, mut run| {
            assert!(!poll(&mut run));
            drop(run);
            scene.close();
        }),
        ("aborted while asleep", |scene, run| {
            let (run, handle): (_, AbortHandle) = abortable(run);
            let mut run = Box::pin(run);
            assert!(run.as_mut().now_or_never().is_none());
            handle.abort();
            assert!(run.as_mut().now_or_never().unwrap().is_err());
            scene.close();
        }),
        ("asleep, its executor gone", |scene, mut run| {
            assert!(!poll(&mut run));
            scene.close();
            std::mem::forget(run);
        }),
        ("forgotten before it was polled", |scene, run| {
            std::mem::forget(run);
            scene.close();
        }),
    ];
    for (name, end) in ends {
        println!("{name}");
        let scene = Scene::new(INTERVAL);
        let run = scene.start();
        end(&scene, run);
        assert_eq!(scene.passes(), 0);
        // A forgotten future keeps nothing of the image alive.
        let (cache, second) = (Arc::downgrade(&scene.cache), Arc::downgrade(&scene.second));
        drop(scene);
        assert_eq!(cache.strong_count() + second.strong_count(), 0, "{name}");
    }
}

#[test]
fn cleaner_that_is_forgotten_in_the_middle_of_a_pass_is_joined_and_passes_no_more() {
    let scene = Scene::new(INTERVAL);
    // Enough to drop that a pass takes several steps.
    scene.load(0..1000);
    scene.cache.pass();
    scene.second.pass();
    let mut run = scene.start();
    let mut context = Context::from_waker(Waker::noop());
    assert!(run.as_mut().poll(&mut context).is_pending());
    scene.hand.ring();
    while scene.held() == 2000 * SLICE {
        assert!(run.as_mut().poll(&mut context).is_pending());
    }
    assert_eq!(scene.cache.statistics().passes, 1, "the pass is still under way");
    let held = scene.held();
    assert!(0 < held, "some of it is done");
    scene.close();
    assert!(poll(&mut run));
    assert_eq!(scene.held(), held, "a stopped cleaner has swept on");
    scene.load(0..1000);
}

#[test]
fn cleaner_aborted_between_any_two_steps_leaves_the_caches_whole() {
    for polls in 0..20 {
        let scene = Scene::new(INTERVAL);
        scene.load(0..1000);
        scene.cache.pass();
        scene.second.pass();
        let mut run = scene.start();
        let mut context = Context::from_waker(Waker::noop());
        assert!(run.as_mut().poll(&mut context).is_pending());
        scene.hand.ring();
        for _ in 0..polls {
            assert!(run.as_mut().poll(&mut context).is_pending());
        }
        drop(run);
        scene.load(0..1000);
        assert_eq!(scene.held(), 2000 * SLICE);
        let mut next = scene.start();
        poll(&mut next);
        scene.close();
    }
}

#[test]
fn join_waits_for_the_step_under_way_and_nothing_is_swept_after_it() {
    let scene = Scene::new(INTERVAL);
    // A look-up that does not end holds its stripe's lock, and so the step that comes to it.
    let (entered, has_entered) = mpsc::channel();
    let (leave, may_leave) = mpsc::channel::<()>();
    let cache = scene.cache.clone();
    let reader = thread::spawn(move || {
        cache.hit(HostOffset::new(0), |_| {
            entered.send(()).unwrap();
            may_leave.recv().unwrap();
        });
    });
    has_entered.recv().unwrap();
    let mut run = scene.start();
    assert!(!poll(&mut run));
    scene.hand.ring();
    let cleaner = thread::spawn(move || block_on(run));
    // The cleaner is in its step once the timer is gone, or about to be: join must cover both.
    thread::sleep(Duration::from_millis(50));
    scene.control.stop();
    let mut joins: Vec<_> = (0..3).map(|_| Box::pin(scene.control.join())).collect();
    for join in &mut joins {
        assert!(join.as_mut().now_or_never().is_none(), "the step goes on");
    }
    assert!(scene.control.start().is_none(), "never two at a time");
    leave.send(()).unwrap();
    joins.into_iter().for_each(block_on);
    let after = (scene.held(), scene.cache.statistics(), scene.second.statistics());
    cleaner.join().unwrap();
    reader.join().unwrap();
    let then = (scene.held(), scene.cache.statistics(), scene.second.statistics());
    assert_eq!(after, then);
    assert_eq!(scene.second.statistics().passes, 0, "the next step did not begin");
}

#[test]
fn at_most_one_cleaner_is_out() {
    let scene = Scene::new(INTERVAL);
    let cleaner = scene.control.start().unwrap();
    assert!(scene.control.start().is_none());
    drop(cleaner);
    let mut run = scene.start();
    assert!(scene.control.start().is_none());
    assert!(!poll(&mut run));
    assert!(scene.control.start().is_none());
    scene.close();
    let mut next = scene.start();
    assert!(poll(&mut run), "the old one stays stopped");
    assert!(!poll(&mut next), "the new one runs");
    assert_eq!(scene.hand.asleep(), [INTERVAL]);
}

#[test]
fn interval_survives_a_stop_and_a_move_to_another_executor() {
    let scene = Scene::new(INTERVAL);
    for _ in 0..3 {
        let mut run = scene.start();
        assert!(!poll(&mut run));
        assert_eq!(scene.hand.asleep(), [INTERVAL]);
        scene.close();
        drop(run);
        assert_eq!(scene.control.interval(), INTERVAL);
    }
}

#[test]
fn changed_interval_restarts_with_a_whole_new_one() {
    let scene = Scene::new(INTERVAL);
    let mut run = scene.start();
    assert!(!poll(&mut run));
    let shorter = Duration::from_secs(5);
    assert!(block_on(scene.control.set_interval(shorter)).is_none());
    assert!(!poll(&mut run));
    assert_eq!((scene.hand.asleep(), scene.passes()), (vec![shorter], 0));
    scene.hand.ring();
    assert!(!poll(&mut run));
    assert_eq!((scene.hand.asleep(), scene.passes()), (vec![shorter], 1));
    assert_eq!(scene.control.interval(), shorter);
}

#[test]
fn same_interval_leaves_the_sleep_alone() {
    let scene = Scene::new(INTERVAL);
    let mut run = scene.start();
    assert!(!poll(&mut run));
    assert!(block_on(scene.control.set_interval(INTERVAL)).is_none());
    assert!(!poll(&mut run));
    assert_eq!(scene.hand.started(), 1);
}

#[test]
fn interval_changed_between_reading_the_plan_and_sleeping_is_not_lost() {
    let scene = Scene::new(INTERVAL);
    let shorter = Duration::from_secs(5);
    let control = scene.control.clone();
    scene.hand.on_sleep(move || assert!(block_on(control.set_interval(shorter)).is_none()));
    let cleaner = scene.control.start().unwrap();
    let mut run: Run = Box::pin(cleaner.run(Eager(scene.hand.clone())));
    assert!(!poll(&mut run));
    assert_eq!(scene.hand.asleep(), [shorter]);
}

#[test]
fn interval_to_zero_stops_and_joins_and_back_gives_out_a_new_cleaner() {
    let scene = Scene::new(INTERVAL);
    let mut run = scene.start();
    assert!(!poll(&mut run));
    assert!(scene.control.set_interval(Duration::ZERO).now_or_never().unwrap().is_none());
    assert!(poll(&mut run));
    assert!(scene.hand.asleep().is_empty());
    assert!(scene.control.start().is_none());
    let cleaner = scene.control.set_interval(INTERVAL).now_or_never().unwrap().unwrap();
    let mut run = scene.run(cleaner);
    assert!(!poll(&mut run));
    assert_eq!(scene.hand.asleep(), [INTERVAL]);
}

#[test]
fn interval_set_after_the_cleaner_was_dropped_gives_out_a_new_one() {
    let scene = Scene::new(INTERVAL);
    drop(scene.start());
    assert!(block_on(scene.control.set_interval(INTERVAL)).is_some());
}

#[test]
fn dropped_owner_ends_the_cleaner_and_frees_the_caches() {
    let scene = Scene::new(INTERVAL);
    let mut run = scene.start();
    assert!(!poll(&mut run));
    let Scene { cache, second, control, hand } = scene;
    let caches: [Weak<TableCache>; 2] = [Arc::downgrade(&cache), Arc::downgrade(&second)];
    drop((cache, second, control));
    assert!(caches.iter().all(|cache| cache.upgrade().is_none()));
    assert!(poll(&mut run));
    assert!(hand.asleep().is_empty());
}

#[test]
fn dropped_owner_wakes_the_task_that_runs_the_cleaner() {
    let scene = Scene::new(INTERVAL);
    let run = scene.start();
    let thread = thread::spawn(move || block_on(run));
    while scene.hand.asleep().is_empty() {
        thread::yield_now();
    }
    drop(scene);
    thread.join().unwrap();
}

#[test]
fn stop_at_any_moment_from_another_thread_ends_the_cleaner() {
    // A timer that completes at its second poll makes the cleaner run through all its places all the time.
    #[derive(Clone)]
    struct Busy;
    impl Timer for Busy {
        async fn sleep(&self, _duration: Duration) {
            let mut polled = false;
            futures::future::poll_fn(|context| {
                if std::mem::replace(&mut polled, true) {
                    return Poll::Ready(());
                }
                context.waker().wake_by_ref();
                Poll::Pending
            })
            .await;
        }
    }
    for round in 0..500 {
        let scene = Scene::new(INTERVAL);
        let cleaner = scene.control.start().unwrap();
        let thread = thread::spawn(move || block_on(cleaner.run(Busy)));
        for _ in 0..round * 7 % 100 {
            std::hint::spin_loop();
        }
        scene.control.stop();
        block_on(scene.control.join());
        let passes = (scene.cache.statistics().passes, scene.second.statistics().passes);
        thread.join().unwrap();
        let then = (scene.cache.statistics().passes, scene.second.statistics().passes);
        assert_eq!(passes, then, "a pass has gone on after join");
    }
}

#[test]
fn cleaner_is_send_where_its_timer_is() {
    fn assert_send<T: Send>(_: &T) {}
    let scene = Scene::new(INTERVAL);
    let run = scene.control.start().unwrap().run(Hand::default());
    assert_send(&run);
    assert_send(&scene.control.join());
    assert_send(&scene.control.set_interval(INTERVAL));
    let storage = Gated::open();
    assert_send(&scene.cache.get(&storage, HostOffset::new(0)));
}
