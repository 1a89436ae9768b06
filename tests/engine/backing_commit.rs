//! The fear: what an image has is written into its backing file while the image is in use, and a byte that the guest reads
//! comes from before or from elsewhere: through a cache that knows nothing of the change, from a cluster that has been given
//! away, or because the image was emptied before the backing file had all of it for certain.

use std::cell::{Cell, RefCell};
use std::path::Path;
use std::sync::Arc;

use crate::support::qemu;
use crate::support::sectors::{
    LEN, Model, SECTOR, SECTORS, check, check_by, given_up, reconfigure, write,
};
use crate::support::seeds::for_each_seed;
use crate::support::threads::beside_threads;
use crate::support::three_files::ThreeFiles;
use cowshed::format::Version;
use cowshed::image::mutant::{Mutant, set};
use cowshed::image::{
    BackingCommit, BackingCommitOptions, CreateOptions, ExtentKind, Format, Image, NewSnapshot,
    OpenOptions, RefuseAll, ResizeOptions, SnapshotSelector, Source, WriteOptions, ZeroMode,
    create,
};
use cowshed::rt::{DiskStorage, FileOptions, FolderGate, open_storage};
use cowshed::sim::{Executor, Faults, Progress, Random, SimStorage};
use cowshed::storage::{MemoryStorage, Storage};
use cowshed::{Error, Result};
use futures::executor::block_on;
use futures::future::{join, join3};

const SEEDS: u64 = 200;
const SEEDS_OF_MUTANTS: u64 = 1000;
/// About as many steps as a long commit takes.
const STEPS_MAX: u64 = 400;

/// What the middle layer and the image are.
#[derive(Debug, Clone, Copy)]
struct Kind {
    cluster_size: u64,
    extended_l2: bool,
    version: Version,
    middle_is_raw: bool,
    /// It has a snapshot of its own.
    middle_has_snapshot: bool,
    middle_has_bitmap: bool,
    has_bitmap: bool,
}

fn kind(random: &mut Random) -> Kind {
    let (cluster_size, extended_l2) = [(512, false), (4096, false), (16384, true)][random.index(3)];
    let is_v2 = !extended_l2 && random.chance(300);
    let middle_is_raw = random.chance(200);
    Kind {
        cluster_size,
        extended_l2,
        version: if is_v2 { Version::V2 } else { Version::V3 },
        middle_is_raw,
        middle_has_snapshot: !middle_is_raw && random.chance(300),
        middle_has_bitmap: !middle_is_raw && !is_v2 && random.chance(300),
        has_bitmap: !is_v2 && random.chance(300),
    }
}

/// A chain with something of everything in it; its disk, and what the backing file's snapshot has.
fn make(random: &mut Random, kind: Kind) -> (ThreeFiles<Arc<MemoryStorage>>, Vec<u8>, Vec<u8>) {
    // It may be shorter than the image, if it may become longer.
    // A bitmap that was in use when the power went keeps it from that, as one of version 2 with a snapshot.
    let is_kept = kind.middle_has_snapshot && kind.version == Version::V2;
    let may_grow = !is_kept && !kind.middle_has_bitmap;
    let middle_len = match may_grow && random.chance(300) {
        true => SECTOR * (1 + random.index(SECTORS)),
        false => LEN,
    };
    let new = |backing: &str, format: Format, len: usize| {
        let mut options = CreateOptions::new(len as u64);
        options.cluster_size = kind.cluster_size;
        (options.extended_l2, options.version) = (kind.extended_l2, kind.version);
        options.backing_file = Some(backing.into());
        options.backing_format = Some(format.name().into());
        let storage = Arc::new(MemoryStorage::default());
        block_on(create(&storage, None, &options)).unwrap();
        storage
    };
    let byte = |random: &mut Random| random.bits() as u8;
    let noise = |random: &mut Random, sectors: usize| -> Vec<u8> {
        (0..sectors).flat_map(|_| [byte(random); SECTOR]).collect()
    };
    let base_sectors = if random.toss() { SECTORS } else { random.index(SECTORS) };
    let base = Arc::new(MemoryStorage::new(noise(random, base_sectors)));
    let middle_format = if kind.middle_is_raw { Format::Raw } else { Format::Qcow2 };
    let middle = match kind.middle_is_raw {
        true => Arc::new(MemoryStorage::new(noise(random, middle_len / SECTOR))),
        false => new("base", Format::Raw, middle_len),
    };
    let chain =
        ThreeFiles { base, middle, middle_format, image: new("middle", middle_format, LEN) };
    let made = block_on(async {
        let mut kept = Vec::new();
        if !kind.middle_is_raw {
            let middle = chain.open_middle(None, true).await?;
            fill(&middle, random, kind).await?;
            if kind.middle_has_snapshot {
                kept = vec![0; middle_len];
                middle.read_at(&mut kept, 0).await?;
                middle.create_snapshot(&NewSnapshot::new("kept")).await?;
                fill(&middle, random, kind).await?;
            }
            if kind.middle_has_bitmap {
                middle.add_bitmap(b"below", Some(512), true).await?;
            }
            middle.close().await?;
        }
        let image = chain.open(true).await?;
        fill(&image, random, kind).await?;
        if kind.has_bitmap {
            image.add_bitmap(b"above", Some(512), true).await?;
        }
        image.close().await?;
        let image = chain.open(false).await?;
        let mut disk = vec![0; LEN];
        image.read_at(&mut disk, 0).await?;
        Ok::<_, Error>((disk, kept))
    });
    let (disk, kept) = made.unwrap();
    (chain, disk, kept)
}

