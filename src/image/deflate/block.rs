//! A block of a deflate stream: the literals and matches in it, when it ends, and how it is written.
//!
//! Spec: RFC 1951, 3.2.

use super::prefix::{code_lengths, codes};

pub(super) const MATCH_LEN_MIN: usize = 3;
pub(super) const MATCH_LEN_MAX: usize = 258;

/// A block has at most this many literals and matches.
const ITEMS_MAX: usize = 1 << 15;
/// And covers at least this many bytes, unless it is the last.
const LEN_MIN: usize = 5000;
/// The kinds of items are looked at whenever there are this many new ones.
const ITEMS_BETWEEN_LOOKS: u32 = 512;
/// Eight kinds of literals, by their bits, and two of matches, by their length.
const KINDS: usize = 10;

/// The symbols of literals, the end of a block, and lengths; the fixed codes have two more.
const LITERALS: usize = 286;
const END: usize = 256;
const FIRST_LENGTH: usize = 257;
const DISTANCES: usize = 30;
const LENGTHS: usize = 29;
#[rustfmt::skip]
const LENGTH_BASE: [u16; LENGTHS] = [
    3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258,
];
#[rustfmt::skip]
const LENGTH_EXTRA_BITS: [u8; LENGTHS] = [
    0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0,
];
/// The order in which the lengths of the codes of code lengths are written.
const ORDER: [usize; 19] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];

/// The index among the lengths of a match, by its length less the shortest.
const LENGTH_SLOT: [u8; 256] = {
    let mut slots = [0; 256];
    let (mut slot, mut len) = (0, 0);
    while len < 256 {
        while slot + 1 < LENGTHS && LENGTH_BASE[slot + 1] as usize <= len + MATCH_LEN_MIN {
            slot += 1;
        }
        // OK to cast: at most 28.
        slots[len] = slot as u8;
        len += 1;
    }
    slots
};

/// The symbol of a distance.
#[inline(always)]
fn distance_slot(distance: usize) -> usize {
    let distance = distance - 1;
    if distance < 4 {
        return distance;
    }
    let bits = distance.ilog2();
    2 * bits as usize + (distance >> (bits - 1) & 1)
}

fn distance_extra_bits(slot: usize) -> u32 {
    // OK to cast: at most 29.
    (slot as u32 / 2).saturating_sub(1)
}

/// Bytes that are the same as `distance` bytes before.
pub(super) struct Match {
    pub(super) len: usize,
    pub(super) distance: usize,
}

/// Literals and matches, and how often each symbol is among them.
pub(super) struct Block {
    /// A literal is its byte; a match has the highest bit, its length less the shortest from bit 16, and its distance.
    items: Vec<u32>,
    literals: [u32; LITERALS],
    distances: [u32; DISTANCES],
    start: usize,
    /// How many items of each kind there were up to the last look, and since.
    before: [u32; KINDS],
    since: [u32; KINDS],
    before_count: u32,
    since_count: u32,
}

const MATCH: u32 = 1 << 31;

impl Block {
    pub(super) fn new() -> Self {
        Self::with(Vec::with_capacity(ITEMS_MAX), 0)
    }

    /// Begins anew with the byte at `start`.
    pub(super) fn begin(&mut self, start: usize) {
        let mut items = std::mem::take(&mut self.items);
        items.clear();
        *self = Self::with(items, start);
    }

    fn with(items: Vec<u32>, start: usize) -> Self {
        Self {
            items,
            literals: [0; LITERALS],
            distances: [0; DISTANCES],
            start,
            before: [0; KINDS],
            since: [0; KINDS],
            before_count: 0,
            since_count: 0,
        }
    }

    #[inline(always)]
    pub(super) fn add_literal(&mut self, byte: u8) {
        self.items.push(u32::from(byte));
        self.literals[usize::from(byte)] += 1;
        self.add_kind(usize::from((byte >> 5 & 6) | (byte & 1)));
    }

    #[inline(always)]
    pub(super) fn add_match(&mut self, found: &Match) {
        let index = found.len - MATCH_LEN_MIN;
        // OK to cast: at most 255 and 4096.
        self.items.push(MATCH | (index as u32) << 16 | found.distance as u32);
        self.literals[FIRST_LENGTH + usize::from(LENGTH_SLOT[index])] += 1;
        self.distances[distance_slot(found.distance)] += 1;
        self.add_kind(8 + usize::from(found.len >= 9));
    }

    #[inline(always)]
    fn add_kind(&mut self, kind: usize) {
        self.since[kind] += 1;
        self.since_count += 1;
    }

    /// Whether the block should end before the byte at `at`.
    #[inline(always)]
    pub(super) fn is_full(&mut self, at: usize) -> bool {
        let len = at - self.start;
        self.items.len() >= ITEMS_MAX
            || (self.since_count >= ITEMS_BETWEEN_LOOKS && len >= LEN_MIN && self.has_changed(len))
    }

