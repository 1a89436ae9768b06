//! A file in the browser may be larger than all memory. These tests hold the storages to reading only what is asked for,
//! in pieces, and to giving the very bytes that the file has.

use std::rc::Rc;

use cowshed::rt::{BlobStorage, Uint8ArrayStorage};
use cowshed::storage::{Buf, Storage};
use futures::future::join_all;
use js_sys::{Array, Function, Reflect, Uint8Array};
use wasm_bindgen::prelude::*;
use wasm_bindgen_test::*;
use web_sys::Blob;

/// The byte at `offset` of every test blob.
fn pattern(offset: u64) -> u8 {
    (offset ^ (offset >> 8) ^ (offset >> 16)).to_le_bytes()[0].wrapping_mul(31)
}

fn blob(len: u32) -> Blob {
    let bytes: Vec<u8> = (0..u64::from(len)).map(pattern).collect();
    let parts = Array::of1(&Uint8Array::from(&bytes[..]));
    Blob::new_with_u8_array_sequence(&parts).unwrap()
}

fn expected(offset: u64, len: usize, end: u64) -> Vec<u8> {
    (0..len as u64)
        .map(|i| offset.checked_add(i).filter(|&at| at < end).map_or(0, pattern))
        .collect()
}

/// A blob-like object of any size that counts the slices taken, and answers with the pattern. It has nothing but `size`
/// and `slice`: whoever wants the whole of it fails.
struct Fake {
    blob: Blob,
    log: Array,
}

fn fake(size: f64) -> Fake {
    let make = Function::new_with_args(
        "size, log",
        "return { size, slice(start, end) {
            log.push([start, end]);
            return { arrayBuffer: async () => {
                const bytes = new Uint8Array(end - start);
                for (let i = 0; i < bytes.length; i++) {
                    const at = BigInt(start + i);
                    bytes[i] = Number(((at ^ (at >> 8n) ^ (at >> 16n)) & 255n) * 31n & 255n);
                }
                return bytes.buffer;
            } };
        } };",
    );
    let log = Array::new();
    let blob = make.call2(&JsValue::NULL, &JsValue::from(size), &log).unwrap().unchecked_into();
    Fake { blob, log }
}

impl Fake {
    fn slices(&self) -> Vec<(f64, f64)> {
        self.log
            .iter()
            .map(|pair| {
                let at = |i| Reflect::get_u32(&pair, i).unwrap().as_f64().unwrap();
                (at(0), at(1))
            })
            .collect()
    }
}

async fn read(storage: &impl Storage, offset: u64, len: usize) -> Vec<u8> {
    let mut buf = Buf::zeroed(len);
    buf.fill(0xee);
    storage.read_at(buf, offset).await.unwrap().to_vec()
}

#[wasm_bindgen_test]
async fn blob_gives_its_bytes_and_zeros_past_its_end() {
    let len = 1_000_001;
    let storage = BlobStorage::new(blob(len));
    let end = u64::from(len);
    assert_eq!(storage.len().await.unwrap(), end);
    for (offset, len) in [
        (0, 0),
        (0, 1),
        (1, 511),
        (65_535, 2),
        (262_143, 262_146),
        (end - 1, 1),
        (end - 1, 4096),
        (end, 16),
        (u64::MAX - 3, 16),
        (0, 1_500_000),
    ] {
        assert_eq!(read(&storage, offset, len).await, expected(offset, len, end), "{offset} {len}");
    }
}

#[wasm_bindgen_test]
async fn what_was_read_is_answered_at_once_the_next_time() {
    let storage = BlobStorage::new(blob(1 << 20));
    let mut bytes = vec![0; 8192];
    assert!(storage.try_read_at(&mut bytes, 4096).is_none());
    read(&storage, 4096, 8192).await;
    storage.try_read_at(&mut bytes, 4096).unwrap().unwrap();
    assert_eq!(bytes, expected(4096, 8192, 1 << 20));
    // The end of the blob and beyond.
    read(&storage, (1 << 20) - 4096, 4096).await;
    storage.try_read_at(&mut bytes, (1 << 20) - 4096).unwrap().unwrap();
    assert_eq!(bytes, expected((1 << 20) - 4096, 8192, 1 << 20));
    storage.try_read_at(&mut bytes, 1 << 40).unwrap().unwrap();
    assert_eq!(bytes, vec![0; 8192]);
}

#[wasm_bindgen_test]
async fn a_small_read_of_a_huge_file_slices_one_block() {
    // 8 PiB and a bit: beyond 32 bits, exact in a double.
    let size = 9_007_199_254_740_991.0;
    let fake = fake(size);
    let storage = BlobStorage::new(fake.blob.clone());
    assert_eq!(storage.len().await.unwrap(), (1 << 53) - 1);
    let offset = (1 << 52) + 12_345;
    assert_eq!(read(&storage, offset, 4096).await, expected(offset, 4096, u64::MAX));
    let slices = fake.slices();
    assert_eq!(slices.len(), 1, "{slices:?}");
    let (start, end) = slices[0];
    assert!(start <= 4_503_599_627_382_841.0 && end - start <= 262_144.0, "{slices:?}");
    let last = (1 << 53) - 101;
    assert_eq!(read(&storage, last, 100).await, expected(last, 100, u64::MAX));
}

#[wasm_bindgen_test]
async fn many_readers_of_one_block_share_one_slice() {
    let fake = fake(1e12);
    let storage = BlobStorage::new(fake.blob.clone());
    let reads = (0..64).map(|i| read(&storage, (1 << 30) + 200_000 - i * 1024, 4096));
    for (i, bytes) in (0..).zip(join_all(reads).await) {
        assert_eq!(bytes, expected((1 << 30) + 200_000 - i * 1024, 4096, u64::MAX));
    }
    assert_eq!(fake.slices().len(), 1);
}

