//! Settings that change while an image is in use: QEMU's reopen.
//!
//! The fears: a request that fails because the settings change, or sees half of a change; something that was dirty in a cache
//! which is replaced; a failure that leaves the image with half of the new settings, or without its cleaner; a writer beside
//! which another program writes, as the locks have not followed.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::task::{Context, Waker};
use std::time::Duration;

use crate::support::data::Choices;
use crate::support::medium::Medium;
use crate::support::qemu;
use crate::support::threads::beside_threads;
use async_executor::Executor;
use cowshed::cache::Cleaner;
use cowshed::format::{Header, Incompatible};
use cowshed::image::{
    CreateOptions, Format, Image, OpenOptions, OverlapChecks, RefuseAll, ResizeOptions, Settings,
    Source, WriteOptions, ZeroMode, create,
};
use cowshed::rt::{DiskStorage, FileOptions, SmolTimer, open_storage};
use cowshed::storage::{BoxStorage, Buf, Storage};
use cowshed::timer::Timer;
use cowshed::{Error, Result};
use futures::executor::block_on;
use futures::{FutureExt, pin_mut, poll};

const DISK_LEN: u64 = 4 << 20;
const SECOND: Duration = Duration::from_secs(1);

type TestImage = Image<BoxStorage>;

fn header(medium: &Medium) -> Header {
    let bytes = medium.memory.to_vec();
    Header::parse(&bytes[..4096], bytes.len() as u64).unwrap()
}

/// A timer that never rings, and says for how long it was asked to sleep.
#[derive(Clone, Default)]
struct Never(Arc<Mutex<Vec<Duration>>>);

impl Timer for Never {
    async fn sleep(&self, duration: Duration) {
        self.0.lock().unwrap().push(duration);
        futures::future::pending().await
    }
}

fn writable() -> OpenOptions {
    let mut options = OpenOptions::default();
    options.write = Some(WriteOptions::default());
    options
}

fn open(medium: &Arc<Medium>, options: OpenOptions) -> (TestImage, Option<Cleaner>) {
    let source = Source::qcow2(BoxStorage::new(Arc::clone(medium)), "image");
    let opened = block_on(Image::open(source, &RefuseAll::new(), options)).unwrap();
    (opened.image, opened.cleaner)
}

/// A new image of clusters of 4 KiB, and what it is in.
fn new_medium(change: impl FnOnce(&mut CreateOptions)) -> Arc<Medium> {
    let medium = Arc::new(Medium::default());
    let mut options = CreateOptions::new(DISK_LEN);
    options.cluster_size = 4096;
    change(&mut options);
    block_on(create(&medium, None, &options)).unwrap();
    medium
}

fn new_image() -> (Arc<Medium>, TestImage) {
    let medium = new_medium(|_| {});
    let image = open(&medium, writable()).0;
    (medium, image)
}

fn change(settings: &Settings, change: impl FnOnce(&mut Settings)) -> Settings {
    let mut settings = settings.clone();
    change(&mut settings);
    settings
}

fn write(image: &TestImage, byte: u8, offset: u64, len: usize) {
    block_on(image.write_at(&vec![byte; len], offset)).unwrap();
}

fn assert_reads<S: Storage>(image: &Image<S>, byte: u8, offset: u64, len: usize) {
    let mut bytes = vec![!byte; len];
    block_on(image.read_at(&mut bytes, offset)).unwrap();
    assert!(bytes.iter().all(|read| *read == byte), "at {offset:#x}");
}

/// The image is sound, and its disk is these bytes.
fn assert_qemu_agrees(medium: &Medium, disk: &[u8]) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("image"), medium.memory.to_vec()).unwrap();
    std::fs::write(dir.path().join("disk"), disk).unwrap();
    qemu::img(dir.path(), ["check", "image"]);
    qemu::img(dir.path(), ["compare", "-f", "qcow2", "-F", "raw", "image", "disk"]);
}

