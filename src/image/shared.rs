//! What an image may have in common with the image below it, which writes to its backing file: see [`super::below`]. Where
//! nothing is written nothing is shared.

#[cfg(feature = "write")]
mod way {
    use std::sync::Arc;

    /// What several images may have.
    pub(crate) type Shared<T> = Arc<T>;

    /// Makes it possible to share a value.
    pub(crate) fn share<T>(value: T) -> Shared<T> {
        Arc::new(value)
    }

    /// The value, to be changed, if nobody else has it.
    pub(crate) fn own<T>(shared: &mut Shared<T>) -> Option<&mut T> {
        Arc::get_mut(shared)
    }
}

#[cfg(not(feature = "write"))]
mod way {
    /// What one image has.
    pub(crate) type Shared<T> = T;

    /// The value itself.
    pub(crate) fn share<T>(value: T) -> Shared<T> {
        value
    }

    /// The value, to be changed.
    #[allow(clippy::unnecessary_wraps, reason = "as where it is shared")]
    pub(crate) fn own<T>(shared: &mut Shared<T>) -> Option<&mut T> {
        Some(shared)
    }
}

pub(crate) use way::{Shared, own, share};
