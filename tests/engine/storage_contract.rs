//! One contract, many storages.
//!
//! The engine is written for the contract in `storage`'s documentation and tested mostly on memory; what it does on a
//! file, with `O_DIRECT` or through io_uring stands on every storage keeping the same contract. So each claim of the
//! contract is one test, and it runs on every storage. What is expected comes from a plain `Vec<u8>` that is changed
//! beside the storage.

use std::future::Future;
use std::io;
use std::task::{Context, Waker};

use cowshed::storage::{
    BoxStorage, Buf, LocalBoxStorage, MemoryStorage, Storage, StorageExtentKind,
};
use futures::executor::block_on;
use futures::stream::{FuturesUnordered, StreamExt};

/// A storage under test: empty, writable, and what must live as long as it.
struct Subject<S> {
    storage: S,
    _keep: Option<tempfile::TempDir>,
}

impl<S> Subject<S> {
    fn new(storage: S) -> Self {
        Self { storage, _keep: None }
    }
}

/// The contract's unit for this storage: requests are made of multiples of it.
fn unit(storage: &impl Storage) -> usize {
    // 24 bytes where any length goes: not a power of two, so that nothing is aligned by accident.
    match storage.limits().request_alignment {
        1 => 24,
        alignment => alignment as usize,
    }
}

fn buf(storage: &impl Storage, bytes: &[u8]) -> Buf {
    let mut buf = Buf::aligned(bytes.len(), storage.limits().memory_alignment as usize);
    buf.copy_from_slice(bytes);
    buf
}

async fn write(storage: &impl Storage, bytes: &[u8], offset: u64) -> io::Result<()> {
    let back = storage.write_at(buf(storage, bytes), offset).await?;
    assert_eq!(&back[..], bytes, "the buffer comes back as it went");
    Ok(())
}

/// Reads through both doors, starting with a buffer full of rubbish.
async fn read(storage: &impl Storage, len: usize, offset: u64) -> io::Result<Vec<u8>> {
    let read = storage.read_at(buf(storage, &vec![0xa5; len]), offset).await?;
    let mut at_once = buf(storage, &vec![0x5a; len]);
    if let Some(result) = storage.try_read_at(&mut at_once, offset) {
        result?;
        assert_eq!(at_once[..], read[..], "both doors lead to the same bytes");
    }
    Ok(read.to_vec())
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i as u8).wrapping_mul(31).wrapping_add((i >> 8) as u8) ^ seed).collect()
}

/// xorshift64*: small, and the same on every machine.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % n
    }
}

async fn empty_storage_reads_as_zeros(storage: impl Storage) {
    assert_eq!(storage.len().await.unwrap(), 0);
    let len = unit(&storage) * 3;
    assert_eq!(read(&storage, len, 0).await.unwrap(), vec![0; len]);
    assert_eq!(read(&storage, len, 1 << 40).await.unwrap(), vec![0; len]);
}

async fn written_bytes_are_read_back(storage: impl Storage) {
    let u = unit(&storage);
    let bytes = pattern(u * 5, 1);
    write(&storage, &bytes, 0).await.unwrap();
    assert_eq!(storage.len().await.unwrap(), bytes.len() as u64);
    assert_eq!(read(&storage, bytes.len(), 0).await.unwrap(), bytes);
    assert_eq!(read(&storage, u * 2, u as u64).await.unwrap(), bytes[u..u * 3]);
    write(&storage, &pattern(u, 9), u as u64 * 2).await.unwrap();
    assert_eq!(read(&storage, u, u as u64).await.unwrap(), bytes[u..u * 2]);
    assert_eq!(read(&storage, u, u as u64 * 2).await.unwrap(), pattern(u, 9));
    assert_eq!(read(&storage, u, u as u64 * 3).await.unwrap(), bytes[u * 3..u * 4]);
}

/// Writes through the synchronous door, or through the other if it is shut; says whether it was open.
async fn write_at_once(storage: &impl Storage, bytes: &[u8], offset: u64) -> io::Result<bool> {
    match storage.try_write_at(bytes, offset) {
        Some(result) => result.map(|()| true),
        None => write(storage, bytes, offset).await.map(|()| false),
    }
}

