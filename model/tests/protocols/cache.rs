//! The cache, its cleaner and its write-back.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use cowshed::cache::{CleanerControl, TableCache};
use cowshed::format::HostOffset;
use cowshed::storage::{Blocks, SendStorage};
use cowshed::timer::Timer;
use futures::future::{Either, select};
use shuttle::future::{block_on, yield_now};
use shuttle::sync::Mutex;
use shuttle::thread;

use crate::explore::{choose, explore, schedules};
use crate::storage::TurnStorage;

const SLICE: u64 = 512;
const MINUTES: Duration = Duration::from_secs(600);

/// A timer for which the checker chooses: sleep ends soon, or never.
pub(crate) struct Whenever;

impl Timer for Whenever {
    async fn sleep(&self, _: Duration) {
        match choose(4) {
            0 => std::future::pending().await,
            turns => {
                for _ in 1..turns {
                    yield_now().await;
                }
            }
        }
    }
}

/// A timer that never fires: what ends a sleep is a wake-up.
struct Never;

impl Timer for Never {
    async fn sleep(&self, _: Duration) {
        std::future::pending().await
    }
}

/// A storage of `slices` slices, whose every word says in which one it is.
fn storage(slices: u64) -> Arc<TurnStorage> {
    let words = (0..slices).flat_map(|slice| [slice; 64]);
    Arc::new(TurnStorage::new(words.flat_map(u64::to_be_bytes).collect()))
}

fn cache(slices: u64) -> Arc<TableCache> {
    Arc::new(TableCache::new(slices * SLICE, SLICE))
}

fn at(slice: u64) -> HostOffset {
    HostOffset::new(slice * SLICE)
}

/// Looks `slice` up, as a request does: a hit or else a miss, and the pin for a while.
fn look(cache: &TableCache, storage: &TurnStorage, slice: u64) {
    let seen = cache.hit(at(slice), |it| (it.word(0), it.word(63)));
    if let Some(seen) = seen {
        assert_eq!(seen, (slice, slice));
        return;
    }
    let pinned = block_on(cache.get(storage, at(slice))).unwrap();
    assert_eq!((pinned.word(0), pinned.word(63)), (slice, slice));
    thread::yield_now();
    assert_eq!(pinned.word(7), slice);
}

/// Adds one to word `word` of `slice` in the cache, as a writer does that holds the slice meanwhile.
fn add(cache: &TableCache, storage: &impl SendStorage, slice: u64, word: usize) {
    let pinned = block_on(cache.get(storage, at(slice))).unwrap();
    thread::yield_now();
    let now = cache.update(at(slice), |it| {
        it.set_word(word, it.word(word) + 1);
        it.word(word)
    });
    // A pinned slice stays the one that the cache has: what is stored to that is seen in this.
    assert!(pinned.word(word) >= now.expect("a pinned slice is gone"), "it is another slice");
}

/// Writes back all that is dirty now, as a flush does.
fn write_back(cache: &TableCache, storage: &TurnStorage, blocks: &Blocks) -> bool {
    block_on(cache.begin_write_back(0, 1 << 20).write(storage, blocks)).is_ok()
}

fn blocks() -> Blocks {
    Blocks::new(SendStorage::limits(&TurnStorage::default()))
}

fn word_of(storage: &TurnStorage, slice: u64, word: usize) -> u64 {
    let start = slice as usize * SLICE as usize + word * 8;
    u64::from_be_bytes(storage.bytes()[start..start + 8].try_into().unwrap())
}

/// Three tasks look three slices up in a cache of one: whoever is evicted is loaded again, nobody loads twice at a time, nobody
/// sees another's words, and in the end the books balance.
pub(crate) fn get_and_evict() {
    let (cache, storage) = (cache(1), storage(3));
    let tasks = [[0, 1], [1, 2], [0, 2]].map(|slices| {
        let (cache, storage) = (Arc::clone(&cache), Arc::clone(&storage));
        thread::spawn(move || slices.map(|slice| look(&cache, &storage, slice)))
    });
    for task in tasks {
        task.join().unwrap();
    }
    let counts = cache.statistics();
    assert_eq!((counts.loads - counts.evictions) * SLICE, counts.bytes_held);
    cache.pass();
    cache.pass();
    assert_eq!(cache.statistics().bytes_held, 0, "a pin is left");
}

/// Two tasks look slices up while a cleaner passes whenever it likes.
pub(crate) fn cleaner_and_get() {
    let (cache, storage) = (cache(4), storage(3));
    let control = CleanerControl::new([Arc::clone(&cache)], MINUTES);
    let cleaner = control.start().unwrap();
    let cleaner = thread::spawn(move || block_on(cleaner.run(Whenever)));
    let tasks = [[0, 1, 0], [1, 2, 0]].map(|slices| {
        let (cache, storage) = (Arc::clone(&cache), Arc::clone(&storage));
        thread::spawn(move || slices.map(|slice| look(&cache, &storage, slice)))
    });
    for task in tasks {
        task.join().unwrap();
    }
    control.stop();
    block_on(control.join());
    cleaner.join().unwrap();
    // What a stopped cleaner has put aside is held until the next pass.
    cache.pass();
    let counts = cache.statistics();
    assert_eq!((counts.loads - counts.evictions - counts.cleaned) * SLICE, counts.bytes_held);
}

