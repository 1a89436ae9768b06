//! Unlocking a layer: from a passphrase to the cipher of its guest data.
//!
//! Deriving a key takes as long as the image says, within a limit; the gate is asked first, as a browser's own PBKDF2 is faster
//! than ours there; else it is done by the workers, if there are some.

use std::path::Path;

use crate::crypt::{DiskCipher, Secret};
use crate::error::{Error, Result, Structure, Unsupported, UnsupportedKind};
use crate::format::CryptMethod;
use crate::storage::Storage;

use super::gate::{Gate, Locked};
use super::layer::{Qcow2Layer, method_name};
use super::options::{OpenOptions, References};

impl<S: Storage> Qcow2Layer<S> {
    /// Asks for the passphrase, if there is need for one, and makes the cipher of it. Who looks at the image alone is asked
    /// for nothing, but may have given it.
    ///
    /// # Errors
    /// [`Error::WrongKey`]; what the gate meets; [`Error::Corrupt`] and [`Error::Unsupported`] from the encryption header,
    /// which may want too much work done.
    ///
    /// # Cancel safety
    /// Nothing has been changed.
    pub(super) async fn unlock<G: Gate<Storage = S>>(
        &mut self,
        gate: &G,
        location: &Path,
        depth: usize,
        options: &OpenOptions,
    ) -> Result<()> {
        if self.crypt == CryptMethod::None {
            return Ok(());
        }
        let locked = Locked { location, depth, method: method_name(self.crypt) };
        let key = match (&options.key, depth) {
            (Some(key), 0) => Some(key.clone()),
            _ if options.references == References::Leave => None,
            _ => gate.key(&locked).await?,
        };
        if let Some(key) = key {
            if cfg!(not(feature = "encryption")) {
                let kind = UnsupportedKind::Encryption { method: method_name(self.crypt) };
                return Err(Unsupported::new(kind, Structure::Header).into());
            }
            self.cipher = Some(self.cipher_of(key, gate, options).await?);
        }
        Ok(())
    }

    #[cfg(not(feature = "encryption"))]
    async fn cipher_of<G>(&self, _: Secret, _: &G, _: &OpenOptions) -> Result<DiskCipher> {
        Err(Error::KeyRequired { method: method_name(self.crypt) })
    }

    #[cfg(feature = "encryption")]
    async fn cipher_of<G: Gate<Storage = S>>(
        &self,
        key: Secret,
        gate: &G,
        options: &OpenOptions,
    ) -> Result<DiskCipher> {
        if self.crypt == CryptMethod::Aes {
            return Ok(DiskCipher::legacy(&key));
        }
        let keyring = luks::Keyring::load(self).await?;
        let master_key = keyring.find_by(gate, &self.metadata, &key, options).await?;
        keyring.cipher(&master_key.ok_or(Error::WrongKey)?)
    }
}

#[cfg(feature = "encryption")]
pub(super) mod luks {
    //! The key slots of a LUKS header, tried one after the other.

    use std::sync::Arc;

    use zeroize::Zeroizing;

    use crate::crypt::{
        DiskCipher, LuksScheme, SECTOR_LEN_BYTES, Secret, is_master_key, master_key_digest,
        open_slot, unseal,
    };
    use crate::error::{
        Corrupt, CorruptKind, Error, Result, Structure, Unsupported, UnsupportedKind,
    };
    use crate::format::{CryptMethod, CryptoHeader, HostOffset, LuksHeader, LuksSlot};
    use crate::image::gate::{Derivation, Gate};
    use crate::image::layer::Qcow2Layer;
    use crate::image::metadata::Metadata;
    use crate::image::options::OpenOptions;
    use crate::storage::Storage;
    use crate::workers::{Workers, offload};

    /// A LUKS header whose parts are known and lie within its area.
    pub(in crate::image) struct Keyring {
        pub(in crate::image) header: LuksHeader,
        pub(in crate::image) scheme: LuksScheme,
        /// Where the area is.
        pub(in crate::image) area: CryptoHeader,
    }

    /// The slot that a passphrase opens, and the key in it.
    pub(in crate::image) type Found = (usize, Zeroizing<Vec<u8>>);

    impl Keyring {
        /// Loads the header of an image that is encrypted with LUKS.
        pub(in crate::image) async fn load<S: Storage>(layer: &Qcow2Layer<S>) -> Result<Self> {
            let area = match (layer.crypt, layer.header.get().crypto_header()) {
                (CryptMethod::Luks, Some(area)) => area,
                _ => {
                    return Err(Error::InvalidArgument(
                        "the image is not encrypted with LUKS".into(),
                    ));
                }
            };
            let len = area.len.min(LuksHeader::LEN as u64);
            let at = area.offset.get();
            let bytes = layer.metadata.load(Structure::CryptoHeader, at, len).await?;
            Self::new(LuksHeader::parse(&bytes, area.offset)?, area)
        }

        /// Loads the header of a volume, which lies at the start of its file, before the payload.
        pub(in crate::image) async fn load_of_volume<S: Storage>(
            metadata: &Metadata<S>,
        ) -> Result<Self> {
            let bytes = metadata.load_some(0, LuksHeader::LEN as u64).await?;
            let offset = HostOffset::new(0);
            let header = LuksHeader::parse(&bytes, offset)?;
            let len = header.payload_offset;
            // A file has whole sectors to QEMU.
            if len > metadata.file_len().next_multiple_of(SECTOR_LEN_BYTES) {
                metadata.must_hold(Structure::CryptoHeader, 0, len)?;
            }
            Self::new(header, CryptoHeader { offset, len })
        }