async fn both_doors_write_the_same(storage: impl Storage) {
    let u = unit(&storage);
    let bytes = pattern(u * 5, 1);
    write_at_once(&storage, &bytes, 0).await.unwrap();
    assert_eq!(storage.len().await.unwrap(), bytes.len() as u64, "it extends");
    assert_eq!(read(&storage, bytes.len(), 0).await.unwrap(), bytes);
    write_at_once(&storage, &pattern(u, 9), u as u64 * 2).await.unwrap();
    let mut expected = bytes.clone();
    expected[u * 2..u * 3].copy_from_slice(&pattern(u, 9));
    // With a gap.
    write_at_once(&storage, &pattern(u, 10), u as u64 * 7).await.unwrap();
    expected.resize(u * 7, 0);
    expected.extend_from_slice(&pattern(u, 10));
    assert_eq!(read(&storage, expected.len(), 0).await.unwrap(), expected);
    if let Some(result) = storage.try_write_at(&[], u as u64 * 100) {
        result.unwrap();
    }
    storage.flush().await.unwrap();
    assert_eq!(storage.len().await.unwrap(), expected.len() as u64);
    let far = (u64::MAX / u as u64 - 1) * u as u64;
    assert!(write_at_once(&storage, &pattern(u, 12), far).await.is_err());
    assert_eq!(storage.len().await.unwrap(), expected.len() as u64);
}

async fn bytes_past_the_end_are_zeros(storage: impl Storage) {
    let u = unit(&storage);
    let bytes = pattern(u, 2);
    write(&storage, &bytes, 0).await.unwrap();
    let mut expected = bytes.clone();
    expected.resize(u * 4, 0);
    assert_eq!(read(&storage, u * 4, 0).await.unwrap(), expected);
    assert_eq!(storage.len().await.unwrap(), u as u64, "reading does not extend");
}

async fn end_within_a_unit_is_where_zeros_begin(storage: impl Storage) {
    let u = unit(&storage);
    write(&storage, &pattern(u * 2, 3), 0).await.unwrap();
    storage.set_len(u as u64 + 5).await.unwrap();
    let mut expected = pattern(u * 2, 3)[..u + 5].to_vec();
    expected.resize(u * 3, 0);
    assert_eq!(read(&storage, u * 3, 0).await.unwrap(), expected);
}

async fn write_past_the_end_leaves_a_gap_of_zeros(storage: impl Storage) {
    let u = unit(&storage);
    let bytes = pattern(u, 4);
    write(&storage, &bytes, u as u64 * 7).await.unwrap();
    assert_eq!(storage.len().await.unwrap(), u as u64 * 8);
    let mut expected = vec![0; u * 7];
    expected.extend_from_slice(&bytes);
    assert_eq!(read(&storage, u * 8, 0).await.unwrap(), expected);
}

async fn shortened_bytes_do_not_come_back(storage: impl Storage) {
    let u = unit(&storage);
    write(&storage, &pattern(u * 4, 5), 0).await.unwrap();
    storage.set_len(u as u64).await.unwrap();
    assert_eq!(storage.len().await.unwrap(), u as u64);
    storage.set_len(u as u64 * 4).await.unwrap();
    assert_eq!(storage.len().await.unwrap(), u as u64 * 4);
    let mut expected = pattern(u * 4, 5)[..u].to_vec();
    expected.resize(u * 4, 0);
    assert_eq!(read(&storage, u * 4, 0).await.unwrap(), expected);
}

async fn zeroed_ranges_read_as_zeros_and_extend(storage: impl Storage) {
    let u = unit(&storage);
    write(&storage, &pattern(u * 4, 6), 0).await.unwrap();
    storage.write_zeroes(u as u64, u as u64).await.unwrap();
    storage.write_zeroes(u as u64 * 3, u as u64 * 5).await.unwrap();
    let mut expected = pattern(u * 4, 6);
    expected[u..u * 2].fill(0);
    expected[u * 3..].fill(0);
    expected.resize(u * 8, 0);
    assert_eq!(storage.len().await.unwrap(), u as u64 * 8);
    assert_eq!(read(&storage, u * 8, 0).await.unwrap(), expected);
    storage.write_zeroes(u as u64 * 20, 0).await.unwrap();
    assert_eq!(storage.len().await.unwrap(), u as u64 * 8, "zeroing nothing extends nothing");
}

