//! The qcow2 format: bytes to typed values and back.
//!
//! Everything here is a pure function of its arguments: no I/O, no async, no locks, no clock. `parse` takes bytes of the
//! image and gives a value that is valid by itself, or says which rule they break; `encode` is its inverse, and what
//! this crate does not know (unknown feature bits, header fields, header extensions, extra data) is kept and comes out
//! as it came in. Whether a value fits the rest of the image (does the table exist, is it referenced twice) is asked by
//! the engine.
//!
//! What is accepted is what QEMU accepts when it opens an image; where the specification is stricter, the stricter
//! question can be asked (`reserved_bits`), because a check reports it.
//!
//! All numbers are big-endian. Spec: qcow2 (docs/interop/qcow2.rst in QEMU's tree).

mod addr;
mod bitmap;
mod bytes;
mod extension;
pub mod feature;
mod geometry;
mod header;
mod l1;
mod l2;
pub mod limits;
mod luks;
pub mod refcount;
mod snapshot;
mod subcluster;

pub use addr::{GuestOffset, HostOffset};
pub use bitmap::{BitmapDirectory, BitmapDirectoryEntry, BitmapFlags, BitmapTableEntry};
pub use extension::{BitmapsExtension, CryptoHeader, Extension};
pub use feature::{Autoclear, Compatible, Incompatible, Version};
pub use geometry::Geometry;
pub use header::{Compression, CryptMethod, Header};
pub use l1::L1Entry;
pub use l2::{ClusterKind, CompressedCluster, L2Context, L2Entry, L2Fault};
pub use luks::{LUKS_STRIPES, LuksHeader, LuksLayout, LuksSlot};
pub use refcount::RefcountTableEntry;
pub use snapshot::{Parsed, Snapshot, SnapshotTable};
pub use subcluster::SubclusterKind;
