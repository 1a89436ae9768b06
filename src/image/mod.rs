//! The engine: a disk made of layers, read through caches of their metadata.

mod detect;
mod gate;

pub use detect::detect;
pub use gate::{Answer, Format, Gate, Identity, Reference, ReferenceKind, RefuseAll, Source};
