//! Isolation: no interleaving shows one guest range the bytes of another. A storage holds one write in flight while other
//! things happen to the disk, and lets it land when its host cluster could have become somebody else's.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use cowshed::image::{
    Answer, CreateOptions, Format, Image, OpenOptions, Reference, RefuseAll, Source, WriteOptions,
    ZeroMode, create,
};
use cowshed::storage::{BoxStorage, Buf, MemoryStorage, SendStorage, StorageLimits};
use futures::executor::block_on;
use futures::future::FutureExt;
use futures::{pin_mut, poll};
use gate::Gate;

/// A door that is open or not.
mod gate {
    use std::sync::Mutex;
    use std::task::{Poll, Waker};

    #[derive(Debug, Default)]
    pub(crate) struct Gate(Mutex<State>);

    #[derive(Debug, Default)]
    struct State {
        closed: bool,
        waiting: Vec<Waker>,
    }

    impl Gate {
        pub(crate) fn close(&self) {
            self.0.lock().unwrap().closed = true;
        }

        pub(crate) fn open(&self) {
            let mut state = self.0.lock().unwrap();
            state.closed = false;
            state.waiting.drain(..).for_each(Waker::wake);
        }

        pub(crate) async fn pass(&self) {
            std::future::poll_fn(|context| {
                let mut state = self.0.lock().unwrap();
                if !state.closed {
                    return Poll::Ready(());
                }
                state.waiting.push(context.waker().clone());
                Poll::Pending
            })
            .await;
        }
    }
}

/// Memory that holds writes of one byte's repetition in flight, for as long as its gate is closed.
#[derive(Debug)]
struct Holding {
    memory: MemoryStorage,
    held: Mutex<Option<u8>>,
    /// Whether flushes are held, too.
    holds_flushes: AtomicBool,
    discarded: Mutex<Vec<Range<u64>>>,
    gate: Gate,
}

impl Holding {
    fn new() -> Self {
        let memory = MemoryStorage::new(Vec::new());
        Self {
            memory,
            held: Mutex::new(None),
            holds_flushes: AtomicBool::new(false),
            discarded: Mutex::default(),
            gate: Gate::default(),
        }
    }

    /// Holds writes that begin with `byte`.
    fn hold(&self, byte: u8) {
        *self.held.lock().unwrap() = Some(byte);
        self.gate.close();
    }

    fn let_go(&self) {
        *self.held.lock().unwrap() = None;
        self.gate.open();
    }

    async fn wait(&self, first: Option<&u8>) {
        let held = *self.held.lock().unwrap();
        if held.is_some() && held.as_ref() == first {
            self.gate.pass().await;
        }
    }
}

impl SendStorage for Holding {
    async fn read_at(&self, buf: Buf, offset: u64) -> io::Result<Buf> {
        SendStorage::read_at(&self.memory, buf, offset).await
    }

    async fn write_at(&self, buf: Buf, offset: u64) -> io::Result<Buf> {
        self.wait(buf.first()).await;
        SendStorage::write_at(&self.memory, buf, offset).await
    }

    async fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        SendStorage::write_zeroes(&self.memory, offset, len).await
    }

    async fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.discarded.lock().unwrap().push(offset..offset + len);
        SendStorage::discard(&self.memory, offset, len).await
    }

    async fn flush(&self) -> io::Result<()> {
        if self.holds_flushes.load(Ordering::SeqCst) {
            self.gate.pass().await;
        }
        SendStorage::flush(&self.memory).await
    }

    async fn len(&self) -> io::Result<u64> {
        SendStorage::len(&self.memory).await
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        SendStorage::set_len(&self.memory, len).await
    }

    fn limits(&self) -> StorageLimits {
        SendStorage::limits(&self.memory)
    }
}

const CLUSTER: usize = 4096;

async fn open(storage: &Arc<Holding>) -> Image<BoxStorage> {
    let mut options = CreateOptions::new(1 << 20);
    options.cluster_size = CLUSTER as u64;
    create(storage, None, &options).await.unwrap();
    let mut options = OpenOptions::default();
    options.write = Some(WriteOptions::default());
    let source = Source::qcow2(BoxStorage::new(Arc::clone(storage)), "image");
    Image::open(source, &RefuseAll::new(), options).await.unwrap().image
}

