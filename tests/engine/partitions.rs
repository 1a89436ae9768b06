//! Partition tables as `sgdisk` and `sfdisk` make them, and as nobody should.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use cowshed::inspect::StorageBytes;
use cowshed::inspect::partitions::{PartitionKind, PartitionTable, Partitions, partitions};
use cowshed::storage::MemoryStorage;
use futures::executor::block_on;

const DISK_BYTES: u64 = 64 << 20;

fn read(disk: &[u8]) -> Partitions {
    let storage = MemoryStorage::new(disk.to_vec());
    block_on(async {
        let disk = StorageBytes::new(&storage).await.unwrap();
        partitions(&disk).await.unwrap()
    })
}

fn blank(dir: &Path) -> std::path::PathBuf {
    let disk = dir.join("disk.raw");
    fs::File::create(&disk).unwrap().set_len(DISK_BYTES).unwrap();
    disk
}

fn gpt() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let disk = blank(dir.path());
    let out = Command::new("sgdisk")
        .args(["--clear", "--new=1:2048:+10M", "--typecode=1:ef00", "--change-name=1:EFI \u{e4}"])
        .args(["--partition-guid=1:6f3a0d44-1f5b-4a52-9c1e-000000000001"])
        .args(["--new=5:40960:81919", "--typecode=5:8300", "--attributes=5:set:2"])
        .arg(&disk)
        .output()
        .unwrap_or_else(|error| panic!("cannot run sgdisk: {error}; package gdisk"));
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    fs::read(disk).unwrap()
}

fn mbr(script: &str) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let disk = blank(dir.path());
    let mut child = Command::new("sfdisk")
        .arg("--quiet")
        .arg(&disk)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("cannot run sfdisk: {error}; package fdisk"));
    child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
    fs::read(disk).unwrap()
}

#[test]
fn guid_partition_table_is_what_sgdisk_made() {
    let found = read(&gpt());
    assert_eq!(found.table, PartitionTable::Gpt);
    assert_eq!(found.findings, Vec::<String>::new());
    let [efi, linux] = found.partitions.as_slice() else { panic!("{found:?}") };
    assert_eq!((efi.number, efi.start, efi.len), (1, 1 << 20, 10 << 20));
    assert_eq!(efi.kind.name(), Some("EFI system"));
    assert_eq!(efi.kind.to_string(), "c12a7328-f81f-11d2-ba4b-00a0c93ec93b");
    assert_eq!(efi.name, "EFI \u{e4}");
    assert_eq!(efi.uuid.as_deref(), Some("6f3a0d44-1f5b-4a52-9c1e-000000000001"));
    assert!(!efi.bootable);
    assert_eq!((linux.number, linux.start, linux.len), (5, 20 << 20, 20 << 20));
    assert_eq!(linux.kind.name(), Some("Linux file system"));
    assert!(linux.bootable);
}

#[test]
fn copy_that_is_whole_is_believed() {
    let whole = gpt();
    let partitions = read(&whole).partitions;
    let backup_header = whole.len() - 512;
    // What is damaged, and what must be said of it.
    for (at, said) in [
        (512 + 60, "the GUID partition table at sector 1 has a damaged header"),
        (1024 + 16, "the GUID partition table at sector 1 has damaged entries"),
        (512, "the GUID partition table at sector 1 is missing"),
        (
            backup_header + 60,
            "the backup of the GUID partition table at sector 131071 has a damaged",
        ),
        (backup_header, "the backup of the GUID partition table at sector 131071 is missing"),
    ] {
        let mut disk = whole.clone();
        disk[at] ^= 0x55;
        let found = read(&disk);
        assert_eq!(found.table, PartitionTable::Gpt, "{said}");
        assert_eq!(found.partitions, partitions, "{said}");
        let [finding] = found.findings.as_slice() else { panic!("{:?}", found.findings) };
        assert!(finding.starts_with(said), "{finding}");
    }
    let mut disk = whole.clone();
    disk[512 + 60] ^= 1;
    disk[backup_header + 60] ^= 1;
    let found = read(&disk);
    assert!(found.partitions.is_empty());
    assert_eq!(found.findings.len(), 2);
    // A disk that was cut has lost its backup, and what does not fit is said.
    let found = read(&whole[..30 << 20]);
    assert_eq!(found.partitions, partitions);
    assert_eq!(found.findings.len(), 2, "{:?}", found.findings);
    assert!(
        found.findings[1].contains("partition 5 ends at byte 41943040"),
        "{:?}",
        found.findings
    );
}

