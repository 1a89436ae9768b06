//! Ciphers, by sector: a block cipher in a mode, its initialisation vector made of the sector's number.

use ::cipher::array::Array;
use ::cipher::consts::{U8, U16};
use ::cipher::{
    BlockCipherDecrypt, BlockCipherEncrypt, BlockModeDecrypt as _, BlockModeEncrypt as _,
    BlockSizeUser, InnerIvInit as _, KeyInit, StreamCipher as _,
};
use aes::{Aes128, Aes192, Aes256};
use cast5::Cast5;
use serpent::Serpent;
use twofish::Twofish;
use zeroize::Zeroizing;

use super::SECTOR_LEN_BYTES;
use super::hash::HashAlgorithm;

/// A block cipher and the length of its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CipherAlgorithm {
    /// AES with a key of 128 bits.
    Aes128,
    /// AES with a key of 192 bits.
    Aes192,
    /// AES with a key of 256 bits.
    Aes256,
    /// CAST5 with a key of 128 bits.
    Cast5128,
    /// Serpent with a key of 128 bits.
    Serpent128,
    /// Serpent with a key of 192 bits.
    Serpent192,
    /// Serpent with a key of 256 bits.
    Serpent256,
    /// Twofish with a key of 128 bits.
    Twofish128,
    /// Twofish with a key of 192 bits.
    Twofish192,
    /// Twofish with a key of 256 bits.
    Twofish256,
}

/// How a cipher is used on a sector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CipherMode {
    /// Each block alone, which shows where blocks are alike.
    Ecb,
    /// Each block with the one before.
    Cbc,
    /// With two keys, each block with its place.
    Xts,
    /// A stream that is added to the bytes.
    Ctr,
}

/// How the initialisation vector of a sector is made of its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IvGenerator {
    /// The number's lower 32 bits.
    Plain,
    /// The number.
    Plain64,
    /// The number, encrypted with a hash of the key.
    Essiv,
}

impl CipherAlgorithm {
    const ALL: [Self; 10] = [
        Self::Aes128,
        Self::Aes192,
        Self::Aes256,
        Self::Cast5128,
        Self::Serpent128,
        Self::Serpent192,
        Self::Serpent256,
        Self::Twofish128,
        Self::Twofish192,
        Self::Twofish256,
    ];

    /// QEMU's name for it: "aes-256".
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Aes128 => "aes-128",
            Self::Aes192 => "aes-192",
            Self::Aes256 => "aes-256",
            Self::Cast5128 => "cast5-128",
            Self::Serpent128 => "serpent-128",
            Self::Serpent192 => "serpent-192",
            Self::Serpent256 => "serpent-256",
            Self::Twofish128 => "twofish-128",
            Self::Twofish192 => "twofish-192",
            Self::Twofish256 => "twofish-256",
        }
    }

    /// The name without the length of the key, as it stands in a LUKS header: "aes".
    #[must_use]
    pub fn family(self) -> &'static str {
        let name = self.name();
        name.split_once('-').map_or(name, |(family, _)| family)
    }

    /// The length of the key in bytes.
    #[must_use]
    pub fn key_len(self) -> usize {
        match self {
            Self::Aes128 | Self::Cast5128 | Self::Serpent128 | Self::Twofish128 => 16,
            Self::Aes192 | Self::Serpent192 | Self::Twofish192 => 24,
            Self::Aes256 | Self::Serpent256 | Self::Twofish256 => 32,
        }
    }

    /// The cipher that QEMU calls so.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|cipher| cipher.name() == name)
    }

    /// The cipher of this family with a key of `key_len` bytes.
    pub(super) fn of_family(family: &str, key_len: usize) -> Option<Self> {
        let fits = |cipher: &Self| cipher.family() == family && cipher.key_len() == key_len;
        Self::ALL.into_iter().find(fits)
    }

    /// Whether it can be used in this mode.
    pub(super) fn goes_with(self, mode: CipherMode) -> bool {
        // XTS is defined for blocks of 128 bits.
        self != Self::Cast5128 || mode != CipherMode::Xts
    }
}

impl CipherMode {
    const ALL: [Self; 4] = [Self::Ecb, Self::Cbc, Self::Xts, Self::Ctr];