async fn fill<S: Storage>(image: &Image<S>, random: &mut Random, kind: Kind) -> Result<()> {
    let sectors = image.virtual_size() as usize / SECTOR;
    for _ in 0..random.below(20) {
        let at = random.index(sectors);
        let len = SECTOR * (1 + random.index(40)).min(sectors - at);
        let cluster = kind.cluster_size as usize;
        let (whole, at) = (at * SECTOR / cluster * cluster, (at * SECTOR) as u64);
        let byte = random.bits() as u8;
        match random.below(5) {
            0 => image.write_zeroes_at(at, len as u64, ZeroMode::MayUnmap).await?,
            1 if kind.version == Version::V3 => image.discard_at(at, len as u64).await?,
            2 if whole + cluster <= sectors * SECTOR => {
                // Where there is data already it stays.
                let _ = image.write_compressed_at(&vec![byte; cluster], whole as u64).await;
            }
            _ => image.write_at(&vec![byte; len], at).await?,
        }
    }
    Ok(())
}

fn options(make_empty: bool) -> BackingCommitOptions {
    let mut options = BackingCommitOptions::default();
    options.make_empty = make_empty;
    options
}

async fn commit_all<S: Storage>(image: &Image<S>, make_empty: bool) -> Result<()> {
    let mut commit = image.commit_into_backing(options(make_empty))?;
    while commit.step().await?.is_some() {}
    Ok(())
}

/// Commits until all is done, giving up steps and whole commits now and then, and trying again what fails. Returns whether it
/// was done: a backing file that has lost something takes no more.
async fn commit<S: Storage>(
    image: &Image<S>,
    make_empty: bool,
    random: &mut Random,
    progress: &Progress,
) -> Result<bool> {
    let new = || image.commit_into_backing(options(make_empty));
    let mut commit: BackingCommit<'_, S> = new()?;
    let mut failures = 0;
    loop {
        progress.note();
        if random.chance(50) {
            if random.toss() {
                let _ = commit.cancel().await;
            } else {
                drop(commit);
            }
            commit = new()?;
        }
        let step = match random.chance(200) {
            true => given_up(commit.step(), random.below(40)).await,
            false => Some(commit.step().await),
        };
        match step {
            Some(Ok(None)) => return Ok(true),
            Some(Ok(Some(left))) => assert!(left <= LEN as u64),
            None => {}
            Some(Err(error)) => {
                failures += 1;
                let is_end = failures > 20 || matches!(error, Error::Latched(_));
                if is_end {
                    let _ = commit.cancel().await;
                    return Ok(false);
                }
            }
        }
    }
}

