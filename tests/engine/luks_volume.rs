//! LUKS volumes as storages: what is written to the disk is encrypted in the file and comes back, what QEMU has made opens,
//! and a header by a stranger is refused with its place and value.
//!
//! The fear beside wrong bytes: a creation that ends in the middle leaves something that opens, and shows noise as a disk.

use std::sync::Arc;

use cowshed::Error;
use cowshed::crypt::{Entropy, Iterations, LuksArea, LuksScheme, Secret};
use cowshed::format::LuksHeader;
use cowshed::image::{
    Image, KeyAddition, KeyErasure, LuksVolume, OpenOptions, Preallocation, RefuseAll, Source,
    WriteOptions, create_luks_volume,
};
use cowshed::sim::{Executor, Failure, Faults, SimStorage, cut};
use cowshed::storage::{Buf, MemoryStorage, SendStorage as _, StorageExtentKind};
use futures::executor::block_on;

use crate::support::qemu;
use crate::support::seeds::for_each_seed;

const SIZE: u64 = 1 << 20;
/// Where the payload of a volume with two keys of 256 bits begins.
const PAYLOAD: u64 = 0x1f_9000;

/// Random enough for a test, and the same each time.
struct Repeatable(u64);

impl Entropy for Repeatable {
    fn fill(&mut self, bytes: &mut [u8]) -> cowshed::Result<()> {
        for byte in bytes {
            self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            *byte = (self.0 >> 56) as u8;
        }
        Ok(())
    }
}

type Disk = Arc<MemoryStorage>;

fn in_memory(bytes: Vec<u8>) -> Disk {
    Arc::new(MemoryStorage::new(bytes))
}

fn area() -> LuksArea {
    let scheme = LuksScheme::default();
    let (secret, iterations) = (Secret::from("open sesame"), Iterations::new(1000));
    LuksArea::new(&scheme, &secret, iterations, &mut Repeatable(7)).unwrap()
}

/// The bytes of a new volume.
fn made(preallocation: Preallocation) -> Vec<u8> {
    let storage = MemoryStorage::default();
    block_on(create_luks_volume(&storage, &area(), SIZE, preallocation)).unwrap();
    storage.into_vec()
}

fn with_key(secret: &str) -> OpenOptions {
    let mut options = OpenOptions::default();
    options.key = Some(Secret::from(secret));
    options
}

fn open(bytes: Vec<u8>) -> cowshed::Result<LuksVolume<Disk>> {
    block_on(LuksVolume::open(in_memory(bytes), &with_key("open sesame")))
}

fn buf(byte: u8, len: usize) -> Buf {
    let mut buf = Buf::zeroed(len);
    buf.fill(byte);
    buf
}

#[test]
fn what_is_written_is_encrypted_in_the_file_and_read_back() {
    let volume = open(made(Preallocation::Off)).unwrap();
    block_on(async {
        assert_eq!(volume.len().await.unwrap(), SIZE);
        let written = volume.write_at(buf(7, 4096), 8192).await.unwrap();
        assert!(written.iter().all(|&byte| byte == 7), "the buffer comes back as it was");
        volume.write_zeroes(SIZE - 1024, 1024).await.unwrap();
        let read = volume.read_at(buf(1, 4096), 8192).await.unwrap();
        assert!(read.iter().all(|&byte| byte == 7));
        // Behind the end there are zeros, and what is in the file there is nothing.
        let read = volume.read_at(buf(1, 4096), SIZE - 1024).await.unwrap();
        assert!(read.iter().all(|&byte| byte == 0));
        let in_file = volume.storage().read_at(buf(1, 1024), PAYLOAD + SIZE - 1024).await.unwrap();
        assert!(in_file.iter().any(|&byte| byte != 0), "zeros are encrypted");
        let in_file = volume.storage().read_at(buf(1, 4096), PAYLOAD + 8192).await.unwrap();
        assert!(in_file.iter().any(|&byte| byte != 7));
        // A discard tells nothing, and loses nothing.
        volume.discard(8192, 4096).await.unwrap();
        assert!(volume.read_at(buf(1, 4096), 8192).await.unwrap().iter().all(|&byte| byte == 7));
    });
}

#[test]
fn the_disk_is_whole_sectors_of_data() {
    let volume = open(made(Preallocation::Off)).unwrap();
    assert_eq!(volume.limits().request_alignment, 512);
    block_on(async {
        let error = volume.write_at(buf(1, 100), 0).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
        let error = volume.read_at(buf(1, 512), 100).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
        let extent = volume.extent_at(512, 4 * SIZE).await.unwrap();
        assert_eq!((extent.kind, extent.len), (StorageExtentKind::Data, SIZE - 512));
        let extent = volume.extent_at(SIZE, 512).await.unwrap();
        assert_eq!(extent.kind, StorageExtentKind::Hole);
        volume.set_len(2 * SIZE).await.unwrap();
        assert_eq!(volume.storage().len().await.unwrap(), PAYLOAD + 2 * SIZE);
        assert_eq!(volume.len().await.unwrap(), 2 * SIZE);
        // Of a sector that the file ends in, what is missing is zeros that are decrypted.
        volume.storage().set_len(PAYLOAD + 700).await.unwrap();
        assert_eq!(volume.len().await.unwrap(), 1024);
    });
}

