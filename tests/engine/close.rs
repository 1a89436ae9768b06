//! The fear: a close that hangs, or that returns too early. Whatever the cleaner is doing, or whatever became of it, `close` returns,
//! and after it no cleaner code runs: asleep for ten minutes, between deciding to sleep and sleeping, in a pass, never polled,
//! dropped, aborted, its executor gone. It may be called by several tasks, says what the storage says, and may be called again.
//!
//! `cache_cleaner.rs` says the same of the cleaner alone; here it is a whole image.

use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::medium::Medium;
use async_executor::Executor;
use cowshed::Error;
use cowshed::cache::{Cleaner, mutant};
use cowshed::image::{CreateOptions, Image, OpenOptions, RefuseAll, Source, WriteOptions, create};
use cowshed::rt::SmolTimer;
use cowshed::sim;
use cowshed::storage::BoxStorage;
use cowshed::timer::Timer;
use futures::executor::block_on;
use futures::future::{abortable, pending};
use futures::{FutureExt, pin_mut, poll};

const DISK_LEN: u64 = 4 << 20;

type TestImage = Image<BoxStorage>;

/// A timer that never rings: only a wake-up ends its sleep.
struct Never;

impl Timer for Never {
    async fn sleep(&self, _: Duration) {
        pending().await
    }
}

/// A timer that rings at once.
struct AtOnce;

impl Timer for AtOnce {
    async fn sleep(&self, _: Duration) {}
}

/// Does something between the cleaner's decision to sleep and its sleep, which then never ends.
struct Before<F>(F);

impl<F: Fn()> Timer for Before<F> {
    fn sleep(&self, _: Duration) -> impl Future<Output = ()> {
        (self.0)();
        pending()
    }
}

/// An image with a write that is not flushed, and its cleaner.
fn open() -> (Arc<Medium>, Arc<TestImage>, Cleaner) {
    let medium = Arc::new(Medium::default());
    let mut options = CreateOptions::new(DISK_LEN);
    options.cluster_size = 4096;
    block_on(create(&medium, None, &options)).unwrap();
    let mut options = OpenOptions::default();
    options.write = Some(WriteOptions::default());
    let source = Source::qcow2(BoxStorage::new(Arc::clone(&medium)), "image");
    let opened = block_on(Image::open(source, &RefuseAll::new(), options)).unwrap();
    block_on(opened.image.write_at(&[7; 4096], 0)).unwrap();
    (medium, Arc::new(opened.image), opened.cleaner.unwrap())
}

/// The image is closed, nothing has kept it, and what was written is in its storage.
fn assert_closed(medium: &Arc<Medium>, image: Arc<TestImage>) {
    assert!(matches!(block_on(image.read_at(&mut [0], 0)), Err(Error::Closed)));
    assert!(matches!(block_on(image.write_at(&[0], 0)), Err(Error::Closed)));
    assert!(block_on(image.restart_cleaner()).is_none());
    drop(image);
    assert_eq!(Arc::strong_count(medium), 1, "something has kept the image");
    let source = Source::qcow2(BoxStorage::new(Arc::clone(medium)), "image");
    let again = block_on(Image::open(source, &RefuseAll::new(), OpenOptions::default())).unwrap();
    let mut bytes = [0; 4096];
    block_on(again.image.read_at(&mut bytes, 0)).unwrap();
    assert_eq!(bytes, [7; 4096]);
}

#[test]
fn close_returns_whatever_became_of_the_cleaner() {
    type End = fn(&TestImage, Cleaner);
    fn close(image: &TestImage) {
        // Nothing is in flight: it must not wait for anybody.
        image.close().now_or_never().expect("the close waits for the cleaner").unwrap();
    }
    let ends: [(&str, End); 7] = [
        ("never polled", |image, cleaner| {
            close(image);
            drop(cleaner);
        }),
        ("dropped", |image, cleaner| {
            drop(cleaner);
            close(image);
        }),
        ("dropped while asleep", |image, cleaner| {
            let mut run = Box::pin(cleaner.run(Never));
            assert!(run.as_mut().now_or_never().is_none());
            drop(run);
            close(image);
        }),
        ("aborted while asleep", |image, cleaner| {
            let (run, handle) = abortable(cleaner.run(Never));
            let mut run = Box::pin(run);
            assert!(run.as_mut().now_or_never().is_none());
            handle.abort();
            assert!(run.as_mut().now_or_never().unwrap().is_err());
            close(image);
        }),
        ("asleep for ten minutes", |image, cleaner| {
            let mut run = Box::pin(cleaner.run(Never));
            assert!(run.as_mut().now_or_never().is_none());
            close(image);
            assert!(run.as_mut().now_or_never().is_some(), "the cleaner goes on");
        }),
        ("its executor gone", |image, cleaner| {
            let executor = Executor::new();
            executor.spawn(cleaner.run(Never)).detach();
            assert!(executor.try_tick());
            drop(executor);
            close(image);
        }),
        ("forgotten by its executor", |image, cleaner| {
            let mut run = Box::pin(cleaner.run(Never));
            assert!(run.as_mut().now_or_never().is_none());
            std::mem::forget(run);
            close(image);
        }),
    ];
    for (name, end) in ends {
        println!("{name}");
        let (medium, image, cleaner) = open();
        end(&image, cleaner);
        assert_closed(&medium, image);
    }
}

