//! The L1 table and the L2 tables of a new image, filled front to back as clusters are taken.
//!
//! Memory: one L2 table, and what is on its way to the storage. Matches preallocate_co and qcow2_co_truncate in qcow2.c,
//! qcow2_alloc_host_offset in qcow2-cluster.c.

use crate::error::Result;
use crate::format::{ClusterKind, Geometry, HostOffset, L1Entry, L2Entry};
use crate::storage::Storage;

use super::clusters::Clusters;
use super::sink::Sink;
use super::too_large;

/// The longest request that QEMU makes of its allocator, and of a format, in bytes: where it cuts shows in the layout.
const REQUEST_LEN_BYTES_MAX: u64 = i32::MAX as u64;
const WRITE_LEN_BYTES_MAX: u64 = REQUEST_LEN_BYTES_MAX >> 9 << 9;

/// The tables that map a new disk.
pub(super) struct Tables<'s, S> {
    geometry: Geometry,
    /// Whether guest clusters are in a data file, each where the guest sees it.
    data_file: bool,
    /// Whether what is mapped is told to read as zeros: what the file has there does not.
    says_zero: bool,
    clusters: Clusters,
    /// Takes the L2 tables.
    sink: Sink<'s, S>,
    /// Takes the L1 table.
    l1_sink: Sink<'s, S>,
    l1_offset: u64,
    /// The L2 table that is being filled: its index in the L1 table, its cluster, its bytes.
    l2: Option<(u64, u64)>,
    l2_bytes: Vec<u8>,
}

/// Clusters that follow each other on the disk and in the file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run {
    guest: u64,
    host: u64,
    len: u64,
}

impl<'s, S: Storage> Tables<'s, S> {
    /// For an image whose L1 table is at `l1_offset`.
    pub(super) fn new(
        storage: &'s S,
        is_zero: bool,
        geometry: Geometry,
        data_file: bool,
        clusters: Clusters,
        l1_offset: u64,
    ) -> Self {
        Self {
            geometry,
            data_file,
            says_zero: false,
            clusters,
            sink: Sink::new(storage, is_zero),
            l1_sink: Sink::new(storage, is_zero),
            l1_offset,
            l2: None,
            l2_bytes: vec![0; to_usize(geometry.cluster_size())],
        }
    }

    /// Makes what is mapped read as zeros by its entries.
    pub(super) fn say_zero(&mut self) {
        // Subclusters are not allocated, and need not say it.
        self.says_zero = !self.geometry.extended_l2();
    }

    /// Maps a disk of `size` bytes, taking clusters as writing all of it would.
    pub(super) async fn map_as_written(&mut self, size: u64) -> Result<()> {
        let cluster_size = self.geometry.cluster_size();
        let request_len = self.geometry.align_down(REQUEST_LEN_BYTES_MAX);
        let mut offset = 0;
        while offset < size {
            let request_end = size.min(offset + request_len);
            let mut next = None;
            while offset < request_end {
                let guest = offset >> self.geometry.cluster_bits();
                let rest = self.geometry.clusters_for(request_end - offset);
                let len = rest
                    .min(self.geometry.l2_entries() - guest % self.geometry.l2_entries())
                    .min(WRITE_LEN_BYTES_MAX >> self.geometry.cluster_bits());
                let Some(run) = self.take_run(guest, len, next).await? else { break };
                next = Some(run.host + run.len);
                offset = request_end.min((run.guest + run.len) * cluster_size);
                if !self.data_file {
                    // The last subcluster is whole, even where the disk ends within it.
                    let len = offset - run.guest * cluster_size;
                    let len = len.next_multiple_of(self.geometry.subcluster_size());
                    self.sink.put_zeros(run.host * cluster_size, len).await?;
                }
            }
        }
        Ok(())
    }

    /// Maps a disk of `len` clusters to clusters in a row from `host` on, which are taken.
    pub(super) async fn map_in_row(&mut self, host: u64, len: u64) -> Result<()> {
        let mut guest = 0;
        while guest < len {
            let run_len = (len - guest).min(self.geometry.l2_entries());
            self.enter_l2(guest).await?;
            self.map(Run { guest, host: host + guest, len: run_len });
            guest += run_len;
        }
        Ok(())
    }

    /// Writes what is left of the tables.
    pub(super) async fn finish(mut self) -> Result<Finished> {
        self.leave_l2().await?;
        self.sink.drain().await?;
        self.l1_sink.drain().await?;
        let end = self.sink.end().max(self.l1_sink.end());
        Ok(Finished { clusters: self.clusters, end })
    }

    /// Takes clusters for up to `len` guest clusters of one L2 table: at `next` if they are free there, or else anywhere if
    /// nothing is said.
    async fn take_run(&mut self, guest: u64, len: u64, next: Option<u64>) -> Result<Option<Run>> {
        self.enter_l2(guest).await?;
        let run = match next {
            _ if self.data_file => Run { guest, host: guest, len },
            None => Run { guest, host: self.clusters.take(len).map_err(too_large)?, len },
            Some(host) => {
                let len = self.clusters.take_at(host, len).map_err(too_large)?;
                Run { guest, host, len }
            }
        };
        if run.len == 0 {
            return Ok(None);
        }
        self.map(run);
        Ok(Some(run))
    }

    /// Makes the L2 table for a guest cluster, unless it is the one that is being filled.
    async fn enter_l2(&mut self, guest: u64) -> Result<()> {
        let index = guest / self.geometry.l2_entries();
        if self.l2.is_some_and(|(current, _)| current == index) {
            return Ok(());
        }
        self.leave_l2().await?;
        let cluster = self.clusters.take(1).map_err(too_large)?;
        self.l2 = Some((index, cluster));
        let entry = L1Entry::new(self.host_offset(cluster), true);
        let at = self.l1_offset + index * L1Entry::LEN;
        self.l1_sink.put(&entry.raw().to_be_bytes(), at).await
    }

    /// Writes the L2 table that was filled.
    async fn leave_l2(&mut self) -> Result<()> {
        if let Some((_, cluster)) = self.l2.take() {
            self.sink.put(&self.l2_bytes, self.host_offset(cluster).get()).await?;
            self.l2_bytes.fill(0);
        }
        Ok(())
    }

    /// Enters a run into the L2 table that is being filled. Subclusters are not allocated, so that a backing file is seen.
    fn map(&mut self, run: Run) {
        let (entries, entry_len) = (self.geometry.l2_entries(), self.geometry.l2_entry_len());
        for index in 0..run.len {
            let host = self.host_offset(run.host + index);
            let kind = match self.says_zero {
                true => ClusterKind::Zero { host: Some(host) },
                false => ClusterKind::Data { host },
            };
            let entry = L2Entry::new(kind, true, self.geometry);
            let at = to_usize((run.guest + index) % entries * entry_len);
            self.l2_bytes[at..at + 8].copy_from_slice(&entry.descriptor().to_be_bytes());
        }
    }

    fn host_offset(&self, cluster: u64) -> HostOffset {
        HostOffset::new(cluster << self.geometry.cluster_bits())
    }
}

impl<S> Tables<'_, S> {
    /// The clusters of the image so far.
    pub(super) fn clusters_mut(&mut self) -> &mut Clusters {
        &mut self.clusters
    }
}

/// What is known when the tables are written.
pub(super) struct Finished {
    pub(super) clusters: Clusters,
    /// Behind the last byte of the tables and of the clusters that they map.
    pub(super) end: u64,
}

/// A length or an index within an L2 table: it fits.
fn to_usize(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}
