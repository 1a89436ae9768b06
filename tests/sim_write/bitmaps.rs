//! What bitmaps must say at any moment at which the power may go: that they are in use, or of everything that differs from the
//! disk as it was when they were made. And after a close no more than was asked to be changed, and that they are not in use.

use std::collections::BTreeSet;
use std::ops::Range;

use cowshed::format::BitmapFlags;
use cowshed::image::{Image, OpenOptions, References, Source};
use cowshed::storage::MemoryStorage;
use futures::executor::block_on;

use super::engine::{Files, Frozen};
use super::workload::{Plan, Tail, What};

/// The bitmaps: name, granularity, and whether it is enabled.
const BITMAPS: [(&[u8], u64, bool); 3] =
    [(b"fine", 512, true), (b"coarse", 8192, true), (b"off", 1024, false)];

/// Adds the bitmaps to an image.
pub fn add(image: Vec<u8>) -> Vec<u8> {
    let storage = std::sync::Arc::new(MemoryStorage::new(image));
    let mut options = OpenOptions::default();
    options.key = Some(super::setup::KEY.into());
    options.references = References::Leave;
    options.write = Some(cowshed::image::WriteOptions::default());
    block_on(async {
        let source = Source::qcow2(std::sync::Arc::clone(&storage), "image");
        let gate = cowshed::image::RefuseAll::new();
        let image = Image::open(source, &gate, options).await.unwrap().image;
        for (name, granularity, enabled) in BITMAPS {
            image.add_bitmap(name, Some(granularity), enabled).await.unwrap();
        }
        image.close().await.unwrap();
    });
    storage.to_vec()
}

/// Holds the bitmaps against the disk, which reads as `bytes` and read as `first`. Returns which are in use.
///
/// # Errors
/// What is wrong.
pub fn check(
    plan: &Plan,
    first: &[u8],
    files: &Files<Frozen>,
    bytes: &[u8],
) -> Result<BTreeSet<Vec<u8>>, String> {
    let wrong = |error: cowshed::Error| format!("bitmaps: {error} ({error:?})");
    let mut options = OpenOptions::default();
    options.references = References::Leave;
    block_on(async {
        let source = Source::qcow2(files.image.clone(), "image");
        let gate = cowshed::image::RefuseAll::new();
        let image = Image::open(source, &gate, options).await.map_err(wrong)?.image;
        let bitmaps = image.load_bitmaps().await.map_err(wrong)?;
        if bitmaps.len() != BITMAPS.len() {
            return Err(format!("{} bitmaps are left of {}", bitmaps.len(), BITMAPS.len()));
        }
        let mut in_use = BTreeSet::new();
        for (bitmap, (name, granularity, enabled)) in bitmaps.iter().zip(BITMAPS) {
            let shown = String::from_utf8_lossy(name);
            if bitmap.name != name || bitmap.granularity() != granularity {
                return Err(format!("bitmap {shown} is {bitmap:?}"));
            }
            if bitmap.flags.contains(BitmapFlags::IN_USE) {
                in_use.insert(name.to_vec());
                continue;
            }
            let mut ranges = image.bitmap_ranges(name).await.map_err(wrong)?;
            let mut marked = vec![false; bytes.len().div_ceil(512)];
            while let Some(range) = ranges.next().await.map_err(wrong)? {
                marked[sectors(&range)].fill(true);
            }
            let may = may_be_marked(plan, granularity, marked.len());
            // What a disk loses and gains again is not marked.
            let sizes = plan.ops.iter().filter(|op| op.what == What::Resize).map(|op| op.len);
            let kept = sizes.min().unwrap_or(u64::MAX).min(first.len() as u64);
            for (sector, marked) in marked.iter().enumerate() {
                let range = sector * 512..(sector + 1) * 512;
                let is_kept = range.end as u64 <= kept;
                let differs = is_kept && bytes.get(range.clone()) != first.get(range);
                if enabled && differs && !marked {
                    return Err(format!("bitmap {shown} misses the change of sector {sector}"));
                }
                if *marked && !(enabled && may[sector]) {
                    return Err(format!(
                        "bitmap {shown} marks sector {sector}, which nobody changed"
                    ));
                }
            }
        }
        Ok(in_use)
    })
}

/// The sectors that some request may have changed, in whole granules.
fn may_be_marked(plan: &Plan, granularity: u64, sectors_len: usize) -> Vec<bool> {
    if plan.tails.iter().any(|tail| *tail != Tail::Nothing) {
        return vec![true; sectors_len];
    }
    let mut may = vec![false; sectors_len];
    for op in &plan.ops {
        match op.what {
            What::Read | What::Flush | What::Resize => continue,
            // Another state of the disk may differ anywhere.
            What::Snapshot(..) | What::Empty => return vec![true; sectors_len],
            _ => {}
        }
        let start = op.offset / granularity * granularity;
        let end = (op.offset + op.len).next_multiple_of(granularity);
        let range = sectors(&(start..end));
        may[range.start.min(sectors_len)..range.end.min(sectors_len)].fill(true);
    }
    may
}

fn sectors(range: &Range<u64>) -> Range<usize> {
    let index = |offset: u64| usize::try_from(offset / 512).unwrap();
    index(range.start)..index(range.end.next_multiple_of(512))
}
