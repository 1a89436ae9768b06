//! `bench`: how long a number of equal requests take, some of them at a time.

use std::io::Write as _;
use std::time::Instant;

use clap::{ArgMatches, Command};
use cowshed::Error;
use cowshed::image::WriteOptions;
use futures::future::{Either, LocalBoxFuture};
use futures::stream::{FuturesUnordered, StreamExt as _};

use crate::cli::Session;
use crate::failure::Failure;
use crate::open::{self, DiskImage, Opening};
use crate::options;
use crate::size::SIZE_MAX;

/// The verb's name.
pub(crate) const NAME: &str = "bench";

/// How many requests there are if nothing is said.
const COUNT_DEFAULT: u64 = 75_000;
/// How many of them at a time.
const DEPTH_DEFAULT: u64 = 64;
/// How many bytes each has.
const LEN_BYTES_DEFAULT: u64 = 4096;
/// The largest of these numbers.
const NUMBER_MAX: u64 = i32::MAX as u64;

/// Its options.
pub(crate) fn command() -> Command {
    Command::new(NAME)
        .about("Measure how long a number of equal requests take")
        .arg(options::format("format"))
        .arg(
            options::value("count", 'c', "count", "COUNT")
                .help("How many requests (default: 75000)"),
        )
        .arg(
            options::value("depth", 'd', "depth", "DEPTH")
                .help("How many requests at a time (default: 64)"),
        )
        .arg(
            options::value("buffer-size", 's', "buffer-size", "SIZE")
                .help("How many bytes each request has (default: 4096)"),
        )
        .arg(
            options::value("offset", 'o', "offset", "OFFSET")
                .help("Where the first request starts (default: 0)"),
        )
        .arg(options::value("step-size", 'S', "step-size", "STEP").help(
            "How far the next request starts behind the start of the one before (default: SIZE)",
        ))
        .arg(options::flag("write", 'w', "write").help("Write instead of reading"))
        .arg(
            options::long_value("pattern", "pattern", "BYTE")
                .help("The byte that is written (default: 0)"),
        )
        .arg(
            options::long_value("flush-interval", "flush-interval", "COUNT")
                .help("With -w, flush behind every COUNT requests"),
        )
        .arg(
            options::long_flag("no-drain", "no-drain")
                .help("Do not let requests in flight end before a flush"),
        )
        .arg(
            options::value("cache", 't', "cache", "CACHE")
                .help("none, directsync, writeback (the default), writethrough or unsafe"),
        )
        .arg(
            options::value("aio", 'i', "aio", "AIO")
                .help("threads, native or io_uring; only checked, the best is taken"),
        )
        .arg(options::flag("native", 'n', "native").help("As -i native"))
        .arg(options::flag("quiet", 'q', "quiet").help("No effect"))
        .args(options::opening())
        .arg(options::files("FILE"))
}

/// What is measured.
#[derive(Debug, Clone, Copy)]
struct Bench {
    count: u64,
    depth: u64,
    len: u64,
    offset: u64,
    step: u64,
    /// The byte that is written; `None` reads.
    write: Option<u8>,
    /// Zero: no flushes.
    flush_interval: u64,
    drain: bool,
}

