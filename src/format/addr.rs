//! Offsets: on the virtual disk and in the image file, told apart by type.

use std::fmt;

macro_rules! offset {
    ($(#[$meta:meta])* $name:ident) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(u64);

        impl $name {
            /// Makes an offset from a number of bytes.
            #[inline]
            pub const fn new(offset: u64) -> Self {
                Self(offset)
            }

            /// Returns the number of bytes.
            #[inline]
            pub const fn get(self) -> u64 {
                self.0
            }

            /// Adds a number of bytes; `None` past 2^64.
            #[inline]
            pub const fn checked_add(self, len: u64) -> Option<Self> {
                match self.0.checked_add(len) {
                    Some(offset) => Some(Self(offset)),
                    None => None,
                }
            }

            /// Returns whether the offset is a multiple of `alignment`, a power of two.
            #[inline]
            pub const fn is_aligned(self, alignment: u64) -> bool {
                self.0 & (alignment - 1) == 0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }

        impl fmt::LowerHex for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::LowerHex::fmt(&self.0, f)
            }
        }
    };
}

offset! {
    /// A byte offset on the virtual disk, as the guest sees it.
    GuestOffset
}

offset! {
    /// A byte offset in the image file, or in the external data file where an entry points there.
    HostOffset
}