/// What is left of the chain: sound, and the disk is one that may be.
fn look(
    chain: &ThreeFiles<Arc<MemoryStorage>>,
    left: &ThreeFiles<SimStorage>,
    model: &Model,
    kept: &[u8],
) -> std::result::Result<ThreeFiles<Arc<MemoryStorage>>, String> {
    let memory = |storage: &SimStorage| Arc::new(MemoryStorage::new(storage.to_vec()));
    let chain =
        ThreeFiles { image: memory(&left.image), middle: memory(&left.middle), ..chain.clone() };
    check(&chain.image).map_err(|what| format!("the image: {what}"))?;
    if chain.middle_format == Format::Qcow2 {
        check(&chain.middle).map_err(|what| format!("the backing file: {what}"))?;
    }
    let read = block_on(async {
        let image = chain.open(false).await?;
        let mut disk = vec![0; LEN];
        image.read_at(&mut disk, 0).await?;
        let mut snapshot = vec![0; kept.len()];
        if !kept.is_empty() {
            let middle = chain.open_middle(Some(b"kept"), false).await?;
            middle.read_at(&mut snapshot, 0).await?;
        }
        Ok::<_, Error>((disk, snapshot))
    });
    let (disk, snapshot) = read.map_err(|error| error.to_string())?;
    model.allows(&disk)?;
    match snapshot == kept {
        true => Ok(chain),
        false => Err("the backing file's snapshot has changed".into()),
    }
}

/// Asks whether the backing file has the disk, and the image nothing if it is to be empty.
fn is_committed(
    chain: &ThreeFiles<Arc<MemoryStorage>>,
    make_empty: bool,
) -> std::result::Result<(), String> {
    let looked = block_on(async {
        let (image, middle) = (chain.open(false).await?, chain.open_middle(None, false).await?);
        let (mut disk, mut below) = (vec![0; LEN], vec![0; LEN]);
        image.read_at(&mut disk, 0).await?;
        middle.read_at(&mut below, 0).await?;
        let mut own = 0;
        let mut extents = image.extents(0, LEN as u64)?;
        while let Some(extent) = extents.next().await? {
            let is_own =
                extent.depth == 0 && !matches!(extent.kind, ExtentKind::Unallocated { .. });
            own += if is_own { extent.len } else { 0 };
        }
        Ok::<_, Error>((disk == below, own))
    });
    match looked.map_err(|error| error.to_string())? {
        (false, _) => Err("the backing file has another disk".into()),
        (true, own) if make_empty && own > 0 => Err(format!("{own} bytes are in the image yet")),
        (true, _) => Ok(()),
    }
}

/// One world: a commit and writers, with the power going at some step, and another commit. Returns whether the first one came
/// to its end.
fn live(seed: u64) -> std::result::Result<bool, String> {
    let executor = Executor::new(seed);
    let mut random = executor.random();
    let kind = kind(&mut random);
    let (chain, disk, kept) = make(&mut random, kind);
    let make_empty = random.chance(700);
    let faults = if random.chance(300) { Faults::random(&mut random) } else { Faults::none() };
    let simulated =
        |storage: &MemoryStorage, faults| SimStorage::new(&executor, storage.to_vec(), faults);
    let sim = ThreeFiles {
        base: simulated(&chain.base, Faults::none()),
        // What fails is what is written to it: opening it is not what this is about.
        middle: simulated(&chain.middle, faults),
        image: simulated(&chain.image, Faults::none()),
        middle_format: chain.middle_format,
    };
    let has_faults = faults != Faults::none();
    let model = RefCell::new(Model::new(&disk));
    let crash_at = if random.toss() { u64::MAX } else { random.below(STEPS_MAX) };
    let (mut writing, mut committing, mut changing) = (random.fork(), random.fork(), random.fork());
    let progress = executor.progress();
    let (mut steps, mut wrong) = (0, None);
    let left = |sim: &ThreeFiles<SimStorage>, end: bool| {
        let of = |storage: &SimStorage| if end { storage.crash() } else { storage.crash_state() };
        ThreeFiles { image: of(&sim.image), middle: of(&sim.middle), ..sim.clone() }
    };
    let stop = || {
        steps += 1;
        if random.chance(20) {
            let seen = look(&chain, &left(&sim, false), &model.borrow(), &kept);
            wrong = seen.err().map(|what| format!("at step {steps}: {what}"));
        }
        steps >= crash_at || wrong.is_some()
    };
    let is_quiet = Cell::new(false);
    let work = async {
        let image = match sim.open(true).await {
            Err(_) if has_faults => return Ok(()),
            opened => opened?,
        };
        let (done, written, changed) = join3(
            commit(&image, make_empty, &mut committing, &progress),
            write(&image, &model, &mut writing),
            reconfigure(&image, &mut changing),
        )
        .await;
        if has_faults {
            // The backing file may fail whoever reads it, too: what counts is what is there.
            let _ = image.close().await;
            return Ok(());
        }
        assert!(done?, "it has not come to its end");
        written.and(changed)?;
        // Now that nobody writes, the backing file gets the very disk.
        commit_all(&image, make_empty).await?;
        is_quiet.set(true);
        image.close().await
    };
    let ended = executor.run_until(work, stop).map_err(|stuck| stuck.to_string())?;
    if let Some(wrong) = wrong {
        return Err(format!("{kind:?}: {wrong}"));
    }
    let is_ended = ended.is_some();
    if let Some(result) = ended {
        result.map_err(|error: Error| format!("{kind:?}: {error}"))?;
    }
    let crashed = left(&sim, true);
    let there = look(&chain, &crashed, &model.borrow(), &kept)
        .map_err(|what| format!("{kind:?}, in the end: {what}"))?;
    if is_ended && !has_faults {
        let disk = model.borrow().now();
        let done = look(&chain, &crashed, &Model::new(&disk), &kept);
        done.map_err(|what| format!("{kind:?}, after the close: {what}"))?;
        assert!(is_quiet.get());
        is_committed(&there, make_empty).map_err(|what| format!("{kind:?}: {what}"))?;
        return Ok(true);
    }
    // Another one does all of it, with what is left.
    let rest = ThreeFiles {
        base: simulated(&chain.base, Faults::none()),
        middle: simulated(&there.middle, Faults::none()),
        image: simulated(&there.image, Faults::none()),
        middle_format: chain.middle_format,
    };
    let again = async {
        let image = rest.open(true).await?;
        commit_all(&image, make_empty).await?;
        image.close().await
    };
    executor.run(again).map_err(|stuck| stuck.to_string())?.map_err(|error| error.to_string())?;
    let there = look(&chain, &rest, &model.borrow(), &kept)
        .map_err(|what| format!("{kind:?}, after the other commit: {what}"))?;
    is_committed(&there, make_empty).map_err(|what| format!("{kind:?}, the other one: {what}"))?;
    Ok(false)
}

