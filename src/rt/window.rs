//! Which pieces of a slow source to fetch, to fetch ahead and to keep: the arithmetic behind
//! [`BlobStorage`](super::blob::BlobStorage).
//!
//! Reading a file in a browser is bound by the call, not by the byte: 4 KiB cost 1.2 ms, 256 KiB 2.7 ms; with 8 MiB in
//! flight, slices of 256 KiB give 140 MB/s, of 1 MiB 330 and of 4 MiB 480. So a miss fetches a block of [`BLOCK_LEN`] around
//! it, a long request is cut into segments of [`SEGMENT_LEN_MAX`], and a reader that goes on where it stopped is read
//! ahead of, further and in longer segments the longer it goes on, up to [`AHEAD_LEN_MAX`]. What is kept is bounded by
//! [`HELD_LEN_MAX`], whatever the length of the source.
//!
//! It must not know JavaScript, futures, or what a segment's payload is.

use std::ops::Range;

/// What one miss fetches at least, and the alignment of its start. Bytes.
pub(crate) const BLOCK_LEN: u64 = 256 << 10;
/// Segments begin and end at multiples of this, or at the end of the source. Bytes.
const GRANULE_LEN: u64 = 64 << 10;
/// One fetch asks for no more. Bytes.
pub(crate) const SEGMENT_LEN_MAX: u64 = 4 << 20;
/// How far beyond a sequential reader to have fetches under way. Bytes.
pub(crate) const AHEAD_LEN_MAX: u64 = 8 << 20;
/// How far beyond a reader that has just proved sequential. Bytes.
const AHEAD_LEN_MIN: u64 = 512 << 10;
/// Segments held and under way together. Bytes.
pub(crate) const HELD_LEN_MAX: u64 = 24 << 20;
/// A read that starts this close after the one before it goes on with it. Bytes.
const SKIP_LEN_MAX: u64 = 128 << 10;
/// And one that starts this much before: requests in flight together arrive in any order.
const BACK_LEN_MAX: u64 = 1 << 20;
/// Sequential readers told apart.
const STREAMS: usize = 4;

/// What a segment holds.
pub(crate) trait Payload: Clone {
    /// Whether its bytes have come, so that dropping it gives memory back.
    fn is_settled(&self) -> bool;
}

/// The segments of a source that are held or under way. They do not overlap.
pub(crate) struct Window<T> {
    len: u64,
    /// In the order of their ranges; a few hundred at most.
    segments: Vec<Segment<T>>,
    streams: [Stream; STREAMS],
    clock: u64,
    held: u64,
}

struct Segment<T> {
    start: u64,
    end: u64,
    used: u64,
    payload: T,
}

/// A reader that may be sequential.
#[derive(Default, Clone, Copy)]
struct Stream {
    /// Where it began.
    begun: u64,
    /// Where it will go on if it is.
    next: u64,
    /// Up to where it has been read ahead of.
    ahead: u64,
    /// How far to read ahead of it; 0 until it has gone on once.
    window: u64,
    used: u64,
}

impl<T: Payload> Window<T> {
    /// Of a source of `len` bytes.
    pub(crate) fn new(len: u64) -> Self {
        Self { len, segments: Vec::new(), streams: [Stream::default(); STREAMS], clock: 0, held: 0 }
    }

    /// The segment that holds the byte at `at`, with its range, marked used.
    pub(crate) fn find(&mut self, at: u64) -> Option<(Range<u64>, &T)> {
        let i = self.before(at).filter(|&i| at < self.segments[i].end)?;
        self.clock += 1;
        let segment = &mut self.segments[i];
        segment.used = self.clock;
        Some((segment.start..segment.end, &segment.payload))
    }

    /// What to fetch for the byte at `at`, which is in no segment and not past the end, when the request goes on to `end`.
    pub(crate) fn gap(&self, at: u64, end: u64) -> Range<u64> {
        let next = self.segments.partition_point(|segment| segment.start <= at);
        let before = next.checked_sub(1).map_or(0, |i| self.segments[i].end);
        let after = self.segments.get(next).map_or(self.len, |segment| segment.start);
        let start = (at - at % BLOCK_LEN).max(before);
        let wanted = end.next_multiple_of(GRANULE_LEN).max(start + BLOCK_LEN);
        start..wanted.min(start + SEGMENT_LEN_MAX).max(at + 1).min(after).min(self.len)
    }

