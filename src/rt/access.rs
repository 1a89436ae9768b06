//! A storage for the browser that can be written: an access handle of a file in the browser's own storage (OPFS), or any
//! object with its methods.
//!
//! Its methods work at once, in workers alone. Offsets are exact up to 2^53, beyond which no file reaches. So that who does much can be
//! told to stop, a read or a write gives way to the executor when [`SLICE_MS`] have passed since the last that did.
//!
//! It must not know the format, the cache or the image.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::Poll;

use js_sys::{Object, Reflect, Uint8Array};
use wasm_bindgen::prelude::*;

use super::blob::{f64_to_u64, u64_to_f64};
use super::browser::{SLICE_MS, now_ms};
use crate::storage::{Buf, Storage};

/// What is written at a time where zeros are wanted, in bytes.
const ZEROS_LEN: u64 = 1 << 20;

#[wasm_bindgen]
extern "C" {
    /// A `FileSystemSyncAccessHandle`, or what has its methods.
    #[wasm_bindgen(typescript_type = "AccessHandle")]
    #[derive(Clone)]
    pub type AccessHandle;

    #[wasm_bindgen(method, catch)]
    fn read(this: &AccessHandle, into: &Uint8Array, how: &Object) -> Result<f64, JsValue>;

    #[wasm_bindgen(method, catch)]
    fn write(this: &AccessHandle, from: &Uint8Array, how: &Object) -> Result<f64, JsValue>;

    #[wasm_bindgen(method, catch)]
    fn truncate(this: &AccessHandle, len: f64) -> Result<(), JsValue>;

    #[wasm_bindgen(method, catch, js_name = getSize)]
    fn get_size(this: &AccessHandle) -> Result<f64, JsValue>;

    #[wasm_bindgen(method, catch)]
    fn flush(this: &AccessHandle) -> Result<(), JsValue>;
}

/// A file behind an access handle, which nobody else may have open. Whoever gave it closes it.
#[derive(Clone)]
pub struct AccessStorage {
    handle: AccessHandle,
    /// When it gave way last, on the clock of [`now_ms`].
    gave_way_ms: Rc<Cell<f64>>,
}

impl AccessStorage {
    /// Reads from `handle` and writes to it.
    #[must_use]
    pub fn new(handle: AccessHandle) -> Self {
        Self { handle, gave_way_ms: Rc::new(Cell::new(now_ms())) }
    }

    /// Whether it is time to give way.
    fn is_due(&self) -> bool {
        now_ms() - self.gave_way_ms.get() > SLICE_MS
    }

    /// Lets the executor go on with something else, if it is time.
    async fn give_way(&self) {
        if !self.is_due() {
            return;
        }
        let mut gave_way = false;
        poll_fn(|cx| {
            if gave_way {
                return Poll::Ready(());
            }
            gave_way = true;
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
        self.gave_way_ms.set(now_ms());
    }

    fn read(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let len = self.size()?;
        let there = len.saturating_sub(offset).min(buf.len() as u64);
        // OK to unwrap: no longer than the buffer.
        let (head, tail) = buf.split_at_mut(usize::try_from(there).unwrap_or(0));
        tail.fill(0);
        if head.is_empty() {
            return Ok(());
        }
        // A buffer of its own: the handle may keep what it is given until it returns, and no longer.
        let bytes = Uint8Array::new_with_length(u32::try_from(there).map_err(io::Error::other)?);
        let got = self.handle.read(&bytes, &at(offset)).map_err(failed)?;
        if f64_to_u64(got) != there {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("the file gave {got} bytes of {there} at {offset:#x}"),
            ));
        }
        bytes.copy_to(head);
        Ok(())
    }

    fn write(&self, data: &[u8], offset: u64) -> io::Result<()> {
        let bytes = Uint8Array::from(data);
        let done = self.handle.write(&bytes, &at(offset)).map_err(failed)?;
        if f64_to_u64(done) != data.len() as u64 {
            return Err(io::Error::new(
                io::ErrorKind::StorageFull,
                format!("only {done} of {} bytes could be written at {offset:#x}", data.len()),
            ));
        }
        Ok(())
    }

    fn size(&self) -> io::Result<u64> {
        self.handle.get_size().map(f64_to_u64).map_err(failed)
    }
}

impl std::fmt::Debug for AccessStorage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AccessStorage").finish_non_exhaustive()
    }
}

impl Storage for AccessStorage {
    async fn read_at(&self, mut buf: Buf, offset: u64) -> io::Result<Buf> {
        self.give_way().await;
        self.read(&mut buf, offset)?;
        Ok(buf)
    }

    async fn write_at(&self, buf: Buf, offset: u64) -> io::Result<Buf> {
        self.give_way().await;
        self.write(&buf, offset)?;
        Ok(buf)
    }

    async fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        let end = offset + len;
        // What a file gains reads as zeros.
        let inner_end = end.min(self.size()?).max(offset);
        // OK to unwrap: a small constant.
        let zeros = vec![0; usize::try_from(ZEROS_LEN.min(len)).unwrap_or(0)];
        let mut at = offset;
        while at < inner_end {
            let len = (inner_end - at).min(ZEROS_LEN);
            self.write(&zeros[..usize::try_from(len).unwrap_or(0)], at)?;
            at += len;
        }
        if end > inner_end { self.set_len(end).await } else { Ok(()) }
    }

    async fn discard(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }

    async fn flush(&self) -> io::Result<()> {
        self.handle.flush().map_err(failed)
    }

    async fn len(&self) -> io::Result<u64> {
        self.size()
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        self.handle.truncate(u64_to_f64(len)).map_err(failed)
    }

    fn try_read_at(&self, buf: &mut [u8], offset: u64) -> Option<io::Result<()>> {
        // Who is sent away comes back with `read_at`.
        (!self.is_due()).then(|| self.read(buf, offset))
    }
}

/// The option that says where.
fn at(offset: u64) -> Object {
    let how = Object::new();
    // It cannot fail: the object is plain and extensible.
    let _ = Reflect::set(&how, &"at".into(), &u64_to_f64(offset).into());
    how
}

fn failed(thrown: JsValue) -> io::Error {
    let text = |name: &str| Reflect::get(&thrown, &name.into()).ok().and_then(|v| v.as_string());
    let kind = match text("name").as_deref() {
        Some("QuotaExceededError") => io::ErrorKind::StorageFull,
        Some("NoModificationAllowedError") => io::ErrorKind::PermissionDenied,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, text("message").unwrap_or_else(|| format!("{thrown:?}")))
}
