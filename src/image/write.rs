//! Writing the disk: in place where a cluster is the guest's alone, else into clusters that are taken for it, with what
//! they lack copied from below.
//!
//! A new mapping is stored when its data has been written, and not before: whoever reads sees the old bytes or the new ones,
//! and a write that fails or is dropped leaves the old mapping, and gives back what it has taken.

use std::ops::Range;

use futures::future::try_join3;

use crate::crypt::SECTOR_LEN_BYTES;
use crate::error::{Error, Result, Structure};
use crate::format::{Autoclear, ClusterKind, CryptMethod, GuestOffset, HostOffset, L2Entry};
use crate::storage::{Blocks, For, Purpose, Storage};

use super::Image;
use super::claims::Claim;
use super::free::FreeReason;
use super::layer::{Below, DataFile, RawLayer};
use super::mutant::{self, Mutant};
use super::ownership::Owner;
use super::requests::{Chore, Request};
use super::scratch::ScratchBuf;
use super::settling::File;
use super::writer::{Change, Target, Top};

/// What is copied goes with the data in one request up to this length, in bytes: copying memory costs less than a request.
const MERGED_LEN_BYTES_MAX: u64 = 256 << 10;

/// How much is encrypted before it is written, in bytes.
const ENCRYPTED_LEN_BYTES_MAX: usize = 1 << 20;

// OK to cast: 512.
#[allow(clippy::cast_possible_truncation)]
const SECTOR_LEN: usize = SECTOR_LEN_BYTES as usize;

impl<S: Storage> Image<S> {
    /// Writes `data` to the disk at guest `offset`, at any alignment. What it returns after is read by whoever reads then,
    /// and durable after the next [`Self::flush`].
    ///
    /// # Errors
    /// [`Error::ReadOnly`], [`Error::OutOfBounds`], [`Error::Closed`]; [`Error::Storage`], after which each sector of the
    /// range has its old or its new bytes and the image is as good as before; [`Error::Corrupt`] and
    /// [`Error::Unsupported`] for images that cannot be written to; [`Error::Latched`].
    ///
    /// # Cancel safety
    /// A dropped write may have any effect on its own range until the next flush returns, and none elsewhere.
    pub async fn write_at(&self, data: &[u8], offset: u64) -> Result<()> {
        let op = self.requests.enter_chore().await?;
        self.write_by(&op, data, offset).await
    }

    /// As [`Self::write_at`], for an operation that is under way.
    pub(super) async fn write_by(&self, op: &Chore<'_>, data: &[u8], offset: u64) -> Result<()> {
        let mut done = 0;
        loop {
            let change = self.begin_change(op).await?;
            let end = self.range_end(offset, data.len() as u64)?;
            if done < data.len() {
                change.mark(offset + done as u64..end);
                done += change.write(&data[done..], offset + done as u64).await?;
            }
            if done >= data.len() {
                break;
            }
        }
        self.write_through(op).await
    }

    /// Makes the change that has just been made durable, if each is to be.
    pub(super) async fn write_through(&self, op: &Chore<'_>) -> Result<()> {
        match self.access.get() {
            Some(options) if options.write_through => self.flush_by(op).await,
            _ => Ok(()),
        }
    }
}

impl<S: Storage> Change<'_, S> {
    /// Writes some of `data` at guest offset `at` and returns how many bytes.
    async fn write(&self, data: &[u8], at: u64) -> Result<usize> {
        match &self.target {
            Target::Qcow2(top) => top.write_step(&self.request, data, at).await,
            Target::Raw(layer) => {
                layer.storage_write(data, at).await?;
                Ok(data.len())
            }
        }
    }
}

impl<S: Storage> RawLayer<S> {
    async fn storage_write(&self, data: &[u8], at: u64) -> Result<()> {
        let written = self.blocks.write(&For(&self.storage, Purpose::Data), data, at).await;
        written.map_err(|error| Error::storage("write", at, data.len() as u64, error))
    }
}

/// Where the clusters of a segment go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Home {
    /// Where they are: what is written to is in the host cluster and the guest's alone.
    InPlace(HostOffset),
    /// To a host cluster that the guest cluster has, and that does not hold what it reads.
    Kept(HostOffset),
    /// To new ones.
    New,
}

