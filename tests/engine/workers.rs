//! The pool of threads that inflates clusters: every job runs once, no job is lost when the pool goes, and a job that
//! panics harms no other.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::time::Duration;

use cowshed::rt::ThreadWorkers;
use cowshed::workers::Workers;

#[test]
fn every_job_runs_once_before_the_pool_is_gone() {
    for threads in 1..5 {
        let ran = Arc::new(AtomicUsize::new(0));
        let workers = ThreadWorkers::with_threads(threads);
        for _ in 0..1000 {
            let ran = Arc::clone(&ran);
            workers.execute(Box::new(move || {
                ran.fetch_add(1, Ordering::Relaxed);
            }));
        }
        drop(workers);
        assert_eq!(ran.load(Ordering::Relaxed), 1000);
    }
}

#[test]
fn jobs_run_at_the_same_time_as_many_as_promised() {
    let workers = ThreadWorkers::with_threads(3);
    assert_eq!(workers.parallelism(), 3);
    let barrier = Arc::new(std::sync::Barrier::new(4));
    for _ in 0..3 {
        let barrier = Arc::clone(&barrier);
        workers.execute(Box::new(move || {
            barrier.wait();
        }));
    }
    // With fewer than three threads this would never return.
    barrier.wait();
}

#[test]
fn panic_in_a_job_harms_no_other() {
    let workers = ThreadWorkers::with_threads(1);
    workers.execute(Box::new(|| panic!("expected: a job of this test panics")));
    let (done, wait) = channel();
    workers.execute(Box::new(move || done.send(()).unwrap()));
    wait.recv_timeout(Duration::from_secs(10)).unwrap();
}

#[test]
fn last_owner_may_be_a_job() {
    let workers = Arc::new(ThreadWorkers::with_threads(2));
    let (done, wait) = channel();
    let (go, gone) = channel::<()>();
    let owner = Arc::clone(&workers);
    workers.execute(Box::new(move || {
        gone.recv().unwrap();
        drop(owner);
        done.send(()).unwrap();
    }));
    drop(workers);
    go.send(()).unwrap();
    wait.recv_timeout(Duration::from_secs(10)).unwrap();
}
