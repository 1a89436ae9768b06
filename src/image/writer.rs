//! What an image has that is open for writing, and the door through which each change goes.
//!
//! # Locks, in their order
//!
//! Structure, turnstile, sectors, bitmaps, claims, commit, tables, allocator, refcount table's I/O, header's I/O; each may be held over an await. The
//! synchronous ones (ownership, frees, lists of dirty entries, the caches' own) are leaves.

use std::collections::BTreeSet;
use std::ops::Range;

use crate::cache::TableCache;
use crate::error::{Error, Result};
use crate::storage::Storage;
use crate::sync::{AsyncMutex, AsyncMutexGuard, AtomicU64, Mutex, Ordering};

use super::Image;
use super::alloc::Allocator;
use super::bitmap::{Bitmaps, Tracking};
use super::changed::Changed;
use super::claims::Claims;
use super::free::Frees;
use super::layer::{Body, Qcow2Layer, RawLayer};
use super::options::WriteOptions;
use super::ownership::Ownership;
use super::refcount_table::RefcountTable;
use super::requests::{Chore, Request};
use super::scratch::Scratch;
use super::settling::Settling;
use super::turnstile::{Alone, Passing, Turnstile};

/// A write-back begins by itself when more than this share of a cache's budget is dirty.
const DIRTY_SHARE: (u64, u64) = (1, 2);

/// The state of an image that is open for writing.
pub(crate) struct Writer {
    /// Held by whoever changes the size of the disk, or the state of it that is active.
    pub(super) structure: AsyncMutex<()>,
    pub(super) turnstile: Turnstile,
    /// The persistent bitmaps, known when the first change has been prepared.
    pub(super) bitmaps: AsyncMutex<Bitmaps>,
    /// What they do not know yet.
    pub(super) tracking: Tracking,
    /// What has changed for whoever commits the disk into its backing file.
    pub(super) changed: Changed,
    /// Held by whoever commits into the backing file, takes out of the image what it has, or exchanges the backing file.
    pub(super) backing: AsyncMutex<()>,
    /// On sectors of the disk, if it is encrypted: a part of a sector cannot be written by itself.
    pub(super) sectors: Claims,
    pub(super) claims: Claims,
    /// Held by whoever makes changes durable.
    pub(super) commit: AsyncMutex<()>,
    /// One flush of the storages at a time: see [`Top::barrier`].
    pub(super) flushing: AsyncMutex<()>,
    /// Held by whoever gives an L1 entry a table.
    pub(super) tables: AsyncMutex<()>,
    pub(super) allocator: AsyncMutex<Allocator>,
    /// Held over writes of the refcount table and of its place in the header.
    pub(super) refcount_table_io: AsyncMutex<()>,
    pub(super) header_io: AsyncMutex<HeaderState>,
    pub(super) refcount_table: Mutex<RefcountTable>,
    pub(super) ownership: Mutex<Ownership>,
    pub(super) frees: Mutex<Frees>,
    /// Whether so many clusters wait to be free that a commit should come.
    pub(super) many_frees: AtomicU64,
    /// Whether the image says on disk that refcounts and copied flags need not fit each other, or should: what ends with
    /// [`Top::end_recount`].
    pub(super) is_recounting: AtomicU64,
    /// Whether copied flags may be missing where the refcount is 1.
    pub(super) copied_is_stale: AtomicU64,
    /// L1 entries that are not on disk yet.
    pub(super) l1_dirty: Mutex<BTreeSet<usize>>,
    pub(super) settling: Settling,
    pub(super) scratch: Scratch,
    /// Whether the first change has been prepared.
    pub(super) prepared: AsyncMutex<bool>,
    is_prepared: AtomicU64,
    /// Whether the survey found nothing that contradicts itself.
    is_sound: AtomicU64,
    /// Why no more changes are accepted.
    latch: Mutex<Option<String>>,
    is_latched: AtomicU64,
    pub(super) closed: AsyncMutex<bool>,
}

/// What is known of the header on disk.
#[derive(Debug, Default)]
pub(crate) struct HeaderState {
    /// A write of it failed or was dropped: up to here each sector may be old or new. 0 if the disk has what memory has.
    pub(super) uncertain_end: u64,
}

impl HeaderState {
    /// Whether the disk may have something else than memory.
    pub(super) fn is_uncertain(&self) -> bool {
        self.uncertain_end != 0
    }
}