async fn discard_touches_only_its_range_and_keeps_the_length(storage: impl Storage) {
    // Large enough for a file system to punch a hole.
    let u = 4096.max(unit(&storage));
    let bytes = pattern(u * 64, 7);
    write(&storage, &bytes, 0).await.unwrap();
    storage.discard(u as u64 * 16, u as u64 * 32).await.unwrap();
    storage.discard(u as u64 * 60, u as u64 * 32).await.unwrap();
    storage.flush().await.unwrap();
    assert_eq!(storage.len().await.unwrap(), bytes.len() as u64);
    assert_eq!(read(&storage, u * 16, 0).await.unwrap(), bytes[..u * 16]);
    assert_eq!(read(&storage, u * 12, u as u64 * 48).await.unwrap(), bytes[u * 48..u * 60]);
}

async fn holes_read_as_zeros_and_extents_are_never_empty(storage: impl Storage) {
    let u = (64 << 10).max(unit(&storage));
    write(&storage, &pattern(u, 8), u as u64 * 2).await.unwrap();
    write(&storage, &pattern(u, 8), u as u64 * 9).await.unwrap();
    storage.flush().await.unwrap();
    let total = u as u64 * 12;
    let mut offset = 0;
    while offset < total {
        let extent = storage.extent_at(offset, total - offset).await.unwrap();
        assert!(extent.len >= 1 && extent.len <= total - offset, "{extent:?} at {offset}");
        if offset >= u as u64 * 10 {
            assert_eq!(extent.kind, StorageExtentKind::Hole, "past the end is a hole");
        }
        if extent.kind == StorageExtentKind::Hole {
            let len = usize::try_from(extent.len).unwrap();
            let bytes = storage.read_at(buf(&storage, &vec![1; len]), offset).await.unwrap();
            assert!(bytes.iter().all(|&b| b == 0), "{extent:?} at {offset} is not zeros");
        }
        offset += extent.len;
    }
    assert_eq!(offset, total);
}

async fn requests_in_flight_do_not_mix(storage: impl Storage) {
    let u = unit(&storage);
    let n = 200;
    let mut writes: FuturesUnordered<_> = (0..n)
        .map(|i| storage.write_at(buf(&storage, &pattern(u, i as u8)), (i * u) as u64))
        .collect();
    while let Some(result) = writes.next().await {
        result.unwrap();
    }
    let mut reads: FuturesUnordered<_> = (0..n)
        .map(|i| {
            let read = storage.read_at(buf(&storage, &vec![0; u]), (i * u) as u64);
            async move { (i, read.await) }
        })
        .collect();
    while let Some((i, result)) = reads.next().await {
        assert_eq!(result.unwrap()[..], pattern(u, i as u8)[..], "request {i}");
    }
}

async fn dropped_requests_leave_the_storage_whole(storage: impl Storage) {
    let u = unit(&storage);
    let (old, new) = (pattern(u, 10), pattern(u, 11));
    let n = 50;
    for i in 0..n {
        write(&storage, &old, (i * u) as u64).await.unwrap();
    }
    let mut context = Context::from_waker(Waker::noop());
    for i in 0..n {
        // Polled once and dropped; at every other place a read, and not even polled.
        let mut write = Box::pin(storage.write_at(buf(&storage, &new), (i * u) as u64));
        let _ = write.as_mut().poll(&mut context);
        let mut read = Box::pin(storage.read_at(buf(&storage, &old), (i * u) as u64));
        if i % 2 == 0 {
            let _ = read.as_mut().poll(&mut context);
        }
    }
    storage.flush().await.unwrap();
    for i in 0..n {
        let bytes = read(&storage, u, (i * u) as u64).await.unwrap();
        // A dropped write may have landed in part, by sectors.
        let (mut from, end) = (0, u);
        while from < end {
            let to = end.min(from + 512 - (i * u + from) % 512);
            let part = from..to;
            let found = &bytes[part.clone()];
            assert!(
                found == &old[part.clone()] || found == &new[part],
                "unit {i} is neither the old nor the new"
            );
            from = to;
        }
    }
    // After the flush nothing lands any more.
    for i in 0..n {
        write(&storage, &old, (i * u) as u64).await.unwrap();
    }
    for i in 0..n {
        assert_eq!(read(&storage, u, (i * u) as u64).await.unwrap(), old, "unit {i}");
    }
}

