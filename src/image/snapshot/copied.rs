//! The copied flags of the active L1 table and its L2 tables, where refcounts change that nobody writes to.
//!
//! A flag that is set where the refcount is more than 1 would let a write go to what a snapshot has; one that is missing
//! costs a copy. So flags go before anything on disk has a second reference, and come back when it is durable that there
//! is one reference only.

use crate::error::{Result, Structure};
use crate::format::{HostOffset, L2Entry};
use crate::storage::Storage;
use crate::sync::Ordering;

use super::super::refcount_slices::Refcounts;
use super::super::writer::Top;

/// A flag is the uppermost bit, in both kinds of tables.
const COPIED: u64 = 1 << 63;

impl<S: Storage> Top<'_, S> {
    /// Takes the copied flags from all entries of the L2 tables, in the cache; writes back when it gets full. For those who
    /// are alone and have the commit's lock.
    ///
    /// # Cancel safety
    /// Some flags are gone.
    pub(super) async fn clear_copied(&self, tables: &[HostOffset]) -> Result<()> {
        for table in tables {
            self.may_change(Structure::L2Table, *table)?;
            for slice in self.slices_of(*table) {
                let cache = &self.layer.l2_cache;
                let pinned =
                    self.layer.metadata.load_slice(cache, Structure::L2Table, slice).await?;
                let words = (0..pinned.words()).step_by(self.entry_words());
                let flagged = words.filter(|word| pinned.word(*word) & COPIED != 0);
                let flagged: Vec<usize> = flagged.collect();
                if flagged.is_empty() {
                    continue;
                }
                cache.update(slice, |slice| {
                    for word in flagged {
                        slice.set_word(word, slice.word(word) & !COPIED);
                    }
                });
            }
            if self.needs_room() {
                self.commit_locked().await?;
            }
        }
        Ok(())
    }

    /// Sets and clears copied flags so that they say of each refcount whether it is 1. For those who are alone, or the last
    /// ones, and have the commit's lock.
    ///
    /// # Cancel safety
    /// Some flags are right.
    pub(in super::super) async fn mend_copied(&self) -> Result<()> {
        let mut held = Refcounts::default();
        for index in 0..self.layer.l1.len() as u64 {
            let entry = self.l1_entry(index)?;
            let Some(table) = entry.l2_table() else { continue };
            self.may_change(Structure::L2Table, table)?;
            for slice in self.slices_of(table) {
                self.mend_copied_in(slice, &mut held).await?;
            }
            let is_alone = self.refcount(table).await? == 1;
            if entry.copied() != is_alone {
                self.set_l1(index, entry.with_copied(is_alone));
            }
            if self.needs_room() {
                self.commit_locked().await?;
            }
        }
        self.commit_locked().await?;
        self.writer.copied_is_stale.store(0, Ordering::Release);
        Ok(())
    }

    async fn mend_copied_in(&self, slice: HostOffset, held: &mut Refcounts) -> Result<()> {
        let cache = &self.layer.l2_cache;
        let pinned = self.layer.metadata.load_slice(cache, Structure::L2Table, slice).await?;
        let mut wrong = Vec::new();
        for word in (0..pinned.words()).step_by(self.entry_words()) {
            let entry = L2Entry::from_raw(pinned.word(word), 0);
            // What is wrong with an entry is said when it is used.
            let Ok(kind) = entry.cluster(&self.layer.context) else { continue };
            let Some(host) = kind.host() else { continue };
            let cluster = host.get() >> self.layer.geometry.cluster_bits();
            if entry.copied() != (self.refcount_held(held, cluster).await? == 1) {
                wrong.push(word);
            }
        }
        if !wrong.is_empty() {
            cache.update(slice, |slice| {
                for word in wrong {
                    slice.set_word(word, slice.word(word) ^ COPIED);
                }
            });
        }
        Ok(())
    }

    /// The slices of the cache that an L2 table is in.
    pub(in super::super) fn slices_of(
        &self,
        table: HostOffset,
    ) -> impl Iterator<Item = HostOffset> + use<S> {
        let len = self.layer.l2_cache.entry_bytes();
        let offsets = (0..self.layer.geometry.cluster_size() / len).map(move |index| index * len);
        // A host offset has 56 bits, so the sum cannot overflow.
        offsets.map(move |offset| table.checked_add(offset).unwrap_or(table))
    }

    fn entry_words(&self) -> usize {
        if self.layer.geometry.extended_l2() { 2 } else { 1 }
    }
}
