//! `find`: the paths of files of the disk, by their names.

use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;

use clap::{ArgMatches, Command};
use cowshed::inspect::files::FileKind;
use cowshed::inspect::files::walk::{Found, Walk};
use glob::{MatchOptions, Pattern};

use super::ls;
use crate::cli::Session;
use crate::escape;
use crate::failure::Failure;
use crate::json::Json;
use crate::open;
use crate::options::{self, Output};

/// The verb's name.
pub(crate) const NAME: &str = "find";

/// Its options.
pub(crate) fn command() -> Command {
    Command::new(NAME)
        .about("Find files of the disk's file system by their names")
        .arg(super::partition_argument())
        .arg(
            options::value("name", 'n', "name", "PATTERN")
                .help("Only what is called so; * ? and [...] stand for others, as in a shell"),
        )
        .arg(
            options::flag("ignore-case", 'i', "ignore-case")
                .help("Take small and capital letters of PATTERN for the same"),
        )
        .arg(
            options::value("type", 't', "type", "f|d|l")
                .help("Only files, folders (d) or symbolic links (l)"),
        )
        .arg(options::output())
        .args(super::arguments("IMAGE [PATH]"))
        .after_help("Exit code: 0 something was found, 1 an error, 2 nothing was found.")
}

/// Runs it.
pub(crate) fn run(matches: &ArgMatches, session: &mut Session) -> Result<u8, Failure> {
    let output = Output::from_matches(NAME, matches)?;
    let (name, path, opening) = super::image_and_path(NAME, matches, session)?;
    let pattern = options::text(matches, "name")
        .map(Pattern::new)
        .transpose()
        .map_err(|error| Failure::message(format!("invalid pattern: {error}")))?;
    let kind = match options::text(matches, "type") {
        None => None,
        Some("f") => Some(FileKind::File),
        Some("d") => Some(FileKind::Folder),
        Some("l") => Some(FileKind::Symlink),
        Some(other) => return Err(Failure::message(format!("invalid type '{other}': f, d or l"))),
    };
    let matching = MatchOptions {
        case_sensitive: !matches.get_flag("ignore-case"),
        require_literal_separator: false,
        require_literal_leading_dot: false,
    };
    open::block_on(async {
        let image = opening.open(&name).await?;
        let files = super::choose(&name, &image, matches).await?;
        let top = super::find(&name, &files, &path, true).await?;
        let mut found = Vec::new();
        let mut count = 0u64;
        let mut walk = Walk::new(top, path.as_bytes().to_vec());
        while let Some(step) = walk.next(&files).await {
            let Found { entry, path, .. } =
                step.map_err(|unread| super::at(&name, &unread.path, &unread.error))?;
            let is_it = kind.is_none_or(|kind| kind == entry.kind)
                && pattern.as_ref().is_none_or(|pattern| {
                    pattern.matches_with(&String::from_utf8_lossy(&entry.name), matching)
                });
            if is_it {
                count += 1;
                match output {
                    Output::Human => writeln!(session.out, "{}", escape::terminal(&path))?,
                    Output::Json => found.push(ls::json(&entry, &path, None)),
                }
            }
        }
        if matches!(output, Output::Json) {
            writeln!(session.out, "{}", Json::List(found).pretty())?;
        }
        Ok(if count > 0 { 0 } else { 2 })
    })
}
