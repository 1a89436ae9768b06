//! ext2, ext3 and ext4, by the crate `ext4-view`: it reads synchronously, so that it runs over cached blocks.

use std::cell::RefCell;

use ext4_view::{Ext4, Ext4Error, File, FileType, Metadata, Path};

use super::blocks::Blocks;
use super::{ENTRIES_MAX, Entry, FileKind, Node, Owner};
use crate::error::{Error, Result};
use crate::inspect::ReadAt;
use crate::inspect::little_endian::u32_at;

const NAME: &str = "ext file system";
const SUPERBLOCK_OFFSET: u64 = 1024;
const MAGIC_OFFSET: u64 = SUPERBLOCK_OFFSET + 0x38;

/// How much is read at a time to get to an offset, in bytes.
const SKIP_BYTES: usize = 64 << 10;

/// Superblock, s_feature_compat: has a journal.
const COMPAT_HAS_JOURNAL: u32 = 0x4;
/// Superblock, s_feature_incompat: what only ext4 has (extents, 64 bits, flexible groups).
const INCOMPAT_EXT4: u32 = 0x40 | 0x80 | 0x200;

/// A mounted file system.
pub(super) struct Ext {
    fs: Ext4,
    /// Its name: `ext2`, `ext3` or `ext4`.
    pub(super) name: &'static str,
    /// The file that was read last and stays open, so that reading on needs no walk from its start.
    open: RefCell<Option<Reader>>,
}

impl Ext {
    /// Mounts the volume, if its superblock has the magic number.
    pub(super) async fn open<R: ReadAt>(blocks: &Blocks<R>) -> Result<Option<Self>> {
        let mut magic = [0; 2];
        if blocks.len() < MAGIC_OFFSET + 2 {
            return Ok(None);
        }
        blocks.read(&mut magic, MAGIC_OFFSET).await?;
        if magic != [0x53, 0xef] {
            return Ok(None);
        }
        let mut features = [0; 8];
        blocks.read(&mut features, SUPERBLOCK_OFFSET + 0x5c).await?;
        let (compat, incompat) = (u32_at(&features, 0), u32_at(&features, 4));
        let name = if incompat & INCOMPAT_EXT4 != 0 {
            "ext4"
        } else if compat & COMPAT_HAS_JOURNAL != 0 {
            "ext3"
        } else {
            "ext2"
        };
        let cached = blocks.cached();
        let fs = blocks.run(|| Ext4::load(Box::new(cached.clone()))).await?.map_err(failed)?;
        Ok(Some(Self { fs, name, open: RefCell::new(None) }))
    }

    /// Its label, without trailing zeros.
    pub(super) fn label(&self) -> Vec<u8> {
        let text = self.fs.label().as_bytes();
        text.iter().copied().take_while(|byte| *byte != 0).collect()
    }

    pub(super) fn uuid(&self) -> String {
        self.fs.uuid().to_string()
    }

    pub(super) async fn root<R: ReadAt>(&self, blocks: &Blocks<R>) -> Result<Entry> {
        self.lookup(blocks, b"", b"")
            .await?
            .ok_or_else(|| Error::volume(NAME, 0, "it has no root folder"))
    }

