//! `measure`: how much space a new image will need.

use std::io::Write as _;

use clap::{ArgAction, ArgMatches, Command};
use cowshed::format::{BitmapDirectoryEntry, Version};
use cowshed::image::{CreateOptions, ExtentKind};

use crate::cli::Session;
use crate::convert::{Wanted, open_snapshot};
use crate::create::image_size;
use crate::encryption;
use crate::failure::Failure;
use crate::format_options::{self, FormatOptions, OptionError};
use crate::image_format::ImageFormat;
use crate::json::Json;
use crate::open::{self, DiskImage, Opening};
use crate::options::{self, Output};
use crate::persona::Persona;
use crate::secret::Secrets;

/// The verb's name.
pub(crate) const NAME: &str = "measure";

/// Disks have whole sectors.
const SECTOR_LEN_BYTES: u64 = 512;
/// Length of an entry of a bitmap directory without the bitmap's name, in bytes.
const BITMAP_ENTRY_LEN_BYTES: u64 = 24;

/// Its options.
pub(crate) fn command() -> Command {
    let value = options::value;
    Command::new(NAME)
        .about("Say how much space a new image needs, for a size or for the data of an image")
        .arg(options::format("source-format").alias("format"))
        .arg(
            value("snapshot", 'l', "snapshot", "SNAPSHOT").help(
                "Take the snapshot with this id or name, or snapshot.id=ID,snapshot.name=NAME",
            ),
        )
        .arg(
            value("target-format", 'O', "target-format", "FMT")
                .help("Format of the new image: raw (the default), qcow2 or luks"),
        )
        .arg(
            value("options", 'o', "options", "OPTIONS")
                .alias("target-format-options")
                .action(ArgAction::Append)
                .help("Options of the new image, as for create"),
        )
        .arg(value("size", 's', "size", "SIZE").help("Size of the disk, instead of an image"))
        .arg(options::output())
        .args(options::opening())
        .args(options::caches())
        .arg(options::files("FILE"))
}

/// Runs it.
pub(crate) fn run(matches: &ArgMatches, session: &mut Session) -> Result<u8, Failure> {
    let lists = matches.get_many::<String>("options").into_iter().flatten();
    let list = format_options::join(lists).map_err(|error| Failure::message(error.message))?;
    let output = Output::from_matches(NAME, matches)?;
    let size = options::text(matches, "size");
    let size = size.map(|text| image_size(text.as_ref())).transpose()?;
    let mut files = matches.get_many::<std::ffi::OsString>("files").into_iter().flatten();
    let name = files.next();
    let has_source_options = ["format", "snapshot"].into_iter().any(|id| matches.contains_id(id));
    let problem = if files.next().is_some() {
        "At most one filename argument is allowed."
    } else if name.is_none() && (has_source_options || matches.get_flag("image-opts")) {
        "--image-opts, -f, and -l require a filename argument."
    } else if name.is_some() && size.is_some() {
        "--size N cannot be used together with a filename."
    } else if name.is_none() && size.is_none() {
        "Either --size N or one filename must be specified."
    } else {
        ""
    };
    if !problem.is_empty() {
        return Err(Failure::message(problem));
    }
    let opening = Opening::from_matches(matches, session.persona, "format")?;

    open::block_on(async {
        let image = match name {
            Some(name) => Some(match options::text(matches, "snapshot").map(Wanted::parse) {
                None => opening.open(name).await?,
                Some(wanted) => open_snapshot(name, &opening, &wanted?, session.persona).await?,
            }),
            None => None,
        };
        let target_name = options::text(matches, "target-format").unwrap_or("raw");
        let target = ImageFormat::from_name(target_name)
            .ok_or_else(|| Failure::message(format!("Unknown file format '{target_name}'")))?;
        let mut options = FormatOptions::parse(target, list.as_deref())
            .map_err(|error| wrong_options(error, target, session.persona))?;
        let size = match (&image, size) {
            (Some(image), _) => image.virtual_size().next_multiple_of(SECTOR_LEN_BYTES),
            (None, size) => size.unwrap_or_default(),
        };
        options.set("size", size.to_string()).map_err(|error| Failure::message(error.message))?;
        let measured = match target {
            ImageFormat::Raw => {
                let size = size.next_multiple_of(SECTOR_LEN_BYTES);
                Measured { required: size, fully_allocated: size, bitmaps: None }
            }
            ImageFormat::Luks => measure_volume(&options, size, opening.secrets())?,
            ImageFormat::Qcow2 => measure(&options, image.as_ref(), opening.secrets()).await?,
        };
        measured.print(output, session)?;
        Ok(0)
    })
}

/// What is printed, in bytes.
struct Measured {
    required: u64,
    fully_allocated: u64,
    bitmaps: Option<u64>,
}

