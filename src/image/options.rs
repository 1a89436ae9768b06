//! What a caller may say when it opens an image.

use std::sync::Arc;

use crate::cache::CacheOptions;
use crate::workers::Workers;

/// Which state of the disk to look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SnapshotSelector {
    /// The snapshot with this id.
    Id(Vec<u8>),
    /// The first snapshot with this name.
    Name(Vec<u8>),
    /// The snapshot with this id, or else the first one with this name: what `qemu-img snapshot -a` does.
    IdOrName(Vec<u8>),
}

/// How far opening follows what the image refers to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum References {
    /// Every backing file and data file is asked of the gate, and a refusal is an error.
    #[default]
    Follow,
    /// Nothing is asked of the gate: for `info`, `check` and the verdict, which need the image alone. Reading what lies
    /// in another file is an error, [`Error::Refused`](crate::Error::Refused).
    Leave,
}

/// How to open an image. The default opens the active state, read-only, with everything it refers to.
#[derive(Clone)]
#[non_exhaustive]
pub struct OpenOptions {
    /// The sizes of the metadata caches and the interval of their cleaner. Each layer has caches of its own.
    pub cache: CacheOptions,
    /// Opens an internal snapshot instead of the active state, with the disk size and the L1 table of its own.
    pub snapshot: Option<SnapshotSelector>,
    /// Whether backing files and data files are opened.
    pub references: References,
    /// How many bytes of inflated clusters each layer keeps for requests that want a part of one.
    pub inflated_len_bytes_max: u64,
    /// How many layers a backing chain may have.
    pub chain_depth_max: usize,
    /// Where clusters are inflated; without, where the request is polled.
    pub workers: Option<Arc<dyn Workers>>,
}

impl OpenOptions {
    /// What [`Self::inflated_len_bytes_max`] is by default: 4 MiB, two of the largest clusters.
    pub const INFLATED_LEN_BYTES_MAX_DEFAULT: u64 = 4 << 20;
    /// What [`Self::chain_depth_max`] is by default: more than any tool makes, less than a stack of futures minds.
    pub const CHAIN_DEPTH_MAX_DEFAULT: usize = 256;
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            cache: CacheOptions::default(),
            snapshot: None,
            references: References::default(),
            inflated_len_bytes_max: Self::INFLATED_LEN_BYTES_MAX_DEFAULT,
            chain_depth_max: Self::CHAIN_DEPTH_MAX_DEFAULT,
            workers: None,
        }
    }
}

impl std::fmt::Debug for OpenOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpenOptions")
            .field("cache", &self.cache)
            .field("snapshot", &self.snapshot)
            .field("references", &self.references)
            .field("inflated_len_bytes_max", &self.inflated_len_bytes_max)
            .field("chain_depth_max", &self.chain_depth_max)
            .field("workers", &self.workers.as_ref().map(|w| w.parallelism()))
            .finish()
    }
}
