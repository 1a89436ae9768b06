//! The fear: an image of 64 MiB that takes minutes or gigabytes to look at.
//!
//! Each image claims as much as its bytes can claim: tables that all lead to the same bytes, tables on top of each other,
//! references to everything. Opening it and checking it must take at most 96 MiB and 5 seconds of the processor, which a
//! process of its own measures by what the kernel says of it: this program, which is small, again.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::cast_possible_truncation)]

use std::process::Command;

use cowshed::image::check::{CheckOptions, check_storage};
use cowshed::image::{Image, OpenOptions, References, RefuseAll, Source};
use cowshed::inspect::{StorageBytes, VerdictOptions, verdict};
use cowshed::rt::{FileOptions, FileStorage};
use futures::executor::block_on;

const FILE_LEN: u64 = 64 << 20;
const MEMORY_MAX_KIB: u64 = 96 << 10;
const SECONDS_MAX: f64 = 5.0;
const IMAGE: &str = "COWSHED_HOSTILE_IMAGE";

struct Bytes(Vec<u8>);

impl Bytes {
    /// A version 3 image of 64 MiB: refcount table in cluster 1, nothing else.
    fn new(cluster_bits: u32, refcount_order: u32, l1_entries: u32, l1_offset: u64) -> Self {
        let mut bytes = Self(vec![0; FILE_LEN as usize]);
        bytes.put(0, b"QFI\xfb\0\0\0\x03");
        bytes.put(20, &cluster_bits.to_be_bytes());
        bytes.put(24, &512_u64.to_be_bytes());
        bytes.put(36, &l1_entries.to_be_bytes());
        bytes.put(40, &l1_offset.to_be_bytes());
        bytes.put(48, &(1_u64 << cluster_bits).to_be_bytes());
        bytes.put(56, &1_u32.to_be_bytes());
        bytes.put(96, &refcount_order.to_be_bytes());
        bytes.put(100, &104_u32.to_be_bytes());
        bytes
    }

    fn put(&mut self, at: u64, value: &[u8]) {
        self.0[at as usize..at as usize + value.len()].copy_from_slice(value);
    }

    /// Makes words from `start` to `end` by their number.
    fn words(&mut self, start: u64, end: u64, word: impl Fn(u64) -> u64) {
        for (number, bytes) in
            (0..).zip(self.0[start as usize..end as usize].as_chunks_mut::<8>().0)
        {
            *bytes = word(number).to_be_bytes();
        }
    }

    fn snapshots(&mut self, at: u64, count: u32, l1: impl Fn(u64) -> (u64, u32)) {
        self.put(60, &count.to_be_bytes());
        self.put(64, &at.to_be_bytes());
        for number in 0..u64::from(count) {
            let entry = at + number * 56;
            let (offset, entries) = l1(number);
            self.put(entry, &[0; 56]);
            self.put(entry, &offset.to_be_bytes());
            self.put(entry + 8, &entries.to_be_bytes());
            self.put(entry + 36, &16_u32.to_be_bytes());
        }
    }
}

fn mixed(number: u64) -> u64 {
    let mut word = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5bd1_e995;
    word ^= word >> 29;
    word = word.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word ^ (word >> 32)
}

const COPIED: u64 = 1 << 63;
const L1_MAX: u32 = 4 << 20;
const HALF: u64 = FILE_LEN / 2;

