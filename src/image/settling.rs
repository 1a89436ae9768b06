//! Writes that were dropped while the storage worked on them: they may land until a flush has returned.
//!
//! Until then nobody else may write there, or the old bytes could land on the new ones, and the clusters may not become
//! somebody else's.

use std::ops::Range;

use crate::sync::{AtomicUsize, Mutex, Ordering};

use super::requests::{Held, Request, Requests};

/// Which file a range lies in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum File {
    /// The image file.
    Image,
    /// The external data file.
    Data,
}

/// The dropped writes of an image.
#[derive(Debug, Default)]
pub(crate) struct Settling {
    dropped: Mutex<Vec<Dropped>>,
    count: AtomicUsize,
}

#[derive(Debug)]
struct Dropped {
    file: File,
    range: Range<u64>,
    held: Option<Held>,
}

/// A write in flight: if it is dropped before [`Landing::end`], its range is unsettled.
#[derive(Debug)]
#[must_use]
pub(crate) struct Landing<'a> {
    settling: &'a Settling,
    request: Option<&'a Request<'a>>,
    file: File,
    range: Range<u64>,
    ended: bool,
}

impl Settling {
    /// Notes that a write begins; what `request` has seen stays usable until it has landed.
    pub(crate) fn begin<'a>(
        &'a self,
        request: Option<&'a Request<'a>>,
        file: File,
        range: Range<u64>,
    ) -> Landing<'a> {
        Landing { settling: self, request, file, range, ended: false }
    }

    /// Whether a dropped write may yet land anywhere.
    #[inline]
    pub(crate) fn is_unsettled(&self) -> bool {
        self.count.load(Ordering::Acquire) != 0
    }

    /// Whether a dropped write may yet land in this range.
    pub(crate) fn overlaps(&self, file: File, range: &Range<u64>) -> bool {
        self.is_unsettled()
            && self.dropped.lock().iter().any(|dropped| {
                dropped.file == file
                    && dropped.range.start < range.end
                    && range.start < dropped.range.end
            })
    }

    /// How many there are now: those that a flush settles which begins now.
    pub(crate) fn now(&self) -> usize {
        self.dropped.lock().len()
    }

    /// Forgets the oldest `count`, after a flush that began when there were as many. One caller at a time.
    pub(crate) fn settle(&self, count: usize, requests: &Requests) {
        if count == 0 {
            return;
        }
        let settled: Vec<Dropped> = self.dropped.lock().drain(..count).collect();
        self.count.fetch_sub(count, Ordering::AcqRel);
        for held in settled.into_iter().filter_map(|dropped| dropped.held) {
            requests.release(held);
        }
    }
}

impl Landing<'_> {
    /// The storage has answered, whatever it said: nothing lands any more.
    pub(crate) fn end(mut self) {
        self.ended = true;
    }
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        let held = self.request.map(Request::hold);
        let dropped = Dropped { file: self.file, range: self.range.clone(), held };
        self.settling.count.fetch_add(1, Ordering::AcqRel);
        self.settling.dropped.lock().push(dropped);
    }
}
