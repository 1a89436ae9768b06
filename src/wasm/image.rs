//! The class `Image`.

use std::rc::Rc;

use js_sys::{Promise, Uint8Array};
use wasm_bindgen::prelude::*;

use super::describe;
use super::report;
use super::value::{array, number, object, or_null};
use crate::cache::CacheStatistics;
use crate::error::{Error, Result};
use crate::format::BitmapDirectoryEntry;
use crate::image::{self, Extent, ExtentKind, Format};
use crate::rt::BlobStorage;
use crate::storage::LocalBoxStorage;

/// The longest read that one call answers: more than a page shows, less than memory has. Bytes.
const READ_LEN_BYTES_MAX: u32 = 256 << 20;

/// The engine's image, as this package opens it.
type Engine = image::Image<LocalBoxStorage>;

/// An open image. Call `close` when done with it.
#[wasm_bindgen]
pub struct Image {
    engine: Rc<Engine>,
    stores: Stores,
    format: Format,
    guessed: bool,
    bitmaps: Vec<BitmapDirectoryEntry>,
}

/// What an image reads from, for its statistics.
#[derive(Default)]
pub(super) struct Stores {
    pub(super) blobs: Vec<BlobStorage>,
}

impl Image {
    pub(super) fn new(
        engine: Engine,
        format: Format,
        guessed: bool,
        bitmaps: Vec<BitmapDirectoryEntry>,
        stores: Stores,
    ) -> Self {
        Self { engine: Rc::new(engine), stores, format, guessed, bitmaps }
    }

    /// Runs one of the engine's requests.
    pub(super) fn request<F>(
        &self,
        signal: &JsValue,
        request: impl FnOnce(Rc<Engine>) -> F,
    ) -> Promise
    where
        F: Future<Output = Result<JsValue>> + 'static,
    {
        super::promise(signal, request(Rc::clone(&self.engine)))
    }
}

#[wasm_bindgen]
impl Image {
    /// Size of the disk in bytes: of the snapshot, if one is open.
    #[wasm_bindgen(getter, js_name = virtualSize)]
    pub fn virtual_size(&self) -> u64 {
        self.engine.virtual_size()
    }

    /// Length of the image's own file in bytes.
    #[wasm_bindgen(getter, js_name = hostSize)]
    pub fn host_size(&self) -> u64 {
        describe::top(&self.engine).map_or(0, |layer| layer.file_len)
    }

    /// Bytes in a cluster; undefined if the image is raw.
    #[wasm_bindgen(getter, js_name = clusterSize)]
    pub fn cluster_size(&self) -> Option<f64> {
        // At most 2 MiB: exact.
        #[allow(clippy::cast_precision_loss)]
        self.engine.geometry().map(|geometry| geometry.cluster_size() as f64)
    }

    /// "qcow2" or "raw".
    #[wasm_bindgen(getter, unchecked_return_type = "ImageFormat")]
    pub fn format(&self) -> String {
        self.format.name().to_owned()
    }

    /// Whether the format was guessed from the first bytes because `openImage` was not told.
    #[wasm_bindgen(getter, js_name = formatGuessed)]
    pub fn format_guessed(&self) -> bool {
        self.guessed
    }

    /// The fields of the header, in their order; empty if the image is raw.
    #[wasm_bindgen(unchecked_return_type = "HeaderField[]")]
    pub fn header(&self) -> JsValue {
        array(self.engine.header().as_deref().into_iter().flat_map(describe::header))
    }

    /// What `qemu-img info --output=json` says, under its keys.
    #[wasm_bindgen(unchecked_return_type = "ImageInfo")]
    pub fn info(&self) -> JsValue {
        describe::info(&self.engine, &self.bitmaps)
    }

    /// The feature bits that are set.
    #[wasm_bindgen(unchecked_return_type = "Feature[]")]
    pub fn features(&self) -> JsValue {
        array(self.engine.header().as_deref().into_iter().flat_map(describe::features))
    }

    /// The header extensions, in their order.
    #[wasm_bindgen(unchecked_return_type = "HeaderExtension[]")]
    pub fn extensions(&self) -> JsValue {
        array(self.engine.header().as_deref().into_iter().flat_map(describe::extensions))
    }

    /// The internal snapshots, in the order on disk.
    #[wasm_bindgen(unchecked_return_type = "Snapshot[]")]
    pub fn snapshots(&self) -> JsValue {
        array(self.engine.snapshots().iter().map(describe::snapshot))
    }

    /// The persistent bitmaps, in the order on disk, if they can be trusted.
    #[wasm_bindgen(unchecked_return_type = "Bitmap[]")]
    pub fn bitmaps(&self) -> JsValue {
        array(self.bitmaps.iter().map(describe::bitmap))
    }

    /// The layers that are open, the image itself first.
    #[wasm_bindgen(unchecked_return_type = "Layer[]")]
    pub fn layers(&self) -> JsValue {
        array(self.engine.layers().enumerate().map(|(depth, layer)| describe::layer(depth, &layer)))
    }

    /// Reads `length` bytes of the disk from guest `offset`.
    #[wasm_bindgen(unchecked_return_type = "Promise<Uint8Array>")]
    pub fn read(
        &self,
        offset: u64,
        length: u32,
        #[wasm_bindgen(unchecked_optional_param_type = "AbortSignal")] signal: JsValue,
    ) -> Promise {
        self.request(&signal, move |engine| async move {
            let mut buf = buffer(length)?;
            engine.read_at(&mut buf, offset).await?;
            Ok(Uint8Array::from(&buf[..]).into())
        })
    }

