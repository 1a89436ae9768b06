//! Dirty slices on their way to the storage.
//!
//! A write-back is a copy, so that what is written is what the slices said at one moment, whatever becomes of them while
//! other things must be made durable first.

use std::io;

use super::table::TableCache;
use crate::storage::{Blocks, Storage};

/// How many bytes go in one request, if slices lie side by side.
const RUN_LEN_BYTES_MAX: usize = 1 << 20;

/// Copies of slices that are to be written. What was not written when it is dropped is dirty again.
#[derive(Debug)]
#[must_use = "what is not written is dirty again"]
pub struct WriteBack<'a> {
    cache: &'a TableCache,
    /// Runs of slices that lie side by side, in their order on disk.
    runs: Vec<Run>,
    len_bytes: u64,
}

#[derive(Debug)]
struct Run {
    offset: u64,
    bytes: Vec<u8>,
}

impl<'a> WriteBack<'a> {
    pub(super) fn new(cache: &'a TableCache) -> Self {
        Self { cache, runs: Vec::new(), len_bytes: 0 }
    }

    /// Adds the slice at `offset`, if `copy` says that it has copied it.
    pub(super) fn add(&mut self, offset: u64, copy: impl FnOnce(&mut [u8]) -> bool) {
        let len = usize::try_from(self.cache.entry_bytes()).unwrap_or(usize::MAX);
        let goes_on = self.runs.last().is_some_and(|run| {
            run.offset + run.bytes.len() as u64 == offset && run.bytes.len() < RUN_LEN_BYTES_MAX
        });
        if !goes_on {
            self.runs.push(Run { offset, bytes: Vec::new() });
        }
        // OK to index: there is one now.
        let last = self.runs.len() - 1;
        let bytes = &mut self.runs[last].bytes;
        let start = bytes.len();
        bytes.resize(start + len, 0);
        if copy(&mut bytes[start..]) {
            self.len_bytes += len as u64;
            return;
        }
        bytes.truncate(start);
        if start == 0 {
            self.runs.pop();
        }
    }

    /// Whether there is nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// How much there is to write, in bytes.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// Where the next write-back of the same sweep goes on: behind the last slice.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.runs.last().map_or(u64::MAX, |run| run.offset + run.bytes.len() as u64)
    }

    /// Writes the copies, through the `blocks` of the storage.
    ///
    /// # Errors
    /// What the storage says; what was not written is dirty again.
    ///
    /// # Cancel safety
    /// What was not written is dirty again. One request may still land, as the storage's contract says: the next
    /// write-back of the same slices has to wait for a flush.
    pub async fn write<S: Storage>(mut self, storage: &S, blocks: &Blocks) -> io::Result<()> {
        while let Some(run) = self.runs.last() {
            blocks.write(storage, &run.bytes, run.offset).await?;
            let run = self.runs.pop();
            self.end_run(run, true);
        }
        Ok(())
    }

    fn end_run(&self, run: Option<Run>, written: bool) {
        let Some(run) = run else { return };
        let slices = (0..run.bytes.len() as u64)
            .step_by(usize::try_from(self.cache.entry_bytes()).unwrap_or(usize::MAX));
        for slice in slices {
            self.cache.end_write_back(run.offset + slice, written);
        }
    }
}

impl Drop for WriteBack<'_> {
    fn drop(&mut self) {
        while let Some(run) = self.runs.pop() {
            self.end_run(Some(run), false);
        }
    }
}
