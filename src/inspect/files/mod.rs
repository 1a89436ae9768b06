//! The files on a volume: ext2, ext3, ext4, FAT12, FAT16, FAT32 and ISO 9660, as trees.
//!
//! Names are bytes out of a stranger's disk: they are shown and stored by others, who must escape them; here they are only
//! compared. Nothing is followed out of the volume: a symbolic link that names an absolute path means the volume's own root.
//! What is read is bounded: folders by [`ENTRIES_MAX`], links by [`LINKS_MAX`], metadata by the cache.
//!
//! It must not know partitions, images or where the bytes come from.

pub mod archive;
mod blocks;
mod ext;
mod fat;
mod iso;
pub mod system;
pub mod tar;
pub mod walk;

use blocks::Blocks;

use super::ReadAt;
use crate::error::{Error, Result};

/// The most entries that a folder is read with.
pub const ENTRIES_MAX: usize = 1 << 20;

/// The most symbolic links that are followed on the way to a file, as on Linux.
pub const LINKS_MAX: usize = 40;

/// The longest target of a symbolic link and the longest path, in bytes.
const PATH_BYTES_MAX: usize = 4096;

/// The files on a volume.
///
/// Not `Send`: its readers share a cache without locks. Dropping any of its futures has no effect.
pub struct FileSystem<R> {
    blocks: Blocks<R>,
    inner: Inner,
    label: Vec<u8>,
}

enum Inner {
    Ext(Box<ext::Ext>),
    Fat(fat::Fat),
    Iso(iso::Iso),
}

/// Something in a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Entry {
    /// Its name, as it lies on disk (names of 16-bit units as UTF-8). Empty for the root folder.
    pub name: Vec<u8>,
    /// What it is.
    pub kind: FileKind,
    /// The length of a file's bytes or of a symbolic link's target; of a folder what its file system keeps of it.
    pub len: u64,
    /// Its permission bits, the lower twelve of `st_mode`; made up for FAT. `None` where nothing says it.
    pub mode: Option<u16>,
    /// Whose it is, where something says it.
    pub owner: Option<Owner>,
    /// When it was changed, in seconds since 1970 UTC. FAT knows no time zone: its local time is taken as UTC.
    pub modified: Option<i64>,
    /// Why nothing more is known of it, if its metadata is damaged.
    pub problem: Option<String>,
    node: Node,
}

/// The numbers of a user and a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// The user's.
    pub user: u32,
    /// The group's.
    pub group: u32,
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FileKind {
    /// A regular file.
    File,
    /// A folder.
    Folder,
    /// A symbolic link.
    Symlink,
    /// A block device.
    BlockDevice,
    /// A character device.
    CharacterDevice,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// Nobody knows: its metadata is damaged.
    Unknown,
}

impl FileKind {
    /// Its name: `file`, `folder`, `symlink`, ...
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Folder => "folder",
            Self::Symlink => "symlink",
            Self::BlockDevice => "block device",
            Self::CharacterDevice => "character device",
            Self::Fifo => "fifo",
            Self::Socket => "socket",
            Self::Unknown => "unknown",
        }
    }

    /// The letter that `ls -l` begins with.
    #[must_use]
    pub fn letter(self) -> char {
        match self {
            Self::File => '-',
            Self::Folder => 'd',
            Self::Symlink => 'l',
            Self::BlockDevice => 'b',
            Self::CharacterDevice => 'c',
            Self::Fifo => 'p',
            Self::Socket => 's',
            Self::Unknown => '?',
        }
    }
}

/// Where the file system finds an entry again.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Node {
    /// Its path, without symbolic links.
    Ext(Vec<u8>),
    Fat(fat::Start),
    Iso {
        extents: iso::IsoExtents,
        link: Option<Vec<u8>>,
    },
    /// A folder of ISO 9660 that lies elsewhere, in bytes.
    IsoMoved(u64),
}

impl Entry {
    fn new(name: Vec<u8>, kind: FileKind, len: u64, node: Node) -> Self {
        Self { name, kind, len, mode: None, owner: None, modified: None, problem: None, node }
    }

    /// Takes over the extents of a record that goes on with the same file.
    fn append(&mut self, more: Self) {
        self.len += more.len;
        if let (Node::Iso { extents, .. }, Node::Iso { extents: more, .. }) =
            (&mut self.node, more.node)
        {
            extents.extend(more);
        }
    }

    /// Whether its name may be used as the name of a file: it is neither empty nor `.` nor `..`, and has no slash, backslash or NUL in it.
    /// Whoever extracts must ask.
    #[must_use]
    pub fn has_plain_name(&self) -> bool {
        is_plain_name(&self.name)
    }

