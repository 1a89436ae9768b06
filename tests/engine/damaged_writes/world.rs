//! An image in memory that is written to, with all that a guest could see of it before, now, and after it is opened again.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use cowshed::Error;
use cowshed::image::check::{CheckOptions, check_storage};
use cowshed::image::{
    Format, Image, OpenOptions, RefuseAll, SnapshotSelector, Source, WriteOptions, ZeroMode,
};
use cowshed::storage::MemoryStorage;
use futures::executor::block_on;

/// A change of the disk.
#[derive(Clone)]
pub struct Op {
    pub kind: OpKind,
    pub offset: u64,
    pub len: u64,
    /// What is written is made of it.
    pub seed: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpKind {
    Write,
    Compressed,
    ZeroKeep,
    ZeroUnmap,
    Discard,
}

impl OpKind {
    pub const EVERY: [Self; 5] =
        [Self::Write, Self::Compressed, Self::ZeroKeep, Self::ZeroUnmap, Self::Discard];
}

impl fmt::Debug for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {:#x}+{:#x}", self.kind, self.offset, self.len)
    }
}

impl Op {
    pub fn range(&self) -> Range<u64> {
        self.offset..self.offset + self.len
    }

    pub fn data(&self) -> Vec<u8> {
        match self.kind {
            OpKind::Write | OpKind::Compressed => (self.offset..self.offset + self.len)
                .map(|at| self.seed ^ (at / 512) as u8 ^ 0x80)
                .collect(),
            OpKind::ZeroKeep | OpKind::ZeroUnmap | OpKind::Discard => vec![0; self.len as usize],
        }
    }

    async fn run(&self, image: &Image<Arc<MemoryStorage>>) -> Result<(), Error> {
        let (offset, len) = (self.offset, self.len);
        match self.kind {
            OpKind::Write => image.write_at(&self.data(), offset).await,
            OpKind::Compressed => image.write_compressed_at(&self.data(), offset).await,
            OpKind::ZeroKeep => image.write_zeroes_at(offset, len, ZeroMode::KeepSpace).await,
            OpKind::ZeroUnmap => image.write_zeroes_at(offset, len, ZeroMode::MayUnmap).await,
            OpKind::Discard => image.discard_at(offset, len).await,
        }
    }
}

/// What a disk reads as, piece by piece; nothing where reading fails.
pub type Disk = Vec<Option<Vec<u8>>>;

/// What an image holds: the active disk, then its snapshots'.
#[derive(Clone, PartialEq)]
pub struct View {
    pub disks: Vec<Disk>,
    pub corruptions: u64,
}

/// Disks are read up to here: damage can give a snapshot any size.
const DISK_LEN_MAX: u64 = 2 << 20;

async fn open(
    storage: &Arc<MemoryStorage>,
    options: OpenOptions,
) -> Result<Image<Arc<MemoryStorage>>, Error> {
    let storage = Arc::clone(storage);
    let source = Source { storage, format: Format::Qcow2, location: "i".into(), identity: None };
    Ok(Image::open(source, &RefuseAll::default(), options).await?.image)
}

async fn read(image: &Image<Arc<MemoryStorage>>, piece: usize) -> Disk {
    let size = image.virtual_size().min(DISK_LEN_MAX) as usize;
    let mut disk = Vec::new();
    for start in (0..size).step_by(piece) {
        let mut bytes = vec![0; piece.min(size - start)];
        disk.push(image.read_at(&mut bytes, start as u64).await.ok().map(|()| bytes));
    }
    disk
}

/// Reads all that an image holds; nothing if it cannot be opened.
fn view(storage: &Arc<MemoryStorage>, piece: usize) -> Option<View> {
    block_on(async {
        let image = open(storage, OpenOptions::default()).await.ok()?;
        let mut disks = vec![read(&image, piece).await];
        for snapshot in image.snapshots().iter() {
            let mut options = OpenOptions::default();
            options.snapshot = Some(SnapshotSelector::Id(snapshot.id.clone()));
            disks.push(match open(storage, options).await {
                Ok(image) => read(&image, piece).await,
                Err(_) => Vec::new(),
            });
        }
        let report = check_storage(storage, &CheckOptions::default(), &mut ()).await.ok()?;
        Some(View { disks, corruptions: report.corruptions + report.check_errors })
    })
}

/// What must be read: a view, and where it may be one of two.
struct Expected {
    view: View,
    piece: usize,
    /// Ranges of refused or failed requests, which may have the bytes of before or those that were asked for.
    either: Vec<(Range<u64>, Vec<u8>)>,
}

impl Expected {
    fn apply(&mut self, op: &Op, done: bool) {
        // A discard may leave alone what is not a whole cluster.
        if !done || op.kind == OpKind::Discard {
            self.either.push((op.range(), op.data()));
            return;
        }
        // What failed here before may be neither of the two now: what is asked for last counts.
        for (range, data) in &mut self.either {
            let start = range.start.max(op.offset);
            let end = range.end.min(op.offset + op.len);
            if start < end {
                let (to, from) = ((start - range.start) as usize, (start - op.offset) as usize);
                let len = (end - start) as usize;
                data[to..to + len].copy_from_slice(&op.data()[from..from + len]);
            }
        }
        self.put(op.offset, &op.data());
    }

