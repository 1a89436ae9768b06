//! Zeroing L2 entries that keep a cluster for zeros and are not aligned.
//!
//! QEMU's qcow2-refcount.c: fix_l2_entry_by_zero.

use super::{Target, Word, fixed};
use crate::error::Result;
use crate::image::check::cover::{Segment, Tables};
use crate::image::check::layout::Layout;
use crate::image::check::report::{CheckObserver, RepairStep};
use crate::image::check::source::{Piece, Source};
use crate::image::check::walk::{COMPRESSED, OFFSET_MASK, SUBCLUSTERS, Tally, ZERO, words};
use crate::storage::Storage;

/// Words that are written before the tables are read again.
const WORDS_MAX: usize = 512 << 10;

/// Zeroes them wherever an L2 table has its cluster to itself, and returns how many are left.
///
/// # Errors
/// The storage's.
pub(super) async fn zero<S: Storage, O: CheckObserver>(
    layout: &Layout,
    source: &Source<'_, S>,
    l1: &[Segment],
    tables_max: usize,
    target: &Target<'_, S>,
    tally: &mut Tally<'_, O>,
) -> Result<u64> {
    let mut left = 0_u64;
    let mut from = 0;
    loop {
        let mut tables = Tables::new(from, tables_max);
        let pieces =
            l1.iter().map(|segment| Piece { range: segment.range.clone(), what: segment.weight });
        source
            .each(pieces, |_, bytes, weight| {
                for entry in words(bytes) {
                    let offset = entry & OFFSET_MASK;
                    if offset != 0 && offset < layout.file_len {
                        tables.add(offset, *weight);
                    }
                }
            })
            .await?;
        tables.sort();
        let mut again = false;
        loop {
            let mut full = false;
            let mut found: Vec<Word> = Vec::new();
            let pieces = tables
                .segments(layout.cluster_size)
                .map(|segment| Piece { range: segment.range, what: segment.base });
            source
                .each(pieces, |at, bytes, base| {
                    let own = layout.is_aligned(*base) && !fixed(tally).is_shared(*base, layout);
                    let step = if layout.extended_l2 { 2 } else { 1 };
                    let mut entries = words(bytes);
                    let mut place = at;
                    while let Some(entry) = entries.next() {
                        let bitmap = if step == 2 { entries.next().unwrap_or(0) } else { 0 };
                        if let Some((entry, bitmap)) = zeroed(layout, entry, bitmap) {
                            if !own {
                                left += u64::from(!again);
                            } else if found.len() + 2 > WORDS_MAX {
                                full = true;
                            } else {
                                found.push(Word { place, value: entry });
                                if step == 2 {
                                    found.push(Word { place: place + 8, value: bitmap });
                                }
                            }
                        }
                        place += 8 * step;
                    }
                })
                .await?;
            target.write_words(&mut found).await?;
            again = true;
            if !full {
                break;
            }
        }
        match tables.limit() {
            Some(limit) => from = limit,
            None => break,
        }
    }
    if left > 0 {
        tally.observer.step(&RepairStep::TableShared);
    }
    Ok(left)
}

/// What an entry becomes, if it is one of those.
fn zeroed(layout: &Layout, entry: u64, bitmap: u64) -> Option<(u64, u64)> {
    let offset = entry & OFFSET_MASK;
    if entry & COMPRESSED != 0 || layout.is_aligned(offset) {
        return None;
    }
    if layout.extended_l2 {
        // Clusters that are there become zeros; there are none, or the entry would hold data.
        return (bitmap & SUBCLUSTERS == 0).then_some((0, bitmap & !SUBCLUSTERS));
    }
    (entry & ZERO != 0).then_some((ZERO, 0))
}
