//! The small machines that everything stands on, under every schedule and every value that a weak memory may show: the stop, the
//! join and the wake-up of the cleaner, and a slot that is loaded, held, changed, written back, evicted and swept.
//!
//! # Bounds
//!
//! Two threads, one slice of 512 bytes (two where one is evicted), one or two passes. Within that there is no bound: what is run
//! is every schedule there is, however often a thread is preempted, and that the checker ends says so. A schedule chooses who goes
//! on at each lock, event and atomic of `src/sync.rs`, and which value a load of an atomic sees, of those that the memory model
//! allows. `LOOM_MAX_PREEMPTIONS` sets a bound. The checker takes sequentially consistent accesses for acquiring and
//! releasing ones, which allows more than a machine does. The words of slices are not among its atomics: see
//! `src/sync/checked.rs`. The whole takes some seconds.
//!
//! The close gate, the epochs of requests, the turnstile and the claims are private to the image: their kernel is
//! `src/image/kernel.rs`.

#![cfg(feature = "loom")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a panic is how a test fails")]

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cowshed::cache::mutant::{self, Mutant};
use cowshed::cache::{CleanerControl, TableCache};
use cowshed::format::HostOffset;
use cowshed::storage::{Blocks, MemoryStorage, Storage};
use cowshed::timer::Timer;
use loom::future::block_on;
use loom::thread;

/// Names the mutant that a process of its own is to find.
const MUTANT: &str = "COWSHED_KERNEL_MUTANT";
const MINUTES: Duration = Duration::from_secs(600);
const SLICE: HostOffset = HostOffset::new(0);

