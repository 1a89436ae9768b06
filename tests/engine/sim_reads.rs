//! The fear: a read that comes out wrong only when requests overtake each other, fail, are dropped, and the cleaner comes
//! in between; or an image that never closes then.
//!
//! Real images lie on simulated disks, and several readers, a cleaner every virtual millisecond and a close run in the
//! order that a seed decides. What is read is QEMU's; an error is the disk's; everything ends.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::support::seeds::for_each_seed;
use crate::support::{TestImage, small_matrix};
use cowshed::image::{
    Answer, Format, Gate, Image, OpenOptions, Reference, ReferenceKind, Source, detect,
};
use cowshed::sim::{Executor, Faults, Random, SimStorage, cut};
use cowshed::timer::Timer;
use cowshed::{Error, Result};

const SEEDS: u64 = 800;
const READERS: usize = 4;
const READS: usize = 12;

/// A test image and the bytes of all files of its folder.
struct Subject {
    test: TestImage,
    files: BTreeMap<Vec<u8>, Arc<[u8]>>,
}

impl Subject {
    fn new(test: TestImage) -> Self {
        let entries = std::fs::read_dir(test.dir.path()).unwrap().map(|entry| entry.unwrap());
        let files = entries
            .map(|entry| {
                let name = entry.file_name().into_encoded_bytes();
                (name, std::fs::read(entry.path()).unwrap().into())
            })
            .collect();
        Self { test, files }
    }
}

/// Opens the files of a subject on simulated disks.
struct Disks<'a, 'e> {
    subject: &'a Subject,
    executor: &'a Executor<'e>,
    faults: Faults,
    opened: RefCell<Vec<SimStorage>>,
}

impl Disks<'_, '_> {
    fn source(&self, name: &[u8], format: Format) -> Source<SimStorage> {
        let bytes = Arc::clone(&self.subject.files[name]);
        let storage = SimStorage::new(self.executor, bytes, self.faults);
        self.opened.borrow_mut().push(storage.clone());
        let location = String::from_utf8_lossy(name).into_owned().into();
        Source { storage, format, location, identity: None }
    }
}

impl Gate for Disks<'_, '_> {
    type Storage = SimStorage;

    async fn open(&self, reference: &Reference<'_>) -> Result<Answer<SimStorage>> {
        let format = match (reference.kind, reference.format) {
            (ReferenceKind::DataFile, _) | (_, Some(b"raw")) => Format::Raw,
            (_, Some(_)) => Format::Qcow2,
            (_, None) => detect(&self.subject.files[reference.name]),
        };
        Ok(Answer::Open(self.source(reference.name, format)))
    }
}

/// What came of all reads.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Counts {
    read: u32,
    failed: u32,
    dropped: u32,
    closed: u32,
    open_failed: u32,
}

/// What readers share.
struct Shared<'a> {
    image: Image<SimStorage>,
    subject: &'a Subject,
    counts: RefCell<Counts>,
    closing: std::cell::Cell<bool>,
}

async fn open(
    disks: &Disks<'_, '_>,
    options: OpenOptions,
) -> Result<cowshed::image::Opened<SimStorage>> {
    disks.opened.borrow_mut().clear();
    let name = disks.subject.test.name().as_bytes();
    Image::open(disks.source(name, Format::Qcow2), disks, options).await
}

fn must_be_the_disks(error: &Error) {
    assert!(matches!(error, Error::Storage { operation: "read", .. }), "{error:?}");
}

async fn reader(shared: Rc<Shared<'_>>, mut random: Random) {
    let size = shared.subject.test.reference.len() as u64;
    for _ in 0..READS {
        let offset = random.below(size);
        let longest = if random.chance(100) { 1 << 20 } else { 20_000 };
        let len = random.below((size - offset).min(longest) + 1);
        let mut bytes = vec![0xa5; usize::try_from(len).unwrap()];
        let polls = if random.chance(200) { random.below(6) } else { u64::MAX };
        let closing = shared.closing.get();
        let result = cut(shared.image.read_at(&mut bytes, offset), polls).await;
        let mut counts = shared.counts.borrow_mut();
        match result {
            Some(Ok(())) => {
                assert!(!closing, "it was read after close was called");
                shared.subject.test.assert_reads(&bytes, offset);
                counts.read += 1;
            }
            Some(Err(Error::Closed)) => {
                assert!(shared.closing.get(), "closed without a close");
                counts.closed += 1;
            }
            Some(Err(error)) => {
                must_be_the_disks(&error);
                counts.failed += 1;
            }
            None => counts.dropped += 1,
        }
    }
}

