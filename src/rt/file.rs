//! A file or block device as storage, on any executor.
//!
//! What is in the page cache is read where it is asked for, without waiting, and what the page cache takes is written
//! there; the rest goes through the `blocking` crate's pool of threads, but for short calls about space that a thread in
//! [`block_on`](super::block_on()) makes itself. Requests own their buffers, so a dropped future leaves at most a thread that
//! finishes what it began; a flush waits for the changes among those.

use std::fs::{File, OpenOptions};
use std::future::Future;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll};

use blocking::{Task, unblock};
use rustix::fs::OFlags;

use super::at_once::WritesAtOnce;
use super::block_on;
use super::lock::{self, LockMode};
use super::posix::{self, AtOnce};
use crate::storage::{Buf, SendStorage, StorageExtent, StorageLimits};

/// The longest range whose space is given up, or which is zeroed, without another thread: some 2 ms of work where every page
/// of it is cached.
const SPACE_AT_ONCE_LEN_BYTES_MAX: u64 = 16 << 20;

/// How a file is opened. The default: for reading, through the page cache, locked as QEMU's qcow2 driver locks.
#[derive(Debug, Clone, Default)]
pub struct FileOptions {
    writable: bool,
    volatile: bool,
    direct: bool,
    lock: LockMode,
    block_device: bool,
    character_device: bool,
    create: bool,
    truncate: bool,
}

impl FileOptions {
    /// The default.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether the file may be changed.
    #[must_use]
    pub fn writable(mut self, writable: bool) -> Self {
        self.writable = writable;
        self
    }

    /// Whether flushes make nothing durable, and only wait for what was dropped: for a file that can be made again, as
    /// the target of a copy is. After a power loss it holds anything. QEMU calls that `cache.no-flush`.
    #[must_use]
    pub fn volatile(mut self, volatile: bool) -> Self {
        self.volatile = volatile;
        self
    }

    /// Whether to go around the page cache (`O_DIRECT`). The storage's limits then ask for aligned requests.
    #[must_use]
    pub fn direct(mut self, direct: bool) -> Self {
        self.direct = direct;
        self
    }

    /// Which locks to take.
    #[must_use]
    pub fn lock(mut self, lock: LockMode) -> Self {
        self.lock = lock;
        self
    }

    /// Whether a block device will do, not only a regular file.
    #[must_use]
    pub fn block_device(mut self, block_device: bool) -> Self {
        self.block_device = block_device;
        self
    }

    /// Whether a character device will do, not only a regular file. Its length is 0.
    #[must_use]
    pub fn character_device(mut self, character_device: bool) -> Self {
        self.character_device = character_device;
        self
    }

    /// Whether to create the file if there is none. Asks for [`Self::writable`].
    #[must_use]
    pub fn create(mut self, create: bool) -> Self {
        self.create = create;
        self
    }

    /// Whether to make a regular file empty, after its locks are taken. Asks for [`Self::writable`].
    #[must_use]
    pub fn truncate(mut self, truncate: bool) -> Self {
        self.truncate = truncate;
        self
    }

    /// Whether the file may be changed.
    pub(super) fn is_writable(&self) -> bool {
        self.writable
    }

    /// The access mode of an open call.
    pub(super) fn access(&self) -> OFlags {
        if self.writable { OFlags::RDWR } else { OFlags::RDONLY }
    }

    /// The flags of an open call: one that neither waits for the other end of a FIFO nor takes a terminal.
    pub(super) fn open_flags(&self) -> OFlags {
        let mut flags = OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
        if self.direct {
            flags |= direct_flag();
        }
        flags
    }
}

/// A file as storage. Clones are the same storage.
#[derive(Debug, Clone)]
pub struct FileStorage {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    file: File,
    /// Takes the changes, if `file` was opened for reading only and the storage was made writable since.
    write_file: OnceLock<File>,
    path: PathBuf,
    /// Whether changes are taken.
    writable: AtomicBool,
    lock: LockMode,
    direct: bool,
    volatile: bool,
    limits: StorageLimits,
    identity: (u64, u64),
    /// Reads can be answered from the page cache. Cleared for good when the file system says it cannot.
    at_once: AtomicBool,
    /// The file is memory: the file system takes no flag for reading without waiting, as there is nothing to wait for. Found
    /// out when it says so.
    in_memory: AtomicBool,
    /// From when the storage is writable first.
    writes_at_once: OnceLock<WritesAtOnce>,
    /// Whether the file lies on a file system that this kernel runs by itself; looked at when it matters.
    is_local: OnceLock<bool>,
    /// Discards do something. Cleared for good when the file system says it cannot.
    discards: AtomicBool,
    /// Changes that were dropped while a thread was at them, since the last flush.
    dropped: Mutex<Vec<Change>>,
    /// The same, being waited for by flushes, which take turns at it.
    settling: async_lock::Mutex<Vec<Change>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.lock != LockMode::Off {
            lock::release(&self.file);
        }
    }
}