impl Writer {
    pub(super) fn new() -> Self {
        Self {
            structure: AsyncMutex::default(),
            turnstile: Turnstile::default(),
            bitmaps: AsyncMutex::default(),
            tracking: Tracking::default(),
            changed: Changed::default(),
            backing: AsyncMutex::default(),
            sectors: Claims::default(),
            claims: Claims::default(),
            commit: AsyncMutex::default(),
            flushing: AsyncMutex::default(),
            tables: AsyncMutex::default(),
            allocator: AsyncMutex::default(),
            refcount_table_io: AsyncMutex::default(),
            header_io: AsyncMutex::default(),
            refcount_table: Mutex::default(),
            ownership: Mutex::default(),
            frees: Mutex::default(),
            many_frees: AtomicU64::new(0),
            is_recounting: AtomicU64::new(0),
            copied_is_stale: AtomicU64::new(0),
            l1_dirty: Mutex::default(),
            settling: Settling::default(),
            scratch: Scratch::default(),
            prepared: AsyncMutex::default(),
            is_prepared: AtomicU64::new(0),
            is_sound: AtomicU64::new(0),
            latch: Mutex::default(),
            is_latched: AtomicU64::new(0),
            closed: AsyncMutex::default(),
        }
    }

    /// Whether the first change has been prepared.
    pub(super) fn is_prepared(&self) -> bool {
        self.is_prepared.load(Ordering::Acquire) != 0
    }

    /// Forgets what the first change has prepared: others may write to the image before the next one. Nobody may be in.
    pub(super) fn unprepare(&self) {
        self.is_prepared.store(0, Ordering::Release);
        // What others change is not noted.
        self.changed.end();
        // What could not be released is leaked, as by a close.
        *self.frees.lock() = Frees::default();
        self.many_frees.store(0, Ordering::Release);
        if let Some(mut prepared) = self.prepared.try_lock() {
            *prepared = false;
        }
    }

    /// Notes what is known of the clusters before the first change.
    pub(super) fn know(&self, ownership: Ownership) {
        self.is_sound.store(u64::from(ownership.is_sound()), Ordering::Release);
        *self.ownership.lock() = ownership;
    }

    /// Whether every entry with the copied flag is the only one that refers to its cluster.
    #[inline]
    pub(super) fn is_sound(&self) -> bool {
        self.is_sound.load(Ordering::Acquire) != 0
    }

    /// Lets nobody else commit into the backing file, take out of the image what it has, or exchange the backing file.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if somebody does.
    pub(super) fn hold_backing(&self) -> Result<AsyncMutexGuard<'_, ()>> {
        self.backing.try_lock().ok_or_else(|| {
            Error::InvalidArgument("what it has of its backing file is being changed".into())
        })
    }

    /// Refuses all changes from now on: what was lost cannot be known.
    pub(super) fn latch(&self, reason: String) {
        self.latch.lock().get_or_insert(reason);
        self.is_latched.store(1, Ordering::Release);
    }

    /// Asks whether changes are accepted.
    ///
    /// # Errors
    /// [`Error::Latched`] if they are not.
    #[inline]
    pub(super) fn must_not_be_latched(&self) -> Result<()> {
        if self.is_latched.load(Ordering::Acquire) == 0 {
            return Ok(());
        }
        Err(Error::Latched(self.latch.lock().clone().unwrap_or_default()))
    }
}

/// The image itself, a qcow2 one that is open for writing: what the verbs that change it work on.
pub(crate) struct Top<'a, S> {
    pub(super) image: &'a Image<S>,
    pub(super) layer: &'a Qcow2Layer<S>,
    pub(super) writer: &'a Writer,
}

impl<S> Clone for Top<'_, S> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<S> Copy for Top<'_, S> {}

/// What is written to.
pub(crate) enum Target<'a, S> {
    Qcow2(Top<'a, S>),
    Raw(&'a RawLayer<S>),
}

/// A change that has come through the door; dropping it leaves.
pub(crate) struct Change<'a, S> {
    pub(super) target: Target<'a, S>,
    pub(super) request: Request<'a>,
    writer: &'a Writer,
    _passing: Passing<'a>,
}

/// A change of the image's structure, which is in alone; dropping it lets the others in.
pub(crate) struct AloneChange<'a, S> {
    pub(super) top: Top<'a, S>,
    /// Unless the operation that it belongs to is held elsewhere.
    _op: Option<Chore<'a>>,
    _alone: Alone<'a>,
    _structure: AsyncMutexGuard<'a, ()>,
}

impl<S: Storage> Image<S> {
    /// The writer, and what it writes to.
    ///
    /// # Errors
    /// [`Error::ReadOnly`] if the image is not open for writing.
    pub(super) fn target(&self) -> Result<(&Writer, Target<'_, S>)> {
        let writer = self.writer.get().filter(|_| self.access.is_writable());
        let writer = writer.ok_or_else(|| Error::ReadOnly("it is not open for writing".into()))?;
        // OK to index: an image has a layer.
        let target = match &self.layers[0].body {
            Body::Qcow2(layer) => Target::Qcow2(Top { image: self, layer, writer }),
            Body::Raw(layer) => Target::Raw(layer),
        };
        Ok((writer, target))
    }

