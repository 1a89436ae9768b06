//! Passphrases of an image or a volume that is encrypted with LUKS: added to its key slots, and erased from them.
//!
//! # Crashes
//!
//! A slot is written before it is said to be in use, and is said not to be before it is overwritten: a power loss leaves the
//! passphrases from before, or those from after, and never a slot in use that opens nothing.
//!
//! Matches qcrypto_block_luks_amend_options in QEMU's crypto/block-luks.c, with its texts.

use std::sync::Arc;

use crate::crypt::{Entropy, Secret, seal_slot};
use crate::error::{Error, Result};
use crate::format::{HostOffset, LuksHeader, LuksSlot};
use crate::storage::Storage;
use crate::workers::Workers;

use super::Image;
use super::commit::flush;
use super::luks_volume::LuksVolume;
use super::metadata::Metadata;
use super::options::OpenOptions;
use super::unlock::luks::{Found, Keyring};
use super::writer::{Target, Top};

/// A passphrase to add.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct KeyAddition {
    /// A passphrase that the image has.
    pub old: Secret,
    /// The one to add.
    pub new: Secret,
    /// How often the slot's key is derived; at least 1000.
    pub iterations: u32,
    /// The slot; without, the first one that is not in use.
    pub slot: Option<usize>,
    /// Overwrites a slot that is in use.
    pub force: bool,
}

impl KeyAddition {
    /// Adds `new` to any slot.
    #[must_use]
    pub fn new(old: Secret, new: Secret, iterations: u32) -> Self {
        Self { old, new, iterations, slot: None, force: false }
    }
}

/// Which passphrases to erase: that of a slot, or all that are the same.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct KeyErasure {
    /// The slot.
    pub slot: Option<usize>,
    /// The passphrase: with a slot it must be the slot's, without one all slots that it opens are erased.
    pub old: Option<Secret>,
    /// Erases a slot that is not in use, and the last that is: then nobody can read the disk any more.
    pub force: bool,
}

impl<S: Storage> Image<S> {
    /// Adds a passphrase to an image that is encrypted with LUKS, and returns its slot. It is durable then.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] in QEMU's words if there is no such slot, or it is in use, or all are, or the image is not
    /// encrypted so; [`Error::WrongKey`]; what `entropy` meets; as of a write.
    ///
    /// # Cancel safety
    /// The image has the passphrases from before, but for that of a slot to be overwritten, or those from after.
    pub async fn add_key(
        &self,
        addition: &KeyAddition,
        entropy: &mut dyn Entropy,
    ) -> Result<usize> {
        let op = self.requests.enter_chore().await?;
        let change = self.begin_change(&op).await?;
        let Target::Qcow2(top) = &change.target else { return Err(not_luks()) };
        let _one = top.writer.commit.lock().await;
        let keyring = Keyring::load(top.layer).await?;
        let (metadata, workers) = (&top.layer.metadata, self.workers.as_ref());
        KeySlots { keyring, metadata, file: *top, workers }.add(addition, entropy).await
    }

    /// Erases passphrases of an image that is encrypted with LUKS, and what was derived from them. It is durable then.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] in QEMU's words if nothing is to be erased, or it is not there, or nobody could read the
    /// disk afterwards; what `entropy` meets; as of a write.
    ///
    /// # Cancel safety
    /// Each slot is as before or erased, or not in use with its key material still there.
    pub async fn erase_keys(&self, erasure: &KeyErasure, entropy: &mut dyn Entropy) -> Result<()> {
        let op = self.requests.enter_chore().await?;
        let change = self.begin_change(&op).await?;
        let Target::Qcow2(top) = &change.target else { return Err(not_luks()) };
        let _one = top.writer.commit.lock().await;
        let keyring = Keyring::load(top.layer).await?;
        let (metadata, workers) = (&top.layer.metadata, self.workers.as_ref());
        KeySlots { keyring, metadata, file: *top, workers }.erase(erasure, entropy).await
    }
}

