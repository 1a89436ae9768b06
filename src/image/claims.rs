//! Claims on guest clusters: whoever changes what they map to, or what their host clusters hold apart from the named bytes,
//! does so alone.
//!
//! Claims are granted in the order in which they were asked for, as far as they overlap, so that a long one is not starved by
//! short ones and nobody waits in a circle. This file must not know what is done under a claim.

use std::ops::RangeInclusive;

use super::mutant::{self, Mutant};
use crate::sync::{Event, Mutex};

/// The claims on the clusters of one disk.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    queue: Mutex<Queue>,
    released: Event,
}

#[derive(Debug, Default)]
struct Queue {
    next: u64,
    /// Granted and waiting ones, oldest first.
    asked: Vec<(u64, RangeInclusive<u64>)>,
}

/// A claim; dropping it gives it up.
#[derive(Debug)]
pub(crate) struct Claim<'a> {
    claims: &'a Claims,
    number: u64,
}

impl Claims {
    /// Waits until nobody who asked before has any of these clusters.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the queue.
    pub(crate) async fn claim(&self, clusters: RangeInclusive<u64>) -> Claim<'_> {
        let claim = self.ask(clusters);
        while !self.is_granted(&claim) {
            let released = self.released.listen();
            // Looked at again after listening: it may have been granted in between.
            if !mutant::is(Mutant::GateLooksFirst) && self.is_granted(&claim) {
                break;
            }
            // Cancel: the claim's drop leaves the queue.
            released.await;
        }
        claim
    }

    /// Claims these clusters if nobody else does.
    pub(crate) fn try_claim(&self, clusters: RangeInclusive<u64>) -> Option<Claim<'_>> {
        let claim = self.ask(clusters);
        self.is_granted(&claim).then_some(claim)
    }

    fn ask(&self, clusters: RangeInclusive<u64>) -> Claim<'_> {
        let mut queue = self.queue.lock();
        let number = queue.next;
        queue.next += 1;
        queue.asked.push((number, clusters));
        Claim { claims: self, number }
    }

    fn is_granted(&self, claim: &Claim<'_>) -> bool {
        if mutant::is(Mutant::ClaimWithoutLook) {
            return true;
        }
        let queue = self.queue.lock();
        let Some(own) = queue.asked.iter().position(|(number, _)| *number == claim.number) else {
            return true;
        };
        let (before, rest) = queue.asked.split_at(own);
        // OK to index: `own` is a position.
        let (first, last) = (rest[0].1.start(), rest[0].1.end());
        !before.iter().any(|(_, other)| other.start() <= last && first <= other.end())
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut queue = self.claims.queue.lock();
        queue.asked.retain(|(number, _)| *number != self.number);
        let others = !queue.asked.is_empty();
        drop(queue);
        if others && !mutant::is(Mutant::ClaimWithoutWake) {
            self.claims.released.notify(usize::MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Claims;
    use futures::{FutureExt, pin_mut, poll};

    #[test]
    fn what_overlaps_waits_in_the_order_of_asking() {
        let claims = Claims::default();
        let first = claims.claim(3..=5).now_or_never().unwrap();
        assert!(claims.claim(6..=9).now_or_never().is_some(), "apart from it");
        futures::executor::block_on(async {
            let (second, third) = (claims.claim(5..=7), claims.claim(7..=7));
            pin_mut!(second, third);
            assert!(poll!(&mut second).is_pending());
            assert!(poll!(&mut third).is_pending(), "behind one that waits");
            drop(first);
            let second = match poll!(&mut second) {
                std::task::Poll::Ready(claim) => claim,
                std::task::Poll::Pending => panic!("the first one is gone"),
            };
            assert!(poll!(&mut third).is_pending());
            drop(second);
            assert!(poll!(&mut third).is_ready());
        });
    }

    #[test]
    fn one_that_is_dropped_while_it_waits_leaves_the_queue() {
        let claims = Claims::default();
        let first = claims.claim(0..=9).now_or_never().unwrap();
        assert!(claims.claim(0..=0).now_or_never().is_none());
        drop(first);
        assert!(claims.claim(0..=9).now_or_never().is_some());
    }
}
