//! The verdict: every attack that has been made with an image is a finding, by its code, and an image as QEMU makes it
//! is safe.

use std::path::Path;

use crate::support::qemu;
use cowshed::image::check::{CheckOptions, check_storage};
use cowshed::image::{Format, Image, OpenOptions, References, RefuseAll, Source};
use cowshed::inspect::{
    Conclusion, HostBytes, Severity, StorageBytes, Verdict, VerdictOptions, verdict,
};
use cowshed::storage::MemoryStorage;
use futures::executor::block_on;

/// The verdict on an image file, with its disk if it can be opened.
fn judge(bytes: Vec<u8>, format: Format, options: &VerdictOptions) -> Verdict {
    let storage = std::sync::Arc::new(MemoryStorage::new(bytes));
    block_on(async {
        let file = StorageBytes::new(&storage).await.unwrap();
        let mut open = OpenOptions::default();
        open.references = References::Leave;
        let source = Source { format, ..Source::qcow2(std::sync::Arc::clone(&storage), "image") };
        let opened = Image::open(source, &RefuseAll::new(), open).await;
        match opened {
            Ok(opened) => {
                let found = verdict(&file, format, Some(&opened.image), options).await.unwrap();
                let host = HostBytes(&opened.image);
                let again = verdict(&host, format, Some(&opened.image), options).await.unwrap();
                assert_eq!(found, again, "the file through the image is the same file");
                found
            }
            Err(_) => verdict(&file, format, None::<&()>, options).await.unwrap(),
        }
    })
}

fn qcow2(bytes: Vec<u8>) -> Verdict {
    judge(bytes, Format::Qcow2, &VerdictOptions::default())
}

#[track_caller]
fn assert_found(verdict: &Verdict, severity: Severity, code: &str) -> String {
    let finding = verdict.findings().iter().find(|finding| finding.code == code);
    let finding = finding.unwrap_or_else(|| panic!("no {code}: {verdict:#?}"));
    assert_eq!(finding.severity, severity, "{finding:?}");
    finding.text.clone()
}

fn create(dir: &Path, arguments: &[&str]) -> Vec<u8> {
    qemu::img(dir, ["create", "-q", "-f", "qcow2"].iter().chain(arguments));
    let name = arguments.iter().rev().find(|name| name.ends_with(".qcow2")).unwrap();
    std::fs::read(dir.join(name)).unwrap()
}

fn patched(bytes: &[u8], at: usize, new: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[at..at + new.len()].copy_from_slice(new);
    bytes
}

#[test]
fn images_as_qemu_makes_them_hold_no_danger() {
    for image in crate::support::small_matrix() {
        let verdict = qcow2(image.file_bytes());
        let worst = verdict.conclusion();
        assert_ne!(worst, Conclusion::Unsafe, "{}: {verdict:#?}", image.description);
        let refers =
            image.description.contains("backing") || image.description.contains("data External");
        let expected = if refers { Conclusion::Caution } else { Conclusion::Safe };
        assert_eq!(worst, expected, "{}: {verdict:#?}", image.description);
    }
}

