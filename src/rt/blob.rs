//! Storages for the browser: a [`BlobStorage`] over a `Blob` or `File`, or over an object of the page's that reads on
//! demand, and a [`Uint8ArrayStorage`] over bytes in memory.
//!
//! A blob is read by slices at positions, never as a whole: the file stays where it is, and a file of 100 GiB costs as
//! much memory as a small one. What to slice is `window.rs`'s business; this file does the slicing. Segments are kept as
//! JavaScript's own buffers, so that a byte is copied once, from there to whoever asked for it.
//!
//! Both are read-only: writing fails with [`io::ErrorKind::PermissionDenied`]. Offsets are exact up to 2^53, beyond
//! which no blob reaches.
//!
//! It must not know the format, the cache or the image.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::rc::Rc;

use async_lock::Semaphore;
use event_listener::Event;
use js_sys::{ArrayBuffer, Promise, Reflect, Uint8Array};
use wasm_bindgen::prelude::*;
use wasm_bindgen_futures::JsFuture;
use web_sys::{AbortController, AbortSignal, Blob};

use super::window::{HELD_LEN_MAX, Payload, Window};
use crate::storage::{Buf, Storage, StorageExtent, StorageExtentKind, StorageLimits};

/// Fetches in flight at once; more do not make it faster.
const FETCHES_IN_FLIGHT_MAX: usize = 8;

/// Segments that one request asks for before it waits for the first of them.
const SEGMENTS_PER_REQUEST_MAX: usize = 3;

/// Below this a request costs about as much as one of this length. Bytes.
const TRANSFER_LEN_OPTIMAL: u32 = 1 << 20;

#[wasm_bindgen]
extern "C" {
    /// An object that reads on demand: `read(offset, length, signal)` gives exactly so many bytes, or a promise of them.
    #[wasm_bindgen(typescript_type = "ImageReader")]
    pub type Reader;

    #[wasm_bindgen(method, catch)]
    fn read(
        this: &Reader,
        offset: f64,
        length: f64,
        signal: &AbortSignal,
    ) -> Result<JsValue, JsValue>;
}

/// A `Blob`, a `File` or a [`Reader`] as storage, read by slices through a window of bounded size.
///
/// Clones share the window.
#[derive(Clone)]
pub struct BlobStorage {
    source: Rc<Source>,
}

/// What a [`BlobStorage`] has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct BlobStatistics {
    /// Slices read from the blob.
    pub fetches: u64,
    /// Bytes in them.
    pub bytes_fetched: u64,
    /// Bytes held now, those under way included.
    pub bytes_held: u64,
}

struct Source {
    origin: Origin,
    len: u64,
    window: RefCell<Window<Rc<Fetch>>>,
    /// A permit for each fetch in flight. Fetches own theirs, so that one is always given back.
    permits: Semaphore,
    fetches: Cell<u64>,
    bytes_fetched: Cell<u64>,
}

/// Where the bytes come from.
enum Origin {
    Blob(Blob),
    Reader(Reader),
}

/// A segment of the source, under way or come. A slice of a blob ends by itself, whoever still wants it; a reader is told
/// when nobody does any more.
struct Fetch {
    result: OnceCell<Result<Uint8Array, FetchError>>,
    done: Event,
    waiting: Cell<usize>,
    abort: Option<AbortController>,
}

/// What a page's own reader threw. It is the inner error of the [`io::Error`] that the storage gives.
#[derive(Debug, Clone)]
pub(crate) struct Thrown {
    pub(crate) message: String,
    /// The `code` of what was thrown.
    pub(crate) code: Option<String>,
}

impl std::fmt::Display for Thrown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Thrown {}

/// What went wrong, to be told to each who waits.
#[derive(Clone)]
struct FetchError {
    kind: io::ErrorKind,
    thrown: Thrown,
}

impl BlobStorage {
    /// Bytes that a [`BlobStorage`] holds at most, plus what is under way.
    pub const HELD_LEN_MAX: u64 = HELD_LEN_MAX;

