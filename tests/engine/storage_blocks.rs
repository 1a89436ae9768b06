//! The fear: a write of some bytes changes others, because the medium writes whole blocks.
//!
//! `Blocks` reads, changes and writes the block for a write that covers a part of it. The storage here takes nothing but
//! whole blocks, holds requests back until the test lets them go, and so shows what two writers in one block do to each
//! other. What is expected comes from a `Vec<u8>` that is changed beside it.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Mutex;
use std::task::{Context, Poll, Waker};

use cowshed::storage::{Blocks, Buf, MemoryStorage, Storage, StorageExtent, StorageLimits};
use event_listener::Event;
use futures::executor::block_on;

const BLOCK_LEN: usize = 512;

/// Memory that takes whole blocks only, with a gate before each write.
#[derive(Default)]
struct Blocky {
    bytes: MemoryStorage,
    alignment: u32,
    transfer_len_max: u32,
    /// How many writes may pass; `None`: any number.
    passes: Mutex<Option<usize>>,
    opened: Event,
    /// Writes that were dropped at the gate: they land at the flush.
    adrift: Mutex<Vec<(Vec<u8>, u64)>>,
    flushes: Mutex<usize>,
}

impl Blocky {
    fn new(len: usize) -> Self {
        let bytes = MemoryStorage::new(vec![0; len]);
        Self { bytes, alignment: 512, transfer_len_max: 2048, ..Self::default() }
    }

    fn let_pass(&self, count: Option<usize>) {
        *self.passes.lock().unwrap() = count;
        self.opened.notify(usize::MAX);
    }

    fn check(&self, offset: u64, len: usize) {
        assert!(offset.is_multiple_of(u64::from(self.alignment)), "{offset:#x} is not aligned");
        assert!(len.is_multiple_of(self.alignment as usize), "{len:#x} is not whole blocks");
        assert!(len <= self.transfer_len_max as usize, "{len:#x} is too long");
    }
}

/// A write at the gate. Dropped there, it lands at the next flush.
struct AtGate<'a> {
    storage: &'a Blocky,
    write: Option<(Vec<u8>, u64)>,
}

impl Drop for AtGate<'_> {
    fn drop(&mut self) {
        if let Some(write) = self.write.take() {
            self.storage.adrift.lock().unwrap().push(write);
        }
    }
}

impl Storage for Blocky {
    async fn read_at(&self, buf: Buf, offset: u64) -> io::Result<Buf> {
        self.check(offset, buf.len());
        assert!((buf.as_ptr() as usize).is_multiple_of(64), "memory is not aligned");
        Storage::read_at(&self.bytes, buf, offset).await
    }

    async fn write_at(&self, buf: Buf, offset: u64) -> io::Result<Buf> {
        self.check(offset, buf.len());
        assert!((buf.as_ptr() as usize).is_multiple_of(64), "memory is not aligned");
        let mut gate = AtGate { storage: self, write: Some((buf.to_vec(), offset)) };
        loop {
            let opened = self.opened.listen();
            match &mut *self.passes.lock().unwrap() {
                None => break,
                Some(0) => {}
                Some(left) => {
                    *left -= 1;
                    break;
                }
            }
            opened.await;
        }
        gate.write = None;
        Storage::write_at(&self.bytes, buf, offset).await
    }

    async fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        assert!(offset.is_multiple_of(512) && len.is_multiple_of(512));
        Storage::write_zeroes(&self.bytes, offset, len).await
    }

    async fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        assert!(offset.is_multiple_of(512) && len.is_multiple_of(512) && len > 0);
        Storage::write_zeroes(&self.bytes, offset, len).await
    }

    async fn flush(&self) -> io::Result<()> {
        *self.flushes.lock().unwrap() += 1;
        for (bytes, offset) in std::mem::take(&mut *self.adrift.lock().unwrap()) {
            Storage::try_write_at(&self.bytes, &bytes, offset).unwrap()?;
        }
        Ok(())
    }

    async fn len(&self) -> io::Result<u64> {
        Storage::len(&self.bytes).await
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        Storage::set_len(&self.bytes, len).await
    }

    async fn extent_at(&self, offset: u64, len: u64) -> io::Result<StorageExtent> {
        Storage::extent_at(&self.bytes, offset, len).await
    }

    fn limits(&self) -> StorageLimits {
        let mut limits = StorageLimits::default();
        limits.request_alignment = self.alignment;
        limits.memory_alignment = 64;
        limits.transfer_len_max = self.transfer_len_max;
        limits
    }
}

fn poll<F: Future>(future: &mut Pin<Box<F>>) -> Poll<F::Output> {
    future.as_mut().poll(&mut Context::from_waker(Waker::noop()))
}

