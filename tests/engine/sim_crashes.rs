//! The fear: a simulated disk that is kinder than a real one, or crueler than the contract of `storage` allows. Either
//! way what it says of the engine is worth nothing.
//!
//! The oracle is a small model that knows the contract and not the disk: for every sector, what it may hold.

use std::collections::BTreeSet;
use std::io;
use std::pin::pin;
use std::time::Duration;

use crate::support::seeds::for_each_seed;
use cowshed::sim::{Executor, Failure, Faults, Random, SimStorage, cut};
use cowshed::storage::{Buf, Storage};
use cowshed::timer::Timer;
use futures::future::join_all;

const SECTOR: usize = 512;
/// How many sectors the disks have.
const SECTORS: u64 = 24;

/// A sector that says in every word which write it comes from: a byte from elsewhere shows.
fn sector(tag: u64) -> Vec<u8> {
    tag.to_be_bytes().repeat(SECTOR / 8)
}

/// The tag of a sector, which must be whole.
fn tag(bytes: &[u8]) -> u64 {
    let tag = u64::from_be_bytes(bytes[..8].try_into().unwrap());
    assert!(bytes == sector(tag), "a sector is torn: {bytes:02x?}");
    tag
}

fn tags(disk: &SimStorage) -> Vec<u64> {
    let bytes = disk.to_vec();
    bytes.chunks(SECTOR).map(tag).collect()
}

fn buf(bytes: &[u8]) -> Buf {
    let mut buf = Buf::zeroed(bytes.len());
    buf.copy_from_slice(bytes);
    buf
}

async fn write(disk: &SimStorage, at: u64, tag: u64, count: u64) -> io::Result<()> {
    let bytes = sector(tag).repeat(usize::try_from(count).unwrap());
    Storage::write_at(disk, buf(&bytes), at * SECTOR as u64).await.map(drop)
}

async fn read_tag(disk: &SimStorage, at: u64) -> io::Result<u64> {
    Storage::read_at(disk, Buf::zeroed(SECTOR), at * SECTOR as u64).await.map(|bytes| tag(&bytes))
}

/// A write to one sector, as the one who asked for it knows it. Times are counts of events.
#[derive(Debug, Clone)]
struct Written {
    tag: u64,
    started: u64,
    /// It returned, well.
    completed: Option<u64>,
    /// It failed or was dropped.
    given_up: Option<u64>,
    /// From here on it lands no more.
    settled: Option<u64>,
}

/// What each sector may hold, by the contract alone. No two writes to one sector may be in flight at once.
#[derive(Debug)]
struct Model {
    time: u64,
    sectors: Vec<Vec<Written>>,
}

impl Model {
    fn new(tags: &[u64]) -> Self {
        let durable = |&tag: &u64| {
            let at = Some(0);
            vec![Written { tag, started: 0, completed: at, given_up: None, settled: at }]
        };
        Self { time: 0, sectors: tags.iter().map(durable).collect() }
    }

    fn now(&mut self) -> u64 {
        self.time += 1;
        self.time
    }

    fn start(&mut self, at: u64, tag: u64, count: u64) {
        let started = self.now();
        let write = Written { tag, started, completed: None, given_up: None, settled: None };
        for at in at..at + count {
            self.sectors[usize::try_from(at).unwrap()].push(write.clone());
        }
    }

    fn each(&mut self, tag: u64, change: impl Fn(&mut Written)) {
        let all = self.sectors.iter_mut().flatten();
        all.filter(|write| write.tag == tag).for_each(change);
    }

    fn complete(&mut self, tag: u64) {
        let now = Some(self.now());
        self.each(tag, |write| (write.completed, write.settled) = (now, now));
    }

    fn fail(&mut self, tag: u64) {
        let now = Some(self.now());
        self.each(tag, |write| (write.given_up, write.settled) = (now, now));
    }

    fn drop(&mut self, tag: u64) {
        let now = Some(self.now());
        self.each(tag, |write| write.given_up = now);
    }

    /// A flush that was asked for at `asked` has succeeded.
    fn flushed(&mut self, asked: u64) {
        let now = Some(self.now());
        for sector in &mut self.sectors {
            for write in &mut *sector {
                if write.given_up.is_some_and(|at| at < asked) && write.settled.is_none() {
                    write.settled = now;
                }
            }
            let durable = sector.iter().rfind(|it| it.completed.is_some_and(|at| at < asked));
            if let Some(started) = durable.map(|write| write.started) {
                sector.retain(|it| {
                    it.started >= started || it.settled.is_none_or(|settled| settled > started)
                });
            }
        }
    }

