//! The options of QEMU's block drivers, by name: `open -o`, `reopen -o` and `--image-opts`.

use std::time::Duration;

use cowshed::cache::CacheOptions;
use cowshed::image::{OverlapChecks, WriteOptions};

use crate::names::Names;
use crate::size::{self, SizeError};

use super::flags::Flags;
use super::number;

/// What is wrong with an option: a line, and what is said below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wrong {
    pub(super) text: String,
    pub(super) hint: Option<String>,
}

impl From<String> for Wrong {
    fn from(text: String) -> Self {
        Self { text, hint: None }
    }
}

impl From<&str> for Wrong {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

/// How zeros that a guest writes are treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DetectZeroes {
    /// As data.
    Off,
    /// As zeros.
    On,
    /// As zeros that need no space.
    Unmap,
}

/// How an image is opened, all in all.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub(super) flags: Flags,
    pub(super) names: Names,
}

/// The options that are no driver's own.
const GENERIC: [&str; 11] = [
    "auto-read-only",
    "cache.direct",
    "cache.no-flush",
    "detect-zeroes",
    "discard",
    "driver",
    "file.aio",
    "file.driver",
    "file.filename",
    "file.locking",
    "node-name",
];
/// Those of them that may only be given when an image is opened.
const FIXED: [&str; 5] = ["driver", "file.driver", "file.filename", "file.locking", "node-name"];
/// The sizes of the caches, of which not all may be given.
const CACHE_SIZES: [&str; 3] = ["cache-size", "l2-cache-size", "refcount-cache-size"];
/// Generic ones that `reopen` looks at itself.
const ACCESS: [&str; 2] = ["read-only", "force-share"];

/// The options of qcow2 that can be changed at any time.
const QCOW2: [&str; 21] = [
    "cache-clean-interval",
    "cache-size",
    "discard-no-unref",
    "l2-cache-entry-size",
    "l2-cache-size",
    "lazy-refcounts",
    "overlap-check",
    "overlap-check.active-l1",
    "overlap-check.active-l2",
    "overlap-check.bitmap-directory",
    "overlap-check.inactive-l1",
    "overlap-check.inactive-l2",
    "overlap-check.main-header",
    "overlap-check.refcount-block",
    "overlap-check.refcount-table",
    "overlap-check.snapshot-table",
    "overlap-check.template",
    "pass-discard-other",
    "pass-discard-request",
    "pass-discard-snapshot",
    "refcount-cache-size",
];

impl Settings {
    /// Whether [`Flags::read_only`] or the option says so.
    ///
    /// # Errors
    /// The option has no such value.
    pub(super) fn read_only(&self) -> Result<bool, Wrong> {
        Ok(self.flag("read-only")?.unwrap_or(self.flags.read_only))
    }

    /// The generic options.
    ///
    /// # Errors
    /// One has no such value, or two contradict each other.
    pub(super) fn generic(&self) -> Result<Flags, Wrong> {
        let mut flags = self.flags.clone();
        flags.read_only = self.read_only()?;
        flags.direct = self.flag("cache.direct")?.unwrap_or(flags.direct);
        flags.no_flush = self.flag("cache.no-flush")?.unwrap_or(flags.no_flush);
        flags.force_share = self.flag("force-share")?.unwrap_or(flags.force_share);
        self.flag("auto-read-only")?;
        if self.names.get("discard").is_some_and(|mode| !flags.discard(mode)) {
            return Err("Invalid discard option".into());
        }
        if self.detect_zeroes()? == DetectZeroes::Unmap && !flags.unmap {
            let text = "setting detect-zeroes to unmap is not allowed without setting discard operation to unmap";
            return Err(text.into());
        }
        if flags.force_share && !flags.read_only {
            return Err("force-share=on can only be used with read-only images".into());
        }
        flags.native |= self.names.get("file.aio").is_some_and(|mode| mode == "native");
        if flags.native && !flags.direct {
            let text = "aio=native was specified, but it requires cache.direct=on, which was not specified.";
            return Err(text.into());
        }
        Ok(flags)
    }

    /// What the option `detect-zeroes` says.
    ///
    /// # Errors
    /// It has no such value.
    pub(super) fn detect_zeroes(&self) -> Result<DetectZeroes, Wrong> {
        match self.names.get("detect-zeroes").map(String::as_str) {
            None | Some("off") => Ok(DetectZeroes::Off),
            Some("on") => Ok(DetectZeroes::On),
            Some("unmap") => Ok(DetectZeroes::Unmap),
            Some(other) => Err(format!("invalid parameter value: {other}").into()),
        }
    }

    /// The sizes of the caches.
    ///
    /// # Errors
    /// One is no size. Whether they go together is the engine's to say.
    pub(super) fn caches(&self) -> Result<CacheOptions, Wrong> {
        let mut caches = CacheOptions::default();
        caches.cache_size = self.size("cache-size")?;
        caches.l2_cache_size = self.size("l2-cache-size")?;
        caches.l2_cache_entry_size = self.size("l2-cache-entry-size")?;
        caches.refcount_cache_size = self.size("refcount-cache-size")?;
        caches.cache_clean_interval = self.interval()?;
        Ok(caches)
    }

