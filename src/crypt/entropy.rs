//! Where random bytes come from: keys and salts are made of them.

use crate::error::Result;

/// A source of random bytes that nobody can guess.
pub trait Entropy: Send {
    /// Fills `bytes`.
    ///
    /// # Errors
    /// The source failed; `bytes` must not be used.
    fn fill(&mut self, bytes: &mut [u8]) -> Result<()>;
}