/// Clusters side by side that are written to in one way.
struct Segment<'e> {
    home: Home,
    entries: &'e [L2Entry],
    /// Guest offset of the first cluster.
    start: u64,
}

/// What must go beside the data, on one side of it.
struct Side {
    /// Guest offsets.
    range: Range<u64>,
    /// Whether it is known to be zeros.
    is_zero: bool,
}

impl Side {
    fn len(&self) -> u64 {
        self.range.end - self.range.start
    }
}

/// What was copied from one side of the data.
enum Copied {
    Zeros { len: u64 },
    Bytes(Vec<u8>),
}

impl Copied {
    fn len(&self) -> u64 {
        match self {
            Self::Zeros { len } => *len,
            Self::Bytes(bytes) => bytes.len() as u64,
        }
    }
}

/// The data with what must go beside it.
enum Filled<'a> {
    /// In one buffer; `is_zero` if there are only zeros beside the data.
    Merged { bytes: ScratchBuf<'a>, head_len: u64, is_zero: bool },
    /// What goes before it, and behind it.
    Apart([Copied; 2]),
}

impl<'a, S: Storage> Top<'a, S> {
    /// Writes some of `data` at guest offset `at` and returns how many bytes.
    pub(super) async fn write_step(
        &self,
        request: &Request<'_>,
        data: &[u8],
        at: u64,
    ) -> Result<usize> {
        if self.layer.crypt != CryptMethod::None {
            return self.write_sectors(request, data, at).await;
        }
        self.write_whole(request, data, at).await
    }

    /// As [`Self::write_step`], for data that is to be encrypted: in whole sectors, into which a part of one is fitted.
    async fn write_sectors(&self, request: &Request<'_>, data: &[u8], at: u64) -> Result<usize> {
        let (before, len) = (at % SECTOR_LEN_BYTES, data.len() as u64);
        let whole = len - len % SECTOR_LEN_BYTES;
        if before == 0 && whole > 0 {
            let _claim = self.claim_sectors(at, whole).await;
            // OK to cast: at most the length of the data.
            #[allow(clippy::cast_possible_truncation)]
            let data = &data[..whole as usize];
            return self.write_whole(request, data, at).await;
        }
        // Whoever else changes this sector has done so before it is read, or waits until it is written.
        let _claim = self.claim_sectors(at - before, SECTOR_LEN_BYTES).await;
        let mut sector = self.writer.scratch.take(SECTOR_LEN);
        self.image.read_beside(&mut sector, at - before).await?;
        // OK to cast: less than a sector.
        #[allow(clippy::cast_possible_truncation)]
        let before = before as usize;
        let part = data.len().min(SECTOR_LEN - before);
        sector[before..before + part].copy_from_slice(&data[..part]);
        // Cancel: the sector is the old or the new one.
        self.write_whole(request, &sector, at - before as u64).await?;
        Ok(part)
    }

