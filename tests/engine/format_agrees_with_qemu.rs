//! What QEMU opens is parsed, what QEMU refuses is refused: an image of QEMU's with one byte of its header changed, for
//! every byte and the values where rules begin and end. And what QEMU stores is what is read: snapshots, bitmaps, LUKS.

// The bytes of files and tables in tests: they are small.

use std::path::Path;

use crate::support::qemu;
use cowshed::Error;
use cowshed::format::{
    BitmapDirectory, BitmapFlags, BitmapTableEntry, Header, HostOffset, LuksHeader, Parsed,
    SnapshotTable,
};

/// Whether QEMU opens the image, and what it says.
fn qemu_opens(path: &Path, header: &[u8]) -> Result<(), String> {
    // `info` opens neither the backing nor the data file, nor does it look at the rules that tie them and encryption to
    // the header. `qemu-io` does, and those images have no other files.
    let (encrypted, raw) = (header[32..36] != [0; 4], header[95] & 2 != 0 && header[79] & 4 == 0);
    let mut command = if encrypted || header[7] == 3 && raw {
        let mut command = qemu::qemu_io();
        command.args(["-r", "-U", "-f", "qcow2", "-c", "quit"]);
        command
    } else {
        let mut command = qemu::qemu_img();
        command.args(["info", "-U", "-f", "qcow2"]);
        command
    };
    let output = qemu::output(command.arg(path));
    if output.status.success() {
        Ok(())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// Whether everything that QEMU looks at when it opens an image can be parsed.
fn parses(file: &[u8]) -> Result<(), Error> {
    let len = Header::probe_len(&file[..file.len().min(Header::PROBE_LEN)])?;
    // QEMU takes tables past the end of the file for zeros, which this crate does not.
    let mut file = file.to_vec();
    file.resize(file.len().max(1 << 22), 0);
    let header = Header::parse(&file[..len], u64::MAX)?;
    let geometry = header.geometry();
    let table = |offset: HostOffset| {
        usize::try_from(offset.get())
            .ok()
            .and_then(|offset| file.get(offset..))
            .unwrap_or(&[0; 1 << 17])
    };
    if header.snapshot_count > 0 {
        let at = header.snapshot_table_offset;
        match SnapshotTable::parse(table(at), header.snapshot_count, at)? {
            Parsed::Complete(_) => {}
            Parsed::Incomplete { .. } => {
                // More zeros would follow.
            }
        }
    }
    if let Some(bitmaps) = header.bitmaps() {
        let bytes = table(bitmaps.directory_offset);
        let bytes = &bytes[..bytes.len().min(bitmaps.directory_len as usize)];
        BitmapDirectory::parse(bytes, &bitmaps, &geometry)?;
    }
    Ok(())
}

fn create(folder: &Path, arguments: &[&str]) -> Vec<u8> {
    let create = ["create", "-q", "-f", "qcow2"];
    qemu::img(folder, create.iter().chain(arguments).chain(&["image.qcow2", "100M"]));
    std::fs::read(folder.join("image.qcow2")).unwrap()
}

/// Changes byte after byte, and compares the answers.
fn compare_every_byte(image: &[u8], bytes: std::ops::Range<usize>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("changed.qcow2");
    let mut opened = 0;
    let mut refused = 0;
    for at in bytes {
        let mut values = vec![0, 2, 0xff, image[at] ^ 1];
        values.sort_unstable();
        values.dedup();
        for value in values {
            let mut changed = image.to_vec();
            changed[at] = value;
            // What needs a key is refused without one, and parsed all the same.
            if changed[32..36] == [0, 0, 0, 1] {
                assert!(parses(&changed).is_ok());
                continue;
            }
            std::fs::write(&path, &changed).unwrap();
            match (qemu_opens(&path, &changed), parses(&changed)) {
                (Ok(()), Ok(())) => opened += 1,
                (Err(_), Err(_)) => refused += 1,
                (qemu, ours) => {
                    panic!("byte {at} = {value:#x}: QEMU says {qemu:?}, cowshed says {ours:?}")
                }
            }
        }
    }
    // Else the comparison compares nothing.
    assert!(opened > 20 && refused > 20, "{opened} opened, {refused} refused");
}

#[test]
fn version_3_header_is_accepted_and_refused_as_by_qemu() {
    let folder = tempfile::tempdir().unwrap();
    compare_every_byte(&create(folder.path(), &[]), 0..112);
}

#[test]
fn version_2_header_with_backing_file_is_accepted_and_refused_as_by_qemu() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = ["-u", "-b", "base.raw", "-F", "raw", "-o", "compat=0.10,cluster_size=4k"];
    compare_every_byte(&create(folder.path(), &arguments), 0..128);
}

#[test]
fn header_with_features_is_accepted_and_refused_as_by_qemu() {
    let folder = tempfile::tempdir().unwrap();
    let options = "extended_l2=on,compression_type=zstd,cluster_size=16k,data_file=data.raw";
    compare_every_byte(&create(folder.path(), &["-o", options]), 72..136);
}

#[test]
fn bitmaps_extension_is_accepted_and_refused_as_by_qemu() {
    let folder = tempfile::tempdir().unwrap();
    create(folder.path(), &["-o", "cluster_size=4k"]);
    qemu::img(folder.path(), ["bitmap", "--add", "image.qcow2", "first"]);
    let image = std::fs::read(folder.path().join("image.qcow2")).unwrap();
    let at = image.windows(4).position(|window| window == [0x23, 0x85, 0x28, 0x75]).unwrap();
    compare_every_byte(&image, at + 4..at + 32);
}

#[test]
fn snapshots_of_qemu_are_read_and_come_out_the_same() {
    let folder = tempfile::tempdir().unwrap();
    create(folder.path(), &[]);
    for name in ["first", "", "a longer name, with spaces"] {
        qemu::img(folder.path(), ["snapshot", "-c", name, "image.qcow2"]);
    }
    let image = std::fs::read(folder.path().join("image.qcow2")).unwrap();
    let header = Header::parse(&image[..0x10000], image.len() as u64).unwrap();
    let start = header.snapshot_table_offset.get() as usize;
    let parsed = SnapshotTable::parse(&image[start..], header.snapshot_count, HostOffset::new(0));
    let Parsed::Complete(table) = parsed.unwrap() else { panic!("the table is incomplete") };
    let told: serde_json::Value =
        serde_json::from_str(&qemu::img(folder.path(), ["info", "--output=json", "image.qcow2"]))
            .unwrap();
    let told = told["snapshots"].as_array().unwrap();
    assert_eq!(told.len(), 3);
    for (index, (snapshot, told)) in table.snapshots.iter().zip(told).enumerate() {
        assert_eq!(String::from_utf8_lossy(&snapshot.name), told["name"].as_str().unwrap());
        assert_eq!(String::from_utf8_lossy(&snapshot.id), told["id"].as_str().unwrap());
        assert_eq!(u64::from(snapshot.date_sec), told["date-sec"].as_u64().unwrap());
        assert_eq!(u64::from(snapshot.date_nsec), told["date-nsec"].as_u64().unwrap());
        assert_eq!(snapshot.vm_state_len, told["vm-state-size"].as_u64().unwrap());
        assert_eq!(snapshot.disk_size, Some(100 << 20));
        assert_eq!(snapshot.icount, told.get("icount").and_then(serde_json::Value::as_u64));
        let at = header.snapshot_table_offset;
        snapshot.validate_l1_table(index as u64, at, &header.geometry()).unwrap();
    }
    let encoded = SnapshotTable::encode(&table.snapshots).unwrap();
    let len = table.len as usize;
    assert!(encoded[..len] == image[start..start + len]);
}

#[test]
fn bitmaps_of_qemu_are_read_and_come_out_the_same() {
    let folder = tempfile::tempdir().unwrap();
    create(folder.path(), &["-o", "cluster_size=512"]);
    qemu::img(folder.path(), ["bitmap", "--add", "-g", "512", "image.qcow2", "fine"]);
    qemu::img(folder.path(), ["bitmap", "--add", "--disable", "-g", "1M", "image.qcow2", "coarse"]);
    qemu::io(folder.path(), "qcow2", "image.qcow2", &["write 0 1M"]);
    let image = std::fs::read(folder.path().join("image.qcow2")).unwrap();
    let header = Header::parse(&image[..512], image.len() as u64).unwrap();
    let geometry = header.geometry();
    let extension = header.bitmaps().unwrap();
    let start = extension.directory_offset.get() as usize;
    let bytes = &image[start..start + extension.directory_len as usize];
    let directory = BitmapDirectory::parse(bytes, &extension, &geometry).unwrap();
    let found: Vec<_> = directory
        .bitmaps
        .iter()
        .map(|bitmap| (bitmap.name.as_slice(), bitmap.granularity(), bitmap.flags))
        .collect();
    let (fine, coarse) = (&b"fine"[..], &b"coarse"[..]);
    assert_eq!(found, [(fine, 512, BitmapFlags::AUTO), (coarse, 1 << 20, BitmapFlags::default())]);
    assert!(directory.encode().unwrap() == bytes);
    // One MiB written is 2048 bits of the fine one: half of its first cluster, and nothing else.
    for bitmap in &directory.bitmaps {
        let needed = bitmap.table_entries_for(header.size, &geometry);
        assert_eq!(u64::from(bitmap.table_entries), needed);
        let entries: Vec<_> = (0..needed)
            .map(|index| {
                let at = (bitmap.table_offset.get() + 8 * index) as usize;
                let raw = u64::from_be_bytes(image[at..at + 8].try_into().unwrap());
                BitmapTableEntry::parse(raw, index, bitmap.table_offset, &geometry).unwrap()
            })
            .collect();
        if bitmap.name == b"fine" {
            let BitmapTableEntry::Data { host } = entries[0] else { panic!("{:?}", entries[0]) };
            let data = &image[host.get() as usize..][..512];
            assert!(data[..256].iter().all(|&byte| byte == 0xff));
            assert!(data[256..].iter().all(|&byte| byte == 0));
        } else {
            assert_eq!(entries[0], BitmapTableEntry::Zeros);
        }
        assert!(entries[1..].iter().all(|&entry| entry == BitmapTableEntry::Zeros));
    }
}

#[test]
fn luks_header_of_qemu_tells_what_qemu_tells() {
    let folder = tempfile::tempdir().unwrap();
    let secret = ["--object", "secret,id=key,data=abc123"];
    let options = ["-o", "encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=10"];
    let image = create(folder.path(), &[secret, options].concat());
    let header = Header::parse(&image[..0x10000], image.len() as u64).unwrap();
    let crypto = header.crypto_header().unwrap();
    let bytes = &image[crypto.offset.get() as usize..][..LuksHeader::LEN];
    let luks = LuksHeader::parse(bytes, crypto.offset).unwrap();
    let told: serde_json::Value =
        serde_json::from_str(&qemu::img(folder.path(), ["info", "--output=json", "image.qcow2"]))
            .unwrap();
    let told = &told["format-specific"]["data"]["encrypt"];
    assert_eq!(luks.uuid, told["uuid"].as_str().unwrap());
    assert_eq!(luks.cipher_algorithm(), told["cipher-alg"].as_str().unwrap());
    assert_eq!(luks.mode(), told["cipher-mode"].as_str().unwrap());
    assert_eq!(luks.iv_generator(), told["ivgen-alg"].as_str());
    assert_eq!(luks.iv_hash(), told["ivgen-hash-alg"].as_str());
    assert_eq!(luks.hash, told["hash-alg"].as_str().unwrap());
    assert_eq!(luks.payload_offset, told["payload-offset"].as_u64().unwrap());
    let iterations = told["master-key-iters"].as_u64().unwrap();
    assert_eq!(u64::from(luks.master_key_iterations), iterations);
    for (slot, told) in luks.slots.iter().zip(told["slots"].as_array().unwrap()) {
        assert_eq!(slot.active, told["active"].as_bool().unwrap());
        assert_eq!(slot.key_offset, told["key-offset"].as_u64().unwrap());
        if slot.active {
            assert_eq!(u64::from(slot.iterations), told["iters"].as_u64().unwrap());
            assert_eq!(u64::from(slot.stripes), told["stripes"].as_u64().unwrap());
        }
    }
}