    /// A flush has failed: nothing that was written before may be taken for durable by a later one.
    fn flush_failed(&mut self) {
        for write in self.sectors.iter_mut().flatten() {
            write.completed = None;
        }
    }

    fn check(&self, at: u64, tag: u64, what: &str) {
        let sector = &self.sectors[usize::try_from(at).unwrap()];
        assert!(
            sector.iter().any(|write| write.tag == tag),
            "{what}: sector {at} holds {tag}, which it may not: {sector:#?}"
        );
    }

    fn check_all(&self, tags: &[u64], what: &str) {
        assert_eq!(tags.len(), self.sectors.len(), "{what}");
        for (at, &tag) in (0..).zip(tags) {
            self.check(at, tag, what);
        }
    }
}

/// Several writers with sectors of their own, some of whose writes are dropped; a flush now and then; crashes.
async fn some_life(
    executor: &Executor<'_>,
    random: &mut Random,
    disk: &SimStorage,
    model: &mut Model,
    last_tag: &mut u64,
) {
    for _ in 0..10 {
        let model_now = std::cell::RefCell::new(&mut *model);
        // Each takes three sectors, so that no two writes meet.
        let mut requests = Vec::new();
        for place in 0..SECTORS / 3 {
            if random.toss() {
                continue;
            }
            *last_tag += 1;
            let tag = *last_tag;
            let count = 1 + random.below(3);
            let at = 3 * place + random.below(4 - count);
            let polls = if random.chance(250) { random.below(3) } else { u64::MAX };
            let model = &model_now;
            requests.push((tag, at, count, polls, model));
        }
        let writes = requests.into_iter().map(|(tag, at, count, polls, model)| async move {
            if polls == 0 {
                return;
            }
            model.borrow_mut().start(at, tag, count);
            match cut(write(disk, at, tag, count), polls).await {
                Some(Ok(())) => model.borrow_mut().complete(tag),
                Some(Err(_)) => model.borrow_mut().fail(tag),
                None => model.borrow_mut().drop(tag),
            }
        });
        let pause = Duration::from_micros(random.below(1500));
        let flush = async {
            // Beside the writes: some are complete by then, some are not, some have been dropped.
            executor.clock().sleep(pause).await;
            let asked = model_now.borrow_mut().now();
            match Storage::flush(disk).await {
                Ok(()) => model_now.borrow_mut().flushed(asked),
                Err(_) => model_now.borrow_mut().flush_failed(),
            }
        };
        let look = async {
            for at in 0..SECTORS {
                if let Ok(tag) = read_tag(disk, at).await {
                    model_now.borrow().check(at, tag, "read");
                }
            }
        };
        futures::join!(join_all(writes), flush, look);
        for _ in 0..3 {
            model.check_all(&tags(&disk.crash_state()), "after a crash");
        }
    }
}

#[test]
fn sectors_hold_after_a_crash_what_the_contract_allows() {
    for_each_seed(300, |seed| {
        let executor = Executor::new(seed);
        let mut random = executor.random();
        let mut faults =
            if seed % 3 == 0 { Faults::none() } else { Faults::random(&mut executor.random()) };
        faults.stalls = 0;
        let zeros = vec![0; SECTOR * usize::try_from(SECTORS).unwrap()];
        let mut disk = SimStorage::new(&executor, zeros, faults);
        let mut last_tag = 0;
        for _ in 0..2 {
            let mut model = Model::new(&tags(&disk));
            let life = some_life(&executor, &mut random, &disk, &mut model, &mut last_tag);
            executor.run(life).unwrap();
            let left = disk.crash();
            model.check_all(&tags(&left), "after the last crash");
            let gone = executor.run(read_tag(&disk, 0)).unwrap();
            assert_eq!(gone.unwrap_err().kind(), io::ErrorKind::NotConnected);
            left.set_faults(faults);
            disk = left;
        }
    });
}

#[test]
fn flushed_sectors_survive_and_unflushed_ones_show_every_fate() {
    let mut fates = BTreeSet::new();
    for_each_seed(50, |seed| {
        let executor = Executor::new(seed);
        let disk = SimStorage::new(&executor, vec![0; 4 * SECTOR], Faults::none());
        executor
            .run(async {
                write(&disk, 0, 1, 2).await.unwrap();
                Storage::flush(&disk).await.unwrap();
                write(&disk, 1, 2, 2).await.unwrap();
                write(&disk, 1, 3, 2).await.unwrap();
            })
            .unwrap();
        for _ in 0..10 {
            let left = tags(&disk.crash_state());
            assert_eq!((left[0], left[3]), (1, 0));
            fates.insert((left[1], left[2]));
        }
    });
    if std::env::var("COWSHED_SEED").is_err() {
        let all: BTreeSet<_> =
            [1, 2, 3].into_iter().flat_map(|a| [(a, 0), (a, 2), (a, 3)]).collect();
        assert_eq!(fates, all, "each sector goes its own way, and nothing else happens");
    }
}

