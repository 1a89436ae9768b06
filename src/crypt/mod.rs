//! Encryption of guest data: passphrases, ciphers by sector, and the key slots of LUKS.
//!
//! Everything here computes on bytes in memory. Where a passphrase comes from, where a header lies and which thread spends
//! a second on a key is for others to know; randomness and time come in as arguments. Secrets are overwritten when they
//! are dropped and print as nothing. Without the feature `encryption` there are secrets, and nothing to do with them.
//!
//! This module must not know files, clocks, threads, or what a cluster is.

mod entropy;
mod secret;

#[cfg(feature = "encryption")]
mod cipher;
#[cfg(feature = "encryption")]
mod disk;
#[cfg(feature = "encryption")]
mod hash;
#[cfg(feature = "encryption")]
mod luks;
#[cfg(feature = "encryption")]
mod scheme;
#[cfg(feature = "encryption")]
mod split;

#[cfg(not(feature = "encryption"))]
mod without;

pub use entropy::Entropy;
pub use secret::Secret;

#[cfg(feature = "encryption")]
pub use cipher::{CipherAlgorithm, CipherMode, IvGenerator};
#[cfg(feature = "encryption")]
pub(crate) use disk::DiskCipher;
#[cfg(feature = "encryption")]
pub use hash::{HashAlgorithm, iterations_for};
#[cfg(feature = "encryption")]
pub use luks::{Iterations, LuksArea};
#[cfg(feature = "encryption")]
pub(crate) use luks::{is_master_key, master_key_digest, open_slot, seal_slot, unseal};
#[cfg(feature = "encryption")]
pub use scheme::LuksScheme;

#[cfg(not(feature = "encryption"))]
pub(crate) use without::DiskCipher;

/// Guest data is encrypted in sectors of so many bytes.
pub(crate) const SECTOR_LEN_BYTES: u64 = 512;
