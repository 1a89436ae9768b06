//! The order of writes: several pieces are read at once, and written one after the other, so that clusters are taken in the
//! order of the disk.
//!
//! Whoever has read the piece whose turn it is writes it, and goes on with those behind it that others have read meanwhile:
//! so writing passes from thread to thread only where reading is what takes time.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use event_listener::Event;

use super::plan::Piece;

/// Whose turn it is, and what was read before its turn.
#[derive(Debug)]
pub(super) struct Order {
    state: Mutex<State>,
    /// Buffers are free, or there is nothing more to read.
    freed: Event,
    buffers_max: usize,
}

#[derive(Debug, Default)]
struct State {
    /// The number of the next piece to write.
    next: u64,
    is_writing: bool,
    /// All pieces are being read, or were.
    ended: bool,
    stopped: bool,
    /// What was read and not written yet, by number.
    read: BTreeMap<u64, ReadPiece>,
    /// The last one is the one that was used last.
    free: Vec<Vec<u8>>,
}

/// A piece with what was read of it: nothing, if no bytes of it are written.
#[derive(Debug)]
pub(super) struct ReadPiece {
    pub(super) piece: Piece,
    pub(super) buffer: Vec<u8>,
}

impl Order {
    /// From piece 0 on, with so many pieces at most that are read and not written yet.
    pub(super) fn new(buffers_max: usize) -> Self {
        let free = vec![Vec::new(); buffers_max];
        let state = Mutex::new(State { free, ..State::default() });
        Self { state, freed: Event::new(), buffers_max }
    }

    /// Takes a buffer, when one is free. To be had before a piece to read into it: then no piece waits for a buffer that is
    /// full of what comes behind it. `None` if there is nothing more to read.
    pub(super) async fn buffer(&self) -> Option<Vec<u8>> {
        loop {
            let listener = {
                let mut state = self.state();
                if state.ended || state.stopped {
                    return None;
                }
                match state.free.pop() {
                    Some(buffer) => return Some(buffer),
                    None => self.freed.listen(),
                }
            };
            listener.await;
        }
    }

    /// Hands in what was read. If it is its turn and nobody writes, it comes back: who gets it writes it, and what
    /// [`Self::written`] returns after it.
    pub(super) fn hand_in(&self, read: ReadPiece) -> Option<ReadPiece> {
        let mut state = self.state();
        state.read.insert(read.piece.number, read);
        if state.is_writing { None } else { state.next_read() }
    }

    /// A piece was written, whose buffer is free now: returns the next one, if it was read.
    pub(super) fn written(&self, buffer: Vec<u8>) -> Option<ReadPiece> {
        let mut state = self.state();
        state.next += 1;
        state.free.push(buffer);
        let free = state.free.len();
        let next = state.next_read();
        drop(state);
        // Not for each of them: who waits is woken up to read several.
        if free * 4 >= self.buffers_max {
            self.freed.notify(free);
        }
        next
    }

    /// There is nothing more to read.
    pub(super) fn end(&self) {
        self.state().ended = true;
        self.freed.notify(usize::MAX);
    }

    /// Nothing more is to be written.
    pub(super) fn stop(&self) {
        self.state().stopped = true;
        self.freed.notify(usize::MAX);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Takes the piece whose turn it is, and notes whether somebody writes.
    fn next_read(&mut self) -> Option<ReadPiece> {
        let next = if self.stopped { None } else { self.read.remove(&self.next) };
        self.is_writing = next.is_some();
        next
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    fn read(number: u64, buffer: Vec<u8>) -> ReadPiece {
        let piece = Piece { number, part: 0, offset: 0, len: 0, is_zero: true, runs: Vec::new() };
        ReadPiece { piece, buffer }
    }

    fn buffer(order: &Order) -> Option<Option<Vec<u8>>> {
        order.buffer().now_or_never()
    }

    fn number(next: Option<&ReadPiece>) -> Option<u64> {
        next.map(|read| read.piece.number)
    }

    #[test]
    fn whoever_writes_goes_on_with_what_was_read_meanwhile() {
        let order = Order::new(3);
        let mut buffers: Vec<_> = (0..3).map(|_| buffer(&order).flatten().unwrap()).collect();
        assert!(buffer(&order).is_none(), "a fourth one waits");
        let mut hand_in = |number| order.hand_in(read(number, buffers.pop().unwrap()));
        assert_eq!(number(hand_in(1).as_ref()), None, "it is not its turn");
        let first = hand_in(0).unwrap();
        assert_eq!(first.piece.number, 0);
        assert_eq!(number(hand_in(2).as_ref()), None, "somebody writes");
        let second = order.written(first.buffer).unwrap();
        assert_eq!(second.piece.number, 1);
        let third = order.written(second.buffer).unwrap();
        assert_eq!(third.piece.number, 2);
        assert_eq!(number(order.written(third.buffer).as_ref()), None);
        let fourth = order.hand_in(read(3, buffer(&order).flatten().unwrap()));
        assert_eq!(number(fourth.as_ref()), Some(3), "nobody writes any more");
    }

    #[test]
    fn who_waits_for_a_buffer_is_told_of_the_end() {
        for end in [Order::end, Order::stop] {
            let order = Order::new(1);
            let taken = buffer(&order).flatten().unwrap();
            let waiting = order.buffer();
            futures::pin_mut!(waiting);
            assert!(waiting.as_mut().now_or_never().is_none());
            end(&order);
            assert_eq!(waiting.now_or_never(), Some(None));
            assert_eq!(buffer(&order), Some(None));
            drop(taken);
        }
    }

    #[test]
    fn nothing_is_written_after_a_stop() {
        let order = Order::new(2);
        order.stop();
        assert_eq!(number(order.hand_in(read(0, Vec::new())).as_ref()), None);
    }
}
