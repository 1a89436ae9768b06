//! Writes that were dropped while the storage worked on them: they may land until a flush has returned.
//!
//! Until then nobody else may write there, or the old bytes could land on the new ones, and the clusters may not become
//! somebody else's.

use std::ops::Range;

use crate::sync::{AtomicUsize, Mutex, Ordering};

use super::mutant::{self, Mutant};
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
    list: Mutex<List>,
    count: AtomicUsize,
}

#[derive(Debug, Default)]
struct List {
    /// The number of the next one.
    next: u64,
    /// Oldest first.
    dropped: Vec<Dropped>,
}

/// A moment: what was dropped before it.
#[derive(Debug, Clone, Copy)]
#[must_use]
pub(crate) struct Moment(u64);

#[derive(Debug)]
struct Dropped {
    number: u64,
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
            && self.list.lock().dropped.iter().any(|dropped| {
                dropped.file == file
                    && dropped.range.start < range.end
                    && range.start < dropped.range.end
            })
    }

    /// The moment at which a flush begins.
    pub(crate) fn now(&self) -> Moment {
        Moment(self.list.lock().next)
    }

    /// Forgets what was dropped before `moment`, at which a flush began that has succeeded.
    pub(crate) fn settle(&self, moment: Moment, requests: &Requests) {
        if !self.is_unsettled() {
            return;
        }
        let settled: Vec<Dropped> = {
            let mut list = self.list.lock();
            // Somebody else may have settled some of them.
            let count = list.dropped.iter().take_while(|it| it.number < moment.0).count();
            list.dropped.drain(..count).collect()
        };
        self.count.fetch_sub(settled.len(), Ordering::AcqRel);
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
        if self.ended || mutant::is(Mutant::ForgetDroppedWrites) {
            return;
        }
        let held = self.request.map(Request::hold);
        self.settling.count.fetch_add(1, Ordering::AcqRel);
        let mut list = self.settling.list.lock();
        let number = list.next;
        list.next += 1;
        list.dropped.push(Dropped { number, file: self.file, range: self.range.clone(), held });
    }
}

#[cfg(test)]
mod tests {
    use super::{File, Requests, Settling};

    #[test]
    fn two_flushes_at_once_settle_what_was_dropped_before_each() {
        let (settling, requests) = (Settling::default(), Requests::default());
        drop(settling.begin(None, File::Image, 0..512));
        let (first, second) = (settling.now(), settling.now());
        drop(settling.begin(None, File::Image, 512..1024));
        settling.settle(first, &requests);
        settling.settle(second, &requests);
        assert!(!settling.overlaps(File::Image, &(0..512)));
        assert!(settling.overlaps(File::Image, &(512..1024)), "dropped after both had begun");
        settling.settle(settling.now(), &requests);
        assert!(!settling.is_unsettled());
    }
}