/// The image of this name.
fn image(name: &str) -> Vec<u8> {
    let mut bytes;
    match name {
        // Every snapshot has the largest L1 table, and each of its entries the same L2 table.
        "snapshots of one L1 table" => {
            bytes = Bytes::new(9, 4, 1, 0x1000);
            bytes.words(HALF, FILE_LEN, |_| COPIED | 0x2000);
            bytes.words(0x2000, 0x2200, |_| COPIED | 0x3000);
            bytes.snapshots(0x10000, 65536, |_| (HALF, L1_MAX));
        }
        "snapshots of L1 tables that overlap" => {
            bytes = Bytes::new(9, 4, 1, 0x1000);
            bytes.words(HALF, FILE_LEN, |n| COPIED | (mixed(n) % FILE_LEN) & !511);
            bytes.snapshots(0x10000, 65536, |n| (0x40_0000 + n * 512 % HALF, L1_MAX - 65536));
        }
        // L2 tables of 2 MiB, 512 bytes apart: without care 128 thousand times 2 MiB.
        "L2 tables that overlap" => {
            bytes = Bytes::new(21, 4, L1_MAX, 32 << 20);
            bytes.words(HALF, FILE_LEN, |n| COPIED | (n * 512 % FILE_LEN));
            bytes.words(4 << 20, HALF, |n| COPIED | (mixed(n) % FILE_LEN) & !((1 << 21) - 1));
        }
        "L1 table of random words" | "L1 table of random words, 2 MiB clusters" => {
            let bits = if name.ends_with("clusters") { 21 } else { 9 };
            bytes = Bytes::new(bits, 6, L1_MAX, HALF);
            bytes.words(4 << 20, FILE_LEN, mixed);
        }
        "data that is nowhere" => {
            bytes = Bytes::new(16, 4, 512, 0x20000);
            bytes.words(0x20000, 0x21000, |n| COPIED | (0x10_0000 + n % 900 * 0x10000));
            bytes.words(0x10_0000, FILE_LEN, |n| COPIED | (mixed(n) << 16) & 0x00ff_ffff_ffff_0000);
        }
        "compressed clusters of everything" => {
            bytes = Bytes::new(9, 0, 131_000, 0x10_0000);
            bytes.words(0x10_0000, 0x10_0000 + 131_000 * 8, |n| {
                COPIED | (0x30_0000 + n * 512 % (60 << 20))
            });
            bytes.words(0x30_0000, FILE_LEN, |n| 3 << 61 | (mixed(n) % FILE_LEN));
        }
        "references to few clusters" => {
            bytes = Bytes::new(12, 4, 16000, 0x10000);
            bytes.words(0x10000, 0x10000 + 16000 * 8, |n| {
                COPIED | (0x10_0000 + n * 4096 % (60 << 20))
            });
            bytes.words(0x10_0000, FILE_LEN, |n| COPIED | (n % 7 * 4096));
        }
        "refcount tables of 8 MiB" => {
            bytes = Bytes::new(9, 6, 1, 0x1000);
            bytes.put(56, &16384_u32.to_be_bytes());
            bytes.put(48, &(16_u64 << 20).to_be_bytes());
            bytes.words(16 << 20, 24 << 20, |_| 0x2000);
        }
        "refcount blocks of everything" => {
            bytes = Bytes::new(21, 0, 1, 4 << 20);
            bytes.words(2 << 20, 4 << 20, |n| (n % 40) << 21);
        }
        "bitmaps with tables that overlap" => {
            bytes = Bytes::new(9, 4, 1, 0x1000);
            bytes.put(95, &[1]);
            bytes.put(104, &0x2385_2875_u32.to_be_bytes());
            bytes.put(108, &24_u32.to_be_bytes());
            bytes.put(112, &65535_u32.to_be_bytes());
            bytes.put(120, &(65535_u64 * 32).to_be_bytes());
            bytes.put(128, &(8_u64 << 20).to_be_bytes());
            for number in 0..65535_u64 {
                let entry = (8 << 20) + number * 32;
                bytes.put(entry, &((16 << 20) + number * 512).to_be_bytes());
                bytes.put(entry + 8, &(1_u32 << 20).to_be_bytes());
                bytes.put(entry + 16, &[1, 16, 0, 5]);
                bytes.put(entry + 24, format!("{number:05}").as_bytes());
            }
            bytes.words(16 << 20, FILE_LEN, |n| (mixed(n) % FILE_LEN) & !511);
        }
        "snapshots of long names" => {
            bytes = Bytes::new(9, 4, 1, 0x1000);
            let (mut at, mut count) = (0x10000_u64, 0_u32);
            while at + 66_000 < FILE_LEN {
                bytes.put(at + 8, &1_u32.to_be_bytes());
                bytes.put(at + 14, &u16::MAX.to_be_bytes());
                bytes.put(at + 36, &16_u32.to_be_bytes());
                at += (40 + 16 + 65535_u64).next_multiple_of(8);
                count += 1;
            }
            bytes.put(60, &count.to_be_bytes());
            bytes.put(64, &0x10000_u64.to_be_bytes());
        }
        _ => panic!("no image {name}"),
    }
    bytes.0
}