async fn offsets_out_of_this_world_are_errors(storage: impl Storage) {
    let u = unit(&storage);
    let far = (u64::MAX / u as u64 - 1) * u as u64;
    assert!(write(&storage, &pattern(u, 12), far).await.is_err());
    assert!(storage.write_zeroes(far, u as u64).await.is_err());
    assert!(storage.set_len(u64::MAX).await.is_err());
    assert_eq!(storage.len().await.unwrap(), 0, "what failed changed nothing");
}

async fn random_requests_agree_with_the_model(storage: impl Storage) {
    let seed = 0x9e37_79b9_7f4a_7c15;
    let mut random = Random(seed);
    let mut model: Vec<u8> = Vec::new();
    let u = unit(&storage) as u64;
    for step in 0..2000u32 {
        let (offset, len) = (random.below(48) * u, (1 + random.below(8)) * u);
        let (from, to) = (offset as usize, (offset + len) as usize);
        let what = random.below(100);
        if what < 40 {
            let bytes = pattern(len as usize, step as u8);
            match step % 2 {
                0 => write(&storage, &bytes, offset).await.unwrap(),
                _ => drop(write_at_once(&storage, &bytes, offset).await.unwrap()),
            }
            model.resize(model.len().max(to), 0);
            model[from..to].copy_from_slice(&bytes);
        } else if what < 50 {
            storage.write_zeroes(offset, len).await.unwrap();
            model.resize(model.len().max(to), 0);
            model[from..to].fill(0);
        } else if what < 55 {
            let len = random.below(48 * u);
            storage.set_len(len).await.unwrap();
            model.resize(len as usize, 0);
        } else if what < 57 {
            storage.flush().await.unwrap();
        } else {
            let got = read(&storage, len as usize, offset).await.unwrap();
            let mut expected = vec![0; len as usize];
            if from < model.len() {
                let end = to.min(model.len());
                expected[..end - from].copy_from_slice(&model[from..end]);
            }
            assert_eq!(got, expected, "step {step}, seed {seed:#x}: {len} bytes at {offset}");
        }
        assert_eq!(storage.len().await.unwrap(), model.len() as u64, "step {step}");
    }
}

/// Makes one test of each claim for the storage that `$make` makes: `Subject<impl Storage>`.
macro_rules! contract {
    ($name:ident, $make:expr) => {
        contract!($name, $make, block_on);
    };
    ($name:ident, $make:expr, $block_on:path) => {
        contract!(@ $name, $make, $block_on,
            empty_storage_reads_as_zeros
            written_bytes_are_read_back
            both_doors_write_the_same
            bytes_past_the_end_are_zeros
            end_within_a_unit_is_where_zeros_begin
            write_past_the_end_leaves_a_gap_of_zeros
            shortened_bytes_do_not_come_back
            zeroed_ranges_read_as_zeros_and_extend
            discard_touches_only_its_range_and_keeps_the_length
            holes_read_as_zeros_and_extents_are_never_empty
            requests_in_flight_do_not_mix
            dropped_requests_leave_the_storage_whole
            offsets_out_of_this_world_are_errors
            random_requests_agree_with_the_model
        );
    };
    (@ $name:ident, $make:expr, $block_on:path, $($claim:ident)*) => {
        mod $name {
            use super::*;
            $(
                #[test]
                fn $claim() {
                    let subject = $make;
                    $block_on(super::$claim(subject.storage));
                }
            )*
        }
    };
}

contract!(memory, Subject::new(MemoryStorage::default()));
contract!(memory_shared, Subject::new(std::sync::Arc::new(MemoryStorage::default())));
contract!(memory_rc, Subject::new(std::rc::Rc::new(MemoryStorage::default())));
contract!(boxed, Subject::new(BoxStorage::new(MemoryStorage::default())));
contract!(local_boxed, Subject::new(LocalBoxStorage::new(MemoryStorage::default())));
contract!(
    boxed_in_local,
    Subject::new(LocalBoxStorage::new(BoxStorage::new(MemoryStorage::default())))
);

