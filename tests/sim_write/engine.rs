//! What is simulated: the engine, or something much simpler whose faults are known, behind one trait.

use std::io;
use std::sync::Arc;

use cowshed::cache::Cleaner;
use cowshed::image::check::{
    CheckOptions, Finding, FindingKind, Repair, check_storage, repair_storage,
};
use cowshed::image::{
    Answer, Format, Gate, Image, NewSnapshot, OpenOptions, Reference, ReferenceKind, ResizeOptions,
    SnapshotSelector, Source, WriteOptions, ZeroMode,
};
use cowshed::storage::{Buf, SendStorage, Storage};
use cowshed::workers::Workers;
use cowshed::{Error, Result};

use super::model::{BACKING, OTHER, Tag, ZEROS};
use super::setup::{KEY, Made};

/// How many files an image has at most.
pub const FILES: usize = 4;

/// The files of an image, on storages of one kind.
#[derive(Clone)]
pub struct Files<S> {
    pub image: S,
    pub data: Option<S>,
    pub backing: Option<S>,
    /// A file that can be the backing file.
    pub other: Option<S>,
}

/// What lies below an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Below {
    Nothing,
    Backing,
    Other,
}

impl Below {
    /// What is read there.
    pub fn tag(self) -> Tag {
        match self {
            Self::Nothing => ZEROS,
            Self::Backing => BACKING,
            Self::Other => OTHER,
        }
    }

    /// What an image calls it.
    pub fn name(self) -> Option<&'static [u8]> {
        match self {
            Self::Nothing => None,
            Self::Backing => Some(b"backing.raw"),
            Self::Other => Some(b"other.raw"),
        }
    }
}

impl<S> Files<S> {
    /// The file that lies below.
    pub fn below(&self, below: Below) -> Option<&S> {
        match below {
            Below::Nothing => None,
            Below::Backing => self.backing.as_ref(),
            Below::Other => self.other.as_ref(),
        }
    }

    /// The same files on other storages.
    pub fn map<T>(&self, each: impl Fn(&S) -> T) -> Files<T> {
        Files {
            image: each(&self.image),
            data: self.data.as_ref().map(&each),
            backing: self.backing.as_ref().map(&each),
            other: self.other.as_ref().map(&each),
        }
    }

    /// Each of them, or that there is none.
    pub fn numbered(&self) -> [Option<&S>; FILES] {
        [Some(&self.image), self.data.as_ref(), self.backing.as_ref(), self.other.as_ref()]
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &S> {
        self.numbered().into_iter().flatten()
    }
}

impl Files<Arc<[u8]>> {
    /// Those that were made.
    pub fn of(made: &Made) -> Self {
        Self {
            image: Arc::clone(&made.image),
            data: made.data.clone(),
            backing: made.backing.clone(),
            other: Some(Arc::clone(&made.other)),
        }
    }
}

impl<S: Storage + Clone> Gate for Files<S> {
    type Storage = S;

    async fn open(&self, reference: &Reference<'_>) -> Result<Answer<S>> {
        let (storage, name) = match reference.kind {
            ReferenceKind::DataFile => (&self.data, "data"),
            ReferenceKind::BackingFile if Some(reference.name) == Below::Other.name() => {
                (&self.other, "other")
            }
            ReferenceKind::BackingFile => (&self.backing, "backing"),
        };
        let storage = storage.clone().expect("the image names what it was made with");
        let format = Format::Raw;
        Ok(Answer::Open(Source { storage, format, location: name.into(), identity: None }))
    }
}

/// The gate of an image that goes into its backing file, which is open elsewhere.
struct Alone<'a, S>(&'a Files<S>);

impl<S: Storage + Clone> Gate for Alone<'_, S> {
    type Storage = S;

    async fn open(&self, reference: &Reference<'_>) -> Result<Answer<S>> {
        match reference.kind {
            ReferenceKind::DataFile => self.0.open(reference).await,
            ReferenceKind::BackingFile => Ok(Answer::Zeros),
        }
    }
}

