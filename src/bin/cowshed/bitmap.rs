//! `bitmap`: changes of an image's persistent bitmaps, several in the order in which they are given.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;

use clap::{Arg, ArgAction, ArgMatches, Command};
use cowshed::Error;
use cowshed::image::WriteOptions;

use crate::cli::Session;
use crate::escape;
use crate::failure::Failure;
use crate::open::{self, DiskImage, Opening};
use crate::options;
use crate::persona::Persona;
use crate::size::SIZE_MAX;

/// The verb's name.
pub(crate) const NAME: &str = "bitmap";

/// What `qemu-img` advises where a bitmap is inconsistent.
const ADVICE: &str = "Try block-dirty-bitmap-remove to delete this bitmap from disk";

/// The options that stand for an action.
const ACTIONS: [(&str, &str); 5] = [
    ("add", "Add the bitmap; it marks all that changes from now on"),
    ("remove", "Remove it"),
    ("clear", "Let it mark nothing"),
    ("enable", "Let it mark all that changes from now on"),
    ("disable", "Let it mark no more changes"),
];

/// Its options.
pub(crate) fn command() -> Command {
    // Several may be given, and an option without a value does not say where it stands: so each has one that nobody gives.
    let action = |(id, help): (&'static str, &'static str)| {
        Arg::new(id)
            .long(id)
            .num_args(0)
            .default_missing_value("")
            .action(ArgAction::Append)
            .help(help)
    };
    Command::new(NAME)
        .about("Change the persistent bitmaps of an image: which blocks of the disk have changed")
        .args(ACTIONS.map(action))
        .arg(
            options::long_value("merge", "merge", "SOURCE")
                .action(ArgAction::Append)
                .help("Let it mark what the bitmap SOURCE marks, too"),
        )
        .arg(
            options::value("source-file", 'b', "source-file", "FILE")
                .help("With --merge: SOURCE is a bitmap of the image FILE"),
        )
        .arg(
            options::value("source-format", 'F', "source-format", "FMT")
                .help("Format of FILE, instead of looking at its first bytes"),
        )
        .arg(
            options::value("granularity", 'g', "granularity", "SIZE")
                .help("With --add: how much of the disk a bit stands for"),
        )
        .arg(options::format("format"))
        .args(options::opening())
        .arg(options::files("FILE BITMAP"))
}

/// Runs it.
pub(crate) fn run(matches: &ArgMatches, session: &mut Session) -> Result<u8, Failure> {
    let granularity = options::bytes(matches, "granularity", "granularity", 0..=SIZE_MAX)?;
    let names: Vec<_> =
        matches.get_many::<OsString>("files").into_iter().flatten().cloned().collect();
    let Ok([file, bitmap]) = <[OsString; 2]>::try_from(names) else {
        return Err(Failure::message("Expecting filename and bitmap name"));
    };
    let actions = actions(matches);
    let has = |wanted: &str| actions.iter().any(|action| action.name() == wanted);
    let source = options::text(matches, "source-file");
    let problem = if actions.is_empty() {
        "Need at least one of --add, --remove, --clear, --enable, --disable, or --merge"
    } else if granularity.is_some_and(|bytes| bytes > 0) && !has("add") {
        "granularity only supported with --add"
    } else if matches.contains_id("source-format") && source.is_none() {
        "-F only supported with -b"
    } else if source.is_some() && !has("merge") {
        "Merge bitmap source file only supported with --merge"
    } else {
        ""
    };
    if !problem.is_empty() {
        return Err(Failure::message(problem));
    }
    let opening = Opening::from_matches(matches, session.persona, "format")?;
    // The source's name is that of a file in any case, as with `qemu-img`.
    let source_opening = opening
        .clone()
        .image_opts(false)
        .format(options::text(matches, "source-format").map(str::to_owned));
    let opening = opening.writable(WriteOptions::default());

    open::block_on(async {
        let image = opening.open_and_warn(&file).await?;
        let source = match source {
            Some(source) => Some(source_opening.open(source.as_ref()).await?),
            None => None,
        };
        let change = BitmapChange {
            image: &image,
            bitmap: &bitmap,
            granularity: granularity.filter(|bytes| *bytes > 0),
            source: source.as_ref(),
            persona: session.persona,
        };
        let mut done = Ok(());
        for action in &actions {
            done = change.make(action).await;
            if done.is_err() {
                break;
            }
        }
        let closed = image.close().await;
        done?;
        closed.map_err(|error| Failure::image(&file, "", open::reason(&error)))?;
        Ok(0)
    })
}