#[wasm_bindgen_test]
async fn a_sequential_reader_costs_one_slice_a_megabyte_and_bounded_memory() {
    let fake = fake(1e13);
    let storage = BlobStorage::new(fake.blob.clone());
    let mut pending = 0;
    for i in 0..640_u64 {
        let (offset, mut bytes) = (i * 65_536, vec![0; 65_536]);
        if storage.try_read_at(&mut bytes, offset).is_none() {
            pending += 1;
            bytes = read(&storage, offset, 65_536).await;
        }
        assert_eq!(bytes, expected(offset, 65_536, u64::MAX));
        let held = storage.statistics().bytes_held;
        assert!(held <= BlobStorage::HELD_LEN_MAX + (8 << 20), "{held} bytes held");
    }
    let slices = fake.slices();
    assert!(slices.len() <= 40 + 6 + 8, "{} slices for 40 MiB", slices.len());
    assert!(pending < 640, "no read was answered from what was read ahead");
}

#[wasm_bindgen_test]
async fn one_long_read_is_cut_into_slices() {
    let fake = fake(1e13);
    let storage = BlobStorage::new(fake.blob.clone());
    let bytes = read(&storage, 100, 20 << 20).await;
    assert!(bytes == expected(100, 20 << 20, u64::MAX));
    for (start, end) in fake.slices() {
        assert!(end - start <= 4_194_304.0, "{start}..{end}");
    }
}

#[wasm_bindgen_test]
async fn a_dropped_read_leaves_the_storage_whole() {
    let storage = BlobStorage::new(blob(1 << 20));
    for _ in 0..20 {
        let mut abandoned = Box::pin(storage.read_at(Buf::zeroed(4096), 0));
        assert!(futures::poll!(abandoned.as_mut()).is_pending());
        drop(abandoned);
        if storage.statistics().fetches > 0 {
            break;
        }
    }
    assert_eq!(read(&storage, 0, 4096).await, expected(0, 4096, 1 << 20));
}

#[wasm_bindgen_test]
async fn an_error_of_the_browser_is_told_to_every_reader_and_can_be_retried() {
    let make = Function::new_no_args(
        "let broken = true;
        return { size: 1e6, heal() { broken = false; }, slice(start, end) {
            return { arrayBuffer: async () => {
                if (broken) throw new DOMException('the disk is gone', 'NotReadableError');
                return new ArrayBuffer(end - start);
            } };
        } };",
    );
    let object = make.call0(&JsValue::NULL).unwrap();
    let storage = Rc::new(BlobStorage::new(object.clone().unchecked_into()));
    let reads = (0..3).map(|_| storage.read_at(Buf::zeroed(512), 0));
    for result in join_all(reads).await {
        let error = result.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied);
        assert_eq!(error.to_string(), "the disk is gone");
    }
    let heal: Function = Reflect::get(&object, &"heal".into()).unwrap().unchecked_into();
    heal.call0(&object).unwrap();
    assert_eq!(read(&*storage, 0, 512).await, vec![0; 512]);
}

#[wasm_bindgen_test]
async fn a_file_that_shrank_is_an_error_not_zeros() {
    let make = Function::new_no_args(
        "return { size: 1e6, slice: () => ({ arrayBuffer: async () => new ArrayBuffer(10) }) };",
    );
    let storage = BlobStorage::new(make.call0(&JsValue::NULL).unwrap().unchecked_into());
    let error = storage.read_at(Buf::zeroed(512), 0).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
}

#[wasm_bindgen_test]
async fn blobs_and_arrays_are_read_only() {
    let blob = BlobStorage::new(blob(512));
    let array = Uint8ArrayStorage::new(Uint8Array::new_with_length(512));
    let denied = std::io::ErrorKind::PermissionDenied;
    assert_eq!(blob.write_at(Buf::zeroed(1), 0).await.unwrap_err().kind(), denied);
    assert_eq!(array.write_at(Buf::zeroed(1), 0).await.unwrap_err().kind(), denied);
    assert_eq!(blob.set_len(0).await.unwrap_err().kind(), denied);
    assert_eq!(array.discard(0, 1).await.unwrap_err().kind(), denied);
}

#[wasm_bindgen_test]
async fn array_answers_every_read_at_once() {
    let bytes: Vec<u8> = (0..1000).map(pattern).collect();
    let array = Uint8Array::from(&bytes[..]);
    let storage = Uint8ArrayStorage::new(array.clone());
    for (offset, len) in [(0, 1000), (0, 0), (999, 1), (990, 20), (1000, 8), (u64::MAX, 8)] {
        let mut buf = vec![0xee; len];
        storage.try_read_at(&mut buf, offset).unwrap().unwrap();
        assert_eq!(buf, expected(offset, len, 1000));
        assert_eq!(read(&storage, offset, len).await, buf);
    }
}

#[wasm_bindgen_test]
async fn array_moved_to_another_thread_is_an_error_not_zeros() {
    let array = Uint8Array::new_with_length(512);
    let storage = Uint8ArrayStorage::new(array.clone());
    let take =
        Function::new_with_args("array", "structuredClone(array, { transfer: [array.buffer] })");
    take.call1(&JsValue::NULL, &array).unwrap();
    let error = storage.try_read_at(&mut [0; 4], 0).unwrap().unwrap_err();
    assert!(error.to_string().contains("moved to another thread"), "{error}");
}
