//! The order of writes: several pieces are read at once, and written one after the other, so that clusters are taken in the
//! order of the disk.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use event_listener::Event;

/// Whose turn it is.
#[derive(Debug, Default)]
pub(super) struct Order {
    next: AtomicU64,
    stopped: AtomicBool,
    changed: Event,
}

impl Order {
    /// Waits until all pieces before the one with this number are done. Returns whether it is to be written: it is not when
    /// one before has failed.
    pub(super) async fn wait_for(&self, number: u64) -> bool {
        loop {
            if let Some(go) = self.is_decided(number) {
                return go;
            }
            let changed = self.changed.listen();
            // It may have been decided before somebody listened.
            if let Some(go) = self.is_decided(number) {
                return go;
            }
            changed.await;
        }
    }

    /// The piece with this number is done.
    pub(super) fn done(&self, number: u64) {
        self.next.store(number + 1, Ordering::Release);
        self.changed.notify(usize::MAX);
    }

    /// Nothing more is to be written.
    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        self.changed.notify(usize::MAX);
    }

    fn is_decided(&self, number: u64) -> Option<bool> {
        if self.stopped.load(Ordering::Acquire) {
            return Some(false);
        }
        (self.next.load(Ordering::Acquire) == number).then_some(true)
    }
}
