//! The engine in the browser reads what QEMU reads: the kept images, from blobs and from bytes in memory, on the page's event loop,
//! by requests of odd offsets and lengths, many at once.
//!
//! `tests/browser_images/make.sh` made the images and what they read as, with QEMU's tools.

use std::rc::Rc;

use cowshed::image::{
    Answer, ExtentKind, Gate, Image, OpenOptions, Reference, RefuseAll, SnapshotSelector, Source,
};
use cowshed::rt::{BlobStorage, BrowserExecutor, Uint8ArrayStorage};
use cowshed::storage::LocalBoxStorage;
use cowshed::{Error, Result};
use futures::future::try_join_all;
use js_sys::{Array, Function, Promise, Uint8Array};
use wasm_bindgen::prelude::*;
use wasm_bindgen_futures::JsFuture;
use wasm_bindgen_test::*;
use web_sys::Blob;

macro_rules! kept {
    ($($name:literal),* $(,)?) => {
        /// A kept file, packed.
        fn packed(name: &str) -> &'static [u8] {
            match name {
                $($name => include_bytes!(concat!("../browser_images/", $name, ".gz")),)*
                _ => panic!("{name} is not kept"),
            }
        }
    };
}

kept!(
    "chain.qcow2",
    "chain.raw",
    "chain_base.raw",
    "chain_middle.qcow2",
    "data_file.qcow2",
    "data_file.raw",
    "data_file_data.raw",
    "snapshots.qcow2",
    "snapshots.raw",
    "snapshots_first.raw",
    "subclusters.qcow2",
    "subclusters.raw",
    "v2_small_clusters.qcow2",
    "v2_small_clusters.raw",
    "v3_large_clusters.qcow2",
    "v3_large_clusters.raw",
    "v3_zeros.qcow2",
    "v3_zeros.raw",
    "zlib.qcow2",
    "zlib.raw",
    "zstd.qcow2",
    "zstd.raw",
);

/// Images that need nothing else.
const ALONE: [&str; 7] = [
    "v2_small_clusters",
    "v3_zeros",
    "v3_large_clusters",
    "subclusters",
    "zlib",
    "zstd",
    "snapshots",
];

/// A kept file, unpacked by the browser.
async fn kept(name: &str) -> Uint8Array {
    let unpack = Function::new_with_args(
        "packed",
        "const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream('gzip'));
        return new Response(stream).arrayBuffer().then((buffer) => new Uint8Array(buffer));",
    );
    let packed = Uint8Array::from(packed(name));
    let promise: Promise = unpack.call1(&JsValue::NULL, &packed).unwrap().unchecked_into();
    JsFuture::from(promise).await.unwrap().unchecked_into()
}

#[derive(Clone, Copy, Debug)]
enum Medium {
    Blob,
    Array,
}

async fn storage(name: &str, medium: Medium) -> LocalBoxStorage {
    let bytes = kept(name).await;
    match medium {
        Medium::Blob => {
            let blob = Blob::new_with_u8_array_sequence(&Array::of1(&bytes)).unwrap();
            LocalBoxStorage::new(BlobStorage::new(blob))
        }
        Medium::Array => LocalBoxStorage::new(Uint8ArrayStorage::new(bytes)),
    }
}

/// Opens the kept file of the name that the image has.
struct KeptGate(Medium);

impl Gate for KeptGate {
    type Storage = LocalBoxStorage;

    async fn open(&self, reference: &Reference<'_>) -> Result<Answer<LocalBoxStorage>> {
        let name = std::str::from_utf8(reference.name).unwrap();
        let storage = storage(name, self.0).await;
        Ok(Answer::Open(match reference.format {
            Some(b"qcow2") => Source::qcow2(storage, name),
            _ => Source::raw(storage, name),
        }))
    }
}

async fn open(name: &str, medium: Medium, options: OpenOptions) -> Rc<Image<LocalBoxStorage>> {
    let source = Source::qcow2(storage(&format!("{name}.qcow2"), medium).await, name);
    Rc::new(Image::open(source, &KeptGate(medium), options).await.unwrap().image)
}