/// A change of the file on a thread of the pool.
type Change = Task<io::Result<Buf>>;

impl FileStorage {
    /// Opens the file at `path`.
    ///
    /// # Errors
    /// What the system says; [`io::ErrorKind::InvalidInput`] if it is not a regular file (nor an allowed block device);
    /// [`io::ErrorKind::ResourceBusy`] with a [`LockError`](super::LockError) if it is locked.
    pub fn open(path: impl AsRef<Path>, options: &FileOptions) -> io::Result<Self> {
        let path = path.as_ref();
        // Looking first means that a device which acts on being opened is not opened; what counts is the second look,
        // at what was opened.
        match std::fs::metadata(path) {
            Ok(metadata) => check_kind(metadata.file_type(), path, options)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound && options.create => {}
            Err(error) => return Err(error),
        }
        let flags = options.open_flags();
        let file = OpenOptions::new()
            .read(true)
            .write(options.writable)
            .create(options.create)
            // Only under the lock.
            .truncate(false)
            // OK to cast: the flags are bits.
            .custom_flags(flags.bits().cast_signed())
            .open(path)?;
        Self::from_file(file, path, options)
    }

    /// Takes over a file that is open, with the options' access and directness; `path` is for messages.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn from_file(
        file: File,
        path: impl Into<PathBuf>,
        options: &FileOptions,
    ) -> io::Result<Self> {
        let path = path.into();
        let metadata = file.metadata()?;
        check_kind(metadata.file_type(), &path, options)?;
        // O_NONBLOCK was for the opening; on a file it only keeps io_uring from waiting.
        let flags = rustix::fs::fcntl_getfl(&file)?;
        if flags.contains(OFlags::NONBLOCK) {
            rustix::fs::fcntl_setfl(&file, flags - OFlags::NONBLOCK)?;
        }
        lock::take(&file, &path, options.lock, options.writable)?;
        if options.truncate && metadata.file_type().is_file() {
            file.set_len(0)?;
        }
        let mut limits = StorageLimits { requests_in_flight: 32, ..StorageLimits::default() };
        if options.direct {
            let (request, memory) = posix::direct_alignment(&file)?;
            limits.request_alignment = request;
            // Devices take less, but a buffer that lies across pages costs them a tenth more.
            limits.memory_alignment = memory.max(4096);
        }
        let writes_at_once = OnceLock::new();
        if options.writable {
            let _ = writes_at_once.set(WritesAtOnce::new(&file, options.direct)?);
        }
        Ok(Self {
            inner: Arc::new(Inner {
                file,
                path,
                write_file: OnceLock::new(),
                writable: AtomicBool::new(options.writable),
                lock: options.lock,
                direct: options.direct,
                // A character device keeps nothing that could be made durable.
                volatile: options.volatile || metadata.file_type().is_char_device(),
                limits,
                identity: (metadata.dev(), metadata.ino()),
                at_once: AtomicBool::new(!options.direct),
                in_memory: AtomicBool::new(false),
                writes_at_once,
                is_local: OnceLock::new(),
                discards: AtomicBool::new(true),
                dropped: Mutex::default(),
                settling: async_lock::Mutex::default(),
            }),
        })
    }

    /// The path it was opened by.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// What tells whether two paths are the same file: device and inode.
    #[must_use]
    pub fn identity(&self) -> (u64, u64) {
        self.inner.identity
    }

    /// The open file.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.inner.file
    }

    /// The open file that takes changes.
    pub(super) fn write_file(&self) -> &File {
        self.inner.write_file()
    }

    /// Changes the file on a thread of the pool.
    fn change(
        &self,
        change: impl FnOnce(&Inner) -> io::Result<Buf> + Send + 'static,
    ) -> impl Future<Output = io::Result<Buf>> + Send {
        let task = match self.check_writable() {
            Ok(()) => {
                let inner = Arc::clone(&self.inner);
                Ok(unblock(move || change(&inner)))
            }
            Err(error) => Err(error),
        };
        async move { Running { inner: &self.inner, task: Some(task?) }.await }
    }

    /// Changes the space of `len` bytes of the file: here, if that may be waited for, or on a thread of the pool.
    async fn change_space(
        &self,
        len: u64,
        change: impl FnOnce(&Inner) -> io::Result<()> + Send + 'static,
    ) -> io::Result<()> {
        self.check_writable()?;
        if len <= SPACE_AT_ONCE_LEN_BYTES_MAX && self.inner.may_wait_here() {
            return change(&self.inner);
        }
        self.change(move |inner| change(inner).map(|()| Buf::default())).await.map(drop)
    }

    /// Refuses changes of a file that is open for reading.
    pub(super) fn check_writable(&self) -> io::Result<()> {
        match self.inner.writable.load(Ordering::Acquire) {
            true => Ok(()),
            false => Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!("'{}' is open for reading only", self.inner.path.display()),
            )),
        }
    }

    /// Whether flushes make nothing durable.
    pub(super) fn is_volatile(&self) -> bool {
        self.inner.volatile
    }

    /// Reads what comes after the first `done` bytes.
    pub(super) async fn read_rest(
        &self,
        mut buf: Buf,
        done: usize,
        offset: u64,
    ) -> io::Result<Buf> {
        let inner = Arc::clone(&self.inner);
        // Cancel: the thread owns the buffer.
        unblock(move || {
            let alignment = inner.limits.request_alignment;
            if !done.is_multiple_of(alignment as usize) {
                // Only the end of the file cuts a direct read within a block.
                buf[done..].fill(0);
            } else if let Some(at) = offset.checked_add(done as u64) {
                posix::read_at(&inner.file, &mut buf[done..], at, alignment)?;
            } else {
                buf[done..].fill(0);
            }
            Ok(buf)
        })
        .await
    }

    /// Writes what comes after the first `done` bytes.
    pub(super) async fn write_rest(&self, buf: Buf, done: usize, offset: u64) -> io::Result<Buf> {
        self.change(move |inner| {
            let at = offset.saturating_add(done as u64);
            posix::write_at(inner.write_file(), &buf[done..], at)?;
            Ok(buf)
        })
        .await
    }

    /// Waits for the changes that were dropped before now. After it none of them can land any more.
    pub(super) async fn settle(&self) {
        let inner = &self.inner;
        // Cancel: what is still running stays in the list for the next flush.
        let mut settling = inner.settling.lock().await;
        settling.append(&mut inner.dropped());
        while let Some(change) = settling.last_mut() {
            // A dropped change has no one to tell.
            let _ = change.await;
            settling.pop();
        }
    }
}

