//! A storage for tests of the cache: endless, its bytes a function of their offset, its reads held at a gate until the
//! test lets them through.

#![allow(dead_code, reason = "each program uses a part")]

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use cowshed::storage::{Buf, SendStorage, StorageLimits};
use futures::channel::oneshot;

/// The word of 64 bits that the storage holds at `offset`, a multiple of 8.
pub(crate) fn word_at(offset: u64) -> u64 {
    let mut word = offset.wrapping_add(0x9e37_79b9_7f4a_7c15);
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// The storage; clones are the same one.
#[derive(Clone)]
pub(crate) struct Gated {
    inner: Arc<Inner>,
}

struct Inner {
    limits: StorageLimits,
    /// Whether the synchronous door answers.
    door: AtomicBool,
    /// Whether reads wait at the gate.
    gate: AtomicBool,
    fail_door: AtomicBool,
    waiting: Mutex<Vec<(u64, oneshot::Sender<io::Result<()>>)>>,
    reads: AtomicUsize,
    door_reads: AtomicUsize,
    in_flight: Mutex<HashMap<u64, usize>>,
    in_flight_max: AtomicUsize,
}

impl Gated {
    /// The synchronous door says `None`, and every read waits for [`Self::release`] or [`Self::fail`].
    pub(crate) fn shut() -> Self {
        Self::new(false, true, StorageLimits::default())
    }

    /// The synchronous door answers at once.
    pub(crate) fn open() -> Self {
        Self::new(true, false, StorageLimits::default())
    }

    /// The synchronous door says `None`; reads complete at their second poll.
    pub(crate) fn asynchronous() -> Self {
        Self::new(false, false, StorageLimits::default())
    }

    /// As [`Self::open`] or [`Self::asynchronous`], with limits.
    pub(crate) fn with_limits(door: bool, limits: StorageLimits) -> Self {
        Self::new(door, false, limits)
    }

    fn new(door: bool, gate: bool, limits: StorageLimits) -> Self {
        let inner = Inner {
            limits,
            door: door.into(),
            gate: gate.into(),
            fail_door: false.into(),
            waiting: Mutex::default(),
            reads: 0.into(),
            door_reads: 0.into(),
            in_flight: Mutex::default(),
            in_flight_max: 0.into(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Offsets of the reads at the gate, oldest first. A read whose future was dropped is not there.
    pub(crate) fn waiting(&self) -> Vec<u64> {
        let mut waiting = self.inner.waiting.lock().unwrap();
        waiting.retain(|(_, sender)| !sender.is_canceled());
        waiting.iter().map(|(offset, _)| *offset).collect()
    }

    /// Lets the oldest read of `offset` through.
    pub(crate) fn release(&self, offset: u64) {
        self.answer(offset, Ok(()));
    }

    /// Makes the oldest read of `offset` fail.
    pub(crate) fn fail(&self, offset: u64) {
        self.answer(offset, Err(io::Error::other("the gate says no")));
    }

    fn answer(&self, offset: u64, answer: io::Result<()>) {
        self.waiting();
        let mut waiting = self.inner.waiting.lock().unwrap();
        let index = waiting.iter().position(|(at, _)| *at == offset).expect("no such read waits");
        let (_, sender) = waiting.remove(index);
        drop(waiting);
        sender.send(answer).unwrap();
    }

    /// From now on the synchronous door answers with an error, or not.
    pub(crate) fn fail_door(&self, fail: bool) {
        self.inner.fail_door.store(fail, Ordering::SeqCst);
    }

    /// From now on the synchronous door answers, or not.
    pub(crate) fn set_door(&self, open: bool) {
        self.inner.door.store(open, Ordering::SeqCst);
    }

    /// How many reads there were through the asynchronous door.
    pub(crate) fn reads(&self) -> usize {
        self.inner.reads.load(Ordering::SeqCst)
    }

    /// How many reads there were through the synchronous door.
    pub(crate) fn door_reads(&self) -> usize {
        self.inner.door_reads.load(Ordering::SeqCst)
    }

    /// The most reads of one offset that were in flight at a time.
    pub(crate) fn in_flight_max(&self) -> usize {
        self.inner.in_flight_max.load(Ordering::SeqCst)
    }

    fn fill(&self, buf: &mut [u8], offset: u64) {
        let alignment = u64::from(self.inner.limits.request_alignment);
        assert!(offset.is_multiple_of(alignment), "offset {offset:#x} is not aligned");
        assert!(
            (buf.len() as u64).is_multiple_of(alignment),
            "length {} is not aligned",
            buf.len()
        );
        assert!(buf.len() as u64 <= u64::from(self.inner.limits.transfer_len_max));
        let memory = buf.as_ptr().addr();
        assert!(memory.is_multiple_of(self.inner.limits.memory_alignment as usize));
        assert!(offset.is_multiple_of(8) && buf.len().is_multiple_of(8));
        for (index, chunk) in buf.chunks_exact_mut(8).enumerate() {
            chunk.copy_from_slice(&word_at(offset + index as u64 * 8).to_be_bytes());
        }
    }
}

/// Counts a read as in flight until it is dropped.
struct InFlight(Gated, u64);

impl InFlight {
    fn new(storage: &Gated, offset: u64) -> Self {
        let mut in_flight = storage.inner.in_flight.lock().unwrap();
        let count = in_flight.entry(offset).or_default();
        *count += 1;
        storage.inner.in_flight_max.fetch_max(*count, Ordering::SeqCst);
        drop(in_flight);
        Self(storage.clone(), offset)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let mut in_flight = self.0.inner.in_flight.lock().unwrap();
        let count = in_flight.get_mut(&self.1).unwrap();
        *count -= 1;
        if *count == 0 {
            in_flight.remove(&self.1);
        }
    }
}

impl SendStorage for Gated {
    fn read_at(&self, mut buf: Buf, offset: u64) -> impl Future<Output = io::Result<Buf>> + Send {
        let this = self.clone();
        async move {
            this.inner.reads.fetch_add(1, Ordering::SeqCst);
            let in_flight = InFlight::new(&this, offset);
            if this.inner.gate.load(Ordering::SeqCst) {
                let (sender, receiver) = oneshot::channel();
                this.inner.waiting.lock().unwrap().push((offset, sender));
                receiver.await.expect("the gate is gone")?;
            } else {
                let mut polled = false;
                std::future::poll_fn(|context| {
                    if std::mem::replace(&mut polled, true) {
                        return std::task::Poll::Ready(());
                    }
                    context.waker().wake_by_ref();
                    std::task::Poll::Pending
                })
                .await;
            }
            this.fill(&mut buf, offset);
            drop(in_flight);
            Ok(buf)
        }
    }

    fn try_read_at(&self, buf: &mut [u8], offset: u64) -> Option<io::Result<()>> {
        if !self.inner.door.load(Ordering::SeqCst) {
            buf.fill(0xbd);
            return None;
        }
        self.inner.door_reads.fetch_add(1, Ordering::SeqCst);
        if self.inner.fail_door.load(Ordering::SeqCst) {
            return Some(Err(io::Error::other("the door says no")));
        }
        let in_flight = InFlight::new(self, offset);
        self.fill(buf, offset);
        drop(in_flight);
        Some(Ok(()))
    }

    async fn write_at(&self, _buf: Buf, _offset: u64) -> io::Result<Buf> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    async fn write_zeroes(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    async fn discard(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    async fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    async fn len(&self) -> io::Result<u64> {
        Ok(u64::MAX)
    }

    async fn set_len(&self, _len: u64) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn limits(&self) -> StorageLimits {
        self.inner.limits
    }
}