/// Two tasks stop and join the cleaner, which sleeps for ever or passes: each returns, after which no pass goes on; the cleaner
/// ends.
pub(crate) fn cleaner_and_close() {
    close_with(Whenever);
}

/// The same with a timer that never fires: nothing but the wake-up ends the sleep.
pub(crate) fn cleaner_asleep_and_close() {
    close_with(Never);
}

fn close_with(timer: impl Timer + Send + 'static) {
    let (cache, storage) = (cache(2), storage(2));
    block_on(cache.get(&*storage, at(0))).unwrap();
    let control = Arc::new(CleanerControl::new([Arc::clone(&cache)], MINUTES));
    let cleaner = control.start().unwrap();
    let cleaner = thread::spawn(move || block_on(cleaner.run(timer)));
    let close = |control: Arc<CleanerControl>, cache: Arc<TableCache>| {
        control.stop();
        block_on(control.join());
        let passes = cache.statistics().passes;
        thread::yield_now();
        assert_eq!(cache.statistics().passes, passes, "a pass went on after the join");
    };
    let other = {
        let (control, cache) = (Arc::clone(&control), Arc::clone(&cache));
        thread::spawn(move || close(control, cache))
    };
    close(Arc::clone(&control), Arc::clone(&cache));
    assert!(Arc::strong_count(&cache) <= 3, "the cleaner has the caches still");
    other.join().unwrap();
    let passes = cache.statistics().passes;
    cleaner.join().unwrap();
    assert_eq!(cache.statistics().passes, passes, "a pass went on after the join");
}

/// The cleaner is dropped wherever it is, while another task stops and joins it: the join returns, and another cleaner may run.
pub(crate) fn cleaner_aborted_and_close() {
    let (cache, storage) = (cache(2), storage(2));
    block_on(cache.get(&*storage, at(0))).unwrap();
    let control = Arc::new(CleanerControl::new([Arc::clone(&cache)], MINUTES));
    let cleaner = control.start().unwrap();
    let cleaner = thread::spawn(move || {
        block_on(async {
            let turns = async {
                for _ in 0..choose(6) {
                    yield_now().await;
                }
            };
            // The one that is not ready is dropped.
            if let Either::Right(_) = select(pin!(cleaner.run(Whenever)), pin!(turns)).await {}
        });
    });
    let stopper = {
        let control = Arc::clone(&control);
        thread::spawn(move || {
            if choose(2) == 0 {
                control.stop();
                block_on(control.join());
            }
        })
    };
    stopper.join().unwrap();
    cleaner.join().unwrap();
    let again = control.start().expect("the one before is over");
    control.stop();
    block_on(again.run(Never));
    block_on(control.join());
}

/// One task changes the interval to another, to none and back, another stops and joins at last, and cleaners run as they are
/// given out: at most one is at work, and all of them end.
pub(crate) fn interval_and_close() {
    let (cache, storage) = (cache(2), storage(2));
    block_on(cache.get(&*storage, at(0))).unwrap();
    let control = Arc::new(CleanerControl::new([Arc::clone(&cache)], MINUTES));
    let running = Arc::new(Mutex::new(Vec::new()));
    let run = |cleaner: Option<cowshed::cache::Cleaner>, running: &Mutex<Vec<_>>| {
        if let Some(cleaner) = cleaner {
            let task = thread::spawn(move || block_on(cleaner.run(Whenever)));
            running.lock().unwrap().push(task);
        }
    };
    run(control.start(), &running);
    let other = {
        let (control, running) = (Arc::clone(&control), Arc::clone(&running));
        thread::spawn(move || {
            for interval in [MINUTES * 2, Duration::ZERO, MINUTES] {
                let cleaner = block_on(control.set_interval(interval));
                assert_eq!(control.interval(), interval);
                run(cleaner, &running);
            }
        })
    };
    control.stop();
    block_on(control.join());
    other.join().unwrap();
    control.stop();
    block_on(control.join());
    let tasks = std::mem::take(&mut *running.lock().unwrap());
    for task in tasks {
        task.join().unwrap();
    }
}

/// The control is dropped, as with an image that nobody closes: the cleaner ends by itself.
pub(crate) fn control_dropped() {
    let cache = cache(2);
    let control = CleanerControl::new([Arc::clone(&cache)], MINUTES);
    let cleaner = control.start().unwrap();
    let cleaner = thread::spawn(move || block_on(cleaner.run(Whenever)));
    thread::yield_now();
    drop(control);
    cleaner.join().unwrap();
    assert_eq!(Arc::strong_count(&cache), 1);
}

