//! Compressed writes: whole clusters, each as one stream behind the one before.
//!
//! Source: QEMU, block/qcow2.c, `qcow2_co_pwritev_compressed_task`; qcow2-cluster.c,
//! `qcow2_alloc_compressed_cluster_offset`.

use futures::stream::{FuturesOrdered, StreamExt};

use crate::error::{Error, Result, Structure, Unsupported, UnsupportedKind};
use crate::format::{ClusterKind, CompressedCluster, CryptMethod, L2Entry};
use crate::storage::{Buf, Storage};

use super::Image;
use super::free::FreeReason;
use super::requests::Request;
use super::writer::{Change, Target, Top};

/// How many clusters are on their way to each worker: one that it compresses, and the next one.
const CLUSTERS_PER_WORKER: usize = 2;

impl<S: Storage> Image<S> {
    /// Writes `data` compressed at guest `offset`: whole clusters, and at the end of the disk a part of one. A cluster that
    /// does not become smaller is written as it is. Several are compressed at a time, if the image has workers; they lie in the
    /// file in the order of the disk.
    ///
    /// # Errors
    /// As [`Self::write_at`]; [`Error::InvalidArgument`] for other parts of clusters, and for clusters that have data in a
    /// host cluster of their own: what is compressed takes nothing's place. [`Error::Unsupported`] for images that cannot
    /// have compressed clusters.
    ///
    /// # Cancel safety
    /// As [`Self::write_at`].
    pub async fn write_compressed_at(&self, data: &[u8], offset: u64) -> Result<()> {
        let op = self.requests.enter_chore().await?;
        let change = self.begin_change(&op).await?;
        let end = self.range_end(offset, data.len() as u64)?;
        let &Target::Qcow2(top) = &change.target else {
            return Err(Error::InvalidArgument("a raw image has no compressed clusters".into()));
        };
        let cluster_size = top.layer.geometry.cluster_size();
        if top.layer.context.data_file() {
            let kind = UnsupportedKind::CompressionWithDataFile;
            return Err(Unsupported::new(kind, Structure::Header).into());
        }
        let ends_whole = end.is_multiple_of(cluster_size) || end == self.virtual_size();
        if top.layer.crypt != CryptMethod::None {
            // It would lie in the file for all to read.
            let kind = UnsupportedKind::CompressionWithEncryption;
            return Err(Unsupported::new(kind, Structure::Header).into());
        }
        if !offset.is_multiple_of(cluster_size) || !ends_whole {
            return Err(Error::InvalidArgument(format!(
                "compressed write of {} bytes at {offset:#x} is not of whole clusters of {cluster_size:#x} bytes",
                data.len()
            )));
        }
        change.mark(offset..end);
        let in_flight = self
            .workers
            .as_ref()
            .map_or(1, |workers| workers.parallelism().max(1).saturating_mul(CLUSTERS_PER_WORKER));
        // OK to saturate: a cluster is in memory.
        let chunk = usize::try_from(cluster_size).unwrap_or(usize::MAX);
        let mut todo = data.chunks(chunk).zip((offset..).step_by(chunk));
        let mut running = FuturesOrdered::new();
        loop {
            while running.len() < in_flight {
                let Some((cluster, at)) = todo.next() else { break };
                running.push_back(async move { (top.deflate(cluster).await, cluster, at) });
            }
            match running.next().await {
                Some((stream, cluster, at)) => change.put_cluster(top, stream, cluster, at).await?,
                None => break,
            }
        }
        drop(running);
        drop(change);
        self.write_through(&op).await
    }
}

impl<S: Storage> Change<'_, S> {
    /// Writes the cluster at guest offset `at`: its stream, or the data if there is none.
    async fn put_cluster(
        &self,
        top: Top<'_, S>,
        stream: Option<Buf>,
        data: &[u8],
        at: u64,
    ) -> Result<()> {
        if let Some(stream) = stream {
            return top.put_compressed(&self.request, &stream, at).await;
        }
        let mut done = 0;
        while done < data.len() {
            done += top.write_step(&self.request, &data[done..], at + done as u64).await?;
        }
        Ok(())
    }
}

impl<S: Storage> Top<'_, S> {
    /// A stream of the cluster that begins with `data` and goes on with zeros, if it becomes smaller.
    async fn deflate(&self, data: &[u8]) -> Option<Buf> {
        // OK to saturate: a cluster is in memory.
        let len = usize::try_from(self.layer.geometry.cluster_size()).unwrap_or(usize::MAX);
        let mut cluster = Buf::zeroed(len);
        cluster[..data.len()].copy_from_slice(data);
        let deflater = self.layer.codec.deflater();
        deflater.deflate_by(self.image.workers.as_ref(), cluster).await.1
    }

    /// Stores the stream of the cluster at guest offset `at`.
    async fn put_compressed(&self, request: &Request<'_>, stream: &[u8], at: u64) -> Result<()> {
        let geometry = self.layer.geometry;
        let cluster = at >> geometry.cluster_bits();
        let _claim = self.writer.claims.claim(cluster..=cluster).await;
        let place = self.own_place(at).await?;
        let entries = place.entries(self, 1);
        let old = entries.first().copied().unwrap_or_default();
        let has_own = match self.layer.cluster_kind(&old, at)? {
            ClusterKind::Data { .. } | ClusterKind::Zero { host: Some(_) } => old.copied(),
            _ => false,
        };
        if has_own {
            return Err(Error::InvalidArgument(format!(
                "compressed write at {at:#x}: the cluster is allocated already"
            )));
        }
        let len = stream.len() as u64;
        let (taken, host) = self.take_bytes(len).await?;
        self.put(request, stream, host).await?;
        // From here on nothing is awaited and nothing fails.
        self.layer.inflated.forget(host);
        let kind = ClusterKind::Compressed(CompressedCluster { host, len });
        place.store(self, &[L2Entry::new(kind, false, geometry)]);
        taken.keep();
        self.free_entry(&old, FreeReason::Other);
        Ok(())
    }
}
