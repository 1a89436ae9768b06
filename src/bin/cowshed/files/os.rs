//! `os`: the operating systems on a disk.

use std::io::Write as _;

use clap::{ArgMatches, Command};
use cowshed::inspect::files::system::{System, system};

use crate::cli::Session;
use crate::escape;
use crate::failure::Failure;
use crate::json::Json;
use crate::open;
use crate::options::{self, Output};

/// The verb's name.
pub(crate) const NAME: &str = "os";

/// Its options.
pub(crate) fn command() -> Command {
    Command::new(NAME)
        .about("Say which operating system is on the disk")
        .arg(options::output())
        .args(super::arguments("IMAGE"))
        .after_help("Exit code: 0 one was found, 1 an error, 2 none was found.")
}

/// Runs it.
pub(crate) fn run(matches: &ArgMatches, session: &mut Session) -> Result<u8, Failure> {
    let output = Output::from_matches(NAME, matches)?;
    let (name, opening) = super::image_alone(NAME, matches, session)?;
    open::block_on(async {
        let image = opening.open(&name).await?;
        let (_, volumes) = super::volumes(&name, &image).await?;
        let mut found = Vec::new();
        for volume in &volumes {
            let Some(files) = &volume.files else { continue };
            let system = system(files).await.map_err(|error| super::failed(&name, &error))?;
            found.extend(system.map(|system| (volume.number(), system)));
        }
        match output {
            Output::Json => {
                let list = found.iter().map(|(number, system)| json(*number, system)).collect();
                writeln!(session.out, "{}", Json::List(list).pretty())?;
            }
            Output::Human if found.is_empty() => {
                writeln!(session.out, "No operating system found")?
            }
            Output::Human => {
                for (index, (number, system)) in found.iter().enumerate() {
                    if index > 0 {
                        writeln!(session.out)?;
                    }
                    show(*number, system, session)?;
                }
            }
        }
        Ok(if found.is_empty() { 2 } else { 0 })
    })
}

fn show(number: u32, system: &System, session: &mut Session) -> std::io::Result<()> {
    let place =
        if number == 0 { "the whole disk".to_owned() } else { format!("partition {number}") };
    let kernels = system.kernels.join(", ");
    for (what, text) in [
        ("system", system.name.as_str()),
        ("id", &system.id),
        ("version", &system.version),
        ("hostname", &system.hostname),
        ("architecture", &system.architecture),
        ("kernels", &kernels),
        ("place", &place),
    ] {
        if !text.is_empty() {
            writeln!(
                session.out,
                "{:<13} {}",
                format!("{what}:"),
                escape::terminal(text.as_bytes())
            )?;
        }
    }
    Ok(())
}

fn json(number: u32, system: &System) -> Json {
    Json::Object(vec![
        ("partition", Json::number(number)),
        ("name", Json::text(&system.name)),
        ("id", Json::text(&system.id)),
        ("version", Json::text(&system.version)),
        ("hostname", Json::text(&system.hostname)),
        ("architecture", Json::text(&system.architecture)),
        ("kernels", Json::List(system.kernels.iter().map(Json::text).collect())),
    ])
}
