//! Changing the name of an image's backing file, which lies in the first cluster behind the header's extensions.
//!
//! Header, extensions and name are often in several sectors, and a power loss may leave any of them old and any new. So they
//! change in steps: sectors that the first one does not lead to are written first, then the first sector, which is old or
//! new as a whole, and then those that the old one would have been misled by. Where the new name would lie on the old one,
//! either moves to another place in the cluster for a while. Each step is tried out in memory before anything is written: with
//! any of its sectors old and any new, the header must say what it said before. Names of features are the exception; they are
//! nobody's but a reader's of messages. They are also the one extension that is long, and what lies behind them would be torn
//! where a sector ends: they go behind all others first, which the first sector decides as a whole.
//!
//! In the one case in which no such steps are found, in clusters of 1 KiB with no room for two names, the sectors are written
//! together, and a power loss may leave a header that cannot be read.

use crate::error::{Error, Result};
use crate::format::{Extension, Header, HostOffset};
use crate::storage::Storage;

use super::Image;
use super::writer::{HeaderState, Target, Top};

/// What a power loss leaves old or new as a whole, in bytes.
const SECTOR_LEN_BYTES: usize = 512;
/// So many sectors are tried out in all combinations.
const SECTORS_TRIED_MAX: usize = 10;
/// Where the header says where the name is: eight bytes, and four of its length.
const NAME_OFFSET_AT: usize = 8;
const NAME_LEN_AT: usize = 16;

impl<S: Storage> Image<S> {
    /// Writes the name of another backing file and its format into the header, as `qemu-img rebase -u`, or with `None` that
    /// there is none. The name is as seen from the image's folder. Everything that was written before is durable first.
    ///
    /// The image goes on as it was opened, with the layers below that it had. What it shows when it is opened again is the
    /// new backing file's affair: see [`Self::rebase_onto`].
    ///
    /// It is durable when this returns. A power loss in the middle leaves the old backing file or the new one, unless the
    /// clusters are of 1 KiB and have no room for both names.
    ///
    /// # Errors
    /// [`Error::LimitExceeded`] if the name is too long or there is no room for it; [`Error::InvalidArgument`] for raw
    /// images, a name without a format, for images with a raw data file, which have no backing file, and while the image is
    /// committed into its backing file or compared with another one; as [`Self::write_at`].
    ///
    /// # Cancel safety
    /// As a power loss.
    pub async fn set_backing_file(&self, backing: Option<(&[u8], &[u8])>) -> Result<()> {
        let op = self.requests.enter_chore().await?;
        let change = self.begin_change(&op).await?;
        let Target::Qcow2(top) = &change.target else {
            return Err(Error::InvalidArgument("a raw image has no backing file".into()));
        };
        let top = *top;
        let _backing = top.writer.hold_backing()?;
        drop(change);
        let new = top.with_backing_file(backing)?;
        self.flush_by(&op).await?;
        top.replace_header(new).await
    }
}

