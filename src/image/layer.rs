//! One layer of a disk: a qcow2 image or a raw one, and what lies below it.

use std::path::PathBuf;
use std::sync::Arc;

use crate::cache::{Slice, TableCache};
use crate::crypt::DiskCipher;
use crate::error::{Error, Result, Structure};
use crate::format::limits::HOST_OFFSET_MAX;
use crate::format::{
    ClusterKind, CompressedCluster, CryptMethod, Geometry, GuestOffset, Header, HostOffset,
    L1Entry, L2Context, L2Entry, L2Fault, Snapshot, SubclusterKind,
};
use crate::storage::{Blocks, Storage};
use crate::sync::{AtomicU64, Ordering};

use super::codec::Codec;
use super::inflated::Inflated;
use super::l1::L1;
use super::metadata::Metadata;
use super::published::Published;

/// How many L1 entries without a table one run goes over. The layer below may answer for a few bytes of it, and the rest
/// is looked for again.
const L1_ENTRIES_PER_RUN_MAX: usize = 1024;

/// No disk has this size.
pub(super) const NOT_GROWING: u64 = u64::MAX;

/// A layer and where it came from.
pub(crate) struct Layer<S> {
    pub(crate) body: Body<S>,
    pub(crate) location: PathBuf,
    pub(crate) below: Below,
}

/// What a layer is made of.
pub(crate) enum Body<S> {
    Qcow2(Box<Qcow2Layer<S>>),
    Raw(RawLayer<S>),
}

/// What clusters read that a layer does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Below {
    /// Zeros: there is no backing file, or the gate said so.
    Zeros,
    /// The next layer of the chain.
    Layer,
    /// There is a backing file, and it was not opened.
    Left,
}

/// The guest's bytes and nothing else.
pub(crate) struct RawLayer<S> {
    pub(crate) storage: S,
    /// The way of every change.
    pub(crate) blocks: Blocks,
    pub(crate) size: AtomicU64,
}

/// A qcow2 image, opened.
pub(crate) struct Qcow2Layer<S> {
    /// The image file.
    pub(crate) metadata: Metadata<S>,
    /// The data file, if there is one; else the clusters are in the image file.
    pub(crate) data: DataFile<S>,
    /// The way of every change to the data file.
    pub(crate) data_blocks: Blocks,
    pub(crate) header: Published<Header>,
    pub(crate) crypt: CryptMethod,
    /// What guest data is encrypted with, if it is and the passphrase was given.
    pub(crate) cipher: Option<DiskCipher>,
    pub(crate) geometry: Geometry,
    pub(crate) context: L2Context,
    pub(crate) snapshots: Published<[Snapshot]>,
    /// Of the state that is open, active or snapshot.
    pub(crate) l1: L1,
    pub(crate) l1_table: AtomicU64,
    pub(crate) size: AtomicU64,
    /// The size that those outside see while the disk grows; [`NOT_GROWING`] otherwise.
    pub(crate) size_while_growing: AtomicU64,
    pub(crate) l2_cache: Arc<TableCache>,
    pub(crate) refcount_cache: Arc<TableCache>,
    pub(crate) codec: Arc<Codec>,
    pub(crate) inflated: Inflated,
}

/// Where a qcow2 image's guest clusters are.
pub(crate) enum DataFile<S> {
    /// In the image file.
    None,
    Open(S),
    /// The gate said that it reads as zeros.
    Zeros,
    /// Not opened.
    Left,
}

/// What a layer has from an offset on: one kind, and for data one run of host bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) kind: RunKind,
    /// In bytes; at least 1.
    pub(crate) len: u64,
}

/// What a run is. Host offsets are those of its first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RunKind {
    /// Nothing: ask the layer below. With a host offset where space is kept in an extended L2 entry all the same.
    Unallocated { host: Option<HostOffset> },
    /// Zeros; with a host offset where space is kept for it.
    Zero { host: Option<HostOffset> },
    /// Bytes as they are.
    Data { host: HostOffset },
    /// A part of one compressed cluster.
    Compressed(CompressedCluster),
}

