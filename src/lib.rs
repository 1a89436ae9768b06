//! cowshed: a qcow2 engine.

pub mod storage;
pub mod timer;
pub mod workers;
