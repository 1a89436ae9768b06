//! The fear: what is missing or broken behind a valid header reads as zeros, or as something else.
//!
//! An image written by hand from the specification, with one thing wrong, and what a read says of it.

use cowshed::image::{
    Answer, ExtentKind, Format, Gate, Identity, Image, OpenOptions, Reference, RefuseAll,
    SnapshotSelector, Source,
};
use cowshed::storage::MemoryStorage;
use cowshed::{Error, Result};
use futures::Future;
use futures::executor::block_on;
use std::sync::Arc;

/// A disk of 64 KiB in an image with clusters of 64 KiB: refcount table and L1 table, an L2 table, room for data.
fn image(l2_entry: u64) -> Vec<u8> {
    let mut bytes = vec![0; 0x50000];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0, b"QFI\xfb\0\0\0\x03");
    put(20, &16_u32.to_be_bytes()); // cluster_bits
    put(24, &0x10000_u64.to_be_bytes()); // size
    put(36, &1_u32.to_be_bytes()); // l1_size
    put(40, &0x20000_u64.to_be_bytes()); // l1_table_offset
    put(48, &0x10000_u64.to_be_bytes()); // refcount_table_offset
    put(56, &1_u32.to_be_bytes()); // refcount_table_clusters
    put(96, &4_u32.to_be_bytes()); // refcount_order
    put(100, &104_u32.to_be_bytes()); // header_length
    put(0x20000, &0x8000_0000_0003_0000_u64.to_be_bytes());
    put(0x30000, &l2_entry.to_be_bytes());
    bytes
}

fn source(bytes: Vec<u8>) -> Source<Arc<MemoryStorage>> {
    Source {
        storage: Arc::new(MemoryStorage::new(bytes)),
        format: Format::Qcow2,
        location: "image.qcow2".into(),
        identity: Some(Identity(1, 1)),
    }
}

async fn read(bytes: Vec<u8>) -> Result<Vec<u8>> {
    let gate = RefuseAll::default();
    let image = Image::open(source(bytes), &gate, OpenOptions::default()).await?.image;
    let mut read = vec![0xa5; 0x10000];
    image.read_at(&mut read, 0).await?;
    Ok(read)
}

#[track_caller]
fn assert_corrupt<T: std::fmt::Debug>(result: Result<T>, code: &str, text: &str) {
    let error = result.unwrap_err();
    assert_eq!(error.to_string(), text);
    let Error::Corrupt(corrupt) = error else { panic!("{error:?}") };
    assert_eq!(corrupt.code(), code);
}

#[test]
fn image_without_fault_is_read() {
    let mut bytes = image(0x8000_0000_0004_0000);
    bytes[0x40000..].fill(7);
    assert_eq!(block_on(read(bytes)).unwrap(), vec![7; 0x10000]);
}

#[test]
fn l2_table_past_the_end_of_the_file_is_an_error_and_not_zeros() {
    let mut bytes = image(0);
    bytes.truncate(0x30000);
    let result = block_on(read(bytes));
    let error = result.unwrap_err();
    let Error::Corrupt(corrupt) = &error else { panic!("{error:?}") };
    assert_eq!((corrupt.code(), corrupt.structure()), ("past-end-of-file", "L2 table"));
    assert_eq!(corrupt.offset(), Some(0x30000));
    assert!(error.to_string().ends_with("end past the end of the file at 0x30000"), "{error}");
}

#[test]
fn entry_off_its_alignment_is_an_error_and_names_the_entry() {
    assert_corrupt(
        block_on(read(image(0x8000_0000_0004_0200))),
        "l2-entry-unaligned",
        "L2 entry 0 at 0x30000: host offset 0x40200 is not aligned to 0x10000",
    );
}

#[test]
fn bytes_that_are_no_stream_are_an_error() {
    // One sector of which the first block has the reserved type 3.
    let mut bytes = image(0x4000_0000_0004_0000);
    bytes[0x40000..0x40200].fill(0xff);
    assert_corrupt(
        block_on(read(bytes)),
        "stream-invalid",
        "compressed cluster at 0x40000: 512 bytes are not a stream of the image's compression type",
    );
}

#[test]
fn stream_that_ends_before_the_cluster_does_is_an_error() {
    // One final block, stored, of one byte.
    let mut bytes = image(0x4000_0000_0004_0000);
    bytes[0x40000..0x40006].copy_from_slice(&[1, 1, 0, 0xfe, 0xff, b'x']);
    assert_corrupt(
        block_on(read(bytes)),
        "stream-short",
        "compressed cluster at 0x40000: stream within 512 bytes ends before it has made a cluster of 65536",
    );
}

/// Answers every name with the same file.
struct SameFile(Vec<u8>);

impl Gate for SameFile {
    type Storage = Arc<MemoryStorage>;

    async fn open(&self, _: &Reference<'_>) -> Result<Answer<Arc<MemoryStorage>>> {
        Ok(Answer::Open(source(self.0.clone())))
    }
}

#[test]
fn image_that_is_its_own_backing_file_is_an_error() {
    let mut bytes = image(0);
    // The name behind the mark that ends the extensions.
    bytes[8..16].copy_from_slice(&0x80_u64.to_be_bytes());
    bytes[16..20].copy_from_slice(&11_u32.to_be_bytes());
    bytes[0x80..0x8b].copy_from_slice(b"image.qcow2");
    let opened =
        block_on(Image::open(source(bytes.clone()), &SameFile(bytes), OpenOptions::default()));
    assert_corrupt(
        opened.map(|_| ()),
        "chain-loop",
        "backing chain: layer 1 is the same file as a layer above it",
    );
}

