//! Changing the settings of an image that is open: QEMU's reopen.
//!
//! # Order
//!
//! 1. The settings are looked at: what cannot be is said before anything happens.
//! 2. New requests wait, and those in flight end. From here to the end nobody sees the image.
//! 3. What can fail is done: what is dirty is written back, the dirty bit is cleared if nothing is to be left behind any
//!    more, or the image is made ready for writing as if it was opened. The old settings still hold. If it fails, they hold on:
//!    the cleaner has not been told anything.
//! 4. The cleaner is stopped and joined.
//! 5. Caches, access and options change. Nothing is awaited here, and nothing fails.
//! 6. The new cleaner is made, last, for the caller to run; and the requests that wait are let in.
//!
//! Nothing can be dirtied between 3 and 5, as nobody is in. QEMU stops its cleaner before the flush for that reason, as its
//! requests could come in while it waits for the cleaner.
//!
//! Source: QEMU, block/qcow2.c, `qcow2_reopen_prepare`, `qcow2_reopen_commit`, `qcow2_update_options`.

use std::time::Duration;

use crate::cache::{CacheOptions, CacheSizes, Cleaner};
use crate::error::{Error, Result};
use crate::storage::Storage;
use crate::sync::Ordering;

use super::Image;
#[cfg(feature = "write")]
use super::check::make_writable;
use super::layer::{Body, DataFile, Layer, Qcow2Layer};
use super::mutant::{self, Mutant};
use super::open::Structures;
use super::options::WriteOptions;
use super::shared::Shared;
use super::writer::{Target, Top, Writer};

/// What can be changed of an image that is open: [`Image::settings`] tells what holds, [`Image::reconfigure`] changes it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Settings {
    /// The sizes of the metadata caches, those of each layer, and the interval of their cleaner.
    pub cache: CacheOptions,
    /// How the image is written to; `None` for read-only.
    pub write: Option<WriteOptions>,
}

impl<S: Storage> Image<S> {
    /// The settings that hold now: those it was opened with, or of the last [`Self::reconfigure`].
    #[must_use]
    pub fn settings(&self) -> Settings {
        Settings { cache: *self.cache_options.lock(), write: self.access.get() }
    }

    /// Changes the settings of the image while it is in use. Requests in flight end before; requests that come meanwhile
    /// wait, and see the new settings. What was written stays, cached or not, and is durable when this returns if the image
    /// was open for writing.
    ///
    /// It stops the cleaner and gives out the one that follows, for the caller to run as after [`Image::open`]; `None` if the
    /// interval is zero. An image that becomes writable is repaired if it has the dirty bit, its storage takes the locks of a
    /// writer ([`Storage::set_writable`]), and what is in memory is read again. An image that becomes read-only is marked as
    /// clean, as by [`Self::close`], and its storage gives those locks up. So is one that may not write refcounts late any
    /// more.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for settings that contradict each other or the image; [`Error::ReadOnly`] if it cannot be
    /// written to; [`Error::Storage`] and [`Error::Latched`] from what has to be written back; [`Error::Closed`]. The image,
    /// its settings and its cleaner are as they were.
    ///
    /// # Cancel safety
    /// The old settings hold on. If the cleaner has been told to stop already, none runs until the next call of this or of
    /// [`Self::restart_cleaner`]; a storage that was to take the locks of a writer may keep them.
    ///
    /// A request whose future is kept and not polled holds it up, as it does [`Self::close`].
    pub async fn reconfigure(&self, settings: Settings) -> Result<Option<Cleaner>> {
        // Cancel: nothing has been done.
        let _one = self.reconfiguring.lock().await;
        self.plan(&settings)?;
        // Cancel: those who wait are let in.
        let paused = match mutant::is(Mutant::ReconfigureUnderRequests) {
            true => None,
            false => Some(self.requests.pause().await?),
        };
        // Again, as the disk may have grown meanwhile.
        let plan = self.plan(&settings)?;
        let reloaded = match mutant::is(Mutant::ReconfigureWithoutWriteBack) {
            true => None,
            false => self.prepare_settings(&settings).await?,
        };

        self.cleaner.stop();
        // Cancel: the settings are the old ones. There is no cleaner.
        self.cleaner.join().await;

        // Nothing is awaited from here on.
        let becomes_read_only = self.access.is_writable() && settings.write.is_none();
        self.install(&settings, &plan, reloaded);
        if becomes_read_only {
            // Cancel: as above, but the settings are the new ones, and the storage may still have the locks of a writer.
            self.set_storages_writable(false).await.ok();
        }
        drop(paused);
        Ok(self.cleaner.start_with(plan.interval))
    }

    /// Stops the cleaner and gives out another one that sleeps for the configured interval first: the way to another executor.
    /// `None` if the interval is zero, or the image is closed.
    ///
    /// # Cancel safety
    /// There is no cleaner until the next call.
    pub async fn restart_cleaner(&self) -> Option<Cleaner> {
        let _one = self.reconfiguring.lock().await;
        // Who closes the image stops the cleaner behind this.
        let _chore = self.requests.enter_chore().await.ok()?;
        self.cleaner.stop();
        self.cleaner.join().await;
        self.cleaner.start()
    }

