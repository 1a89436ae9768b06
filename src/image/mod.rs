//! The engine: a disk made of layers, read through caches of their metadata.
//!
//! An [`Image`] is a chain of layers, the image itself on top. A qcow2 layer has its header, its L1 table and its
//! snapshot table in memory, and finds the rest through two caches, of L2 tables and of refcount blocks. A raw layer
//! has nothing but its bytes.
//!
//! # Reading
//!
//! A request becomes runs: what a layer has from an offset on, of one kind and contiguous in its file. Finding a run
//! takes the L1 table, which never changes while it is published, and a slice of an L2 table: if that is cached, no
//! asynchronous lock is taken and nothing is allocated. What a layer does not have is asked of the layer below it.
//!
//! # Locks
//!
//! None is held across I/O. The caches' own locks are leaves.
//!
//! This module must not know runtimes, files, clocks, threads or randomness.

mod access;
mod alloc;
mod amend;
#[cfg(feature = "write")]
mod backing_commit;
mod backing_name;
#[cfg(feature = "write")]
mod below;
mod bitmap;
#[cfg_attr(not(feature = "write"), allow(dead_code, reason = "who looks at changes writes"))]
mod changed;
pub mod check;
mod claims;
mod close;
mod codec;
mod commit;
mod compressed;
mod create;
mod deflate;
mod describe;
mod detect;
mod emptying;
mod free;
mod gate;
mod header_change;
mod inflated;
#[cfg(all(test, feature = "loom"))]
mod kernel;
#[cfg(all(feature = "encryption", feature = "write"))]
mod key_slots;
mod l1;
mod layer;
#[cfg(feature = "encryption")]
mod luks_volume;
mod map;
mod measure;
mod merge;
mod metadata;
#[cfg(feature = "sim")]
pub mod mutant;
#[cfg(not(feature = "sim"))]
mod mutant;
mod open;
mod options;
mod overlap;
mod ownership;
mod published;
mod read;
mod rebase;
mod reconfigure;
mod refcount;
mod refcount_slices;
mod refcount_table;
mod requests;
mod resize;
mod scratch;
mod settling;
mod shared;
mod snapshot;
mod stream;
mod tables;
mod turnstile;
mod unlock;
mod vm_state;
mod write;
mod writer;
mod zero;

use std::path::Path;
use std::sync::Arc;

use crate::cache::{CacheOptions, CacheStatistics, CleanerControl};
use crate::error::{Error, Result};
use crate::format::{Geometry, Header, Snapshot};
use crate::storage::Storage;
use crate::sync::{AsyncMutex, Mutex, OnceCell};
use crate::workers::Workers;

pub use amend::AmendOptions;
#[cfg(feature = "write")]
pub use backing_commit::{BackingCommit, BackingCommitOptions};
pub use bitmap::DirtyRanges;
pub use create::{CreateOptions, create};
#[cfg(feature = "encryption")]
pub use create::{Encryption, create_luks_volume};
pub use detect::detect;
pub use gate::{
    Answer, Derivation, Format, Gate, Identity, Locked, Reference, ReferenceKind, RefuseAll, Source,
};
#[cfg(all(feature = "encryption", feature = "write"))]
pub use key_slots::{KeyAddition, KeyErasure};
#[cfg(feature = "encryption")]
pub use luks_volume::LuksVolume;
pub use map::{Extent, ExtentKind, Extents};
pub use measure::Measurement;
pub use merge::Merge;
pub use open::Opened;
pub use options::{
    OpenOptions, Preallocation, References, ResizeOptions, SnapshotSelector, WriteOptions, ZeroMode,
};
pub use overlap::OverlapChecks;
pub use rebase::Rebase;
pub use reconfigure::Settings;
pub use snapshot::NewSnapshot;
pub use stream::{Stream, StreamBase};

use access::Access;
use layer::{Body, Layer};
use requests::Requests;
use shared::Shared;
use writer::Writer;

/// A disk image and the layers below it, opened.
///
/// It is used through `&self` by any number of requests at once, from as many threads as its storage allows; share it
/// in an [`Arc`]. Call [`Image::close`] when done with it; an image that is dropped instead ends its cleaner too.
pub struct Image<S> {
    /// Never empty; the image itself is first.
    layers: Vec<Shared<Layer<S>>>,
    /// On any layer: whoever reads this image may be in its backing file.
    requests: Shared<Requests>,
    /// Whether and how the image is written to.
    access: Access,
    /// What an image has that is open for writing, or was.
    writer: OnceCell<Writer>,
    cleaner: CleanerControl,
    /// The options that the caches have now.
    cache_options: Mutex<CacheOptions>,
    /// Held by whoever changes the settings or closes the image. Nothing that a request or a chore waits for.
    reconfiguring: AsyncMutex<()>,
    /// It shows a snapshot, which is not written to.
    is_at_snapshot: bool,
    workers: Option<Arc<dyn Workers>>,
    /// How many pieces of a request are in flight together.
    pieces_in_flight: usize,
    /// What writes to its backing file.
    #[cfg(feature = "write")]
    below: Mutex<Option<Arc<Self>>>,
}

