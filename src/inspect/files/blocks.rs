//! A small cache of a volume's blocks, for readers of file systems: reads that wait, and reads for code that cannot.
//!
//! A synchronous reader (`ext4-view`) runs over what is cached; where it meets a block that is not, it fails, the block is
//! fetched, and it runs again ([`Blocks::run`]). What one operation needs is kept until it ends, and what it may need is
//! bounded, so that it comes to an end. Fetches grow while a reader goes forward.
//!
//! It must not know any file system.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;

use crate::error::{Error, Result};
use crate::inspect::{ReadAt, must_lie_within};

/// The length of a block, in bytes.
const BLOCK_BYTES: u64 = 64 << 10;
const BLOCK_LEN: usize = 64 << 10;
/// The longest fetch, in blocks: 4 MiB.
const FETCH_BLOCKS_MAX: u64 = 64;
/// What stays cached between operations, in blocks: 16 MiB.
const IDLE_BLOCKS_MAX: usize = 256;
/// What one operation may keep, in blocks: 256 MiB.
const OPERATION_BLOCKS_MAX: usize = 4096;

/// A volume behind a cache.
pub(super) struct Blocks<R> {
    volume: R,
    cached: Cached,
}

/// The cache, shared with a synchronous reader.
#[derive(Clone)]
pub(super) struct Cached(Rc<RefCell<State>>);

struct State {
    len: u64,
    blocks: BTreeMap<u64, Block>,
    /// Counts uses, to find what was used last.
    clock: u64,
    /// The block that a synchronous read missed.
    missed: Option<u64>,
    /// Where the last fetch ended, and how long it was, in blocks.
    fetched: (u64, u64),
}

struct Block {
    bytes: Box<[u8]>,
    used: u64,
}

impl<R: ReadAt> Blocks<R> {
    pub(super) fn new(volume: R) -> Self {
        let state = State {
            len: volume.len(),
            blocks: BTreeMap::new(),
            clock: 0,
            missed: None,
            fetched: (0, 1),
        };
        Self { volume, cached: Cached(Rc::new(RefCell::new(state))) }
    }

    /// The length of the volume, in bytes.
    pub(super) fn len(&self) -> u64 {
        self.volume.len()
    }

    /// The cache, for a synchronous reader.
    pub(super) fn cached(&self) -> Cached {
        self.cached.clone()
    }

    /// Reads past the cache: for the bytes of files.
    pub(super) async fn read_through(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.volume.read_at(buf, offset).await
    }

    /// Reads through the cache: for metadata.
    pub(super) async fn read(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        must_lie_within(offset, buf.len() as u64, self.len())?;
        loop {
            if self.cached.copy(buf, offset) {
                self.cached.shrink();
                return Ok(());
            }
            self.fetch().await?;
        }
    }

    /// Runs `operation` until it misses nothing, whatever it returned meanwhile.
    pub(super) async fn run<T>(&self, mut operation: impl FnMut() -> T) -> Result<T> {
        loop {
            self.cached.0.borrow_mut().missed = None;
            let result = operation();
            if self.cached.0.borrow().missed.is_none() {
                self.cached.shrink();
                return Ok(result);
            }
            self.fetch().await?;
        }
    }

    /// Fetches the block that was missed, and more where the reader goes forward.
    async fn fetch(&self) -> Result<()> {
        let (first, count) = {
            let mut state = self.cached.0.borrow_mut();
            let Some(first) = state.missed.take() else { return Ok(()) };
            if state.blocks.len() >= OPERATION_BLOCKS_MAX {
                return Err(Error::LimitExceeded {
                    what: "bytes of metadata for one look into a file system",
                    value: state.blocks.len() as u64 * BLOCK_BYTES,
                    limit: OPERATION_BLOCKS_MAX as u64 * BLOCK_BYTES,
                });
            }
            let (end, last) = state.fetched;
            let count = if first == end { (last * 2).min(FETCH_BLOCKS_MAX) } else { 1 };
            let blocks = state.len.div_ceil(BLOCK_BYTES);
            (first, count.min(blocks - first))
        };
        let start = first * BLOCK_BYTES;
        let len = (count * BLOCK_BYTES).min(self.len() - start);
        // OK to unwrap: at most 4 MiB.
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
        // Cancel: what is cached stays as it was.
        self.volume.read_at(&mut bytes, start).await?;
        let mut state = self.cached.0.borrow_mut();
        state.fetched = (first + count, count);
        state.clock += 1;
        let used = state.clock;
        for (number, bytes) in (first..).zip(bytes.chunks(BLOCK_LEN)) {
            state.blocks.insert(number, Block { bytes: bytes.into(), used });
        }
        Ok(())
    }
}

impl Cached {
    /// Whether something was missed since the operation began: then what it found is worth nothing.
    pub(super) fn has_missed(&self) -> bool {
        self.0.borrow().missed.is_some()
    }

    /// Fills `buf` from `offset`, or notes the first block that is missing. The range must lie within the volume.
    fn copy(&self, buf: &mut [u8], offset: u64) -> bool {
        let mut state = self.0.borrow_mut();
        state.clock += 1;
        let used = state.clock;
        let mut at = offset;
        let mut rest = buf;
        while !rest.is_empty() {
            let (number, skip) = (at / BLOCK_BYTES, (at % BLOCK_BYTES) as usize);
            let Some(block) = state.blocks.get_mut(&number) else {
                state.missed = Some(number);
                return false;
            };
            block.used = used;
            let len = rest.len().min(block.bytes.len() - skip);
            let (now, later) = rest.split_at_mut(len);
            now.copy_from_slice(&block.bytes[skip..skip + len]);
            rest = later;
            at += len as u64;
        }
        true
    }

    /// Drops what was not used for longest, down to what may stay.
    fn shrink(&self) {
        let mut state = self.0.borrow_mut();
        let excess = state.blocks.len().saturating_sub(IDLE_BLOCKS_MAX);
        if excess == 0 {
            return;
        }
        let mut ages: Vec<_> =
            state.blocks.iter().map(|(number, block)| (block.used, *number)).collect();
        ages.sort_unstable();
        // More than asked for, so that it is not done at each read.
        for (_, number) in ages.iter().take(excess + IDLE_BLOCKS_MAX / 4) {
            state.blocks.remove(number);
        }
    }
}

/// Why a synchronous read failed.
#[derive(Debug)]
struct Unread(&'static str);

impl fmt::Display for Unread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Unread {}

impl ext4_view::Ext4Read for Cached {
    fn read(
        &mut self,
        start_byte: u64,
        dst: &mut [u8],
    ) -> std::result::Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let len = self.0.borrow().len;
        if start_byte.checked_add(dst.len() as u64).is_none_or(|end| end > len) {
            return Err(Box::new(Unread("it lies past the end of the volume")));
        }
        if self.copy(dst, start_byte) {
            Ok(())
        } else {
            Err(Box::new(Unread("it is not here yet")))
        }
    }
}
