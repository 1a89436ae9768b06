//! `convert`: an image, or several one behind the other, as a raw file, a qcow2 image or a LUKS volume.

mod copy;
mod image_target;
mod order;
mod plan;
mod raw_target;
mod source;
mod sparse;
mod target;

use std::ffi::OsString;
use std::io::Write as _;
use std::path::PathBuf;

use clap::{ArgAction, ArgMatches, Command};
use cowshed::format::{BitmapDirectoryEntry, BitmapFlags, Version};

use crate::cli::Session;
use crate::escape;
use crate::failure::{Failure, warn};
use crate::format_options::{self, FormatOptions, OptionError};
use crate::image_format::ImageFormat;
use crate::names;
use crate::open::{self, DiskImage, Opening};
use crate::options;
use crate::persona::Persona;
use crate::progress::Progress;
use crate::size::SIZE_MAX;

use copy::{Copy, Part};
use sparse::{SECTOR_LEN_BYTES, Sparse};
use target::{Target, TargetOptions};

pub(crate) use source::{Wanted, open_snapshot};

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
        .about("Copy a disk, out of whatever image holds it, into a raw file, a qcow2 image or a LUKS volume")
        .arg(options::format("source-format"))
        .arg(
            value("snapshot", 'l', "source-snapshot", "SNAPSHOT").alias("snapshot").help(
                "Copy the snapshot with this id or name, or snapshot.id=ID,snapshot.name=NAME",
            ),
        )
        .arg(
            value("target-format", 'O', "target-format", "FMT")
                .help("Format of the target: raw (the default), qcow2 or luks"),
        )
        .arg(
            value("target-options", 'o', "target-options", "OPTIONS")
                .alias("target-format-options")
                .action(ArgAction::Append)
                .help("Options of the target: NAME=VALUE,NAME=VALUE...; 'help' lists them"),
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
                .help("Write pieces in whatever order they come: faster, and they lie so in a qcow2 image"),
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
        .arg(flag("compress", 'c', "compress").help("Compress the clusters of a qcow2 image"))
        .arg(
            value("backing", 'B', "backing", "FILE").help(
                "Let the target have the backing file FILE, and leave out what the source has in its own",
            ),
        )
        .arg(
            value("backing-format", 'F', "backing-format", "FMT")
                .help("Format of the backing file; must be given with one"),
        )
        .arg(
            long_flag("bitmaps", "bitmaps")
                .help("Copy persistent bitmaps too, into a qcow2 image"),
        )
        .arg(
            long_flag("skip-broken-bitmaps", "skip-broken-bitmaps")
                .help("With --bitmaps: leave out those that are inconsistent, with a warning"),
        )
        .arg(
            long_flag("target-image-opts", "target-image-opts")
                .help("Take the target's name for options of it, as --image-opts does for the source"),
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

    let mut names: Vec<_> =
        matches.get_many::<OsString>("files").into_iter().flatten().cloned().collect();
    let target_name = names.pop().filter(|_| !names.is_empty());
    let lists = matches.get_many::<String>("target-options").into_iter().flatten();
    let list = format_options::join(lists).map_err(|error| Failure::message(error.message))?;
    let format_name = options::text(matches, "target-format").unwrap_or("raw");
    let unknown = || Failure::message(format!("Unknown file format '{format_name}'"));
    let format = ImageFormat::from_name(format_name);
    if list.as_deref().is_some_and(format_options::asks_for_help) {
        let help = format_options::help(format.ok_or_else(unknown)?, target_name.is_some());
        write!(session.out, "{help}")?;
        return Ok(0);
    }
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
        let sources = source::open_sources(&names, &opening, matches, session.persona).await?;
        let mut parts = Vec::with_capacity(sources.len());
        let mut len = 0_u64;
        for (name, image) in names.iter().zip(&sources) {
            parts.push(Part { name, image, start: len });
            len = len
                .checked_add(image.virtual_size())
                .ok_or_else(|| Failure::image(name, "", "all images together are too large"))?;
        }
        let (mut format, mut target_name) = (format, target_name);
        let target_image_opts = matches.get_flag("target-image-opts");
        if target_image_opts {
            let names = names::parse(&target_name.to_string_lossy()).0;
            let driver = names.get("driver").map_or("raw", String::as_str);
            format = ImageFormat::from_name(driver);
            if let (Some(ImageFormat::Raw), Some(file)) = (format, names.get("file.filename")) {
                target_name = file.into();
            }
        }
        let format = format.ok_or_else(unknown)?;
        let format_options = format_options(matches, format, list.as_deref(), len)?;
        let backing =
            format_options.given("backing_file").or_else(|| options::text(matches, "backing"));
        what_cannot_be(matches, &format_options, backing, &sources, format)?;
        let bitmaps = match matches.get_flag("bitmaps") {
            true => bitmaps_to_copy(&sources[0], &names[0], matches, session.persona).await?,
            false => Vec::new(),
        };
        let target_options = TargetOptions {
            create: !matches.get_flag("no-create"),
            is_zero: matches.get_flag("target-is-zero"),
            leave_gaps: sparse.leaves_gaps(),
            compress: matches.get_flag("compress"),
            format: &format_options,
            backing,
            cache: options::text(matches, "target-cache").unwrap_or("unsafe"),
            allow: matches.get_many::<PathBuf>("allow").into_iter().flatten().cloned().collect(),
            secrets: opening.secrets(),
            image_opts: target_image_opts,
            persona: session.persona,
        };
        let target = Target::open(&target_name, format, len, &target_options).await?;
        if matches.get_flag("bitmaps") {
            target.must_have_bitmaps()?;
        }
        let copy = Copy {
            parts,
            len,
            target: &target,
            target_has_backing: backing.is_some(),
            any_order: matches.get_flag("oob-writes"),
            sparse,
            rate,
            salvage: matches.get_flag("salvage"),
            quiet,
            persona: session.persona,
        };
        copy.run(
            usize::try_from(parallel.unwrap_or(PARALLEL_DEFAULT)).unwrap_or(1),
            &mut progress,
        )?;
        // QEMU goes from the last to the first up to one that cannot be copied; those that are copied are in the order of the
        // source all the same.
        let mut first = 0;
        for (index, bitmap) in bitmaps.iter().enumerate() {
            if target.refuses_bitmap(bitmap, len).await {
                first = index;
            }
        }
        let (refused, copied) = bitmaps[first..].split_at(usize::from(!bitmaps.is_empty()));
        let order = match refused.first() {
            Some(bitmap) if target.refuses_bitmap(bitmap, len).await => [copied, refused],
            _ => [refused, copied],
        };
        for bitmap in order.concat() {
            target.copy_bitmap(&sources[0], &bitmap).await?;
        }
        target.close().await?;
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

/// The options of the target's format, with what stands beside them on the command line, for a disk of `len` bytes.
fn format_options(
    matches: &ArgMatches,
    format: ImageFormat,
    list: Option<&str>,
    len: u64,
) -> Result<FormatOptions, Failure> {
    let wrong = |error: OptionError| {
        Failure::message(error.message).with_hint(error.hint.map(str::to_owned))
    };
    let mut options = FormatOptions::parse(format, list).map_err(wrong)?;
    options.set("size", len.to_string()).map_err(wrong)?;
    if matches.get_flag("no-create") {
        return Ok(options);
    }
    for (id, option, what) in [
        ("backing", "backing_file", "Backing file"),
        ("backing-format", "backing_fmt", "Backing file format"),
    ] {
        let Some(value) = options::text(matches, id) else { continue };
        options.set(option, value.to_owned()).map_err(|_| {
            Failure::message(format!("{what} not supported for file format '{}'", format.name()))
        })?;
    }
    Ok(options)
}

/// What these sources and this target cannot have, said when the sources are open, as `qemu-img` does.
fn what_cannot_be(
    matches: &ArgMatches,
    format_options: &FormatOptions,
    backing: Option<&str>,
    sources: &[DiskImage],
    format: ImageFormat,
) -> Result<(), Failure> {
    let (is, given) = (|id| matches.get_flag(id), |name| format_options.given(name));
    let (compress, bitmaps) = (is("compress"), is("bitmaps"));
    let is_encrypted = given("encryption").is_some_and(|value| value != "off")
        || given("encrypt.format").is_some();
    let problem = if is("target-is-zero") && backing.is_some() {
        "Cannot use --target-is-zero when the destination image has a backing file"
    } else if sources.len() > 1 && backing.is_some() {
        "Having a backing file for the target makes no sense when concatenating multiple input images"
    } else if given("backing_file").is_some() && given("backing_fmt").is_none() {
        "Use of backing file requires explicit backing format"
    } else if compress && format != ImageFormat::Qcow2 {
        "Compression not supported for this file format"
    } else if compress && is_encrypted {
        "Compression and encryption not supported at the same time"
    } else if compress && given("preallocation").is_some_and(|mode| mode != "off") {
        "Compression and preallocation not supported at the same time"
    } else if bitmaps && sources.len() > 1 {
        "Copying bitmaps only possible with single source"
    } else if bitmaps && !sources.iter().all(can_have_bitmaps) {
        "Source lacks bitmap support"
    } else if bitmaps && format != ImageFormat::Qcow2 {
        let name = format.name();
        return Err(Failure::message(format!("Format driver '{name}' does not support bitmaps")));
    } else {
        return Ok(());
    };
    Err(Failure::message(problem))
}

fn can_have_bitmaps(image: &DiskImage) -> bool {
    image.header().is_some_and(|header| header.version == Version::V3)
}

/// The bitmaps of the source that the target is to have.
async fn bitmaps_to_copy(
    image: &DiskImage,
    name: &OsString,
    matches: &ArgMatches,
    persona: Persona,
) -> Result<Vec<BitmapDirectoryEntry>, Failure> {
    let loaded = image.load_bitmaps().await;
    let mut bitmaps = loaded.map_err(|error| Failure::open(name, open::reason(&error)))?;
    let broken: Vec<_> = bitmaps
        .extract_if(.., |bitmap| bitmap.flags.contains(BitmapFlags::IN_USE))
        .map(|bitmap| escape::terminal(&bitmap.name))
        .collect();
    if !matches.get_flag("skip-broken-bitmaps")
        && let Some(bitmap) = broken.last()
    {
        let advice = "Try --skip-broken-bitmaps, or use 'qemu-img bitmap --remove' to delete it";
        return Err(Failure::message(format!("Cannot copy inconsistent bitmap '{bitmap}'"))
            .with_hint((persona != Persona::Cowshed).then(|| advice.to_owned())));
    }
    for bitmap in broken.iter().rev() {
        warn(&format!("{}: warning: Skipping inconsistent bitmap '{bitmap}'", persona.name()));
    }
    Ok(bitmaps)
}
