//! ISO 9660, with the names and attributes of Rock Ridge, or the names of Joliet.
//!
//! Read by hand: an image from a stranger must not make it follow an area that continues into itself, nor take the memory
//! that a length says.
//!
//! A directory record:
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 1 | length of the record |
//! | 1 | 1 | blocks of extended attributes before the bytes |
//! | 2 | 4 (little-endian, then big) | first block |
//! | 10 | 4 (as above) | length in bytes |
//! | 18 | 7 | date |
//! | 25 | 1 | flags: 2 is a folder, 0x80 says that more extents follow |
//! | 32 | 1 | length of the name |
//! | 33 | | name, padded to an even offset; then what Rock Ridge keeps |
//!
//! ECMA-119; SUSP and RRIP 1.12; Joliet.

use super::blocks::Blocks;
use super::{ENTRIES_MAX, Entry, FileKind, Node, Owner, days_before_epoch};
use crate::error::{Error, Result};
use crate::inspect::ReadAt;
use crate::inspect::little_endian::{u16_at, u32_at};

const NAME: &str = "ISO 9660 file system";
const SECTOR_BYTES: u64 = 2048;
const FIRST_DESCRIPTOR: u64 = 16;
/// How many volume descriptors are looked at.
const DESCRIPTORS_MAX: u64 = 64;
/// The longest folder that is read, in bytes.
const FOLDER_BYTES_MAX: u64 = 64 << 20;
/// The longest chain of areas that continue a record.
const CONTINUATIONS_MAX: usize = 32;
/// The longest area that continues a record, in bytes.
const CONTINUATION_BYTES_MAX: u32 = 64 << 10;

const FLAG_FOLDER: u8 = 0x02;
const FLAG_MORE_EXTENTS: u8 = 0x80;

/// What names are taken from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Names {
    /// The standard's own: upper case and a version.
    Plain,
    /// Unicode, from the second tree.
    Joliet,
    /// POSIX names, modes and links; so many bytes are skipped in each record's area.
    RockRidge { skip: usize },
}

/// Where a file's bytes lie: extents of an offset and a length in bytes.
pub(super) type IsoExtents = Vec<(u64, u64)>;

/// A mounted file system.
pub(super) struct Iso {
    block_bytes: u64,
    names: Names,
    root: IsoExtents,
    pub(super) label: Vec<u8>,
}

impl Iso {
    /// Mounts the volume, if it has a primary volume descriptor.
    pub(super) async fn open<R: ReadAt>(blocks: &Blocks<R>) -> Result<Option<Self>> {
        let mut primary = None;
        let mut joliet = None;
        for number in FIRST_DESCRIPTOR..FIRST_DESCRIPTOR + DESCRIPTORS_MAX {
            let offset = number * SECTOR_BYTES;
            let mut sector = [0; 2048];
            if offset + SECTOR_BYTES > blocks.len() {
                break;
            }
            blocks.read(&mut sector, offset).await?;
            if &sector[1..6] != b"CD001" {
                break;
            }
            match sector[0] {
                1 if primary.is_none() => primary = Some(sector),
                2 if &sector[88..90] == b"%/"
                    && matches!(sector[90], b'@' | b'C' | b'E')
                    && joliet.is_none() =>
                {
                    joliet = Some(sector);
                }
                255 => break,
                _ => {}
            }
        }
        let Some(primary) = primary else { return Ok(None) };
        let block_bytes = u64::from(u16_at(&primary, 128));
        if !matches!(block_bytes, 512 | 1024 | 2048) {
            let reason = format!("its blocks have {block_bytes} bytes");
            return Err(Error::volume("ISO 9660 primary volume descriptor", 128, reason));
        }
        let label = primary[40..72].trim_ascii_end().to_vec();
        let mut iso = Self { block_bytes, names: Names::Plain, root: Vec::new(), label };
        iso.root = iso.extents_of(&primary[156..190]);
        if let Some(skip) = iso.rock_ridge(blocks).await? {
            iso.names = Names::RockRidge { skip };
        } else if let Some(joliet) = joliet {
            iso.names = Names::Joliet;
            iso.root = iso.extents_of(&joliet[156..190]);
        }
        Ok(Some(iso))
    }