    /// Adds a segment, dropping the longest unused ones to stay within [`HELD_LEN_MAX`].
    ///
    /// Segments under way are not dropped.
    pub(crate) fn insert(&mut self, range: Range<u64>, payload: T) {
        let len = range.end - range.start;
        while self.held + len > HELD_LEN_MAX {
            let settled = self.segments.iter().filter(|segment| segment.payload.is_settled());
            let oldest = settled.min_by_key(|segment| segment.used).map(|segment| segment.start);
            match oldest {
                Some(start) => self.remove(start),
                None => break,
            }
        }
        self.clock += 1;
        self.held += len;
        let at = self.segments.partition_point(|segment| segment.start < range.start);
        let Range { start, end } = range;
        self.segments.insert(at, Segment { start, end, used: self.clock, payload });
    }

    /// Drops the segment that starts at `start`, if there is one.
    pub(crate) fn remove(&mut self, start: u64) {
        if let Some(i) = self.before(start).filter(|&i| self.segments[i].start == start) {
            let segment = self.segments.remove(i);
            self.held -= segment.end - start;
        }
    }

    /// The last segment that starts at or before `at`.
    fn before(&self, at: u64) -> Option<usize> {
        self.segments.partition_point(|segment| segment.start <= at).checked_sub(1)
    }

