//! Where bytes live: the contract between the engine and whatever holds an image's bytes.
//!
//! # The contract
//!
//! A storage is positional (there is no cursor), asynchronous, and used through `&self` by any number of requests at
//! once. Two requests in flight may complete in either order.
//!
//! - **Reading** past the end yields zeros; it is never an error and never short. Whoever must tell missing bytes
//!   from zeros (the engine, for metadata) compares with [`Storage::len`] first.
//! - **Buffers are owned.** A request takes its [`Buf`] and gives it back when it completes, so that dropping the
//!   future never frees memory which a thread, a ring or a script still uses.
//! - **A dropped write may still land**, at any time until the next [`Storage::flush`] has returned. So may a dropped
//!   discard. A dropped read has no effect.
//! - **Flush** makes durable every write, zeroing, discard and change of length that *completed before flush was
//!   called*. It says nothing of those in flight.
//! - **Errors** leave the touched range with old bytes, new bytes or a mixture at 512-byte granularity, and nothing
//!   else. After a failed flush nothing that was not durable before may be taken for durable.
//! - **The synchronous doors.** [`Storage::try_read_at`] answers from what is at hand (the page cache, memory) without
//!   blocking and without a future, or says `None`. [`Storage::try_write_at`] does the same for writes: what it has
//!   written is complete, as if a [`Storage::write_at`] had returned. The engine tries them first.
//!
//! # Send
//!
//! [`Storage`] has no bounds: the engine compiles once, and a future of the engine is `Send` exactly when its
//! storage's futures are. A storage for many threads implements [`SendStorage`], whose methods are the same but return
//! futures that are `Send`; a blanket implementation makes it a [`Storage`]. A storage implements one of the two.
//!
//! This module must not know the format, the cache, the image or any runtime.

mod blocks;
mod buf;
mod erased;
mod memory;
mod purpose;

use std::future::Future;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

pub use blocks::Blocks;
pub use buf::Buf;
pub use erased::{BoxStorage, LocalBoxStorage};
pub use memory::MemoryStorage;
pub(crate) use purpose::For;
pub use purpose::Purpose;

/// What a storage asks of requests, and what suits it best. All lengths are in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct StorageLimits {
    /// Offsets and lengths of requests must be multiples of this power of two (1 for none; the logical block size
    /// with `O_DIRECT`). The engine widens its reads to it, and its changes by [`Blocks`].
    pub request_alignment: u32,
    /// Addresses of buffers must be multiples of this power of two.
    pub memory_alignment: u32,
    /// A request must not be longer than this.
    pub transfer_len_max: u32,
    /// The length below which a request costs about as much as a request of this length: what a call costs in a
    /// browser is the call. Sequential readers coalesce to it.
    pub transfer_len_optimal: u32,
    /// How many requests to keep in flight.
    pub requests_in_flight: u32,
}

impl Default for StorageLimits {
    fn default() -> Self {
        Self {
            request_alignment: 1,
            memory_alignment: 1,
            transfer_len_max: 1 << 30,
            transfer_len_optimal: 1 << 20,
            requests_in_flight: 8,
        }
    }
}

/// What a storage knows of a range of its bytes without reading them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StorageExtentKind {
    /// May hold anything.
    Data,
    /// Reads as zeros and takes no space.
    Hole,
}

/// A run of bytes of one [`StorageExtentKind`], starting at the offset asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StorageExtent {
    /// What the run is.
    pub kind: StorageExtentKind,
    /// Its length in bytes: at least 1, at most the length asked for.
    pub len: u64,
}

