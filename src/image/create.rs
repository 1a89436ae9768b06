//! Creating an image: where everything in it lies, and the order in which it is written.
//!
//! The layout is QEMU's, byte for byte: header, refcount table, refcount block and L1 table in the first clusters, and
//! behind them what is preallocated, in the order of QEMU's allocator. What is not 0 is written; memory does not grow
//! with the disk.
//!
//! # Crashes
//!
//! The first sector, which makes the file an image, is written last, when everything else is durable. A creation that
//! ends before leaves no image, never one with wrong content.
//!
//! Matches qcow2_co_create in qcow2.c, with its error texts.

mod clusters;
mod sink;
mod tables;

use std::io;

use crate::error::{Error, Result};
use crate::format::feature::{Autoclear, Compatible, FeatureNames, Incompatible, Version};
use crate::format::limits::{
    BACKING_FORMAT_LEN_BYTES_MAX, BACKING_NAME_LEN_BYTES_MAX, CLUSTER_BITS_MAX, CLUSTER_BITS_MIN,
    CLUSTER_BITS_MIN_EXTENDED_L2, L1_LEN_BYTES_MAX,
};
use crate::format::{
    Compression, Extension, Geometry, Header, HostOffset, L1Entry, RefcountTableEntry, refcount,
};
use crate::storage::Storage;

use super::options::Preallocation;
use clusters::{Clusters, TooLarge};
use sink::Sink;
use tables::Tables;

/// Disks have whole sectors.
const SECTOR_LEN_BYTES: u64 = 512;
/// Above this cluster size the header has room for the feature name table.
const CLUSTER_SIZE_WITHOUT_FEATURE_NAMES_MAX: u64 = 4096;
/// The largest disk.
const SIZE_MAX: u64 = i64::MAX as u64;

/// What a new image is like. Made by [`CreateOptions::new`], which has the defaults of `qemu-img create`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CreateOptions {
    /// The size of the disk in bytes; rounded up to a multiple of 512.
    pub size: u64,
    /// The version: 3 by default.
    pub version: Version,
    /// The size of a cluster in bytes, a power of two from 512 to 2 MiB, at least 16 KiB with extended L2 entries. 64 KiB
    /// by default.
    pub cluster_size: u64,
    /// The width of a refcount in bits, a power of two up to 64. 16 by default, and always in version 2.
    pub refcount_bits: u32,
    /// The name of the backing file, as it stands in the image. It is not opened.
    pub backing_file: Option<Vec<u8>>,
    /// The format of the backing file.
    pub backing_format: Option<Vec<u8>>,
    /// The name of the data file, as it stands in the image.
    pub data_file: Option<Vec<u8>>,
    /// The data file is a raw image by itself. The tables are preallocated then.
    pub data_file_raw: bool,
    /// Writers may write refcounts late.
    pub lazy_refcounts: bool,
    /// L2 entries have 128 bits, and clusters 32 subclusters.
    pub extended_l2: bool,
    /// What is allocated at once.
    pub preallocation: Preallocation,
    /// How compressed clusters will be compressed.
    pub compression: Compression,
}

impl CreateOptions {
    /// An image of version 3 with clusters of 64 KiB, of which nothing is allocated.
    #[must_use]
    pub fn new(size: u64) -> Self {
        Self {
            size,
            version: Version::V3,
            cluster_size: 1 << 16,
            refcount_bits: 16,
            backing_file: None,
            backing_format: None,
            data_file: None,
            data_file_raw: false,
            lazy_refcounts: false,
            extended_l2: false,
            preallocation: Preallocation::Off,
            compression: Compression::Deflate,
        }
    }

    /// Says what is wrong with the options, which [`create`] would say too: before a file is touched.
    ///
    /// # Errors
    /// `InvalidArgument`, in QEMU's words.
    pub fn validate(&self) -> Result<()> {
        self.image().map(drop)
    }

