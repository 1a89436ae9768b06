//! The fear: what lies below an image is copied into it while it is written to, and a byte of a backing file comes to lie
//! over one that a guest has just written; or the power goes, or the copy is given up, and the image has lost its backing
//! file before it had all of it.

use std::cell::RefCell;
use std::sync::Arc;

use crate::support::qemu;
use crate::support::sectors::{LEN, Model, SECTOR, SECTORS, check, given_up, reconfigure, write};
use crate::support::seeds::for_each_seed;
use crate::support::threads::beside_threads;
use crate::support::three_files::ThreeFiles;
use cowshed::format::Version;
use cowshed::image::{CreateOptions, Format, Image, NewSnapshot, StreamBase, ZeroMode, create};
use cowshed::sim::{Executor, Faults, Progress, Random, SimStorage};
use cowshed::storage::{MemoryStorage, Storage};
use cowshed::{Error, Result};
use futures::executor::block_on;
use futures::future::{join, join3};

const SEEDS: u64 = 200;
/// About as many steps as a long stream takes.
const STEPS_MAX: u64 = 250;

const BASE: StreamBase<'_> = StreamBase { depth: 2, name: b"base", format: b"raw" };

/// What the middle layer and the image are.
#[derive(Debug, Clone, Copy)]
struct Kind {
    cluster_size: u64,
    extended_l2: bool,
    version: Version,
}

fn kind(random: &mut Random) -> Kind {
    let (cluster_size, extended_l2) = [(512, false), (4096, false), (16384, true)][random.index(3)];
    let is_v2 = !extended_l2 && random.chance(300);
    Kind { cluster_size, extended_l2, version: if is_v2 { Version::V2 } else { Version::V3 } }
}

/// A chain with something of everything in it, and its disk.
fn make(random: &mut Random, kind: Kind) -> (ThreeFiles<Arc<MemoryStorage>>, Vec<u8>) {
    let new = |backing: &str, format: &str| {
        let mut options = CreateOptions::new(LEN as u64);
        options.cluster_size = kind.cluster_size;
        (options.extended_l2, options.version) = (kind.extended_l2, kind.version);
        options.backing_file = Some(backing.into());
        options.backing_format = Some(format.into());
        let storage = Arc::new(MemoryStorage::default());
        block_on(create(&storage, None, &options)).unwrap();
        storage
    };
    let byte = |random: &mut Random| random.bits() as u8;
    // A base that ends early, at times.
    let base_len = if random.toss() { LEN } else { SECTOR * random.index(SECTORS) };
    let base: Vec<u8> = (0..base_len / SECTOR).flat_map(|_| [byte(random); SECTOR]).collect();
    let (middle, image) = (new("base", "raw"), new("middle", "qcow2"));
    let base = Arc::new(MemoryStorage::new(base));
    let chain = ThreeFiles { base, middle, middle_format: Format::Qcow2, image };
    let below = ThreeFiles { image: Arc::clone(&chain.middle), ..chain.clone() };
    let disk = block_on(async {
        for chain in [&below, &chain] {
            let image = chain.open(true).await?;
            for _ in 0..random.below(20) {
                let at = random.index(SECTORS);
                let len = SECTOR * (1 + random.index(40)).min(SECTORS - at);
                let at = (at * SECTOR) as u64;
                match random.below(4) {
                    0 => image.write_zeroes_at(at, len as u64, ZeroMode::MayUnmap).await?,
                    1 if kind.version == Version::V3 => image.discard_at(at, len as u64).await?,
                    _ => image.write_at(&vec![byte(random); len], at).await?,
                }
            }
            image.close().await?;
        }
        let image = chain.open(false).await?;
        let mut disk = vec![0; LEN];
        image.read_at(&mut disk, 0).await?;
        Ok::<_, Error>(disk)
    });
    (chain, disk.unwrap())
}