    /// The options of writing to a qcow2 image.
    ///
    /// # Errors
    /// One has no such value.
    pub(super) fn write(&self, flags: &Flags) -> Result<WriteOptions, Wrong> {
        let mut write = WriteOptions::default();
        write.lazy_refcounts = self.flag("lazy-refcounts")?;
        write.overlap_checks = self.overlap_checks()?;
        write.pass_discard_request = self.flag("pass-discard-request")?.unwrap_or(flags.unmap);
        write.pass_discard_snapshot = self.flag("pass-discard-snapshot")?.unwrap_or(true);
        write.pass_discard_other = self.flag("pass-discard-other")?.unwrap_or(false);
        write.discard_no_unref = self.flag("discard-no-unref")?.unwrap_or(false);
        write.write_through = flags.write_through && !flags.no_flush;
        Ok(write)
    }

    /// These settings with `changes` on top of them, for an image whose driver is `driver`, and whose backing file's is
    /// `backing_driver`.
    ///
    /// # Errors
    /// One of the changes can only be made by opening the image anew.
    pub(super) fn joined(
        &self,
        changes: &Names,
        driver: &str,
        backing_driver: Option<&str>,
    ) -> Result<Self, Wrong> {
        let mut joined = self.clone();
        if changes.keys().any(|name| name == "overlap-check" || name == "overlap-check.template") {
            joined.names.retain(|name, _| !name.starts_with("overlap-check"));
        }
        // The caches have the sizes that are said last, together.
        if CACHE_SIZES.iter().any(|name| changes.contains_key(*name)) {
            joined.names.retain(|name, _| !CACHE_SIZES.contains(&name.as_str()));
        }
        for (name, value) in changes {
            // What lies below the format has names of its own for the same.
            let last = name.rsplit_once('.').map_or(name.as_str(), |(_, last)| last);
            let is_fixed = FIXED.contains(&name.as_str())
                || name == "force-share"
                || ["driver", "filename", "node-name"].contains(&last);
            let is_known = GENERIC.contains(&name.as_str()) || name == "read-only";
            let old = match name.as_str() {
                "driver" => Some(driver),
                "file.driver" => Some("file"),
                "backing.driver" if !self.names.contains_key(name) => backing_driver,
                _ => self.names.get(name).map(String::as_str),
            };
            let is_changeable = match is_fixed {
                true => false,
                false => is_known || driver == "qcow2" && QCOW2.contains(&name.as_str()),
            };
            if !is_changeable && old != Some(value) {
                let name = name.strip_prefix("file.").unwrap_or(name);
                return Err(format!(
                    "Cannot change the option '{}'",
                    if is_fixed { last } else { name }
                )
                .into());
            }
            joined.names.insert(name.clone(), value.clone());
        }
        Ok(joined)
    }

    fn flag(&self, name: &str) -> Result<Option<bool>, Wrong> {
        match self.names.get(name).map(String::as_str) {
            None => Ok(None),
            Some("on" | "yes" | "true" | "y") => Ok(Some(true)),
            Some("off" | "no" | "false" | "n") => Ok(Some(false)),
            Some(_) => Err(format!("Parameter '{name}' expects 'on' or 'off'").into()),
        }
    }

    fn size(&self, name: &str) -> Result<Option<u64>, Wrong> {
        let Some(value) = self.names.get(name) else { return Ok(None) };
        match size::parse(value) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(SizeError::Range) => {
                Err(format!("Value '{value}' is out of range for parameter '{name}'").into())
            }
            Err(SizeError::Syntax) => Err(Wrong {
                text: format!("Parameter '{name}' expects a non-negative number below 2^64"),
                hint: Some(
                    "Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\nand exabytes, respectively."
                        .to_owned(),
                ),
            }),
        }
    }

    fn interval(&self) -> Result<Option<Duration>, Wrong> {
        let name = "cache-clean-interval";
        let Some(value) = self.names.get(name) else { return Ok(None) };
        match number::integer(value) {
            None => Err(format!("Parameter '{name}' expects a number").into()),
            Some(i64::MAX) if value.trim() != "9223372036854775807" => {
                Err(format!("Value '{value}' is too large for parameter '{name}'").into())
            }
            Some(seconds) => match u32::try_from(seconds) {
                Ok(seconds) => Ok(Some(Duration::from_secs(seconds.into()))),
                Err(_) => Err("Cache clean interval too big".into()),
            },
        }
    }

    fn overlap_checks(&self) -> Result<OverlapChecks, Wrong> {
        let mut options = Vec::new();
        for (name, value) in &self.names {
            match name.as_str() {
                "overlap-check" | "overlap-check.template" => options.push((&**name, &**value)),
                _ if name.starts_with("overlap-check.") => {
                    if let Some(on) = self.flag(name)? {
                        options.push((&**name, if on { "on" } else { "off" }));
                    }
                }
                _ => {}
            }
        }
        OverlapChecks::parse(options).map_err(|error| crate::open::reason(&error).into())
    }
}

/// Says which of the options no driver knows; `driver` is that of the image, and what says where it is has been taken out.
///
/// # Errors
/// One is unknown.
pub(super) fn known(names: &Names, driver: &str) -> Result<(), Wrong> {
    let is_known = |name: &str| {
        (driver == "qcow2" && QCOW2.contains(&name))
            || GENERIC.contains(&name)
            || ACCESS.contains(&name)
    };
    match names.keys().find(|name| !is_known(name)) {
        Some(name) => {
            Err(format!("Block format '{driver}' does not support the option '{name}'").into())
        }
        None => Ok(()),
    }
}
