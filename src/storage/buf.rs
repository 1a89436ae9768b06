//! Owned, aligned buffers: what a request takes and gives back.

use std::ops::{Deref, DerefMut};

/// A buffer of bytes that a request owns while it is in flight.
///
/// Its address is aligned as asked for, which `O_DIRECT` needs. It is made by over-allocating, without unsafe code.
#[derive(Default)]
pub struct Buf {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Buf {
    /// A buffer of `len` zero bytes with no particular alignment.
    #[must_use]
    pub fn zeroed(len: usize) -> Self {
        Self { bytes: vec![0; len], start: 0, len }
    }

    /// A buffer of `len` zero bytes whose address is a multiple of `alignment`, a power of two.
    ///
    /// # Panics
    /// If `alignment` is not a power of two.
    #[must_use]
    pub fn aligned(len: usize, alignment: usize) -> Self {
        assert!(alignment.is_power_of_two(), "alignment {alignment} is not a power of two");
        if alignment == 1 {
            return Self::zeroed(len);
        }
        let bytes = vec![0; len + alignment - 1];
        let start = bytes.as_ptr().align_offset(alignment);
        Self { bytes, start, len }
    }

    /// Keeps `len` bytes from `start` on, or what there is of them.
    #[must_use]
    pub fn narrow(mut self, start: usize, len: usize) -> Self {
        let start = start.min(self.len);
        self.start += start;
        self.len = (self.len - start).min(len);
        self
    }

    /// Keeps the first `len` bytes.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }
}

impl Deref for Buf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len]
    }
}

impl DerefMut for Buf {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}

impl std::fmt::Debug for Buf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Buf").field("len", &self.len).finish_non_exhaustive()
    }
}
