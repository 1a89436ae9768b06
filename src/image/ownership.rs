//! What each host cluster of an image file is used for, so that no cluster is handed out or written to that something
//! else needs, whatever the refcounts say.
//!
//! A refcount that is too low makes a cluster look free that is in use. [`Ownership`] knows from the tables themselves:
//! `Qcow2Layer::survey` fills it in before the first change of an image, the allocator keeps it up to date.
//! No I/O, no waiting, no lock happens here; who shares it guards it.
//!
//! # Rules for writers
//!
//! - A cluster is allocated only if its refcount is 0 **and** its owner is [`Owner::Free`]; then [`Ownership::take`].
//! - A cluster of guest data is written in place only if its entry has the copied flag **and** its owner is
//!   [`Owner::Data`]. Else it is copied. A write to data whose owner is [`Owner::Metadata`] is refused.
//! - Metadata is changed in place only if it is not [contested](Ownership::is_contested): the bytes of a contested cluster
//!   are read as something else too. An L2 table that is contested is copied to a new cluster as one without the copied
//!   flag is; for all else the change is refused.
//! - When a refcount has reached 0, [`Ownership::release`] says whether the cluster may be handed out again, and its space
//!   be given up. It may not if the survey counted more references than the refcount told of: then the rest still need it.
//!
//! # Memory
//!
//! Two bits a cluster, a third where refcounts are too low, in chunks of 2048 clusters that exist only where something
//! is in use: 512 or 768 bytes each. A reference costs an image at least 8 bytes of metadata, so that a sparse file can
//! make this larger than its own metadata: hence the limit that [`Ownership::new`] takes.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::{Error, Result};

/// What a host cluster is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub(crate) enum Owner {
    /// Nothing refers to it.
    Free = 0,
    /// One reference to guest data.
    Data = 1,
    /// Several references to guest data: entries of snapshots, compressed clusters, or entries that should not be.
    Shared = 2,
    /// The header, a table, a refcount block, a bitmap, the encryption header.
    Metadata = 3,
}

impl Owner {
    fn from_bits(bits: u64) -> Self {
        match bits & 3 {
            0 => Self::Free,
            1 => Self::Data,
            2 => Self::Shared,
            _ => Self::Metadata,
        }
    }
}

/// Clusters that one chunk tells of.
const CHUNK_CLUSTERS: u64 = 2048;
/// Clusters that one word of owners tells of.
const WORD_CLUSTERS: u64 = 32;
const OWNER_WORDS: usize = (CHUNK_CLUSTERS / WORD_CLUSTERS) as usize;
const PIN_WORDS: usize = (CHUNK_CLUSTERS / 64) as usize;
/// Chunks that are found by their number in a list; those beyond are looked up. 8 TiB with clusters of 64 KiB.
const NEAR_CHUNKS_MAX: u64 = 1 << 16;
/// What a chunk takes with its pins and its place in a map.
const CHUNK_LEN_BYTES: u64 = (OWNER_WORDS as u64 + PIN_WORDS as u64 + 6) * 8;
/// Clusters that metadata and something else use. An image with more is not written to.
pub(super) const CONTESTED_MAX: usize = 4096;

struct Chunk {
    owners: [u64; OWNER_WORDS],
    /// One bit a cluster: it is never released.
    pins: Option<Box<[u64; PIN_WORDS]>>,
}

/// The uses of the host clusters of an image file; see the [module](self).
pub(crate) struct Ownership {
    near: Vec<Option<Box<Chunk>>>,
    far: BTreeMap<u64, Box<Chunk>>,
    contested: BTreeSet<u64>,
    len_bytes: u64,
    len_bytes_max: u64,
    known: bool,
    sound: bool,
}

impl Default for Ownership {
    /// Knows nothing yet: [`Ownership::is_known`] is false.
    fn default() -> Self {
        Self::new(u64::MAX)
    }
}

impl Ownership {
    /// Knows nothing yet, and will take at most `len_bytes_max` bytes for what [`Ownership::mark`] adds.
    pub(crate) fn new(len_bytes_max: u64) -> Self {
        Self {
            near: Vec::new(),
            far: BTreeMap::new(),
            contested: BTreeSet::new(),
            len_bytes: 0,
            len_bytes_max,
            known: false,
            sound: true,
        }
    }

    /// What the cluster is used for.
    #[inline]
    pub(crate) fn owner(&self, cluster: u64) -> Owner {
        let Some(chunk) = self.chunk(cluster) else { return Owner::Free };
        let (word, shift) = place(cluster);
        Owner::from_bits(chunk.owners[word] >> shift)
    }

    /// Whether the survey has finished: before, an owner that is free says nothing.
    pub(crate) fn is_known(&self) -> bool {
        self.known
    }

    /// Whether the survey found nothing that contradicts itself: no cluster used twice that its references or refcount
    /// say is used once, no reference to what the file does not have.
    pub(crate) fn is_sound(&self) -> bool {
        self.sound
    }

