//! The refcounts that the image itself keeps: reading them in order, and one by one.

use std::ops::Range;

use super::layout::Layout;
use super::source::{Piece, Source};
use super::walk::words;
use crate::error::Result;
use crate::storage::Storage;

/// Bits 9 to 63 of an entry of the refcount table.
pub(super) const BLOCK_OFFSET_MASK: u64 = !TABLE_RESERVED;
/// Bits 0 to 8.
pub(super) const TABLE_RESERVED: u64 = 0x1ff;
/// Entries of the refcount table that are read at once.
const TABLE_ENTRIES_AT_ONCE: u64 = 16 << 10;

/// Refcounts of successive clusters.
pub(super) enum Run<'a> {
    /// All zero: there is no refcount block, or the file does not have it.
    Zero,
    /// The refcount block's offset is not aligned, or too large for a file.
    Unknown,
    /// A part of a refcount block, from the first cluster's entry on.
    Entries(&'a [u8]),
}

/// The refcount table and its blocks.
pub(super) struct Refcounts<'a, 'b, S> {
    pub(super) layout: &'a Layout,
    pub(super) source: &'a Source<'b, S>,
}

/// A refcount block, and the clusters that are asked of it.
struct Block {
    offset: u64,
    clusters: Range<u64>,
}

impl<S: Storage> Refcounts<'_, '_, S> {
    /// Hands over the refcounts of a range of clusters, in order. The range starts at a multiple of 8.
    ///
    /// # Errors
    /// The storage's.
    pub(super) async fn each(
        &self,
        clusters: Range<u64>,
        mut take: impl FnMut(Range<u64>, Run<'_>),
    ) -> Result<()> {
        let mut at = clusters.start;
        while at < clusters.end {
            let blocks = self.blocks(at..clusters.end).await?;
            let mut rest = &blocks[..];
            while let Some(block) = rest.first() {
                let whole = rest.iter().take_while(|block| self.is_whole(block)).count();
                if whole > 0 {
                    let pieces = rest[..whole].iter().map(|block| self.piece(block));
                    self.source
                        .each(pieces, |from, bytes, (start, clusters)| {
                            let first = clusters.start + self.entries_in(from - start);
                            let end = clusters.end.min(first + self.entries_in(bytes.len() as u64));
                            take(first..end, Run::Entries(bytes));
                        })
                        .await?;
                    rest = &rest[whole..];
                    continue;
                }
                self.broken(block, &mut take).await?;
                rest = &rest[1..];
            }
            match blocks.last() {
                Some(block) => at = block.clusters.end,
                None => {
                    take(at..clusters.end, Run::Zero);
                    break;
                }
            }
        }
        Ok(())
    }

    /// Finds the refcount of one cluster anywhere; `None` if its block is not aligned. `memory` makes this cheap for
    /// clusters in order.
    ///
    /// # Errors
    /// The storage's.
    pub(super) async fn of(&self, cluster: u64, memory: &mut Memory) -> Result<Option<u64>> {
        let first = cluster & !7;
        if memory.clusters.start != first || memory.clusters.is_empty() {
            memory.clusters = first..first + 8;
            memory.refcounts = [Some(0); 8];
            let refcounts = &mut memory.refcounts;
            self.each(first..first + 8, |run, entries| {
                for cluster in run.clone() {
                    // OK to cast: below 8.
                    #[allow(clippy::cast_possible_truncation)]
                    let slot = (cluster - first) as usize;
                    refcounts[slot] = match &entries {
                        Run::Zero => Some(0),
                        Run::Unknown => None,
                        Run::Entries(bytes) => {
                            Some(refcount(bytes, self.layout.refcount_order, cluster - run.start))
                        }
                    };
                }
            })
            .await?;
        }
        // OK to cast: below 8.
        #[allow(clippy::cast_possible_truncation)]
        Ok(memory.refcounts[(cluster - first) as usize])
    }

    /// The next refcount blocks of the table; none if the table ends before.
    async fn blocks(&self, clusters: Range<u64>) -> Result<Vec<Block>> {
        let entries = self.layout.block_entries;
        let table = &self.layout.refcount_table;
        let first = clusters.start / entries;
        let last = ((clusters.end - 1) / entries + 1)
            .min((table.end - table.start) / 8)
            .min(first.saturating_add(TABLE_ENTRIES_AT_ONCE));
        if first >= last {
            return Ok(Vec::new());
        }
        let mut bytes = Vec::new();
        self.source.read(table.start + first * 8..table.start + last * 8, &mut bytes).await?;
        // What the file does not have of the table was reported; it counts as zeros.
        let offsets = words(&bytes).chain(std::iter::repeat(0));
        Ok((first..last)
            .zip(offsets)
            .map(|(index, entry)| Block {
                offset: entry & BLOCK_OFFSET_MASK,
                clusters: clusters.start.max(index * entries)
                    ..clusters.end.min((index + 1) * entries),
            })
            .collect())
    }

    /// Where the refcount block of a cluster is; 0 if there is none.
    ///
    /// # Errors
    /// The storage's.
    pub(super) async fn block_offset(&self, cluster: u64) -> Result<u64> {
        let blocks = self.blocks(cluster..cluster + 1).await?;
        Ok(blocks.first().map_or(0, |block| block.offset))
    }

    fn is_whole(&self, block: &Block) -> bool {
        block.offset != 0
            && self.is_readable(block)
            && self.layout.missing(&self.piece(block).range) == 0
    }

    /// Whether QEMU would read the block at all.
    fn is_readable(&self, block: &Block) -> bool {
        self.layout.is_aligned(block.offset) && i64::try_from(block.offset).is_ok()
    }

    /// The part of a block to read, with where it starts.
    fn piece(&self, block: &Block) -> Piece<(u64, Range<u64>)> {
        let bits = self.layout.refcount_bits();
        let entry = block.clusters.start % self.layout.block_entries;
        let start = block.offset.saturating_add(entry * bits / 8);
        let len = ((block.clusters.end - block.clusters.start) * bits).div_ceil(8);
        Piece { range: start..start.saturating_add(len), what: (start, block.clusters.clone()) }
    }

    /// How many refcounts are in so many bytes.
    fn entries_in(&self, len: u64) -> u64 {
        len * 8 / self.layout.refcount_bits()
    }

    async fn broken(
        &self,
        block: &Block,
        take: &mut impl FnMut(Range<u64>, Run<'_>),
    ) -> Result<()> {
        if block.offset == 0 {
            take(block.clusters.clone(), Run::Zero);
            return Ok(());
        }
        if !self.is_readable(block) {
            take(block.clusters.clone(), Run::Unknown);
            return Ok(());
        }
        let mut bytes = Vec::new();
        self.source.read(self.piece(block).range, &mut bytes).await?;
        let there = self.entries_in(bytes.len() as u64);
        let middle = block.clusters.end.min(block.clusters.start + there);
        take(block.clusters.start..middle, Run::Entries(&bytes));
        take(middle..block.clusters.end, Run::Zero);
        Ok(())
    }
}

/// The refcounts last found by [`Refcounts::of`].
#[derive(Default)]
pub(super) struct Memory {
    clusters: Range<u64>,
    refcounts: [Option<u64>; 8],
}

/// The refcount at an index of a refcount block's bytes; 0 where the bytes end.
#[inline]
pub(super) fn refcount(bytes: &[u8], order: u32, index: u64) -> u64 {
    // An index too large for memory is behind the end of the bytes.
    let index = usize::try_from(index).unwrap_or(usize::MAX);
    let number = |len: usize| {
        let start = index.saturating_mul(len);
        let bytes = bytes.get(start..start.saturating_add(len)).unwrap_or_default();
        bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
    };
    match order {
        0..3 => {
            let per_byte = 8 >> order;
            let byte = bytes.get(index / per_byte).copied().unwrap_or(0);
            u64::from(byte >> ((index % per_byte) << order)) & ((1 << (1 << order)) - 1)
        }
        3 => number(1),
        4 => number(2),
        5 => number(4),
        _ => number(8),
    }
}

/// Sets the refcount at an index of a refcount block's bytes, if the bytes have it.
pub(super) fn set_refcount(bytes: &mut [u8], order: u32, index: u64, value: u64) {
    let index = usize::try_from(index).unwrap_or(usize::MAX);
    if order < 3 {
        let per_byte = 8 >> order;
        let shift = (index % per_byte) << order;
        // OK to cast: the mask has at most four bits, and the value is cut to them.
        #[allow(clippy::cast_possible_truncation)]
        let (mask, value) = (((1_u16 << (1 << order)) - 1) as u8, value as u8);
        if let Some(byte) = bytes.get_mut(index / per_byte) {
            *byte = *byte & !(mask << shift) | (value & mask) << shift;
        }
        return;
    }
    let len = 1 << (order - 3);
    let start = index.saturating_mul(len);
    if let Some(bytes) = bytes.get_mut(start..start.saturating_add(len)) {
        bytes.copy_from_slice(&value.to_be_bytes()[8 - len..]);
    }
}

#[cfg(test)]
mod tests {
    use super::{refcount, set_refcount};

    #[test]
    fn refcounts_of_every_width_are_read_as_they_were_set() {
        for order in 0..7 {
            let max = u64::MAX >> (64 - (1_u64 << order));
            let mut bytes = [0xa5; 64];
            let count = (64 * 8) >> order;
            for index in 0..count {
                set_refcount(&mut bytes, order, index, (index + 1) & max);
            }
            set_refcount(&mut bytes, order, 3, max);
            for index in 0..count {
                let expected = if index == 3 { max } else { (index + 1) & max };
                assert_eq!(refcount(&bytes, order, index), expected, "order {order}, {index}");
            }
        }
    }
}
