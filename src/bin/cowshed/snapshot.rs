//! `snapshot`: internal snapshots are listed, taken, gone back to and deleted. `info` prints the table, too.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::{ArgMatches, Command};
use cowshed::Error;
use cowshed::format::Snapshot;
use cowshed::image::{NewSnapshot, SnapshotSelector, WriteOptions};
use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::cli::Session;
use crate::escape;
use crate::failure::{self, Failure};
use crate::open::{self, DiskImage, Opening};
use crate::options;
use crate::persona::Persona;
use crate::size;

/// The verb's name.
pub(crate) const NAME: &str = "snapshot";

/// Its options.
pub(crate) fn command() -> Command {
    let action =
        |id, short, about: &'static str| options::value(id, short, id, "SNAPSHOT").help(about);
    Command::new(NAME)
        .about("List, take, apply or delete the internal snapshots of an image")
        .arg(options::flag("list", 'l', "list").help("List them (the default)"))
        .arg(action("create", 'c', "Take a snapshot of this name"))
        .arg(action("apply", 'a', "Go back to the snapshot with this ID or, failing that, name"))
        .arg(action("delete", 'd', "Delete the first snapshot of this name"))
        .arg(options::format("format"))
        .arg(options::quiet())
        .args(options::opening())
        .arg(options::files("FILE"))
}

/// What is to be done with the snapshot of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Create,
    Apply,
    Delete,
}

