//! Opening an image: its own structures first, then, if the gate lets it, what it refers to.
//!
//! Layers are opened one after the other from the top, never by recursion: a chain is as deep as the image says.

use std::path::Path;
use std::sync::Arc;

use crate::cache::{CACHE_CLEAN_INTERVAL_DEFAULT, Cleaner, CleanerControl, TableCache};
use crate::error::{Corrupt, CorruptKind, Error, Result, Structure, Unsupported, UnsupportedKind};
use crate::format::limits::SNAPSHOT_TABLE_LEN_BYTES_MAX;
use crate::format::{Header, HostOffset, Parsed, Snapshot};
use crate::storage::{Blocks, Storage};
use crate::sync::{AsyncMutex, AtomicU64, Mutex, OnceCell};

use super::Image;
use super::access::Access;
#[cfg(feature = "write")]
use super::check::make_writable;
use super::codec::Codec;
use super::gate::{Answer, Format, Gate, Identity, Reference, ReferenceKind, Source};
use super::inflated::Inflated;
use super::l1::L1;
use super::layer::{Below, Body, DataFile, Layer, NOT_GROWING, Qcow2Layer, RawLayer};
use super::metadata::Metadata;
use super::options::{OpenOptions, References, SnapshotSelector};
use super::published::Published;
use super::requests::Requests;
use super::shared::share;
use super::writer::Writer;

/// How much of the snapshot table is read at a time: its length is not known before it is parsed.
const SNAPSHOT_READ_LEN_BYTES: u64 = 64 << 10;

/// What [`Image::open`] gives.
#[derive(Debug)]
#[non_exhaustive]
pub struct Opened<S> {
    /// The image.
    pub image: Image<S>,
    /// The cleaner of its caches, to be run wherever the caller likes; `None` if the interval is zero.
    pub cleaner: Option<Cleaner>,
}

impl<S: Storage> Image<S> {
    /// Opens `source`, and what it refers to as far as `gate` lets it.
    ///
    /// An image that is opened for writing and has the dirty bit is repaired first, as [`Repair::All`](super::check::Repair::All) says.
    ///
    /// With the image comes the cleaner of its caches, unless the interval is zero: a future for the caller to run
    /// wherever it likes. An image without a running cleaner works, and keeps what it has cached.
    ///
    /// # Errors
    /// [`Error::Corrupt`], [`Error::Unsupported`] and [`Error::LimitExceeded`] if a layer cannot be understood;
    /// [`Error::Refused`] by the gate; [`Error::WrongKey`]; [`Error::NotFound`] if there is no such snapshot; [`Error::Storage`];
    /// [`Error::InvalidArgument`] for options that contradict each other; [`Error::ReadOnly`] if it is marked as corrupt and
    /// is opened for writing.
    ///
    /// # Cancel safety
    /// Dropping the future drops what was opened; a repair that it began can be repeated.
    pub async fn open<G: Gate<Storage = S>>(
        source: Source<S>,
        gate: &G,
        options: OpenOptions,
    ) -> Result<Opened<S>> {
        if options.write.is_some() && cfg!(not(feature = "write")) {
            return Err(Error::ReadOnly("this program was built without the feature write".into()));
        }
        if options.write.is_some() && options.snapshot.is_some() {
            return Err(Error::InvalidArgument("a snapshot cannot be written to".into()));
        }
        let mut layers: Vec<Layer<S>> = Vec::new();
        let mut identities: Vec<Identity> = Vec::new();
        let mut next = Some(source);
        while let Some(source) = next.take() {
            if layers.len() >= options.chain_depth_max {
                return Err(Error::LimitExceeded {
                    what: "backing chain depth",
                    value: layers.len() as u64 + 1,
                    limit: options.chain_depth_max as u64,
                });
            }
            if let Some(identity) = source.identity {
                if identities.contains(&identity) {
                    return Err(chain_loop(layers.len()).into());
                }
                identities.push(identity);
            }
            let depth = layers.len();
            let location = source.location;
            let mut below = Below::Zeros;
            let body = match source.format {
                Format::Raw => {
                    let metadata = Metadata::new(source.storage).await?;
                    let file_len = metadata.file_len();
                    Body::Raw(RawLayer {
                        // Sectors of 512 bytes are the unit in which a guest sees a disk; the rest of the last one
                        // is zeros, as everything behind the end of a storage.
                        size: AtomicU64::new(
                            file_len.checked_next_multiple_of(512).unwrap_or(file_len),
                        ),
                        blocks: Blocks::new(metadata.storage().limits()),
                        storage: metadata.into_storage(),
                    })
                }
                Format::Qcow2 => {
                    #[cfg(feature = "write")]
                    if depth == 0 && options.write.is_some() {
                        make_writable(&source.storage).await?;
                    }
                    let mut layer = Qcow2Layer::open(source.storage, depth, &options).await?;
                    if let (0, Some(write)) = (depth, &options.write) {
                        write.must_suit(layer.header.get().version)?;
                    }
                    layer.unlock(gate, &location, depth, &options).await?;
                    layer.open_data_file(gate, &location, depth, &identities, &options).await?;
                    let header = layer.header.get();
                    if let Some(name) = &header.backing_file {
                        below = Below::Left;
                        if options.references == References::Follow {
                            let reference = Reference {
                                kind: ReferenceKind::BackingFile,
                                name,
                                format: header.backing_format(),
                                from: &location,
                                depth: depth + 1,
                            };
                            below = match gate.open(&reference).await? {
                                Answer::Open(source) => {
                                    next = Some(source);
                                    Below::Layer
                                }
                                Answer::Zeros => Below::Zeros,
                            };
                        }
                    }
                    Body::Qcow2(Box::new(layer))
                }
            };
            layers.push(Layer { body, location, below });
        }
        Ok(Self::assemble(layers, options))
    }

