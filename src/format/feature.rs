//! The version, the three feature bitmaps, and the table that names their bits.
//!
//! | header offset | size | field | meaning of unknown bits |
//! |---|---|---|---|
//! | 72 | 8 | incompatible_features | the image must not be opened |
//! | 80 | 8 | compatible_features | ignored and kept |
//! | 88 | 8 | autoclear_features | ignored by readers; a writer clears them before its first write |
//!
//! Spec: qcow2, Header; Feature name table.

use std::fmt;

/// The version of the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// Version 2, `compat=0.10`: a header of 72 bytes, no feature bits, no zero flag, refcounts of 16 bits.
    V2,
    /// Version 3, `compat=1.1`.
    V3,
}

impl Version {
    /// Returns the number in the header.
    pub const fn number(self) -> u32 {
        match self {
            Self::V2 => 2,
            Self::V3 => 3,
        }
    }
}

macro_rules! features {
    ($(#[$meta:meta])* $name:ident { $($(#[$bit_meta:meta])* $bit_name:ident = $bit:literal,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
        pub struct $name(u64);

        impl $name {
            $($(#[$bit_meta])* pub const $bit_name: Self = Self(1 << $bit);)*

            /// The bits that this crate knows.
            pub const KNOWN: Self = Self(0 $(| 1 << $bit)*);

            /// Makes a set of bits from the header's field. Unknown bits are kept.
            #[inline]
            pub const fn from_raw(raw: u64) -> Self {
                Self(raw)
            }

            /// Returns the header's field.
            #[inline]
            pub const fn raw(self) -> u64 {
                self.0
            }

            /// Returns whether all of these bits are set.
            #[inline]
            pub const fn contains(self, bits: Self) -> bool {
                self.0 & bits.0 == bits.0
            }

            /// Returns the set with these bits set (`true`) or clear.
            #[must_use]
            #[inline]
            pub const fn with(self, bits: Self, set: bool) -> Self {
                if set { Self(self.0 | bits.0) } else { Self(self.0 & !bits.0) }
            }

            /// Returns the bits that this crate does not know.
            #[inline]
            pub const fn unknown(self) -> u64 {
                self.0 & !Self::KNOWN.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(stringify!($name))?;
                let mut set = f.debug_set();
                $(if self.contains(Self::$bit_name) { set.entry(&format_args!(stringify!($bit_name))); })*
                if self.unknown() != 0 {
                    set.entry(&format_args!("{:#x}", self.unknown()));
                }
                set.finish()
            }
        }
    };
}

features! {
    /// Features without which the image cannot be read.
    Incompatible {
        /// Refcounts may be wrong: repair before writing.
        DIRTY = 0,
        /// Some structure may be corrupt: do not write but to repair.
        CORRUPT = 1,
        /// Guest clusters are in an external data file.
        DATA_FILE = 2,
        /// Compressed clusters are not deflate; `compression_type` says what they are.
        COMPRESSION_TYPE = 3,
        /// L2 entries have 128 bits and a subcluster bitmap.
        EXTENDED_L2 = 4,
    }
}

features! {
    /// Features that can be ignored.
    Compatible {
        /// Refcounts may be written late, under the dirty bit.
        LAZY_REFCOUNTS = 0,
    }
}

features! {
    /// Features that a writer who does not know them clears.
    Autoclear {
        /// The bitmaps extension is consistent.
        BITMAPS = 0,
        /// The external data file is a raw image by itself.
        DATA_FILE_RAW = 1,
    }
}

/// Which of the feature bitmaps a [`FeatureName`] names a bit of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FeatureKind {
    /// Type 0: `incompatible_features`.
    Incompatible,
    /// Type 1: `compatible_features`.
    Compatible,
    /// Type 2: `autoclear_features`.
    Autoclear,
    /// A type that the specification does not have.
    Unknown(u8),
}

/// One entry of the feature name table.
///
/// | offset | size | field | meaning |
/// |---|---|---|---|
/// | 0 | 1 | type | 0 incompatible, 1 compatible, 2 autoclear |
/// | 1 | 1 | bit | 0 to 63 |
/// | 2 | 46 | name | padded with zeros |
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FeatureName<'a> {
    /// Which bitmap.
    pub kind: FeatureKind,
    /// Which bit of it; more than 63 names nothing.
    pub bit: u8,
    /// The name, without its padding: at most 46 bytes, UTF-8 if it was written with care.
    pub name: &'a [u8],
}

/// The feature name table, kept byte for byte.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FeatureNames(Vec<u8>);

impl FeatureNames {
    /// Length in bytes of an entry.
    pub const ENTRY_LEN: usize = 48;

    /// The names that QEMU writes into every image, for those who create one.
    pub const QEMU: &'static [(FeatureKind, u8, &'static str)] = &[
        (FeatureKind::Incompatible, 0, "dirty bit"),
        (FeatureKind::Incompatible, 1, "corrupt bit"),
        (FeatureKind::Incompatible, 2, "external data file"),
        (FeatureKind::Incompatible, 3, "compression type"),
        (FeatureKind::Incompatible, 4, "extended L2 entries"),
        (FeatureKind::Compatible, 0, "lazy refcounts"),
        (FeatureKind::Autoclear, 0, "bitmaps"),
        (FeatureKind::Autoclear, 1, "raw external data"),
    ];

    /// Makes the table from the data of its header extension. Any bytes are a table: an entry that is cut short at its end
    /// counts as if zeros followed, as in QEMU.
    pub fn from_bytes(data: Vec<u8>) -> Self {
        Self(data)
    }

    /// Makes a table of these names. Names longer than 46 bytes are cut.
    pub fn new<'a>(names: impl IntoIterator<Item = (FeatureKind, u8, &'a str)>) -> Self {
        let mut data = Vec::new();
        for (kind, bit, name) in names {
            let mut entry = [0; Self::ENTRY_LEN];
            entry[0] = match kind {
                FeatureKind::Incompatible => 0,
                FeatureKind::Compatible => 1,
                FeatureKind::Autoclear => 2,
                FeatureKind::Unknown(kind) => kind,
            };
            entry[1] = bit;
            let len = name.len().min(Self::ENTRY_LEN - 2);
            entry[2..2 + len].copy_from_slice(&name.as_bytes()[..len]);
            data.extend_from_slice(&entry);
        }
        Self(data)
    }

    /// Returns the data of the header extension.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Returns the entries in their order.
    pub fn iter(&self) -> impl Iterator<Item = FeatureName<'_>> {
        self.0.chunks(Self::ENTRY_LEN).filter(|entry| entry.len() > 2).map(|entry| {
            let name = &entry[2..];
            let len = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
            FeatureName {
                kind: match entry[0] {
                    0 => FeatureKind::Incompatible,
                    1 => FeatureKind::Compatible,
                    2 => FeatureKind::Autoclear,
                    kind => FeatureKind::Unknown(kind),
                },
                bit: entry[1],
                name: &name[..len],
            }
        })
    }
}
