//! A new image is the one that QEMU makes, byte for byte: the same options to both, over every option that changes where
//! something lies. What QEMU leaves behind in clusters that it freed is the one thing that is not copied.

use std::io;
use std::path::Path;
use std::sync::Mutex;

use cowshed::format::{Compression, Version};
use cowshed::image::{CreateOptions, Preallocation, create};
use cowshed::storage::{Buf, MemoryStorage, SendStorage, StorageLimits};
use cowshed::{Error, Result};
use futures::executor::block_on;

use crate::support::qemu;

/// A folder in memory, if there is one: QEMU waits for the disk again and again.
fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// The engine's options for options of `qemu-img create -o`.
fn options(size: u64, text: &str) -> CreateOptions {
    let mut options = CreateOptions::new(size);
    for (key, value) in text.split(',').filter_map(|option| option.split_once('=')) {
        let name = || Some(value.as_bytes().to_vec());
        match key {
            "compat" if value == "0.10" => options.version = Version::V2,
            "compat" => options.version = Version::V3,
            "cluster_size" => options.cluster_size = value.parse().unwrap(),
            "refcount_bits" => options.refcount_bits = value.parse().unwrap(),
            "backing_file" => options.backing_file = name(),
            "backing_fmt" => options.backing_format = name(),
            "data_file" => options.data_file = name(),
            "data_file_raw" => options.data_file_raw = value == "on",
            "lazy_refcounts" => options.lazy_refcounts = value == "on",
            "extended_l2" => options.extended_l2 = value == "on",
            "compression_type" if value == "zstd" => options.compression = Compression::Zstd,
            "compression_type" => options.compression = Compression::Deflate,
            "preallocation" => {
                options.preallocation = match value {
                    "off" => Preallocation::Off,
                    "metadata" => Preallocation::Metadata,
                    "falloc" => Preallocation::Falloc,
                    "full" => Preallocation::Full,
                    other => panic!("{other}"),
                }
            }
            other => panic!("{other}"),
        }
    }
    options
}

/// Makes an image of the engine's in memory; its bytes, and those of its data file.
fn ours(size: u64, text: &str) -> Result<(Vec<u8>, Vec<u8>)> {
    let options = options(size, text);
    let (image, data_file) = (MemoryStorage::default(), MemoryStorage::default());
    let wanted = options.data_file.as_ref().map(|_| &data_file);
    block_on(create(&image, wanted, &options))?;
    Ok((image.into_vec(), data_file.into_vec()))
}

/// Makes an image with QEMU.
fn theirs(dir: &Path, size: u64, text: &str) -> (Vec<u8>, Vec<u8>) {
    let mut arguments = vec!["create", "-q", "-u", "-f", "qcow2"];
    if !text.is_empty() {
        arguments.extend(["-o", text]);
    }
    let size = size.to_string();
    arguments.extend(["image.qcow2", &size]);
    qemu::img(dir, arguments);
    let read = |name: &str| std::fs::read(dir.join(name)).unwrap_or_default();
    let bytes = (read("image.qcow2"), read("data.raw"));
    let _ = std::fs::remove_file(dir.join("data.raw"));
    bytes
}

/// Asserts that both make the same image.
#[track_caller]
fn same(dir: &Path, size: u64, text: &str) {
    let (image, data_file) = ours(size, text).unwrap();
    let (their_image, their_data_file) = theirs(dir, size, text);
    let what = format!("{size} {text}");
    let mut their_image = their_image;
    clear_old_tables(&mut their_image, &image, options(size, text).cluster_size);
    same_bytes(&image, &their_image, &what);
    same_bytes(&data_file, &their_data_file, &format!("data file of {what}"));
}

/// Clears what QEMU leaves of refcount tables that became too small: clusters of nothing but offsets of clusters, where
/// the engine has zeros. They may be free, or data that nobody has written.
fn clear_old_tables(theirs: &mut [u8], ours: &[u8], cluster_size: u64) {
    let (len, end) = (usize::try_from(cluster_size).unwrap(), theirs.len() as u64);
    for (theirs, ours) in theirs.chunks_exact_mut(len).zip(ours.chunks_exact(len)).skip(1) {
        let is_block = |entry: &[u8]| {
            let offset = u64::from_be_bytes(entry.try_into().unwrap());
            offset % cluster_size == 0 && offset < end
        };
        if ours.iter().all(|byte| *byte == 0) && theirs.chunks_exact(8).all(is_block) {
            theirs.fill(0);
        }
    }
}

