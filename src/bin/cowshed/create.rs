//! `create`: a new, empty image.

use std::ffi::{OsStr, OsString};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

use crate::cli::Session;
use crate::failure::Failure;
use crate::format_options::{self, FormatOptions};
use crate::image_format::ImageFormat;
use crate::names::beside;
use crate::new_image::{NewImage, identity};
use crate::open::{self, Opening};
use crate::options;
use crate::persona::Persona;
use crate::secret::Secrets;
use crate::size::{self, SIZE_MAX, SizeError};

/// The verb's name.
pub(crate) const NAME: &str = "create";

/// Disks have whole sectors.
const SECTOR_LEN_BYTES: u64 = 512;

/// Its options.
pub(crate) fn command() -> Command {
    Command::new(NAME)
        .about("Make a new, empty image")
        .arg(
            options::value("format", 'f', "format", "FMT")
                .help("Format of the image: raw (the default), qcow2 or luks"),
        )
        .arg(
            options::value("options", 'o', "options", "OPTIONS")
                .action(ArgAction::Append)
                .help("Options of the format: NAME=VALUE,NAME=VALUE...; 'help' lists them"),
        )
        .arg(
            options::value("backing", 'b', "backing", "FILE")
                .help("Take what is not written from the image FILE, named as seen from the new image's folder"),
        )
        .arg(
            // Its name until QEMU 10.0, and since.
            options::value("backing-format", 'F', "backing-format", "FMT")
                .short_alias('B')
                .help("Format of the backing file; must be given with one"),
        )
        .arg(
            options::flag("backing-unsafe", 'u', "backing-unsafe")
                .help("Do not look at the backing file; a size must be given"),
        )
        .arg(options::quiet())
        .arg(options::object())
        .arg(allow())
        .arg(options::files("FILE [SIZE]"))
}

/// `--allow`, for the backing file's own backing files.
fn allow() -> Arg {
    options::long_value("allow", "allow", "PATH")
        .value_parser(value_parser!(PathBuf))
        .action(ArgAction::Append)
        .help("Let the backing file name files in the folder PATH, or the file PATH; may be given several times")
}

/// Runs it.
pub(crate) fn run(matches: &ArgMatches, session: &mut Session) -> Result<u8, Failure> {
    let lists = matches.get_many::<String>("options").into_iter().flatten();
    let list = format_options::join(lists).map_err(|error| Failure::message(error.message))?;
    let secrets = Secrets::from_matches(matches)?;
    let format_name = options::text(matches, "format").unwrap_or("raw");
    let format = ImageFormat::from_name(format_name);
    let mut files = matches.get_many::<OsString>("files").into_iter().flatten();
    let name = files.next();
    if list.as_deref().is_some_and(format_options::asks_for_help) {
        let format = format
            .ok_or_else(|| Failure::message(format!("Unknown file format '{format_name}'")))?;
        write!(session.out, "{}", format_options::help(format, name.is_some()))?;
        return Ok(0);
    }
    let name = name.ok_or_else(|| Failure::usage(Some(NAME), "Expecting image file name"))?;
    let size = files.next().map(|text| image_size(text)).transpose()?;
    if let Some(more) = files.next() {
        let message = format!("Unexpected argument: {}", more.display());
        return Err(Failure::usage(Some(NAME), message));
    }
    let image = NewImage { name, persona: session.persona, converting: None, volatile: false };
    let format =
        format.ok_or_else(|| image.failure(format!("Unknown file format '{format_name}'")))?;
    let mut format_options = FormatOptions::parse(format, list.as_deref())
        .map_err(|error| image.wrong_options(error))?;
    complete(&mut format_options, matches, image, size)?;

    open::block_on(async {
        let allow = matches.get_many::<PathBuf>("allow").into_iter().flatten().cloned().collect();
        let look = !matches.get_flag("backing-unsafe");
        let keep = look_at_backing(&mut format_options, image, look, allow).await?;
        if format_options.size().is_none() {
            return Err(image.failure("Image creation needs a size parameter"));
        }
        if !matches.get_flag("quiet") {
            let shown = format_options.shown();
            writeln!(session.out, "Formatting '{}', fmt={format_name}{shown}", name.display())?;
            session.out.flush()?;
        }
        image.create(format, &format_options, &secrets, &keep).await?;
        Ok(0)
    })
}

