//! How often a cluster of the image file is referenced, by the refcount blocks.

use crate::error::{Result, Structure};
use crate::format::{HostOffset, RefcountTableEntry, refcount};
use crate::storage::Storage;

use super::Image;
use super::layer::{Body, Qcow2Layer};

impl<S: Storage> Image<S> {
    /// The refcount of the cluster of the image file that holds `offset`, as its refcount block has it: 0 if it is
    /// free, or beyond what the refcount table covers. `None` if the image is raw, and so has none.
    ///
    /// # Errors
    /// [`Error::Corrupt`](crate::Error::Corrupt) if the refcount table or the block is not in the file or not aligned;
    /// [`Error::Storage`](crate::Error::Storage); [`Error::Closed`](crate::Error::Closed).
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub async fn refcount(&self, offset: HostOffset) -> Result<Option<u64>> {
        self.layer_refcount(0, offset).await
    }

    /// Does what [`Image::refcount`] does for the layer at `depth`, in the order of [`Image::layers`]. `None` also if there
    /// is no such layer.
    ///
    /// # Errors
    /// As [`Image::refcount`].
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub async fn layer_refcount(&self, depth: usize, offset: HostOffset) -> Result<Option<u64>> {
        let _request = self.requests.enter().await?;
        #[cfg(feature = "write")]
        if let (0, Some(top)) = (depth, self.top())
            && top.writer.is_prepared()
        {
            return top.refcount(offset).await.map(Some);
        }
        match self.layers.get(depth).map(|layer| &layer.body) {
            Some(Body::Qcow2(layer)) => layer.refcount(offset).await.map(Some),
            Some(Body::Raw(_)) | None => Ok(None),
        }
    }
}

impl<S: Storage> Qcow2Layer<S> {
    async fn refcount(&self, offset: HostOffset) -> Result<u64> {
        let cluster = offset.get() >> self.geometry.cluster_bits();
        let entries = self.geometry.refcount_block_entries();
        let (block_index, index) = (cluster / entries, cluster % entries);
        let header = self.header.get();
        let table = header.refcount_table_offset;
        if block_index >= header.refcount_table_len() / RefcountTableEntry::LEN {
            return Ok(0);
        }
        let at = table.get() + block_index * RefcountTableEntry::LEN;
        let bytes =
            self.metadata.load(Structure::RefcountTable, at, RefcountTableEntry::LEN).await?;
        // OK to unwrap: that many bytes were asked for.
        #[allow(clippy::unwrap_used)]
        let raw = u64::from_be_bytes(bytes[..].try_into().unwrap());
        let entry = RefcountTableEntry::parse(raw, block_index, table, &self.geometry)?;
        let Some(block) = entry.block() else { return Ok(0) };

        let order = self.geometry.refcount_order();
        let word = refcount::word_index(order, index);
        let slice_words = usize::try_from(self.refcount_cache.entry_bytes() / 8).unwrap_or(1);
        let in_block = (word / slice_words) as u64 * self.refcount_cache.entry_bytes();
        // A block at the very end of the offsets is not in any file, which is said of the block.
        let slice = block.checked_add(in_block).unwrap_or(block);
        let slice =
            self.metadata.load_slice(&self.refcount_cache, Structure::RefcountBlock, slice).await?;
        Ok(refcount::get_in_word(slice.word(word % slice_words), order, index))
    }
}