        fn new(header: LuksHeader, area: CryptoHeader) -> Result<Self> {
            for (index, slot) in (0..).zip(&header.slots) {
                let end = slot.key_offset + header.material_len();
                if end > area.len {
                    let kind = CorruptKind::LuksSlotOutside { end, len: area.len };
                    let corrupt = Corrupt::new(kind, Structure::CryptoHeader).at(area.offset.get());
                    return Err(corrupt.entry(index).into());
                }
            }
            let scheme = LuksScheme::of_header(&header, area.offset)?;
            Ok(Self { header, scheme, area })
        }

        /// The cipher of the disk, by its master key.
        pub(in crate::image) fn cipher(&self, master_key: &[u8]) -> Result<DiskCipher> {
            // OK to unwrap: the key has the scheme's length.
            DiskCipher::luks(&self.scheme, master_key).ok_or(Error::WrongKey)
        }

        /// Tries the slots in use, the first one first.
        pub(in crate::image) async fn find<S: Storage>(
            &self,
            metadata: &Metadata<S>,
            secret: &Secret,
            iterations_max: u32,
            workers: Option<&Arc<dyn Workers>>,
        ) -> Result<Option<Found>> {
            for index in 0..self.header.slots.len() {
                let key = self.open(metadata, index, secret, iterations_max, workers).await?;
                if let Some(key) = key {
                    return Ok(Some((index, key)));
                }
            }
            Ok(None)
        }

        /// Tries the slots in use with keys that the gate derives, if it does.
        pub(in crate::image) async fn find_by<S: Storage, G: Gate<Storage = S>>(
            &self,
            gate: &G,
            metadata: &Metadata<S>,
            secret: &Secret,
            options: &OpenOptions,
        ) -> Result<Option<Zeroizing<Vec<u8>>>> {
            let limit = options.key_iterations_max;
            for (index, slot) in self.header.slots.iter().enumerate() {
                if !slot.active {
                    continue;
                }
                self.must_be_bearable(index, limit)?;
                let derivation = Derivation {
                    hash: self.scheme.hash.name(),
                    password: secret.expose(),
                    salt: &slot.salt,
                    iterations: slot.iterations,
                    len: self.scheme.key_len(),
                };
                let found = match gate.derive(&derivation).await? {
                    Some(key) => self.unseal_by(gate, metadata, slot, &key).await?,
                    None => {
                        let workers = options.workers.as_ref();
                        self.open(metadata, index, secret, limit, workers).await?
                    }
                };
                if found.is_some() {
                    return Ok(found);
                }
            }
            Ok(None)
        }

        /// The master key, if `key` is the slot's.
        async fn unseal_by<S: Storage, G: Gate<Storage = S>>(
            &self,
            gate: &G,
            metadata: &Metadata<S>,
            slot: &LuksSlot,
            key: &Secret,
        ) -> Result<Option<Zeroizing<Vec<u8>>>> {
            let material = self.material(metadata, slot).await?;
            let Some(master_key) = unseal(&self.scheme, key.expose(), material) else {
                return Ok(None);
            };
            let derivation = Derivation {
                hash: self.scheme.hash.name(),
                password: &master_key,
                salt: &self.header.master_key_salt,
                iterations: self.header.master_key_iterations,
                len: self.header.master_key_digest.len(),
            };
            let fits = match gate.derive(&derivation).await? {
                Some(digest) => is_master_key(&self.header, digest.expose()),
                None => {
                    let digest = master_key_digest(&self.header, &self.scheme, &master_key);
                    is_master_key(&self.header, &digest)
                }
            };
            Ok(fits.then_some(master_key))
        }

        /// Refuses a slot that asks for more work than `iterations_max`.
        fn must_be_bearable(&self, index: usize, iterations_max: u32) -> Result<()> {
            // OK to index: the callers count slots.
            let slot = &self.header.slots[index];
            let too_many = |value| {
                let kind = UnsupportedKind::LuksIterations { value, max: iterations_max };
                Unsupported::new(kind, Structure::CryptoHeader).at(self.area.offset.get())
            };
            if self.header.master_key_iterations > iterations_max {
                return Err(too_many(self.header.master_key_iterations).into());
            }
            if slot.iterations > iterations_max {
                return Err(too_many(slot.iterations).entry(index as u64).into());
            }
            Ok(())
        }

        /// What a slot keeps of the master key.
        async fn material<S: Storage>(
            &self,
            metadata: &Metadata<S>,
            slot: &LuksSlot,
        ) -> Result<Vec<u8>> {
            let at = self.area.offset.get() + slot.key_offset;
            let len = self.header.material_len();
            Ok(metadata.load(Structure::CryptoHeader, at, len).await?.to_vec())
        }

        /// The master key, if a slot is in use and this is its passphrase.
        pub(in crate::image) async fn open<S: Storage>(
            &self,
            metadata: &Metadata<S>,
            index: usize,
            secret: &Secret,
            iterations_max: u32,
            workers: Option<&Arc<dyn Workers>>,
        ) -> Result<Option<Zeroizing<Vec<u8>>>> {
            // OK to index: the callers count slots.
            let slot = self.header.slots[index];
            if !slot.active {
                return Ok(None);
            }
            self.must_be_bearable(index, iterations_max)?;
            let material = self.material(metadata, &slot).await?;
            let Some(workers) = workers else {
                return Ok(open_slot(&self.header, &self.scheme, &slot, secret, material));
            };
            let (header, scheme, secret) = (self.header.clone(), self.scheme, secret.clone());
            let work = move || open_slot(&header, &scheme, &slot, &secret, material);
            Ok(offload(&**workers, work).await)
        }
    }
}
