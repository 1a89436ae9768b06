//! `tar`: a folder of the disk as an archive.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

use clap::{ArgMatches, Command, value_parser};
use cowshed::inspect::files::archive::{Archive, Piece};

use crate::cli::Session;
use crate::escape;
use crate::failure::{Failure, warn};
use crate::open;
use crate::options;

/// The verb's name.
pub(crate) const NAME: &str = "tar";

/// Its options.
pub(crate) fn command() -> Command {
    Command::new(NAME)
        .about("Write a folder of the disk's file system as a tar archive")
        .arg(super::partition_argument())
        .arg(
            options::value("out", 'o', "out", "OUT")
                .value_parser(value_parser!(PathBuf))
                .help("Write to the file OUT instead of standard output"),
        )
        .args(super::arguments("IMAGE [PATH]"))
        .after_help(
            "Names in the archive are relative to PATH, so that it extracts below the folder that it is extracted in.\n\
             Device files and sockets are left out, with a warning; so is what is damaged, and the exit code is 1 then.",
        )
}

/// Runs it.
pub(crate) fn run(matches: &ArgMatches, session: &mut Session) -> Result<u8, Failure> {
    let (name, path, opening) = super::image_and_path(NAME, matches, session)?;
    let out = matches.get_one::<PathBuf>("out");
    open::block_on(async {
        let image = opening.open(&name).await?;
        let files = super::choose(&name, &image, matches).await?;
        let top = super::find(&name, &files, &path, true).await?;
        let mut file = match out {
            Some(path) => Some(File::create(path).map_err(|error| {
                Failure::image(path.as_os_str(), "", format!("cannot be written: {error}"))
            })?),
            None => None,
        };
        let out: &mut dyn Write = match &mut file {
            Some(file) => file,
            None => &mut session.out,
        };
        let say = |path: &[u8], text: &str| {
            let (path, text) = (escape::terminal(path), escape::terminal(text.as_bytes()));
            warn(&format!("'{path}' {text}"));
        };
        let mut archive = Archive::new(top);
        let mut bytes = Vec::new();
        let mut code = 0;
        while let Some(piece) =
            archive.next(&files, &mut bytes).await.map_err(|error| super::failed(&name, &error))?
        {
            match piece {
                Piece::Bytes => out.write_all(&bytes)?,
                Piece::LeftOut { path, text } => say(&path, &text),
                Piece::Damaged { path, text } => {
                    say(&path, &text);
                    code = 1;
                }
            }
        }
        Ok(code)
    })
}
