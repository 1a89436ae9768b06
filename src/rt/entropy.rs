//! Random bytes of the system.

use std::fs::File;
use std::io::Read as _;

use crate::crypt::Entropy;
use crate::error::{Error, Result};

/// The device that never blocks once the system has started, and that every Unix has.
const DEVICE: &str = "/dev/urandom";

/// The system's source of random bytes.
#[derive(Debug)]
pub struct SystemEntropy(File);

impl SystemEntropy {
    /// Opens it.
    ///
    /// # Errors
    /// [`Error::Open`].
    pub fn open() -> Result<Self> {
        let failed = |source| Error::Open { path: DEVICE.into(), source };
        File::open(DEVICE).map(Self).map_err(failed)
    }
}

impl Entropy for SystemEntropy {
    fn fill(&mut self, bytes: &mut [u8]) -> Result<()> {
        let len = bytes.len() as u64;
        self.0.read_exact(bytes).map_err(|source| Error::Storage {
            operation: "read of random bytes",
            offset: 0,
            len,
            source,
        })
    }
}