impl Action {
    const ALL: [(Self, &'static str); 3] =
        [(Self::Create, "create"), (Self::Apply, "apply"), (Self::Delete, "delete")];

    /// The word for it in options and messages.
    fn word(self) -> &'static str {
        Self::ALL[self as usize].1
    }
}

/// Runs it.
pub(crate) fn run(matches: &ArgMatches, session: &mut Session) -> Result<u8, Failure> {
    let asked = |&(action, id): &(Action, &str)| Some((action, options::text(matches, id)?));
    let changes: Vec<_> = Action::ALL.iter().filter_map(asked).collect();
    if changes.len() + usize::from(matches.get_flag("list")) > 1 {
        return Err(Failure::usage(Some(NAME), "Cannot mix '-l', '-a', '-c', '-d'"));
    }
    let [name] = options::file_names(NAME, matches, "one image file name")?;
    let opening = Opening::from_matches(matches, session.persona, "format")?;
    open::block_on(async {
        let Some(&(action, snapshot)) = changes.first() else {
            let image = opening.open(&name).await?;
            write!(session.out, "{}", table(&image.snapshots()))?;
            return Ok(0);
        };
        let image = opening.writable(WriteOptions::default()).open_and_warn(&name).await?;
        let changed = change(&image, action, snapshot, &name, session.persona).await;
        let closed = image.close().await;
        changed?;
        closed.map_err(|error| Failure::image(&name, "", open::reason(&error)))?;
        Ok(0)
    })
}

/// Does it to the snapshot called `word`.
async fn change(
    image: &DiskImage,
    action: Action,
    word: &str,
    name: &OsStr,
    persona: Persona,
) -> Result<(), Failure> {
    let is_raw = image.header().is_none();
    if action == Action::Apply && persona != Persona::Cowshed && has_bitmaps(image) {
        // The engine lets the bitmaps say that all has changed; QEMU lets no one ask.
        let reason = "Device has active dirty bitmaps";
        return Err(Failure::image(name, format!("Could not apply snapshot '{word}'"), reason));
    }
    let named = SnapshotSelector::Name(word.as_bytes().to_vec());
    let result = match action {
        Action::Create => image.create_snapshot(&new_snapshot(word)).await.map(drop),
        Action::Apply => {
            let selector = SnapshotSelector::IdOrName(word.as_bytes().to_vec());
            image.apply_snapshot(&selector).await
        }
        Action::Delete if is_raw => {
            Err(Error::NotFound { what: "snapshot", name: word.to_owned() })
        }
        Action::Delete => image.delete_snapshot(&named).await,
    };
    result.map_err(|error| {
        let doing = format!("Could not {} snapshot '{word}'", action.word());
        if let (Action::Apply, Error::InvalidArgument(reason), true) =
            (action, &error, persona != Persona::Cowshed && !is_raw)
        {
            failure::warn(&format!("{}: {reason}", persona.name()));
        }
        let reason = match persona {
            Persona::Cowshed => open::reason(&error),
            Persona::QemuImg | Persona::QemuIo => theirs(action, &error, is_raw),
        };
        Failure::image(name, doing, reason)
    })
}

/// Whether the image has persistent bitmaps, of whatever kind.
fn has_bitmaps(image: &DiskImage) -> bool {
    image.header().is_some_and(|header| header.bitmaps().is_some_and(|it| it.count > 0))
}

/// A snapshot that is taken now, as `qemu-img` describes one.
fn new_snapshot(name: &str) -> NewSnapshot {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut new = NewSnapshot::new(name);
    // After 2106 it cannot be said.
    new.date_sec = u32::try_from(now.as_secs()).unwrap_or(u32::MAX);
    new.date_nsec = now.subsec_nanos();
    new.icount = Some(0);
    new
}

/// Why something cannot be done, in the words of `qemu-img`.
fn theirs(action: Action, error: &Error, is_raw: bool) -> String {
    let reason = match error {
        Error::NotFound { .. } if action == Action::Delete => {
            return "snapshot not found".to_owned();
        }
        _ if is_raw && action == Action::Apply => {
            return "Block driver does not support snapshots".to_owned();
        }
        _ if is_raw => "Operation not supported".to_owned(),
        Error::NotFound { .. } => "No such file or directory".to_owned(),
        Error::LimitExceeded { what: "refcount", .. } => "Invalid argument".to_owned(),
        // The reason is on a line of its own, before this one.
        Error::InvalidArgument(_) if action == Action::Apply => {
            "Operation not supported".to_owned()
        }
        error => crate::io::strerror(error),
    };
    match action {
        Action::Apply => format!("Failed to load snapshot: {reason}"),
        Action::Create | Action::Delete => reason,
    }
}

/// The table with its heading; nothing if there are no snapshots.
pub(crate) fn table(snapshots: &[Snapshot]) -> String {
    let mut out = String::new();
    if snapshots.is_empty() {
        return out;
    }
    out.push_str("Snapshot list:\n");
    row(&mut out, ["ID", "TAG", "VM_SIZE", "DATE", "VM_CLOCK", "ICOUNT"]);
    for snapshot in snapshots {
        row(
            &mut out,
            [
                &escape::terminal(&snapshot.id),
                &escape::terminal(&snapshot.name),
                &size::human(snapshot.vm_state_len),
                &local_time(snapshot.date_sec),
                &clock(snapshot.vm_clock_nsec),
                &snapshot.icount.map_or("--".to_owned(), |icount| icount.to_string()),
            ],
        );
    }
    out
}

/// Writes one line. Widths are of bytes, as C's `printf` counts them.
fn row(out: &mut String, [id, tag, size, date, clock, icount]: [&str; 6]) {
    let left = |text: &str, width: usize| " ".repeat(width.saturating_sub(text.len()));
    let (id_pad, tag_pad) = (left(id, 7), left(tag, 16));
    // Writing to a String does not fail.
    let _ =
        writeln!(out, "{id}{id_pad} {tag}{tag_pad} {size:>8} {date:>19} {clock:>15} {icount:>10}");
}

/// Seconds since 1970 in the local time zone.
fn local_time(seconds: u32) -> String {
    Timestamp::from_second(i64::from(seconds))
        .map(|time| time.to_zoned(TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S").to_string())
        .unwrap_or_default()
}

/// Time that the guest has run: hours, minutes, seconds, milliseconds.
fn clock(nanoseconds: u64) -> String {
    let seconds = nanoseconds / 1_000_000_000;
    let milliseconds = nanoseconds / 1_000_000 % 1000;
    format!("{:04}:{:02}:{:02}.{milliseconds:03}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}
