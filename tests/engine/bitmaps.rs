//! The fear: a bitmap that claims to be true misses a change, and a backup is made of too little. QEMU and the engine change
//! one image in turns, its disk and its bitmaps; after each turn both must say of every bitmap what a model of single
//! granules says.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use crate::support::data::Choices;
use crate::support::qemu;
use cowshed::Error;
use cowshed::format::BitmapFlags;
use cowshed::image::{
    Answer, Format, Gate, Image, OpenOptions, Preallocation, Reference, ResizeOptions, Source,
    WriteOptions, ZeroMode,
};
use cowshed::storage::MemoryStorage;
use futures::executor::block_on;

const NAME: &str = "image.qcow2";
const SIZE: u64 = (3 << 20) + 1536;
/// Turns of each of the two.
const ROUNDS: usize = 4;
/// Changes in a turn.
const CHANGES: usize = 6;

type Disk = Image<Arc<MemoryStorage>>;

/// A folder with an image, and what it should hold.
struct World {
    dir: tempfile::TempDir,
    what: String,
    size: u64,
    bitmaps: BTreeMap<String, Model>,
    /// The data file, which the engine's turn has in memory too.
    data_file: bool,
}

/// A bitmap, granule by granule.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Model {
    granularity: u64,
    enabled: bool,
    granules: Vec<bool>,
}

impl Model {
    fn new(granularity: u64, enabled: bool, size: u64) -> Self {
        let granules = vec![false; size.div_ceil(granularity) as usize];
        Self { granularity, enabled, granules }
    }

    fn mark(&mut self, range: &Range<u64>) {
        if !range.is_empty() {
            let first = (range.start / self.granularity) as usize;
            let last = ((range.end - 1) / self.granularity) as usize;
            self.granules[first..=last].fill(true);
        }
    }

    fn ranges(&self, size: u64) -> Vec<Range<u64>> {
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for (index, _) in self.granules.iter().enumerate().filter(|(_, marked)| **marked) {
            let start = index as u64 * self.granularity;
            let end = (start + self.granularity).min(size);
            match ranges.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ => ranges.push(start..end),
            }
        }
        ranges
    }
}

struct Files<'a> {
    world: &'a World,
    data: Arc<MemoryStorage>,
}

impl Gate for Files<'_> {
    type Storage = Arc<MemoryStorage>;

    async fn open(&self, _: &Reference<'_>) -> cowshed::Result<Answer<Self::Storage>> {
        assert!(self.world.data_file, "nothing else is named");
        let storage = Arc::clone(&self.data);
        let location = "image.data".into();
        Ok(Answer::Open(Source { storage, format: Format::Raw, location, identity: None }))
    }
}