    /// Its type and permissions as `ls -l` shows them.
    #[must_use]
    pub fn mode_text(&self) -> String {
        let mut text = String::with_capacity(10);
        text.push(self.kind.letter());
        let Some(mode) = self.mode else {
            text.push_str("?????????");
            return text;
        };
        for (shift, special, letters) in
            [(6, 0o4000, ('s', 'S')), (3, 0o2000, ('s', 'S')), (0, 0o1000, ('t', 'T'))]
        {
            let bits = mode >> shift;
            text.push(if bits & 4 != 0 { 'r' } else { '-' });
            text.push(if bits & 2 != 0 { 'w' } else { '-' });
            text.push(match (bits & 1 != 0, mode & special != 0) {
                (true, true) => letters.0,
                (false, true) => letters.1,
                (true, false) => 'x',
                (false, false) => '-',
            });
        }
        text
    }
}

/// See [`Entry::has_plain_name`].
pub(crate) fn is_plain_name(name: &[u8]) -> bool {
    !matches!(name, b"" | b"." | b"..") && !name.iter().any(|byte| matches!(byte, b'/' | b'\\' | 0))
}

impl<R: ReadAt> FileSystem<R> {
    /// Mounts the file system of `volume`; `None` if it has none that is known.
    ///
    /// # Errors
    /// What reading says; [`Error::Volume`] if it is known and damaged, or needs what is not there (encryption);
    /// [`Error::LimitExceeded`].
    pub async fn open(volume: R) -> Result<Option<Self>> {
        let blocks = Blocks::new(volume);
        // ISO 9660 leaves the first 32 KiB to others, FAT looks like a boot sector: the surest first.
        let (inner, label) = if let Some(ext) = ext::Ext::open(&blocks).await? {
            let label = ext.label();
            (Inner::Ext(Box::new(ext)), label)
        } else if let Some(iso) = iso::Iso::open(&blocks).await? {
            let label = iso.label.clone();
            (Inner::Iso(iso), label)
        } else if let Some(fat) = fat::Fat::open(&blocks).await? {
            let label = fat.label(&blocks).await?;
            (Inner::Fat(fat), label)
        } else {
            return Ok(None);
        };
        Ok(Some(Self { blocks, inner, label }))
    }

