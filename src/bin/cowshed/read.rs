//! `read`: the bytes of a range of the disk, as they are or as a hex dump.

use std::io::Write as _;
use std::path::PathBuf;

use clap::{ArgMatches, Command, value_parser};

use crate::cli::Session;
use crate::failure::Failure;
use crate::open;
use crate::options;
use crate::size::{self, SIZE_MAX, SizeError};

/// The verb's name.
pub(crate) const NAME: &str = "read";

/// How much is read at a time, in bytes.
const PIECE_LEN_BYTES: usize = 1 << 20;
/// How many bytes a line of a dump has.
const LINE_LEN_BYTES: usize = 16;

/// Its options.
pub(crate) fn command() -> Command {
    Command::new(NAME)
        .about("Read a range of the disk: its bytes to standard output, or a hex dump")
        .arg(options::format("format"))
        .arg(
            options::value("snapshot", 'l', "snapshot", "SNAPSHOT")
                .help("Read the snapshot with this id or name"),
        )
        .arg(
            options::long_flag("hex", "hex")
                .short('x')
                .help("Print a hex dump instead of the bytes"),
        )
        .arg(
            options::value("out", 'o', "out", "OUT")
                .value_parser(value_parser!(PathBuf))
                .help("Write to the file OUT instead of standard output"),
        )
        .args(options::opening())
        .args(options::caches())
        .arg(options::files("IMAGE OFFSET LENGTH"))
        .after_help("OFFSET and LENGTH are in bytes, or with a unit: 4k, 1.5G, 0x10000.")
}

/// Runs it.
pub(crate) fn run(matches: &ArgMatches, session: &mut Session) -> Result<u8, Failure> {
    let [name, offset, length] =
        options::file_names(NAME, matches, "an image file name, an offset and a length")?;
    let mut offset = size(&offset.to_string_lossy(), "offset")?;
    let mut rest = size(&length.to_string_lossy(), "length")?;
    let opening = open::Opening::from_matches(matches, session.persona, "format")?
        .at_snapshot(matches, "snapshot");
    let out = matches.get_one::<PathBuf>("out");
    let hex = matches.get_flag("hex");

    open::block_on(async {
        let image = opening.open(&name).await?;
        if offset.checked_add(rest).is_none_or(|end| end > image.virtual_size()) {
            let size = image.virtual_size();
            let reason =
                format!("{rest} bytes at {offset} reach past the end of the disk at {size}");
            return Err(Failure::image(&name, "", reason));
        }
        let mut file = match out {
            Some(path) => Some(std::fs::File::create(path).map_err(|error| {
                Failure::image(path.as_os_str(), "", format!("cannot be written: {error}"))
            })?),
            None => None,
        };
        let mut piece = vec![0; PIECE_LEN_BYTES];
        while rest > 0 {
            let len =
                usize::try_from(rest).map_or(PIECE_LEN_BYTES, |rest| rest.min(PIECE_LEN_BYTES));
            let piece = &mut piece[..len];
            image.read_at(piece, offset).await.map_err(|error| {
                Failure::image(
                    &name,
                    format!("error while reading at byte {offset}"),
                    open::reason(&error),
                )
            })?;
            let dump;
            let bytes = if hex {
                dump = hex_dump(piece, offset);
                dump.as_bytes()
            } else {
                piece
            };
            match (&mut file, out) {
                (Some(file), Some(path)) => file.write_all(bytes).map_err(|error| {
                    Failure::image(path.as_os_str(), "", format!("cannot be written: {error}"))
                })?,
                _ => session.out.write_all(bytes)?,
            }
            offset += len as u64;
            rest -= len as u64;
        }
        Ok(0)
    })
}

fn size(text: &str, what: &str) -> Result<u64, Failure> {
    size::parse(text).map_err(|error| {
        let message = match error {
            SizeError::Syntax => {
                format!("invalid {what} '{text}': expecting a number of bytes, or one with a unit")
            }
            SizeError::Range => {
                format!("invalid {what} '{text}': it must be between 0 and {SIZE_MAX}")
            }
        };
        Failure::usage(Some(NAME), message)
    })
}

/// The lines that `qemu-io`'s `read -v` prints of bytes that lie at `offset`.
fn hex_dump(bytes: &[u8], mut offset: u64) -> String {
    use std::fmt::Write as _;
    let mut out = String::with_capacity(bytes.len() / LINE_LEN_BYTES * 78 + 78);
    for line in bytes.chunks(LINE_LEN_BYTES) {
        // Writing to a String does not fail.
        let _ = write!(out, "{offset:08x}:  ");
        for byte in line {
            let _ = write!(out, "{byte:02x} ");
        }
        for _ in line.len()..LINE_LEN_BYTES {
            out.push_str("   ");
        }
        out.push(' ');
        out.extend(
            line.iter()
                .map(|&byte| if matches!(byte, b' '..=b'~') { char::from(byte) } else { '.' }),
        );
        out.push('\n');
        offset += line.len() as u64;
    }
    out
}