    /// The name that headers and QEMU have for it: "xts".
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ecb => "ecb",
            Self::Cbc => "cbc",
            Self::Xts => "xts",
            Self::Ctr => "ctr",
        }
    }

    /// The mode of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.name() == name)
    }

    /// How many keys of the cipher it takes.
    pub(super) fn keys(self) -> usize {
        if self == Self::Xts { 2 } else { 1 }
    }
}

impl IvGenerator {
    const ALL: [Self; 3] = [Self::Plain, Self::Plain64, Self::Essiv];

    /// The name that headers and QEMU have for it: "plain64".
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Plain64 => "plain64",
            Self::Essiv => "essiv",
        }
    }

    /// The generator of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|generator| generator.name() == name)
    }
}

/// A cipher with its key, for sectors of 512 bytes.
pub(super) struct SectorCipher {
    sectors: Box<dyn Sectors>,
    iv: Iv,
}

enum Iv {
    Plain,
    Plain64,
    Essiv(Box<dyn Sectors>),
}

impl SectorCipher {
    /// A cipher in a mode with `key`, which has the length for both. `iv_hash` is what essiv hashes the key with.
    ///
    /// `None` if these do not go together.
    pub(super) fn new(
        cipher: CipherAlgorithm,
        mode: CipherMode,
        generator: IvGenerator,
        iv_hash: Option<HashAlgorithm>,
        key: &[u8],
    ) -> Option<Self> {
        let iv = match generator {
            IvGenerator::Plain => Iv::Plain,
            IvGenerator::Plain64 => Iv::Plain64,
            IvGenerator::Essiv => {
                let hash = iv_hash?;
                let cipher = essiv_cipher(cipher, hash)?;
                Iv::Essiv(sectors(cipher, CipherMode::Ecb, &hash.digest(&[key]))?)
            }
        };
        Some(Self { sectors: sectors(cipher, mode, key)?, iv })
    }

    /// Encrypts whole sectors, of which the first has the number `sector`.
    pub(super) fn encrypt(&self, sector: u64, bytes: &mut [u8]) {
        for (number, bytes) in (sector..).zip(bytes.chunks_mut(SECTOR_LEN)) {
            self.sectors.encrypt(&self.iv(number), bytes);
        }
    }

    /// Decrypts whole sectors, of which the first has the number `sector`.
    pub(super) fn decrypt(&self, sector: u64, bytes: &mut [u8]) {
        for (number, bytes) in (sector..).zip(bytes.chunks_mut(SECTOR_LEN)) {
            self.sectors.decrypt(&self.iv(number), bytes);
        }
    }

    fn iv(&self, sector: u64) -> [u8; 16] {
        let number = match self.iv {
            Iv::Plain => sector & u64::from(u32::MAX),
            Iv::Plain64 | Iv::Essiv(_) => sector,
        };
        let mut iv = [0; 16];
        iv[..8].copy_from_slice(&number.to_le_bytes());
        if let Iv::Essiv(cipher) = &self.iv {
            cipher.encrypt(&[0; 16], &mut iv);
        }
        iv
    }
}

// OK to cast: 512.
#[allow(clippy::cast_possible_truncation)]
const SECTOR_LEN: usize = SECTOR_LEN_BYTES as usize;

/// The cipher that encrypts the numbers of sectors: its key is as long as the digest, whatever the disk's is.
pub(super) fn essiv_cipher(
    cipher: CipherAlgorithm,
    hash: HashAlgorithm,
) -> Option<CipherAlgorithm> {
    // As in QEMU, which knows no other.
    if cipher == CipherAlgorithm::Cast5128 {
        return None;
    }
    CipherAlgorithm::of_family(cipher.family(), hash.digest_len())
}

/// Encrypts and decrypts in a mode, up to a sector at a time, in whole blocks.
trait Sectors: Send + Sync {
    fn encrypt(&self, iv: &[u8; 16], bytes: &mut [u8]);
    fn decrypt(&self, iv: &[u8; 16], bytes: &mut [u8]);
}