impl SendStorage for FileStorage {
    async fn read_at(&self, buf: Buf, offset: u64) -> io::Result<Buf> {
        self.read_rest(buf, 0, offset).await
    }

    async fn write_at(&self, buf: Buf, offset: u64) -> io::Result<Buf> {
        self.write_rest(buf, 0, offset).await
    }

    async fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        self.change_space(len, move |inner| {
            let limits = &inner.limits;
            let (unit, memory) = (limits.request_alignment, limits.memory_alignment);
            posix::write_zeroes(inner.write_file(), offset, len, unit, memory)
        })
        .await
    }

    async fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.check_writable()?;
        if !self.inner.discards.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.change_space(len, move |inner| {
            if !posix::punch_hole(inner.write_file(), offset, len)? {
                inner.discards.store(false, Ordering::Relaxed);
            }
            Ok(())
        })
        .await
    }

    async fn flush(&self) -> io::Result<()> {
        if self.check_writable().is_err() {
            return Ok(());
        }
        self.settle().await;
        if self.is_volatile() {
            return Ok(());
        }
        let inner = Arc::clone(&self.inner);
        unblock(move || inner.write_file().sync_data()).await
    }

    async fn len(&self) -> io::Result<u64> {
        posix::len_bytes(&self.inner.file)
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(move |inner| {
            inner.write_file().set_len(len)?;
            Ok(Buf::default())
        })
        .await
        .map(drop)
    }

    async fn extent_at(&self, offset: u64, len: u64) -> io::Result<StorageExtent> {
        if self.inner.may_wait_here() {
            return posix::extent_at(&self.inner.file, offset, len);
        }
        let inner = Arc::clone(&self.inner);
        unblock(move || posix::extent_at(&inner.file, offset, len)).await
    }

    async fn set_writable(&self, writable: bool) -> io::Result<()> {
        let inner = Arc::clone(&self.inner);
        unblock(move || inner.set_writable(writable)).await
    }

    fn limits(&self) -> StorageLimits {
        self.inner.limits
    }

    fn try_read_at(&self, buf: &mut [u8], offset: u64) -> Option<io::Result<()>> {
        let inner = &*self.inner;
        if inner.in_memory.load(Ordering::Relaxed) {
            return Some(posix::read_at(&inner.file, buf, offset, 1));
        }
        if !inner.at_once.load(Ordering::Relaxed) {
            return None;
        }
        match posix::try_read_at(&inner.file, buf, offset) {
            Ok(AtOnce::Read) => Some(Ok(())),
            Ok(AtOnce::Wait) => None,
            Ok(AtOnce::Never) => {
                inner.at_once.store(false, Ordering::Relaxed);
                inner.in_memory.store(posix::is_memory(&inner.file), Ordering::Relaxed);
                None
            }
            Err(error) => Some(Err(error)),
        }
    }

    fn try_write_at(&self, data: &[u8], offset: u64) -> Option<io::Result<()>> {
        if let Err(error) = self.check_writable() {
            return Some(Err(error));
        }
        let writes = self.inner.writes_at_once.get()?;
        writes.try_write_at(self.write_file(), data, offset)
    }
}

