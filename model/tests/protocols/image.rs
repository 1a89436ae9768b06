//! The image: requests side by side, the cleaner among them, and the close.
//!
//! After every schedule the image is opened again: the disk holds what the model says, and the check finds neither corruptions
//! nor leaks.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use cowshed::Error;
use cowshed::image::check::{CheckOptions, Finding, check_storage};
use cowshed::image::{
    CreateOptions, Image, OpenOptions, RefuseAll, ResizeOptions, Source, WriteOptions, ZeroMode,
    create,
};
use cowshed::storage::SendStorage;
use shuttle::future::block_on;
use shuttle::thread;

use crate::cache::{Whenever, drop_somewhere};
use crate::explore::{choose, explore, find, schedules};
use crate::storage::TurnStorage;

pub(crate) type Disk = Image<Arc<TurnStorage>>;

const CLUSTER: u64 = 512;
const DISK: u64 = 72 * CLUSTER;

/// An image of [`DISK`] bytes in clusters of 512, whose L2 tables map 64 of them each. It is made once.
fn empty() -> Vec<u8> {
    static EMPTY: OnceLock<Vec<u8>> = OnceLock::new();
    if let Some(bytes) = EMPTY.get() {
        return bytes.clone();
    }
    let storage = Arc::new(TurnStorage::default());
    let mut options = CreateOptions::new(DISK);
    (options.cluster_size, options.refcount_bits) = (CLUSTER, 64);
    block_on(create(&storage, None, &options)).unwrap();
    EMPTY.get_or_init(|| storage.bytes()).clone()
}

/// An image that is open, and its cleaner, which runs.
pub(crate) struct Opened {
    storage: Arc<TurnStorage>,
    pub(crate) image: Arc<Disk>,
    cleaner: Option<thread::JoinHandle<()>>,
}

impl Opened {
    /// An empty disk, behind caches of two slices.
    pub(crate) fn new() -> Self {
        Self::of(empty())
    }

    fn of(bytes: Vec<u8>) -> Self {
        let storage = Arc::new(TurnStorage::new(bytes));
        let mut options = OpenOptions::default();
        let mut write = WriteOptions::default();
        (write.pass_discard_request, write.pass_discard_other) = (true, true);
        options.write = Some(write);
        options.cache.l2_cache_size = Some(2 * CLUSTER);
        options.cache.refcount_cache_size = Some(4 * CLUSTER);
        options.cache.cache_clean_interval = Some(Duration::from_secs(600));
        let source = Source::qcow2(Arc::clone(&storage), "image");
        let opened = block_on(Image::open(source, &RefuseAll::new(), options)).unwrap();
        let cleaner =
            opened.cleaner.map(|cleaner| thread::spawn(move || block_on(cleaner.run(Whenever))));
        Self { storage, image: Arc::new(opened.image), cleaner }
    }

    /// Runs `task` beside the others.
    pub(crate) fn spawn<R: 'static + Send>(
        &self,
        task: impl FnOnce(&Disk) -> R + Send + 'static,
    ) -> thread::JoinHandle<R> {
        let image = Arc::clone(&self.image);
        thread::spawn(move || task(&image))
    }

    /// Closes the image, and looks at what is left: clusters hold one of the values that the model has for them, each.
    pub(crate) fn close(self, expected: &[(u64, &[u8])]) {
        block_on(self.image.close()).unwrap();
        if let Some(cleaner) = self.cleaner {
            cleaner.join().unwrap();
        }
        let mut findings: Vec<Finding> = Vec::new();
        let report =
            block_on(check_storage(&self.storage, &CheckOptions::default(), &mut findings))
                .unwrap();
        assert!(report.is_clean(), "{findings:?}");

        let source = Source::qcow2(Arc::clone(&self.storage), "image");
        let options = OpenOptions::default();
        let again = block_on(Image::open(source, &RefuseAll::new(), options)).unwrap().image;
        for (cluster, values) in expected {
            let mut bytes = [0; CLUSTER as usize];
            block_on(again.read_at(&mut bytes, cluster * CLUSTER)).unwrap();
            assert!(
                values.contains(&bytes[0]),
                "cluster {cluster}: {:#x}, not of {values:x?}",
                bytes[0]
            );
            assert_eq!(bytes, [bytes[0]; CLUSTER as usize], "cluster {cluster} is torn");
        }
        block_on(again.close()).unwrap();
    }
}

