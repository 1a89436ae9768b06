//! Structures of an image that reading a disk does not need, and people want to see: bitmaps and the encryption header.

use crate::error::{Result, Structure};
use crate::format::{BitmapDirectoryEntry, LuksHeader};
use crate::storage::Storage;

use super::Image;
use super::layer::Body;

impl<S: Storage> Image<S> {
    /// Loads the bitmap directory: the image's bitmaps, in the order on disk, without their bits. Empty if it has none,
    /// or is raw.
    ///
    /// Empty too if a program that does not know bitmaps has written to the image since: then the header's autoclear bit
    /// is not set, and they are not to be trusted.
    ///
    /// That a bitmap is in use is said of those only that somebody else has left so.
    ///
    /// # Errors
    /// [`Error::Corrupt`](crate::Error::Corrupt) if the directory is not in the file or breaks the format's rules;
    /// [`Error::Storage`](crate::Error::Storage); [`Error::Closed`](crate::Error::Closed).
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub async fn load_bitmaps(&self) -> Result<Vec<BitmapDirectoryEntry>> {
        let _request = self.requests.enter()?;
        if let Some(top) = self.top().filter(|top| top.writer.is_prepared()) {
            return Ok(top.writer.bitmaps.lock().await.shown());
        }
        let Body::Qcow2(layer) = &self.layers[0].body else { return Ok(Vec::new()) };
        Ok(layer.load_bitmap_directory().await?.bitmaps)
    }

    /// Loads the header of LUKS encryption: what can be known without a key. `None` if the image is not encrypted so.
    ///
    /// # Errors
    /// [`Error::Corrupt`](crate::Error::Corrupt) and [`Error::Unsupported`](crate::Error::Unsupported) from the
    /// header; [`Error::Storage`](crate::Error::Storage); [`Error::Closed`](crate::Error::Closed).
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub async fn load_luks_header(&self) -> Result<Option<LuksHeader>> {
        let _request = self.requests.enter()?;
        let Body::Qcow2(layer) = &self.layers[0].body else { return Ok(None) };
        let Some(header) = layer.header.get().crypto_header() else { return Ok(None) };
        let len = header.len.min(LuksHeader::LEN as u64);
        let bytes = layer.metadata.load(Structure::CryptoHeader, header.offset.get(), len).await?;
        LuksHeader::parse(&bytes, header.offset).map(Some)
    }
}
