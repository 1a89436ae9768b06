//! The survey: what every host cluster is used for, before the first change of an image.
//!
//! It walks the tables as a check does, and keeps for each cluster what writers must know instead of the count; see
//! [`Ownership`] for what they do with it. What it cannot tell, it refuses: where a table is missing, cut short or not to
//! be found, nobody knows which clusters it names, and whatever is written could be theirs.
//!
//! | found | then |
//! |---|---|
//! | refcount lower than the references | the cluster is pinned: it stays in use whatever becomes of the refcount |
//! | copied flag on data that something else refers to | the cluster is shared: it is copied, not written to in place |
//! | a table that is read as something else too | it is contested: not changed in place |
//! | data past the end of the file | reads as zeros, and the cluster is handed out to nobody |
//! | a missing refcount block | its clusters are pinned if they are in use |
//! | a table past the end of the file or cut short, a refcount block that cannot be found, a broken snapshot table or bitmap directory | [`Error::Corrupt`]: the image must be repaired first |
//!
//! Changes wait for the survey: what it reads must not change below it. Reading the metadata of a disk of 1 TiB takes a
//! third of a second where it is cached.

use std::ops::Range;

use super::counts::{Cell, Counts};
use super::inventory::Inventory;
use super::layout::Layout;
use super::refcounts::{Refcounts, Run, refcount};
use super::report::{CheckObserver, Finding, FindingKind, Structure};
use super::source::Source;
use super::walk::{COMPRESSED, Pass, SECTOR_LEN, Tally};
use super::{Budget, len};
use crate::error::{Corrupt, CorruptKind, Error, Result};
use crate::format::Header;
use crate::image::layer::Qcow2Layer;
use crate::image::ownership::{Owner, Ownership};
use crate::storage::Storage;

/// Memory for the counts of a window and the lists of tables: 64 Mi clusters at once, 4 TiB with clusters of 64 KiB.
const MEMORY_BYTES: u64 = 128 << 20;
/// Windows of host clusters, for each of which all metadata is read. A file that needs more is not written to.
const WINDOWS_MAX: usize = 64;
/// What [`Ownership`] may take beside one byte for each byte of L2 tables: enough for a cluster in use in every chunk of
/// 2 TiB.
const OWNERSHIP_LEN_BYTES_MIN: u64 = 16 << 20;
/// Clusters of references that a check does not count. An image with more is not written to.
const UNCOUNTED_MAX: usize = 4096;
/// Windows start at multiples of this, so that every refcount block can be read from a whole byte on.
const WINDOW_ALIGNMENT: u64 = 64;

impl<S: Storage> Qcow2Layer<S> {
    /// Finds out what the host clusters of this layer's image file are used for: see [`survey`].
    ///
    /// # Errors
    /// As [`survey`].
    ///
    /// # Cancel safety
    /// It only reads: dropping the future has no effect.
    pub(crate) async fn survey(&self) -> Result<Ownership> {
        survey(self.metadata.storage(), &self.header.get()).await
    }
}

