//! The fear: what the engine writes is right to itself alone. QEMU and the engine write to one image in turns, over every
//! geometry of the matrix; after each turn both read the same, which is what a flat disk would hold, the snapshots have not
//! changed, and `qemu-img check` finds nothing.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use crate::support::data::{Choices, pattern_file};
use crate::support::images::assert_same;
use crate::support::open::read_all;
use crate::support::{TestImage, for_each_image, qemu};
use cowshed::Error;
use cowshed::image::{
    Answer, Format, Gate, Image, NewSnapshot, OpenOptions, Reference, ReferenceKind, ResizeOptions,
    SnapshotSelector, Source, WriteOptions, ZeroMode, detect,
};
use cowshed::storage::MemoryStorage;
use futures::executor::block_on;
use futures::future::join_all;

/// How often each of the two has its turn.
const ROUNDS: u64 = 2;
/// Changes in a turn.
const CHANGES: usize = 8;

/// A folder whose files are copied into memory when they are opened, and back again.
struct Folder {
    dir: PathBuf,
    files: Mutex<BTreeMap<String, Arc<MemoryStorage>>>,
}

impl Folder {
    fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), files: Mutex::default() }
    }

    fn source(&self, name: &str, format: Option<Format>) -> Source<Arc<MemoryStorage>> {
        let bytes = std::fs::read(self.dir.join(name)).expect("a file of the test image");
        let format = format.unwrap_or_else(|| detect(&bytes));
        let storage = Arc::new(MemoryStorage::new(bytes));
        self.files.lock().unwrap().insert(name.to_owned(), Arc::clone(&storage));
        Source { storage, format, location: name.into(), identity: None }
    }

    /// Writes back what was written, and asserts that nothing else was.
    fn write_back(self, written: &[&str]) {
        for (name, storage) in self.files.into_inner().unwrap() {
            let path = self.dir.join(&name);
            let bytes = storage.to_vec();
            if written.contains(&&*name) {
                std::fs::write(path, bytes).unwrap();
            } else {
                assert!(bytes == std::fs::read(path).unwrap(), "{name} was written to");
            }
        }
    }
}

impl Gate for Folder {
    type Storage = Arc<MemoryStorage>;

    async fn open(&self, reference: &Reference<'_>) -> cowshed::Result<Answer<Self::Storage>> {
        let name = std::str::from_utf8(reference.name).expect("a name that QEMU wrote");
        let format = match (reference.kind, reference.format) {
            (ReferenceKind::DataFile, _) | (_, Some(b"raw")) => Some(Format::Raw),
            (_, Some(b"qcow2")) => Some(Format::Qcow2),
            _ => None,
        };
        Ok(Answer::Open(self.source(name, format)))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Write,
    Compressed,
    Zero,
    ZeroUnmap,
    Discard,
}

#[derive(Debug, Clone)]
struct Change {
    kind: Kind,
    range: Range<u64>,
    /// Number of the file that the bytes are repeated from.
    file: usize,
}

impl Change {
    fn any(choices: &mut Choices, cluster_size: u64, size: u64) -> Self {
        let kind = match choices.below(8) {
            0 => Kind::Compressed,
            1 => Kind::Zero,
            2 => Kind::ZeroUnmap,
            3 => Kind::Discard,
            _ => Kind::Write,
        };
        let longest = (cluster_size * 5).clamp(8192, 3 << 20).min(size / 3);
        let len = match choices.below(3) {
            0 => choices.between(1, 5000.min(longest)),
            1 => longest,
            _ => choices.between(1, longest),
        };
        let offset = choices.below(size - len + 1);
        let align = choices.below(2) == 0 || kind == Kind::Compressed;
        let range = if align {
            let start = offset / cluster_size * cluster_size;
            // Compressed ones by one: of several, some may be refused.
            let len = if kind == Kind::Compressed { cluster_size } else { len };
            start..(start + len.next_multiple_of(cluster_size)).min(size)
        } else {
            offset..offset + len
        };
        Self { kind, range, file: choices.below(8) as usize }
    }

