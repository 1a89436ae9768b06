//! The race that this project is named for: QEMU's cleaner was a timer callback that looked through the caches while requests on
//! other threads used them, under no lock, and took a table that had just come into use or had just been changed. Its authors made
//! that visible by running it every 5 ms and pausing inside of it.
//!
//! Here the cleaner of an image runs every 5 ms, every millisecond and without a rest, and pauses inside its pass: under the lock
//! of each stripe, and between taking and freeing. Meanwhile 2, 4 and 8 threads read, write, zero, discard and flush on four
//! slices of L2 table, in bursts, so that slices come out of use and into use again. Each reads what it has written, whatever the
//! others do; in the end the disk is what the model says and `qemu-img check` finds nothing.
//!
//! That the test would notice is shown by the same test with a mutant: a cleaner that notes what it may take, pauses, and takes it
//! without looking again, as QEMU's did in effect.
//!
//! `COWSHED_RACE_SECONDS` says how long each of the nine takes (half a second if not given), `COWSHED_RACE_SEED` repeats a run as far
//! as threads can be repeated.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::qemu;
use cowshed::cache::mutant::{self, Mutant};
use cowshed::image::{
    CreateOptions, Image, OpenOptions, RefuseAll, Source, WriteOptions, ZeroMode, create,
};
use cowshed::storage::MemoryStorage;
use cowshed::timer::Timer;
use futures::executor::block_on;

const CLUSTER: u64 = 4096;
const DISK_LEN: u64 = 8 << 20;
/// The first half of the disk is made of such stripes, which share clusters; the second half of whole clusters.
const STRIPE_LEN: u64 = 3 * 512;
const SLICE_LEN: u64 = 512;
const SLICES: u64 = 4;
/// What a thread does at a time, side by side.
const TASKS_PER_THREAD: u64 = 4;
/// A mutant must be found in races that begin within this.
const FOUND_WITHIN: Duration = Duration::from_secs(100);
/// A race of a mutant that has not ended by then never will: that is found, too.
const ENDED_WITHIN: Duration = Duration::from_secs(200);

type Disk = Image<Arc<MemoryStorage>>;

/// Sleeps as long as the test says, whatever the interval is.
struct Every(Duration);

impl Timer for Every {
    async fn sleep(&self, _: Duration) {
        if !self.0.is_zero() {
            async_io::Timer::after(self.0).await;
        }
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 8) % end
    }
}

/// A range of the disk that one task has for itself, and what it holds.
struct Part {
    at: u64,
    bytes: Vec<u8>,
}

/// The parts of task `task` of `tasks`, lying among those of the others.
fn parts(task: u64, tasks: u64) -> Vec<Part> {
    let half = DISK_LEN / 2;
    let stripes = (task..half / STRIPE_LEN).step_by(tasks as usize).map(|it| it * STRIPE_LEN);
    let clusters = (task..half / CLUSTER).step_by(tasks as usize).map(|it| half + it * CLUSTER);
    let of = |at, len| Part { at, bytes: vec![0; len as usize] };
    stripes.map(|at| of(at, STRIPE_LEN)).chain(clusters.map(|at| of(at, CLUSTER))).collect()
}

/// When the threads work.
#[derive(Default)]
struct Load {
    over: AtomicBool,
    /// Nobody does anything, so that a pass finds what nobody has used since the one before.
    lull: AtomicBool,
}

async fn work(
    image: &Disk,
    mut parts: Vec<Part>,
    mut random: Random,
    load: &Load,
) -> (Vec<Part>, u64) {
    let mut steps = 0;
    while !load.over.load(Ordering::Relaxed) {
        while load.lull.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_micros(100));
        }
        steps += 1;
        let number = random.below(parts.len() as u64) as usize;
        let Part { at, bytes } = &mut parts[number];
        let len = bytes.len() as u64;
        let start = random.below(len);
        let end = start + 1 + random.below(len - start);
        let range = start as usize..end as usize;
        match random.below(16) {
            0..=5 => {
                bytes[range.clone()].fill(random.below(255) as u8 + 1);
                image.write_at(&bytes[range], *at + start).await.unwrap();
            }
            6 => {
                bytes[range].fill(0);
                let mode = if steps % 2 == 0 { ZeroMode::KeepSpace } else { ZeroMode::MayUnmap };
                image.write_zeroes_at(*at + start, end - start, mode).await.unwrap();
            }
            7 | 8 if len == CLUSTER => {
                bytes.fill(0);
                image.discard_at(*at, CLUSTER).await.unwrap();
            }
            9 => image.flush().await.unwrap(),
            _ => {
                let mut read = vec![0xee; bytes.len()];
                image.read_at(&mut read, *at).await.unwrap();
                assert!(read == *bytes, "step {steps}: {at:#x} reads as something else");
            }
        }
        // Others of this thread have their turn.
        yield_once().await;
    }
    (parts, steps)
}

async fn yield_once() {
    let mut yielded = false;
    std::future::poll_fn(|context| {
        if std::mem::replace(&mut yielded, true) {
            return std::task::Poll::Ready(());
        }
        context.waker().wake_by_ref();
        std::task::Poll::Pending
    })
    .await;
}

