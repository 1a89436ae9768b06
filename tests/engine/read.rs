//! Reading, held against QEMU byte for byte: every image of the matrix, whole and in odd pieces, at its snapshots, with
//! caches so small that nothing stays, and with workers.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::support::data::Choices;
use crate::support::open::{open_in_memory, read_all};
use crate::support::{TestImage, for_each_image, small_matrix};
use cowshed::format::HostOffset;
use cowshed::image::{ExtentKind, Image, OpenOptions, SnapshotSelector};
use cowshed::storage::{MemoryStorage, Storage};
use cowshed::workers::Workers;
use futures::executor::block_on;

/// Reads ranges of every length and alignment: around cluster borders, whole, empty, at the very end.
async fn read_odd_pieces<S: Storage>(test: &TestImage, image: &Image<S>) {
    let mut choices = Choices::new(test.reference.len() as u64);
    let size = test.reference.len() as u64;
    for _ in 0..40 {
        let offset = choices.below(size);
        let longest = if choices.below(4) == 0 { size - offset } else { (size - offset).min(9000) };
        let len = usize::try_from(choices.below(longest + 1)).unwrap();
        let mut bytes = vec![0xa5; len];
        image.read_at(&mut bytes, offset).await.unwrap();
        test.assert_reads(&bytes, offset);
    }
    image.read_at(&mut [], size).await.unwrap();
    let mut last = [0xa5];
    image.read_at(&mut last, size - 1).await.unwrap();
    test.assert_reads(&last, size - 1);
    assert!(image.read_at(&mut [0; 2], size - 1).await.is_err());
    assert!(image.read_at(&mut [0], u64::MAX).await.is_err());
}

/// Every claim about the whole matrix at once, because making it takes longer than reading it.
#[test]
fn the_matrix_reads_as_in_qemu() {
    let snapshots = AtomicUsize::new(0);
    let count = for_each_image(|test| {
        block_on(async {
            every_byte_reads(test).await;
            every_snapshot_reads(test, &snapshots).await;
            the_map_leads_to_every_byte(test).await;
            every_refcount_is_found(test).await;
        });
    });
    assert!(count > 100, "only {count} images");
    assert!(snapshots.into_inner() > 100);
}

async fn every_byte_reads(test: &TestImage) {
    let image = open_in_memory(test.dir.path(), test.name(), OpenOptions::default()).await.unwrap();
    assert_eq!(image.virtual_size(), test.reference.len() as u64, "{}", test.description);
    let whole = read_all(&image, usize::MAX).await.unwrap();
    test.assert_reads(&whole, 0);
    read_odd_pieces(test, &image).await;
    image.close().await.unwrap();
    assert!(image.read_at(&mut [0], 0).await.is_err());
}

