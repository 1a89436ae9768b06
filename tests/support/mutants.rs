//! Images with one wrong number in their metadata.

use super::images::TestImage;
use super::matrix::{Case, Compression, DataFile, cases, images};

/// Images whose metadata is mutated: one of each kind of structure.
pub fn victims() -> Vec<TestImage> {
    let mut kinds: Vec<Case> = Vec::new();
    let all = cases();
    let mut take = |wanted: &dyn Fn(&Case) -> bool| {
        kinds.push(*all.iter().find(|case| wanted(case)).expect("a case of this kind"));
    };
    for cluster_size in [512, 4096, 64 << 10] {
        take(&|c| {
            c.cluster_size == cluster_size && c.version == 2 && c.compression == Compression::Zlib
        });
        take(&|c| c.cluster_size == cluster_size && c.version == 3 && c.snapshots == 2);
        take(&|c| c.cluster_size == cluster_size && c.refcount_bits == 1);
        take(&|c| c.cluster_size == cluster_size && c.refcount_bits == 64);
    }
    take(&|c| c.refcount_bits == 2 && c.cluster_size == 4096);
    take(&|c| c.refcount_bits == 8 && c.cluster_size == 512);
    take(&|c| c.refcount_bits == 32 && c.cluster_size == 512);
    take(&|c| c.extended_l2 && c.compression == Compression::Zlib);
    take(&|c| c.extended_l2 && c.snapshots == 0 && c.data_file == DataFile::Internal);
    take(&|c| c.data_file == DataFile::External && c.cluster_size == 4096);
    images(kinds).collect()
}

/// The tables of an image, found by the specification's offsets and nothing of ours.
pub struct Tables<'a> {
    bytes: &'a [u8],
    cluster_size: u64,
    refcount_bits: u64,
}

impl<'a> Tables<'a> {
    /// Finds them.
    pub fn of(bytes: &'a [u8]) -> Self {
        let version = be(bytes, 4, 4);
        Self {
            bytes,
            cluster_size: 1 << be(bytes, 20, 4),
            refcount_bits: if version == 2 { 16 } else { 1 << be(bytes, 96, 4) },
        }
    }

    /// The clusters of the file.
    pub fn clusters(&self) -> u64 {
        (self.bytes.len() as u64).div_ceil(self.cluster_size)
    }

    /// Places of the words of the tables: L1, L2, refcount table, refcount blocks, snapshot table and its L1s.
    pub fn words(&self) -> Vec<(&'static str, usize)> {
        let mut words = Vec::new();
        let mut l1s = vec![("L1", be(self.bytes, 40, 8), be(self.bytes, 36, 4))];
        let mut at = be(self.bytes, 64, 8);
        for _ in 0..be(self.bytes, 60, 4) {
            let place = at as usize;
            l1s.push(("snapshot L1", be(self.bytes, place, 8), be(self.bytes, place + 8, 4)));
            words.push(("snapshot", place));
            words.push(("snapshot", place + 8));
            let len = 40
                + be(self.bytes, place + 36, 4)
                + be(self.bytes, place + 12, 2)
                + be(self.bytes, place + 14, 2);
            at = (at + len).next_multiple_of(8);
        }
        let mut l2s = Vec::new();
        for (name, offset, entries) in l1s {
            for index in 0..entries {
                let place = (offset + index * 8) as usize;
                words.push((name, place));
                l2s.push(be(self.bytes, place, 8) & 0x00ff_ffff_ffff_fe00);
            }
        }
        l2s.sort_unstable();
        l2s.dedup();
        for l2 in l2s.into_iter().filter(|l2| *l2 != 0) {
            words.extend((0..self.cluster_size / 8).map(|i| ("L2", (l2 + i * 8) as usize)));
        }
        for (index, block) in self.refcount_blocks().into_iter().enumerate() {
            words.push(("refcount table", be(self.bytes, 48, 8) as usize + index * 8));
            if block != 0 {
                words.extend(
                    (0..self.cluster_size / 8).map(|i| ("block", (block + i * 8) as usize)),
                );
            }
        }
        words.retain(|(_, place)| place + 8 <= self.bytes.len());
        words
    }

    fn refcount_blocks(&self) -> Vec<u64> {
        let (table, clusters) = (be(self.bytes, 48, 8), be(self.bytes, 56, 4));
        (0..clusters * self.cluster_size / 8)
            .map(|index| be(self.bytes, (table + index * 8) as usize, 8))
            .collect()
    }

    /// Where a refcount of 16 bits stands.
    pub fn refcount_at(&self, cluster: u64) -> Option<usize> {
        assert_eq!(self.refcount_bits, 16);
        let entries = self.cluster_size / 2;
        let block = *self.refcount_blocks().get((cluster / entries) as usize)?;
        (block != 0).then_some((block + cluster % entries * 2) as usize)
    }
}

/// The number of `len` bytes at `at`.
pub fn be(bytes: &[u8], at: usize, len: usize) -> u64 {
    bytes[at..at + len].iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

/// xorshift: all that choosing needs.
pub struct Random(pub u64);

impl Random {
    /// The next number.
    #[allow(clippy::should_implement_trait, reason = "it never ends")]
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }
}

/// Changes one number of the metadata, and says which and how.
pub fn mutate(bytes: &mut [u8], random: &mut Random) -> String {
    let tables = Tables::of(bytes);
    let words = tables.words();
    let kinds = ["L1", "L2", "refcount table", "block", "snapshot", "snapshot L1"];
    let (name, place) = loop {
        // A structure first, so that the few words of the small ones are met; then mostly one that says something.
        let kind = kinds[random.below(kinds.len())];
        let of_kind: Vec<_> = words.iter().filter(|(name, _)| *name == kind).collect();
        let used: Vec<_> =
            of_kind.iter().copied().filter(|(_, place)| be(bytes, *place, 8) != 0).collect();
        let from = if random.below(4) > 0 && !used.is_empty() { used } else { of_kind };
        if !from.is_empty() {
            break *from[random.below(from.len())];
        }
    };
    let old = be(bytes, place, 8);
    let cluster_size = tables.cluster_size;
    let end = tables.clusters();
    let other = words[random.below(words.len())].1;
    let new = match random.below(12) {
        0 => old ^ (1 << random.below(64)),
        1 => old ^ (1 << 63),
        2 => old ^ (1 << 62),
        3 => old ^ 1,
        4 => 0,
        5 => old.wrapping_add(cluster_size),
        6 => old.wrapping_sub(cluster_size),
        7 => (old & (1 << 63)) | (random.next() % (end + 2) * cluster_size),
        8 => be(bytes, other, 8),
        9 => old ^ (1 << (9 + random.below(12))),
        10 => (old & !0x00ff_ffff_ffff_fe00) | ((end + random.next() % 4) * cluster_size),
        _ => random.next(),
    };
    bytes[place..place + 8].copy_from_slice(&new.to_be_bytes());
    format!("{name} word at {place:#x}: {old:#x} -> {new:#x}")
}