    /// Claims the sectors of a range, if the disk is encrypted: who fits a part into a sector must know the rest of it.
    pub(super) async fn claim_sectors(&self, at: u64, len: u64) -> Option<Claim<'_>> {
        if self.layer.crypt == CryptMethod::None || len == 0 {
            return None;
        }
        let last = (at.saturating_add(len) - 1) / SECTOR_LEN_BYTES;
        Some(self.writer.sectors.claim(at / SECTOR_LEN_BYTES..=last).await)
    }

    /// Writes some of `data`, which has whole sectors if it is to be encrypted.
    async fn write_whole(&self, request: &Request<'_>, data: &[u8], at: u64) -> Result<usize> {
        let in_place = match self.layer.in_place_cached(at, data.len() as u64) {
            Some(in_place) => in_place?,
            None => self.layer.in_place(at, data.len() as u64).await?,
        };
        if let Some((host, len)) = in_place {
            let len = self.alone_in(host, len);
            if len > 0 {
                // OK to cast: at most the length of the data.
                #[allow(clippy::cast_possible_truncation)]
                let len = len as usize;
                self.put_data(request, &data[..len], host, at).await?;
                return Ok(len);
            }
            self.must_not_overlap(host).await?;
        }
        self.write_segment(request, data, at).await
    }

    /// Writes the first bytes of `data`, as many as lie in clusters of one kind, and returns how many.
    async fn write_segment(&self, request: &Request<'_>, data: &[u8], at: u64) -> Result<usize> {
        let geometry = self.layer.geometry;
        let bits = geometry.cluster_bits();
        let end = self.slice_end(at).min(at + data.len() as u64);
        let (first, last) = (at >> bits, (end - 1) >> bits);
        let _claim = match mutant::is(Mutant::NoClaims) {
            true => None,
            false => Some(self.writer.claims.claim(first..=last).await),
        };
        self.write_claimed(request, data, at).await
    }

    /// As [`Self::write_segment`], for those who have a claim on the clusters.
    pub(super) async fn write_claimed(
        &self,
        request: &Request<'_>,
        data: &[u8],
        at: u64,
    ) -> Result<usize> {
        let bits = self.layer.geometry.cluster_bits();
        let end = self.slice_end(at).min(at + data.len() as u64);
        let (first, last) = (at >> bits, (end - 1) >> bits);
        let place = self.own_place(at).await?;
        let entries = place.entries(self, last - first + 1);
        let segment = self.segment(&entries, at, end)?;
        let clusters_end = segment.start + ((segment.entries.len() as u64) << bits);
        let end = end.min(clusters_end);
        // OK to cast: at most the length of the data.
        #[allow(clippy::cast_possible_truncation)]
        let data = &data[..(end - at) as usize];
        if let Home::InPlace(host) = segment.home {
            self.put_data(request, data, host, at).await?;
            return Ok(data.len());
        }

        let head_start = self.head_start(&segment, at)?;
        let tail_end = match mutant::is(Mutant::NoTail) {
            true => end,
            false => self.tail_end(&segment, end)?,
        };
        let last_entry = &segment.entries[segment.entries.len() - 1];
        let sides = [
            self.side(&segment.entries[0], head_start..at)?,
            self.side(last_entry, end..tail_end)?,
        ];
        // What is copied is read first: nothing is taken if that fails.
        let filled = self.fill(sides, data).await?;
        let (base, taken) = match segment.home {
            Home::Kept(host) => (host, None),
            Home::InPlace(_) | Home::New => {
                let count = segment.entries.len() as u64;
                let taken = self.take_clusters(count, Owner::Data).await?;
                (taken.host(), Some(taken))
            }
        };
        // Zeros of the file are no zeros of a disk that is encrypted.
        let is_fresh = taken.as_ref().is_some_and(|taken| taken.is_fresh)
            && self.layer.crypt == CryptMethod::None;
        let entries = self.mapped(&segment, base, head_start..tail_end);
        if mutant::is(Mutant::MappingBeforeWrite) {
            place.store(self, &entries);
        }
        let host = HostOffset::new(base.get() + (at - segment.start));
        self.put_filled(request, &filled, data, (host, at), is_fresh).await?;
        // From here on nothing is awaited and nothing fails.
        place.store(self, &entries);
        if let Some(taken) = taken {
            taken.keep();
            for entry in segment.entries {
                self.free_entry(entry, FreeReason::Other);
            }
        }
        Ok(data.len())
    }

    /// The clusters from the first entry on that are written to in one way. The request reaches from `at` to `end`.
    fn segment<'e>(&self, entries: &'e [L2Entry], at: u64, end: u64) -> Result<Segment<'e>> {
        let cluster_size = self.layer.geometry.cluster_size();
        let start = self.layer.geometry.align_down(at);
        let mut guest = start;
        let mut home = Home::New;
        let mut count = 0;
        for entry in entries {
            let touched = at.max(guest)..end.min(guest + cluster_size);
            let next = self.home(entry, guest, touched)?;
            let goes_on = match (home, next) {
                _ if count == 0 => true,
                (Home::New, Home::New) => true,
                (Home::InPlace(host), Home::InPlace(next))
                | (Home::Kept(host), Home::Kept(next)) => {
                    // The first one begins where the request does.
                    let begin = if matches!(home, Home::InPlace(_)) { at } else { start };
                    next.get().checked_sub(host.get()) == Some(guest - begin)
                }
                _ => false,
            };
            if !goes_on {
                break;
            }
            if count == 0 {
                home = next;
            }
            count += 1;
            guest += cluster_size;
        }
        Ok(Segment { home, entries: &entries[..count], start })
    }

    /// Where the cluster at `guest` is written to, of which `touched` is to be.
    fn home(&self, entry: &L2Entry, guest: u64, touched: Range<u64>) -> Result<Home> {
        let layer = self.layer;
        let kind = layer.cluster_kind(entry, guest)?;
        if layer.context.data_file() && !matches!(kind, ClusterKind::Data { .. }) {
            return Ok(Home::Kept(HostOffset::new(guest)));
        }
        let host = match kind {
            ClusterKind::Data { host } | ClusterKind::Zero { host: Some(host) }
                if entry.copied() || layer.context.data_file() =>
            {
                host
            }
            _ => return Ok(Home::New),
        };
        if self.alone_in(host, 1) == 0 {
            return Ok(Home::New);
        }
        let in_place = match kind {
            ClusterKind::Data { .. } if layer.geometry.extended_l2() => {
                let mask = self.subclusters(&touched);
                entry.bitmap() & mask == mask
            }
            ClusterKind::Data { .. } => true,
            _ => false,
        };
        let inside = touched.start - guest;
        Ok(if in_place {
            Home::InPlace(HostOffset::new(host.get() + inside))
        } else {
            Home::Kept(host)
        })
    }

    /// The bits of the subclusters that a range within one cluster touches.
    pub(super) fn subclusters(&self, range: &Range<u64>) -> u64 {
        if range.is_empty() {
            return 0;
        }
        let first = self.layer.geometry.subcluster_index(range.start);
        let last = self.layer.geometry.subcluster_index(range.end - 1);
        (u64::from(u32::MAX) >> (31 - (last - first))) << first
    }

    /// Where the bytes start that must be in the first host cluster of the segment, for a write from `at` on.
    fn head_start(&self, segment: &Segment<'_>, at: u64) -> Result<u64> {
        let entry = &segment.entries[0];
        let geometry = self.layer.geometry;
        if !geometry.extended_l2() {
            return Ok(segment.start);
        }
        let sub = geometry.subcluster_size();
        let own = at - at % sub;
        let kind = self.layer.cluster_kind(entry, segment.start)?;
        Ok(match (segment.home, kind) {
            // The compressed cluster goes: all of it is needed.
            (Home::New, ClusterKind::Compressed(_)) => segment.start,
            // The host cluster goes: what it holds is needed.
            (Home::New, ClusterKind::Data { .. }) => {
                let allocated = entry.bitmap() & u64::from(u32::MAX);
                let first = segment.start + u64::from(allocated.trailing_zeros()) * sub;
                own.min(first)
            }
            (Home::Kept(_), _) if entry.bitmap() & self.subclusters(&(own..own + 1)) != 0 => at,
            _ => own,
        })
    }

    /// Where the bytes end that must be in the last host cluster of the segment, for a write up to `end`.
    fn tail_end(&self, segment: &Segment<'_>, end: u64) -> Result<u64> {
        let geometry = self.layer.geometry;
        let clusters_end = segment.start + segment.entries.len() as u64 * geometry.cluster_size();
        if !geometry.extended_l2() {
            return Ok(clusters_end);
        }
        let entry = &segment.entries[segment.entries.len() - 1];
        let sub = geometry.subcluster_size();
        let own = end.next_multiple_of(sub);
        let guest = clusters_end - geometry.cluster_size();
        let kind = self.layer.cluster_kind(entry, guest)?;
        Ok(match (segment.home, kind) {
            (Home::New, ClusterKind::Compressed(_)) => clusters_end,
            (Home::New, ClusterKind::Data { .. }) => {
                let allocated = entry.bitmap() & u64::from(u32::MAX);
                let count = u64::from(64 - allocated.leading_zeros());
                own.max(guest + count * sub)
            }
            (Home::Kept(_), _)
                if own > end && entry.bitmap() & self.subclusters(&(end..end + 1)) != 0 =>
            {
                end
            }
            _ => own,
        })
    }

    /// What must go beside the data, in a range of the cluster of `entry`.
    fn side(&self, entry: &L2Entry, range: Range<u64>) -> Result<Side> {
        if range.is_empty() {
            return Ok(Side { range, is_zero: true });
        }
        let is_zero = match self.layer.cluster_kind(entry, range.start)? {
            ClusterKind::Zero { .. } => true,
            // With extended L2 entries its subclusters may be zeros, which there is no difference to.
            ClusterKind::Unallocated => self.image.layers[0].below == Below::Zeros,
            ClusterKind::Data { .. } | ClusterKind::Compressed(_) => false,
        };
        Ok(Side { range, is_zero })
    }

    /// Reads what must be copied beside `data`: into one buffer with it, if that is not too long.
    async fn fill(&self, sides: [Side; 2], data: &[u8]) -> Result<Filled<'a>> {
        let [head, tail] = &sides;
        let whole = head.len() + data.len() as u64 + tail.len();
        let is_zero = head.is_zero && tail.is_zero;
        if is_zero || whole > MERGED_LEN_BYTES_MAX {
            let head = self.copy(head).await?;
            let tail = self.copy(tail).await?;
            return Ok(Filled::Apart([head, tail]));
        }
        // OK to cast: at most MERGED_LEN_BYTES_MAX.
        #[allow(clippy::cast_possible_truncation)]
        let (head_len, whole) = (head.len() as usize, whole as usize);
        let mut bytes = self.writer.scratch.take(whole);
        let data_end = head_len + data.len();
        bytes[head_len..data_end].copy_from_slice(data);
        for (side, part) in [(head, 0..head_len), (tail, data_end..whole)] {
            if side.is_zero {
                bytes[part].fill(0);
            } else {
                self.image.read_beside(&mut bytes[part], side.range.start).await?;
            }
        }
        let is_zero = is_zeros(&bytes[..head_len]) && is_zeros(&bytes[data_end..]);
        Ok(Filled::Merged { bytes, head_len: head.len(), is_zero })
    }

    async fn copy(&self, side: &Side) -> Result<Copied> {
        if side.is_zero {
            return Ok(Copied::Zeros { len: side.len() });
        }
        let mut bytes = zeros(side.len())?;
        self.image.read_beside(&mut bytes, side.range.start).await?;
        Ok(match is_zeros(&bytes) {
            true => Copied::Zeros { len: side.len() },
            false => Copied::Bytes(bytes),
        })
    }

    /// The entries of a segment whose clusters are from `base` on, and hold `written`.
    fn mapped(&self, segment: &Segment<'_>, base: HostOffset, written: Range<u64>) -> Vec<L2Entry> {
        let geometry = self.layer.geometry;
        let cluster_size = geometry.cluster_size();
        let entry = |(index, old): (usize, &L2Entry)| {
            let offset = index as u64 * cluster_size;
            let guest = segment.start + offset;
            let kind = ClusterKind::Data { host: HostOffset::new(base.get() + offset) };
            let new = L2Entry::new(kind, true, geometry);
            if !geometry.extended_l2() {
                return new;
            }
            let touched = written.start.max(guest)..written.end.min(guest + cluster_size);
            let touched = self.subclusters(&touched);
            let compressed =
                matches!(self.layer.cluster_kind(old, guest), Ok(ClusterKind::Compressed(_)));
            let (allocated, zero) = match (segment.home, compressed) {
                (_, true) => (touched, 0),
                (Home::New, false) => (touched, old.bitmap() >> 32 & !touched),
                (_, false) => {
                    let allocated = old.bitmap() & u64::from(u32::MAX);
                    (allocated | touched, old.bitmap() >> 32 & !touched)
                }
            };
            L2Entry::from_raw(new.descriptor(), zero << 32 | allocated)
        };
        segment.entries.iter().enumerate().map(entry).collect()
    }

    /// Writes `data` to a host offset, which holds what is at a guest offset, with what goes before and behind it. Zeros need
    /// not go to clusters that are fresh.
    async fn put_filled(
        &self,
        request: &Request<'_>,
        filled: &Filled<'_>,
        data: &[u8],
        (host, guest): (HostOffset, u64),
        is_fresh: bool,
    ) -> Result<()> {
        match filled {
            Filled::Merged { is_zero: true, .. } if is_fresh => {
                self.put_data(request, data, host, guest).await
            }
            Filled::Merged { bytes, head_len, .. } => {
                let start = HostOffset::new(host.get() - *head_len);
                self.put_data(request, bytes, start, guest - *head_len).await
            }
            Filled::Apart(sides) => {
                let [head, tail] = sides;
                let skips = |copied: &Copied| {
                    copied.len() == 0 || (is_fresh && matches!(copied, Copied::Zeros { .. }))
                };
                if skips(head) && skips(tail) {
                    return self.put_data(request, data, host, guest).await;
                }
                if let (Copied::Zeros { len: before }, Copied::Zeros { len: behind }) = (head, tail)
                    && before + behind + data.len() as u64 <= MERGED_LEN_BYTES_MAX
                {
                    // OK to cast: at most MERGED_LEN_BYTES_MAX.
                    #[allow(clippy::cast_possible_truncation)]
                    let (before, behind) = (*before as usize, *behind as usize);
                    let data_end = before + data.len();
                    let mut bytes = self.writer.scratch.take(data_end + behind);
                    bytes[..before].fill(0);
                    bytes[before..data_end].copy_from_slice(data);
                    bytes[data_end..].fill(0);
                    let before = before as u64;
                    let start = HostOffset::new(host.get() - before);
                    return self.put_data(request, &bytes, start, guest - before).await;
                }
                let put = async |copied: &Copied, host: u64, guest: u64| match copied {
                    copied if skips(copied) => Ok(()),
                    Copied::Zeros { len } => {
                        self.put_data_zeros(request, HostOffset::new(host), guest, *len).await
                    }
                    Copied::Bytes(bytes) => {
                        self.put_data(request, bytes, HostOffset::new(host), guest).await
                    }
                };
                let len = data.len() as u64;
                try_join3(
                    put(head, host.get() - head.len(), guest - head.len()),
                    self.put_data(request, data, host, guest),
                    put(tail, host.get() + len, guest + len),
                )
                .await?;
                Ok(())
            }
        }
    }

    /// Writes guest data, which is at `guest` on the disk, to where it is in the file: encrypted, if the disk is.
    pub(super) async fn put_data(
        &self,
        request: &Request<'_>,
        data: &[u8],
        host: HostOffset,
        guest: u64,
    ) -> Result<()> {
        let Some(cipher) = self.layer.cipher()? else {
            return self.put(request, data, host).await;
        };
        let mut at = 0;
        // The caller's bytes stay as they are.
        for part in data.chunks(ENCRYPTED_LEN_BYTES_MAX) {
            let mut bytes = self.writer.scratch.take(part.len());
            bytes.copy_from_slice(part);
            let host = HostOffset::new(host.get() + at);
            cipher.encrypt(guest + at, host.get(), &mut bytes);
            // Cancel: as of a write in place.
            self.put(request, &bytes, host).await?;
            at += part.len() as u64;
        }
        Ok(())
    }

    /// Writes zeros to where the guest's clusters are: what reads as zeros, if the disk is encrypted.
    pub(super) async fn put_data_zeros(
        &self,
        request: &Request<'_>,
        host: HostOffset,
        guest: u64,
        len: u64,
    ) -> Result<()> {
        if self.layer.crypt == CryptMethod::None {
            return self.put_zeros(request, host, len).await;
        }
        let mut done = 0;
        while done < len {
            let part = zeros((len - done).min(ENCRYPTED_LEN_BYTES_MAX as u64))?;
            let host = HostOffset::new(host.get() + done);
            self.put_data(request, &part, host, guest + done).await?;
            done += part.len() as u64;
        }
        Ok(())
    }

    /// Writes bytes as they are to where the guest's clusters are.
    pub(super) async fn put(
        &self,
        request: &Request<'_>,
        data: &[u8],
        host: HostOffset,
    ) -> Result<()> {
        let (file, storage, blocks) = self.data_target()?;
        let len = data.len() as u64;
        let range = host.get()..host.get() + len;
        if self.writer.settling.overlaps(file, &range) {
            self.settle().await?;
        }
        let landing = self.writer.settling.begin(Some(request), file, range.clone());
        // Cancel: the range is unsettled.
        let written = blocks.write(&For(storage, Purpose::Data), data, host.get()).await;
        landing.end();
        written.map_err(|error| Error::storage("write", host.get(), len, error))?;
        if file == File::Image {
            self.layer.metadata.grow_to(range.end);
        }
        Ok(())
    }

    /// Makes bytes of the file zeros where the guest's clusters are.
    pub(super) async fn put_zeros(
        &self,
        request: &Request<'_>,
        host: HostOffset,
        len: u64,
    ) -> Result<()> {
        let (file, storage, blocks) = self.data_target()?;
        let range = host.get()..host.get() + len;
        if self.writer.settling.overlaps(file, &range) {
            self.settle().await?;
        }
        let landing = self.writer.settling.begin(Some(request), file, range.clone());
        // Cancel: the range is unsettled.
        let written = blocks.write_zeroes(storage, host.get(), len).await;
        landing.end();
        written.map_err(|error| Error::storage("write zeroes", host.get(), len, error))?;
        if file == File::Image {
            self.layer.metadata.grow_to(range.end);
        }
        Ok(())
    }

    /// The file that the guest's clusters are in.
    ///
    /// # Errors
    /// [`Error::Refused`] if it was not opened.
    pub(super) fn data_target(&self) -> Result<(File, &S, &Blocks)> {
        match &self.layer.data {
            DataFile::None => {
                Ok((File::Image, self.layer.metadata.storage(), self.layer.metadata.blocks()))
            }
            DataFile::Open(storage) => Ok((File::Data, storage, &self.layer.data_blocks)),
            DataFile::Zeros | DataFile::Left => Err(self.layer.data_left()),
        }
    }

    /// Gives up what an entry refers to that is in memory no more.
    pub(super) fn free_entry(&self, entry: &L2Entry, reason: FreeReason) {
        if self.layer.context.data_file() {
            return;
        }
        match entry.cluster(&self.layer.context) {
            Ok(ClusterKind::Data { host } | ClusterKind::Zero { host: Some(host) }) => {
                self.free(host, self.layer.geometry.cluster_size(), reason);
            }
            Ok(ClusterKind::Compressed(cluster)) => self.free(cluster.host, cluster.len, reason),
            _ => {}
        }
    }

    /// Notes that guest clusters have lost their places in an external data file just now: their space there is given up when
    /// their mapping has gone for good.
    pub(super) fn free_in_data_file(&self, clusters: Range<u64>) {
        let layer = self.layer;
        let is_raw = layer.header.get().autoclear.contains(Autoclear::DATA_FILE_RAW);
        if layer.context.data_file() && !is_raw && self.options().pass_discard_request {
            let bits = layer.geometry.cluster_bits();
            let len = (clusters.end - clusters.start) << bits;
            self.free(HostOffset::new(clusters.start << bits), len, FreeReason::DataFile);
        }
    }

    /// How much of `len` bytes from `host` on lies in clusters that only the entry which has led here refers to.
    fn alone_in(&self, host: HostOffset, len: u64) -> u64 {
        if self.writer.is_sound() || self.layer.context.data_file() {
            return len;
        }
        let bits = self.layer.geometry.cluster_bits();
        let ownership = self.writer.ownership.lock();
        let mut cluster = host.get() >> bits;
        let end = host.get() + len;
        while cluster << bits < end && ownership.owner(cluster) == Owner::Data {
            cluster += 1;
        }
        (cluster << bits).min(end).saturating_sub(host.get())
    }

    /// Refuses to write where the survey has found metadata, and to go on with an image like that.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if there is metadata.
    async fn must_not_overlap(&self, host: HostOffset) -> Result<()> {
        let cluster = host.get() >> self.layer.geometry.cluster_bits();
        if self.writer.ownership.lock().owner(cluster) != Owner::Metadata {
            return Ok(());
        }
        let _header = self.writer.header_io.lock().await;
        let range = host.get()..host.get() + 1;
        let refusal = self.layer.refuse_overlap(self.options().overlap_checks, range).await?;
        if refusal.marked {
            self.writer.latch(refusal.error.to_string());
        }
        Err(refusal.error)
    }

    /// The place of a guest cluster's entry in its own L2 table, loaded and pinned.
    pub(super) async fn own_place(&self, guest: u64) -> Result<EntryPlace> {
        let geometry = self.layer.geometry;
        let guest = GuestOffset::new(guest);
        let table = self.own_l2_table(geometry.l1_index(guest)).await?;
        let index = geometry.l2_index(guest);
        let byte = index * geometry.l2_entry_len();
        // Slices have a power of two bytes.
        let in_slice = byte & (self.layer.l2_cache.entry_bytes() - 1);
        let slice = table.checked_add(byte - in_slice).unwrap_or(table);
        let pinned =
            self.layer.metadata.load_slice(&self.layer.l2_cache, Structure::L2Table, slice).await?;
        // OK to saturate: a slice is in memory, so its indexes fit.
        let first = usize::try_from(in_slice / 8).unwrap_or(usize::MAX);
        Ok(EntryPlace { slice, first, _pinned: pinned })
    }

    /// Guest offset of the end of what the slice maps that maps `guest`.
    pub(super) fn slice_end(&self, guest: u64) -> u64 {
        let geometry = self.layer.geometry;
        let entries = self.layer.l2_cache.entry_bytes() / geometry.l2_entry_len();
        let span = entries * geometry.cluster_size();
        (guest & !(span - 1)).saturating_add(span)
    }
}

