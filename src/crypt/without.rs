//! What stands for the ciphers where the feature `encryption` is left out: a type that no value has.

/// The cipher of a disk: there is none.
#[derive(Debug)]
pub(crate) enum DiskCipher {}

impl DiskCipher {
    /// Encrypts nothing.
    pub(crate) fn encrypt(&self, _guest: u64, _host: u64, _bytes: &mut [u8]) {
        match *self {}
    }

    /// Decrypts nothing.
    pub(crate) fn decrypt(&self, _guest: u64, _host: u64, _bytes: &mut [u8]) {
        match *self {}
    }
}
