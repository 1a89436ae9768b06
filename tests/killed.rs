//! The fear: a program that writes to an image is killed, and the image is damaged or has forgotten what was flushed.
//!
//! This test runs itself again as a child, which writes through the engine from several tasks at once, tells what it is
//! about to do and what is done, and is killed at a random moment: many times, each time on the image that the one before
//! has left. After each, QEMU looks: `qemu-img check` finds nothing worse than leaked clusters, and every sector of the
//! disk holds what was flushed last or something that was written to it since. Power loss, where less survives than what
//! the kernel was told, is the simulator's.
//!
//! A program of its own, which is its child, too.

#![cfg(not(target_family = "wasm"))]
#![cfg(all(target_os = "linux", feature = "file"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::cast_possible_truncation)]

mod support;

use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use cowshed::image::{Format, Image, OpenOptions, RefuseAll, WriteOptions, ZeroMode};
use cowshed::rt::{DiskStorage, FileOptions, open_storage};
use support::qemu::{output, qemu_img, run};

const SECTOR: usize = 512;
const SIZE: usize = 16 << 20;
const SECTORS: usize = SIZE / SECTOR;
/// Tasks own pieces of this many sectors in turn. Three quarters of a small cluster's, so that tasks meet in clusters.
const PIECE: usize = 24;
const TASKS: usize = 4;

/// xorshift64*: small, and the same on every machine.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % n as u64) as usize
    }
}

/// What sector `sector` holds that was written by operation `tag`, which is not 0.
fn sector_bytes(tag: u64, sector: usize) -> [u8; SECTOR] {
    let mut bytes = [tag as u8 ^ 0x5a; SECTOR];
    bytes[..8].copy_from_slice(&tag.to_le_bytes());
    bytes[8..16].copy_from_slice(&(sector as u64).to_le_bytes());
    bytes
}

/// The operation that wrote these bytes: 0 if they are zeros, `None` if none did.
fn tag_of(bytes: &[u8], sector: usize) -> Option<u64> {
    if bytes.iter().all(|&byte| byte == 0) {
        return Some(0);
    }
    let tag = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    (bytes == sector_bytes(tag, sector)).then_some(tag)
}

// ---- The child

/// How the child is told what to do.
const IMAGE: &str = "COWSHED_KILLED_IMAGE";
const CHILD_SEED: &str = "COWSHED_KILLED_SEED";
const FIRST_TAG: &str = "COWSHED_KILLED_FIRST_TAG";

fn open(path: &Path, write: bool) -> impl Future<Output = Image<DiskStorage>> {
    let storage = open_storage(path, &FileOptions::new().writable(write)).unwrap();
    let mut options = OpenOptions::default();
    options.write = write.then(WriteOptions::default);
    // Small caches: tables are written back because there is no room, too.
    options.cache.l2_cache_size = Some(16 << 10);
    let source = storage.into_source(Format::Qcow2);
    async move { Image::open(source, &RefuseAll::new(), options).await.unwrap().image }
}

/// One line at a time reaches the parent as a whole, or not at all.
fn tell(line: &str) {
    let mut line = line.to_owned();
    line.push('\n');
    rustix::io::write(std::io::stdout(), line.as_bytes()).unwrap();
}

/// What is not a test but the program that is killed.
#[test]
#[ignore = "run by the other tests of this file"]
fn child() {
    let Some(path) = std::env::var_os(IMAGE) else { return };
    let number = |name| std::env::var(name).unwrap().parse::<u64>().unwrap();
    let (seed, first_tag) = (number(CHILD_SEED), number(FIRST_TAG));
    let work = async move {
        let image = open(&PathBuf::from(path), true).await;
        let next_tag = std::cell::Cell::new(first_tag + 1);
        let task = |task: usize| {
            let (image, next_tag) = (&image, &next_tag);
            async move {
                let mut random = Random(seed.wrapping_mul(8) + task as u64 + 1);
                loop {
                    change(image, next_tag, &mut random, task).await;
                }
            }
        };
        tell("ready");
        futures::future::join_all((0..TASKS).map(task)).await;
    };
    // Where writes into the page cache are made at once, and where not all are.
    match seed % 2 {
        0 => cowshed::rt::block_on(work),
        _ => futures::executor::block_on(work),
    }
}