/// How a disk is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct How {
    pub tiny_caches: bool,
    /// Milliseconds between passes of the cleaner; 0 for none.
    pub clean_interval: u64,
    pub workers: bool,
    pub write_through: bool,
    pub discard_no_unref: bool,
    pub pass_discard: bool,
}

impl How {
    fn options(self) -> OpenOptions {
        let mut options = OpenOptions::default();
        options.key = Some(KEY.into());
        options.write = Some(write_options(self));
        options.cache.cache_clean_interval =
            Some(std::time::Duration::from_millis(self.clean_interval));
        if self.tiny_caches {
            // Two slices.
            options.cache.l2_cache_size = Some(0);
            options.cache.l2_cache_entry_size = Some(512);
            options.inflated_len_bytes_max = 0;
        }
        options
    }
}

/// What is simulated.
pub trait Engine {
    type Guest<S: Storage>: Guest;

    /// Whether QEMU understands its files.
    fn is_qcow2(&self) -> bool {
        true
    }

    /// The files to begin with.
    fn files(&self, made: &Made) -> Files<Arc<[u8]>> {
        Files::of(made)
    }

    /// Opens `files` for writing.
    async fn open<S: Storage + Clone>(
        &self,
        files: &Files<S>,
        how: How,
        workers: Option<Arc<dyn Workers>>,
    ) -> Result<(Self::Guest<S>, Option<Cleaner>)>;

    /// Opens `files` for reading alone.
    async fn open_to_read(&self, files: &Files<Frozen>) -> Result<Self::Guest<Frozen>>;

    /// The snapshots by their names, and what they hold.
    async fn snapshots(&self, files: &Files<Frozen>) -> Result<Vec<(String, Vec<u8>)>>;

    /// What a check finds.
    async fn check(&self, files: &Files<Frozen>) -> Result<Health>;

    /// Puts something else below the image, whose disk stays as it is.
    async fn rebase<S: Storage + Clone>(
        &self,
        guest: &Self::Guest<S>,
        files: &Files<S>,
        below: Below,
    ) -> Result<()>;

    /// Copies what the image has into what lies below it, and makes it empty.
    async fn commit<S: Storage + Clone>(
        &self,
        files: &Files<S>,
        how: How,
        below: Below,
    ) -> Result<()>;

    /// What lies below.
    async fn below(&self, files: &Files<Frozen>) -> Result<Below>;

    /// Gives back what has leaked, if it can. Returns whether it can.
    async fn repair<S: Storage + Clone>(&self, files: &Files<S>) -> Result<bool>;
}

/// A disk as its guest knows it.
pub trait Guest {
    fn size(&self) -> u64;
    async fn read(&self, bytes: &mut [u8], offset: u64) -> Result<()>;
    async fn write(&self, bytes: &[u8], offset: u64) -> Result<()>;
    async fn write_compressed(&self, bytes: &[u8], offset: u64) -> Result<()>;
    async fn write_zeroes(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<()>;
    async fn discard(&self, offset: u64, len: u64) -> Result<()>;
    async fn flush(&self) -> Result<()>;
    async fn resize(&self, size: u64) -> Result<()>;
    /// Gives the image settings that `choice` stands for, maybe read-only ones in between. Everything before is durable then.
    async fn change_settings(&self, how: How, choice: u64) -> Result<Option<Cleaner>>;
    async fn make_empty(&self) -> Result<()>;
    async fn close(&self) -> Result<()>;
    /// Takes, applies or deletes the snapshot of this name.
    async fn snapshot(&self, act: Act, name: &str) -> Result<()>;
    /// Whether there is a snapshot of this name.
    fn has_snapshot(&self, name: &str) -> bool;
}

/// What is done with a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    Take,
    Apply,
    Delete,
}

/// What a check has found.
#[derive(Debug, Default)]
pub struct Health {
    /// The image was not closed and says so: what the check says counts for nothing before it is repaired.
    pub dirty: bool,
    pub leaks: u64,
    /// All that is wrong are copied flags.
    pub only_flags: bool,
    /// Corruptions, and what could not be checked.
    pub wrong: Vec<String>,
    /// The first things that it has found.
    pub findings: Vec<String>,
}