/// Finds out what the host clusters of the image in `storage`, whose header is `header`, are used for. Nothing may change
/// the image's metadata meanwhile, and nothing that was changed before may be missing in the storage.
///
/// # Errors
/// [`Error::Corrupt`], code `write-unsafe`, if the image is too damaged to know; [`Error::LimitExceeded`] if that would
/// take too much memory or time; [`Error::Storage`].
///
/// # Cancel safety
/// It only reads: dropping the future has no effect.
pub(super) async fn survey<S: Storage>(storage: &S, header: &Header) -> Result<Ownership> {
    let file_len = len(storage).await?;
    let layout = Layout::new(header, file_len);
    let source = Source::new(storage, file_len);
    let mut notes = Notes::new(&layout);
    let mut tally = Tally::new(&mut notes, None);
    let inventory = Inventory::load(&layout, &source, &mut tally).await?;
    let mut survey = Survey {
        layout: &layout,
        source: &source,
        inventory: &inventory,
        budget: Budget::new(MEMORY_BYTES),
        ownership: Ownership::new(OWNERSHIP_LEN_BYTES_MIN),
    };
    let done = survey.narrow(&mut tally).await?;
    if done < layout.cells {
        survey.passes::<u64>(&mut tally, done).await?;
    }
    let mut ownership = survey.ownership;
    notes.sound()?;
    for cluster in notes.uncounted {
        ownership.doubt();
        ownership.pin(cluster);
        match ownership.owner(cluster) {
            Owner::Metadata => ownership.contest(cluster)?,
            Owner::Free | Owner::Data | Owner::Shared => {
                ownership.mark(cluster, Owner::Shared)?;
            }
        }
    }
    if notes.doubt {
        ownership.doubt();
    }
    ownership.finish();
    Ok(ownership)
}

/// What the walk finds: whether it matters to a writer.
struct Notes {
    cluster_bits: u32,
    /// The first finding that leaves open which clusters are in use.
    fatal: Option<Finding>,
    doubt: bool,
    /// Clusters that references touch which a check does not count: past the end of the file, and compressed clusters that
    /// cannot be.
    uncounted: Vec<u64>,
}

impl Notes {
    fn new(layout: &Layout) -> Self {
        Self { cluster_bits: layout.cluster_bits, fatal: None, doubt: false, uncounted: Vec::new() }
    }

    /// Notes a reference that a check does not count.
    fn refer(&mut self, offset: u64, len: u64) {
        let last = offset.saturating_add(len.saturating_sub(1));
        let clusters = offset >> self.cluster_bits..=last >> self.cluster_bits;
        self.uncounted.extend(clusters.take(UNCOUNTED_MAX + 1 - self.uncounted.len()));
    }

    /// Whether it is known which clusters are in use.
    fn sound(&self) -> Result<()> {
        if let Some(finding) = &self.fatal {
            let text = finding.to_string();
            let reason = text
                .strip_prefix("ERROR")
                .map_or(&*text, |rest| rest.trim_start_matches([':', ' ']));
            let kind = CorruptKind::WriteUnsafe { reason: reason.to_owned() };
            return Err(Corrupt::new(kind, structure(finding.structure)).at(finding.offset).into());
        }
        if self.uncounted.len() > UNCOUNTED_MAX {
            return Err(Error::LimitExceeded {
                what: "references past the end of the file and the like",
                value: self.uncounted.len() as u64,
                limit: UNCOUNTED_MAX as u64,
            });
        }
        Ok(())
    }
}

impl CheckObserver for Notes {
    fn finding(&mut self, finding: &Finding) {
        use FindingKind as Kind;
        let fatal = match finding.kind {
            Kind::PastEnd { offset, len }
                if matches!(finding.structure, Structure::L2Table | Structure::BitmapTable) =>
            {
                self.refer(offset, len);
                false
            }
            // A reader takes it for what it is.
            Kind::CompressedWithBitmap { entry, .. } => {
                let offset_bits = 62 - (self.cluster_bits - 8);
                let offset = entry & ((1 << offset_bits) - 1);
                let sectors = ((entry & (COMPRESSED - 1)) >> offset_bits) + 1;
                self.refer(offset, sectors * SECTOR_LEN - offset % SECTOR_LEN);
                false
            }
            Kind::PastEnd { .. }
            | Kind::CutShort { .. }
            | Kind::SnapshotTableBroken { .. }
            | Kind::SnapshotL1Unaligned { .. }
            | Kind::SnapshotL1TooLarge { .. }
            | Kind::BitmapDirectoryBroken { .. }
            | Kind::RefcountTableReserved { .. }
            | Kind::RefcountBlockUnaligned { .. }
            | Kind::RefcountBlockOutside { .. }
            | Kind::RefcountUnknown { .. } => true,
            // A rule of version 3 that old snapshots break.
            Kind::SnapshotIncomplete { .. } => return,
            _ => false,
        };
        self.doubt = true;
        if fatal && self.fatal.is_none() {
            self.fatal = Some(finding.clone());
        }
    }
}

