//! The sizes of the caches and the cleaner's interval: QEMU's options, defaults and rules.
//!
//! Source: QEMU, block/qcow2.c, `read_cache_sizes` and `qcow2_update_options_prepare`. Where cowshed differs:
//!
//! - Entries of both caches are slices of 4 KiB (a cluster, if that is shorter) unless said otherwise. QEMU takes
//!   whole L2 tables if they all fit, and always whole refcount blocks. Here a miss is one synchronous read from the
//!   page cache, of which 4 KiB cost a fraction of what 64 KiB cost, and hits cost the same: there is nothing to be
//!   gained by larger ones.
//! - Defaults are those of QEMU on Linux, on every platform: the interval works everywhere.

use std::time::Duration;

use crate::error::{Error, Result};
use crate::format::Geometry;

/// The default limit of the L2 cache, in bytes. With clusters of 64 KiB it covers 256 GiB.
pub const L2_CACHE_BYTES_DEFAULT: u64 = 32 << 20;

/// The default length of a cache entry, in bytes, where a cluster is not shorter.
pub const CACHE_ENTRY_BYTES_DEFAULT: u64 = 4096;

/// The default interval between two passes of the cleaner.
pub const CACHE_CLEAN_INTERVAL_DEFAULT: Duration = Duration::from_secs(600);

/// The longest interval: QEMU's option is an unsigned number of seconds of 32 bits.
pub const CACHE_CLEAN_INTERVAL_MAX: Duration = Duration::from_secs(u32::MAX as u64);

/// The smallest L2 cache, in entries: copying on write needs two at a time.
const L2_CACHE_ENTRIES_MIN: u64 = 2;

/// The smallest refcount cache, in clusters, and its default.
const REFCOUNT_CACHE_CLUSTERS_MIN: u64 = 4;

/// The most entries of a cache.
const CACHE_ENTRIES_MAX: u64 = i32::MAX as u64;

/// The shortest L2 cache entry, in bytes.
const L2_CACHE_ENTRY_BYTES_MIN: u64 = 512;

/// How much the caches of one image may hold, and how often they are cleaned. `None` takes the default. Sizes are in
/// bytes; zero asks for the smallest cache that works.
///
/// Source: QEMU, docs/qcow2-cache.txt.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CacheOptions {
    /// `cache-size`: both caches together. All of it goes to the L2 cache up to what the image needs, but for four
    /// clusters for refcounts, which get what is left. With one of the two sizes set, the other gets the remainder;
    /// not to be set with both.
    pub cache_size: Option<u64>,
    /// `l2-cache-size`: default 32 MiB. The cache is never larger than all L2 tables of the image.
    pub l2_cache_size: Option<u64>,
    /// `l2-cache-entry-size`: a power of two from 512 to the cluster size; default 4 KiB, or the cluster size if that
    /// is less.
    pub l2_cache_entry_size: Option<u64>,
    /// `refcount-cache-size`: default and minimum four clusters.
    pub refcount_cache_size: Option<u64>,
    /// `cache-clean-interval`: default 600 seconds, at most 2^32 - 1 seconds. Zero: the caches are not cleaned.
    pub cache_clean_interval: Option<Duration>,
}

/// What [`CacheOptions`] come to for one image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct CacheSizes {
    /// The L2 cache's budget in bytes, a multiple of `l2_entry_bytes`.
    pub l2_bytes: u64,
    /// The length of its entries in bytes.
    pub l2_entry_bytes: u64,
    /// What the L2 cache's budget would be by default.
    pub l2_bytes_default: u64,
    /// The refcount cache's budget in bytes, a multiple of `refcount_entry_bytes`.
    pub refcount_bytes: u64,
    /// The length of its entries in bytes.
    pub refcount_entry_bytes: u64,
    /// The cleaner's interval; zero for no cleaner.
    pub interval: Duration,
}