    fn len(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// What the range reads as afterwards. A discard may leave it alone.
    fn bytes(&self) -> Vec<u8> {
        let len = self.len() as usize;
        match self.kind {
            Kind::Write | Kind::Compressed => {
                let pattern = std::fs::read(pattern_file(self.file)).unwrap();
                pattern.iter().copied().cycle().take(len).collect()
            }
            Kind::Zero | Kind::ZeroUnmap | Kind::Discard => vec![0; len],
        }
    }

    /// QEMU has no compressed writes to clusters that are allocated.
    fn qemu_command(&self) -> Option<String> {
        let (offset, len) = (self.range.start, self.len());
        match self.kind {
            Kind::Compressed => None,
            Kind::Write => {
                Some(format!("write -q -s {} {offset} {len}", pattern_file(self.file).display()))
            }
            Kind::Zero => Some(format!("write -q -z {offset} {len}")),
            Kind::ZeroUnmap => Some(format!("write -q -z -u {offset} {len}")),
            Kind::Discard => Some(format!("discard -q {offset} {len}")),
        }
    }

    async fn make(&self, image: &Image<Arc<MemoryStorage>>) -> Result<(), Error> {
        let (offset, len) = (self.range.start, self.len());
        match self.kind {
            Kind::Write => image.write_at(&self.bytes(), offset).await,
            Kind::Compressed => image.write_compressed_at(&self.bytes(), offset).await,
            Kind::Zero => image.write_zeroes_at(offset, len, ZeroMode::KeepSpace).await,
            Kind::ZeroUnmap => image.write_zeroes_at(offset, len, ZeroMode::MayUnmap).await,
            Kind::Discard => image.discard_at(offset, len).await,
        }
    }
}

/// The flat disk.
struct Model {
    bytes: Vec<u8>,
    /// Ranges discarded in this turn: their bytes are these or zeros.
    discarded: Vec<Range<u64>>,
}

impl Model {
    fn apply(&mut self, change: &Change) {
        if change.kind == Kind::Discard {
            self.discarded.push(change.range.clone());
            return;
        }
        let range = change.range.start as usize..change.range.end as usize;
        self.bytes[range].copy_from_slice(&change.bytes());
        // What was discarded before and is written now is known again; keep the parts around it.
        let written = change.range.clone();
        let parts = std::mem::take(&mut self.discarded).into_iter().flat_map(|range| {
            [range.start..range.end.min(written.start), range.start.max(written.end)..range.end]
        });
        self.discarded = parts.filter(|range| !range.is_empty()).collect();
    }

