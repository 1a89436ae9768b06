//! The volumes of a disk: what may have files on it, and the file systems that are there.

use super::files::FileSystem;
use super::foreign::foreign;
use super::partitions::{Partition, Partitions, partitions};
use super::{ReadAt, Window};
use crate::error::{Error, Result};

/// A part of a disk that may have a file system.
pub struct Volume<R> {
    /// Its partition; without one it is the disk as a whole.
    pub partition: Option<Partition>,
    /// Where it starts on the disk, in bytes.
    pub start: u64,
    /// Its length in bytes, as its table says it.
    pub len: u64,
    /// Its files, if it has a file system that is known and whole.
    pub files: Option<FileSystem<Window<R>>>,
    /// Why they cannot be read, if it has one that is known.
    pub problem: Option<Error>,
    /// What it has instead, if that is known by its name and not read: `NTFS`, `XFS`, `LUKS`, ...
    pub foreign: Option<&'static str>,
}

impl<R> Volume<R> {
    /// The number of its partition, 0 for the disk as a whole.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.partition.as_ref().map_or(0, |partition| partition.number)
    }
}

/// Finds the volumes of a disk: itself if it has a file system or nothing else, then its partitions.
///
/// # Errors
/// What reading says. What is wrong with a table is a finding, and with a file system its volume's problem.
///
/// # Cancel safety
/// Dropping the future has no effect.
pub async fn volumes<R: ReadAt + Clone>(disk: R) -> Result<(Partitions, Vec<Volume<R>>)> {
    let table = partitions(&disk).await?;
    let mut volumes = Vec::new();
    let whole = volume(&disk, 0, disk.len(), None).await?;
    if whole.files.is_some() || whole.problem.is_some() || table.partitions.is_empty() {
        volumes.push(whole);
    }
    for partition in table.partitions.iter().filter(|partition| !partition.kind.is_extended()) {
        let (start, len) = (partition.start, partition.len);
        volumes.push(volume(&disk, start, len, Some(partition.clone())).await?);
    }
    Ok((table, volumes))
}

async fn volume<R: ReadAt + Clone>(
    disk: &R,
    start: u64,
    len: u64,
    partition: Option<Partition>,
) -> Result<Volume<R>> {
    let window = Window::new(disk.clone(), start, len);
    let (files, problem) = match FileSystem::open(window.clone()).await {
        Ok(files) => (files, None),
        // What the medium says is no property of the volume.
        Err(error @ (Error::Storage { .. } | Error::Closed)) => return Err(error),
        Err(error) => (None, Some(error)),
    };
    let foreign = match (&files, &problem) {
        (None, None) => foreign(&window).await?,
        _ => None,
    };
    Ok(Volume { partition, start, len, files, problem, foreign })
}