    /// Whether the first record of the root folder says that there is Rock Ridge; then how many bytes to skip in others.
    async fn rock_ridge<R: ReadAt>(&self, blocks: &Blocks<R>) -> Result<Option<usize>> {
        let Some(&(offset, len)) = self.root.first() else { return Ok(None) };
        let mut record = [0; 256];
        if len < record.len() as u64 || offset.saturating_add(256) > blocks.len() {
            return Ok(None);
        }
        blocks.read(&mut record, offset).await?;
        let Some(area) = system_use(&record[..usize::from(record[0])]) else { return Ok(None) };
        let Some(&[b'S', b'P', _, _, 0xbe, 0xef, skip]) = area.first_chunk::<7>() else {
            return Ok(None);
        };
        // SUSP may serve others than Rock Ridge: one of its fields must be there.
        let fields = self.fields(blocks, area).await?;
        let is_there = fields.iter().any(|field| {
            matches!(&field[..2], b"RR" | b"PX" | b"NM" | b"TF")
                || (&field[..2] == b"ER"
                    && field.windows(4).any(|text| text == b"RRIP" || text == b"1282"))
        });
        Ok(is_there.then_some(skip.into()))
    }

    pub(super) fn root(&self) -> Entry {
        Entry::new(Vec::new(), FileKind::Folder, 0, self.node(self.root.clone(), None))
    }

    fn node(&self, extents: IsoExtents, link: Option<Vec<u8>>) -> Node {
        Node::Iso { extents, link }
    }

    /// Whether names are compared without regard to case, and without their version.
    pub(super) fn ignores_case(&self) -> bool {
        self.names == Names::Plain
    }

    /// The extents that a record says, in bytes.
    fn extents_of(&self, record: &[u8]) -> IsoExtents {
        let block = u64::from(u32_at(record, 2)) + u64::from(record[1]);
        vec![(block * self.block_bytes, u32_at(record, 10).into())]
    }

    /// The entries of a folder, without itself and its parent.
    pub(super) async fn read_dir<R: ReadAt>(
        &self,
        blocks: &Blocks<R>,
        extents: &IsoExtents,
    ) -> Result<Vec<Entry>> {
        let mut entries: Vec<Entry> = Vec::new();
        // Whether the record before said that its file goes on in the next one.
        let mut goes_on = false;
        for &(offset, len) in extents {
            if len > FOLDER_BYTES_MAX {
                return Err(Error::LimitExceeded {
                    what: "bytes of an ISO 9660 folder",
                    value: len,
                    limit: FOLDER_BYTES_MAX,
                });
            }
            let mut at = 0;
            while at < len {
                let sector_end = ((offset + at) / SECTOR_BYTES + 1) * SECTOR_BYTES - offset;
                let mut record = [0; 256];
                blocks.read(&mut record[..1], offset + at).await?;
                let record_len = u64::from(record[0]);
                if record_len == 0 {
                    // The rest of the sector is empty: a record lies in one sector.
                    at = sector_end;
                    continue;
                }
                if record_len < 34 || at + record_len > len {
                    let reason = format!("a record of {record_len} bytes");
                    return Err(Error::volume("ISO 9660 folder", offset + at, reason));
                }
                let len_of_record = usize::from(record[0]);
                let record = &mut record[..len_of_record];
                blocks.read(record, offset + at).await?;
                at += record_len;
                let more = record[25] & FLAG_MORE_EXTENTS != 0;
                if let Some(entry) = self.entry(blocks, record).await? {
                    match entries.last_mut() {
                        Some(last) if goes_on => last.append(entry),
                        _ => entries.push(entry),
                    }
                }
                goes_on = more;
                if entries.len() > ENTRIES_MAX {
                    return Ok(entries);
                }
            }
        }
        Ok(entries)
    }

