//! How large the file of a new image will be, before there is one. Matches qcow2_measure in qcow2.c.

use crate::error::{Error, Result};
use crate::format::limits::L1_LEN_BYTES_MAX;
use crate::format::{Geometry, L1Entry};

use super::create::{CreateOptions, refcount_clusters};
use super::options::Preallocation;

/// The lengths of a file, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Measurement {
    /// With the data that is to be written at once. It may be a little less in truth: all tables are counted.
    pub required: u64,
    /// When all of the disk has been written to.
    pub fully_allocated: u64,
}

impl CreateOptions {
    /// Says how long the file of an image with these options will be.
    ///
    /// `data_len_bytes` is what will be written to the disk at once: the length of the clusters with data in them. `None` for
    /// nothing, and only then is the size of the disk held against what an image can have, as QEMU does it.
    ///
    /// # Errors
    /// `InvalidArgument`, in QEMU's words, if there are no such clusters or refcounts, or the disk is too large.
    pub fn measure(&self, data_len_bytes: Option<u64>) -> Result<Measurement> {
        self.check_cluster_size()?;
        self.check_refcount_bits("compat=1.1")?;
        let (bits, order) =
            (self.cluster_size.trailing_zeros(), self.refcount_bits.trailing_zeros());
        let geometry = Geometry::new(bits, self.extended_l2, order)?;
        let too_large = || {
            let text = "The image size is too large (try using a larger cluster size)";
            Error::InvalidArgument(text.to_owned())
        };
        let data = geometry.clusters_for(self.size);
        let l2_tables = data.div_ceil(geometry.l2_entries());
        if data_len_bytes.is_none() && l2_tables > L1_LEN_BYTES_MAX / L1Entry::LEN {
            return Err(too_large());
        }
        let l1_table = geometry.clusters_for(l2_tables * L1Entry::LEN);
        let clusters = 1 + l2_tables + l1_table + data;
        let refcounts = refcount_clusters(geometry, clusters, false);
        let clusters = clusters + refcounts.table + refcounts.blocks;
        let bytes = |clusters: u64| clusters.checked_mul(geometry.cluster_size());
        let fully_allocated = bytes(clusters).ok_or_else(too_large)?;
        let size = bytes(data).ok_or_else(too_large)?;
        let written = match self.preallocation {
            Preallocation::Falloc | Preallocation::Full => size,
            Preallocation::Off | Preallocation::Metadata => data_len_bytes.unwrap_or(0).min(size),
        };
        Ok(Measurement { required: fully_allocated - size + written, fully_allocated })
    }
}