/// A disk that takes its time and reorders, and fails nobody.
#[cfg(feature = "sim")]
mod sim {
    use std::cell::RefCell;

    use cowshed::sim::{Executor, Faults, SimStorage};

    use super::*;

    thread_local! {
        /// The world of this test.
        static WORLD: RefCell<Option<Executor<'static>>> = const { RefCell::new(None) };
    }

    fn disk() -> Subject<SimStorage> {
        let world = Executor::new(1);
        let disk = SimStorage::new(&world, [], Faults::none());
        WORLD.set(Some(world));
        Subject::new(disk)
    }

    fn run(future: impl Future<Output = ()>) {
        WORLD.take().expect("disk() makes a world").run(future).unwrap();
    }

    contract!(simulated, disk(), super::run);
    contract!(simulated_boxed, Subject::new(BoxStorage::new(disk().storage)), super::run);
}

#[cfg(all(unix, feature = "file"))]
mod files {
    use cowshed::rt::{FileOptions, FileStorage};

    use super::*;

    /// A new file. `/tmp` may be on a file system that cannot do `O_DIRECT`; the build folder is on a disk.
    pub(super) fn file(options: &FileOptions) -> Subject<FileStorage> {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let options = options.clone().writable(true).create(true);
        let storage = FileStorage::open(folder.path().join("disk"), &options).unwrap();
        Subject { storage, _keep: Some(folder) }
    }

    contract!(cached, file(&FileOptions::new()));
    // Without a way to zero a range, which has to be written.
    #[cfg(target_os = "linux")]
    contract!(in_memory_file_system, {
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let options = FileOptions::new().writable(true).create(true);
        let storage = FileStorage::open(folder.path().join("disk"), &options).unwrap();
        Subject { storage, _keep: Some(folder) }
    });
    contract!(direct, file(&FileOptions::new().direct(true)));
    contract!(boxed, {
        let Subject { storage, _keep } = file(&FileOptions::new());
        Subject { storage: BoxStorage::new(storage), _keep }
    });

    #[cfg(all(target_os = "linux", feature = "uring"))]
    mod uring {
        use cowshed::rt::UringStorage;

        use super::*;

        fn uring(options: &FileOptions) -> Subject<UringStorage> {
            let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
            let options = options.clone().writable(true).create(true);
            let storage = UringStorage::open(folder.path().join("disk"), &options).unwrap();
            Subject { storage, _keep: Some(folder) }
        }

        // On an executor that knows nothing of it, through the shared ring...
        contract!(shared_cached, uring(&FileOptions::new()));
        contract!(shared_direct, uring(&FileOptions::new().direct(true)));
        // ...and on its own.
        contract!(own_cached, uring(&FileOptions::new()), cowshed::rt::block_on);
        contract!(own_direct, uring(&FileOptions::new().direct(true)), cowshed::rt::block_on);
    }

