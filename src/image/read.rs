//! Reading the disk: runs of clusters become requests, from whichever layer has them.
//!
//! What is at hand is copied at once: a table that is cached and bytes that the storage can give without waiting cost
//! neither an asynchronous lock nor an allocation. What is not at hand is collected and kept in flight together, each
//! piece with a buffer of its own.

use std::ops::Range;
use std::sync::Arc;

use futures::stream::{FuturesUnordered, StreamExt};

use crate::crypt::SECTOR_LEN_BYTES;
use crate::error::{Corrupt, CorruptKind, Error, Result, Structure};
use crate::format::{CompressedCluster, HostOffset};
use crate::storage::{Buf, For, Purpose, Storage};
use crate::workers::{Workers, offload};

use super::Image;
use super::codec::StreamFault;
use super::layer::{Below, Body, Layer, Qcow2Layer, Run, RunKind};
use super::metadata::read;

/// How many pieces of one request are collected before they are waited for: it bounds the memory of a request over
/// millions of small clusters.
const PIECES_MAX: usize = 256;

/// A part of a request that is not at hand.
struct Piece {
    depth: usize,
    /// Which bytes of the caller's buffer it fills.
    part: Range<usize>,
    from: From,
}

enum From {
    Host {
        host: HostOffset,
        /// Where on the disk: ciphers may count by it.
        guest: u64,
    },
    Cluster {
        cluster: CompressedCluster,
        /// Where in the inflated cluster the part starts.
        start: usize,
    },
}