/// The engine of this crate.
pub struct Cow;

impl Engine for Cow {
    type Guest<S: Storage> = Image<S>;

    async fn open<S: Storage + Clone>(
        &self,
        files: &Files<S>,
        how: How,
        workers: Option<Arc<dyn Workers>>,
    ) -> Result<(Image<S>, Option<Cleaner>)> {
        let mut options = how.options();
        options.workers = workers;
        let source = Source::qcow2(files.image.clone(), "image");
        let opened = Image::open(source, files, options).await?;
        Ok((opened.image, opened.cleaner))
    }

    async fn open_to_read(&self, files: &Files<Frozen>) -> Result<Image<Frozen>> {
        let source = Source::qcow2(files.image.clone(), "image");
        let mut options = OpenOptions::default();
        options.key = Some(KEY.into());
        Ok(Image::open(source, files, options).await?.image)
    }

    async fn snapshots(&self, files: &Files<Frozen>) -> Result<Vec<(String, Vec<u8>)>> {
        let mut all = Vec::new();
        for snapshot in self.open_to_read(files).await?.snapshots().iter() {
            let mut options = OpenOptions::default();
            options.key = Some(KEY.into());
            options.snapshot = Some(SnapshotSelector::Id(snapshot.id.clone()));
            let source = Source::qcow2(files.image.clone(), "image");
            let image = Image::open(source, files, options).await?.image;
            let mut bytes = vec![0; usize::try_from(image.virtual_size()).unwrap()];
            image.read_at(&mut bytes, 0).await?;
            all.push((String::from_utf8(snapshot.name.clone()).unwrap(), bytes));
        }
        Ok(all)
    }

    async fn check(&self, files: &Files<Frozen>) -> Result<Health> {
        let mut findings: Vec<Finding> = Vec::new();
        let report = check_storage(&files.image, &CheckOptions::default(), &mut findings).await?;
        let mut health = Health { leaks: report.leaks, ..Health::default() };
        let found = findings.iter().take(10);
        health.findings =
            found.map(|it| format!("{it} ({} at {:#x})", it.structure, it.offset)).collect();
        if report.corruptions + report.check_errors > 0 {
            health.wrong.push(format!("{report:?}"));
            let is_flag = |it: &&Finding| {
                matches!(it.kind, FindingKind::L1Copied { .. } | FindingKind::DataCopied { .. })
            };
            let flags: u64 = findings.iter().filter(is_flag).map(|it| it.times).sum();
            health.only_flags = flags == report.corruptions + report.check_errors;
            health.wrong.extend(health.findings.iter().cloned());
            // Incompatible features, bit 0.
            health.dirty = files.image.0[79] & 1 != 0 && files.image.0[7] >= 3;
        }
        Ok(health)
    }

    async fn rebase<S: Storage + Clone>(
        &self,
        guest: &Image<S>,
        files: &Files<S>,
        below: Below,
    ) -> Result<()> {
        let base = match files.below(below) {
            Some(file) => {
                let source = Source::raw(file.clone(), "base");
                Some(Image::open(source, files, OpenOptions::default()).await?.image)
            }
            None => None,
        };
        let mut rebase = guest.rebase_onto(base.as_ref(), None, false)?;
        while rebase.step().await?.is_some() {}
        guest.set_backing_file(below.name().map(|name| (name, &b"raw"[..]))).await
    }

    async fn commit<S: Storage + Clone>(
        &self,
        files: &Files<S>,
        how: How,
        below: Below,
    ) -> Result<()> {
        let Some(base) = files.below(below) else { return Ok(()) };
        let mut options = how.options();
        options.cache.cache_clean_interval = Some(std::time::Duration::ZERO);
        let source = Source::raw(base.clone(), "base");
        let base = Image::open(source, files, options.clone()).await?.image;
        let source = Source::qcow2(files.image.clone(), "image");
        let image = Image::open(source, &Alone(files), options).await?.image;
        let mut merge = image.merge_into(&base).await?;
        while merge.step().await?.is_some() {}
        base.close().await?;
        image.make_empty().await?;
        image.close().await
    }

