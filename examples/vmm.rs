//! A disk of a virtual machine: several queues on several threads, one image, its cleaner, and a clean end on Ctrl-C. Where
//! the author of a virtual machine monitor may start from.
//!
//! ```text
//! cargo run --release --example vmm -- disk.qcow2 [QUEUES [SECONDS]]
//! ```
//!
//! It writes to the image, which is made if there is none (1 GiB). The guest is made up: each queue writes blocks of its own
//! and reads them back, as a driver would through virtio-blk. What is not made up is the rest:
//!
//! - **One image, any number of queues.** [`Image`] is used through `&self`; requests of different queues meet in no lock of
//!   the engine's but where they change the same clusters.
//! - **One executor, as many threads as there are queues.** The cleaner is one more task among those of the queues.
//! - **The end.** A signal ends the queues; [`Image::close`] waits for the requests in flight, stops and joins the cleaner,
//!   writes back what is dirty, and flushes. Only then the threads go.

// Files are native; `wasm-pack test` compiles every target all the same.
#![cfg_attr(target_family = "wasm", no_main)]
#![cfg(not(target_family = "wasm"))]
#![allow(clippy::disallowed_methods, clippy::print_stdout, reason = "a program of its own")]

use std::future::Future;
use std::io::{self, Read as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use async_executor::Executor;
use async_io::{Async, Timer};
use cowshed::image::{CreateOptions, Format, Image, OpenOptions, WriteOptions, create};
use cowshed::rt::{DiskStorage, FileOptions, FolderGate, SmolTimer, block_on, open_storage};
use futures::FutureExt;
use futures::channel::oneshot;
use futures::future::{Shared, select};

/// What any part of the program may say when it fails.
pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;

/// The length of a block, in bytes.
const BLOCK_LEN: u64 = 4096;

/// The size of a new image, in bytes.
const DISK_LEN: u64 = 1 << 30;

/// What a run has done.
#[derive(Debug)]
pub(crate) struct Done {
    /// Blocks that were written and read back.
    pub(crate) blocks: u64,
    /// Look-ups of the metadata caches that found their slice, and that did not.
    pub(crate) hits: u64,
    pub(crate) misses: u64,
    /// Passes of the cleaner over the cache of L2 tables.
    pub(crate) passes: u64,
}

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args_os().skip(1);
    let path: PathBuf = arguments.next().ok_or("usage: vmm IMAGE [QUEUES [SECONDS]]")?.into();
    let mut number = |default: u64| match arguments.next() {
        None => Ok(default),
        Some(text) => text.to_string_lossy().parse().map_err(|_| "that is no number"),
    };
    let (queues, seconds) = (number(4)?, number(u64::MAX)?);
    let signal = interrupted()?;
    let end = async move {
        let time = async move {
            match seconds {
                u64::MAX => futures::future::pending().await,
                seconds => Timer::after(Duration::from_secs(seconds)).await,
            }
        };
        select(Box::pin(signal), Box::pin(time)).await;
    };
    let done = run(&path, queues, Duration::from_secs(600), end)?;
    let Done { blocks, hits, misses, passes } = done;
    println!("{blocks} blocks; {hits} hits and {misses} misses of the caches, {passes} passes");
    Ok(())
}

/// Serves `queues` queues until `end` completes; the caches are cleaned every `interval`.
///
/// # Errors
/// What the image and its file say. What was written is in the file unless the close fails.
pub(crate) fn run(
    path: &Path,
    queues: u64,
    interval: Duration,
    end: impl Future<Output = ()>,
) -> Result<Done, Failure> {
    let executor = Arc::new(Executor::new());
    // The threads run tasks until this is dropped.
    let (running, stopped) = oneshot::channel::<()>();
    let stopped = stopped.map(drop).shared();
    thread::scope(|scope| {
        for _ in 0..queues {
            let (executor, stopped) = (Arc::clone(&executor), stopped.clone());
            scope.spawn(move || block_on(executor.run(stopped)));
        }
        let done = block_on(serve(&executor, path, queues, interval, end));
        drop(running);
        done
    })
}