async fn change(
    image: &Image<DiskStorage>,
    next_tag: &std::cell::Cell<u64>,
    random: &mut Random,
    task: usize,
) {
    let tag = next_tag.replace(next_tag.get() + 1);
    let pieces = SECTORS / PIECE / TASKS;
    let first = (random.below(pieces) * TASKS + task) * PIECE;
    let start = random.below(PIECE);
    let count = 1 + random.below(PIECE - start);
    let (sector, what) = (first + start, random.below(100));
    let (offset, len) = ((sector * SECTOR) as u64, (count * SECTOR) as u64);
    if what < 8 {
        tell(&format!("flush {tag}"));
        image.flush().await.unwrap();
    } else if what < 16 {
        tell(&format!("zero {tag} {sector} {count}"));
        let mode = if what < 12 { ZeroMode::KeepSpace } else { ZeroMode::MayUnmap };
        image.write_zeroes_at(offset, len, mode).await.unwrap();
    } else if what < 24 {
        tell(&format!("discard {tag} {sector} {count}"));
        image.discard_at(offset, len).await.unwrap();
    } else {
        tell(&format!("write {tag} {sector} {count}"));
        let data: Vec<u8> = (sector..sector + count).flat_map(|s| sector_bytes(tag, s)).collect();
        image.write_at(&data, offset).await.unwrap();
    }
    tell(&format!("done {tag}"));
}

// ---- The parent

/// What may be in the sectors.
struct Model {
    /// The changes of each sector, oldest first, from the last one that is certain on.
    sectors: Vec<Vec<Change>>,
    last_tag: u64,
    flushes: u64,
}

#[derive(Clone)]
struct Change {
    by: u64,
    /// What reading gives: the tag of a write, or 0 for zeros.
    value: u64,
    /// A discard may leave what was there.
    is_sure: bool,
}

impl Model {
    fn new() -> Self {
        let zeros = Change { by: 0, value: 0, is_sure: true };
        Self { sectors: vec![vec![zeros]; SECTORS], last_tag: 0, flushes: 0 }
    }

    /// Takes in what a child told before it was killed.
    fn follow(&mut self, told: &str) {
        // At which line operations were done, and flushes began.
        let mut done: BTreeMap<u64, usize> = BTreeMap::new();
        let mut flushes: BTreeMap<u64, usize> = BTreeMap::new();
        for (at, line) in told.lines().enumerate() {
            let words: Vec<&str> = line.split(' ').collect();
            let number = |word: usize| words[word].parse::<usize>().unwrap();
            match words[0] {
                "write" | "zero" | "discard" => {
                    let tag = number(1) as u64;
                    self.last_tag = self.last_tag.max(tag);
                    let value = if words[0] == "write" { tag } else { 0 };
                    let change = Change { by: tag, value, is_sure: words[0] != "discard" };
                    for changes in &mut self.sectors[number(2)..number(2) + number(3)] {
                        changes.push(change.clone());
                    }
                }
                "flush" => {
                    self.last_tag = self.last_tag.max(number(1) as u64);
                    flushes.insert(number(1) as u64, at);
                }
                "done" => {
                    let tag = number(1) as u64;
                    done.insert(tag, at);
                    let Some(&began) = flushes.get(&tag) else { continue };
                    self.flushes += 1;
                    for changes in &mut self.sectors {
                        let is_certain = |change: &Change| {
                            let is_done = done.get(&change.by).is_some_and(|&at| at < began);
                            change.is_sure && (change.by == 0 || is_done)
                        };
                        let last = changes.iter().rposition(is_certain).unwrap_or(0);
                        changes.drain(..last);
                    }
                }
                // What the test harness says of itself.
                _ => {}
            }
        }
    }

    /// Holds the disk against what it may be, and takes it for what it is.
    fn check(&mut self, disk: &[u8]) {
        for (sector, bytes) in disk.chunks_exact(SECTOR).enumerate() {
            let changes = &mut self.sectors[sector];
            let allowed: Vec<u64> = changes.iter().map(|change| change.value).collect();
            let value = tag_of(bytes, sector).unwrap_or_else(|| {
                panic!("sector {sector} holds what was never written to it: {:x?}", &bytes[..32])
            });
            assert!(
                allowed.contains(&value),
                "sector {sector} holds what operation {value} wrote; it may be of {allowed:?}"
            );
            // From now on it is that.
            *changes = vec![Change { by: 0, value, is_sure: true }];
        }
    }
}