/// Runs `protocol` under every schedule.
fn every(name: &str, protocol: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.max_branches = 100_000;
    let count = Arc::new(AtomicU64::new(0));
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

/// Runs `protocol` under every schedule; then that it fails with each of `mutants`, in processes of their own: what unwinds out
/// of a failed execution may abort. `test` is the name of the caller.
fn proves(test: &str, protocol: fn(), mutants: &[Mutant]) {
    if let Ok(name) = std::env::var(MUTANT) {
        let mutant = Mutant::ALL.into_iter().find(|it| format!("{it:?}") == name);
        mutant::set(Some(mutant.expect("a mutant's name")));
        every(test, protocol);
        return;
    }
    every(test, protocol);
    for mutant in mutants {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", test, "--nocapture"]).env(MUTANT, format!("{mutant:?}"));
        let child = child.output().unwrap();
        let panicked = String::from_utf8_lossy(&child.stderr).contains("panicked");
        assert!(panicked && !child.status.success(), "{mutant:?} is not found");
        println!("{test}: {mutant:?} is found");
    }
}

/// Fires so many times at once, then never again.
struct Fires(AtomicU64);

impl Timer for Fires {
    async fn sleep(&self, _: Duration) {
        let left = self.0.load(Ordering::Relaxed);
        if left == 0 {
            std::future::pending::<()>().await;
        }
        self.0.store(left - 1, Ordering::Relaxed);
    }
}

fn cache() -> Arc<TableCache> {
    Arc::new(TableCache::new(512, 512))
}

fn close_and_cleaner(fires: u64) {
    let cache = cache();
    let control = CleanerControl::new([Arc::clone(&cache)], MINUTES);
    let cleaner = control.start().unwrap();
    let cleaner = thread::spawn(move || block_on(cleaner.run(Fires(AtomicU64::new(fires)))));
    control.stop();
    block_on(control.join());
    let passes = cache.statistics().passes;
    cleaner.join().unwrap();
    assert_eq!(cache.statistics().passes, passes, "a pass went on after the join");
    drop(control);
    assert_eq!(Arc::strong_count(&cache), 1);
}

/// A cleaner that sleeps for ever is woken by the stop, wherever it is on its way to sleep; join returns.
fn asleep() {
    close_and_cleaner(0);
}

/// A cleaner that passes once, and then sleeps for ever: no step begins or ends after the join.
fn passing() {
    close_and_cleaner(1);
}

#[test]
fn stop_wakes_a_cleaner_that_falls_asleep() {
    let mutants = [Mutant::StopWithoutWake, Mutant::CleanerLooksFirst];
    proves("stop_wakes_a_cleaner_that_falls_asleep", asleep, &mutants);
}

#[test]
fn join_waits_for_the_step_that_has_begun() {
    let mutants = [Mutant::JoinWithoutWait, Mutant::JoinLooksFirst, Mutant::StepAfterStop];
    proves("join_waits_for_the_step_that_has_begun", passing, &mutants);
}

/// The interval changes while the cleaner falls asleep, and then it is stopped.
#[test]
fn change_of_the_interval_is_not_lost() {
    every("interval", || {
        let control = Arc::new(CleanerControl::new([cache()], MINUTES));
        let cleaner = control.start().unwrap();
        let cleaner = thread::spawn(move || block_on(cleaner.run(Fires(AtomicU64::new(0)))));
        assert!(block_on(control.set_interval(MINUTES * 2)).is_none());
        assert!(block_on(control.set_interval(Duration::ZERO)).is_none());
        cleaner.join().unwrap();
        assert!(control.start().is_none());
    });
}

fn storage() -> Arc<MemoryStorage> {
    Arc::new(MemoryStorage::new(vec![1; 512]))
}

/// A slice is loaded, let go, and changed under a pin, beside two passes: it is neither dropped nor made anew under the pin, and what was
/// changed is there.
fn pin_and_sweep() {
    let (cache, storage) = (cache(), storage());
    let sweeps = {
        let cache = Arc::clone(&cache);
        thread::spawn(move || {
            cache.pass();
            cache.pass();
        })
    };
    // Clean and not pinned, so that a pass may take it.
    drop(block_on(cache.get(&*storage, SLICE)).unwrap());
    let pinned = block_on(cache.get(&*storage, SLICE)).unwrap();
    cache.update(SLICE, |slice| slice.set_word(0, 7)).expect("a pinned slice is gone");
    assert_eq!(pinned.word(0), 7);
    drop(pinned);
    sweeps.join().unwrap();
    assert_eq!(cache.hit(SLICE, |slice| slice.word(0)), Some(7), "a dirty slice is gone");
}

#[test]
fn pinned_and_dirty_slices_stay() {
    let mutants = [Mutant::SweepDirty, Mutant::SweepPinned, Mutant::SweepWithoutLock];
    proves("pinned_and_dirty_slices_stay", pin_and_sweep, &mutants);
}

/// A slice is changed while it is written back.
fn change_and_write() {
    let (cache, storage) = (cache(), storage());
    let _pinned = block_on(cache.get(&*storage, SLICE)).unwrap();
    cache.update(SLICE, |slice| slice.set_word(0, 7)).unwrap();
    let changes = {
        let cache = Arc::clone(&cache);
        thread::spawn(move || cache.update(SLICE, |slice| slice.set_word(0, 8)).unwrap())
    };
    let blocks = Blocks::new(Storage::limits(&*storage));
    block_on(cache.begin_write_back(0, 512).write(&*storage, &blocks)).unwrap();
    changes.join().unwrap();
    block_on(cache.begin_write_back(0, 512).write(&*storage, &blocks)).unwrap();
    assert_eq!(cache.unwritten_bytes(), 0);
    assert_eq!(storage.to_vec()[..8], 8u64.to_be_bytes());
}

#[test]
fn change_during_a_write_back_is_written_by_the_next() {
    let mutants = [Mutant::CleanThoughChanged];
    proves("change_during_a_write_back_is_written_by_the_next", change_and_write, &mutants);
}

/// Two threads want the same slice, and one more wants another in a cache of one.
#[test]
fn one_loads_and_the_other_waits() {
    every("load", || {
        let (cache, storage) = (cache(), Arc::new(MemoryStorage::new(vec![1; 1024])));
        let other = {
            let (cache, storage) = (Arc::clone(&cache), Arc::clone(&storage));
            thread::spawn(move || {
                block_on(cache.get(&*storage, SLICE)).unwrap();
            })
        };
        block_on(cache.get(&*storage, SLICE)).unwrap();
        block_on(cache.get(&*storage, HostOffset::new(512))).unwrap();
        other.join().unwrap();
        let counts = cache.statistics();
        assert_eq!((counts.loads - counts.evictions) * 512, counts.bytes_held);
    });
}

/// A load comes while a pass sweeps and frees the only slice that there is room for: it takes that memory, or its own.
#[test]
fn load_beside_a_pass_leaves_the_budget_whole() {
    every("swept", || {
        let (cache, storage) = (cache(), MemoryStorage::new(vec![1; 1024]));
        drop(block_on(cache.get(&storage, SLICE)).unwrap());
        // It is not used any more from here on.
        cache.pass();
        let pass = {
            let cache = Arc::clone(&cache);
            thread::spawn(move || cache.pass())
        };
        let loaded = block_on(cache.get(&storage, HostOffset::new(512))).unwrap();
        pass.join().unwrap();
        assert_eq!(loaded.word(0), 0x0101_0101_0101_0101);
        let counts = cache.statistics();
        assert_eq!((counts.evictions + counts.cleaned, counts.bytes_held), (1, 512));
    });
}