#[test]
fn close_between_the_decision_to_sleep_and_the_sleep_ends_the_cleaner() {
    let (medium, image, cleaner) = open();
    let closed = Arc::clone(&image);
    let timer = Before(move || closed.close().now_or_never().expect("it waits").unwrap());
    block_on(cleaner.run(timer));
    assert_closed(&medium, image);
}

#[test]
fn close_wakes_a_cleaner_that_sleeps_on_another_thread() {
    for _ in 0..100 {
        let (medium, image, cleaner) = open();
        let cleaner = thread::spawn(move || block_on(cleaner.run(Never)));
        block_on(image.close()).unwrap();
        cleaner.join().unwrap();
        assert_closed(&medium, image);
    }
}

/// Ten minutes are the default interval.
#[test]
fn close_does_not_wait_for_the_end_of_a_sleep() {
    let (medium, image, cleaner) = open();
    let cleaner = thread::spawn(move || block_on(cleaner.run(SmolTimer)));
    // Most likely it sleeps by then; where it does not, the close must not wait either.
    thread::sleep(Duration::from_millis(20));
    let start = Instant::now();
    block_on(image.close()).unwrap();
    cleaner.join().unwrap();
    assert!(start.elapsed() < Duration::from_secs(60), "{:?}", start.elapsed());
    assert_closed(&medium, image);

    let (medium, image, cleaner) = open();
    let executor = sim::Executor::new(1);
    let clock = executor.clock();
    let cleaner = executor.spawn(cleaner.run(clock.clone()));
    executor
        .run(async {
            clock.sleep(Duration::from_secs(25 * 60)).await;
            assert!(image.statistics()[0].l2.passes > 0, "it sleeps again");
            let now = clock.now();
            image.close().await.unwrap();
            cleaner.await;
            assert_eq!(clock.now(), now, "time goes by in a close");
        })
        .unwrap();
    assert!(!clock.advance(), "a timer is left");
    drop(executor);
    assert_closed(&medium, image);
}

#[test]
fn close_waits_for_the_step_of_a_pass_that_has_begun() {
    let (medium, image, cleaner) = open();
    let (begun, has_begun) = mpsc::channel();
    let (go_on, may_go_on) = mpsc::channel::<()>();
    let cleaner = thread::spawn(move || {
        // Inside of the pass, under the lock of a stripe: it stays there until the test lets it go on.
        mutant::set_pause(Some(Box::new(move || {
            let _ = begun.send(());
            let _ = may_go_on.recv();
        })));
        block_on(cleaner.run(AtOnce));
        mutant::set_pause(None);
    });
    has_begun.recv().unwrap();
    let (done, is_done) = mpsc::channel();
    let closer = {
        let image = Arc::clone(&image);
        thread::spawn(move || {
            block_on(image.close()).unwrap();
            done.send(()).unwrap();
        })
    };
    assert!(is_done.recv_timeout(Duration::from_millis(100)).is_err(), "a pass is under way");
    drop(go_on);
    is_done.recv_timeout(Duration::from_secs(60)).expect("the step has ended");
    closer.join().unwrap();
    cleaner.join().unwrap();
    assert_closed(&medium, image);
}

#[test]
fn second_close_waits_for_the_first_and_a_third_finds_it_done() {
    let (medium, image, cleaner) = open();
    let held = medium.hold();
    block_on(async {
        let (first, second) = (image.close(), image.close());
        pin_mut!(first, second);
        assert!(poll!(&mut first).is_pending(), "the storage works");
        assert!(poll!(&mut second).is_pending(), "it returns before the image is closed");
        drop(held);
        assert!(poll!(&mut second).is_pending(), "the first has not ended");
        first.await.unwrap();
        second.await.unwrap();
    });
    image.close().now_or_never().unwrap().unwrap();
    drop(cleaner);
    assert_closed(&medium, image);
}

#[test]
fn close_from_several_threads_ends_in_each() {
    for _ in 0..50 {
        let (medium, image, cleaner) = open();
        let cleaner = thread::spawn(move || block_on(cleaner.run(AtOnce)));
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| block_on(image.close()).unwrap());
            }
        });
        cleaner.join().unwrap();
        assert_closed(&medium, image);
    }
}

/// A close that is dropped stays begun, and the next one completes it.
#[test]
fn dropped_close_is_completed_by_the_next() {
    let (medium, image, cleaner) = open();
    let _held = medium.hold();
    assert!(image.close().now_or_never().is_none());
    assert!(matches!(block_on(image.read_at(&mut [0], 0)), Err(Error::Closed)));
    block_on(image.close()).unwrap();
    block_on(cleaner.run(Never));
    assert_closed(&medium, image);
}

#[test]
fn error_of_the_storage_is_reported_and_the_cleaner_has_ended_all_the_same() {
    let (medium, image, cleaner) = open();
    let cleaner = thread::spawn(move || block_on(cleaner.run(Never)));
    medium.fail(true);
    let error = block_on(image.close()).unwrap_err();
    assert!(matches!(error, Error::Storage { .. }), "{error:?}");
    cleaner.join().unwrap();
    assert!(matches!(block_on(image.read_at(&mut [0], 0)), Err(Error::Closed)));
    // Another call does not claim that what was lost is there.
    assert!(block_on(image.close()).is_err());
    drop(image);
    assert_eq!(Arc::strong_count(&medium), 1, "something has kept the image");
}