impl World {
    fn new(options: &str, size: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let size_text = size.to_string();
        let mut args = vec!["create", "-q", "-f", "qcow2"];
        if !options.is_empty() {
            args.extend(["-o", options]);
        }
        args.extend([NAME, &size_text]);
        qemu::img(dir.path(), args);
        let data_file = options.contains("data_file");
        Self { dir, what: options.to_owned(), size, bitmaps: BTreeMap::new(), data_file }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn mark(&mut self, range: &Range<u64>) {
        for model in self.bitmaps.values_mut().filter(|model| model.enabled) {
            model.mark(range);
        }
    }

    /// Opens the image in memory, lets `turn` change it, closes it and writes it back.
    fn engine<T>(&self, turn: impl AsyncFnOnce(&Disk) -> T) -> T {
        let read = |name: &str| std::fs::read(self.path().join(name)).unwrap_or_default();
        let storage = Arc::new(MemoryStorage::new(read(NAME)));
        let data = Arc::new(MemoryStorage::new(read("image.data")));
        let files = Files { world: self, data: Arc::clone(&data) };
        let mut options = OpenOptions::default();
        options.write = Some(WriteOptions::default());
        let source = Source {
            storage: Arc::clone(&storage),
            format: Format::Qcow2,
            location: NAME.into(),
            identity: None,
        };
        let done = block_on(async {
            let image = Image::open(source, &files, options).await.unwrap().image;
            let done = turn(&image).await;
            image.close().await.unwrap();
            done
        });
        std::fs::write(self.path().join(NAME), storage.to_vec()).unwrap();
        if self.data_file {
            std::fs::write(self.path().join("image.data"), data.to_vec()).unwrap();
        }
        done
    }

    /// Both say of every bitmap what the model says, and the checker nothing.
    fn assert_agree(&self, turn: &str) {
        let what = format!("{} after {turn}", self.what);
        qemu::img(self.path(), ["check", "-q", "-f", "qcow2", NAME]);
        let info = qemu::img(self.path(), ["info", "--output=json", "-f", "qcow2", NAME]);
        let info: serde_json::Value = serde_json::from_str(&info).unwrap();
        let empty = Vec::new();
        let theirs = info["format-specific"]["data"]["bitmaps"].as_array().unwrap_or(&empty);
        assert_eq!(theirs.len(), self.bitmaps.len(), "{what}: {theirs:?}");
        for bitmap in theirs {
            let model = &self.bitmaps[bitmap["name"].as_str().unwrap()];
            let flags: Vec<_> = if model.enabled { vec!["auto"] } else { vec![] };
            assert_eq!(bitmap["flags"], serde_json::json!(flags), "{what}: {bitmap}");
            assert_eq!(bitmap["granularity"], model.granularity, "{what}: {bitmap}");
        }
        let ours = self.engine(async |image| {
            let mut all = BTreeMap::new();
            for bitmap in image.load_bitmaps().await.unwrap() {
                all.insert(
                    String::from_utf8(bitmap.name.clone()).unwrap(),
                    ranges(image, &bitmap.name).await.unwrap(),
                );
            }
            all
        });
        for (name, model) in &self.bitmaps {
            let expected = model.ranges(self.size);
            assert_eq!(ours[name], expected, "{what}: {name}");
            assert_eq!(qemu_ranges(self.path(), name), expected, "QEMU, {what}: {name}");
        }
    }
}

async fn ranges<S: cowshed::storage::Storage>(
    image: &Image<S>,
    name: &[u8],
) -> cowshed::Result<Vec<Range<u64>>> {
    let mut ranges = image.bitmap_ranges(name).await?;
    let mut all = Vec::new();
    while let Some(range) = ranges.next().await? {
        all.push(range);
    }
    Ok(all)
}

/// What QEMU says that a bitmap marks, by its NBD server.
fn qemu_ranges(dir: &Path, name: &str) -> Vec<Range<u64>> {
    // The name of a socket is short.
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("s");
    let program = std::env::var_os("QEMU_NBD").unwrap_or_else(|| "qemu-nbd".into());
    let mut server = Command::new(program)
        .current_dir(dir)
        .args(["-r", "-f", "qcow2", "-B", name, "-k"])
        .arg(&socket)
        .arg(NAME)
        .spawn()
        .expect("qemu-nbd, which is in the package qemu-utils");
    while !socket.exists() {
        assert!(server.try_wait().unwrap().is_none(), "qemu-nbd does not serve {name}");
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    let options = format!(
        "driver=nbd,server.type=unix,server.path={},x-dirty-bitmap=qemu:dirty-bitmap:{name}",
        socket.display()
    );
    let map = loop {
        let args = ["map", "--output=json", "--image-opts", &options];
        let output = qemu::output(qemu::qemu_img().current_dir(dir).args(args));
        if output.status.success() {
            break output.stdout;
        }
        // There is a socket before there is somebody who listens.
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("Connection refused"), "{said}");
    };
    // It ends when its guest has gone, and its lock with it.
    assert!(server.wait().unwrap().success());
    let map: serde_json::Value = serde_json::from_slice(&map).unwrap();
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for row in map.as_array().unwrap().iter().filter(|row| row["data"] == false) {
        let start = row["start"].as_u64().unwrap();
        let end = start + row["length"].as_u64().unwrap();
        match ranges.last_mut() {
            Some(last) if last.end == start => last.end = end,
            _ => ranges.push(start..end),
        }
    }
    ranges
}

/// A change of the disk, by its kind.
#[derive(Debug, Clone)]
struct Change {
    kind: u64,
    range: Range<u64>,
}

impl Change {
    fn any(choices: &mut Choices, size: u64) -> Self {
        let len = match choices.below(3) {
            0 => choices.between(1, 3000),
            _ => choices.between(1, 300_000),
        };
        let start = choices.below(size - len);
        Self { kind: choices.below(5), range: start..start + len }
    }

