//! The sources of a copy: images, the first of them at a snapshot if one is asked for.

use std::ffi::{OsStr, OsString};

use clap::ArgMatches;
use cowshed::Error;
use cowshed::image::{Format, SnapshotSelector};

use crate::failure::Failure;
use crate::open::{self, DiskImage, Opening};
use crate::options;
use crate::persona::Persona;

/// Opens the sources, the first at the snapshot asked for.
///
/// # Errors
/// One cannot be opened, or there is no such snapshot.
pub(super) async fn open_sources(
    names: &[OsString],
    opening: &Opening,
    matches: &ArgMatches,
    persona: Persona,
) -> Result<Vec<DiskImage>, Failure> {
    let snapshot = options::text(matches, "snapshot").map(Wanted::parse).transpose()?;
    if names.len() > 1 && matches!(snapshot, Some(Wanted::IdOrName(_))) {
        return Err(Failure::message("No support for concatenating multiple snapshot"));
    }
    let mut images = Vec::with_capacity(names.len());
    for (index, name) in names.iter().enumerate() {
        let image = match &snapshot {
            Some(wanted) if index == 0 => open_snapshot(name, opening, wanted, persona).await?,
            _ => opening.open(name).await?,
        };
        images.push(image);
    }
    Ok(images)
}

/// Opens an image at the snapshot that `-l` says.
///
/// # Errors
/// It cannot be opened, or there is no such snapshot.
pub(crate) async fn open_snapshot(
    name: &OsStr,
    opening: &Opening,
    wanted: &Wanted,
    persona: Persona,
) -> Result<DiskImage, Failure> {
    let source = opening.source(name).await?;
    if source.format == Format::Raw {
        let driver = source.storage.format_name(source.format);
        let reason = match persona {
            Persona::Cowshed => "a raw image has no snapshots".to_owned(),
            Persona::QemuImg | Persona::QemuIo => format!(
                "Block format '{driver}' used by device '' does not support temporarily loading internal snapshots"
            ),
        };
        return Err(Failure::image(name, "Failed to load snapshot", reason));
    }
    let (selector, id_and_name) = match wanted {
        Wanted::IdOrName(word) => (SnapshotSelector::IdOrName(word.clone().into_bytes()), None),
        Wanted::Parts { id: Some(id), name: None } => {
            (SnapshotSelector::Id(id.clone().into_bytes()), None)
        }
        Wanted::Parts { id: None, name: Some(name) } => {
            (SnapshotSelector::Name(name.clone().into_bytes()), None)
        }
        Wanted::Parts { id: Some(id), name: Some(name) } => {
            (SnapshotSelector::Id(id.clone().into_bytes()), Some((id.as_bytes(), name.as_bytes())))
        }
        Wanted::Parts { id: None, name: None } => return opening.open(name).await,
    };
    let missing = |shown: String| {
        let reason = match persona {
            Persona::Cowshed => shown,
            Persona::QemuImg | Persona::QemuIo => "Can't find snapshot".to_owned(),
        };
        Failure::image(name, "Failed to load snapshot", reason)
    };
    let image = match opening.try_open(name, Some(selector)).await? {
        Ok(image) => image,
        Err(error @ Error::NotFound { .. }) => return Err(missing(error.to_string())),
        Err(error) => return Err(Failure::open(name, open::reason(&error))),
    };
    if let Some((id, snapshot_name)) = id_and_name {
        let found =
            image.snapshots().iter().any(|found| found.id == id && found.name == snapshot_name);
        if !found {
            return Err(missing("there is no snapshot with this id and this name".to_owned()));
        }
    }
    Ok(image)
}

/// Which snapshot `-l` says.
pub(crate) enum Wanted {
    /// One with this id, or else with this name.
    IdOrName(String),
    /// One with this id and this name, as far as they are given.
    Parts { id: Option<String>, name: Option<String> },
}

impl Wanted {
    /// The value of `-l`.
    ///
    /// # Errors
    /// It says something else.
    pub(crate) fn parse(text: &str) -> Result<Self, Failure> {
        if !text.starts_with("snapshot.") {
            return Ok(Self::IdOrName(text.to_owned()));
        }
        let (mut id, mut name) = (None, None);
        for assignment in text.split(',') {
            match assignment.split_once('=') {
                Some(("snapshot.id", value)) => id = Some(value.to_owned()),
                Some(("snapshot.name", value)) => name = Some(value.to_owned()),
                _ => {
                    return Err(Failure::message(format!(
                        "Failed in parsing snapshot param '{text}'"
                    )));
                }
            }
        }
        Ok(Self::Parts { id, name })
    }
}