    /// The geometry, if the options go together. The order of the questions is QEMU's.
    fn geometry(&self) -> Result<Geometry> {
        let v2 = self.version == Version::V2;
        let wrong = |text: String| Err(Error::InvalidArgument(text));
        let v3 = |text: &str| wrong(format!("{text} (use version=v3 or greater)"));
        let needs_v3 = |what: &str| {
            v3(&format!("{what} only supported with compatibility level 1.1 and above"))
        };
        if self.extended_l2 && v2 {
            return needs_v3("Extended L2 entries are");
        }
        let (size, bits) = (self.cluster_size, self.cluster_size.trailing_zeros());
        if !size.is_power_of_two() || !(CLUSTER_BITS_MIN..=CLUSTER_BITS_MAX).contains(&bits) {
            let (min, max) = (1 << CLUSTER_BITS_MIN, 1 << (CLUSTER_BITS_MAX - 10));
            return wrong(format!("Cluster size must be a power of two between {min} and {max}k"));
        }
        if self.extended_l2 && bits < CLUSTER_BITS_MIN_EXTENDED_L2 {
            let min = 1 << CLUSTER_BITS_MIN_EXTENDED_L2;
            return wrong(format!(
                "Extended L2 entries are only supported with cluster sizes of at least {min} bytes"
            ));
        }
        if self.backing_file.is_some()
            && self.preallocation != Preallocation::Off
            && !self.extended_l2
        {
            return wrong(
                "Backing file and preallocation can only be used at the same time if extended_l2 is on".to_owned(),
            );
        }
        if self.backing_format.is_some() && self.backing_file.is_none() {
            return wrong("Backing format cannot be used without backing file".to_owned());
        }
        if self.lazy_refcounts && v2 {
            return needs_v3("Lazy refcounts");
        }
        if self.refcount_bits > 64 || !self.refcount_bits.is_power_of_two() {
            return wrong(
                "Refcount width must be a power of two and may not exceed 64 bits".to_owned(),
            );
        }
        if self.refcount_bits != 16 && v2 {
            return v3(
                "Different refcount widths than 16 bits require compatibility level 1.1 or above",
            );
        }
        if self.data_file_raw && self.data_file.is_none() {
            return wrong("data-file-raw requires data-file".to_owned());
        }
        if self.data_file_raw && self.backing_file.is_some() {
            return wrong(
                "Backing file and data-file-raw cannot be used at the same time".to_owned(),
            );
        }
        if self.data_file.is_some() && v2 {
            return needs_v3("External data files are");
        }
        if self.compression != Compression::Deflate && v2 {
            return needs_v3("Non-zlib compression type is");
        }
        Geometry::new(bits, self.extended_l2, self.refcount_bits.trailing_zeros())
    }

    /// The header, without what says where things are.
    fn header(&self, geometry: Geometry, size: u64) -> Header {
        let mut header = Header::new(self.version, geometry);
        header.size = size;
        header.backing_file.clone_from(&self.backing_file);
        header.incompatible = header
            .incompatible
            .with(Incompatible::DATA_FILE, self.data_file.is_some())
            .with(Incompatible::COMPRESSION_TYPE, self.compression != Compression::Deflate);
        header.compatible = header.compatible.with(Compatible::LAZY_REFCOUNTS, self.lazy_refcounts);
        header.autoclear = header.autoclear.with(Autoclear::DATA_FILE_RAW, self.data_file_raw);
        header.compression = self.compression;
        header.extensions.extend(self.backing_format.clone().map(Extension::BackingFormat));
        header.extensions.extend(self.data_file.clone().map(Extension::DataFile));
        if self.version == Version::V3
            && geometry.cluster_size() > CLUSTER_SIZE_WITHOUT_FEATURE_NAMES_MAX
        {
            let names = FeatureNames::new(FeatureNames::QEMU.iter().copied());
            header.extensions.push(Extension::FeatureNames(names));
        }
        header
    }

    /// The start of the image, laid out: everything but what is preallocated.
    fn image(&self) -> Result<NewImage> {
        let geometry = self.geometry()?;
        let size = self.size.checked_next_multiple_of(SECTOR_LEN_BYTES);
        let size = size.filter(|&size| size <= SIZE_MAX).ok_or_else(|| too_large(TooLarge))?;
        let l1_entries = geometry.l1_entries_for(size);
        let l1_len = l1_entries.saturating_mul(L1Entry::LEN);
        if l1_len > L1_LEN_BYTES_MAX {
            return Err(too_large(TooLarge));
        }
        self.check_names()?;
        let mut clusters = Clusters::new(geometry).map_err(too_large)?;
        let l1_clusters = geometry.clusters_for(l1_len);
        let l1_cluster = match l1_clusters {
            0 => 0,
            len => clusters.take(len).map_err(too_large)?,
        };
        let mut header = self.header(geometry, size);
        // OK to unwrap: at most 32 MiB of entries.
        header.l1_entries = u32::try_from(l1_entries).unwrap_or(u32::MAX);
        header.l1_table_offset = HostOffset::new(l1_cluster << geometry.cluster_bits());
        let image = NewImage { header, clusters };
        // Says now if it does not fit.
        image.encoded_header()?;
        Ok(image)
    }

