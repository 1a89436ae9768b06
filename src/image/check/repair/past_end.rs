//! Refcounts of clusters past the end of the file.
//!
//! A power loss leaves them where it keeps a refcount and loses the length that the file had by then. No check counts them,
//! as no space is lost; but a file that became longer again would come to have them as leaks.

use super::Target;
use crate::error::Result;
use crate::image::check::refcounts::{Refcounts, Run, refcount, set_refcount};
use crate::image::check::source::to_usize;
use crate::storage::Storage;

/// Makes the refcounts of all clusters from `first` on zero, to which nothing may refer. The refcount blocks must be sound.
///
/// # Errors
/// The storage's.
pub(super) async fn clear<S: Storage>(
    refcounts: &Refcounts<'_, '_, S>,
    target: &Target<'_, S>,
    first: u64,
) -> Result<()> {
    let layout = refcounts.layout;
    let (entries, bits) = (layout.block_entries, layout.refcount_bits());
    let table_entries = (layout.refcount_table.end - layout.refcount_table.start) / 8;
    let end = table_entries.saturating_mul(entries);
    if first >= end {
        return Ok(());
    }
    let mut blocks: Vec<u64> = Vec::new();
    refcounts
        .each(first & !7..end, |run, part| {
            let Run::Entries(bytes) = part else { return };
            let is_set = |at| refcount(bytes, layout.refcount_order, at - run.start) != 0;
            let index = run.start / entries;
            let found = match run.start < first {
                true => (first..run.end).any(is_set),
                false => bytes.iter().any(|byte| *byte != 0),
            };
            if found && blocks.last() != Some(&index) {
                blocks.push(index);
            }
        })
        .await?;
    for index in blocks {
        let block = refcounts.block_offset(index * entries).await?;
        let start = first.max(index * entries) % entries;
        // The first byte may tell of clusters before, too.
        let from = start & !7;
        let mut bytes = Vec::new();
        let range = block + from * bits / 8..block + layout.cluster_size;
        refcounts.source.read(range.clone(), &mut bytes).await?;
        for at in start..from + 8 {
            set_refcount(&mut bytes, layout.refcount_order, at - from, 0);
        }
        if let Some(rest) = bytes.get_mut(to_usize(bits)..) {
            rest.fill(0);
        }
        target.write(range.start, &bytes).await?;
    }
    Ok(())
}
