//! The race that this project was made for, on our side: many threads on one small cache while the cleaner runs all the
//! time, every word compared with what the storage holds.
//!
//! QEMU's cleaner scanned the tables without a lock while requests used them. Its authors made that visible by running
//! it every 5 ms. Here it runs every 0 to 5 ms over caches of two slices and more, while threads look up, load, pin,
//! give up and fail. Whatever two threads can do to a slot happens here many times a second. The seed of a run is
//! printed, and `CACHE_STRESS_SEED` and `CACHE_STRESS_SECONDS` repeat and prolong it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::gated::{Gated, word_at};
use async_io::Timer as Clock;
use cowshed::cache::{CleanerControl, Slice, TableCache};
use cowshed::format::HostOffset;
use cowshed::timer::Timer;
use futures::FutureExt;
use futures::executor::block_on;

const SLICE: u64 = 4096;

struct Seconds;

impl Timer for Seconds {
    async fn sleep(&self, duration: Duration) {
        Clock::after(duration).await;
    }
}

/// xorshift64*.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 16) % bound
    }
}

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap())
}

fn assert_words(slice: &Slice, number: u64, random: &mut Random) {
    assert_eq!(slice.words() as u64, SLICE / 8);
    for _ in 0..8 {
        let index = random.below(SLICE / 8);
        let word = slice.word(usize::try_from(index).unwrap());
        assert_eq!(word, word_at(number * SLICE + index * 8), "slice {number}, word {index}");
    }
}

/// What one thread does, until `stop`.
fn work(cache: &TableCache, storage: &Gated, numbers: u64, stop: &AtomicBool, seed: u64) -> u64 {
    let mut random = Random(seed | 1);
    let mut pins: Vec<(u64, Slice)> = Vec::new();
    let mut steps = 0;
    while !stop.load(Ordering::Relaxed) {
        steps += 1;
        // Half of the uses go to two slices, so that threads meet.
        let number = if random.below(2) == 0 { random.below(2) } else { random.below(numbers) };
        let offset = HostOffset::new(number * SLICE);
        match random.below(16) {
            0 => {
                // Give up after a few polls, from wherever it got to.
                let mut get = Box::pin(cache.get(storage, offset));
                for _ in 0..random.below(3) {
                    if let Some(got) = get.as_mut().now_or_never() {
                        if let Ok(slice) = got {
                            assert_words(&slice, number, &mut random);
                        }
                        break;
                    }
                }
            }
            1 => storage.set_door(random.below(2) == 0),
            2 => storage.fail_door(random.below(4) == 0),
            3 => {
                if let Ok(slice) = block_on(cache.get(storage, offset)) {
                    pins.push((number, slice));
                }
                if pins.len() > 2 {
                    let at = usize::try_from(random.below(pins.len() as u64)).unwrap();
                    let (number, slice) = pins.swap_remove(at);
                    assert_words(&slice, number, &mut random);
                }
            }
            4 => pins.clear(),
            _ => {
                let hit = cache.hit(offset, |slice| assert_words(slice, number, &mut random));
                if hit.is_none()
                    && let Ok(slice) = block_on(cache.get(storage, offset))
                {
                    assert_words(&slice, number, &mut random);
                }
            }
        }
        for (number, slice) in &pins {
            assert_words(slice, *number, &mut random);
        }
    }
    steps
}

fn stress(threads: u64, slices: u64, interval: Duration, seed: u64, duration: Duration) {
    let cache = Arc::new(TableCache::new(slices * SLICE, SLICE));
    let other = Arc::new(TableCache::new(slices * SLICE, SLICE));
    let control = CleanerControl::new([cache.clone(), other.clone()], interval);
    let storage = Gated::asynchronous();
    let stop = AtomicBool::new(false);
    let steps = AtomicU64::new(0);
    // An interval of zero would mean no cleaner: the thread that stands for it passes all the time.
    let cleaner =
        control.start().map(|cleaner| thread::spawn(move || block_on(cleaner.run(Seconds))));
    thread::scope(|scope| {
        for thread in 0..threads {
            let (cache, storage, stop, steps) = (&cache, &storage, &stop, &steps);
            scope.spawn(move || {
                // A panic must stop the others.
                struct Stop<'a>(&'a AtomicBool);
                impl Drop for Stop<'_> {
                    fn drop(&mut self) {
                        self.0.store(true, Ordering::Relaxed);
                    }
                }
                let _stop = Stop(stop);
                let seed = seed.wrapping_add(thread.wrapping_mul(0x9e37_79b9_7f4a_7c15));
                steps.fetch_add(work(cache, storage, slices * 4, stop, seed), Ordering::Relaxed);
            });
        }
        let end = Instant::now() + duration;
        while Instant::now() < end && !stop.load(Ordering::Relaxed) {
            if interval.is_zero() {
                cache.pass();
            } else {
                thread::sleep(Duration::from_millis(1));
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    control.stop();
    block_on(control.join());
    if let Some(cleaner) = cleaner {
        cleaner.join().unwrap();
    }

    let statistics = cache.statistics();
    println!("{threads} threads, {slices} slices, {interval:?}: {steps:?} steps, {statistics:?}");
    assert!(statistics.passes > 0 && statistics.loads > 0 && statistics.hits > 0);
    assert_eq!(storage.in_flight_max(), 1, "a slice was loaded twice at a time");
    // Nothing is pinned and nothing in flight: the books must balance, and all of it must go.
    let gone = statistics.evictions + statistics.cleaned;
    assert_eq!((statistics.loads - gone) * SLICE, statistics.bytes_held);
    cache.pass();
    cache.pass();
    assert_eq!(cache.statistics().bytes_held, 0, "something is pinned for ever");
}

#[test]
fn cleaner_and_requests_do_not_disturb_each_other() {
    let seed = variable("CACHE_STRESS_SEED").unwrap_or(0x5eed_cafe);
    println!("CACHE_STRESS_SEED={seed}");
    let duration = match variable("CACHE_STRESS_SECONDS") {
        Some(seconds) => Duration::from_secs(seconds),
        None => Duration::from_millis(250),
    };
    for threads in [2, 4, 8] {
        for slices in [2, 64] {
            for millis in [0, 1, 5] {
                stress(threads, slices, Duration::from_millis(millis), seed, duration);
            }
        }
    }
}
