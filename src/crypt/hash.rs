//! Hashes, and the derivation of keys from passphrases.

use std::time::Duration;

use pbkdf2::pbkdf2_hmac;
use sha2::Digest;
use zeroize::Zeroizing;

/// The least number of iterations that a key is derived with.
pub(super) const ITERATIONS_MIN: u32 = 1000;
/// How long deriving must take before its speed is known.
const CALIBRATION_MIN: Duration = Duration::from_millis(20);

/// A hash that LUKS uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HashAlgorithm {
    /// SHA-1.
    Sha1,
    /// SHA-224.
    Sha224,
    /// SHA-256.
    Sha256,
    /// SHA-384.
    Sha384,
    /// SHA-512.
    Sha512,
    /// RIPEMD-160.
    Ripemd160,
}

impl HashAlgorithm {
    const ALL: [Self; 6] =
        [Self::Sha1, Self::Sha224, Self::Sha256, Self::Sha384, Self::Sha512, Self::Ripemd160];

    /// The name that headers and QEMU have for it: "sha256".
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Sha1 => "sha1",
            Self::Sha224 => "sha224",
            Self::Sha256 => "sha256",
            Self::Sha384 => "sha384",
            Self::Sha512 => "sha512",
            Self::Ripemd160 => "ripemd160",
        }
    }

    /// The hash of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|hash| hash.name() == name)
    }

    /// The length of a digest in bytes.
    #[must_use]
    pub fn digest_len(self) -> usize {
        match self {
            Self::Sha1 | Self::Ripemd160 => 20,
            Self::Sha224 => 28,
            Self::Sha256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }

    /// The digest of the parts, one behind the other.
    pub(super) fn digest(self, parts: &[&[u8]]) -> Zeroizing<Vec<u8>> {
        fn of<D: Digest>(parts: &[&[u8]]) -> Zeroizing<Vec<u8>> {
            let mut hash = D::new();
            parts.iter().for_each(|part| hash.update(part));
            Zeroizing::new(hash.finalize().to_vec())
        }
        match self {
            Self::Sha1 => of::<sha1::Sha1>(parts),
            Self::Sha224 => of::<sha2::Sha224>(parts),
            Self::Sha256 => of::<sha2::Sha256>(parts),
            Self::Sha384 => of::<sha2::Sha384>(parts),
            Self::Sha512 => of::<sha2::Sha512>(parts),
            Self::Ripemd160 => of::<ripemd::Ripemd160>(parts),
        }
    }

    /// PBKDF2 of a passphrase: as many bytes as `key` has. The time that it takes grows with the iterations.
    pub(super) fn derive(self, password: &[u8], salt: &[u8], iterations: u32, key: &mut [u8]) {
        match self {
            Self::Sha1 => pbkdf2_hmac::<sha1::Sha1>(password, salt, iterations, key),
            Self::Sha224 => pbkdf2_hmac::<sha2::Sha224>(password, salt, iterations, key),
            Self::Sha256 => pbkdf2_hmac::<sha2::Sha256>(password, salt, iterations, key),
            Self::Sha384 => pbkdf2_hmac::<sha2::Sha384>(password, salt, iterations, key),
            Self::Sha512 => pbkdf2_hmac::<sha2::Sha512>(password, salt, iterations, key),
            Self::Ripemd160 => pbkdf2_hmac::<ripemd::Ripemd160>(password, salt, iterations, key),
        }
    }
}

/// How many iterations of deriving a key of `key_len` bytes take `time` on this machine, at least 1000. `now` is a clock
/// of the caller's, which counts from any moment.
pub fn iterations_for(
    hash: HashAlgorithm,
    key_len: usize,
    time: Duration,
    mut now: impl FnMut() -> Duration,
) -> u32 {
    let mut key = Zeroizing::new(vec![0; key_len]);
    let mut iterations = ITERATIONS_MIN;
    loop {
        let begin = now();
        hash.derive(b"password", &[0x5a; 32], iterations, &mut key);
        let taken = now().saturating_sub(begin);
        if taken >= CALIBRATION_MIN || iterations > u32::MAX / 2 {
            let per_nanosecond = u128::from(iterations) * time.as_nanos();
            let wanted = per_nanosecond / taken.as_nanos().max(1);
            return u32::try_from(wanted).unwrap_or(u32::MAX).max(ITERATIONS_MIN);
        }
        iterations *= 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // RFC 6070, the second vector of PBKDF2 with HMAC-SHA-1.
    #[test]
    fn derivation_is_that_of_the_rfc() {
        let mut key = [0; 20];
        HashAlgorithm::Sha1.derive(b"password", b"salt", 2, &mut key);
        assert_eq!(key[..4], [0xea, 0x6c, 0x01, 0x4d]);
    }

    #[test]
    fn every_digest_has_its_length() {
        for hash in HashAlgorithm::ALL {
            assert_eq!(hash.digest(&[b"a", b"bc"]).len(), hash.digest_len());
            assert_eq!(hash.digest(&[b"a", b"bc"]), hash.digest(&[b"abc"]));
            assert_eq!(HashAlgorithm::from_name(hash.name()), Some(hash));
        }
    }

    #[test]
    fn iterations_follow_the_clock() {
        // A machine that takes 20 ms for each thousand iterations.
        let mut ticks = 0;
        let slow = iterations_for(HashAlgorithm::Sha256, 32, Duration::from_secs(1), || {
            ticks += 1;
            Duration::from_millis(20 * ticks)
        });
        assert_eq!(slow, 50_000);
        let mut ticks = 0;
        let least = iterations_for(HashAlgorithm::Sha256, 32, Duration::from_millis(1), || {
            ticks += 1;
            Duration::from_millis(20 * ticks)
        });
        assert_eq!(least, ITERATIONS_MIN);
    }
}