/// Settings of every kind, whatever held before.
fn random_settings(old: &Settings, seeds: &mut Choices) -> Settings {
    let mut settings = old.clone();
    let cache = &mut settings.cache;
    cache.l2_cache_size = Some([0, 4096, 64 << 10, 32 << 20][seeds.below(4) as usize]);
    cache.l2_cache_entry_size = [None, Some(512), Some(1024), Some(4096)][seeds.below(4) as usize];
    cache.refcount_cache_size = Some([0, 1 << 20][seeds.below(2) as usize]);
    cache.cache_clean_interval =
        Some([Duration::ZERO, Duration::from_millis(1), 600 * SECOND][seeds.below(3) as usize]);
    let mut write = WriteOptions::default();
    write.overlap_checks = [OverlapChecks::NONE, OverlapChecks::ALL][seeds.below(2) as usize];
    write.lazy_refcounts = [None, Some(false), Some(true)][seeds.below(3) as usize];
    write.discard_no_unref = seeds.below(2) == 0;
    write.pass_discard_request = seeds.below(2) == 0;
    write.pass_discard_other = seeds.below(2) == 0;
    write.write_through = seeds.below(8) == 0;
    settings.write = Some(write);
    settings
}

/// The task's ranges lie among those of the others. Returns what it has left in them.
async fn work(image: Arc<TestImage>, task: u64, steps: usize) -> Vec<(u64, Vec<u8>)> {
    const STRIPE_LEN: u64 = 3 * 512;
    const TASKS: u64 = 8;
    let mut seeds = Choices::new(task + 1);
    let stripes = DISK_LEN / STRIPE_LEN / TASKS;
    let at = |stripe: u64| (stripe * TASKS + task) * STRIPE_LEN;
    let mut model: Vec<_> = (0..stripes).map(|n| (at(n), vec![0; STRIPE_LEN as usize])).collect();
    for step in 0..steps {
        let (offset, bytes) = &mut model[seeds.below(stripes) as usize];
        match seeds.below(8) {
            0..=3 => {
                bytes.fill((step as u8) | 1);
                image.write_at(bytes, *offset).await.unwrap();
            }
            4 => {
                bytes.fill(0);
                image.write_zeroes_at(*offset, STRIPE_LEN, ZeroMode::MayUnmap).await.unwrap();
            }
            5 if seeds.below(4) == 0 => image.flush().await.unwrap(),
            _ => {
                let mut read = vec![0xee; bytes.len()];
                image.read_at(&mut read, *offset).await.unwrap();
                assert!(read == *bytes, "task {task}, step {step}: stripe at {offset:#x}");
            }
        }
    }
    model
}

#[test]
fn settings_change_under_writers_on_threads_and_nobody_notices() {
    let rounds =
        std::env::var("COWSHED_RECONFIGURATIONS").map_or(60, |rounds| rounds.parse().unwrap());
    for threads in [1, 4] {
        let (medium, image) = new_image();
        let image = Arc::new(image);
        let executor = Arc::new(Executor::new());
        let steps = rounds * 12;
        let mut tasks: Vec<_> =
            (0..8).map(|task| executor.spawn(work(Arc::clone(&image), task, steps))).collect();
        let disk = beside_threads(&executor, threads - 1, || {
            let mut disk = vec![0; DISK_LEN as usize];
            cowshed::rt::block_on(executor.run(async {
                let mut seeds = Choices::new(99);
                for _ in 0..rounds {
                    let settings = random_settings(&image.settings(), &mut seeds);
                    let cleaner = image.reconfigure(settings.clone()).await.unwrap();
                    assert_eq!(image.settings(), settings);
                    if let Some(cleaner) = cleaner {
                        executor.spawn(cleaner.run(SmolTimer)).detach();
                    }
                    async_io::Timer::after(Duration::from_millis(1)).await;
                }
                for task in tasks.drain(..) {
                    for (at, bytes) in task.await {
                        disk[at as usize..][..bytes.len()].copy_from_slice(&bytes);
                    }
                }
                image.close().await.unwrap();
            }));
            disk
        });
        while !executor.is_empty() {
            // The cleaners have to notice that the image is closed.
            cowshed::rt::block_on(executor.tick());
        }
        assert_qemu_agrees(&medium, &disk);
    }
}

#[test]
fn what_is_dirty_survives_caches_that_are_replaced() {
    let (medium, image) = new_image();
    let mut disk = vec![0; DISK_LEN as usize];
    for (round, entry) in [512, 4096, 1024, 4096, 512].into_iter().enumerate() {
        let (offset, byte) = (round * 300_000, round as u8 + 1);
        write(&image, byte, offset as u64, 200_000);
        disk[offset..offset + 200_000].fill(byte);
        let settings = change(&image.settings(), |it| {
            it.cache.l2_cache_entry_size = Some(entry);
            it.cache.l2_cache_size = Some(entry * 2);
        });
        block_on(image.reconfigure(settings)).unwrap();
        assert!(image.statistics()[0].l2.bytes_held <= entry * 2);
        for (round, byte) in (0..=round).zip(1..) {
            assert_reads(&image, byte, (round * 300_000) as u64, 200_000);
        }
    }
    // Nothing waits for the close: all of it was written before the caches went.
    assert_qemu_agrees(&medium, &disk);
}

