//! The repair: makes an image's metadata consistent again, as `qemu-img check -r` does.
//!
//! # What it does
//!
//! The check counts every reference. Then refcounts that are too high are lowered, and, if errors are to be repaired
//! too, those that are too low are raised; where they have no place, or the refcount structures themselves are broken,
//! refcount table and blocks are built anew. Copied flags follow the refcounts, entries that keep an unaligned cluster
//! for zeros become zeros, and the snapshot table gets what it lacks. A file that ends inside of a table is extended by
//! zeros. If nothing is left, clusters past the end of the file lose their refcounts, and the image is neither dirty nor
//! corrupt any more. What the guest reads stays as it is.
//!
//! # What it does not do
//!
//! It writes to nothing that shares its cluster with something else, and it gives up nothing whose references it could
//! not read: with a broken snapshot table or bitmap directory it changes nothing. Data is never moved: two entries with
//! the same cluster keep it, with a refcount of two.
//!
//! # Power loss
//!
//! Every write is either in place and such that old and new words side by side are no worse than the old ones, or goes to
//! clusters to which nothing refers, and is switched to by one write of twelve bytes after a flush. Whenever a repair ends,
//! another one mends the rest.

mod entries;
mod mending;
mod past_end;
mod rebuild;
mod refcounts;
mod snapshots;
mod target;

use std::ops::Range;

pub(super) use self::mending::Mending;
pub(super) use self::rebuild::{Plan, Rebuilt};
pub(super) use self::refcounts::May;
pub(super) use self::target::{Target, Word};
use super::counts::Counts;
use super::inventory::Inventory;
use super::layout::Layout;
use super::refcounts::{BLOCK_OFFSET_MASK, Refcounts, TABLE_RESERVED};
use super::source::{Piece, Source};
use super::walk::{Pass, Tally, words};
use super::{
    Budget, Check, CheckObserver, CheckOptions, CheckReport, Job, RepairStep, load_header,
};
use crate::error::{Corrupt, CorruptKind, Error, Result, Structure};
use crate::format::{Header, Incompatible, Version};
use crate::storage::Storage;

/// Offsets of features in the header.
const HEADER_INCOMPATIBLE: u64 = 72;
const HEADER_AUTOCLEAR: u64 = 88;
/// How many clusters a file may have if it is extended to a refcount block past its end. Beyond, there is no such block.
const GROWN_CLUSTERS_MAX: u64 = 4 << 20;

/// How much longer than needed a file may become, so that new refcount structures do not lie where something past the end
/// of the file is referred to.
const SLACK_LEN_MAX: u64 = 256 << 20;

/// What to repair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repair {
    /// Refcounts that are too high, and nothing that could matter to data.
    Leaks,
    /// Errors too.
    All,
}

/// What a repair has done, and what is left.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct RepairReport {
    /// What is left, and the totals of the check.
    pub check: CheckReport,
    /// Errors that were repaired.
    pub corruptions_fixed: u64,
    /// Leaked clusters that were given up.
    pub leaks_fixed: u64,
    /// Refcount table and blocks were built anew.
    pub rebuilt: bool,
    /// It was not carried to its end: what stands in the way is among the check errors, and reported.
    pub gave_up: bool,
}

/// Repairs the image in `storage`, which nobody else may use meanwhile. It opens nothing that the image refers to.
///
/// # Errors
///
/// As [`check_storage`](super::check_storage), and what the storage says of writing. What cannot be repaired is in the
/// report.
///
/// # Cancel safety
///
/// Whenever the future is dropped, the image is no worse than it was, but for leaks, and can be repaired again.
pub async fn repair_storage<S: Storage, O: CheckObserver>(
    storage: &S,
    what: Repair,
    options: &CheckOptions,
    observer: &mut O,
) -> Result<RepairReport> {
    let target = Target::new(storage);
    let mut tally = Tally::new(observer, Some(Mending::new(what == Repair::All)));
    let mut report = RepairReport::default();
    let end = loop {
        let end = run(storage, &target, what, options, &mut tally, &mut report).await?;
        if end != End::Again {
            break end;
        }
        tally.report = CheckReport::default();
    };
    report.gave_up = end == End::GaveUp;
    if end == End::Done && tally.report.check_errors == 0 && tally.report.corruptions == 0 {
        mark_sound(storage, &target).await?;
    }
    target.flush().await?;
    let mending = fixed(&mut tally);
    report.corruptions_fixed = mending.corruptions_fixed;
    report.leaks_fixed = mending.leaks_fixed;
    report.check = tally.report;
    Ok(report)
}