    fn assemble(layers: Vec<Layer<S>>, options: OpenOptions) -> Opened<S> {
        let in_flight = layers.iter().map(Layer::requests_in_flight).max().unwrap_or(1);
        let inflating = options.workers.as_ref().map_or(1, |workers| 2 * workers.parallelism());
        let caches = layers.iter().filter_map(|layer| match &layer.body {
            Body::Qcow2(layer) => Some([&layer.l2_cache, &layer.refcount_cache].map(Arc::clone)),
            Body::Raw(_) => None,
        });
        let interval = options.cache.cache_clean_interval.unwrap_or(CACHE_CLEAN_INTERVAL_DEFAULT);
        let image = Self {
            cleaner: CleanerControl::new(caches.flatten(), interval),
            layers: layers.into_iter().map(share).collect(),
            requests: share(Requests::default()),
            is_at_snapshot: options.snapshot.is_some(),
            access: Access::new(options.write),
            writer: options.write.map_or_else(OnceCell::new, |_| OnceCell::from(Writer::new())),
            cache_options: Mutex::new(options.cache),
            reconfiguring: AsyncMutex::default(),
            pieces_in_flight: inflating.max(usize::try_from(in_flight).unwrap_or(1)),
            workers: options.workers,
            #[cfg(feature = "write")]
            below: Mutex::default(),
        };
        Opened { cleaner: image.cleaner.start(), image }
    }
}

impl<S: Storage> Layer<S> {
    fn requests_in_flight(&self) -> u32 {
        match &self.body {
            Body::Raw(layer) => layer.storage.limits().requests_in_flight,
            Body::Qcow2(layer) => layer.metadata.storage().limits().requests_in_flight,
        }
    }
}

