//! Encrypted images: what QEMU encrypts the engine reads, what the engine encrypts QEMU reads, over ciphers, modes,
//! generators and hashes, and in turns on one image. A guest's bytes, which the test keeps, are the judge.
//!
//! The fear beside wrong bytes: a part of a sector cannot be written by itself, so two writes into one sector could lose
//! one of them; zeros in the file are no zeros on the disk; and a cluster that moves has to be encrypted again.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cowshed::Error;
use cowshed::crypt::{
    CipherAlgorithm, CipherMode, Entropy, HashAlgorithm, Iterations, IvGenerator, LuksArea,
    LuksScheme, Secret,
};
use cowshed::image::{
    Answer, CreateOptions, Encryption, ExtentKind, Gate, Image, KeyAddition, KeyErasure, Locked,
    NewSnapshot, OpenOptions, Preallocation, Reference, RefuseAll, ResizeOptions, SnapshotSelector,
    Source, WriteOptions, ZeroMode, create,
};
use cowshed::storage::MemoryStorage;
use futures::executor::block_on;

use crate::support::qemu;

const SIZE: u64 = 4 << 20;
const SECRET: &str = "secret,id=s,data=open sesame";
const IMAGE: &str = "driver=qcow2,encrypt.key-secret=s,file.filename=image.qcow2";

/// A folder in memory, if there is one: QEMU waits for the disk again and again.
fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// An image in memory, which stays when the engine has closed it.
type Disk = Arc<MemoryStorage>;

fn in_memory(bytes: Vec<u8>) -> Disk {
    Arc::new(MemoryStorage::new(bytes))
}

fn secret() -> Secret {
    Secret::from("open sesame")
}

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

/// Options of QEMU's and the scheme that they mean.
fn schemes() -> Vec<(String, LuksScheme)> {
    let mut schemes = Vec::new();
    let mut add = |cipher: CipherAlgorithm,
                   mode: CipherMode,
                   generator: IvGenerator,
                   hash: HashAlgorithm| {
        let iv_hash = (generator == IvGenerator::Essiv).then_some(HashAlgorithm::Sha256);
        let scheme = LuksScheme { cipher, mode, iv_generator: generator, iv_hash, hash };
        let text = format!(
            "encrypt.cipher-alg={},encrypt.cipher-mode={},encrypt.ivgen-alg={},encrypt.hash-alg={}",
            cipher.name(),
            mode.name(),
            generator.name(),
            hash.name()
        );
        schemes.push((text, scheme));
    };
    use CipherAlgorithm::*;
    use CipherMode::*;
    use HashAlgorithm::*;
    use IvGenerator::*;
    // Each value of each option, and each pair of cipher and mode that is likely.
    add(Aes256, Xts, Plain64, Sha256);
    add(Aes128, Xts, Plain, Sha1);
    add(Aes192, Xts, Plain64, Sha224);
    add(Aes128, Cbc, Essiv, Sha512);
    add(Aes256, Cbc, Plain64, Ripemd160);
    add(Aes256, Ctr, Plain64, Sha384);
    add(Aes128, Ecb, Plain64, Sha256);
    add(Aes256, Xts, Essiv, Sha256);
    add(Serpent256, Xts, Plain64, Sha256);
    add(Serpent128, Cbc, Essiv, Sha256);
    add(Serpent192, Xts, Plain64, Sha256);
    add(Twofish256, Xts, Plain64, Sha256);
    add(Twofish128, Cbc, Plain, Sha256);
    add(Twofish192, Xts, Essiv, Sha256);
    add(Cast5128, Cbc, Plain64, Sha256);
    add(Cast5128, Ctr, Plain64, Sha1);
    schemes
}

/// An image that both sides work on, and what its disk holds.
struct Shared {
    dir: tempfile::TempDir,
    disk: Vec<u8>,
}