#[test]
fn names_of_other_files_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    let name = |name: &str, format: &[&str]| {
        let arguments = [&["-u", "-b", name][..], format, &["a.qcow2", "1M"]].concat();
        qcow2(create(at, &arguments))
    };
    let plain = name("base.qcow2", &["-F", "qcow2"]);
    assert_eq!(plain.conclusion(), Conclusion::Caution);
    let text = assert_found(&plain, Severity::Caution, "backing-file");
    assert!(text.contains("\"base.qcow2\""), "{text}");
    for (hostile, code) in [
        ("/etc/shadow", "name-absolute"),
        ("../../etc/shadow", "name-parent"),
        ("json:{\"driver\":\"null-co\"}", "name-protocol"),
        ("nbd://10.0.0.1/disk", "name-protocol"),
        ("a\x1b]0;owned\x07", "name-control"),
    ] {
        let verdict = name(hostile, &["-F", "raw"]);
        assert_found(&verdict, Severity::Danger, code);
        assert_eq!(verdict.conclusion(), Conclusion::Unsafe);
        assert!(verdict.findings().iter().all(|f| !f.text.contains('\x1b')), "{verdict:#?}");
    }
    let formatless = {
        let bytes = create(at, &["-u", "-b", "base.raw", "-F", "raw", "a.qcow2", "1M"]);
        // The extension becomes one that nobody knows.
        let place = bytes.windows(4).position(|w| w == [0xe2, 0x79, 0x2a, 0xca]).unwrap();
        qcow2(patched(&bytes, place, &[0x12, 0x34, 0x56, 0x78]))
    };
    assert_found(&formatless, Severity::Caution, "backing-format-missing");
    assert_found(&formatless, Severity::Info, "unknown-extension");
    let odd = name("base.vmdk", &["-F", "vmdk"]);
    assert_found(&odd, Severity::Caution, "backing-format-unusual");

    let data = create(at, &["-o", "data_file=d.raw,data_file_raw=on", "d.qcow2", "1M"]);
    let verdict = qcow2(data.clone());
    assert_found(&verdict, Severity::Caution, "data-file");
    assert_found(&verdict, Severity::Info, "data-file-raw");
    let place = data.windows(5).position(|w| w == b"d.raw").unwrap();
    let verdict = qcow2(patched(&data, place, b"/root"));
    assert_found(&verdict, Severity::Danger, "name-absolute");
}

#[test]
fn what_the_header_admits_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = create(dir.path(), &["a.qcow2", "64M"]);
    let safe = qcow2(bytes.clone());
    assert_eq!(safe.conclusion(), Conclusion::Safe, "{safe:#?}");

    let dirty = qcow2(patched(&bytes, 79, &[1]));
    assert_found(&dirty, Severity::Caution, "dirty-bit");
    let corrupt = qcow2(patched(&bytes, 79, &[2]));
    assert_found(&corrupt, Severity::Danger, "corrupt-bit");
    let unknown = qcow2(patched(&bytes, 72, &[0x40]));
    assert_found(&unknown, Severity::Danger, "incompatible-features");
    let compatible = qcow2(patched(&bytes, 87, &[0x10]));
    assert_found(&compatible, Severity::Info, "unknown-features");
    assert_eq!(compatible.conclusion(), Conclusion::Safe);
    let aes = qcow2(patched(&bytes, 35, &[1]));
    assert_found(&aes, Severity::Caution, "encrypted-weakly");
    let broken = qcow2(patched(&bytes, 40, &[0, 0, 0, 0, 0, 3, 0, 7]));
    assert_found(&broken, Severity::Danger, "l1-table-unaligned");
    let nothing = qcow2(b"not an image at all".to_vec());
    assert_eq!(nothing.conclusion(), Conclusion::Unsafe);
}

#[test]
fn sizes_that_only_claim_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = create(dir.path(), &["-o", "cluster_size=2M", "a.qcow2", "1P"]);
    assert_found(&qcow2(bytes.clone()), Severity::Caution, "size-bomb");
    let mut options = VerdictOptions::default();
    options.virtual_size_max = Some(10 << 30);
    let verdict = judge(bytes, Format::Qcow2, &options);
    assert_found(&verdict, Severity::Danger, "size-over-limit");
    let small = create(dir.path(), &["a.qcow2", "10G"]);
    assert_eq!(judge(small.clone(), Format::Qcow2, &options).conclusion(), Conclusion::Safe);
    // An L1 table of 32 MiB for a disk of 10 GiB.
    let mut claims = patched(&small, 36, &(4_u32 << 20).to_be_bytes());
    claims.resize(48 << 20, 0);
    assert_found(&qcow2(claims), Severity::Caution, "l1-table-excessive");
    // A refcount table of 8 MiB for a file of a few clusters.
    let mut claims = patched(&small, 56, &128_u32.to_be_bytes());
    claims = patched(&claims, 48, &0x10_0000_u64.to_be_bytes());
    claims.resize(9 << 20, 0);
    assert_found(&qcow2(claims), Severity::Caution, "refcount-table-excessive");
    // Zeros that were compressed.
    let raw = dir.path().join("zeros.raw");
    std::fs::write(&raw, vec![b'a'; 32 << 20]).unwrap();
    qemu::img(dir.path(), ["convert", "-c", "-O", "qcow2", "zeros.raw", "z.qcow2"]);
    let bytes = std::fs::read(dir.path().join("z.qcow2")).unwrap();
    let mut verdict = qcow2(bytes.clone());
    let file_len = bytes.len() as u64;
    let report =
        block_on(check_storage(&MemoryStorage::new(bytes), &CheckOptions::default(), &mut ()));
    verdict.add_check(&report.unwrap(), 65536, file_len / 4);
    assert_found(&verdict, Severity::Caution, "compression-bomb");
}

