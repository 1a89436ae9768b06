//! What goes and what stays: eviction within the budget, and passes by QEMU's rule.
//!
//! The rule (QEMU, block/qcow2-cache.c, `qcow2_cache_clean_unused`): a pass drops what is clean, not referenced and was
//! not used since the pass before; the end of a reference is a use. So a slice lives for one to two passes after its
//! last use, and the first pass after opening drops nothing.

use crate::gated::{Gated, word_at};
use cowshed::cache::{Slice, TableCache};
use cowshed::format::HostOffset;
use futures::FutureExt;
use futures::executor::block_on;

const SLICE: u64 = 4096;

fn at(number: u64) -> HostOffset {
    HostOffset::new(number * SLICE)
}

fn load(cache: &TableCache, number: u64) -> Slice {
    let slice = block_on(cache.get(&Gated::open(), at(number))).unwrap();
    assert_eq!(slice.word(5), word_at(number * SLICE + 40));
    slice
}

/// How many slices are cached.
fn held(cache: &TableCache) -> u64 {
    assert!(cache.statistics().bytes_held.is_multiple_of(SLICE));
    cache.statistics().bytes_held / SLICE
}

fn use_it(cache: &TableCache, number: u64) -> bool {
    cache.hit(at(number), |slice| assert_eq!(slice.word(7), word_at(number * SLICE + 56))).is_some()
}

#[test]
fn first_pass_drops_nothing_and_second_drops_what_was_not_used_between() {
    let cache = TableCache::new(100 * SLICE, SLICE);
    for number in 0..50 {
        load(&cache, number);
    }
    cache.pass();
    assert_eq!(held(&cache), 50);
    for number in 0..10 {
        assert!(use_it(&cache, number));
    }
    cache.pass();
    assert_eq!(held(&cache), 10);
    for number in 0..50 {
        assert_eq!(use_it(&cache, number), number < 10, "slice {number}");
    }
    let statistics = cache.statistics();
    assert_eq!((statistics.passes, statistics.cleaned, statistics.evictions), (2, 40, 0));
}

#[test]
fn slice_that_is_used_between_any_two_passes_lives_on() {
    let cache = TableCache::new(4 * SLICE, SLICE);
    load(&cache, 3);
    for _ in 0..20 {
        cache.pass();
        assert!(use_it(&cache, 3));
    }
    cache.pass();
    assert_eq!(held(&cache), 1, "used before this pass");
    cache.pass();
    assert_eq!(held(&cache), 0, "not used since");
}

#[test]
fn get_of_a_cached_slice_is_a_use() {
    let cache = TableCache::new(4 * SLICE, SLICE);
    load(&cache, 3);
    cache.pass();
    load(&cache, 3);
    cache.pass();
    assert_eq!(held(&cache), 1);
    assert_eq!(cache.statistics().loads, 1);
}

#[test]
fn pinned_slice_outlives_passes_and_the_end_of_the_pin_is_a_use() {
    let cache = TableCache::new(4 * SLICE, SLICE);
    let pin = load(&cache, 3);
    let second = load(&cache, 3);
    drop(pin);
    for _ in 0..5 {
        cache.pass();
        assert_eq!(held(&cache), 1);
    }
    drop(second);
    cache.pass();
    assert_eq!(held(&cache), 1, "released since the pass before");
    cache.pass();
    assert_eq!(held(&cache), 0);
}

#[test]
fn slice_is_loaded_again_after_a_pass_dropped_it() {
    let cache = TableCache::new(4 * SLICE, SLICE);
    for round in 1..=3 {
        load(&cache, 3);
        cache.pass();
        cache.pass();
        assert_eq!(held(&cache), 0);
        assert_eq!(cache.statistics().loads, round);
    }
}