#[test]
fn a_cache_that_keeps_its_entries_keeps_what_fits() {
    let (_medium, image) = new_image();
    write(&image, 7, 0, DISK_LEN as usize);
    block_on(image.flush()).unwrap();
    let held = image.statistics()[0].l2.bytes_held;
    assert_eq!(held, 8192, "two tables of 512 entries");
    let smaller = change(&image.settings(), |it| it.cache.cache_clean_interval = Some(SECOND));
    block_on(image.reconfigure(smaller)).unwrap();
    assert_eq!(image.statistics()[0].l2.bytes_held, held);
    let loads = image.statistics()[0].l2.loads;
    assert_reads(&image, 7, 0, 4096);
    assert_eq!(image.statistics()[0].l2.loads, loads);
}

#[test]
fn requests_wait_for_the_change_and_see_the_new_settings() {
    let (medium, image) = new_image();
    write(&image, 1, 0, 4096);
    let mut bytes = [0; 512];
    block_on(async {
        let held = medium.hold();
        let read_only = change(&image.settings(), |it| it.write = None);
        let reconfigure = image.reconfigure(read_only);
        pin_mut!(reconfigure);
        assert!(poll!(&mut reconfigure).is_pending(), "it writes back");
        let (read, write) = (image.read_at(&mut bytes, 0), image.write_at(&[2; 512], 0));
        let flush = image.flush();
        pin_mut!(read, write, flush);
        assert!(poll!(&mut read).is_pending());
        assert!(poll!(&mut write).is_pending());
        assert!(poll!(&mut flush).is_pending());
        drop(held);
        reconfigure.await.unwrap();
        read.await.unwrap();
        flush.await.unwrap();
        assert!(matches!(write.await, Err(Error::ReadOnly(_))));
    });
    assert_eq!(bytes, [1; 512]);
}

#[test]
fn requests_in_flight_end_before_the_change_in_full() {
    let (medium, image) = new_image();
    block_on(async {
        let held = medium.hold();
        // Many steps of one write: it must not become a half of one.
        let data = vec![9; 2 << 20];
        let write = image.write_at(&data, 1000);
        pin_mut!(write);
        assert!(poll!(&mut write).is_pending());
        let read_only = change(&image.settings(), |it| it.write = None);
        let reconfigure = image.reconfigure(read_only);
        pin_mut!(reconfigure);
        assert!(poll!(&mut reconfigure).is_pending());
        drop(held);
        let (written, reconfigured) = futures::join!(write, reconfigure);
        written.unwrap();
        reconfigured.unwrap();
    });
    assert_reads(&image, 9, 1000, 2 << 20);
    assert!(image.settings().write.is_none());
}

#[test]
fn a_failure_leaves_image_settings_and_cleaner_as_they_were() {
    let medium = new_medium(|_| {});
    let (image, cleaner) = open(&medium, writable());
    let timer = Never::default();
    let mut run = Box::pin(cleaner.unwrap().run(timer.clone()));
    let mut context = Context::from_waker(Waker::noop());
    assert!(run.poll_unpin(&mut context).is_pending());
    let old = image.settings();

    // Settings that cannot be.
    for bad in [
        change(&old, |it| it.cache.l2_cache_entry_size = Some(8192)),
        change(&old, |it| it.cache.cache_clean_interval = Some(Duration::from_secs(1 << 32))),
        change(&old, |it| {
            it.cache.cache_size = Some(1 << 20);
            it.cache.l2_cache_size = Some(2 << 20);
        }),
    ] {
        assert!(matches!(block_on(image.reconfigure(bad)), Err(Error::InvalidArgument(_))));
    }
    // A medium that does not take what is dirty, though it does not fail for good.
    write(&image, 3, 0, 100_000);
    medium.fail(true);
    let new = change(&old, |it| {
        it.cache.l2_cache_entry_size = Some(512);
        it.write.as_mut().unwrap().pass_discard_other = true;
    });
    assert!(block_on(image.reconfigure(new.clone())).is_err());
    medium.fail(false);

    assert_eq!(image.settings(), old);
    assert!(run.poll_unpin(&mut context).is_pending(), "the cleaner was stopped");
    assert_eq!(timer.0.lock().unwrap().len(), 1, "its sleep began anew");
    assert_reads(&image, 3, 0, 100_000);
}

