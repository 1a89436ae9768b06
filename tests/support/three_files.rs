//! A chain of three files, the lowest one raw, and the gate that opens them by their names.

use cowshed::Result;
use cowshed::image::{
    Answer, Format, Gate, Image, OpenOptions, Reference, SnapshotSelector, Source, WriteOptions,
};
use cowshed::storage::Storage;

/// The files by their names, the lowest one first.
#[derive(Clone)]
pub struct ThreeFiles<S> {
    pub base: S,
    pub middle: S,
    pub middle_format: Format,
    pub image: S,
}

impl<S: Storage + Clone> Gate for ThreeFiles<S> {
    type Storage = S;

    async fn open(&self, reference: &Reference<'_>) -> Result<Answer<S>> {
        let (storage, format) = match reference.name {
            b"base" => (&self.base, Format::Raw),
            _ => (&self.middle, self.middle_format),
        };
        let location = String::from_utf8_lossy(reference.name).into_owned();
        let (storage, location) = (storage.clone(), location.into());
        Ok(Answer::Open(Source { storage, format, location, identity: None }))
    }
}

impl<S: Storage + Clone> ThreeFiles<S> {
    /// The image above the other two.
    pub async fn open(&self, write: bool) -> Result<Image<S>> {
        let mut options = OpenOptions::default();
        options.write = write.then(WriteOptions::default);
        // So small that slices come and go.
        options.cache.l2_cache_size = Some(8 << 10);
        let source = Source::qcow2(self.image.clone(), "image");
        Ok(Image::open(source, self, options).await?.image)
    }

    /// The one in the middle as an image of its own, or a snapshot of it.
    pub async fn open_middle(&self, snapshot: Option<&[u8]>, write: bool) -> Result<Image<S>> {
        let mut options = OpenOptions::default();
        options.snapshot = snapshot.map(|name| SnapshotSelector::Name(name.to_vec()));
        options.write = write.then(WriteOptions::default);
        let (storage, location) = (self.middle.clone(), "middle".into());
        let source = Source { storage, format: self.middle_format, location, identity: None };
        Ok(Image::open(source, self, options).await?.image)
    }
}