    /// The image itself, if it is qcow2 and open for writing.
    pub(super) fn top(&self) -> Option<Top<'_, S>> {
        match self.target() {
            Ok((_, Target::Qcow2(top))) => Some(top),
            _ => None,
        }
    }

    /// Lets a change of an operation in: makes room in the caches first if they are too dirty, as that can wait for nobody
    /// in here.
    ///
    /// # Errors
    /// [`Error::ReadOnly`], [`Error::Latched`]; whatever preparing the first change meets.
    pub(super) async fn begin_change(&self, op: &Chore<'_>) -> Result<Change<'_, S>> {
        let (writer, target) = self.target()?;
        self.prepare_change().await?;
        if let Target::Qcow2(top) = &target {
            if top.needs_room() {
                top.make_room().await?;
            }
            if writer.is_recounting.load(Ordering::Acquire) != 0 {
                top.finish_recount().await?;
            }
            if writer.tracking.is_full() {
                top.relieve_tracking().await?;
            }
        }
        let passing = loop {
            let passing = writer.turnstile.pass().await;
            // Bitmaps change under those only who are alone: what they are now they are as long as somebody is inside.
            if !writer.tracking.is_armed() {
                break passing;
            }
            drop(passing);
            if let Target::Qcow2(top) = &target {
                top.mark_bitmaps_in_use().await?;
            }
        };
        let request = self.requests.enter_by(op);
        Ok(Change { target, request, writer, _passing: passing })
    }

    /// Prepares the first change, if that was not done, for an operation that is under way.
    ///
    /// # Errors
    /// [`Error::ReadOnly`], [`Error::Latched`]; whatever preparing the first change meets.
    pub(super) async fn prepare_change(&self) -> Result<()> {
        let (writer, target) = self.target()?;
        writer.must_not_be_latched()?;
        if let Target::Qcow2(top) = &target
            && writer.is_prepared.load(Ordering::Acquire) == 0
        {
            top.prepare().await?;
            writer.is_prepared.store(1, Ordering::Release);
        }
        Ok(())
    }

    /// Lets a change of the image's structure in, alone; `raw` says what a raw image has none of.
    ///
    /// # Errors
    /// As [`Self::begin_change`]; [`Error::InvalidArgument`] for raw images.
    pub(super) async fn begin_alone(&self, raw: &str) -> Result<AloneChange<'_, S>> {
        let op = self.requests.enter_chore().await?;
        let change = self.begin_alone_by(&op, raw).await?;
        Ok(AloneChange { _op: Some(op), ..change })
    }

    /// As [`Self::begin_alone`], for an operation that is under way.
    pub(super) async fn begin_alone_by(
        &self,
        op: &Chore<'_>,
        raw: &str,
    ) -> Result<AloneChange<'_, S>> {
        drop(self.begin_change(op).await?);
        let Some(top) = self.top() else {
            return Err(Error::InvalidArgument(format!("a raw image has {raw}")));
        };
        let structure = top.writer.structure.lock().await;
        let alone = top.writer.turnstile.alone().await;
        top.writer.must_not_be_latched()?;
        Ok(AloneChange { top, _op: None, _alone: alone, _structure: structure })
    }
}

impl<S> Change<'_, S> {
    /// Notes for the bitmaps, and for a commit into the backing file, that a range of the disk is about to change.
    #[inline]
    pub(super) fn mark(&self, range: Range<u64>) {
        self.writer.changed.mark(&range);
        if self.writer.tracking.is_on() {
            self.writer.tracking.mark(range);
        }
    }
}

impl<S: Storage> Top<'_, S> {
    /// How the image is written to.
    pub(super) fn options(&self) -> WriteOptions {
        self.image.access.get().unwrap_or_default()
    }

    /// Whether so much is dirty, or waits to be free, that it should be written back before more is. A cache that has room
    /// for all tables there are never needs any.
    pub(super) fn needs_room(&self) -> bool {
        let layer = self.layer;
        let cluster_size = layer.geometry.cluster_size();
        let full = |cache: &TableCache, tables: u64| {
            let dirty = cache.unwritten_bytes();
            dirty > cache.budget_bytes() / DIRTY_SHARE.1 * DIRTY_SHARE.0
                && tables.saturating_mul(cluster_size) > cache.budget_bytes()
        };
        let blocks = layer.metadata.file_len() / cluster_size;
        let blocks = blocks / layer.geometry.refcount_block_entries() + 1;
        full(&layer.l2_cache, layer.l1.len() as u64)
            || full(&layer.refcount_cache, blocks)
            || self.writer.many_frees.load(Ordering::Acquire) != 0
    }
}