#[test]
fn the_cleaner_ends_and_the_next_one_sleeps_for_the_whole_new_interval() {
    let medium = new_medium(|_| {});
    let (image, cleaner) = open(&medium, OpenOptions::default());
    let timer = Never::default();
    let mut old = cleaner.unwrap().run(timer.clone()).boxed();
    let mut context = Context::from_waker(Waker::noop());
    assert!(old.poll_unpin(&mut context).is_pending());

    let interval = |interval: u32| {
        change(&image.settings(), |it| {
            it.cache.cache_clean_interval = Some(SECOND * interval);
        })
    };
    for (seconds, next) in [(5, true), (0, false), (10, true), (10, true)] {
        let cleaner = block_on(image.reconfigure(interval(seconds))).unwrap();
        assert!(old.poll_unpin(&mut context).is_ready(), "the old cleaner goes on");
        assert_eq!(cleaner.is_some(), next);
        old = match cleaner {
            Some(cleaner) => cleaner.run(timer.clone()).boxed(),
            None => std::future::poll_fn(|_| std::task::Poll::Ready(())).boxed(),
        };
        assert_eq!(old.poll_unpin(&mut context).is_pending(), next);
    }
    assert_eq!(*timer.0.lock().unwrap(), [600, 5, 10, 10].map(|seconds| seconds * SECOND));

    // To another executor, with the interval that is configured.
    drop(old);
    let cleaner = block_on(image.restart_cleaner()).unwrap();
    let mut moved = Box::pin(cleaner.run(timer.clone()));
    assert!(moved.poll_unpin(&mut context).is_pending());
    assert_eq!(timer.0.lock().unwrap().last(), Some(&(10 * SECOND)));
    block_on(image.close()).unwrap();
    assert!(moved.poll_unpin(&mut context).is_ready());
    assert!(block_on(image.restart_cleaner()).is_none());
    assert!(matches!(block_on(image.reconfigure(interval(1))), Err(Error::Closed)));
}

#[test]
fn a_reconfiguration_that_is_dropped_anywhere_leaves_the_image_whole() {
    for polls in 0.. {
        let (medium, image) = new_image();
        write(&image, 5, 4096, 300_000);
        let settings = change(&image.settings(), |it| {
            it.cache.l2_cache_entry_size = Some(512);
            it.write.as_mut().unwrap().lazy_refcounts = Some(true);
        });
        let done = block_on(async {
            let reconfigure = image.reconfigure(settings.clone());
            pin_mut!(reconfigure);
            for _ in 0..polls {
                let held = medium.hold();
                if poll!(&mut reconfigure).is_ready() {
                    return true;
                }
                drop(held);
            }
            false
        });
        write(&image, 6, 1 << 20, 100_000);
        assert_reads(&image, 5, 4096, 300_000);
        block_on(image.reconfigure(settings.clone())).unwrap();
        assert_eq!(image.settings(), settings);
        block_on(image.close()).unwrap();
        let mut disk = vec![0; DISK_LEN as usize];
        disk[4096..304_096].fill(5);
        disk[1 << 20..(1 << 20) + 100_000].fill(6);
        assert_qemu_agrees(&medium, &disk);
        if done {
            assert!(polls > 2, "it waited for nothing");
            break;
        }
    }
}

#[test]
fn a_close_ends_behind_a_reconfiguration_and_one_that_comes_later_is_refused() {
    let (medium, image) = new_image();
    write(&image, 1, 0, 4096);
    block_on(async {
        let held = medium.hold();
        let settings = change(&image.settings(), |it| it.cache.l2_cache_entry_size = Some(512));
        let reconfigure = image.reconfigure(settings);
        pin_mut!(reconfigure);
        assert!(poll!(&mut reconfigure).is_pending());
        let (first, second) = (image.close(), image.close());
        pin_mut!(first, second);
        assert!(poll!(&mut first).is_pending());
        assert!(poll!(&mut second).is_pending());
        assert!(matches!(image.read_at(&mut [0], 0).await, Err(Error::Closed)));
        drop(held);
        reconfigure.await.unwrap();
        let (first, second) = futures::join!(first, second);
        first.unwrap();
        second.unwrap();
    });
    let mut disk = vec![0; DISK_LEN as usize];
    disk[..4096].fill(1);
    assert_qemu_agrees(&medium, &disk);
}