fn sectors(cipher: CipherAlgorithm, mode: CipherMode, key: &[u8]) -> Option<Box<dyn Sectors>> {
    use CipherAlgorithm::{
        Aes128 as A128, Aes192 as A192, Aes256 as A256, Cast5128, Serpent128, Serpent192,
        Serpent256, Twofish128, Twofish192, Twofish256,
    };
    if key.len() != cipher.key_len() * mode.keys() {
        return None;
    }
    match cipher {
        A128 => of_blocks_16::<Aes128>(mode, key),
        A192 => of_blocks_16::<Aes192>(mode, key),
        A256 => of_blocks_16::<Aes256>(mode, key),
        Serpent128 | Serpent192 | Serpent256 => of_blocks_16::<Serpent>(mode, key),
        Twofish128 | Twofish192 | Twofish256 => of_blocks_16::<Twofish>(mode, key),
        Cast5128 => {
            let cipher = Cast5::new_from_slice(key).ok()?;
            Some(match mode {
                CipherMode::Ecb => Box::new(Ecb(cipher)),
                CipherMode::Cbc => Box::new(Cbc(cipher)),
                CipherMode::Ctr => Box::new(Ctr64(cipher)),
                CipherMode::Xts => return None,
            })
        }
    }
}

fn of_blocks_16<C>(mode: CipherMode, key: &[u8]) -> Option<Box<dyn Sectors>>
where
    C: Block<U16> + KeyInit + 'static,
{
    let cipher = |key: &[u8]| C::new_from_slice(key).ok();
    Some(match mode {
        CipherMode::Ecb => Box::new(Ecb(cipher(key)?)),
        CipherMode::Cbc => Box::new(Cbc(cipher(key)?)),
        CipherMode::Ctr => Box::new(Ctr128(cipher(key)?)),
        CipherMode::Xts => {
            let (data, tweak) = key.split_at(key.len() / 2);
            Box::new(Xts { data: cipher(data)?, tweak: cipher(tweak)? })
        }
    })
}

/// A block cipher with its key.
trait Block<N: ::cipher::array::ArraySize>:
    BlockCipherEncrypt + BlockCipherDecrypt + BlockSizeUser<BlockSize = N> + Send + Sync
{
}

impl<N, C> Block<N> for C
where
    N: ::cipher::array::ArraySize,
    C: BlockCipherEncrypt + BlockCipherDecrypt + BlockSizeUser<BlockSize = N> + Send + Sync,
{
}

fn blocks<N: ::cipher::array::ArraySize>(bytes: &mut [u8]) -> &mut [Array<u8, N>] {
    Array::slice_as_chunks_mut(bytes).0
}

struct Ecb<C>(C);

impl<C: BlockCipherEncrypt + BlockCipherDecrypt + Send + Sync> Sectors for Ecb<C> {
    fn encrypt(&self, _: &[u8; 16], bytes: &mut [u8]) {
        self.0.encrypt_blocks(blocks(bytes));
    }

    fn decrypt(&self, _: &[u8; 16], bytes: &mut [u8]) {
        self.0.decrypt_blocks(blocks(bytes));
    }
}

struct Cbc<C>(C);

impl<C: BlockCipherEncrypt + BlockCipherDecrypt + Send + Sync> Sectors for Cbc<C> {
    fn encrypt(&self, iv: &[u8; 16], bytes: &mut [u8]) {
        let iv = &iv[..C::block_size()];
        let Ok(mut mode) = cbc::Encryptor::inner_iv_slice_init(&self.0, iv) else { return };
        mode.encrypt_blocks(blocks(bytes));
    }

    fn decrypt(&self, iv: &[u8; 16], bytes: &mut [u8]) {
        let iv = &iv[..C::block_size()];
        let Ok(mut mode) = cbc::Decryptor::inner_iv_slice_init(&self.0, iv) else { return };
        mode.decrypt_blocks(blocks(bytes));
    }
}

struct Ctr128<C>(C);

impl<C: Block<U16>> Sectors for Ctr128<C> {
    fn encrypt(&self, iv: &[u8; 16], bytes: &mut [u8]) {
        let iv = Array::from(*iv);
        let mode = ctr::CtrCore::<&C, ctr::flavors::Ctr128BE>::inner_iv_init(&self.0, &iv);
        ::cipher::StreamCipherCoreWrapper::from_core(mode).apply_keystream(bytes);
    }

    fn decrypt(&self, iv: &[u8; 16], bytes: &mut [u8]) {
        self.encrypt(iv, bytes);
    }
}

struct Ctr64<C>(C);

