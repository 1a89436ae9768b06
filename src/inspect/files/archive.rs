//! A folder as a tar archive, piece by piece.
//!
//! Who saves a disk's files saves what can be read: a folder that is damaged is left out, and where a file is damaged the
//! archive has zeros for the rest of it. Each is told. What the medium says ends the archive.

use super::walk::{DEPTH_MAX, Found, Unread, Walk};
use super::{Entry, FileKind, FileSystem, tar};
use crate::error::{Error, Result};
use crate::inspect::ReadAt;

/// The longest piece, in bytes.
const PIECE_LEN_MAX: usize = 1 << 20;

/// The archive of a folder, or of a single file.
#[derive(Debug)]
pub struct Archive {
    walk: Walk,
    file: Option<Reading>,
    has_ended: bool,
}

/// A file whose bytes come next.
#[derive(Debug)]
struct Reading {
    found: Found,
    /// How many of them have come.
    done: u64,
    /// What is left of it comes as zeros.
    is_damaged: bool,
}

/// What the next step of an archive gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// The archive goes on with the bytes that were put into the buffer.
    Bytes,
    /// Something of the disk that an archive has no place for: a device, a socket, a name that is none.
    LeftOut {
        /// Its path in the archive.
        path: Vec<u8>,
        /// What is said of it, to be read behind the path.
        text: String,
    },
    /// Something of the disk that could not be read, or not to its end.
    Damaged {
        /// Its path in the archive; empty for the folder that is archived.
        path: Vec<u8>,
        /// What is said of it, to be read behind the path.
        text: String,
    },
}

impl Archive {
    /// The archive of `top`; if that is a folder, of what is in it, under names that are relative to it.
    #[must_use]
    pub fn new(top: Entry) -> Self {
        let path = if top.kind == FileKind::Folder { Vec::new() } else { top.name.clone() };
        Self { walk: Walk::new(top, path), file: None, has_ended: false }
    }

    /// The next piece; its bytes are put into `bytes`, in place of what was there. `None` at the end.
    ///
    /// # Errors
    /// What the medium says. What is damaged is a [`Piece::Damaged`].
    ///
    /// # Cancel safety
    /// None: what was met when the future is dropped may be missing.
    pub async fn next<R: ReadAt>(
        &mut self,
        files: &FileSystem<R>,
        bytes: &mut Vec<u8>,
    ) -> Result<Option<Piece>> {
        bytes.clear();
        if let Some(reading) = &mut self.file {
            let piece = reading.next(files, bytes).await?;
            if reading.done >= reading.found.entry.len {
                bytes.resize(bytes.len() + tar::padding(reading.done), 0);
                self.file = None;
            }
            return Ok(Some(piece));
        }
        loop {
            match self.walk.next(files).await {
                // The folder that is archived has no name in its archive.
                Some(Ok(found)) if found.path.is_empty() => {}
                Some(Ok(found)) => return self.begin(files, found, bytes).await.map(Some),
                Some(Err(Unread { path, error })) => {
                    return damaged(path, error, "what is in it is left out").map(Some);
                }
                None if self.has_ended => return Ok(None),
                None => {
                    self.has_ended = true;
                    bytes.resize(tar::END_BYTES, 0);
                    return Ok(Some(Piece::Bytes));
                }
            }
        }
    }

    /// The header of what the walk met.
    async fn begin<R: ReadAt>(
        &mut self,
        files: &FileSystem<R>,
        found: Found,
        bytes: &mut Vec<u8>,
    ) -> Result<Piece> {
        let Found { entry, path, depth } = &found;
        let left_out = |why: &str| {
            let text = format!("is left out: {why}");
            match entry.problem {
                None => Piece::LeftOut { path: path.clone(), text },
                Some(_) => Piece::Damaged { path: path.clone(), text },
            }
        };
        if !entry.has_plain_name() {
            self.walk.skip();
            return Ok(left_out("its name is not one for a file"));
        }
        let link = match entry.kind {
            FileKind::Symlink => match files.read_link(entry).await {
                Ok(link) => Some(link),
                Err(error) => return damaged(found.path, error, "is left out"),
            },
            _ => None,
        };
        let Some(header) = tar::header(entry, path, link.as_deref())? else {
            return Ok(left_out(entry.problem.as_deref().unwrap_or(entry.kind.name())));
        };
        if entry.kind == FileKind::Folder && *depth >= DEPTH_MAX {
            return Ok(left_out("it lies too deep"));
        }
        bytes.extend_from_slice(&header);
        if entry.kind == FileKind::File && entry.len > 0 {
            self.file = Some(Reading { found, done: 0, is_damaged: false });
        }
        Ok(Piece::Bytes)
    }
}

impl Reading {
    /// More of the file's bytes, without what pads them.
    async fn next<R: ReadAt>(
        &mut self,
        files: &FileSystem<R>,
        bytes: &mut Vec<u8>,
    ) -> Result<Piece> {
        let rest = self.found.entry.len - self.done;
        let len = usize::try_from(rest).map_or(PIECE_LEN_MAX, |rest| rest.min(PIECE_LEN_MAX));
        bytes.resize(len, 0);
        if !self.is_damaged {
            match files.read(&self.found.entry, self.done, bytes).await {
                Ok(got) if got > 0 => bytes.truncate(got),
                Ok(_) => self.is_damaged = true,
                Err(error) => {
                    self.is_damaged = true;
                    bytes.clear();
                    let text = format!("has zeros from byte {} on", self.done);
                    return damaged(self.found.path.clone(), error, &text);
                }
            }
        }
        self.done += bytes.len() as u64;
        Ok(Piece::Bytes)
    }
}

/// What is damaged is told; what the medium says ends the archive.
fn damaged(path: Vec<u8>, error: Error, what: &str) -> Result<Piece> {
    match error {
        Error::Storage { .. } | Error::Closed => Err(error),
        error => Ok(Piece::Damaged { path, text: format!("{what}: {error}") }),
    }
}
