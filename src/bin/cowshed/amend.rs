//! `amend`: other options for an image that exists.

use std::ffi::OsStr;
use std::io::Write as _;

use clap::{ArgAction, ArgMatches, Command};
use cowshed::Error;
use cowshed::format::Header;
use cowshed::image::WriteOptions;

use crate::amend_keys::{KeyChange, Locked};
use crate::cli::Session;
use crate::failure::Failure;
use crate::format_options::{self, FormatOptions, OptionError};
use crate::image_format::ImageFormat;
use crate::open::{self, DiskImage, Opening};
use crate::options;
use crate::persona::Persona;
use crate::progress::Progress;

/// The verb's name.
pub(crate) const NAME: &str = "amend";

/// Percent between two reports of progress.
const PROGRESS_STEP: f32 = 1.0;

/// What there is to say of a raw image.
const RAW: &str = "Format driver 'raw' does not support option amendment";

/// Its options.
pub(crate) fn command() -> Command {
    let (value, flag) = (options::value, options::long_flag);
    Command::new(NAME)
        .about("Change the options of an image")
        .arg(
            value("options", 'o', "options", "OPTIONS")
                .action(ArgAction::Append)
                .help("Options of the format: NAME=VALUE,NAME=VALUE...; 'help' lists them"),
        )
        .arg(options::format("format"))
        .arg(
            value("cache", 't', "cache", "MODE")
                .help("Cache mode of the image (default: writeback); unsafe makes nothing durable"),
        )
        .arg(flag("force", "force").help("Allow what may lose access to the image's data"))
        .arg(options::progress())
        .arg(options::quiet())
        .args(options::opening())
        .arg(options::files("FILE"))
}

/// Runs it.
pub(crate) fn run(matches: &ArgMatches, session: &mut Session) -> Result<u8, Failure> {
    let lists = matches.get_many::<String>("options").into_iter().flatten();
    let list = format_options::join(lists).map_err(|error| Failure::message(error.message))?;
    let list = list.ok_or_else(|| Failure::usage(Some(NAME), "Must specify options (-o)"))?;
    let asks_for_help = format_options::asks_for_help(&list);
    if let (true, Some(format)) = (asks_for_help, options::text(matches, "format")) {
        return match ImageFormat::from_name(format) {
            Some(ImageFormat::Raw) => Err(Failure::message(RAW)),
            Some(format) => help(format, session),
            None => Err(Failure::message(format!("Unknown file format '{format}'"))),
        };
    }
    let names = options::file_names(NAME, matches, "one image file name");
    let [name] = names.map_err(|_| Failure::message("Expecting one image file name"))?;
    let cache = options::text(matches, "cache").unwrap_or("writeback");
    if !options::is_cache_mode(cache) {
        return Err(Failure::message(format!("Invalid cache option: {cache}")));
    }
    let opening = Opening::from_matches(matches, session.persona, "format")?
        .direct(["none", "off", "directsync"].contains(&cache))
        .volatile(cache == "unsafe")
        .writable(WriteOptions::default());
    let quiet = matches.get_flag("quiet");
    let progress = matches.get_flag("progress") && !quiet;
    open::block_on(async {
        let mut image = opening.open_and_warn(&name).await?;
        let volume = image.layer_storage(0).volume().cloned();
        let header = image.header();
        let format = match (&header, &volume) {
            (Some(_), _) => ImageFormat::Qcow2,
            (None, Some(_)) => ImageFormat::Luks,
            (None, None) => return Err(Failure::image(&name, "", RAW)),
        };
        if asks_for_help {
            return help(format, session);
        }
        let wrong = |error: OptionError| {
            Failure::message(error.message).with_hint(error.hint.map(str::to_owned))
        };
        let options = FormatOptions::parse_amend(format, &list).map_err(wrong)?;
        let mut progress = Progress::new(progress, PROGRESS_STEP)?;
        let failed = |reason: String| Failure::image(&name, "", reason);
        let (_, resolved) = opening.resolved(&name)?;
        let key = resolved.options_with_key().map_err(failed)?.key;
        let force = matches.get_flag("force");
        let keys = KeyChange { options: &options, secrets: opening.secrets(), key, force };
        let amended = match (&header, &volume) {
            (None, Some(volume)) => keys.make(Locked::Volume(volume)).await.map_err(failed),
            (None, None) => Ok(()),
            (Some(header), _) => {
                amend(&mut image, header, &name, keys, session, &mut progress).await
            }
        };
        let closed = image.close().await;
        if amended.is_ok() {
            progress.complete()?;
        }
        progress.end()?;
        amended?;
        closed.map_err(|error| Failure::image(&name, "", open::reason(&error)))?;
        Ok(0)
    })
}

fn help(format: ImageFormat, session: &mut Session) -> Result<u8, Failure> {
    write!(session.out, "{}", format_options::amend_help(format))?;
    Ok(0)
}

async fn amend(
    image: &mut DiskImage,
    header: &Header,
    name: &OsStr,
    keys: KeyChange<'_>,
    session: &Session,
    progress: &mut Progress,
) -> Result<(), Failure> {
    let failed = |reason: &str| Failure::image(name, "", reason);
    let options = keys.options;
    let amend = options.amend_options().map_err(|error| failed(&error.message))?;
    let changes_keys = options.any_given("encrypt.");
    if changes_keys {
        KeyChange::check(header.crypt).map_err(|reason| failed(&reason))?;
    }
    let text = |bytes: Option<&[u8]>| bytes.map(|it| String::from_utf8_lossy(it).into_owned());
    let backing = (options.given("backing_file"), options.given("backing_fmt"));
    let present = (text(header.backing_file.as_deref()), text(header.backing_format()));
    if backing != (None, None) && backing != (present.0.as_deref(), present.1.as_deref()) {
        let hint = "You can use 'qemu-img rebase' instead.".to_owned();
        return Err(failed("Cannot amend the backing file").with_hint(Some(hint)));
    }
    if changes_keys {
        keys.make(Locked::Image(image)).await.map_err(|reason| failed(&reason))?;
    }
    let mut shown = Ok(());
    let amended = image.amend(&amend, |done, total| {
        progress.start(total);
        if shown.is_ok() {
            shown = progress.set(done);
        }
    });
    let amended = amended.await;
    shown?;
    amended.map_err(|error| match (&error, session.persona) {
        (Error::InvalidArgument(message), _) => failed(message),
        (_, Persona::Cowshed) => failed(&open::reason(&error)),
        (_, _) => failed(&crate::io::strerror(&error)),
    })
}
