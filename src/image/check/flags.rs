//! Copied flags against refcounts: saying which do not agree, and mending them.
//!
//! QEMU's qcow2-refcount.c: check_oflag_copied.

use super::counts::Cell;
use super::cover::{Segment, Tables};
use super::layout::Layout;
use super::refcounts::{Memory, Refcounts, Run, refcount};
use super::repair::{Mending, Target, Word};
use super::report::{CheckObserver, FindingKind, Structure};
use super::source::Piece;
use super::walk::{COMPRESSED, COPIED, OFFSET_MASK, Pass, words};
use crate::error::Result;
use crate::storage::Storage;

/// Copied flags whose refcounts are looked up one by one: those of clusters past the end of the file, and of clusters
/// with very many references.
const LOOKUPS_MAX: usize = 128 << 10;
/// Flags that are mended before the tables are read again.
const WORDS_MAX: usize = 512 << 10;

impl<C: Cell, O: CheckObserver> Pass<'_, '_, C, O> {
    /// Reads the active tables again, and says which copied flags do not agree with the refcounts of this window's
    /// clusters; in the last window, of those past the end of the file too. With a `target` it mends them there, where
    /// the table has its cluster to itself.
    ///
    /// # Errors
    /// The storage's.
    pub(super) async fn copied_flags<S: Storage>(
        mut self,
        refcounts: &Refcounts<'_, '_, S>,
        l1: &[Segment],
        tables_max: usize,
        last: bool,
        target: Option<&Target<'_, S>>,
    ) -> Result<()> {
        self.load_refcounts(refcounts).await?;
        let source = refcounts.source;
        let by_data_file = self.layout.data_file;
        // Flags of clusters in a data file have nothing to do with refcounts; a check compares them on its way.
        let tables_differ = !by_data_file
            || (last && self.tally.mending.as_ref().is_some_and(|m| m.data_flags_differ));
        let mut flags = Flags {
            pass: self,
            last,
            mends: target.is_some(),
            again: false,
            full: false,
            later: Vec::new(),
            words: Vec::new(),
        };
        let active = || l1.iter().filter(|segment| segment.weight.active > 0);
        let mut from = 0;
        loop {
            let mut tables = Tables::new(from, tables_max);
            let pieces = active()
                .map(|segment| Piece { range: segment.range.clone(), what: segment.weight });
            source
                .each(pieces, |at, bytes, weight| {
                    for (place, entry) in (at..).step_by(8).zip(words(bytes)) {
                        let offset = entry & OFFSET_MASK;
                        if offset == 0 {
                            continue;
                        }
                        if from == 0 {
                            flags.compare(place, place, entry, weight.active, true);
                        }
                        if offset < flags.pass.layout.file_len {
                            tables.add(offset, *weight);
                        }
                    }
                })
                .await?;
            tables.sort();
            while from == 0 && std::mem::take(&mut flags.full) {
                flags.store(target).await?;
                flags.again = true;
                let pieces =
                    active().map(|segment| Piece { range: segment.range.clone(), what: () });
                source
                    .each(pieces, |at, bytes, ()| {
                        for (place, entry) in (at..).step_by(8).zip(words(bytes)) {
                            if entry & OFFSET_MASK != 0 {
                                flags.compare(place, place, entry, 1, true);
                            }
                        }
                    })
                    .await?;
            }
            flags.again = false;
            let len = flags.pass.layout.cluster_size;
            if tables_differ {
                loop {
                    let pieces = tables
                        .segments(len)
                        .filter(|segment| segment.weight.active > 0)
                        .map(|segment| Piece {
                            range: segment.range,
                            what: (segment.weight.active, segment.base),
                        });
                    source
                        .each(pieces, |at, bytes, (times, base)| {
                            flags.table(at, bytes, *times, *base)
                        })
                        .await?;
                    flags.again = std::mem::take(&mut flags.full);
                    flags.store(target).await?;
                    if !flags.again {
                        break;
                    }
                }
            }
            flags.store(target).await?;
            match tables.limit() {
                Some(limit) => from = limit,
                None => break,
            }
        }
        flags.look_up(refcounts).await?;
        flags.store(target).await
    }

    /// Makes the window one of refcounts. Those that are not known are marked as metadata.
    async fn load_refcounts<S: Storage>(&mut self, refcounts: &Refcounts<'_, '_, S>) -> Result<()> {
        let order = self.layout.refcount_order;
        self.counts.clear();
        let window = self.counts.first..self.counts.first + self.counts.cells.len() as u64;
        refcounts
            .each(window, |run, entries| {
                let within = self.counts.within(&run);
                for cluster in within {
                    // OK to cast: within the window, which is in memory.
                    #[allow(clippy::cast_possible_truncation)]
                    let index = (cluster - self.counts.first) as usize;
                    match &entries {
                        Run::Zero => {}
                        Run::Unknown => self.counts.cells[index] = C::METADATA,
                        Run::Entries(bytes) => {
                            self.counts.set(index, refcount(bytes, order, cluster - run.start));
                        }
                    }
                }
            })
            .await
    }
}

