//! Any file, opened, mapped, read and checked, and each of its snapshots: nothing panics, hangs or takes memory without
//! bound, and what the engine says of an image agrees with itself.
//!
//! The oracles: bytes that `map` says are data at a host offset are the file's bytes there; what it says reads as zeros
//! reads as zeros; a range read at once is the range read in pieces; an image that checks clean has no corrupt table.

#![no_main]

use cowshed::error::Error;
use cowshed::image::check::{CheckOptions, check_storage};
use cowshed::image::{
    Answer, ExtentKind, Gate, Image, OpenOptions, Reference, ReferenceKind, SnapshotSelector,
    Source,
};
use cowshed::storage::MemoryStorage;
use futures::executor::block_on;
use libfuzzer_sys::fuzz_target;
use std::sync::Arc;

/// How much is read from each place.
const PIECE: u64 = 96 << 10;
/// How many extents are looked at from each place.
const EXTENTS_MAX: usize = 64;
/// How many snapshots are opened.
const SNAPSHOTS_MAX: usize = 8;

fuzz_target!(|data: &[u8]| block_on(run(data)));

/// Backing files read as zeros, data files are refused.
struct NoOthers;

impl Gate for NoOthers {
    type Storage = Arc<MemoryStorage>;

    async fn open(&self, reference: &Reference<'_>) -> cowshed::Result<Answer<Self::Storage>> {
        match reference.kind {
            ReferenceKind::BackingFile => Ok(Answer::Zeros),
            _ => Err(reference.refused("there is no other file")),
        }
    }
}

async fn run(data: &[u8]) {
    let storage = Arc::new(MemoryStorage::new(data.to_vec()));
    let options = CheckOptions::default();
    let report = check_storage(&storage, &options, &mut ()).await;
    if let Ok(report) = &report {
        let small = options.memory_bytes_max(4 << 20);
        let mut again =
            check_storage(&storage, &small, &mut ()).await.expect("it was checked before");
        again.passes = report.passes;
        assert_eq!(*report, again, "a check depends on its memory");
    }
    let clean = report.is_ok_and(|report| report.is_clean() && report.flags_skipped == 0);

    let Some(image) = open(&storage, None, clean).await else { return };
    let snapshots = image.snapshots();
    read_image(image, clean).await;
    for snapshot in snapshots.iter().take(SNAPSHOTS_MAX) {
        // Of several with one id the first is meant.
        let selector = SnapshotSelector::Id(snapshot.id.clone());
        if let Some(image) = open(&storage, Some(selector), clean).await {
            read_image(image, clean).await;
        }
    }
}

async fn open(
    storage: &Arc<MemoryStorage>,
    snapshot: Option<SnapshotSelector>,
    clean: bool,
) -> Option<Image<Arc<MemoryStorage>>> {
    let mut options = OpenOptions::default();
    options.snapshot = snapshot;
    match Image::open(Source::qcow2(storage.clone(), "fuzz"), &NoOthers, options).await {
        Ok(opened) => Some(opened.image),
        Err(error) => {
            assert!(!error.to_string().is_empty());
            let is_corrupt = matches!(error, Error::Corrupt(_));
            assert!(!clean || !is_corrupt, "an image that checks clean: {error}");
            None
        }
    }
}

async fn read_image(image: Image<Arc<MemoryStorage>>, clean: bool) {
    let size = image.virtual_size();
    for start in [0, size / 2, size.saturating_sub(PIECE)] {
        read_place(&image, start, (size - start).min(PIECE), clean).await;
    }
    image.close().await.expect("a read-only image closes");
    assert!(matches!(image.read_at(&mut [0], 0).await, Err(Error::Closed)));
}

async fn read_place(image: &Image<Arc<MemoryStorage>>, start: u64, len: u64, clean: bool) {
    if len == 0 {
        return;
    }
    let mut whole = vec![0xaa; len as usize];
    let whole_read = image.read_at(&mut whole, start).await;
    let mut extents = image.extents(start, len).expect("the range is within the disk");
    let mut at = start;
    for _ in 0..EXTENTS_MAX {
        let extent = match extents.next().await {
            Ok(Some(extent)) => extent,
            Ok(None) => {
                assert_eq!(at, start + len, "the extents end early");
                break;
            }
            Err(error) => {
                assert!(
                    !clean || !matches!(error, Error::Corrupt(_)),
                    "an image that checks clean: {error}"
                );
                assert!(whole_read.is_err(), "what cannot be mapped was read: {error}");
                break;
            }
        };
        assert_eq!(extent.offset, at, "the extents leave a gap");
        assert!(extent.len > 0 && extent.len <= start + len - at);
        at += extent.len;
        check_extent(image, extent.offset, extent.len, extent.kind).await;
    }
    if whole_read.is_ok() {
        // In pieces of odd lengths.
        let mut done = 0;
        let mut pieces = vec![0x55; whole.len()];
        while done < pieces.len() {
            let end = pieces.len().min(done + 4093);
            image
                .read_at(&mut pieces[done..end], start + done as u64)
                .await
                .expect("it was read before");
            done = end;
        }
        assert!(pieces == whole, "a range read at once differs from its pieces");
    }
}

async fn check_extent(image: &Image<Arc<MemoryStorage>>, offset: u64, len: u64, kind: ExtentKind) {
    let mut guest = vec![0x33; len.min(8192) as usize];
    let read = image.read_at(&mut guest, offset).await;
    match kind {
        ExtentKind::Data { host } => {
            read.expect("data can be read");
            let mut bytes = vec![0; guest.len()];
            // Data past the end of the file reads as zeros: there is nothing to compare with.
            if image.read_host(&mut bytes, host.get()).await.is_ok() {
                assert!(guest == bytes, "guest {offset:#x} is not host {:#x}", host.get());
            }
        }
        ExtentKind::Zero { .. } | ExtentKind::Hole { .. } | ExtentKind::Unallocated { .. } => {
            read.expect("zeros can be read");
            assert!(guest.iter().all(|byte| *byte == 0), "guest {offset:#x} is not zeros");
        }
        ExtentKind::Compressed { len, .. } => assert!(len > 0),
    }
}