/// Reads all of it in pieces of `piece` bytes, eight tasks of the executor at once.
async fn read_all(image: &Rc<Image<LocalBoxStorage>>, piece: usize) -> Vec<u8> {
    let executor = BrowserExecutor::new();
    let size = usize::try_from(image.virtual_size()).unwrap();
    let offsets: Vec<usize> = (0..size).step_by(piece).collect();
    let tasks = (0..8).map(|task| {
        let image = Rc::clone(image);
        let mine: Vec<usize> = offsets.iter().copied().skip(task).step_by(8).collect();
        executor.spawn(async move {
            let mut read = Vec::new();
            for offset in mine {
                let mut bytes = vec![0xee; piece.min(size - offset)];
                image.read_at(&mut bytes, offset as u64).await?;
                read.push((offset, bytes));
            }
            Ok::<_, Error>(read)
        })
    });
    let mut all = vec![0xee; size];
    for (offset, bytes) in
        try_join_all(tasks.collect::<Vec<_>>()).await.unwrap().into_iter().flatten()
    {
        all[offset..offset + bytes.len()].copy_from_slice(&bytes);
    }
    all
}

async fn reads_as(image: Rc<Image<LocalBoxStorage>>, expected: &str) {
    let expected = kept(expected).await.to_vec();
    assert_eq!(image.virtual_size(), expected.len() as u64);
    for piece in [65_536, 100_003, 4097] {
        let read = read_all(&image, piece).await;
        if let Some(at) = read.iter().zip(&expected).position(|(read, expected)| read != expected) {
            panic!("byte {at:#x} is {:#x}, not {:#x}; pieces of {piece}", read[at], expected[at]);
        }
    }
    map_agrees(&image, &expected).await;
    image.close().await.unwrap();
    assert!(matches!(image.read_at(&mut [0], 0).await, Err(Error::Closed)));
}

/// Every byte is in one extent, and what is mapped as zeros is zeros.
async fn map_agrees(image: &Image<LocalBoxStorage>, expected: &[u8]) {
    let mut extents = image.extents(0, image.virtual_size()).unwrap();
    let mut end = 0;
    while let Some(extent) = extents.next().await.unwrap() {
        assert_eq!(extent.offset, end);
        end += extent.len;
        if matches!(extent.kind, ExtentKind::Zero { .. } | ExtentKind::Unallocated { .. }) {
            let range = usize::try_from(extent.offset).unwrap()..usize::try_from(end).unwrap();
            assert!(expected[range].iter().all(|&byte| byte == 0), "{extent:?}");
        }
    }
    assert_eq!(end, image.virtual_size());
}

#[wasm_bindgen_test]
async fn images_in_blobs_read_as_qemu_reads_them() {
    for name in ALONE {
        let image = open(name, Medium::Blob, OpenOptions::default()).await;
        reads_as(image, &format!("{name}.raw")).await;
    }
}

#[wasm_bindgen_test]
async fn images_in_memory_read_as_qemu_reads_them() {
    for name in ALONE {
        let image = open(name, Medium::Array, OpenOptions::default()).await;
        reads_as(image, &format!("{name}.raw")).await;
    }
}

#[wasm_bindgen_test]
async fn a_chain_of_blobs_reads_as_qemu_reads_it() {
    for medium in [Medium::Blob, Medium::Array] {
        let image = open("chain", medium, OpenOptions::default()).await;
        assert_eq!(image.layers().len(), 3);
        reads_as(image, "chain.raw").await;
    }
}

#[wasm_bindgen_test]
async fn an_external_data_file_reads_as_qemu_reads_it() {
    for medium in [Medium::Blob, Medium::Array] {
        let image = open("data_file", medium, OpenOptions::default()).await;
        reads_as(image, "data_file.raw").await;
    }
}

#[wasm_bindgen_test]
async fn a_snapshot_reads_as_qemu_reads_it() {
    let mut options = OpenOptions::default();
    options.snapshot = Some(SnapshotSelector::Name(b"first".to_vec()));
    reads_as(open("snapshots", Medium::Blob, options).await, "snapshots_first.raw").await;
}

#[wasm_bindgen_test]
async fn nothing_is_opened_by_name_unless_the_gate_says_so() {
    for name in ["chain", "data_file"] {
        let source = Source::qcow2(storage(&format!("{name}.qcow2"), Medium::Blob).await, name);
        let opened = Image::open(source, &RefuseAll::new(), OpenOptions::default()).await;
        assert!(matches!(opened, Err(Error::Refused { .. })));
    }
}