impl Shared {
    /// Made by QEMU, with these options beside those of encryption.
    fn by_qemu(encryption: &str, more: &str) -> Self {
        let dir = scratch();
        let options = format!("{encryption},encrypt.key-secret=s{more}");
        qemu::img(
            dir.path(),
            [
                "create",
                "-q",
                "-f",
                "qcow2",
                "--object",
                SECRET,
                "-o",
                &options,
                "image.qcow2",
                "4M",
            ],
        );
        Self { dir, disk: vec![0; SIZE as usize] }
    }

    /// Made by the engine.
    fn by_us(options: &CreateOptions) -> Self {
        let shared = Self { dir: scratch(), disk: vec![0; SIZE as usize] };
        let storage = MemoryStorage::default();
        block_on(create(&storage, None, options)).unwrap();
        std::fs::write(shared.path(), storage.into_vec()).unwrap();
        shared
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("image.qcow2")
    }

    fn bytes(&self) -> Vec<u8> {
        std::fs::read(self.path()).unwrap()
    }

    /// Writes of QEMU's: pattern, offset, length.
    fn qemu_writes(&mut self, writes: &[(u8, usize, usize)]) {
        let commands: Vec<String> = writes
            .iter()
            .flat_map(|(pattern, at, len)| {
                ["-c".to_owned(), format!("write -P {pattern} {at} {len}")]
            })
            .collect();
        let mut io = qemu::qemu_io();
        io.current_dir(self.dir.path()).args(["--object", SECRET, "--image-opts", IMAGE]);
        qemu::run(io.args(commands));
        for &(pattern, at, len) in writes {
            self.disk[at..at + len].fill(pattern);
        }
    }

    /// The engine opens it for writing, does something and puts it back.
    fn we<T>(&mut self, work: impl AsyncFnOnce(&Image<Disk>, &mut Vec<u8>) -> T) -> T {
        let storage = in_memory(self.bytes());
        let image = open(storage.clone(), Some(secret()), true).unwrap();
        let done = block_on(work(&image, &mut self.disk));
        block_on(image.close()).unwrap();
        drop(image);
        std::fs::write(self.path(), storage.to_vec()).unwrap();
        done
    }

    /// The engine writes, at any alignment.
    fn we_write(&mut self, writes: &[(u8, usize, usize)]) {
        self.we(async |image, disk| {
            for &(pattern, at, len) in writes {
                image.write_at(&vec![pattern; len], at as u64).await.unwrap();
                disk[at..at + len].fill(pattern);
            }
        });
    }

    /// Both read what the disk should hold, and QEMU finds nothing wrong.
    #[track_caller]
    fn must_be_right(&self, what: &str) {
        let image = open(in_memory(self.bytes()), Some(secret()), false).unwrap();
        assert!(
            read(&image, 0, SIZE as usize) == self.disk,
            "{what}: the engine reads other bytes"
        );
        // At odd places, too.
        for (at, len) in [(1, 1), (511, 2), (65_000, 1_300), (70_001, 131_072), (1 << 20, 777)] {
            assert!(
                read(&image, at as u64, len) == self.disk[at..at + len],
                "{what}: {len} at {at}"
            );
        }
        let dir = self.dir.path();
        qemu::img(dir, ["check", "-q", "--object", SECRET, "--image-opts", IMAGE]);
        qemu::img(
            dir,
            ["convert", "--object", SECRET, "--image-opts", IMAGE, "-O", "raw", "out.raw"],
        );
        let theirs = std::fs::read(dir.join("out.raw")).unwrap();
        assert!(theirs == self.disk, "{what}: QEMU reads other bytes");
    }
}

fn open(storage: Disk, key: Option<Secret>, writable: bool) -> cowshed::Result<Image<Disk>> {
    let mut options = OpenOptions::default();
    options.key = key;
    options.write = writable.then(WriteOptions::default);
    let gate = RefuseAll::new();
    block_on(Image::open(Source::qcow2(storage, "image"), &gate, options))
        .map(|opened| opened.image)
}

fn read(image: &Image<Disk>, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    block_on(image.read_at(&mut bytes, at)).unwrap();
    bytes
}

