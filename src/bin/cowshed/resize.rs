//! `resize`: a disk of another size.

use std::ffi::OsString;

use clap::{ArgMatches, Command};
use cowshed::Error;
use cowshed::image::{Preallocation, ResizeOptions, WriteOptions};

use crate::cli::Session;
use crate::failure::{Failure, warn};
use crate::format_options::FormatOptions;
use crate::image_format::ImageFormat;
use crate::open::{self, DiskImage, Opening};
use crate::options;
use crate::persona::Persona;
use crate::size;

/// The verb's name.
pub(crate) const NAME: &str = "resize";

/// The id of the option that stands for a size with a minus.
const MINUS: &str = "minus-size";

/// Its options.
pub(crate) fn command() -> Command {
    Command::new(NAME)
        .about("Make a disk larger or smaller")
        .arg(options::format("format"))
        .arg(options::long_value("preallocation", "preallocation", "MODE").help(
            "How space is taken for what is added: off (the default), metadata, falloc or full",
        ))
        .arg(
            options::long_flag("shrink", "shrink")
                .help("Allow the disk to become smaller: what is behind its new end is lost"),
        )
        .arg(options::quiet())
        .arg(options::long_value(MINUS, MINUS, "SIZE").hide(true))
        .args(options::opening())
        .arg(options::files("FILE [+|-]SIZE"))
}

/// Takes a size with a minus, which stands last, for what it is: no option.
pub(crate) fn protect_size(arguments: &mut Vec<OsString>) {
    let is_resize = arguments.get(1).is_some_and(|verb| verb == NAME) && arguments.len() > 3;
    let is_minus = |argument: &OsString| {
        let text = argument.to_string_lossy();
        text.strip_prefix('-').is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    };
    if is_resize && let Some(size) = arguments.pop_if(|last| is_minus(last)) {
        arguments.insert(2, format!("--{MINUS}={}", size.to_string_lossy()).into());
    }
}

/// Runs it.
pub(crate) fn run(matches: &ArgMatches, session: &mut Session) -> Result<u8, Failure> {
    let preallocation = match options::text(matches, "preallocation") {
        None | Some("off") => Preallocation::Off,
        Some("metadata") => Preallocation::Metadata,
        Some("falloc") => Preallocation::Falloc,
        Some("full") => Preallocation::Full,
        Some(other) => {
            return Err(Failure::message(format!("Invalid preallocation mode '{other}'")));
        }
    };
    let mut files: Vec<_> =
        matches.get_many::<OsString>("files").into_iter().flatten().cloned().collect();
    files.extend(options::text(matches, MINUS).map(OsString::from));
    if files.len() > 2 {
        return Err(Failure::usage(Some(NAME), "Extra argument(s) in command line"));
    }
    let Ok([name, size]) = <[OsString; 2]>::try_from(files) else {
        return Err(Failure::usage(Some(NAME), "Expecting image file name and size"));
    };
    let change = Change::parse(&size.to_string_lossy())?;
    let opening = Opening::from_matches(matches, session.persona, "format")?
        .writable(WriteOptions::default());
    let mut options = ResizeOptions::default();
    options.shrink = matches.get_flag("shrink");
    options.preallocation = preallocation;

    open::block_on(async {
        let image = opening.open_and_warn(&name).await?;
        let resized = resize(&image, &name, change, &options, session.persona).await;
        let closed = image.close().await;
        resized?;
        closed.map_err(|error| Failure::image(&name, "", open::reason(&error)))?;
        if !matches.get_flag("quiet") {
            session.out_line("Image resized.")?;
        }
        Ok(0)
    })
}

/// What the size becomes, in bytes.
#[derive(Debug, Clone, Copy)]
enum Change {
    To(u64),
    More(u64),
    Less(u64),
}

impl Change {
    fn parse(text: &str) -> Result<Self, Failure> {
        let (make, number): (fn(u64) -> Self, _) = match text.split_at_checked(1) {
            Some(("+", rest)) => (Self::More, rest),
            Some(("-", rest)) => (Self::Less, rest),
            _ => (Self::To, text),
        };
        // As an option of a format would be read.
        let mut options = FormatOptions::parse(ImageFormat::Raw, None).map_err(wrong_size)?;
        options.set("size", number.to_owned()).map_err(wrong_size)?;
        Ok(make(options.size().unwrap_or_default()))
    }

    fn of(self, size: u64) -> Option<u64> {
        match self {
            Self::To(size) => Some(size),
            Self::More(more) => size.checked_add(more),
            Self::Less(less) => size.checked_sub(less),
        }
        .filter(|size| *size > 0 && *size <= size::SIZE_MAX)
    }
}

fn wrong_size(error: crate::format_options::OptionError) -> Failure {
    Failure::message(error.message).with_hint(error.hint.map(str::to_owned))
}

async fn resize(
    image: &DiskImage,
    name: &OsString,
    change: Change,
    options: &ResizeOptions,
    persona: Persona,
) -> Result<(), Failure> {
    let failed = |reason: &str| Failure::image(name, "", reason);
    let old = image.virtual_size();
    let size = change.of(old).ok_or_else(|| failed("New image size must be positive"))?;
    let is_raw = image.header().is_none();
    if size <= old && options.preallocation != Preallocation::Off {
        return Err(failed("Preallocation can only be used for growing images"));
    }
    if size < old && !options.shrink {
        let hint = "Shrinking an image will delete all data beyond the shrunken image's end. Before performing such \
                    an operation, make sure there is no important data there.";
        let failure = failed("Use the --shrink option to perform a shrink operation.");
        return Err(failure.with_hint(Some(match persona {
            Persona::Cowshed => hint.to_owned(),
            _ => format!("qemu-img: warning: {hint}"),
        })));
    }
    if is_raw && options.preallocation == Preallocation::Metadata {
        return Err(failed("Unsupported preallocation mode: metadata"));
    }
    if !is_raw && !size.is_multiple_of(512) {
        return Err(failed("The new size must be a multiple of 512"));
    }
    image.resize(size, options).await.map_err(|error| match &error {
        Error::InvalidArgument(message) => {
            failed(message).with_hint(crate::bitmap::advice(&error, persona))
        }
        _ => failed(&open::reason(&error)),
    })?;
    let now = image.virtual_size();
    if is_raw && now != size && persona == Persona::Cowshed {
        warn(&format!("cowshed: the disk has {now} bytes, whole sectors"));
    }
    Ok(())
}