impl RunKind {
    /// The kind of the bytes that follow `len` bytes of this kind if one run goes on; `None` if it cannot.
    pub(crate) fn after(self, len: u64) -> Option<Self> {
        match self {
            Self::Unallocated { host: None } | Self::Zero { host: None } => Some(self),
            Self::Unallocated { host: Some(host) } => {
                Some(Self::Unallocated { host: Some(host.checked_add(len)?) })
            }
            Self::Zero { host: Some(host) } => {
                Some(Self::Zero { host: Some(host.checked_add(len)?) })
            }
            Self::Data { host } => Some(Self::Data { host: host.checked_add(len)? }),
            Self::Compressed(_) => None,
        }
    }
}

impl<S> RawLayer<S> {
    /// Its length in bytes, in whole sectors.
    pub(crate) fn len(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }
}

impl<S: Storage> Layer<S> {
    /// The size of the disk that this layer describes, in bytes.
    pub(crate) fn virtual_size(&self) -> u64 {
        match &self.body {
            Body::Qcow2(layer) => layer.virtual_size(),
            Body::Raw(layer) => layer.len(),
        }
    }

    /// The same for those who are not at work on the layer itself: of a disk that is becoming longer the old size, as long
    /// as not everything behind it is zeros.
    pub(crate) fn size_from_outside(&self) -> u64 {
        let growing = match &self.body {
            Body::Qcow2(layer) => layer.size_while_growing.load(Ordering::Acquire),
            Body::Raw(_) => NOT_GROWING,
        };
        if growing == NOT_GROWING { self.virtual_size() } else { growing }
    }

    /// The size that the image sees whose layer at `depth` this is.
    #[inline]
    pub(super) fn size_at(&self, depth: usize) -> u64 {
        if depth == 0 { self.virtual_size() } else { self.size_from_outside() }
    }

    /// The run from `offset` on, at most `len` bytes (at least 1), if that needs no I/O.
    #[inline]
    pub(crate) fn run_cached(&self, offset: u64, len: u64) -> Option<Result<Run>> {
        match &self.body {
            Body::Qcow2(layer) => layer.run_cached(offset, len),
            Body::Raw(_) => {
                Some(Ok(Run { kind: RunKind::Data { host: HostOffset::new(offset) }, len }))
            }
        }
    }

    /// The run from `offset` on, at most `len` bytes (at least 1).
    pub(crate) async fn run(&self, offset: u64, len: u64) -> Result<Run> {
        match &self.body {
            Body::Qcow2(layer) => layer.run(offset, len).await,
            Body::Raw(_) => Ok(Run { kind: RunKind::Data { host: HostOffset::new(offset) }, len }),
        }
    }

    /// Where this layer's data runs are.
    ///
    /// # Errors
    /// [`Error::Refused`] if that file was not opened.
    pub(crate) fn data_storage(&self) -> Result<Option<&S>> {
        match &self.body {
            Body::Raw(layer) => Ok(Some(&layer.storage)),
            Body::Qcow2(layer) => layer.data_storage(),
        }
    }

    /// What data runs are encrypted with.
    ///
    /// # Errors
    /// [`Error::KeyRequired`] if they are, and there is no key.
    #[inline]
    pub(crate) fn cipher(&self) -> Result<Option<&DiskCipher>> {
        match &self.body {
            Body::Qcow2(layer) if layer.crypt != CryptMethod::None => layer.cipher(),
            _ => Ok(None),
        }
    }
}

impl<S: Storage> Qcow2Layer<S> {
    /// The size of its disk in bytes.
    pub(crate) fn virtual_size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    fn data_storage(&self) -> Result<Option<&S>> {
        match &self.data {
            DataFile::None => Ok(Some(self.metadata.storage())),
            DataFile::Open(storage) => Ok(Some(storage)),
            DataFile::Zeros => Ok(None),
            DataFile::Left => Err(self.data_left()),
        }
    }

    /// The error for bytes that are in the data file, which was not opened.
    pub(crate) fn data_left(&self) -> Error {
        Error::refused(
            super::gate::ReferenceKind::DataFile.name(),
            self.header.get().data_file().unwrap_or_default(),
            "it was not opened",
        )
    }