    /// The entry of a record; `None` for the folder itself, its parent, and what Rock Ridge has moved.
    async fn entry<R: ReadAt>(&self, blocks: &Blocks<R>, record: &[u8]) -> Result<Option<Entry>> {
        let name_len = usize::from(record[32]);
        let Some(raw) = record.get(33..33 + name_len) else {
            return Err(Error::volume(
                "ISO 9660 directory record",
                0,
                format!("a name of {name_len} bytes in a record of {}", record.len()),
            ));
        };
        if matches!(raw, [0] | [1]) {
            return Ok(None);
        }
        let kind = if record[25] & FLAG_FOLDER != 0 { FileKind::Folder } else { FileKind::File };
        let mut entry = Entry {
            modified: time(&record[18..25]),
            ..Entry::new(
                self.name(raw),
                kind,
                u32_at(record, 10).into(),
                self.node(self.extents_of(record), None),
            )
        };
        if let Names::RockRidge { skip } = self.names
            && let Some(area) = system_use(record).and_then(|area| area.get(skip..))
        {
            let fields = self.fields(blocks, area).await?;
            if fields.iter().any(|field| &field[..2] == b"RE") {
                return Ok(None);
            }
            self.apply(&fields, &mut entry);
        }
        if entry.kind == FileKind::Folder {
            entry.len = 0;
        }
        Ok(Some(entry))
    }

    /// A name as it lies in a record.
    fn name(&self, raw: &[u8]) -> Vec<u8> {
        if self.names == Names::Joliet {
            let units: Vec<u16> =
                raw.as_chunks::<2>().0.iter().map(|unit| u16::from_be_bytes(*unit)).collect();
            let name = String::from_utf16_lossy(&units);
            return name.strip_suffix(";1").unwrap_or(&name).as_bytes().to_vec();
        }
        let name = raw.split(|byte| *byte == b';').next().unwrap_or(raw);
        name.strip_suffix(b".").unwrap_or(name).to_vec()
    }

    /// Takes over what Rock Ridge says of an entry.
    fn apply(&self, fields: &[Vec<u8>], entry: &mut Entry) {
        let mut name = Vec::new();
        let mut link = Link::default();
        for field in fields {
            match (&field[..2], field.len()) {
                (b"NM", 5..) if field[4] & 0b110 == 0 => name.extend_from_slice(&field[5..]),
                (b"PX", 36..) => {
                    let mode = u32_at(field, 4);
                    entry.kind = match mode & 0o170_000 {
                        0o040_000 => FileKind::Folder,
                        0o120_000 => FileKind::Symlink,
                        0o060_000 => FileKind::BlockDevice,
                        0o020_000 => FileKind::CharacterDevice,
                        0o010_000 => FileKind::Fifo,
                        0o140_000 => FileKind::Socket,
                        _ => FileKind::File,
                    };
                    // OK to unwrap: twelve bits.
                    entry.mode = u16::try_from(mode & 0o7777).ok();
                    entry.owner = Some(Owner { user: u32_at(field, 20), group: u32_at(field, 28) });
                }
                (b"SL", 5..) => link.push(&field[5..]),
                (b"TF", 5..) => {
                    // Times lie in the order of the flags: creation, modification, ...
                    let (flags, long) = (field[4], field[4] & 0x80 != 0);
                    let at = if flags & 1 != 0 { 1 } else { 0 };
                    let width = if long { 17 } else { 7 };
                    if flags & 2 != 0
                        && !long
                        && let Some(date) = field.get(5 + at * width..5 + at * width + 7)
                    {
                        entry.modified = time(date).or(entry.modified);
                    }
                }
                // The folder was moved, as it lay too deep.
                (b"CL", 12..) => {
                    entry.kind = FileKind::Folder;
                    let offset = u64::from(u32_at(field, 4)) * self.block_bytes;
                    entry.node = Node::IsoMoved(offset);
                }
                _ => {}
            }
        }
        if !name.is_empty() {
            entry.name = name;
        }
        if entry.kind == FileKind::Symlink {
            let target = link.finish();
            entry.len = target.len() as u64;
            entry.node = self.node(Vec::new(), Some(target));
        }
    }

