//! One suite of reads on every runtime: async-executor on several threads, tokio of both kinds, `block_on` with no
//! runtime at all, and a storage that is not `Send` on a local executor. The browser's event loop runs its own copy of
//! it, `tests/browser/read.rs`.
//!
//! The cleaner runs beside the reads, as often as it can, wherever the runtime puts it.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::support::data::Choices;
use crate::support::open::MemoryGate;
use crate::support::{TestImage, small_matrix};
use async_executor::{Executor, LocalExecutor};
use cowshed::image::{
    Answer, Format, Gate, Identity, Image, OpenOptions, Reference, Settings, Source,
};
use cowshed::rt::{
    DiskStorage, FileOptions, FolderGate, SmolTimer, ThreadWorkers, TokioTimer, open_on_executor,
    open_on_tokio, open_storage, reconfigure_on_executor, reconfigure_on_tokio,
};
use cowshed::storage::{LocalBoxStorage, Storage};
use cowshed::{Result, timer::Timer};
use futures::executor::block_on;

/// How many tasks read an image at once.
const READERS: u64 = 4;

fn options() -> OpenOptions {
    let mut options = OpenOptions::default();
    options.cache.cache_clean_interval = Some(Duration::from_millis(1));
    options.cache.l2_cache_size = Some(8192);
    options.workers = Some(Arc::new(ThreadWorkers::with_threads(2)));
    options
}

/// The test image through files.
fn source(test: &TestImage) -> Source<DiskStorage> {
    let storage = open_storage(&test.path, &FileOptions::new()).unwrap();
    let (device, inode) = storage.identity();
    Source {
        storage,
        format: Format::Qcow2,
        location: test.path.clone(),
        identity: Some(Identity(device, inode)),
    }
}

/// What each task does: reads pieces all over the disk, and the whole of it once.
async fn read<S: Storage>(test: &TestImage, image: &Image<S>, seed: u64) {
    let mut choices = Choices::new(seed);
    let size = test.reference.len() as u64;
    for _ in 0..50 {
        let offset = choices.below(size);
        let len = choices.below((size - offset).min(200_000) + 1);
        let mut bytes = vec![0xa5; usize::try_from(len).unwrap()];
        image.read_at(&mut bytes, offset).await.unwrap();
        test.assert_reads(&bytes, offset);
    }
    let mut bytes = vec![0xa5; test.reference.len()];
    image.read_at(&mut bytes, 0).await.unwrap();
    test.assert_reads(&bytes, 0);
}

/// How often the settings change meanwhile.
const STEPS: u64 = 6;

/// Other settings at each step, always with a cleaner.
fn settings<S: Storage>(image: &Image<S>, step: u64) -> Settings {
    let mut settings = image.settings();
    settings.cache.l2_cache_size = Some(if step.is_multiple_of(2) { 1 << 20 } else { 0 });
    settings.cache.l2_cache_entry_size = step.is_multiple_of(3).then_some(512);
    settings.cache.cache_clean_interval = Some(Duration::from_millis(1 + step % 2));
    settings
}

/// Everything in one future, the cleaner too: what any executor of one thread does.
async fn read_together<S, G, T>(test: &TestImage, source: Source<S>, gate: &G, timer: T)
where
    S: Storage,
    G: Gate<Storage = S>,
    T: Timer + Clone,
{
    let opened = Image::open(source, gate, options()).await.unwrap();
    let (image, mut cleaner) = (opened.image, opened.cleaner.unwrap());
    let (done, all_read) = futures::channel::oneshot::channel();
    let readers = async {
        futures::future::join_all((0..READERS).map(|seed| read(test, &image, seed))).await;
        done.send(()).unwrap();
    };
    let cleaners = async {
        // Each cleaner ends because the settings change, and the last because the image is closed.
        for step in 0..STEPS {
            let change = async {
                timer.sleep(Duration::from_millis(1)).await;
                image.reconfigure(settings(&image, step)).await.unwrap().unwrap()
            };
            ((), cleaner) = futures::join!(cleaner.run(timer.clone()), change);
        }
        let close = async {
            all_read.await.unwrap();
            image.close().await.unwrap();
        };
        futures::join!(cleaner.run(timer.clone()), close);
    };
    futures::join!(readers, cleaners);
    assert!(image.read_at(&mut [0], 0).await.is_err());
}

#[test]
fn block_on_without_a_runtime() {
    for test in small_matrix() {
        let gate = FolderGate::new(&test.path).unwrap();
        block_on(read_together(&test, source(&test), &gate, SmolTimer));
    }
}

#[test]
fn async_executor_on_several_threads() {
    for threads in [1, 2, 8] {
        let executor = Executor::new();
        let (stop, stopped) = async_channel();
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| block_on(executor.run(stopped.clone())));
            }
            for test in small_matrix().map(Arc::new) {
                block_on(async {
                    let gate = FolderGate::new(&test.path).unwrap();
                    let opened = Image::open(source(&test), &gate, options()).await.unwrap();
                    let image = Arc::new(opened.image);
                    let cleaner = executor.spawn(opened.cleaner.unwrap().run(SmolTimer));
                    let tasks: Vec<_> = (0..READERS)
                        .map(|seed| {
                            let (test, image) = (Arc::clone(&test), Arc::clone(&image));
                            executor.spawn(async move { read(&test, &image, seed).await })
                        })
                        .collect();
                    for step in 0..STEPS {
                        let settings = settings(&image, step);
                        reconfigure_on_executor(&executor, &image, settings).await.unwrap();
                    }
                    futures::future::join_all(tasks).await;
                    image.close().await.unwrap();
                    cleaner.await;
                });
            }
            drop(stop);
        });
    }
}