    /// Whether the cluster is metadata, and its bytes are read as something else too, so that it must not be changed.
    #[inline]
    pub(crate) fn is_contested(&self, cluster: u64) -> bool {
        !self.contested.is_empty() && self.contested.contains(&cluster)
    }

    /// Whether the cluster stays in use however low its refcount is.
    pub(crate) fn is_pinned(&self, cluster: u64) -> bool {
        let (word, bit) = pin(cluster);
        self.chunk(cluster)
            .and_then(|chunk| chunk.pins.as_ref())
            .is_some_and(|pins| pins[word] & bit != 0)
    }

    /// Notes that the cluster was allocated for `owner`, or that one more reference to it makes it shared.
    ///
    /// The allocator's invariant is asserted: what is not free is handed out to nobody, but that a cluster of data may
    /// become a shared one, and back.
    pub(crate) fn take(&mut self, cluster: u64, owner: Owner) {
        let now = self.owner(cluster);
        let is_data = |owner| matches!(owner, Owner::Data | Owner::Shared);
        assert!(
            now == Owner::Free || now == owner || (is_data(now) && is_data(owner)),
            "cluster {cluster} taken for {owner:?} belongs to {now:?}"
        );
        self.set(cluster, owner);
    }

    /// Notes that the cluster's refcount has reached 0, and returns whether it is free now. One that the survey found to
    /// have more references than its refcount said stays what it is: it must be neither handed out nor discarded.
    #[must_use]
    pub(crate) fn release(&mut self, cluster: u64) -> bool {
        if self.is_pinned(cluster) || self.is_contested(cluster) {
            return false;
        }
        if self.owner(cluster) != Owner::Free {
            self.set(cluster, Owner::Free);
        }
        true
    }

    /// Sets the owner of a cluster that the survey found in use.
    ///
    /// # Errors
    /// [`Error::LimitExceeded`] if that takes more memory than allowed.
    pub(super) fn mark(&mut self, cluster: u64, owner: Owner) -> Result<()> {
        self.set(cluster, owner);
        if self.len_bytes > self.len_bytes_max {
            return Err(Error::LimitExceeded {
                what: "bytes for the uses of clusters",
                value: self.len_bytes,
                limit: self.len_bytes_max,
            });
        }
        Ok(())
    }

    /// Makes the cluster one that is never released.
    pub(super) fn pin(&mut self, cluster: u64) {
        let (word, bit) = pin(cluster);
        let pins = &mut self.chunk_mut(cluster).pins;
        pins.get_or_insert_with(|| Box::new([0; PIN_WORDS]))[word] |= bit;
    }

    /// Makes the cluster one that metadata and something else use.
    ///
    /// # Errors
    /// [`Error::LimitExceeded`] if there are more than [`CONTESTED_MAX`].
    pub(super) fn contest(&mut self, cluster: u64) -> Result<()> {
        self.contested.insert(cluster);
        if self.contested.len() > CONTESTED_MAX {
            return Err(Error::LimitExceeded {
                what: "clusters that metadata shares",
                value: self.contested.len() as u64,
                limit: CONTESTED_MAX as u64,
            });
        }
        Ok(())
    }

    /// Allows more memory.
    pub(super) fn allow(&mut self, len_bytes_max: u64) {
        self.len_bytes_max = len_bytes_max;
    }

    /// Says that the survey found something that contradicts itself.
    pub(super) fn doubt(&mut self) {
        self.sound = false;
    }

    /// Says that the survey has seen everything. What comes later needs no limit: it follows the file's growth.
    pub(super) fn finish(&mut self) {
        self.known = true;
        self.len_bytes_max = u64::MAX;
    }

    fn set(&mut self, cluster: u64, owner: Owner) {
        let (word, shift) = place(cluster);
        let word = &mut self.chunk_mut(cluster).owners[word];
        *word = *word & !(3 << shift) | (owner as u64) << shift;
    }

    #[inline]
    fn chunk(&self, cluster: u64) -> Option<&Chunk> {
        let number = cluster / CHUNK_CLUSTERS;
        if number < NEAR_CHUNKS_MAX {
            // OK to cast: below 2^16.
            #[allow(clippy::cast_possible_truncation)]
            self.near.get(number as usize)?.as_deref()
        } else {
            self.far.get(&number).map(|chunk| &**chunk)
        }
    }

    fn chunk_mut(&mut self, cluster: u64) -> &mut Chunk {
        let number = cluster / CHUNK_CLUSTERS;
        let len_bytes = &mut self.len_bytes;
        let empty = || {
            *len_bytes += CHUNK_LEN_BYTES;
            Box::new(Chunk { owners: [0; OWNER_WORDS], pins: None })
        };
        if number >= NEAR_CHUNKS_MAX {
            return self.far.entry(number).or_insert_with(empty);
        }
        // OK to cast: below 2^16.
        #[allow(clippy::cast_possible_truncation)]
        let index = number as usize;
        if self.near.len() <= index {
            self.near.resize_with(index + 1, || None);
        }
        self.near[index].get_or_insert_with(empty)
    }
}