/// Streams until all is copied, giving steps up now and then.
async fn stream<S: Storage>(
    image: &Image<S>,
    base: bool,
    random: &mut Random,
    progress: &Progress,
) -> Result<()> {
    let mut stream = image.stream(base.then_some(BASE))?;
    loop {
        progress.note();
        if random.chance(200) {
            let end = given_up(stream.step(), random.below(40)).await;
            if matches!(end.transpose()?, Some(None)) {
                return Ok(());
            }
            continue;
        }
        if random.chance(50) {
            stream = image.stream(base.then_some(BASE))?;
        }
        if stream.step().await?.is_none() {
            return Ok(());
        }
    }
}

/// What is left of the image, read with what it names below it.
fn look(
    chain: &ThreeFiles<Arc<MemoryStorage>>,
    left: &SimStorage,
    model: &Model,
) -> std::result::Result<bool, String> {
    let left = Arc::new(MemoryStorage::new(left.to_vec()));
    check(&left)?;
    let chain = ThreeFiles { image: left, ..chain.clone() };
    let read = block_on(async {
        let image = chain.open(false).await?;
        let mut disk = vec![0; LEN];
        image.read_at(&mut disk, 0).await?;
        let named = image.header().and_then(|header| header.backing_file.clone());
        Ok::<_, Error>((disk, named.as_deref() != Some(b"middle")))
    });
    let (disk, is_done) = read.map_err(|error| error.to_string())?;
    model.allows(&disk).map(|()| is_done)
}

/// One world: a stream and writers, with the power going at some step, and another stream. Returns whether the first one
/// came to its end.
fn live(seed: u64) -> std::result::Result<bool, String> {
    let executor = Executor::new(seed);
    let mut random = executor.random();
    let kind = kind(&mut random);
    let (chain, disk) = make(&mut random, kind);
    let base = random.toss();
    let simulated =
        |storage: &MemoryStorage| SimStorage::new(&executor, storage.to_vec(), Faults::none());
    let sim = ThreeFiles {
        base: simulated(&chain.base),
        middle: simulated(&chain.middle),
        middle_format: chain.middle_format,
        image: simulated(&chain.image),
    };
    let model = RefCell::new(Model::new(&disk));
    let crash_at = if random.toss() { u64::MAX } else { random.below(STEPS_MAX) };
    let (mut writing, mut streaming, mut changing) = (random.fork(), random.fork(), random.fork());
    let progress = executor.progress();
    let (mut steps, mut wrong) = (0, None);
    let stop = || {
        steps += 1;
        if random.chance(20) {
            let seen = look(&chain, &sim.image.crash_state(), &model.borrow());
            wrong = seen.err().map(|what| format!("at step {steps}: {what}"));
        }
        steps >= crash_at || wrong.is_some()
    };
    let work = async {
        let image = sim.open(true).await?;
        let (streamed, written, changed) = join3(
            stream(&image, base, &mut streaming, &progress),
            write(&image, &model, &mut writing),
            reconfigure(&image, &mut changing),
        )
        .await;
        streamed.and(written).and(changed)?;
        image.close().await
    };
    let ended = executor.run_until(work, stop).map_err(|stuck| stuck.to_string())?;
    if let Some(wrong) = wrong {
        return Err(wrong);
    }
    let is_ended = ended.is_some();
    if let Some(result) = ended {
        result.map_err(|error| error.to_string())?;
    }
    let left = sim.image.crash();
    let is_done =
        look(&chain, &left, &model.borrow()).map_err(|what| format!("in the end: {what}"))?;
    if is_ended {
        let disk = model.borrow().now();
        *model.borrow_mut() = Model::new(&disk);
        let done = look(&chain, &left, &model.borrow());
        return done.map_err(|what| format!("after the close: {what}"));
    }
    if is_done {
        return Ok(true);
    }
    // Another one does the rest.
    let rest = ThreeFiles { image: left, ..sim.clone() };
    let rest =
        ThreeFiles { base: simulated(&chain.base), middle: simulated(&chain.middle), ..rest };
    let again = async {
        let image = rest.open(true).await?;
        stream(&image, base, &mut streaming, &progress).await?;
        image.close().await
    };
    executor.run(again).map_err(|stuck| stuck.to_string())?.map_err(|error| error.to_string())?;
    match look(&chain, &rest.image, &model.borrow()) {
        Ok(true) => Ok(false),
        Ok(false) => Err(format!("{kind:?}: the other stream has not come to its end")),
        Err(what) => Err(format!("after the other stream: {what}")),
    }
}

