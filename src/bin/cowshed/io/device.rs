//! The image that the commands work on: how it is opened, opened anew, and closed.

use std::cell::Cell;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use cowshed::Error;
use cowshed::cache::Cleaner;
use cowshed::format::{Incompatible, Version};
use cowshed::image::{Format, WriteOptions};
use cowshed::rt::SmolTimer;

use crate::failure::{Failure, warn};
use crate::image_format::ImageFormat;
use crate::layout::Layout;
use crate::names::{Named, named};
use crate::node::Debug;
use crate::open::{self, DiskImage, Opening};
use crate::persona::Persona;
use crate::secret::{Keys, Secrets};
use crate::wording;

use super::number::SECTOR_LEN_BYTES;
use super::settings::{self, DetectZeroes, Settings, Wrong};

/// An open image.
#[derive(Debug)]
pub(super) struct Device {
    /// Requests in flight have it too.
    pub(super) image: Arc<DiskImage>,
    pub(super) format: Format,
    /// The name of its driver.
    driver: &'static str,
    /// Whether it is what lies below a format otherwise.
    is_protocol: bool,
    /// Whether writing is refused.
    pub(super) read_only: bool,
    /// Whether discards do something.
    pub(super) unmap: bool,
    /// Whether flushes do nothing.
    pub(super) no_flush: bool,
    pub(super) detect_zeroes: DetectZeroes,
    /// It is raw because its first bytes said so, and must not be made to say something else.
    is_guessed: bool,
    settings: Settings,
    /// Whether reads make the image's own what they find below it.
    copies_on_read: bool,
    /// What lets requests fail and wait, if anything does.
    pub(super) debug: Option<Arc<Debug>>,
    /// The image itself, if it lies below something that shows its disk.
    nested: Option<Arc<DiskImage>>,
    name: OsString,
    told_corrupt: Cell<bool>,
}

/// Who opens images, and what it may open for them.
#[derive(Debug, Clone)]
pub(super) struct Opener {
    pub(super) persona: Persona,
    pub(super) allow: Vec<PathBuf>,
    pub(super) secrets: Secrets,
}

impl Opener {
    /// Opens the image called `name`, or without a name the one that the settings name.
    ///
    /// # Errors
    /// Something is wrong with the settings, the file or the image.
    pub(super) async fn open(
        &self,
        name: Option<&OsStr>,
        settings: Settings,
    ) -> Result<Device, Failure> {
        let shown = name.unwrap_or_default();
        let failed = |wrong: Wrong| Failure::open(shown, wrong.text).with_hint(wrong.hint);
        let wrong = |text: String| Failure::open(shown, text);
        let (mut settings, mut file_name) = (settings, name.map(OsStr::to_owned));
        if let Some(name) = name {
            match named(name).map_err(wrong)? {
                Named::File(file) => file_name = Some(file),
                Named::Options(options) => {
                    file_name = None;
                    for (name, value) in options {
                        settings.names.entry(name).or_insert(value);
                    }
                }
            }
        }
        let mut own = settings.names.clone();
        let mut keys = Keys::new(self.secrets.clone(), None);
        keys.take_ids(&mut own);
        let said = own.remove("encrypt.format");
        let layout = Layout::take(&mut own, file_name.as_deref()).map_err(wrong)?;
        let (file, protocol) = (layout.name(), layout.protocol);
        let copies_on_read = layout.copies_on_read || settings.flags.copy_on_read;
        let flags = settings.generic().map_err(failed)?;
        let is_guess = layout.format.is_none();
        let mut opening = Opening::new(self.persona)
            .at(layout)
            .force_share(flags.force_share)
            .allow(self.allow.clone())
            .keys(keys, said)
            .direct(flags.direct)
            .caches(settings.caches().map_err(failed)?);
        let write = settings.write(&flags).map_err(failed)?;
        if copies_on_read && flags.read_only {
            let reason = match settings.flags.copy_on_read {
                true => "Can't use copy-on-read on read-only device",
                false => "Block node is read-only",
            };
            return Err(wrong(reason.into()));
        }
        let is_temporary = settings.flags.snapshot;
        let write_options = (!flags.read_only).then_some(write);
        if let (Some(write), false) = (write_options, is_temporary) {
            opening = opening.writable(write);
        }
        let source = opening.source(&file).await.map_err(|failure| failure.of(shown))?;
        let mut format = source.format;
        let debug = source.storage.debug().cloned();
        let nested = source.storage.image().filter(|_| protocol.is_some()).cloned();
        let mut driver = source.storage.format_name(format);
        settings::known(&own, driver).map_err(failed)?;
        let is_raw = driver == Format::Raw.name();
        let is_guessed = is_guess && is_raw && !is_temporary;
        let opened = if is_temporary {
            format = Format::Qcow2;
            driver = format.name();
            super::snapshot::open(&opening, &file, source, write_options).await?
        } else {
            opening.opened(&file, source, None).await?
        };
        let opened = opened.map_err(|error| failed(open::reason(&error).into()))?;
        if let Err(wrong) = goes_with_version(&opened.image, &write) {
            // What cannot be closed has not been changed.
            let _ = opened.image.close().await;
            return Err(failed(wrong));
        }
        if is_guessed && !flags.read_only {
            warn(&format!(
                "WARNING: Image format was not specified for '{}' and probing guessed raw.\n         Automatically \
                 detecting the format is dangerous for raw images, write operations on block 0 will be \
                 restricted.\n         Specify the 'raw' format explicitly to remove the restrictions.",
                crate::escape::terminal(file.as_encoded_bytes())
            ));
        }
        run(opened.cleaner);
        let detect_zeroes = settings.detect_zeroes().map_err(failed)?;
        Ok(Device {
            image: Arc::new(opened.image),
            format,
            driver: protocol.unwrap_or(driver),
            is_protocol: protocol.is_some(),
            read_only: flags.read_only,
            unmap: flags.unmap,
            no_flush: flags.no_flush,
            detect_zeroes,
            is_guessed,
            settings,
            copies_on_read,
            debug,
            nested,
            name: file,
            told_corrupt: Cell::new(false),
        })
    }
}