    #[test]
    fn cached_file_answers_at_once_and_direct_one_never() {
        let cached = file(&FileOptions::new());
        let direct = file(&FileOptions::new().direct(true));
        block_on(async {
            write(&cached.storage, &pattern(8192, 1), 0).await.unwrap();
            write(&direct.storage, &pattern(8192, 1), 0).await.unwrap();
        });
        let mut bytes = vec![0; 8192];
        let answer = cached.storage.try_read_at(&mut bytes, 4096);
        if cfg!(target_os = "linux") {
            answer.expect("what was just written is in the page cache").unwrap();
            assert_eq!(bytes[..4096], pattern(8192, 1)[4096..]);
            assert_eq!(bytes[4096..], [0; 4096], "past the end is zeros, at once");
        }
        assert!(direct.storage.try_read_at(&mut bytes, 0).is_none());
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn cached_file_is_written_at_once_and_direct_one_never() {
        let cached = file(&FileOptions::new()).storage;
        let direct = file(&FileOptions::new().direct(true)).storage;
        let whole = pattern(1 << 20, 1);
        let at_once = |storage, bytes: &[u8], at| Storage::try_write_at(storage, bytes, at);
        assert!(at_once(&direct, &whole, 0).is_none());
        assert!(at_once(&cached, &whole, 0).is_none(), "an executor's thread is not held up");
        // In `block_on` there is no one else on this thread.
        cowshed::rt::block_on(async { at_once(&cached, &whole, 0) }).unwrap().unwrap();
        // Within a block that is cached.
        at_once(&cached, b"within", 4100).unwrap().unwrap();
        let mut expected = whole;
        expected[4100..4106].copy_from_slice(b"within");
        let mut found = vec![0; 1 << 20];
        Storage::try_read_at(&cached, &mut found, 0).unwrap().unwrap();
        assert!(found == expected);
        // A part of a block that is not: someone must read the rest.
        block_on(Storage::flush(&cached)).unwrap();
        rustix::fs::fadvise(cached.file(), 0, None, rustix::fs::Advice::DontNeed).unwrap();
        assert!(at_once(&cached, b"within", 4100).is_none());
        at_once(&cached, &pattern(4096, 3), 4096).unwrap().unwrap();
        expected[4096..8192].copy_from_slice(&pattern(4096, 3));
        assert!(block_on(read(&cached, 1 << 20, 0)).unwrap() == expected);
    }

    #[test]
    fn discarded_and_zeroed_ranges_give_up_or_keep_their_space() {
        use std::os::unix::fs::MetadataExt;
        let Subject { storage, _keep } = file(&FileOptions::new());
        block_on(async {
            write(&storage, &pattern(1 << 20, 1), 0).await.unwrap();
            storage.flush().await.unwrap();
            let full = storage.file().metadata().unwrap().blocks();
            assert!(full >= 2048, "1 MiB is 2048 blocks of 512 bytes; found {full}");
            storage.write_zeroes(0, 1 << 19).await.unwrap();
            storage.flush().await.unwrap();
            assert!(storage.file().metadata().unwrap().blocks() >= full, "zeroing keeps the space");
            storage.discard(0, 1 << 19).await.unwrap();
            storage.flush().await.unwrap();
            let left = storage.file().metadata().unwrap().blocks();
            assert!(left <= full - 1000, "a hole of 1024 blocks left {left} of {full}");
            let extent = storage.extent_at(0, 1 << 20).await.unwrap();
            assert_eq!((extent.kind, extent.len), (StorageExtentKind::Hole, 1 << 19));
            let extent = storage.extent_at(1 << 19, 1 << 20).await.unwrap();
            assert_eq!((extent.kind, extent.len), (StorageExtentKind::Data, 1 << 19));
        });
    }

    #[test]
    fn file_open_for_reading_refuses_every_change() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        std::fs::write(&path, b"bytes").unwrap();
        let storage = FileStorage::open(&path, &FileOptions::new()).unwrap();
        block_on(async {
            let denied = io::ErrorKind::PermissionDenied;
            assert_eq!(write(&storage, b"x", 0).await.unwrap_err().kind(), denied);
            let at_once = Storage::try_write_at(&storage, b"x", 0).unwrap();
            assert_eq!(at_once.unwrap_err().kind(), denied);
            assert_eq!(storage.write_zeroes(0, 1).await.unwrap_err().kind(), denied);
            assert_eq!(storage.discard(0, 1).await.unwrap_err().kind(), denied);
            assert_eq!(storage.set_len(0).await.unwrap_err().kind(), denied);
            storage.flush().await.unwrap();
        });
        assert_eq!(std::fs::read(&path).unwrap(), b"bytes");
    }

    #[test]
    fn only_regular_files_are_opened_and_nothing_hangs() {
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("fifo");
        let made = std::process::Command::new("mkfifo").arg(&fifo).status().unwrap();
        assert!(made.success());
        for path in [&*fifo, folder.path(), "/dev/zero".as_ref(), "/dev/null".as_ref()] {
            for writable in [false, true] {
                let options = FileOptions::new().writable(writable).block_device(true);
                let error = FileStorage::open(path, &options).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{path:?}");
                // QEMU's text.
                let text =
                    format!("'file' driver requires '{}' to be a regular file", path.display());
                assert_eq!(error.to_string(), text);
            }
        }
    }

