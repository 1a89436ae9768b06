//! Measures the engine: one workload a call, one line of `key=value` as the result.
//!
//! ```text
//! qbench cowshed WORKLOAD FILE [key=value ...]
//!   WORKLOAD: open | read | write | toraw | fromraw | check | map | pass | resident
//!   keys: size= (bytes addressed, default the virtual size) bs= n= qd= threads= stride= (in blocks; odd and large goes
//!         all over) direct=1 l2=BYTES in=FILE out=FILE warm=1 (once unmeasured before) off= (where `open` reads)
//!         flushevery=N (requests) compress=1 (`fromraw` writes compressed clusters) clean=MS (between passes of the
//!         cleaner, which runs on a thread of its own; 0, the default here, is none)
//! ```
//!
//! `pass` needs no file (say `-`): it fills a cache of `l2=` bytes, 32M by default, and measures the pass that finds all of it in
//! use, and the one that gives all of it back.
//!
//! `resident` reads a block every `stride=` blocks (8192 if not given: one in each slice of L2 table, with clusters of 64 KiB and
//! the default slices), and says how large the process is in memory before, after, and after three intervals of the cleaner (`clean=`).
//!
//! `write` overwrites or allocates, as the image has it; `fromraw` copies what is not zero. The flush at the end of both
//! is measured apart, as `flush=`.
//!
//! It speaks the command line of the benchmark harness that measures other engines on the same files, so that all are
//! measured in one run; `docs/performance.md` says how. Requests are driven as an embedder without a runtime would:
//! the crate's `block_on`, which waits in an io_uring, on each thread; one image for all.

// Files are native; `wasm-pack test` compiles every target all the same.
#![cfg_attr(target_family = "wasm", no_main)]
#![cfg(not(target_family = "wasm"))]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a measurement that fails stops")]
#![allow(clippy::disallowed_methods, clippy::cast_precision_loss, reason = "it measures time")]

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::os::unix::fs::FileExt;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use cowshed::cache::{CleanerControl, TableCache};
use cowshed::format::HostOffset;
use cowshed::image::check::CheckOptions;
use cowshed::image::{ExtentKind, Format, Identity, Image, OpenOptions, Source, WriteOptions};
use cowshed::rt::{DiskStorage, FileOptions, FolderGate, ThreadWorkers, block_on, open_storage};
use cowshed::storage::{Buf, MemoryStorage};
use cowshed::timer::Timer;
use futures::stream::{FuturesUnordered, StreamExt};

struct Arguments {
    workload: String,
    file: String,
    keys: HashMap<String, String>,
}

impl Arguments {
    fn number(&self, key: &str, default: u64) -> u64 {
        self.keys.get(key).map_or(default, |value| {
            let (digits, unit) = match value.to_ascii_lowercase().chars().last() {
                Some('k') => (&value[..value.len() - 1], 1 << 10),
                Some('m') => (&value[..value.len() - 1], 1 << 20),
                Some('g') => (&value[..value.len() - 1], 1 << 30),
                Some('t') => (&value[..value.len() - 1], 1 << 40),
                _ => (value.as_str(), 1),
            };
            digits.parse::<u64>().expect("a number") * unit
        })
    }

    fn writes(&self) -> bool {
        matches!(self.workload.as_str(), "write" | "fromraw")
    }

    fn report(&self, secs: f64, n: u64, bytes: u64, extra: &str) {
        self.report_with_flush(secs, 0.0, n, bytes, extra);
    }

    fn report_with_flush(&self, secs: f64, flush: f64, n: u64, bytes: u64, extra: &str) {
        println!(
            "engine=cowshed wl={} qd={} threads={} n={n} secs={secs:.6} flush={flush:.6} iops={:.0} mibs={:.1} \
             us_per_op={:.2} rss_kb={} {extra}",
            self.workload,
            self.number("qd", 1),
            self.number("threads", 1),
            n as f64 / secs,
            bytes as f64 / 1_048_576.0 / secs,
            secs * 1e6 / n as f64,
            memory_peak_kib(),
        );
    }
}

async fn open(arguments: &Arguments) -> Image<DiskStorage> {
    let options =
        FileOptions::new().direct(arguments.number("direct", 0) == 1).writable(arguments.writes());
    let storage = open_storage(&arguments.file, &options).expect("the image file");
    let (device, inode) = storage.identity();
    let source = Source {
        storage,
        format: Format::Qcow2,
        location: arguments.file.clone().into(),
        identity: Some(Identity(device, inode)),
    };
    let mut options = OpenOptions::default();
    options.workers = Some(Arc::new(ThreadWorkers::new()));
    if arguments.writes() {
        options.write = Some(WriteOptions::default());
    }
    if arguments.keys.contains_key("l2") {
        options.cache.l2_cache_size = Some(arguments.number("l2", 0));
    }
    let interval = Duration::from_millis(arguments.number("clean", 0));
    options.cache.cache_clean_interval = Some(interval);
    let gate = FolderGate::new(&arguments.file).expect("the image's folder");
    let opened = Image::open(source, &gate, options).await.expect("a qcow2 image");
    if let Some(cleaner) = opened.cleaner {
        std::thread::spawn(move || block_on(cleaner.run(ThreadTimer)));
    }
    opened.image
}

