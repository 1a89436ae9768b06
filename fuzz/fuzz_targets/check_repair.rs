//! Any file, repaired: nothing panics, hangs or takes memory without bound, and a repair is one.
//!
//! The oracles: what a repair says is left is what a check then finds; no leaks are left; a second repair changes nothing;
//! what the guest could read before, it can read after, and reads the same.

#![no_main]

use std::io;

use cowshed::image::check::{CheckOptions, Repair, check_storage, repair_storage};
use cowshed::image::{Answer, Gate, Image, OpenOptions, Reference, ReferenceKind, Source};
use cowshed::storage::{Buf, MemoryStorage, SendStorage};
use futures::executor::block_on;
use libfuzzer_sys::fuzz_target;

/// No repair of a small image needs more.
const LEN_MAX: u64 = 8 << 20;
/// How much is read from each place, in bytes, and in which pieces.
const PLACE_LEN: u64 = 64 << 10;
const PIECE_LEN: u64 = 512;

fuzz_target!(|data: &[u8]| block_on(run(data)));

/// Memory that does not become long.
struct Short(MemoryStorage);

fn fits(end: Option<u64>) -> io::Result<()> {
    match end {
        Some(end) if end <= LEN_MAX => Ok(()),
        _ => Err(io::ErrorKind::FileTooLarge.into()),
    }
}

impl SendStorage for Short {
    async fn read_at(&self, buf: Buf, offset: u64) -> io::Result<Buf> {
        SendStorage::read_at(&self.0, buf, offset).await
    }

    async fn write_at(&self, buf: Buf, offset: u64) -> io::Result<Buf> {
        fits(offset.checked_add(buf.len() as u64))?;
        SendStorage::write_at(&self.0, buf, offset).await
    }

    async fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        fits(offset.checked_add(len))?;
        SendStorage::write_zeroes(&self.0, offset, len).await
    }

    async fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        SendStorage::discard(&self.0, offset, len).await
    }

    async fn flush(&self) -> io::Result<()> {
        SendStorage::flush(&self.0).await
    }

    async fn len(&self) -> io::Result<u64> {
        SendStorage::len(&self.0).await
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        fits(Some(len))?;
        SendStorage::set_len(&self.0, len).await
    }

    fn try_read_at(&self, buf: &mut [u8], offset: u64) -> Option<io::Result<()>> {
        SendStorage::try_read_at(&self.0, buf, offset)
    }
}

/// Backing files read as zeros, data files are refused.
struct NoOthers;

impl Gate for NoOthers {
    type Storage = MemoryStorage;

    async fn open(&self, reference: &Reference<'_>) -> cowshed::Result<Answer<MemoryStorage>> {
        match reference.kind {
            ReferenceKind::BackingFile => Ok(Answer::Zeros),
            _ => Err(reference.refused("there is no other file")),
        }
    }
}

async fn run(data: &[u8]) {
    let Some((choice, data)) = data.split_last() else { return };
    let what = if choice & 1 == 0 { Repair::All } else { Repair::Leaks };
    let options = CheckOptions::default();
    let before = disk(data).await;
    let storage = Short(MemoryStorage::new(data.to_vec()));
    let report = match repair_storage(&storage, what, &options, &mut ()).await {
        Ok(report) => report,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let after = storage.0.to_vec();
    let checked = check_storage(&storage, &options, &mut ()).await.expect("it was checked before");
    if report.gave_up {
        assert!(report.check.check_errors > 0, "it gave up without a reason");
        return;
    }
    assert!(checked.corruptions <= report.check.corruptions, "{checked:?} {report:?}");
    assert!(what == Repair::Leaks || checked.leaks == 0, "{checked:?} {report:?}");
    let now = disk(&after).await;
    for (number, (before, now)) in before.iter().zip(&now).enumerate() {
        assert!(before.is_none() || before == now, "piece {number} has changed");
    }
    assert!(before.len() <= now.len(), "the disk cannot be opened any more");
    let again = repair_storage(&storage, what, &options, &mut ()).await.expect("it was repaired");
    assert!(storage.0.to_vec() == after, "a second repair changes something: {again:?}");
}

/// Some of the disk's pieces, as far as they can be read.
async fn disk(data: &[u8]) -> Vec<Option<Vec<u8>>> {
    let source = Source::qcow2(MemoryStorage::new(data.to_vec()), "fuzz");
    let Ok(opened) = Image::open(source, &NoOthers, OpenOptions::default()).await else {
        return Vec::new();
    };
    let image = opened.image;
    let size = image.virtual_size();
    let mut pieces = Vec::new();
    for start in [0, size.saturating_sub(PLACE_LEN)] {
        let mut at = start;
        while at < size.min(start + PLACE_LEN) {
            let mut piece = vec![0; PIECE_LEN.min(size - at) as usize];
            pieces.push(image.read_at(&mut piece, at).await.is_ok().then_some(piece));
            at += PIECE_LEN;
        }
    }
    pieces
}