#[track_caller]
fn same_bytes(ours: &[u8], theirs: &[u8], what: &str) {
    let differs = ours.iter().zip(theirs).position(|(ours, theirs)| ours != theirs);
    if let Some(at) = differs {
        panic!("{what}: byte {at:#x} is {:#x}, QEMU's is {:#x}", ours[at], theirs[at]);
    }
    assert_eq!(ours.len(), theirs.len(), "length of {what}");
}

#[test]
fn new_images_are_those_of_qemu_byte_for_byte() {
    let dir = scratch();
    for size in [0, 1, 512, 65536, (1 << 20) + 1000, 10 << 20, 1 << 30, 3 << 40] {
        same(dir.path(), size, "");
        same(dir.path(), size, "compat=0.10");
    }
    let size = (7 << 20) + 512;
    for bits in 9..=21 {
        let cluster = format!("cluster_size={}", 1 << bits);
        for refcount_bits in [1, 2, 4, 8, 16, 32, 64] {
            same(dir.path(), size, &format!("{cluster},refcount_bits={refcount_bits}"));
        }
        same(dir.path(), 5 << 30, &cluster);
        same(dir.path(), size, &format!("{cluster},compat=0.10"));
        same(dir.path(), size, &format!("{cluster},lazy_refcounts=on"));
        same(dir.path(), size, &format!("{cluster},compression_type=zstd"));
        let backing = "backing_file=base.img,backing_fmt=raw";
        same(dir.path(), size, &format!("{cluster},{backing}"));
        same(dir.path(), size, &format!("{cluster},{backing},compat=0.10"));
        same(dir.path(), size, &format!("{cluster},data_file=data.raw"));
        same(dir.path(), size, &format!("{cluster},data_file=data.raw,{backing}"));
        if bits >= 14 {
            same(dir.path(), size, &format!("{cluster},extended_l2=on"));
            same(dir.path(), 5 << 30, &format!("{cluster},extended_l2=on"));
        }
    }
}

#[test]
fn preallocated_images_are_those_of_qemu_byte_for_byte() {
    let dir = scratch();
    for bits in [9, 12, 16, 21] {
        let cluster = format!("cluster_size={},preallocation", 1 << bits);
        for size in [512, (3 << 20) + 1024] {
            for refcount_bits in [1, 16, 64] {
                let refcounts = format!("refcount_bits={refcount_bits}");
                same(dir.path(), size, &format!("{cluster}=metadata,{refcounts}"));
                same(dir.path(), size, &format!("{cluster}=falloc,{refcounts}"));
            }
            same(dir.path(), size, &format!("{cluster}=full"));
            same(dir.path(), size, &format!("{cluster}=metadata,compat=0.10"));
            for (index, mode) in ["off", "metadata", "falloc", "full"].into_iter().enumerate() {
                let raw = if index % 2 == 0 { "on" } else { "off" };
                let data_file = format!("data_file=data.raw,data_file_raw={raw}");
                same(dir.path(), size, &format!("{cluster}={mode},{data_file}"));
            }
            if bits >= 14 {
                let backing = "backing_file=base.img,backing_fmt=raw";
                same(dir.path(), size, &format!("{cluster}=metadata,extended_l2=on"));
                same(dir.path(), size, &format!("{cluster}=falloc,extended_l2=on,{backing}"));
            }
        }
    }
    // Several refcount tables one after the other.
    same(dir.path(), 40 << 20, "cluster_size=512,refcount_bits=64,preallocation=metadata");
}

#[test]
#[cfg(feature = "file")]
fn large_preallocated_images_are_mapped_as_those_of_qemu() {
    use cowshed::rt::{FileOptions, FileStorage};

    let dir = scratch();
    for bits in [16, 21] {
        let text = format!("cluster_size={},preallocation=metadata", 1 << bits);
        let size: u64 = 9 << 30;
        let path = dir.path().join("ours.qcow2");
        let file_options = FileOptions::new().writable(true).create(true).truncate(true);
        let storage = FileStorage::open(&path, &file_options).unwrap();
        block_on(create(&storage, None, &options(size, &text))).unwrap();
        drop(storage);
        let arguments = ["create", "-q", "-f", "qcow2", "-o", &text, "theirs.qcow2"];
        qemu::img(dir.path(), arguments.into_iter().chain([&*size.to_string()]));
        // Mapped by the tables alone: the data is holes.
        let map = |name| qemu::img(dir.path(), ["map", "-f", "qcow2", "--output=json", name]);
        assert_eq!(map("ours.qcow2"), map("theirs.qcow2"), "{text}");
        let len = |name| std::fs::metadata(dir.path().join(name)).unwrap().len();
        assert_eq!(len("ours.qcow2"), len("theirs.qcow2"), "{text}");
        qemu::img(dir.path(), ["check", "-q", "-f", "qcow2", "ours.qcow2"]);
    }
}

