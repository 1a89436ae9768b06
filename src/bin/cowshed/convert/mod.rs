//! `convert`: an image, or several one behind the other, as a raw file.

mod copy;
mod plan;
mod sparse;
mod target;

use std::ffi::{OsStr, OsString};

use clap::{ArgAction, ArgMatches, Command};
use cowshed::Error;
use cowshed::image::{Format, SnapshotSelector};

use crate::cli::Session;
use crate::failure::Failure;
use crate::open::{self, DiskImage, Opening};
use crate::options;
use crate::persona::Persona;
use crate::progress::Progress;
use crate::size::SIZE_MAX;

use copy::{Copy, Part};
use sparse::{SECTOR_LEN_BYTES, Sparse};
use target::{Preallocation, Target, TargetOptions};

/// The verb's name.
pub(crate) const NAME: &str = "convert";

/// The largest gap that can be asked for, in bytes.
const GAP_LEN_BYTES_MAX: u64 = 16 << 20;
/// How many zeros in a row make a gap by default, in bytes.
const GAP_LEN_BYTES_DEFAULT: u64 = 4096;
/// How many pieces are copied at once at most.
const PARALLEL_MAX: u64 = 16;
/// How many by default.
const PARALLEL_DEFAULT: u64 = 8;
/// Percent between two reports of progress.
const PROGRESS_STEP: f32 = 1.0;

/// Its options.
pub(crate) fn command() -> Command {
    let (value, flag, long_flag) = (options::value, options::flag, options::long_flag);
    Command::new(NAME)
        .about("Copy a disk, out of whatever image holds it, into a raw file")
        .arg(options::format("source-format"))
        .arg(
            value("snapshot", 'l', "source-snapshot", "SNAPSHOT").alias("snapshot").help(
                "Copy the snapshot with this id or name, or snapshot.id=ID,snapshot.name=NAME",
            ),
        )
        .arg(
            value("target-format", 'O', "target-format", "FMT")
                .help("Format of the target: raw (the default; qcow2 is not supported yet)"),
        )
        .arg(
            value("target-options", 'o', "target-options", "OPTIONS")
                .alias("target-format-options")
                .action(ArgAction::Append)
                .help("Options of the target: preallocation=off|falloc|full; 'help' lists them"),
        )
        .arg(
            flag("no-create", 'n', "no-create")
                .help("Write into the target as it is, instead of making it anew"),
        )
        .arg(
            long_flag("target-is-zero", "target-is-zero")
                .help("With -n: take the target for all zeros"),
        )
        .arg(
            value("sparse-size", 'S', "sparse-size", "SIZE").help(
                "Leave a gap where SIZE bytes in a row are zero (default: 4k; 0 leaves none)",
            ),
        )
        .arg(
            value("parallel", 'm', "parallel", "N")
                .help("Copy N pieces at once (1 to 16, default: 8)"),
        )
        .arg(
            flag("oob-writes", 'W', "oob-writes")
                .help("Accepted: pieces are always written in any order"),
        )
        .arg(
            flag("copy-range", 'C', "copy-range-offloading")
                .help("Accepted: the copy is the same without"),
        )
        .arg(
            value("rate", 'r', "rate", "RATE")
                .alias("rate-limit")
                .help("Write RATE bytes a second at most"),
        )
        .arg(
            long_flag("salvage", "salvage")
                .help("Take for zeros what cannot be read, with a warning"),
        )
        .arg(
            value("source-cache", 'T', "source-cache", "MODE")
                .help("Cache mode of the source: none reads past the page cache"),
        )
        .arg(
            value("target-cache", 't', "target-cache", "MODE")
                .help("Cache mode of the target (default: unsafe); all others flush it at the end"),
        )
        .arg(flag("compress", 'c', "compress").help("Not supported: raw files are not compressed"))
        .arg(
            value("backing", 'B', "backing", "FILE")
                .short_alias('b')
                .help("Not supported: raw files have no backing file"),
        )
        .arg(
            value("backing-format", 'F', "backing-format", "FMT")
                .help("Not supported, as --backing"),
        )
        .arg(long_flag("bitmaps", "bitmaps").help("Not supported: raw files have no bitmaps"))
        .arg(
            long_flag("skip-broken-bitmaps", "skip-broken-bitmaps")
                .help("Not supported, as --bitmaps"),
        )
        .arg(
            long_flag("target-image-opts", "target-image-opts")
                .help("Not supported: file names are file names"),
        )
        .arg(options::progress())
        .arg(options::quiet())
        .args(options::opening())
        .args(options::caches())
        .arg(options::files("SOURCE... TARGET"))
}