    /// What is held and under way.
    #[cfg_attr(
        not(target_family = "wasm"),
        allow(dead_code, reason = "natively only tests know windows")
    )]
    pub(crate) fn payloads(&self) -> impl Iterator<Item = &T> {
        self.segments.iter().map(|segment| &segment.payload)
    }

    /// Bytes held and under way.
    pub(crate) fn held(&self) -> u64 {
        self.held
    }

    /// Notes a read of `range` and says what to fetch ahead of it, if anything; to be called again after inserting that.
    pub(crate) fn advance(&mut self, range: &Range<u64>) -> Option<Range<u64>> {
        self.clock += 1;
        let clock = self.clock;
        let continues = |s: &Stream| {
            range.start <= s.next + SKIP_LEN_MAX
                && range.start + BACK_LEN_MAX >= s.next
                && s.used > 0
        };
        let Some(i) = self.streams.iter().position(continues) else {
            let oldest = self.streams.iter_mut().min_by_key(|s| s.used)?;
            let Range { start: begun, end: next } = *range;
            *oldest = Stream { begun, next, ahead: next, window: 0, used: clock };
            return None;
        };
        let stream = &mut self.streams[i];
        stream.used = clock;
        if range.end > stream.next {
            stream.next = range.end;
            stream.window = stream.window.max(AHEAD_LEN_MIN);
        }
        stream.ahead = stream.ahead.max(stream.next);
        let Stream { begun, next, mut ahead, window, .. } = *stream;
        // What the reader has left behind goes first; what was fetched ahead of it has not been used yet and must not.
        let left = range.start.checked_sub(1).and_then(|at| self.before(at));
        if let Some(segment) = left.map(|i| &mut self.segments[i])
            && segment.end <= range.start
        {
            segment.used = 0;
        }
        while let Some(i) = self.before(ahead).filter(|&i| ahead < self.segments[i].end) {
            ahead = self.segments[i].end;
        }
        self.streams[i].ahead = ahead;
        let end = ahead.saturating_add((window / 2).clamp(BLOCK_LEN, SEGMENT_LEN_MAX));
        let end = (end - end % GRANULE_LEN).min(self.len);
        if ahead >= self.len || end > next.saturating_add(window).min(self.len) {
            return None;
        }
        // Twice as far at each step, and never further than twice what was read: who looks at a few tables does not fetch
        // what lies behind them.
        let read = next.saturating_sub(begun);
        self.streams[i].window = (window * 2).min(AHEAD_LEN_MAX).min((2 * read).max(AHEAD_LEN_MIN));
        let gap = self.gap(ahead, end);
        Some(gap.start..gap.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A payload that has come at once.
    #[derive(Clone)]
    struct Come(bool);

    impl Payload for Come {
        fn is_settled(&self) -> bool {
            self.0
        }
    }

    /// Reads `range` as the storage does; returns the lengths fetched on demand and ahead.
    fn read(window: &mut Window<Come>, range: Range<u64>) -> (Vec<Range<u64>>, Vec<Range<u64>>) {
        let (mut demand, mut ahead) = (Vec::new(), Vec::new());
        let mut at = range.start;
        while at < range.end {
            match window.find(at) {
                Some((found, _)) => at = found.end,
                None => {
                    let gap = window.gap(at, range.end);
                    assert!(gap.contains(&at) && gap.end <= window.len, "{gap:?} for {at}");
                    assert!(gap.end - gap.start <= SEGMENT_LEN_MAX);
                    window.insert(gap.clone(), Come(true));
                    demand.push(gap);
                }
            }
        }
        while let Some(gap) = window.advance(&range) {
            assert!(gap.start < gap.end && gap.end <= window.len, "{gap:?}");
            assert!(window.find(gap.start).is_none() && window.find(gap.end - 1).is_none());
            window.insert(gap.clone(), Come(true));
            ahead.push(gap);
        }
        (demand, ahead)
    }

    #[test]
    fn a_miss_fetches_the_block_around_it() {
        let mut window = Window::new(1 << 40);
        let (demand, ahead) = read(&mut window, 0x12_3456_7000..0x12_3456_8000);
        assert_eq!(demand, vec![0x12_3454_0000..0x12_3458_0000]);
        assert!(ahead.is_empty());
        let (demand, _) = read(&mut window, 0x12_3454_0000..0x12_3454_1000);
        assert!(demand.is_empty());
    }

    #[test]
    fn the_end_of_the_source_bounds_every_fetch() {
        for len in [1, 511, 65_537, (1 << 20) + 1, (3 << 20) - 1] {
            let mut window = Window::new(len);
            let (demand, ahead) = read(&mut window, 0..len);
            let fetched: u64 = demand.iter().chain(&ahead).map(|r| r.end - r.start).sum();
            assert_eq!(fetched, len);
        }
    }

    #[test]
    fn a_sequential_reader_misses_only_at_the_start() {
        let mut window = Window::new(1 << 30);
        let mut misses = 0;
        let mut fetches = 0;
        for at in (0..(64 << 20)).step_by(65_536) {
            let (demand, ahead) = read(&mut window, at..at + 65_536);
            misses += demand.len();
            fetches += demand.len() + ahead.len();
            assert!(window.held() <= HELD_LEN_MAX);
        }
        assert_eq!(misses, 1);
        assert!(fetches < 64 + 16, "{fetches} fetches for 64 MiB");
    }

    #[test]
    fn random_reads_are_not_read_ahead_of() {
        let mut window = Window::new(1 << 40);
        let mut seed = 0x2545_f491_4f6c_dd1d_u64;
        for _ in 0..2000 {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            let at = seed % ((1 << 40) - 4096);
            let (_, ahead) = read(&mut window, at..at + 4096);
            assert!(ahead.is_empty(), "seed {seed:#x}: {ahead:?}");
            assert!(window.held() <= HELD_LEN_MAX);
        }
    }

    #[test]
    fn who_reads_little_is_read_ahead_of_little() {
        let mut window = Window::new(1 << 40);
        let mut fetched = 0;
        for at in (0..(256 << 10)).step_by(4096) {
            let (demand, ahead) = read(&mut window, at..at + 4096);
            fetched += demand.iter().chain(&ahead).map(|r| r.end - r.start).sum::<u64>();
        }
        assert!(fetched <= 1 << 20, "{fetched} bytes for 256 KiB");
    }

    #[test]
    fn segments_under_way_are_not_dropped() {
        let mut window = Window::new(1 << 40);
        for i in 0..20 {
            window.insert(i << 20..(i + 1) << 20, Come(false));
        }
        assert!((0..20).all(|i| window.find(i << 20).is_some()));
        window.insert(1 << 30..(1 << 30) + 1, Come(true));
        assert_eq!(window.held(), (20 << 20) + 1);
    }

    #[test]
    fn two_interleaved_readers_are_both_read_ahead_of() {
        let mut window = Window::new(1 << 40);
        let mut misses = 0;
        for at in (0..(16 << 20)).step_by(65_536) {
            for base in [0, 1 << 38] {
                misses += read(&mut window, base + at..base + at + 65_536).0.len();
            }
        }
        assert!(misses <= 4, "{misses}");
    }
}