    /// Reads from `blob`, whose length is taken now.
    #[must_use]
    pub fn new(blob: Blob) -> Self {
        let len = f64_to_u64(blob.size());
        Self::over(Origin::Blob(blob), len)
    }

    /// Reads `len` bytes from `reader`. It is asked for every byte once, as long as that is held; its buffers are copied.
    #[must_use]
    pub fn from_reader(reader: Reader, len: u64) -> Self {
        Self::over(Origin::Reader(reader), len)
    }

    fn over(origin: Origin, len: u64) -> Self {
        let source = Source {
            origin,
            len,
            window: RefCell::new(Window::new(len)),
            permits: Semaphore::new(FETCHES_IN_FLIGHT_MAX),
            fetches: Cell::new(0),
            bytes_fetched: Cell::new(0),
        };
        Self { source: Rc::new(source) }
    }

    /// What it has done so far.
    #[must_use]
    pub fn statistics(&self) -> BlobStatistics {
        BlobStatistics {
            fetches: self.source.fetches.get(),
            bytes_fetched: self.source.bytes_fetched.get(),
            bytes_held: self.source.window.borrow().held(),
        }
    }

    /// Tells a reader to give up what is under way. Later reads fetch again.
    pub fn stop(&self) {
        self.source.window.borrow().payloads().for_each(|fetch| fetch.give_up());
    }

    /// The segment that holds the byte at `at` (not past the end), fetched if it is not there, and its range.
    fn segment(&self, at: u64, end: u64) -> (Range<u64>, Rc<Fetch>) {
        let mut window = self.source.window.borrow_mut();
        if let Some((range, fetch)) = window.find(at) {
            if !fetch.is_given_up() {
                return (range, Rc::clone(fetch));
            }
            window.remove(range.start);
        }
        let range = window.gap(at, end);
        let fetch = self.start(&mut window, range.clone());
        (range, fetch)
    }

    /// Fetches `range` into the window.
    fn start(&self, window: &mut Window<Rc<Fetch>>, range: Range<u64>) -> Rc<Fetch> {
        // Without controllers (nothing known lacks them) a reader is not told.
        let abort = match self.source.origin {
            Origin::Blob(_) => None,
            Origin::Reader(_) => AbortController::new().ok(),
        };
        let fetch = Rc::new(Fetch {
            result: OnceCell::new(),
            done: Event::new(),
            waiting: Cell::new(0),
            abort,
        });
        window.insert(range.clone(), Rc::clone(&fetch));
        let (source, settling) = (Rc::clone(&self.source), Rc::clone(&fetch));
        wasm_bindgen_futures::spawn_local(async move {
            let result = source.fetch(&range, settling.abort.as_ref()).await;
            if result.is_err() {
                source.forget(range.start, &settling);
            }
            // A fetch settles once.
            let _ = settling.result.set(result);
            settling.done.notify(usize::MAX);
        });
        fetch
    }

    /// Starts what a read of `range` says will be wanted next.
    fn read_ahead(&self, range: &Range<u64>) {
        let mut window = self.source.window.borrow_mut();
        while let Some(ahead) = window.advance(range) {
            self.start(&mut window, ahead);
        }
    }

    /// The part of a request that lies before the end, and the rest of its buffer zeroed.
    fn clip(&self, buf: &mut [u8], offset: u64) -> Range<u64> {
        let start = offset.min(self.source.len);
        let end = offset.saturating_add(buf.len() as u64).min(self.source.len);
        // OK as lossless: no longer than the buffer.
        #[allow(clippy::cast_possible_truncation)]
        buf[(end - start) as usize..].fill(0);
        start..end
    }
}

impl std::fmt::Debug for BlobStorage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlobStorage").field("len", &self.source.len).finish_non_exhaustive()
    }
}