/// Runs it.
pub(crate) fn run(matches: &ArgMatches, session: &mut Session) -> Result<u8, Failure> {
    let sparse = sparse(matches)?;
    let parallel = options::count(matches, "parallel", "number of coroutines", 1..=PARALLEL_MAX)?;
    let rate = options::bytes(matches, "rate", "rate limit", 0..=SIZE_MAX)?;
    contradictions(matches)?;
    let target_options = target_options(matches, session)?;
    let Some(target_options) = target_options else { return Ok(0) };

    let mut names: Vec<_> =
        matches.get_many::<OsString>("files").into_iter().flatten().cloned().collect();
    let target_name = names.pop().filter(|_| !names.is_empty());
    let target_name =
        target_name.ok_or_else(|| Failure::message("Must specify image file name"))?;
    let source_cache = options::text(matches, "source-cache").unwrap_or("writeback");
    if !options::is_cache_mode(source_cache) {
        return Err(Failure::message(format!("Invalid source cache option: {source_cache}")));
    }
    let quiet = matches.get_flag("quiet");
    let mut progress = Progress::new(matches.get_flag("progress") && !quiet, PROGRESS_STEP)?;
    let opening = Opening::from_matches(matches, session.persona, "format")?
        .exclusive()
        .direct(["none", "off", "directsync"].contains(&source_cache));

    let copied = open::block_on(async {
        let sources = open_sources(&names, &opening, matches, session.persona).await?;
        not_supported(matches)?;
        let mut parts = Vec::with_capacity(sources.len());
        let mut len = 0_u64;
        for (name, image) in names.iter().zip(&sources) {
            parts.push(Part { name, image, start: len });
            len = len
                .checked_add(image.virtual_size())
                .ok_or_else(|| Failure::image(name, "", "all images together are too large"))?;
        }
        let target = Target::open(&target_name, len, &target_options, session.persona)?;
        let salvage = matches.get_flag("salvage");
        let copy = Copy {
            parts,
            len,
            target: &target,
            sparse,
            rate,
            salvage,
            quiet,
            persona: session.persona,
        };
        copy.run(
            usize::try_from(parallel.unwrap_or(PARALLEL_DEFAULT)).unwrap_or(1),
            &mut progress,
        )?;
        target.close()?;
        progress.complete()?;
        Ok(0)
    });
    progress.end()?;
    copied
}

/// The value of `-S`.
fn sparse(matches: &ArgMatches) -> Result<Sparse, Failure> {
    let bytes =
        options::bytes(matches, "sparse-size", "buffer size for sparse output", 0..=SIZE_MAX)?
            .unwrap_or(GAP_LEN_BYTES_DEFAULT);
    if bytes % SECTOR_LEN_BYTES as u64 != 0 || bytes > GAP_LEN_BYTES_MAX {
        return Err(Failure::message(format!(
            "Invalid buffer size for sparse output specified. Valid sizes are multiples of {SECTOR_LEN_BYTES} up to \
             {GAP_LEN_BYTES_MAX}. Select 0 to disable sparse detection (fully allocates output)."
        )));
    }
    // OK to narrow: at most 16 MiB.
    Ok(Sparse { sectors_min: usize::try_from(bytes).unwrap_or(0) / SECTOR_LEN_BYTES })
}

