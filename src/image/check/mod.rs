//! The check: is the image's metadata consistent? Read-only; finds what `qemu-img check` finds, and what it misses.
//!
//! # How
//!
//! Every reference to every host cluster is counted: header, active L1 table and what it leads to, snapshots and what
//! they lead to, refcount table and blocks, snapshot table, encryption header, bitmap directory, tables and data. Then
//! the counts are compared with the refcounts on disk, and the copied flags with both. A count takes a byte.
//!
//! # Bounds
//!
//! Memory is bounded by [`CheckOptions::memory_bytes_max`]: when the counts do not fit, the check makes several passes,
//! each for a window of host clusters. Time is bounded by the length of the file, not by what its tables claim: however
//! many L1 entries, snapshots or bitmaps lead to the same bytes, these bytes are read once a pass and counted with
//! their weight.
//!
//! # Beyond QEMU
//!
//! Totals are those of `qemu-img check`, except that these count as corruptions too: a structure that the file does not
//! have whole ([`FindingKind::CutShort`]), metadata that shares a cluster with something else though the refcounts agree
//! ([`FindingKind::Overlap`]), a zero flag where it is reserved, and what makes QEMU stop checking: a broken bitmap
//! directory or table. A broken snapshot table is a check error, as in QEMU, but the rest is checked nevertheless.

mod compare;
mod counts;
mod cover;
mod flags;
mod inventory;
mod layout;
mod refcounts;
mod repair;
mod report;
mod source;
mod survey;
mod walk;

use std::ops::Range;

#[cfg(feature = "write")]
pub(crate) use repair::make_writable;
pub use repair::{Repair, RepairReport, repair_storage};
pub use report::{
    CheckObserver, CheckReport, Finding, FindingClass, FindingKind, RepairStep, Structure,
};

use self::counts::{Cell, Counts};
use self::cover::Tables;
use self::inventory::Inventory;
use self::layout::Layout;
use self::refcounts::Refcounts;
use self::repair::{May, Plan, Rebuilt, Target};
use self::source::Source;
use self::walk::{Pass, Tally};
use super::Image;
use super::layer::Body;
use crate::error::{Error, Result};
use crate::format::Header;
use crate::storage::Storage;

/// How to check.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct CheckOptions {
    /// Memory in bytes that the check may take for itself, beside buffers of a few MiB: 64 MiB by default, at least 4 MiB.
    /// An image with more clusters than half of this is checked in several passes.
    pub memory_bytes_max: u64,
}

impl CheckOptions {
    /// Sets [`CheckOptions::memory_bytes_max`].
    #[must_use]
    pub fn memory_bytes_max(mut self, bytes: u64) -> Self {
        self.memory_bytes_max = bytes;
        self
    }
}

impl Default for CheckOptions {
    fn default() -> Self {
        Self { memory_bytes_max: 64 << 20 }
    }
}

impl<S: Storage> Image<S> {
    /// Checks the image's own metadata, not its backing chain's, whichever of its states is open; see [`check`].
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] if the image is raw: there is nothing to check. [`Error::Closed`] after
    /// [`Image::close`]. [`Error::Storage`].
    ///
    /// # Cancel safety
    ///
    /// It only reads: dropping the future has no effect.
    pub async fn check<O: CheckObserver>(
        &self,
        options: &CheckOptions,
        observer: &mut O,
    ) -> Result<CheckReport> {
        // What is checked is what is in the file.
        #[cfg(feature = "write")]
        self.flush().await?;
        let _request = self.requests.enter().await?;
        match &self.layers[0].body {
            Body::Qcow2(layer) => {
                check(layer.metadata.storage(), &layer.header.get(), options, observer).await
            }
            Body::Raw(_) => {
                Err(Error::InvalidArgument("raw images have no metadata to check".to_owned()))
            }
        }
    }
}

/// Least memory to work with.
const MEMORY_BYTES_MIN: u64 = 4 << 20;
/// Images with few clusters get wide counts from the start.
#[cfg(not(target_family = "wasm"))]
const WIDE_BYTES_MAX: u64 = 4 << 20;
/// Windows start at multiples of this, so that every refcount block can be read from a whole byte on.
const WINDOW_ALIGNMENT: u64 = 64;
/// Parts into which the progress of a pass is cut.
const PROGRESS_PARTS: u64 = 1000;

/// Reads the header of the image in `storage`, and checks the image; also one that is too broken to be opened, such as
/// one without a refcount table.
///
/// # Errors
///
/// What the storage says, and what [`Header::parse_for_check`] says of the header.
///
/// # Cancel safety
///
/// It only reads: dropping the future has no effect.
pub async fn check_storage<S: Storage, O: CheckObserver>(
    storage: &S,
    options: &CheckOptions,
    observer: &mut O,
) -> Result<CheckReport> {
    let (header, _) = load_header(storage).await?;
    check(storage, &header, options, observer).await
}