#[test]
fn volumes_of_qemus_hold_images_that_both_read() {
    let dir = tempfile::tempdir().unwrap();
    let secret = ["--object", "secret,id=s,data=open sesame"];
    let create = ["create", "-q", "-f", "luks", "-o", "key-secret=s,iter-time=10", "x", "1M"];
    qemu::img(dir.path(), [&create[..1], &secret, &create[1..]].concat());
    let path = dir.path().join("x");
    let volume = open(std::fs::read(&path).unwrap()).unwrap();
    let volume = Arc::new(volume);
    block_on(async {
        let mut options = OpenOptions::default();
        options.write = Some(WriteOptions::default());
        let source = Source::raw(Arc::clone(&volume), "x");
        let image = Image::open(source, &RefuseAll::new(), options).await.unwrap().image;
        // Parts of sectors, next to each other.
        image.write_at(&[5; 700], 100).await.unwrap();
        image.write_at(&[6; 700], 800).await.unwrap();
        let mut read = [0; 1400];
        image.read_at(&mut read, 100).await.unwrap();
        assert!(read[..700] == [5; 700] && read[700..] == [6; 700]);
        image.close().await.unwrap();
    });
    std::fs::write(&path, volume.storage().to_vec()).unwrap();
    let opts = "driver=luks,key-secret=s,file.filename=x";
    let convert = ["convert", "-O", "raw", "--image-opts", opts, "x.raw"];
    qemu::img(dir.path(), [&convert[..1], &secret, &convert[1..]].concat());
    let plain = std::fs::read(dir.path().join("x.raw")).unwrap();
    assert!(plain[100..800] == [5; 700] && plain[800..1500] == [6; 700]);
}

#[test]
fn without_the_key_there_are_the_header_and_the_length() {
    let storage = in_memory(made(Preallocation::Full));
    let volume = block_on(LuksVolume::open(Arc::clone(&storage), &OpenOptions::default())).unwrap();
    assert!(volume.is_locked());
    assert_eq!(volume.header().payload_offset, PAYLOAD);
    assert_eq!(block_on(volume.len()).unwrap(), SIZE);
    let text = "guest data is encrypted with LUKS, and no passphrase was given";
    let error = block_on(volume.read_at(buf(0, 512), 0)).unwrap_err();
    assert_eq!(error.to_string(), text);
    let error = block_on(volume.write_at(buf(0, 512), 0)).unwrap_err();
    assert_eq!(error.to_string(), text);
    let error = block_on(LuksVolume::open(storage, &with_key("open"))).unwrap_err();
    assert!(matches!(error, Error::WrongKey), "{error}");
}

#[test]
fn passphrases_of_a_volume_are_added_and_erased() {
    let mut bytes = made(Preallocation::Off);
    let mut entropy = Repeatable(3);
    let volume = open(bytes).unwrap();
    let secret = Secret::from;
    block_on(async {
        let addition = KeyAddition::new(secret("open sesame"), secret("second"), 1000);
        assert_eq!(volume.add_key(&addition, &mut entropy).await.unwrap(), 1);
        let addition = KeyAddition::new(secret("wrong"), secret("third"), 1000);
        let error = volume.add_key(&addition, &mut entropy).await.unwrap_err();
        assert!(matches!(error, Error::WrongKey));
        let mut erasure = KeyErasure::default();
        erasure.slot = Some(0);
        volume.erase_keys(&erasure, &mut entropy).await.unwrap();
        erasure.slot = Some(1);
        let error = volume.erase_keys(&erasure, &mut entropy).await.unwrap_err();
        assert!(error.to_string().contains("the only active keyslot 1"), "{error}");
    });
    bytes = volume.storage().to_vec();
    assert!(matches!(open(bytes.clone()), Err(Error::WrongKey)));
    block_on(LuksVolume::open(in_memory(bytes), &with_key("second"))).unwrap();
}

