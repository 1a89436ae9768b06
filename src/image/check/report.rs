//! What a check finds: typed findings that print in QEMU's words, and the totals.

use std::fmt;

/// The structures of an image, as a check tells them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Structure {
    /// The first cluster.
    Header,
    /// The active L1 table.
    L1Table,
    /// A snapshot's L1 table.
    SnapshotL1Table,
    /// An L2 table, active or of a snapshot.
    L2Table,
    /// The snapshot table.
    SnapshotTable,
    /// The refcount table.
    RefcountTable,
    /// A refcount block.
    RefcountBlock,
    /// The encryption header.
    CryptoHeader,
    /// The bitmap directory.
    BitmapDirectory,
    /// A bitmap's table.
    BitmapTable,
    /// A bitmap's data.
    BitmapData,
    /// A guest's data, standard or compressed.
    Data,
}

impl Structure {
    /// Returns its name in the words of the specification.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Header => "header",
            Self::L1Table => "L1 table",
            Self::SnapshotL1Table => "snapshot L1 table",
            Self::L2Table => "L2 table",
            Self::SnapshotTable => "snapshot table",
            Self::RefcountTable => "refcount table",
            Self::RefcountBlock => "refcount block",
            Self::CryptoHeader => "crypto header",
            Self::BitmapDirectory => "bitmap directory",
            Self::BitmapTable => "bitmap table",
            Self::BitmapData => "bitmap data",
            Self::Data => "data cluster",
        }
    }
}

impl fmt::Display for Structure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How bad a finding is: which total it adds to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FindingClass {
    /// Space that is counted and not used. Harmless.
    Leak,
    /// Data is wrong, or will be after the next write.
    Corruption,
    /// Something could not be checked.
    CheckError,
}

/// Something that a check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What is wrong.
    pub kind: FindingKind,
    /// The structure in which it was found.
    pub structure: Structure,
    /// Where: the byte offset in the image file of the entry or of the structure.
    pub offset: u64,
    /// How many times it counts: an entry of an L2 table that two snapshots share is wrong twice. The totals have it
    /// already.
    pub times: u64,
    /// Whether a repair mends it: then it adds to what is fixed, not to what is wrong.
    pub repaired: bool,
}