fn assert_ready<F: Future<Output = io::Result<()>>>(future: &mut Pin<Box<F>>) {
    match poll(future) {
        Poll::Ready(result) => result.unwrap(),
        Poll::Pending => panic!("it waits"),
    }
}

/// xorshift64*: small, and the same on every machine.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % n
    }
}

#[test]
fn any_range_can_be_written_zeroed_and_discarded() {
    for alignment in [1, 512] {
        let seed = 0x9e37_79b9_7f4a_7c15;
        let mut random = Random(seed);
        let storage = Blocky { alignment, ..Blocky::new(0) };
        // A memory address that is a multiple of 64 is asked of both.
        let blocks = Blocks::new(storage.limits());
        let mut model: Vec<u8> = Vec::new();
        for step in 0..3000u32 {
            let (offset, len) = (random.below(8000), random.below(6000));
            let (from, to) = (offset as usize, (offset + len) as usize);
            match random.below(4) {
                0 if alignment > 1 => {
                    block_on(blocks.write_zeroes(&storage, offset, len)).unwrap();
                    model.resize(model.len().max(if len > 0 { to } else { 0 }), 0);
                    if len > 0 {
                        model[from..to].fill(0);
                    }
                }
                1 if alignment > 1 => {
                    block_on(blocks.discard(&storage, offset, len)).unwrap();
                    // This storage zeroes the whole blocks that it discards, and grows by it.
                    let (from, to) = (from.next_multiple_of(512), to / 512 * 512);
                    if from < to {
                        model.resize(model.len().max(to), 0);
                        model[from..to].fill(0);
                    }
                }
                _ => {
                    let bytes: Vec<u8> = (0..len).map(|i| (i as u8) ^ (step as u8)).collect();
                    block_on(blocks.write(&storage, &bytes, offset)).unwrap();
                    if len > 0 {
                        model.resize(model.len().max(to), 0);
                        model[from..to].copy_from_slice(&bytes);
                    }
                }
            }
            let mut found = storage.bytes.to_vec();
            assert!(found.len() - model.len() < alignment as usize, "step {step}, seed {seed:#x}");
            let padding = found.split_off(model.len());
            assert!(padding.iter().all(|&byte| byte == 0), "step {step}, seed {seed:#x}");
            assert!(found == model, "step {step}, seed {seed:#x}: {len} bytes at {offset}");
        }
    }
}

#[test]
fn two_writes_within_one_block_both_stay() {
    let storage = Blocky::new(BLOCK_LEN);
    let blocks = Blocks::new(storage.limits());
    storage.let_pass(Some(0));
    let mut first = Box::pin(blocks.write(&storage, b"first", 0));
    assert!(poll(&mut first).is_pending(), "it has read the block");
    let mut second = Box::pin(blocks.write(&storage, b"second", 100));
    assert!(poll(&mut second).is_pending());
    storage.let_pass(None);
    // Asked first, the second waits for the first all the same.
    assert!(poll(&mut second).is_pending());
    assert_ready(&mut first);
    assert_ready(&mut second);
    let bytes = storage.bytes.to_vec();
    assert_eq!((&bytes[..5], &bytes[100..106]), (&b"first"[..], &b"second"[..]));
}

#[test]
fn whole_block_is_not_undone_by_a_write_to_a_part_that_began_before() {
    let storage = Blocky::new(BLOCK_LEN);
    let blocks = Blocks::new(storage.limits());
    storage.let_pass(Some(0));
    let mut part = Box::pin(blocks.write(&storage, b"part", 0));
    assert!(poll(&mut part).is_pending());
    let whole = [b'w'; BLOCK_LEN];
    let mut write = Box::pin(blocks.write(&storage, &whole, 0));
    let mut zeroes = Box::pin(blocks.write_zeroes(&storage, 0, BLOCK_LEN as u64));
    storage.let_pass(None);
    assert!(poll(&mut write).is_pending() && poll(&mut zeroes).is_pending());
    assert_ready(&mut part);
    assert_ready(&mut zeroes);
    assert_ready(&mut write);
    assert_eq!(storage.bytes.to_vec(), whole);
}

#[test]
fn writes_of_other_blocks_and_of_whole_blocks_do_not_wait() {
    let storage = Blocky::new(BLOCK_LEN * 4);
    let blocks = Blocks::new(storage.limits());
    storage.let_pass(Some(0));
    let mut part = Box::pin(blocks.write(&storage, b"part", 0));
    let whole = [b'w'; BLOCK_LEN];
    let mut one = Box::pin(blocks.write(&storage, &whole, 1024));
    assert!(poll(&mut part).is_pending() && poll(&mut one).is_pending());
    storage.let_pass(Some(2));
    let mut other = Box::pin(blocks.write(&storage, b"other", 700));
    assert_ready(&mut other);
    let mut two = Box::pin(blocks.write(&storage, &whole, 1024));
    assert_ready(&mut two);
}