    async fn below(&self, files: &Files<Frozen>) -> Result<Below> {
        let image = self.open_to_read(files).await?;
        let name = image.header().and_then(|header| header.backing_file.clone());
        let all = [Below::Nothing, Below::Backing, Below::Other];
        let found = all.into_iter().find(|below| below.name() == name.as_deref());
        Ok(found.expect("the image names what it was told"))
    }

    async fn repair<S: Storage + Clone>(&self, files: &Files<S>) -> Result<bool> {
        let options = CheckOptions::default();
        repair_storage(&files.image, Repair::Leaks, &options, &mut ()).await?;
        Ok(true)
    }
}

fn write_options(how: How) -> WriteOptions {
    let mut write = WriteOptions::default();
    write.write_through = how.write_through;
    write.discard_no_unref = how.discard_no_unref;
    write.pass_discard_request = how.pass_discard;
    write.pass_discard_other = how.pass_discard;
    write
}

impl<S: Storage> Guest for Image<S> {
    async fn change_settings(&self, how: How, choice: u64) -> Result<Option<Cleaner>> {
        let mut settings = self.settings();
        let mut write = write_options(how);
        write.lazy_refcounts = (choice & 1 != 0).then_some(false);
        write.pass_discard_request ^= choice & 2 != 0;
        let cache = &mut settings.cache;
        cache.l2_cache_size = Some(if choice & 4 == 0 { 0 } else { 1 << 20 });
        cache.l2_cache_entry_size = (choice & 8 == 0).then_some(512);
        cache.cache_clean_interval = Some(std::time::Duration::from_millis(choice >> 4 & 3));
        if choice & 64 != 0 {
            settings.write = None;
            drop(self.reconfigure(settings.clone()).await?);
        }
        settings.write = Some(write);
        self.reconfigure(settings).await
    }

    fn size(&self) -> u64 {
        self.virtual_size()
    }

    async fn read(&self, bytes: &mut [u8], offset: u64) -> Result<()> {
        self.read_at(bytes, offset).await
    }

    async fn write(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.write_at(bytes, offset).await
    }

    async fn write_compressed(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.write_compressed_at(bytes, offset).await
    }

    async fn write_zeroes(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<()> {
        self.write_zeroes_at(offset, len, mode).await
    }

    async fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.discard_at(offset, len).await
    }

    async fn flush(&self) -> Result<()> {
        self.flush().await
    }

    async fn resize(&self, size: u64) -> Result<()> {
        let mut options = ResizeOptions::default();
        options.shrink = true;
        self.resize(size, &options).await
    }

    async fn make_empty(&self) -> Result<()> {
        self.make_empty().await
    }

    async fn close(&self) -> Result<()> {
        self.close().await
    }

    async fn snapshot(&self, act: Act, name: &str) -> Result<()> {
        let selector = SnapshotSelector::Name(name.into());
        match act {
            Act::Take => self.create_snapshot(&NewSnapshot::new(name)).await.map(drop),
            Act::Apply => self.apply_snapshot(&selector).await,
            Act::Delete => self.delete_snapshot(&selector).await,
        }
    }

    fn has_snapshot(&self, name: &str) -> bool {
        self.snapshots().iter().any(|snapshot| snapshot.name == name.as_bytes())
    }
}

/// Bytes that stay as they are.
#[derive(Debug, Clone)]
pub struct Frozen(pub Arc<[u8]>);

impl SendStorage for Frozen {
    async fn read_at(&self, mut buf: Buf, offset: u64) -> io::Result<Buf> {
        let _ = SendStorage::try_read_at(self, &mut buf, offset);
        Ok(buf)
    }