#[test]
fn an_image_that_may_not_leave_refcounts_behind_any_more_is_marked_clean() {
    let medium = new_medium(|options| options.lazy_refcounts = true);
    let image = open(&medium, writable()).0;
    let is_dirty = || header(&medium).incompatible.contains(Incompatible::DIRTY);
    write(&image, 1, 0, 4096);
    assert!(is_dirty());
    // Other settings leave it so.
    let other = change(&image.settings(), |it| it.cache.l2_cache_entry_size = Some(512));
    block_on(image.reconfigure(other)).unwrap();
    assert!(is_dirty());
    let lazy = |lazy| {
        change(&image.settings(), |it| it.write.as_mut().unwrap().lazy_refcounts = Some(lazy))
    };
    block_on(image.reconfigure(lazy(false))).unwrap();
    assert!(!is_dirty());
    write(&image, 2, 8192, 4096);
    assert!(!is_dirty());
    block_on(image.reconfigure(lazy(true))).unwrap();
    assert!(!is_dirty(), "nothing is behind yet");
    write(&image, 3, 16384, 4096);
    assert!(is_dirty());
    block_on(image.reconfigure(change(&image.settings(), |it| it.write = None))).unwrap();
    assert!(!is_dirty(), "it is not written to any more");
}

#[test]
fn an_image_becomes_writable_as_if_it_was_opened_for_writing() {
    // Left behind by a program that was killed: refcounts are wrong.
    let medium = new_medium(|options| options.lazy_refcounts = true);
    let killed = open(&medium, writable()).0;
    write(&killed, 1, 0, 500_000);
    block_on(killed.flush()).unwrap();
    std::mem::forget(killed);
    assert!(header(&medium).incompatible.contains(Incompatible::DIRTY));

    let image = open(&medium, OpenOptions::default()).0;
    assert_reads(&image, 1, 0, 500_000);
    assert!(matches!(block_on(image.write_at(&[2], 0)), Err(Error::ReadOnly(_))));
    let writable = change(&image.settings(), |it| it.write = Some(WriteOptions::default()));
    block_on(image.reconfigure(writable.clone())).unwrap();
    assert!(!image.header().unwrap().incompatible.contains(Incompatible::DIRTY), "repaired");
    write(&image, 2, 400_000, 500_000);
    assert_reads(&image, 1, 0, 400_000);
    assert_reads(&image, 2, 400_000, 500_000);

    let mut disk = vec![0; DISK_LEN as usize];
    disk[..400_000].fill(1);
    disk[400_000..900_000].fill(2);
    for byte in 3..6 {
        block_on(image.reconfigure(change(&image.settings(), |it| it.write = None))).unwrap();
        assert_qemu_agrees(&medium, &disk);
        assert!(block_on(image.write_at(&[2], 0)).is_err());
        block_on(image.reconfigure(writable.clone())).unwrap();
        write(&image, byte, u64::from(byte) * 512_000, 1000);
        disk[usize::from(byte) * 512_000..][..1000].fill(byte);
    }
    block_on(image.close()).unwrap();
    assert_qemu_agrees(&medium, &disk);
}

#[test]
fn an_image_that_cannot_be_written_to_stays_read_only() -> Result<()> {
    // Marked as corrupt.
    let medium = new_medium(|_| {});
    block_on(async {
        let mut bit = Buf::zeroed(1);
        bit[0] = 2;
        Storage::write_at(&medium.memory, bit, 79).await
    })
    .unwrap();
    let image = open(&medium, OpenOptions::default()).0;
    let settings = change(&image.settings(), |it| it.write = Some(WriteOptions::default()));
    assert!(matches!(block_on(image.reconfigure(settings)), Err(Error::ReadOnly(_))));
    assert!(image.settings().write.is_none());
    assert_reads(&image, 0, 0, 4096);

    // Version 2 does not know what is asked for.
    let medium = new_medium(|options| options.version = cowshed::format::Version::V2);
    let image = open(&medium, writable()).0;
    for change_it in [
        |write: &mut WriteOptions| write.lazy_refcounts = Some(true),
        |write: &mut WriteOptions| write.discard_no_unref = true,
    ] {
        let settings = change(&image.settings(), |it| change_it(it.write.as_mut().unwrap()));
        assert!(matches!(block_on(image.reconfigure(settings)), Err(Error::InvalidArgument(_))));
    }
    write(&image, 1, 0, 4096);
    block_on(image.close())
}