    /// Looks at the settings.
    fn plan(&self, settings: &Settings) -> Result<Plan> {
        if let Some(write) = &settings.write {
            if cfg!(not(feature = "write")) {
                return Err(Error::ReadOnly(
                    "this program was built without the feature write".into(),
                ));
            }
            if self.is_at_snapshot {
                return Err(Error::InvalidArgument("a snapshot cannot be written to".into()));
            }
            if let Some(header) = self.header() {
                write.must_suit(header.version)?;
            }
        }
        let of = |layer: &Shared<Layer<S>>| match &layer.body {
            Body::Qcow2(layer) => {
                settings.cache.resolve(&layer.geometry, layer.virtual_size()).map(Some)
            }
            Body::Raw(_) => Ok(None),
        };
        let sizes = self.layers.iter().map(of).collect::<Result<_>>()?;
        Ok(Plan { sizes, interval: settings.cache.interval()? })
    }

    /// Does what can fail. Nobody else is in, and the old settings hold.
    async fn prepare_settings(&self, settings: &Settings) -> Result<Option<Structures>> {
        #[cfg(feature = "write")]
        self.write_below().await?;
        match (self.target(), &settings.write) {
            (Ok((_, target)), Some(write)) => {
                if let Target::Qcow2(top) = target {
                    top.write_for(write).await?;
                }
                Ok(None)
            }
            (Ok((writer, target)), None) => {
                match target {
                    Target::Qcow2(top) => top.write_all().await?,
                    Target::Raw(layer) => writer.flush_raw(layer).await?,
                }
                Ok(None)
            }
            (Err(_), Some(_)) => {
                let prepared = self.prepare_writing().await;
                if prepared.is_err() {
                    self.set_storages_writable(false).await.ok();
                }
                prepared
            }
            (Err(_), None) => Ok(None),
        }
    }

    /// Makes an image that is read-only ready to be written to, as opening it does, and reads again what is in memory.
    async fn prepare_writing(&self) -> Result<Option<Structures>> {
        let path = || self.layers[0].location.clone();
        let opened = self.set_storages_writable(true).await;
        opened.map_err(|source| Error::Open { path: path(), source })?;
        self.writer.get_or_init(async || Writer::new()).await;
        let Body::Qcow2(layer) = &self.layers[0].body else { return Ok(None) };
        #[cfg(feature = "write")]
        make_writable(layer.metadata.storage()).await?;
        layer.metadata.look_at_len().await?;
        let structures = Structures::load(&layer.metadata, None).await?;
        layer.must_be_same(&structures)?;
        Ok(Some(structures))
    }

    /// Lets the storages of the image itself take changes, or none.
    async fn set_storages_writable(&self, writable: bool) -> std::io::Result<()> {
        match &self.layers[0].body {
            Body::Raw(layer) => layer.storage.set_writable(writable).await,
            Body::Qcow2(layer) => {
                layer.metadata.storage().set_writable(writable).await?;
                match &layer.data {
                    DataFile::Open(storage) => storage.set_writable(writable).await,
                    DataFile::None | DataFile::Zeros | DataFile::Left => Ok(()),
                }
            }
        }
    }

    /// Puts the settings in place. Nobody else is in, the cleaner neither, and what was dirty is written.
    fn install(&self, settings: &Settings, plan: &Plan, reloaded: Option<Structures>) {
        if let (Body::Qcow2(layer), Some(structures)) = (&self.layers[0].body, reloaded) {
            layer.replace(structures);
        }
        for (layer, sizes) in self.layers.iter().zip(&plan.sizes) {
            if let (Body::Qcow2(layer), Some(sizes)) = (&layer.body, sizes) {
                layer.l2_cache.reshape(sizes.l2_bytes, sizes.l2_entry_bytes);
                layer.refcount_cache.reshape(sizes.refcount_bytes, sizes.refcount_entry_bytes);
            }
        }
        if self.access.is_writable() != settings.write.is_some()
            && let Some(writer) = self.writer.get()
        {
            writer.unprepare();
        }
        self.access.set(settings.write);
        *self.cache_options.lock() = settings.cache;
        #[cfg(feature = "write")]
        self.tell_below(settings.cache);
    }
}

/// What settings come to.
struct Plan {
    /// Of the caches of each layer; `None` for a raw one.
    sizes: Vec<Option<CacheSizes>>,
    interval: Duration,
}

impl<S: Storage> Top<'_, S> {
    /// Writes what is dirty, so that the image may be written to with other options from now on.
    pub(super) async fn write_for(&self, options: &WriteOptions) -> Result<()> {
        if self.may_be_lazy(options) {
            self.write_all_lazily().await
        } else {
            self.write_all().await
        }
    }
}

impl<S: Storage> Qcow2Layer<S> {
    /// Asks whether the image in the file is the one that was opened.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if somebody has replaced it.
    fn must_be_same(&self, structures: &Structures) -> Result<()> {
        let Structures { header, virtual_size, .. } = structures;
        let same = header.geometry() == self.geometry
            && header.l2_context() == self.context
            && header.crypt == self.crypt
            && *virtual_size == self.virtual_size();
        match same {
            true => Ok(()),
            false => {
                Err(Error::InvalidArgument("the image has changed since it was opened".into()))
            }
        }
    }

    /// Takes what was read again for what is in memory. Nobody else is in.
    fn replace(&self, structures: Structures) {
        self.l2_cache.clear();
        self.refcount_cache.clear();
        self.inflated.clear();
        self.l1.grow(structures.l1.len());
        for index in 0..self.l1.len() {
            self.l1.set(index, structures.l1.get(index).copied().unwrap_or(0));
        }
        self.l1_table.store(structures.l1_table.get(), Ordering::Release);
        self.snapshots.set(structures.snapshots);
        self.header.set(structures.header);
    }
}