#[test]
fn power_loss_and_writers_find_each_byte_where_it_was() {
    let mut done = 0;
    for_each_seed(SEEDS, |seed| {
        done += u64::from(live(seed).unwrap_or_else(|what| panic!("seed {seed}: {what}")));
    });
    println!("{done} of {SEEDS} commits came to their end at once");
}

#[test]
fn commits_that_break_a_rule_are_found_out() {
    for rule in Mutant::BACKING {
        let found = (0..SEEDS_OF_MUTANTS).find_map(|seed| {
            set(Some(rule));
            let found = std::panic::catch_unwind(|| live(seed));
            set(None);
            match found {
                Ok(Ok(_)) => None,
                Ok(Err(what)) => Some(what),
                Err(_) => Some("a panic".into()),
            }
        });
        println!("{rule:?}: {}", found.unwrap_or_else(|| panic!("{rule:?} is not found out")));
    }
}

/// Opens `image` in a folder, and what it refers to, read-only.
fn open_files(dir: &Path) -> Image<DiskStorage> {
    let options = FileOptions::new().writable(true);
    let source = open_storage(dir.join("image"), &options).unwrap().into_source(Format::Qcow2);
    let gate = FolderGate::new(dir.join("image")).unwrap();
    let mut open = OpenOptions::default();
    open.write = Some(WriteOptions::default());
    block_on(Image::open(source, &gate, open)).unwrap().image
}

