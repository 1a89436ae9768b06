//! cowshed: a qcow2 engine.

pub mod cache;
pub mod error;
pub mod format;
pub mod image;
pub mod rt;
pub mod storage;
mod sync;
pub mod timer;
pub mod workers;

pub use error::{Error, Result};