/// A place in a slice of an L2 table that nothing else refers to.
pub(super) struct EntryPlace {
    slice: HostOffset,
    /// The index of the first word.
    first: usize,
    _pinned: crate::cache::Slice,
}

impl EntryPlace {
    /// `count` entries from here on, which lie in the slice.
    pub(super) fn entries<S: Storage>(&self, top: &Top<'_, S>, count: u64) -> Vec<L2Entry> {
        let words = if top.layer.geometry.extended_l2() { 2 } else { 1 };
        let read = |slice: &crate::cache::Slice| {
            let entry = |index: usize| {
                let word = self.first + index * words;
                let bitmap = if words == 2 { slice.word(word + 1) } else { 0 };
                L2Entry::from_raw(slice.word(word), bitmap)
            };
            // OK to saturate: they lie in the slice.
            (0..usize::try_from(count).unwrap_or(usize::MAX)).map(entry).collect()
        };
        // A slice that is pinned is cached.
        top.layer.l2_cache.hit(self.slice, read).unwrap_or_default()
    }

    /// Stores entries from here on.
    pub(super) fn store<S: Storage>(&self, top: &Top<'_, S>, entries: &[L2Entry]) {
        let words = if top.layer.geometry.extended_l2() { 2 } else { 1 };
        let stored = top.layer.l2_cache.update(self.slice, |slice| {
            for (index, entry) in entries.iter().enumerate() {
                let word = self.first + index * words;
                slice.set_word(word, entry.descriptor());
                if words == 2 {
                    slice.set_word(word + 1, entry.bitmap());
                }
            }
        });
        assert!(stored.is_some(), "a slice that is pinned is not cached");
    }
}

/// Whether all bytes are zero.
pub(super) fn is_zeros(bytes: &[u8]) -> bool {
    const ZEROS: [u8; 4096] = [0; 4096];
    bytes.chunks(ZEROS.len()).all(|chunk| chunk == &ZEROS[..chunk.len()])
}

/// `len` zeros.
pub(super) fn zeros(len: u64) -> Result<Vec<u8>> {
    let limit = usize::MAX as u64;
    let len = usize::try_from(len).map_err(|_| Error::LimitExceeded {
        what: "bytes of a request",
        value: len,
        limit,
    })?;
    Ok(vec![0; len])
}
