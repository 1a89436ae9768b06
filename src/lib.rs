//! cowshed: a qcow2 engine.

pub mod error;
pub mod format;
pub mod image;
pub mod storage;
pub mod timer;
pub mod workers;

pub use error::{Error, Result};
