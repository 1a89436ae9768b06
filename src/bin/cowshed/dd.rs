//! `dd`: blocks of a disk, as the operands `if=`, `of=`, `bs=`, `count=` and `skip=` say, as a new image.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};

use clap::{ArgMatches, Command};
use cowshed::image::WriteOptions;

use crate::cli::Session;
use crate::failure::{Failure, warn};
use crate::format_options::FormatOptions;
use crate::image_format::ImageFormat;
use crate::new_image::NewImage;
use crate::open::{self, DiskImage, Opening};
use crate::options;
use crate::persona::Persona;
use crate::secret::Secrets;
use crate::size::{self, SIZE_MAX, SizeError};

/// The verb's name.
pub(crate) const NAME: &str = "dd";

/// The length of a block if none is given, in bytes.
const BLOCK_LEN_BYTES_DEFAULT: u64 = 512;
/// The greatest length of a block, in bytes.
const BLOCK_LEN_BYTES_MAX: u64 = i32::MAX as u64;
/// How much is copied at a time at most, in bytes: blocks only say how much there is to copy.
const PIECE_LEN_BYTES: u64 = 2 << 20;

/// Its options.
pub(crate) fn command() -> Command {
    Command::new(NAME)
        .about("Copy blocks of a disk into a new image: bs=SIZE count=N skip=N if=FILE of=FILE")
        .arg(options::format("format"))
        .arg(
            options::value("output-format", 'O', "output-format", "FMT")
                .help("Format of the new image: raw (the default), qcow2 or luks"),
        )
        .args(options::opening())
        .arg(options::files("OPERAND..."))
}

/// Runs it.
pub(crate) fn run(matches: &ArgMatches, session: &mut Session) -> Result<u8, Failure> {
    let mut operands = Operands::default();
    for operand in matches.get_many::<OsString>("files").into_iter().flatten() {
        operands.take(operand)?;
    }
    let (Some(input), Some(output)) = (&operands.input, &operands.output) else {
        return Err(Failure::message("Must specify both input and output files"));
    };
    let opening = Opening::from_matches(matches, session.persona, "format")?;
    let format_name = options::text(matches, "output-format").unwrap_or("raw");

    open::block_on(async {
        let image = opening.open(input).await?;
        let format = ImageFormat::from_name(format_name)
            .ok_or_else(|| Failure::message("Unknown file format"))?;
        let blocks = operands.blocks(image.virtual_size());
        make(output, format, blocks.created_len, session.persona).await?;
        let target = Opening::new(session.persona)
            .format(Some(format.name().to_owned()))
            .writable(WriteOptions::default())
            .open(output)
            .await?;
        if blocks.skips_too_much {
            let input = crate::escape::terminal(input.as_bytes());
            let name = session.persona.name();
            warn(&format!("{name}: {input}: cannot skip to specified offset"));
        }
        let copied = copy(&image, &target, blocks.start..blocks.end).await;
        let closed = target.close().await;
        copied?;
        closed.map_err(|error| Failure::image(output, "", open::reason(&error)))?;
        Ok(0)
    })
}

/// What the command line says beside its options.
#[derive(Debug)]
struct Operands {
    input: Option<OsString>,
    output: Option<OsString>,
    block_len: u64,
    count: Option<u64>,
    skip: u64,
}

impl Default for Operands {
    fn default() -> Self {
        let block_len = BLOCK_LEN_BYTES_DEFAULT;
        Self { input: None, output: None, block_len, count: None, skip: 0 }
    }
}

/// Which bytes are copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Blocks {
    start: u64,
    end: u64,
    /// The size of the new disk.
    created_len: u64,
    skips_too_much: bool,
}

