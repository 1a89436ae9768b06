//! The npm package: the engine as JavaScript sees it. Conversion only, no logic.
//!
//! | file | what |
//! |---|---|
//! | `change` | what changes images: `createImage`, `repairImage`, and the class's writing methods; with the feature `write` |
//! | `disk` | `openDisk` and the class `Disk`, in a module of its own: the feature `browser-disk` |
//! | `open` | `openImage` and `judgeImage`: sources, options, and the gate that asks the page |
//! | `image` | the class `Image` |
//! | `describe` | header, features, extensions, snapshots, layers and info as plain objects |
//! | `report` | verdict and check as plain objects |
//! | `error` | what promises reject with |
//! | `value` | building plain objects |
//! | `types.d.ts` | the types of all this, by hand |
//!
//! The package is two modules, so that who only opens images does not load file systems. Offsets and sizes are `bigint`, counts and lengths that fit a `Uint8Array` are `number`. Everything asynchronous runs on one
//! [`BrowserExecutor`], so that it gives way to the page.

#[cfg(all(feature = "browser", feature = "write"))]
mod change;
#[cfg(feature = "browser")]
mod describe;
#[cfg(feature = "browser-disk")]
mod disk;
mod error;
#[cfg(feature = "browser")]
mod image;
#[cfg(feature = "browser")]
mod open;
#[cfg(feature = "browser")]
mod report;
mod value;

#[cfg(all(feature = "browser", feature = "write"))]
pub use change::{create_image, repair_image};
#[cfg(feature = "browser-disk")]
pub use disk::{Archive, Disk, Walk, open_disk};
#[cfg(feature = "browser")]
pub use image::Image;
#[cfg(feature = "browser")]
pub use open::{judge_image, open_image};

use std::future::Future;
use std::pin::Pin;

use futures::future::{Aborted, abortable};
use js_sys::{Function, Promise};
use wasm_bindgen::prelude::*;
use web_sys::AbortSignal;

use crate::rt::BrowserExecutor;

#[cfg(feature = "browser")]
#[wasm_bindgen(typescript_custom_section)]
const TYPES: &str = include_str!("types.d.ts");

thread_local! {
    static EXECUTOR: BrowserExecutor = BrowserExecutor::new();
}

/// Runs `future` on the package's executor; the promise settles as it does. When `signal`, an `AbortSignal` or undefined,
/// aborts, the future is dropped and the promise rejects with the signal's reason.
fn promise(
    signal: &JsValue,
    future: impl Future<Output = crate::Result<JsValue>> + 'static,
) -> Promise {
    // Boxed, so that what runs it is compiled once and not for every method.
    settle(signal.dyn_ref().cloned(), Box::pin(future))
}

fn settle(
    signal: Option<AbortSignal>,
    future: Pin<Box<dyn Future<Output = crate::Result<JsValue>>>>,
) -> Promise {
    // Says on the console what a panic was, should there ever be one.
    console_error_panic_hook::set_once();
    if let Some(signal) = signal.as_ref().filter(|signal| signal.aborted()) {
        return Promise::reject(&reason(signal));
    }
    let (future, handle) = abortable(future);
    let on_abort = signal.as_ref().map(|signal| {
        let on_abort = Closure::<dyn FnMut()>::new(move || handle.abort());
        listen(signal, "addEventListener", &on_abort);
        on_abort
    });
    let task = EXECUTOR.with(|executor| executor.spawn(future));
    wasm_bindgen_futures::future_to_promise(async move {
        let done = task.await;
        if let Some((signal, on_abort)) = signal.as_ref().zip(on_abort) {
            listen(signal, "removeEventListener", &on_abort);
        }
        match done {
            Ok(result) => result.map_err(error::to_js),
            Err(Aborted) => Err(signal.as_ref().map_or(JsValue::UNDEFINED, reason)),
        }
    })
}

/// Begins or ends listening for the signal's abortion.
fn listen(signal: &AbortSignal, how: &str, on_abort: &Closure<dyn FnMut()>) {
    if let Ok(method) = value::get(signal, how).dyn_into::<Function>() {
        // It throws nothing.
        let _ = method.call2(signal, &"abort".into(), on_abort.as_ref());
    }
}

fn reason(signal: &AbortSignal) -> JsValue {
    value::get(signal, "reason")
}
