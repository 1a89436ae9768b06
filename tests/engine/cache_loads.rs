//! One load for each slice, whatever becomes of those who ask.
//!
//! A cache that loads a table twice at a time has two truths about it as soon as one of them is changed; a cache that
//! forgets those who wait when the one who loads fails, or is dropped, hangs a guest. The storage holds every read
//! at a gate here, so that each test decides who is where.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;

use crate::gated::{Gated, word_at};
use async_executor::{LocalExecutor, Task};
use cowshed::cache::{Slice, TableCache};
use cowshed::format::HostOffset;
use cowshed::storage::StorageLimits;
use futures::FutureExt;
use futures::executor::block_on;

const SLICE: u64 = 4096;

type Outcome = io::Result<Slice>;

/// Tasks that ask one cache for slices, and the outcomes so far.
struct Scene {
    executor: LocalExecutor<'static>,
    cache: Rc<TableCache>,
    storage: Gated,
}

impl Scene {
    fn new(slices: u64, storage: Gated) -> Self {
        let cache = Rc::new(TableCache::new(slices * SLICE, SLICE));
        Self { executor: LocalExecutor::new(), cache, storage }
    }

    /// Starts to ask for slice `number`, up to the point where it waits.
    fn ask(&self, number: u64) -> (Task<()>, Rc<RefCell<Option<Outcome>>>) {
        let outcome = Rc::new(RefCell::new(None));
        let (cache, storage, slot) = (self.cache.clone(), self.storage.clone(), outcome.clone());
        let task = self.executor.spawn(async move {
            let got = cache.get(&storage, HostOffset::new(number * SLICE)).await;
            *slot.borrow_mut() = Some(got);
        });
        self.settle();
        (task, outcome)
    }

    /// Runs everything until nothing moves.
    fn settle(&self) {
        while self.executor.try_tick() {}
    }

    /// Drops a task, as a user who gives up does.
    fn cancel(&self, task: Task<()>) {
        drop(task);
        self.settle();
    }

    fn cached(&self, number: u64) -> bool {
        self.cache.hit(HostOffset::new(number * SLICE), |_| ()).is_some()
    }
}

fn assert_is_slice(slice: &Slice, number: u64) {
    assert_eq!(slice.words() as u64, SLICE / 8);
    for index in 0..slice.words() {
        assert_eq!(slice.word(index), word_at(number * SLICE + index as u64 * 8));
    }
}

fn assert_got(outcome: &RefCell<Option<Outcome>>, number: u64) {
    assert_is_slice(outcome.borrow().as_ref().unwrap().as_ref().unwrap(), number);
}

fn is_pending(outcome: &RefCell<Option<Outcome>>) -> bool {
    outcome.borrow().is_none()
}

fn has_failed(outcome: &RefCell<Option<Outcome>>) -> bool {
    matches!(*outcome.borrow(), Some(Err(_)))
}

#[test]
fn many_who_ask_share_one_load() {
    let scene = Scene::new(8, Gated::shut());
    let asks: Vec<_> = (0..10).map(|_| scene.ask(3)).collect();
    assert_eq!(scene.storage.waiting(), [3 * SLICE]);
    assert!(!scene.cached(3), "what is being loaded is not there yet");
    scene.storage.release(3 * SLICE);
    scene.settle();
    for (_, outcome) in &asks {
        assert_got(outcome, 3);
    }
    assert_eq!(scene.storage.reads(), 1);
    assert!(scene.cached(3));
    let statistics = scene.cache.statistics();
    assert_eq!((statistics.misses, statistics.loads, statistics.hits), (10, 1, 1));
}

#[test]
fn loads_of_different_slices_do_not_wait_for_each_other() {
    let scene = Scene::new(8, Gated::shut());
    let (_first, slow) = scene.ask(1);
    let (_second, quick) = scene.ask(2);
    assert_eq!(scene.storage.waiting(), [SLICE, 2 * SLICE]);
    scene.storage.release(2 * SLICE);
    scene.settle();
    assert_got(&quick, 2);
    assert!(is_pending(&slow));
    scene.storage.release(SLICE);
    scene.settle();
    assert_got(&slow, 1);
}

#[test]
fn dropped_loader_hands_over_to_one_who_waits() {
    let scene = Scene::new(8, Gated::shut());
    let (loader, _) = scene.ask(3);
    let (_second, second) = scene.ask(3);
    let (_third, third) = scene.ask(3);
    assert_eq!(scene.storage.reads(), 1);
    scene.cancel(loader);
    assert_eq!(scene.storage.waiting(), [3 * SLICE], "one of the others has started");
    assert_eq!(scene.storage.reads(), 2);
    assert!(is_pending(&second) && is_pending(&third));
    scene.storage.release(3 * SLICE);
    scene.settle();
    assert_got(&second, 3);
    assert_got(&third, 3);
    assert_eq!(scene.storage.reads(), 2);
}

#[test]
fn each_dropped_loader_in_turn_hands_over() {
    let scene = Scene::new(8, Gated::shut());
    let mut asks: Vec<_> = (0..5).map(|_| scene.ask(3)).collect();
    let (_last, last) = asks.pop().unwrap();
    // In reverse: those who wait are dropped before the one who loads, then in order.
    let (waiting, _) = asks.pop().unwrap();
    scene.cancel(waiting);
    for (task, _) in asks {
        scene.cancel(task);
        assert_eq!(scene.storage.waiting(), [3 * SLICE]);
    }
    scene.storage.release(3 * SLICE);
    scene.settle();
    assert_got(&last, 3);
}