#[test]
fn structures_on_top_of_each_other_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    create(at, &["a.qcow2", "1G"]);
    qemu::io(at, "qcow2", "a.qcow2", &["write 0 64k", "write 600M 64k"]);
    qemu::img(at, ["snapshot", "-c", "one", "a.qcow2"]);
    let bytes = std::fs::read(at.join("a.qcow2")).unwrap();
    let be = |place: usize| u64::from_be_bytes(bytes[place..place + 8].try_into().unwrap());
    let (l1, refcounts, snapshots) = (be(40), be(48), be(64));
    let safe = qcow2(bytes.clone());
    assert_eq!(safe.conclusion(), Conclusion::Safe, "{safe:#?}");
    assert_found(&safe, Severity::Info, "snapshots");
    for (what, place, value) in [
        ("L1 on the refcount table", 40, refcounts),
        ("snapshot table on the header", 64, 0),
        ("L2 on the L1", l1 as usize, l1 | 1 << 63),
        ("two L1 entries with one L2", l1 as usize + 8, be(l1 as usize)),
        ("refcount block on the L1", refcounts as usize, l1),
        ("snapshot's L1 on the L1", snapshots as usize, l1),
    ] {
        let verdict = qcow2(patched(&bytes, place, &value.to_be_bytes()));
        let found = verdict.findings().iter().any(|f| f.code == "metadata-overlap");
        assert!(found, "{what}: {verdict:#?}");
        assert_eq!(verdict.conclusion(), Conclusion::Unsafe);
    }
    let outside = patched(&bytes, l1 as usize, &(1_u64 << 40).to_be_bytes());
    assert_found(&qcow2(outside), Severity::Danger, "table-past-end");
    let state = patched(&bytes, snapshots as usize + 40 + 7, &[9]);
    assert_found(&qcow2(state), Severity::Caution, "snapshot-vm-state");
    let larger = patched(&bytes, snapshots as usize + 40 + 8, &(1_u64 << 50).to_be_bytes());
    assert_found(&qcow2(larger), Severity::Caution, "snapshot-larger");
    let named = snapshots as usize + 40 + 24 + 1;
    assert_eq!(&bytes[named..named + 3], b"one");
    let control = patched(&bytes, named, b"\x1b[m");
    assert_found(&qcow2(control), Severity::Caution, "snapshot-name-control");
}

#[test]
fn bitmaps_are_found() {
    let dir = tempfile::tempdir().unwrap();
    create(dir.path(), &["a.qcow2", "64M"]);
    qemu::img(dir.path(), ["bitmap", "--add", "a.qcow2", "b0"]);
    let bytes = std::fs::read(dir.path().join("a.qcow2")).unwrap();
    let verdict = qcow2(bytes.clone());
    assert_found(&verdict, Severity::Info, "bitmaps");
    assert_eq!(verdict.conclusion(), Conclusion::Safe);
    let stale = qcow2(patched(&bytes, 95, &[0]));
    assert_found(&stale, Severity::Info, "bitmaps-stale");
    let extension = bytes.windows(4).position(|w| w == [0x23, 0x85, 0x28, 0x75]).unwrap();
    let directory = extension + 8 + 16;
    let at = u64::from_be_bytes(bytes[directory..directory + 8].try_into().unwrap()) as usize;
    let in_use = qcow2(patched(&bytes, at + 15, &[1]));
    assert_found(&in_use, Severity::Caution, "bitmap-in-use");
    let broken = qcow2(patched(&bytes, at + 16, &[7]));
    assert_eq!(broken.conclusion(), Conclusion::Unsafe, "{broken:#?}");
}