fn write(image: &Disk, cluster: u64, byte: u8) -> cowshed::Result<()> {
    block_on(image.write_at(&[byte; CLUSTER as usize], cluster * CLUSTER))
}

fn read(image: &Disk, cluster: u64) -> u8 {
    let mut bytes = [0; CLUSTER as usize];
    block_on(image.read_at(&mut bytes, cluster * CLUSTER)).unwrap();
    assert_eq!(bytes, [bytes[0]; CLUSTER as usize], "cluster {cluster} is torn");
    bytes[0]
}

/// Two closes, from two tasks, while two others write, read and flush: what was refused was not written, what was not was;
/// both closes return after the last request, and the cleaner has ended.
pub(crate) fn requests_and_close() {
    let opened = Opened::new();
    let writers = [1, 66].map(|cluster| {
        opened.spawn(move |image| match write(image, cluster, 0x11) {
            Ok(()) => 0x11,
            Err(Error::Closed) => 0,
            Err(error) => panic!("{error}"),
        })
    });
    let closer = opened.spawn(|image| {
        block_on(image.close()).unwrap();
        assert!(matches!(write(image, 1, 0x22), Err(Error::Closed)));
    });
    let flushed = block_on(opened.image.flush());
    assert!(matches!(flushed, Ok(()) | Err(Error::Closed)));
    block_on(opened.image.close()).unwrap();
    let [first, second] = writers.map(|writer| writer.join().unwrap());
    closer.join().unwrap();
    opened.close(&[(1, &[first]), (66, &[second])]);
}

/// Two tasks write to two guest clusters whose L2 table, or tables, do not exist yet, a third reads: both are mapped, and the
/// refcounts are right.
pub(crate) fn allocate_and_allocate() {
    let opened = Opened::new();
    let second = if choose(2) == 0 { 2 } else { 66 };
    let tasks = [(1, 0x11), (second, 0x22)].map(|(cluster, byte)| {
        opened.spawn(move |image| {
            write(image, cluster, byte).unwrap();
            assert_eq!(read(image, cluster), byte);
        })
    });
    assert!([0, 0x11].contains(&read(&opened.image, 1)));
    for task in tasks {
        task.join().unwrap();
    }
    opened.close(&[(0, &[0]), (1, &[0x11]), (second, &[0x22]), (3, &[0])]);
}

/// Two tasks write parts of the same cluster that does not exist yet: both parts are there.
pub(crate) fn halves_of_a_cluster() {
    let opened = Opened::new();
    let tasks = [0, 256].map(|start| {
        opened.spawn(move |image| block_on(image.write_at(&[0x33; 256], CLUSTER + start)).unwrap())
    });
    for task in tasks {
        task.join().unwrap();
    }
    opened.close(&[(0, &[0]), (1, &[0x33]), (2, &[0])]);
}

/// One task discards a cluster and another writes elsewhere, with flushes, so that the host cluster changes its owner, while a
/// third reads the first cluster and a fourth rewrites it: nobody reads, and nothing holds, another cluster's bytes.
pub(crate) fn discard_and_reuse() {
    let opened = Opened::new();
    write(&opened.image, 1, 0x11).unwrap();
    block_on(opened.image.flush()).unwrap();
    let discards = opened.spawn(|image| {
        block_on(image.discard_at(CLUSTER, CLUSTER)).unwrap();
        block_on(image.flush()).unwrap();
        block_on(image.flush()).unwrap();
    });
    let writes = opened.spawn(|image| {
        for cluster in [2, 3] {
            write(image, cluster, 0x22).unwrap();
            block_on(image.flush()).unwrap();
        }
    });
    let rewrites = opened.spawn(|image| write(image, 1, 0x44).unwrap());
    for _ in 0..2 {
        // While it is discarded a cluster may read as anything that was ever written there, or zeros, or what the storage makes
        // of a discarded range; never as somebody else's.
        assert!([0x11, 0x44, 0, 0xdd].contains(&read(&opened.image, 1)));
    }
    for task in [discards, writes, rewrites] {
        task.join().unwrap();
    }
    block_on(opened.image.flush()).unwrap();
    opened.close(&[(1, &[0, 0x44]), (2, &[0x22]), (3, &[0x22]), (4, &[0])]);
}