/// The structure in the words of the errors.
fn structure(structure: Structure) -> crate::error::Structure {
    use crate::error::Structure as Said;
    match structure {
        Structure::Header => Said::Header,
        Structure::L1Table => Said::L1Table,
        Structure::SnapshotL1Table => Said::SnapshotL1Table,
        Structure::L2Table | Structure::Data => Said::L2Table,
        Structure::SnapshotTable => Said::SnapshotTable,
        Structure::RefcountTable => Said::RefcountTable,
        Structure::RefcountBlock => Said::RefcountBlock,
        Structure::CryptoHeader => Said::CryptoHeader,
        Structure::BitmapDirectory => Said::BitmapDirectory,
        Structure::BitmapTable | Structure::BitmapData => Said::BitmapTable,
    }
}

struct Survey<'c, 's, S> {
    layout: &'c Layout,
    source: &'c Source<'s, S>,
    inventory: &'c Inventory,
    budget: Budget,
    ownership: Ownership,
}

impl<S: Storage> Survey<'_, '_, S> {
    /// Counts in a byte a cluster as long as that suffices, and returns up to which cluster it did.
    #[cfg(not(target_family = "wasm"))]
    async fn narrow(&mut self, tally: &mut Tally<'_, Notes>) -> Result<u64> {
        self.passes::<u8>(tally, 0).await
    }

    /// In a browser the code for narrow counts would be too much of the engine: see the check.
    #[cfg(target_family = "wasm")]
    async fn narrow(&mut self, _tally: &mut Tally<'_, Notes>) -> Result<u64> {
        Ok(0)
    }

    /// Surveys window by window from cluster `from` on, and returns up to which cluster: not all if counts of this width
    /// do not suffice.
    async fn passes<C: Cell>(&mut self, tally: &mut Tally<'_, Notes>, from: u64) -> Result<u64> {
        for window in self.windows(from, size_of::<C>() as u64)? {
            let counts = Counts::<C>::new(&window, self.budget.maps);
            let mut pass = Pass::new(self.layout, counts, tally, window.start == 0);
            pass.count_inventory(self.source, self.inventory).await?;
            pass.mark_refcount_blocks(self.source).await?;
            pass.tally.observer.sound()?;
            let mut tables_len = 0;
            let progress = |_: &mut Notes, _, total: u64| tables_len = tables_len.max(total);
            let tables_max = self.budget.tables_max();
            pass.walk(self.source, &self.inventory.l1, tables_max, progress).await?;
            pass.tally.observer.sound()?;
            if pass.counts.overflowed() {
                return Ok(window.start);
            }
            self.ownership.allow(OWNERSHIP_LEN_BYTES_MIN.saturating_add(tables_len));
            for cluster in pass.counts.take_shared().into_keys() {
                self.ownership.contest(cluster)?;
                pass.tally.observer.doubt = true;
            }
            pass.count_refcount_blocks(self.source).await?;
            pass.tally.observer.sound()?;
            self.note(&pass.counts, window).await?;
        }
        Ok(self.layout.cells)
    }

    /// Notes the owners of the window's clusters.
    async fn note<C: Cell>(&mut self, counts: &Counts<C>, window: Range<u64>) -> Result<()> {
        let order = self.layout.refcount_order;
        let refcounts = Refcounts { layout: self.layout, source: self.source };
        let ownership = &mut self.ownership;
        let mut noted = Ok(());
        refcounts
            .each(window, |run, entries| {
                if noted.is_ok() {
                    noted = note_run(ownership, counts, run, |index| match &entries {
                        Run::Zero | Run::Unknown => 0,
                        Run::Entries(bytes) => refcount(bytes, order, index),
                    });
                }
            })
            .await?;
        noted
    }