    /// Where its L1 table is.
    pub(crate) fn l1_offset(&self) -> HostOffset {
        HostOffset::new(self.l1_table.load(Ordering::Acquire))
    }

    /// What the cluster at guest offset `guest` is, by its entry.
    pub(crate) fn cluster_kind(&self, entry: &L2Entry, guest: u64) -> Result<ClusterKind> {
        let guest = GuestOffset::new(guest);
        entry.cluster_for(&self.context, guest).map_err(|fault| {
            let index = usize::try_from(self.geometry.l1_index(guest)).unwrap_or(usize::MAX);
            let table = L1Entry::from_raw(self.l1.get(index)).l2_table().unwrap_or_default();
            fault.at(table, self.geometry.l2_index(guest))
        })
    }

    /// Where the bytes from `offset` on, at most `len`, may be overwritten in their place, if that needs no I/O to find out:
    /// the run of host bytes, or `None` inside if there is none.
    pub(crate) fn in_place_cached(
        &self,
        offset: u64,
        len: u64,
    ) -> Option<Result<Option<(HostOffset, u64)>>> {
        match self.slice(offset, len) {
            Ok(Place::At(at)) => {
                self.l2_cache.hit(at.slice, |slice| self.scan_in_place(slice, &at))
            }
            Ok(Place::None(_)) => Some(Ok(None)),
            Err(error) => Some(Err(error)),
        }
    }

    /// As [`Self::in_place_cached`], with I/O.
    pub(crate) async fn in_place(
        &self,
        offset: u64,
        len: u64,
    ) -> Result<Option<(HostOffset, u64)>> {
        let at = match self.slice(offset, len)? {
            Place::At(at) => at,
            Place::None(_) => return Ok(None),
        };
        let slice = self.metadata.load_slice(&self.l2_cache, Structure::L2Table, at.slice).await?;
        let found = self.l2_cache.hit(at.slice, |slice| self.scan_in_place(slice, &at));
        found.unwrap_or_else(|| self.scan_in_place(&slice, &at))
    }

    /// Reads out of the slice's entries how far the bytes lie side by side in clusters that are the guest's alone.
    fn scan_in_place(&self, slice: &Slice, at: &At) -> Result<Option<(HostOffset, u64)>> {
        let words = if self.geometry.extended_l2() { 2 } else { 1 };
        let fault = |fault: L2Fault| fault.at(at.table, at.cluster);
        let mut word = at.first * words;
        let copied = |word: usize| {
            L2Entry::from_raw(slice.word(word), 0).copied() || self.context.data_file()
        };
        let run = self.part(slice, word, at.guest).map_err(fault)?;
        let (RunKind::Data { host }, true) = (run.kind, copied(word)) else { return Ok(None) };
        let mut len = run.len;
        while len < at.len {
            if self.geometry.offset_in_cluster(at.guest + len) == 0 {
                word += words;
            }
            if word >= slice.words() || !copied(word) {
                break;
            }
            // What is wrong behind the run is said when it comes to it.
            match self.part(slice, word, at.guest + len) {
                Ok(next) if Some(next.kind) == run.kind.after(len) => len += next.len,
                _ => break,
            }
        }
        Ok(Some((host, len.min(at.len))))
    }

    /// What guest data is encrypted with; `None` if it is not.
    ///
    /// # Errors
    /// [`Error::KeyRequired`] if it is, and there is no key.
    #[inline]
    pub(crate) fn cipher(&self) -> Result<Option<&DiskCipher>> {
        match (self.crypt, &self.cipher) {
            (CryptMethod::None, _) => Ok(None),
            (_, Some(cipher)) => Ok(Some(cipher)),
            (method, None) => Err(Error::KeyRequired { method: method_name(method) }),
        }
    }

    /// The bytes of guest offsets before the VM state.
    pub(crate) fn vm_state_offset(&self) -> u64 {
        let coverage = self.geometry.l2_coverage();
        // A snapshot can say of its disk that it has almost 2^64 bytes: there is room for nothing behind it.
        self.virtual_size().checked_next_multiple_of(coverage).unwrap_or(u64::MAX)
    }

