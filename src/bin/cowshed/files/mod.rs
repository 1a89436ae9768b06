//! The verbs that look at the files on a disk, and what they share: finding its volumes and choosing one.

pub(crate) mod cat;
pub(crate) mod disk;
pub(crate) mod find;
pub(crate) mod ls;
pub(crate) mod os;
pub(crate) mod tar;

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;

use clap::{Arg, ArgMatches};
use cowshed::Error;
use cowshed::inspect::files::{Entry, FileSystem, system};
use cowshed::inspect::partitions::Partitions;
use cowshed::inspect::{self, Window};

use crate::cli::Session;
use crate::escape;
use crate::failure::Failure;
use crate::open::{self, DiskImage, Opening};
use crate::options;

/// How much of a file is read at a time, in bytes.
const PIECE_LEN_BYTES: usize = 4 << 20;

/// The files on a volume of an image.
pub(crate) type Files<'a> = FileSystem<Window<&'a DiskImage>>;

/// The options of every verb here, but for those of its own.
pub(crate) fn arguments(files: &'static str) -> Vec<Arg> {
    let mut arguments = vec![
        options::format("format"),
        options::value("snapshot", 'l', "snapshot", "SNAPSHOT")
            .help("Look at the snapshot with this id or name"),
    ];
    arguments.extend(options::opening());
    arguments.extend(options::caches());
    arguments.push(options::files(files));
    arguments
}

/// The option that chooses a volume.
pub(crate) fn partition_argument() -> Arg {
    options::value("partition", 'p', "partition", "N").help(
        "Look at partition N, or at the disk as a whole with 0; without it at the one with an operating system, or the \
         only one with a file system",
    )
}

/// The image that the first file name names, and the names behind it.
pub(crate) fn image_and_paths(
    verb: &'static str,
    matches: &ArgMatches,
    session: &Session,
) -> Result<(OsString, Vec<OsString>, Opening), Failure> {
    let mut names = matches.get_many::<OsString>("files").into_iter().flatten().cloned();
    let image =
        names.next().ok_or_else(|| Failure::usage(Some(verb), "Expecting an image file name"))?;
    let opening =
        Opening::from_matches(matches, session.persona, "format")?.at_snapshot(matches, "snapshot");
    Ok((image, names.collect(), opening))
}

/// The image that the one file name names.
pub(crate) fn image_alone(
    verb: &'static str,
    matches: &ArgMatches,
    session: &Session,
) -> Result<(OsString, Opening), Failure> {
    match image_and_paths(verb, matches, session)? {
        (image, paths, opening) if paths.is_empty() => Ok((image, opening)),
        _ => Err(Failure::usage(Some(verb), "Expecting one image file name")),
    }
}

/// The image that the first file name names, and the path behind it: the root folder if there is none.
pub(crate) fn image_and_path(
    verb: &'static str,
    matches: &ArgMatches,
    session: &Session,
) -> Result<(OsString, OsString, Opening), Failure> {
    let (image, paths, opening) = image_and_paths(verb, matches, session)?;
    let mut paths = paths.into_iter();
    match (paths.next(), paths.next()) {
        (None, _) => Ok((image, OsString::from("/"), opening)),
        (Some(path), None) => Ok((image, path, opening)),
        _ => Err(Failure::usage(Some(verb), "Expecting one path")),
    }
}

/// A volume of an image.
pub(crate) type Volume<'a> = inspect::Volume<&'a DiskImage>;

/// Finds the volumes of a disk, or fails in words.
pub(crate) async fn volumes<'a>(
    name: &OsStr,
    image: &'a DiskImage,
) -> Result<(Partitions, Vec<Volume<'a>>), Failure> {
    inspect::volumes(image).await.map_err(|error| failed(name, &error))
}

/// Chooses the volume that `--partition` says, or else the disk as a whole if it has a file system, the one with an
/// operating system, or the only one with files.
pub(crate) async fn choose<'a>(
    name: &OsStr,
    image: &'a DiskImage,
    matches: &ArgMatches,
) -> Result<Files<'a>, Failure> {
    let wanted = options::count(matches, "partition", "partition number", 0..=u32::MAX.into())?;
    let (_, volumes) = volumes(name, image).await?;
    if let Some(wanted) = wanted {
        let volume = volumes
            .into_iter()
            .find(|volume| u64::from(volume.number()) == wanted)
            .ok_or_else(|| Failure::image(name, "", format!("there is no partition {wanted}")))?;
        let problem = volume.problem.as_ref().map_or_else(
            || match volume.foreign {
                Some(foreign) => format!("partition {wanted} has {foreign}, which cannot be read"),
                None => format!("partition {wanted} has no file system that is known"),
            },
            open::reason,
        );
        return volume.files.ok_or_else(|| Failure::image(name, "", problem));
    }
    let (known, unknown): (Vec<_>, Vec<_>) =
        volumes.into_iter().partition(|volume| volume.files.is_some());
    let mut mounted: Vec<(u32, Files<'a>)> =
        known.into_iter().filter_map(|volume| Some((volume.number(), volume.files?))).collect();
    let chosen = match mounted.as_slice() {
        [] => {
            let problem = unknown.iter().find_map(|volume| volume.problem.as_ref());
            let foreign: Vec<_> = unknown.iter().filter_map(|volume| volume.foreign).collect();
            let reason = match (problem, foreign.as_slice()) {
                (Some(problem), _) => open::reason(problem),
                (None, []) => "no file system that is known on the disk".to_owned(),
                (None, foreign) => {
                    format!("the disk has {}, which cannot be read", foreign.join(", "))
                }
            };
            return Err(Failure::image(name, "", reason));
        }
        [(0, _), ..] | [_] => 0,
        _ => {
            let mut roots = Vec::new();
            for (index, (_, files)) in mounted.iter().enumerate() {
                if system::system(files).await.map_err(|error| failed(name, &error))?.is_some() {
                    roots.push(index);
                }
            }
            match roots.as_slice() {
                [root] => *root,
                _ => {
                    let list: Vec<_> = mounted
                        .iter()
                        .map(|(number, files)| format!("{number} ({})", files.kind()))
                        .collect();
                    let reason = format!(
                        "several partitions have files: {}; choose one with --partition",
                        list.join(", ")
                    );
                    return Err(Failure::image(name, "", reason));
                }
            }
        }
    };
    Ok(mounted.swap_remove(chosen).1)
}

/// Finds what a path names, or fails in words.
pub(crate) async fn find(
    name: &OsStr,
    files: &Files<'_>,
    path: &OsStr,
    follow: bool,
) -> Result<Entry, Failure> {
    files.find(path.as_bytes(), follow).await.map_err(|error| at(name, path.as_bytes(), &error))
}

/// What is in a folder, in the order of the names.
pub(crate) async fn sorted(
    name: &OsStr,
    files: &Files<'_>,
    folder: &Entry,
    path: &[u8],
) -> Result<Vec<Entry>, Failure> {
    let mut entries = files.read_dir(folder).await.map_err(|error| at(name, path, &error))?;
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}

/// The failure of a path within an image.
pub(crate) fn at(name: &OsStr, path: &[u8], error: &Error) -> Failure {
    let reason = match error {
        Error::NotFound { .. } => "no such file or folder".to_owned(),
        _ => open::reason(error),
    };
    Failure::image(name, "", format!("'{}': {reason}", escape::terminal(path)))
}

/// The failure of an image.
pub(crate) fn failed(name: &OsStr, error: &Error) -> Failure {
    Failure::image(name, "", open::reason(error))
}