/// Makes the image in `storage` ready to be opened for writing: one with the dirty bit is repaired, for its refcounts were
/// written lazily and may be wrong.
///
/// # Errors
///
/// [`Error::ReadOnly`] if it is marked as corrupt; `Corrupt` if it is dirty and something cannot even be checked; as
/// [`repair_storage`].
///
/// # Cancel safety
///
/// As [`repair_storage`].
#[cfg(feature = "write")]
pub(crate) async fn make_writable<S: Storage>(storage: &S) -> Result<()> {
    let (header, _) = load_header(storage).await?;
    if header.incompatible.contains(Incompatible::CORRUPT) {
        let reason = "Image is corrupt; cannot be opened read/write";
        return Err(Error::ReadOnly(reason.to_owned()));
    }
    if !header.incompatible.contains(Incompatible::DIRTY) {
        return Ok(());
    }
    let options = CheckOptions::default();
    let report = repair_storage(storage, Repair::All, &options, &mut ()).await?;
    if report.gave_up || report.check.check_errors > 0 {
        return Err(Corrupt::new(CorruptKind::DirtyNotRepaired, Structure::Header).into());
    }
    Ok(())
}

/// What a repair knows of itself.
fn fixed<'t, O>(tally: &'t mut Tally<'_, O>) -> &'t mut Mending {
    tally.mending.get_or_insert_default()
}

/// The image as it stands at one time.
struct Loaded<'s, S> {
    layout: Layout,
    source: Source<'s, S>,
}

impl<'s, S: Storage> Loaded<'s, S> {
    async fn new(storage: &'s S) -> Result<Self> {
        let (header, file_len) = load_header(storage).await?;
        let mut layout = Layout::new(&header, file_len);
        layout.long_extra = true;
        Ok(Self { layout, source: Source::new(storage, file_len) })
    }

    /// Looks for refcount blocks past the end of the file to which it could be extended.
    async fn think_of_growing(&mut self) -> Result<()> {
        let Layout { clusters, cluster_bits, .. } = self.layout;
        let max = clusters.saturating_mul(2).max(GROWN_CLUSTERS_MAX);
        let mut grown = 0;
        let pieces = std::iter::once(Piece { range: self.layout.refcount_table.clone(), what: () });
        self.source
            .each(pieces, |_, bytes, ()| {
                for entry in words(bytes).filter(|entry| entry & TABLE_RESERVED == 0) {
                    let offset = entry & BLOCK_OFFSET_MASK;
                    let cluster = offset >> cluster_bits;
                    if self.layout.is_aligned(offset) && (clusters..max).contains(&cluster) {
                        grown = grown.max(cluster + 1);
                    }
                }
            })
            .await?;
        self.layout.grown_clusters = grown;
        self.layout.cells = self.layout.cells.max(grown);
        Ok(())
    }

    /// Forgets about growing.
    fn stay_short(&mut self) {
        self.layout.grown_clusters = 0;
        self.layout.cells = self.layout.clusters + 1;
    }

    fn check<'c>(
        &'c self,
        inventory: &'c Inventory,
        options: &CheckOptions,
        job: Job<'c, 's, S>,
    ) -> Check<'c, 's, S> {
        let budget = Budget::new(options.memory_bytes_max);
        Check { layout: &self.layout, source: &self.source, inventory, budget, highest: 0, job }
    }
}

/// How a reading of the image ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Done,
    /// The image must be read anew, for its file is longer now.
    Again,
    /// What stands in the way is reported.
    GaveUp,
}