impl Finding {
    /// Returns which total it adds to.
    pub fn class(&self) -> FindingClass {
        match self.kind {
            FindingKind::Leak { .. } => FindingClass::Leak,
            FindingKind::SnapshotTableBroken { .. } | FindingKind::RefcountUnknown { .. } => {
                FindingClass::CheckError
            }
            _ => FindingClass::Corruption,
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.repaired {
            return self.kind.fmt(f);
        }
        // What QEMU can mend, it reports in the same words behind another first one.
        let text = self.kind.to_string();
        let rest = ["ERROR", "Leaked"].iter().find_map(|word| text.strip_prefix(word));
        write!(f, "Repairing{}", rest.unwrap_or(&text))
    }
}

/// What is wrong. Where QEMU checks the same, the text is QEMU's (qcow2-refcount.c, qcow2-snapshot.c).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the fields are the numbers that the text shows")]
pub enum FindingKind {
    /// Fewer references are counted on disk than there are: the next write may overwrite the cluster.
    RefcountTooLow { cluster: u64, refcount: u64, references: u64 },
    /// More references are counted on disk than there are.
    Leak { cluster: u64, refcount: u64, references: u64 },
    /// A cluster has more references than a refcount of this width can say.
    RefcountOverflow { offset: u64 },
    /// The refcount of a cluster could not be found, because the refcount block's offset cannot be one.
    RefcountUnknown { cluster: u64 },
    /// A reference to bytes past the end of the file.
    PastEnd { offset: u64, len: u64 },
    /// The file ends inside of a structure that must be whole. QEMU takes the missing bytes for zeros.
    CutShort { missing: u64 },
    /// A structure and something else, or two parts of one structure, use the same cluster, and the refcounts agree.
    Overlap { cluster: u64, with: Option<Structure> },
    /// An L1 entry has reserved bits.
    L1Reserved { entry: u64 },
    /// An L1 entry's offset is not aligned.
    L2TableUnaligned { offset: u64 },
    /// The copied flag of an L1 entry does not agree with the refcount.
    L1Copied { index: u64, entry: u64, refcount: u64 },
    /// An L2 entry has reserved bits.
    L2Reserved { entry: u64 },
    /// The copied flag of an L2 entry does not agree with the refcount.
    DataCopied { entry: u64, refcount: u64 },
    /// An L2 entry points to a data cluster and is not aligned.
    DataUnaligned { offset: u64 },
    /// An L2 entry keeps a cluster for zeros and is not aligned.
    PreallocatedUnaligned { offset: u64 },
    /// A compressed cluster has the copied flag.
    CompressedCopied { offset: u64 },
    /// A compressed cluster in an image with a data file.
    CompressedWithDataFile { index: u64, entry: u64 },
    /// A compressed cluster with subclusters.
    CompressedWithBitmap { index: u64, entry: u64 },
    /// Subclusters are both allocated and zero.
    SubclusterBitmap { offset: u64 },
    /// Subclusters are allocated in a cluster that is not.
    UnallocatedBitmap,
    /// Snapshots in an image with a data file.
    SnapshotsWithDataFile { count: u32 },
    /// A snapshot's L1 table is not aligned.
    SnapshotL1Unaligned { id: String, name: String, offset: u64 },
    /// A snapshot's L1 table is larger than the limit.
    SnapshotL1TooLarge { id: String, name: String, entries: u32 },
    /// A snapshot of version 3 lacks extra data.
    SnapshotIncomplete { index: u32 },
    /// The snapshot table cannot be read; says why.
    SnapshotTableBroken { reason: String },
    /// The bitmap directory cannot be read; says why.
    BitmapDirectoryBroken { reason: String },
    /// An entry of a bitmap table has reserved bits or is not aligned.
    BitmapEntry { index: u64, entry: u64 },
    /// An entry of the refcount table has reserved bits.
    RefcountTableReserved { index: u64 },
    /// A refcount block is not aligned.
    RefcountBlockUnaligned { index: u64 },
    /// A refcount block lies past the end of the file.
    RefcountBlockOutside { index: u64 },
    /// A refcount block is used for something else too.
    RefcountBlockShared { index: u64, references: u64 },
}

impl fmt::Display for FindingKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RefcountTooLow { cluster, refcount, references } => {
                write!(f, "ERROR cluster {cluster} refcount={refcount} reference={references}")
            }
            Self::Leak { cluster, refcount, references } => {
                write!(f, "Leaked cluster {cluster} refcount={refcount} reference={references}")
            }
            Self::RefcountOverflow { offset } => {
                write!(f, "ERROR: overflow cluster offset={offset:#x}")
            }
            Self::RefcountUnknown { cluster } => {
                write!(f, "Can't get refcount for cluster {cluster}: Input/output error")
            }
            Self::PastEnd { offset, len } => write!(
                f,
                "ERROR: counting reference for region exceeding the end of the file by one cluster or more: \
                 offset {offset:#x} size {len:#x}"
            ),
            Self::CutShort { missing } => {
                write!(f, "ERROR the file ends {missing} bytes before the structure does")
            }
            Self::Overlap { cluster, with: Some(with) } => {
                write!(f, "ERROR cluster {cluster} is used twice: it belongs to the {with}")
            }
            Self::Overlap { cluster, with: None } => {
                write!(f, "ERROR cluster {cluster} is used twice: it belongs to metadata")
            }
            Self::L1Reserved { entry } => {
                write!(f, "ERROR found L1 entry with reserved bits set: {entry:x}")
            }
            Self::L2TableUnaligned { offset } => write!(
                f,
                "ERROR l2_offset={offset:x}: Table is not cluster aligned; L1 entry corrupted"
            ),
            Self::L1Copied { index, entry, refcount } => write!(
                f,
                "ERROR OFLAG_COPIED L2 cluster: l1_index={index} l1_entry={entry:x} refcount={refcount}"
            ),
            Self::L2Reserved { entry } => {
                write!(f, "ERROR found l2 entry with reserved bits set: {entry:x}")
            }
            Self::DataCopied { entry, refcount } => {
                write!(f, "ERROR OFLAG_COPIED data cluster: l2_entry={entry:x} refcount={refcount}")
            }
            Self::DataUnaligned { offset } => write!(
                f,
                "ERROR offset={offset:x}: Data cluster is not properly aligned; L2 entry corrupted."
            ),
            Self::PreallocatedUnaligned { offset } => write!(
                f,
                "ERROR offset={offset:x}: Preallocated cluster is not properly aligned; L2 entry corrupted."
            ),
            Self::CompressedCopied { offset } => write!(
                f,
                "ERROR: coffset={offset:#x}: copied flag must never be set for compressed clusters"
            ),
            Self::CompressedWithDataFile { index, entry } => {
                write!(f, "ERROR compressed cluster {index} with data file, entry={entry:#x}")
            }
            Self::CompressedWithBitmap { index, entry } => write!(
                f,
                "ERROR compressed cluster {index} with non-zero subcluster allocation bitmap, entry={entry:#x}"
            ),
            Self::SubclusterBitmap { offset } => write!(
                f,
                "ERROR offset={offset:x}: Allocated cluster has corrupted subcluster allocation bitmap"
            ),
            Self::UnallocatedBitmap => {
                f.write_str("ERROR: Unallocated cluster has non-zero subcluster allocation map")
            }
            Self::SnapshotsWithDataFile { count } => {
                write!(f, "ERROR {count} snapshots in image with data file")
            }
            Self::SnapshotL1Unaligned { id, name, offset } => write!(
                f,
                "ERROR snapshot {} ({}) l1_offset={offset:#x}: L1 table is not cluster aligned; snapshot table entry \
                 corrupted",
                id.escape_debug(),
                name.escape_debug()
            ),
            Self::SnapshotL1TooLarge { id, name, entries } => write!(
                f,
                "ERROR snapshot {} ({}) l1_size={entries:#x}: L1 table is too large; snapshot table entry corrupted",
                id.escape_debug(),
                name.escape_debug()
            ),
            Self::SnapshotIncomplete { index } => {
                write!(f, "ERROR snapshot table entry {index} is incomplete")
            }
            Self::SnapshotTableBroken { reason } => {
                write!(f, "ERROR failed to read the snapshot table: {reason}")
            }
            Self::BitmapDirectoryBroken { reason } => {
                write!(f, "ERROR failed to read the bitmap directory: {reason}")
            }
            Self::BitmapEntry { index, entry } => {
                write!(f, "ERROR bitmap table entry {index} is invalid: {entry:x}")
            }
            Self::RefcountTableReserved { index } => {
                write!(f, "ERROR refcount table entry {index} has reserved bits set")
            }
            Self::RefcountBlockUnaligned { index } => write!(
                f,
                "ERROR refcount block {index} is not cluster aligned; refcount table entry corrupted"
            ),
            Self::RefcountBlockOutside { index } => {
                write!(f, "ERROR refcount block {index} is outside image")
            }
            Self::RefcountBlockShared { index, references } => {
                write!(f, "ERROR refcount block {index} refcount={references}")
            }
        }
    }
}