fn luks(scheme: &LuksScheme) -> Encryption {
    let area = LuksArea::new(scheme, &secret(), Iterations::new(1000), &mut Repeatable(7));
    Encryption::Luks(area.unwrap())
}

fn ours(encryption: Encryption) -> CreateOptions {
    let mut options = CreateOptions::new(SIZE);
    options.encryption = Some(encryption);
    options
}

/// In turns, at every alignment: whole clusters, parts of sectors, across clusters, over what the other one wrote.
fn take_turns(shared: &mut Shared, what: &str) {
    shared.qemu_writes(&[(1, 0, 65_536), (2, 100_000, 5_000), (3, 3 << 20, 200_000)]);
    shared.must_be_right(what);
    shared.we_write(&[(4, 10, 20), (5, 65_530, 700), (6, 1 << 20, 300_000), (7, 102_400, 512)]);
    shared.must_be_right(what);
    shared.qemu_writes(&[(8, 65_000, 2_000), (9, 2 << 20, 3)]);
    shared.we_write(&[(10, (2 << 20) + 3, 1), (11, (SIZE - 1) as usize, 1)]);
    shared.must_be_right(what);
}

/// Each side reads what the other one wrote, once.
fn exchange(shared: &mut Shared, what: &str) {
    shared.qemu_writes(&[(1, 0, 65_536), (2, 100_000, 5_000)]);
    shared.we_write(&[(4, 10, 20), (5, 65_530, 700), (6, 1 << 20, 100_000)]);
    shared.must_be_right(what);
}

#[test]
fn what_qemu_encrypts_we_read_and_write_with_every_algorithm() {
    // It takes QEMU seconds to find out how fast it is, for each image: a scheme with nothing new in it is left to the
    // other direction.
    let mut seen = BTreeSet::new();
    for (text, scheme) in schemes() {
        let names = [
            scheme.cipher.family(),
            scheme.mode.name(),
            scheme.iv_generator.name(),
            scheme.hash.name(),
        ];
        if names.map(|name| seen.insert(name)) == [false; 4] {
            continue;
        }
        let encryption = format!("encrypt.format=luks,encrypt.iter-time=10,{text}");
        exchange(&mut Shared::by_qemu(&encryption, ""), &text);
    }
}

#[test]
fn what_we_encrypt_qemu_reads_and_writes_with_every_algorithm() {
    for (text, scheme) in schemes() {
        exchange(&mut Shared::by_us(&ours(luks(&scheme))), &text);
    }
}

#[test]
fn legacy_encryption_goes_both_ways() {
    take_turns(&mut Shared::by_qemu("encrypt.format=aes", ""), "QEMU's");
    take_turns(&mut Shared::by_qemu("encryption=on", ",compat=0.10"), "QEMU's version 2");
    take_turns(&mut Shared::by_us(&ours(Encryption::Aes)), "ours");
}

#[test]
fn geometry_does_not_matter() {
    let luks = "encrypt.format=luks,encrypt.iter-time=10";
    for more in [",cluster_size=512", ",cluster_size=2M", ",extended_l2=on", ",compat=0.10"] {
        take_turns(&mut Shared::by_qemu(luks, more), more);
    }
}

#[test]
fn zeros_and_discards_and_snapshots_keep_the_disk_right() {
    let mut shared = Shared::by_qemu("encrypt.format=luks,encrypt.iter-time=10", "");
    shared.qemu_writes(&[(1, 0, SIZE as usize)]);
    // Clusters that a snapshot has are copied when they are written to: to another place, with another vector.
    let dir = shared.dir.path();
    qemu::img(dir, ["snapshot", "--object", SECRET, "--image-opts", "-c", "one", IMAGE]);
    shared.we_write(&[(2, 1_000, 100), (3, 200_000, 65_536)]);
    shared.must_be_right("after a snapshot");
    shared.we(async |image, disk| {
        for (at, len) in [(500, 10), (65_536, 65_536), (300_000, 100_000)] {
            image.write_zeroes_at(at, len, ZeroMode::KeepSpace).await.unwrap();
            disk[at as usize..(at + len) as usize].fill(0);
        }
        image.discard_at(1 << 20, 1 << 20).await.unwrap();
        disk[1 << 20..2 << 20].fill(0);
    });
    shared.must_be_right("after zeros");
    // Into clusters that have their space and read as zeros.
    shared.we_write(&[(4, 65_600, 10), (5, 310_000, 1_000)]);
    shared.must_be_right("over zeros");
}