async fn every_snapshot_reads(test: &TestImage, count: &AtomicUsize) {
    for (number, snapshot) in test.snapshots.iter().enumerate() {
        let name = snapshot.name.clone().into_bytes();
        let id = (number + 1).to_string().into_bytes();
        for selector in [SnapshotSelector::Name(name), SnapshotSelector::IdOrName(id)] {
            let mut options = OpenOptions::default();
            options.snapshot = Some(selector);
            let image = open_in_memory(test.dir.path(), test.name(), options).await.unwrap();
            let bytes = read_all(&image, 1 << 20).await.unwrap();
            assert_eq!(bytes.len(), snapshot.reference.len(), "{}", test.description);
            snapshot.assert_reads(&test.description, &bytes, 0);
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[test]
fn a_snapshot_that_is_not_there_is_an_error() {
    let test = small_matrix().next().unwrap();
    let mut options = OpenOptions::default();
    options.snapshot = Some(SnapshotSelector::IdOrName(b"none such".to_vec()));
    let error = block_on(open_in_memory(test.dir.path(), test.name(), options)).unwrap_err();
    assert_eq!(error.to_string(), "snapshot \"none such\" not found");
}

#[test]
fn the_smallest_caches_read_the_same() {
    for test in small_matrix() {
        let mut options = OpenOptions::default();
        options.cache.l2_cache_size = Some(1);
        options.cache.l2_cache_entry_size = Some(512);
        options.inflated_len_bytes_max = 0;
        block_on(async {
            let image = open_in_memory(test.dir.path(), test.name(), options).await.unwrap();
            test.assert_reads(&read_all(&image, 3001).await.unwrap(), 0);
            read_odd_pieces(&test, &image).await;
        });
    }
}

/// Runs each job on a thread of its own.
struct Threads(AtomicUsize);

impl Workers for Threads {
    fn execute(&self, job: Box<dyn FnOnce() + Send>) {
        self.0.fetch_add(1, Ordering::Relaxed);
        std::thread::spawn(job);
    }

    fn parallelism(&self) -> usize {
        2
    }
}

#[test]
fn clusters_inflated_by_workers_read_the_same() {
    let workers = Arc::new(Threads(AtomicUsize::new(0)));
    for test in small_matrix() {
        let mut options = OpenOptions::default();
        options.workers = Some(workers.clone());
        block_on(async {
            let image = open_in_memory(test.dir.path(), test.name(), options).await.unwrap();
            test.assert_reads(&read_all(&image, usize::MAX).await.unwrap(), 0);
        });
    }
    assert!(workers.0.load(Ordering::Relaxed) > 10, "nothing was inflated by a worker");
}

/// Reads every extent's bytes from where the map says they are, and compares with QEMU's.
async fn the_map_leads_to_every_byte(test: &TestImage) {
    let image = open_in_memory(test.dir.path(), test.name(), OpenOptions::default()).await.unwrap();
    let locations: Vec<_> =
        image.layers().map(|layer| test.dir.path().join(layer.location)).collect();
    let has_data_file = image.header().unwrap().has_data_file();
    let mut extents = image.extents(0, image.virtual_size()).unwrap();
    let mut end = 0;
    while let Some(extent) = extents.next().await.unwrap() {
        assert_eq!(extent.offset, end, "{}: the map has a gap", test.description);
        end += extent.len;
        let len = usize::try_from(extent.len).unwrap();
        let bytes = match extent.kind {
            ExtentKind::Data { host } => {
                let file = if has_data_file && extent.depth == 0 {
                    test.dir.path().join("image.data")
                } else {
                    locations[extent.depth].clone()
                };
                let file = std::fs::read(file).unwrap();
                let start = usize::try_from(host.get()).unwrap().min(file.len());
                let mut bytes = file[start..(start + len).min(file.len())].to_vec();
                bytes.resize(len, 0);
                bytes
            }
            ExtentKind::Compressed { .. } => continue,
            _ => vec![0; len],
        };
        test.assert_reads(&bytes, extent.offset);
    }
    assert_eq!(end, image.virtual_size(), "{}", test.description);
}

#[test]
fn a_request_dropped_half_way_leaves_the_image_whole() {
    let test = small_matrix().next().unwrap();
    block_on(async {
        let image =
            open_in_memory(test.dir.path(), test.name(), OpenOptions::default()).await.unwrap();
        let mut bytes = vec![0; test.reference.len()];
        drop(futures::poll!(Box::pin(image.read_at(&mut bytes, 0))));
        test.assert_reads(&read_all(&image, 4096).await.unwrap(), 0);
        image.close().await.unwrap();
    });
}

/// Futures of an image over a storage that is `Send` are `Send`.
#[test]
fn the_futures_are_send_if_the_storage_is() {
    fn is_send<T: Send>(_: T) {}
    fn check(image: &'static Image<MemoryStorage>, buf: &'static mut [u8]) {
        is_send(image.read_at(buf, 0));
        is_send(image.map(0, 1));
        is_send(image.close());
    }
    let _ = check;
}

/// The header's own cluster is referenced once in any sound image, and no cluster is past the end of the table.
async fn every_refcount_is_found(test: &TestImage) {
    let file = test.file_bytes();
    let word = |at: usize| u64::from_be_bytes(file[at..at + 8].try_into().unwrap());
    let version = u32::from_be_bytes(file[4..8].try_into().unwrap());
    let order = if version == 2 { 4 } else { file[99] };
    let cluster_size = 1_usize << file[23];
    // The first block, read here by hand.
    let block = usize::try_from(word(usize::try_from(word(48)).unwrap())).unwrap();
    let expected = |cluster: usize| match order {
        0..=2 => {
            let (per_byte, bits) = (8_usize >> order, 1_usize << order);
            let byte = file[block + cluster / per_byte];
            u64::from(byte >> (cluster % per_byte * bits)) & ((1 << bits) - 1)
        }
        _ => {
            let len = (1_usize << order) / 8;
            let at = block + cluster * len;
            file[at..at + len].iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
        }
    };
    let options = OpenOptions::default();
    let image = open_in_memory(test.dir.path(), test.name(), options).await.unwrap();
    let in_block = (cluster_size * 8) >> order;
    for cluster in (0..in_block.min(file.len() / cluster_size)).chain([in_block - 1]) {
        let offset = HostOffset::new((cluster * cluster_size + 7) as u64);
        let found = image.refcount(offset).await.unwrap();
        assert_eq!(found, Some(expected(cluster)), "{}: {cluster}", test.description);
    }
    assert_eq!(image.refcount(HostOffset::new(1 << 55)).await.unwrap(), Some(0));
}
