//! The LUKS1 partition header, to which the crypto header extension points: what there is to tell of it without a key, and
//! where the parts of a new one lie.
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
/// How many pieces a key is split into: the same for all.
pub const LUKS_STRIPES: u32 = 4000;
/// Key slots are apart from the header and from each other by multiples of so many bytes.
const SLOT_ALIGNMENT: u64 = 4096;
/// The longest master key, in bytes: two of the longest cipher keys there are.
const KEY_LEN_MAX: u32 = 64;
/// Longest strings with their zero, in bytes.
const NAME_LEN: usize = 32;
const UUID_LEN: usize = 40;

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

    /// Whether bytes begin as a header of this version does.
    pub fn begins(bytes: &[u8]) -> bool {
        bytes.len() >= 8 && bytes.starts_with(&MAGIC) && be16(bytes, 6) == VERSION
    }

    /// Parses a header; `at` is its host offset, for the message.
    ///
    /// # Errors
    ///
    /// `Corrupt` if it is too short, its magic is wrong, a name has no end, a key slot is neither in use nor not, or the
    /// parts of the area overlap; `Unsupported` if it is not version 1 or its master key is longer than any cipher's.
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
        for (field, range) in
            [("cipher-name", 8..40), ("cipher-mode", 40..72), ("hash-spec", 72..104)]
        {
            if !bytes[range].contains(&0) {
                return Err(corrupt(CorruptKind::LuksNameUnterminated { field }).into());
            }
        }
        let header = Self {
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
        };
        header.validate(at)?;
        Ok(header)
    }

    /// The bytes of the header.
    ///
    /// # Panics
    ///
    /// If a name is too long for its field, or an offset for the format: neither of this crate's is.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; Self::LEN];
        bytes[..6].copy_from_slice(&MAGIC);
        bytes[6..8].copy_from_slice(&VERSION.to_be_bytes());
        for (at, len, name) in [
            (8, NAME_LEN, &self.cipher_name),
            (40, NAME_LEN, &self.cipher_mode),
            (72, NAME_LEN, &self.hash),
            (168, UUID_LEN, &self.uuid),
        ] {
            assert!(name.len() < len, "{name:?} has a zero behind it within {len} bytes");
            bytes[at..at + name.len()].copy_from_slice(name.as_bytes());
        }
        for (at, value) in [
            (104, sectors(self.payload_offset)),
            (108, self.key_len),
            (164, self.master_key_iterations),
        ] {
            bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
        }
        bytes[112..132].copy_from_slice(&self.master_key_digest);
        bytes[132..164].copy_from_slice(&self.master_key_salt);
        for (index, slot) in self.slots.iter().enumerate() {
            bytes[SLOTS_AT + index * SLOT_LEN..][..SLOT_LEN].copy_from_slice(&slot.encode());
        }
        bytes
    }

    /// Where the bytes of a key slot are, from the start of the header.
    pub fn slot_range(index: usize) -> std::ops::Range<usize> {
        SLOTS_AT + index * SLOT_LEN..SLOTS_AT + (index + 1) * SLOT_LEN
    }

    /// The length in bytes of the key material of a slot.
    pub fn material_len(&self) -> u64 {
        u64::from(self.key_len) * u64::from(LUKS_STRIPES)
    }

    /// What QEMU's qcrypto_block_luks_check_header asks, and that the area is not longer than its lengths can say.
    fn validate(&self, at: HostOffset) -> Result<()> {
        let corrupt = |kind| Corrupt::new(kind, Structure::CryptoHeader).at(at.get());
        if !(1..=KEY_LEN_MAX).contains(&self.key_len) {
            let kind = UnsupportedKind::LuksKeyLength { len: self.key_len, max: KEY_LEN_MAX };
            return Err(Unsupported::new(kind, Structure::CryptoHeader).at(at.get()).into());
        }
        if self.payload_offset < SLOT_ALIGNMENT {
            let offset = self.payload_offset;
            return Err(corrupt(CorruptKind::LuksPayloadOffset { offset }).into());
        }
        if self.master_key_iterations == 0 {
            return Err(corrupt(CorruptKind::LuksNoIterations).into());
        }
        let len = self.material_len();
        for (index, slot) in (0_u64..).zip(&self.slots) {
            let fault = |kind| Err(corrupt(kind).entry(index).into());
            if slot.stripes != LUKS_STRIPES {
                let (value, expected) = (slot.stripes, LUKS_STRIPES);
                return fault(CorruptKind::LuksStripes { value, expected });
            }
            if slot.key_offset < SLOT_ALIGNMENT {
                return fault(CorruptKind::LuksSlotInHeader { offset: slot.key_offset });
            }
            if slot.active && slot.iterations == 0 {
                return fault(CorruptKind::LuksNoIterations);
            }
            // Offsets have 41 bits, so the sums do not overflow.
            let end = slot.key_offset + len;
            if end > self.payload_offset {
                let payload = self.payload_offset;
                return fault(CorruptKind::LuksSlotInPayload { end, payload });
            }
            let overlaps = |other: &LuksSlot| {
                other.key_offset < end && slot.key_offset < other.key_offset + len
            };
            let other = (0_u64..).zip(&self.slots).find(|(n, other)| *n > index && overlaps(other));
            if let Some((other, _)) = other {
                return fault(CorruptKind::LuksSlotsOverlap { other });
            }
        }
        Ok(())
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

/// Where the parts of a new encryption header lie: as cryptsetup and QEMU lay them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LuksLayout {
    slot_len: u64,
}

impl LuksLayout {
    /// For a master key of `key_len` bytes.
    pub fn new(key_len: u64) -> Self {
        let slot_len = (key_len * u64::from(LUKS_STRIPES)).next_multiple_of(SLOT_ALIGNMENT);
        Self { slot_len }
    }

    /// Where the key material of a slot is, in bytes from the start of the header.
    pub fn slot_offset(&self, index: usize) -> u64 {
        SLOT_ALIGNMENT + index as u64 * self.slot_len
    }

    /// The length of header and key material in bytes.
    pub fn len_bytes(&self) -> u64 {
        self.slot_offset(SLOTS)
    }
}

impl LuksSlot {
    /// A slot that holds no key, with room for one at `key_offset`.
    pub fn unused(key_offset: u64) -> Self {
        Self { key_offset, stripes: LUKS_STRIPES, ..Self::EMPTY }
    }

    /// The bytes of the slot in the header.
    ///
    /// # Panics
    ///
    /// If the offset is too large for the format.
    pub fn encode(&self) -> [u8; SLOT_LEN] {
        let mut bytes = [0; SLOT_LEN];
        let state = if self.active { SLOT_ENABLED } else { SLOT_DISABLED };
        for (at, value) in
            [(0, state), (4, self.iterations), (40, sectors(self.key_offset)), (44, self.stripes)]
        {
            bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
        }
        bytes[8..40].copy_from_slice(&self.salt);
        bytes
    }

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

/// An offset in sectors.
fn sectors(offset: u64) -> u32 {
    // OK to unwrap: offsets that were parsed or laid out have 32 bits in this unit.
    #[allow(clippy::expect_used)]
    u32::try_from(offset / SECTOR_LEN).expect("offsets have 32 bits in sectors")
}

/// A string padded with zeros.
fn text(bytes: &[u8]) -> String {
    let len = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..len]).into_owned()
}
