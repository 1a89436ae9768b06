//! Idle buffers for what is copied beside a write, so that copying a cluster costs no memory from the system.

use std::ops::{Deref, DerefMut};

use crate::sync::Mutex;

/// How many buffers are kept. A buffer is at most as long as what is written in one request.
const IDLE_MAX: usize = 8;

/// Buffers that nobody uses now.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    idle: Mutex<Vec<Vec<u8>>>,
}

/// A buffer, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct ScratchBuf<'a> {
    scratch: &'a Scratch,
    bytes: Vec<u8>,
}

impl Scratch {
    /// A buffer of `len` bytes, its contents anything.
    pub(crate) fn take(&self, len: usize) -> ScratchBuf<'_> {
        let mut bytes = self.idle.lock().pop().unwrap_or_default();
        bytes.resize(len, 0);
        ScratchBuf { scratch: self, bytes }
    }
}

impl Deref for ScratchBuf<'_> {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl DerefMut for ScratchBuf<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl Drop for ScratchBuf<'_> {
    fn drop(&mut self) {
        let mut idle = self.scratch.idle.lock();
        if idle.len() < IDLE_MAX {
            idle.push(std::mem::take(&mut self.bytes));
        }
    }
}
