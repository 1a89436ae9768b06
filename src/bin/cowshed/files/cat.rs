//! `cat`: the bytes of files of the disk.

use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;

use clap::{ArgMatches, Command};

use super::PIECE_LEN_BYTES;
use crate::cli::Session;
use crate::failure::Failure;
use crate::open;

/// The verb's name.
pub(crate) const NAME: &str = "cat";

/// Its options.
pub(crate) fn command() -> Command {
    Command::new(NAME)
        .about("Write files of the disk's file system to standard output")
        .arg(super::partition_argument())
        .args(super::arguments("IMAGE PATH..."))
}

/// Runs it.
pub(crate) fn run(matches: &ArgMatches, session: &mut Session) -> Result<u8, Failure> {
    let (name, paths, opening) = super::image_and_paths(NAME, matches, session)?;
    if paths.is_empty() {
        return Err(Failure::usage(Some(NAME), "Expecting an image file name and a path"));
    }
    open::block_on(async {
        let image = opening.open(&name).await?;
        let files = super::choose(&name, &image, matches).await?;
        let mut piece = vec![0; PIECE_LEN_BYTES];
        for path in &paths {
            let file = super::find(&name, &files, path, true).await?;
            let mut offset = 0;
            loop {
                let read = files.read(&file, offset, &mut piece).await;
                let len = read.map_err(|error| super::at(&name, path.as_bytes(), &error))?;
                if len == 0 {
                    break;
                }
                session.out.write_all(&piece[..len])?;
                offset += len as u64;
            }
        }
        Ok(0)
    })
}