    /// Whether the names can stand in an image.
    fn check_names(&self) -> Result<()> {
        let limits = [
            ("backing file name bytes", &self.backing_file, BACKING_NAME_LEN_BYTES_MAX),
            ("backing file format bytes", &self.backing_format, BACKING_FORMAT_LEN_BYTES_MAX),
        ];
        for (what, name, limit) in limits {
            let (value, limit) = (name.as_ref().map_or(0, Vec::len) as u64, u64::from(limit));
            if value > limit {
                return Err(Error::LimitExceeded { what, value, limit });
            }
        }
        if self.backing_file.as_ref().is_some_and(Vec::is_empty) {
            let text = "Expected backing file name, got empty string";
            return Err(Error::InvalidArgument(text.to_owned()));
        }
        Ok(())
    }
}

impl Default for CreateOptions {
    /// An image of no bytes.
    fn default() -> Self {
        Self::new(0)
    }
}

/// Makes a new image in `storage`, and prepares `data_file` for it, if the options name one.
///
/// Whatever `storage` held is lost. The data file keeps its bytes: they are the disk's if the tables are preallocated. It
/// becomes as long as the disk; with preallocation it only grows, to whole subclusters. Everything is durable on return.
///
/// # Errors
/// `InvalidArgument` and `LimitExceeded` before anything is touched, if the options do not go together (see
/// [`CreateOptions::validate`]) or the data file is missing or not wanted; `Storage` if a storage fails.
///
/// # Cancel safety
/// A creation that is dropped, fails or loses power leaves no image in `storage`.
pub async fn create<S: Storage>(
    storage: &S,
    data_file: Option<&S>,
    options: &CreateOptions,
) -> Result<()> {
    let NewImage { mut header, clusters } = options.image()?;
    if data_file.is_some() != options.data_file.is_some() {
        let text = "a data file and its name must be given together";
        return Err(Error::InvalidArgument(text.to_owned()));
    }
    let (geometry, size) = (header.geometry(), header.size);
    let l1_offset = header.l1_table_offset.get();
    let preallocation = match options.preallocation {
        Preallocation::Off if options.data_file_raw => Preallocation::Metadata,
        preallocation => preallocation,
    };
    let is_zero = wipe(storage, geometry.cluster_size()).await?;

    let mut tables =
        Tables::new(storage, is_zero, geometry, data_file.is_some(), clusters, l1_offset);
    let mut sink = Sink::new(storage, is_zero);
    let l1_len = header.l1_table_len();
    let l1_len =
        if is_zero { l1_len } else { geometry.clusters_for(l1_len) << geometry.cluster_bits() };
    sink.put_zeros(l1_offset, l1_len).await?;
    match (preallocation, data_file) {
        (Preallocation::Off, None) => {}
        (Preallocation::Off, Some(data_file)) => set_len(data_file, size).await?,
        (Preallocation::Metadata, None) => tables.map_as_written(size).await?,
        (_, Some(data_file)) => {
            tables.map_as_written(size).await?;
            // The last subcluster is whole, even where the disk ends within it.
            let len = size.next_multiple_of(geometry.subcluster_size());
            extend(data_file, len, preallocation).await?;
        }
        (Preallocation::Falloc | Preallocation::Full, None) => {
            let data = geometry.clusters_for(size);
            let l2_tables = data.div_ceil(geometry.l2_entries()) + 1;
            let taken = tables.clusters_mut().reserve(data + l2_tables);
            let host = taken.map_err(too_large)?;
            let taken = tables.clusters_mut().take_at(host, data).map_err(too_large)?;
            assert_eq!(taken, data, "what was reserved is free");
            let (offset, len) = (host << geometry.cluster_bits(), data << geometry.cluster_bits());
            match preallocation {
                Preallocation::Full => sink.write_zeros(offset, len).await?,
                _ => sink.allocate(offset, len).await?,
            }
            tables.map_in_row(host, data).await?;
        }
    }
    let done = tables.finish().await?;
    write_refcounts(&mut sink, geometry, &done.clusters).await?;
    header.refcount_table_offset = cluster_offset(geometry, done.clusters.table());
    // OK to unwrap: the table has its limit.
    header.refcount_table_clusters = u32::try_from(done.clusters.table_len()).unwrap_or(u32::MAX);

    let mut header = header.encode()?;
    // A cluster has at least one sector.
    header.resize(header.len().max(to_usize(SECTOR_LEN_BYTES)), 0);
    let (first, rest) = header.split_at(to_usize(SECTOR_LEN_BYTES));
    sink.put_zeros(0, geometry.cluster_size()).await?;
    sink.put(rest, first.len() as u64).await?;
    sink.drain().await?;
    let end = sink.end().max(done.end);
    if is_zero {
        set_len(storage, end).await?;
    }
    if let Some(data_file) = data_file {
        flush(data_file).await?;
    }
    flush(storage).await?;
    // Cancel: from here on it is an image, whole and durable but for this sector, or none.
    sink.put(first, 0).await?;
    sink.drain().await?;
    if is_zero {
        // The request may have been longer than the file.
        set_len(storage, end).await?;
    }
    flush(storage).await
}