impl Device {
    /// The name of its driver.
    pub(super) fn driver(&self) -> &'static str {
        self.driver
    }

    /// Whether it is what lies below a format otherwise.
    pub(super) fn is_protocol(&self) -> bool {
        self.is_protocol
    }

    /// How it was opened.
    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Whether reads make the image's own what they find below it.
    pub(super) fn copies_on_read(&self) -> bool {
        self.copies_on_read
    }

    /// The image whose clusters are what `map` shows: that itself, below whatever shows its disk.
    pub(super) fn mapped(&self) -> Arc<DiskImage> {
        Arc::clone(self.nested.as_ref().unwrap_or(&self.image))
    }

    /// Changes its settings; or, if it is to be read and written around the page cache from now on, or not any more, opens it
    /// anew. If that fails, it has the old settings, or is not open at all if it cannot be opened with them again.
    ///
    /// # Errors
    /// What is wrong with the new settings.
    pub(super) async fn reopened(
        self,
        opener: &Opener,
        settings: Settings,
    ) -> (Option<Self>, Result<(), Failure>) {
        let direct = |settings: &Settings| settings.generic().map(|flags| flags.direct);
        // What is temporary is in no file that could be opened again.
        let is_temporary = self.settings.flags.snapshot;
        if !is_temporary && direct(&settings) != direct(&self.settings) {
            return self.opened_anew(opener, settings).await;
        }
        match self.reconfigured(&settings, opener.persona).await {
            Ok(changed) => (Some(Self { settings, ..changed(self) }), Ok(())),
            Err(failure) => (Some(self), Err(failure)),
        }
    }

    /// Gives the image other settings; what is returned does the same to the device.
    async fn reconfigured(
        &self,
        settings: &Settings,
        persona: Persona,
    ) -> Result<impl FnOnce(Self) -> Self + use<>, Failure> {
        let failed = |wrong: Wrong| Failure::message(wrong.text).with_hint(wrong.hint);
        let flags = settings.generic().map_err(failed)?;
        let detect_zeroes = settings.detect_zeroes().map_err(failed)?;
        let mut new = self.image.settings();
        new.cache = settings.caches().map_err(failed)?;
        let write = settings.write(&flags).map_err(failed)?;
        new.write = (!flags.read_only).then_some(write);
        let cleaner = self.image.reconfigure(new).await.map_err(|error| match &error {
            Error::Open { source, .. } => Failure::message(open::io_reason(source))
                .with_hint(open::lock_hint(source, persona)),
            _ => Failure::message(open::reason(&error)),
        })?;
        run(cleaner);
        Ok(move |device| Self {
            read_only: flags.read_only,
            unmap: flags.unmap,
            no_flush: flags.no_flush,
            detect_zeroes,
            ..device
        })
    }

    async fn opened_anew(
        self,
        opener: &Opener,
        settings: Settings,
    ) -> (Option<Self>, Result<(), Failure>) {
        let (name, old) = (self.name.clone(), self.settings.clone());
        let format = self.driver().to_owned();
        let is_guessed = self.is_guessed;
        if let Err(failure) = self.close(opener.persona).await {
            return (None, Err(failure));
        }
        let open = async |mut settings: Settings| {
            // What the format is has been found out.
            settings.names.insert("driver".to_owned(), format.clone());
            // The file's name stands for itself.
            settings.names.retain(|name, _| !name.ends_with("filename"));
            opener.open(Some(&name), settings).await
        };
        let (opened, result) = match open(settings.clone()).await {
            Ok(device) => (Ok((device, settings)), Ok(())),
            Err(failure) => (open(old.clone()).await.map(|device| (device, old)), Err(failure)),
        };
        match opened {
            Ok((device, settings)) => (Some(Self { settings, is_guessed, ..device }), result),
            Err(failure) => (None, result.and(Err(failure))),
        }
    }

    /// Closes it: what was written is in the file then.
    ///
    /// # Errors
    /// It is not.
    pub(super) async fn close(self, persona: Persona) -> Result<(), Failure> {
        let closed = self.image.close().await;
        closed.map_err(|error| {
            let reason = format!("closing failed: {}", open::reason(&error));
            match persona {
                Persona::Cowshed => Failure::image(&self.name, "", reason),
                _ => Failure::message(reason),
            }
        })
    }

    /// Whether writing `data` at `offset` is allowed: a guest must not turn a raw image whose format was guessed into
    /// one of another format.
    pub(super) async fn allows(&self, data: &[u8], offset: u64) -> bool {
        if !self.is_guessed || offset >= SECTOR_LEN_BYTES || data.is_empty() {
            return true;
        }
        let len = self.image.virtual_size().min(SECTOR_LEN_BYTES);
        // OK to unwrap: it is less than a sector.
        let (start, len) =
            (usize::try_from(offset).unwrap_or(0), usize::try_from(len).unwrap_or(0));
        let mut sector = vec![0; len];
        if self.image.read_at(&mut sector, 0).await.is_err() {
            // The write will say what is wrong.
            return true;
        }
        sector.iter_mut().skip(start).zip(data).for_each(|(old, new)| *old = *new);
        ImageFormat::detect(&sector) == ImageFormat::Raw
    }

    /// Says on standard error what the error of a request leaves out.
    pub(super) fn explain(&self, persona: Persona, error: &Error) {
        let reason = match error {
            Error::Corrupt(corrupt) if persona != Persona::Cowshed => {
                wording::of_corruption(corrupt)
            }
            error => open::reason(error),
        };
        match (persona, error) {
            (_, Error::OutOfBounds { .. }) => {}
            (Persona::Cowshed, _) => warn(&format!(
                "cowshed: {}: {}",
                crate::escape::terminal(self.name.as_encoded_bytes()),
                crate::escape::terminal(reason.as_bytes())
            )),
            (_, Error::Corrupt(_)) if !self.told_corrupt.replace(true) => {
                let header = self.image.header();
                let marked = header.is_some_and(|header| {
                    !self.read_only && header.incompatible.contains(Incompatible::CORRUPT)
                });
                let reason = crate::escape::terminal(reason.as_bytes());
                warn(&match marked {
                    true => format!(
                        "qcow2: Marking image as corrupt: {reason}; further corruption events will be suppressed"
                    ),
                    false => format!(
                        "qcow2: Image is corrupt: {reason}; further non-fatal corruption events will be suppressed"
                    ),
                });
            }
            _ => {}
        }
    }
}

/// Runs a cleaner until the image is closed, dropped or gets another one. Without a thread the caches keep what they have.
fn run(cleaner: Option<Cleaner>) {
    if let Some(cleaner) = cleaner {
        let _ = thread::Builder::new()
            .name("cleaner".to_owned())
            .spawn(move || open::block_on(cleaner.run(SmolTimer)));
    }
}

/// Refuses options of writing that images of version 2 do not have.
pub(super) fn goes_with_version(image: &DiskImage, write: &WriteOptions) -> Result<(), Wrong> {
    if image.header().is_none_or(|header| header.version != Version::V2) {
        Ok(())
    } else if write.lazy_refcounts == Some(true) {
        let text =
            "Lazy refcounts require a qcow2 image with at least qemu 1.1 compatibility level";
        Err(text.into())
    } else if write.discard_no_unref {
        Err("discard-no-unref is only supported since qcow2 version 3".into())
    } else {
        Ok(())
    }
}