/// Sleeps on a thread of a pool.
struct ThreadTimer;

impl Timer for ThreadTimer {
    async fn sleep(&self, duration: Duration) {
        blocking::unblock(move || std::thread::sleep(duration)).await;
    }
}

/// Measures passes over a full cache, and what a thread that uses it meanwhile has to wait.
fn pass(arguments: &Arguments) {
    let len = arguments.number("l2", 32 << 20);
    for round in 0..arguments.number("n", 5) {
        let cache = &Arc::new(TableCache::new(len, SLICE_LEN_BYTES));
        (0..len).step_by(4096).for_each(|at| load(cache, at));
        let control = CleanerControl::new([Arc::clone(cache)], Duration::from_secs(1));
        let mut cleaner = pin!(control.start().expect("an interval").run(SecondPoll));
        let mut poll = || cleaner.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        let waits = &Waits::default();
        std::thread::scope(|scope| {
            scope.spawn(|| waits.use_cache(cache, len));
            let report = |name: &str, what: &dyn Fn() -> String| {
                waits.take();
                let what = what();
                let (hit, miss) = waits.take();
                println!("round={round} {name}: {what} hit_max_us={hit:.1} miss_max_us={miss:.1}");
            };
            report("idle", &|| {
                std::thread::sleep(Duration::from_millis(5));
                String::new()
            });
            let poll = RefCell::new(&mut poll);
            let pass = || one_pass(cache, &mut **poll.borrow_mut());
            report("loaded", &pass);
            (0..len).step_by(4096).for_each(|at| hit(cache, at));
            report("hit", &pass);
            report("unused", &pass);
            waits.over.store(true, Ordering::Relaxed);
        });
    }
}

const SLICE_LEN_BYTES: u64 = 4096;

fn load(cache: &TableCache, at: u64) {
    let storage = MemoryStorage::default();
    drop(block_on(cache.get(&storage, HostOffset::new(at))).expect("a slice of zeros"));
}

fn hit(cache: &TableCache, at: u64) {
    let _ = cache.hit(HostOffset::new(at), |slice| slice.word(0));
}

/// Polls the cleaner through one pass: how long its steps take together, and the longest of them, apart for those that sweep and
/// those that free.
fn one_pass(cache: &TableCache, poll: &mut dyn FnMut() -> Poll<()>) -> String {
    let mut times = [(0.0, 0.0_f64); 2];
    let before = cache.statistics();
    let mut held = before.bytes_held;
    while cache.statistics().passes == before.passes {
        let start = Instant::now();
        assert!(poll().is_pending());
        let micros = start.elapsed().as_secs_f64() * 1e6;
        let now = cache.statistics();
        let frees = now.bytes_held < held || now.passes > before.passes;
        let (sum, longest) = &mut times[usize::from(frees)];
        (*sum, *longest) = (*sum + micros, longest.max(micros));
        held = now.bytes_held;
    }
    let [(sweep, sweep_step), (free, free_step)] = times;
    format!(
        "sweep_us={sweep:.0} step_us={sweep_step:.0} free_us={free:.0} step_us={free_step:.0} held={held}"
    )
}

/// A timer that fires when it is polled again.
struct SecondPoll;

impl Timer for SecondPoll {
    async fn sleep(&self, _: Duration) {
        futures::pending!();
    }
}

/// The longest waits of a thread that uses the cache, in nanoseconds.
#[derive(Default)]
struct Waits {
    hit: AtomicU64,
    miss: AtomicU64,
    over: AtomicBool,
}

impl Waits {
    /// Hits and, more rarely, misses until it is over.
    fn use_cache(&self, cache: &TableCache, len: u64) {
        let nanos = |what: &dyn Fn()| {
            let start = Instant::now();
            what();
            u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX)
        };
        let mut next = len;
        while !self.over.load(Ordering::Relaxed) {
            self.miss.fetch_max(nanos(&|| load(cache, next)), Ordering::Relaxed);
            for _ in 0..200 {
                self.hit.fetch_max(nanos(&|| hit(cache, next)), Ordering::Relaxed);
            }
            next += SLICE_LEN_BYTES;
        }
    }

    /// Those since the last call, in microseconds.
    fn take(&self) -> (f64, f64) {
        let micros = |wait: &AtomicU64| wait.swap(0, Ordering::Relaxed) as f64 / 1e3;
        (micros(&self.hit), micros(&self.miss))
    }
}