#[test]
fn dropped_write_to_a_part_lands_before_the_next_change_of_its_block_or_not_at_all() {
    let storage = Blocky::new(BLOCK_LEN);
    let blocks = Blocks::new(storage.limits());
    storage.let_pass(Some(0));
    let mut dropped = Box::pin(blocks.write(&storage, b"dropped", 0));
    assert!(poll(&mut dropped).is_pending(), "it has read the block");
    drop(dropped);
    storage.let_pass(None);
    block_on(blocks.write(&storage, b"kept", 100)).unwrap();
    assert_eq!(*storage.flushes.lock().unwrap(), 1);
    // Nothing lands any more that would bring back what the block was before.
    block_on(storage.flush()).unwrap();
    assert_eq!(&storage.bytes.to_vec()[100..104], b"kept");
    block_on(blocks.write(&storage, b"more", 200)).unwrap();
    assert_eq!(*storage.flushes.lock().unwrap(), 2, "one flush was enough");
}

#[test]
fn write_that_is_dropped_while_it_waits_leaves_no_trace() {
    let storage = Blocky::new(BLOCK_LEN);
    let blocks = Blocks::new(storage.limits());
    storage.let_pass(Some(0));
    let mut first = Box::pin(blocks.write(&storage, b"first", 0));
    let mut second = Box::pin(blocks.write(&storage, b"second", 100));
    assert!(poll(&mut first).is_pending() && poll(&mut second).is_pending());
    drop(second);
    storage.let_pass(None);
    assert_ready(&mut first);
    block_on(blocks.write(&storage, b"third", 200)).unwrap();
    assert_eq!(*storage.flushes.lock().unwrap(), 0);
    assert_eq!(storage.bytes.to_vec()[100..106], [0; 6]);
}

#[test]
fn ranges_out_of_this_world_are_errors() {
    let storage = Blocky::new(0);
    let blocks = Blocks::new(storage.limits());
    let too_large = io::ErrorKind::FileTooLarge;
    for offset in [u64::MAX, u64::MAX - 3, u64::MAX - 100] {
        assert_eq!(
            block_on(blocks.write(&storage, b"bytes", offset)).unwrap_err().kind(),
            too_large
        );
        let zeroes = block_on(blocks.write_zeroes(&storage, offset, 5));
        assert_eq!(zeroes.unwrap_err().kind(), too_large);
        assert!(block_on(blocks.discard(&storage, offset, 1000)).is_err());
    }
    assert_eq!(storage.bytes.into_vec(), b"");
}

/// On a real disk, through the real thing.
#[cfg(all(target_os = "linux", feature = "file"))]
#[test]
fn direct_file_takes_writes_of_any_range() {
    use cowshed::rt::{FileOptions, open_storage};
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let options = FileOptions::new().writable(true).create(true).direct(true);
    let storage = open_storage(folder.path().join("disk"), &options).unwrap();
    let blocks = Blocks::new(Storage::limits(&storage));
    assert!(Storage::limits(&storage).request_alignment > 1);
    let mut model = vec![0; 40_000];
    let mut random = Random(1);
    for step in 0..200u32 {
        let (from, len) = (random.below(30_000) as usize, 1 + random.below(9_999) as usize);
        let bytes: Vec<u8> = (0..len).map(|i| (i as u8) ^ (step as u8)).collect();
        cowshed::rt::block_on(blocks.write(&storage, &bytes, from as u64)).unwrap();
        model[from..from + len].copy_from_slice(&bytes);
    }
    drop(storage);
    let mut found = std::fs::read(folder.path().join("disk")).unwrap();
    found.resize(40_000.max(found.len()), 0);
    assert!(found[..40_000] == model);
}

#[test]
fn changes_of_a_storage_for_many_threads_are_send() {
    fn assert_send<T: Send>(it: T) -> T {
        it
    }
    let storage = MemoryStorage::default();
    let blocks = Blocks::new(Storage::limits(&storage));
    block_on(assert_send(blocks.write(&storage, b"bytes", 1))).unwrap();
    block_on(assert_send(blocks.write_zeroes(&storage, 2, 1))).unwrap();
    block_on(assert_send(blocks.discard(&storage, 7, 1))).unwrap();
    assert_eq!(storage.into_vec(), b"\0b\0tes");
}