impl<S: Storage> LuksVolume<S> {
    /// Adds a passphrase to the volume, and returns its slot. It is durable then. As [`Image::add_key`].
    ///
    /// # Errors
    /// As [`Image::add_key`].
    ///
    /// # Cancel safety
    /// As [`Image::add_key`].
    pub async fn add_key(
        &self,
        addition: &KeyAddition,
        entropy: &mut dyn Entropy,
    ) -> Result<usize> {
        let _one = self.changing_keys.lock().await;
        let (keyring, metadata) = (Keyring::load_of_volume(&self.metadata).await?, &self.metadata);
        KeySlots { keyring, metadata, file: metadata, workers: self.workers.as_ref() }
            .add(addition, entropy)
            .await
    }

    /// Erases passphrases of the volume, and what was derived from them. It is durable then. As [`Image::erase_keys`].
    ///
    /// # Errors
    /// As [`Image::erase_keys`].
    ///
    /// # Cancel safety
    /// As [`Image::erase_keys`].
    pub async fn erase_keys(&self, erasure: &KeyErasure, entropy: &mut dyn Entropy) -> Result<()> {
        let _one = self.changing_keys.lock().await;
        let (keyring, metadata) = (Keyring::load_of_volume(&self.metadata).await?, &self.metadata);
        KeySlots { keyring, metadata, file: metadata, workers: self.workers.as_ref() }
            .erase(erasure, entropy)
            .await
    }
}

/// What an encryption header is written to.
trait HeaderFile {
    async fn overwrite(&self, at: HostOffset, bytes: &[u8]) -> Result<()>;

    /// Makes durable what was written before.
    async fn barrier(&self) -> Result<()>;
}

impl<S: Storage> HeaderFile for Top<'_, S> {
    async fn overwrite(&self, at: HostOffset, bytes: &[u8]) -> Result<()> {
        self.overwrite_metadata(at, bytes).await
    }

    async fn barrier(&self) -> Result<()> {
        Top::barrier(self).await
    }
}

impl<S: Storage> HeaderFile for &Metadata<S> {
    async fn overwrite(&self, at: HostOffset, bytes: &[u8]) -> Result<()> {
        let (at, len) = (at.get(), bytes.len() as u64);
        let written = self.blocks().write(self.storage(), bytes, at).await;
        written.map_err(|error| Error::storage("write", at, len, error))
    }

    async fn barrier(&self) -> Result<()> {
        flush(self.storage()).await
    }
}

/// Key slots that are changed, by nobody else meanwhile.
struct KeySlots<'a, S, F> {
    keyring: Keyring,
    metadata: &'a Metadata<S>,
    file: F,
    workers: Option<&'a Arc<dyn Workers>>,
}