/// Zeroes and writes of overlapping ranges, two flushes at the same time.
pub(crate) fn zero_and_flush() {
    let opened = Opened::new();
    let zeroes = opened.spawn(|image| {
        let mode = if choose(2) == 0 { ZeroMode::MayUnmap } else { ZeroMode::KeepSpace };
        block_on(image.write_zeroes_at(0, 4 * CLUSTER, mode)).unwrap();
        block_on(image.flush()).unwrap();
    });
    let flushes = opened.spawn(|image| block_on(image.flush()).unwrap());
    for cluster in [1, 5] {
        write(&opened.image, cluster, 0x11).unwrap();
    }
    for task in [zeroes, flushes] {
        task.join().unwrap();
    }
    opened.close(&[(0, &[0]), (1, &[0, 0x11]), (5, &[0x11])]);
}

/// The disk grows past its L1 table and shrinks again while others write: what lies below the smallest size stays.
pub(crate) fn resize_and_write() {
    let opened = Opened::new();
    let resizes = opened.spawn(|image| {
        let mut options = ResizeOptions::default();
        options.shrink = true;
        block_on(image.resize(200 * CLUSTER, &options)).unwrap();
        block_on(image.resize(70 * CLUSTER, &options)).unwrap();
    });
    let writes = opened.spawn(|image| write(image, 66, 0x22).unwrap());
    write(&opened.image, 1, 0x11).unwrap();
    assert_eq!(read(&opened.image, 1), 0x11);
    for task in [resizes, writes] {
        task.join().unwrap();
    }
    assert_eq!(opened.image.virtual_size(), 70 * CLUSTER);
    opened.close(&[(1, &[0x11]), (66, &[0x22]), (69, &[0])]);
}

/// Writes of more clusters than a refcount block counts, by two tasks: blocks are added while others take clusters.
pub(crate) fn refcount_blocks() {
    let opened = Opened::new();
    let tasks = [(0, 0x11), (34, 0x22)].map(|(first, byte)| {
        opened.spawn(move |image| {
            block_on(image.write_at(&[byte; 34 * CLUSTER as usize], first * CLUSTER)).unwrap();
        })
    });
    for task in tasks {
        task.join().unwrap();
    }
    opened.close(&[(0, &[0x11]), (33, &[0x11]), (34, &[0x22]), (67, &[0x22]), (68, &[0])]);
}

/// Writes, discards and flushes are dropped wherever they are, while another task writes: what was dropped has happened or not,
/// the other's bytes are there, and after the close nothing has leaked.
pub(crate) fn cancel_any() {
    let opened = Opened::new();
    let dropped = opened.spawn(|image| {
        drop_somewhere(image.write_at(&[0x11; CLUSTER as usize], CLUSTER));
        drop_somewhere(image.flush());
        drop_somewhere(image.discard_at(CLUSTER, CLUSTER));
        write(image, 3, 0x33).unwrap();
    });
    write(&opened.image, 2, 0x22).unwrap();
    drop_somewhere(opened.image.flush());
    dropped.join().unwrap();
    opened.close(&[(0, &[0]), (1, &[0, 0x11, 0xdd]), (2, &[0x22]), (3, &[0x33])]);
}

