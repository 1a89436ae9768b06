//! LUKS1: a master key that encrypts the disk, and key slots that each hold it encrypted with a passphrase.
//!
//! Matches crypto/block-luks.c in QEMU.

use zeroize::Zeroizing;

use crate::error::{Error, Result};
use crate::format::{LUKS_STRIPES, LuksHeader, LuksLayout, LuksSlot};

use super::entropy::Entropy;
use super::hash::ITERATIONS_MIN;
use super::scheme::LuksScheme;
use super::secret::Secret;
use super::split::{merge, split};

/// A master key.
pub(crate) type MasterKey = Zeroizing<Vec<u8>>;

/// How often keys are derived: what makes trying out passphrases expensive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Iterations {
    /// For the key of a key slot.
    pub slot: u32,
    /// For the digest of the master key.
    pub master_key: u32,
}

impl Iterations {
    /// As QEMU takes them: for the digest an eighth of what the slot's key takes, and never less than 1000.
    #[must_use]
    pub fn new(slot: u32) -> Self {
        let (slot, master_key) = (slot.max(ITERATIONS_MIN), (slot / 8).max(ITERATIONS_MIN));
        Self { slot, master_key }
    }
}

/// The encryption header of a new image with one key slot in use, as it will stand in the file. It holds nothing that must
/// be kept secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LuksArea {
    /// The header and the key material of the slot.
    pub(crate) bytes: Vec<u8>,
    /// The length of the whole area.
    pub(crate) len_bytes: u64,
}

impl LuksArea {
    /// Makes a master key and puts it into slot 0 under the passphrase `secret`. It takes the time that the iterations take.
    ///
    /// # Errors
    /// `InvalidArgument` if the parts of the scheme do not go together; what `entropy` meets.
    pub fn new(
        scheme: &LuksScheme,
        secret: &Secret,
        iterations: Iterations,
        entropy: &mut dyn Entropy,
    ) -> Result<Self> {
        scheme.validate()?;
        let key_len = scheme.key_len();
        let layout = LuksLayout::new(key_len as u64);
        let mut master_key = Zeroizing::new(vec![0; key_len]);
        entropy.fill(&mut master_key)?;
        let mut header = LuksHeader {
            cipher_name: scheme.cipher.family().to_owned(),
            cipher_mode: scheme.cipher_mode(),
            hash: scheme.hash.name().to_owned(),
            payload_offset: layout.len_bytes(),
            // OK to saturate: 64 at most.
            key_len: u32::try_from(key_len).unwrap_or(u32::MAX),
            master_key_digest: [0; 20],
            master_key_salt: [0; 32],
            master_key_iterations: iterations.master_key.max(ITERATIONS_MIN),
            uuid: uuid(entropy)?,
            slots: std::array::from_fn(|index| LuksSlot::unused(layout.slot_offset(index))),
        };
        entropy.fill(&mut header.master_key_salt)?;
        header.master_key_digest = master_key_digest(&header, scheme, &master_key);
        let sealed = seal_slot(scheme, &master_key, secret, iterations.slot, entropy)?;
        sealed.apply(&mut header.slots[0]);
        let mut bytes = header.encode();
        // OK to unwrap: the first slot is within some kilobytes.
        bytes.resize(usize::try_from(header.slots[0].key_offset).unwrap_or(usize::MAX), 0);
        bytes.extend_from_slice(&sealed.material);
        Ok(Self { bytes, len_bytes: layout.len_bytes() })
    }

    /// The length of the area for this scheme in bytes.
    #[must_use]
    pub fn len_bytes_for(scheme: &LuksScheme) -> u64 {
        LuksLayout::new(scheme.key_len() as u64).len_bytes()
    }
}

/// A master key under a passphrase, for a slot.
pub(crate) struct SlotKey {
    pub(crate) salt: [u8; 32],
    pub(crate) iterations: u32,
    /// Encrypted.
    pub(crate) material: Vec<u8>,
}

