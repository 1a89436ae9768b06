//! What a persistent bitmap marks: a table of what has changed, or JSON of the whole disk.

use std::io::Write as _;
use std::ops::Range;

use crate::bitmap::reason;
use crate::cli::Session;
use crate::failure::Failure;
use crate::open::DiskImage;
use crate::options::Output;

/// Prints what the bitmap `name` marks of a range of the disk.
///
/// # Errors
/// There is no such bitmap, or it cannot be used.
pub(crate) async fn print(
    image: &DiskImage,
    name: &str,
    range: Range<u64>,
    output: Output,
    session: &mut Session,
) -> Result<(), Failure> {
    let failed = |error: cowshed::Error| Failure::message(reason(&error));
    let end = range.end.min(image.virtual_size());
    let mut ranges = image.bitmap_ranges(name.as_bytes()).await.map_err(failed)?;
    let mut rows = Rows { output, at: range.start, is_first: true };
    match output {
        Output::Human => writeln!(session.out, "{:<16}Length", "Offset")?,
        Output::Json => write!(session.out, "[")?,
    }
    while let Some(dirty) = ranges.next().await.map_err(failed)? {
        let dirty = dirty.start.max(range.start)..dirty.end.min(end);
        if !dirty.is_empty() {
            rows.clean_to(dirty.start, session)?;
            rows.row(dirty.end, true, session)?;
        }
        if dirty.end >= end {
            break;
        }
    }
    rows.clean_to(end, session)?;
    if output == Output::Json {
        writeln!(session.out, "]")?;
    }
    Ok(())
}

struct Rows {
    output: Output,
    at: u64,
    is_first: bool,
}

impl Rows {
    fn clean_to(&mut self, end: u64, session: &mut Session) -> Result<(), Failure> {
        if self.at < end { self.row(end, false, session) } else { Ok(()) }
    }

    fn row(&mut self, end: u64, dirty: bool, session: &mut Session) -> Result<(), Failure> {
        let (start, len) = (self.at, end - self.at);
        self.at = end;
        match self.output {
            Output::Human if dirty => {
                let start = crate::map::hexadecimal(start);
                writeln!(session.out, "{start:<16}{}", crate::map::hexadecimal(len))?;
            }
            Output::Human => {}
            Output::Json => {
                let separator = if self.is_first { "" } else { ",\n" };
                self.is_first = false;
                write!(
                    session.out,
                    "{separator}{{ \"start\": {start}, \"length\": {len}, \"dirty\": {dirty}}}"
                )?;
            }
        }
        Ok(())
    }
}
