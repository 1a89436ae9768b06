//! A value that requests read while a writer replaces it.

use std::sync::Arc;

use crate::sync::Mutex;

/// The newest version of a value. Whoever has one keeps it while newer ones are published.
#[derive(Debug)]
pub(crate) struct Published<T: ?Sized>(Mutex<Arc<T>>);

impl<T: ?Sized> Published<T> {
    /// The first version.
    pub(crate) fn new(value: impl Into<Arc<T>>) -> Self {
        Self(Mutex::new(value.into()))
    }

    /// The newest version.
    pub(crate) fn get(&self) -> Arc<T> {
        Arc::clone(&self.0.lock())
    }

    /// Publishes a newer version.
    pub(crate) fn set(&self, value: impl Into<Arc<T>>) {
        let value = value.into();
        let old = std::mem::replace(&mut *self.0.lock(), value);
        drop(old);
    }
}