impl Measured {
    fn print(&self, output: Output, session: &mut Session) -> std::io::Result<()> {
        let Self { required, fully_allocated, bitmaps } = *self;
        if output == Output::Json {
            let mut members = vec![
                ("required", Json::number(required)),
                ("fully-allocated", Json::number(fully_allocated)),
            ];
            members.extend(bitmaps.map(|bitmaps| ("bitmaps", Json::number(bitmaps))));
            return writeln!(session.out, "{}", Json::Object(members).pretty());
        }
        writeln!(session.out, "required size: {required}")?;
        writeln!(session.out, "fully allocated size: {fully_allocated}")?;
        match bitmaps {
            Some(bitmaps) => writeln!(session.out, "bitmaps size: {bitmaps}"),
            None => Ok(()),
        }
    }
}

/// All of a LUKS volume has its place.
fn measure_volume(
    options: &FormatOptions,
    size: u64,
    secrets: &Secrets,
) -> Result<Measured, Failure> {
    let area = encryption::area_len_bytes(options, secrets);
    let area = area.map_err(|error| Failure::message(error.message))?;
    let len = size.saturating_add(area);
    Ok(Measured { required: len, fully_allocated: len, bitmaps: None })
}

async fn measure(
    options: &FormatOptions,
    image: Option<&DiskImage>,
    secrets: &Secrets,
) -> Result<Measured, Failure> {
    let area = match options.given("encrypt.format") {
        Some("luks") => encryption::area_len_bytes(options, secrets),
        _ => Ok(0),
    };
    let area = area.map_err(|error| Failure::message(error.message))?;
    let options = options.measure_options().map_err(|error| Failure::message(error.message))?;
    let wrong = |error: cowshed::Error| Failure::message(open::reason(&error));
    let data = match image {
        None => None,
        // How much the backing file has of it is not known.
        Some(_) if options.backing_file.is_some() => Some(u64::MAX),
        Some(image) => {
            // Says what is wrong before clusters are counted.
            options.measure(Some(0)).map_err(wrong)?;
            let counted = data_len_bytes(image, options.cluster_size).await;
            let failed = |error: cowshed::Error| {
                Failure::message(format!("Unable to get block status: {}", open::reason(&error)))
            };
            Some(counted.map_err(failed)?)
        }
    };
    let measured = options.measure(data).map_err(wrong)?;
    let bitmaps = match image {
        Some(image) if options.version == Version::V3 && has_version_3(image) => {
            let bitmaps = image.load_bitmaps().await.map_err(wrong)?;
            Some(bitmaps_len_bytes(&bitmaps, image, &options))
        }
        _ => None,
    };
    // Its clusters are not counted among those that have refcounts, as in QEMU.
    let area = area.next_multiple_of(options.cluster_size);
    Ok(Measured {
        required: measured.required + area,
        fully_allocated: measured.fully_allocated + area,
        bitmaps,
    })
}

fn has_version_3(image: &DiskImage) -> bool {
    image.header().is_some_and(|header| header.version == Version::V3)
}

/// The length of all clusters of a copy with data in them.
async fn data_len_bytes(image: &DiskImage, cluster_size: u64) -> cowshed::Result<u64> {
    let mut extents = open::extents(image, 0, image.virtual_size()).await?;
    let (mut len, mut counted_to) = (0, 0);
    while let Some(extent) = extents.next().await? {
        if let ExtentKind::Data { .. } | ExtentKind::Compressed { .. } = extent.kind {
            let start = (extent.offset / cluster_size * cluster_size).max(counted_to);
            let end = (extent.offset + extent.len).next_multiple_of(cluster_size);
            len += end.saturating_sub(start);
            counted_to = counted_to.max(end);
        }
    }
    Ok(len)
}

/// The space of the source's bitmaps in a copy. Matches qcow2_get_persistent_dirty_bitmap_size in qcow2-bitmap.c.
fn bitmaps_len_bytes(
    bitmaps: &[BitmapDirectoryEntry],
    image: &DiskImage,
    options: &CreateOptions,
) -> u64 {
    let (cluster_size, size) = (options.cluster_size, image.header().map_or(0, |h| h.size));
    let (mut len, mut directory_len) = (0, 0);
    for bitmap in bitmaps {
        let bytes = size.div_ceil(bitmap.granularity()).div_ceil(8);
        let clusters = bytes.div_ceil(cluster_size);
        len += clusters * cluster_size + (clusters * 8).next_multiple_of(cluster_size);
        let name_len = bitmap.name.len() as u64;
        directory_len += (BITMAP_ENTRY_LEN_BYTES + name_len).next_multiple_of(8);
    }
    len + u64::next_multiple_of(directory_len, cluster_size)
}

/// What is wrong with `-o`, in the order of `qemu-img`'s lines.
fn wrong_options(error: OptionError, format: ImageFormat, persona: Persona) -> Failure {
    let lines = format!("Invalid options for file format '{}'", format.name());
    match persona {
        Persona::Cowshed => Failure::message(error.message),
        _ => {
            let hint = error.hint.map_or(String::new(), |hint| format!("{hint}\n"));
            Failure::message(error.message).with_hint(Some(format!("{hint}qemu-img: {lines}")))
        }
    }
}
