//! What an image needs and this crate does not have: one kind for each.

use std::fmt;

use super::kinds;

/// Something that an image needs and this crate does not have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsupported(Box<UnsupportedKind>);

impl Unsupported {
    /// Every code that [`Unsupported::code`] can return.
    pub const CODES: &'static [&'static str] = UnsupportedKind::CODES;

    /// Returns the name of what is not supported, in kebab case: "incompatible-features". It is stable.
    pub fn code(&self) -> &'static str {
        self.0.code()
    }
}

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Unsupported {}

impl From<UnsupportedKind> for Unsupported {
    fn from(kind: UnsupportedKind) -> Self {
        Self(Box::new(kind))
    }
}

kinds! {
    /// One kind for each thing.
    UnsupportedKind {
        "cluster-bits" ClusterBits { value: u32, max: u32 } =>
            "header: cluster_bits {value} is greater than {max}",
    }
}