#[test]
fn dropped_write_lands_before_the_next_flush_or_never() {
    let (mut early, mut late, mut never, mut lost) = (0, 0, 0, 0);
    for_each_seed(200, |seed| {
        let executor = Executor::new(seed);
        let clock = executor.clock();
        let disk = SimStorage::new(&executor, vec![0; SECTOR], Faults::none());
        executor
            .run(async {
                write(&disk, 0, 1, 1).await.unwrap();
                Storage::flush(&disk).await.unwrap();
                assert!(cut(write(&disk, 0, 2, 1), 1).await.is_none(), "a write takes some time");
                clock.sleep(Duration::from_micros(300)).await;
                let before = read_tag(&disk, 0).await.unwrap();
                Storage::flush(&disk).await.unwrap();
                let after = read_tag(&disk, 0).await.unwrap();
                match (before, after) {
                    (2, 2) => early += 1,
                    (1, 2) => late += 1,
                    (1, 1) => never += 1,
                    other => panic!("{other:?}"),
                }
                lost += u32::from(after == 2 && tags(&disk.crash_state()) == [1]);
                clock.sleep(Duration::from_secs(1000)).await;
                assert_eq!(read_tag(&disk, 0).await.unwrap(), after, "it landed after the flush");
                write(&disk, 0, 3, 1).await.unwrap();
                clock.sleep(Duration::from_secs(1000)).await;
                Storage::flush(&disk).await.unwrap();
                assert_eq!(tags(&disk.crash_state()), [3]);
            })
            .unwrap();
    });
    if std::env::var("COWSHED_SEED").is_err() {
        let all = [early, late, never, lost];
        assert!(all.iter().all(|&count| count > 5), "early, late, never, lost: {all:?}");
    }
}

#[test]
fn write_in_flight_is_torn_at_sectors_by_a_crash() {
    let mut outcomes = BTreeSet::new();
    for_each_seed(100, |seed| {
        let executor = Executor::new(seed);
        let disk = SimStorage::new(&executor, vec![0; 3 * SECTOR], Faults::none());
        executor
            .run(async {
                let mut writing = pin!(write(&disk, 0, 1, 3));
                assert!(futures::poll!(writing.as_mut()).is_pending());
                for _ in 0..5 {
                    outcomes.insert(tags(&disk.crash_state()));
                }
                writing.await.unwrap();
            })
            .unwrap();
    });
    if std::env::var("COWSHED_SEED").is_err() {
        assert_eq!(outcomes.len(), 8, "{outcomes:?}");
    }
}

#[test]
fn flush_owes_nothing_to_a_write_that_has_not_returned() {
    let (mut kept, mut lost) = (0, 0);
    for_each_seed(50, |seed| {
        let executor = Executor::new(seed);
        let disk = SimStorage::new(&executor, vec![0; SECTOR], Faults::none());
        executor
            .run(async {
                let mut writing = pin!(write(&disk, 0, 1, 1));
                assert!(futures::poll!(writing.as_mut()).is_pending());
                executor.clock().sleep(Duration::from_secs(1)).await;
                assert_eq!(tags(&disk), [1], "it has landed, and nobody has been told");
                Storage::flush(&disk).await.unwrap();
                writing.await.unwrap();
                let all_kept = (0..20).all(|_| tags(&disk.crash_state()) == [1]);
                *if all_kept { &mut kept } else { &mut lost } += 1;
                Storage::flush(&disk).await.unwrap();
                assert!((0..20).all(|_| tags(&disk.crash_state()) == [1]));
            })
            .unwrap();
    });
    if std::env::var("COWSHED_SEED").is_err() {
        assert!(kept > 10 && lost > 10, "{kept} kept, {lost} lost");
    }
}