#[test]
fn new_images_check_clean_and_are_described_as_asked() {
    let dir = scratch();
    for text in [
        "",
        "compat=0.10",
        "cluster_size=512,refcount_bits=64,preallocation=metadata",
        "cluster_size=512,refcount_bits=64,preallocation=full",
        "extended_l2=on,preallocation=falloc,lazy_refcounts=on,compression_type=zstd",
    ] {
        let (image, _) = ours(20 << 20, text).unwrap();
        std::fs::write(dir.path().join("ours.qcow2"), image).unwrap();
        // Fails if anything is wrong with the image, leaks too.
        qemu::img(dir.path(), ["check", "-q", "-f", "qcow2", "ours.qcow2"]);
        theirs(dir.path(), 20 << 20, text);
        let info = |name: &str| {
            let text = qemu::img(dir.path(), ["info", "-f", "qcow2", "--output=json", name]);
            let mut info: serde_json::Value = serde_json::from_str(&text).unwrap();
            for key in ["actual-size", "filename", "children"] {
                info.as_object_mut().unwrap().remove(key);
            }
            info
        };
        assert_eq!(info("ours.qcow2"), info("image.qcow2"), "{text}");
        let zeros = qemu::raw_bytes(dir.path(), &["-f", "qcow2"], "ours.qcow2");
        assert!(zeros.iter().all(|byte| *byte == 0), "{text}");
    }
}

#[test]
fn options_that_do_not_go_together_get_the_words_of_qemu() {
    let dir = scratch();
    for (size, text) in [
        (1 << 20, "cluster_size=1000"),
        (1 << 20, "cluster_size=256"),
        (1 << 20, "cluster_size=4194304"),
        (1 << 20, "cluster_size=8192,extended_l2=on"),
        (1 << 20, "compat=0.10,extended_l2=on"),
        (1 << 20, "compat=0.10,lazy_refcounts=on"),
        (1 << 20, "compat=0.10,refcount_bits=8"),
        (1 << 20, "compat=0.10,data_file=data.raw"),
        (1 << 20, "compat=0.10,compression_type=zstd"),
        (1 << 20, "refcount_bits=3"),
        (1 << 20, "refcount_bits=128"),
        (1 << 20, "backing_fmt=raw"),
        (1 << 20, "backing_file=base.img,backing_fmt=raw,preallocation=metadata"),
        (1 << 20, "data_file_raw=on"),
        (1 << 20, "backing_file=base.img,backing_fmt=raw,data_file=data.raw,data_file_raw=on"),
        (1 << 40, "cluster_size=512"),
        (7 << 60, "compat=1.1"),
        ((1 << 37) + 1, "cluster_size=512"),
    ] {
        let error = ours(size, text).unwrap_err();
        assert!(matches!(error, Error::InvalidArgument(_)), "{error:?}");
        let size = size.to_string();
        let output = qemu::output(
            qemu::qemu_img()
                .current_dir(dir.path())
                .args(["create", "-q", "-u", "-f", "qcow2", "-o"])
                .args([&format!("preallocation=off,{text}"), "image.qcow2", &size]),
        );
        let words = String::from_utf8(output.stderr).unwrap();
        assert_eq!(words, format!("qemu-img: image.qcow2: {error}\n"), "{text}");
    }
}

#[test]
fn names_that_do_not_fit_are_refused() {
    let long = "n".repeat(1024);
    let shorter = "n".repeat(500);
    for text in [
        format!("backing_file={long}"),
        format!("backing_file={shorter},cluster_size=512"),
        format!("data_file={shorter},cluster_size=512"),
        "backing_file=base,backing_fmt=sixteen-letters-".to_owned(),
    ] {
        let error = ours(1 << 20, &text).unwrap_err();
        assert!(matches!(error, Error::LimitExceeded { .. }), "{text}: {error:?}");
    }
}

#[test]
fn what_was_there_before_is_gone() {
    let old = theirs(scratch().path(), 9 << 20, "preallocation=full").0;
    let storage = MemoryStorage::new([old, vec![0xff; 1 << 20]].concat());
    let options = options(5 << 20, "preallocation=metadata");
    block_on(create(&storage, None, &options)).unwrap();
    assert!(storage.into_vec() == ours(5 << 20, "preallocation=metadata").unwrap().0);
}

#[test]
fn name_and_data_file_come_together() {
    let storage = MemoryStorage::default();
    let named = options(1 << 20, "data_file=data.raw");
    assert!(block_on(create(&storage, None, &named)).is_err());
    assert!(block_on(create(&storage, Some(&storage), &options(1 << 20, ""))).is_err());
    assert!(storage.into_vec().is_empty());
}

