//! What is wrong with an image: one kind for each check.

use std::fmt;

use super::kinds;

/// A rule of the format that an image breaks: where, which value, which rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Corrupt(Box<Inner>);

impl Corrupt {
    /// Every code that [`Corrupt::code`] can return.
    pub const CODES: &'static [&'static str] = CorruptKind::CODES;

    /// Returns the name of the check that failed, in kebab case: "l2-entry-unaligned". It is stable.
    pub fn code(&self) -> &'static str {
        self.0.kind.code()
    }

    /// Returns the structure in which it was found: "header", "L2 table", "snapshot table"...
    pub fn structure(&self) -> &'static str {
        self.0.structure.name()
    }

    /// Returns the byte offset in the image file: of the field in the header, else of the table or block that holds the
    /// entry.
    pub fn offset(&self) -> Option<u64> {
        self.0.offset
    }

    /// Returns the index of the entry in its table.
    pub fn index(&self) -> Option<u64> {
        self.0.index
    }

    pub(crate) fn new(kind: CorruptKind, structure: Structure) -> Self {
        Self(Box::new(Inner { kind, structure, index: None, offset: None }))
    }

    /// Says where: the byte offset in the image file.
    pub(crate) fn at(mut self, offset: u64) -> Self {
        self.0.offset = Some(offset);
        self
    }

    /// Says which entry of the table.
    pub(crate) fn entry(mut self, index: u64) -> Self {
        self.0.index = Some(index);
        self
    }
}

impl fmt::Display for Corrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { kind, structure, index, offset } = &*self.0;
        match index {
            Some(index) => write!(f, "{} {index}", structure.entry_name())?,
            None => f.write_str(structure.name())?,
        }
        if let Some(offset) = offset {
            write!(f, " at {offset:#x}")?;
        }
        write!(f, ": {kind}")
    }
}

impl std::error::Error for Corrupt {}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Inner {
    kind: CorruptKind,
    structure: Structure,
    index: Option<u64>,
    offset: Option<u64>,
}

/// The structures of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Structure {
    Header,
    L1Table,
    L2Table,
}

impl Structure {
    fn name(self) -> &'static str {
        match self {
            Self::Header => "header",
            Self::L1Table => "L1 table",
            Self::L2Table => "L2 table",
        }
    }

    fn entry_name(self) -> &'static str {
        match self {
            Self::Header => "header field",
            Self::L1Table => "L1 entry",
            Self::L2Table => "L2 entry",
        }
    }
}

kinds! {
    /// One kind for each check.
    CorruptKind {
        "cluster-bits-too-small" ClusterBitsTooSmall { value: u32, min: u32 } => "cluster_bits {value} is less than {min}",
        "extended-l2-cluster-bits" ExtendedL2ClusterBits { value: u32, min: u32 } =>
            "cluster_bits {value} is less than {min}, which extended L2 entries need",
        "refcount-order" RefcountOrder { value: u32, max: u32 } => "refcount_order {value} is greater than {max}",
        "l1-entry-unaligned" L1EntryUnaligned { offset: u64, alignment: u64 } =>
            "L2 table offset {offset:#x} is not aligned to {alignment:#x}",
        "l2-entry-unaligned" L2EntryUnaligned { offset: u64, alignment: u64 } =>
            "host offset {offset:#x} is not aligned to {alignment:#x}",
        "zero-flag-in-v2" ZeroFlagInV2 { descriptor: u64 } =>
            "descriptor {descriptor:#x} has the zero flag, which version 2 does not have",
        "compressed-with-data-file" CompressedWithDataFile { descriptor: u64 } =>
            "descriptor {descriptor:#x} is a compressed cluster, which an image with a data file cannot have",
        "compressed-host-offset" CompressedHostOffset { offset: u64, max: u64 } =>
            "compressed cluster's host offset {offset:#x} is not below {max:#x}",
        "subcluster-allocated-and-zero" SubclusterAllocatedAndZero { bits: u64 } =>
            "subclusters {bits:#010x} are both allocated and zero",
        "subcluster-allocated-without-cluster" SubclusterAllocatedWithoutCluster { bits: u64 } =>
            "subclusters {bits:#010x} are allocated, but the host offset is 0",
        "data-file-offset" DataFileOffset { host: u64, guest: u64 } =>
            "host offset {host:#x} in the data file is not the guest offset {guest:#x}",
    }
}
