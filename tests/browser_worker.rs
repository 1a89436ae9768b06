//! The page runs the engine in a worker, which has no window: timers, the executor and blobs must do without.
//!
//! A program of its own: a program of tests runs on a page or in a worker.

#![cfg(target_family = "wasm")]

use std::time::Duration;

use cowshed::image::{Image, OpenOptions, RefuseAll, Source};
use cowshed::rt::{BlobStorage, BrowserExecutor, JsTimer};
use cowshed::storage::LocalBoxStorage;
use cowshed::timer::Timer;
use js_sys::{Array, Function, Uint8Array};
use wasm_bindgen::prelude::*;
use wasm_bindgen_test::*;
use web_sys::Blob;

wasm_bindgen_test_configure!(run_in_dedicated_worker);

#[wasm_bindgen_test]
fn this_is_a_worker() {
    let window = Function::new_no_args("return typeof window;").call0(&JsValue::NULL).unwrap();
    assert_eq!(window.as_string().unwrap(), "undefined");
}

#[wasm_bindgen_test]
async fn tasks_sleep_and_wake() {
    let executor = BrowserExecutor::new();
    let tasks = (0..5).map(|i| {
        executor.spawn(async move {
            for _ in 0..3 {
                JsTimer.sleep(Duration::from_millis(i)).await;
            }
            i
        })
    });
    let sum: u64 = futures::future::join_all(tasks.collect::<Vec<_>>()).await.into_iter().sum();
    assert_eq!(sum, 10);
    assert_eq!(JsTimer::waiting(), 0);
}

#[wasm_bindgen_test]
async fn an_image_in_a_blob_is_read_and_closed_with_its_cleaner() {
    let executor = BrowserExecutor::new();
    let disk = Uint8Array::from(&b"a disk"[..]);
    let blob = Blob::new_with_u8_array_sequence(&Array::of1(&disk)).unwrap();
    let source = Source::raw(LocalBoxStorage::new(BlobStorage::new(blob)), "disk");
    let opened = Image::open(source, &RefuseAll::new(), OpenOptions::default()).await.unwrap();
    let cleaner = opened.cleaner.map(|cleaner| executor.spawn(cleaner.run(JsTimer)));
    let mut bytes = [0; 8];
    opened.image.read_at(&mut bytes, 0).await.unwrap();
    assert_eq!(&bytes, b"a disk\0\0");
    opened.image.close().await.unwrap();
    if let Some(cleaner) = cleaner {
        cleaner.await;
    }
    assert_eq!(JsTimer::waiting(), 0);
}