#[test]
fn length_is_as_volatile_as_bytes() {
    let mut lengths = BTreeSet::new();
    for_each_seed(50, |seed| {
        let executor = Executor::new(seed);
        let disk = SimStorage::new(&executor, sector(9).repeat(3), Faults::none());
        executor
            .run(async {
                Storage::set_len(&disk, 100).await.unwrap();
                write(&disk, 4, 1, 1).await.unwrap();
                for _ in 0..10 {
                    let left = disk.crash_state();
                    let len = Storage::len(&left).await.unwrap();
                    lengths.insert(len);
                    // What lies behind a shorter end does not come back.
                    Storage::set_len(&left, 5 * 512).await.unwrap();
                    let end = usize::try_from(len).unwrap();
                    assert!(left.to_vec()[end..].iter().all(|&byte| byte == 0));
                }
                Storage::flush(&disk).await.unwrap();
                let left = disk.crash_state().to_vec();
                assert_eq!(left[..100], sector(9)[..100]);
                assert_eq!(left[100..2048], vec![0; 1948]);
                assert_eq!(left[2048..], sector(1));
            })
            .unwrap();
    });
    if std::env::var("COWSHED_SEED").is_err() {
        assert_eq!(lengths, BTreeSet::from([100, 3 * 512, 5 * 512]));
    }
}

#[test]
fn discarded_sectors_are_old_or_zero_or_rubbish_and_others_are_whole() {
    let mut kinds = BTreeSet::new();
    for_each_seed(50, |seed| {
        let executor = Executor::new(seed);
        let old = sector(7).repeat(4);
        let disk = SimStorage::new(&executor, old.clone(), Faults::none());
        // The first sector in part, two whole ones, the last one in part.
        executor.run(Storage::discard(&disk, 500, 1540)).unwrap().unwrap();
        let now = disk.to_vec();
        for bytes in [disk.crash_state().to_vec(), now.clone()] {
            assert!(bytes[..512] == old[..512] && bytes[1536..] == old[1536..]);
            for sector in [&bytes[512..1024], &bytes[1024..1536]] {
                kinds.insert(match tag(sector) {
                    7 => "old",
                    0 => "zero",
                    _ => "rubbish",
                });
            }
        }
        executor.run(Storage::flush(&disk)).unwrap().unwrap();
        assert!(disk.crash_state().to_vec() == now, "a flush settles it");
    });
    if std::env::var("COWSHED_SEED").is_err() {
        assert_eq!(kinds, BTreeSet::from(["old", "rubbish", "zero"]));
    }
}

#[test]
fn failed_flush_may_lose_what_a_later_one_does_not_bring_back() {
    let (mut kept, mut reverted, mut deceived) = (0, 0, 0);
    for_each_seed(100, |seed| {
        let executor = Executor::new(seed);
        let mut faults = Faults::none();
        (faults.flush_errors, faults.flush_losses) = (1000, 500);
        let disk = SimStorage::new(&executor, vec![0; SECTOR], faults);
        executor
            .run(async {
                write(&disk, 0, 1, 1).await.unwrap();
                Storage::flush(&disk).await.unwrap_err();
                disk.set_faults(Faults::none());
                let seen = read_tag(&disk, 0).await.unwrap();
                Storage::flush(&disk).await.unwrap();
                let lowest = (0..20).map(|_| tags(&disk.crash_state())[0]).min().unwrap();
                match (seen, lowest) {
                    (1, 1) => kept += 1,
                    (0, 0) => reverted += 1,
                    (1, 0) => deceived += 1,
                    other => panic!("{other:?}"),
                }
            })
            .unwrap();
    });
    if std::env::var("COWSHED_SEED").is_err() {
        assert!(kept > 10 && reverted > 5 && deceived > 5, "{kept} {reverted} {deceived}");
    }
}

#[test]
fn lack_of_space_has_its_own_error_and_ends_when_space_is_back() {
    let executor = Executor::new(0);
    let mut faults = Faults::none();
    (faults.no_space, faults.sticky) = (1000, 1000);
    let disk = SimStorage::new(&executor, vec![0; SECTOR], faults);
    executor
        .run(async {
            for _ in 0..3 {
                let error = write(&disk, 5, 1, 1).await.unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::StorageFull);
            }
            assert_eq!(read_tag(&disk, 0).await.unwrap(), 0);
            disk.set_faults(Faults::none());
            write(&disk, 5, 1, 1).await.unwrap();
            assert_eq!(read_tag(&disk, 5).await.unwrap(), 1);
        })
        .unwrap();
}