    #[test]
    fn same_file_has_the_same_identity_under_every_name() {
        let folder = tempfile::tempdir().unwrap();
        let [one, two, other] = ["one", "two", "other"].map(|name| folder.path().join(name));
        std::fs::write(&one, b"").unwrap();
        std::fs::hard_link(&one, &two).unwrap();
        std::fs::write(&other, b"").unwrap();
        let [one, two, other] = [one, two, other]
            .map(|path| FileStorage::open(path, &FileOptions::new()).unwrap().identity());
        assert_eq!(one, two);
        assert_ne!(one, other);
    }
}

#[test]
fn memory_does_not_grow_past_its_bound() {
    let storage = MemoryStorage::new(b"here".to_vec());
    let too_large = io::ErrorKind::FileTooLarge;
    for offset in [MemoryStorage::LEN_MAX - 3, 1 << 40, u64::MAX - 8, u64::MAX] {
        let error = block_on(write(&storage, b"away", offset)).unwrap_err();
        assert_eq!(error.kind(), too_large, "{offset:#x}");
        let error = Storage::try_write_at(&storage, b"away", offset).unwrap().unwrap_err();
        assert_eq!(error.kind(), too_large, "{offset:#x}");
        let error = block_on(Storage::write_zeroes(&storage, offset, 4)).unwrap_err();
        assert_eq!(error.kind(), too_large, "{offset:#x}");
        if offset > MemoryStorage::LEN_MAX {
            let error = block_on(Storage::set_len(&storage, offset)).unwrap_err();
            assert_eq!(error.kind(), too_large, "{offset:#x}");
        }
    }
    assert_eq!(storage.into_vec(), b"here");
}

/// The rule that lets generic code spawn: the futures of a `SendStorage` are `Send`, through every wrapper.
#[test]
fn futures_of_a_send_storage_are_send() {
    fn assert_send<T: Send>(value: T) -> T {
        value
    }
    fn all<S: cowshed::storage::SendStorage>(storage: &S) {
        drop(assert_send(storage.read_at(Buf::default(), 0)));
        drop(assert_send(storage.write_at(Buf::default(), 0)));
        drop(assert_send(storage.write_zeroes(0, 0)));
        drop(assert_send(storage.discard(0, 0)));
        drop(assert_send(storage.flush()));
        drop(assert_send(storage.len()));
        drop(assert_send(storage.set_len(0)));
        drop(assert_send(storage.extent_at(0, 1)));
    }
    all(&MemoryStorage::default());
    all(&BoxStorage::new(MemoryStorage::default()));
    all(&std::sync::Arc::new(BoxStorage::new(MemoryStorage::default())));
    // And through the name without bounds, where the compiler sees the concrete type.
    let storage = MemoryStorage::default();
    drop(assert_send(Storage::read_at(&storage, Buf::default(), 0)));
}

/// A storage without bounds stays without: one that holds an `Rc` is a `Storage`.
#[test]
fn storage_for_one_thread_needs_no_send() {
    struct Local(std::rc::Rc<MemoryStorage>);
    impl Storage for Local {
        async fn read_at(&self, buf: Buf, offset: u64) -> io::Result<Buf> {
            let inner = std::rc::Rc::clone(&self.0);
            Storage::read_at(&inner, buf, offset).await
        }
        async fn write_at(&self, buf: Buf, offset: u64) -> io::Result<Buf> {
            Storage::write_at(&self.0, buf, offset).await
        }
        async fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
            Storage::write_zeroes(&self.0, offset, len).await
        }
        async fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
            Storage::discard(&self.0, offset, len).await
        }
        async fn flush(&self) -> io::Result<()> {
            Storage::flush(&self.0).await
        }
        async fn len(&self) -> io::Result<u64> {
            Storage::len(&self.0).await
        }
        async fn set_len(&self, len: u64) -> io::Result<()> {
            Storage::set_len(&self.0, len).await
        }
    }
    let storage = LocalBoxStorage::new(Local(std::rc::Rc::default()));
    block_on(async {
        write(&storage, b"here", 0).await.unwrap();
        assert_eq!(read(&storage, 6, 0).await.unwrap(), b"here\0\0");
        let mut bytes = [0; 4];
        assert!(storage.try_read_at(&mut bytes, 0).is_none(), "the default door is shut");
        assert!(storage.try_write_at(b"gone", 0).is_none(), "the default door is shut");
        assert_eq!(read(&storage, 4, 0).await.unwrap(), b"here");
    });
}