impl SlotKey {
    /// Makes a slot say how its key is derived.
    pub(crate) fn apply(&self, slot: &mut LuksSlot) {
        slot.active = true;
        slot.iterations = self.iterations;
        slot.salt = self.salt;
        slot.stripes = LUKS_STRIPES;
    }
}

/// Encrypts the master key with a key that is derived from `secret`.
pub(crate) fn seal_slot(
    scheme: &LuksScheme,
    master_key: &[u8],
    secret: &Secret,
    iterations: u32,
    entropy: &mut dyn Entropy,
) -> Result<SlotKey> {
    let iterations = iterations.max(ITERATIONS_MIN);
    let mut salt = [0; 32];
    entropy.fill(&mut salt)?;
    let mut key = Zeroizing::new(vec![0; scheme.key_len()]);
    scheme.hash.derive(secret.expose(), &salt, iterations, &mut key);
    let mut material = split(scheme.hash, master_key, LUKS_STRIPES as usize, entropy)?;
    let cipher = scheme.cipher(&key).ok_or_else(|| {
        Error::InvalidArgument("the cipher does not take keys of this length".to_owned())
    })?;
    cipher.encrypt(0, &mut material);
    // Encrypted, it is no secret any more.
    Ok(SlotKey { salt, iterations, material: std::mem::take(&mut *material) })
}

/// The master key, if `secret` is the passphrase of this slot, whose key material is `material`. A slot that was tampered
/// with is one for another passphrase.
pub(crate) fn open_slot(
    header: &LuksHeader,
    scheme: &LuksScheme,
    slot: &LuksSlot,
    secret: &Secret,
    material: Vec<u8>,
) -> Option<MasterKey> {
    let mut key = Zeroizing::new(vec![0; scheme.key_len()]);
    scheme.hash.derive(secret.expose(), &slot.salt, slot.iterations, &mut key);
    let master_key = unseal(scheme, &key, material)?;
    let digest = master_key_digest(header, scheme, &master_key);
    is_master_key(header, &digest).then_some(master_key)
}

/// What the slot's `material` holds under the key that was derived for it: the master key, if the passphrase was the slot's.
pub(crate) fn unseal(scheme: &LuksScheme, key: &[u8], material: Vec<u8>) -> Option<MasterKey> {
    let mut material = Zeroizing::new(material);
    scheme.cipher(key)?.decrypt(0, &mut material);
    Some(merge(scheme.hash, scheme.key_len(), &material))
}

/// Whether `digest`, which is derived from a key, is the master key's.
pub(crate) fn is_master_key(header: &LuksHeader, digest: &[u8]) -> bool {
    <&[u8; 20]>::try_from(digest).is_ok_and(|digest| is_equal(digest, &header.master_key_digest))
}

/// What a header says of its master key.
pub(crate) fn master_key_digest(
    header: &LuksHeader,
    scheme: &LuksScheme,
    master_key: &[u8],
) -> [u8; 20] {
    let (salt, iterations) = (&header.master_key_salt, header.master_key_iterations);
    let mut digest = [0; 20];
    scheme.hash.derive(master_key, salt, iterations, &mut digest);
    digest
}

/// Compares in a time that does not tell where they differ.
fn is_equal(left: &[u8; 20], right: &[u8; 20]) -> bool {
    let differ = left.iter().zip(right).fold(0, |differ, (left, right)| differ | (left ^ right));
    std::hint::black_box(differ) == 0
}

/// A random UUID, as text.
fn uuid(entropy: &mut dyn Entropy) -> Result<String> {
    let mut bytes = [0; 16];
    entropy.fill(&mut bytes)?;
    // Version 4, of RFC 4122.
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex = |range: std::ops::Range<usize>| {
        bytes[range].iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    };
    Ok([hex(0..4), hex(4..6), hex(6..8), hex(8..10), hex(10..16)].join("-"))
}