impl Source {
    /// Reads the bytes of `range`, which is not empty and within the source.
    async fn fetch(
        &self,
        range: &Range<u64>,
        abort: Option<&AbortController>,
    ) -> Result<Uint8Array, FetchError> {
        let _permit = self.permits.acquire().await;
        let len = range.end - range.start;
        self.fetches.set(self.fetches.get() + 1);
        self.bytes_fetched.set(self.bytes_fetched.get() + len);
        let (start, end) = (u64_to_f64(range.start), u64_to_f64(range.end));
        let promise = match &self.origin {
            Origin::Blob(blob) => {
                blob.slice_with_f64_and_f64(start, end).map(|slice| slice.array_buffer().into())
            }
            Origin::Reader(reader) => {
                let signal = abort.map(AbortController::signal).unwrap_or_else(never_aborted);
                reader.read(start, end - start, &signal)
            }
        };
        let promise = promise.map_err(|thrown| FetchError::thrown(&thrown))?;
        let given = JsFuture::from(Promise::resolve(&promise))
            .await
            .map_err(|thrown| FetchError::thrown(&thrown))?;
        let bytes = match &self.origin {
            Origin::Blob(_) => Uint8Array::new(&given),
            // Its memory is the reader's, which may use it again.
            Origin::Reader(_) => match given.dyn_into::<Uint8Array>() {
                Ok(bytes) => bytes.slice(0, bytes.length()),
                Err(_) => {
                    return Err(FetchError::new(
                        io::ErrorKind::InvalidData,
                        "the reader gave no Uint8Array".to_owned(),
                    ));
                }
            },
        };
        if u64::from(bytes.length()) != len {
            return Err(FetchError::new(
                io::ErrorKind::UnexpectedEof,
                format!(
                    "the file gave {} bytes of {len} at {:#x}: it has changed",
                    bytes.length(),
                    range.start
                ),
            ));
        }
        Ok(bytes)
    }

    /// Takes `fetch`, which begins at `start`, out of the window, unless another has taken its place.
    fn forget(&self, start: u64, fetch: &Rc<Fetch>) {
        let mut window = self.window.borrow_mut();
        if window.find(start).is_some_and(|(_, found)| Rc::ptr_eq(found, fetch)) {
            window.remove(start);
        }
    }
}

/// A signal of a controller that nobody has.
fn never_aborted() -> AbortSignal {
    JsValue::UNDEFINED.unchecked_into()
}

impl Payload for Rc<Fetch> {
    fn is_settled(&self) -> bool {
        self.result.get().is_some()
    }
}

impl Fetch {
    /// Waits for the bytes.
    ///
    /// # Cancel safety
    /// A slice of a blob goes on without the one who waited; a reader is told to give up if that was the last one.
    async fn bytes(&self) -> io::Result<&Uint8Array> {
        self.waiting.set(self.waiting.get() + 1);
        let _waiter = Waiter(self);
        loop {
            if let Some(result) = self.result.get() {
                return result.as_ref().map_err(FetchError::to_io);
            }
            let listener = self.done.listen();
            // Nothing runs between the look and the listening: one thread.
            listener.await;
        }
    }
}

impl Fetch {
    /// Whether it will end with an error because nobody waited.
    fn is_given_up(&self) -> bool {
        self.result.get().is_none()
            && self.abort.as_ref().is_some_and(|abort| abort.signal().aborted())
    }

    /// Tells the reader that nobody waits any more.
    fn give_up(&self) {
        if let Some(abort) = self.abort.as_ref().filter(|_| self.result.get().is_none()) {
            abort.abort();
        }
    }
}

/// Somebody who waits for a fetch.
struct Waiter<'a>(&'a Fetch);

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.0.waiting.set(self.0.waiting.get() - 1);
        if self.0.waiting.get() == 0 {
            self.0.give_up();
        }
    }
}

impl Drop for Fetch {
    /// Gives the buffer's memory back now rather than at the next collection, where the browser can.
    fn drop(&mut self) {
        if let Some(Ok(bytes)) = self.result.get() {
            release(&bytes.buffer());
        }
    }
}

