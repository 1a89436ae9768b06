//! The last check before a write: does it hit metadata? QEMU's overlap checks, with its options, words and consequences.
//!
//! [`Ownership`](super::ownership::Ownership) tells at once that a cluster is metadata. Only then does this file look for
//! what it is, to say so in QEMU's words, and marks the image as corrupt if the options ask for that.
//!
//! Matches qcow2-refcount.c:qcow2_check_metadata_overlap, qcow2_pre_write_overlap_check and
//! qcow2.c:qcow2_signal_corruption.

use std::ops::Range;

use crate::error::{Corrupt, CorruptKind, Error, Result, Structure};
use crate::format::{Incompatible, L1Entry, RefcountTableEntry, Snapshot, Version};
use crate::storage::{Buf, Storage};

use super::layer::Qcow2Layer;

/// Which metadata is looked at before a write: QEMU's `overlap-check`.
///
/// Whatever is asked for here, nothing is written over metadata. A write that would hit metadata that is looked at marks the
/// image as corrupt, as in QEMU; one that would hit other metadata fails and leaves no mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct OverlapChecks(u16);

macro_rules! overlaps {
    ($($(#[$meta:meta])* $variant:ident $constant:ident $bit:literal $option:literal $name:literal;)*) => {
        /// What a write would hit.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Overlap {
            $($(#[$meta])* $variant = $bit,)*
        }

        impl Overlap {
            const EVERY: &'static [Self] = &[$(Self::$variant),*];

            /// QEMU's name for it in messages.
            pub(crate) const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// Its option, behind `overlap-check.`.
            const fn option(self) -> &'static str {
                match self { $(Self::$variant => $option,)* }
            }
        }

        impl OverlapChecks {
            $($(#[$meta])* pub const $constant: Self = Self(1 << $bit);)*
        }
    };
}

overlaps! {
    /// `main-header`: the first cluster.
    MainHeader MAIN_HEADER 0 "main-header" "qcow2_header";
    /// `active-l1`: the active L1 table.
    ActiveL1 ACTIVE_L1 1 "active-l1" "active L1 table";
    /// `active-l2`: the L2 tables that the active L1 table names.
    ActiveL2 ACTIVE_L2 2 "active-l2" "active L2 table";
    /// `refcount-table`: the refcount table.
    RefcountTable REFCOUNT_TABLE 3 "refcount-table" "refcount table";
    /// `refcount-block`: the refcount blocks.
    RefcountBlock REFCOUNT_BLOCK 4 "refcount-block" "refcount block";
    /// `snapshot-table`: the snapshot table.
    SnapshotTable SNAPSHOT_TABLE 5 "snapshot-table" "snapshot table";
    /// `inactive-l1`: the snapshots' L1 tables.
    InactiveL1 INACTIVE_L1 6 "inactive-l1" "inactive L1 table";
    /// `inactive-l2`: the L2 tables that these name.
    InactiveL2 INACTIVE_L2 7 "inactive-l2" "inactive L2 table";
    /// `bitmap-directory`: the bitmap directory.
    BitmapDirectory BITMAP_DIRECTORY 8 "bitmap-directory" "bitmap directory";
}

impl OverlapChecks {
    /// Template `none`.
    pub const NONE: Self = Self(0);
    /// Template `constant`: what has a fixed place.
    pub const CONSTANT: Self = Self(
        Self::MAIN_HEADER.0
            | Self::ACTIVE_L1.0
            | Self::REFCOUNT_TABLE.0
            | Self::SNAPSHOT_TABLE.0
            | Self::BITMAP_DIRECTORY.0,
    );
    /// Template `cached`, the default: what QEMU knows without reading.
    pub const CACHED: Self =
        Self(Self::CONSTANT.0 | Self::ACTIVE_L2.0 | Self::REFCOUNT_BLOCK.0 | Self::INACTIVE_L1.0);
    /// Template `all`.
    pub const ALL: Self = Self(Self::CACHED.0 | Self::INACTIVE_L2.0);

    const TEMPLATES: [(&'static str, Self); 4] = [
        ("none", Self::NONE),
        ("constant", Self::CONSTANT),
        ("cached", Self::CACHED),
        ("all", Self::ALL),
    ];

    /// The checks as bits.
    pub(super) const fn bits(self) -> u16 {
        self.0
    }

    /// The checks with these bits.
    pub(super) const fn from_bits(bits: u16) -> Self {
        Self(bits)
    }

    /// Returns whether all of these are looked at.
    #[must_use]
    pub const fn contains(self, checks: Self) -> bool {
        self.0 & checks.0 == checks.0
    }

    /// Returns the checks with these on or off.
    #[must_use]
    pub const fn with(self, checks: Self, on: bool) -> Self {
        if on { Self(self.0 | checks.0) } else { Self(self.0 & !checks.0) }
    }

    /// Parses QEMU's options: `overlap-check` or `overlap-check.template` with the name of a template, and
    /// `overlap-check.main-header` and so on with `on` or `off`, whatever their order. Of several values of one option the
    /// last counts.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] in QEMU's words.
    pub fn parse<'o>(options: impl IntoIterator<Item = (&'o str, &'o str)>) -> Result<Self> {
        let invalid = |text: String| Err(Error::InvalidArgument(text));
        let (mut short, mut long) = (None, None);
        let mut single = Vec::new();
        for (option, value) in options {
            match option {
                "overlap-check" => short = Some(value),
                "overlap-check.template" => long = Some(value),
                _ => {
                    let name = option.strip_prefix("overlap-check.");
                    let Some(overlap) =
                        Overlap::EVERY.iter().find(|overlap| Some(overlap.option()) == name)
                    else {
                        return invalid(format!(
                            "Block format 'qcow2' does not support the option '{option}'"
                        ));
                    };
                    let on = match value {
                        "on" => true,
                        "off" => false,
                        _ => {
                            return invalid(format!("Parameter '{option}' expects 'on' or 'off'"));
                        }
                    };
                    single.push((overlap.bit(), on));
                }
            }
        }
        if let (Some(short), Some(long)) = (short, long)
            && short != long
        {
            return invalid(format!(
                "Conflicting values for qcow2 options 'overlap-check' ('{short}') and 'overlap-check.template' ('{long}')"
            ));
        }
        let template = short.or(long).unwrap_or("cached");
        let Some(&(_, checks)) = Self::TEMPLATES.iter().find(|(name, _)| *name == template) else {
            return invalid(format!(
                "Unsupported value '{template}' for qcow2 option 'overlap-check'. Allowed are any of the following: \
                 none, constant, cached, all"
            ));
        };
        Ok(single.into_iter().fold(checks, |checks, (bit, on)| checks.with(bit, on)))
    }
}

impl Default for OverlapChecks {
    /// [`OverlapChecks::CACHED`].
    fn default() -> Self {
        Self::CACHED
    }
}

impl Overlap {
    const fn bit(self) -> OverlapChecks {
        OverlapChecks(1 << self as u16)
    }

    /// The error for a write at `offset` of the image file that would hit this.
    pub(crate) fn error(self, offset: u64) -> Error {
        let structure = match self {
            Self::MainHeader => Structure::Header,
            Self::ActiveL1 => Structure::L1Table,
            Self::ActiveL2 | Self::InactiveL2 => Structure::L2Table,
            Self::RefcountTable => Structure::RefcountTable,
            Self::RefcountBlock => Structure::RefcountBlock,
            Self::SnapshotTable => Structure::SnapshotTable,
            Self::InactiveL1 => Structure::SnapshotL1Table,
            Self::BitmapDirectory => Structure::BitmapDirectory,
        };
        let kind = CorruptKind::InvalidWrite { on: "metadata", with: self.name() };
        Corrupt::new(kind, structure).at(offset).into()
    }
}

impl<S: Storage> Qcow2Layer<S> {
    /// Refuses a write of guest data to `range` of the image file, a cluster of which the survey knows as metadata:
    /// finds out what it is, marks the image as corrupt if `checks` ask for that, and returns the error to fail with. The
    /// caller makes the image read-only if [`Refusal::marked`].
    ///
    /// Takes the place of a writer of the header: no other may be at it.
    ///
    /// # Cancel safety
    /// The mark may be missing; the image is as it was else.
    pub(crate) async fn refuse_overlap(
        &self,
        checks: OverlapChecks,
        range: Range<u64>,
    ) -> Result<Refusal> {
        match self.overlap(OverlapChecks::ALL, range.clone()).await? {
            Some(overlap) => {
                let marked = checks.contains(overlap.bit());
                if marked {
                    self.mark_corrupt().await?;
                }
                Ok(Refusal { error: overlap.error(range.start), marked })
            }
            // A bitmap's table or data, the encryption header, or what became metadata a moment ago.
            None => {
                let kind = CorruptKind::InvalidWrite { on: "metadata", with: "metadata" };
                let corrupt = Corrupt::new(kind, Structure::L2Table).at(range.start);
                Ok(Refusal { error: corrupt.into(), marked: false })
            }
        }
    }

    /// Finds the metadata among `checks` that `range` of the image file hits, in whole clusters. The first counts, in
    /// QEMU's order.
    ///
    /// # Errors
    /// The storage's.
    pub(crate) async fn overlap(
        &self,
        checks: OverlapChecks,
        range: Range<u64>,
    ) -> Result<Option<Overlap>> {
        if range.is_empty() {
            return Ok(None);
        }
        let cluster_size = self.geometry.cluster_size();
        let start = self.geometry.align_down(range.start);
        let end = self.geometry.align_up(range.end).unwrap_or(u64::MAX);
        let hits =
            |offset: u64, len: u64| len > 0 && offset < end && start < offset.saturating_add(len);
        let wants = |overlap: Overlap| checks.contains(overlap.bit());
        let header = self.header.get();
        let snapshots = self.snapshots.get();

        if wants(Overlap::MainHeader) && range.start < cluster_size {
            return Ok(Some(Overlap::MainHeader));
        }
        if wants(Overlap::ActiveL1) && hits(header.l1_table_offset.get(), header.l1_table_len()) {
            return Ok(Some(Overlap::ActiveL1));
        }
        let (table, table_len) = (header.refcount_table_offset.get(), header.refcount_table_len());
        if wants(Overlap::RefcountTable) && hits(table, table_len) {
            return Ok(Some(Overlap::RefcountTable));
        }
        if wants(Overlap::SnapshotTable)
            && hits(header.snapshot_table_offset.get(), snapshot_table_len(&snapshots))
        {
            return Ok(Some(Overlap::SnapshotTable));
        }
        let inactive =
            |snapshot: &Snapshot| hits(snapshot.l1_table_offset.get(), snapshot.l1_table_len());
        if wants(Overlap::InactiveL1) && snapshots.iter().any(inactive) {
            return Ok(Some(Overlap::InactiveL1));
        }
        let is_l2 = |raw: u64| {
            let table = L1Entry::from_raw(raw).l2_table();
            table.is_some_and(|table| hits(table.get(), cluster_size))
        };
        if wants(Overlap::ActiveL2) && (0..self.l1.len()).any(|index| is_l2(self.l1.get(index))) {
            return Ok(Some(Overlap::ActiveL2));
        }
        if wants(Overlap::RefcountBlock) {
            let is_block = |raw: u64| {
                let block = RefcountTableEntry::from_raw(raw).block();
                block.is_some_and(|block| hits(block.get(), cluster_size))
            };
            if self.any_word(table, table_len, is_block).await? {
                return Ok(Some(Overlap::RefcountBlock));
            }
        }
        if wants(Overlap::InactiveL2) {
            for snapshot in snapshots.iter() {
                let (table, len) = (snapshot.l1_table_offset.get(), snapshot.l1_table_len());
                if self.any_word(table, len, is_l2).await? {
                    return Ok(Some(Overlap::InactiveL2));
                }
            }
        }
        if wants(Overlap::BitmapDirectory)
            && header
                .bitmaps()
                .is_some_and(|bitmaps| hits(bitmaps.directory_offset.get(), bitmaps.directory_len))
        {
            return Ok(Some(Overlap::BitmapDirectory));
        }
        Ok(None)
    }

    /// Sets the corrupt bit in the header, durably, and publishes the header that has it. An image of version 2 has no
    /// such bit: there nothing is written, as in QEMU.
    ///
    /// Takes the place of a writer of the header: no other may be at it.
    ///
    /// # Errors
    /// The storage's.
    ///
    /// # Cancel safety
    /// The bit is set or not, and may not be durable.
    pub(crate) async fn mark_corrupt(&self) -> Result<()> {
        let header = self.header.get();
        if header.version == Version::V2 || header.incompatible.contains(Incompatible::CORRUPT) {
            return Ok(());
        }
        let mut marked = (*header).clone();
        marked.incompatible = marked.incompatible.with(Incompatible::CORRUPT, true);
        let storage = self.metadata.storage();
        let limits = storage.limits();
        // The field lies within the first 512 bytes, which is a sector of every device.
        let len = usize::try_from(limits.request_alignment).unwrap_or(usize::MAX).max(512);
        let memory_alignment = usize::try_from(limits.memory_alignment.max(1)).unwrap_or(1);
        let buf = Buf::aligned(len, memory_alignment);
        let fail = |operation| move |error| Error::storage(operation, 0, len as u64, error);
        let mut buf = storage.read_at(buf, 0).await.map_err(fail("read"))?;
        buf[INCOMPATIBLE_FEATURES].copy_from_slice(&marked.incompatible.raw().to_be_bytes());
        storage.write_at(buf, 0).await.map_err(fail("write"))?;
        storage.flush().await.map_err(fail("flush"))?;
        self.header.set(marked);
        Ok(())
    }

    /// Whether any of the words of a table in the file is one that `found` looks for. Bytes that the file does not have
    /// are zeros here.
    async fn any_word(&self, offset: u64, len: u64, found: impl Fn(u64) -> bool) -> Result<bool> {
        let end = offset.saturating_add(len);
        let mut at = offset;
        while at < end {
            let bytes = self.metadata.load_some(at, (end - at).min(CHUNK_LEN)).await?;
            if bytes.is_empty() {
                break;
            }
            at += bytes.len() as u64;
            if bytes.as_chunks::<8>().0.iter().any(|word| found(u64::from_be_bytes(*word))) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// A write that was refused because of what it would hit.
#[derive(Debug)]
pub(crate) struct Refusal {
    /// What the request fails with.
    pub(crate) error: Error,
    /// Whether the image is marked as corrupt: nothing is to be written to it any more.
    pub(crate) marked: bool,
}

/// Where the header has its incompatible features.
const INCOMPATIBLE_FEATURES: Range<usize> = 72..80;
/// How much of a table is read at a time.
const CHUNK_LEN: u64 = 1 << 20;

/// The length of the snapshot table in bytes, without the last entry's padding.
fn snapshot_table_len(snapshots: &[Snapshot]) -> u64 {
    snapshots.iter().fold(0, |len: u64, snapshot| {
        let entry =
            Snapshot::FIXED_LEN + snapshot.extra.len() + snapshot.id.len() + snapshot.name.len();
        len.next_multiple_of(8) + entry as u64
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_hold_what_qemu_says() {
        let on = |checks: OverlapChecks| -> Vec<_> {
            Overlap::EVERY.iter().filter(|o| checks.contains(o.bit())).map(|o| o.option()).collect()
        };
        let parse = |template| OverlapChecks::parse([("overlap-check", template)]).unwrap();
        assert_eq!(on(parse("none")), Vec::<&str>::new());
        let constant =
            ["main-header", "active-l1", "refcount-table", "snapshot-table", "bitmap-directory"];
        assert_eq!(on(parse("constant")), constant);
        assert_eq!(on(parse("cached")).len(), 8);
        assert!(!parse("cached").contains(OverlapChecks::INACTIVE_L2));
        assert_eq!(on(parse("all")).len(), 9);
        assert_eq!(OverlapChecks::default(), parse("cached"));
    }
}
