//! Whether and how an image is written to: one word, so that whoever looks sees all of one setting, old or new.

use crate::sync::{AtomicU64, Ordering};

use super::options::WriteOptions;
use super::overlap::OverlapChecks;

/// The image is open for writing; the other bits say how.
const WRITABLE: u64 = 1 << 0;
const PASS_DISCARD_REQUEST: u64 = 1 << 1;
const PASS_DISCARD_SNAPSHOT: u64 = 1 << 2;
const PASS_DISCARD_OTHER: u64 = 1 << 3;
const DISCARD_NO_UNREF: u64 = 1 << 4;
const WRITE_THROUGH: u64 = 1 << 5;
/// Lazy refcounts are not left to the header.
const LAZY_SAID: u64 = 1 << 6;
const LAZY: u64 = 1 << 7;
const OVERLAP_CHECKS_SHIFT: u32 = 16;

/// The write options that hold now, or that there are none.
#[derive(Debug)]
pub(crate) struct Access(AtomicU64);

impl Access {
    /// Begins with `options`; `None` is read-only.
    pub(crate) fn new(options: Option<WriteOptions>) -> Self {
        Self(AtomicU64::new(encode(options)))
    }

    /// Replaces the options.
    pub(crate) fn set(&self, options: Option<WriteOptions>) {
        self.0.store(encode(options), Ordering::Release);
    }

    /// The options.
    #[inline]
    pub(crate) fn get(&self) -> Option<WriteOptions> {
        decode(self.0.load(Ordering::Acquire))
    }

    /// Whether the image is open for writing.
    #[inline]
    pub(crate) fn is_writable(&self) -> bool {
        self.0.load(Ordering::Acquire) & WRITABLE != 0
    }
}

fn encode(options: Option<WriteOptions>) -> u64 {
    let Some(options) = options else { return 0 };
    let bit = |bit, on| if on { bit } else { 0 };
    WRITABLE
        | bit(PASS_DISCARD_REQUEST, options.pass_discard_request)
        | bit(PASS_DISCARD_SNAPSHOT, options.pass_discard_snapshot)
        | bit(PASS_DISCARD_OTHER, options.pass_discard_other)
        | bit(DISCARD_NO_UNREF, options.discard_no_unref)
        | bit(WRITE_THROUGH, options.write_through)
        | bit(LAZY_SAID, options.lazy_refcounts.is_some())
        | bit(LAZY, options.lazy_refcounts == Some(true))
        | u64::from(options.overlap_checks.bits()) << OVERLAP_CHECKS_SHIFT
}

fn decode(word: u64) -> Option<WriteOptions> {
    let has = |bit| word & bit != 0;
    // OK to cast: the bits above are the checks' own sixteen.
    #[allow(clippy::cast_possible_truncation)]
    let checks = (word >> OVERLAP_CHECKS_SHIFT) as u16;
    has(WRITABLE).then(|| WriteOptions {
        pass_discard_request: has(PASS_DISCARD_REQUEST),
        pass_discard_snapshot: has(PASS_DISCARD_SNAPSHOT),
        pass_discard_other: has(PASS_DISCARD_OTHER),
        discard_no_unref: has(DISCARD_NO_UNREF),
        overlap_checks: OverlapChecks::from_bits(checks),
        lazy_refcounts: has(LAZY_SAID).then(|| has(LAZY)),
        write_through: has(WRITE_THROUGH),
    })
}

#[cfg(test)]
mod tests {
    use super::{Access, OverlapChecks, WriteOptions};

    #[test]
    fn every_option_is_found_again_whatever_the_others_say() {
        let access = Access::new(None);
        assert_eq!(access.get(), None);
        assert!(!access.is_writable());
        for bits in 0..1_u32 << 5 {
            let on = |bit: u32| bits >> bit & 1 != 0;
            for lazy_refcounts in [None, Some(false), Some(true)] {
                for overlap_checks in
                    [OverlapChecks::NONE, OverlapChecks::CACHED, OverlapChecks::ALL]
                {
                    let options = WriteOptions {
                        pass_discard_request: on(0),
                        pass_discard_snapshot: on(1),
                        pass_discard_other: on(2),
                        discard_no_unref: on(3),
                        write_through: on(4),
                        overlap_checks,
                        lazy_refcounts,
                    };
                    access.set(Some(options));
                    assert_eq!(access.get(), Some(options));
                    assert!(access.is_writable());
                }
            }
        }
    }
}
