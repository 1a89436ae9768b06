//! `rebase`: another backing file for an image, which keeps what would look different.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use clap::{ArgMatches, Command};
use cowshed::Error;
use cowshed::image::WriteOptions;

use crate::cli::Session;
use crate::failure::Failure;
use crate::format_options;
use crate::names::beside;
use crate::new_image::identity;
use crate::open::{self, DiskImage, Opening};
use crate::options;
use crate::persona::Persona;
use crate::progress::Progress;

/// The verb's name.
pub(crate) const NAME: &str = "rebase";

/// Percent between two reports of progress.
const PROGRESS_STEP: f32 = 2.0;

/// Its options.
pub(crate) fn command() -> Command {
    let (value, flag) = (options::value, options::flag);
    Command::new(NAME)
        .about("Give an image another backing file")
        .arg(options::format("format"))
        .arg(
            value("backing", 'b', "backing", "FILE")
                .help("The new backing file, named as seen from the image's folder; \"\" for none"),
        )
        .arg(
            value("backing-format", 'F', "backing-format", "FMT")
                .short_alias('B')
                .help("Format of the new backing file; must be given with one"),
        )
        .arg(
            flag("unsafe", 'u', "backing-unsafe")
                .help("Change the name only: the new backing file is taken to have the same bytes"),
        )
        .arg(flag("compress", 'c', "compress").help("Compress the clusters that are kept"))
        .arg(
            value("cache", 't', "cache", "MODE")
                .help("Cache mode of the image (default: writeback); unsafe makes nothing durable"),
        )
        .arg(
            value("source-cache", 'T', "source-cache", "MODE")
                .alias("backing-cache")
                .help("Cache mode of the backing files: none reads past the page cache"),
        )
        .arg(options::progress())
        .arg(options::quiet())
        .args(options::opening())
        .args(options::caches())
        .arg(options::files("FILE"))
}

/// Runs it.
pub(crate) fn run(matches: &ArgMatches, session: &mut Session) -> Result<u8, Failure> {
    let [name] = options::file_names(NAME, matches, "one image file name")?;
    let given = options::text(matches, "backing");
    let is_unsafe = matches.get_flag("unsafe");
    if given.is_none() && !is_unsafe {
        let message = "Must specify backing file (-b) or use unsafe mode (-u)";
        return Err(Failure::usage(Some(NAME), message));
    }
    let cache = options::text(matches, "cache").unwrap_or("writeback");
    let source_cache = options::text(matches, "source-cache").unwrap_or("writeback");
    if !options::is_cache_mode(cache) {
        return Err(Failure::message(format!("Invalid cache option: {cache}")));
    }
    if !options::is_cache_mode(source_cache) {
        return Err(Failure::message(format!("Invalid source cache option: {source_cache}")));
    }
    let is_direct = |cache| ["none", "off", "directsync"].contains(&cache);
    let quiet = matches.get_flag("quiet");
    let mut progress = Progress::new(matches.get_flag("progress") && !quiet, PROGRESS_STEP)?;
    let mut opening = Opening::from_matches(matches, session.persona, "format")?
        .force_share(false)
        .direct(is_direct(cache))
        .volatile(cache == "unsafe")
        .writable(WriteOptions::default());
    if is_unsafe {
        opening = opening.alone();
    }
    let format = options::text(matches, "backing-format");
    let rebase = Rebase {
        name: &name,
        given,
        backing: given.filter(|name| !name.is_empty()),
        format,
        compress: matches.get_flag("compress"),
        persona: session.persona,
    };

    let rebased = open::block_on(async {
        let image = opening.open_and_warn(&name).await?;
        if image.header().is_none() && rebase.compress {
            let reason = "Compression not supported for this file format";
            return Err(Failure::image(&name, "", reason));
        }
        if let Some(format) = format.filter(|format| !format_options::is_format(format)) {
            return Err(Failure::message(format!("Invalid format name: '{format}'")));
        }
        let base = match rebase.backing.filter(|_| !is_unsafe) {
            Some(backing) => {
                let opening = Opening::new(session.persona)
                    .format(format.map(str::to_owned))
                    .force_share(matches.get_flag("force-share"))
                    .allow(
                        matches
                            .get_many::<PathBuf>("allow")
                            .into_iter()
                            .flatten()
                            .cloned()
                            .collect(),
                    )
                    .direct(is_direct(source_cache));
                Some(rebase.open_base(backing, &opening).await?)
            }
            None => None,
        };
        rebase.can_be(&image)?;
        if !is_unsafe {
            rebase.keep_differences(&image, base.as_ref(), &mut progress).await?;
        }
        rebase.change_name(&image).await?;
        image.close().await.map_err(|error| rebase.failed(&error))?;
        progress.complete()?;
        Ok(())
    });
    progress.end()?;
    rebased?;
    Ok(0)
}

struct Rebase<'a> {
    name: &'a OsString,
    /// The new backing file's name as it was given.
    given: Option<&'a str>,
    /// The same, if it is one.
    backing: Option<&'a str>,
    format: Option<&'a str>,
    compress: bool,
    persona: Persona,
}

impl Rebase<'_> {
    async fn open_base(&self, backing: &str, opening: &Opening) -> Result<DiskImage, Failure> {
        let path = beside(self.name, OsStr::new(backing));
        let opened = opening.open(&path).await;
        opened.map_err(|failure| {
            failure.doing(format!("Could not open new backing file '{backing}'"))
        })
    }

    /// Whether the image can have the backing file, before anything is copied.
    fn can_be(&self, image: &DiskImage) -> Result<(), Failure> {
        if image.header().is_none() {
            return Err(self.not_changed("Operation not supported"));
        }
        if self.backing.is_some() && self.format.is_none() {
            return Err(self.not_changed("backing format must be specified"));
        }
        Ok(())
    }

    async fn keep_differences(
        &self,
        image: &DiskImage,
        base: Option<&DiskImage>,
        progress: &mut Progress,
    ) -> Result<(), Failure> {
        progress.start(image.virtual_size());
        let location = base.and_then(|base| base.layers().next().map(|layer| layer.location));
        let same = location.and_then(identity);
        let layers: Vec<_> = image.layers().map(|layer| identity(layer.location)).collect();
        let same_from = same.and_then(|same| layers.iter().position(|layer| *layer == Some(same)));
        let failed = |error: Error| self.failed(&error);
        let mut rebase = image.rebase_onto(base, same_from, self.compress).map_err(failed)?;
        while let Some(done) = rebase.step().await.map_err(failed)? {
            progress.set(done)?;
        }
        Ok(())
    }

    async fn change_name(&self, image: &DiskImage) -> Result<(), Failure> {
        let named = self.backing.zip(self.format);
        let named = named.map(|(name, format)| (name.as_bytes(), format.as_bytes()));
        image.set_backing_file(named).await.map_err(|error| match (&error, self.persona) {
            (_, Persona::Cowshed) => self.failed(&error),
            (Error::LimitExceeded { what: "header bytes", .. }, _) => {
                self.not_changed("No space left in the file header")
            }
            (Error::LimitExceeded { .. }, _) => self.not_changed("Invalid argument"),
            _ => self.not_changed(&crate::io::strerror(&error)),
        })
    }

    fn not_changed(&self, reason: &str) -> Failure {
        let doing =
            format!("Could not change the backing file to '{}'", self.given.unwrap_or("(null)"));
        Failure::image(Path::new(self.name).as_os_str(), doing, reason)
    }

    fn failed(&self, error: &Error) -> Failure {
        Failure::image(self.name, "error while rebasing", open::reason(error))
    }
}
