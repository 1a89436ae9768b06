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
mod options;
mod sink;
mod tables;
#[cfg(feature = "encryption")]
mod volume;

use std::io;

use crate::error::{Error, Result};
use crate::format::{CryptMethod, Extension, Geometry, HostOffset, RefcountTableEntry, refcount};
use crate::storage::Storage;

use super::options::Preallocation;
use clusters::{Clusters, TooLarge};
use options::NewImage;
use sink::Sink;
use tables::Tables;

pub(super) use clusters::refcount_clusters;
pub use options::CreateOptions;
#[cfg(feature = "encryption")]
pub use options::Encryption;
#[cfg(feature = "encryption")]
pub use volume::create_luks_volume;

/// Disks have whole sectors.
const SECTOR_LEN_BYTES: u64 = 512;

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
    let is_zero = wipe(storage).await?;

    let mut tables =
        Tables::new(storage, is_zero, geometry, data_file.is_some(), clusters, l1_offset);
    if header.crypt != CryptMethod::None {
        tables.say_zero();
    }
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
    if let Some((bytes, len)) = options.luks_area() {
        let count = geometry.clusters_for(len);
        let first = tables.clusters_mut().take(count).map_err(too_large)?;
        let offset = cluster_offset(geometry, first);
        for extension in &mut header.extensions {
            if let Extension::CryptoHeader(crypto) = extension {
                crypto.offset = offset;
            }
        }
        sink.put_zeros(offset.get(), count << geometry.cluster_bits()).await?;
        sink.put(bytes, offset.get()).await?;
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

/// Makes sure that there is no image any more; whether the storage reads as zeros now. A block device cannot be made
/// shorter and keeps what it held.
async fn wipe<S: Storage>(storage: &S) -> Result<bool> {
    let len = storage.len().await.map_err(|error| Error::storage("length", 0, 0, error))?;
    if len == 0 {
        return Ok(true);
    }
    let mut sink = Sink::new(storage, false);
    // One sector, whole or not at all: a part of the old header would be worse than either.
    sink.write_zeros(0, SECTOR_LEN_BYTES.min(len)).await?;
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