impl Inner {
    /// Whether this thread may make a call itself that is short but for what the file system has to wait for: it is in
    /// `block_on`, as [`at_once`](super::at_once) has it, and no other program serves the file system.
    fn may_wait_here(&self) -> bool {
        block_on::is_driving() && *self.is_local.get_or_init(|| posix::is_local(&self.file))
    }

    /// The open file that takes changes.
    fn write_file(&self) -> &File {
        self.write_file.get().unwrap_or(&self.file)
    }

    /// Takes changes from now on, or none, with the locks for that. The locks stay on the file that was opened first: to the
    /// kernel another open file is somebody else.
    fn set_writable(&self, writable: bool) -> io::Result<()> {
        if writable == self.writable.load(Ordering::Acquire) {
            return Ok(());
        }
        if writable {
            lock::change(&self.file, &self.path, self.lock, true)?;
            if let Err(error) = self.open_for_writing() {
                // What is given back was had for a moment only.
                let _ = lock::change(&self.file, &self.path, self.lock, false);
                return Err(error);
            }
        }
        self.writable.store(writable, Ordering::Release);
        if !writable {
            // Locks that cannot be given up are kept.
            let _ = lock::change(&self.file, &self.path, self.lock, false);
        }
        Ok(())
    }

    /// Opens the same file again for writing, unless it is.
    fn open_for_writing(&self) -> io::Result<()> {
        let flags = rustix::fs::fcntl_getfl(&self.file)?;
        if !flags.contains(OFlags::RDWR) && self.write_file.get().is_none() {
            let file = self.reopen()?;
            let metadata = file.metadata()?;
            if (metadata.dev(), metadata.ino()) != self.identity {
                return Err(io::Error::other("the path names another file now"));
            }
            let _ = self.write_file.set(file);
        }
        if self.writes_at_once.get().is_none() {
            let _ = self.writes_at_once.set(WritesAtOnce::new(self.write_file(), self.direct)?);
        }
        Ok(())
    }

    /// The file, open for writing: what is open, however it is called now, or else what the path names.
    fn reopen(&self) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        if self.direct {
            // OK to cast: the flags are bits.
            options.custom_flags(direct_flag().bits().cast_signed());
        }
        let open = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        match options.open(open) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => options.open(&self.path),
            opened => opened,
        }
    }

    fn dropped(&self) -> std::sync::MutexGuard<'_, Vec<Change>> {
        self.dropped.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A change that someone waits for; dropping it hands the task over to the next flush.
struct Running<'a> {
    inner: &'a Inner,
    task: Option<Change>,
}

impl Future for Running<'_> {
    type Output = io::Result<Buf>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(task) = &mut self.task else {
            return Poll::Ready(Err(io::Error::other("polled after completion")));
        };
        let result = std::task::ready!(Pin::new(task).poll(context));
        self.task = None;
        Poll::Ready(result)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            let mut dropped = self.inner.dropped();
            dropped.retain(|task| !task.is_finished());
            dropped.push(task);
        }
    }
}

/// Nothing is opened but what its bytes can be read of at offsets, and nothing that was not asked for.
fn check_kind(kind: std::fs::FileType, path: &Path, options: &FileOptions) -> io::Result<()> {
    if kind.is_file()
        || (options.block_device && kind.is_block_device())
        || (options.character_device && kind.is_char_device())
    {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidInput,
        format!("'file' driver requires '{}' to be a regular file", path.display()),
    ))
}

#[cfg(target_os = "linux")]
fn direct_flag() -> OFlags {
    OFlags::DIRECT
}

/// Refused later, by the alignment that is not known.
#[cfg(not(target_os = "linux"))]
fn direct_flag() -> OFlags {
    OFlags::empty()
}
