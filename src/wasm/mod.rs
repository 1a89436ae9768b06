//! The npm package: the engine as JavaScript sees it. Conversion only, no logic.
//!
//! | file | what |
//! |---|---|
//! | `open` | `openImage` and `judgeImage`: sources, options, and the gate that asks the page |
//! | `image` | the class `Image` |
//! | `describe` | header, features, extensions, snapshots, layers and info as plain objects |
//! | `report` | verdict and check as plain objects |
//! | `error` | what promises reject with |
//! | `value` | building plain objects |
//! | `types.d.ts` | the types of all this, by hand |
//!
//! Offsets and sizes are `bigint`, counts and lengths that fit a `Uint8Array` are `number`. Everything asynchronous runs on one
//! [`BrowserExecutor`], so that it gives way to the page.

mod describe;
mod error;
mod image;
mod open;
mod report;
mod value;

pub use image::Image;
pub use open::{judge_image, open_image};

use std::future::Future;
use std::pin::Pin;

use js_sys::Promise;
use wasm_bindgen::prelude::*;

use crate::rt::BrowserExecutor;

#[wasm_bindgen(typescript_custom_section)]
const TYPES: &str = include_str!("types.d.ts");

thread_local! {
    static EXECUTOR: BrowserExecutor = BrowserExecutor::new();
}

/// Runs `future` on the package's executor; the promise settles as it does.
fn promise(future: impl Future<Output = crate::Result<JsValue>> + 'static) -> Promise {
    // Boxed, so that what runs it is compiled once and not for every method.
    settle(Box::pin(future))
}

fn settle(future: Pin<Box<dyn Future<Output = crate::Result<JsValue>>>>) -> Promise {
    // Says on the console what a panic was, should there ever be one.
    console_error_panic_hook::set_once();
    let task = EXECUTOR.with(|executor| executor.spawn(future));
    wasm_bindgen_futures::future_to_promise(async move { task.await.map_err(error::to_js) })
}
