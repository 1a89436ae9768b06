//! Choices: xoshiro256**, seeded by splitmix64. Small, fast, and the same on every machine for ever.
//!
//! Not for secrets.

/// A stream of choices that its seed determines.
#[derive(Debug, Clone)]
pub struct Random {
    state: [u64; 4],
}

impl Random {
    /// The stream of `seed`. Any seed is as good as any other.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut mix = seed;
        Self { state: std::array::from_fn(|_| splitmix64(&mut mix)) }
    }

    /// Any 64 bits.
    pub fn bits(&mut self) -> u64 {
        let [a, b, c, d] = &mut self.state;
        let result = b.wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let shifted = *b << 17;
        *c ^= *a;
        *d ^= *b;
        *b ^= *c;
        *a ^= *d;
        *c ^= shifted;
        *d = d.rotate_left(45);
        result
    }

    /// A number below `bound`.
    ///
    /// # Panics
    /// If `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "there is no number below 0");
        let product = u128::from(self.bits()) * u128::from(bound);
        // OK to cast: the high half of a product of two 64-bit numbers. The bias, bound / 2^64, finds no fewer faults.
        #[allow(clippy::cast_possible_truncation)]
        let high = (product >> 64) as u64;
        high
    }

    /// An index into something of `len` items.
    ///
    /// # Panics
    /// If `len` is 0.
    pub fn index(&mut self, len: usize) -> usize {
        // OK to cast: below `len`.
        #[allow(clippy::cast_possible_truncation)]
        let index = self.below(len as u64) as usize;
        index
    }

    /// Heads or tails.
    pub fn toss(&mut self) -> bool {
        self.bits() >> 63 == 1
    }

    /// True in `permille` of 1000 cases.
    pub fn chance(&mut self, permille: u32) -> bool {
        self.below(1000) < u64::from(permille)
    }

    /// Another stream, which this one determines. What is drawn from one does not move the other.
    #[must_use]
    pub fn fork(&mut self) -> Self {
        Self::new(self.bits())
    }
}

/// The next number of splitmix64.
fn splitmix64(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From the authors' reference code, <https://prng.di.unimi.it>.
    #[test]
    fn streams_are_those_of_the_reference_code() {
        let mut random = Random { state: [1, 2, 3, 4] };
        let found: Vec<u64> = (0..6).map(|_| random.bits()).collect();
        let expected = [
            11_520,
            0,
            1_509_978_240,
            1_215_971_899_390_074_240,
            1_216_172_134_540_287_360,
            607_988_272_756_665_600,
        ];
        assert_eq!(found, expected);

        let mut state = 1_477_776_061_723_855_037;
        let found: Vec<u64> = (0..3).map(|_| splitmix64(&mut state)).collect();
        let expected =
            [1_985_237_415_132_408_290, 2_979_275_885_539_914_483, 13_511_426_838_097_143_398];
        assert_eq!(found, expected);
    }

    #[test]
    fn numbers_stay_below_their_bound_and_reach_every_value() {
        let mut random = Random::new(0);
        let mut seen = [0; 7];
        for _ in 0..1000 {
            seen[random.index(7)] += 1;
        }
        assert!(seen.iter().all(|&count| count > 50), "{seen:?}");
        assert!((0..100).all(|_| random.below(1) == 0));
        assert!((0..100).all(|_| random.chance(1000) && !random.chance(0)));
    }
}