/// What a check has counted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct CheckReport {
    /// What could not be checked.
    pub check_errors: u64,
    /// Errors in the image.
    pub corruptions: u64,
    /// Clusters with a refcount that is too high.
    pub leaks: u64,
    /// Offset in bytes behind the last cluster in use.
    pub image_end_offset: u64,
    /// Clusters of the virtual disk.
    pub total_clusters: u64,
    /// Guest clusters with a host cluster, in the active state.
    pub allocated_clusters: u64,
    /// Guest clusters that are compressed, in the active state.
    pub compressed_clusters: u64,
    /// Guest clusters that do not lie behind the one before, in the active state.
    pub fragmented_clusters: u64,
    /// How many times the metadata was read: more than once if the memory did not suffice.
    pub passes: u32,
    /// Copied flags that were not compared, because more of them lie past the end of the file than a check looks at.
    pub flags_skipped: u64,
}

impl CheckReport {
    /// Returns whether nothing at all was found.
    pub fn is_clean(&self) -> bool {
        self.check_errors == 0 && self.corruptions == 0 && self.leaks == 0
    }
}

/// What a repair does beside mending findings, and what it cannot do. Prints in QEMU's words.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the fields are the numbers that the text shows")]
pub enum RepairStep {
    /// Refcount table and blocks are built anew.
    Rebuilding,
    /// They would have to be, but only leaks are to be repaired.
    RebuildNeeded,
    /// They cannot be: the refcounts of this image do not fit the largest refcount table.
    RebuildImpossible,
    /// A refcount block lies too far past the end of the file for the file to be extended to it.
    ResizeFailed,
    /// Snapshots beyond the greatest number of them are dropped.
    SnapshotsDropped { count: u32 },
    /// Snapshots are dropped because the snapshot table is too long.
    SnapshotsBeyondTableDropped { count: u32 },
    /// The end of a snapshot's extra data is dropped.
    SnapshotExtraDropped { index: u32, len: u32, max: u32 },
    /// The mended snapshot table would be too long.
    SnapshotTableTooLong,
    /// An entry or a flag cannot be written because its table shares its cluster with something else.
    TableShared,
    /// The header, which would have to be changed, is used as a table.
    HeaderShared,
}

impl fmt::Display for RepairStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rebuilding => f.write_str("Rebuilding refcount structure"),
            Self::RebuildNeeded => f.write_str("ERROR need to rebuild refcount structures"),
            Self::RebuildImpossible => f.write_str("ERROR allocating reftable: File too large"),
            Self::ResizeFailed => f.write_str("ERROR could not resize image: File too large"),
            Self::SnapshotsDropped { count } => {
                write!(f, "Discarding {count} overhanging snapshots")
            }
            Self::SnapshotsBeyondTableDropped { count } => {
                write!(f, "Discarding {count} overhanging snapshots (snapshot table is too big)")
            }
            Self::SnapshotExtraDropped { index, len, max } => write!(
                f,
                "Discarding too much extra metadata in snapshot table entry {index} ({len} > {max})"
            ),
            Self::SnapshotTableTooLong => {
                f.write_str("ERROR failed to update snapshot table: File too large")
            }
            Self::HeaderShared => f.write_str("ERROR the header is used as a table"),
            Self::TableShared => f.write_str("ERROR: Overlap check failed"),
        }
    }
}

/// Takes what a check finds, while it runs. `()` takes nothing.
pub trait CheckObserver {
    /// Takes a finding. There may be millions in a broken image.
    fn finding(&mut self, finding: &Finding) {
        let _ = finding;
    }

    /// Takes what a repair does or cannot do.
    fn step(&mut self, step: &RepairStep) {
        let _ = step;
    }

    /// Says that `done` of `total` parts of the work are done.
    fn progress(&mut self, done: u64, total: u64) {
        let _ = (done, total);
    }
}

impl CheckObserver for () {}

impl CheckObserver for Vec<Finding> {
    fn finding(&mut self, finding: &Finding) {
        self.push(finding.clone());
    }
}