macro_rules! storage_trait {
    ($(#[$meta:meta])* $name:ident : ($($super:tt)*), ($($send:tt)*)) => {
        $(#[$meta])*
        pub trait $name: $($super)* {
            /// Reads `buf.len()` bytes from `offset` and gives the buffer back. Bytes past the end are zeros.
            ///
            /// # Errors
            /// What the medium says. The buffer is lost with the error.
            ///
            /// # Cancel safety
            /// Dropping the future has no effect on the storage.
            fn read_at(&self, buf: Buf, offset: u64) -> impl Future<Output = io::Result<Buf>> $($send)*;

            /// Writes all of `buf` at `offset`, extending the storage if it ends before, and gives the buffer back.
            ///
            /// # Errors
            /// What the medium says, and [`io::ErrorKind::PermissionDenied`] if the storage is read-only.
            ///
            /// # Cancel safety
            /// A dropped write may still land until the next flush has returned.
            fn write_at(&self, buf: Buf, offset: u64) -> impl Future<Output = io::Result<Buf>> $($send)*;

            /// As [`Self::read_at`], of bytes of which the reader says what they are. The default does not mind. Who does
            /// must answer nothing by [`Self::try_read_at`], which does not say.
            ///
            /// # Errors
            /// As [`Self::read_at`].
            ///
            /// # Cancel safety
            /// As [`Self::read_at`].
            fn read_for(&self, _purpose: Purpose, buf: Buf, offset: u64)
                -> impl Future<Output = io::Result<Buf>> $($send)*
            {
                self.read_at(buf, offset)
            }

            /// As [`Self::write_at`], of bytes of which the writer says what they are. As [`Self::read_for`].
            ///
            /// # Errors
            /// As [`Self::write_at`].
            ///
            /// # Cancel safety
            /// As [`Self::write_at`].
            fn write_for(&self, _purpose: Purpose, buf: Buf, offset: u64)
                -> impl Future<Output = io::Result<Buf>> $($send)*
            {
                self.write_at(buf, offset)
            }

            /// Makes `len` bytes from `offset` read as zeros, without giving up their space if the medium has a
            /// choice, extending the storage if it ends before.
            ///
            /// # Errors
            /// As [`Self::write_at`].
            ///
            /// # Cancel safety
            /// As [`Self::write_at`].
            fn write_zeroes(&self, offset: u64, len: u64)
                -> impl Future<Output = io::Result<()>> $($send)*;

            /// Says that the range's bytes are of no more use, and gives up their space where the medium can. What the
            /// range reads afterwards is not defined; the length stays.
            ///
            /// # Errors
            /// As [`Self::write_at`]. A medium that cannot discard does nothing and succeeds.
            ///
            /// # Cancel safety
            /// As [`Self::write_at`].
            fn discard(&self, offset: u64, len: u64)
                -> impl Future<Output = io::Result<()>> $($send)*;

            /// Makes durable what completed before this call.
            ///
            /// # Errors
            /// What the medium says; see the module's contract.
            ///
            /// # Cancel safety
            /// A dropped flush promises nothing.
            fn flush(&self) -> impl Future<Output = io::Result<()>> $($send)*;

            /// The length in bytes, now.
            ///
            /// # Errors
            /// What the medium says.
            fn len(&self) -> impl Future<Output = io::Result<u64>> $($send)*;

            /// Sets the length in bytes; what is gained reads as zeros.
            ///
            /// # Errors
            /// As [`Self::write_at`].
            ///
            /// # Cancel safety
            /// As [`Self::write_at`].
            fn set_len(&self, len: u64) -> impl Future<Output = io::Result<()>> $($send)*;

            /// What it knows of the range of `len` bytes (at least 1) from `offset` without reading it: the run that
            /// starts at `offset`. The default knows nothing. Past the end is a hole.
            ///
            /// # Errors
            /// What the medium says.
            fn extent_at(&self, _offset: u64, len: u64)
                -> impl Future<Output = io::Result<StorageExtent>> $($send)*
            {
                async move { Ok(StorageExtent { kind: StorageExtentKind::Data, len }) }
            }

            /// Makes the storage take changes from now on, or none, with the locks that go with that; nobody else may see
            /// a moment in between. No change is in flight.
            ///
            /// The default does nothing: it suits a storage that takes changes always, or never.
            ///
            /// # Errors
            /// What the medium says, and [`io::ErrorKind::PermissionDenied`] if it cannot be changed. The storage is as it
            /// was. To take no changes any more does not fail: what cannot be given up is kept.
            ///
            /// # Cancel safety
            /// A dropped future may have done it.
            fn set_writable(&self, _writable: bool) -> impl Future<Output = io::Result<()>> $($send)* {
                async { Ok(()) }
            }

            /// What requests must look like; constant while the storage lives.
            fn limits(&self) -> StorageLimits {
                StorageLimits::default()
            }

            /// Reads `buf.len()` bytes from `offset` at once, if that needs no waiting; `None` if it does (then `buf`
            /// may hold anything). Zeros past the end. Never blocks, never allocates.
            fn try_read_at(&self, _buf: &mut [u8], _offset: u64) -> Option<io::Result<()>> {
                None
            }

            /// Writes all of `data` at `offset` at once, extending the storage if it ends before, if that needs no
            /// waiting for the medium (memory, the page cache); `None` if it does, and then nothing was written. What
            /// `limits` ask of requests holds for it too, but for the memory's alignment. Once it has returned, a
            /// [`Self::flush`] that is called later makes the bytes durable.
            ///
            /// # Errors
            /// As [`Self::write_at`]; a part may have been written then.
            fn try_write_at(&self, _data: &[u8], _offset: u64) -> Option<io::Result<()>> {
                None
            }
        }
    };
}

storage_trait! {
    /// Bytes at offsets; see the [module](self) for the contract.
    Storage: (), ()
}

storage_trait! {
    /// A [`Storage`] for many threads: the same methods, with futures that are `Send`. Implementing it implements
    /// [`Storage`].
    SendStorage: (Send + Sync + 'static), (+ Send)
}

impl<T: SendStorage> Storage for T {
    delegate!(self, SendStorage, self);
}

impl<T: SendStorage> SendStorage for Arc<T> {
    delegate!(self, SendStorage, &**self);
}

impl<T: Storage> Storage for Rc<T> {
    delegate!(self, Storage, &**self);
}
/// The methods of a storage, passed on to the methods of the same names that `$trait` has for `$to`.
macro_rules! delegate {
    ($self:ident, $trait:ident, $to:expr) => {
        fn read_at(&$self, buf: Buf, offset: u64) -> impl Future<Output = io::Result<Buf>> {
            $trait::read_at($to, buf, offset)
        }

        fn write_at(&$self, buf: Buf, offset: u64) -> impl Future<Output = io::Result<Buf>> {
            $trait::write_at($to, buf, offset)
        }

        fn read_for(
            &$self,
            purpose: Purpose,
            buf: Buf,
            offset: u64,
        ) -> impl Future<Output = io::Result<Buf>> {
            $trait::read_for($to, purpose, buf, offset)
        }

        fn write_for(
            &$self,
            purpose: Purpose,
            buf: Buf,
            offset: u64,
        ) -> impl Future<Output = io::Result<Buf>> {
            $trait::write_for($to, purpose, buf, offset)
        }

        fn write_zeroes(&$self, offset: u64, len: u64) -> impl Future<Output = io::Result<()>> {
            $trait::write_zeroes($to, offset, len)
        }

        fn discard(&$self, offset: u64, len: u64) -> impl Future<Output = io::Result<()>> {
            $trait::discard($to, offset, len)
        }

        fn flush(&$self) -> impl Future<Output = io::Result<()>> {
            $trait::flush($to)
        }

        fn len(&$self) -> impl Future<Output = io::Result<u64>> {
            $trait::len($to)
        }

        fn set_len(&$self, len: u64) -> impl Future<Output = io::Result<()>> {
            $trait::set_len($to, len)
        }

        fn extent_at(
            &$self,
            offset: u64,
            len: u64,
        ) -> impl Future<Output = io::Result<StorageExtent>> {
            $trait::extent_at($to, offset, len)
        }

        fn set_writable(&$self, writable: bool) -> impl Future<Output = io::Result<()>> {
            $trait::set_writable($to, writable)
        }

        fn limits(&$self) -> StorageLimits {
            $trait::limits($to)
        }

        fn try_read_at(&$self, buf: &mut [u8], offset: u64) -> Option<io::Result<()>> {
            $trait::try_read_at($to, buf, offset)
        }

        fn try_write_at(&$self, data: &[u8], offset: u64) -> Option<io::Result<()>> {
            $trait::try_write_at($to, data, offset)
        }
    };
}

use delegate;
