//! What the command line calls the format of an image: the engine's formats, and what is a raw disk to the engine and
//! encrypted below that.

use cowshed::format::LuksHeader;
use cowshed::image::{Format, detect};

/// The format of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ImageFormat {
    Qcow2,
    Raw,
    /// A LUKS volume.
    Luks,
}

impl ImageFormat {
    /// QEMU's name for it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Qcow2 => "qcow2",
            Self::Raw => "raw",
            Self::Luks => "luks",
        }
    }

    /// The format of this name.
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        [Self::Qcow2, Self::Raw, Self::Luks].into_iter().find(|format| format.name() == name)
    }

    /// The format of a file that starts with `first_bytes`, as far as they tell.
    pub(crate) fn detect(first_bytes: &[u8]) -> Self {
        match detect(first_bytes) {
            Format::Qcow2 => Self::Qcow2,
            Format::Raw if LuksHeader::begins(first_bytes) => Self::Luks,
            Format::Raw => Self::Raw,
        }
    }

    /// What it is to the engine.
    pub(crate) const fn engine(self) -> Format {
        match self {
            Self::Qcow2 => Format::Qcow2,
            Self::Raw | Self::Luks => Format::Raw,
        }
    }
}
