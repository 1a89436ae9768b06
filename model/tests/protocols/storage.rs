//! A storage whose requests take turns that the checker chooses.
//!
//! A write arrives in two halves. One whose future is dropped may still arrive, whole or in part, until the next flush has
//! returned, as the contract of storages says. There is no power loss here: that is the simulator's.

use std::io;
use std::sync::{Mutex, MutexGuard};

use cowshed::storage::{Buf, SendStorage, StorageLimits};
use shuttle::future::yield_now;

use crate::explore::choose;

/// The storage.
#[derive(Default)]
pub(crate) struct TurnStorage {
    /// Std's lock: nobody takes a turn under it.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    bytes: Vec<u8>,
    /// Parts of writes that were dropped.
    adrift: Vec<(usize, Vec<u8>)>,
    /// So many of the next writes fail.
    failures: u64,
}

impl TurnStorage {
    /// A storage that holds `bytes`.
    pub(crate) fn new(bytes: Vec<u8>) -> Self {
        Self { state: Mutex::new(State { bytes, ..State::default() }) }
    }

    /// What it holds.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.state().bytes.clone()
    }

    /// Lets the next `count` writes fail.
    pub(crate) fn fail_writes(&self, count: u64) {
        self.state().failures = count;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Some of what is adrift arrives, if the checker chooses.
    async fn turn(&self) {
        yield_now().await;
        let mut state = self.state();
        if !state.adrift.is_empty() && choose(2) == 0 {
            let at = choose(state.adrift.len() as u64) as usize;
            let (offset, bytes) = state.adrift.swap_remove(at);
            state.write(offset, &bytes);
        }
    }

    async fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if std::mem::replace(&mut self.state().failures, 0) > 0 {
            return Err(io::Error::other("the test says no"));
        }
        let offset = usize::try_from(offset).unwrap();
        // Halves end at a sector: within one, old and new are told apart by nobody.
        let half = bytes.len() / 2 / 512 * 512;
        let mut parts = Parts { storage: self, parts: Vec::new() };
        parts.parts.push((offset + half, bytes[half..].to_vec()));
        if half > 0 {
            parts.parts.push((offset, bytes[..half].to_vec()));
        }
        while let Some((offset, bytes)) = parts.parts.last() {
            self.turn().await;
            self.state().write(*offset, bytes);
            parts.parts.pop();
        }
        Ok(())
    }
}

impl State {
    fn write(&mut self, offset: usize, bytes: &[u8]) {
        let end = offset + bytes.len();
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        self.bytes[offset..end].copy_from_slice(bytes);
    }
}

/// What is left of a write; adrift when it is dropped.
struct Parts<'a> {
    storage: &'a TurnStorage,
    parts: Vec<(usize, Vec<u8>)>,
}

impl Drop for Parts<'_> {
    fn drop(&mut self) {
        self.storage.state().adrift.append(&mut self.parts);
    }
}

impl SendStorage for TurnStorage {
    async fn read_at(&self, mut buf: Buf, offset: u64) -> io::Result<Buf> {
        self.turn().await;
        let state = self.state();
        let start = usize::try_from(offset).unwrap().min(state.bytes.len());
        let end = (start + buf.len()).min(state.bytes.len());
        buf.fill(0);
        buf[..end - start].copy_from_slice(&state.bytes[start..end]);
        drop(state);
        Ok(buf)
    }

    async fn write_at(&self, buf: Buf, offset: u64) -> io::Result<Buf> {
        self.write(offset, &buf).await?;
        Ok(buf)
    }

    async fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        self.write(offset, &vec![0; usize::try_from(len).unwrap()]).await
    }

    async fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        // What a discarded range holds is anything: this tells it from zeros and from data.
        let end = usize::try_from(offset + len).unwrap().min(self.state().bytes.len());
        let start = usize::try_from(offset).unwrap();
        if start < end { self.write(offset, &vec![0xdd; end - start]).await } else { Ok(()) }
    }

    async fn flush(&self) -> io::Result<()> {
        let before = std::mem::take(&mut self.state().adrift);
        yield_now().await;
        let mut state = self.state();
        for (offset, bytes) in before {
            if choose(2) == 0 {
                state.write(offset, &bytes);
            }
        }
        drop(state);
        Ok(())
    }

    async fn len(&self) -> io::Result<u64> {
        Ok(self.state().bytes.len() as u64)
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        yield_now().await;
        self.state().bytes.resize(usize::try_from(len).unwrap(), 0);
        Ok(())
    }

    fn limits(&self) -> StorageLimits {
        let mut limits = StorageLimits::default();
        limits.request_alignment = 512;
        limits
    }
}