/// Reads the header of an image however broken the rest is, and the length of its file.
async fn load_header<S: Storage>(storage: &S) -> Result<(Header, u64)> {
    let source = Source::new(storage, len(storage).await?);
    let mut bytes = Vec::new();
    source.read(0..Header::PROBE_LEN as u64, &mut bytes).await?;
    let header_len = Header::probe_len(&bytes)?;
    source.read(0..header_len as u64, &mut bytes).await?;
    Ok((Header::parse_for_check(&bytes, source.len())?, source.len()))
}

/// Checks the image in `storage`, whose header is `header`.
///
/// It opens nothing: a backing file or an external data file does not matter to the check.
///
/// # Errors
///
/// What the storage says. Everything that is wrong with the image is a finding, not an error.
///
/// # Cancel safety
///
/// It only reads: dropping the future has no effect.
pub async fn check<S: Storage, O: CheckObserver>(
    storage: &S,
    header: &Header,
    options: &CheckOptions,
    observer: &mut O,
) -> Result<CheckReport> {
    let file_len = len(storage).await?;
    let layout = Layout::new(header, file_len);
    let source = Source::new(storage, file_len);
    let mut tally = Tally::new(observer, None);
    tally.report.total_clusters = layout.total_clusters();
    let inventory = Inventory::load(&layout, &source, &mut tally).await?;
    let budget = Budget::new(options.memory_bytes_max);
    let (highest, job) = (0, Job::Check);
    let mut check =
        Check { layout: &layout, source: &source, inventory: &inventory, budget, highest, job };
    check.run(&mut tally, true).await?;
    tally.report.image_end_offset = (check.highest + 1) << layout.cluster_bits;
    Ok(tally.report)
}

async fn len<S: Storage>(storage: &S) -> Result<u64> {
    storage.len().await.map_err(|source| Error::storage("length", 0, 0, source))
}

/// Shares of the memory, in bytes.
#[derive(Debug, Clone, Copy)]
struct Budget {
    counts: u64,
    maps: u64,
    tables: u64,
}

impl Budget {
    fn new(memory_bytes_max: u64) -> Self {
        let all = memory_bytes_max.max(MEMORY_BYTES_MIN);
        Self { counts: all / 2, maps: all / 8, tables: all / 8 }
    }

    fn tables_max(self) -> usize {
        usize::try_from(self.tables / Tables::TABLE_LEN_BYTES).unwrap_or(usize::MAX)
    }
}

struct Check<'c, 's, S> {
    layout: &'c Layout,
    source: &'c Source<'s, S>,
    inventory: &'c Inventory,
    budget: Budget,
    /// The last cluster in use.
    highest: u64,
    job: Job<'c, 's, S>,
}

