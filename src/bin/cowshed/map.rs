//! `map`: what lies where, as a table of the data or as JSON of everything.

use std::ffi::OsStr;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use clap::{ArgMatches, Command};
use cowshed::format::{CryptMethod, HostOffset};
use cowshed::image::{Extent, ExtentKind, Format, LayerInfo};

use crate::bitmap_map;
use crate::cli::Session;
use crate::escape;
use crate::failure::Failure;
use crate::node::Node;
use crate::open;
use crate::options::{self, Output};
use crate::size::SIZE_MAX;

/// The verb's name.
pub(crate) const NAME: &str = "map";

/// Its options.
pub(crate) fn command() -> Command {
    Command::new(NAME)
        .about("Show which parts of the disk are where in which file of the backing chain")
        .arg(options::format("format"))
        .arg(
            options::value("start", 's', "start-offset", "OFFSET")
                .help("Start at guest OFFSET (default: 0)"),
        )
        .arg(
            options::value("length", 'l', "max-length", "LENGTH")
                .help("Look at LENGTH bytes at most"),
        )
        .arg(options::long_value("bitmap", "bitmap", "NAME").help(
            "Show which parts of the disk the persistent bitmap NAME marks as changed, instead",
        ))
        .arg(options::output())
        .args(options::opening())
        .args(options::caches())
        .arg(options::files("FILE"))
}

/// Runs it.
pub(crate) fn run(matches: &ArgMatches, session: &mut Session) -> Result<u8, Failure> {
    let first = options::bytes(matches, "start", "start offset", 0..=SIZE_MAX)?.unwrap_or(0);
    let length = options::bytes(matches, "length", "max length", 0..=SIZE_MAX)?;
    let output = Output::from_matches(NAME, matches)?;
    let [name] = options::file_names(NAME, matches, "one image file name")?;
    let opening = open::Opening::from_matches(matches, session.persona, "format")?;

    open::block_on(async {
        let image = opening.open(&name).await?;
        if let Some(bitmap) = options::text(matches, "bitmap") {
            let end = length.map_or(u64::MAX, |length| first.saturating_add(length));
            bitmap_map::print(&image, bitmap, first..end, output, session).await?;
            return Ok(0);
        }
        let layers = image.layers().enumerate();
        let layers: Vec<_> =
            layers.map(|(depth, info)| Layer::new(info, image.layer_storage(depth))).collect();
        let mut table = Table { output, layers: &layers, current: None };
        table.begin(session)?;
        let end = match length {
            Some(length) => image.virtual_size().min(first.saturating_add(length)),
            None => image.virtual_size(),
        };
        let failed =
            |error| Failure::image(&name, "Could not read file metadata", open::reason(&error));
        let start = first.min(image.virtual_size());
        let mut extents =
            open::extents(&image, start, end.saturating_sub(start)).await.map_err(failed)?;
        while let Some(extent) = extents.next().await.map_err(failed)? {
            table.add(session, &extent)?;
        }
        table.end(session, first)?;
        Ok(0)
    })
}

/// A layer, and the file that its data is in.
struct Layer<'a> {
    info: LayerInfo<'a>,
    file: PathBuf,
    is_encrypted: bool,
}

impl<'a> Layer<'a> {
    fn new(info: LayerInfo<'a>, node: &Node) -> Self {
        let method = info.header.as_ref().map_or(CryptMethod::None, |header| header.crypt);
        let is_encrypted = method != CryptMethod::None || node.volume().is_some();
        let data_file = info.header.as_ref().and_then(|header| header.data_file());
        let file = match data_file {
            Some(name) => {
                info.location.parent().unwrap_or(Path::new("")).join(OsStr::from_bytes(name))
            }
            None => info.location.to_owned(),
        };
        Self { info, file, is_encrypted }
    }
}

/// The rows, of which neighbours that say the same are joined.
struct Table<'a> {
    output: Output,
    layers: &'a [Layer<'a>],
    current: Option<Row<'a>>,
}

/// What is printed of an extent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Row<'a> {
    start: u64,
    len: u64,
    depth: usize,
    /// Whether the layer has it, rather than inheriting it.
    present: bool,
    zero: bool,
    data: bool,
    compressed: bool,
    /// Where it is in a file, if it is there byte for byte.
    place: Option<(u64, &'a Path)>,
}

