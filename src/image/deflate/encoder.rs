//! A raw deflate encoder whose matches reach back 4 KiB and no further.
//!
//! Positions are found by two hash tables, of three bytes and of four, and chains of the positions of one hash within
//! the window. Whether a match is taken is decided after looking at the next position, too. A block ends where the
//! kinds of what is encoded change, and has codes of its own unless the fixed ones are shorter. What was found is never
//! trusted: tables say where to look, and bytes are compared.
//!
//! Spec: RFC 1951.

use super::block::{Bits, Block, MATCH_LEN_MAX, MATCH_LEN_MIN, Match};

/// How far back a match may lie.
const WINDOW_LEN: usize = 1 << 12;

/// More than the window needs: an entry that is stale costs a wrong guess of the processor's. 15 bits are a quarter faster
/// than 13, 16 are slower again.
const HASH4_BITS: u32 = 15;
const HASH3_BITS: u32 = 11;
/// How many positions are looked at for a match; half as many for the one after it.
const DEPTH: usize = 24;
/// A match of this length is taken without looking further.
const GOOD_MATCH_LEN: usize = 65;

/// Makes streams; used again, it makes the same stream of the same bytes.
pub(super) struct Encoder {
    /// The last position whose four (three) bytes have a hash, modulo 2^16.
    heads4: Box<[u16; 1 << HASH4_BITS]>,
    heads3: Box<[u16; 1 << HASH3_BITS]>,
    /// By position within the window: the position before it with the same hash of four bytes.
    chains: Box<[u16; WINDOW_LEN]>,
    block: Block,
}

impl Encoder {
    pub(super) fn new() -> Self {
        Self {
            heads4: Box::new([0; 1 << HASH4_BITS]),
            heads3: Box::new([0; 1 << HASH3_BITS]),
            chains: Box::new([0; WINDOW_LEN]),
            block: Block::new(),
        }
    }

    /// Makes a stream of `data` and says how long it is: `None` if it would not be shorter. There must be room for more
    /// than the data.
    pub(super) fn deflate(&mut self, data: &[u8], stream: &mut [u8]) -> Option<usize> {
        self.heads4.fill(0);
        self.heads3.fill(0);
        self.chains.fill(0);
        self.block.begin(0);
        let mut bits = Bits::new(stream, data.len())?;
        let mut at = 0;
        while at < data.len() {
            at = match self.find(data, at, MATCH_LEN_MIN - 1, DEPTH) {
                None => {
                    self.block.add_literal(data[at]);
                    at + 1
                }
                Some(found) => self.add_match(data, at, found),
            };
            if self.block.is_full(at) && at < data.len() {
                self.block.write(&mut bits, false)?;
                self.block.begin(at);
            }
        }
        self.block.write(&mut bits, true)?;
        Some(bits.finish())
    }

    /// Adds a match at `at`, or literals and a match that is better. Returns where it goes on.
    #[inline]
    fn add_match(&mut self, data: &[u8], mut at: usize, mut found: Match) -> usize {
        loop {
            let mut next = at + 1;
            if found.len < GOOD_MATCH_LEN && next < data.len() {
                let better = self.find(data, next, found.len - 1, DEPTH / 2);
                next += 1;
                if let Some(better) = better
                    && better.is_worth_a_literal(&found)
                {
                    self.block.add_literal(data[at]);
                    at += 1;
                    found = better;
                    continue;
                }
            }
            self.block.add_match(&found);
            self.note(data, next, at + found.len);
            return at + found.len;
        }
    }

