//! The end of an image: nobody comes in, everybody leaves, the cleaner ends, and what is dirty is written in order.

use crate::error::Result;
use crate::storage::Storage;

use super::Image;
use super::bitmap::InUse;
use super::writer::{Target, Top};

/// Releasing what was unmapped makes refcounts dirty, and a dropped write may have held it up: then once more.
const ROUNDS_MAX: usize = 4;

impl<S: Storage> Image<S> {
    /// Closes the image: refuses new requests, waits for those in flight, stops the cleaner and waits until it can do
    /// no more, writes back what is dirty, and flushes. May be called again, by several tasks at once; each returns when the
    /// image is closed.
    ///
    /// It does not hang, whatever became of the cleaner: asleep, dropped, never polled.
    ///
    /// # Errors
    /// [`Error::Storage`](crate::Error::Storage) and [`Error::Latched`](crate::Error::Latched), as a flush: what was not
    /// flushed before may be lost. The image is closed all the same; another call tries again to write what is left.
    ///
    /// # Cancel safety
    /// A close that is dropped stays begun: requests are refused, and a later call completes it.
    pub async fn close(&self) -> Result<()> {
        self.requests.close().await;
        // Cancel: see above. Whoever changes the settings is done soon, as no request is in flight.
        let _one = self.reconfiguring.lock().await;
        self.cleaner.stop();
        self.cleaner.join().await;
        #[cfg(feature = "write")]
        {
            let own = self.finish().await;
            self.finish_below().await.and(own)?;
        }
        Ok(())
    }

    /// Writes back what is dirty, once.
    #[cfg(feature = "write")]
    pub(super) async fn finish(&self) -> Result<()> {
        let Ok((writer, target)) = self.target() else { return Ok(()) };
        let mut closed = writer.closed.lock().await;
        if *closed {
            return Ok(());
        }
        match target {
            Target::Qcow2(top) => top.write_all().await?,
            Target::Raw(layer) => writer.flush_raw(layer).await?,
        }
        *closed = true;
        Ok(())
    }
}

impl<S: Storage> Top<'_, S> {
    /// Writes all that is left, when no request is in flight, and marks the image as clean.
    pub(super) async fn write_all(&self) -> Result<()> {
        if self.is_untouched() {
            return Ok(());
        }
        let mut bitmaps = self.writer.bitmaps.lock().await;
        let _one = self.writer.commit.lock().await;
        self.writer.must_not_be_latched()?;
        self.commit_locked().await?;
        // Whatever becomes of the bitmaps, the disk is written: they stay in use then.
        let stored = self.store_bitmaps(&mut bitmaps, InUse::Ends).await;
        self.write_rounds().await?;
        self.end_recount(true).await?;
        // Nothing but what the end of a recount has changed.
        self.write_what_is_left().await?;
        stored
    }

    /// Writes all that is left, when no request is in flight, refcounts that may be written late too.
    pub(super) async fn write_all_lazily(&self) -> Result<()> {
        let _one = self.writer.commit.lock().await;
        if self.is_untouched() {
            return Ok(());
        }
        self.write_rounds().await?;
        self.end_recount(false).await?;
        self.write_what_is_left().await
    }

    async fn write_what_is_left(&self) -> Result<()> {
        if self.is_written() { Ok(()) } else { self.write_all_dirty().await }
    }

    /// Writes and releases, until nothing is left, or only what cannot be released.
    async fn write_rounds(&self) -> Result<()> {
        self.writer.must_not_be_latched()?;
        for _ in 0..ROUNDS_MAX {
            self.commit_locked().await?;
            if self.is_lazy() {
                self.write_all_dirty().await?;
            }
            if self.is_written() {
                return Ok(());
            }
        }
        self.write_all_dirty().await
    }
}