    /// The entry `name` of the folder at `folder`; the folder itself if the name is empty.
    pub(super) async fn lookup<R: ReadAt>(
        &self,
        blocks: &Blocks<R>,
        folder: &[u8],
        name: &[u8],
    ) -> Result<Option<Entry>> {
        let path = join(folder, name);
        let Ok(parsed) = Path::try_from(path.as_slice()) else { return Ok(None) };
        match blocks.run(|| self.fs.symlink_metadata(parsed)).await? {
            Ok(metadata) => Ok(Some(entry(name.to_vec(), path, &metadata))),
            Err(Ext4Error::NotFound) => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }

    /// The entries of the folder at `path`, without itself and its parent.
    pub(super) async fn read_dir<R: ReadAt>(
        &self,
        blocks: &Blocks<R>,
        path: &[u8],
    ) -> Result<Vec<Entry>> {
        let list = || -> std::result::Result<Vec<_>, Ext4Error> {
            // One more than may be, so that one can see that there are more.
            self.fs.read_dir(parsed(path)?)?.take(ENTRIES_MAX + 3).collect()
        };
        let listed = blocks.run(list).await?.map_err(failed)?;
        let mut entries = Vec::with_capacity(listed.len());
        for item in &listed {
            let name = item.file_name().as_ref().to_vec();
            if name == b"." || name == b".." {
                continue;
            }
            let at = join(path, &name);
            entries.push(match blocks.run(|| item.metadata()).await? {
                Ok(metadata) => entry(name, at, &metadata),
                // One bad inode must not hide the others.
                Err(error) => Entry {
                    problem: Some(failed(error).to_string()),
                    ..Entry::new(name, FileKind::Unknown, 0, Node::Ext(at))
                },
            });
        }
        Ok(entries)
    }

    pub(super) async fn read_link<R: ReadAt>(
        &self,
        blocks: &Blocks<R>,
        path: &[u8],
    ) -> Result<Vec<u8>> {
        let target = blocks.run(|| self.fs.read_link(parsed(path)?)).await?.map_err(failed)?;
        Ok(<ext4_view::PathBuf as AsRef<[u8]>>::as_ref(&target).to_vec())
    }

    /// Fills `buf` from `offset` of the file at `path`, which must be within it. Reading forward is quick; going back, or far
    /// ahead, reads all that lies before.
    pub(super) async fn read<R: ReadAt>(
        &self,
        blocks: &Blocks<R>,
        path: &[u8],
        offset: u64,
        buf: &mut [u8],
    ) -> Result<()> {
        // Cancel: the open file is lost; the next read opens it anew.
        let mut reader = match self.open.take() {
            Some(reader) if reader.path == path && reader.position <= offset => reader,
            _ => Reader { path: path.to_vec(), position: 0, file: None },
        };
        let mut skipped = vec![0; SKIP_BYTES];
        while reader.position < offset {
            let rest = offset - reader.position;
            let len = usize::try_from(rest).map_or(SKIP_BYTES, |rest| rest.min(SKIP_BYTES));
            self.read_some(blocks, &mut reader, &mut skipped[..len]).await?;
        }
        let mut done = 0;
        while done < buf.len() {
            done += self.read_some(blocks, &mut reader, &mut buf[done..]).await?;
        }
        self.open.replace(Some(reader));
        Ok(())
    }

    /// Reads on, at least one byte.
    ///
    /// A `File` that met an error panics when it is read again, and `seek_to` hides errors. So a file that missed a block is
    /// opened anew, and sought only to where one has come without an error before: then nothing but a miss can be hidden.
    async fn read_some<R: ReadAt>(
        &self,
        blocks: &Blocks<R>,
        reader: &mut Reader,
        buf: &mut [u8],
    ) -> Result<usize> {
        let cached = blocks.cached();
        let step = || {
            let mut file = match reader.file.take() {
                Some(file) => file,
                None => {
                    let mut file = self.fs.open(parsed(&reader.path)?)?;
                    file.seek_to(reader.position)?;
                    file
                }
            };
            if cached.has_missed() {
                return Ok(0);
            }
            let len = file.read_bytes(buf)?;
            if !cached.has_missed() {
                reader.file = Some(file);
            }
            Ok(len)
        };
        match blocks.run(step).await?.map_err(failed)? {
            0 => Err(Error::volume(NAME, 0, "a file ends before its length")),
            len => {
                reader.position += len as u64;
                Ok(len)
            }
        }
    }
}

/// A file that is read forward.
struct Reader {
    path: Vec<u8>,
    /// Where it goes on, in bytes; what lies before was read without an error.
    position: u64,
    /// At `position`, if it missed nothing.
    file: Option<File>,
}

fn parsed(path: &[u8]) -> std::result::Result<Path<'_>, Ext4Error> {
    Path::try_from(path).map_err(|_| Ext4Error::MalformedPath)
}

fn join(folder: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = folder.to_vec();
    if path.last() != Some(&b'/') {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}

fn entry(name: Vec<u8>, path: Vec<u8>, metadata: &Metadata) -> Entry {
    let kind = match metadata.file_type() {
        FileType::Regular => FileKind::File,
        FileType::Directory => FileKind::Folder,
        FileType::Symlink => FileKind::Symlink,
        FileType::BlockDevice => FileKind::BlockDevice,
        FileType::CharacterDevice => FileKind::CharacterDevice,
        FileType::Fifo => FileKind::Fifo,
        FileType::Socket => FileKind::Socket,
    };
    Entry {
        mode: Some(metadata.mode()),
        owner: Some(Owner { user: metadata.uid(), group: metadata.gid() }),
        modified: Some(metadata.modified().seconds()),
        ..Entry::new(name, kind, metadata.len(), Node::Ext(path))
    }
}

fn failed(error: Ext4Error) -> Error {
    Error::volume(NAME, 0, error.to_string())
}