async fn read(image: &Image<BoxStorage>, cluster: u64) -> Vec<u8> {
    let mut bytes = vec![0xee; CLUSTER];
    image.read_at(&mut bytes, cluster * CLUSTER as u64).await.unwrap();
    bytes
}

/// What makes a host cluster free while a write to it is in flight.
#[derive(Debug, Clone, Copy)]
enum Freeing {
    Discard,
    Unmap,
}

async fn free(image: &Image<BoxStorage>, how: Freeing) {
    match how {
        Freeing::Discard => image.discard_at(0, CLUSTER as u64).await.unwrap(),
        Freeing::Unmap => {
            image.write_zeroes_at(0, CLUSTER as u64, ZeroMode::MayUnmap).await.unwrap();
        }
    }
}

/// Holds a rewrite in flight, frees its cluster, writes elsewhere, lets the rewrite land or drops it, and tells which of the
/// other clusters read something else than what was written to them.
fn disturbed(how: Freeing, dropped: bool) -> Vec<u64> {
    block_on(async {
        let storage = Arc::new(Holding::new());
        let image = open(&storage).await;
        image.write_at(&[1; CLUSTER], 0).await.unwrap();
        image.flush().await.unwrap();

        storage.hold(2);
        {
            let rewrite = image.write_at(&[2; CLUSTER], 0);
            pin_mut!(rewrite);
            assert!(poll!(&mut rewrite).is_pending(), "the storage holds it");
            free(&image, how).await;
            for round in 0..4 {
                image.flush().await.unwrap();
                for cluster in 1..=8 {
                    let data = [0x10 + round; CLUSTER];
                    image.write_at(&data, cluster * CLUSTER as u64).await.unwrap();
                }
            }
            storage.let_go();
            if !dropped {
                rewrite.await.unwrap();
            }
        }
        image.flush().await.unwrap();
        let mut found = Vec::new();
        for cluster in 1..=8 {
            if read(&image, cluster).await != [0x13; CLUSTER] {
                found.push(cluster);
            }
        }
        image.close().await.unwrap();
        found
    })
}

#[test]
fn a_rewrite_in_flight_never_lands_in_another_range() {
    for how in [Freeing::Discard, Freeing::Unmap] {
        for dropped in [false, true] {
            assert_eq!(disturbed(how, dropped), [0; 0], "{how:?}, dropped: {dropped}");
        }
    }
}

/// The test above would notice if clusters were used again under requests that have found them.
#[cfg(feature = "sim")]
#[test]
fn a_rewrite_lands_elsewhere_without_the_rule() {
    use cowshed::image::mutant::{Mutant, set};

    set(Some(Mutant::ReuseUnderRequests));
    let found = disturbed(Freeing::Discard, false);
    set(None);
    assert_eq!(found.len(), 1, "one of the others has the freed cluster");
}

#[test]
fn a_freed_cluster_is_used_again_once_nobody_is_left() {
    block_on(async {
        let storage = Arc::new(Holding::new());
        let image = open(&storage).await;
        for round in 0..64 {
            image.write_at(&[round; CLUSTER], 0).await.unwrap();
            free(&image, Freeing::Discard).await;
            image.flush().await.unwrap();
            image.flush().await.unwrap();
        }
        image.close().await.unwrap();
        let len = SendStorage::len(&*storage).await.unwrap();
        assert!(len < 16 * CLUSTER as u64, "{len:#x} bytes for one cluster of data");
    });
}