#[test]
fn snapshots_and_their_vm_state_are_encrypted_too() {
    for encryption in [luks(&LuksScheme::default()), Encryption::Aes] {
        let mut shared = Shared::by_us(&ours(encryption));
        shared.we_write(&[(1, 0, 1 << 20), (2, 2 << 20, 100_000)]);
        let before = shared.disk.clone();
        shared.we(async |image, _| {
            // Parts of sectors, fitted into what is there.
            image.write_vm_state_at(&[7; 700], 100).await.unwrap();
            image.write_vm_state_at(&[8; 10], 300).await.unwrap();
            let mut new = NewSnapshot::new("one");
            new.vm_state_len = 800;
            image.create_snapshot(&new).await.unwrap();
            image.write_vm_state_at(&[9; 300], 350).await.unwrap();
        });
        shared.we_write(&[(3, 1_000, 100), (4, 200_000, 65_536), (5, (2 << 20) - 7, 20)]);
        shared.must_be_right("after a snapshot");
        shared.we(async |image, disk| {
            let one = SnapshotSelector::Name(b"one".to_vec());
            image.apply_snapshot(&one).await.unwrap();
            let mut state = [0; 800];
            image.read_vm_state_at(&mut state, 0).await.unwrap();
            let expected = [vec![0; 100], vec![7; 200], vec![8; 10], vec![7; 490]].concat();
            assert!(state[..] == expected, "VM state");
            disk.copy_from_slice(&before);
        });
        shared.must_be_right("after going back to it");
        shared.we_write(&[(6, 999, 3)]);
        shared.we(async |image, _| {
            let one = SnapshotSelector::Name(b"one".to_vec());
            image.delete_snapshot(&one).await.unwrap();
        });
        shared.must_be_right("after deleting it");
        let bytes = shared.bytes();
        let is_shown = bytes.windows(64).any(|it| it[0] > 0 && it[0] < 9 && it == [it[0]; 64]);
        assert!(!is_shown, "guest data is in the file in the clear");
    }
}

#[test]
fn settings_change_and_the_cipher_stays() {
    for encryption in [luks(&LuksScheme::default()), Encryption::Aes] {
        let mut shared = Shared::by_us(&ours(encryption));
        shared.we_write(&[(1, 0, 200_000)]);
        let storage = in_memory(shared.bytes());
        let image = open(storage.clone(), Some(secret()), false).unwrap();
        block_on(async {
            let mut settings = image.settings();
            settings.write = Some(WriteOptions::default());
            image.reconfigure(settings.clone()).await.unwrap();
            image.write_at(&[2; 1_000], 300).await.unwrap();
            settings.cache.cache_size = Some(1 << 20);
            image.reconfigure(settings.clone()).await.unwrap();
            image.write_at(&[3; 70_000], 1 << 20).await.unwrap();
            settings.write = None;
            image.reconfigure(settings).await.unwrap();
        });
        shared.disk[300..1_300].fill(2);
        shared.disk[1 << 20..(1 << 20) + 70_000].fill(3);
        assert!(read(&image, 0, SIZE as usize) == shared.disk);
        block_on(image.close()).unwrap();
        std::fs::write(shared.path(), storage.to_vec()).unwrap();
        shared.must_be_right("after changes of settings");
    }
}

