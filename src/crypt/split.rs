//! The anti-forensic splitter: a key spread over so many bytes that a few lost ones lose the key.
//!
//! All stripes but the last are random; each is added and the sum diffused, and the last makes the sum the key.
//!
//! Spec: LUKS On-Disk Format Specification 1.2, section 2.4.

use zeroize::Zeroizing;

use crate::error::Result;

use super::entropy::Entropy;
use super::hash::HashAlgorithm;

/// Spreads `key` over `stripes` stripes of its length.
pub(super) fn split(
    hash: HashAlgorithm,
    key: &[u8],
    stripes: usize,
    entropy: &mut dyn Entropy,
) -> Result<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(vec![0; key.len() * stripes]);
    let (random, last) = bytes.split_at_mut(key.len() * (stripes - 1));
    entropy.fill(random)?;
    let sum = diffused_sum(hash, key.len(), random);
    for ((last, sum), key) in last.iter_mut().zip(&*sum).zip(key) {
        *last = sum ^ key;
    }
    Ok(bytes)
}

/// The key of `key_len` bytes that `bytes` was made of, whatever they are.
pub(super) fn merge(hash: HashAlgorithm, key_len: usize, bytes: &[u8]) -> Zeroizing<Vec<u8>> {
    let (before, last) = bytes.split_at(bytes.len() - key_len);
    let mut key = diffused_sum(hash, key_len, before);
    key.iter_mut().zip(last).for_each(|(key, last)| *key ^= last);
    key
}

fn diffused_sum(hash: HashAlgorithm, key_len: usize, stripes: &[u8]) -> Zeroizing<Vec<u8>> {
    let mut sum = Zeroizing::new(vec![0; key_len]);
    for stripe in stripes.chunks_exact(key_len) {
        sum.iter_mut().zip(stripe).for_each(|(sum, byte)| *sum ^= byte);
        for (index, part) in (0_u32..).zip(sum.chunks_mut(hash.digest_len())) {
            let digest = hash.digest(&[&index.to_be_bytes(), part]);
            part.copy_from_slice(&digest[..part.len()]);
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Counting(u8);

    impl Entropy for Counting {
        fn fill(&mut self, bytes: &mut [u8]) -> Result<()> {
            for byte in bytes {
                self.0 = self.0.wrapping_mul(5).wrapping_add(3);
                *byte = self.0;
            }
            Ok(())
        }
    }

    #[test]
    fn what_was_split_is_merged_again() {
        for hash in [HashAlgorithm::Sha1, HashAlgorithm::Sha256, HashAlgorithm::Sha512] {
            for key_len in [16, 32, 64] {
                let key: Vec<u8> = (0..u8::MAX).take(key_len).collect();
                let mut stripes = split(hash, &key, 40, &mut Counting(1)).unwrap();
                assert_eq!(*merge(hash, key_len, &stripes), key);
                stripes[17] ^= 1;
                assert_ne!(*merge(hash, key_len, &stripes), key);
            }
        }
    }
}
