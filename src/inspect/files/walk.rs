//! A walk through a tree: everything below a folder, one after the other.

use super::{Entry, FileKind, FileSystem};
use crate::error::Error;
use crate::inspect::ReadAt;

/// How deep a tree is walked: a disk must not make us walk for ever.
pub const DEPTH_MAX: usize = 1024;

/// A walk: folders before what is in them, each one's entries in the order of their names.
///
/// It holds the entries of the folders on the way, each at most [`ENTRIES_MAX`](super::ENTRIES_MAX).
#[derive(Debug)]
pub struct Walk {
    /// The next one last.
    rest: Vec<Found>,
    /// The folder that was given last and not read yet.
    folder: Option<Found>,
}

/// Something met on a walk.
#[derive(Debug, Clone)]
pub struct Found {
    /// What it is.
    pub entry: Entry,
    /// Its path: that of the walk's top, and the names on the way.
    pub path: Vec<u8>,
    /// How many folders lie between it and the top; what lies at [`DEPTH_MAX`] is not walked into.
    pub depth: usize,
}

/// A folder that could not be read. The walk goes on behind it.
#[derive(Debug)]
pub struct Unread {
    /// The folder's path.
    pub path: Vec<u8>,
    /// Why.
    pub error: Error,
}

impl Walk {
    /// Walks from `top` on, which is called `path` and comes first.
    #[must_use]
    pub fn new(top: Entry, path: Vec<u8>) -> Self {
        Self { rest: vec![Found { entry: top, path, depth: 0 }], folder: None }
    }

    /// What comes next; `None` at the end.
    ///
    /// # Errors
    /// [`Unread`], after which the walk can go on.
    ///
    /// # Cancel safety
    /// If the future is dropped, the next call gives what it would have given.
    pub async fn next<R: ReadAt>(
        &mut self,
        files: &FileSystem<R>,
    ) -> Option<Result<Found, Unread>> {
        if let Some(folder) = &self.folder {
            // Cancel: the folder is still to be read.
            let read = files.read_dir(&folder.entry).await;
            let folder = self.folder.take()?;
            match read {
                Ok(entries) => self.enter(&folder, entries),
                Err(error) => return Some(Err(Unread { path: folder.path, error })),
            }
        }
        let found = self.rest.pop()?;
        if found.entry.kind == FileKind::Folder && found.depth < DEPTH_MAX {
            self.folder = Some(found.clone());
        }
        Some(Ok(found))
    }

    /// Leaves out what is in the folder that was given last.
    pub fn skip(&mut self) {
        self.folder = None;
    }

    fn enter(&mut self, folder: &Found, mut entries: Vec<Entry>) {
        entries.sort_by(|a, b| b.name.cmp(&a.name));
        self.rest.extend(entries.into_iter().map(|entry| Found {
            path: join(&folder.path, &entry.name),
            entry,
            depth: folder.depth + 1,
        }));
    }
}

/// A path and a name behind it.
#[must_use]
pub fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    let mut joined = path.to_vec();
    if !joined.is_empty() && !joined.ends_with(b"/") {
        joined.push(b'/');
    }
    joined.extend_from_slice(name);
    joined
}
