//! The gates of an image under every schedule and every value that a weak memory may show: the close and the epochs of requests,
//! the pause, the turnstile, the claims. Compiled by the package in `model/` alone; its `tests/kernel.rs` tells what a schedule is.
//!
//! # Bounds
//!
//! Three threads, one or two requests each. The epochs have no bound: what is run is every schedule there is. The close and the
//! pause: all with four preemptions; the claims: five; the turnstile: three. `LOOM_MAX_PREEMPTIONS` sets another bound.
//!
//! Each rule is left out, too, in a process of its own, and has to be missed: [`Mutant::GATES`].
//!
//! Chores stand or fall with sequentially consistent loads, which the checker takes for weaker ones: they are for the random
//! schedules.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicU64 as Count;

use loom::future::block_on;
use loom::sync::atomic::AtomicUsize;
use loom::thread;

use super::claims::Claims;
use super::mutant::{self, Mutant};
use super::requests::Requests;
use super::turnstile::Turnstile;
use crate::sync::Ordering;

/// Names the mutant that a process of its own is to find.
const MUTANT: &str = "COWSHED_KERNEL_MUTANT";

/// Runs `protocol` under every schedule, or every one with so many preemptions.
fn every(name: &str, preemptions: Option<usize>, protocol: fn()) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(preemptions);
    builder.max_branches = 100_000;
    let count = Arc::new(Count::new(0));
    let counted = Arc::clone(&count);
    builder.check(move || {
        counted.fetch_add(1, Ordering::Relaxed);
        protocol();
    });
    let count = count.load(Ordering::Relaxed);
    println!("{name}: {count} executions");
    // What explores nothing proves nothing.
    assert!(count > 10, "{name}: {count} executions");
}

/// Runs `protocol` so; then that it fails with each of `mutants`, in processes of their own, as what unwinds out of a failed
/// execution may abort. `test` is the name of the caller.
fn proves(test: &str, preemptions: Option<usize>, protocol: fn(), mutants: &[Mutant]) {
    if let Ok(name) = std::env::var(MUTANT) {
        let mutant = Mutant::GATES.into_iter().find(|it| format!("{it:?}") == name);
        mutant::set(Some(mutant.expect("a mutant's name")));
        return every(test, preemptions, protocol);
    }
    every(test, preemptions, protocol);
    for mutant in mutants {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", &format!("image::kernel::{test}"), "--nocapture"]);
        let child = child.env(MUTANT, format!("{mutant:?}")).output().unwrap();
        let panicked = String::from_utf8_lossy(&child.stderr).contains("panicked");
        assert!(panicked && !child.status.success(), "{mutant:?} is not found");
        println!("{test}: {mutant:?} is found");
    }
}

fn inside(count: &AtomicUsize, others_max: usize) {
    assert!(count.fetch_add(1, Ordering::AcqRel) <= others_max);
    count.fetch_sub(1, Ordering::AcqRel);
}

#[test]
fn close_waits_for_requests_and_ends() {
    fn protocol() {
        let state = Arc::new((Requests::default(), AtomicUsize::new(0)));
        let tasks = [0, 1].map(|task| {
            let state = Arc::clone(&state);
            thread::spawn(move || {
                let (requests, inside) = &*state;
                if task == 1 {
                    return block_on(requests.close());
                }
                if let Ok(request) = block_on(requests.enter()) {
                    inside.store(1, Ordering::Release);
                    inside.store(0, Ordering::Release);
                    drop(request);
                }
            })
        });
        let (requests, inside) = &*state;
        block_on(requests.close());
        assert_eq!(inside.load(Ordering::Acquire), 0, "a request is in flight");
        assert!(block_on(requests.enter()).is_err());
        for task in tasks {
            task.join().unwrap();
        }
    }
    let mutants = [Mutant::GateLooksFirst, Mutant::LeaveWithoutWake, Mutant::DrainedWithoutWait];
    proves("close_waits_for_requests_and_ends", Some(4), protocol, &mutants);
}