    /// Whether the kinds of the newest items are distributed otherwise than those before, so that codes of their own
    /// would pay. The longer the block is, the less it takes.
    #[cold]
    fn has_changed(&mut self, len: usize) -> bool {
        let (before, since) = (u64::from(self.before_count), u64::from(self.since_count));
        if before > 0 {
            let pairs = self.before.iter().zip(&self.since);
            let difference: u64 =
                pairs.map(|(b, s)| (u64::from(*s) * before).abs_diff(u64::from(*b) * since)).sum();
            let mut bound = since * 200 / 512 * before;
            if len < 2 * LEN_MIN && before + since < 8192 {
                bound += bound * (8192 - before - since) / 8192;
            }
            if difference + (len as u64 / 4096) * before >= bound {
                return true;
            }
        }
        for (before, since) in self.before.iter_mut().zip(&mut self.since) {
            *before += std::mem::take(since);
        }
        self.before_count += std::mem::take(&mut self.since_count);
        false
    }

    /// Writes the block; `None` if the stream becomes too long.
    pub(super) fn write(&mut self, bits: &mut Bits<'_>, is_last: bool) -> Option<()> {
        self.literals[END] = 1;
        let mut literal_lens = [0; 288];
        let mut distance_lens = [0; 32];
        code_lengths(&self.literals, 15, &mut literal_lens[..LITERALS]);
        code_lengths(&self.distances, 15, &mut distance_lens[..DISTANCES]);
        let header = CodesHeader::new(&literal_lens, &distance_lens);
        let mut fixed_lens = [8; 288];
        fixed_lens[144..256].fill(9);
        fixed_lens[256..280].fill(7);
        let own = header.len_bits() + self.len_bits(&literal_lens, &distance_lens);
        let fixed = self.len_bits(&fixed_lens, &[5; 32]);
        bits.must_have_room(3 + own.min(fixed) + self.extra_len_bits())?;
        if own < fixed {
            bits.put(u64::from(is_last) | 2 << 1, 3);
            header.write(bits);
        } else {
            bits.put(u64::from(is_last) | 1 << 1, 3);
            (literal_lens, distance_lens) = (fixed_lens, [5; 32]);
        }
        self.write_items(bits, &literal_lens, &distance_lens);
        Some(())
    }

    fn len_bits(&self, literal_lens: &[u8], distance_lens: &[u8]) -> u64 {
        let sum = |counts: &[u32], lens: &[u8]| -> u64 {
            counts.iter().zip(lens).map(|(count, len)| u64::from(*count) * u64::from(*len)).sum()
        };
        sum(&self.literals, literal_lens) + sum(&self.distances, distance_lens)
    }

    fn extra_len_bits(&self) -> u64 {
        let lengths = self.literals[FIRST_LENGTH..].iter().zip(LENGTH_EXTRA_BITS);
        let lengths: u64 = lengths.map(|(count, bits)| u64::from(*count) * u64::from(bits)).sum();
        let distances = self.distances.iter().enumerate();
        let distances: u64 = distances
            .map(|(slot, count)| u64::from(*count) * u64::from(distance_extra_bits(slot)))
            .sum();
        lengths + distances
    }

    fn write_items(&self, bits: &mut Bits<'_>, literal_lens: &[u8; 288], distance_lens: &[u8; 32]) {
        let literal_codes = codes(literal_lens);
        let distance_codes = codes(distance_lens);
        // The code of each length with its extra bits, at most 20, and how many they are.
        let mut lengths = [(0, 0); 256];
        for (index, length) in lengths.iter_mut().enumerate() {
            let slot = usize::from(LENGTH_SLOT[index]);
            let len = u32::from(literal_lens[FIRST_LENGTH + slot]);
            let extra = (index + MATCH_LEN_MIN) as u64 - u64::from(LENGTH_BASE[slot]);
            let code = u64::from(literal_codes[FIRST_LENGTH + slot]);
            *length = (code | extra << len, len + u32::from(LENGTH_EXTRA_BITS[slot]));
        }
        for &item in &self.items {
            if item & MATCH == 0 {
                let byte = item as usize & 0xff;
                bits.put(u64::from(literal_codes[byte]), u32::from(literal_lens[byte]));
                continue;
            }
            let (length, len) = lengths[item as usize >> 16 & 0xff];
            let distance = item as usize & 0xffff;
            let slot = distance_slot(distance);
            let code_len = u32::from(distance_lens[slot]);
            let extra_len = distance_extra_bits(slot);
            let extra = (distance as u64 - 1) & ((1 << extra_len) - 1);
            let code = u64::from(distance_codes[slot]) | extra << code_len;
            bits.put(length | code << len, len + code_len + extra_len);
        }
        bits.put(u64::from(literal_codes[END]), u32::from(literal_lens[END]));
    }
}