/// A copied flag to compare when the refcount is known.
struct Later {
    cluster: u64,
    place: u64,
    /// Where its table starts.
    table: u64,
    entry: u64,
    times: u64,
    is_l1: bool,
}

struct Flags<'p, 't, C, O> {
    pass: Pass<'p, 't, C, O>,
    last: bool,
    mends: bool,
    /// The same tables are read again, because there were too many flags to mend at once.
    again: bool,
    full: bool,
    later: Vec<Later>,
    words: Vec<Word>,
}

impl<C: Cell, O: CheckObserver> Flags<'_, '_, C, O> {
    fn table(&mut self, at: u64, bytes: &[u8], times: u64, base: u64) {
        let layout = self.pass.layout;
        let entry_len = layout.l2_entry_len;
        let step = if layout.extended_l2 { 2 } else { 1 };
        for (n, entry) in words(bytes).enumerate().step_by(step) {
            let place = at + n as u64 * 8;
            debug_assert_eq!((place - at) % entry_len, 0);
            if entry & COMPRESSED != 0 || entry & OFFSET_MASK == 0 {
                continue;
            }
            if layout.data_file {
                let flag = Later { cluster: 0, place, table: base, entry, times, is_l1: false };
                self.found(&flag, 1);
            } else {
                self.compare(place, base, entry, times, false);
            }
        }
    }

    fn compare(&mut self, place: u64, table: u64, entry: u64, times: u64, is_l1: bool) {
        let layout = self.pass.layout;
        let cluster = (entry & OFFSET_MASK) >> layout.cluster_bits;
        let counts = &self.pass.counts;
        let cell = cluster
            .checked_sub(counts.first)
            .and_then(|index| usize::try_from(index).ok())
            .and_then(|index| counts.cells.get(index));
        let later = Later { cluster, place, table, entry, times, is_l1 };
        match cell {
            Some(cell) if cell.has(C::METADATA) => {}
            Some(cell) if cell.bits() & C::COUNT == C::COUNT => {
                if self.again {
                } else if self.later.len() < LOOKUPS_MAX {
                    self.later.push(later);
                } else {
                    self.found(&later, C::COUNT);
                }
            }
            Some(cell) => self.found(&later, cell.bits() & C::COUNT),
            None if self.last && cluster >= layout.cells && !self.again => {
                if self.later.len() < LOOKUPS_MAX {
                    self.later.push(later);
                } else {
                    let skipped = &mut self.pass.tally.report.flags_skipped;
                    *skipped = skipped.saturating_add(times);
                }
            }
            None => {}
        }
    }

    fn found(&mut self, flag: &Later, refcount: u64) {
        let Later { place, entry, times, is_l1, .. } = *flag;
        if (refcount == 1) == (entry & COPIED != 0) {
            return;
        }
        let (kind, structure) = if is_l1 {
            let index = place.saturating_sub(self.pass.layout.l1_table.start) / 8;
            (FindingKind::L1Copied { index, entry, refcount }, Structure::L1Table)
        } else {
            (FindingKind::DataCopied { entry, refcount }, Structure::L2Table)
        };
        if self.mends && self.is_own(flag) {
            if self.words.len() < WORDS_MAX {
                self.words.push(Word { place, value: entry ^ COPIED });
                self.pass.tally.repaired(kind, structure, place);
            } else {
                self.full = true;
            }
        } else if !self.again {
            self.pass.tally.found(kind, structure, place, times);
        }
    }

    /// Whether nothing but its table uses the flag's place.
    fn is_own(&self, flag: &Later) -> bool {
        let layout: &Layout = self.pass.layout;
        let mending = self.pass.tally.mending.as_ref();
        mending.is_some_and(|mending: &Mending| {
            if flag.is_l1 {
                !mending.is_shared(flag.place, layout)
            } else {
                layout.is_aligned(flag.table) && !mending.is_shared(flag.table, layout)
            }
        })
    }

    async fn store<S: Storage>(&mut self, target: Option<&Target<'_, S>>) -> Result<()> {
        match target {
            Some(target) => target.write_words(&mut self.words).await,
            None => Ok(()),
        }
    }

    async fn look_up<S: Storage>(&mut self, refcounts: &Refcounts<'_, '_, S>) -> Result<()> {
        let mut later = std::mem::take(&mut self.later);
        later.sort_unstable_by_key(|flag| (flag.cluster, flag.place));
        let mut memory = Memory::default();
        for flag in later {
            if let Some(refcount) = refcounts.of(flag.cluster, &mut memory).await? {
                self.found(&flag, refcount);
            }
        }
        Ok(())
    }
}