/// Asserts that a volume that was changed is refused, passphrase or not.
#[track_caller]
fn assert_refused(change: impl FnOnce(&mut Vec<u8>), code: &str, text: &str) {
    let mut bytes = made(Preallocation::Off);
    change(&mut bytes);
    for options in [OpenOptions::default(), with_key("open sesame")] {
        let opened = block_on(LuksVolume::open(in_memory(bytes.clone()), &options));
        let error = opened.unwrap_err();
        let found = match &error {
            Error::Corrupt(corrupt) => corrupt.code(),
            Error::Unsupported(unsupported) => unsupported.code(),
            _ => panic!("{error}"),
        };
        assert_eq!((found, &*error.to_string()), (code, text));
    }
}

#[test]
fn a_header_that_breaks_a_rule_is_refused_with_its_place_and_value() {
    let put = |at: usize, value: u32| {
        move |bytes: &mut Vec<u8>| bytes[at..][..4].copy_from_slice(&value.to_be_bytes())
    };
    let cut = |len: usize| move |bytes: &mut Vec<u8>| bytes.truncate(len);
    let text = "crypto header at 0x0: LUKS header has 100 bytes, 592 are needed";
    assert_refused(cut(100), "luks-truncated", text);
    let text = "crypto header at 0x0: its 0x1f9000 bytes end past the end of the file at 0x1000";
    assert_refused(cut(0x1000), "past-end-of-file", text);
    let text = "crypto header at 0x0: LUKS header does not start with its magic";
    assert_refused(put(0, 0), "luks-magic", text);
    let text = "crypto header at 0x0: LUKS version 2 is not supported";
    assert_refused(|bytes| bytes[7] = 2, "luks-version", text);
    let text = "crypto header at 0x0: payload at 0x200 overlaps the LUKS header";
    assert_refused(put(104, 1), "luks-payload-offset", text);
    let text =
        "crypto header at 0x0: its 0x1fffffffe00 bytes end past the end of the file at 0x2f9000";
    assert_refused(put(104, u32::MAX), "past-end-of-file", text);
    let text =
        "key slot 2 at 0x0: key material up to 0x2000003e600 overlaps the payload at 0x1f9000";
    assert_refused(put(248 + 96, u32::MAX), "luks-slot-in-payload", text);
}

#[test]
fn a_volume_cannot_ask_for_hours() {
    for (at, place) in [(164, "crypto header"), (212, "key slot 0")] {
        let mut bytes = made(Preallocation::Off);
        bytes[at..at + 4].copy_from_slice(&u32::MAX.to_be_bytes());
        let error = open(bytes.clone()).unwrap_err();
        let limit = "key derivation of 4294967295 iterations: the limit is 40000000";
        assert_eq!(error.to_string(), format!("{place} at 0x0: {limit}"));
        block_on(LuksVolume::open(in_memory(bytes), &OpenOptions::default())).unwrap();
    }
}

#[test]
fn a_creation_that_ends_early_leaves_no_volume_or_a_whole_one() {
    let (area, new) = (area(), made(Preallocation::Off));
    let mut old = new.clone();
    // Another volume, which its own passphrase opens.
    old[100..].fill(1);
    let judge = |found: &[u8], old: &[u8]| {
        let whole = found == new;
        assert!(whole || found == old || !LuksHeader::begins(found), "a part of a volume");
        whole
    };
    let (mut whole, mut none) = (0, 0);
    for_each_seed(60, |seed| {
        let old = if seed % 2 == 0 { Vec::new() } else { old.clone() };
        let executor = Executor::new(seed);
        let disk = SimStorage::new(&executor, old.clone(), Faults::none());
        let created = create_luks_volume(&disk, &area, SIZE, Preallocation::Off);
        let ended = executor.run_until(created, || {
            match judge(&disk.crash_state().to_vec(), &old) {
                true => whole += 1,
                false => none += 1,
            }
            false
        });
        ended.unwrap().unwrap().unwrap();
        assert!(disk.crash_state().to_vec() == new, "it is durable when it has returned");
    });
    assert!(whole > 0 && none > 0);
    for number in 0.. {
        let executor = Executor::new(number);
        let disk = SimStorage::new(&executor, old.clone(), Faults::none());
        let created = create_luks_volume(&disk, &area, SIZE, Preallocation::Off);
        let ended = executor.run(cut(created, number)).unwrap();
        judge(&disk.crash_state().to_vec(), &old);
        if let Some(ended) = ended {
            ended.unwrap();
            break;
        }
    }
    for number in 0.. {
        let executor = Executor::new(number);
        let disk = SimStorage::new(&executor, old.clone(), Faults::none());
        disk.fail_request(number, if number % 2 == 0 { Failure::Io } else { Failure::Losing });
        let ended =
            executor.run(create_luks_volume(&disk, &area, SIZE, Preallocation::Off)).unwrap();
        judge(&disk.to_vec(), &old);
        judge(&disk.crash_state().to_vec(), &old);
        if disk.requests() <= number {
            ended.unwrap();
            break;
        }
        ended.unwrap_err();
    }
}