impl<S: Storage> Top<'_, S> {
    /// As [`Image::set_backing_file`], for those who have flushed.
    pub(super) async fn set_backing_file(&self, backing: Option<(&[u8], &[u8])>) -> Result<()> {
        self.replace_header(self.with_backing_file(backing)?).await
    }

    /// The header with another backing file.
    fn with_backing_file(&self, backing: Option<(&[u8], &[u8])>) -> Result<Header> {
        let old = self.layer.header.get();
        let mut new = (*old).clone();
        new.backing_file = backing.map(|(name, _)| name.to_vec());
        let is_format = |extension: &Extension| matches!(extension, Extension::BackingFormat(_));
        new.extensions.retain(|extension| !is_format(extension));
        if let Some((_, format)) = backing {
            new.extensions.insert(0, Extension::BackingFormat(format.to_vec()));
        }
        let raw_data_file = crate::format::Autoclear::DATA_FILE_RAW;
        if backing.is_some() && old.autoclear.contains(raw_data_file) {
            return Err(Error::InvalidArgument(
                "an image with a raw data file has no backing file".into(),
            ));
        }
        // Says whether it fits.
        new.encode()?;
        Ok(new)
    }

    /// Changes the header durably, whatever of it changes, as far as that can be done safely: see the head of this file.
    ///
    /// # Errors
    /// As [`Self::update_header`].
    ///
    /// # Cancel safety
    /// As after an error.
    pub(super) async fn replace_header(&self, new: Header) -> Result<()> {
        let new = names_last(&new);
        self.mend_header().await?;
        let mut state = self.writer.header_io.lock().await;
        let cluster = self.header_cluster().await?;
        let old = names_last(&self.layer.header.get());
        let states = states(&cluster, &old, &new)?;
        // What is written after an error: from here on the names are last.
        self.layer.header.set(old);
        self.write_steps(&mut state, cluster, states).await?;
        self.layer.header.set(new);
        Ok(())
    }

    /// Makes the header on disk the one in memory, durably, when a write of another one has failed or was dropped: the disk
    /// has old sectors and new ones, and of each of them it cannot be known whether it is durable as it is read.
    ///
    /// First they are made durable as they are read, the first one last: whatever an interrupted step has left says the same
    /// with any of its other sectors old and any new. From there it goes on in steps.
    ///
    /// # Errors
    /// [`Error::Storage`]; the header is as uncertain as it was.
    ///
    /// # Cancel safety
    /// As after an error.
    pub(super) async fn mend_header_in_steps(&self, state: &mut HeaderState) -> Result<()> {
        // What was dropped must land before, not after.
        self.barrier().await?;
        let cluster = self.header_cluster().await?;
        let uncertain = usize::try_from(state.uncertain_end).unwrap_or(usize::MAX);
        let uncertain = uncertain.next_multiple_of(SECTOR_LEN_BYTES).min(cluster.len());
        let first = SECTOR_LEN_BYTES.min(uncertain);
        for sectors in [first..uncertain, 0..first] {
            if !sectors.is_empty() {
                let start = HostOffset::new(sectors.start as u64);
                self.overwrite_metadata(start, &cluster[sectors]).await?;
                self.barrier().await?;
            }
        }
        let header = self.layer.header.get();
        let bytes = header.encode()?;
        let mut whole = cluster.clone();
        whole[..uncertain].fill(0);
        whole[..bytes.len()].copy_from_slice(&bytes);
        let states = match (steps(&cluster, &whole), Header::parse_for_check(&cluster, u64::MAX)) {
            (Some(steps), _) => steps,
            (None, Ok(old)) => {
                let header = names_last(&header);
                let states = states(&cluster, &old, &header)?;
                self.layer.header.set(header);
                states
            }
            // No step leaves such a header: only what was written together where none is safe.
            (None, Err(_)) => vec![whole],
        };
        self.write_steps(state, cluster, states).await
    }

    /// The first cluster as it is read, as long as all of it is.
    async fn header_cluster(&self) -> Result<Vec<u8>> {
        let cluster_size = self.layer.geometry.cluster_size();
        let disk = self.layer.metadata.load_some(0, cluster_size).await?;
        let mut cluster = vec![0; usize::try_from(cluster_size).unwrap_or(usize::MAX)];
        let len = cluster.len().min(disk.len());
        cluster[..len].copy_from_slice(&disk[..len]);
        Ok(cluster)
    }

    /// Writes what the first cluster becomes, step by step.
    async fn write_steps(
        &self,
        state: &mut HeaderState,
        mut cluster: Vec<u8>,
        states: Vec<Vec<u8>>,
    ) -> Result<()> {
        for next in states {
            for range in writes(&cluster, &next) {
                let bytes = &next[range.clone()];
                // Cancel: the header is uncertain from here on, and the next change of it writes the one in memory.
                state.uncertain_end = state.uncertain_end.max(range.end as u64);
                self.overwrite_metadata(HostOffset::new(range.start as u64), bytes).await?;
                self.barrier().await?;
            }
            cluster = next;
        }
        state.uncertain_end = 0;
        Ok(())
    }
}

