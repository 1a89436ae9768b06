//! Cached metadata tables, keyed by host offset, within a budget of bytes.
//!
//! A [`TableCache`] keeps slices of tables: runs of [`TableCache::entry_bytes`] bytes at host offsets that are
//! multiples of that length. It knows neither what a slice means nor anything of guests.
//!
//! # Slots
//!
//! ```text
//!            get: first to ask            load ends
//!   Vacant ------------------> Loading ------------------> Clean
//!     ^                           |                          |
//!     |  last one asking left     |                          |  evicted, or dropped by a pass
//!     +---------------------------+--------------------------+
//!
//!              changed               write-back begins
//!   Clean -----------------> Dirty -------------------> Writing --+
//!     ^                       ^ ^                        |   ^    |  changed
//!     |                       | |   failed or dropped    |   +----+
//!     |                       | +------------------------+
//!     |                       |      written, but changed meanwhile
//!     +--------- written -----+--------------------------+
//! ```
//!
//! Eviction and passes name the one state they may take, `Clean`, so that they leave any other alone. What is dirty
//! stays until somebody writes it back ([`TableCache::begin_write_back`]): who writes must see to it that not all of
//! the budget becomes dirty.
//!
//! - A **hit** ([`TableCache::hit`]) takes one striped synchronous lock, allocates nothing and awaits nothing.
//! - A **miss** ([`TableCache::get`]) starts one load for each slice, however many ask. I/O is never awaited under a
//!   lock.
//! - A slice is **pinned** while somebody holds the [`Slice`] that `get` returned. A pinned slice is neither evicted nor dropped by a
//!   pass.
//! - **Eviction** is CLOCK over all stripes: a hand goes round, cools down what was used and takes what is cold, which
//!   comes near to taking the least recently used. The victim's memory is reused for the newcomer.
//! - A **pass** ([`TableCache::pass`]) drops what was not used since the pass before, QEMU's rule: it sweeps every stripe, which is
//!   short, and frees what it took afterwards, which is not.
//!
//! # Memory
//!
//! Slices count against the budget from the end of their load until they are freed; a load reuses what a pass has taken and not
//! freed yet. Beyond it go: loads in flight (a buffer each, as any
//! read), at most [`SCRATCH_BYTES_MAX`] of idle buffers, the index (some 64 bytes a slice), and, if every
//! slice is pinned when one more is loaded, that one: the cache rather exceeds its budget by what is pinned than
//! waits for a pin to go. The next miss shrinks it again.
//!
//! # Hostile images
//!
//! Whoever makes an image chooses its host offsets, and the hash is deterministic: the worst choice makes a look-up
//! walk all slices that are cached, which the budget bounds.
//!
//! This module must not know the image, guest offsets, or what the words of a slice say.

mod cleaner;
#[cfg(feature = "sim")]
pub mod mutant;
#[cfg(not(feature = "sim"))]
mod mutant;
mod options;
mod scratch;
mod slot;
mod statistics;
mod stripe;
mod swept;
mod table;
mod trim;
mod write_back;

pub use cleaner::{Cleaner, CleanerControl};
pub use options::{
    CACHE_CLEAN_INTERVAL_DEFAULT, CACHE_CLEAN_INTERVAL_MAX, CACHE_ENTRY_BYTES_DEFAULT,
    CacheOptions, CacheSizes, L2_CACHE_BYTES_DEFAULT,
};
pub use scratch::SCRATCH_BYTES_MAX;
pub use slot::Slice;
pub use statistics::CacheStatistics;
pub use table::{ENTRY_BYTES_MAX, ENTRY_BYTES_MIN, TableCache};
pub use write_back::WriteBack;