/// Looks at the image as a command would.
fn look(path: &str) {
    let open = || FileStorage::open(path, &FileOptions::default()).unwrap();
    let mut options = OpenOptions::default();
    options.references = References::Leave;
    let opened = block_on(Image::open(Source::qcow2(open(), path), &RefuseAll::new(), options));
    println!("opened: {:?}", opened.as_ref().map(|_| ()).map_err(ToString::to_string));
    drop(opened);
    let storage = open();
    let report = block_on(check_storage(&storage, &CheckOptions::default(), &mut ()));
    println!("checked: {report:?}");
    let file = block_on(StorageBytes::new(&storage)).unwrap();
    let judged = block_on(verdict(
        &file,
        cowshed::image::Format::Qcow2,
        None::<&()>,
        &VerdictOptions::default(),
    ));
    println!("judged: {}", judged.unwrap().conclusion());
}

/// The kernel's figures for this process: the greatest resident memory in KiB, and seconds of the processor.
fn cost() -> (u64, f64) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    let memory = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<_> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: f64 = fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
    // USER_HZ, which the kernel shows to every program, whatever its own clock.
    (memory, ticks / 100.0)
}

#[test]
#[ignore = "the other tests run it in a process of its own"]
fn process_of_its_own() {
    look(&std::env::var(IMAGE).expect("an image"));
    let (memory, seconds) = cost();
    println!("cost: {memory} {seconds}");
}

#[track_caller]
fn assert_bounded(name: &str) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), image(name)).unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "process_of_its_own", "--nocapture"])
        .env(IMAGE, file.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{name}: {}\n{said}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    let cost = said.lines().find_map(|line| line.strip_prefix("cost: ")).expect("the cost");
    let (memory, seconds) = cost.split_once(' ').unwrap();
    let (memory, seconds): (u64, f64) = (memory.parse().unwrap(), seconds.parse().unwrap());
    println!("{name}: {} MiB, {seconds} s\n{said}", memory >> 10);
    assert!(memory <= MEMORY_MAX_KIB, "{name}: {memory} KiB\n{said}");
    assert!(seconds <= SECONDS_MAX, "{name}: {seconds} s\n{said}");
}

macro_rules! bounded {
    ($($test:ident: $name:literal;)*) => {
        $(#[test] fn $test() { assert_bounded($name); })*
    };
}

bounded! {
    snapshots_of_one_l1_table: "snapshots of one L1 table";
    snapshots_of_l1_tables_that_overlap: "snapshots of L1 tables that overlap";
    l2_tables_that_overlap: "L2 tables that overlap";
    l1_table_of_random_words: "L1 table of random words";
    l1_table_of_random_words_with_large_clusters: "L1 table of random words, 2 MiB clusters";
    data_that_is_nowhere: "data that is nowhere";
    compressed_clusters_of_everything: "compressed clusters of everything";
    references_to_few_clusters: "references to few clusters";
    refcount_table_of_8_mib: "refcount tables of 8 MiB";
    refcount_blocks_of_everything: "refcount blocks of everything";
    bitmaps_with_tables_that_overlap: "bitmaps with tables that overlap";
    snapshots_of_long_names: "snapshots of long names";
}
