//! `commit`: what an image has goes into its backing file.

use std::ffi::OsStr;
use std::path::Path;
use std::time::{Duration, Instant};

use clap::{ArgMatches, Command};
use cowshed::Error;
use cowshed::image::WriteOptions;

use crate::cli::Session;
use crate::failure::Failure;
use crate::names::beside;
use crate::new_image::identity;
use crate::open::{self, DiskImage, Opening};
use crate::options;
use crate::persona::Persona;
use crate::progress::Progress;
use crate::size::SIZE_MAX;

/// The verb's name.
pub(crate) const NAME: &str = "commit";

/// Percent between two reports of progress.
const PROGRESS_STEP: f32 = 1.0;

/// Its options.
pub(crate) fn command() -> Command {
    let (value, flag) = (options::value, options::flag);
    Command::new(NAME)
        .about("Write what an image has into its backing file, and make the image empty")
        .arg(options::format("format"))
        .arg(
            value("cache", 't', "cache", "MODE")
                .help("Cache mode of the images (default: writeback); unsafe makes nothing durable"),
        )
        .arg(
            value("base", 'b', "base", "BASE")
                .help("Write into the backing file BASE further down, with all that lies above it; implies -d"),
        )
        .arg(
            value("rate", 'r', "rate", "RATE")
                .alias("rate-limit")
                .help("Write RATE bytes a second at most"),
        )
        .arg(flag("drop", 'd', "drop").help("Do not make the image empty: it will not be used any more"))
        .arg(options::progress())
        .arg(options::quiet())
        .args(options::opening())
        .args(options::caches())
        .arg(options::files("FILE"))
}

/// Runs it.
pub(crate) fn run(matches: &ArgMatches, session: &mut Session) -> Result<u8, Failure> {
    let rate = options::bytes(matches, "rate", "rate limit", 0..=SIZE_MAX)?;
    let [name] = options::file_names(NAME, matches, "one image file name")?;
    let cache = options::text(matches, "cache").unwrap_or("writeback");
    if !options::is_cache_mode(cache) {
        return Err(Failure::message(format!("Invalid cache option: {cache}")));
    }
    let base_name = options::text(matches, "base");
    let quiet = matches.get_flag("quiet");
    let keep = matches.get_flag("drop") || base_name.is_some();
    let opening = Opening::from_matches(matches, session.persona, "format")?
        .direct(["none", "off", "directsync"].contains(&cache))
        .volatile(cache == "unsafe");
    let depth = open::block_on(depth_of_base(&opening, &name, base_name))?;
    let mut progress = Progress::new(matches.get_flag("progress") && !quiet, PROGRESS_STEP)?;

    let committed: Result<(), Failure> = open::block_on(async {
        let opening = opening.writable(WriteOptions::default());
        let (image, base) = opening.open_above(&name, depth).await?;
        let merged = merge(&image, &base, rate, &mut progress).await;
        let failed = |error: Error| {
            let reason = match session.persona {
                Persona::Cowshed => open::reason(&error),
                _ => crate::io::strerror(&error),
            };
            Failure::image(&name, "Block job failed", reason)
        };
        // What was written is in the file, whatever went wrong.
        let closed = base.close().await.map_err(failed);
        merged.map_err(|fault| match fault {
            Fault::Engine(error) => failed(error),
            Fault::Output(error) => error.into(),
        })?;
        closed?;
        if !keep {
            image.make_empty().await.map_err(failed)?;
        }
        image.close().await.map_err(failed)?;
        progress.complete()?;
        Ok(())
    });
    progress.end()?;
    committed?;
    if !quiet {
        session.out_line("Image committed.")?;
    }
    Ok(0)
}

enum Fault {
    Engine(Error),
    Output(std::io::Error),
}

async fn merge(
    image: &DiskImage,
    base: &DiskImage,
    rate: Option<u64>,
    progress: &mut Progress,
) -> Result<(), Fault> {
    progress.start(image.virtual_size());
    let mut merge = image.merge_into(base).await.map_err(Fault::Engine)?;
    let start = Instant::now();
    while let Some(done) = merge.step().await.map_err(Fault::Engine)? {
        progress.set(done).map_err(Fault::Output)?;
        if let Some(rate) = rate.filter(|&rate| rate > 0) {
            #[allow(clippy::cast_precision_loss, reason = "a pause")]
            let due = Duration::try_from_secs_f64(done as f64 / rate as f64);
            let pause = due.unwrap_or(Duration::MAX).saturating_sub(start.elapsed());
            async_io::Timer::after(pause).await;
        }
    }
    Ok(())
}

/// How deep the layer lies that is written into: the backing file, or the one that is named.
async fn depth_of_base(
    opening: &Opening,
    name: &OsStr,
    base_name: Option<&str>,
) -> Result<usize, Failure> {
    let image = opening.open(name).await?;
    let failed = |reason: String| Failure::image(name, "", reason);
    let Some(base_name) = base_name else {
        return match image.layers().len() {
            0 | 1 => Err(failed("Image does not have a backing file".to_owned())),
            _ => Ok(1),
        };
    };
    let layers: Vec<_> = image.layers().map(|layer| layer.location.to_path_buf()).collect();
    // As the layer above sees it or, which qemu-img lacks, as seen from here.
    let is_ours = opening.persona() == Persona::Cowshed;
    let named = identity(Path::new(base_name)).filter(|_| is_ours);
    let found = layers.windows(2).position(|pair| {
        let seen = beside(pair[0].as_os_str(), base_name.as_ref());
        let there = identity(&pair[1]);
        (is_ours && pair[1] == Path::new(base_name))
            || there.is_some() && (there == named || there == identity(Path::new(&seen)))
    });
    found.map(|above| above + 1).ok_or_else(|| {
        let shown = name.display();
        failed(format!("Did not find '{base_name}' in the backing chain of '{shown}'"))
    })
}