/// Whoever found a cluster by its old mapping has left when two epochs have passed since the new one.
#[test]
fn epochs_outlast_the_requests_that_saw_the_old_mapping() {
    fn protocol() {
        let state = Arc::new((Requests::default(), AtomicUsize::new(0), AtomicUsize::new(0)));
        let request = {
            let state = Arc::clone(&state);
            thread::spawn(move || {
                let (requests, mapping, uses_old) = &*state;
                for _ in 0..2 {
                    let request = block_on(requests.enter()).unwrap();
                    if mapping.load(Ordering::Acquire) == 0 {
                        uses_old.store(1, Ordering::Release);
                        assert_ne!(mapping.load(Ordering::Acquire), 2, "reused while it is read");
                        uses_old.store(0, Ordering::Release);
                    }
                    drop(request);
                }
            })
        };
        let (requests, mapping, uses_old) = &*state;
        mapping.store(1, Ordering::Release);
        let unmapped = requests.epoch();
        for _ in 0..2 {
            if requests.advance() >= unmapped + 2 {
                assert_eq!(uses_old.load(Ordering::Acquire), 0);
                mapping.store(2, Ordering::Release);
                break;
            }
        }
        request.join().unwrap();
    }
    let mutants = [Mutant::EpochWithoutLook];
    proves("epochs_outlast_the_requests_that_saw_the_old_mapping", None, protocol, &mutants);
}

/// Who pauses is alone, until the pause ends or the image is closed.
#[test]
fn a_pause_waits_for_requests_and_ends_with_the_close() {
    fn protocol() {
        let state = Arc::new((Requests::default(), AtomicUsize::new(0)));
        let tasks = [0, 1].map(|task| {
            let state = Arc::clone(&state);
            thread::spawn(move || {
                let (requests, count) = &*state;
                if task == 1 {
                    if let Ok(paused) = block_on(requests.pause()) {
                        inside(count, 0);
                        drop(paused);
                    }
                } else if let Ok(request) = block_on(requests.enter()) {
                    inside(count, 0);
                    drop(request);
                }
            })
        });
        block_on(state.0.close());
        for task in tasks {
            task.join().unwrap();
        }
        assert!(block_on(state.0.pause()).is_err());
    }
    let mutants = [Mutant::LeaveWithoutWake, Mutant::DrainedWithoutWait, Mutant::EnterUnderPause];
    proves("a_pause_waits_for_requests_and_ends_with_the_close", Some(4), protocol, &mutants);
}

#[test]
fn one_alone_is_alone() {
    fn protocol() {
        let state = Arc::new((Turnstile::default(), AtomicUsize::new(0)));
        let tasks = [0, 1].map(|task| {
            let state = Arc::clone(&state);
            thread::spawn(move || {
                let (turnstile, count) = &*state;
                if task == 0 {
                    let _alone = block_on(turnstile.alone());
                    inside(count, 0);
                } else {
                    let _passing = block_on(turnstile.pass());
                    inside(count, 1);
                }
            })
        });
        let (turnstile, count) = &*state;
        let passing = block_on(turnstile.pass());
        inside(count, 1);
        drop(passing);
        for task in tasks {
            task.join().unwrap();
        }
    }
    let mutants = [Mutant::GateLooksFirst, Mutant::AloneWithoutWait, Mutant::PassUnderAlone];
    proves("one_alone_is_alone", Some(3), protocol, &mutants);
}

#[test]
fn claims_that_overlap_follow_each_other() {
    fn protocol() {
        let state = Arc::new((Claims::default(), AtomicUsize::new(0)));
        let tasks = [0..=1, 1..=2].map(|clusters| {
            let state = Arc::clone(&state);
            thread::spawn(move || {
                let (claims, count) = &*state;
                let _claim = block_on(claims.claim(clusters));
                inside(count, 0);
            })
        });
        let (claims, _) = &*state;
        drop(block_on(claims.claim(5..=6)));
        for task in tasks {
            task.join().unwrap();
        }
    }
    let mutants = [Mutant::GateLooksFirst, Mutant::ClaimWithoutLook, Mutant::ClaimWithoutWake];
    proves("claims_that_overlap_follow_each_other", Some(5), protocol, &mutants);
}