impl<S: Storage> Image<S> {
    /// Reads `buf.len()` bytes of the disk from guest `offset`, at any alignment.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`] if the range is not within the disk; [`Error::Corrupt`] from the metadata and the
    /// compressed streams; [`Error::Storage`]; [`Error::Refused`] if the bytes are in a file that was not opened;
    /// [`Error::KeyRequired`] if they are encrypted and there is no key; [`Error::Closed`]. The buffer then holds anything.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect on the image.
    pub async fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let _request = self.requests.enter().await?;
        self.range_end(offset, buf.len() as u64)?;
        self.read_range(buf, offset).await
    }

    /// Reads `buf.len()` bytes of the image file itself from host `offset`: its header, tables and clusters as they
    /// are.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`] if the range is not within the file; [`Error::Storage`]; [`Error::Closed`].
    ///
    /// # Cancel safety
    /// Dropping the future has no effect on the image.
    pub async fn read_host(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let _request = self.requests.enter().await?;
        let (storage, len) = match &self.layers[0].body {
            Body::Qcow2(layer) => (layer.metadata.storage(), layer.metadata.file_len()),
            Body::Raw(layer) => (&layer.storage, layer.len()),
        };
        let want = buf.len() as u64;
        if offset.checked_add(want).is_none_or(|end| end > len) {
            return Err(Error::out_of_bounds(offset, want, len));
        }
        let bytes = read(storage, offset, want).await?;
        buf.copy_from_slice(&bytes);
        Ok(())
    }

    /// Reads `buf.len()` bytes of the VM state of the state that is open, from `offset` within it. What was never
    /// written reads as zeros.
    ///
    /// # Errors
    /// As [`Self::read_at`]; [`Error::OutOfBounds`] if the range is not covered by the L1 table.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect on the image.
    pub async fn read_vm_state_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let _request = self.requests.enter().await?;
        let want = buf.len() as u64;
        let Body::Qcow2(layer) = &self.layers[0].body else {
            return Err(Error::out_of_bounds(offset, want, 0));
        };
        let (start, len) = (layer.vm_state_offset(), layer.vm_state_len_max());
        if offset.checked_add(want).is_none_or(|end| end > len) {
            return Err(Error::out_of_bounds(offset, want, len));
        }
        self.read_own(buf, start + offset).await
    }

    /// Reads what the image itself has from guest offset `start` on, behind the end of the disk too, and zeros where it has
    /// nothing.
    async fn read_own(&self, buf: &mut [u8], start: u64) -> Result<()> {
        let mut pieces = Vec::new();
        let mut done = 0;
        while done < buf.len() {
            let at = start + done as u64;
            let run = layer_run(&self.layers[0], at, (buf.len() - done) as u64).await?;
            let part = done..done + narrow(run.len);
            // Behind the end of the disk there is no backing file to look through to.
            if matches!(run.kind, RunKind::Unallocated { .. }) {
                buf[part.clone()].fill(0);
            } else if let Some(piece) = self.take(0, &run, at, part.clone(), buf)? {
                pieces.push(piece);
            }
            if pieces.len() >= PIECES_MAX {
                self.wait(&mut pieces, buf).await?;
            }
            done = part.end;
        }
        self.wait(&mut pieces, buf).await
    }

    /// Reads what goes beside a write: of the disk, or of the VM state behind it.
    pub(super) async fn read_beside(&self, buf: &mut [u8], start: u64) -> Result<()> {
        match &self.layers[0].body {
            Body::Qcow2(layer) if start >= layer.vm_state_offset() => {
                self.read_own(buf, start).await
            }
            _ => self.read_range(buf, start).await,
        }
    }

    pub(super) async fn read_range(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let mut pieces = Vec::new();
        // What a layer does not have is left for the layer below it; the rest of the layer's own range comes first.
        let mut below: Vec<(usize, Range<usize>)> = Vec::new();
        let (mut depth, mut todo) = (0, 0..buf.len());
        loop {
            while !todo.is_empty() {
                let layer = &self.layers[depth];
                let at = offset + todo.start as u64;
                let rest = layer.size_at(depth).saturating_sub(at);
                if rest == 0 {
                    buf[todo.clone()].fill(0);
                    break;
                }
                let run = layer_run(layer, at, rest.min(todo.len() as u64)).await?;
                let part = todo.start..todo.start + narrow(run.len);
                todo.start = part.end;
                if matches!(run.kind, RunKind::Unallocated { .. }) {
                    match layer.below {
                        Below::Zeros => buf[part].fill(0),
                        Below::Layer => below.push((depth + 1, part)),
                        Below::Left => return Err(self.backing_left(depth)),
                    }
                } else if let Some(piece) = self.take(depth, &run, at, part, buf)? {
                    pieces.push(piece);
                    if pieces.len() >= PIECES_MAX {
                        self.wait(&mut pieces, buf).await?;
                    }
                }
            }
            match below.pop() {
                Some(next) => (depth, todo) = next,
                None => break,
            }
        }
        if pieces.is_empty() { Ok(()) } else { self.wait(&mut pieces, buf).await }
    }

    /// Fills `part` of the buffer from a run, or says what must be waited for.
    #[inline]
    fn take(
        &self,
        depth: usize,
        run: &Run,
        at: u64,
        part: Range<usize>,
        buf: &mut [u8],
    ) -> Result<Option<Piece>> {
        let layer = &self.layers[depth];
        match run.kind {
            RunKind::Unallocated { .. } | RunKind::Zero { .. } => buf[part].fill(0),
            RunKind::Data { host } => {
                let Some(storage) = layer.data_storage()? else {
                    buf[part].fill(0);
                    return Ok(None);
                };
                let cipher = layer.cipher()?;
                if cipher.is_some() && !is_in_sectors(host.get(), part.len()) {
                    return Ok(Some(Piece { depth, part, from: From::Host { host, guest: at } }));
                }
                match storage.try_read_at(&mut buf[part.clone()], host.get()) {
                    Some(result) => {
                        let len = part.len() as u64;
                        result.map_err(|error| Error::storage("read", host.get(), len, error))?;
                        if let Some(cipher) = cipher {
                            cipher.decrypt(at, host.get(), &mut buf[part]);
                        }
                    }
                    None => {
                        let from = From::Host { host, guest: at };
                        return Ok(Some(Piece { depth, part, from }));
                    }
                }
            }
            RunKind::Compressed(cluster) => {
                let Body::Qcow2(layer) = &layer.body else { return Ok(None) };
                // Compressed clusters are never encrypted. Whoever has no key sees nothing of the disk all the same.
                layer.cipher()?;
                let start = narrow(layer.geometry.offset_in_cluster(at));
                let Some(inflated) = layer.inflated.find(cluster.host) else {
                    return Ok(Some(Piece { depth, part, from: From::Cluster { cluster, start } }));
                };
                let len = part.len();
                buf[part].copy_from_slice(&inflated[start..start + len]);
            }
        }
        Ok(None)
    }

    /// Fetches the pieces, several at a time, and empties the list.
    async fn wait(&self, pieces: &mut Vec<Piece>, buf: &mut [u8]) -> Result<()> {
        if pieces.len() == 1 {
            // OK to index: there is one. A lone piece needs no set of futures, and its cluster is inflated here, where
            // somebody waits for nothing else.
            let piece = &pieces[0];
            let (bytes, start) = self.fetch(piece, None).await?;
            buf[piece.part.clone()]
                .copy_from_slice(&bytes.as_ref()[start..start + piece.part.len()]);
            pieces.clear();
            return Ok(());
        }
        let mut waiting = pieces.drain(..);
        let mut in_flight = FuturesUnordered::new();
        loop {
            while in_flight.len() < self.pieces_in_flight {
                let Some(piece) = waiting.next() else { break };
                in_flight.push(async move {
                    let fetched = self.fetch(&piece, self.workers.as_ref()).await?;
                    Ok::<_, Error>((piece.part, fetched))
                });
            }
            let Some(next) = in_flight.next().await else { return Ok(()) };
            let (part, (bytes, start)) = next?;
            let len = part.len();
            buf[part].copy_from_slice(&bytes.as_ref()[start..start + len]);
        }
    }

    /// Fetches the bytes of one piece: a buffer and where in it they start.
    async fn fetch(
        &self,
        piece: &Piece,
        workers: Option<&Arc<dyn Workers>>,
    ) -> Result<(Fetched, usize)> {
        let layer = &self.layers[piece.depth];
        match (&piece.from, &layer.body) {
            (From::Host { host, guest }, _) => {
                let (host, len) = (host.get(), piece.part.len() as u64);
                match (layer.data_storage()?, layer.cipher()?) {
                    (Some(storage), None) => {
                        let bytes = read(&For(storage, Purpose::Data), host, len).await?;
                        Ok((Fetched::Own(bytes), 0))
                    }
                    (Some(storage), Some(cipher)) => {
                        // Whole sectors: clusters are made of them.
                        let before = host % SECTOR_LEN_BYTES;
                        let whole = (before + len).next_multiple_of(SECTOR_LEN_BYTES);
                        let (guest, host) = (guest - before, host - before);
                        let mut bytes = read(&For(storage, Purpose::Data), host, whole).await?;
                        cipher.decrypt(guest, host, &mut bytes);
                        Ok((Fetched::Own(bytes), narrow(before)))
                    }
                    (None, _) => Ok((Fetched::Own(Buf::zeroed(piece.part.len())), 0)),
                }
            }
            (From::Cluster { cluster, start }, Body::Qcow2(layer)) => {
                let inflated = layer.inflate(cluster, workers).await?;
                let whole = piece.part.len() == inflated.len();
                if whole {
                    return Ok((Fetched::Own(inflated), *start));
                }
                let inflated = Arc::new(inflated);
                layer.inflated.keep(cluster.host, Arc::clone(&inflated));
                Ok((Fetched::Shared(inflated), *start))
            }
            (From::Cluster { .. }, Body::Raw(_)) => Ok((Fetched::Own(Buf::default()), 0)),
        }
    }
}