/// Runs the child until it has told so many lines and `delay` longer, and kills it. Returns what it told.
fn run_and_kill(path: &Path, seed: u64, first_tag: u64, lines: usize, delay: Duration) -> String {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--ignored", "--nocapture", "--test-threads=1"])
        .env(IMAGE, path)
        .env(CHILD_SEED, seed.to_string())
        .env(FIRST_TAG, first_tag.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = child.stdout.take().unwrap();
    let mut told = Vec::new();
    let mut buf = [0; 4096];
    // It tells without end, so this does not wait for long.
    while told.iter().filter(|&&byte| byte == b'\n').count() < lines {
        match output.read(&mut buf).unwrap() {
            0 => break,
            len => told.extend_from_slice(&buf[..len]),
        }
    }
    std::thread::sleep(delay);
    child.kill().unwrap();
    // What it told before it died is still in the pipe.
    output.read_to_end(&mut told).unwrap();
    let status = child.wait().unwrap();
    let told = String::from_utf8(told).unwrap();
    assert_eq!(status.signal(), Some(9), "the child was not killed but ended: {status}\n{told}");
    told
}

/// The kernel closes the files of an io_uring some time after their process has died; until then they are locked.
fn wait_for_the_lock(path: &Path) {
    for _ in 0..1000 {
        match open_storage(path, &FileOptions::new().writable(true)) {
            Ok(_) => return,
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ResourceBusy, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("the image is still locked");
}

/// Nothing worse than leaks.
fn check_with_qemu(path: &Path) {
    let check = output(qemu_img().args(["check", "-q", "-f", "qcow2"]).arg(path));
    assert!(
        matches!(check.status.code(), Some(0 | 3)),
        "{}{}",
        String::from_utf8_lossy(&check.stdout),
        String::from_utf8_lossy(&check.stderr)
    );
}

fn read_with_qemu(path: &Path) -> Vec<u8> {
    let raw = path.with_extension("raw");
    run(qemu_img().args(["convert", "-f", "qcow2", "-O", "raw"]).arg(path).arg(&raw));
    std::fs::read(raw).unwrap()
}

fn read_with_the_engine(path: &Path) -> Vec<u8> {
    let mut disk = vec![0; SIZE];
    cowshed::rt::block_on(async {
        let image = open(path, false).await;
        image.read_at(&mut disk, 0).await.unwrap();
        image.close().await.unwrap();
    });
    disk
}

/// Kills writers to one image, one after the other.
fn kill_many(options: &str, snapshot: bool, rounds: u64) {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().join("disk.qcow2");
    let size = SIZE.to_string();
    run(qemu_img().args(["create", "-q", "-f", "qcow2", "-o", options]).arg(&path).arg(size));
    let mut model = Model::new();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for round in 0..rounds {
        let (lines, delay) = (10 + random.below(500), random.below(5000) as u64);
        let delay = Duration::from_micros(delay);
        let told = run_and_kill(&path, round, model.last_tag, lines, delay);
        model.follow(&told);
        wait_for_the_lock(&path);
        check_with_qemu(&path);
        let disk = read_with_qemu(&path);
        model.check(&disk);
        assert!(read_with_the_engine(&path) == disk, "round {round}: the engine reads otherwise");
        if snapshot && round % 4 == 1 {
            // From here on clusters are shared.
            run(qemu_img().args(["snapshot", "-c", &format!("round{round}")]).arg(&path));
        }
    }
    // Otherwise the children have hardly done anything.
    assert!(model.last_tag > rounds * 20 && model.flushes > rounds, "{}", model.last_tag);
}

#[test]
fn killed_writer_leaves_leaks_at_worst_and_what_was_flushed() {
    kill_many("cluster_size=64k", false, 25);
}

#[test]
fn killed_writer_of_small_clusters_leaves_leaks_at_worst_and_what_was_flushed() {
    kill_many("cluster_size=512,refcount_bits=1", false, 15);
    kill_many("cluster_size=4k", false, 15);
}

#[test]
fn killed_writer_of_subclusters_leaves_leaks_at_worst_and_what_was_flushed() {
    kill_many("cluster_size=64k,extended_l2=on", false, 20);
}

#[test]
fn killed_writer_of_shared_clusters_leaves_leaks_at_worst_and_what_was_flushed() {
    kill_many("cluster_size=4k", true, 12);
    kill_many("cluster_size=64k", true, 12);
}
