//! The LUKS1 partition header, to which the crypto header extension points: what there is to tell of it without a key.
//!
//! | offset | size | field | meaning |
//! |---|---|---|---|
//! | 0 | 6 | magic | "LUKS\xba\xbe" |
//! | 6 | 2 | version | 1 |
//! | 8 | 32 | cipher-name | "aes", padded with zeros |
//! | 40 | 32 | cipher-mode | "xts-plain64" |
//! | 72 | 32 | hash-spec | "sha256" |
//! | 104 | 4 | payload-offset | in sectors of 512 bytes; not used within qcow2 |
//! | 108 | 4 | key-bytes | length of the master key |
//! | 112 | 20 | mk-digest | digest of the master key |
//! | 132 | 32 | mk-digest-salt | |
//! | 164 | 4 | mk-digest-iter | |
//! | 168 | 40 | uuid | a string |
//! | 208 | 8 * 48 | key slots | |
//!
//! Key slot:
//!
//! | offset | size | field | meaning |
//! |---|---|---|---|
//! | 0 | 4 | active | 0x00ac71f3 in use, 0x0000dead not |
//! | 4 | 4 | iterations | |
//! | 8 | 32 | salt | |
//! | 40 | 4 | key-material-offset | in sectors from the start of this header |
//! | 44 | 4 | stripes | |
//!
//! Spec: LUKS On-Disk Format Specification 1.2. Matches crypto/block-luks.c:qcrypto_block_luks_check_header in QEMU.

use super::addr::HostOffset;
use super::bytes::{array, be16, be32};
use crate::error::{Corrupt, CorruptKind, Error, Result, Structure, Unsupported, UnsupportedKind};

const MAGIC: [u8; 6] = *b"LUKS\xba\xbe";
const VERSION: u16 = 1;
const SLOT_ENABLED: u32 = 0x00ac_71f3;
const SLOT_DISABLED: u32 = 0x0000_dead;
const SLOTS_AT: usize = 208;
const SLOT_LEN: usize = 48;
const SLOTS: usize = 8;
/// Unit of the offsets.
const SECTOR_LEN: u64 = 512;

/// The LUKS1 partition header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LuksHeader {
    /// The cipher: "aes".
    pub cipher_name: String,
    /// Mode and generator of initialisation vectors: "xts-plain64", "cbc-essiv:sha256".
    pub cipher_mode: String,
    /// The hash: "sha256".
    pub hash: String,
    /// Where the payload would start, in bytes from the start of this header.
    pub payload_offset: u64,
    /// Length of the master key in bytes.
    pub key_len: u32,
    /// Digest of the master key.
    pub master_key_digest: [u8; 20],
    /// Salt of that digest.
    pub master_key_salt: [u8; 32],
    /// Iterations of that digest.
    pub master_key_iterations: u32,
    /// The UUID, as text.
    pub uuid: String,
    /// The key slots.
    pub slots: [LuksSlot; SLOTS],
}

/// A key slot of a [`LuksHeader`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LuksSlot {
    /// Whether it holds a key.
    pub active: bool,
    /// Iterations of the key derivation.
    pub iterations: u32,
    /// Salt of the key derivation.
    pub salt: [u8; 32],
    /// Where the key material is, in bytes from the start of the header.
    pub key_offset: u64,
    /// Number of stripes of the key material.
    pub stripes: u32,
}

impl LuksHeader {
    /// Length in bytes of the header, without key material.
    pub const LEN: usize = 592;

    /// Parses a header; `at` is its host offset, for the message.
    ///
    /// # Errors
    ///
    /// `Corrupt` if it is too short, its magic is wrong, or a key slot is neither in use nor not; `Unsupported` if it is
    /// not version 1.
    pub fn parse(bytes: &[u8], at: HostOffset) -> Result<Self> {
        let corrupt = |kind| Corrupt::new(kind, Structure::CryptoHeader).at(at.get());
        if bytes.len() < Self::LEN {
            let (len, needed) = (bytes.len() as u64, Self::LEN as u64);
            return Err(corrupt(CorruptKind::LuksTruncated { len, needed }).into());
        }
        if !bytes.starts_with(&MAGIC) {
            return Err(corrupt(CorruptKind::LuksMagic).into());
        }
        let version = be16(bytes, 6);
        if version != VERSION {
            let kind = UnsupportedKind::LuksVersion { value: version };
            return Err(Unsupported::new(kind, Structure::CryptoHeader).at(at.get()).into());
        }
        let mut slots = [LuksSlot::EMPTY; SLOTS];
        for (index, slot) in slots.iter_mut().enumerate() {
            let bytes = &bytes[SLOTS_AT + index * SLOT_LEN..][..SLOT_LEN];
            *slot = LuksSlot::parse(bytes)
                .map_err(|kind| Error::from(corrupt(kind).entry(index as u64)))?;
        }
        Ok(Self {
            cipher_name: text(&bytes[8..40]),
            cipher_mode: text(&bytes[40..72]),
            hash: text(&bytes[72..104]),
            payload_offset: u64::from(be32(bytes, 104)) * SECTOR_LEN,
            key_len: be32(bytes, 108),
            master_key_digest: array(bytes, 112),
            master_key_salt: array(bytes, 132),
            master_key_iterations: be32(bytes, 164),
            uuid: text(&bytes[168..208]),
            slots,
        })
    }

    /// Returns the cipher with the length of its key in bits, as QEMU calls it: "aes-256". In mode xts the master key is
    /// two keys.
    pub fn cipher_algorithm(&self) -> String {
        let keys = if self.mode() == "xts" { 2 } else { 1 };
        format!("{}-{}", self.cipher_name, u64::from(self.key_len) * 8 / keys)
    }

    /// Returns the mode: "xts", "cbc".
    pub fn mode(&self) -> &str {
        self.cipher_mode.split_once('-').map_or(self.cipher_mode.as_str(), |(mode, _)| mode)
    }

    /// Returns the generator of initialisation vectors: "plain64", "essiv".
    pub fn iv_generator(&self) -> Option<&str> {
        let (_, generator) = self.cipher_mode.split_once('-')?;
        Some(generator.split_once(':').map_or(generator, |(generator, _)| generator))
    }

    /// Returns the hash that the generator of initialisation vectors uses: "sha256".
    pub fn iv_hash(&self) -> Option<&str> {
        self.cipher_mode.split_once(':').map(|(_, hash)| hash)
    }
}

impl LuksSlot {
    const EMPTY: Self =
        Self { active: false, iterations: 0, salt: [0; 32], key_offset: 0, stripes: 0 };

    fn parse(bytes: &[u8]) -> std::result::Result<Self, CorruptKind> {
        let active = match be32(bytes, 0) {
            SLOT_ENABLED => true,
            SLOT_DISABLED => false,
            value => return Err(CorruptKind::LuksSlotState { value }),
        };
        Ok(Self {
            active,
            iterations: be32(bytes, 4),
            salt: array(bytes, 8),
            key_offset: u64::from(be32(bytes, 40)) * SECTOR_LEN,
            stripes: be32(bytes, 44),
        })
    }
}

/// A string padded with zeros.
fn text(bytes: &[u8]) -> String {
    let len = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..len]).into_owned()
}
