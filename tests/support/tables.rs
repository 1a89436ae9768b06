//! The tables of an image as bytes, found and changed with nothing but the specification: for tests that damage them.

/// Bits 9 to 55 of L1 and L2 entries.
pub const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// The copied flag of L1 and L2 entries.
pub const COPIED: u64 = 1 << 63;
/// The flag of compressed clusters.
pub const COMPRESSED: u64 = 1 << 62;

/// An image file in memory.
#[derive(Clone)]
pub struct Tables {
    /// Its bytes.
    pub bytes: Vec<u8>,
}

impl Tables {
    /// Reads 64 bits at an offset of the file.
    pub fn word(&self, at: u64) -> u64 {
        let at = usize::try_from(at).unwrap();
        u64::from_be_bytes(self.bytes[at..at + 8].try_into().unwrap())
    }

    /// Reads 32 bits at an offset of the file.
    pub fn half(&self, at: u64) -> u32 {
        let at = usize::try_from(at).unwrap();
        u32::from_be_bytes(self.bytes[at..at + 4].try_into().unwrap())
    }

    /// Changes 64 bits.
    pub fn put(&mut self, at: u64, value: u64) {
        let at = usize::try_from(at).unwrap();
        self.bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
    }

    /// Changes 32 bits.
    pub fn put_half(&mut self, at: u64, value: u32) {
        let at = usize::try_from(at).unwrap();
        self.bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
    }

    /// The size of a cluster in bytes.
    pub fn cluster_size(&self) -> u64 {
        1 << self.half(20)
    }

    /// The length of the file in bytes.
    pub fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// The length of the file in clusters, the last of which may be partial.
    pub fn clusters(&self) -> u64 {
        self.len().div_ceil(self.cluster_size())
    }

    /// The size of the disk in bytes.
    pub fn size(&self) -> u64 {
        self.word(24)
    }

    /// Where the active L1 table is.
    pub fn l1(&self) -> u64 {
        self.word(40)
    }

    /// How many entries the active L1 table has.
    pub fn l1_entries(&self) -> u64 {
        u64::from(self.half(36))
    }

    /// Where the refcount table is.
    pub fn refcount_table(&self) -> u64 {
        self.word(48)
    }

    /// Where the refcount block of entry `index` is.
    pub fn refcount_block(&self, index: u64) -> u64 {
        self.word(self.refcount_table() + index * 8) & !0x1ff
    }

    /// Where the snapshot table is; 0 if there is none.
    pub fn snapshots(&self) -> u64 {
        self.word(64)
    }

    /// Where the L2 table is that the entry at `index` of the L1 table at `l1` names.
    pub fn l2(&self, l1: u64, index: u64) -> u64 {
        self.word(l1 + index * 8) & OFFSET
    }

    /// Whether L2 entries have 128 bits.
    pub fn extended(&self) -> bool {
        self.half(4) == 3 && self.word(72) & 16 != 0
    }

    /// Length in bytes of an L2 entry.
    pub fn l2_entry_len(&self) -> u64 {
        if self.extended() { 16 } else { 8 }
    }

    /// Where the L2 entry of a guest cluster is, under the L1 table at `l1`; `None` if there is no L2 table.
    pub fn entry_of(&self, l1: u64, guest_cluster: u64) -> Option<u64> {
        let per_table = self.cluster_size() / self.l2_entry_len();
        match self.l2(l1, guest_cluster / per_table) {
            0 => None,
            table => Some(table + guest_cluster % per_table * self.l2_entry_len()),
        }
    }

    /// Refcounts a block holds.
    pub fn block_entries(&self) -> u64 {
        let order = if self.half(4) == 2 { 4 } else { self.half(96) };
        (self.cluster_size() * 8) >> order
    }

    /// Sets the refcount of a host cluster; of 8 bits and more.
    pub fn set_refcount(&mut self, cluster: u64, value: u64) {
        let entries = self.block_entries();
        let width = usize::try_from(self.cluster_size() / entries).unwrap();
        assert!(width > 0, "narrow refcounts");
        let block = self.refcount_block(cluster / entries);
        assert_ne!(block, 0, "cluster {cluster} has no refcount block");
        let at = usize::try_from(block + cluster % entries * width as u64).unwrap();
        self.bytes[at..at + width].copy_from_slice(&value.to_be_bytes()[8 - width..]);
    }

    /// Number of the host cluster that holds an offset of the file.
    pub fn cluster(&self, at: u64) -> u64 {
        at / self.cluster_size()
    }
}