#[test]
fn threads_write_while_it_goes_on_and_qemu_finds_the_disk() {
    let world = Executor::new(7);
    let mut random = world.random();
    let plain = Kind {
        cluster_size: 4096,
        extended_l2: false,
        version: Version::V3,
        middle_is_raw: false,
        middle_has_snapshot: false,
        middle_has_bitmap: false,
        has_bitmap: false,
    };
    for kind in [
        plain,
        Kind { middle_is_raw: true, ..plain },
        Kind { cluster_size: 16384, extended_l2: true, has_bitmap: true, ..plain },
        Kind { cluster_size: 512, version: Version::V2, ..plain },
        Kind { middle_has_snapshot: true, middle_has_bitmap: true, ..plain },
    ] {
        for make_empty in [false, true] {
            let (chain, mut disk, _) = make(&mut random, kind);
            let dir = tempfile::tempdir().unwrap();
            for (name, storage) in
                [("image", &chain.image), ("middle", &chain.middle), ("base", &chain.base)]
            {
                std::fs::write(dir.path().join(name), storage.to_vec()).unwrap();
            }
            let image = Arc::new(open_files(dir.path()));
            let executor = async_executor::Executor::new();
            let writer = |task: usize| {
                let image = Arc::clone(&image);
                async move {
                    for sector in (task..SECTORS).step_by(7) {
                        let bytes = [sector as u8 | 1; SECTOR];
                        let at = (sector * SECTOR) as u64;
                        image.write_at(&bytes, at).await.unwrap();
                        let mut read = [0; SECTOR];
                        image.read_at(&mut read, at).await.unwrap();
                        assert_eq!(read, bytes);
                    }
                }
            };
            let tasks: Vec<_> = (0..3).map(|task| executor.spawn(writer(task))).collect();
            let committing = Arc::clone(&image);
            let committer = executor.spawn(async move {
                commit_all(&committing, make_empty).await.unwrap();
            });
            beside_threads(&executor, 2, || {
                block_on(executor.run(join(futures::future::join_all(tasks), committer)))
            });
            for sector in (0..SECTORS).filter(|sector| sector % 7 < 3) {
                disk[sector * SECTOR..][..SECTOR].fill(sector as u8 | 1);
            }
            let mut read = vec![0; LEN];
            block_on(image.read_at(&mut read, 0)).unwrap();
            assert!(read == disk, "{kind:?}: what is read is not the disk");
            block_on(commit_all(&image, make_empty)).unwrap();
            block_on(image.close()).unwrap();
            drop(image);
            std::fs::write(dir.path().join("disk"), disk).unwrap();
            qemu::img(dir.path(), ["check", "image"]);
            qemu::img(dir.path(), ["compare", "-f", "qcow2", "-F", "raw", "image", "disk"]);
            let format = chain.middle_format.name();
            qemu::img(dir.path(), ["compare", "-f", format, "-F", "raw", "middle", "disk"]);
            if !kind.middle_is_raw {
                qemu::img(dir.path(), ["check", "middle"]);
                let info = qemu::img(dir.path(), ["info", "middle"]);
                assert_eq!(info.contains("kept"), kind.middle_has_snapshot, "{info}");
            }
            if make_empty {
                let map = qemu::img(dir.path(), ["map", "--output=json", "image"]);
                assert!(!map.contains("\"depth\": 0, \"present\": true"), "{map}");
            }
        }
    }
}

/// A chain of two disks, the upper one of which has data at the beginning and at its end.
fn small(base_len: u64, len: u64) -> ThreeFiles<Arc<MemoryStorage>> {
    let new = |len: u64, backing: bool| {
        let mut options = CreateOptions::new(len);
        options.backing_file = backing.then(|| "middle".into());
        options.backing_format = backing.then(|| "qcow2".into());
        let storage = Arc::new(MemoryStorage::default());
        block_on(create(&storage, None, &options)).unwrap();
        storage
    };
    let (image, middle) = (new(len, true), new(base_len, false));
    ThreeFiles { base: Arc::default(), middle, middle_format: Format::Qcow2, image }
}

#[test]
fn the_disk_may_change_its_size_meanwhile() {
    const MIB: u64 = 1 << 20;
    let chain = small(30 * MIB, 40 * MIB);
    block_on(async {
        let image = chain.open(true).await.unwrap();
        let shrink = |size| {
            let mut options = ResizeOptions::default();
            options.shrink = true;
            (size, options)
        };
        image.write_at(&vec![1; 12 << 20], 0).await.unwrap();
        image.write_at(&vec![2; 12 << 20], 28 * MIB).await.unwrap();
        let mut commit = image.commit_into_backing(options(true)).unwrap();
        // All of it is copied in the first round, and that again which the sizes have to do with.
        for size in [50, 33, 60] {
            commit.step().await.unwrap();
            commit.step().await.unwrap();
            let (size, options) = shrink(size * MIB);
            image.resize(size, &options).await.unwrap();
        }
        image.write_at(&[3; 4096], 55 * MIB).await.unwrap();
        while commit.step().await.unwrap().is_some() {}
        drop(commit);
        let mut disk = vec![0; 60 << 20];
        image.read_at(&mut disk, 0).await.unwrap();
        let expected = |mib: u64| match mib {
            0..12 => 1,
            28..33 => 2,
            _ => 0,
        };
        for (mib, bytes) in (0..).zip(disk.chunks(1 << 20)) {
            let (head, tail) = bytes.split_at(4096);
            let first = if mib == 55 { 3 } else { expected(mib) };
            assert!(head.iter().all(|it| *it == first), "MiB {mib}");
            assert!(tail.iter().all(|it| *it == expected(mib)), "MiB {mib}");
        }
        image.close().await.unwrap();
        let middle = chain.open_middle(None, false).await.unwrap();
        let mut below = vec![1; 60 << 20];
        middle.read_at(&mut below, 0).await.unwrap();
        assert!(below == disk, "the backing file has another disk");
        check_by(&chain.middle).await.unwrap();
        check_by(&chain.image).await.unwrap();
    });
}