#[test]
fn two_writes_into_one_sector_keep_both() {
    let shared = Shared::by_us(&ours(luks(&LuksScheme::default())));
    let image = open(in_memory(shared.bytes()), Some(secret()), true).unwrap();
    block_on(image.write_at(&[1; 65_536], 0)).unwrap();
    block_on(async {
        let (low, high) = ([2; 100], [3; 100]);
        let zeros = image.write_zeroes_at(200, 100, ZeroMode::KeepSpace);
        let (a, b, c) = futures::join!(image.write_at(&low, 0), image.write_at(&high, 100), zeros);
        a.and(b).and(c).unwrap();
    });
    let found = read(&image, 0, 512);
    let expected = [vec![2; 100], vec![3; 100], vec![0; 100], vec![1; 212]].concat();
    assert_eq!(found, expected);
}

#[test]
fn a_larger_disk_and_a_preallocated_one_read_as_zeros() {
    for preallocation in [Preallocation::Metadata, Preallocation::Falloc, Preallocation::Full] {
        for extended in [false, true] {
            let mut options = ours(luks(&LuksScheme::default()));
            (options.preallocation, options.extended_l2) = (preallocation, extended);
            let mut shared = Shared::by_us(&options);
            shared.must_be_right(&format!("{preallocation:?} {extended}"));
            shared.we_write(&[(1, 100, 1_000), (2, 1 << 20, 65_536)]);
            shared.must_be_right(&format!("written {preallocation:?} {extended}"));
        }
        let mut options = ours(luks(&LuksScheme::default()));
        options.size = 1 << 20;
        let mut shared = Shared::by_us(&options);
        shared.we(async |image, _| {
            let mut resize = ResizeOptions::default();
            resize.preallocation = preallocation;
            image.resize(SIZE, &resize).await.unwrap();
        });
        shared.we_write(&[(1, 100, 1_000), (2, 2 << 20, 65_000)]);
        shared.must_be_right(&format!("grown {preallocation:?}"));
    }
}

#[test]
fn the_layout_of_a_new_image_is_that_of_qemu() {
    let theirs = Shared::by_qemu("encrypt.format=luks,encrypt.iter-time=10", "").bytes();
    let ours = Shared::by_us(&ours(luks(&LuksScheme::default()))).bytes();
    assert_eq!(ours.len(), theirs.len());
    let area = 0x40000;
    // The image's header, tables and refcounts, and of LUKS's header all that is not random or measured.
    assert!(ours[..area] == theirs[..area], "metadata differs");
    for range in [0..112, 208..212, 248..592] {
        let range = area + range.start..area + range.end;
        assert_eq!(ours[range.clone()], theirs[range]);
    }
}

#[test]
fn a_wrong_passphrase_and_a_damaged_slot_are_one_error() {
    let bytes = Shared::by_us(&ours(luks(&LuksScheme::default()))).bytes();
    let wrong = open(in_memory(bytes.clone()), Some("open".into()), false).unwrap_err();
    let mut damaged = bytes.clone();
    damaged[0x40000 + 4096 + 1000] ^= 1;
    let tampered = open(in_memory(damaged), Some(secret()), false).unwrap_err();
    for error in [wrong, tampered] {
        assert!(matches!(error, Error::WrongKey), "{error}");
        assert_eq!(error.to_string(), "Invalid password, cannot unlock any keyslot");
    }
}

#[test]
fn without_a_passphrase_the_metadata_is_there_and_the_disk_is_not() {
    let mut shared = Shared::by_us(&ours(luks(&LuksScheme::default())));
    shared.we_write(&[(1, 0, 65_536)]);
    let image = open(in_memory(shared.bytes()), None, true).unwrap();
    let extent = block_on(image.map(0, SIZE)).unwrap();
    assert!(matches!(extent.kind, ExtentKind::Data { .. }));
    let mut buf = [0; 512];
    let errors = [
        block_on(image.read_at(&mut buf, 0)).unwrap_err(),
        block_on(image.write_at(&buf, 0)).unwrap_err(),
    ];
    for error in errors {
        let text = "guest data is encrypted with LUKS, and no passphrase was given";
        assert_eq!(error.to_string(), text);
    }
}

