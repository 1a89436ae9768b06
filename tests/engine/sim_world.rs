//! The fear: a simulator that cannot repeat itself, or that waits for ever with those who do. A failure that its seed does
//! not bring back is a rumour.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::future::{pending, poll_fn};
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use crate::support::seeds::for_each_seed;
use cowshed::sim::{Executor, Faults, SimStorage, cut};
use cowshed::storage::{Buf, Storage};
use cowshed::timer::Timer;
use cowshed::workers::Workers;

/// Lets other tasks run, once.
async fn yield_now() {
    let mut yielded = false;
    poll_fn(|context| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Some tasks that write, read, flush, drop each other and crash; returns the hash of the trace and what was left.
fn live(seed: u64) -> (u64, u64, Vec<u8>) {
    let executor = Executor::new(seed);
    let faults = Faults::random(&mut executor.random());
    let disk = SimStorage::new(&executor, vec![0; 1 << 16], faults);
    let mut tasks = Vec::new();
    for writer in 0..4_u8 {
        let (disk, mut random) = (disk.clone(), executor.random());
        tasks.push(executor.spawn(async move {
            for round in 0..20 {
                let mut bytes = Buf::zeroed(700);
                bytes.fill(writer * 32 + round);
                let write = Storage::write_at(&disk, bytes, random.below(1 << 16));
                let _ = cut(write, 1 + random.below(4)).await;
                let _ = Storage::read_at(&disk, Buf::zeroed(100), random.below(1 << 16)).await;
                if random.chance(100) {
                    let _ = Storage::discard(&disk, random.below(1 << 16), 5000).await;
                    let _ = Storage::flush(&disk).await;
                    let _ = Storage::set_len(&disk, random.below(1 << 16)).await;
                }
            }
        }));
    }
    let mut random = executor.random();
    executor
        .run(async {
            executor.clock().sleep(Duration::from_micros(random.below(20_000))).await;
            drop(tasks.pop());
            for task in tasks {
                task.await;
            }
        })
        .unwrap();
    let left = disk.crash().to_vec();
    (executor.trace().hash(), executor.trace().decisions(), left)
}

#[test]
fn same_seed_gives_the_same_trace_and_other_seeds_give_others() {
    let mut hashes = BTreeSet::new();
    let mut seeds = 0;
    for_each_seed(100, |seed| {
        let first = live(seed);
        let second = live(seed);
        assert_eq!(first.0, second.0, "the traces differ");
        assert_eq!(first.1, second.1, "the traces are of different lengths");
        assert!(first.2 == second.2, "what is left differs");
        hashes.insert(first.0);
        seeds += 1;
    });
    assert_eq!(hashes.len(), seeds, "different seeds, different traces");
}

#[test]
fn every_order_of_ready_tasks_comes_up() {
    let mut orders = BTreeSet::new();
    for_each_seed(200, |seed| {
        let order = RefCell::new(Vec::new());
        let executor = Executor::new(seed);
        let tasks: Vec<_> = (0..4)
            .map(|task| {
                let order = &order;
                executor.spawn(async move { order.borrow_mut().push(task) })
            })
            .collect();
        executor
            .run(async {
                for task in tasks {
                    task.await;
                }
            })
            .unwrap();
        orders.insert(order.take());
    });
    if std::env::var("COWSHED_SEED").is_err() {
        assert_eq!(orders.len(), 24, "{orders:?}");
    }
}

#[test]
fn tasks_that_nobody_wakes_are_found_at_once() {
    let executor = Executor::new(77);
    let _other = executor.spawn(pending::<()>());
    let stuck = executor.run(pending::<()>()).unwrap_err();
    assert_eq!(stuck.seed(), 77);
    let text = stuck.to_string();
    assert!(text.contains("seed 77") && text.contains("no timer is left"), "{text}");
}

#[test]
fn tasks_that_go_in_circles_are_found_by_the_budget() {
    let executor = Executor::new(78);
    let clock = executor.clock();
    executor.steps_max(1000);
    let _circles = executor.spawn(async move {
        loop {
            clock.sleep(Duration::from_millis(1)).await;
        }
    });
    let text = executor.run(pending::<()>()).unwrap_err().to_string();
    assert!(text.contains("seed 78") && text.contains("1000 steps without progress"), "{text}");
    // Who tells of progress may take as long as it likes.
    let progress = executor.progress();
    let long = executor.run(async {
        for _ in 0..5000 {
            yield_now().await;
            progress.note();
        }
    });
    long.unwrap();
}

#[test]
fn dropped_task_is_gone_and_detached_one_runs_on() {
    let executor = Executor::new(3);
    let alive = Rc::new(());
    let task = |alive: Rc<()>| async move {
        pending::<()>().await;
        drop(alive);
    };
    let first = executor.spawn(task(Rc::clone(&alive)));
    executor.run(yield_now()).unwrap();
    assert!(!first.is_done());
    assert_eq!(Rc::strong_count(&alive), 2);
    drop(first);
    assert_eq!(Rc::strong_count(&alive), 1, "its future is dropped with the handle");

    let ran = Rc::new(Cell::new(false));
    let runs = Rc::clone(&ran);
    executor.spawn(async move { runs.set(true) }).detach();
    executor.run(executor.clock().sleep(Duration::from_secs(1))).unwrap();
    assert!(ran.get());

    executor.spawn(task(Rc::clone(&alive))).detach();
    drop(executor);
    assert_eq!(Rc::strong_count(&alive), 1, "an executor takes its tasks along");
}

#[test]
fn virtual_time_passes_in_order_and_costs_nothing() {
    for_each_seed(20, |seed| {
        let executor = Executor::new(seed);
        let clock = executor.clock();
        let order = RefCell::new(Vec::new());
        let sleeps = [30_u64, 10, 20, 1_000_000_000].map(|seconds| {
            let (clock, order) = (clock.clone(), &order);
            async move {
                clock.sleep(Duration::from_secs(seconds)).await;
                assert_eq!(clock.now(), Duration::from_secs(seconds));
                order.borrow_mut().push(seconds);
            }
        });
        executor.run(futures::future::join_all(sleeps)).unwrap();
        assert_eq!(order.take(), [10, 20, 30, 1_000_000_000]);
        let never = executor.run(clock.sleep(Duration::MAX));
        assert!(never.unwrap_err().to_string().contains("no timer is left"));
        assert!(executor.run(cut(clock.sleep(Duration::from_secs(1)), 1)).unwrap().is_none());
        assert!(!clock.advance(), "a dropped sleep leaves no timer behind");
    });
}

#[test]
fn workers_run_every_job_later_and_in_any_order() {
    let mut orders = BTreeSet::new();
    for_each_seed(50, |seed| {
        let executor = Executor::new(seed);
        let workers = executor.workers();
        let (done, ran) = std::sync::mpsc::channel();
        for job in 0..3 {
            let done = done.clone();
            workers.execute(Box::new(move || done.send(job).unwrap()));
        }
        assert!(ran.try_recv().is_err(), "a job runs where the world goes on");
        let a_while = async {
            for _ in 0..100 {
                executor.clock().sleep(Duration::from_secs(1)).await;
            }
        };
        executor.run(a_while).unwrap();
        orders.insert(ran.try_iter().collect::<Vec<i32>>());
    });
    assert!(orders.iter().all(|order| order.len() == 3), "{orders:?}");
    if std::env::var("COWSHED_SEED").is_err() {
        assert_eq!(orders.len(), 6);
    }
}

#[test]
fn run_can_be_stopped_between_any_two_steps() {
    for steps in 1..20 {
        let executor = Executor::new(5);
        let mut left = steps;
        let stopped = executor.run_until(
            async {
                loop {
                    yield_now().await;
                }
            },
            || {
                left -= 1;
                left == 0
            },
        );
        assert_eq!(stopped, Ok(None));
    }
    let executor = Executor::new(5);
    assert_eq!(executor.run_until(async { 3 }, || true), Ok(Some(3)));
}