impl<C: Block<U8>> Sectors for Ctr64<C> {
    fn encrypt(&self, iv: &[u8; 16], bytes: &mut [u8]) {
        let mut short = [0; 8];
        short.copy_from_slice(&iv[..8]);
        let iv = Array::from(short);
        let mode = ctr::CtrCore::<&C, ctr::flavors::Ctr64BE>::inner_iv_init(&self.0, &iv);
        ::cipher::StreamCipherCoreWrapper::from_core(mode).apply_keystream(bytes);
    }

    fn decrypt(&self, iv: &[u8; 16], bytes: &mut [u8]) {
        self.encrypt(iv, bytes);
    }
}

/// Spec: IEEE 1619, XTS without ciphertext stealing: sectors have whole blocks.
struct Xts<C> {
    data: C,
    tweak: C,
}

/// How many blocks go through the cipher together: a sector's.
const XTS_BLOCKS: usize = SECTOR_LEN / 16;

impl<C: Block<U16>> Xts<C> {
    fn apply(&self, iv: &[u8; 16], bytes: &mut [u8], cipher: impl Fn(&mut [Array<u8, U16>])) {
        let mut tweak = Array::from(*iv);
        self.tweak.encrypt_block(&mut tweak);
        let mut tweak = u128::from_le_bytes(tweak.into());
        let mut tweaks = Zeroizing::new([0; XTS_BLOCKS]);
        for blocks in blocks(bytes).chunks_mut(XTS_BLOCKS) {
            for (block, kept) in blocks.iter_mut().zip(tweaks.iter_mut()) {
                *kept = tweak;
                add(block, tweak);
                // Multiplied by x in the field of x^128 + x^7 + x^2 + x + 1.
                tweak = (tweak << 1) ^ ((tweak >> 127) * 0x87);
            }
            cipher(blocks);
            blocks.iter_mut().zip(tweaks.iter()).for_each(|(block, tweak)| add(block, *tweak));
        }
    }
}

fn add(block: &mut Array<u8, U16>, tweak: u128) {
    let sum = u128::from_le_bytes((*block).into()) ^ tweak;
    block.copy_from_slice(&sum.to_le_bytes());
}

impl<C: Block<U16>> Sectors for Xts<C> {
    fn encrypt(&self, iv: &[u8; 16], bytes: &mut [u8]) {
        self.apply(iv, bytes, |blocks| self.data.encrypt_blocks(blocks));
    }

    fn decrypt(&self, iv: &[u8; 16], bytes: &mut [u8]) {
        self.apply(iv, bytes, |blocks| self.data.decrypt_blocks(blocks));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // IEEE 1619-2007, vector 2: the first block.
    #[test]
    fn xts_is_that_of_the_standard() {
        let key = [[0x11; 16], [0x22; 16]].concat();
        let cipher = sectors(CipherAlgorithm::Aes128, CipherMode::Xts, &key).unwrap();
        let mut iv = [0; 16];
        iv[..5].copy_from_slice(&[0x33; 5]);
        let mut bytes = [0x44; 32];
        cipher.encrypt(&iv, &mut bytes);
        assert_eq!(bytes[..4], [0xc4, 0x54, 0x18, 0x5e]);
    }

    #[test]
    fn what_was_encrypted_is_decrypted_in_every_mode() {
        for cipher in CipherAlgorithm::ALL {
            for mode in CipherMode::ALL {
                for generator in IvGenerator::ALL {
                    let key: Vec<u8> = (0..u8::MAX).take(cipher.key_len() * mode.keys()).collect();
                    let hash = Some(HashAlgorithm::Sha256);
                    let made = SectorCipher::new(cipher, mode, generator, hash, &key);
                    let fits = cipher != CipherAlgorithm::Cast5128
                        || (mode != CipherMode::Xts && generator != IvGenerator::Essiv);
                    assert_eq!(made.is_some(), fits, "{cipher:?} {mode:?} {generator:?}");
                    let Some(made) = made else { continue };
                    let plain: Vec<u8> = (0..=u8::MAX).cycle().take(1536).collect();
                    let mut bytes = plain.clone();
                    made.encrypt(7, &mut bytes);
                    assert_ne!(bytes, plain);
                    // A sector by itself is what it is among others.
                    made.decrypt(8, &mut bytes[512..1024]);
                    made.decrypt(7, &mut bytes[..512]);
                    made.decrypt(9, &mut bytes[1024..]);
                    assert_eq!(bytes, plain, "{cipher:?} {mode:?} {generator:?}");
                }
            }
        }
    }
}