impl FetchError {
    /// From what the browser threw: a `DOMException` as a rule.
    fn thrown(thrown: &JsValue) -> Self {
        let text = |key: &str| {
            Reflect::get(thrown, &JsValue::from_str(key)).ok().and_then(|value| value.as_string())
        };
        let name = text("name").unwrap_or_default();
        let kind = match name.as_str() {
            "NotFoundError" => io::ErrorKind::NotFound,
            "NotReadableError" | "SecurityError" | "NotAllowedError" => {
                io::ErrorKind::PermissionDenied
            }
            "AbortError" => io::ErrorKind::Interrupted,
            _ => io::ErrorKind::Other,
        };
        let message = text("message").filter(|message| !message.is_empty());
        let message = message.unwrap_or_else(|| format!("{thrown:?}"));
        Self { kind, thrown: Thrown { message, code: text("code") } }
    }

    fn new(kind: io::ErrorKind, message: String) -> Self {
        Self { kind, thrown: Thrown { message, code: None } }
    }

    fn to_io(&self) -> io::Error {
        io::Error::new(self.kind, self.thrown.clone())
    }
}

impl Storage for BlobStorage {
    async fn read_at(&self, mut buf: Buf, offset: u64) -> io::Result<Buf> {
        let wanted = self.clip(&mut buf, offset);
        let mut copied = wanted.start;
        let mut asked = wanted.start;
        let mut segments = VecDeque::new();
        while copied < wanted.end {
            while asked < wanted.end && segments.len() < SEGMENTS_PER_REQUEST_MAX {
                let (range, fetch) = self.segment(asked, wanted.end);
                asked = range.end;
                segments.push_back((range, fetch));
            }
            if asked >= wanted.end && copied == wanted.start {
                self.read_ahead(&wanted);
            }
            let Some((range, fetch)) = segments.pop_front() else { break };
            let bytes = fetch.bytes().await?;
            copied += copy(bytes, &range, &mut buf, &wanted, copied);
        }
        Ok(buf)
    }

    async fn write_at(&self, _buf: Buf, _offset: u64) -> io::Result<Buf> {
        Err(read_only())
    }

    async fn write_zeroes(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Err(read_only())
    }

    async fn discard(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Err(read_only())
    }

    async fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    async fn len(&self) -> io::Result<u64> {
        Ok(self.source.len)
    }

    async fn set_len(&self, _len: u64) -> io::Result<()> {
        Err(read_only())
    }

    async fn set_writable(&self, writable: bool) -> io::Result<()> {
        if writable { Err(read_only()) } else { Ok(()) }
    }

    async fn extent_at(&self, offset: u64, len: u64) -> io::Result<StorageExtent> {
        Ok(extent_at(self.source.len, offset, len))
    }

    // OK as lossless: a small constant.
    #[allow(clippy::cast_possible_truncation)]
    fn limits(&self) -> StorageLimits {
        StorageLimits {
            transfer_len_optimal: TRANSFER_LEN_OPTIMAL,
            requests_in_flight: FETCHES_IN_FLIGHT_MAX as u32,
            ..StorageLimits::default()
        }
    }

    fn try_read_at(&self, buf: &mut [u8], offset: u64) -> Option<io::Result<()>> {
        let wanted = self.clip(buf, offset);
        let mut copied = wanted.start;
        while copied < wanted.end {
            let mut window = self.source.window.borrow_mut();
            let (range, fetch) = window.find(copied)?;
            let Ok(bytes) = fetch.result.get()? else { return None };
            copied += copy(bytes, &range, buf, &wanted, copied);
        }
        self.read_ahead(&wanted);
        Some(Ok(()))
    }
}

/// Copies what the segment `bytes` of `range` has of `wanted` from the byte at `at` on into `buf`, which begins with
/// `wanted`; returns how many bytes that is.
// OK as lossless: differences within a segment, which is at most 4 MiB long, or within the buffer.
#[allow(clippy::cast_possible_truncation)]
fn copy(
    bytes: &Uint8Array,
    range: &Range<u64>,
    buf: &mut [u8],
    wanted: &Range<u64>,
    at: u64,
) -> u64 {
    let end = range.end.min(wanted.end);
    let view = bytes.subarray((at - range.start) as u32, (end - range.start) as u32);
    view.copy_to(&mut buf[(at - wanted.start) as usize..(end - wanted.start) as usize]);
    end - at
}