/// An image dropped without a close: its cleaner ends.
pub(crate) fn image_dropped() {
    let Opened { image, cleaner, storage } = Opened::new();
    let reader = {
        let image = Arc::clone(&image);
        thread::spawn(move || read(&image, 1))
    };
    drop(image);
    assert_eq!(reader.join().unwrap(), 0);
    cleaner.unwrap().join().unwrap();
    block_on(SendStorage::flush(&*storage)).unwrap();
}

/// Settings change three times, the sizes of the caches and the cleaner, or to read-only and back, or are given up on the way, while
/// two tasks write, read and flush, and the image may be closed. What was written is there, what was refused is not; a cleaner is
/// given out where there is to be one; settings that were taken hold, and those that were refused do not; every cleaner ends.
pub(crate) fn reconfigure_and_requests() {
    let opened = Opened::new();
    let mut cleaners = Vec::new();
    let changes = opened.spawn(move |image| {
        for step in 0..3 {
            let mut settings = image.settings();
            settings.cache.l2_cache_size = Some((1 + choose(3)) * CLUSTER);
            let interval = [Duration::ZERO, Duration::from_secs(60)][choose(2) as usize];
            settings.cache.cache_clean_interval = Some(interval);
            settings.write = if step == 1 { None } else { Some(WriteOptions::default()) };
            if choose(3) == 0 {
                drop_somewhere(image.reconfigure(settings.clone()));
            }
            match block_on(image.reconfigure(settings.clone())) {
                Ok(cleaner) => {
                    assert_eq!(cleaner.is_some(), !interval.is_zero(), "one cleaner, or none");
                    assert_eq!(image.settings(), settings);
                    cleaners.extend(cleaner.map(|cleaner| {
                        thread::spawn(move || block_on(cleaner.run(Whenever)))
                    }));
                }
                Err(Error::Closed) => break,
                Err(error) => panic!("{error}"),
            }
        }
        cleaners
    });
    let may_write = |image: &Disk, cluster| match write(image, cluster, 0x11) {
        Ok(()) => 0x11,
        Err(Error::Closed | Error::ReadOnly(_)) => 0,
        Err(error) => panic!("{error}"),
    };
    let writes = opened.spawn(move |image| {
        let written = may_write(image, 66);
        let mut bytes = [0; CLUSTER as usize];
        match block_on(image.read_at(&mut bytes, 66 * CLUSTER)) {
            Ok(()) => assert_eq!(bytes, [written; CLUSTER as usize]),
            Err(error) => assert!(matches!(error, Error::Closed), "{error}"),
        }
        written
    });
    let closer = (choose(2) == 0).then(|| opened.spawn(|image| block_on(image.close()).unwrap()));
    let first = may_write(&opened.image, 1);
    let flushed = block_on(opened.image.flush());
    assert!(matches!(flushed, Ok(()) | Err(Error::Closed | Error::ReadOnly(_))));
    let second = writes.join().unwrap();
    let cleaners = changes.join().unwrap();
    if let Some(closer) = closer {
        closer.join().unwrap();
    }
    opened.close(&[(0, &[0]), (1, &[first]), (66, &[second])]);
    for cleaner in cleaners {
        cleaner.join().unwrap();
    }
}

/// How many schedules a protocol of the image gets.
fn fewer() -> usize {
    schedules().div_ceil(10)
}

macro_rules! protocols {
    ($($name:ident),* $(,)?) => {
        $(#[test]
        fn $name() {
            prepare();
            explore(stringify!($name), fewer(), super::$name);
        })*
    };
}

/// Makes the empty image, which takes steps that no other schedule has to take.
pub(crate) fn prepare() {
    assert_eq!(find(1, || drop(empty())), None);
}

mod explored {
    use super::{explore, fewer, prepare};

    protocols![
        requests_and_close,
        allocate_and_allocate,
        halves_of_a_cluster,
        discard_and_reuse,
        zero_and_flush,
        resize_and_write,
        refcount_blocks,
        cancel_any,
        image_dropped,
        reconfigure_and_requests,
    ];
}
