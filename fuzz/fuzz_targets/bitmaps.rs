//! Any image with whatever it calls bitmaps, written to: nothing panics, hangs or takes memory without bound.
//!
//! The oracles: a bitmap that is trusted and enabled marks afterwards what it marked before and all that was changed; one
//! that is not enabled marks what it marked; what was left in use stays so; and no bitmap that is trusted covers less than it did.

#![no_main]

use cowshed::format::BitmapFlags;
use cowshed::image::{Image, OpenOptions, References, RefuseAll, Source, WriteOptions, ZeroMode};
use cowshed::storage::MemoryStorage;
use futures::executor::block_on;
use libfuzzer_sys::fuzz_target;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// How many ranges of a bitmap are looked at.
const RANGES_MAX: usize = 512;
/// Bytes of the input that say what is changed.
const CHANGES_LEN: usize = 16;

type Ranges = Vec<Range<u64>>;

fuzz_target!(|data: &[u8]| {
    if data.len() > CHANGES_LEN {
        let (changes, image) = data.split_at(CHANGES_LEN);
        block_on(run(changes, image));
    }
});

async fn open(storage: &Arc<MemoryStorage>) -> Option<Image<Arc<MemoryStorage>>> {
    let mut options = OpenOptions::default();
    options.references = References::Leave;
    options.write = Some(WriteOptions::default());
    let source = Source::qcow2(Arc::clone(storage), "fuzz");
    Some(Image::open(source, &RefuseAll::new(), options).await.ok()?.image)
}

/// What each bitmap marks, if it can be read and is not too much; and its flags.
async fn bitmaps(
    image: &Image<Arc<MemoryStorage>>,
) -> BTreeMap<Vec<u8>, (BitmapFlags, Option<Ranges>)> {
    let mut all = BTreeMap::new();
    for bitmap in image.load_bitmaps().await.unwrap_or_default().into_iter().take(16) {
        let ranges = ranges(image, &bitmap.name).await;
        all.insert(bitmap.name, (bitmap.flags, ranges));
    }
    all
}

async fn ranges(image: &Image<Arc<MemoryStorage>>, name: &[u8]) -> Option<Ranges> {
    let mut ranges = image.bitmap_ranges(name).await.ok()?;
    let mut all: Ranges = Vec::new();
    while let Some(range) = ranges.next().await.ok()? {
        assert!(range.start < range.end && range.end <= image.virtual_size());
        assert!(all.last().is_none_or(|last| last.end < range.start), "ranges touch");
        all.push(range);
        if all.len() > RANGES_MAX {
            return None;
        }
    }
    Some(all)
}

async fn run(changes: &[u8], bytes: &[u8]) {
    let storage = Arc::new(MemoryStorage::new(bytes.to_vec()));
    let Some(image) = open(&storage).await else { return };
    let before = bitmaps(&image).await;
    let size = image.virtual_size();
    let mut changed: Ranges = Vec::new();
    for change in changes.chunks_exact(4) {
        let at = u64::from(u16::from_be_bytes([change[1], change[2]])) * 509 % size.max(1);
        let len = (u64::from(change[3]) * 37).min(size - at);
        let done = match change[0] % 4 {
            0 => image.write_at(&vec![1; len as usize], at).await,
            1 => image.write_zeroes_at(at, len, ZeroMode::MayUnmap).await,
            2 => image.discard_at(at, len).await,
            _ => image.flush().await,
        };
        if done.is_ok() && change[0] % 4 < 3 && len > 0 {
            changed.push(at..at + len);
        }
    }
    if image.close().await.is_err() {
        return;
    }
    let Some(image) = open(&storage).await else { return };
    let after = bitmaps(&image).await;
    for (name, (flags, marked)) in &before {
        let Some((now, marks)) = after.get(name) else { panic!("a bitmap is gone") };
        assert_eq!(flags, now, "flags change");
        let (Some(marked), Some(marks)) = (marked, marks) else { continue };
        if !flags.contains(BitmapFlags::AUTO) {
            assert_eq!(marked, marks, "a bitmap that is not enabled changes");
            continue;
        }
        for range in marked.iter().chain(&changed) {
            let is_in = |marks: &Range<u64>| marks.start <= range.start && range.end <= marks.end;
            assert!(marks.iter().any(is_in), "{range:?} is not marked");
        }
    }
    image.close().await.expect("nothing was changed");
}