/// Reads the image and repairs it.
async fn run<S: Storage, O: CheckObserver>(
    storage: &S,
    target: &Target<'_, S>,
    what: Repair,
    options: &CheckOptions,
    tally: &mut Tally<'_, O>,
    report: &mut RepairReport,
) -> Result<End> {
    clear_unknown_autoclear(storage, target).await?;
    let mut loaded = Loaded::new(storage).await?;
    let mut snapshots = snapshots::Plan::default();
    if what == Repair::All {
        if let Some(plan) = snapshots::scan(&loaded.layout, &loaded.source, target, tally).await? {
            snapshots = plan;
            loaded = Loaded::new(storage).await?;
        } else {
            loaded.layout.long_extra = false;
        }
        loaded.think_of_growing().await?;
    } else {
        loaded.layout.long_extra = false;
    }

    let fixed_before = fixed(tally).corruptions_fixed;
    tally.report.total_clusters = loaded.layout.total_clusters();
    let mut inventory = Inventory::load(&loaded.layout, &loaded.source, tally).await?;
    if fixed(tally).hides_references {
        tally.report.check_errors = tally.report.check_errors.max(1);
        return Ok(End::GaveUp);
    }
    let tables_max = Budget::new(options.memory_bytes_max).tables_max();
    fixed(tally).zeroes_entries = what == Repair::All && fixed(tally).kept_entries == 0;
    let mut differing: Vec<Range<u64>> = Vec::new();
    let mut check = loaded.check(&inventory, options, Job::Survey(&mut differing));
    check.run(tally, true).await?;
    let mut highest = check.highest;
    let (missing, cut_short) = (fixed(tally).missing, fixed(tally).cut_short);
    if missing > 0 {
        // Who wants errors repaired takes zeros for what is gone of a table. What referred to something past the end of
        // the file may refer to something within it now, so everything is counted again.
        target.grow(loaded.layout.file_len + missing).await?;
        fixed(tally).corruptions_fixed = fixed_before + cut_short;
        fixed(tally).forget();
        return Ok(End::Again);
    }
    if std::mem::take(&mut fixed(tally).zeroes_entries) && fixed(tally).zeroed_entries > 0 {
        let Loaded { layout, source } = &loaded;
        let left = entries::zero(layout, source, &inventory.l1, tables_max, target, tally).await?;
        if left > 0 {
            // What cannot be zeroed refers to something still, so everything is counted again.
            let mending = fixed(tally);
            mending.kept_entries = left;
            mending.corruptions_fixed = fixed_before + mending.zeroed_entries.saturating_sub(left);
            mending.forget();
            return Ok(End::Again);
        }
    }
    tally.report.check_errors += fixed(tally).kept_entries;

    if snapshots.corruptions > 0 && !fixed(tally).rebuild {
        let refcounts = Refcounts { layout: &loaded.layout, source: &loaded.source };
        fixed(tally).rebuild = fixed(tally).past_end
            || snapshots::find_room(&snapshots, &inventory, &refcounts).await?.is_none();
    }
    let mut reserved = None;
    if fixed(tally).rebuild && what == Repair::Leaks {
        // Nothing is changed, not even leaks: their refcounts may be what is broken.
        tally.observer.step(&RepairStep::RebuildNeeded);
        tally.report.check_errors += 1;
        return Ok(End::GaveUp);
    }
    let rewrites_header = fixed(tally).rebuild || snapshots.corruptions > 0;
    if rewrites_header && fixed(tally).header_is_table {
        // What is read as a table would change with the header, and the references with it.
        tally.observer.step(&RepairStep::HeaderShared);
        tally.report.check_errors += 1;
        return Ok(End::GaveUp);
    }
    if fixed(tally).rebuild {
        tally.observer.step(&RepairStep::Rebuilding);
        loaded.stay_short();
        let wanted = if snapshots.corruptions > 0 {
            snapshots::clusters(&snapshots, &loaded.layout)
        } else {
            0
        };
        let Some(clusters) =
            rebuild(&mut loaded, &inventory, options, target, tally, wanted).await?
        else {
            tally.report.check_errors += 1;
            return Ok(End::GaveUp);
        };
        report.rebuilt = true;
        reserved = Some(clusters).filter(|clusters| !clusters.is_empty());
        loaded = Loaded::new(storage).await?;
        let old = std::mem::take(&mut tally.report);
        tally.report.total_clusters = old.total_clusters;
        tally.report.passes = old.passes;
        fixed(tally).forget();
        differing.clear();
        inventory = Inventory::load(&loaded.layout, &loaded.source, tally).await?;
        let leaks_fixed = fixed(tally).leaks_fixed;
        let kept = reserved.clone().unwrap_or_default();
        let job = Job::Mend { target, may: May::LowerRebuilt, differing: &mut differing, kept };
        let mut check = loaded.check(&inventory, options, job);
        check.run(tally, true).await?;
        highest = check.highest;
        let left = tally.report.corruptions;
        let mending = fixed(tally);
        // What the old structures took is no leak of the image's.
        mending.leaks_fixed = leaks_fixed + old.leaks;
        mending.corruptions_fixed += old.corruptions.saturating_sub(left);
    } else if tally.report.leaks > 0 || tally.report.corruptions > 0 {
        let compared = fixed(tally).compared;
        tally.report.check_errors -= compared.check_errors;
        tally.report.corruptions -= compared.corruptions;
        tally.report.leaks -= compared.leaks;
        differing.clear();
        let may = if what == Repair::All { May::LowerAndRaise } else { May::Lower };
        let kept = 0..0;
        let job = Job::Mend { target, may, differing: &mut differing, kept };
        let mut check = loaded.check(&inventory, options, job);
        check.run(tally, false).await?;
        highest = check.highest;
    }
    // Refcounts are raised before a flag says that a cluster may be overwritten.
    target.flush().await?;

    let incomplete_snapshots = fixed(tally).incomplete_snapshots;
    let left = &tally.report;
    let sound =
        left.check_errors == 0 && left.corruptions == incomplete_snapshots && left.leaks == 0;
    let mends = what == Repair::All || sound;
    let refcounts = Refcounts { layout: &loaded.layout, source: &loaded.source };
    for window in differing {
        let last = window.end == loaded.layout.cells;
        let counts = Counts::<FlagCell>::new(&window, 0);
        let pass = Pass::new(&loaded.layout, counts, tally, false);
        let target = mends.then_some(target);
        pass.copied_flags(&refcounts, &inventory.l1, tables_max, last, target).await?;
    }

    if snapshots.corruptions > 0
        && snapshots::store(&snapshots, reserved, &inventory, &refcounts, target, tally).await?
    {
        fixed(tally).forget();
        return Ok(End::Again);
    }
    if tally.report.check_errors == 0 && tally.report.corruptions == 0 {
        // Nothing refers to what is behind the last cluster in use.
        past_end::clear(&refcounts, target, loaded.layout.clusters.max(highest + 1)).await?;
    }
    tally.report.image_end_offset = (highest + 1) << loaded.layout.cluster_bits;
    Ok(End::Done)
}