/// What says which codes a block has: the lengths of the codes, run by run, in codes of their own.
struct CodesHeader {
    literals: usize,
    distances: usize,
    /// A symbol and the value of its extra bits.
    runs: Vec<(usize, u64)>,
    run_lens: [u8; 19],
    run_lens_written: usize,
}

impl CodesHeader {
    fn new(literal_lens: &[u8; 288], distance_lens: &[u8; 32]) -> Self {
        let used = |lens: &[u8], least: usize| {
            lens.iter().rposition(|&len| len != 0).map_or(least, |last| least.max(last + 1))
        };
        let literals = used(literal_lens, FIRST_LENGTH);
        let distances = used(distance_lens, 1);
        let mut lens = literal_lens[..literals].to_vec();
        lens.extend_from_slice(&distance_lens[..distances]);
        let runs = runs(&lens);
        let mut counts = [0; 19];
        for (symbol, _) in &runs {
            counts[*symbol] += 1;
        }
        let mut run_lens = [0; 19];
        code_lengths(&counts, 7, &mut run_lens);
        let last = ORDER.iter().rposition(|&symbol| run_lens[symbol] != 0);
        let run_lens_written = last.map_or(4, |last| (last + 1).max(4));
        Self { literals, distances, runs, run_lens, run_lens_written }
    }

    fn len_bits(&self) -> u64 {
        let runs = self.runs.iter();
        let runs = runs.map(|(symbol, _)| {
            u64::from(self.run_lens[*symbol]) + u64::from(run_extra_bits(*symbol))
        });
        14 + 3 * self.run_lens_written as u64 + runs.sum::<u64>()
    }

    fn write(&self, bits: &mut Bits<'_>) {
        bits.put((self.literals - FIRST_LENGTH) as u64, 5);
        bits.put((self.distances - 1) as u64, 5);
        bits.put((self.run_lens_written - 4) as u64, 4);
        for &symbol in &ORDER[..self.run_lens_written] {
            bits.put(u64::from(self.run_lens[symbol]), 3);
        }
        let codes = codes(&self.run_lens);
        for &(symbol, extra) in &self.runs {
            let len = u32::from(self.run_lens[symbol]);
            bits.put(u64::from(codes[symbol]) | extra << len, len + run_extra_bits(symbol));
        }
    }
}

fn run_extra_bits(symbol: usize) -> u32 {
    match symbol {
        16 => 2,
        17 => 3,
        18 => 7,
        _ => 0,
    }
}

/// Code lengths as symbols: 16 repeats the length before 3 to 6 times, 17 and 18 are 3 to 10 and 11 to 138 zeros.
fn runs(lens: &[u8]) -> Vec<(usize, u64)> {
    let mut runs = Vec::with_capacity(lens.len());
    for run in lens.chunk_by(|a, b| a == b) {
        let symbol = usize::from(run[0]);
        let mut left = run.len();
        if symbol == 0 {
            while left >= 11 {
                let len = left.min(138);
                runs.push((18, (len - 11) as u64));
                left -= len;
            }
            if left >= 3 {
                runs.push((17, (left - 3) as u64));
                left = 0;
            }
        } else {
            runs.push((symbol, 0));
            left -= 1;
            while left >= 3 {
                let len = left.min(6);
                runs.push((16, (len - 3) as u64));
                left -= len;
            }
        }
        runs.extend(std::iter::repeat_n((symbol, 0), left));
    }
    runs
}

/// Bits in a stream, the first the lowest.
pub(super) struct Bits<'a> {
    stream: &'a mut [u8],
    at: usize,
    waiting: u64,
    waiting_len: u32,
    end: usize,
}

/// How many bytes are stored at a time.
const STORE_LEN: usize = 8;

impl<'a> Bits<'a> {
    /// For a stream that must be shorter than `end` bytes; `None` if there is too little room for that.
    pub(super) fn new(stream: &'a mut [u8], end: usize) -> Option<Self> {
        let is_enough = stream.len() >= end.checked_add(STORE_LEN)?;
        is_enough.then_some(Self { stream, at: 0, waiting: 0, waiting_len: 0, end })
    }

    /// Says `None` if so many more bits make the stream too long.
    fn must_have_room(&self, len_bits: u64) -> Option<()> {
        let len = self.at as u64 + (u64::from(self.waiting_len) + len_bits).div_ceil(8);
        (len < self.end as u64).then_some(())
    }

    /// Adds at most 56 bits, for which there must be room.
    #[inline(always)]
    fn put(&mut self, bits: u64, len: u32) {
        self.waiting |= bits << self.waiting_len;
        self.waiting_len += len;
        self.stream[self.at..self.at + STORE_LEN].copy_from_slice(&self.waiting.to_le_bytes());
        self.at += self.waiting_len as usize / 8;
        self.waiting >>= self.waiting_len & !7;
        self.waiting_len &= 7;
    }

    /// How long the stream is, in bytes.
    pub(super) fn finish(self) -> usize {
        self.at + usize::from(self.waiting_len > 0)
    }
}
