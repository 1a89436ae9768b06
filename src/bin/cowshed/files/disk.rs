//! `disk`: the partitions of a disk and the file systems in them.

use std::io::Write as _;

use clap::{ArgMatches, Command};
use cowshed::inspect::partitions::Partitions;

use super::Volume;
use crate::cli::Session;
use crate::escape;
use crate::failure::{Failure, warn};
use crate::json::Json;
use crate::open;
use crate::options::{self, Output};
use crate::size;

/// The verb's name.
pub(crate) const NAME: &str = "disk";

/// Its options.
pub(crate) fn command() -> Command {
    Command::new(NAME)
        .about("List the partitions of the disk and the file systems in them")
        .arg(options::output())
        .args(super::arguments("IMAGE"))
}

/// Runs it.
pub(crate) fn run(matches: &ArgMatches, session: &mut Session) -> Result<u8, Failure> {
    let output = Output::from_matches(NAME, matches)?;
    let (name, opening) = super::image_alone(NAME, matches, session)?;
    open::block_on(async {
        let image = opening.open(&name).await?;
        let (table, volumes) = super::volumes(&name, &image).await?;
        match output {
            Output::Json => {
                writeln!(session.out, "{}", json(&table, &volumes).pretty())?;
            }
            Output::Human => {
                writeln!(session.out, "partition table: {}", table.table.name())?;
                show(&volumes, session)?;
                session.out.flush()?;
                for finding in &table.findings {
                    warn(&escape::terminal(finding.as_bytes()));
                }
            }
        }
        Ok(0)
    })
}

/// Prints the volumes as a table.
fn show(volumes: &[Volume<'_>], session: &mut Session) -> std::io::Result<()> {
    let mut rows = vec![["#", "START", "SIZE", "FILES", "LABEL", "TYPE"].map(str::to_owned)];
    for volume in volumes {
        let label = volume.files.as_ref().map_or(&[][..], |files| files.label());
        let kind = volume.partition.as_ref().map_or_else(
            || "whole disk".to_owned(),
            |partition| {
                let code = partition.kind.to_string();
                let kind = partition.kind.name().map_or(code, str::to_owned);
                let boot = if partition.bootable { ", bootable" } else { "" };
                let name = match partition.name.is_empty() {
                    true => String::new(),
                    false => format!(" \"{}\"", escape::terminal(partition.name.as_bytes())),
                };
                format!("{kind}{name}{boot}")
            },
        );
        rows.push([
            volume.number().to_string(),
            size::human(volume.start),
            size::human(volume.len),
            files_text(volume),
            if label.is_empty() { "-".to_owned() } else { escape::terminal(label) },
            kind,
        ]);
    }
    let width =
        |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths = [0, 1, 2, 3, 4].map(width);
    for [number, start, len, files, label, kind] in &rows {
        writeln!(
            session.out,
            "{number:>0$}  {start:>1$}  {len:>2$}  {files:<3$}  {label:<4$}  {kind}",
            widths[0], widths[1], widths[2], widths[3], widths[4]
        )?;
    }
    session.out.flush()?;
    for volume in volumes {
        if let Some(problem) = &volume.problem {
            warn(&format!(
                "partition {}: {}",
                volume.number(),
                escape::terminal(open::reason(problem).as_bytes())
            ));
        }
    }
    Ok(())
}

/// The kind of its file system, in brackets if it is not read.
fn files_text(volume: &Volume<'_>) -> String {
    match (&volume.files, volume.foreign) {
        (Some(files), _) => files.kind().to_owned(),
        (None, Some(foreign)) => format!("[{foreign}]"),
        (None, None) => "-".to_owned(),
    }
}

fn json(table: &Partitions, volumes: &[Volume<'_>]) -> Json {
    let volumes = volumes.iter().map(|volume| {
        let mut members = vec![
            ("partition", Json::number(volume.number())),
            ("start", Json::number(volume.start)),
            ("length", Json::number(volume.len)),
        ];
        if let Some(partition) = &volume.partition {
            members.push(("type", Json::text(partition.kind.to_string())));
            members.push(("bootable", Json::Bool(partition.bootable)));
            if let Some(kind) = partition.kind.name() {
                members.push(("type-name", Json::text(kind)));
            }
            if !partition.name.is_empty() {
                members.push(("name", Json::text(&partition.name)));
            }
            if let Some(uuid) = &partition.uuid {
                members.push(("uuid", Json::text(uuid)));
            }
        }
        if let Some(files) = &volume.files {
            members.push(("file-system", Json::text(files.kind())));
            members.push(("label", Json::text(files.label())));
            if let Some(uuid) = files.uuid() {
                members.push(("file-system-uuid", Json::text(uuid)));
            }
        }
        if let Some(foreign) = volume.foreign {
            members.push(("not-read", Json::text(foreign)));
        }
        if let Some(problem) = &volume.problem {
            members.push(("problem", Json::text(open::reason(problem))));
        }
        Json::Object(members)
    });
    Json::Object(vec![
        ("table", Json::text(table.table.name())),
        ("volumes", Json::List(volumes.collect())),
        ("findings", Json::List(table.findings.iter().map(Json::text).collect())),
    ])
}