impl<'a> Row<'a> {
    fn new(extent: &Extent, layers: &'a [Layer<'a>]) -> Self {
        let layer = &layers[extent.depth];
        // What is encrypted is nowhere byte for byte.
        let place = |host: HostOffset| (!layer.is_encrypted).then_some((host.get(), &*layer.file));
        let row = Row {
            start: extent.offset,
            len: extent.len,
            depth: extent.depth,
            present: true,
            zero: false,
            data: false,
            compressed: false,
            place: None,
        };
        match extent.kind {
            ExtentKind::Data { host } => Row { data: true, place: place(host), ..row },
            // A hole in an image's cluster is data to the image; in a raw file it is nothing but zeros.
            ExtentKind::Hole { host } => Row {
                zero: true,
                data: layer.info.format == Format::Qcow2,
                place: place(host),
                ..row
            },
            ExtentKind::Zero { host: Some(host) } => Row { zero: true, place: place(host), ..row },
            ExtentKind::Zero { host: None } => Row { zero: true, ..row },
            ExtentKind::Compressed { .. } => Row { data: true, compressed: true, ..row },
            ExtentKind::Unallocated { host } => {
                Row { zero: true, present: false, place: host.and_then(place), ..row }
            }
        }
    }

    /// Whether `next` only continues this row.
    fn goes_on_in(&self, next: &Self) -> bool {
        let place = self.place.map(|(offset, file)| (offset + self.len, file));
        let start = self.start + self.len;
        Row { start, len: next.len, place, ..*self } == *next
    }
}

impl<'a> Table<'a> {
    fn begin(&self, session: &mut Session) -> Result<(), Failure> {
        match self.output {
            Output::Human => {
                writeln!(session.out, "{:<16}{:<16}{:<16}File", "Offset", "Length", "Mapped to")?;
            }
            Output::Json => write!(session.out, "[")?,
        }
        Ok(())
    }

    fn add(&mut self, session: &mut Session, extent: &Extent) -> Result<(), Failure> {
        let row = Row::new(extent, self.layers);
        match &mut self.current {
            Some(current) if current.goes_on_in(&row) => current.len += row.len,
            Some(current) => {
                let current = std::mem::replace(current, row);
                self.print(session, &current)?;
                if self.output == Output::Json {
                    writeln!(session.out, ",")?;
                }
            }
            None => self.current = Some(row),
        }
        Ok(())
    }

    /// Prints the last row; an empty range has one that says nothing.
    fn end(&mut self, session: &mut Session, start: u64) -> Result<(), Failure> {
        let nothing = Row {
            start,
            len: 0,
            depth: 0,
            present: false,
            zero: false,
            data: false,
            compressed: false,
            place: None,
        };
        let last = self.current.take().unwrap_or(nothing);
        let printed = self.print(session, &last);
        if self.output == Output::Json {
            writeln!(session.out, "]")?;
        }
        printed
    }

    fn print(&self, session: &mut Session, row: &Row<'_>) -> Result<(), Failure> {
        match self.output {
            Output::Human => {
                if row.data && row.place.is_none() {
                    return Err(Failure::message(
                        "File contains external, encrypted or compressed clusters.",
                    ));
                }
                if let (true, false, Some((offset, file))) = (row.data, row.zero, row.place) {
                    writeln!(
                        session.out,
                        "{:<16}{:<16}{:<16}{}",
                        hexadecimal(row.start),
                        hexadecimal(row.len),
                        hexadecimal(offset),
                        escape::path(file)
                    )?;
                }
            }
            Output::Json => {
                write!(
                    session.out,
                    "{{ \"start\": {}, \"length\": {}, \"depth\": {}, \"present\": {}, \"zero\": {}, \
                     \"data\": {}, \"compressed\": {}",
                    row.start, row.len, row.depth, row.present, row.zero, row.data, row.compressed
                )?;
                if let Some((offset, _)) = row.place {
                    write!(session.out, ", \"offset\": {offset}")?;
                }
                write!(session.out, "}}")?;
            }
        }
        Ok(())
    }
}

/// C's `%#x`: zero has no prefix.
pub(crate) fn hexadecimal(number: u64) -> String {
    if number == 0 { "0".to_owned() } else { format!("{number:#x}") }
}
