//! The cipher of a disk: which sector's number an encrypted sector goes by.

use std::fmt;

use zeroize::Zeroizing;

use super::cipher::{CipherAlgorithm, CipherMode, IvGenerator, SectorCipher};
use super::scheme::LuksScheme;
use super::{SECTOR_LEN_BYTES, Secret};

/// Encrypts and decrypts the sectors of a disk.
pub(crate) struct DiskCipher {
    cipher: SectorCipher,
    numbers: Numbers,
}

/// What a sector's number counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Numbers {
    /// Sectors of the disk, as its user sees it.
    Guest,
    /// Sectors of the file that holds it: what moves has to be encrypted again.
    Host,
}

/// The length of a key of legacy encryption.
const LEGACY_KEY_LEN: usize = 16;

impl DiskCipher {
    /// The cipher of a disk that is encrypted with LUKS. `None` if the key is not one for the scheme.
    pub(crate) fn luks(scheme: &LuksScheme, master_key: &[u8]) -> Option<Self> {
        Some(Self { cipher: scheme.cipher(master_key)?, numbers: Numbers::Host })
    }

    /// The cipher of a disk of encryption method 1: AES-128 in mode cbc, whatever the specification says of 256 bits; the
    /// key is the start of the passphrase. Whether it is the right one cannot be known.
    ///
    /// Matches crypto/block-qcow.c:qcrypto_block_qcow_init in QEMU.
    pub(crate) fn legacy(secret: &Secret) -> Self {
        let mut key = Zeroizing::new([0; LEGACY_KEY_LEN]);
        key.iter_mut().zip(secret.expose()).for_each(|(key, byte)| *key = *byte);
        let (cipher, mode) = (CipherAlgorithm::Aes128, CipherMode::Cbc);
        // OK to unwrap: the key has the cipher's length.
        #[allow(clippy::expect_used)]
        let cipher = SectorCipher::new(cipher, mode, IvGenerator::Plain64, None, &*key)
            .expect("a key of 16 bytes is one for AES-128");
        Self { cipher, numbers: Numbers::Guest }
    }

    /// Encrypts whole sectors, which are at `guest` on the disk and at `host` in the file.
    pub(crate) fn encrypt(&self, guest: u64, host: u64, bytes: &mut [u8]) {
        self.cipher.encrypt(self.number(guest, host), bytes);
    }

    /// Decrypts whole sectors, which are at `guest` on the disk and at `host` in the file.
    pub(crate) fn decrypt(&self, guest: u64, host: u64, bytes: &mut [u8]) {
        self.cipher.decrypt(self.number(guest, host), bytes);
    }

    fn number(&self, guest: u64, host: u64) -> u64 {
        match self.numbers {
            Numbers::Guest => guest / SECTOR_LEN_BYTES,
            Numbers::Host => host / SECTOR_LEN_BYTES,
        }
    }
}

impl fmt::Debug for DiskCipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DiskCipher").field("numbers", &self.numbers).finish_non_exhaustive()
    }
}