#[test]
fn load_that_all_have_left_leaves_no_trace() {
    let scene = Scene::new(8, Gated::shut());
    let (first, _) = scene.ask(3);
    let (second, _) = scene.ask(3);
    scene.cancel(second);
    scene.cancel(first);
    assert!(scene.storage.waiting().is_empty());
    assert_eq!(scene.cache.statistics().bytes_held, 0);
    assert!(!format!("{:?}", scene.cache).contains("Loading"), "the slot is vacant again");
    let (_again, outcome) = scene.ask(3);
    scene.storage.release(3 * SLICE);
    scene.settle();
    assert_got(&outcome, 3);
    assert_eq!(scene.cache.statistics().bytes_held, SLICE);
}

#[test]
fn failed_load_makes_each_who_waits_try_for_itself() {
    let scene = Scene::new(8, Gated::shut());
    let (_first, first) = scene.ask(3);
    let (_second, second) = scene.ask(3);
    let (_third, third) = scene.ask(3);
    scene.storage.fail(3 * SLICE);
    scene.settle();
    assert!(has_failed(&first));
    assert!(is_pending(&second) && is_pending(&third), "another's failure is not theirs");
    assert_eq!(scene.storage.waiting(), [3 * SLICE], "still one load at a time");
    scene.storage.fail(3 * SLICE);
    scene.settle();
    let failed = [&second, &third].into_iter().filter(|outcome| has_failed(outcome)).count();
    assert_eq!(failed, 1);
    scene.storage.release(3 * SLICE);
    scene.settle();
    let last = if has_failed(&second) { &third } else { &second };
    assert_got(last, 3);
    assert_eq!(scene.storage.in_flight_max(), 1);
}

#[test]
fn failed_load_is_not_cached() {
    let scene = Scene::new(8, Gated::shut());
    let (_first, first) = scene.ask(3);
    scene.storage.fail(3 * SLICE);
    scene.settle();
    assert!(has_failed(&first));
    assert!(!scene.cached(3));
    assert_eq!(scene.cache.statistics().loads, 0);
    assert!(!format!("{:?}", scene.cache).contains("Loading"), "the slot is vacant again");
    let (_second, second) = scene.ask(3);
    scene.storage.release(3 * SLICE);
    scene.settle();
    assert_got(&second, 3);
}

#[test]
fn synchronous_door_is_tried_first_and_then_nothing_is_awaited() {
    let cache = TableCache::new(8 * SLICE, SLICE);
    let storage = Gated::open();
    let slice = cache.get(&storage, HostOffset::new(5 * SLICE)).now_or_never().unwrap().unwrap();
    assert_is_slice(&slice, 5);
    assert_eq!((storage.door_reads(), storage.reads()), (1, 0));
}

#[test]
fn error_of_the_synchronous_door_is_the_answer() {
    let cache = TableCache::new(8 * SLICE, SLICE);
    let storage = Gated::open();
    storage.fail_door(true);
    let offset = HostOffset::new(5 * SLICE);
    assert!(cache.get(&storage, offset).now_or_never().unwrap().is_err());
    assert_eq!(storage.reads(), 0);
    storage.fail_door(false);
    assert_is_slice(&cache.get(&storage, offset).now_or_never().unwrap().unwrap(), 5);
}

#[test]
fn slice_loaded_meanwhile_is_a_hit_of_get() {
    let cache = TableCache::new(8 * SLICE, SLICE);
    let storage = Gated::open();
    for _ in 0..3 {
        assert_is_slice(&block_on(cache.get(&storage, HostOffset::new(SLICE))).unwrap(), 1);
    }
    let statistics = cache.statistics();
    assert_eq!((statistics.misses, statistics.hits, statistics.loads), (1, 2, 1));
}

#[test]
fn every_slice_length_loads_on_every_storage() {
    for bits in 9..=21 {
        let len = 1_u64 << bits;
        for (alignment, transfer_len_max) in [(1, 1 << 30), (512, 512), (4096, 65536), (4096, 4096)]
        {
            for door in [false, true] {
                let mut limits = StorageLimits::default();
                limits.request_alignment = alignment;
                limits.memory_alignment = alignment;
                limits.transfer_len_max = transfer_len_max;
                let storage = Gated::with_limits(door, limits);
                let cache = TableCache::new(4 * len, len);
                for number in [0, 1, 7, 0xffff_ffff] {
                    let offset = number * len;
                    let slice = block_on(cache.get(&storage, HostOffset::new(offset))).unwrap();
                    assert_eq!(slice.words() as u64, len / 8);
                    for index in 0..slice.words() {
                        assert_eq!(slice.word(index), word_at(offset + index as u64 * 8));
                    }
                }
            }
        }
    }
}

#[test]
fn highest_offset_is_a_slice_like_any_other() {
    let storage = Gated::open();
    for len in [512, SLICE, 2 << 20] {
        let cache = TableCache::new(2 * len, len);
        let offset = u64::MAX - (len - 1);
        let slice = block_on(cache.get(&storage, HostOffset::new(offset))).unwrap();
        assert_eq!(slice.word(0), word_at(offset));
        assert_eq!(
            cache.hit(HostOffset::new(offset), |slice| slice.word(1)),
            Some(word_at(offset + 8))
        );
    }
}
