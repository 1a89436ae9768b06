//! The cleaner on a page: it must do its work there as anywhere, and leave neither a task nor a timer behind, whatever becomes
//! of the image, of its task or of the executor. Timers that are left are counted.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use async_executor::Task;
use cowshed::cache::{CleanerControl, TableCache};
use cowshed::format::HostOffset;
use cowshed::image::{Image, OpenOptions, RefuseAll, Source};
use cowshed::rt::{BrowserExecutor, JsTimer, Uint8ArrayStorage};
use cowshed::storage::MemoryStorage;
use cowshed::timer::Timer;
use js_sys::{ArrayBuffer, Function, Promise, Reflect, Uint8Array};
use wasm_bindgen::prelude::*;
use wasm_bindgen_futures::JsFuture;
use wasm_bindgen_test::*;

const PACKED: &[u8] = include_bytes!("../browser_images/v2_small_clusters.qcow2.gz");
const SLICE: u64 = 4096;

/// The kept image, opened, and its cleaner on `executor`.
async fn open(
    executor: &BrowserExecutor,
    interval: Duration,
) -> (Image<Uint8ArrayStorage>, Task<()>) {
    let unpack = Function::new_with_args(
        "packed",
        "const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream('gzip'));
        return new Response(stream).arrayBuffer().then((buffer) => new Uint8Array(buffer));",
    );
    let promise: Promise =
        unpack.call1(&JsValue::NULL, &Uint8Array::from(PACKED)).unwrap().unchecked_into();
    let bytes: Uint8Array = JsFuture::from(promise).await.unwrap().unchecked_into();
    let mut options = OpenOptions::default();
    options.cache.cache_clean_interval = Some(interval);
    let source = Source::qcow2(Uint8ArrayStorage::new(bytes), "image");
    let opened = Image::open(source, &RefuseAll::new(), options).await.unwrap();
    let cleaner = opened.cleaner.unwrap();
    (opened.image, executor.spawn(cleaner.run(JsTimer)))
}

async fn sleep(ms: u64) {
    JsTimer.sleep(Duration::from_millis(ms)).await;
}

async fn read(image: &Image<Uint8ArrayStorage>) {
    let mut bytes = vec![0; usize::try_from(image.virtual_size()).unwrap()];
    image.read_at(&mut bytes, 0).await.unwrap();
}

/// Waits until `done`, or fails.
async fn soon(mut done: impl FnMut() -> bool) {
    for _ in 0..200 {
        if done() {
            return;
        }
        sleep(5).await;
    }
    panic!("it does not happen");
}

#[wasm_bindgen_test]
async fn passes_come_after_every_interval_and_give_memory_back() {
    let executor = BrowserExecutor::new();
    let (image, cleaner) = open(&executor, Duration::from_millis(5)).await;
    read(&image).await;
    assert!(image.statistics()[0].l2.loads > 0);
    soon(|| image.statistics()[0].l2.passes >= 3).await;
    assert_eq!(image.statistics()[0].l2.bytes_held, 0);
    image.close().await.unwrap();
    cleaner.await;
    assert_eq!(JsTimer::waiting(), 0);
}

#[wasm_bindgen_test]
async fn a_close_while_it_sleeps_ends_it_and_its_timer() {
    let executor = BrowserExecutor::new();
    let (image, cleaner) = open(&executor, Duration::from_secs(600)).await;
    sleep(5).await;
    assert_eq!(JsTimer::waiting(), 1);
    image.close().await.unwrap();
    image.close().await.unwrap();
    cleaner.await;
    assert_eq!(JsTimer::waiting(), 0);
}

#[wasm_bindgen_test]
async fn a_stop_in_the_midst_of_a_pass_ends_it_there() {
    let executor = BrowserExecutor::new();
    let cache = Arc::new(TableCache::new(8192 * SLICE, SLICE));
    fill(&cache).await;
    let control = CleanerControl::new([Arc::clone(&cache)], Duration::from_millis(1));
    let cleaner = executor.spawn(control.start().unwrap().run(JsTimer));
    // The first pass frees nothing. The second one does it in many steps, between which others have their turn.
    let full = cache.statistics().bytes_held;
    while cache.statistics().bytes_held == full {
        sleep(0).await;
        if cache.statistics().passes == 1 {
            // From here on by microtasks, as the steps are.
            for _ in 0..100_000 {
                if cache.statistics().bytes_held != full {
                    break;
                }
                JsFuture::from(Promise::resolve(&JsValue::NULL)).await.unwrap();
            }
        }
    }
    control.stop();
    control.join().await;
    let held = cache.statistics().bytes_held;
    cleaner.await;
    assert_eq!(cache.statistics().bytes_held, held, "it went on");
    assert_eq!(JsTimer::waiting(), 0);
}

