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
use cowshed::inspect::partitions::{Partition, PartitionKind, Partitions, partitions};
use cowshed::inspect::{ReadAt as _, Window};

use crate::cli::Session;
use crate::escape;
use crate::failure::Failure;
use crate::open::{self, DiskImage, Opening};
use crate::options;

/// How much of a file is read at a time, in bytes.
const PIECE_LEN_BYTES: usize = 4 << 20;

/// The deepest tree that is walked: an image must not make us walk for ever.
const DEPTH_MAX: usize = 1024;

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

/// A part of a disk that may have a file system.
pub(crate) struct Volume<'a> {
    /// Its partition; without one it is the disk as a whole.
    pub(crate) partition: Option<Partition>,
    /// Its files, if it has a file system that is known and whole.
    pub(crate) files: Option<Files<'a>>,
    /// Why they cannot be read, if it has one that is known.
    pub(crate) problem: Option<String>,
}

impl Volume<'_> {
    /// The number that chooses it.
    pub(crate) fn number(&self) -> u32 {
        self.partition.as_ref().map_or(0, |partition| partition.number)
    }
}

/// Finds the volumes of a disk: itself if it has a file system or nothing else, then its partitions.
pub(crate) async fn volumes<'a>(
    name: &OsStr,
    image: &'a DiskImage,
) -> Result<(Partitions, Vec<Volume<'a>>), Failure> {
    let table = partitions(image).await.map_err(|error| failed(name, &error))?;
    let mut volumes = Vec::new();
    let whole = volume(name, Window::new(image, 0, image.len()), None).await?;
    if whole.files.is_some() || whole.problem.is_some() || table.partitions.is_empty() {
        volumes.push(whole);
    }
    for partition in &table.partitions {
        if matches!(partition.kind, PartitionKind::Mbr(0x05 | 0x0f | 0x85)) {
            continue;
        }
        let window = Window::new(image, partition.start, partition.len);
        volumes.push(volume(name, window, Some(partition.clone())).await?);
    }
    Ok((table, volumes))
}

async fn volume<'a>(
    name: &OsStr,
    window: Window<&'a DiskImage>,
    partition: Option<Partition>,
) -> Result<Volume<'a>, Failure> {
    let (files, problem) = match FileSystem::open(window).await {
        Ok(files) => (files, None),
        Err(error @ Error::Storage { .. }) => return Err(failed(name, &error)),
        Err(error) => (None, Some(open::reason(&error))),
    };
    Ok(Volume { partition, files, problem })
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
        let problem = volume
            .problem
            .unwrap_or_else(|| format!("partition {wanted} has no file system that is known"));
        return volume.files.ok_or_else(|| Failure::image(name, "", problem));
    }
    let (known, unknown): (Vec<_>, Vec<_>) =
        volumes.into_iter().partition(|volume| volume.files.is_some());
    let mut mounted: Vec<(u32, Files<'a>)> =
        known.into_iter().filter_map(|volume| Some((volume.number(), volume.files?))).collect();
    let chosen = match mounted.as_slice() {
        [] => {
            let problem = unknown.into_iter().find_map(|volume| volume.problem);
            let reason =
                problem.unwrap_or_else(|| "no file system that is known on the disk".to_owned());
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

/// A path and a name behind it.
pub(crate) fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    let mut joined = path.to_vec();
    if !joined.is_empty() && !joined.ends_with(b"/") {
        joined.push(b'/');
    }
    joined.extend_from_slice(name);
    joined
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
