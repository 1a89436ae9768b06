//! Memory that holds and fails: what a test needs of a storage to see an image in the midst of something.

use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use cowshed::storage::{Buf, MemoryStorage, SendStorage, Storage};
use futures::channel::oneshot;

/// Memory that fails when it is told to, and keeps a request waiting when it is told to.
#[derive(Default)]
pub struct Medium {
    pub memory: MemoryStorage,
    fails: AtomicBool,
    held: Mutex<Option<oneshot::Receiver<()>>>,
}

impl Medium {
    /// Keeps the next request, whatever it is, waiting until the sender is dropped.
    pub fn hold(&self) -> oneshot::Sender<()> {
        let (sender, receiver) = oneshot::channel();
        *self.held.lock().unwrap() = Some(receiver);
        sender
    }

    /// Lets every request from now on fail, or none.
    pub fn fail(&self, fails: bool) {
        self.fails.store(fails, Ordering::SeqCst);
    }

    async fn work(&self) -> io::Result<()> {
        let held = self.held.lock().unwrap().take();
        if let Some(held) = held {
            let _ = held.await;
        }
        match self.fails.load(Ordering::SeqCst) {
            true => Err(io::Error::other("the medium fails")),
            false => Ok(()),
        }
    }
}

impl SendStorage for Medium {
    async fn read_at(&self, buf: Buf, offset: u64) -> io::Result<Buf> {
        self.work().await?;
        Storage::read_at(&self.memory, buf, offset).await
    }

    async fn write_at(&self, buf: Buf, offset: u64) -> io::Result<Buf> {
        self.work().await?;
        Storage::write_at(&self.memory, buf, offset).await
    }

    async fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        self.work().await?;
        Storage::write_zeroes(&self.memory, offset, len).await
    }

    async fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.work().await?;
        Storage::discard(&self.memory, offset, len).await
    }

    async fn flush(&self) -> io::Result<()> {
        self.work().await
    }

    async fn len(&self) -> io::Result<u64> {
        Storage::len(&self.memory).await
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        self.work().await?;
        Storage::set_len(&self.memory, len).await
    }
}
