//! The name that the command was called by, and what depends on it.

use std::ffi::OsStr;
use std::path::Path;
use std::sync::OnceLock;

/// Who the command is: itself, or a stand-in for one of QEMU's tools.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Persona {
    /// Called as `cowshed`, or anything else.
    Cowshed,
    /// Called as `qemu-img`: its error texts, and images may name plain files anywhere.
    QemuImg,
    /// Called as `qemu-io`: the verb `io`, with its error texts.
    QemuIo,
}

/// What a process was called by does not change.
static CURRENT: OnceLock<Persona> = OnceLock::new();

impl Persona {
    /// The persona of the path that the command was called by.
    pub(crate) fn of(argv0: Option<&OsStr>) -> Self {
        match argv0.and_then(|path| Path::new(path).file_name()) {
            Some(name) if name == "qemu-img" => Self::QemuImg,
            Some(name) if name == "qemu-io" => Self::QemuIo,
            _ => Self::Cowshed,
        }
    }

    /// The persona that the whole process has: that of the first call of [`Self::become_current`].
    pub(crate) fn current() -> Self {
        CURRENT.get().copied().unwrap_or(Self::Cowshed)
    }

    /// Makes it the persona of the process.
    pub(crate) fn become_current(self) {
        let _ = CURRENT.set(self);
    }

    /// The name in front of messages.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Cowshed => "cowshed",
            Self::QemuImg => "qemu-img",
            Self::QemuIo => "qemu-io",
        }
    }

    /// What `--version` prints.
    pub(crate) fn version(self) -> &'static str {
        match self {
            Self::Cowshed => concat!("cowshed ", env!("CARGO_PKG_VERSION")),
            // Scripts look for this pattern and choose by the number what they may use.
            Self::QemuImg => {
                concat!("qemu-img version 10.0.2 (cowshed ", env!("CARGO_PKG_VERSION"), ")")
            }
            Self::QemuIo => {
                concat!("qemu-io version 10.0.2 (cowshed ", env!("CARGO_PKG_VERSION"), ")")
            }
        }
    }
}