#[test]
fn progress_is_what_is_left_and_a_commit_that_is_given_up_leaves_a_sound_backing_file() {
    const MIB: u64 = 1 << 20;
    let chain = small(100 * MIB, 100 * MIB);
    block_on(async {
        let image = chain.open(true).await.unwrap();
        image.write_at(&vec![1; 40 << 20], 0).await.unwrap();
        let mut commit = image.commit_into_backing(options(true)).unwrap();
        assert_eq!(commit.step().await.unwrap(), Some(100 * MIB));
        let mut last = 100 * MIB;
        for _ in 0..4 {
            let left = commit.step().await.unwrap().unwrap();
            assert!(left <= last, "{left}");
            last = left;
        }
        assert!(last < 80 * MIB && last > 0, "{last}");
        // A write that is copied already is to be copied again.
        image.write_at(&[2; 65536], 0).await.unwrap();
        assert_eq!(commit.step().await.unwrap(), Some(last - 8 * MIB + 65536));
        commit.cancel().await.unwrap();
        check_by(&chain.middle).await.unwrap();
        let header = chain.open_middle(None, false).await.unwrap().header().unwrap();
        assert_eq!(header.incompatible.raw(), 0);
        // One that is dropped leaves it to the close.
        let mut commit = image.commit_into_backing(options(true)).unwrap();
        for _ in 0..3 {
            commit.step().await.unwrap();
        }
        drop(commit);
        image.close().await.unwrap();
        check_by(&chain.middle).await.unwrap();
        let middle = chain.open_middle(None, false).await.unwrap();
        let mut below = vec![0; 1 << 20];
        middle.read_at(&mut below, MIB).await.unwrap();
        assert!(below.iter().all(|it| *it == 1));
    });
}

#[test]
fn bitmaps_above_see_nothing_and_those_below_what_is_written() {
    let chain = small(1 << 20, 1 << 20);
    block_on(async {
        let middle = chain.open_middle(None, true).await.unwrap();
        middle.add_bitmap(b"below", Some(65536), true).await.unwrap();
        middle.close().await.unwrap();
        let image = chain.open(true).await.unwrap();
        image.write_at(&[1; 65536], 131_072).await.unwrap();
        image.add_bitmap(b"above", Some(65536), true).await.unwrap();
        image.write_at(&[1; 512], 655_360).await.unwrap();
        commit_all(&image, true).await.unwrap();
        assert_eq!(image.count_bitmap(b"above").await.unwrap(), 65536);
        image.close().await.unwrap();
        let middle = chain.open_middle(None, false).await.unwrap();
        let mut ranges = middle.bitmap_ranges(b"below").await.unwrap();
        assert_eq!(ranges.next().await.unwrap(), Some(131_072..196_608));
        assert_eq!(ranges.next().await.unwrap(), Some(655_360..720_896));
        assert_eq!(ranges.next().await.unwrap(), None);
    });
}