#[test]
fn long_write_lands_in_steps_and_is_whole_when_it_returns() {
    let mut seen = BTreeSet::new();
    for_each_seed(50, |seed| {
        let executor = Executor::new(seed);
        let mut faults = Faults::none();
        faults.split = 1000;
        let disk = SimStorage::new(&executor, vec![0; 8 * SECTOR], faults);
        executor
            .run(async {
                let look = async {
                    for _ in 0..20 {
                        seen.insert(tags(&disk)[2..6].to_vec());
                        executor.clock().sleep(Duration::from_micros(50)).await;
                    }
                };
                let writing = async {
                    write(&disk, 1, 7, 6).await.unwrap();
                    assert_eq!(tags(&disk), [0, 7, 7, 7, 7, 7, 7, 0]);
                    Storage::flush(&disk).await.unwrap();
                    assert_eq!(tags(&disk.crash_state()), [0, 7, 7, 7, 7, 7, 7, 0]);
                };
                futures::join!(look, writing);
            })
            .unwrap();
    });
    if std::env::var("COWSHED_SEED").is_err() {
        assert!(seen.len() > 5, "{seen:?}");
    }
}

#[test]
fn named_request_fails_and_no_other() {
    for number in 0..4 {
        let executor = Executor::new(number);
        let disk = SimStorage::new(&executor, vec![0; SECTOR], Faults::none());
        disk.fail_request(number, Failure::Io);
        executor
            .run(async {
                let failed = [
                    write(&disk, 0, 1, 1).await.is_err(),
                    Storage::flush(&disk).await.is_err(),
                    Storage::set_len(&disk, 1024).await.is_err(),
                    Storage::discard(&disk, 512, 512).await.is_err(),
                ];
                assert_eq!(failed, [0, 1, 2, 3].map(|at| at == number));
            })
            .unwrap();
        assert_eq!(disk.requests(), 4);
        assert_eq!(disk.flushes_failed(), u64::from(number == 1));
    }
}

#[test]
fn disk_is_no_longer_than_its_capacity() {
    let executor = Executor::new(0);
    let disk = SimStorage::new(&executor, vec![0; 2 * SECTOR], Faults::none());
    disk.set_capacity(Some(1024));
    executor
        .run(async {
            write(&disk, 1, 1, 1).await.unwrap();
            let full = write(&disk, 1, 2, 2).await.unwrap_err();
            assert_eq!(full.kind(), io::ErrorKind::StorageFull);
            let full = Storage::set_len(&disk, 5000).await.unwrap_err();
            assert_eq!(full.kind(), io::ErrorKind::StorageFull);
            disk.set_capacity(None);
            write(&disk, 1, 2, 2).await.unwrap();
        })
        .unwrap();
}

#[test]
fn outcomes_of_a_power_loss_are_all_there_is() {
    let executor = Executor::new(0);
    let disk = SimStorage::new(&executor, vec![0; 3 * SECTOR], Faults::none());
    executor
        .run(async {
            write(&disk, 0, 1, 2).await.unwrap();
            write(&disk, 1, 2, 1).await.unwrap();
            let mut writing = pin!(write(&disk, 2, 3, 1));
            assert!(futures::poll!(writing.as_mut()).is_pending());
            let all: BTreeSet<_> =
                (0..disk.crash_outcomes()).map(|at| tags(&disk.crash_outcome(at))).collect();
            let expected = (0..12).map(|at| vec![at % 2, at / 2 % 3, at / 6 * 3]);
            assert_eq!(all, expected.collect());
            writing.await.unwrap();
        })
        .unwrap();
}

#[test]
fn flushed_write_is_there_although_a_dropped_one_had_made_the_disk_longer() {
    for seed in 0..200 {
        let executor = Executor::new(seed);
        let disk = SimStorage::new(&executor, Vec::new(), Faults::none());
        executor
            .run(async {
                let _ = cut(write(&disk, 10, 1, 1), 1).await;
                executor.clock().sleep(Duration::from_millis(100)).await;
                write(&disk, 5, 2, 1).await.unwrap();
                Storage::flush(&disk).await.unwrap();
            })
            .unwrap();
        assert_eq!(tags(&disk.crash()).get(5), Some(&2), "seed {seed}");
    }
}

#[test]
fn failure_of_a_dropped_flush_is_told_by_the_next_one() {
    let executor = Executor::new(1);
    let mut faults = Faults::none();
    (faults.flush_errors, faults.flush_losses) = (1000, 1000);
    let disk = SimStorage::new(&executor, vec![0; SECTOR], faults);
    executor
        .run(async {
            write(&disk, 0, 1, 1).await.unwrap();
            {
                let mut flush = pin!(Storage::flush(&disk));
                assert!(futures::poll!(flush.as_mut()).is_pending());
                executor.clock().sleep(Duration::from_secs(1)).await;
                disk.set_faults(Faults::none());
            }
            Storage::flush(&disk).await.unwrap_err();
            Storage::flush(&disk).await.unwrap();
        })
        .unwrap();
}