impl Operands {
    /// Takes note of `NAME=VALUE`.
    fn take(&mut self, operand: &OsStr) -> Result<(), Failure> {
        let bytes = operand.as_bytes();
        let split = bytes.iter().position(|byte| *byte == b'=');
        let (name, value) = match split {
            Some(at) => (&bytes[..at], &bytes[at + 1..]),
            None => (bytes, &[][..]),
        };
        let text = String::from_utf8_lossy(value);
        match (name, split) {
            (b"if", Some(_)) => self.input = Some(OsString::from_vec(value.to_vec())),
            (b"of", Some(_)) => self.output = Some(OsString::from_vec(value.to_vec())),
            (b"bs", Some(_)) => {
                self.block_len = number("bs", &text, 1..=BLOCK_LEN_BYTES_MAX, true)?
            }
            (b"count", Some(_)) => self.count = Some(number("count", &text, 0..=SIZE_MAX, false)?),
            (b"skip", Some(_)) => self.skip = number("skip", &text, 0..=SIZE_MAX, false)?,
            _ => {
                let name = crate::escape::terminal(name);
                return Err(Failure::message(format!("unrecognized operand {name}")));
            }
        }
        Ok(())
    }

    /// The bytes of a disk of `size` bytes. What is skipped counts as copied, as with `qemu-img`.
    fn blocks(&self, size: u64) -> Blocks {
        let asked = self.count.and_then(|count| count.checked_mul(self.block_len));
        let end = asked.filter(|asked| *asked <= SIZE_MAX).map_or(size, |asked| asked.min(size));
        let start = self.skip.checked_mul(self.block_len).filter(|start| *start <= end);
        let skips_too_much = start.is_none();
        let start = start.unwrap_or(end);
        Blocks { start, end, created_len: end - start, skips_too_much }
    }
}

/// The value of an operand; `with_unit` if a unit may stand behind it.
fn number(
    name: &str,
    text: &str,
    range: std::ops::RangeInclusive<u64>,
    with_unit: bool,
) -> Result<u64, Failure> {
    let invalid = || Failure::message(format!("Invalid {name} specified: '{text}'."));
    let ends_in_digit = text.ends_with(|c: char| c.is_ascii_digit());
    if !with_unit && !ends_in_digit {
        return Err(invalid());
    }
    match size::parse(text) {
        Ok(value) if range.contains(&value) => Ok(value),
        Ok(_) | Err(SizeError::Range) => Err(Failure::message(format!(
            "Invalid {name} specified. Must be between {} and {}.",
            range.start(),
            range.end()
        ))),
        Err(SizeError::Syntax) => Err(invalid()),
    }
}

/// Makes the new image.
async fn make(
    name: &OsStr,
    format: ImageFormat,
    size: u64,
    persona: Persona,
) -> Result<(), Failure> {
    let doing = format!("{}: error while creating output image", name.display());
    let image = NewImage { name, persona, converting: None, volatile: false };
    let mut options = FormatOptions::parse(format, None).map_err(|e| image.wrong_options(e))?;
    options.set("size", size.to_string()).map_err(|error| image.wrong_options(error))?;
    let made = image.create(format, &options, &Secrets::default(), &[]).await;
    made.map_err(|failure| failure.doing(doing))
}

async fn copy(
    image: &DiskImage,
    target: &DiskImage,
    range: std::ops::Range<u64>,
) -> Result<(), Failure> {
    let mut buf = Vec::new();
    let mut at = range.start;
    while at < range.end {
        // OK to narrow: a few MiB.
        buf.resize(usize::try_from((range.end - at).min(PIECE_LEN_BYTES)).unwrap_or(0), 0);
        image.read_at(&mut buf, at).await.map_err(|error| {
            let doing = "error while reading from input image file";
            Failure::message(format!("{doing}: {}", open::reason(&error)))
        })?;
        target.write_at(&buf, at - range.start).await.map_err(|error| {
            let doing = "error while writing to output image file";
            Failure::message(format!("{doing}: {}", open::reason(&error)))
        })?;
        at += buf.len() as u64;
    }
    Ok(())
}
