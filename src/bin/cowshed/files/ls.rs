//! `ls`: what is in a folder of the disk.

use std::ffi::OsStr;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;

use clap::{ArgMatches, Command};
use cowshed::inspect::files::{Entry, FileKind, walk};
use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::Files;
use crate::cli::Session;
use crate::escape;
use crate::failure::Failure;
use crate::json::Json;
use crate::open;
use crate::options::{self, Output};

/// The verb's name.
pub(crate) const NAME: &str = "ls";

/// Its options.
pub(crate) fn command() -> Command {
    Command::new(NAME)
        .about("List a folder of the disk's file system")
        .arg(super::partition_argument())
        .arg(
            options::long_flag("long", "long")
                .short('L')
                .help("Show type, mode, owner, size and date, too"),
        )
        .arg(options::flag("recursive", 'R', "recursive").help("List the folders below it, too"))
        .arg(options::output())
        .args(super::arguments("IMAGE [PATH]"))
}

/// Runs it.
pub(crate) fn run(matches: &ArgMatches, session: &mut Session) -> Result<u8, Failure> {
    let output = Output::from_matches(NAME, matches)?;
    let (name, path, opening) = super::image_and_path(NAME, matches, session)?;
    let (long, recursive) = (matches.get_flag("long"), matches.get_flag("recursive"));
    open::block_on(async {
        let image = opening.open(&name).await?;
        let files = super::choose(&name, &image, matches).await?;
        let entry = super::find(&name, &files, &path, true).await?;
        let mut listing = Listing { name: &name, files: &files, long, json: Vec::new() };
        if entry.kind != FileKind::Folder {
            listing.show(session, output, &entry, path.as_bytes()).await?;
        } else {
            let mut folders = vec![(entry, path.as_bytes().to_vec())];
            let mut is_first = true;
            while let Some((folder, path)) = folders.pop() {
                let entries = super::sorted(&name, &files, &folder, &path).await?;
                if recursive && matches!(output, Output::Human) {
                    let gap = if is_first { "" } else { "\n" };
                    writeln!(session.out, "{gap}{}:", escape::terminal(&path))?;
                    is_first = false;
                }
                for entry in &entries {
                    listing.show(session, output, entry, &walk::join(&path, &entry.name)).await?;
                }
                if recursive {
                    folders.extend(
                        entries
                            .into_iter()
                            .rev()
                            .filter(|entry| entry.kind == FileKind::Folder)
                            .map(|entry| {
                                let path = walk::join(&path, &entry.name);
                                (entry, path)
                            }),
                    );
                }
            }
        }
        if matches!(output, Output::Json) {
            writeln!(session.out, "{}", Json::List(listing.json).pretty())?;
        }
        Ok(0)
    })
}

struct Listing<'a> {
    name: &'a OsStr,
    files: &'a Files<'a>,
    long: bool,
    json: Vec<Json>,
}

impl Listing<'_> {
    /// Prints an entry, or keeps it for the JSON.
    async fn show(
        &mut self,
        session: &mut Session,
        output: Output,
        entry: &Entry,
        path: &[u8],
    ) -> Result<(), Failure> {
        let target = match entry.kind {
            FileKind::Symlink if self.long || matches!(output, Output::Json) => Some(
                self.files.read_link(entry).await.map_err(|e| super::at(self.name, path, &e))?,
            ),
            _ => None,
        };
        match output {
            Output::Json => self.json.push(json(entry, path, target.as_deref())),
            Output::Human => {
                let shown = if entry.name.is_empty() { path } else { &entry.name };
                let shown = escape::terminal(shown);
                if self.long {
                    let arrow = target
                        .map(|target| format!(" -> {}", escape::terminal(&target)))
                        .unwrap_or_default();
                    let owner = entry.owner.map_or_else(
                        || format!("{:>5} {:>5}", "-", "-"),
                        |owner| format!("{:>5} {:>5}", owner.user, owner.group),
                    );
                    writeln!(
                        session.out,
                        "{} {owner} {:>12} {} {shown}{arrow}",
                        entry.mode_text(),
                        entry.len,
                        date(entry.modified),
                    )?;
                } else {
                    writeln!(session.out, "{shown}")?;
                }
                if let Some(problem) = &entry.problem {
                    crate::failure::warn(&format!(
                        "'{}': {}",
                        escape::terminal(path),
                        escape::terminal(problem.as_bytes())
                    ));
                }
            }
        }
        Ok(())
    }
}

/// An entry as JSON.
pub(crate) fn json(entry: &Entry, path: &[u8], target: Option<&[u8]>) -> Json {
    let mut members = vec![
        ("path", Json::text(path)),
        ("type", Json::text(entry.kind.name())),
        ("size", Json::number(entry.len)),
    ];
    if let Some(mode) = entry.mode {
        members.push(("mode", Json::number(mode)));
    }
    if let Some(owner) = entry.owner {
        members.push(("uid", Json::number(owner.user)));
        members.push(("gid", Json::number(owner.group)));
    }
    if let Some(modified) = entry.modified {
        members.push(("mtime", Json::number(modified)));
    }
    if let Some(target) = target {
        members.push(("target", Json::text(target)));
    }
    if let Some(problem) = &entry.problem {
        members.push(("problem", Json::text(problem)));
    }
    Json::Object(members)
}

/// A date in local time, as long as any other.
fn date(seconds: Option<i64>) -> String {
    seconds.and_then(|seconds| Timestamp::from_second(seconds).ok()).map_or_else(
        || format!("{:16}", "-"),
        |time| time.to_zoned(TimeZone::system()).strftime("%Y-%m-%d %H:%M").to_string(),
    )
}