impl std::fmt::Debug for Ownership {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ownership")
            .field("known", &self.known)
            .field("sound", &self.sound)
            .field("contested", &self.contested.len())
            .field("len_bytes", &self.len_bytes)
            .finish_non_exhaustive()
    }
}

/// The word of a chunk that has the cluster's owner, and by how much it is shifted up there.
#[inline]
fn place(cluster: u64) -> (usize, u32) {
    // OK to cast: below 2048.
    #[allow(clippy::cast_possible_truncation)]
    let index = (cluster % CHUNK_CLUSTERS) as u32;
    ((index / 32) as usize, index % 32 * 2)
}

/// The word of a chunk's pins that has the cluster's, and its bit.
#[inline]
fn pin(cluster: u64) -> (usize, u64) {
    // OK to cast: below 2048.
    #[allow(clippy::cast_possible_truncation)]
    let index = (cluster % CHUNK_CLUSTERS) as u32;
    ((index / 64) as usize, 1 << (index % 64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pinned_and_contested_clusters_are_never_released() {
        let mut ownership = Ownership::default();
        for cluster in [0, 10, CHUNK_CLUSTERS * NEAR_CHUNKS_MAX + 5] {
            ownership.mark(cluster, Owner::Metadata).unwrap();
            ownership.mark(cluster + 2, Owner::Shared).unwrap();
            ownership.contest(cluster).unwrap();
            ownership.pin(cluster + 2);
            assert!(!ownership.release(cluster) && !ownership.release(cluster + 2));
            assert_eq!(ownership.owner(cluster), Owner::Metadata);
            assert_eq!(ownership.owner(cluster + 2), Owner::Shared);
            assert!(ownership.release(cluster + 1));
        }
    }

    #[test]
    #[should_panic(expected = "cluster 7 taken for Data belongs to Metadata")]
    fn metadata_is_not_handed_out() {
        let mut ownership = Ownership::default();
        ownership.take(7, Owner::Metadata);
        ownership.take(7, Owner::Data);
    }

    #[test]
    fn sparse_marks_end_at_the_limit() {
        let mut ownership = Ownership::new(100 * CHUNK_LEN_BYTES);
        let marked = (0..).map_while(|n| ownership.mark(n * 5000, Owner::Data).ok()).count();
        assert_eq!(marked, 100);
        let mut ownership = Ownership::default();
        let contested = (0..).map_while(|n| ownership.contest(n).ok()).count();
        assert_eq!(contested, CONTESTED_MAX);
    }

    #[cfg(not(target_family = "wasm"))]
    mod model {
        use super::*;
        use proptest::prelude::*;

        /// Clusters at the borders of words, chunks, and of the list of near chunks.
        fn cluster() -> impl Strategy<Value = u64> {
            let border = prop_oneof![
                Just(0),
                Just(WORD_CLUSTERS),
                Just(64),
                Just(CHUNK_CLUSTERS),
                Just(CHUNK_CLUSTERS * NEAR_CHUNKS_MAX),
                Just(1 << 47)
            ];
            (border, 0..8_u64).prop_map(|(border, more)| (border + more).saturating_sub(4))
        }

        #[derive(Debug, Clone)]
        enum Step {
            Take(u64, Owner),
            Release(u64),
            Pin(u64),
        }

        fn step() -> impl Strategy<Value = Step> {
            let owner = prop_oneof![Just(Owner::Data), Just(Owner::Shared), Just(Owner::Metadata)];
            prop_oneof![
                4 => (cluster(), owner).prop_map(|(cluster, owner)| Step::Take(cluster, owner)),
                3 => cluster().prop_map(Step::Release),
                1 => cluster().prop_map(Step::Pin),
            ]
        }

        proptest! {
            #[test]
            fn agrees_with_a_map(steps in proptest::collection::vec(step(), 1..200)) {
                let mut ownership = Ownership::default();
                let (mut owners, mut pins) = (BTreeMap::new(), BTreeSet::new());
                for step in steps {
                    match step {
                        Step::Take(cluster, owner) => {
                            // The allocator asks before.
                            if owners.contains_key(&cluster) {
                                continue;
                            }
                            ownership.take(cluster, owner);
                            owners.insert(cluster, owner);
                        }
                        Step::Release(cluster) => {
                            let free = !pins.contains(&cluster);
                            prop_assert_eq!(ownership.release(cluster), free);
                            if free {
                                owners.remove(&cluster);
                            }
                        }
                        Step::Pin(cluster) => {
                            ownership.pin(cluster);
                            pins.insert(cluster);
                        }
                    }
                    for cluster in owners.keys().chain(&pins) {
                        for near in cluster.saturating_sub(1)..=cluster + 1 {
                            let owner = owners.get(&near).copied().unwrap_or(Owner::Free);
                            prop_assert_eq!(ownership.owner(near), owner);
                            prop_assert_eq!(ownership.is_pinned(near), pins.contains(&near));
                        }
                    }
                }
            }
        }
    }
}