/// Its executor is a global one, whose threads are those of the process.
#[test]
fn smol_itself() {
    for test in small_matrix().map(Arc::new) {
        smol::block_on(async {
            let gate = FolderGate::new(&test.path).unwrap();
            let opened = Image::open(source(&test), &gate, options()).await.unwrap();
            let image = Arc::new(opened.image);
            let cleaner = smol::spawn(opened.cleaner.unwrap().run(SmolTimer));
            let tasks: Vec<_> = (0..READERS)
                .map(|seed| {
                    let (test, image) = (Arc::clone(&test), Arc::clone(&image));
                    smol::spawn(async move { read(&test, &image, seed).await })
                })
                .collect();
            for step in 0..STEPS {
                let next = image.reconfigure(settings(&image, step)).await.unwrap();
                smol::spawn(next.unwrap().run(SmolTimer)).detach();
            }
            futures::future::join_all(tasks).await;
            image.close().await.unwrap();
            cleaner.await;
        });
    }
}

/// A future that completes when its other half is dropped.
fn async_channel() -> (futures::channel::oneshot::Sender<()>, impl Future<Output = ()> + Clone) {
    use futures::FutureExt;
    let (stop, stopped) = futures::channel::oneshot::channel();
    (stop, stopped.map(drop).shared())
}

#[test]
fn tokio_on_several_threads() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build();
    runtime.unwrap().block_on(async {
        for test in small_matrix().map(Arc::new) {
            let gate = FolderGate::new(&test.path).unwrap();
            let opened = Image::open(source(&test), &gate, options()).await.unwrap();
            let image = Arc::new(opened.image);
            let cleaner = tokio::spawn(opened.cleaner.unwrap().run(TokioTimer));
            let tasks: Vec<_> = (0..READERS)
                .map(|seed| {
                    let (test, image) = (Arc::clone(&test), Arc::clone(&image));
                    tokio::spawn(async move { read(&test, &image, seed).await })
                })
                .collect();
            for step in 0..STEPS {
                reconfigure_on_tokio(&image, settings(&image, step)).await.unwrap();
            }
            for task in tasks {
                task.await.unwrap();
            }
            image.close().await.unwrap();
            cleaner.await.unwrap();
        }
    });
}

#[test]
fn tokio_on_the_current_thread() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    for test in small_matrix() {
        let gate = FolderGate::new(&test.path).unwrap();
        runtime.block_on(read_together(&test, source(&test), &gate, TokioTimer));
    }
}

#[test]
fn image_opened_in_one_call_has_a_cleaner_that_ends_with_it() {
    let test = &small_matrix().next().unwrap();
    let gate = FolderGate::new(&test.path).unwrap();
    let open = || open_storage(&test.path, &FileOptions::new()).unwrap().into_source(Format::Qcow2);

    let executor = Executor::new();
    cowshed::rt::block_on(executor.run(async {
        let image = open_on_executor(&executor, open(), &gate, options()).await.unwrap();
        assert!(!executor.is_empty(), "the cleaner runs");
        read(test, &image, 1).await;
        image.close().await.unwrap();
        drop(open_on_executor(&executor, open(), &gate, options()).await.unwrap());
    }));
    while !executor.is_empty() {
        // Closed or dropped, the images have ended their cleaners: they only have to notice.
        block_on(executor.tick());
    }

    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
        let image = open_on_tokio(open(), &gate, options()).await.unwrap();
        assert_eq!(tasks(), 1, "the cleaner runs");
        read(test, &image, 1).await;
        image.close().await.unwrap();
        drop(open_on_tokio(open(), &gate, options()).await.unwrap());
        while tasks() > 0 {
            tokio::task::yield_now().await;
        }
    });
}

/// Gives what another gate opens in an `Rc`.
struct LocalGate(MemoryGate);

impl Gate for LocalGate {
    type Storage = LocalBoxStorage;

    async fn open(&self, reference: &Reference<'_>) -> Result<Answer<LocalBoxStorage>> {
        Ok(match self.0.open(reference).await? {
            Answer::Open(source) => Answer::Open(local(source)),
            Answer::Zeros => Answer::Zeros,
        })
    }
}

fn local<S: Storage + 'static>(source: Source<S>) -> Source<LocalBoxStorage> {
    let Source { storage, format, location, identity } = source;
    Source { storage: LocalBoxStorage::new(storage), format, location, identity }
}

#[test]
fn a_storage_that_is_not_send_on_a_local_executor() {
    for test in small_matrix().map(Rc::new) {
        let executor = LocalExecutor::new();
        let gate = LocalGate(MemoryGate::new(test.dir.path()));
        let source = local(gate.0.source(test.name(), Format::Qcow2));
        let opened = block_on(Image::open(source, &gate, options())).unwrap();
        let image = Rc::new(opened.image);
        let cleaner = executor.spawn(opened.cleaner.unwrap().run(SmolTimer));
        let tasks: Vec<_> = (0..READERS)
            .map(|seed| {
                let (test, image) = (Rc::clone(&test), Rc::clone(&image));
                executor.spawn(async move { read(&test, &image, seed).await })
            })
            .collect();
        block_on(executor.run(async {
            futures::future::join_all(tasks).await;
            image.close().await.unwrap();
            cleaner.await;
        }));
    }
}
