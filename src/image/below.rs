//! The image below: the layers under the image itself as an image of their own, which can be written to.
//!
//! The image that is in use reads its backing file through that layer's tables and caches. So whoever writes to the backing
//! file must do it through the same ones, or what is read comes from before. Here the layers are shared: the image below is
//! an [`Image`] as any other, with a writer of its own, whose layers are those of the image above from the second one on. What
//! it has written the image above sees at once.
//!
//! The two have one gate for requests too. Whoever reads the image above may be in the backing file, so that a cluster that
//! is freed there is not used again before those have left who came before; and while the layer is read again, because it is
//! to be written to, nobody is in either of them.
//!
//! The image below is made when it is needed first, and closed together with the one above.

use std::sync::Arc;
use std::time::Duration;

use crate::cache::{CacheOptions, CleanerControl};
use crate::error::Result;
use crate::storage::Storage;
use crate::sync::{AsyncMutex, Mutex, OnceCell};

use super::Image;
use super::access::Access;
use super::options::WriteOptions;
use super::reconfigure::Settings;
use super::writer::Target;

impl<S: Storage> Image<S> {
    /// The image below, which must be there.
    pub(super) fn image_below(&self) -> Arc<Self> {
        let mut below = self.below.lock();
        let below = below.get_or_insert_with(|| {
            Arc::new(Self {
                layers: self.layers.iter().skip(1).map(Arc::clone).collect(),
                requests: Arc::clone(&self.requests),
                access: Access::new(None),
                writer: OnceCell::new(),
                // The caches are in the care of the image above.
                cleaner: CleanerControl::new([], Duration::ZERO),
                cache_options: Mutex::new(*self.cache_options.lock()),
                reconfiguring: AsyncMutex::default(),
                is_at_snapshot: false,
                workers: self.workers.clone(),
                pieces_in_flight: self.pieces_in_flight,
                below: Mutex::default(),
            })
        });
        Arc::clone(below)
    }

    /// Lets the image below be written to from now on, or not any more, when everything in it is durable.
    ///
    /// # Errors
    /// As [`Self::reconfigure`].
    ///
    /// # Cancel safety
    /// As [`Self::reconfigure`].
    pub(super) async fn set_below_writable(&self, write: Option<WriteOptions>) -> Result<()> {
        let below = self.image_below();
        // Two pauses at a time would be one too many.
        let _one = self.reconfiguring.lock().await;
        let cache = *below.cache_options.lock();
        // It has no cleaner, and takes none.
        drop(below.reconfigure(Settings { cache, write }).await?);
        Ok(())
    }

    /// Writes what is dirty in the image below, so that its caches may be exchanged. Nobody may be in.
    pub(super) async fn write_below(&self) -> Result<()> {
        let Some(below) = self.below.lock().clone() else { return Ok(()) };
        match below.target() {
            Ok((_, Target::Qcow2(top))) => top.write_for(&top.options()).await,
            Ok((writer, Target::Raw(layer))) => writer.flush_raw(layer).await,
            Err(_) => Ok(()),
        }
    }

    /// Tells the image below what options the caches have now.
    pub(super) fn tell_below(&self, cache: CacheOptions) {
        if let Some(below) = &*self.below.lock() {
            *below.cache_options.lock() = cache;
        }
    }

    /// Closes the image below, if it was written to. Nobody may be in.
    pub(super) async fn finish_below(&self) -> Result<()> {
        let Some(below) = self.below.lock().clone() else { return Ok(()) };
        below.finish().await
    }
}