#[test]
fn power_loss_and_writers_find_each_byte_where_it_was() {
    let mut done = 0;
    for_each_seed(SEEDS, |seed| {
        done += u64::from(live(seed).unwrap_or_else(|what| panic!("seed {seed}: {what}")));
    });
    println!("{done} of {SEEDS} streams came to their end at once");
}

#[test]
fn threads_write_while_it_goes_on() {
    let world = Executor::new(7);
    let mut random = world.random();
    for kind in [
        Kind { cluster_size: 4096, extended_l2: false, version: Version::V3 },
        Kind { cluster_size: 16384, extended_l2: true, version: Version::V3 },
        Kind { cluster_size: 512, extended_l2: false, version: Version::V2 },
    ] {
        for base in [false, true] {
            let (chain, mut disk) = make(&mut random, kind);
            let image = Arc::new(block_on(chain.open(true)).unwrap());
            let executor = async_executor::Executor::new();
            let writer = |task: usize| {
                let image = Arc::clone(&image);
                async move {
                    for sector in (task..SECTORS).step_by(7) {
                        let bytes = [sector as u8 | 1; SECTOR];
                        image.write_at(&bytes, (sector * SECTOR) as u64).await.unwrap();
                    }
                }
            };
            let tasks: Vec<_> = (0..3).map(|task| executor.spawn(writer(task))).collect();
            let streaming = Arc::clone(&image);
            let streamer = executor.spawn(async move {
                let mut stream = streaming.stream(base.then_some(BASE)).unwrap();
                while stream.step().await.unwrap().is_some() {}
            });
            beside_threads(&executor, 2, || {
                block_on(executor.run(join(futures::future::join_all(tasks), streamer)))
            });
            block_on(image.close()).unwrap();
            for sector in (0..SECTORS).filter(|sector| sector % 7 < 3) {
                disk[sector * SECTOR..][..SECTOR].fill(sector as u8 | 1);
            }
            let dir = tempfile::tempdir().unwrap();
            for (name, bytes) in
                [("image", chain.image.to_vec()), ("base", chain.base.to_vec()), ("disk", disk)]
            {
                std::fs::write(dir.path().join(name), bytes).unwrap();
            }
            qemu::img(dir.path(), ["check", "image"]);
            qemu::img(dir.path(), ["compare", "-f", "qcow2", "-F", "raw", "image", "disk"]);
            let info = qemu::img(dir.path(), ["info", "image"]);
            assert_eq!(info.contains("backing file: base"), base, "{info}");
            assert!(!info.contains("middle"), "{info}");
        }
    }
}

#[test]
fn what_cannot_be_streamed_is_refused() {
    let world = Executor::new(1);
    let kind = Kind { cluster_size: 4096, extended_l2: false, version: Version::V3 };
    let (chain, _) = make(&mut world.random(), kind);
    block_on(async {
        let image = chain.open(false).await.unwrap();
        assert!(matches!(image.stream(None), Err(Error::ReadOnly(_))));
        let image = chain.open(true).await.unwrap();
        for depth in [0, 1, 3] {
            let refused = image.stream(Some(StreamBase { depth, ..BASE })).unwrap_err();
            let text = format!("the layer at depth {depth} is not below the backing file");
            assert!(refused.to_string().ends_with(&text), "{refused}");
        }
        let mut stream = image.stream(None).unwrap();
        image.create_snapshot(&NewSnapshot::new("a")).await.unwrap();
        let end = loop {
            match stream.step().await {
                Ok(Some(_)) => {}
                end => break end,
            }
        };
        assert!(matches!(end, Err(Error::InvalidArgument(_))), "{end:?}");
        assert!(matches!(image.stream(None), Err(Error::InvalidArgument(_))));
        let header = image.header().unwrap();
        assert_eq!(header.backing_file.as_deref(), Some(&b"middle"[..]));
    });
}
