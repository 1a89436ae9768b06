//! Writes into the page cache, made on the thread that asks for them.
//!
//! Such a write copies memory and returns; handing it to another thread costs several times what it does: 4 KiB took
//! 1.4 us on tmpfs and 4 us on ext4, 20 to 40 us by the pool of threads, and 45 to 60 us by io_uring, which hands it to
//! a thread of the kernel's. The kernel has a flag for writing only what needs no waiting (`RWF_NOWAIT`), but ext4 and
//! tmpfs do not take it for writes (Linux 6.18), so this decides beforehand where a plain `pwrite` may wait:
//!
//! - for a **read**, if the write covers a part of a block that is not cached: such a write is left to who waits;
//! - for **another program**, on a file system that is served by one (FUSE, a network). It may even be this program, on
//!   this very thread. Only file systems that are known to be local are written to at once;
//! - for **memory**, when the kernel slows down who writes faster than the medium (up to 200 ms at a time). A thread in
//!   [`block_on`](super::block_on()) is the caller's own and takes that, as it would from `pwrite`. Any other thread is
//!   an executor's, with other tasks: there only short writes are made at once, and after one that took long the
//!   others go to where waiting is done, for a multiple of that time.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::{block_on, posix};

/// The longest write that an executor's thread makes at once: some 30 us of copying.
const LEN_BYTES_MAX: usize = 128 << 10;

/// A write of at most that many bytes takes 2 to 30 us; one that takes longer than this has waited.
const WAITED: Duration = Duration::from_millis(1);

/// How many times as long as a write has waited none is made at once: a thread is held up for a tenth of its time.
const REST_FACTOR: u32 = 9;

/// Which writes of one file are made at once.
#[derive(Debug)]
pub(super) struct WritesAtOnce {
    is_local: bool,
    /// A write of whole blocks of this many bytes reads none.
    block_len: u64,
    opened: Instant,
    /// No executor's thread makes a write at once before this, in nanoseconds since `opened`.
    not_before: AtomicU64,
}

impl WritesAtOnce {
    /// Looks at the file, which is open for writing, and around the page cache or not.
    pub(super) fn new(file: &File, direct: bool) -> io::Result<Self> {
        Ok(Self {
            is_local: !direct && posix::is_local(file),
            block_len: file.metadata()?.blksize().max(1),
            opened: Instant::now(),
            not_before: AtomicU64::new(0),
        })
    }

    /// Writes all of `data`, or says `None` and has written nothing.
    pub(super) fn try_write_at(
        &self,
        file: &File,
        data: &[u8],
        offset: u64,
    ) -> Option<io::Result<()>> {
        if !self.is_local || !self.finds_blocks_cached(file, data.len(), offset) {
            return None;
        }
        if block_on::is_driving() {
            return Some(posix::write_at(file, data, offset));
        }
        let began = self.now();
        if data.len() > LEN_BYTES_MAX || began < self.not_before.load(Ordering::Relaxed) {
            return None;
        }
        let result = posix::write_at(file, data, offset);
        let ended = self.now();
        self.rest(began, ended);
        Some(result)
    }

    /// Whether no block must be read in order to write a part of it.
    fn finds_blocks_cached(&self, file: &File, len: usize, offset: u64) -> bool {
        let Some(end) = offset.checked_add(len as u64) else { return true };
        let is_cached = |at: u64| at.is_multiple_of(self.block_len) || posix::is_cached(file, at);
        // One byte tells of its block. A block that begins past the end of the file is cached in that sense.
        is_cached(offset) && is_cached(end)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.opened.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// After a write that has waited, leaves those that follow to others for a while.
    fn rest(&self, began: u64, ended: u64) {
        let took = Duration::from_nanos(ended.saturating_sub(began));
        if took > WAITED {
            let rest = u64::try_from((took * REST_FACTOR).as_nanos()).unwrap_or(u64::MAX);
            self.not_before.fetch_max(ended.saturating_add(rest), Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{AtomicU64, Instant, Ordering, WritesAtOnce};

    #[test]
    fn a_write_that_waited_sends_others_away_for_nine_times_as_long() {
        let writes = WritesAtOnce {
            is_local: true,
            block_len: 4096,
            opened: Instant::now(),
            not_before: AtomicU64::new(0),
        };
        let not_before = || writes.not_before.load(Ordering::Relaxed);
        writes.rest(5_000_000, 5_900_000);
        assert_eq!(not_before(), 0);
        writes.rest(10_000_000, 12_000_000);
        assert_eq!(not_before(), 12_000_000 + 9 * 2_000_000);
        // A shorter wait elsewhere does not end it early.
        writes.rest(10_000_000, 11_500_000);
        assert_eq!(not_before(), 12_000_000 + 9 * 2_000_000);
    }
}