impl CacheOptions {
    /// The sizes for an image of `virtual_size` bytes with `geometry`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] with QEMU's words, if the options contradict each other or their limits.
    pub fn resolve(&self, geometry: &Geometry, virtual_size: u64) -> Result<CacheSizes> {
        let cluster_size = geometry.cluster_size();
        // An L2 table is a whole cluster.
        let l2_bytes_needed = (virtual_size.div_ceil(cluster_size) * geometry.l2_entry_len())
            .next_multiple_of(cluster_size);
        let (l2_bytes, refcount_bytes) = self.split(cluster_size, l2_bytes_needed)?;

        let entry_bytes_default = CACHE_ENTRY_BYTES_DEFAULT.min(cluster_size);
        let l2_entry_bytes = self.l2_cache_entry_size.unwrap_or(entry_bytes_default);
        if !l2_entry_bytes.is_power_of_two()
            || !(L2_CACHE_ENTRY_BYTES_MIN..=cluster_size).contains(&l2_entry_bytes)
        {
            return Err(invalid(format!(
                "L2 cache entry size must be a power of two between {L2_CACHE_ENTRY_BYTES_MIN} \
                 and the cluster size ({cluster_size})"
            )));
        }
        let l2_entries = (l2_bytes / l2_entry_bytes).max(L2_CACHE_ENTRIES_MIN);
        if l2_entries > CACHE_ENTRIES_MAX {
            return Err(invalid("L2 cache size too big"));
        }
        let refcount_clusters = (refcount_bytes / cluster_size).max(REFCOUNT_CACHE_CLUSTERS_MIN);
        if refcount_clusters > CACHE_ENTRIES_MAX {
            return Err(invalid("Refcount cache size too big"));
        }
        Ok(CacheSizes {
            l2_bytes: l2_entries * l2_entry_bytes,
            l2_entry_bytes,
            l2_bytes_default: l2_bytes_needed.min(L2_CACHE_BYTES_DEFAULT),
            refcount_bytes: refcount_clusters * cluster_size,
            refcount_entry_bytes: entry_bytes_default,
            interval: self.interval()?,
        })
    }

    /// The interval of the cleaner.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] with QEMU's words, if it is too long.
    pub fn interval(&self) -> Result<Duration> {
        match self.cache_clean_interval.unwrap_or(CACHE_CLEAN_INTERVAL_DEFAULT) {
            interval if interval > CACHE_CLEAN_INTERVAL_MAX => {
                Err(invalid("Cache clean interval too big"))
            }
            interval => Ok(interval),
        }
    }

    /// How much goes to the L2 cache, and how much to the refcount cache, before minimums.
    fn split(&self, cluster_size: u64, l2_bytes_needed: u64) -> Result<(u64, u64)> {
        let l2_bytes_max = self.l2_cache_size.unwrap_or(L2_CACHE_BYTES_DEFAULT);
        let l2_bytes = l2_bytes_max.min(l2_bytes_needed);
        let refcount_bytes = self.refcount_cache_size.unwrap_or(0);
        let Some(both) = self.cache_size else { return Ok((l2_bytes, refcount_bytes)) };

        if self.l2_cache_size.is_some() && self.refcount_cache_size.is_some() {
            return Err(invalid(
                "cache-size, l2-cache-size and refcount-cache-size may not be set at the same time",
            ));
        }
        if self.l2_cache_size.is_some_and(|bytes| bytes > both) {
            return Err(invalid("l2-cache-size may not exceed cache-size"));
        }
        if refcount_bytes > both {
            return Err(invalid("refcount-cache-size may not exceed cache-size"));
        }
        if self.l2_cache_size.is_some() {
            return Ok((l2_bytes, both - l2_bytes));
        }
        if self.refcount_cache_size.is_some() {
            return Ok((both - refcount_bytes, refcount_bytes));
        }
        let refcount_bytes_min = REFCOUNT_CACHE_CLUSTERS_MIN * cluster_size;
        if both >= l2_bytes_needed.saturating_add(refcount_bytes_min) {
            return Ok((l2_bytes_needed, both - l2_bytes_needed));
        }
        let refcount_bytes = both.min(refcount_bytes_min);
        Ok((both - refcount_bytes, refcount_bytes))
    }
}

fn invalid(text: impl Into<String>) -> Error {
    Error::InvalidArgument(text.into())
}