    /// The windows of host clusters, each of which fits the memory.
    fn windows(&self, from: u64, cell_len: u64) -> Result<Vec<Range<u64>>> {
        let end = self.layout.cells;
        let fitting = (self.budget.counts / cell_len).max(WINDOW_ALIGNMENT);
        let count = (end - from).div_ceil(fitting);
        if count > WINDOWS_MAX as u64 {
            return Err(Error::LimitExceeded {
                what: "clusters of the image file",
                value: end,
                limit: WINDOWS_MAX as u64 * fitting,
            });
        }
        let starts = (0..count).map(|number| from + number * fitting);
        Ok(starts.map(|start| start..end.min(start + fitting)).collect())
    }
}

/// Notes the owners of a run of clusters whose refcounts `refcount_at` tells.
fn note_run<C: Cell>(
    ownership: &mut Ownership,
    counts: &Counts<C>,
    run: Range<u64>,
    refcount_at: impl Fn(u64) -> u64,
) -> Result<()> {
    let within = counts.within(&run);
    for cluster in within {
        // OK to cast: within the window, which is in memory.
        #[allow(clippy::cast_possible_truncation)]
        let index = (cluster - counts.first) as usize;
        let cell = counts.cells[index];
        let is_metadata = cell.has(C::METADATA);
        if cell.bits() & C::COUNT == 0 && !is_metadata {
            continue;
        }
        let count = counts.count(index);
        let owner = match count {
            _ if is_metadata => Owner::Metadata,
            1 => Owner::Data,
            _ => Owner::Shared,
        };
        ownership.mark(cluster, owner)?;
        if refcount_at(cluster - run.start) < count {
            ownership.doubt();
            ownership.pin(cluster);
        }
        if count > 1 && cell.has(C::COPIED) {
            ownership.doubt();
            if is_metadata {
                ownership.contest(cluster)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{Geometry, HostOffset, Snapshot, Version};
    use crate::storage::MemoryStorage;
    use futures::executor::block_on;

    const CLUSTER: usize = 512;
    const COPIED: u64 = 1 << 63;
    /// Clusters of the image: header, refcount table, refcount block, L1 table, L2 table, then data.
    const TABLE: usize = 1;
    const BLOCK: usize = 2;
    const L1: usize = 3;
    const L2: usize = 4;
    const DATA: usize = 5;

    /// An image of 16 clusters of 512 bytes with three clusters of data, sound as it is.
    struct Image {
        header: Header,
        bytes: Vec<u8>,
    }

    impl Image {
        fn new() -> Self {
            let geometry = Geometry::new(9, false, 4).unwrap();
            let mut header = Header::new(Version::V3, geometry);
            header.size = 64 << 10;
            header.l1_entries = 2;
            header.l1_table_offset = offset(L1);
            header.refcount_table_offset = offset(TABLE);
            header.refcount_table_clusters = 1;
            let mut image = Self { header, bytes: vec![0; 16 * CLUSTER] };
            image.word(TABLE, 0, at(BLOCK));
            image.word(L1, 0, at(L2) | COPIED);
            for n in 0..3 {
                image.word(L2, n, at(DATA + n) | COPIED);
            }
            for cluster in 0..DATA + 3 {
                image.refcount(cluster, 1);
            }
            image
        }

        fn word(&mut self, cluster: usize, index: usize, value: u64) -> &mut Self {
            let start = cluster * CLUSTER + index * 8;
            self.bytes[start..start + 8].copy_from_slice(&value.to_be_bytes());
            self
        }

        fn refcount(&mut self, cluster: usize, value: u16) -> &mut Self {
            let start = BLOCK * CLUSTER + cluster * 2;
            self.bytes[start..start + 2].copy_from_slice(&value.to_be_bytes());
            self
        }

        /// A snapshot with an L1 table of its own at cluster 9, and the snapshot table at 8.
        fn snapshot(&mut self) -> &mut Self {
            let snapshot = Snapshot {
                l1_table_offset: offset(9),
                l1_entries: 2,
                id: b"1".to_vec(),
                name: b"s".to_vec(),
                date_sec: 0,
                date_nsec: 0,
                vm_clock_nsec: 0,
                vm_state_len: 0,
                disk_size: Some(64 << 10),
                icount: None,
                extra: vec![0; Snapshot::EXTRA_LEN],
            };
            let mut table = Vec::new();
            snapshot.encode(&mut table).unwrap();
            self.bytes[8 * CLUSTER..8 * CLUSTER + table.len()].copy_from_slice(&table);
            self.header.snapshot_count = 1;
            self.header.snapshot_table_offset = offset(8);
            self.refcount(8, 1).refcount(9, 1)
        }

        fn survey(&self) -> Result<Ownership> {
            block_on(survey(&MemoryStorage::from(self.bytes.clone()), &self.header))
        }

        /// The owners of the first clusters: `.` free, `d` data, `s` shared, `m` metadata, `X` contested.
        fn owners(&self) -> (String, bool) {
            let ownership = self.survey().unwrap();
            assert!(ownership.is_known());
            let letter = |cluster| match ownership.owner(cluster) {
                Owner::Metadata if ownership.is_contested(cluster) => 'X',
                Owner::Free => '.',
                Owner::Data => 'd',
                Owner::Shared => 's',
                Owner::Metadata => 'm',
            };
            ((0..18).map(letter).collect(), ownership.is_sound())
        }

        /// Expects these owners and a survey that found contradictions, and the clusters that are never released.
        #[track_caller]
        fn assert_unsound(&self, owners: &str, pinned: &[u64]) {
            assert_eq!(self.owners(), (owners.to_owned(), false));
            let ownership = self.survey().unwrap();
            let found: Vec<_> = (0..18).filter(|cluster| ownership.is_pinned(*cluster)).collect();
            assert_eq!(found, pinned);
        }

        #[track_caller]
        fn assert_refused(&self, text: &str) {
            match self.survey().unwrap_err() {
                Error::Corrupt(corrupt) => {
                    assert_eq!(corrupt.code(), "write-unsafe");
                    assert!(corrupt.to_string().contains(text), "{corrupt}");
                }
                other => panic!("{other}"),
            }
        }
    }

    fn at(cluster: usize) -> u64 {
        (cluster * CLUSTER) as u64
    }

    fn offset(cluster: usize) -> HostOffset {
        HostOffset::new(at(cluster))
    }

    #[test]
    fn sound_image_has_one_owner_for_each_cluster() {
        assert_eq!(Image::new().owners(), ("mmmmmddd..........".to_owned(), true));
        // A snapshot that shares the L2 table and its data, as QEMU takes them.
        let mut image = Image::new();
        image.snapshot().word(9, 0, at(L2)).word(L1, 0, at(L2)).refcount(L2, 2);
        for n in 0..3 {
            image.word(L2, n, at(DATA + n)).refcount(DATA + n, 2);
        }
        assert_eq!(image.owners(), ("mmmmmsssmm........".to_owned(), true));
    }

    #[test]
    fn compressed_streams_share_clusters() {
        let mut image = Image::new();
        // Both start in cluster 9, the second reaches into cluster 10.
        image.word(L2, 5, 1 << 62 | at(9)).word(L2, 6, 1 << 62 | 1 << 61 | (at(9) + 100));
        image.refcount(9, 2).refcount(10, 1);
        assert_eq!(image.owners(), ("mmmmmddd.sd.......".to_owned(), true));
        image.refcount(9, 1).assert_unsound("mmmmmddd.sd.......", &[9]);
    }

    #[test]
    fn refcounts_that_are_too_low_pin_what_they_belong_to() {
        for cluster in [0, TABLE, BLOCK, L1, L2, DATA] {
            let mut image = Image::new();
            image.refcount(cluster, 0);
            image.assert_unsound("mmmmmddd..........", &[cluster as u64]);
        }
        let mut image = Image::new();
        image.word(TABLE, 0, 0);
        // The block itself is then free, and so are those that nothing needs.
        image.assert_unsound("mm.mmddd..........", &[0, 1, 3, 4, 5, 6, 7]);
    }

    #[test]
    fn data_of_two_entries_is_shared_whatever_they_say() {
        let mut image = Image::new();
        image.word(L2, 9, at(DATA) | COPIED);
        image.assert_unsound("mmmmmsdd..........", &[5]);
        image.refcount(DATA, 2).assert_unsound("mmmmmsdd..........", &[]);
        let mut image = Image::new();
        image.word(L1, 1, at(L2) | COPIED).refcount(L2, 2);
        // Every entry of the table counts twice.
        image.assert_unsound("mmmmXsss..........", &[5, 6, 7]);
    }

    #[test]
    fn metadata_that_something_points_to_is_contested() {
        for cluster in [TABLE, BLOCK, L1, L2] {
            let mut image = Image::new();
            image.word(L2, 9, at(cluster) | COPIED);
            let mut owners = "mmmmmddd..........".to_owned();
            owners.replace_range(cluster..=cluster, "X");
            image.assert_unsound(&owners, &[cluster as u64]);
        }
        let mut image = Image::new();
        image.word(L2, 9, 1 << 62 | 100);
        image.assert_unsound("Xmmmmddd..........", &[0]);
        let mut image = Image::new();
        image.word(L1, 1, at(DATA) | COPIED);
        image.assert_unsound("mmmmmXdd..........", &[5]);
        // Both tables are one: the refcounts of the image are its data.
        let mut image = Image::new();
        image.word(TABLE, 1, at(DATA));
        image.assert_unsound("mmmmmXdd..........", &[5]);
        let mut image = Image::new();
        image.word(TABLE, 1, at(L1));
        image.assert_unsound("mmmXmddd..........", &[3]);
    }

    #[test]
    fn data_past_the_end_is_handed_out_to_nobody() {
        let mut image = Image::new();
        image.word(L2, 9, at(17) | COPIED);
        image.assert_unsound("mmmmmddd.........s", &[17]);
        let mut image = Image::new();
        for n in 3..64 {
            image.word(L2, n, at(n * 1000) | COPIED);
        }
        assert_eq!(image.survey().unwrap().owner(63_000), Owner::Shared);
        // In the file and past its end.
        let mut image = Image::new();
        image.word(L2, 9, 1 << 62 | 3 << 61 | at(15));
        image.assert_unsound("mmmmmddd.......ss.", &[15, 16]);
    }

    #[test]
    fn image_whose_clusters_cannot_be_known_is_refused() {
        let mut image = Image::new();
        image.word(L1, 1, at(17) | COPIED);
        image.assert_refused("L1 table at 0x608: writing could destroy what the image holds");
        let mut image = Image::new();
        image.word(TABLE, 1, at(17));
        image.assert_refused("refcount block 1 is outside image");
        let mut image = Image::new();
        image.word(TABLE, 1, at(9) + 8);
        image.assert_refused("refcount table entry 1 has reserved bits set");
        let mut image = Image::new();
        image.word(L1, 1, at(15) | COPIED);
        image.bytes.truncate(16 * CLUSTER - 1);
        image.assert_refused("the file ends 1 bytes before the structure does");
        let mut image = Image::new();
        image.snapshot();
        image.header.snapshot_count = 2;
        image.bytes.truncate(9 * CLUSTER);
        image.assert_refused("snapshot");
        let mut image = Image::new();
        image.snapshot().word(8, 0, at(9) + 1);
        image.assert_refused("L1 table is not cluster aligned");
    }
}
