//! The fear: a commit that dies in the middle, with several pieces on their way to the base, or with half of the image made
//! empty before the base has what it held. Read through the image, the disk must be the same at every moment, whatever a
//! power loss leaves of the two files; and the next commit must end what the last one began.

use std::sync::Arc;

use cowshed::image::check::{CheckOptions, check_storage};
use cowshed::image::{
    Answer, CreateOptions, ExtentKind, Gate, Image, OpenOptions, Reference, Source, WriteOptions,
    ZeroMode, create,
};
use cowshed::sim::{Executor, Faults, Random, SimStorage};
use cowshed::storage::{MemoryStorage, Storage};
use cowshed::{Error, Result};
use futures::executor::block_on;

use super::engine::Frozen;

/// How many commits are looked at where nobody says otherwise.
const SEEDS_DEFAULT: u64 = 60;

/// Within how many seeds a commit is found out that does not wait for the base.
const SEEDS_HASTY: u64 = 30;

/// The length of the disk, in bytes: fragments enough for several steps of several pieces.
const LEN: usize = 64 * 4096;

/// About as many steps as a long commit takes.
const STEPS_MAX: u64 = 400;

/// An image and the one below it.
#[derive(Clone)]
struct Pair<S> {
    image: S,
    base: S,
}

/// Opens what lies below an image, or does without.
struct Below<S>(Option<S>);

impl<S: Storage + Clone> Gate for Below<S> {
    type Storage = S;

    async fn open(&self, _reference: &Reference<'_>) -> Result<Answer<S>> {
        Ok(match &self.0 {
            Some(base) => Answer::Open(Source::qcow2(base.clone(), "base")),
            None => Answer::Zeros,
        })
    }
}

async fn open<S: Storage + Clone>(storage: &S, below: Option<&S>, write: bool) -> Result<Image<S>> {
    let mut options = OpenOptions::default();
    options.write = write.then(WriteOptions::default);
    let source = Source::qcow2(storage.clone(), "image");
    Ok(Image::open(source, &Below(below.cloned()), options).await?.image)
}

/// What the command does. A hasty one does not wait until the base has everything durably.
async fn commit(pair: &Pair<SimStorage>, hasty: bool) -> Result<()> {
    let image = open(&pair.image, None, true).await?;
    let base = open(&pair.base, None, true).await?;
    let mut merge = image.merge_into(&base).await?;
    while merge.step().await?.is_some_and(|done| !hasty || done < LEN as u64) {}
    drop(merge);
    if !hasty {
        base.close().await?;
    }
    image.make_empty().await?;
    image.close().await
}

fn new(cluster_bits: u32, backing: bool) -> Arc<[u8]> {
    let mut options = CreateOptions::new(LEN as u64);
    options.cluster_size = 1 << cluster_bits;
    options.backing_file = backing.then(|| b"base".to_vec());
    options.backing_format = backing.then(|| b"qcow2".to_vec());
    let storage = MemoryStorage::default();
    block_on(create(&storage, None, &options)).unwrap();
    storage.into_vec().into()
}

/// Two images with something of everything in them, and the disk.
fn make(executor: &Executor<'_>, random: &mut Random) -> (Pair<SimStorage>, Vec<u8>) {
    let bits = |random: &mut Random| [9, 12, 16][random.index(3)];
    let disk = |bytes| SimStorage::new(executor, bytes, Faults::none());
    let pair = Pair { base: disk(new(bits(random), false)), image: disk(new(bits(random), true)) };
    let made = async {
        let base = open(&pair.base, None, true).await?;
        let mut at = 0;
        while at < LEN {
            let len = (512 * (1 + random.index(40))).min(LEN - at);
            if random.chance(700) {
                base.write_at(&vec![random.bits() as u8 | 1; len], at as u64).await?;
            }
            at += len;
        }
        base.close().await?;
        let image = open(&pair.image, Some(&pair.base), true).await?;
        at = 0;
        while at < LEN {
            let len = (512 * (1 + random.index(16))).min(LEN - at);
            match random.below(3) {
                0 => image.write_at(&vec![random.bits() as u8; len], at as u64).await?,
                1 => image.write_zeroes_at(at as u64, len as u64, ZeroMode::MayUnmap).await?,
                _ => {}
            }
            at += len;
        }
        let mut bytes = vec![0; LEN];
        image.read_at(&mut bytes, 0).await?;
        image.close().await?;
        Ok::<_, Error>(bytes)
    };
    let bytes = executor.run(made).unwrap().unwrap();
    (pair, bytes)
}