/// What was asked of a [`Recorder`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Request {
    Write { offset: u64, len: u64 },
    Other,
    Flush,
}

/// A storage in memory that takes requests of whole units alone, and notes them.
#[derive(Default)]
struct Recorder {
    bytes: MemoryStorage,
    /// 0 for a unit of one byte.
    unit_bits: u32,
    /// Like a block device, it has its length and what it held.
    fixed: bool,
    requests: Mutex<Vec<Request>>,
}

impl Recorder {
    fn note(&self, offset: u64, len: u64, request: Request) {
        assert_eq!((offset | len) % (1 << self.unit_bits), 0, "{len} bytes at {offset:#x}");
        self.requests.lock().unwrap().push(request);
    }
}

impl SendStorage for Recorder {
    async fn read_at(&self, buf: Buf, offset: u64) -> io::Result<Buf> {
        assert_eq!((offset | buf.len() as u64) % (1 << self.unit_bits), 0);
        SendStorage::read_at(&self.bytes, buf, offset).await
    }

    async fn write_at(&self, buf: Buf, offset: u64) -> io::Result<Buf> {
        let len = buf.len() as u64;
        self.note(offset, len, Request::Write { offset, len });
        assert!(!self.fixed || offset + len <= self.bytes.to_vec().len() as u64);
        SendStorage::write_at(&self.bytes, buf, offset).await
    }

    async fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        self.note(offset, len, Request::Other);
        SendStorage::write_zeroes(&self.bytes, offset, len).await
    }

    async fn discard(&self, _offset: u64, _len: u64) -> io::Result<()> {
        panic!("nothing to discard");
    }

    async fn flush(&self) -> io::Result<()> {
        self.note(0, 0, Request::Flush);
        Ok(())
    }

    async fn len(&self) -> io::Result<u64> {
        SendStorage::len(&self.bytes).await
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        if self.fixed {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.note(0, 0, Request::Other);
        SendStorage::set_len(&self.bytes, len).await
    }

    fn limits(&self) -> StorageLimits {
        let mut limits = StorageLimits::default();
        limits.request_alignment = 1 << self.unit_bits;
        limits
    }
}

const CASES: [&str; 4] = [
    "",
    "cluster_size=512,backing_file=a-name-that-ends-behind-the-first-sector-of-the-header,backing_fmt=raw",
    "cluster_size=512,preallocation=metadata",
    "preallocation=falloc",
];

#[test]
fn image_begins_to_exist_with_the_last_sector_written() {
    for text in CASES {
        let storage = Recorder::default();
        block_on(create(&storage, None, &options(3 << 20, text))).unwrap();
        let requests = storage.requests.into_inner().unwrap();
        let end = &requests[requests.len() - 3..];
        let first_sector = Request::Write { offset: 0, len: 512 };
        assert_eq!(end, [Request::Flush, first_sector, Request::Flush], "{text}");
        let early = requests[..requests.len() - 2]
            .iter()
            .any(|request| matches!(request, Request::Write { offset: 0, .. }));
        assert!(!early, "{text}");
    }
}

#[test]
fn old_image_ceases_to_exist_before_the_new_one_is_begun() {
    let storage = Recorder { bytes: vec![1; 1 << 20].into(), ..Recorder::default() };
    block_on(create(&storage, None, &options(3 << 20, ""))).unwrap();
    let requests = storage.requests.into_inner().unwrap();
    let wipe = Request::Write { offset: 0, len: 512 };
    assert_eq!(requests[..2], [wipe, Request::Flush]);
}

#[test]
fn storages_get_whole_units_and_the_image_is_the_same() {
    for text in CASES {
        let storage = Recorder { unit_bits: 12, ..Recorder::default() };
        block_on(create(&storage, None, &options(3 << 20, text))).unwrap();
        let (expected, _) = ours(3 << 20, text).unwrap();
        same_bytes(&storage.bytes.to_vec(), &expected, text);
    }
}

#[test]
fn block_devices_keep_nothing_that_could_be_taken_for_the_disk() {
    for text in CASES {
        let len = 8 << 20;
        let storage =
            Recorder { bytes: vec![0xff; len].into(), fixed: true, ..Recorder::default() };
        block_on(create(&storage, None, &options(3 << 20, text))).unwrap();
        let (mut expected, _) = ours(3 << 20, text).unwrap();
        let mut found = storage.bytes.to_vec();
        assert_eq!(found.len(), len);
        found.truncate(expected.len());
        // Behind the L1 table nothing is read.
        expected.resize(found.len(), 0);
        same_bytes(&found, &expected, text);
    }
}