/// Measures what a scan leaves in memory, and what is left of that when the cleaner has passed.
fn resident(image: &Image<DiskStorage>, arguments: &Arguments) {
    let status = || {
        let field = |name| status_kib(name) / 1024;
        format!("rss_mib={} anonymous_mib={}", field("VmRSS"), field("RssAnon"))
    };
    println!("opened: {}", status());
    let (block_len, stride) = (4096, arguments.number("stride", 8192));
    let mut buf = Buf::aligned(4096, 4096);
    let start = Instant::now();
    let mut count = 0;
    for offset in (0..image.virtual_size()).step_by(usize::try_from(block_len * stride).unwrap()) {
        block_on(image.read_at(&mut buf, offset)).expect("a read");
        count += 1;
    }
    println!("read: {} reads={count} secs={:.3}", status(), start.elapsed().as_secs_f64());
    std::thread::sleep(3 * Duration::from_millis(arguments.number("clean", 0)));
    println!("cleaned: {}", status());
}

/// This thread's share of the requests: every `threads`-th from `thread` on.
async fn requests(
    image: &Image<DiskStorage>,
    arguments: &Arguments,
    thread: u64,
    threads: u64,
) -> u64 {
    let block_len = arguments.number("bs", 4096);
    let blocks = arguments.number("size", image.virtual_size()) / block_len;
    let count = arguments.number("n", blocks) / threads;
    let depth = arguments.number("qd", 1).min(count).max(1);
    let stride = u128::from(arguments.number("stride", 1));
    let (writes, flush_every) = (arguments.writes(), arguments.number("flushevery", 0));
    let next = Cell::new(0);
    let worker = || async {
        let mut buf = Buf::aligned(usize::try_from(block_len).unwrap(), 4096);
        if writes {
            fill(&mut buf);
        }
        while next.get() < count {
            let turn = next.replace(next.get() + 1);
            let index = u128::from(turn * threads + thread);
            let block = u64::try_from(index * stride % u128::from(blocks)).unwrap();
            if writes {
                image.write_at(&buf, block * block_len).await.expect("a write");
            } else {
                image.read_at(&mut buf, block * block_len).await.expect("a read");
            }
            if flush_every > 0 && turn % flush_every == flush_every - 1 {
                image.flush().await.expect("a flush");
            }
        }
    };
    if depth == 1 {
        worker().await;
    } else {
        futures::future::join_all((0..depth).map(|_| worker())).await;
    }
    count
}

/// Copies the disk into a file. Neighbouring data is read together, whatever kind it is of, so that clusters are
/// inflated together.
async fn to_raw(image: &Image<DiskStorage>, out: &str) {
    let out = std::fs::File::create(out).unwrap();
    out.set_len(image.virtual_size()).unwrap();
    let mut buf = vec![0; 2 << 20];
    let mut copy = async |data: &std::ops::Range<u64>| {
        let mut offset = data.start;
        while offset < data.end {
            let len = usize::try_from((data.end - offset).min(buf.len() as u64)).unwrap();
            image.read_at(&mut buf[..len], offset).await.expect("a read");
            out.write_all_at(&buf[..len], offset).unwrap();
            offset += len as u64;
        }
    };
    let mut data = 0..0;
    let mut extents = image.extents(0, image.virtual_size()).unwrap();
    while let Some(extent) = extents.next().await.expect("a map") {
        let end = extent.offset + extent.len;
        if matches!(extent.kind, ExtentKind::Data { .. } | ExtentKind::Compressed { .. }) {
            data.end = end;
        } else {
            copy(&data).await;
            data = end..end;
        }
    }
    copy(&data).await;
}

/// Copies a file to the disk but for what is zeros, by clusters of 64 KiB.
async fn from_raw(image: &Image<DiskStorage>, arguments: &Arguments) -> u64 {
    const CLUSTER_LEN: usize = 64 << 10;
    let input = std::fs::File::open(&arguments.keys["in"]).unwrap();
    let len = input.metadata().unwrap().len();
    let compress = arguments.number("compress", 0) == 1;
    let in_flight_max = 16;
    let mut in_flight = FuturesUnordered::new();
    let mut buf = vec![0; 2 << 20];
    let mut offset = 0;
    while offset < len {
        let part = &mut buf[..usize::try_from((len - offset).min(2 << 20)).unwrap()];
        input.read_exact_at(part, offset).unwrap();
        let mut at = 0;
        while at < part.len() {
            let cluster = |at: usize| &part[at..part.len().min(at + CLUSTER_LEN)];
            let zeros = is_zeros(cluster(at));
            let start = at;
            at += CLUSTER_LEN;
            if compress {
                if !zeros {
                    let (data, at) = (cluster(start).to_vec(), offset + start as u64);
                    in_flight.push(async move { image.write_compressed_at(&data, at).await });
                }
                if in_flight.len() >= in_flight_max {
                    in_flight.next().await.unwrap().expect("a write");
                }
                continue;
            }
            while at < part.len() && is_zeros(cluster(at)) == zeros {
                at += CLUSTER_LEN;
            }
            if !zeros {
                let run = &part[start..at.min(part.len())];
                image.write_at(run, offset + start as u64).await.expect("a write");
            }
        }
        offset += part.len() as u64;
    }
    while let Some(result) = in_flight.next().await {
        result.expect("a write");
    }
    len
}