#[test]
fn the_cache_grows_with_the_disk() {
    let (_medium, image) = new_image();
    block_on(image.resize(64 * DISK_LEN, &ResizeOptions::default())).unwrap();
    for table in 0..64 {
        write(&image, 1, table * DISK_LEN / 2, 512);
    }
    block_on(image.flush()).unwrap();
    // Of each table the slice that was needed: the cache has room for them, as it would have had from the beginning.
    assert_eq!(image.statistics()[0].l2.bytes_held, 64 * 4096);
    assert_eq!(image.statistics()[0].l2.evictions, 0);
}

/// Whether QEMU may do this beside us.
fn qemu_may(read_only: bool, path: &Path) -> bool {
    let mut command = qemu::qemu_io();
    if read_only {
        command.arg("-r");
    }
    command.args(["-c", "length"]).arg(path).output().unwrap().status.success()
}

#[cfg(target_os = "linux")]
#[test]
fn locks_follow_the_access() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    qemu::img(dir.path(), ["create", "-f", "qcow2", "image", "4M"]);
    let image = open_file(&path, FileOptions::new());
    let set = |write: Option<WriteOptions>| {
        block_on(image.reconfigure(change(&image.settings(), |it| it.write = write)))
    };
    for byte in 1..4 {
        assert!(qemu_may(true, &path) && !qemu_may(false, &path));
        set(Some(WriteOptions::default())).unwrap();
        assert!(!qemu_may(true, &path) && !qemu_may(false, &path));
        block_on(image.write_at(&[byte; 70_000], 1000)).unwrap();
        set(None).unwrap();
        assert!(qemu_may(true, &path) && !qemu_may(false, &path));
        let pattern = format!("read -P {byte} 1000 70000");
        qemu::run(qemu::qemu_io().args(["-r", "-c", &pattern]).arg(&path));
        assert_reads(&image, byte, 1000, 70_000);
    }

    // Somebody reads and lets nobody write: it stays as it is, and so do the locks.
    let reader = open_file(&path, FileOptions::new());
    let error = set(Some(WriteOptions::default())).unwrap_err();
    assert!(error.to_string().contains("Failed to get \"write\" lock"), "{error}");
    assert!(image.settings().write.is_none());
    assert_reads(&image, 3, 1000, 70_000);
    block_on(reader.close()).unwrap();
    drop(reader);
    assert!(qemu_may(true, &path) && !qemu_may(false, &path));
    set(Some(WriteOptions::default())).unwrap();

    // The file has another name by now.
    set(None).unwrap();
    let moved = dir.path().join("moved");
    std::fs::rename(&path, &moved).unwrap();
    set(Some(WriteOptions::default())).unwrap();
    block_on(image.write_at(&[9; 512], 0)).unwrap();
    block_on(image.close()).unwrap();
    drop(image);
    qemu::run(qemu::qemu_io().args(["-c", "read -P 9 0 512"]).arg(&moved));
}

fn open_file(path: &Path, options: FileOptions) -> Image<DiskStorage> {
    let source = open_storage(path, &options).unwrap().into_source(Format::Qcow2);
    block_on(Image::open(source, &RefuseAll::new(), OpenOptions::default())).unwrap().image
}

#[cfg(target_os = "linux")]
#[test]
fn files_that_must_not_be_written_to_stay_read_only() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    qemu::img(dir.path(), ["create", "-f", "qcow2", "image", "4M"]);
    let image = open_file(&path, FileOptions::new().lock(cowshed::rt::LockMode::ForceShare));
    let settings = change(&image.settings(), |it| it.write = Some(WriteOptions::default()));
    let error = block_on(image.reconfigure(settings)).unwrap_err();
    assert!(error.to_string().contains("force-share"), "{error}");
    assert!(image.settings().write.is_none());
    assert_reads(&image, 0, 0, 4096);
}
