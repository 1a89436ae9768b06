//! `snapshot -l`: the table of internal snapshots, which `info` prints too. Taking, applying and deleting them needs
//! writing, which is not there yet.

use std::fmt::Write as _;
use std::io::Write as _;

use clap::{ArgMatches, Command};
use cowshed::format::Snapshot;
use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::cli::Session;
use crate::escape;
use crate::failure::Failure;
use crate::open;
use crate::options;
use crate::size;

/// The verb's name.
pub(crate) const NAME: &str = "snapshot";

/// Its options.
pub(crate) fn command() -> Command {
    let action = |id, short, about| {
        options::value(id, short, id, "SNAPSHOT")
            .help(format!("Not supported yet: {about} a snapshot"))
    };
    Command::new(NAME)
        .about("List the internal snapshots of an image")
        .arg(options::flag("list", 'l', "list").help("List them (the default)"))
        .arg(action("create", 'c', "take"))
        .arg(action("apply", 'a', "go back to"))
        .arg(action("delete", 'd', "delete"))
        .arg(options::format("format"))
        .arg(options::quiet())
        .args(options::opening())
        .arg(options::files("FILE"))
}

/// Runs it.
pub(crate) fn run(matches: &ArgMatches, session: &mut Session) -> Result<u8, Failure> {
    let changes = ["create", "apply", "delete"].into_iter().filter(|id| matches.contains_id(id));
    let changes: Vec<_> = changes.collect();
    if changes.len() + usize::from(matches.get_flag("list")) > 1 {
        return Err(Failure::usage(Some(NAME), "Cannot mix '-l', '-a', '-c', '-d'"));
    }
    let [name] = options::file_names(NAME, matches, "one image file name")?;
    let opening = open::Opening::from_matches(matches, session.persona, "format")?;
    if let Some(change) = changes.first() {
        let reason = format!("cannot {change} a snapshot: images are only read so far");
        return Err(Failure::image(&name, "", reason));
    }
    open::block_on(async {
        let image = opening.open(&name).await?;
        write!(session.out, "{}", table(&image.snapshots()))?;
        Ok(0)
    })
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
