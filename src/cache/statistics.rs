//! What a cache counts.

/// Counters of one cache since it was made, and what it holds now.
///
/// Stripes are read one after the other: with requests in flight the numbers are of slightly different moments.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CacheStatistics {
    /// Look-ups that found their slice.
    pub hits: u64,
    /// Calls of `get` that did not, those that waited for another's load included. A `hit` that finds nothing is
    /// not counted: a `get` follows it.
    pub misses: u64,
    /// Slices read from storage successfully.
    pub loads: u64,
    /// Slices dropped to make room for others.
    pub evictions: u64,
    /// Slices dropped by passes, because nobody had used them.
    pub cleaned: u64,
    /// Passes that have ended.
    pub passes: u64,
    /// Bytes of the slices held now, those that a pass has taken and not freed yet included.
    pub bytes_held: u64,
}