    /// The extents of a folder that was moved: its first record describes itself.
    pub(super) async fn moved<R: ReadAt>(
        &self,
        blocks: &Blocks<R>,
        offset: u64,
    ) -> Result<IsoExtents> {
        let mut record = [0; 34];
        blocks.read(&mut record, offset).await?;
        Ok(self.extents_of(&record))
    }

    /// The fields of a record's area and of those that continue it.
    async fn fields<R: ReadAt>(&self, blocks: &Blocks<R>, area: &[u8]) -> Result<Vec<Vec<u8>>> {
        let mut fields = Vec::new();
        let mut area = area.to_vec();
        for _ in 0..CONTINUATIONS_MAX {
            let mut next = None;
            let mut rest = area.as_slice();
            while let [_, _, len, ..] = *rest
                && (4..=rest.len()).contains(&usize::from(len))
            {
                let (field, behind) = rest.split_at(usize::from(len));
                match &field[..2] {
                    b"CE" if field.len() >= 28 => {
                        let offset = u64::from(u32_at(field, 4)) * self.block_bytes
                            + u64::from(u32_at(field, 12));
                        next = Some((offset, u32_at(field, 20).min(CONTINUATION_BYTES_MAX)));
                    }
                    b"ST" => break,
                    _ => fields.push(field.to_vec()),
                }
                rest = behind;
            }
            let Some((offset, len)) = next else { break };
            area = vec![0; len as usize];
            blocks.read(&mut area, offset).await?;
        }
        Ok(fields)
    }

    /// Fills `buf` from `offset` of a file, which must be within it.
    pub(super) async fn read<R: ReadAt>(
        &self,
        blocks: &Blocks<R>,
        extents: &IsoExtents,
        offset: u64,
        buf: &mut [u8],
    ) -> Result<()> {
        let mut skip = offset;
        let mut rest = buf;
        for &(start, len) in extents {
            if rest.is_empty() {
                break;
            }
            if skip >= len {
                skip -= len;
                continue;
            }
            // OK to unwrap: at most what is left of the buffer.
            let now = usize::try_from((len - skip).min(rest.len() as u64)).unwrap_or(0);
            let (now, later) = rest.split_at_mut(now);
            blocks.read_through(now, start + skip).await?;
            skip = 0;
            rest = later;
        }
        if !rest.is_empty() {
            return Err(Error::volume(NAME, 0, "a file ends before its length"));
        }
        Ok(())
    }
}

/// The target of a symbolic link, out of its components.
#[derive(Debug, Default)]
struct Link {
    target: Vec<u8>,
    /// Whether the last component goes on.
    continues: bool,
}

impl Link {
    fn push(&mut self, mut components: &[u8]) {
        while let [flags, len, rest @ ..] = components {
            let Some(text) = rest.get(..usize::from(*len)) else { return };
            if !self.target.is_empty() && !self.continues && self.target.last() != Some(&b'/') {
                self.target.push(b'/');
            }
            match flags & 0b1110 {
                0b0010 => self.target.push(b'.'),
                0b0100 => self.target.extend_from_slice(b".."),
                0b1000 => self.target = b"/".to_vec(),
                _ => self.target.extend_from_slice(text),
            }
            self.continues = flags & 1 != 0;
            components = &rest[usize::from(*len)..];
        }
    }

    fn finish(self) -> Vec<u8> {
        self.target
    }
}

/// What lies behind a record's name.
fn system_use(record: &[u8]) -> Option<&[u8]> {
    let name_len = usize::from(*record.get(32)?);
    let start = (33 + name_len).next_multiple_of(2);
    record.get(start..)
}

/// Seconds since 1970 of a record's date: years since 1900, month, day, hour, minute, second, quarters of an hour from UTC.
fn time(date: &[u8]) -> Option<i64> {
    let &[year, month, day, hour, minute, second, zone] = date.first_chunk::<7>()?;
    if month == 0 {
        return None;
    }
    let days = days_before_epoch(1900 + i64::from(year), month.into(), day.into())?;
    let zone = i64::from(zone.cast_signed()) * 15 * 60;
    Some(days * 86_400 + i64::from(hour) * 3600 + i64::from(minute) * 60 + i64::from(second) - zone)
}
