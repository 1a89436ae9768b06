//! What a disk is encrypted with, as a LUKS header names it: cipher, mode, generator of initialisation vectors, hashes.

use crate::error::{Error, Result, Structure, Unsupported, UnsupportedKind};
use crate::format::{HostOffset, LUKS_STRIPES, LuksHeader};

use super::SECTOR_LEN_BYTES;
use super::cipher::{CipherAlgorithm, CipherMode, IvGenerator, SectorCipher, essiv_cipher};
use super::hash::HashAlgorithm;

/// What a disk is encrypted with. The default is QEMU's: AES-256 in mode xts with plain64, and SHA-256.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LuksScheme {
    /// The cipher.
    pub cipher: CipherAlgorithm,
    /// Its mode.
    pub mode: CipherMode,
    /// How initialisation vectors are made.
    pub iv_generator: IvGenerator,
    /// What essiv hashes the key with. Other generators do not use it, and the header tells of it all the same.
    pub iv_hash: Option<HashAlgorithm>,
    /// What keys are derived from passphrases with.
    pub hash: HashAlgorithm,
}

impl Default for LuksScheme {
    fn default() -> Self {
        Self {
            cipher: CipherAlgorithm::Aes256,
            mode: CipherMode::Xts,
            iv_generator: IvGenerator::Plain64,
            iv_hash: None,
            hash: HashAlgorithm::Sha256,
        }
    }
}

impl LuksScheme {
    /// What a header says; `at` is its host offset, for the message.
    ///
    /// # Errors
    /// `Unsupported` that names what is not known.
    pub fn of_header(header: &LuksHeader, at: HostOffset) -> Result<Self> {
        let unknown = |what: &'static str, name: &str| {
            let kind = UnsupportedKind::LuksAlgorithm { what, name: name.to_owned() };
            Error::from(Unsupported::new(kind, Structure::CryptoHeader).at(at.get()))
        };
        let hash_of = |name: &str| {
            HashAlgorithm::from_name(name).ok_or_else(|| unknown("hash algorithm", name))
        };
        let mode = CipherMode::from_name(header.mode())
            .ok_or_else(|| unknown("cipher mode", header.mode()))?;
        // OK to saturate: no cipher has such a key.
        let key_len = usize::try_from(header.key_len).unwrap_or(usize::MAX);
        let cipher = match key_len % mode.keys() {
            0 => CipherAlgorithm::of_family(&header.cipher_name, key_len / mode.keys()),
            _ => None,
        };
        let cipher = cipher.ok_or_else(|| unknown("cipher", &header.cipher_algorithm()))?;
        let generator = header.iv_generator().unwrap_or_default();
        let iv_generator =
            IvGenerator::from_name(generator).ok_or_else(|| unknown("IV generator", generator))?;
        let iv_hash = match (iv_generator, header.iv_hash()) {
            (_, None) => None,
            (IvGenerator::Essiv, Some(name)) => Some(hash_of(name)?),
            // Nobody looks at it.
            (_, Some(name)) => HashAlgorithm::from_name(name),
        };
        let scheme = Self { cipher, mode, iv_generator, iv_hash, hash: hash_of(&header.hash)? };
        match scheme.validate() {
            Ok(()) => Ok(scheme),
            Err(_) => {
                let name = format!("{}-{}", header.cipher_algorithm(), header.cipher_mode);
                Err(unknown("cipher", &name))
            }
        }
    }

    /// Says whether its parts go together.
    ///
    /// # Errors
    /// `InvalidArgument`, in QEMU's words where it has some.
    pub fn validate(&self) -> Result<()> {
        let wrong = |text: String| Err(Error::InvalidArgument(text));
        if self.iv_generator == IvGenerator::Essiv {
            let Some(hash) = self.iv_hash else {
                return wrong("Missing IV generator hash specification".to_owned());
            };
            if essiv_cipher(self.cipher, hash).is_none() {
                return wrong(match self.cipher.family() {
                    "aes" => format!("No AES cipher with key size {} available", hash.digest_len()),
                    "serpent" => {
                        format!("No Serpent cipher with key size {} available", hash.digest_len())
                    }
                    "twofish" => {
                        format!("No Twofish cipher with key size {} available", hash.digest_len())
                    }
                    _ => format!("Cipher {} not supported with essiv", self.cipher.name()),
                });
            }
        }
        if !self.cipher.goes_with(self.mode) {
            return wrong(format!("Unsupported cipher mode {}", self.mode.name()));
        }
        // The key material of a slot would end within a sector, which is encrypted as a whole.
        if !(self.key_len() as u64 * u64::from(LUKS_STRIPES)).is_multiple_of(SECTOR_LEN_BYTES) {
            return wrong(format!(
                "Cipher {} is not supported in mode {}: key slots would end within a sector",
                self.cipher.name(),
                self.mode.name()
            ));
        }
        Ok(())
    }

    /// The length of the master key in bytes.
    #[must_use]
    pub fn key_len(&self) -> usize {
        self.cipher.key_len() * self.mode.keys()
    }

    /// Mode and generator, as they stand in a header: "cbc-essiv:sha256".
    pub(crate) fn cipher_mode(&self) -> String {
        let (mode, generator) = (self.mode.name(), self.iv_generator.name());
        match self.iv_hash {
            Some(hash) => format!("{mode}-{generator}:{}", hash.name()),
            None => format!("{mode}-{generator}"),
        }
    }

    /// The cipher with `key`; `None` if that is not one for it.
    pub(super) fn cipher(&self, key: &[u8]) -> Option<SectorCipher> {
        SectorCipher::new(self.cipher, self.mode, self.iv_generator, self.iv_hash, key)
    }
}