/// Bytes that only this request has, or that are kept for others too.
enum Fetched {
    Own(Buf),
    Shared(Arc<Buf>),
}

impl AsRef<[u8]> for Fetched {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::Own(buf) => buf,
            Self::Shared(buf) => buf,
        }
    }
}

impl<S: Storage> Qcow2Layer<S> {
    /// Reads the stream of a compressed cluster and inflates it.
    async fn inflate(
        &self,
        cluster: &CompressedCluster,
        workers: Option<&Arc<dyn Workers>>,
    ) -> Result<Buf> {
        let host = cluster.host;
        // The file may end with the stream, within the last sector. Zeros in place of a stream that is cut could be read
        // as its missing end.
        let len = cluster.len.min(self.metadata.file_len().saturating_sub(host.get()));
        if len == 0 {
            self.metadata.must_hold(Structure::CompressedCluster, host.get(), cluster.len)?;
        }
        let mut stream = Buf::zeroed(narrow(len));
        match self.metadata.storage().try_read_at(&mut stream, host.get()) {
            Some(result) => {
                result.map_err(|error| Error::storage("read", host.get(), len, error))?
            }
            None => {
                let storage = For(self.metadata.storage(), Purpose::Data);
                stream = read(&storage, host.get(), len).await?;
            }
        }
        let inflated = match workers {
            None => self.codec.inflate(&stream),
            Some(workers) => {
                let codec = Arc::clone(&self.codec);
                offload(&**workers, move || codec.inflate(&stream)).await
            }
        };
        inflated.map_err(|fault| {
            let kind = match fault {
                StreamFault::Invalid => CorruptKind::StreamInvalid { len },
                StreamFault::Short => {
                    CorruptKind::StreamShort { len, cluster_size: self.geometry.cluster_size() }
                }
            };
            Corrupt::new(kind, Structure::CompressedCluster).at(host.get()).into()
        })
    }

    /// How many bytes of VM state the L1 table has room for.
    fn vm_state_len_max(&self) -> u64 {
        let covered = (self.l1.len() as u64).saturating_mul(self.geometry.l2_coverage());
        covered.saturating_sub(self.vm_state_offset())
    }
}

/// The run at `at`, from the cache if it can be.
async fn layer_run<S: Storage>(layer: &Layer<S>, at: u64, len: u64) -> Result<Run> {
    match layer.run_cached(at, len) {
        Some(run) => run,
        None => layer.run(at, len).await,
    }
}

/// Whether a range is of whole sectors.
fn is_in_sectors(start: u64, len: usize) -> bool {
    (start | len as u64).is_multiple_of(SECTOR_LEN_BYTES)
}

/// A length that is at most that of a slice in memory, as a `usize`.
fn narrow(len: u64) -> usize {
    // OK to saturate: a length that does not fit would be of a slice that cannot exist.
    usize::try_from(len).unwrap_or(usize::MAX)
}
