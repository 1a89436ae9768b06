//! Options that several verbs have: which image, in which format, how it is opened, how the result is printed.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, value_parser};

use crate::failure::Failure;
use crate::size::{self, SizeError};

/// `-f FMT` under the long name `long`.
pub(crate) fn format(long: &'static str) -> Arg {
    value("format", 'f', long, "FMT")
        .help("Take the image for FMT (qcow2, raw or luks) instead of looking at its first bytes")
}

/// An option with a value.
pub(crate) fn value(id: &'static str, short: char, long: &'static str, name: &'static str) -> Arg {
    long_value(id, long, name).short(short)
}

/// An option with a value and no short name.
pub(crate) fn long_value(id: &'static str, long: &'static str, name: &'static str) -> Arg {
    Arg::new(id).long(long).value_name(name).allow_hyphen_values(true)
}

/// An option without a value.
pub(crate) fn flag(id: &'static str, short: char, long: &'static str) -> Arg {
    long_flag(id, long).short(short)
}

/// An option without a value and a short name.
pub(crate) fn long_flag(id: &'static str, long: &'static str) -> Arg {
    Arg::new(id).long(long).action(ArgAction::SetTrue)
}

/// The file names: any number for the parser, so that the verb can say in its own words how many it wants.
pub(crate) fn files(name: &'static str) -> Arg {
    Arg::new("files")
        .value_name(name)
        .value_parser(value_parser!(OsString))
        .num_args(0..)
        .action(ArgAction::Append)
}

/// `--output human|json`.
pub(crate) fn output() -> Arg {
    long_value("output", "output", "human|json").help("Print text for people (the default) or JSON")
}

/// `-q`.
pub(crate) fn quiet() -> Arg {
    flag("quiet", 'q', "quiet").help("Print nothing but errors")
}

/// `-p`.
pub(crate) fn progress() -> Arg {
    flag("progress", 'p', "progress").help("Show progress")
}

/// `-U`, what images may name, and passphrases: every verb that opens an image has these.
pub(crate) fn opening() -> [Arg; 4] {
    [
        flag("force-share", 'U', "force-share").help("Open the image even if a program is writing to it"),
        long_value("allow", "allow", "PATH")
            .value_parser(value_parser!(PathBuf))
            .action(ArgAction::Append)
            .help("Let images name files in the folder PATH, or the file PATH; may be given several times"),
        long_flag("image-opts", "image-opts")
            .help("Take file names for options of the image: driver=qcow2,encrypt.key-secret=ID,file.filename=NAME"),
        object(),
    ]
}

/// `--object`.
pub(crate) fn object() -> Arg {
    long_value("object", "object", "OBJDEF")
        .action(ArgAction::Append)
        .help("A passphrase: secret,id=ID,data=TEXT or secret,id=ID,file=NAME; may be given several times")
}

/// The sizes of the caches, under QEMU's names.
pub(crate) fn caches() -> [Arg; 4] {
    let heading = "Cache options";
    [
        long_value("cache-size", "cache-size", "SIZE")
            .help("Memory for cached tables, of both kinds together")
            .help_heading(heading),
        long_value("l2-cache-size", "l2-cache-size", "SIZE")
            .help("Memory for L2 tables (default: up to 32M, no more than the image has)")
            .help_heading(heading),
        long_value("l2-cache-entry-size", "l2-cache-entry-size", "SIZE")
            .help("How much of an L2 table is loaded at a time (default: 4k)")
            .help_heading(heading),
        long_value("refcount-cache-size", "refcount-cache-size", "SIZE")
            .help("Memory for refcount blocks (default: four clusters)")
            .help_heading(heading),
    ]
}

/// How a verb prints its result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Output {
    /// Text for people.
    Human,
    /// JSON.
    Json,
}

impl Output {
    /// The value of [`output`].
    ///
    /// # Errors
    /// It is neither `human` nor `json`.
    pub(crate) fn from_matches(verb: &'static str, matches: &ArgMatches) -> Result<Self, Failure> {
        match text(matches, "output") {
            None | Some("human") => Ok(Self::Human),
            Some("json") => Ok(Self::Json),
            Some(other) => Err(Failure::usage(
                Some(verb),
                format!("--output expects 'human' or 'json' not '{other}'"),
            )),
        }
    }
}

/// The value of an option.
pub(crate) fn text<'a>(matches: &'a ArgMatches, id: &str) -> Option<&'a str> {
    matches.get_one::<String>(id).map(String::as_str)
}

/// The file names, which must be `N`.
///
/// # Errors
/// They are not; `wanted` says what is expected.
pub(crate) fn file_names<const N: usize>(
    verb: &'static str,
    matches: &ArgMatches,
    wanted: &str,
) -> Result<[OsString; N], Failure> {
    let names: Vec<_> =
        matches.get_many::<OsString>("files").into_iter().flatten().cloned().collect();
    names.try_into().map_err(|_| Failure::usage(Some(verb), format!("Expecting {wanted}")))
}

/// The value in bytes of an option that takes a size; `name` is what `qemu-img` calls it.
///
/// # Errors
/// It is not a size of `min` to `max`.
pub(crate) fn bytes(
    matches: &ArgMatches,
    id: &str,
    name: &str,
    range: std::ops::RangeInclusive<u64>,
) -> Result<Option<u64>, Failure> {
    let Some(text) = text(matches, id) else { return Ok(None) };
    match size::parse(text) {
        Ok(bytes) if range.contains(&bytes) => Ok(Some(bytes)),
        Ok(_) | Err(SizeError::Range) => Err(Failure::message(format!(
            "Invalid {name} specified. Must be between {} and {}.",
            range.start(),
            range.end()
        ))),
        Err(SizeError::Syntax) => {
            Err(Failure::message(format!("Invalid {name} specified: '{text}'.")))
        }
    }
}

/// The value of an option that takes a plain number; `name` is what `qemu-img` calls it.
///
/// # Errors
/// It is not a number in the range.
pub(crate) fn count(
    matches: &ArgMatches,
    id: &str,
    name: &str,
    range: std::ops::RangeInclusive<u64>,
) -> Result<Option<u64>, Failure> {
    let Some(text) = text(matches, id) else { return Ok(None) };
    let has_unit = text.trim_end_matches(|c: char| c.is_ascii_digit()).len() == text.len();
    if has_unit && !text.is_empty() {
        return Err(Failure::message(format!("Invalid {name} specified: '{text}'.")));
    }
    bytes(matches, id, name, range)
}

/// Whether QEMU has a cache mode of this name.
pub(crate) fn is_cache_mode(name: &str) -> bool {
    ["none", "off", "directsync", "writeback", "unsafe", "writethrough"].contains(&name)
}
