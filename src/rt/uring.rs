//! A file as storage by io_uring, on any executor.
//!
//! What is in the page cache is read where it is asked for, as [`FileStorage`] does; what must wait goes to the kernel
//! without a thread. See [`block_on`](super::block_on()) for how threads submit and wait. What io_uring does not do better
//! (holes, zeroed ranges, lengths) is [`FileStorage`]'s.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::completion::{Completion, DroppedChanges, Waiting};
use super::file::{FileOptions, FileStorage};
use super::ring::{Action, Request};
use super::rings;
use crate::storage::{Buf, SendStorage, StorageExtent, StorageLimits};

/// A file as storage by io_uring. Clones are the same storage.
#[derive(Debug, Clone)]
pub struct UringStorage {
    file: FileStorage,
    dropped: Arc<DroppedChanges>,
}

impl UringStorage {
    /// Opens the file at `path`.
    ///
    /// # Errors
    /// As [`FileStorage::open`]; [`io::ErrorKind::Unsupported`] if the kernel does not let this process use io_uring.
    pub fn open(path: impl AsRef<Path>, options: &FileOptions) -> io::Result<Self> {
        check_available()?;
        FileStorage::open(path, options).map(Self::wrap)
    }

    /// Takes over an open file, as [`FileStorage::from_file`] does.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn from_file(
        file: File,
        path: impl Into<PathBuf>,
        options: &FileOptions,
    ) -> io::Result<Self> {
        check_available()?;
        FileStorage::from_file(file, path, options).map(Self::wrap)
    }

    /// The same file without io_uring.
    #[must_use]
    pub fn file_storage(&self) -> &FileStorage {
        &self.file
    }

    /// Uses io_uring for an open file, or gives it back.
    pub(super) fn from_storage(file: FileStorage) -> Result<Self, FileStorage> {
        match rings::is_available() {
            true => Ok(Self::wrap(file)),
            false => Err(file),
        }
    }

    fn wrap(file: FileStorage) -> Self {
        Self { file, dropped: Arc::default() }
    }

    /// Does as much of a request as the kernel does at once, or nothing if it is not to be had: the buffer and how many
    /// bytes were done.
    async fn run(&self, action: Action, buf: Buf, offset: u64) -> io::Result<(Buf, usize)> {
        let completion = Completion::new();
        let request = Request {
            action,
            storage: self.file.clone(),
            buf,
            offset,
            completion: Arc::clone(&completion),
        };
        if let Err(request) = rings::submit(request) {
            return Ok((request.buf, 0));
        }
        let change = (action == Action::Write).then(|| Arc::clone(&self.dropped));
        // Cancel: the ring keeps the buffer until the kernel is done with it; a write is waited for by the next flush.
        let (result, buf) = Waiting::new(completion, change).await;
        match usize::try_from(result) {
            Ok(done) => Ok((buf, done)),
            Err(_) => match io::Error::from_raw_os_error(result.wrapping_neg()) {
                error if is_momentary(&error) => Ok((buf, 0)),
                error => Err(error),
            },
        }
    }
}

impl SendStorage for UringStorage {
    async fn read_at(&self, buf: Buf, offset: u64) -> io::Result<Buf> {
        let (buf, done) = self.run(Action::Read, buf, offset).await?;
        match done == buf.len() {
            true => Ok(buf),
            // The end of the file, or a part: found out without hurry.
            false => self.file.read_rest(buf, done, offset).await,
        }
    }

    async fn write_at(&self, buf: Buf, offset: u64) -> io::Result<Buf> {
        self.file.check_writable()?;
        let (buf, done) = self.run(Action::Write, buf, offset).await?;
        match done == buf.len() {
            true => Ok(buf),
            false => self.file.write_rest(buf, done, offset).await,
        }
    }

    async fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        SendStorage::write_zeroes(&self.file, offset, len).await
    }

    async fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        SendStorage::discard(&self.file, offset, len).await
    }

    async fn flush(&self) -> io::Result<()> {
        if self.file.check_writable().is_err() {
            return Ok(());
        }
        self.dropped.settle().await;
        self.file.settle().await;
        if self.file.is_volatile() {
            return Ok(());
        }
        let completion = Completion::new();
        let request = Request {
            action: Action::Sync,
            storage: self.file.clone(),
            buf: Buf::default(),
            offset: 0,
            completion: Arc::clone(&completion),
        };
        if rings::submit(request).is_err() {
            return SendStorage::flush(&self.file).await;
        }
        match Waiting::new(completion, None).await {
            (0.., _) => Ok(()),
            (error, _) => match io::Error::from_raw_os_error(error.wrapping_neg()) {
                error if is_momentary(&error) => SendStorage::flush(&self.file).await,
                error => Err(error),
            },
        }
    }

    async fn len(&self) -> io::Result<u64> {
        SendStorage::len(&self.file).await
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        SendStorage::set_len(&self.file, len).await
    }

    async fn extent_at(&self, offset: u64, len: u64) -> io::Result<StorageExtent> {
        SendStorage::extent_at(&self.file, offset, len).await
    }

    async fn set_writable(&self, writable: bool) -> io::Result<()> {
        SendStorage::set_writable(&self.file, writable).await
    }

    fn limits(&self) -> StorageLimits {
        StorageLimits { requests_in_flight: 128, ..SendStorage::limits(&self.file) }
    }

    fn try_read_at(&self, buf: &mut [u8], offset: u64) -> Option<io::Result<()>> {
        SendStorage::try_read_at(&self.file, buf, offset)
    }

    fn try_write_at(&self, data: &[u8], offset: u64) -> Option<io::Result<()>> {
        SendStorage::try_write_at(&self.file, data, offset)
    }
}

fn check_available() -> io::Result<()> {
    match rings::is_available() {
        true => Ok(()),
        false => Err(io::Error::new(io::ErrorKind::Unsupported, "io_uring is not available")),
    }
}

/// Whether the same request may succeed by other means: the kernel was interrupted or short of something, or gave up
/// what a thread had submitted because the thread ended.
fn is_momentary(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock)
        || error.raw_os_error() == Some(rustix::io::Errno::CANCELED.raw_os_error())
}

#[cfg(test)]
mod tests {
    use super::{io, is_momentary};
    use rustix::io::Errno;

    #[test]
    fn what_the_kernel_gave_up_is_tried_by_other_means() {
        for errno in [Errno::INTR, Errno::AGAIN, Errno::CANCELED] {
            assert!(is_momentary(&io::Error::from(errno)), "{errno}");
        }
        assert!(!is_momentary(&io::Error::from(Errno::IO)));
    }
}