/// A disk's size in bytes, in the words of `qemu-img` if it is none.
pub(crate) fn image_size(text: &OsStr) -> Result<u64, Failure> {
    let text = text.to_string_lossy();
    size::parse(&text).map_err(|error| {
        Failure::message(match error {
            SizeError::Range => {
                format!("Invalid image size specified. Must be between 0 and {SIZE_MAX}.")
            }
            SizeError::Syntax => format!("Invalid image size specified: '{text}'."),
        })
    })
}

/// Adds to the options what stands beside them on the command line.
fn complete(
    format_options: &mut FormatOptions,
    matches: &ArgMatches,
    image: NewImage<'_>,
    size: Option<u64>,
) -> Result<(), Failure> {
    let format_name = options::text(matches, "format").unwrap_or("raw");
    if let Some(size) = size {
        if format_options.given("size").is_some() {
            return Err(image.failure("The image size must be specified only once"));
        }
        let set = format_options.set("size", size.to_string());
        set.map_err(|error| image.wrong_options(error))?;
    }
    for (id, option, what) in [
        ("backing", "backing_file", "Backing file"),
        ("backing-format", "backing_fmt", "Backing file format"),
    ] {
        let Some(value) = options::text(matches, id) else { continue };
        if format_options.set(option, value.to_owned()).is_err() {
            let message = format!("{what} not supported for file format '{format_name}'");
            return Err(image.failure(message));
        }
    }
    Ok(())
}

/// Finds out the disk's size from the backing file, if it is not given, and whether there is one at all. Returns which files
/// must not be overwritten.
async fn look_at_backing(
    format_options: &mut FormatOptions,
    image: NewImage<'_>,
    look: bool,
    allow: Vec<PathBuf>,
) -> Result<Vec<(u64, u64)>, Failure> {
    let Some(backing) = format_options.given("backing_file").map(OsString::from) else {
        return Ok(Vec::new());
    };
    if backing == image.name {
        return Err(image.failure(
            "Error: Trying to create an image with the same filename as the backing file",
        ));
    }
    if backing.is_empty() {
        return Err(image.failure("Expected backing file name, got empty string"));
    }
    let format = format_options.given("backing_fmt").map(str::to_owned);
    let path = beside(image.name, &backing);
    if !look {
        if format.is_none() {
            return Err(image.failure("Backing file specified without backing format"));
        }
        return Ok(identity(Path::new(&path)).into_iter().collect());
    }
    let opening = Opening::of_backing_file(image.persona, format.as_deref(), allow);
    let failed = |failure: Failure| failure.of_backing_file(image.name, image.persona);
    let mut backing = opening.clone().alone().open(&path).await.map_err(failed)?;
    let header = backing.header();
    // What it is itself made of must be there too. Encrypted images can only be looked at.
    let is_encrypted = backing.layer_storage(0).volume().is_some()
        || header.as_ref().is_some_and(|h| h.crypt != cowshed::format::CryptMethod::None);
    if !is_encrypted {
        backing = opening.open(&path).await.map_err(failed)?;
    }
    let Some(_) = format else {
        let layer = backing.layers().next();
        let found = layer.map_or("raw", |layer| backing.layer_storage(0).format_name(layer.format));
        let hint = format!("Detected format of {found}.");
        let message = "Backing file specified without backing format";
        return Err(match image.persona {
            Persona::Cowshed => image.failure(format!("{message}; -F {found} may be meant")),
            _ => image.failure(message).with_hint(Some(hint)),
        });
    };
    if format_options.size().is_none() {
        let size = backing.virtual_size().next_multiple_of(SECTOR_LEN_BYTES);
        let set = format_options.set("size", size.to_string());
        set.map_err(|error| image.wrong_options(error))?;
    }
    Ok(backing.layers().filter_map(|layer| identity(layer.location)).collect())
}