/// Opens what is below, and knows its passphrase.
struct Below(Disk);

impl Gate for Below {
    type Storage = Disk;

    async fn open(&self, _: &Reference<'_>) -> cowshed::Result<Answer<Disk>> {
        Ok(Answer::Open(Source::qcow2(self.0.clone(), "base")))
    }

    async fn key(&self, locked: &Locked<'_>) -> cowshed::Result<Option<Secret>> {
        assert_eq!((locked.method, locked.location), ("LUKS", Path::new("base")));
        Ok((locked.depth == 1).then(secret))
    }
}

#[test]
fn each_layer_has_a_passphrase_of_its_own() {
    let mut base = Shared::by_us(&ours(luks(&LuksScheme::default())));
    base.we_write(&[(1, 1_000, 100_000)]);
    let area = LuksArea::new(
        &LuksScheme::default(),
        &"other".into(),
        Iterations::new(1000),
        &mut Repeatable(8),
    );
    let mut options = ours(Encryption::Luks(area.unwrap()));
    options.backing_file = Some(b"base".to_vec());
    options.backing_format = Some(b"qcow2".to_vec());
    let overlay = in_memory(Vec::new());
    block_on(create(&*overlay, None, &options)).unwrap();
    let mut options = OpenOptions::default();
    options.key = Some("other".into());
    options.write = Some(WriteOptions::default());
    let gate = Below(in_memory(base.bytes()));
    let image =
        block_on(Image::open(Source::qcow2(overlay, "overlay"), &gate, options)).unwrap().image;
    block_on(image.write_at(&[2; 10], 2_000)).unwrap();
    let mut expected = base.disk[..65_536].to_vec();
    expected[2_000..2_010].fill(2);
    assert!(read(&image, 0, 65_536) == expected);
}

#[test]
fn compressed_clusters_are_read_in_the_clear_and_no_new_ones_are_written() {
    let mut shared = Shared::by_qemu("encrypt.format=luks,encrypt.iter-time=10", "");
    // QEMU writes them, unencrypted.
    let mut io = qemu::qemu_io();
    io.current_dir(shared.dir.path()).args(["--object", SECRET, "--image-opts", IMAGE]);
    qemu::run(io.args(["-c", "write -c -P 5 64k 64k"]));
    shared.disk[65_536..131_072].fill(5);
    shared.must_be_right("compressed");
    shared.we(async |image, _| {
        let error = image.write_compressed_at(&[1; 65_536], 0).await.unwrap_err();
        let Error::Unsupported(unsupported) = error else { panic!("{error}") };
        assert_eq!(unsupported.code(), "compression-with-encryption");
    });
    shared.we_write(&[(6, 65_600, 10)]);
    shared.must_be_right("written over");
}

#[test]
fn an_image_cannot_ask_for_hours() {
    let mut bytes = Shared::by_us(&ours(luks(&LuksScheme::default()))).bytes();
    for (at, place) in [(164, "crypto header"), (212, "key slot 0")] {
        let at = AREA + at;
        let mut asking = bytes.clone();
        asking[at..at + 4].copy_from_slice(&u32::MAX.to_be_bytes());
        let error = open(in_memory(asking), Some(secret()), false).unwrap_err();
        let limit = "key derivation of 4294967295 iterations: the limit is 40000000";
        assert_eq!(error.to_string(), format!("{place} at 0x40000: {limit}"));
        assert!(matches!(&error, Error::Unsupported(it) if it.code() == "luks-iterations"));
    }
    // Slots that are not in use may say what they like.
    bytes[AREA + 260..AREA + 264].copy_from_slice(&u32::MAX.to_be_bytes());
    assert!(open(in_memory(bytes), Some(secret()), false).is_ok());
}

/// Where the encryption header of an image of the engine's is.
const AREA: usize = 0x40000;