    /// Finds a match at `at` that is longer than `floor` bytes, and notes the position.
    #[inline(always)]
    fn find(&mut self, data: &[u8], at: usize, floor: usize, depth: usize) -> Option<Match> {
        let len_max = (data.len() - at).min(MATCH_LEN_MAX);
        if len_max < 4 || floor >= len_max {
            return None;
        }
        let word = load4(data, at);
        let (hash4, hash3) = hashes(word);
        let here = low_bits(at);
        let last3 = self.heads3[hash3];
        let mut last = self.heads4[hash4];
        self.heads3[hash3] = here;
        self.heads4[hash4] = here;
        self.chains[at % WINDOW_LEN] = last;

        let farthest = at.min(WINDOW_LEN);
        let mut best = Match { len: floor, distance: 0 };
        if floor < MATCH_LEN_MIN {
            let distance = usize::from(here.wrapping_sub(last3));
            if (1..=farthest).contains(&distance) && (load4(data, at - distance) ^ word) << 8 == 0 {
                best = Match { len: MATCH_LEN_MIN, distance };
            }
        }
        let good_len = GOOD_MATCH_LEN.min(len_max);
        // The last four bytes that a longer match must have.
        let mut tail_at = best.len.max(MATCH_LEN_MIN) - MATCH_LEN_MIN;
        let mut tail = load4(data, at + tail_at);
        let mut nearer = 0;
        for _ in 0..depth {
            let distance = usize::from(here.wrapping_sub(last));
            if distance <= nearer || distance > farthest {
                break;
            }
            let there = at - distance;
            if load4(data, there + tail_at) == tail && load4(data, there) == word {
                let len = common_len(data, there, at, len_max);
                if len > best.len {
                    best = Match { len, distance };
                    if len >= good_len {
                        break;
                    }
                    tail_at = len - MATCH_LEN_MIN;
                    tail = load4(data, at + tail_at);
                }
            }
            nearer = distance;
            last = self.chains[there % WINDOW_LEN];
        }
        (best.distance > 0).then_some(best)
    }

    /// Notes positions without looking for matches.
    #[inline(always)]
    fn note(&mut self, data: &[u8], from: usize, to: usize) {
        for at in from..to.min(data.len().saturating_sub(3)) {
            let (hash4, hash3) = hashes(load4(data, at));
            self.chains[at % WINDOW_LEN] = self.heads4[hash4];
            self.heads4[hash4] = low_bits(at);
            self.heads3[hash3] = low_bits(at);
        }
    }
}

impl Match {
    /// Whether to give up `before`, one byte earlier, for this one.
    fn is_worth_a_literal(&self, before: &Self) -> bool {
        // Four times the length that is gained, and the bits that a nearer distance takes less.
        let near = before.distance.ilog2().cast_signed() - self.distance.ilog2().cast_signed();
        match i32::try_from(self.len).ok().zip(i32::try_from(before.len).ok()) {
            Some((len, len_before)) => len >= len_before && 4 * (len - len_before) + near > 2,
            None => false,
        }
    }
}

#[inline(always)]
fn hashes(word: u32) -> (usize, usize) {
    const FACTOR: u32 = 0x9e37_79b1;
    let hash4 = word.wrapping_mul(FACTOR) >> (u32::BITS - HASH4_BITS);
    let hash3 = (word << 8).wrapping_mul(FACTOR) >> (u32::BITS - HASH3_BITS);
    (hash4 as usize, hash3 as usize)
}

/// A position modulo 2^16, which is more than the window.
#[inline(always)]
fn low_bits(at: usize) -> u16 {
    // OK to cast: the low bits are what is asked for.
    at as u16
}

#[inline(always)]
fn load4(data: &[u8], at: usize) -> u32 {
    let mut bytes = [0; 4];
    bytes.copy_from_slice(&data[at..at + 4]);
    u32::from_le_bytes(bytes)
}

#[inline(always)]
fn load8(data: &[u8], at: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&data[at..at + 8]);
    u64::from_le_bytes(bytes)
}

/// How many bytes from `a` and from `b` on are the same, up to `len_max`; four are known to be.
#[inline(always)]
fn common_len(data: &[u8], a: usize, b: usize, len_max: usize) -> usize {
    let mut len = 4;
    while len + 8 <= len_max {
        let difference = load8(data, a + len) ^ load8(data, b + len);
        if difference != 0 {
            return len + difference.trailing_zeros() as usize / 8;
        }
        len += 8;
    }
    while len < len_max && data[a + len] == data[b + len] {
        len += 1;
    }
    len
}
