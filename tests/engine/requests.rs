//! The requests that reads become: few and long where clusters lie together, several in flight where they do not,
//! aligned as the storage asks, and never more than its limits.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;

use crate::support::data::Choices;
use crate::support::open::read_all;
use crate::support::qemu;
use cowshed::image::{Image, OpenOptions, RefuseAll, Source};
use cowshed::storage::{BoxStorage, Buf, MemoryStorage, SendStorage, StorageLimits};
use futures::executor::block_on;

/// A file in memory that notes what is asked of it.
struct Noted {
    bytes: MemoryStorage,
    limits: StorageLimits,
    /// Whether the synchronous door answers.
    at_hand: AtomicBool,
    requests: Mutex<Vec<(u64, usize)>>,
    in_flight: AtomicUsize,
    in_flight_max: AtomicUsize,
}

impl Noted {
    fn open(bytes: Vec<u8>, limits: StorageLimits) -> (Arc<Self>, Image<BoxStorage>) {
        let noted = Arc::new(Self {
            bytes: MemoryStorage::new(bytes),
            limits,
            at_hand: false.into(),
            requests: Mutex::default(),
            in_flight: 0.into(),
            in_flight_max: 0.into(),
        });
        let source = Source::qcow2(BoxStorage::new(Arc::clone(&noted)), "image");
        let opened = block_on(Image::open(source, &RefuseAll::new(), OpenOptions::default()));
        noted.requests.lock().unwrap().clear();
        (noted, opened.unwrap().image)
    }

    /// What was asked since the last call.
    fn take(&self) -> Vec<(u64, usize)> {
        std::mem::take(&mut self.requests.lock().unwrap())
    }
}

impl SendStorage for Noted {
    async fn read_at(&self, buf: Buf, offset: u64) -> io::Result<Buf> {
        self.requests.lock().unwrap().push((offset, buf.len()));
        let alignment = u64::from(self.limits.request_alignment);
        assert_eq!(offset % alignment, 0, "offset {offset:#x}");
        assert_eq!(buf.len() as u64 % alignment, 0, "length {}", buf.len());
        assert_eq!(buf.as_ptr().addr() % self.limits.memory_alignment as usize, 0);
        assert!(buf.len() <= self.limits.transfer_len_max as usize);
        let now = self.in_flight.fetch_add(1, Ordering::SeqCst) + 1;
        self.in_flight_max.fetch_max(now, Ordering::SeqCst);
        // Completes at its third poll: others have the time to be asked for.
        let mut polls = 0;
        futures::future::poll_fn(|context| {
            polls += 1;
            context.waker().wake_by_ref();
            if polls < 3 { Poll::Pending } else { Poll::Ready(()) }
        })
        .await;
        self.in_flight.fetch_sub(1, Ordering::SeqCst);
        SendStorage::read_at(&self.bytes, buf, offset).await
    }

    async fn write_at(&self, _: Buf, _: u64) -> io::Result<Buf> {
        panic!("a read-only image is written to")
    }

    async fn write_zeroes(&self, _: u64, _: u64) -> io::Result<()> {
        panic!("a read-only image is written to")
    }

    async fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        panic!("a read-only image is written to")
    }

    async fn flush(&self) -> io::Result<()> {
        panic!("a read-only image is flushed")
    }

    async fn len(&self) -> io::Result<u64> {
        SendStorage::len(&self.bytes).await
    }

    async fn set_len(&self, _: u64) -> io::Result<()> {
        panic!("a read-only image is written to")
    }

    fn limits(&self) -> StorageLimits {
        self.limits
    }

    fn try_read_at(&self, buf: &mut [u8], offset: u64) -> Option<io::Result<()>> {
        if !self.at_hand.load(Ordering::SeqCst) {
            return None;
        }
        self.requests.lock().unwrap().push((offset, buf.len()));
        SendStorage::try_read_at(&self.bytes, buf, offset)
    }
}

/// An image of 4 MiB in clusters of 64 KiB, filled with other bytes every 4 KiB, and what it reads as.
fn make(shuffled: bool) -> (Vec<u8>, Vec<u8>) {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    qemu::img(at, ["create", "-q", "-f", "qcow2", "image", "4M"]);
    let mut places: Vec<_> = (0..1024).collect();
    if shuffled {
        let mut choices = Choices::new(7);
        for last in (1..places.len()).rev() {
            places.swap(last, usize::try_from(choices.below(last as u64 + 1)).unwrap());
        }
    }
    let commands: Vec<_> =
        places.iter().map(|at| format!("write -q -P {} {}k 4k", at % 251 + 1, 4 * at)).collect();
    qemu::io(at, "qcow2", "image", &commands);
    (std::fs::read(at.join("image")).unwrap(), qemu::raw_bytes(at, &["-f", "qcow2"], "image"))
}

#[test]
fn contiguous_clusters_become_one_request() {
    let (file, reference) = make(false);
    let (noted, image) = Noted::open(file, StorageLimits::default());
    let whole = block_on(read_all(&image, usize::MAX)).unwrap();
    assert!(whole == reference);
    // One for the slice of the L2 table, one for all 64 clusters.
    let requests = noted.take();
    assert_eq!(requests.len(), 2, "{requests:x?}");
    assert_eq!(requests[1].1, 4 << 20);

    // At hand, the same, and straight into the caller's buffer.
    noted.at_hand.store(true, Ordering::SeqCst);
    let mut part = vec![0; 1 << 20];
    block_on(image.read_at(&mut part, 12345)).unwrap();
    assert!(part == reference[12345..][..1 << 20]);
    assert_eq!(noted.take().len(), 1);
    assert_eq!(noted.in_flight_max.load(Ordering::SeqCst), 1);
}

#[test]
fn scattered_clusters_are_in_flight_together_up_to_the_limit() {
    let (file, reference) = make(true);
    for limit in [2, 8] {
        let mut limits = StorageLimits::default();
        limits.requests_in_flight = limit;
        let (noted, image) = Noted::open(file.clone(), limits);
        let whole = block_on(read_all(&image, usize::MAX)).unwrap();
        assert!(whole == reference);
        assert!(noted.take().len() > 32, "the image is not scattered");
        assert_eq!(noted.in_flight_max.load(Ordering::SeqCst), limit as usize);
    }
}

#[test]
fn requests_are_aligned_and_bounded_as_the_storage_asks() {
    let (file, reference) = make(true);
    let mut limits = StorageLimits::default();
    limits.request_alignment = 4096;
    limits.memory_alignment = 4096;
    limits.transfer_len_max = 32 << 10;
    let (_, image) = Noted::open(file, limits);
    let mut choices = Choices::new(1);
    for _ in 0..200 {
        let offset = choices.below(reference.len() as u64);
        let len = choices.below((reference.len() as u64 - offset).min(300_000) + 1);
        let mut bytes = vec![0xa5; usize::try_from(len).unwrap()];
        block_on(image.read_at(&mut bytes, offset)).unwrap();
        let start = usize::try_from(offset).unwrap();
        assert!(bytes == reference[start..start + bytes.len()], "{len} bytes at {offset:#x}");
        let mut host = vec![0xa5; bytes.len().min(5000)];
        block_on(image.read_host(&mut host, offset)).unwrap();
    }
}