/// What is done with the references counted in a window.
enum Job<'j, 's, S> {
    /// They are compared with the refcounts, and the copied flags with both.
    Check,
    /// They are compared with the refcounts. The windows are collected whose copied flags are to be looked at.
    Survey(&'j mut Vec<Range<u64>>),
    /// The same, and refcounts are made right. Clusters `kept` are in use though nothing refers to them yet.
    Mend {
        target: &'j Target<'s, S>,
        may: May,
        differing: &'j mut Vec<Range<u64>>,
        kept: Range<u64>,
    },
    /// Places are found for new refcount structures.
    Plan(&'j mut Plan),
    /// New refcount blocks are written.
    Rebuild { target: &'j Target<'s, S>, rebuilt: &'j Rebuilt },
}

impl<S: Storage> Check<'_, '_, S> {
    /// Does the job for all clusters. `first` says whether the tables' own findings are still to be reported.
    async fn run<O: CheckObserver>(&mut self, tally: &mut Tally<'_, O>, first: bool) -> Result<()> {
        let (done, nothing) = self.narrow(tally, first).await?;
        if nothing || done < self.layout.cells {
            // Few clusters, or too many references for counts of a byte.
            self.passes::<u64, O>(tally, done, first && nothing).await?;
        }
        Ok(())
    }

    /// Checks with narrow counts if there are many clusters, and returns up to which cluster, and whether nothing is done.
    #[cfg(not(target_family = "wasm"))]
    async fn narrow<O: CheckObserver>(
        &mut self,
        tally: &mut Tally<'_, O>,
        first: bool,
    ) -> Result<(u64, bool)> {
        let wide_len = self.layout.cells.saturating_mul(size_of::<u64>() as u64);
        if wide_len <= WIDE_BYTES_MAX.min(self.budget.counts) {
            return Ok((0, true));
        }
        Ok((self.passes::<u8, O>(tally, 0, first).await?, false))
    }

    /// In a browser the code for narrow counts would be a tenth of the engine, which is sent to every page. Without them
    /// huge images take more passes.
    #[cfg(target_family = "wasm")]
    async fn narrow<O: CheckObserver>(
        &mut self,
        _tally: &mut Tally<'_, O>,
        _first: bool,
    ) -> Result<(u64, bool)> {
        Ok((0, true))
    }

    /// Checks window by window from cluster `from` on, and returns up to which cluster: not all if counts of this width
    /// do not suffice. `first` says whether the tables' own findings are still to be reported.
    async fn passes<C: Cell, O: CheckObserver>(
        &mut self,
        tally: &mut Tally<'_, O>,
        from: u64,
        mut first: bool,
    ) -> Result<u64> {
        let layout = self.layout;
        let windows = self.windows(from, size_of::<C>() as u64);
        let count = windows.len() as u64;
        let refcounts = Refcounts { layout, source: self.source };
        for (number, window) in (0..).zip(windows) {
            tally.report.passes += 1;
            let counts = Counts::<C>::new(&window, self.budget.maps);
            let last = window.end == layout.cells;
            // A window that is only counted again has nothing new to say.
            tally.muted = match self.job {
                Job::Check | Job::Survey(_) => false,
                Job::Mend { may, .. } => may != May::LowerRebuilt,
                Job::Plan(_) | Job::Rebuild { .. } => true,
            };
            // A repair looks through the tables first, and again when it mends.
            let shows = matches!(self.job, Job::Check | Job::Survey(_) | Job::Mend { .. });
            let mut pass = Pass::new(layout, counts, tally, first);
            first = false;
            pass.keeps_cut = matches!(self.job, Job::Plan(_));
            pass.count_inventory(self.source, self.inventory).await?;
            pass.mark_refcount_blocks(self.source).await?;
            let mut shown = 0;
            let progress = |observer: &mut O, done: u64, total: u64| {
                let part = u128::from(done) * u128::from(PROGRESS_PARTS) / u128::from(total.max(1));
                let part = u64::try_from(part).unwrap_or(PROGRESS_PARTS).min(PROGRESS_PARTS);
                if part > shown && shows {
                    shown = part;
                    observer.progress(number * PROGRESS_PARTS + part, count * PROGRESS_PARTS);
                }
            };
            let tables_max = self.budget.tables_max();
            pass.walk(self.source, &self.inventory.l1, tables_max, progress).await?;
            if pass.counts.overflowed() {
                return Ok(window.start);
            }
            pass.count_refcount_blocks(self.source).await?;
            // What reaches over the end of the file makes it a cluster longer.
            let over = u64::from(pass.counts.count_of(layout.clusters) > 0);
            let file_end = (layout.clusters + over).max(layout.grown_clusters);
            let clusters = window.start..window.end.min(file_end).max(window.start);
            let compared = match &mut self.job {
                Job::Check | Job::Survey(_) => pass.compare(&refcounts, clusters).await?,
                Job::Mend { target, may, kept, .. } => {
                    for cluster in pass.counts.within(kept) {
                        pass.counts.add(cluster, 1);
                    }
                    pass.tally.muted = false;
                    pass.mend(&refcounts, target, clusters, *may).await?
                }
                Job::Plan(plan) => {
                    for clusters in &self.inventory.uncounted {
                        for cluster in pass.counts.within(clusters) {
                            pass.counts.add(cluster, 1);
                        }
                    }
                    plan.take(&pass.counts, layout, &window);
                    continue;
                }
                Job::Rebuild { target, rebuilt } => {
                    rebuilt.store_window(&mut pass.counts, layout, target, window).await?;
                    continue;
                }
            };
            self.highest = compared.highest.unwrap_or(self.highest);
            let data_flags_differ =
                pass.tally.mending.as_ref().is_some_and(|mending| mending.data_flags_differ);
            if compared.flags_differ || (last && (pass.outside || data_flags_differ)) {
                match &mut self.job {
                    Job::Survey(differing) | Job::Mend { differing, .. } => differing.push(window),
                    _ => {
                        let l1 = &self.inventory.l1;
                        pass.copied_flags(&refcounts, l1, tables_max, last, None).await?;
                    }
                }
            }
        }
        tally.muted = false;
        Ok(layout.cells)
    }

    /// The windows of host clusters, each of which fits the memory.
    fn windows(&self, from: u64, cell_len: u64) -> Vec<Range<u64>> {
        let end = self.layout.cells;
        let fitting = (self.budget.counts / cell_len).min(isize::MAX as u64);
        let count = (end - from).div_ceil(fitting).max(1);
        let len = (end - from).div_ceil(count).next_multiple_of(WINDOW_ALIGNMENT);
        (0..count)
            .map(|number| from + number * len)
            .map(|start| start.min(end)..start.saturating_add(len).min(end))
            .filter(|window| !window.is_empty())
            .collect()
    }
}