impl<S: Storage, F: HeaderFile> KeySlots<'_, S, F> {
    async fn add(&self, addition: &KeyAddition, entropy: &mut dyn Entropy) -> Result<usize> {
        let header = &self.keyring.header;
        let index = match addition.slot {
            Some(index) => in_range(index, header)?,
            None => {
                let free = header.slots.iter().position(|slot| !slot.active);
                free.ok_or_else(|| wrong("Can't add a keyslot - all keyslots are in use"))?
            }
        };
        if !addition.force && header.slots[index].active {
            return Err(wrong(format!(
                "Refusing to overwrite active keyslot {index} - please erase it first"
            )));
        }
        let (_, master_key) = self.find(&addition.old).await?;
        let (scheme, iterations) = (&self.keyring.scheme, addition.iterations);
        let sealed = seal_slot(scheme, &master_key, &addition.new, iterations, entropy)?;
        // Cancel: a slot is not in use from here on, until it is whole.
        let empty = LuksSlot::unused(header.slots[index].key_offset);
        self.write_slot(index, &empty).await?;
        self.file.barrier().await?;
        self.write_material(&empty, &sealed.material).await?;
        let mut slot = empty;
        sealed.apply(&mut slot);
        // A slot may lie in two sectors: what it says is there before it is in use.
        self.write_slot(index, &LuksSlot { active: false, ..slot }).await?;
        self.file.barrier().await?;
        self.write_slot(index, &slot).await?;
        self.file.barrier().await?;
        Ok(index)
    }

    async fn erase(&self, erasure: &KeyErasure, entropy: &mut dyn Entropy) -> Result<()> {
        let header = &self.keyring.header;
        for index in self.to_erase(erasure).await? {
            let empty = LuksSlot::unused(header.slots[index].key_offset);
            self.write_slot(index, &empty).await?;
            self.file.barrier().await?;
            // Cancel: the slot is not in use.
            // OK to unwrap: 256 KB at most.
            let mut noise = vec![0; usize::try_from(header.material_len()).unwrap_or(0)];
            entropy.fill(&mut noise)?;
            self.write_material(&empty, &noise).await?;
            self.file.barrier().await?;
        }
        Ok(())
    }

    /// Which slots are to be erased.
    async fn to_erase(&self, erasure: &KeyErasure) -> Result<Vec<usize>> {
        let slots = &self.keyring.header.slots;
        let in_use = slots.iter().filter(|slot| slot.active).count();
        match (erasure.slot, &erasure.old) {
            (None, None) => Err(wrong(
                "To erase keyslot(s), either explicit keyslot index or the password currently contained in them must be given",
            )),
            (Some(index), old) => {
                in_range(index, &self.keyring.header)?;
                if let Some(old) = old
                    && !self.opens(index, old).await?
                {
                    return Err(wrong(format!(
                        "Given keyslot {index} doesn't contain the given old password for erase operation"
                    )));
                }
                if !erasure.force && !slots[index].active {
                    // The blank at the end is QEMU's.
                    return Err(wrong(format!(
                        "Given keyslot {index} is already erased (inactive) "
                    )));
                }
                if !erasure.force && in_use == 1 {
                    return Err(wrong(format!(
                        "Attempt to erase the only active keyslot {index} which will erase all the data in the image \
                         irreversibly - refusing operation"
                    )));
                }
                Ok(vec![index])
            }
            (None, Some(old)) => {
                let mut found = Vec::new();
                for index in 0..slots.len() {
                    if self.opens(index, old).await? {
                        found.push(index);
                    }
                }
                if found.is_empty() {
                    return Err(wrong(
                        "No keyslots match given (old) password for erase operation",
                    ));
                }
                if !erasure.force && found.len() == in_use {
                    return Err(wrong(
                        "All the active keyslots match the (old) password that was given and erasing them will erase all \
                         the data in the image irreversibly - refusing operation",
                    ));
                }
                Ok(found)
            }
        }
    }

    async fn find(&self, secret: &Secret) -> Result<Found> {
        let limit = OpenOptions::KEY_ITERATIONS_MAX_DEFAULT;
        let found = self.keyring.find(self.metadata, secret, limit, self.workers).await?;
        found.ok_or(Error::WrongKey)
    }

    async fn opens(&self, index: usize, secret: &Secret) -> Result<bool> {
        let limit = OpenOptions::KEY_ITERATIONS_MAX_DEFAULT;
        let key = self.keyring.open(self.metadata, index, secret, limit, self.workers).await?;
        Ok(key.is_some())
    }

    async fn write_slot(&self, index: usize, slot: &LuksSlot) -> Result<()> {
        let at = self.keyring.area.offset.get() + LuksHeader::slot_range(index).start as u64;
        self.file.overwrite(HostOffset::new(at), &slot.encode()).await
    }

    async fn write_material(&self, slot: &LuksSlot, bytes: &[u8]) -> Result<()> {
        let at = self.keyring.area.offset.get() + slot.key_offset;
        self.file.overwrite(HostOffset::new(at), bytes).await
    }
}

fn in_range(index: usize, header: &LuksHeader) -> Result<usize> {
    let last = header.slots.len() - 1;
    match index {
        index if index <= last => Ok(index),
        _ => Err(wrong(format!("Invalid keyslot {index} specified, must be between 0 and {last}"))),
    }
}

fn not_luks() -> Error {
    wrong("the image is not encrypted with LUKS")
}

fn wrong(text: impl Into<String>) -> Error {
    Error::InvalidArgument(text.into())
}
