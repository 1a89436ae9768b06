//! What a caller may say when it opens an image.

use std::sync::Arc;

use crate::cache::CacheOptions;
use crate::crypt::Secret;
use crate::error::{Error, Result};
use crate::format::Version;
use crate::workers::Workers;

use super::overlap::OverlapChecks;

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
    /// in another file is an error, [`Error::Refused`].
    Leave,
}

/// How an image is written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct WriteOptions {
    /// `pass-discard-request`: clusters that the guest discards give up their space in the file. Default: yes.
    pub pass_discard_request: bool,
    /// `pass-discard-snapshot`: so do clusters that go with a snapshot. Default: yes.
    pub pass_discard_snapshot: bool,
    /// `pass-discard-other`: so do clusters that become free for other reasons. Default: no.
    pub pass_discard_other: bool,
    /// `discard-no-unref`: discarded clusters keep their place in the file, so that it does not fragment. Default: no.
    pub discard_no_unref: bool,
    /// `overlap-check`: which metadata is looked at before a write, so that a damaged image does not become worse.
    pub overlap_checks: OverlapChecks,
    /// `lazy-refcounts`: refcounts may be written late, at the price of a repair after a crash. `None`: as the header says.
    pub lazy_refcounts: Option<bool>,
    /// Every change is durable before it returns.
    pub write_through: bool,
}

impl WriteOptions {
    /// Asks whether an image of this version can be written to so.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] with QEMU's words, if it cannot.
    pub(super) fn must_suit(&self, version: Version) -> Result<()> {
        if version != Version::V2 {
            Ok(())
        } else if self.lazy_refcounts == Some(true) {
            Err(Error::InvalidArgument(
                "Lazy refcounts require a qcow2 image with at least qemu 1.1 compatibility level"
                    .into(),
            ))
        } else if self.discard_no_unref {
            let text = "discard-no-unref is only supported since qcow2 version 3";
            Err(Error::InvalidArgument(text.into()))
        } else {
            Ok(())
        }
    }
}

impl Default for WriteOptions {
    fn default() -> Self {
        Self {
            pass_discard_request: true,
            pass_discard_snapshot: true,
            pass_discard_other: false,
            discard_no_unref: false,
            overlap_checks: OverlapChecks::default(),
            lazy_refcounts: None,
            write_through: false,
        }
    }
}

/// What becomes of the space of clusters that are overwritten with zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ZeroMode {
    /// It stays allocated.
    KeepSpace,
    /// It may be given up: `-u` of `qemu-io write -z`.
    MayUnmap,
}

/// How much of a disk is allocated before it is written to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Preallocation {
    /// Nothing.
    #[default]
    Off,
    /// The tables that map it.
    Metadata,
    /// The tables, and space in the file.
    Falloc,
    /// The tables, and space that is written with zeros.
    Full,
}

/// How to change the size of a disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ResizeOptions {
    /// Allows the disk to become smaller, which loses what is behind its new end.
    pub shrink: bool,
    /// How what is added is allocated.
    pub preallocation: Preallocation,
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
    /// How the image is written to; `None` opens it read-only.
    pub write: Option<WriteOptions>,
    /// The passphrase of the image itself, if its guest data is encrypted; without, and for the layers below it, the gate
    /// is asked.
    pub key: Option<Secret>,
    /// The most iterations of a key derivation that opening goes through: an image can ask for hours.
    pub key_iterations_max: u32,
    /// Where clusters are inflated and keys derived; without, where the request is polled.
    pub workers: Option<Arc<dyn Workers>>,
}

impl OpenOptions {
    /// What [`Self::inflated_len_bytes_max`] is by default: 4 MiB, two of the largest clusters.
    pub const INFLATED_LEN_BYTES_MAX_DEFAULT: u64 = 4 << 20;
    /// What [`Self::chain_depth_max`] is by default: more than any tool makes, less than a stack of futures minds.
    pub const CHAIN_DEPTH_MAX_DEFAULT: usize = 256;
    /// What [`Self::key_iterations_max`] is by default: some ten seconds for a passphrase. QEMU makes slots that took two
    /// seconds where they were made.
    pub const KEY_ITERATIONS_MAX_DEFAULT: u32 = 40_000_000;
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            cache: CacheOptions::default(),
            snapshot: None,
            references: References::default(),
            inflated_len_bytes_max: Self::INFLATED_LEN_BYTES_MAX_DEFAULT,
            chain_depth_max: Self::CHAIN_DEPTH_MAX_DEFAULT,
            write: None,
            key: None,
            key_iterations_max: Self::KEY_ITERATIONS_MAX_DEFAULT,
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
            .field("write", &self.write)
            .field("key", &self.key)
            .field("key_iterations_max", &self.key_iterations_max)
            .field("workers", &self.workers.as_ref().map(|w| w.parallelism()))
            .finish()
    }
}