/// Refcounts as they are read to compare copied flags with them.
#[cfg(not(target_family = "wasm"))]
type FlagCell = u8;
/// Refcounts as they are read to compare copied flags with them.
#[cfg(target_family = "wasm")]
type FlagCell = u64;

/// Builds refcount table and blocks anew and switches to them; returns the clusters that were wanted beside them, or
/// `None` if no refcount table is long enough.
async fn rebuild<S: Storage, O: CheckObserver>(
    loaded: &mut Loaded<'_, S>,
    inventory: &Inventory,
    options: &CheckOptions,
    target: &Target<'_, S>,
    tally: &mut Tally<'_, O>,
    wanted: u64,
) -> Result<Option<Range<u64>>> {
    let Layout { clusters, cluster_bits, file_len, .. } = loaded.layout;
    let mut slack = 0;
    let rebuilt = loop {
        let mut plan = Plan::new(wanted, clusters);
        loaded.check(inventory, options, Job::Plan(&mut plan)).run(tally, false).await?;
        let planned = plan.finish(&loaded.layout);
        let Some(rebuilt) = planned.filter(|_| slack <= SLACK_LEN_MAX >> cluster_bits) else {
            tally.observer.step(&RepairStep::RebuildImpossible);
            return Ok(None);
        };
        if rebuilt.end() << cluster_bits <= loaded.layout.file_len {
            break rebuilt;
        }
        // What refers to something past the end of the file would refer to the new structures, if they came to lie there:
        // as far as the file grows, these references count.
        loaded.layout.grow(rebuilt.end() + slack);
        slack = (slack * 4).max(64);
    };
    if loaded.layout.file_len > file_len {
        target.grow(loaded.layout.file_len).await?;
    }
    let job = Job::Rebuild { target, rebuilt: &rebuilt };
    loaded.check(inventory, options, job).run(tally, false).await?;
    rebuilt.switch(&loaded.layout, target).await?;
    Ok(Some(rebuilt.reserved))
}

/// Clears the features that a writer who does not know them must clear.
async fn clear_unknown_autoclear<S: Storage>(storage: &S, target: &Target<'_, S>) -> Result<()> {
    let (header, _) = load_header(storage).await?;
    let unknown = header.autoclear.unknown();
    if unknown == 0 {
        return Ok(());
    }
    let known = header.autoclear.raw() & !unknown;
    target.write(HEADER_AUTOCLEAR, &known.to_be_bytes()).await?;
    target.flush().await
}

/// Clears the dirty and the corrupt bit.
async fn mark_sound<S: Storage>(storage: &S, target: &Target<'_, S>) -> Result<()> {
    let (header, _) = load_header(storage).await?;
    let Header { version, incompatible, .. } = header;
    let sound = incompatible.with(Incompatible::DIRTY, false).with(Incompatible::CORRUPT, false);
    if version == Version::V2 || sound == incompatible {
        return Ok(());
    }
    // Cancel: the image is sound whatever these bits say.
    target.flush().await?;
    target.write(HEADER_INCOMPATIBLE, &sound.raw().to_be_bytes()).await
}