/// Options that do not go together, in `qemu-img`'s order and words.
fn contradictions(matches: &ArgMatches) -> Result<(), Failure> {
    let has = |id| matches.contains_id(id);
    let is = |id| matches.get_flag(id);
    let problem = if is("skip-broken-bitmaps") && !is("bitmaps") {
        "Use of --skip-broken-bitmaps requires --bitmaps"
    } else if is("compress") && is("copy-range") {
        "Cannot enable copy offloading when -c is used"
    } else if has("sparse-size") && is("copy-range") {
        "Cannot enable copy offloading when -S is used"
    } else if is("copy-range") && is("salvage") {
        "Cannot use copy offloading in salvaging mode"
    } else if is("target-image-opts") && !is("no-create") {
        "--target-image-opts requires use of -n flag"
    } else if is("no-create") && has("target-options") {
        "-o has no effect when skipping image creation"
    } else if is("target-is-zero") && !is("no-create") {
        "--target-is-zero requires use of -n flag"
    } else {
        return Ok(());
    };
    Err(Failure::message(problem))
}

/// How the target is made; `None` if only the list of options was asked for.
fn target_options(
    matches: &ArgMatches,
    session: &mut Session,
) -> Result<Option<TargetOptions>, Failure> {
    use std::io::Write as _;
    let cache = options::text(matches, "target-cache").unwrap_or("unsafe").to_owned();
    let mut target = TargetOptions {
        create: !matches.get_flag("no-create"),
        is_zero: matches.get_flag("target-is-zero"),
        leave_gaps: sparse(matches)?.leaves_gaps(),
        preallocation: Preallocation::Off,
        cache,
    };
    let assignments = matches.get_many::<String>("target-options").into_iter().flatten();
    for assignment in
        assignments.flat_map(|list| list.split(',')).filter(|assignment| !assignment.is_empty())
    {
        let (key, value) = assignment.split_once('=').unwrap_or((assignment, ""));
        match (key, value) {
            ("help" | "?", _) => {
                writeln!(
                    session.out,
                    "Supported options:\n  preallocation=<str>    - Preallocation mode (allowed values: off, falloc, full)"
                )?;
                return Ok(None);
            }
            ("preallocation", "off") => target.preallocation = Preallocation::Off,
            ("preallocation", "falloc") => target.preallocation = Preallocation::Allocated,
            ("preallocation", "full") => target.preallocation = Preallocation::Written,
            ("preallocation", other) => {
                return Err(Failure::message(format!("Invalid parameter '{other}'")));
            }
            // The size is that of the sources, as in qemu-img; the others are hints to the file system.
            ("size" | "nocow" | "extent_size_hint", _) => {}
            _ => return Err(Failure::message(format!("Invalid parameter '{key}'"))),
        }
    }
    Ok(Some(target))
}

/// What a raw target cannot have, said when the sources are open, as `qemu-img` does.
fn not_supported(matches: &ArgMatches) -> Result<(), Failure> {
    let problem = match options::text(matches, "target-format").unwrap_or("raw") {
        "raw" => {
            if matches.contains_id("backing") || matches.contains_id("backing-format") {
                "Backing file not supported for file format 'raw'".to_owned()
            } else if matches.get_flag("compress") {
                "Compression not supported for this file format".to_owned()
            } else if matches.get_flag("bitmaps") {
                "Format driver 'raw' does not support bitmaps".to_owned()
            } else {
                return Ok(());
            }
        }
        "qcow2" => {
            "Cannot write qcow2 images yet: only raw output (-O raw) is supported so far".to_owned()
        }
        other => format!("Unknown file format '{other}'"),
    };
    Err(Failure::message(problem))
}

/// Opens the sources, the first at the snapshot asked for.
async fn open_sources(
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
    if opening.source(name).await?.format == Format::Raw {
        let reason = match persona {
            Persona::Cowshed => "a raw image has no snapshots",
            Persona::QemuImg | Persona::QemuIo => {
                "Block format 'raw' used by device '' does not support temporarily loading internal snapshots"
            }
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