    async fn write_at(&self, _buf: Buf, _offset: u64) -> io::Result<Buf> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    async fn write_zeroes(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    async fn discard(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    async fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    async fn len(&self) -> io::Result<u64> {
        Ok(self.0.len() as u64)
    }

    async fn set_len(&self, _len: u64) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn try_read_at(&self, buf: &mut [u8], offset: u64) -> Option<io::Result<()>> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(self.0.len());
        let there = &self.0[start..self.0.len().min(start + buf.len())];
        buf[..there.len()].copy_from_slice(there);
        buf[there.len()..].fill(0);
        Some(Ok(()))
    }
}

/// A disk whose bytes lie in its file as they are, which can be made to break its promises: it proves that the oracle
/// notices.
#[derive(Debug, Clone, Copy)]
pub struct Flat {
    /// The length of its clusters, for discards.
    pub cluster_size: u64,
    pub fault: Option<FlatFault>,
}

/// How a [`Flat`] disk breaks its promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FlatFault {
    /// Flush does nothing.
    NoFlush,
    /// Zeroes reach a sector too far.
    ZeroTooFar,
    /// What is longer than a cluster lands a sector too late behind its first cluster.
    Shifted,
    /// Discards give up the storage's bytes instead of zeroing them.
    RealDiscard,
    /// Nothing happens when the size changes but what is asked of the file.
    StaleGrowth,
    /// A write is acknowledged before it is done.
    Early,
}

pub struct FlatGuest<S> {
    storage: S,
    /// Held by each change: one at a time.
    changing: futures::lock::Mutex<()>,
    /// Held by each flush: beside one that fails another one may succeed that has lost as much.
    flushing: futures::lock::Mutex<()>,
    size: std::cell::Cell<u64>,
    flat: Flat,
}

fn failed(source: io::Error) -> Error {
    Error::Storage { operation: "access", offset: 0, len: 0, source }
}

impl Engine for Flat {
    type Guest<S: Storage> = FlatGuest<S>;

    fn is_qcow2(&self) -> bool {
        false
    }

    fn files(&self, made: &Made) -> Files<Arc<[u8]>> {
        Files { image: Arc::clone(&made.first), data: None, backing: None, other: None }
    }

    async fn open<S: Storage + Clone>(
        &self,
        files: &Files<S>,
        _how: How,
        _workers: Option<Arc<dyn Workers>>,
    ) -> Result<(FlatGuest<S>, Option<Cleaner>)> {
        let size = files.image.len().await.map_err(failed)?.into();
        Ok((
            FlatGuest {
                storage: files.image.clone(),
                changing: futures::lock::Mutex::new(()),
                flushing: futures::lock::Mutex::new(()),
                size,
                flat: *self,
            },
            None,
        ))
    }

    async fn open_to_read(&self, files: &Files<Frozen>) -> Result<FlatGuest<Frozen>> {
        let size = Storage::len(&files.image).await.map_err(failed)?.into();
        Ok(FlatGuest {
            storage: files.image.clone(),
            changing: futures::lock::Mutex::new(()),
            flushing: futures::lock::Mutex::new(()),
            size,
            flat: *self,
        })
    }

    async fn snapshots(&self, _files: &Files<Frozen>) -> Result<Vec<(String, Vec<u8>)>> {
        Ok(Vec::new())
    }

    async fn check(&self, _files: &Files<Frozen>) -> Result<Health> {
        Ok(Health::default())
    }

    async fn rebase<S: Storage + Clone>(
        &self,
        _guest: &FlatGuest<S>,
        _files: &Files<S>,
        _below: Below,
    ) -> Result<()> {
        Ok(())
    }

    async fn commit<S: Storage + Clone>(
        &self,
        _files: &Files<S>,
        _how: How,
        _below: Below,
    ) -> Result<()> {
        Ok(())
    }

    async fn below(&self, _files: &Files<Frozen>) -> Result<Below> {
        Ok(Below::Nothing)
    }

    async fn repair<S: Storage + Clone>(&self, _files: &Files<S>) -> Result<bool> {
        Ok(false)
    }
}