/// Asserts that an image of the engine's that was changed is refused, passphrase or not.
#[track_caller]
fn assert_refused(change: impl FnOnce(&mut [u8]), code: &str, text: &str) {
    let mut bytes = Shared::by_us(&ours(luks(&LuksScheme::default()))).bytes();
    change(&mut bytes);
    let error = open(in_memory(bytes), Some(secret()), false).unwrap_err();
    let found = match &error {
        Error::Corrupt(corrupt) => corrupt.code(),
        Error::Unsupported(unsupported) => unsupported.code(),
        _ => panic!("{error}"),
    };
    assert_eq!((found, &*error.to_string()), (code, text));
}

#[test]
fn an_encryption_header_that_breaks_a_rule_is_refused_with_its_place_and_value() {
    let put = |at: usize, value: u32| {
        move |bytes: &mut [u8]| bytes[AREA + at..][..4].copy_from_slice(&value.to_be_bytes())
    };
    let text = "crypto header at 0x40000: LUKS header does not start with its magic";
    assert_refused(put(0, 0), "luks-magic", text);
    // Offset and stripes of key slot 2.
    let text = "key slot 2 at 0x40000: 4294967295 stripes, not 4000";
    assert_refused(put(252 + 96, u32::MAX), "luks-stripes", text);
    let text =
        "key slot 2 at 0x40000: key material up to 0x2000003e600 overlaps the payload at 0x1f9000";
    assert_refused(put(248 + 96, u32::MAX), "luks-slot-in-payload", text);
    let text = "crypto header at 0x40000: cipher 'des-256' is not supported";
    assert_refused(
        |bytes| bytes[AREA + 8..][..4].copy_from_slice(b"des\0"),
        "luks-algorithm",
        text,
    );
    let text = "crypto header at 0x40000: hash algorithm 'md5' is not supported";
    assert_refused(
        |bytes| bytes[AREA + 72..][..4].copy_from_slice(b"md5\0"),
        "luks-algorithm",
        text,
    );
    // The image says that the area is shorter than what lies in it.
    let text = "key slot 0 at 0x40000: key material up to 0x3f800 lies outside of the crypto header, which has 0x3f000 bytes";
    let shorten = |bytes: &mut [u8]| {
        let at = bytes.windows(4).position(|it| it == 0x0537_be77_u32.to_be_bytes()).unwrap();
        bytes[at + 16..at + 24].copy_from_slice(&0x3f000_u64.to_be_bytes());
    };
    assert_refused(shorten, "luks-slot-outside", text);
}

#[test]
fn passphrases_are_added_and_erased_as_qemu_does_it() {
    let mut shared = Shared::by_us(&ours(luks(&LuksScheme::default())));
    shared.we_write(&[(1, 0, 100_000)]);
    let opens = |shared: &Shared, word: &str| {
        let ours = open(in_memory(shared.bytes()), Some(word.into()), false).is_ok();
        let object = format!("secret,id=s,data={word}");
        let mut io = qemu::qemu_io();
        io.current_dir(shared.dir.path()).args(["--object", &object, "--image-opts", IMAGE]);
        let theirs = qemu::output(io.args(["-r", "-c", "read -P 1 0 100000"])).status.success();
        assert_eq!(ours, theirs, "{word}");
        ours
    };
    let slots = shared.we(async |image, _| {
        let mut slots = Vec::new();
        for (word, slot) in [("one", None), ("six", Some(6)), ("two", None)] {
            let mut addition = KeyAddition::new(secret(), word.into(), 1000);
            addition.slot = slot;
            slots.push(image.add_key(&addition, &mut Repeatable(9)).await.unwrap());
        }
        slots
    });
    assert_eq!(slots, [1, 6, 2]);
    for word in ["open sesame", "one", "two", "six"] {
        assert!(opens(&shared, word), "{word}");
    }
    assert!(!opens(&shared, "three"));

    // What QEMU adds we know, and what we erase it does not.
    let three = "secret,id=n,data=three";
    let amend = "encrypt.state=active,encrypt.new-secret=n,encrypt.iter-time=10";
    qemu::img(
        shared.dir.path(),
        ["amend", "--object", SECRET, "--object", three, "--image-opts", IMAGE, "-o", amend],
    );
    assert!(opens(&shared, "three"));
    shared.we(async |image, _| {
        let mut erasure = KeyErasure::default();
        erasure.slot = Some(6);
        image.erase_keys(&erasure, &mut Repeatable(1)).await.unwrap();
        let mut erasure = KeyErasure::default();
        erasure.old = Some("one".into());
        image.erase_keys(&erasure, &mut Repeatable(1)).await.unwrap();
    });
    assert!(!opens(&shared, "one") && !opens(&shared, "six"));
    assert!(opens(&shared, "two") && opens(&shared, "three") && opens(&shared, "open sesame"));
    shared.must_be_right("after changes of passphrases");
}