/// Runs it.
pub(crate) fn run(matches: &ArgMatches, session: &mut Session) -> Result<u8, Failure> {
    let number = |id, name, range| options::bytes(matches, id, name, range);
    let count = number("count", "request count", 1..=NUMBER_MAX)?;
    let depth = number("depth", "queue depth", 1..=NUMBER_MAX)?;
    let offset = number("offset", "offset", 0..=SIZE_MAX)?;
    let len = number("buffer-size", "buffer size", 1..=NUMBER_MAX)?;
    let step = number("step-size", "step size", 0..=NUMBER_MAX)?;
    let pattern = number("pattern", "pattern byte", 0..=255)?;
    let flush_interval = number("flush-interval", "flush interval", 0..=NUMBER_MAX)?;
    let aio = options::text(matches, "aio");
    if let Some(other) = aio.filter(|aio| !["threads", "native", "io_uring"].contains(aio)) {
        return Err(Failure::message(format!("Invalid aio option: {other}")));
    }
    let is_native = aio == Some("native") || matches.get_flag("native");
    let cache = options::text(matches, "cache").unwrap_or("writeback");
    if !options::is_cache_mode(cache) {
        return Err(Failure::message("Invalid cache mode"));
    }
    let [name] = options::file_names(NAME, matches, "one image file name")?;
    let len = len.unwrap_or(LEN_BYTES_DEFAULT);
    let bench = Bench {
        count: count.unwrap_or(COUNT_DEFAULT),
        depth: depth.unwrap_or(DEPTH_DEFAULT),
        len,
        offset: offset.unwrap_or(0),
        step: step.filter(|&step| step > 0).unwrap_or(len),
        // OK to unwrap: it is at most 255.
        write: matches
            .get_flag("write")
            .then(|| u8::try_from(pattern.unwrap_or(0)).unwrap_or(u8::MAX)),
        flush_interval: flush_interval.unwrap_or(0),
        drain: !matches.get_flag("no-drain"),
    };
    if bench.write.is_none() && bench.flush_interval > 0 {
        return Err(Failure::message("--flush-interval is only available in write tests"));
    }
    if bench.flush_interval > 0 && bench.flush_interval < bench.depth {
        return Err(Failure::message("Flush interval can't be smaller than depth"));
    }
    let is_direct = ["none", "off", "directsync"].contains(&cache);
    let mut opening = Opening::from_matches(matches, session.persona, "format")?.direct(is_direct);
    if bench.write.is_some() {
        let mut write = WriteOptions::default();
        write.write_through = ["directsync", "writethrough"].contains(&cache);
        opening = opening.writable(write);
    }
    if is_native && !is_direct {
        let reason =
            "aio=native was specified, but it requires cache.direct=on, which was not specified.";
        return Err(Failure::open(&name, reason));
    }

    open::block_on(async {
        let image = opening.open(&name).await?;
        let Bench { count, depth, len, offset, step, flush_interval, .. } = bench;
        let verb = if bench.write.is_some() { "write" } else { "read" };
        writeln!(
            session.out,
            "Sending {count} {verb} requests, {len} bytes each, {depth} in parallel (starting at offset {offset}, step \
             size {step})"
        )?;
        if flush_interval > 0 {
            writeln!(session.out, "Sending flush every {flush_interval} requests")?;
        }
        let start = Instant::now();
        let failed = |error: Error| {
            Failure::image(&name, "", format!("Failed request: {}", crate::io::strerror(&error)))
        };
        bench.run(&image).await.map_err(failed)?;
        let seconds = start.elapsed().as_secs_f64();
        writeln!(session.out, "Run completed in {seconds:.3} seconds.")?;
        image.close().await.map_err(failed)?;
        Ok(0)
    })
}

impl Bench {
    /// Sends the requests, and returns when all have ended.
    async fn run(self, image: &DiskImage) -> Result<(), Error> {
        // OK to unwrap: it has 31 bits.
        let len = usize::try_from(self.len).unwrap_or(usize::MAX);
        let data = self.write.map(|byte| vec![byte; len]);
        let mut buffers: Vec<Vec<u8>> = Vec::new();
        // What is in flight: requests, which give back their buffers, and flushes.
        let mut flight: FuturesUnordered<LocalBoxFuture<'_, Result<Option<Vec<u8>>, Error>>> =
            FuturesUnordered::new();
        let (mut offset, mut sent, mut ended) = (self.offset, 0, 0);
        let size = image.virtual_size();
        // While requests end to make way for a flush, and while it runs, none are sent.
        let mut drained_at = None;
        loop {
            while sent < self.count && sent - ended < self.depth && drained_at.is_none() {
                let at = offset;
                let request = match &data {
                    Some(data) => Either::Left(async move {
                        image.write_at(data, at).await.map(|()| Some(Vec::new()))
                    }),
                    None => {
                        let mut buffer = buffers.pop().unwrap_or_else(|| vec![0; len]);
                        Either::Right(async move {
                            image.read_at(&mut buffer, at).await.map(|()| Some(buffer))
                        })
                    }
                };
                flight.push(Box::pin(request));
                sent += 1;
                offset = (offset + self.step).checked_rem(size).unwrap_or(0);
            }
            match flight.next().await {
                None => return Ok(()),
                Some(Ok(Some(buffer))) => {
                    ended += 1;
                    buffers.push(buffer);
                    let is_due = self.flush_interval > 0 && ended % self.flush_interval == 0;
                    if is_due && self.drain {
                        drained_at = Some(sent);
                    }
                    if is_due && !self.drain || drained_at == Some(ended) {
                        flight.push(Box::pin(async { image.flush().await.map(|()| None) }));
                    }
                }
                Some(Ok(None)) => drained_at = None,
                Some(Err(error)) => return Err(error),
            }
        }
    }
}