/// Bytes that nothing compresses.
fn fill(buf: &mut [u8]) {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for word in buf.chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.to_le_bytes()[..word.len()]);
    }
}

fn is_zeros(bytes: &[u8]) -> bool {
    let mut words = bytes.chunks_exact(16);
    words.by_ref().all(|word| word == [0; 16]) && words.remainder().iter().all(|&byte| byte == 0)
}

/// The most memory that this process had, in KiB.
fn memory_peak_kib() -> u64 {
    status_kib("VmHWM")
}

/// What the kernel says of this process's memory, in KiB.
fn status_kib(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with(field));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok()).unwrap_or(0)
}

/// Makes what was written durable; in how many seconds.
fn flush(image: &Image<DiskStorage>, arguments: &Arguments) -> f64 {
    let start = Instant::now();
    if arguments.writes() {
        block_on(image.flush()).expect("a flush");
    }
    start.elapsed().as_secs_f64()
}

fn main() {
    let mut words = std::env::args().skip(1);
    let (Some(_), Some(workload), Some(file)) = (words.next(), words.next(), words.next()) else {
        eprintln!(
            "usage: qbench cowshed open|read|write|toraw|fromraw|check|map|pass|resident FILE [key=value ...]"
        );
        std::process::exit(2);
    };
    let pair = |word: String| {
        let (key, value) = word.split_once('=').expect("key=value");
        (key.to_owned(), value.to_owned())
    };
    let arguments = &Arguments { workload, file, keys: words.map(pair).collect() };
    if arguments.workload == "pass" {
        return pass(arguments);
    }
    let start = Instant::now();
    let image = &block_on(open(arguments));
    let opened = start.elapsed();
    let threads = arguments.number("threads", 1);
    let start = Instant::now();
    match arguments.workload.as_str() {
        "open" => {
            let mut buf = [0; 4096];
            block_on(image.read_at(&mut buf, arguments.number("off", 0))).expect("a read");
            let secs = (opened + start.elapsed()).as_secs_f64();
            let extra =
                format!("open_us={} read_us={}", opened.as_micros(), start.elapsed().as_micros());
            arguments.report(secs, 1, 4096, &extra);
        }
        "read" | "write" => {
            if arguments.number("warm", 0) == 1 {
                block_on(requests(image, arguments, 0, 1));
            }
            let start = Instant::now();
            let count: u64 = if threads == 1 {
                block_on(requests(image, arguments, 0, 1))
            } else {
                std::thread::scope(|scope| {
                    let part = |thread| {
                        scope.spawn(move || block_on(requests(image, arguments, thread, threads)))
                    };
                    let parts: Vec<_> = (0..threads).map(part).collect();
                    parts.into_iter().map(|part| part.join().unwrap()).sum()
                })
            };
            let bytes = count * arguments.number("bs", 4096);
            let secs = start.elapsed().as_secs_f64();
            arguments.report_with_flush(secs, flush(image, arguments), count, bytes, "");
        }
        "toraw" => {
            block_on(to_raw(image, &arguments.keys["out"]));
            arguments.report(start.elapsed().as_secs_f64(), 1, image.virtual_size(), "");
        }
        "fromraw" => {
            let len = block_on(from_raw(image, arguments));
            let secs = start.elapsed().as_secs_f64();
            arguments.report_with_flush(secs, flush(image, arguments), 1, len, "");
        }
        "resident" => resident(image, arguments),
        "map" => {
            let extents = block_on(async {
                let mut extents = image.extents(0, image.virtual_size()).unwrap();
                let mut count = 0;
                while extents.next().await.expect("a map").is_some() {
                    count += 1;
                }
                count
            });
            arguments.report(start.elapsed().as_secs_f64(), extents, image.virtual_size(), "");
        }
        "check" => {
            let options = CheckOptions::default();
            let report = block_on(image.check(&options, &mut ())).expect("a check");
            assert!(report.is_clean(), "{report:?}");
            arguments.report(start.elapsed().as_secs_f64(), 1, image.virtual_size(), "");
        }
        other => {
            println!("unsupported");
            eprintln!("qbench: workload {other} is not supported");
            std::process::exit(1);
        }
    }
    block_on(image.close()).expect("a close");
}