/// An image that is not written yet.
struct NewImage {
    header: Header,
    clusters: Clusters,
}

impl NewImage {
    fn encoded_header(&self) -> Result<Vec<u8>> {
        let mut header = self.header.clone();
        header.refcount_table_offset = cluster_offset(header.geometry(), self.clusters.table());
        header.refcount_table_clusters = 1;
        header.encode()
    }
}

/// Makes sure that there is no image any more; whether the storage reads as zeros now. A block device cannot be made
/// shorter and keeps what it held.
async fn wipe<S: Storage>(storage: &S, cluster_size: u64) -> Result<bool> {
    let len = storage.len().await.map_err(|error| Error::storage("length", 0, 0, error))?;
    if len == 0 {
        return Ok(true);
    }
    let mut sink = Sink::new(storage, false);
    sink.write_zeros(0, cluster_size.min(len)).await?;
    flush(storage).await?;
    match storage.set_len(0).await {
        Ok(()) => Ok(true),
        Err(error)
            if matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) =>
        {
            Ok(false)
        }
        Err(error) => Err(Error::storage("set length", 0, 0, error)),
    }
}

/// Writes the refcount table and the refcount blocks.
async fn write_refcounts<S: Storage>(
    sink: &mut Sink<'_, S>,
    geometry: Geometry,
    clusters: &Clusters,
) -> Result<()> {
    let per_block = geometry.refcount_block_entries();
    let mut block_bytes = vec![0; to_usize(geometry.cluster_size())];
    let mut table_bytes = Vec::with_capacity(clusters.blocks().len() * 8);
    for (index, &block) in (0..).zip(clusters.blocks()) {
        let entry = match block {
            0 => RefcountTableEntry::default(),
            block => RefcountTableEntry::new(cluster_offset(geometry, block)),
        };
        table_bytes.extend_from_slice(&entry.raw().to_be_bytes());
        let Some(block) = entry.block() else { continue };
        let first = index * per_block;
        let mut used = clusters.used_in(first..first + per_block).peekable();
        if used.peek().is_none() {
            sink.put_zeros(block.get(), geometry.cluster_size()).await?;
            continue;
        }
        block_bytes.fill(0);
        for cluster in used.flatten() {
            refcount::set(&mut block_bytes, geometry.refcount_order(), cluster - first, 1)?;
        }
        sink.put(&block_bytes, block.get()).await?;
    }
    sink.put(&table_bytes, cluster_offset(geometry, clusters.table()).get()).await
}

/// Makes a data file at least `len` bytes long; what it gains has its space, if that is asked for.
async fn extend<S: Storage>(data_file: &S, len: u64, preallocation: Preallocation) -> Result<()> {
    let old = data_file.len().await.map_err(|error| Error::storage("length", 0, 0, error))?;
    if old >= len {
        return Ok(());
    }
    let mut sink = Sink::new(data_file, true);
    match preallocation {
        Preallocation::Falloc => sink.allocate(old, len - old).await?,
        Preallocation::Full => sink.write_zeros(old, len - old).await?,
        Preallocation::Off | Preallocation::Metadata => {}
    }
    set_len(data_file, len).await
}

/// Sets the length of a storage, unless it has it.
async fn set_len<S: Storage>(storage: &S, len: u64) -> Result<()> {
    let old = storage.len().await.map_err(|error| Error::storage("length", 0, 0, error))?;
    if old == len {
        return Ok(());
    }
    storage.set_len(len).await.map_err(|error| Error::storage("set length", 0, len, error))
}

async fn flush<S: Storage>(storage: &S) -> Result<()> {
    storage.flush().await.map_err(|error| Error::storage("flush", 0, 0, error))
}

/// QEMU's words. Its hint is always there, for the option always has a value.
fn too_large(_: TooLarge) -> Error {
    Error::InvalidArgument(
        "The image size is too large for file format 'qcow2' (try using a larger cluster size)"
            .to_owned(),
    )
}

fn cluster_offset(geometry: Geometry, cluster: u64) -> HostOffset {
    HostOffset::new(cluster << geometry.cluster_bits())
}

/// A length within a cluster: it fits.
fn to_usize(len: u64) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX)
}