impl<S: Storage> FlatGuest<S> {
    fn is(&self, fault: FlatFault) -> bool {
        self.flat.fault == Some(fault)
    }

    /// The size may have changed since the request was made.
    fn within(&self, offset: u64, len: u64) -> Result<()> {
        let size = self.size();
        if offset + len > size { Err(Error::OutOfBounds { offset, len, size }) } else { Ok(()) }
    }
}

impl<S: Storage> Guest for FlatGuest<S> {
    async fn change_settings(&self, _how: How, _choice: u64) -> Result<Option<Cleaner>> {
        self.flush().await.map(|()| None)
    }

    fn size(&self) -> u64 {
        self.size.get()
    }

    async fn read(&self, bytes: &mut [u8], offset: u64) -> Result<()> {
        let buf = self.storage.read_at(Buf::zeroed(bytes.len()), offset).await.map_err(failed)?;
        bytes.copy_from_slice(&buf);
        Ok(())
    }

    async fn write(&self, bytes: &[u8], offset: u64) -> Result<()> {
        let _changing = self.changing.lock().await;
        self.within(offset, bytes.len() as u64)?;
        let split = self.flat.cluster_size.min(bytes.len() as u64);
        let (first, rest) = bytes.split_at(usize::try_from(split).unwrap());
        let shift = if self.is(FlatFault::Shifted) { 512 } else { 0 };
        for (part, at) in [(first, offset), (rest, offset + split + shift)] {
            let mut buf = Buf::zeroed(part.len());
            buf.copy_from_slice(part);
            let write = self.storage.write_at(buf, at);
            if self.is(FlatFault::Early) {
                let _ = cowshed::sim::cut(write, 1).await;
            } else {
                write.await.map_err(failed)?;
            }
        }
        Ok(())
    }

    async fn write_compressed(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.write(bytes, offset).await
    }

    async fn write_zeroes(&self, offset: u64, len: u64, _mode: ZeroMode) -> Result<()> {
        let _changing = self.changing.lock().await;
        self.within(offset, len)?;
        let more =
            if self.is(FlatFault::ZeroTooFar) && offset + len < self.size() { 512 } else { 0 };
        self.storage.write_zeroes(offset, len + more).await.map_err(failed)
    }

    async fn discard(&self, offset: u64, len: u64) -> Result<()> {
        let _changing = self.changing.lock().await;
        self.within(offset, len)?;
        let cluster_size = self.flat.cluster_size;
        let end = offset + len;
        let end = if end == self.size() { end } else { end / cluster_size * cluster_size };
        let start = offset.next_multiple_of(cluster_size);
        if start >= end {
            Ok(())
        } else if self.is(FlatFault::RealDiscard) {
            self.storage.discard(start, end - start).await.map_err(failed)
        } else {
            self.storage.write_zeroes(start, end - start).await.map_err(failed)
        }
    }

    async fn flush(&self) -> Result<()> {
        if self.is(FlatFault::NoFlush) {
            return Ok(());
        }
        let _one = self.flushing.lock().await;
        self.storage.flush().await.map_err(failed)
    }

    async fn resize(&self, size: u64) -> Result<()> {
        let _changing = self.changing.lock().await;
        let old = self.size();
        self.storage.set_len(size).await.map_err(failed)?;
        self.size.set(size);
        if self.is(FlatFault::StaleGrowth) && size > old {
            let mut buf = Buf::zeroed(512);
            buf.fill(7);
            self.storage.write_at(buf, old).await.map_err(failed)?;
        }
        Ok(())
    }

    async fn snapshot(&self, _act: Act, _name: &str) -> Result<()> {
        unreachable!("its plans have none")
    }

    fn has_snapshot(&self, _name: &str) -> bool {
        false
    }

    async fn make_empty(&self) -> Result<()> {
        self.write_zeroes(0, self.size(), ZeroMode::MayUnmap).await?;
        self.flush().await
    }

    async fn close(&self) -> Result<()> {
        self.flush().await
    }
}