/// The header with the names of features behind all other extensions.
fn names_last(header: &Header) -> Header {
    let mut header = header.clone();
    header.extensions.sort_by_key(|extension| matches!(extension, Extension::FeatureNames(_)));
    header
}

/// The bytes of a header and its extensions, without the name behind them.
fn without_name(header: &Header) -> Result<Vec<u8>> {
    let mut header = header.clone();
    header.backing_file = None;
    header.encode()
}

/// The steps that put the names of features last, whose header is `old`. None if there is nothing to do, or no way that is
/// safe.
fn reordered(disk: &[u8], old: &Header) -> Result<Vec<Vec<u8>>> {
    let bytes = without_name(old)?;
    let mut whole = disk.to_vec();
    let Some(place) = whole.get_mut(..bytes.len()) else { return Ok(Vec::new()) };
    place.copy_from_slice(&bytes);
    // The old name stays where it is.
    let name = NAME_OFFSET_AT..NAME_LEN_AT + 4;
    whole[name.clone()].copy_from_slice(&disk[name]);
    let is_same = whole != disk && meaning(&whole) == meaning(disk);
    Ok(if is_same { steps(disk, &whole).unwrap_or_default() } else { Vec::new() })
}

/// The steps from one first cluster to another, if there are any that are safe: some of the other sectors, the first sector,
/// and the rest. What the header says changes with the first sector and with no other.
fn steps(before: &[u8], after: &[u8]) -> Option<Vec<Vec<u8>>> {
    let with = |state: &[u8], sectors: &[usize]| {
        let mut state = state.to_vec();
        for sector in sectors {
            let start = sector * SECTOR_LEN_BYTES;
            let end = (start + SECTOR_LEN_BYTES).min(after.len());
            state[start..end].copy_from_slice(&after[start..end]);
        }
        state
    };
    let others = other_sectors(before, after);
    let last = others.last().map_or(0, |last| last + 1);
    // All of them, those from the second on, ..., none.
    (1..=last.max(1)).filter(|from| *from == 1 || others.contains(&(from - 1))).find_map(|from| {
        let early: Vec<_> = others.iter().copied().filter(|sector| *sector >= from).collect();
        let first = with(before, &early);
        let second = with(&first, &[0]);
        let is_sound = is_safe(before, &first)
            && (second == after
                || (meaning(&second).is_some() && meaning(&second) == meaning(after)))
            && is_safe(&second, after);
        let mut states = vec![first, second, after.to_vec()];
        states.dedup();
        if states.first().is_some_and(|first| first == before) {
            states.remove(0);
        }
        is_sound.then_some(states)
    })
}

/// What the first cluster becomes, step by step, from `disk` to one with the header `new`.
fn states(disk: &[u8], old: &Header, new: &Header) -> Result<Vec<Vec<u8>>> {
    let (old, new) = (&names_last(old), &names_last(new));
    let prelude = reordered(disk, old)?;
    let disk = prelude.last().map_or(disk, Vec::as_slice);
    let way = ways(disk, old, new)?;
    Ok(prelude.iter().cloned().chain(way).collect())
}