/// One race; panics when anybody notices anything. Returns how many requests and passes there were, and how many slices those took.
fn race(
    threads: u64,
    every: Duration,
    seed: u64,
    duration: Duration,
    mutant: Option<Mutant>,
) -> [u64; 3] {
    let storage = Arc::new(MemoryStorage::new(Vec::new()));
    let mut options = CreateOptions::new(DISK_LEN);
    options.cluster_size = CLUSTER;
    block_on(create(&storage, None, &options)).unwrap();
    let mut options = OpenOptions::default();
    options.write = Some(WriteOptions::default());
    options.cache.l2_cache_size = Some(SLICES * SLICE_LEN);
    options.cache.l2_cache_entry_size = Some(SLICE_LEN);
    let source = Source::qcow2(Arc::clone(&storage), "image");
    let opened = block_on(Image::open(source, &RefuseAll::new(), options)).unwrap();
    let (image, cleaner) = (opened.image, opened.cleaner.unwrap());

    let (load, steps) = (Load::default(), AtomicU64::new(0));
    let tasks = threads * TASKS_PER_THREAD;
    let end = Instant::now() + duration;
    let (disk, passes, cleaned) = thread::scope(|scope| {
        let cleaner = scope.spawn(move || {
            mutant::set(mutant);
            let mut random = Random(seed | 1);
            mutant::set_pause(Some(Box::new(move || match random.below(8) {
                0..=3 => thread::sleep(Duration::from_micros(random.below(1000))),
                4 => thread::yield_now(),
                _ => {}
            })));
            block_on(cleaner.run(Every(every)));
        });
        let workers: Vec<_> = (0..threads)
            .map(|worker| {
                let (image, load, steps) = (&image, &load, &steps);
                scope.spawn(move || {
                    let works = (0..TASKS_PER_THREAD).map(|task| {
                        let number = worker * TASKS_PER_THREAD + task;
                        let random =
                            Random((seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15)) | 1);
                        work(image, parts(number, tasks), random, load)
                    });
                    let done = catch_unwind(AssertUnwindSafe(|| {
                        block_on(futures::future::join_all(works))
                    }));
                    // Whoever fails stops the others.
                    load.over.fetch_or(done.is_err(), Ordering::Relaxed);
                    let done = done.expect("the disk does not hold what was written");
                    steps.fetch_add(done.iter().map(|(_, steps)| steps).sum(), Ordering::Relaxed);
                    done
                })
            })
            .collect();
        let mut random = Random((seed ^ 0x10ad) | 1);
        while Instant::now() < end && !load.over.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_micros(500 + random.below(3000)));
            load.lull.store(true, Ordering::Relaxed);
            let lull_max = 1000 + 3 * every.as_micros() as u64;
            thread::sleep(Duration::from_micros(random.below(lull_max)));
            load.lull.store(false, Ordering::Relaxed);
        }
        load.over.store(true, Ordering::Relaxed);
        let done: Vec<_> = workers.into_iter().map(thread::ScopedJoinHandle::join).collect();
        let (mut passes, mut cleaned) = (0, 0);
        for layer in image.statistics() {
            passes += layer.l2.passes;
            cleaned += layer.l2.cleaned;
        }
        let closed = block_on(image.close());
        let cleaner_ended = cleaner.join();
        let mut disk = vec![0; DISK_LEN as usize];
        for done in done {
            for (parts, _) in done.expect("a worker failed") {
                for Part { at, bytes } in parts {
                    disk[at as usize..at as usize + bytes.len()].copy_from_slice(&bytes);
                }
            }
        }
        closed.unwrap();
        cleaner_ended.expect("the cleaner failed");
        (disk, passes, cleaned)
    });
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("image"), storage.to_vec()).unwrap();
    std::fs::write(dir.path().join("disk"), &disk).unwrap();
    qemu::img(dir.path(), ["check", "image"]);
    qemu::img(dir.path(), ["compare", "-f", "qcow2", "-F", "raw", "image", "disk"]);
    let steps = steps.load(Ordering::Relaxed);
    println!(
        "{threads} threads, a pass every {every:?}: {steps} requests, {passes} passes took {cleaned}"
    );
    [steps, passes, cleaned]
}

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap())
}

fn seed() -> u64 {
    let seed = variable("COWSHED_RACE_SEED").unwrap_or(0x5eed_2025);
    println!("COWSHED_RACE_SEED={seed}");
    seed
}

#[test]
fn cleaner_takes_nothing_that_is_used_or_changed() {
    let seconds = variable("COWSHED_RACE_SECONDS").map(Duration::from_secs);
    let (seed, duration) = (seed(), seconds.unwrap_or(Duration::from_millis(500)));
    let mut all = [0; 3];
    for threads in [2, 4, 8] {
        for millis in [0, 1, 5] {
            let every = Duration::from_millis(millis);
            let done = race(threads, every, seed, duration, None);
            all.iter_mut().zip(done).for_each(|(all, done)| *all += done);
        }
    }
    // In one of the nine the machine may have had no time for it.
    let [requests, passes, cleaned] = all;
    assert!(requests > 1000 && passes > 30 && cleaned > 10, "nothing has happened: {all:?}");
}

#[test]
fn cleaner_without_a_lock_is_caught() {
    let seed = seed();
    for threads in [2, 4, 8] {
        for millis in [0, 1, 5] {
            let (sender, receiver) = mpsc::channel();
            let start = Instant::now();
            // Apart: one that never ends is found as well.
            thread::spawn(move || {
                let every = Duration::from_millis(millis);
                let found = catch_unwind(|| {
                    let mutant = Some(Mutant::SweepWithoutLock);
                    for round in 0.. {
                        if start.elapsed() >= FOUND_WITHIN {
                            break;
                        }
                        race(threads, every, seed + round, Duration::from_secs(1), mutant);
                    }
                });
                let _ = sender.send(found.is_err());
            });
            let found = receiver.recv_timeout(ENDED_WITHIN).unwrap_or(true);
            println!(
                "{threads} threads, a pass every {millis} ms: caught after {:?}",
                start.elapsed()
            );
            assert!(found, "a cleaner without a lock is not noticed");
        }
    }
}
