//! `amend -o encrypt.*`, and without that prefix for a LUKS volume: passphrases are added to an image that is encrypted with
//! LUKS, and erased.
//!
//! Source: QEMU, crypto/block-luks.c, `qcrypto_block_luks_amend_options`, with its texts.

use cowshed::Error;
use cowshed::crypt::{LuksScheme, Secret};
use cowshed::format::{CryptMethod, HostOffset};
use cowshed::image::{KeyAddition, KeyErasure, LuksVolume};
use cowshed::rt::SystemEntropy;

use crate::encryption;
use crate::format_options::FormatOptions;
use crate::node::Node;
use crate::open::{self, DiskImage};
use crate::secret::{REQUIRED, Secrets};

/// What the options say of the passphrases of an image.
pub(crate) struct KeyChange<'a> {
    pub(crate) options: &'a FormatOptions,
    pub(crate) secrets: &'a Secrets,
    /// The passphrase that the image was opened with, if the command line has it.
    pub(crate) key: Option<Secret>,
    pub(crate) force: bool,
}

/// What has the key slots.
#[derive(Clone, Copy)]
pub(crate) enum Locked<'a> {
    Image(&'a DiskImage),
    Volume(&'a LuksVolume<Node>),
}

impl Locked<'_> {
    /// What the disk is encrypted with.
    async fn scheme(self) -> Result<LuksScheme, String> {
        let (header, at) = match self {
            Self::Volume(volume) => (volume.header().clone(), HostOffset::default()),
            Self::Image(image) => {
                let header = image.load_luks_header().await.map_err(|error| reason(&error))?;
                let area = image.header().and_then(|header| header.crypto_header());
                let at = area.map(|area| area.offset).unwrap_or_default();
                (header.ok_or("the image has no LUKS header")?, at)
            }
        };
        LuksScheme::of_header(&header, at).map_err(|error| reason(&error))
    }
}

impl KeyChange<'_> {
    /// Asks whether the image can have such a change.
    ///
    /// # Errors
    /// Why it cannot.
    pub(crate) fn check(method: CryptMethod) -> Result<(), String> {
        match method {
            CryptMethod::None => {
                Err("Can't amend encryption options - encryption not present".to_owned())
            }
            CryptMethod::Aes => {
                Err("Only LUKS encryption options can be amended for qcow2 with qemu-img"
                    .to_owned())
            }
            CryptMethod::Luks => Ok(()),
        }
    }

    /// Makes it.
    ///
    /// # Errors
    /// What is wrong with the options, or what the change meets.
    pub(crate) async fn make(self, locked: Locked<'_>) -> Result<(), String> {
        match self.given("state") {
            None => Err("Parameter 'state' is missing".to_owned()),
            Some("active") => self.add(locked).await,
            Some("inactive") => self.erase(locked).await,
            Some(other) => Err(format!("Parameter 'state' does not accept value '{other}'")),
        }
    }

    async fn add(&self, locked: Locked<'_>) -> Result<(), String> {
        let new = self.secret("new-secret")?;
        let new = new.ok_or("'new-secret' is required to activate a keyslot")?;
        if self.given("old-secret").is_some() {
            return Err("'old-secret' must not be given when activating keyslots".to_owned());
        }
        let old = self.key.clone().ok_or(REQUIRED)?;
        let scheme = locked.scheme().await?;
        let iterations = encryption::iterations(&scheme, self.given("iter-time"));
        let mut addition = KeyAddition::new(old, new, iterations);
        addition.slot = self.slot()?;
        addition.force = self.force;
        let mut entropy = SystemEntropy::open().map_err(|error| reason(&error))?;
        let added = match locked {
            Locked::Image(image) => image.add_key(&addition, &mut entropy).await,
            Locked::Volume(volume) => volume.add_key(&addition, &mut entropy).await,
        };
        added.map(drop).map_err(|error| match error {
            Error::WrongKey => "Failed to retrieve the master key".to_owned(),
            error => reason(&error),
        })
    }

    async fn erase(&self, locked: Locked<'_>) -> Result<(), String> {
        for name in ["new-secret", "iter-time"] {
            if self.given(name).is_some() {
                return Err(format!("'{name}' must not be given when erasing keyslots"));
            }
        }
        let mut erasure = KeyErasure::default();
        erasure.slot = self.slot()?;
        erasure.old = self.secret("old-secret")?;
        erasure.force = self.force;
        let mut entropy = SystemEntropy::open().map_err(|error| reason(&error))?;
        let erased = match locked {
            Locked::Image(image) => image.erase_keys(&erasure, &mut entropy).await,
            Locked::Volume(volume) => volume.erase_keys(&erasure, &mut entropy).await,
        };
        erased.map_err(|error| reason(&error))
    }

    fn given(&self, name: &str) -> Option<&str> {
        self.options.encryption(name)
    }

    /// The passphrase that an option names.
    fn secret(&self, name: &str) -> Result<Option<Secret>, String> {
        self.given(name).map(|id| self.secrets.passphrase(id)).transpose()
    }

    fn slot(&self) -> Result<Option<usize>, String> {
        let parse = |text: &str| {
            text.parse().map_err(|_| format!("Parameter 'keyslot' expects integer, not '{text}'"))
        };
        self.given("keyslot").map(parse).transpose()
    }
}

fn reason(error: &Error) -> String {
    open::reason(error)
}