    /// Takes what a reader says of discarded ranges, if it is one of the two.
    fn settle(&mut self, found: &[u8], description: &str) {
        for range in std::mem::take(&mut self.discarded) {
            let part = range.start as usize..range.end as usize;
            for (known, found) in self.bytes[part.clone()].iter_mut().zip(&found[part]) {
                assert!(
                    *found == 0 || found == known,
                    "{description}: reads {found:#x} for {known:#x} after a discard of {range:x?}"
                );
                *known = *found;
            }
        }
    }
}

fn qemu_turn(image: &TestImage, model: &mut Model, choices: &mut Choices, cluster_size: u64) {
    let size = model.bytes.len() as u64;
    let changes: Vec<_> = (0..CHANGES).map(|_| Change::any(choices, cluster_size, size)).collect();
    let commands: Vec<_> = changes.iter().filter_map(Change::qemu_command).collect();
    qemu::io(image.dir.path(), "qcow2", image.name(), &commands);
    for change in changes.iter().filter(|change| change.kind != Kind::Compressed) {
        model.apply(change);
    }
}

fn our_turn(image: &TestImage, model: &mut Model, choices: &mut Choices, cluster_size: u64) {
    let folder = Folder::new(image.dir.path());
    let mut options = OpenOptions::default();
    options.write = Some(WriteOptions::default());
    if choices.below(2) == 0 {
        // The least: what is dirty must be written back on the way.
        options.cache.l2_cache_size = Some(1);
        options.cache.refcount_cache_size = Some(1);
    }
    block_on(async {
        let source = folder.source(image.name(), Some(Format::Qcow2));
        let open = Image::open(source, &folder, options).await.unwrap().image;
        let size = model.bytes.len() as u64;
        let mut changes: Vec<_> =
            (0..CHANGES).map(|_| Change::any(choices, cluster_size, size)).collect();
        // Neighbours are made at the same time if they do not overlap.
        while !changes.is_empty() {
            let apart = (1..changes.len().min(4))
                .take_while(|count| {
                    let next = &changes[*count].range;
                    changes[..*count]
                        .iter()
                        .all(|c| c.range.end <= next.start || next.end <= c.range.start)
                })
                .count();
            let together: Vec<_> = changes.drain(..=apart).collect();
            let results = join_all(together.iter().map(|change| change.make(&open))).await;
            for (change, result) in together.iter().zip(results) {
                match result {
                    Ok(()) => model.apply(change),
                    // No room for a stream where a data file is, or where the cluster is allocated.
                    Err(Error::Unsupported(error)) if change.kind == Kind::Compressed => {
                        assert_eq!(error.code(), "compression-with-data-file");
                    }
                    Err(Error::InvalidArgument(_)) if change.kind == Kind::Compressed => {}
                    Err(error) => panic!("{}: {change:x?}: {error}", image.description),
                }
                let mut bytes = vec![0xa5; change.len() as usize];
                open.read_at(&mut bytes, change.range.start).await.unwrap();
                if change.kind != Kind::Discard && model.discarded.is_empty() {
                    assert_same(&image.description, &model.bytes, &bytes, change.range.start);
                }
            }
            if choices.below(4) == 0 {
                open.flush().await.unwrap();
            }
        }
        open.close().await.unwrap();
    });
    folder.write_back(&[image.name(), "image.data"]);
}

/// Both readers see the model, and the checker nothing.
fn assert_agree(image: &TestImage, model: &mut Model, turn: &str) {
    let description = format!("{}, after {turn}", image.description);
    let dir = image.dir.path();
    let theirs = qemu::raw_bytes(dir, &["-f", "qcow2"], image.name());
    model.settle(&theirs, &description);
    assert_eq!(theirs.len(), model.bytes.len(), "{description}");
    assert_same(&format!("QEMU, {description}"), &model.bytes, &theirs, 0);
    let folder = Folder::new(dir);
    let read = |snapshot| {
        let mut options = OpenOptions::default();
        options.snapshot = snapshot;
        let source = folder.source(image.name(), Some(Format::Qcow2));
        block_on(async {
            let open = Image::open(source, &folder, options).await.unwrap().image;
            read_all(&open, 1 << 20).await.unwrap()
        })
    };
    assert_same(&description, &model.bytes, &read(None), 0);
    for snapshot in &image.snapshots {
        let bytes = read(Some(SnapshotSelector::Name(snapshot.name.clone().into_bytes())));
        snapshot.assert_reads(&description, &bytes, 0);
    }
    // Fails if anything is found, leaks too.
    qemu::img(dir, ["check", "-q", "-f", "qcow2", image.name()]);
}

#[test]
fn qemu_and_the_engine_write_in_turns() {
    let images = for_each_image(|image| {
        let info = image.info_json();
        let cluster_size = info["cluster-size"].as_u64().unwrap();
        let seed = image
            .description
            .bytes()
            .fold(7, |sum: u64, byte| sum.wrapping_mul(31).wrapping_add(u64::from(byte)));
        let mut choices = Choices::new(seed);
        let mut model = Model { bytes: image.reference.clone(), discarded: Vec::new() };
        for round in 0..ROUNDS {
            our_turn(image, &mut model, &mut choices, cluster_size);
            assert_agree(image, &mut model, &format!("our turn {round}"));
            qemu_turn(image, &mut model, &mut choices, cluster_size);
            assert_agree(image, &mut model, &format!("QEMU's turn {round}"));
        }
        for snapshot in &image.snapshots {
            let name = image.name();
            let bytes =
                crate::support::images::snapshot_bytes(image.dir.path(), name, &snapshot.name);
            // With the size that the disk has now.
            snapshot.assert_reads(&image.description, &bytes[..snapshot.reference.len()], 0);
        }
    });
    assert!(images > 150, "{images} images");
}

#[test]
fn qemu_and_the_engine_resize_in_turns() {
    for image in crate::support::small_matrix() {
        let info = image.info_json();
        if info["format-specific"]["data"]["compat"] == "0.10" && !image.snapshots.is_empty() {
            continue;
        }
        let cluster_size = info["cluster-size"].as_u64().unwrap();
        let mut choices = Choices::new(image.description.len() as u64);
        let mut model = Model { bytes: image.reference.clone(), discarded: Vec::new() };
        for round in 0..4 {
            let grown =
                model.bytes.len() as u64 + 512 * choices.between(1, cluster_size / 256 + 900);
            model.bytes.resize(grown as usize, 0);
            if round % 2 == 0 {
                let folder = Folder::new(image.dir.path());
                let mut options = OpenOptions::default();
                options.write = Some(WriteOptions::default());
                block_on(async {
                    let source = folder.source(image.name(), Some(Format::Qcow2));
                    let open = Image::open(source, &folder, options).await.unwrap().image;
                    open.resize(grown, &ResizeOptions::default()).await.unwrap();
                    assert_eq!(open.virtual_size(), grown);
                    open.close().await.unwrap();
                });
                folder.write_back(&[image.name(), "image.data"]);
                our_turn(&image, &mut model, &mut choices, cluster_size);
            } else {
                let args = ["resize", "-q", "-f", "qcow2", image.name(), &grown.to_string()];
                qemu::img(image.dir.path(), args);
                qemu_turn(&image, &mut model, &mut choices, cluster_size);
            }
            assert_agree(&image, &mut model, &format!("growth {round}"));
        }
    }
}

/// Snapshots of a disk, oldest first: the name, and what the disk held.
type Snapshots = Vec<(String, Vec<u8>)>;

/// Takes, applies or deletes a snapshot, the engine or QEMU, as `choices` say.
fn snapshot_turn(
    image: &TestImage,
    model: &mut Model,
    snapshots: &mut Snapshots,
    choices: &mut Choices,
    ours: bool,
) {
    let (act, name) = match (choices.below(3), snapshots.len() as u64) {
        (0, _) | (_, 0) => ("-c", format!("s{}", choices.below(u64::MAX))),
        (1, count) => ("-a", snapshots[choices.below(count) as usize].0.clone()),
        (_, count) => ("-d", snapshots[choices.below(count) as usize].0.clone()),
    };
    if ours {
        let folder = Folder::new(image.dir.path());
        let mut options = OpenOptions::default();
        options.write = Some(WriteOptions::default());
        let selector = SnapshotSelector::IdOrName(name.clone().into_bytes());
        block_on(async {
            let source = folder.source(image.name(), Some(Format::Qcow2));
            let open = Image::open(source, &folder, options).await.unwrap().image;
            let done = match act {
                "-c" => open.create_snapshot(&NewSnapshot::new(&*name)).await.map(drop),
                "-a" => open.apply_snapshot(&selector).await,
                _ => open.delete_snapshot(&selector).await,
            };
            done.unwrap_or_else(|error| panic!("{}: {act}: {error}", image.description));
            open.close().await.unwrap();
        });
        folder.write_back(&[image.name()]);
    } else {
        qemu::img(image.dir.path(), ["snapshot", act, &name, image.name()]);
    }
    let found = snapshots.iter().position(|(it, _)| *it == name);
    match (act, found) {
        ("-a", Some(at)) => model.bytes.clone_from(&snapshots[at].1),
        ("-d", Some(at)) => drop(snapshots.remove(at)),
        _ => snapshots.push((name, model.bytes.clone())),
    }
}

/// Both readers see what each snapshot holds.
fn assert_snapshots(image: &TestImage, snapshots: &Snapshots, turn: &str) {
    for (name, expected) in snapshots {
        let description = format!("snapshot of {}, after {turn}", image.description);
        let folder = Folder::new(image.dir.path());
        let mut options = OpenOptions::default();
        options.snapshot = Some(SnapshotSelector::Name(name.clone().into_bytes()));
        let source = folder.source(image.name(), Some(Format::Qcow2));
        let ours = block_on(async {
            let open = Image::open(source, &folder, options).await.unwrap().image;
            read_all(&open, 1 << 20).await.unwrap()
        });
        assert_same(&description, expected, &ours, 0);
        let theirs = crate::support::images::snapshot_bytes(image.dir.path(), image.name(), name);
        assert_same(&format!("QEMU, {description}"), expected, &theirs[..expected.len()], 0);
    }
}

#[test]
fn qemu_and_the_engine_take_snapshots_in_turns() {
    let mut turns = 0;
    for image in crate::support::small_matrix() {
        let info = image.info_json();
        let data = &info["format-specific"]["data"];
        if data["data-file"].is_string() || data["refcount-bits"] == 1 {
            continue;
        }
        let cluster_size = info["cluster-size"].as_u64().unwrap();
        let mut choices = Choices::new(image.description.len() as u64 + 77);
        let mut model = Model { bytes: image.reference.clone(), discarded: Vec::new() };
        let mut snapshots = Snapshots::new();
        for round in 0..4 {
            let ours = round % 2 == 0;
            let turn = format!("turn {round} of {}", if ours { "the engine" } else { "QEMU" });
            for _ in 0..2 {
                snapshot_turn(&image, &mut model, &mut snapshots, &mut choices, ours);
            }
            match ours {
                true => our_turn(&image, &mut model, &mut choices, cluster_size),
                false => qemu_turn(&image, &mut model, &mut choices, cluster_size),
            }
            assert_agree(&image, &mut model, &turn);
            assert_snapshots(&image, &snapshots, &turn);
            turns += 1;
        }
    }
    assert!(turns >= 40, "{turns} turns");
}

#[cfg(feature = "file")]
#[test]
fn image_with_a_data_file_has_no_snapshots() {
    let dir = tempfile::tempdir().unwrap();
    let options = ["create", "-q", "-f", "qcow2", "-o", "data_file=image.data"];
    qemu::img(dir.path(), [&options[..], &["image.qcow2", "1M"]].concat());
    let path = dir.path().join("image.qcow2");
    let files = cowshed::rt::FileOptions::new().writable(true);
    let source = cowshed::rt::open_storage(&path, &files).unwrap().into_source(Format::Qcow2);
    let gate = cowshed::rt::FolderGate::new(&path).unwrap().options(&files);
    let mut options = OpenOptions::default();
    options.write = Some(WriteOptions::default());
    let image = block_on(Image::open(source, &gate, options)).unwrap().image;
    let error = block_on(image.create_snapshot(&NewSnapshot::new("s"))).unwrap_err();
    let Error::Unsupported(unsupported) = &error else { panic!("{error:?}") };
    assert_eq!(unsupported.code(), "snapshot-with-data-file");
    block_on(image.close()).unwrap();
}