/// A `Uint8Array` of JavaScript's as storage. Its bytes stay where they are; every read is answered at once.
#[derive(Debug, Clone)]
pub struct Uint8ArrayStorage {
    bytes: Uint8Array,
    len: u32,
}

impl Uint8ArrayStorage {
    /// Reads from `bytes`, which the page should not change meanwhile.
    #[must_use]
    pub fn new(bytes: Uint8Array) -> Self {
        let len = bytes.length();
        Self { bytes, len }
    }

    // OK as lossless: clipped to the array, whose length is 32 bits wide, and to the buffer.
    #[allow(clippy::cast_possible_truncation)]
    fn read(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        if self.bytes.length() != self.len {
            return Err(io::Error::other(format!(
                "the array had {} bytes and has {}: it was moved to another thread or resized",
                self.len,
                self.bytes.length()
            )));
        }
        let len = u64::from(self.len);
        let start = offset.min(len);
        let end = offset.saturating_add(buf.len() as u64).min(len);
        let (head, tail) = buf.split_at_mut((end - start) as usize);
        tail.fill(0);
        if !head.is_empty() {
            self.bytes.subarray(start as u32, end as u32).copy_to(head);
        }
        Ok(())
    }
}

impl Storage for Uint8ArrayStorage {
    async fn read_at(&self, mut buf: Buf, offset: u64) -> io::Result<Buf> {
        self.read(&mut buf, offset)?;
        Ok(buf)
    }

    async fn write_at(&self, _buf: Buf, _offset: u64) -> io::Result<Buf> {
        Err(read_only())
    }

    async fn write_zeroes(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Err(read_only())
    }

    async fn discard(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Err(read_only())
    }

    async fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    async fn len(&self) -> io::Result<u64> {
        Ok(u64::from(self.len))
    }

    async fn set_len(&self, _len: u64) -> io::Result<()> {
        Err(read_only())
    }

    async fn set_writable(&self, writable: bool) -> io::Result<()> {
        if writable { Err(read_only()) } else { Ok(()) }
    }

    async fn extent_at(&self, offset: u64, len: u64) -> io::Result<StorageExtent> {
        Ok(extent_at(u64::from(self.len), offset, len))
    }

    fn try_read_at(&self, buf: &mut [u8], offset: u64) -> Option<io::Result<()>> {
        Some(self.read(buf, offset))
    }
}

/// A page cannot see the holes in a file; past its end is one.
fn extent_at(end: u64, offset: u64, len: u64) -> StorageExtent {
    match end.saturating_sub(offset) {
        0 => StorageExtent { kind: StorageExtentKind::Hole, len },
        rest => StorageExtent { kind: StorageExtentKind::Data, len: len.min(rest) },
    }
}

fn read_only() -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, "a blob is read-only")
}

/// Frees the memory of `buffer`, which no one uses any more: an empty transfer of it.
fn release(buffer: &ArrayBuffer) {
    let transfer = Reflect::get(buffer, &JsValue::from_str("transfer"));
    if let Some(transfer) = transfer.ok().and_then(|f| f.dyn_into::<js_sys::Function>().ok()) {
        // If it cannot be freed now, the collector does it later.
        let _ = transfer.call1(buffer, &JsValue::from(0));
    }
}

/// A number of JavaScript's that is a length: a whole number from 0 to 2^53.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
pub(super) fn f64_to_u64(value: f64) -> u64 {
    // OK as lossless: a length.
    value as u64
}

/// An offset within a blob or a file, so at most 2^53: exact.
#[allow(clippy::cast_precision_loss)]
pub(super) fn u64_to_f64(value: u64) -> f64 {
    value as f64
}
