//! `tar`: a folder of the disk as an archive.

use std::fs::File;
use std::io::Write;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use clap::{ArgMatches, Command, value_parser};
use cowshed::inspect::files::{Entry, FileKind, tar};

use super::{DEPTH_MAX, PIECE_LEN_BYTES};
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
             Device files and sockets are left out, with a warning.",
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
        let mut piece = vec![0; PIECE_LEN_BYTES];
        // What is still to be written, the next one last: its name in the archive and how deep it lies.
        let mut rest: Vec<(Entry, Vec<u8>, usize)> = Vec::new();
        if top.kind == FileKind::Folder {
            let entries = super::sorted(&name, &files, &top, path.as_bytes()).await?;
            rest.extend(entries.into_iter().rev().map(|entry| {
                let path = entry.name.clone();
                (entry, path, 1)
            }));
        } else {
            let path = top.name.clone();
            rest.push((top, path, 1));
        }
        while let Some((entry, path, depth)) = rest.pop() {
            let failed = |error| super::at(&name, &path, &error);
            let left_out = |why: &str| {
                warn(&format!("'{}' is left out: {why}", escape::terminal(&path)));
            };
            if !entry.has_plain_name() {
                left_out("its name is not one for a file");
                continue;
            }
            let link = match entry.kind {
                FileKind::Symlink => Some(files.read_link(&entry).await.map_err(failed)?),
                _ => None,
            };
            let Some(header) = tar::header(&entry, &path, link.as_deref()).map_err(failed)? else {
                left_out(entry.problem.as_deref().unwrap_or(entry.kind.name()));
                continue;
            };
            out.write_all(&header)?;
            match entry.kind {
                FileKind::File => {
                    let mut offset = 0;
                    while offset < entry.len {
                        let len = files.read(&entry, offset, &mut piece).await.map_err(failed)?;
                        out.write_all(&piece[..len])?;
                        offset += len as u64;
                    }
                    out.write_all(&vec![0; tar::padding(entry.len)])?;
                }
                FileKind::Folder if depth >= DEPTH_MAX => left_out("it lies too deep"),
                FileKind::Folder => {
                    let entries = super::sorted(&name, &files, &entry, &path).await?;
                    rest.extend(entries.into_iter().rev().map(|entry| {
                        let path = super::join(&path, &entry.name);
                        (entry, path, depth + 1)
                    }));
                }
                _ => {}
            }
        }
        out.write_all(&[0; tar::END_BYTES])?;
        Ok(0)
    })
}