impl<S: Storage> Qcow2Layer<S> {
    /// Opens the image in `storage`: everything but what it refers to. Only the top layer can be opened at a snapshot.
    async fn open(storage: S, depth: usize, options: &OpenOptions) -> Result<Self> {
        let metadata = Metadata::new(storage).await?;
        let selector = options.snapshot.as_ref().filter(|_| depth == 0);
        let structures = Structures::load(&metadata, selector).await?;
        let Structures { header, snapshots, l1, l1_table, virtual_size } = structures;
        let geometry = header.geometry();
        let context = header.l2_context();

        let sizes = options.cache.resolve(&geometry, virtual_size)?;
        let cluster_size = geometry.cluster_size();
        let cluster_len = usize::try_from(cluster_size).map_err(|_| Error::LimitExceeded {
            what: "cluster bytes",
            value: cluster_size,
            limit: usize::MAX as u64,
        })?;
        Ok(Self {
            data: DataFile::None,
            data_blocks: Blocks::new(metadata.storage().limits()),
            context,
            snapshots: Published::new(snapshots),
            l1: L1::new(l1.into_iter()),
            l1_table: AtomicU64::new(l1_table.get()),
            size: AtomicU64::new(virtual_size),
            size_while_growing: AtomicU64::new(NOT_GROWING),
            l2_cache: Arc::new(TableCache::new_to_grow(
                sizes.l2_bytes,
                sizes.l2_entry_bytes,
                sizes.l2_bytes_default,
            )),
            refcount_cache: Arc::new(TableCache::new(
                sizes.refcount_bytes,
                sizes.refcount_entry_bytes,
            )),
            codec: Codec::new(header.compression, cluster_len),
            inflated: Inflated::new(options.inflated_len_bytes_max, cluster_size),
            geometry,
            crypt: header.crypt,
            cipher: None,
            header: Published::new(header),
            metadata,
        })
    }

    async fn open_data_file<G: Gate<Storage = S>>(
        &mut self,
        gate: &G,
        location: &Path,
        depth: usize,
        identities: &[Identity],
        options: &OpenOptions,
    ) -> Result<()> {
        let header = self.header.get();
        if !header.has_data_file() {
            return Ok(());
        }
        if options.references == References::Leave {
            self.data = DataFile::Left;
            return Ok(());
        }
        let name = header.data_file().unwrap_or_default();
        let reference =
            Reference { kind: ReferenceKind::DataFile, name, format: None, from: location, depth };
        self.data = match gate.open(&reference).await? {
            Answer::Zeros => DataFile::Zeros,
            Answer::Open(source) => {
                if source.identity.is_some_and(|identity| identities.contains(&identity)) {
                    return Err(chain_loop(depth).into());
                }
                self.data_blocks = Blocks::new(source.storage.limits());
                DataFile::Open(source.storage)
            }
        };
        Ok(())
    }
}

/// What of an image is in memory as long as it is open.
pub(super) struct Structures {
    pub(super) header: Header,
    pub(super) snapshots: Vec<Snapshot>,
    /// The entries of the L1 table of the state that is to be open.
    pub(super) l1: Vec<u64>,
    pub(super) l1_table: HostOffset,
    /// In bytes.
    pub(super) virtual_size: u64,
}

impl Structures {
    /// Loads them, of the active state or of a snapshot.
    pub(super) async fn load<S: Storage>(
        metadata: &Metadata<S>,
        selector: Option<&SnapshotSelector>,
    ) -> Result<Self> {
        let probe = metadata.load_some(0, Header::PROBE_LEN as u64).await?;
        let header_len = Header::probe_len(&probe)? as u64;
        let first = metadata.load_some(0, header_len).await?;
        let header = Header::parse(&first, metadata.file_len())?;
        let snapshots = load_snapshots(metadata, &header).await?;

        let mut structure = Structure::L1Table;
        let mut l1_table = header.l1_table_offset;
        let mut l1_entries = u64::from(header.l1_entries);
        // Sectors of 512 bytes are the unit in which a guest sees a disk.
        let mut virtual_size = header.size / 512 * 512;
        if let Some(selector) = selector {
            let (index, snapshot) = select(&snapshots, selector)?;
            snapshot.validate_l1_table(index, header.snapshot_table_offset, &header.geometry())?;
            structure = Structure::SnapshotL1Table;
            l1_table = snapshot.l1_table_offset;
            l1_entries = u64::from(snapshot.l1_entries);
            virtual_size = snapshot.disk_size.unwrap_or(virtual_size) / 512 * 512;
        }
        let l1 = load_l1(metadata, structure, l1_table, l1_entries).await?;
        Ok(Self { header, snapshots, l1, l1_table, virtual_size })
    }
}

