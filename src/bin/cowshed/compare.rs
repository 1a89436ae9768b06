//! `compare`: do two images hold the same disk?

use std::ffi::OsStr;
use std::io::Write as _;

use clap::{ArgMatches, Command};
use cowshed::image::{Extent, ExtentKind};
use futures::future;

use crate::cli::Session;
use crate::failure::Failure;
use crate::open::{self, DiskExtents, DiskImage};
use crate::options;
use crate::progress::Progress;

/// The verb's name.
pub(crate) const NAME: &str = "compare";

/// Exit code: an image cannot be opened.
const OPEN_FAILED: u8 = 2;
/// Exit code: it cannot be found out what is where.
const MAP_FAILED: u8 = 3;
/// Exit code: data cannot be read.
const READ_FAILED: u8 = 4;

/// How much of both images is read at a time, in bytes.
const PIECE_LEN_BYTES: u64 = 2 << 20;
/// What differs is said by the sector.
const SECTOR_LEN_BYTES: usize = 512;
/// Percent between two reports of progress.
const PROGRESS_STEP: f32 = 2.0;

/// Its options.
pub(crate) fn command() -> Command {
    Command::new(NAME)
        .about("Compare what two images hold, whatever their formats")
        .arg(options::format("a-format").help("Take FILE1 for FMT instead of looking at its first bytes"))
        .arg(
            options::value("b-format", 'F', "b-format", "FMT")
                .help("Take FILE2 for FMT instead of looking at its first bytes"),
        )
        .arg(options::flag("strict", 's', "strict").help("Sizes and allocation must be the same too"))
        .arg(options::value("cache", 'T', "cache", "MODE").help("Cache mode, as QEMU names them (default: writeback)"))
        .arg(options::progress())
        .arg(options::quiet())
        .args(options::opening())
        .args(options::caches())
        .arg(options::files("FILE1 FILE2"))
        .after_help(
            "Exit code: 0 the same, 1 different, 2 an image cannot be opened, 3 its metadata or 4 its data cannot be \
             read.\nZeros beyond the end of the shorter image make no difference unless --strict is given.",
        )
}

/// Runs it.
pub(crate) fn run(matches: &ArgMatches, session: &mut Session) -> Result<u8, Failure> {
    let [first, second] = options::file_names(NAME, matches, "two image file names")?;
    let cache = options::text(matches, "cache").unwrap_or("writeback");
    if !options::is_cache_mode(cache) {
        let message = format!("Invalid source cache option: {cache}");
        return Err(Failure::message(message).with_code(OPEN_FAILED));
    }
    let first_opening = open::Opening::from_matches(matches, session.persona, "format")?;
    let second_opening = open::Opening::from_matches(matches, session.persona, "b-format")?;
    let quiet = matches.get_flag("quiet");
    let strict = matches.get_flag("strict");
    let mut progress = Progress::new(matches.get_flag("progress") && !quiet, PROGRESS_STEP)?;

    let verdict = open::block_on(async {
        let first_image =
            first_opening.open(&first).await.map_err(|failure| failure.with_code(OPEN_FAILED))?;
        let second_image =
            second_opening.open(&second).await.map_err(|failure| failure.with_code(OPEN_FAILED))?;
        let mut sides = [Side::new(&first, &first_image), Side::new(&second, &second_image)];
        compare(&mut sides, strict, quiet, session, &mut progress).await
    });
    session.out.flush()?;
    progress.end()?;
    verdict
}

/// One of the images, and where the comparison is in it.
struct Side<'a> {
    name: &'a OsStr,
    image: &'a DiskImage,
    extents: Option<DiskExtents<'a>>,
    extent: Option<Extent>,
    buffer: Vec<u8>,
}

impl<'a> Side<'a> {
    fn new(name: &'a OsStr, image: &'a DiskImage) -> Self {
        Self { name, image, extents: None, extent: None, buffer: Vec::new() }
    }

    /// What lies at `offset` and how far that goes; offsets only grow.
    async fn at(&mut self, offset: u64) -> Result<(Content, u64), Failure> {
        loop {
            if let Some(extent) = self.extent.filter(|extent| offset < extent.offset + extent.len) {
                return Ok((Content::of(&extent), extent.offset + extent.len));
            }
            let doing = format!("Sector allocation test failed for {}", self.name.display());
            self.extent = self.next().await.map_err(|error| {
                Failure::image(self.name, doing, open::reason(&error)).with_code(MAP_FAILED)
            })?;
            if self.extent.is_none() {
                // Not before the end of the disk.
                return Ok((
                    Content {
                        zero: true,
                        present: false,
                        place: false,
                        compressed: false,
                        data: false,
                    },
                    u64::MAX,
                ));
            }
        }
    }

    async fn next(&mut self) -> cowshed::Result<Option<Extent>> {
        let extents = match &mut self.extents {
            Some(extents) => extents,
            none => none.insert(open::extents(self.image, 0, self.image.virtual_size()).await?),
        };
        extents.next().await
    }