    /// Reads `length` bytes of the image file from host `offset`.
    #[wasm_bindgen(js_name = readHost, unchecked_return_type = "Promise<Uint8Array>")]
    pub fn read_host(
        &self,
        offset: u64,
        length: u32,
        #[wasm_bindgen(unchecked_optional_param_type = "AbortSignal")] signal: JsValue,
    ) -> Promise {
        self.request(&signal, move |engine| async move {
            let mut buf = buffer(length)?;
            engine.read_host(&mut buf, offset).await?;
            Ok(Uint8Array::from(&buf[..]).into())
        })
    }

    /// What lies where in up to `maxLength` bytes from guest `offset`: at most `maxExtents` extents, without reading them.
    #[wasm_bindgen(unchecked_return_type = "Promise<Extent[]>")]
    pub fn map(
        &self,
        offset: u64,
        #[wasm_bindgen(js_name = maxLength)] max_length: u64,
        #[wasm_bindgen(js_name = maxExtents)] max_extents: u32,
        #[wasm_bindgen(unchecked_optional_param_type = "AbortSignal")] signal: JsValue,
    ) -> Promise {
        self.request(&signal, move |engine| async move {
            let len = max_length.min(engine.virtual_size().saturating_sub(offset));
            let mut extents = engine.extents(offset, len)?;
            let mut found = Vec::new();
            while found.len() < max_extents as usize
                && let Some(extent) = extents.next().await?
            {
                found.push(extent_value(&extent));
            }
            Ok(array(found))
        })
    }

    /// Whether the image is safe to hand to a virtual machine, and why. Takes the same time for every image.
    #[wasm_bindgen(unchecked_return_type = "Promise<Verdict>")]
    pub fn verdict(
        &self,
        #[wasm_bindgen(unchecked_optional_param_type = "AbortSignal")] signal: JsValue,
    ) -> Promise {
        self.request(&signal, |engine| async move { report::judge(&engine).await })
    }

    /// Checks the image's metadata: every reference against the refcounts. `onProgress` is told how far it is, `onFinding`
    /// of everything that is found.
    #[wasm_bindgen(unchecked_return_type = "Promise<CheckReport>")]
    pub fn check(
        &self,
        #[wasm_bindgen(
            js_name = onProgress,
            unchecked_optional_param_type = "(done: number, total: number) => void"
        )]
        on_progress: JsValue,
        #[wasm_bindgen(
            js_name = onFinding,
            unchecked_optional_param_type = "(finding: CheckFinding) => void"
        )]
        on_finding: JsValue,
        #[wasm_bindgen(unchecked_optional_param_type = "AbortSignal")] signal: JsValue,
    ) -> Promise {
        let (progress, finding) = (on_progress.dyn_into().ok(), on_finding.dyn_into().ok());
        self.request(
            &signal,
            |engine| async move { report::check(&engine, progress, finding).await },
        )
    }

    /// What the caches and the storages have done so far.
    #[wasm_bindgen(unchecked_return_type = "Statistics")]
    pub fn statistics(&self) -> JsValue {
        let layers =
            self.engine.statistics().into_iter().map(|layer| {
                object([("l2", cache(&layer.l2)), ("refcount", cache(&layer.refcount))])
            });
        let blobs = self.stores.blobs.iter().map(|blob| {
            let done = blob.statistics();
            object([
                ("fetches", number(done.fetches)),
                ("bytesFetched", number(done.bytes_fetched)),
                ("bytesHeld", number(done.bytes_held)),
            ])
        });
        object([("layers", array(layers)), ("blobs", array(blobs))])
    }

    /// Refuses new requests, waits for those under way, stops the cleaner. May be called again.
    #[wasm_bindgen(unchecked_return_type = "Promise<void>")]
    pub fn close(&self) -> Promise {
        let blobs = self.stores.blobs.clone();
        self.request(&JsValue::UNDEFINED, |engine| async move {
            engine.close().await?;
            // What was being fetched ahead is of no use any more.
            blobs.iter().for_each(BlobStorage::stop);
            Ok(JsValue::UNDEFINED)
        })
    }
}

/// Memory for a read.
fn buffer(length: u32) -> Result<Vec<u8>> {
    let limit = || Error::LimitExceeded {
        what: "bytes of one read",
        value: u64::from(length),
        limit: u64::from(READ_LEN_BYTES_MAX),
    };
    if length > READ_LEN_BYTES_MAX {
        return Err(limit());
    }
    let mut buf = Vec::new();
    buf.try_reserve_exact(length as usize).map_err(|_| limit())?;
    buf.resize(length as usize, 0);
    Ok(buf)
}

fn extent_value(extent: &Extent) -> JsValue {
    let (kind, host, host_len) = match extent.kind {
        ExtentKind::Data { host } => ("data", Some(host), Some(extent.len)),
        ExtentKind::Zero { host } => ("zero", host, host.map(|_| extent.len)),
        ExtentKind::Hole { host } => ("zero", Some(host), Some(extent.len)),
        ExtentKind::Compressed { host, len } => ("compressed", Some(host), Some(len)),
        ExtentKind::Unallocated { .. } => ("unallocated", None, None),
    };
    object([
        ("offset", extent.offset.into()),
        ("length", extent.len.into()),
        ("kind", kind.into()),
        ("depth", JsValue::from_f64(extent.depth as f64)),
        ("host", or_null(host.map(crate::format::HostOffset::get))),
        ("hostLength", or_null(host_len)),
    ])
}

fn cache(done: &CacheStatistics) -> JsValue {
    object([
        ("hits", number(done.hits)),
        ("misses", number(done.misses)),
        ("loads", number(done.loads)),
        ("evictions", number(done.evictions)),
        ("cleaned", number(done.cleaned)),
        ("passes", number(done.passes)),
        ("bytesHeld", number(done.bytes_held)),
    ])
}