    fn command(&self) -> String {
        let (offset, len) = (self.range.start, self.range.end - self.range.start);
        match self.kind {
            0 => format!("discard -q {offset} {len}"),
            1 => format!("write -q -z {offset} {len}"),
            2 => format!("write -q -z -u {offset} {len}"),
            _ => format!("write -q -P 7 {offset} {len}"),
        }
    }

    async fn make(&self, image: &Disk) {
        let (offset, len) = (self.range.start, self.range.end - self.range.start);
        match self.kind {
            0 => image.discard_at(offset, len).await,
            1 => image.write_zeroes_at(offset, len, ZeroMode::KeepSpace).await,
            2 => image.write_zeroes_at(offset, len, ZeroMode::MayUnmap).await,
            _ => image.write_at(&vec![7; len as usize], offset).await,
        }
        .unwrap();
    }
}

/// A change of the bitmaps, made by the engine or by QEMU; the model changes with it.
fn edit(world: &mut World, choices: &mut Choices, by_engine: bool) -> String {
    let names: Vec<String> = world.bitmaps.keys().cloned().collect();
    let mut any = || names[choices.below(names.len() as u64) as usize].clone();
    let (name, other) = (any(), any());
    let kind = choices.below(6);
    let size = world.size;
    let fresh = format!("b{}", names.len());
    let granularity = 512 << choices.below(9);
    let option = match kind {
        0 if names.len() < 6 => "--add",
        1 if names.len() > 3 => "--remove",
        2 => "--clear",
        3 => "--enable",
        4 => "--disable",
        _ => "--merge",
    };
    if option == "--add" && names.contains(&fresh) {
        return "nothing".to_owned();
    }
    match option {
        "--add" => {
            world.bitmaps.insert(fresh.clone(), Model::new(granularity, true, size));
        }
        "--remove" => {
            world.bitmaps.remove(&name);
        }
        "--clear" => world.bitmaps.get_mut(&name).unwrap().granules.fill(false),
        "--merge" => {
            for range in world.bitmaps[&other].ranges(size) {
                world.bitmaps.get_mut(&name).unwrap().mark(&range);
            }
        }
        _ => world.bitmaps.get_mut(&name).unwrap().enabled = option == "--enable",
    }
    if by_engine {
        world.engine(async |image| {
            let bytes = name.as_bytes();
            match option {
                "--add" => image.add_bitmap(fresh.as_bytes(), Some(granularity), true).await,
                "--remove" => image.remove_bitmap(bytes).await,
                "--clear" => image.clear_bitmap(bytes).await,
                "--merge" => image.merge_bitmap(bytes, other.as_bytes()).await,
                _ => image.enable_bitmap(bytes, option == "--enable").await,
            }
            .unwrap();
        });
    } else {
        let granularity = granularity.to_string();
        let args: Vec<&str> = match option {
            "--add" => vec!["bitmap", "--add", "-g", &granularity, NAME, &fresh],
            "--merge" => vec!["bitmap", "--merge", &other, NAME, &name],
            _ => vec!["bitmap", option, NAME, &name],
        };
        qemu::img(world.path(), args);
    }
    format!("{option} {name} {other} {fresh}")
}

#[test]
fn qemu_and_the_engine_keep_bitmaps_in_turns() {
    for (index, options) in [
        "",
        "cluster_size=512",
        "cluster_size=4k,refcount_bits=1",
        "extended_l2=on,cluster_size=16k",
        "data_file=image.data",
        "lazy_refcounts=on",
        "preallocation=metadata,cluster_size=2M",
    ]
    .into_iter()
    .enumerate()
    {
        let mut choices = Choices::new(index as u64);
        let mut world = World::new(options, SIZE);
        for (name, granularity, enabled) in
            [("fine", 512, true), ("coarse", 1 << 16, true), ("off", 4096, false)]
        {
            world.engine(async |image| {
                image.add_bitmap(name.as_bytes(), Some(granularity), enabled).await.unwrap();
            });
            world.bitmaps.insert(name.into(), Model::new(granularity, enabled, SIZE));
        }
        world.assert_agree("adding");
        for round in 0..ROUNDS {
            let changes: Vec<_> = (0..CHANGES).map(|_| Change::any(&mut choices, SIZE)).collect();
            world.engine(async |image| {
                for change in &changes {
                    change.make(image).await;
                }
            });
            changes.iter().for_each(|change| world.mark(&change.range));
            let edited = edit(&mut world, &mut choices, round % 2 == 0);
            world.assert_agree(&format!("our turn {round}, {changes:?}, {edited}"));
            let changes: Vec<_> = (0..CHANGES).map(|_| Change::any(&mut choices, SIZE)).collect();
            let commands: Vec<_> = changes.iter().map(Change::command).collect();
            qemu::io(world.path(), "qcow2", NAME, &commands);
            changes.iter().for_each(|change| world.mark(&change.range));
            let edited = edit(&mut world, &mut choices, round % 2 == 1);
            world.assert_agree(&format!("QEMU's turn {round}, {changes:?}, {edited}"));
        }
    }
}

#[test]
fn resize_cuts_and_extends_bitmaps_as_qemu_does() {
    let mut choices = Choices::new(3);
    for options in ["cluster_size=512", ""] {
        let mut world = World::new(options, SIZE);
        for (name, granularity, enabled) in [("fine", 512, true), ("coarse", 1 << 14, false)] {
            let granularity_text = granularity.to_string();
            qemu::img(world.path(), ["bitmap", "--add", "-g", &granularity_text, NAME, name]);
            world.bitmaps.insert(name.into(), Model::new(granularity, true, SIZE));
            world.bitmaps.get_mut(name).unwrap().enabled = true;
            if !enabled {
                let change = Change { kind: 4, range: 0..world.size };
                qemu::io(world.path(), "qcow2", NAME, &[change.command()]);
                world.mark(&change.range);
                qemu::img(world.path(), ["bitmap", "--disable", NAME, name]);
                world.bitmaps.get_mut(name).unwrap().enabled = false;
            }
        }
        for round in 0..10 {
            let size = 512 * choices.between(2000, 14000);
            let shrinks = size < world.size;
            if round % 3 == 0 {
                let text = size.to_string();
                let args = ["resize", "-q", "--shrink", "-f", "qcow2", NAME, &text];
                qemu::img(world.path(), args);
            } else {
                world.engine(async |image| {
                    let mut options = ResizeOptions::default();
                    options.shrink = true;
                    if !shrinks && round % 2 == 0 {
                        options.preallocation = Preallocation::Metadata;
                    }
                    image.resize(size, &options).await.unwrap();
                    if round % 3 == 1 {
                        // There and back again, without closing it in between.
                        image.resize(512 * 1000, &options).await.unwrap();
                        image.resize(size, &ResizeOptions::default()).await.unwrap();
                    }
                });
            }
            let kept = if round % 3 == 1 { size.min(512 * 1000) } else { size };
            world.size = size;
            for model in world.bitmaps.values_mut() {
                model.granules.truncate(kept.div_ceil(model.granularity) as usize);
                model.granules.resize(size.div_ceil(model.granularity) as usize, false);
            }
            let change = Change::any(&mut choices, size);
            world.engine(async |image| change.make(image).await);
            world.mark(&change.range);
            world.assert_agree(&format!("resize {round} to {size}, {change:?}"));
        }
    }
}

#[test]
fn futures_can_go_to_other_threads() {
    fn is_send<T: Send>(_: &T) {}
    let world = World::new("", SIZE);
    world.engine(async |image| {
        is_send(&image.add_bitmap(b"b", None, true));
        is_send(&image.remove_bitmap(b"b"));
        is_send(&image.clear_bitmap(b"b"));
        is_send(&image.enable_bitmap(b"b", true));
        is_send(&image.merge_bitmap(b"b", b"c"));
        is_send(&image.merge_bitmap_from(b"b", image, b"c"));
        is_send(&image.count_bitmap(b"b"));
    });
}

#[test]
fn bitmap_of_another_image_is_merged_by_ranges() {
    let mut world = World::new("", SIZE);
    let other = World::new("cluster_size=1k", SIZE);
    world.engine(async |ours| {
        let image = opened(&other).await;
        image.add_bitmap(b"theirs", Some(2048), true).await.unwrap();
        image.write_at(&[1; 5000], 1_000_000).await.unwrap();
        image.discard_at(SIZE - 700, 700).await.unwrap();
        // What is noted and not stored yet counts, too.
        ours.add_bitmap(b"ours", Some(512), false).await.unwrap();
        ours.merge_bitmap_from(b"ours", &image, b"theirs").await.unwrap();
    });
    let mut model = Model::new(512, false, SIZE);
    model.mark(&(999_424..1_005_568));
    model.mark(&((SIZE - 700) / 2048 * 2048..SIZE));
    world.bitmaps.insert("ours".into(), model);
    world.assert_agree("merge");
    let smaller = World::new("", SIZE - 512);
    world.engine(async |ours| {
        let image = opened(&smaller).await;
        image.add_bitmap(b"b", None, true).await.unwrap();
        let refused = ours.merge_bitmap_from(b"ours", &image, b"b").await.unwrap_err();
        assert!(matches!(refused, Error::InvalidArgument(_)), "{refused}");
        let refused = ours.merge_bitmap_from(b"ours", &image, b"c").await.unwrap_err();
        assert_eq!(refused.to_string(), "bitmap \"c\" not found");
    });
}

/// The image in memory, of which nothing is written back.
async fn opened(world: &World) -> Disk {
    let storage = Arc::new(MemoryStorage::new(std::fs::read(world.path().join(NAME)).unwrap()));
    let mut options = OpenOptions::default();
    options.write = Some(WriteOptions::default());
    let location = NAME.into();
    let source = Source { storage, format: Format::Qcow2, location, identity: None };
    let files = Files { world, data: Arc::default() };
    Image::open(source, &files, options).await.unwrap().image
}

/// The bytes of the image when it is not closed, after `turn`.
fn left_by(world: &World, turn: impl AsyncFnOnce(&Disk)) -> Vec<u8> {
    let storage = Arc::new(MemoryStorage::new(std::fs::read(world.path().join(NAME)).unwrap()));
    let mut options = OpenOptions::default();
    options.write = Some(WriteOptions::default());
    let source = Source {
        storage: Arc::clone(&storage),
        format: Format::Qcow2,
        location: NAME.into(),
        identity: None,
    };
    let files = Files { world, data: Arc::default() };
    block_on(async {
        let image = Image::open(source, &files, options).await.unwrap().image;
        turn(&image).await;
        image.flush().await.unwrap();
    });
    storage.to_vec()
}

#[test]
fn bitmap_notes_where_an_image_becomes_empty() {
    let mut world = World::new("", SIZE);
    world.engine(async |image| image.write_at(&[1; 512], 1 << 20).await.unwrap());
    world.engine(async |image| image.add_bitmap(b"b", None, true).await.unwrap());
    world.engine(async |image| image.make_empty().await.unwrap());
    let ranges = world.engine(async |image| ranges(image, b"b").await.unwrap());
    let noted = ranges.iter().any(|range| range.contains(&(1 << 20)));
    assert!(noted, "{ranges:?}");
    let mut model = Model::new(65536, true, SIZE);
    ranges.iter().for_each(|range| model.mark(range));
    world.bitmaps.insert("b".into(), model);
    world.assert_agree("making it empty");
}

#[test]
fn bitmap_of_an_image_that_was_not_closed_is_inconsistent_and_can_only_be_removed() {
    let world = World::new("", SIZE);
    world.engine(async |image| {
        image.add_bitmap(b"on", None, true).await.unwrap();
        image.add_bitmap(b"off", None, false).await.unwrap();
        image.merge_bitmap(b"off", b"on").await.unwrap();
    });
    let before = std::fs::read(world.path().join(NAME)).unwrap();
    assert_eq!(left_by(&world, async |_| {}), before, "nothing was changed");
    let left = left_by(&world, async |image| image.write_at(&[1; 512], 0).await.unwrap());
    std::fs::write(world.path().join(NAME), left).unwrap();
    let info = qemu::img(world.path(), ["info", NAME]);
    assert!(info.contains("in-use"), "{info}");
    // A crash leaks.
    qemu::img(world.path(), ["check", "-q", "-r", "leaks", NAME]);
    world.engine(async |image| {
        let bitmaps = image.load_bitmaps().await.unwrap();
        let flags: Vec<_> = bitmaps.iter().map(|bitmap| bitmap.flags).collect();
        assert_eq!(flags, [BitmapFlags::from_raw(3), BitmapFlags::from_raw(0)]);
        let inconsistent = "Bitmap 'on' is inconsistent and cannot be used";
        let errors = [
            image.bitmap_ranges(b"on").await.map(drop),
            image.clear_bitmap(b"on").await,
            image.enable_bitmap(b"on", false).await,
            image.merge_bitmap(b"on", b"off").await,
            image.merge_bitmap(b"off", b"on").await,
            image.resize(SIZE * 2, &ResizeOptions::default()).await,
        ];
        for error in errors {
            assert_eq!(error.unwrap_err().to_string(), inconsistent);
        }
        let exists = image.add_bitmap(b"on", None, true).await.unwrap_err();
        assert_eq!(exists.to_string(), "Bitmap already exists: on");
        // It does not hinder writing, and stays as it is.
        image.write_at(&[2; 512], 4096).await.unwrap();
        assert!(image.load_bitmaps().await.unwrap()[0].flags.contains(BitmapFlags::IN_USE));
        image.remove_bitmap(b"on").await.unwrap();
        assert_eq!(image.load_bitmaps().await.unwrap().len(), 1);
        image.resize(SIZE * 2, &ResizeOptions::default()).await.unwrap();
    });
    qemu::img(world.path(), ["check", "-q", NAME]);
}

#[test]
fn bitmaps_are_dropped_when_something_else_has_written_to_the_image() {
    let world = World::new("", SIZE);
    world.engine(async |image| image.add_bitmap(b"b", None, true).await.unwrap());
    let mut bytes = std::fs::read(world.path().join(NAME)).unwrap();
    bytes[88..96].fill(0);
    std::fs::write(world.path().join(NAME), bytes).unwrap();
    world.engine(async |image| {
        assert!(image.load_bitmaps().await.unwrap().is_empty());
        image.write_at(&[1; 100], 5).await.unwrap();
        // The name is free again.
        image.add_bitmap(b"b", None, true).await.unwrap();
        assert_eq!(image.count_bitmap(b"b").await.unwrap(), 0);
        image.write_at(&[1; 100], 5).await.unwrap();
        assert_eq!(image.count_bitmap(b"b").await.unwrap(), 65536);
    });
    let check = qemu::output(qemu::qemu_img().current_dir(world.path()).args(["check", NAME]));
    assert_eq!(check.status.code(), Some(3), "what they had is leaked, as with QEMU");
    assert_eq!(qemu_ranges(world.path(), "b"), std::iter::once(0..65536).collect::<Vec<_>>());
}

#[test]
fn many_changes_are_taken_over_while_the_image_is_in_use() {
    const DISK: u64 = 1 << 30;
    let world = World::new("", DISK);
    world.engine(async |image| {
        image.add_bitmap(b"b", Some(512), true).await.unwrap();
        let mut count = 0;
        for offset in (0..DISK).step_by(1536) {
            image.discard_at(offset, 512).await.unwrap();
            count += 512;
        }
        assert_eq!(image.count_bitmap(b"b").await.unwrap(), count);
    });
    // As many rows would take QEMU too long.
    qemu::img(world.path(), ["check", "-q", NAME]);
    let ranges = world.engine(async |image| ranges(image, b"b").await.unwrap());
    assert_eq!(ranges.len() as u64, DISK.div_ceil(1536));
    assert!(ranges.iter().zip((0..).step_by(1536)).all(|(range, at)| *range == (at..at + 512)));
}

#[test]
fn bitmaps_that_cannot_be_are_refused() {
    let world = World::new("", 1 << 46);
    world.engine(async |image| {
        let long = vec![b'x'; 1024];
        let refused: [(&[u8], Option<u64>, &str); 7] = [
            (b"", None, "Bitmap name cannot be empty"),
            (b"b", Some(0), "Granularity must be power of 2 and at least 512"),
            (b"b", Some(256), "Granularity must be power of 2 and at least 512"),
            (b"b", Some(513), "Granularity must be power of 2 and at least 512"),
            (b"b", Some(1 << 32), "Granularity exceeds maximum (2147483648 bytes)"),
            (
                b"b",
                Some(512),
                "Too much space will be occupied by the bitmap. Use larger granularity",
            ),
            (&long, None, "Name length exceeds maximum (1023 characters)"),
        ];
        for (name, granularity, said) in refused {
            let error = image.add_bitmap(name, granularity, true).await.unwrap_err();
            assert_eq!(error.to_string(), said);
        }
        image.add_bitmap(&long[1..], Some(1 << 31), true).await.unwrap();
        let missing = image.clear_bitmap(b"b").await.unwrap_err();
        assert!(matches!(missing, Error::NotFound { what: "bitmap", .. }), "{missing}");
    });
    let old = World::new("compat=0.10", SIZE);
    old.engine(async |image| {
        let error = image.add_bitmap(b"b", None, true).await.unwrap_err();
        assert_eq!(error.to_string(), "Cannot store dirty bitmaps in qcow2 v2 files");
    });
}

/// What an entry of the directory says, changed by hand: offset in the entry, and the bytes.
#[test]
fn damaged_bitmaps_that_are_enabled_keep_an_image_from_being_written_to() {
    let world = World::new("", SIZE);
    world.engine(async |image| {
        image.add_bitmap(b"b", Some(512), true).await.unwrap();
        image.write_at(&[1; 512], 1 << 20).await.unwrap();
    });
    let good = std::fs::read(world.path().join(NAME)).unwrap();
    let directory = {
        let at = good.windows(4).position(|four| four == [0x23, 0x85, 0x28, 0x75]).unwrap();
        u64::from_be_bytes(good[at + 24..at + 32].try_into().unwrap()) as usize
    };
    let table = u64::from_be_bytes(good[directory..directory + 8].try_into().unwrap()) as usize;
    let cases: [(&str, usize, &[u8], &str, bool); 8] = [
        ("flags", directory + 12, &[0, 0, 0, 10], "write-unsafe", true),
        ("granularity", directory + 17, &[40], "write-unsafe", true),
        ("type", directory + 16, &[2], "write-unsafe", true),
        ("table too long", directory + 8, &[0, 0, 0, 2], "bitmap-table-size", true),
        ("granularity that wants more", directory + 8, &[0, 0, 0, 9], "bitmap-table-size", true),
        ("reserved bits", table, &[0x80], "bitmap-table-entry-reserved", true),
        ("ones with offset", table + 7, &[1], "bitmap-table-entry-ones-with-offset", true),
        ("disabled, ones with offset", table + 7, &[1], "", false),
    ];
    for (what, at, bytes, code, enabled) in cases {
        let mut bad = good.clone();
        bad[at..at + bytes.len()].copy_from_slice(bytes);
        if !enabled {
            bad[directory + 15] = 0;
        }
        let (bad_before, storage) = (bad.clone(), Arc::new(MemoryStorage::new(bad)));
        let mut options = OpenOptions::default();
        options.write = Some(WriteOptions::default());
        let source = Source {
            storage: Arc::clone(&storage),
            format: Format::Qcow2,
            location: NAME.into(),
            identity: None,
        };
        let files = Files { world: &world, data: Arc::default() };
        block_on(async {
            let image = Image::open(source, &files, options).await.unwrap().image;
            let written = image.write_at(&[1; 512], 0).await;
            if code.is_empty() {
                written.unwrap();
                return;
            }
            let said = match written.unwrap_err() {
                Error::Corrupt(error) => error.code(),
                other => panic!("{what}: {other}"),
            };
            assert_eq!(said, code, "{what}");
            let _ = image.close().await;
            assert_eq!(storage.to_vec(), bad_before, "{what}: nothing is written");
        });
    }
}

/// A bitmap with extra data: kept if that says that it need not be known, else not used, and in the way if it is enabled.
#[test]
fn extra_data_is_kept_or_keeps_the_bitmap_from_being_used() {
    for (flags, usable, writable) in
        [(0b000, false, true), (0b100, true, true), (0b110, true, true), (0b010, false, false)]
    {
        let world = World::new("", SIZE);
        world.engine(async |image| image.add_bitmap(b"abcdefgh", Some(512), true).await.unwrap());
        let mut bytes = std::fs::read(world.path().join(NAME)).unwrap();
        let at = bytes.windows(4).position(|four| four == [0x23, 0x85, 0x28, 0x75]).unwrap();
        let directory = u64::from_be_bytes(bytes[at + 24..at + 32].try_into().unwrap()) as usize;
        // The name makes room for extra data of the same length, and goes on behind it.
        bytes[directory + 15] = flags;
        bytes[directory + 23] = 8;
        bytes.resize(bytes.len().max(directory + 40), 0);
        bytes.copy_within(directory + 24..directory + 32, directory + 32);
        bytes[at + 23] += 8;
        std::fs::write(world.path().join(NAME), bytes).unwrap();
        world.engine(async |image| {
            let written = image.write_at(&[1; 512], 0).await;
            assert_eq!(written.is_ok(), writable, "{flags:b}");
            if let Err(error) = written {
                assert!(error.to_string().contains("extra data of bitmap"), "{error}");
                let Error::Unsupported(unsupported) = &error else { panic!("{error:?}") };
                assert_eq!(unsupported.code(), "bitmap-extra-data");
            }
        });
        world.engine(async |image| {
            let list = image.load_bitmaps().await.unwrap();
            assert_eq!((&*list[0].extra, &*list[0].name), (&b"abcdefgh"[..], &b"abcdefgh"[..]));
            let found = ranges(image, b"abcdefgh").await;
            assert_eq!(found.is_ok(), usable, "{flags:b}");
            if let Ok(found) = found {
                let expected: Vec<_> = (flags & 0b010 != 0).then_some(0..512).into_iter().collect();
                assert_eq!(found, expected);
            }
        });
    }
}