#[wasm_bindgen_test]
async fn an_aborted_cleaner_leaves_no_timer_and_an_image_that_closes() {
    let executor = BrowserExecutor::new();
    let (image, cleaner) = open(&executor, Duration::from_secs(600)).await;
    sleep(5).await;
    assert!(cleaner.cancel().await.is_none());
    assert_eq!(JsTimer::waiting(), 0);
    read(&image).await;
    // Another one may take its place.
    let next = executor.spawn(image.restart_cleaner().await.unwrap().run(JsTimer));
    sleep(5).await;
    assert_eq!(JsTimer::waiting(), 1);
    image.close().await.unwrap();
    next.await;
    assert_eq!(JsTimer::waiting(), 0);
}

#[wasm_bindgen_test]
async fn settings_change_and_no_timer_of_an_old_cleaner_is_left() {
    let executor = BrowserExecutor::new();
    let (image, mut cleaner) = open(&executor, Duration::from_secs(600)).await;
    let image = Rc::new(image);
    let reader = executor.spawn({
        let image = Rc::clone(&image);
        async move {
            for _ in 0..20 {
                read(&image).await;
                sleep(1).await;
            }
        }
    });
    for ms in [5, 1000, 600_000, 1 << 33, 5] {
        let mut settings = image.settings();
        settings.cache.cache_clean_interval =
            Some(Duration::from_millis(ms).min(Duration::from_secs(u32::MAX.into())));
        settings.cache.l2_cache_size = Some(if ms == 1000 { 1024 } else { 1 << 20 });
        let next = image.reconfigure(settings.clone()).await.unwrap().unwrap();
        assert_eq!(image.settings(), settings);
        // The old one is over.
        cleaner.await;
        cleaner = executor.spawn(next.run(JsTimer));
        sleep(5).await;
    }
    let mut settings = image.settings();
    settings.cache.cache_clean_interval = Some(Duration::ZERO);
    assert!(image.reconfigure(settings.clone()).await.unwrap().is_none());
    cleaner.await;
    reader.await;
    assert_eq!(JsTimer::waiting(), 0);
    // What is in a page's hands is read-only.
    settings.write = Some(cowshed::image::WriteOptions::default());
    assert!(image.reconfigure(settings).await.is_err());
    read(&image).await;
    image.close().await.unwrap();
}

#[wasm_bindgen_test]
async fn a_dropped_image_ends_its_cleaner() {
    let executor = BrowserExecutor::new();
    let (image, cleaner) = open(&executor, Duration::from_secs(600)).await;
    sleep(5).await;
    assert_eq!(JsTimer::waiting(), 1);
    drop(image);
    cleaner.await;
    assert_eq!(JsTimer::waiting(), 0);
}

#[wasm_bindgen_test]
async fn an_executor_that_goes_takes_the_cleaner_with_it_and_the_image_closes() {
    // What a page does that is left for another one, if it is told in time.
    let executor = BrowserExecutor::new();
    let (image, cleaner) = open(&executor, Duration::from_secs(600)).await;
    cleaner.detach();
    sleep(5).await;
    assert_eq!(JsTimer::waiting(), 1);
    drop(executor);
    soon(|| JsTimer::waiting() == 0).await;
    read(&image).await;
    image.close().await.unwrap();
}

async fn fill(cache: &TableCache) {
    // Behind the end are zeros.
    let storage = MemoryStorage::new(Vec::new());
    for slice in 0..8192 {
        cache.get(&storage, HostOffset::new(slice * SLICE)).await.unwrap();
    }
}

fn memory_len() -> u32 {
    let buffer = Reflect::get(&wasm_bindgen::memory(), &JsValue::from_str("buffer")).unwrap();
    buffer.unchecked_into::<ArrayBuffer>().byte_length()
}

#[wasm_bindgen_test]
async fn what_passes_free_is_used_again_and_the_memory_stops_growing() {
    let cache = TableCache::new(8192 * SLICE, SLICE);
    let mut before = 0;
    for round in 0..12 {
        fill(&cache).await;
        assert_eq!(cache.statistics().bytes_held, 8192 * SLICE);
        // Somebody else's memory lies between.
        let other = vec![1_u8; 100_000];
        cache.pass();
        cache.pass();
        assert_eq!(cache.statistics().bytes_held, 0);
        drop(other);
        if round == 2 {
            before = memory_len();
        }
    }
    assert_eq!(memory_len(), before, "it grows although all was given back");
}