    /// Reads `len` bytes at `offset`.
    async fn read(&mut self, offset: u64, len: u64) -> Result<(), Failure> {
        // OK to unwrap: a piece is a few MiB.
        self.buffer.resize(usize::try_from(len).unwrap_or(usize::MAX), 0);
        self.image.read_at(&mut self.buffer, offset).await.map_err(|error| {
            let doing = format!("Error while reading offset {offset} of {}", self.name.display());
            Failure::image(self.name, doing, open::reason(&error)).with_code(READ_FAILED)
        })
    }
}

/// What matters of an extent: all of it to a strict comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Content {
    zero: bool,
    data: bool,
    present: bool,
    place: bool,
    compressed: bool,
}

impl Content {
    fn of(extent: &Extent) -> Self {
        let none =
            Self { zero: false, data: false, present: true, place: false, compressed: false };
        match extent.kind {
            ExtentKind::Data { .. } => Self { data: true, place: true, ..none },
            ExtentKind::Hole { .. } => Self { zero: true, place: true, ..none },
            ExtentKind::Zero { host } => Self { zero: true, place: host.is_some(), ..none },
            ExtentKind::Compressed { .. } => Self { data: true, compressed: true, ..none },
            ExtentKind::Unallocated { host } => {
                Self { zero: true, present: false, place: host.is_some(), ..none }
            }
        }
    }
}

async fn compare(
    sides: &mut [Side<'_>; 2],
    strict: bool,
    quiet: bool,
    session: &mut Session,
    progress: &mut Progress,
) -> Result<u8, Failure> {
    let mut say = |text: std::fmt::Arguments<'_>| {
        if quiet {
            return Ok(());
        }
        // At once, for progress may be shown behind it.
        writeln!(session.out, "{text}")?;
        session.out.flush()
    };
    let sizes = [sides[0].image.virtual_size(), sides[1].image.virtual_size()];
    let [common, longest] = [sizes[0].min(sizes[1]), sizes[0].max(sizes[1])];
    progress.start(longest);
    if strict && sizes[0] != sizes[1] {
        say(format_args!("Strict mode: Image size mismatch!"))?;
        return Ok(1);
    }
    let mut offset = 0;
    while offset < common {
        let [one, other] = &mut *sides;
        let ((first, first_end), (second, second_end)) =
            (one.at(offset).await?, other.at(offset).await?);
        if strict && first != second {
            say(format_args!("Strict mode: Offset {offset} block status mismatch!"))?;
            return Ok(1);
        }
        let mut end = common.min(first_end).min(second_end);
        if !(first.zero && second.zero) {
            end = end.min(offset + PIECE_LEN_BYTES);
            let len = end - offset;
            let different = if first.zero {
                other.read(offset, len).await?;
                first_data(&other.buffer)
            } else if second.zero {
                one.read(offset, len).await?;
                first_data(&one.buffer)
            } else {
                let (first_read, second_read) =
                    future::join(one.read(offset, len), other.read(offset, len)).await;
                first_read.and(second_read)?;
                first_difference(&one.buffer, &other.buffer)
            };
            if let Some(different) = different {
                say(format_args!("Content mismatch at offset {}!", offset + different))?;
                return Ok(1);
            }
        }
        offset = end;
        progress.set(offset)?;
    }
    if sizes[0] != sizes[1] {
        say(format_args!("Warning: Image size mismatch!"))?;
    }
    let over = &mut sides[usize::from(sizes[1] > sizes[0])];
    while offset < longest {
        let (content, mut end) = over.at(offset).await?;
        end = end.min(longest);
        if !content.zero {
            end = end.min(offset + PIECE_LEN_BYTES);
            over.read(offset, end - offset).await?;
            if let Some(different) = first_data(&over.buffer) {
                say(format_args!("Content mismatch at offset {}!", offset + different))?;
                return Ok(1);
            }
        }
        offset = end;
        progress.set(offset)?;
    }
    say(format_args!("Images are identical."))?;
    Ok(0)
}

/// Start of the first sector that is not all zeros.
fn first_data(bytes: &[u8]) -> Option<u64> {
    bytes
        .chunks(SECTOR_LEN_BYTES)
        .position(|sector| sector.iter().fold(0, |all, byte| all | byte) != 0)
        .map(|sector| (sector * SECTOR_LEN_BYTES) as u64)
}

/// Start of the first sector that differs.
fn first_difference(one: &[u8], other: &[u8]) -> Option<u64> {
    if one == other {
        return None;
    }
    one.chunks(SECTOR_LEN_BYTES)
        .zip(other.chunks(SECTOR_LEN_BYTES))
        .position(|(one, other)| one != other)
        .map(|sector| (sector * SECTOR_LEN_BYTES) as u64)
}