#[test]
fn absurd_headers_are_bounded() {
    let whole = gpt();
    let resign = |disk: &mut [u8]| {
        disk[512 + 16..512 + 20].fill(0);
        let mut crc = flate2::Crc::new();
        crc.update(&disk[512..512 + 92]);
        disk[512 + 16..512 + 20].copy_from_slice(&crc.sum().to_le_bytes());
    };
    for (at, value, said) in [
        (80, u32::MAX, "has 4294967295 entries of 128 bytes"),
        (84, u32::MAX, "has 128 entries of 4294967295 bytes"),
        (84, 1, "has 128 entries of 1 bytes"),
        (72, u32::MAX, "has its entries at sector 4294967295, past the end of the disk"),
        (24, 7, "says that it lies at sector 7"),
    ] {
        let mut disk = whole.clone();
        disk[512 + at..512 + at + 4].copy_from_slice(&value.to_le_bytes());
        resign(&mut disk);
        let found = read(&disk);
        assert!(found.findings[0].contains(said), "{:?}", found.findings);
        assert_eq!(found.partitions.len(), 2, "the backup is whole");
    }
}

#[test]
fn master_boot_record_and_its_chain_are_what_sfdisk_made() {
    let disk = mbr("label: dos\n\
         start=2048, size=20480, type=83, bootable\n\
         start=22528, size=81920, type=5\n\
         start=24576, size=8192, type=82\n\
         start=34816, size=8192, type=83\n\
         start=45056, size=8192, type=c\n");
    let found = read(&disk);
    assert_eq!(found.table, PartitionTable::Mbr);
    assert_eq!(found.findings, Vec::<String>::new());
    let shown: Vec<_> = found
        .partitions
        .iter()
        .map(|p| (p.number, p.start / 512, p.len / 512, p.kind, p.bootable))
        .collect();
    assert_eq!(
        shown,
        [
            (1, 2048, 20480, PartitionKind::Mbr(0x83), true),
            (2, 22528, 81920, PartitionKind::Mbr(0x05), false),
            (5, 24576, 8192, PartitionKind::Mbr(0x82), false),
            (6, 34816, 8192, PartitionKind::Mbr(0x83), false),
            (7, 45056, 8192, PartitionKind::Mbr(0x0c), false),
        ]
    );
    assert_eq!(found.partitions[2].kind.name(), Some("Linux swap"));

    // The chain comes back to where it was; the records lie 2048 sectors before their partitions.
    let mut looped = disk.clone();
    let second = (34816 - 2048) * 512;
    looped[second + 446 + 16 + 4] = 5;
    looped[second + 446 + 16 + 8..second + 446 + 16 + 12].fill(0);
    looped[second + 446 + 16 + 12] = 1;
    let found = read(&looped);
    assert_eq!(found.partitions.len(), 4, "{found:?}");
    assert!(found.findings[0].contains("comes back"), "{:?}", found.findings);

    let mut gone = disk;
    gone[second + 510] = 0;
    let found = read(&gone);
    assert!(found.findings[0].contains("no extended boot record at sector 32768"), "{found:?}");
}

#[test]
fn chain_without_end_is_bounded() {
    // Each record names one partition and the next record.
    let mut disk = vec![0; 1 << 20];
    let entry = |disk: &mut [u8], at: usize, kind: u8, start: u32, len: u32| {
        disk[at + 4] = kind;
        disk[at + 8..at + 12].copy_from_slice(&start.to_le_bytes());
        disk[at + 12..at + 16].copy_from_slice(&len.to_le_bytes());
    };
    let sign = |disk: &mut [u8], sector: usize| {
        disk[sector * 512 + 510..sector * 512 + 512].copy_from_slice(&[0x55, 0xaa]);
    };
    entry(&mut disk, 446, 5, 1, 2000);
    sign(&mut disk, 0);
    for sector in 1..2000 {
        entry(&mut disk, sector * 512 + 446, 0x83, 1, 1);
        entry(&mut disk, sector * 512 + 462, 5, sector as u32, 1);
        sign(&mut disk, sector);
    }
    let found = read(&disk);
    assert_eq!(found.partitions.len(), 1 + 256);
    assert!(found.findings[0].contains("more than 256"), "{:?}", found.findings);
}

#[test]
fn disk_without_a_table_has_none() {
    for disk in [vec![], vec![0; 511], vec![0; 1 << 20], vec![0xff; 1 << 20]] {
        let found = read(&disk);
        assert_eq!(found.table, PartitionTable::None);
        assert!(found.partitions.is_empty());
    }
}