/// Lives through `seed` with one of the images; returns what came of it and the hash of the trace.
fn live(seed: u64, subject: &Subject) -> (Counts, u64) {
    let executor = Executor::new(seed);
    let mut random = executor.random();
    let mut faults = Faults::random(&mut random);
    // A pass of the cleaner every millisecond: half a minute would be very many.
    faults.stall = Duration::from_millis(40);
    let mut options = OpenOptions::default();
    options.cache.cache_clean_interval = Some(Duration::from_millis(1));
    options.inflated_len_bytes_max = random.below(2) * OpenOptions::INFLATED_LEN_BYTES_MAX_DEFAULT;
    if random.toss() {
        // The smallest: nothing stays.
        options.cache.l2_cache_size = Some(0);
        options.cache.l2_cache_entry_size = Some(512);
    }

    let mut counts = Counts::default();
    let opened = {
        let mut disks = Disks { subject, executor: &executor, faults, opened: RefCell::default() };
        let opened = match executor.run(open(&disks, options.clone())).unwrap() {
            Ok(opened) => opened,
            Err(error) => {
                must_be_the_disks(&error);
                counts.open_failed += 1;
                disks.faults = Faults::none();
                executor.run(open(&disks, options)).unwrap().unwrap()
            }
        };
        for disk in disks.opened.take() {
            disk.set_faults(faults);
        }
        opened
    };

    let clock = executor.clock();
    let shared = Rc::new(Shared {
        image: opened.image,
        subject,
        counts: RefCell::new(counts),
        closing: false.into(),
    });
    let cleaner = opened.cleaner.unwrap();
    // Run, dropped at once, or dropped some time later.
    let mut cleaner = match random.below(4) {
        0 => {
            drop(cleaner);
            None
        }
        _ => Some(executor.spawn(cleaner.run(executor.clock()))),
    };
    let readers: Vec<_> = (0..READERS)
        .map(|_| executor.spawn(reader(Rc::clone(&shared), executor.random())))
        .collect();
    let early = random.toss();
    executor
        .run(async {
            if early {
                clock.sleep(Duration::from_micros(random.below(20_000))).await;
            } else {
                for reader in readers {
                    reader.await;
                }
            }
            if random.chance(200) {
                cleaner = None;
            }
            shared.closing.set(true);
            // Dropped here and there, and called again.
            if random.toss() {
                let _ = cut(shared.image.close(), random.below(3)).await;
            }
            shared.image.close().await.unwrap();
            let error = shared.image.read_at(&mut [0], 0).await.unwrap_err();
            assert!(matches!(error, Error::Closed), "{error:?}");
            if let Some(cleaner) = cleaner {
                cleaner.await;
            }
        })
        .unwrap();
    let counts = *shared.counts.borrow();
    (counts, executor.trace().hash())
}

#[test]
fn reads_are_qemus_or_the_disks_error_whatever_the_order() {
    let subjects: Vec<_> = small_matrix().map(Subject::new).collect();
    let mut all = Counts::default();
    let began = std::time::Instant::now();
    for_each_seed(SEEDS, |seed| {
        let subject = &subjects[usize::try_from(seed).unwrap() % subjects.len()];
        let (counts, hash) = live(seed, subject);
        if seed % 10 == 0 {
            assert_eq!(live(seed, subject), (counts, hash), "the same seed, another run");
        }
        all.read += counts.read;
        all.failed += counts.failed;
        all.dropped += counts.dropped;
        all.closed += counts.closed;
        all.open_failed += counts.open_failed;
    });
    println!("{all:?} in {:?} over {} images", began.elapsed(), subjects.len());
    if std::env::var("COWSHED_SEED").is_err() {
        assert!(all.read > 2000, "{all:?}");
        let others = [all.failed, all.dropped, all.closed, all.open_failed];
        assert!(others.iter().all(|&count| count > 10), "{all:?}");
    }
}
