//! What a request is for, for storages that treat requests by that: what a program does when a medium fails at one of them can
//! be tried out so.
//!
//! It must not know anything but the contract of [`storage`](super).

use std::future::Future;
use std::io;

use super::{Buf, Storage, StorageExtent, StorageLimits};

/// What bytes are that are read or written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Purpose {
    /// A disk's own bytes.
    Data,
    /// Tables that say where the disk's bytes are.
    Mapping,
    /// Tables that say how often clusters are in use.
    Refcounts,
}

/// A storage all of whose reads and writes are for one purpose.
pub(crate) struct For<'a, S>(pub(crate) &'a S, pub(crate) Purpose);

impl<S: Storage> Storage for For<'_, S> {
    fn read_at(&self, buf: Buf, offset: u64) -> impl Future<Output = io::Result<Buf>> {
        self.0.read_for(self.1, buf, offset)
    }

    fn write_at(&self, buf: Buf, offset: u64) -> impl Future<Output = io::Result<Buf>> {
        self.0.write_for(self.1, buf, offset)
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> impl Future<Output = io::Result<()>> {
        self.0.write_zeroes(offset, len)
    }

    fn discard(&self, offset: u64, len: u64) -> impl Future<Output = io::Result<()>> {
        self.0.discard(offset, len)
    }

    fn flush(&self) -> impl Future<Output = io::Result<()>> {
        self.0.flush()
    }

    fn len(&self) -> impl Future<Output = io::Result<u64>> {
        self.0.len()
    }

    fn set_len(&self, len: u64) -> impl Future<Output = io::Result<()>> {
        self.0.set_len(len)
    }

    fn extent_at(&self, offset: u64, len: u64) -> impl Future<Output = io::Result<StorageExtent>> {
        self.0.extent_at(offset, len)
    }

    fn limits(&self) -> StorageLimits {
        self.0.limits()
    }

    fn try_read_at(&self, buf: &mut [u8], offset: u64) -> Option<io::Result<()>> {
        self.0.try_read_at(buf, offset)
    }

    fn try_write_at(&self, data: &[u8], offset: u64) -> Option<io::Result<()>> {
        self.0.try_write_at(data, offset)
    }
}