    fn run_cached(&self, offset: u64, len: u64) -> Option<Result<Run>> {
        match self.slice(offset, len) {
            Ok(Place::At(at)) => self.l2_cache.hit(at.slice, |slice| self.scan(slice, &at)),
            Ok(Place::None(run)) => Some(Ok(run)),
            Err(error) => Some(Err(error)),
        }
    }

    async fn run(&self, offset: u64, len: u64) -> Result<Run> {
        let at = match self.slice(offset, len)? {
            Place::At(at) => at,
            Place::None(run) => return Ok(run),
        };
        if let Some(run) = self.l2_cache.hit(at.slice, |slice| self.scan(slice, &at)) {
            return run;
        }
        let slice = self.metadata.load_slice(&self.l2_cache, Structure::L2Table, at.slice).await?;
        // Through the cache again, where the two words of an extended entry change together.
        let run = self.l2_cache.hit(at.slice, |slice| self.scan(slice, &at));
        run.unwrap_or_else(|| self.scan(&slice, &at))
    }

    /// Finds the slice of the L2 table that maps `offset`.
    #[inline]
    fn slice(&self, offset: u64, len: u64) -> Result<Place> {
        let guest = GuestOffset::new(offset);
        let index = self.geometry.l1_index(guest);
        let l1_index = usize::try_from(index).unwrap_or(usize::MAX);
        let raw = self.l1.get(l1_index);
        let entry = L1Entry::parse(raw, index, self.l1_offset(), &self.geometry)?;
        let Some(table) = entry.l2_table() else {
            return Ok(Place::None(self.unmapped(l1_index, offset, len)));
        };
        let cluster = self.geometry.l2_index(guest);
        let byte = cluster * self.geometry.l2_entry_len();
        // Slices have a power of two bytes.
        let in_slice = byte & (self.l2_cache.entry_bytes() - 1);
        // A host offset has 56 bits, so the sum cannot overflow.
        let slice = table.checked_add(byte - in_slice).unwrap_or(table);
        // A slice is in memory, so its indexes fit.
        let first = usize::try_from(in_slice / self.geometry.l2_entry_len()).unwrap_or(0);
        Ok(Place::At(At { slice, table, cluster, first, guest: offset, len }))
    }

    /// The run of clusters whose L2 tables do not exist, over [`L1_ENTRIES_PER_RUN_MAX`] tables at most.
    fn unmapped(&self, l1_index: usize, offset: u64, len: u64) -> Run {
        let coverage = self.geometry.l2_coverage();
        let first = coverage - offset % coverage;
        let wanted = len.saturating_sub(first).div_ceil(coverage);
        let wanted = usize::try_from(wanted)
            .map_or(L1_ENTRIES_PER_RUN_MAX, |wanted| wanted.min(L1_ENTRIES_PER_RUN_MAX));
        let near = l1_index.saturating_add(1)..self.l1.len();
        let beyond = near.len() < wanted;
        let mut near = near.take(wanted);
        let count = near.len();
        let mapped =
            near.position(|index| L1Entry::from_raw(self.l1.get(index)).l2_table().is_some());
        let run = match mapped {
            None if beyond => len,
            // 1024 tables map 2^49 bytes at most, so the sum cannot overflow.
            _ => first + mapped.unwrap_or(count) as u64 * coverage,
        };
        Run { kind: RunKind::Unallocated { host: None }, len: run.min(len) }
    }

    /// Reads the run out of the slice's entries: it ends at the end of the slice at the latest.
    fn scan(&self, slice: &Slice, at: &At) -> Result<Run> {
        let words = if self.geometry.extended_l2() { 2 } else { 1 };
        let fault = |fault: L2Fault| fault.at(at.table, at.cluster);
        let mut word = at.first * words;
        let mut run = self.part(slice, word, at.guest).map_err(fault)?;
        while run.len < at.len {
            let guest = at.guest + run.len;
            // A part ends where its cluster does, or within it if the next subclusters are of another kind.
            if self.geometry.offset_in_cluster(guest) == 0 {
                word += words;
            }
            let Some(kind) = run.kind.after(run.len) else { break };
            if word >= slice.words() {
                break;
            }
            if words == 1 {
                // Most entries go on as the one before them: one cluster further and nothing else.
                let alike = self.alike(slice, word, kind, at.len - run.len);
                if alike > 0 {
                    run.len += alike;
                    word += usize::try_from(alike / self.geometry.cluster_size()).unwrap_or(0) - 1;
                    continue;
                }
            }
            // What is wrong behind the run is said when it is asked for.
            match self.part(slice, word, guest) {
                Ok(next) if next.kind == kind => run.len += next.len,
                _ => break,
            }
        }
        Ok(Run { kind: run.kind, len: run.len.min(at.len) })
    }