    fn put(&mut self, offset: u64, data: &[u8]) {
        let piece = self.piece;
        let disk = &mut self.view.disks[0];
        let mut at = offset as usize;
        let mut rest = data;
        while !rest.is_empty() {
            let (index, start) = (at / piece, at % piece);
            let len = rest.len().min(piece - start);
            match &mut disk[index] {
                Some(bytes) => bytes[start..start + len].copy_from_slice(&rest[..len]),
                // Only a write over the whole of it can make it readable.
                whole if start == 0 && (len == piece || len == rest.len()) => {
                    *whole = Some(rest[..len].to_vec());
                }
                None => {
                    let from = at as u64;
                    self.either.push((from..from + len as u64, rest[..len].to_vec()));
                }
            }
            at += len;
            rest = &rest[len..];
        }
    }

    fn assert_disk(&self, disk: &Disk, what: &dyn fmt::Debug) {
        let expected = &self.view.disks[0];
        assert_eq!(expected.len(), disk.len());
        let piece = self.piece;
        for (index, (expected, found)) in expected.iter().zip(disk).enumerate() {
            if expected == found {
                continue;
            }
            let start = (index * piece) as u64;
            let legal = |at: u64, byte: u8| {
                self.either.iter().any(|(range, data)| {
                    range.contains(&at) && data[(at - range.start) as usize] == byte
                })
            };
            match (expected, found) {
                (Some(expected), Some(found)) => {
                    for (at, (expected, found)) in (start..).zip(expected.iter().zip(found)) {
                        assert!(
                            expected == found || legal(at, *found),
                            "{what:?}: byte {at:#x} reads {found:#x}, not {expected:#x}"
                        );
                    }
                }
                (None, Some(found)) => {
                    for (at, found) in (start..).zip(found) {
                        assert!(legal(at, *found), "{what:?}: {at:#x} could not be read before");
                    }
                }
                (Some(_), None) => panic!("{what:?}: {start:#x} cannot be read any more"),
                (None, None) => {}
            }
        }
    }
}

/// What became of requests.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Outcome {
    pub done: usize,
    /// Codes or texts of refusals.
    pub refused: Vec<String>,
}

/// An image and what it reads as.
pub struct World<'b> {
    bytes: &'b [u8],
    /// How much is read at a time: what cannot be read is as small as a cluster.
    piece: usize,
    before: Option<View>,
}

impl<'b> World<'b> {
    /// The image in `bytes`.
    pub fn new(bytes: &'b [u8]) -> Self {
        let piece = 1 << bytes[23];
        let before = view(&Arc::new(MemoryStorage::new(bytes.to_vec())), piece);
        Self { bytes, piece, before }
    }

    /// Runs `ops` on a copy of the image and asserts after each, and at the end of all, that nothing changed but what they
    /// name.
    pub fn run(&self, ops: &[Op], what: &dyn fmt::Debug) -> Outcome {
        let mut outcome = Outcome::default();
        let Some(before) = self.before.clone() else { return outcome };
        run(self.bytes, self.piece, before, ops, what, &mut outcome);
        outcome
    }
}

fn run(
    bytes: &[u8],
    piece: usize,
    before: View,
    ops: &[Op],
    what: &dyn fmt::Debug,
    outcome: &mut Outcome,
) {
    let storage = Arc::new(MemoryStorage::new(bytes.to_vec()));
    let corruptions = before.corruptions;
    let mut expected = Expected { view: before.clone(), piece, either: Vec::new() };
    let mut options = OpenOptions::default();
    options.write = Some(WriteOptions::default());
    block_on(async {
        let image = match open(&storage, options).await {
            Ok(image) => image,
            Err(error) => {
                outcome.refused.push(text(&error));
                assert!(storage.to_vec() == bytes, "{what:?}: refused and changed");
                return;
            }
        };
        let mut flushed = true;
        for op in ops {
            let result = op.run(&image).await;
            expected.apply(op, result.is_ok());
            let at = (what, op);
            expected.assert_disk(&read(&image, piece).await, &at);
            match result {
                Ok(()) => outcome.done += 1,
                Err(error) => outcome.refused.push(text(&error)),
            }
        }
        for result in [image.flush().await, image.close().await] {
            if let Err(error) = result {
                outcome.refused.push(text(&error));
                flushed = false;
            }
        }
        if !flushed {
            // What was not flushed may be lost, all of it or what came last.
            for op in ops {
                expected.either.push((op.range(), op.data()));
                expected.either.push((op.range(), part(&before.disks[0], piece, op)));
            }
        }
    });
    let at = (what, ops, &*outcome);
    let after =
        view(&storage, piece).unwrap_or_else(|| panic!("{at:?}: cannot be opened any more"));
    expected.assert_disk(&after.disks[0], &at);
    assert!(after.disks[1..] == expected.view.disks[1..], "{at:?}: a snapshot changed");
    assert!(
        after.corruptions <= corruptions,
        "{at:?}: {corruptions} corruptions became {}",
        after.corruptions
    );
}

/// The bytes of an operation's range; zeros where they cannot be read.
fn part(disk: &Disk, piece: usize, op: &Op) -> Vec<u8> {
    let piece = piece as u64;
    op.range()
        .map(|at| {
            let bytes = disk[(at / piece) as usize].as_ref();
            bytes.map_or(0, |bytes| bytes[(at % piece) as usize])
        })
        .collect()
}

fn text(error: &Error) -> String {
    match error {
        Error::Corrupt(corrupt) => corrupt.code().to_owned(),
        Error::Unsupported(unsupported) => unsupported.code().to_owned(),
        other => other.to_string(),
    }
}