/// What is known of one layer.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct LayerInfo<'a> {
    /// Where it came from: its [`Source::location`].
    pub location: &'a Path,
    /// Its format.
    pub format: Format,
    /// The size of its disk in bytes.
    pub virtual_size: u64,
    /// The length of its file in bytes, when it was opened.
    pub file_len: u64,
    /// Its header, if it is a qcow2 image.
    pub header: Option<Arc<Header>>,
    /// Its snapshot table, in the order on disk.
    pub snapshots: Arc<[Snapshot]>,
}

/// What the caches of one layer did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Statistics {
    /// Of the cache of L2 tables.
    pub l2: CacheStatistics,
    /// Of the cache of refcount blocks.
    pub refcount: CacheStatistics,
}

impl<S: Storage> Image<S> {
    /// The size of the disk in bytes: of the snapshot, if one is open.
    #[must_use]
    pub fn virtual_size(&self) -> u64 {
        self.layers[0].size_from_outside()
    }

    /// The image's header as it is now; `None` if it is raw.
    #[must_use]
    pub fn header(&self) -> Option<Arc<Header>> {
        self.layer_info(0).header
    }

    /// How the image's offsets split; `None` if it is raw.
    #[must_use]
    pub fn geometry(&self) -> Option<Geometry> {
        self.header().map(|header| header.geometry())
    }

    /// The image's internal snapshots as they are now, in the order on disk.
    #[must_use]
    pub fn snapshots(&self) -> Arc<[Snapshot]> {
        self.layer_info(0).snapshots
    }

    /// The layers that are open, the image itself first.
    pub fn layers(&self) -> impl ExactSizeIterator<Item = LayerInfo<'_>> {
        (0..self.layers.len()).map(|depth| self.layer_info(depth))
    }

    /// What the layer at `depth` lies in; 0 is the image itself. Nothing must be written to it past the image.
    ///
    /// # Panics
    /// If there are not so many layers.
    #[must_use]
    pub fn layer_storage(&self, depth: usize) -> &S {
        match &self.layers[depth].body {
            Body::Qcow2(layer) => layer.metadata.storage(),
            Body::Raw(layer) => &layer.storage,
        }
    }

    /// What the caches of each layer did so far, in the order of [`Self::layers`]; those of a raw layer did nothing.
    #[must_use]
    pub fn statistics(&self) -> Vec<Statistics> {
        let of = |layer: &Shared<Layer<S>>| match &layer.body {
            Body::Qcow2(layer) => Statistics {
                l2: layer.l2_cache.statistics(),
                refcount: layer.refcount_cache.statistics(),
            },
            Body::Raw(_) => Statistics::default(),
        };
        self.layers.iter().map(of).collect()
    }

    fn layer_info(&self, depth: usize) -> LayerInfo<'_> {
        let layer: &Layer<S> = &self.layers[depth];
        let Layer { body, location, .. } = layer;
        match body {
            Body::Qcow2(layer) => LayerInfo {
                location,
                format: Format::Qcow2,
                virtual_size: layer.virtual_size(),
                file_len: layer.metadata.file_len(),
                header: Some(layer.header.get()),
                snapshots: layer.snapshots.get(),
            },
            Body::Raw(layer) => LayerInfo {
                location,
                format: Format::Raw,
                virtual_size: layer.len(),
                file_len: layer.len(),
                header: None,
                snapshots: Arc::default(),
            },
        }
    }

    /// The end of a range that must be within the disk.
    fn range_end(&self, offset: u64, len: u64) -> Result<u64> {
        match offset.checked_add(len) {
            Some(end) if end <= self.virtual_size() => Ok(end),
            _ => Err(Error::out_of_bounds(offset, len, self.virtual_size())),
        }
    }

    /// The error for bytes that are in the backing file of the layer at `depth`, which was not opened.
    fn backing_left(&self, depth: usize) -> Error {
        let header = self.layer_info(depth).header;
        let name = header.as_ref().and_then(|header| header.backing_file.as_deref());
        Error::refused(
            ReferenceKind::BackingFile.name(),
            name.unwrap_or_default(),
            "it was not opened",
        )
    }
}

impl<S> std::fmt::Debug for Image<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let locations = self.layers.iter().map(|layer| &layer.location);
        f.debug_struct("Image")
            .field("layers", &locations.collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}