#[test]
fn a_snapshot_on_the_way_keeps_what_it_has_and_holds_it_up() {
    let chain = small(32 << 20, 32 << 20);
    block_on(async {
        let image = chain.open(true).await.unwrap();
        image.write_at(&vec![1; 32 << 20], 0).await.unwrap();
        let mut commit = image.commit_into_backing(options(true)).unwrap();
        for _ in 0..3 {
            commit.step().await.unwrap();
        }
        image.create_snapshot(&NewSnapshot::new("a")).await.unwrap();
        image.write_at(&[2; 65536], 0).await.unwrap();
        let refused = commit.step().await.unwrap_err();
        assert!(matches!(refused, Error::InvalidArgument(_)), "{refused}");
        image.apply_snapshot(&SnapshotSelector::Name(b"a".to_vec())).await.unwrap();
        image.delete_snapshot(&SnapshotSelector::Name(b"a".to_vec())).await.unwrap();
        while commit.step().await.unwrap().is_some() {}
        drop(commit);
        image.close().await.unwrap();
    });
    is_disk(&chain, 1, 32 << 20);
}

/// Asks whether both the image and its backing file are full of a byte.
fn is_disk(chain: &ThreeFiles<Arc<MemoryStorage>>, byte: u8, len: usize) {
    for image in [block_on(chain.open(false)), block_on(chain.open_middle(None, false))] {
        let mut disk = vec![0; len];
        block_on(image.unwrap().read_at(&mut disk, 0)).unwrap();
        assert!(disk.iter().all(|it| *it == byte));
    }
    check(&chain.image).and(check(&chain.middle)).unwrap();
}

#[test]
fn an_image_that_was_read_only_in_between_is_committed_anew() {
    let chain = small(32 << 20, 32 << 20);
    block_on(async {
        let image = chain.open(true).await.unwrap();
        image.write_at(&vec![1; 32 << 20], 0).await.unwrap();
        let mut commit = image.commit_into_backing(options(false)).unwrap();
        for _ in 0..4 {
            commit.step().await.unwrap();
        }
        let set = async |write: Option<WriteOptions>| {
            let mut settings = image.settings();
            settings.write = write;
            drop(image.reconfigure(settings).await.unwrap());
        };
        set(None).await;
        let refused = commit.step().await.unwrap_err();
        assert!(matches!(refused, Error::ReadOnly(_)), "{refused}");
        // Somebody else writes.
        let other = chain.open(true).await.unwrap();
        other.write_at(&vec![9; 32 << 20], 0).await.unwrap();
        other.close().await.unwrap();
        set(Some(WriteOptions::default())).await;
        while commit.step().await.unwrap().is_some() {}
        drop(commit);
        image.close().await.unwrap();
    });
    is_disk(&chain, 9, 32 << 20);
}

#[test]
fn what_cannot_be_committed_is_refused() {
    let chain = small(1 << 20, 1 << 20);
    let refused = |image: &Image<_>, words: &str| {
        let error = image.commit_into_backing(options(true)).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    };
    block_on(async {
        let image = chain.open(false).await.unwrap();
        assert!(matches!(image.commit_into_backing(options(true)), Err(Error::ReadOnly(_))));
        let image = chain.open(true).await.unwrap();
        let commit = image.commit_into_backing(options(true)).unwrap();
        refused(&image, "is being changed");
        for error in [
            image.make_empty().await.unwrap_err(),
            image.set_backing_file(None).await.unwrap_err(),
            image.rebase_onto(None::<&Image<Arc<MemoryStorage>>>, None, false).unwrap_err(),
        ] {
            assert!(error.to_string().contains("is being changed"), "{error}");
        }
        drop(commit);
        image.set_backing_file(None).await.unwrap();
        image.close().await.unwrap();
        let image = chain.open(true).await.unwrap();
        refused(&image, "it has no backing file");
        image.set_backing_file(Some((b"middle", b"qcow2"))).await.unwrap();
        image.close().await.unwrap();
        let image = chain.open(true).await.unwrap();
        image.create_snapshot(&NewSnapshot::new("a")).await.unwrap();
        refused(&image, "internal snapshots");
        image.close().await.unwrap();

        // A raw image, and one whose backing file was left.
        let mut open = OpenOptions::default();
        open.write = Some(WriteOptions::default());
        let raw = Source::raw(Arc::new(MemoryStorage::new(vec![0; 512])), "raw");
        let gate = RefuseAll::new();
        let raw = Image::open(raw, &gate, open.clone()).await.unwrap().image;
        refused(&raw, "it has no backing file");
        open.references = cowshed::image::References::Leave;
        let source = Source::qcow2(Arc::clone(&chain.image), "image");
        let image = Image::open(source, &gate, open).await.unwrap().image;
        assert!(matches!(image.commit_into_backing(options(true)), Err(Error::Refused { .. })));
    });
}