#[test]
fn a_new_cluster_is_not_read_before_its_data_is_there() {
    block_on(async {
        let storage = Arc::new(Holding::new());
        let image = open(&storage).await;
        // A cluster that has held something else, and is free again.
        image.write_at(&[9; CLUSTER], 0).await.unwrap();
        free(&image, Freeing::Discard).await;
        image.flush().await.unwrap();
        image.flush().await.unwrap();

        storage.hold(3);
        let write = image.write_at(&[3; CLUSTER], 5 * CLUSTER as u64);
        pin_mut!(write);
        assert!(poll!(&mut write).is_pending(), "the storage holds it");
        assert!(read(&image, 5).await == [0; CLUSTER]);
        storage.let_go();
        write.await.unwrap();
        assert!(read(&image, 5).await == [3; CLUSTER]);
        image.close().await.unwrap();
    });
}

#[test]
fn close_waits_for_what_is_in_flight() {
    block_on(async {
        let storage = Arc::new(Holding::new());
        let image = open(&storage).await;
        storage.hold(4);
        let write = image.write_at(&[4; CLUSTER], 0);
        pin_mut!(write);
        assert!(poll!(&mut write).is_pending());
        let close = image.close();
        pin_mut!(close);
        assert!(poll!(&mut close).is_pending());
        assert!(image.write_at(&[5; 512], 0).now_or_never().unwrap().is_err(), "closed");
        storage.let_go();
        write.await.unwrap();
        close.await.unwrap();
        let source = Source::qcow2(BoxStorage::new(Arc::clone(&storage)), "image");
        let gate = RefuseAll::new();
        let again = Image::open(source, &gate, OpenOptions::default());
        assert!(read(&again.await.unwrap().image, 0).await == [4; CLUSTER]);
    });
}

/// The gate to a data file.
struct DataGate(Arc<Holding>);

impl cowshed::image::Gate for DataGate {
    type Storage = BoxStorage;

    async fn open(&self, _reference: &Reference<'_>) -> cowshed::Result<Answer<BoxStorage>> {
        let storage = BoxStorage::new(Arc::clone(&self.0));
        let format = Format::Raw;
        Ok(Answer::Open(Source { storage, format, location: "data".into(), identity: None }))
    }
}

#[test]
fn space_in_a_data_file_is_given_up_when_no_power_loss_can_ask_for_it() {
    block_on(async {
        let (storage, data) = (Arc::new(Holding::new()), Arc::new(Holding::new()));
        let mut options = CreateOptions::new(1 << 20);
        options.cluster_size = CLUSTER as u64;
        options.data_file = Some(b"data".to_vec());
        create(&storage, Some(&data), &options).await.unwrap();
        let mut options = OpenOptions::default();
        options.write = Some(WriteOptions::default());
        let source = Source::qcow2(BoxStorage::new(Arc::clone(&storage)), "image");
        let gate = DataGate(Arc::clone(&data));
        let image = Image::open(source, &gate, options).await.unwrap().image;
        let discard = || image.discard_at(0, CLUSTER as u64);

        image.write_at(&[1; CLUSTER], 0).await.unwrap();
        image.flush().await.unwrap();
        {
            // A request is in flight, so that the space is not given up at once.
            data.hold(2);
            let other = image.write_at(&[2; CLUSTER], 1 << 16);
            pin_mut!(other);
            assert!(poll!(&mut other).is_pending());
            discard().await.unwrap();
            image.flush().await.unwrap();
            image.write_at(&[3; CLUSTER], 0).await.unwrap();
            image.flush().await.unwrap();
            data.let_go();
            other.await.unwrap();
        }
        assert_eq!(*data.discarded.lock().unwrap(), []);
        // The first discard's turn comes in a flush that does not make the second one durable.
        storage.holds_flushes.store(true, Ordering::SeqCst);
        storage.gate.close();
        {
            let flush = image.flush();
            pin_mut!(flush);
            assert!(poll!(&mut flush).is_pending());
            discard().await.unwrap();
            storage.gate.open();
            flush.await.unwrap();
        }
        assert_eq!(*data.discarded.lock().unwrap(), [], "the mapping on disk is the old one");
        image.flush().await.unwrap();
        image.flush().await.unwrap();
        let cluster = 0..CLUSTER as u64;
        assert_eq!(*data.discarded.lock().unwrap(), [cluster]);
        image.close().await.unwrap();
    });
}