#[test]
fn refusals_of_changes_of_passphrases_are_those_of_qemu() {
    let mut shared = Shared::by_us(&ours(luks(&LuksScheme::default())));
    let qemu_says = |shared: &Shared, options: &str| {
        let objects = ["--object", "secret,id=n,data=new", "--object", "secret,id=o,data=other"];
        let mut img = qemu::qemu_img();
        img.current_dir(shared.dir.path()).args(["amend", "--object", SECRET]).args(objects);
        let output = qemu::output(img.args(["--image-opts", IMAGE, "-o", options]));
        assert!(!output.status.success());
        let said = String::from_utf8(output.stderr).unwrap();
        // A hint may follow, without an end of its line before it.
        said.lines().next().unwrap().trim_start_matches("qemu-img: ").to_owned()
    };
    let addition = |slot: Option<usize>, old: &str| {
        let mut addition = KeyAddition::new(old.into(), "new".into(), 1000);
        addition.slot = slot;
        addition
    };
    for (slot, text) in [(Some(0), "encrypt.keyslot=0,"), (Some(8), "encrypt.keyslot=8,")] {
        let theirs =
            qemu_says(&shared, &format!("{text}encrypt.state=active,encrypt.new-secret=n"));
        let ours = shared.we(async |image, _| {
            image.add_key(&addition(slot, "open sesame"), &mut Repeatable(1)).await.unwrap_err()
        });
        assert_eq!(ours.to_string(), theirs);
    }
    let wrong = shared.we(async |image, _| {
        image.add_key(&addition(None, "other"), &mut Repeatable(1)).await.unwrap_err()
    });
    assert!(matches!(wrong, Error::WrongKey));
    for (slot, old, text) in [
        (None, None, "encrypt.state=inactive"),
        (Some(0), None, "encrypt.state=inactive,encrypt.keyslot=0"),
        (Some(3), None, "encrypt.state=inactive,encrypt.keyslot=3"),
        (Some(9), None, "encrypt.state=inactive,encrypt.keyslot=9"),
        (Some(0), Some("other"), "encrypt.state=inactive,encrypt.keyslot=0,encrypt.old-secret=o"),
        (None, Some("other"), "encrypt.state=inactive,encrypt.old-secret=o"),
        (None, Some("open sesame"), "encrypt.state=inactive,encrypt.old-secret=s"),
    ] {
        let theirs = qemu_says(&shared, text);
        let ours = shared.we(async |image, _| {
            let mut erasure = KeyErasure::default();
            (erasure.slot, erasure.old) = (slot, old.map(Secret::from));
            image.erase_keys(&erasure, &mut Repeatable(1)).await.unwrap_err()
        });
        assert_eq!(ours.to_string(), theirs, "{text}");
    }
    shared.must_be_right("after refusals");
}

#[test]
fn secrets_are_never_printed() {
    let mut options = OpenOptions::default();
    options.key = Some(secret());
    let addition = KeyAddition::new(secret(), secret(), 1000);
    let mut erasure = KeyErasure::default();
    erasure.old = Some(secret());
    let shown = format!("{options:?} {addition:?} {erasure:?}");
    assert!(!shown.contains("sesame"), "{shown}");
}
