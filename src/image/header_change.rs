//! Changing the header of an image that is open for writing: only the bytes that differ are written, so that a change of
//! one field is one write within one sector, which a power loss leaves done or not done.

use crate::error::{Error, Result, Structure};
use crate::format::{Autoclear, Compatible, Header, HostOffset, Incompatible, Version};
use crate::storage::Storage;

use super::alloc::Allocator;
use super::options::WriteOptions;
use super::refcount_table::RefcountTable;
use super::writer::Top;

impl<S: Storage> Top<'_, S> {
    /// Prepares the first change: finds out which clusters are in use, and clears the autoclear bits that nobody here
    /// keeps true.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for images whose bitmaps cannot be kept right; [`Error::KeyRequired`]; [`Error::Corrupt`] if the
    /// image is too damaged to be written to; [`Error::Storage`].
    ///
    /// # Cancel safety
    /// The next change prepares again.
    pub(super) async fn prepare(&self) -> Result<()> {
        let mut prepared = self.writer.prepared.lock().await;
        if *prepared {
            return Ok(());
        }
        let layer = self.layer;
        let header = layer.header.get();
        layer.cipher()?;
        if header.incompatible.contains(Incompatible::CORRUPT) {
            return Err(Error::ReadOnly("it is marked as corrupt".into()));
        }
        let table = layer
            .metadata
            .load(
                Structure::RefcountTable,
                header.refcount_table_offset.get(),
                header.refcount_table_len(),
            )
            .await?;
        // OK to unwrap: the chunks have eight bytes.
        #[allow(clippy::unwrap_used)]
        let entry = |bytes: &[u8]| u64::from_be_bytes(bytes.try_into().unwrap());
        let entries = table.chunks_exact(8).map(entry).collect();
        let table = RefcountTable::new(header.refcount_table_offset, entries);
        *self.writer.refcount_table.lock() = table;
        let ownership = layer.survey().await?;
        self.writer.know(ownership);
        let clusters = layer.geometry.clusters_for(layer.metadata.file_len());
        *self.writer.allocator.lock().await = Allocator::new(clusters);
        if header.autoclear.unknown() != 0 {
            self.update_header(|header| {
                let unknown = Autoclear::from_raw(header.autoclear.unknown());
                header.autoclear = header.autoclear.with(unknown, false);
            })
            .await?;
            self.barrier().await?;
        }
        self.prepare_bitmaps().await?;
        *prepared = true;
        Ok(())
    }

    /// Changes the header on disk and in memory. The flush is the caller's.
    ///
    /// # Errors
    /// [`Error::Storage`]; the header in memory is the old one, and on disk the next commit makes it so.
    ///
    /// # Cancel safety
    /// As after an error.
    pub(super) async fn update_header(&self, change: impl FnOnce(&mut Header)) -> Result<()> {
        let mut state = self.writer.header_io.lock().await;
        if state.is_uncertain() {
            self.mend_header_in_steps(&mut state).await?;
        }
        let old = self.layer.header.get();
        let mut new = (*old).clone();
        change(&mut new);
        let (before, after) = (old.encode()?, new.encode()?);
        let longer = before.len().max(after.len());
        let at = |bytes: &[u8], index: usize| bytes.get(index).copied().unwrap_or(0);
        let differs = |index: &usize| at(&before, *index) != at(&after, *index);
        let Some(first) = (0..longer).find(differs) else { return Ok(()) };
        let last = (0..longer).rfind(differs).unwrap_or(first);
        let bytes: Vec<u8> = (first..=last).map(|index| at(&after, index)).collect();
        // Cancel: what is on disk is one of the two, and is asked to be the old one first.
        state.uncertain_end = last as u64 + 1;
        self.overwrite_metadata(HostOffset::new(first as u64), &bytes).await?;
        state.uncertain_end = 0;
        self.layer.header.set(new);
        Ok(())
    }

    /// Makes the header on disk the one in memory, if a write of another one has failed or was dropped.
    pub(super) async fn mend_header(&self) -> Result<()> {
        let mut state = self.writer.header_io.lock().await;
        if state.is_uncertain() {
            self.mend_header_in_steps(&mut state).await?;
        }
        Ok(())
    }

    /// Whether refcounts may be written late.
    pub(super) fn is_lazy(&self) -> bool {
        self.layer.header.get().incompatible.contains(Incompatible::DIRTY)
    }

    /// Whether these options let refcounts be written late.
    pub(super) fn may_be_lazy(&self, options: &WriteOptions) -> bool {
        let header = self.layer.header.get();
        let asked = options.lazy_refcounts;
        header.version == Version::V3
            && asked.unwrap_or_else(|| header.compatible.contains(Compatible::LAZY_REFCOUNTS))
    }

    /// Sets the dirty bit before the first change that leaves refcounts behind, if refcounts may be written late.
    pub(super) async fn mark_dirty(&self) -> Result<()> {
        if self.may_be_lazy(&self.options()) { self.set_dirty().await } else { Ok(()) }
    }

    /// Sets the dirty bit, durably. Version 2 has none.
    pub(super) async fn set_dirty(&self) -> Result<()> {
        if self.is_lazy() || self.layer.header.get().version == Version::V2 {
            return Ok(());
        }
        self.update_header(|header| {
            header.incompatible = header.incompatible.with(Incompatible::DIRTY, true);
        })
        .await?;
        self.barrier().await
    }

    /// Clears the dirty bit, when all refcounts are durable. For those who have the commit's lock.
    pub(super) async fn mark_clean(&self) -> Result<()> {
        if !self.is_lazy() {
            return Ok(());
        }
        self.write_all_refcounts().await?;
        self.barrier().await?;
        self.update_header(|header| {
            header.incompatible = header.incompatible.with(Incompatible::DIRTY, false);
        })
        .await?;
        self.barrier().await
    }
}