/// A task adds to words while another writes back: no addition is lost, neither in the cache nor, after the last write-back, on
/// the storage; and what a write-back writes was true at one moment.
pub(crate) fn write_back_and_modify() {
    let (cache, storage, blocks) = (cache(2), storage(2), Arc::new(blocks()));
    add(&cache, &*storage, 0, 3);
    let writer = {
        let (cache, storage) = (Arc::clone(&cache), Arc::clone(&storage));
        thread::spawn(move || {
            for slice in [0, 1, 0] {
                add(&cache, &*storage, slice, 3);
            }
        })
    };
    for _ in 0..2 {
        write_back(&cache, &storage, &blocks);
    }
    writer.join().unwrap();
    write_back(&cache, &storage, &blocks);
    assert_eq!(cache.unwritten_bytes(), 0);
    assert_eq!((word_of(&storage, 0, 3), word_of(&storage, 1, 3)), (3, 2));
}

/// Two tasks write back at the same time, without a lock, while a third adds, and one of the writes fails: a slice that is being
/// written is left to whoever writes it, what failed is dirty again, and the last write-back writes all that is left.
pub(crate) fn two_flushers() {
    let (cache, storage, blocks) = (cache(2), storage(2), Arc::new(blocks()));
    add(&cache, &*storage, 0, 3);
    storage.fail_writes(choose(2));
    let tasks = [0, 1].map(|task| {
        let (cache, storage, blocks) =
            (Arc::clone(&cache), Arc::clone(&storage), Arc::clone(&blocks));
        thread::spawn(move || {
            if task == 0 {
                add(&cache, &*storage, 0, 3);
            }
            write_back(&cache, &storage, &blocks);
        })
    });
    add(&cache, &*storage, 1, 3);
    write_back(&cache, &storage, &blocks);
    for task in tasks {
        task.join().unwrap();
    }
    storage.fail_writes(0);
    while cache.unwritten_bytes() > 0 {
        write_back(&cache, &storage, &blocks);
    }
    assert_eq!((word_of(&storage, 0, 3), word_of(&storage, 1, 3)), (2, 2));
}

/// Slices are made dirty in a cache of one, while others are loaded, evicted, swept and written back: none that is dirty or held
/// goes.
pub(crate) fn dirty_and_sweep() {
    let (cache, storage, blocks) = (cache(1), storage(3), blocks());
    let control = CleanerControl::new([Arc::clone(&cache)], MINUTES);
    let cleaner = control.start().unwrap();
    let cleaner = thread::spawn(move || block_on(cleaner.run(Whenever)));
    let reader = {
        let (cache, storage) = (Arc::clone(&cache), Arc::clone(&storage));
        thread::spawn(move || {
            for slice in [2, 0, 2] {
                let pinned = block_on(cache.get(&*storage, at(slice))).unwrap();
                assert_eq!(pinned.word(0), slice);
            }
        })
    };
    for _ in 0..2 {
        add(&cache, &*storage, 0, 3);
        add(&cache, &*storage, 1, 3);
        thread::yield_now();
        write_back(&cache, &storage, &blocks);
    }
    reader.join().unwrap();
    control.stop();
    block_on(control.join());
    cleaner.join().unwrap();
    assert_eq!((word_of(&storage, 0, 3), word_of(&storage, 1, 3)), (2, 3));
}

/// Loads and write-backs are dropped wherever they are: another takes the load over, what was not written is dirty again.
pub(crate) fn cancel_any() {
    let (cache, storage, blocks) = (cache(2), storage(2), Arc::new(blocks()));
    let tasks = [0, 1].map(|task| {
        let (cache, storage, blocks) =
            (Arc::clone(&cache), Arc::clone(&storage), Arc::clone(&blocks));
        thread::spawn(move || {
            if task == 0 {
                drop_somewhere(cache.get(&*storage, at(0)));
                add(&cache, &*storage, 0, 3);
            }
            drop_somewhere(async {
                cache.begin_write_back(0, 1 << 20).write(&*storage, &*blocks).await
            });
        })
    });
    add(&cache, &*storage, 0, 3);
    for task in tasks {
        task.join().unwrap();
    }
    // What was dropped can land until a flush: then the next write-back is what stays.
    block_on(SendStorage::flush(&*storage)).unwrap();
    while cache.unwritten_bytes() > 0 {
        write_back(&cache, &storage, &blocks);
    }
    assert_eq!(word_of(&storage, 0, 3), 2);
}

/// Polls a future for some turns, and drops it.
pub(crate) fn drop_somewhere<F: Future>(future: F) -> Option<F::Output> {
    block_on(async {
        let turns = async {
            for _ in 0..choose(8) {
                yield_now().await;
            }
        };
        match select(pin!(future), pin!(turns)).await {
            Either::Left((output, _)) => Some(output),
            Either::Right(_) => None,
        }
    })
}

macro_rules! protocols {
    ($($name:ident),* $(,)?) => {
        $(#[test]
        fn $name() {
            explore(stringify!($name), schedules(), super::$name);
        })*
    };
}

mod explored {
    use super::{explore, schedules};

    protocols![
        get_and_evict,
        cleaner_and_get,
        cleaner_and_close,
        cleaner_asleep_and_close,
        cleaner_aborted_and_close,
        interval_and_close,
        control_dropped,
        write_back_and_modify,
        two_flushers,
        dirty_and_sweep,
        cancel_any,
    ];
}