    /// The run from `guest` on within its own cluster, whose entry is at `word`.
    #[inline]
    fn part(&self, slice: &Slice, word: usize, guest: u64) -> std::result::Result<Run, L2Fault> {
        let in_cluster = self.geometry.offset_in_cluster(guest);
        let (kind, end) = if self.geometry.extended_l2() {
            let entry = L2Entry::from_raw(slice.word(word), slice.word(word + 1));
            let first = self.geometry.subcluster_index(guest);
            let (kind, count) =
                entry.subcluster_run_for(&self.context, first, GuestOffset::new(guest))?;
            (kind, u64::from(first + count) * self.geometry.subcluster_size())
        } else {
            let entry = L2Entry::from_raw(slice.word(word), 0);
            let kind = entry.cluster_for(&self.context, GuestOffset::new(guest))?;
            (kind.into(), self.geometry.cluster_size())
        };
        Ok(Run { kind: run_kind(kind, in_cluster), len: end - in_cluster })
    }

    /// How many bytes, up to `len` and in whole clusters, have entries that differ from the one before `word` by their
    /// place alone. That one is right, and of `kind`.
    #[inline]
    fn alike(&self, slice: &Slice, word: usize, kind: RunKind, len: u64) -> u64 {
        let cluster_size = self.geometry.cluster_size();
        let before = slice.word(word - 1);
        let (step, most) = match kind {
            RunKind::Unallocated { host: None } | RunKind::Zero { host: None } => (0, len),
            // Beyond this the sum would run into the bits above the host offset.
            RunKind::Data { host } | RunKind::Zero { host: Some(host) } => {
                (cluster_size, len.min(HOST_OFFSET_MAX.saturating_sub(host.get() + cluster_size)))
            }
            RunKind::Unallocated { host: Some(_) } | RunKind::Compressed(_) => return 0,
        };
        let mut expected = before.wrapping_add(step);
        let mut alike = 0;
        for word in word..slice.words() {
            if alike >= most || slice.word(word) != expected {
                break;
            }
            expected = expected.wrapping_add(step);
            alike += cluster_size;
        }
        alike
    }
}

/// What messages call an encryption method.
pub(crate) fn method_name(method: CryptMethod) -> &'static str {
    match method {
        CryptMethod::None => "nothing",
        CryptMethod::Aes => "AES",
        CryptMethod::Luks => "LUKS",
    }
}

/// What a subcluster's or a cluster's kind means `in_cluster` bytes into the cluster.
#[inline]
fn run_kind(kind: SubclusterKind, in_cluster: u64) -> RunKind {
    // A host offset has 56 bits, so the sums cannot overflow.
    let inside = |host: HostOffset| host.checked_add(in_cluster).unwrap_or(host);
    match kind {
        SubclusterKind::Unallocated => RunKind::Unallocated { host: None },
        SubclusterKind::UnallocatedAllocated { host } => {
            RunKind::Unallocated { host: Some(inside(host)) }
        }
        SubclusterKind::Zero { host } => RunKind::Zero { host: host.map(inside) },
        SubclusterKind::Data { host } => RunKind::Data { host: inside(host) },
        SubclusterKind::Compressed(cluster) => RunKind::Compressed(cluster),
    }
}

enum Place {
    At(At),
    /// There is no L2 table.
    None(Run),
}

/// A place in an L2 table.
struct At {
    /// Where the slice starts in the image file.
    slice: HostOffset,
    /// Where its table starts.
    table: HostOffset,
    /// The index of the cluster's entry in the table.
    cluster: u64,
    /// The index of the cluster's entry in the slice.
    first: usize,
    /// The guest offset of the request.
    guest: u64,
    /// How long the request is.
    len: u64,
}
