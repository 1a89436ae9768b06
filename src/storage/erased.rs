//! Storages without a type parameter, for programs that choose the storage when they run.
//!
//! A call that waits costs one allocation, of its future; [`Storage::try_read_at`], [`Storage::try_write_at`]
//! and [`Storage::limits`] cost an indirect call.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;

use super::{Buf, Purpose, SendStorage, Storage, StorageExtent, StorageLimits};

/// Any [`SendStorage`]. Clones are the same storage.
#[derive(Clone)]
pub struct BoxStorage(Arc<dyn ErasedSend>);

impl BoxStorage {
    /// Erases the type of `storage`.
    #[must_use]
    pub fn new(storage: impl SendStorage) -> Self {
        Self(Arc::new(storage))
    }
}

/// Any [`Storage`], for one thread. Clones are the same storage.
#[derive(Clone)]
pub struct LocalBoxStorage(Rc<dyn ErasedLocal>);

impl LocalBoxStorage {
    /// Erases the type of `storage`.
    #[must_use]
    pub fn new(storage: impl Storage + 'static) -> Self {
        Self(Rc::new(storage))
    }
}

type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = io::Result<T>> + Send + 'a>>;
type LocalBoxFuture<'a, T> = Pin<Box<dyn Future<Output = io::Result<T>> + 'a>>;

macro_rules! erase {
    ($name:ident, $erased:ident, $storage:ident, $future:ident, ($($super:tt)*), ($($bounds:tt)*)) => {
        trait $erased: $($super)* {
            fn read_at(&self, buf: Buf, offset: u64) -> $future<'_, Buf>;
            fn write_at(&self, buf: Buf, offset: u64) -> $future<'_, Buf>;
            fn read_for(&self, purpose: Purpose, buf: Buf, offset: u64) -> $future<'_, Buf>;
            fn write_for(&self, purpose: Purpose, buf: Buf, offset: u64) -> $future<'_, Buf>;
            fn write_zeroes(&self, offset: u64, len: u64) -> $future<'_, ()>;
            fn discard(&self, offset: u64, len: u64) -> $future<'_, ()>;
            fn flush(&self) -> $future<'_, ()>;
            fn len(&self) -> $future<'_, u64>;
            fn set_len(&self, len: u64) -> $future<'_, ()>;
            fn extent_at(&self, offset: u64, len: u64) -> $future<'_, StorageExtent>;
            fn set_writable(&self, writable: bool) -> $future<'_, ()>;
            fn limits(&self) -> StorageLimits;
            fn try_read_at(&self, buf: &mut [u8], offset: u64) -> Option<io::Result<()>>;
            fn try_write_at(&self, data: &[u8], offset: u64) -> Option<io::Result<()>>;
        }

        impl<T: $($bounds)*> $erased for T {
            fn read_at(&self, buf: Buf, offset: u64) -> $future<'_, Buf> {
                Box::pin($storage::read_at(self, buf, offset))
            }

            fn write_at(&self, buf: Buf, offset: u64) -> $future<'_, Buf> {
                Box::pin($storage::write_at(self, buf, offset))
            }

            fn read_for(&self, purpose: Purpose, buf: Buf, offset: u64) -> $future<'_, Buf> {
                Box::pin($storage::read_for(self, purpose, buf, offset))
            }

            fn write_for(&self, purpose: Purpose, buf: Buf, offset: u64) -> $future<'_, Buf> {
                Box::pin($storage::write_for(self, purpose, buf, offset))
            }

            fn write_zeroes(&self, offset: u64, len: u64) -> $future<'_, ()> {
                Box::pin($storage::write_zeroes(self, offset, len))
            }

            fn discard(&self, offset: u64, len: u64) -> $future<'_, ()> {
                Box::pin($storage::discard(self, offset, len))
            }

            fn flush(&self) -> $future<'_, ()> {
                Box::pin($storage::flush(self))
            }

            fn len(&self) -> $future<'_, u64> {
                Box::pin($storage::len(self))
            }

            fn set_len(&self, len: u64) -> $future<'_, ()> {
                Box::pin($storage::set_len(self, len))
            }

            fn extent_at(&self, offset: u64, len: u64) -> $future<'_, StorageExtent> {
                Box::pin($storage::extent_at(self, offset, len))
            }

            fn set_writable(&self, writable: bool) -> $future<'_, ()> {
                Box::pin($storage::set_writable(self, writable))
            }

            fn limits(&self) -> StorageLimits {
                $storage::limits(self)
            }

            fn try_read_at(&self, buf: &mut [u8], offset: u64) -> Option<io::Result<()>> {
                $storage::try_read_at(self, buf, offset)
            }

            fn try_write_at(&self, data: &[u8], offset: u64) -> Option<io::Result<()>> {
                $storage::try_write_at(self, data, offset)
            }
        }

        impl $storage for $name {
            super::delegate!(self, $erased, &*self.0);
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($name)).finish_non_exhaustive()
            }
        }
    };
}

erase!(BoxStorage, ErasedSend, SendStorage, BoxFuture, (Send + Sync), (SendStorage));
erase!(LocalBoxStorage, ErasedLocal, Storage, LocalBoxFuture, (), (Storage));
