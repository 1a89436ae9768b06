//! Where in an image something was found.

use std::fmt;

/// A kind and its place. Displays as "L2 entry 17 at 0x50000: " and the kind's message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Placed<K> {
    pub(super) kind: K,
    pub(super) structure: Structure,
    pub(super) index: Option<u64>,
    pub(super) offset: Option<u64>,
}

impl<K: fmt::Display> fmt::Display for Placed<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.index {
            Some(index) => write!(f, "{} {index}", self.structure.entry_name())?,
            None => f.write_str(self.structure.name())?,
        }
        if let Some(offset) = self.offset {
            write!(f, " at {offset:#x}")?;
        }
        write!(f, ": {}", self.kind)
    }
}

macro_rules! structures {
    ($($(#[$meta:meta])* $variant:ident = $name:literal, $entry:literal;)*) => {
        /// The structures of an image.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Structure {
            $($(#[$meta])* $variant,)*
        }

        impl Structure {
            /// Returns the structure's name.
            pub(crate) fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }

            /// Returns the name of one of its entries.
            fn entry_name(self) -> &'static str {
                match self {
                    $(Self::$variant => $entry,)*
                }
            }
        }
    };
}

structures! {
    Header = "header", "header field";
    HeaderExtension = "header extension", "header extension";
    L1Table = "L1 table", "L1 entry";
    L2Table = "L2 table", "L2 entry";
    RefcountTable = "refcount table", "refcount table entry";
    RefcountBlock = "refcount block", "refcount block entry";
    SnapshotTable = "snapshot table", "snapshot";
    SnapshotL1Table = "snapshot L1 table", "snapshot L1 entry";
    BitmapDirectory = "bitmap directory", "bitmap directory entry";
    BitmapTable = "bitmap table", "bitmap table entry";
    BitmapData = "bitmap data", "bitmap data";
    CryptoHeader = "crypto header", "key slot";
    CompressedCluster = "compressed cluster", "compressed cluster";
    BackingChain = "backing chain", "backing chain layer";
}

/// What a kind holds: a number or not.
pub(super) trait Value {
    /// The number, if it is one.
    fn value(&self) -> Option<u64> {
        None
    }
}

macro_rules! numbers {
    ($($number:ty),*) => {
        $(impl Value for $number {
            fn value(&self) -> Option<u64> {
                u64::try_from(*self).ok()
            }
        })*
    };
}

numbers!(u8, u16, u32, u64, usize);
impl Value for String {}
impl Value for &'static str {}

/// Defines an opaque error around an enum of kinds, with for each its code, its fields and its message, so that none can
/// be forgotten.
macro_rules! kinds {
    (
        $(#[$public_meta:meta])* pub $public:ident
        $(#[$meta:meta])* $name:ident {
            $($code:literal $variant:ident $({ $($field:ident: $type:ty),* })? => $message:literal,)*
        }
    ) => {
        $(#[$public_meta])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct $public(Box<Placed<$name>>);

        impl $public {
            /// Every code that [`Self::code`] can return.
            pub const CODES: &'static [&'static str] = &[$($code),*];

            /// Returns the name of the check that failed, in kebab case. It is stable.
            pub fn code(&self) -> &'static str {
                match self.0.kind {
                    $($name::$variant $({ $($field: _),* })? => $code,)*
                }
            }

            /// Returns the structure in which it was found: "header", "L2 table", "snapshot table"...
            pub fn structure(&self) -> &'static str {
                self.0.structure.name()
            }

            /// Returns the byte offset in the image file: of the field in the header, of the header extension, else of
            /// the table or block that holds the entry.
            pub fn offset(&self) -> Option<u64> {
                self.0.offset
            }

            /// Returns the index of the entry in its table.
            pub fn index(&self) -> Option<u64> {
                self.0.index
            }

            /// Returns the number that broke the rule, as it stands in the image, where it is one number.
            pub fn value(&self) -> Option<u64> {
                let values: &[Option<u64>] = match &self.0.kind {
                    $($name::$variant $({ $($field),* })? =>
                        &[$($(crate::error::place::Value::value($field)),*)?],)*
                };
                values.first().copied().flatten()
            }

            /// Returns the message without the place.
            pub fn reason(&self) -> String {
                self.0.kind.to_string()
            }

            pub(crate) fn new(kind: $name, structure: Structure) -> Self {
                Self(Box::new(Placed { kind, structure, index: None, offset: None }))
            }

            /// Says where: the byte offset in the image file.
            pub(crate) fn at(mut self, offset: u64) -> Self {
                self.0.offset = Some(offset);
                self
            }

            /// Says which entry of the table.
            pub(crate) fn entry(mut self, index: u64) -> Self {
                self.0.index = Some(index);
                self
            }
        }

        impl std::fmt::Display for $public {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.fmt(f)
            }
        }

        impl std::error::Error for $public {}

        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub(crate) enum $name {
            $($variant $({ $($field: $type),* })?,)*
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                match self {
                    $(Self::$variant $({ $($field),* })? => write!(f, $message),)*
                }
            }
        }
    };
}
pub(super) use kinds;