async fn load_l1<S: Storage>(
    metadata: &Metadata<S>,
    structure: Structure,
    table: HostOffset,
    entries: u64,
) -> Result<Vec<u64>> {
    let bytes = metadata.load(structure, table.get(), entries * 8).await?;
    // OK to unwrap: the chunks have eight bytes.
    #[allow(clippy::unwrap_used)]
    let entry = |bytes: &[u8]| u64::from_be_bytes(bytes.try_into().unwrap());
    Ok(bytes.chunks_exact(8).map(entry).collect())
}

/// Reads the snapshot table. Its length is only known when it has been parsed, so more is read until it is whole.
async fn load_snapshots<S: Storage>(
    metadata: &Metadata<S>,
    header: &Header,
) -> Result<Vec<Snapshot>> {
    if header.snapshot_count == 0 {
        return Ok(Vec::new());
    }
    let table = header.snapshot_table_offset;
    let mut snapshots = Vec::new();
    // A window of the table, so that no more is in memory than the snapshots themselves.
    let (mut window, mut window_start, mut at) = (Vec::new(), 0_u64, 0_u64);
    for index in 0..u64::from(header.snapshot_count) {
        at = at.next_multiple_of(8);
        let end = loop {
            let skip = usize::try_from(at - window_start).unwrap_or(usize::MAX);
            match Snapshot::parse(window.get(skip..).unwrap_or_default(), index, table)? {
                Parsed::Complete((snapshot, len)) => {
                    snapshots.push(snapshot);
                    break at + len;
                }
                Parsed::Incomplete { len_min } => {
                    metadata.must_hold(Structure::SnapshotTable, table.get(), at + len_min)?;
                    let len = len_min.max(SNAPSHOT_READ_LEN_BYTES);
                    // What was read before is not needed any more.
                    window = Vec::new();
                    window.extend_from_slice(&metadata.load_some(table.get() + at, len).await?);
                    window_start = at;
                }
            }
        };
        at = end;
        if at > SNAPSHOT_TABLE_LEN_BYTES_MAX {
            let max = SNAPSHOT_TABLE_LEN_BYTES_MAX;
            let kind = UnsupportedKind::SnapshotTableTooLarge { len: at, max };
            return Err(Unsupported::new(kind, Structure::SnapshotTable).at(table.get()).into());
        }
    }
    Ok(snapshots)
}

/// The error for a layer at `depth` that is the same file as one above it.
fn chain_loop(depth: usize) -> Corrupt {
    Corrupt::new(CorruptKind::ChainLoop { depth }, Structure::BackingChain)
}

/// The snapshot that `selector` means, and its index.
pub(super) fn select<'a>(
    snapshots: &'a [Snapshot],
    selector: &SnapshotSelector,
) -> Result<(u64, &'a Snapshot)> {
    let by_id = |id: &[u8]| snapshots.iter().position(|snapshot| snapshot.id == id);
    let by_name = |name: &[u8]| snapshots.iter().position(|snapshot| snapshot.name == name);
    let (found, wanted) = match selector {
        SnapshotSelector::Id(id) => (by_id(id), id),
        SnapshotSelector::Name(name) => (by_name(name), name),
        SnapshotSelector::IdOrName(word) => (by_id(word).or_else(|| by_name(word)), word),
    };
    match found {
        Some(index) => Ok((index as u64, &snapshots[index])),
        None => Err(Error::NotFound {
            what: "snapshot",
            name: String::from_utf8_lossy(wanted).into_owned(),
        }),
    }
}