/// One thing to do with the bitmap.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Action {
    /// By the name of its option.
    Plain(&'static str),
    /// The bitmap to merge.
    Merge(String),
}

impl Action {
    fn name(&self) -> &'static str {
        match self {
            Self::Plain(name) => name,
            Self::Merge(_) => "merge",
        }
    }
}

/// What to do, in the order of the command line.
fn actions(matches: &ArgMatches) -> Vec<Action> {
    let mut actions: Vec<(usize, Action)> = Vec::new();
    for (id, _) in ACTIONS {
        let places = matches.indices_of(id).into_iter().flatten();
        actions.extend(places.map(|place| (place, Action::Plain(id))));
    }
    let places = matches.indices_of("merge").into_iter().flatten();
    let sources = matches.get_many::<String>("merge").into_iter().flatten();
    actions.extend(places.zip(sources).map(|(at, name)| (at, Action::Merge(name.clone()))));
    actions.sort_by_key(|(place, _)| *place);
    actions.into_iter().map(|(_, action)| action).collect()
}

/// A bitmap that is changed.
struct BitmapChange<'a> {
    image: &'a DiskImage,
    bitmap: &'a OsStr,
    granularity: Option<u64>,
    /// The image that other bitmaps are merged from.
    source: Option<&'a DiskImage>,
    persona: Persona,
}

impl BitmapChange<'_> {
    async fn make(&self, action: &Action) -> Result<(), Failure> {
        let (image, name) = (self.image, self.bitmap.as_bytes());
        if image.header().is_none() {
            return Err(self.failure(action, self.raw_reason(action)));
        }
        let done = match action {
            Action::Plain("add") => image.add_bitmap(name, self.granularity, true).await,
            Action::Plain("remove") => image.remove_bitmap(name).await,
            Action::Plain("clear") => image.clear_bitmap(name).await,
            Action::Plain(other) => image.enable_bitmap(name, *other == "enable").await,
            Action::Merge(from) => match self.source {
                Some(source) => image.merge_bitmap_from(name, source, from.as_bytes()).await,
                None => image.merge_bitmap(name, from.as_bytes()).await,
            },
        };
        done.map_err(|error| {
            let reason = match action.name() {
                "add" => self.add_reason(&error),
                _ => reason(&error),
            };
            self.failure(action, reason).with_hint(advice(&error, self.persona))
        })
    }

    fn failure(&self, action: &Action, reason: String) -> Failure {
        let bitmap = escape::terminal(self.bitmap.as_bytes());
        Failure::message(format!("Operation {} on bitmap {bitmap} failed: {reason}", action.name()))
    }

    /// Why a raw image has no such bitmap. The name of a node, which there is none of here, is one that QEMU could give.
    fn raw_reason(&self, action: &Action) -> String {
        let missing = |name: &[u8]| format!("Dirty bitmap '{}' not found", escape::terminal(name));
        match (action, self.persona) {
            (Action::Plain("add"), Persona::Cowshed) => "a raw image has no bitmaps".to_owned(),
            (Action::Plain("add"), _) => {
                "Can't store persistent bitmaps to #block000: Operation not supported".to_owned()
            }
            (Action::Merge(from), _) if self.source.is_some() => missing(from.as_bytes()),
            _ => missing(self.bitmap.as_bytes()),
        }
    }

    /// Why a bitmap cannot be added: `qemu-img` says in front of some reasons where it should have been.
    fn add_reason(&self, error: &Error) -> String {
        let reason = reason(error);
        let alone = ["Bitmap name", "Bitmap already", "Granularity must"];
        let is_alone = alone.iter().any(|beginning| reason.starts_with(beginning));
        if is_alone
            || self.persona == Persona::Cowshed
            || !matches!(error, Error::InvalidArgument(_))
        {
            return reason;
        }
        let bitmap = escape::terminal(self.bitmap.as_bytes());
        format!("Can't make bitmap '{bitmap}' persistent in '#block000': {reason}")
    }
}

/// What is wrong, in the words of `qemu-img` where it has some.
pub(crate) fn reason(error: &Error) -> String {
    match error {
        Error::NotFound { name, .. } => {
            format!("Dirty bitmap '{}' not found", escape::terminal(name.as_bytes()))
        }
        error => escape::terminal(open::reason(error).as_bytes()),
    }
}

/// What `qemu-img` advises where a bitmap is inconsistent.
pub(crate) fn advice(error: &Error, persona: Persona) -> Option<String> {
    let is_inconsistent = error.to_string().ends_with("is inconsistent and cannot be used");
    (is_inconsistent && persona != Persona::Cowshed).then(|| ADVICE.to_owned())
}