#[test]
fn formats_inside_of_formats_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    let inner = create(at, &["-u", "-b", "/etc/shadow", "-F", "raw", "inner.qcow2", "1M"]);
    // A raw disk whose guest wrote a qcow2 header.
    let mut disk = vec![0; 1 << 20];
    disk[..inner.len().min(1 << 16)].copy_from_slice(&inner[..1 << 16]);
    let raw = judge(disk.clone(), Format::Raw, &VerdictOptions::default());
    let text = assert_found(&raw, Severity::Danger, "disk-is-an-image");
    assert!(text.contains("qcow2"), "{text}");
    // The same disk inside of a qcow2 image.
    std::fs::write(at.join("disk.raw"), &disk).unwrap();
    qemu::img(at, ["convert", "-f", "raw", "-O", "qcow2", "disk.raw", "outer.qcow2"]);
    let outer = std::fs::read(at.join("outer.qcow2")).unwrap();
    assert_found(&qcow2(outer.clone()), Severity::Caution, "disk-is-an-image");
    for (place, mark, code) in [
        (0, &b"KDMV"[..], "disk-is-an-image"),
        (0, b"# Disk DescriptorFile\n", "disk-is-an-image"),
        (64, b"\x7f\x10\xda\xbe", "disk-is-an-image"),
        (0, b"vhdxfile", "disk-is-an-image"),
        (0, b"\x7fELF\x02\x01", "disk-is-no-disk"),
        (0, b"PK\x03\x04", "disk-is-no-disk"),
    ] {
        let disk = patched(&vec![0; 1 << 20], place, mark);
        let verdict = judge(disk, Format::Raw, &VerdictOptions::default());
        assert!(verdict.findings().iter().any(|f| f.code == code), "{mark:?}: {verdict:#?}");
    }
    // What a disk may hold.
    let mut boot = patched(&vec![0; 1 << 20], 510, b"\x55\xaa");
    boot = patched(&boot, 512, b"EFI PART");
    boot = patched(&boot, 0x8001, b"CD001");
    let verdict = judge(boot, Format::Raw, &VerdictOptions::default());
    assert_eq!(verdict.conclusion(), Conclusion::Safe, "{verdict:#?}");

    // One file that is two things.
    let bytes = create(at, &["a.qcow2", "64M"]);
    for (place, mark) in [(0x8001, &b"CD001"[..]), (510, b"\x55\xaa"), (512, b"EFI PART")] {
        let verdict = qcow2(patched(&bytes, place, mark));
        assert_found(&verdict, Severity::Danger, "polyglot");
    }
    let mut zip = bytes.clone();
    zip.resize(zip.len() + (128 << 10), 0);
    zip.extend_from_slice(b"PK\x05\x06");
    zip.extend_from_slice(&[0; 18]);
    assert_found(&qcow2(zip.clone()), Severity::Caution, "polyglot-end");
    let file_len = zip.len() as u64;
    let mut verdict = qcow2(zip.clone());
    let report =
        block_on(check_storage(&MemoryStorage::new(zip), &CheckOptions::default(), &mut ()));
    verdict.add_check(&report.unwrap(), 65536, file_len);
    assert_found(&verdict, Severity::Info, "trailing-bytes");
}

#[test]
fn an_encrypted_disk_is_told_and_no_danger() {
    let dir = tempfile::tempdir().unwrap();
    let secret = "secret,id=s,data=123456";
    let options = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10";
    let bytes = create(dir.path(), &["--object", secret, "-o", options, "a.qcow2", "4M"]);
    let verdict = qcow2(bytes);
    assert_found(&verdict, Severity::Info, "encrypted");
    assert_eq!(verdict.conclusion(), Conclusion::Safe, "{verdict:#?}");
}
