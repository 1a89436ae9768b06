//! Where things are: the project, the cache, programs.

use std::path::{Path, PathBuf};

use crate::Result;

/// The project's root.
pub(crate) fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

/// The folder for what outlives a clone.
pub(crate) fn cache() -> Result<PathBuf> {
    if let Some(named) = std::env::var_os("COWSHED_CACHE") {
        return Ok(named.into());
    }
    let home = std::env::var_os("HOME")
        .ok_or("HOME is not set: name a folder for tools in COWSHED_CACHE")?;
    Ok(PathBuf::from(home).join(".cache").join("cowshed"))
}

/// Where cargo puts what it builds.
pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// Finds a program on `PATH`, or where Debian keeps what is for administrators.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")])
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}
