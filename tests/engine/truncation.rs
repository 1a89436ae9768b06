//! The fear: a file that was cut short reads as zeros where its tables are missing.
//!
//! Small images of every kind, cut at every 512 bytes: what can still be read is what was there, or it is an error. The
//! data of a cluster that the file does not have may read as zeros, as QEMU reads it; a cluster whose table is missing
//! may not, and neither may a compressed one.

use crate::support::matrix::{Backing, Case, DataFile};
use crate::support::{TestImage, cases};
use cowshed::image::check::{CheckOptions, check_storage};
use cowshed::image::{Answer, Format, Gate, Image, OpenOptions, Reference, Source};
use cowshed::storage::MemoryStorage;
use cowshed::{Error, Result};
use futures::executor::block_on;
use std::sync::Arc;

/// The folder of the image, read into memory.
struct Folder<'a>(&'a TestImage);

impl Gate for Folder<'_> {
    type Storage = Arc<MemoryStorage>;

    async fn open(&self, reference: &Reference<'_>) -> Result<Answer<Arc<MemoryStorage>>> {
        let name = std::str::from_utf8(reference.name).unwrap();
        let bytes = std::fs::read(self.0.dir.path().join(name)).unwrap();
        let format = if name.ends_with(".qcow2") { Format::Qcow2 } else { Format::Raw };
        let source = Source { format, ..Source::raw(Arc::new(MemoryStorage::new(bytes)), name) };
        Ok(Answer::Open(source))
    }
}

/// What became of a cut image.
#[derive(Default)]
struct Tally {
    cuts: u64,
    refused: u64,
    right: u64,
    errors: u64,
    data_missing: u64,
}

/// Reads the whole disk in pieces, and holds each against the whole image.
fn read_cut(test: &TestImage, len: u64, tally: &mut Tally) {
    let mut bytes = test.file_bytes();
    bytes.truncate(len as usize);
    tally.cuts += 1;
    let storage = MemoryStorage::new(bytes.clone());
    let checked = block_on(check_storage(&storage, &CheckOptions::default(), &mut ()));
    let source = Source::qcow2(Arc::new(MemoryStorage::new(bytes)), "image.qcow2");
    let image = match block_on(Image::open(source, &Folder(test), OpenOptions::default())) {
        Ok(opened) => opened.image,
        Err(error) => {
            assert_told(&error);
            tally.refused += 1;
            return;
        }
    };
    let mut table_missing = false;
    let step = (test.reference.len() / 64).next_multiple_of(512).max(512);
    for (number, expected) in test.reference.chunks(step).enumerate() {
        let offset = (number * step) as u64;
        let mut found = vec![0xa5; expected.len()];
        match block_on(image.read_at(&mut found, offset)) {
            Err(error) => {
                assert_told(&error);
                tally.errors += 1;
                table_missing |=
                    matches!(&error, Error::Corrupt(what) if what.structure() == "L2 table");
            }
            Ok(()) if found == expected => tally.right += 1,
            Ok(()) => {
                assert_data_missing(test, &image, len, offset, expected, &found);
                tally.data_missing += 1;
            }
        }
    }
    // A table that is missing is found by the check. Of data, the last cluster may be missing in part.
    if table_missing {
        let report = checked.unwrap();
        assert!(!report.is_clean(), "cut at {len:#x}: {report:?}");
    }
}

/// An error of the image: with a place.
#[track_caller]
fn assert_told(error: &Error) {
    match error {
        Error::Corrupt(corrupt) => assert!(corrupt.offset().is_some(), "{error}"),
        Error::Unsupported(unsupported) => assert!(unsupported.offset().is_some(), "{error}"),
        _ => panic!("{error:?}"),
    }
}

/// Bytes that differ are zeros of a cluster whose data the file does not have, and the map says so.
fn assert_data_missing(
    test: &TestImage,
    image: &Image<Arc<MemoryStorage>>,
    len: u64,
    offset: u64,
    expected: &[u8],
    found: &[u8],
) {
    use cowshed::image::ExtentKind;
    let mut at = 0;
    while at < expected.len() {
        let extent = block_on(image.map(offset + at as u64, (expected.len() - at) as u64)).unwrap();
        let end = at + (extent.len as usize).min(expected.len() - at);
        let there = match extent.kind {
            ExtentKind::Data { host, .. } if extent.depth == 0 => {
                at + (len.saturating_sub(host.get()) as usize).min(end - at)
            }
            _ => end,
        };
        let context = format!("{}, cut at {len:#x}: {extent:?}", test.description);
        assert_eq!(expected[at..there], found[at..there], "{context}");
        assert!(found[there..end].iter().all(|byte| *byte == 0), "{context}");
        at = end;
    }
}

/// One small case of each kind, by clusters of 512 bytes to 64 KiB.
fn kinds() -> Vec<Case> {
    let all = cases();
    let of = |wanted: &dyn Fn(&Case) -> bool, count: usize| -> Vec<Case> {
        all.iter().filter(|case| wanted(case)).take(count).copied().collect()
    };
    let small = |case: &Case| case.cluster_size == 512;
    let mut kinds = of(&|case| small(case) && case.backing == Backing::None, 9);
    kinds.extend(of(&|case| small(case) && case.backing == Backing::Chain, 2));
    kinds.extend(of(&|case| small(case) && case.backing == Backing::RawShorter, 1));
    kinds.extend(of(&|case| small(case) && case.data_file == DataFile::External, 1));
    kinds.extend(of(&|case| case.cluster_size == 4096 && case.snapshots == 2, 3));
    kinds.extend(of(&|case| case.extended_l2 && case.cluster_size == 16384, 2));
    kinds.extend(of(&|case| case.cluster_size == 65536 && case.snapshots == 1, 2));
    kinds
}

#[test]
fn image_cut_at_any_sector_reads_right_or_not_at_all() {
    let kinds = kinds();
    assert!(kinds.len() >= 20, "{} kinds", kinds.len());
    let mut all = Tally::default();
    for test in crate::support::images(kinds) {
        let whole = std::fs::metadata(&test.path).unwrap().len();
        let sectors = whole.div_ceil(512);
        // Every sector of the small ones; of the others as many, spread by a step that meets every place in a cluster.
        let step = (sectors / 512) | 1;
        for sector in (0..sectors).step_by(step as usize) {
            read_cut(&test, sector * 512, &mut all);
        }
    }
    let Tally { cuts, refused, right, errors, data_missing } = all;
    println!(
        "{cuts} cuts: {refused} refused; pieces: {right} right, {errors} errors, {data_missing} with data missing"
    );
    assert!(cuts > 5000 && refused > 100 && right > 100_000 && errors > 10_000);
}