#[test]
fn encrypted_clusters_are_not_given_out_as_they_are() {
    let mut bytes = image(0x8000_0000_0004_0000);
    bytes[35] = 1; // crypt_method: AES
    let error = block_on(read(bytes)).unwrap_err();
    assert!(matches!(error, Error::KeyRequired { method: "AES" }), "{error:?}");
}

#[test]
fn a_passphrase_is_of_use_where_there_are_ciphers_and_refused_elsewhere() {
    let mut bytes = image(0x8000_0000_0004_0000);
    bytes[35] = 1; // crypt_method: AES
    let mut options = OpenOptions::default();
    options.key = Some("open sesame".into());
    let opened = block_on(Image::open(source(bytes), &RefuseAll::default(), options));
    match opened {
        Ok(opened) if cfg!(feature = "encryption") => {
            let mut read = [0; 512];
            block_on(opened.image.read_at(&mut read, 0)).unwrap();
            assert_ne!(read, [0; 512], "what lies in the file is given out as it is");
        }
        Err(Error::Unsupported(unsupported)) if cfg!(not(feature = "encryption")) => {
            assert_eq!(unsupported.code(), "encryption");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn snapshot_of_a_disk_of_almost_all_bytes_has_no_vm_state() {
    // The L1 table of the active state, and a disk size that no table covers.
    let mut bytes = image(0x8000_0000_0004_0000);
    bytes[0x40000..].fill(7);
    bytes.resize(0x60000, 0);
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(60, &1_u32.to_be_bytes()); // nb_snapshots
    put(64, &0x50000_u64.to_be_bytes()); // snapshots_offset
    put(0x50000, &0x20000_u64.to_be_bytes()); // l1_table_offset
    put(0x50008, &1_u32.to_be_bytes()); // l1_size
    put(0x5000c, &1_u16.to_be_bytes()); // id_str_size
    put(0x50024, &16_u32.to_be_bytes()); // extra_data_size
    put(0x50030, &u64::MAX.to_be_bytes()); // disk_size
    put(0x50038, b"1");
    let mut options = OpenOptions::default();
    options.snapshot = Some(SnapshotSelector::Id(b"1".to_vec()));
    block_on(async {
        let gate = RefuseAll::default();
        let image = Image::open(source(bytes), &gate, options).await.unwrap().image;
        assert_eq!(image.virtual_size(), u64::MAX / 512 * 512);
        let mut state = [0xa5; 16];
        let error = image.read_vm_state_at(&mut state, 0).await.unwrap_err();
        assert!(matches!(error, Error::OutOfBounds { .. }), "{error:?}");
        let mut last = [0xa5; 512];
        image.read_at(&mut last, image.virtual_size() - 512).await.unwrap();
        assert_eq!(last, [0; 512]);
        let rest = image.map(0x10000, image.virtual_size() - 0x10000).await.unwrap();
        assert_eq!(rest.kind, ExtentKind::Unallocated { host: None });
        assert_eq!(rest.len, image.virtual_size() - 0x10000);
    });
}

#[test]
fn map_of_a_table_that_is_named_again_and_again_lets_others_run() {
    // 8192 times the same L2 table, all of it zero clusters: one extent, 16 look-ups for each of its slices.
    const TABLES: u64 = 8192;
    let mut bytes = image(0);
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    let size = TABLES << 29;
    put(24, &size.to_be_bytes());
    put(36, &u32::try_from(TABLES).unwrap().to_be_bytes()); // l1_size
    for entry in 0..8192 {
        put(0x20000 + entry * 8, &0x8000_0000_0003_0000_u64.to_be_bytes());
        put(0x30000 + entry * 8, &1_u64.to_be_bytes());
    }
    block_on(async {
        let gate = RefuseAll::default();
        let image = Image::open(source(bytes), &gate, OpenOptions::default()).await.unwrap().image;
        let map = image.map(0, size);
        futures::pin_mut!(map);
        let mut turns = 0;
        let extent = futures::future::poll_fn(|context| {
            turns += 1;
            map.as_mut().poll(context)
        });
        let extent = extent.await.unwrap();
        assert_eq!((extent.kind, extent.len), (ExtentKind::Zero { host: None }, size));
        assert!(turns > 100, "{turns} turns");
    });
}

#[test]
fn tables_far_from_each_other_are_found_by_the_map() {
    // Of 8192 L2 tables there are three; each maps its first cluster to zeros.
    const COVERAGE: u64 = 512 << 20;
    for tables in [[0, 1, 8191], [1023, 1024, 1025], [1024, 2049, 8190], [5, 4000, 6000]] {
        let mut bytes = image(1);
        let size = COVERAGE * 8192;
        bytes[24..32].copy_from_slice(&size.to_be_bytes());
        bytes[36..40].copy_from_slice(&8192_u32.to_be_bytes()); // l1_size
        bytes[0x20000..0x30000].fill(0);
        for table in tables {
            bytes[0x20000 + table * 8..][..8].copy_from_slice(&0x30000_u64.to_be_bytes());
        }
        block_on(async {
            let gate = RefuseAll::default();
            let image =
                Image::open(source(bytes), &gate, OpenOptions::default()).await.unwrap().image;
            // From within a cluster, and from its start.
            for offset in [0, 12345] {
                let mut extents = image.extents(offset, size - offset).unwrap();
                let (mut found, mut end) = (Vec::new(), offset);
                while let Some(extent) = extents.next().await.unwrap() {
                    assert_eq!(extent.offset, end);
                    end += extent.len;
                    if matches!(extent.kind, ExtentKind::Zero { .. }) {
                        found.push(extent.offset - extent.offset % COVERAGE);
                    }
                }
                assert_eq!(end, size);
                let expected = tables.map(|table| table as u64 * COVERAGE);
                assert_eq!(found, expected);
            }
        });
    }
}