async fn serve(
    executor: &Executor<'static>,
    path: &Path,
    queues: u64,
    interval: Duration,
    end: impl Future<Output = ()>,
) -> Result<Done, Failure> {
    let storage = open_storage(path, &FileOptions::new().writable(true).create(true))?;
    if storage.file().metadata()?.len() == 0 {
        create(&storage, None, &CreateOptions::new(DISK_LEN)).await?;
    }
    let mut options = OpenOptions::default();
    options.write = Some(WriteOptions::default());
    options.cache.cache_clean_interval = Some(interval);
    // The image may name backing files in its own folder; with `RefuseAll` it may name none.
    let gate = FolderGate::new(path)?;
    let opened = Image::open(storage.into_source(Format::Qcow2), &gate, options).await?;
    let image = Arc::new(opened.image);
    // It ends by itself when the image is closed.
    let cleaner = opened.cleaner.map(|cleaner| executor.spawn(cleaner.run(SmolTimer)));

    let (ending, ended) = oneshot::channel::<()>();
    let ended = ended.map(drop).shared();
    let tasks: Vec<_> = (0..queues)
        .map(|queue| executor.spawn(serve_queue(Arc::clone(&image), queue, queues, ended.clone())))
        .collect();
    end.await;
    drop(ending);

    let mut blocks = 0;
    let mut result = Ok(());
    for task in tasks {
        match task.await {
            Ok(count) => blocks += count,
            Err(error) => result = Err(error),
        }
    }
    // Whatever has failed before: what was written is to be in the file.
    image.close().await?;
    if let Some(cleaner) = cleaner {
        cleaner.await;
    }
    result?;
    let caches = image.statistics()[0];
    let (l2, refcount) = (caches.l2, caches.refcount);
    Ok(Done {
        blocks,
        hits: l2.hits + refcount.hits,
        misses: l2.misses + refcount.misses,
        passes: l2.passes,
    })
}

/// What one queue does until `ended`: every request is answered before it looks whether to go on.
async fn serve_queue(
    image: Arc<Image<DiskStorage>>,
    queue: u64,
    queues: u64,
    ended: Shared<impl Future<Output = ()>>,
) -> Result<u64, Failure> {
    let blocks = (image.virtual_size() / BLOCK_LEN / queues).max(1);
    let mut data = vec![0; BLOCK_LEN as usize];
    let mut read = data.clone();
    let mut count = 0;
    let mut place = queue;
    while ended.peek().is_none() && ended.clone().now_or_never().is_none() {
        // All over the queue's own blocks, which lie among those of the others.
        place =
            place.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let offset = ((place >> 33) % blocks * queues + queue) * BLOCK_LEN;
        data.fill(place.to_be_bytes()[0]);
        image.write_at(&data, offset).await?;
        image.read_at(&mut read, offset).await?;
        if read != data {
            return Err(
                format!("queue {queue} reads at {offset:#x} what it has not written").into()
            );
        }
        count += 1;
        // What a guest's flush does. It costs what the disk needs for it, so not after every block.
        if count % 1024 == 0 {
            image.flush().await?;
        }
    }
    Ok(count)
}

/// Completes when Ctrl-C is pressed, or the process is asked to end.
///
/// # Errors
/// What the system says.
pub(crate) fn interrupted() -> io::Result<impl Future<Output = ()>> {
    let (receiver, sender) = UnixStream::pair()?;
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::low_level::pipe::register(signal, sender.try_clone()?)?;
    }
    let receiver = Async::new(receiver)?;
    Ok(async move {
        // A byte for each signal; an error would be the end as well.
        let _ = receiver.read_with(|mut receiver| receiver.read(&mut [0])).await;
    })
}