/// As [`states`], with the names of features where they will be.
fn ways(disk: &[u8], old: &Header, new: &Header) -> Result<Vec<Vec<u8>>> {
    let (old_bytes, new_bytes) = (without_name(old)?, without_name(new)?);
    let last = new.encode()?;
    let name_len = |header: &Header| header.backing_file.as_ref().map_or(0, Vec::len);
    let used = disk.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    // Behind all that is there, for the old name and for the new one.
    let first = used.max(last.len()).next_multiple_of(SECTOR_LEN_BYTES);
    let second = (first + name_len(old)).next_multiple_of(SECTOR_LEN_BYTES);
    let canonical = new_bytes.len();
    let (old_name, new_name) = (old.backing_file.as_deref(), new.backing_file.as_deref());
    type Place<'a> = (&'a [u8], Option<&'a [u8]>, usize);
    let at_last: Place<'_> = (&new_bytes, new_name, canonical);
    let ways: [&[Place<'_>]; 4] = [
        &[at_last],
        &[(&new_bytes, new_name, first), at_last],
        &[(&old_bytes, old_name, first), at_last],
        &[(&old_bytes, old_name, first), (&new_bytes, new_name, second), at_last],
    ];
    let mut whole = last;
    whole.resize(disk.len(), 0);
    let found = ways.into_iter().find_map(|way| {
        let mut states: Vec<Vec<u8>> = Vec::new();
        for (header, name, at) in way {
            let before = states.last().map_or(disk, Vec::as_slice);
            let state = placed(before, header, *name, *at)?;
            states.extend(steps(before, &state)?);
        }
        // In the end nothing is left of old names.
        let before = states.last().map_or(disk, Vec::as_slice);
        states.extend(steps(before, &whole)?);
        Some(states)
    });
    Ok(found.unwrap_or_else(|| vec![whole]))
}

/// The first cluster with another header, extensions included, and its name at `at`; what else is there stays.
fn placed(before: &[u8], header: &[u8], name: Option<&[u8]>, at: usize) -> Option<Vec<u8>> {
    let mut state = before.to_vec();
    state.get_mut(..header.len())?.copy_from_slice(header);
    if let Some(name) = name {
        state.get_mut(at..at.checked_add(name.len())?)?.copy_from_slice(name);
        state[NAME_OFFSET_AT..NAME_OFFSET_AT + 8].copy_from_slice(&(at as u64).to_be_bytes());
        let len = u32::try_from(name.len()).ok()?;
        state[NAME_LEN_AT..NAME_LEN_AT + 4].copy_from_slice(&len.to_be_bytes());
    }
    Some(state)
}

/// The numbers of the sectors that differ, but for the first.
fn other_sectors(before: &[u8], after: &[u8]) -> Vec<usize> {
    let sectors = before.chunks(SECTOR_LEN_BYTES).zip(after.chunks(SECTOR_LEN_BYTES));
    let differing = sectors.enumerate().filter(|(_, (before, after))| before != after);
    differing.map(|(sector, _)| sector).filter(|sector| *sector > 0).collect()
}

/// What is written for a step: the other sectors, which are written together, and then the first.
fn writes(before: &[u8], after: &[u8]) -> Vec<std::ops::Range<usize>> {
    let others = other_sectors(before, after);
    let mut writes = Vec::new();
    if let (Some(first), Some(last)) = (others.first(), others.last()) {
        let end = ((last + 1) * SECTOR_LEN_BYTES).min(after.len());
        writes.push(first * SECTOR_LEN_BYTES..end);
    }
    let first = ..SECTOR_LEN_BYTES.min(after.len());
    if before[first] != after[first] {
        writes.push(0..first.end);
    }
    writes
}

/// What the header says, but for the names of features.
fn meaning(bytes: &[u8]) -> Option<Header> {
    let mut header = Header::parse_for_check(bytes, u64::MAX).ok()?;
    header.extensions.retain(|extension| !matches!(extension, Extension::FeatureNames(_)));
    Some(header)
}

/// Whether the header says what it said before, whichever of the other sectors are written.
fn is_safe(before: &[u8], after: &[u8]) -> bool {
    let others = other_sectors(before, after);
    if others.is_empty() {
        return true;
    }
    let said = meaning(before);
    if said.is_none() || others.len() > SECTORS_TRIED_MAX {
        return false;
    }
    (1..1_u32 << others.len()).all(|written| {
        let mut state = before.to_vec();
        for (bit, sector) in others.iter().enumerate() {
            if written >> bit & 1 == 1 {
                let start = sector * SECTOR_LEN_BYTES;
                let end = (start + SECTOR_LEN_BYTES).min(after.len());
                state[start..end].copy_from_slice(&after[start..end]);
            }
        }
        meaning(&state) == said
    })
}

#[cfg(test)]
mod tests {
    use super::{Extension, Header, SECTOR_LEN_BYTES, names_last, states, writes};
    use crate::format::{BitmapsExtension, Geometry, HostOffset, Version, feature::FeatureNames};

    fn header(
        cluster_bits: u32,
        name: Option<usize>,
        format: &str,
        names: bool,
        bitmaps: bool,
    ) -> Header {
        let geometry = Geometry::new(cluster_bits, false, 4).unwrap();
        let mut header = Header::new(Version::V3, geometry);
        header.l1_table_offset = HostOffset::new(3 << cluster_bits);
        header.refcount_table_offset = HostOffset::new(1 << cluster_bits);
        header.refcount_table_clusters = 1;
        header.size = 1 << 20;
        header.l1_entries = 1 << 9;
        if names {
            let table = FeatureNames::from_bytes(vec![1; 384]);
            header.extensions.push(Extension::FeatureNames(table));
        }
        if bitmaps {
            header.extensions.push(Extension::Bitmaps(BitmapsExtension {
                count: 1,
                reserved: 0,
                directory_len: 32,
                directory_offset: HostOffset::new(7 << cluster_bits),
            }));
        }
        header.backing_file = name.map(|len| vec![b'a'; len]);
        if !format.is_empty() {
            header.extensions.insert(0, Extension::BackingFormat(format.into()));
        }
        header
    }

    /// Names and formats are the only things that a change of the backing file changes; bitmaps stay.
    fn meaning(bytes: &[u8]) -> Option<[Option<Vec<u8>>; 3]> {
        let header = Header::parse_for_check(bytes, u64::MAX).ok()?;
        let is_bitmaps = |extension: &&Extension| matches!(extension, Extension::Bitmaps(_));
        let bitmaps = header.extensions.iter().find(is_bitmaps);
        let bitmaps = bitmaps.map(|extension| format!("{extension:?}").into_bytes());
        // A format without a name means nothing.
        let format = header.backing_format().filter(|_| header.backing_file.is_some());
        Some([header.backing_file.clone(), format.map(<[u8]>::to_vec), bitmaps])
    }

    #[test]
    fn power_loss_leaves_the_old_backing_file_or_the_new_one() {
        let kinds = [
            (None, ""),
            (Some(3), "raw"),
            (Some(500), "qcow2"),
            (Some(1000), "raw"),
            (Some(7), ""),
        ];
        for (bits, names, bitmaps) in [
            (9, false, false),
            (12, true, false),
            (12, false, false),
            (16, true, false),
            (12, true, true),
            (12, false, true),
            (16, true, true),
        ] {
            for (old, new) in kinds.into_iter().flat_map(|old| kinds.map(|new| (old, new))) {
                let old = header(bits, old.0, old.1, names, bitmaps);
                let new = header(bits, new.0, new.1, names, bitmaps);
                let (Ok(mut disk), Ok(mut last)) = (old.encode(), names_last(&new).encode()) else {
                    continue;
                };
                disk.resize(1 << bits, 0);
                last.resize(1 << bits, 0);
                let allowed = [meaning(&disk), meaning(&last)];
                for next in states(&disk, &old, &new).unwrap() {
                    for range in writes(&disk, &next) {
                        let sectors: Vec<_> = range.step_by(SECTOR_LEN_BYTES).collect();
                        for written in 0..1_u32 << sectors.len() {
                            let mut torn = disk.clone();
                            for (bit, start) in sectors.iter().enumerate() {
                                let sector = *start..start + SECTOR_LEN_BYTES;
                                if written >> bit & 1 == 1 {
                                    torn[sector.clone()].copy_from_slice(&next[sector]);
                                }
                            }
                            assert!(allowed.contains(&meaning(&torn)), "{old:?} {new:?}");
                        }
                        for start in sectors {
                            let sector = start..start + SECTOR_LEN_BYTES;
                            disk[sector.clone()].copy_from_slice(&next[sector]);
                        }
                    }
                }
                assert_eq!(disk, last);
            }
        }
    }
}