/// Looks at what is left of both files.
fn look(left: &Pair<SimStorage>, expected: &[u8]) -> std::result::Result<(), String> {
    let frozen = |disk: &SimStorage| Frozen(disk.to_vec().into());
    let (image, base) = (frozen(&left.image), frozen(&left.base));
    block_on(async {
        for file in [&image, &base] {
            let report = check_storage(file, &CheckOptions::default(), &mut ()).await?;
            if report.corruptions + report.check_errors > 0 {
                return Ok(Err(format!("{report:?}")));
            }
        }
        let mut bytes = vec![0; expected.len()];
        open(&image, Some(&base), false).await?.read_at(&mut bytes, 0).await?;
        let differs = bytes.iter().zip(expected).position(|(now, then)| now != then);
        Ok(differs.map_or(Ok(()), |at| Err(format!("the disk differs at {at:#x}"))))
    })
    .unwrap_or_else(|error: Error| Err(error.to_string()))
}

/// A commit with the power going at some step of it, and another one. Returns how many states were looked at.
fn live(seed: u64, hasty: bool) -> std::result::Result<u64, String> {
    let executor = Executor::new(seed);
    let mut random = executor.random();
    let (pair, expected) = make(&executor, &mut random);
    let (mut steps, mut states, mut wrong) = (0, 0, None);
    let crash_at = if random.toss() { u64::MAX } else { random.below(STEPS_MAX) };
    let often = 50 + random.below(300) as u32;
    let stop = || {
        steps += 1;
        if random.chance(often) {
            let left = Pair { image: pair.image.crash_state(), base: pair.base.crash_state() };
            states += 1;
            let seen = look(&left, &expected);
            wrong = seen.err().map(|what| format!("at step {steps}: {what}"));
        }
        steps >= crash_at || wrong.is_some()
    };
    let ended = executor.run_until(commit(&pair, hasty), stop).map_err(|it| it.to_string())?;
    if let Some(wrong) = wrong {
        return Err(wrong);
    }
    if let Some(result) = ended {
        result.map_err(|error| error.to_string())?;
    }
    let left = Pair { image: pair.image.crash(), base: pair.base.crash() };
    look(&left, &expected).map_err(|what| format!("after the power loss: {what}"))?;

    let again = executor.run(commit(&left, false)).map_err(|stuck| stuck.to_string())?;
    again.map_err(|error| format!("the next commit: {error}"))?;
    look(&left, &expected).map_err(|what| format!("after the next commit: {what}"))?;
    let (image, base) = (left.image.to_vec(), left.base.to_vec());
    let alone = block_on(async {
        let base = open(&Frozen(base.into()), None, false).await?;
        let mut bytes = vec![0; LEN];
        base.read_at(&mut bytes, 0).await?;
        let image = open(&Frozen(image.into()), None, false).await?;
        let extent = image.map(0, LEN as u64).await?;
        Ok::<_, Error>((bytes, extent))
    });
    let (bytes, extent) = alone.map_err(|error| error.to_string())?;
    if bytes != expected {
        return Err("the base is not the disk".into());
    }
    match extent.kind {
        ExtentKind::Unallocated { .. } if extent.len == LEN as u64 => Ok(states),
        _ => Err(format!("the image is not empty: {extent:?}")),
    }
}

#[test]
fn commit_that_dies_at_any_step_leaves_the_disk_as_it_was() {
    let seeds = super::number("COWSHED_SIM_SEEDS").unwrap_or(SEEDS_DEFAULT);
    let mut states = 0;
    for seed in 0..seeds {
        states += live(seed, false).unwrap_or_else(|what| panic!("seed {seed}: {what}"));
    }
    println!("{seeds} commits, {states} states after a power loss");
    assert!(states > seeds, "{states}");
}

#[test]
fn commit_that_does_not_wait_for_the_base_is_found_out() {
    let found = (0..SEEDS_HASTY).find_map(|seed| live(seed, true).err());
    println!("{}", found.expect("a hasty commit is not found out"));
}