#[test]
fn pass_leaves_a_load_in_flight_alone() {
    let cache = TableCache::new(4 * SLICE, SLICE);
    let storage = Gated::shut();
    let mut get = Box::pin(cache.get(&storage, at(3)));
    assert!(get.as_mut().now_or_never().is_none());
    for _ in 0..4 {
        cache.pass();
    }
    let mut second = Box::pin(cache.get(&storage, at(3)));
    assert!(second.as_mut().now_or_never().is_none());
    assert_eq!(storage.reads(), 1, "the second one shares the load");
    storage.release(3 * SLICE);
    let slice = get.now_or_never().unwrap().unwrap();
    assert_eq!(slice.word(1), word_at(3 * SLICE + 8));
    assert!(second.now_or_never().unwrap().is_ok());
    assert!(use_it(&cache, 3));
}

#[test]
fn cache_as_large_as_its_tables_evicts_nothing() {
    // However the slices spread over stripes: the budget is one for all.
    for slices in [1, 2, 3, 7, 64, 100, 1000, 8192] {
        for stride in [1, 16, 512] {
            let cache = TableCache::new(slices * SLICE, SLICE);
            for _ in 0..3 {
                (0..slices).for_each(|number| drop(load(&cache, number * stride)));
            }
            let statistics = cache.statistics();
            assert_eq!((statistics.loads, statistics.evictions), (slices, 0));
        }
    }
}

#[test]
fn slices_used_since_go_after_those_that_were_not() {
    // As with least recently used: when the guest turns to other tables, one round brings them all in.
    for slices in [2, 3, 7, 64, 100, 1000] {
        let cache = TableCache::new(slices * SLICE, SLICE);
        for set in 0..4 {
            let numbers = || (0..slices).map(|number| (set << 32) + number);
            numbers().for_each(|number| drop(load(&cache, number)));
            numbers().for_each(|number| assert!(use_it(&cache, number), "{slices} {number:#x}"));
        }
        assert_eq!(cache.statistics().loads, 4 * slices);
    }
}

#[test]
fn budget_holds_while_slices_come_and_go() {
    for slices in [1, 2, 5, 64, 300] {
        let cache = TableCache::new(slices * SLICE + SLICE - 1, SLICE);
        for number in 0..2000 {
            load(&cache, number * 7 % 1999);
            assert!(held(&cache) <= slices);
        }
        assert_eq!(held(&cache), slices, "a full cache stays full");
        let statistics = cache.statistics();
        assert_eq!(statistics.loads - statistics.evictions, slices);
    }
}

#[test]
fn what_is_used_often_survives_a_scan() {
    let cache = TableCache::new(64 * SLICE, SLICE);
    for hot in 0..16 {
        load(&cache, hot);
    }
    for number in 1000..10_000 {
        load(&cache, number);
        assert!(use_it(&cache, number % 16), "slice {} was evicted by a scan", number % 16);
    }
}

#[test]
fn pinned_slices_are_never_evicted_and_may_exceed_the_budget() {
    let cache = TableCache::new(2 * SLICE, SLICE);
    let pins: Vec<_> = (0..10).map(|number| load(&cache, number)).collect();
    assert_eq!(held(&cache), 10, "all are pinned: more memory rather than a deadlock");
    assert!((0..10).all(|number| use_it(&cache, number)));
    drop(pins);
    // Each miss takes the place of one and drops one more.
    for number in 100..120 {
        load(&cache, number);
    }
    assert_eq!(held(&cache), 2);
}

#[test]
fn pinned_slice_keeps_its_contents_while_all_else_is_replaced() {
    let cache = TableCache::new(2 * SLICE, SLICE);
    let pin = load(&cache, 1);
    for number in 2..500 {
        load(&cache, number);
    }
    for index in 0..pin.words() {
        assert_eq!(pin.word(index), word_at(SLICE + index as u64 * 8));
    }
    assert!(use_it(&cache, 1));
}

#[test]
fn failed_load_evicts_nothing() {
    let cache = TableCache::new(2 * SLICE, SLICE);
    load(&cache, 1);
    load(&cache, 2);
    let storage = Gated::open();
    storage.fail_door(true);
    for number in 10..20 {
        assert!(block_on(cache.get(&storage, at(number))).is_err());
    }
    assert!(use_it(&cache, 1) && use_it(&cache, 2));
}