    /// Its kind: `ext2`, `ext3`, `ext4`, `fat12`, `fat16`, `fat32` or `iso9660`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match &self.inner {
            Inner::Ext(ext) => ext.name,
            Inner::Fat(fat) => fat.name(),
            Inner::Iso(_) => "iso9660",
        }
    }

    /// Its label; empty if it has none.
    #[must_use]
    pub fn label(&self) -> &[u8] {
        &self.label
    }

    /// Its identity as text: a UUID, or FAT's serial number.
    #[must_use]
    pub fn uuid(&self) -> Option<String> {
        match &self.inner {
            Inner::Ext(ext) => Some(ext.uuid()),
            Inner::Fat(fat) => Some(fat.serial.clone()),
            Inner::Iso(_) => None,
        }
    }

    /// The root folder.
    ///
    /// # Errors
    /// As [`Self::read_dir`].
    pub async fn root(&self) -> Result<Entry> {
        match &self.inner {
            Inner::Ext(ext) => ext.root(&self.blocks).await,
            Inner::Fat(fat) => Ok(fat.root()),
            Inner::Iso(iso) => Ok(iso.root()),
        }
    }

    /// What is in `folder`, in the order on disk, without itself and its parent.
    ///
    /// # Errors
    /// What reading says; [`Error::InvalidArgument`] if it is no folder; [`Error::Volume`]; [`Error::LimitExceeded`] beyond
    /// [`ENTRIES_MAX`].
    pub async fn read_dir(&self, folder: &Entry) -> Result<Vec<Entry>> {
        if folder.kind != FileKind::Folder {
            return Err(self.not(folder, "a folder"));
        }
        let entries = match (&self.inner, &folder.node) {
            (Inner::Ext(ext), Node::Ext(path)) => ext.read_dir(&self.blocks, path).await,
            (Inner::Fat(fat), Node::Fat(start)) => fat.read_dir(&self.blocks, *start).await,
            (Inner::Iso(iso), Node::Iso { extents, .. }) => {
                iso.read_dir(&self.blocks, extents).await
            }
            (Inner::Iso(iso), Node::IsoMoved(offset)) => {
                let extents = iso.moved(&self.blocks, *offset).await?;
                iso.read_dir(&self.blocks, &extents).await
            }
            _ => Err(foreign()),
        }?;
        if entries.len() > ENTRIES_MAX {
            return Err(Error::LimitExceeded {
                what: "entries of a folder",
                value: entries.len() as u64,
                limit: ENTRIES_MAX as u64,
            });
        }
        Ok(entries)
    }

    /// The entry of `folder` that is called `name`; without regard to case where the file system has none.
    ///
    /// # Errors
    /// As [`Self::read_dir`].
    pub async fn child(&self, folder: &Entry, name: &[u8]) -> Result<Option<Entry>> {
        if let (Inner::Ext(ext), Node::Ext(path), FileKind::Folder) =
            (&self.inner, &folder.node, folder.kind)
        {
            return ext.lookup(&self.blocks, path, name).await;
        }
        let ignores_case = match &self.inner {
            Inner::Fat(_) => true,
            Inner::Iso(iso) => iso.ignores_case(),
            Inner::Ext(_) => false,
        };
        let is_it = |entry: &Entry| {
            entry.name == name || (ignores_case && entry.name.eq_ignore_ascii_case(name))
        };
        Ok(self.read_dir(folder).await?.into_iter().find(is_it))
    }

    /// What `path` names, from the root on, whether or not it begins with a slash. Symbolic links on the way are followed within the volume;
    /// the last one is followed if `follow`.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::InvalidArgument`] if something on the way is no folder; [`Error::LimitExceeded`] beyond
    /// [`LINKS_MAX`]; as [`Self::read_dir`].
    pub async fn find(&self, path: &[u8], follow: bool) -> Result<Entry> {
        let not_found =
            || Error::NotFound { what: "file", name: String::from_utf8_lossy(path).into_owned() };
        let mut links = 0;
        // The folders from the root to where we are; `..` goes back in it, and never above the root.
        let mut way = vec![self.root().await?];
        let mut rest = components(path);
        while let Some(name) = rest.pop() {
            match name.as_slice() {
                b"." => continue,
                b".." => {
                    if way.len() > 1 {
                        way.pop();
                    }
                    continue;
                }
                _ => {}
            }
            // OK to unwrap: the root is never taken away.
            let Some(here) = way.last() else { return Err(not_found()) };
            if here.kind != FileKind::Folder {
                return Err(self.not(here, "a folder"));
            }
            let entry = self.child(here, &name).await?.ok_or_else(not_found)?;
            if entry.kind == FileKind::Symlink && (follow || !rest.is_empty()) {
                links += 1;
                if links > LINKS_MAX {
                    return Err(Error::LimitExceeded {
                        what: "symbolic links on the way to a file",
                        value: links as u64,
                        limit: LINKS_MAX as u64,
                    });
                }
                let target = self.read_link(&entry).await?;
                if target.first() == Some(&b'/') {
                    way.truncate(1);
                }
                rest.extend(components(&target));
            } else {
                way.push(entry);
            }
        }
        way.pop().ok_or_else(not_found)
    }

    /// The target of a symbolic link.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if it is none; what reading says; [`Error::Volume`].
    pub async fn read_link(&self, link: &Entry) -> Result<Vec<u8>> {
        if link.kind != FileKind::Symlink {
            return Err(self.not(link, "a symbolic link"));
        }
        let target = match (&self.inner, &link.node) {
            (Inner::Ext(ext), Node::Ext(path)) => ext.read_link(&self.blocks, path).await?,
            (Inner::Iso(_), Node::Iso { link: Some(target), .. }) => target.clone(),
            _ => return Err(foreign()),
        };
        if target.len() > PATH_BYTES_MAX {
            return Err(Error::LimitExceeded {
                what: "bytes of a symbolic link's target",
                value: target.len() as u64,
                limit: PATH_BYTES_MAX as u64,
            });
        }
        Ok(target)
    }

    /// Reads the bytes of a regular file from `offset` into `buf`; gives how many, less than asked for only at its end.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if it is no regular file; what reading says; [`Error::Volume`].
    pub async fn read(&self, file: &Entry, offset: u64, buf: &mut [u8]) -> Result<usize> {
        if file.kind != FileKind::File {
            return Err(self.not(file, "a regular file"));
        }
        let rest = file.len.saturating_sub(offset);
        let len = usize::try_from(rest).map_or(buf.len(), |rest| rest.min(buf.len()));
        let buf = &mut buf[..len];
        if buf.is_empty() {
            return Ok(0);
        }
        match (&self.inner, &file.node) {
            (Inner::Ext(ext), Node::Ext(path)) => ext.read(&self.blocks, path, offset, buf).await,
            (Inner::Fat(fat), Node::Fat(start)) => {
                fat.read(&self.blocks, *start, offset, buf).await
            }
            (Inner::Iso(iso), Node::Iso { extents, .. }) => {
                iso.read(&self.blocks, extents, offset, buf).await
            }
            _ => Err(foreign()),
        }?;
        Ok(len)
    }

    fn not(&self, entry: &Entry, what: &str) -> Error {
        let name = String::from_utf8_lossy(&entry.name);
        Error::InvalidArgument(format!("{name:?} is a {}, not {what}", entry.kind.name()))
    }
}

/// The names that a path goes through, the last one first.
fn components(path: &[u8]) -> Vec<Vec<u8>> {
    path.split(|byte| *byte == b'/')
        .filter(|name| !name.is_empty())
        .map(<[u8]>::to_vec)
        .rev()
        .collect()
}

fn foreign() -> Error {
    Error::InvalidArgument("the entry is of another file system".to_owned())
}

/// Days from 1970 to a date of the Gregorian calendar; `None` if there is no such month or day.
fn days_before_epoch(year: i64, month: u32, day: u32) -> Option<i64> {
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    // Years begin in March, so that the leap day is their last.
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = i64::from((153 * ((month + 9) % 12) + 2) / 5 + day - 1);
    Some(era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468)
}
