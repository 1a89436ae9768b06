//! Entries of every table, from any bytes: what parses encodes again to the same value, runs of subclusters agree with one
//! another, and a refcount that is set is there and changes no other.

#![no_main]

use cowshed::format::{
    BitmapDirectory, BitmapTableEntry, BitmapsExtension, ClusterKind, Geometry, HostOffset,
    L1Entry, L2Context, L2Entry, LuksHeader, Parsed, RefcountTableEntry, SnapshotTable, Version,
    refcount,
};
use libfuzzer_sys::fuzz_target;

const TABLE: HostOffset = HostOffset::new(0x50000);

fuzz_target!(|data: &[u8]| {
    let [choice, bits, order, rest @ ..] = data else { return };
    let extended_l2 = choice & 8 != 0;
    let Ok(geometry) = Geometry::new(u32::from(*bits % 24), extended_l2, u32::from(order % 8))
    else {
        return;
    };
    match choice % 6 {
        0 => snapshots(rest),
        1 => bitmaps(rest, &geometry),
        2 => entries(rest, &geometry),
        3 => l2_entries(rest, &geometry, choice & 16 != 0),
        4 => refcounts(rest, geometry.refcount_order()),
        _ => luks(rest),
    }
});

fn luks(data: &[u8]) {
    let Ok(header) = LuksHeader::parse(data, TABLE) else { return };
    for slot in &header.slots {
        assert!(slot.key_offset + header.material_len() <= header.payload_offset);
    }
    let names = [&header.cipher_name, &header.cipher_mode, &header.hash, &header.uuid];
    // Bytes that are no text are replaced, and need not fit any more.
    if names.iter().all(|name| name.is_ascii()) && header.uuid.len() < 40 {
        assert_eq!(LuksHeader::parse(&header.encode(), TABLE).expect("it was parsed"), header);
    }
}

fn snapshots(data: &[u8]) {
    let [count, bytes @ ..] = data else { return };
    match SnapshotTable::parse(bytes, u32::from(*count), TABLE) {
        Err(error) => assert!(!error.to_string().is_empty()),
        Ok(Parsed::Incomplete { len_min }) => assert!(len_min > bytes.len() as u64),
        Ok(Parsed::Complete(table)) => {
            // Names of any bytes and extra data of any length are kept.
            let Ok(encoded) = SnapshotTable::encode(&table.snapshots) else { return };
            let again = SnapshotTable::parse(&encoded, u32::from(*count), TABLE);
            let Ok(Parsed::Complete(again)) = again else {
                panic!("what was encoded does not parse: {again:?}")
            };
            let normal = SnapshotTable::encode(&again.snapshots).expect("what was encoded encodes");
            assert_eq!(normal, encoded);
            for (again, before) in again.snapshots.iter().zip(&table.snapshots) {
                assert_eq!((&again.id, &again.name), (&before.id, &before.name));
                assert_eq!(
                    (again.vm_state_len, again.l1_entries),
                    (before.vm_state_len, before.l1_entries)
                );
            }
        }
    }
}

fn bitmaps(data: &[u8], geometry: &Geometry) {
    let [count, bytes @ ..] = data else { return };
    let directory_len = bytes.len() as u64;
    let extension = BitmapsExtension {
        count: u32::from(*count),
        reserved: 0,
        directory_len,
        directory_offset: TABLE,
    };
    let Ok(directory) = BitmapDirectory::parse(bytes, &extension, geometry) else { return };
    let Ok(encoded) = directory.encode() else { return };
    let extension = BitmapsExtension { directory_len: encoded.len() as u64, ..extension };
    let again =
        BitmapDirectory::parse(&encoded, &extension, geometry).expect("what was encoded parses");
    assert_eq!(again, directory);
}

fn entries(data: &[u8], geometry: &Geometry) {
    for (index, raw) in words(data).enumerate() {
        let index = index as u64;
        if let Ok(entry) = L1Entry::parse(raw, index, TABLE, geometry) {
            assert_eq!(entry.raw(), raw);
            assert!(entry.l2_table().is_none_or(|table| table.is_aligned(geometry.cluster_size())));
        }
        if let Ok(entry) = RefcountTableEntry::parse(raw, index, TABLE, geometry) {
            assert_eq!(entry.raw(), raw);
            assert!(entry.block().is_none_or(|block| block.is_aligned(geometry.cluster_size())));
        }
        if let Ok(entry) = BitmapTableEntry::parse(raw, index, TABLE, geometry) {
            assert_eq!(entry.raw(), raw);
        }
    }
}

fn l2_entries(data: &[u8], geometry: &Geometry, data_file: bool) {
    let mut words = words(data);
    let version = if geometry.extended_l2() || data_file { Version::V3 } else { Version::V2 };
    let context = L2Context::new(*geometry, version, data_file);
    while let (Some(descriptor), Some(bitmap)) = (words.next(), words.next()) {
        let entry = L2Entry::from_raw(descriptor, bitmap);
        let cluster = entry.cluster(&context);
        match cluster {
            Err(fault) => assert!(!fault.at(TABLE, 0).to_string().is_empty()),
            Ok(ClusterKind::Data { host } | ClusterKind::Zero { host: Some(host) }) => {
                assert!(host.is_aligned(geometry.cluster_size()));
            }
            Ok(ClusterKind::Compressed(cluster)) => {
                // The stream ends within the offsets that a file can have, and holds a sector at most more than a cluster twice.
                assert!(cluster.host.checked_add(cluster.len).is_some());
                assert!(cluster.len <= 2 * geometry.cluster_size());
            }
            Ok(_) => {}
        }
        // Every run begins where the one before ends, or within a run of the same kind.
        let mut index = 0;
        while index < geometry.subclusters() {
            let Ok((kind, run)) = entry.subcluster_run(&context, index) else {
                assert!(cluster.is_err() || geometry.extended_l2());
                break;
            };
            assert!(run >= 1 && index + run <= geometry.subclusters());
            for inside in index..index + run {
                assert_eq!(
                    entry.subcluster_run(&context, inside),
                    Ok((kind, run - (inside - index)))
                );
            }
            if let Ok((next, _)) = entry.subcluster_run(&context, index + run) {
                assert!(
                    index + run == geometry.subclusters() || next != kind,
                    "a run ends too early"
                );
            }
            index += run;
        }
    }
}

fn refcounts(data: &[u8], order: u32) {
    const BLOCK: usize = 64;
    let [head @ .., a, b, c] = data else { return };
    if head.len() < BLOCK {
        return;
    }
    let mut block = head[..BLOCK].to_vec();
    let count = (BLOCK as u64 * 8) >> order;
    let index = u64::from(*a) * 256 + u64::from(*b);
    let index = index % count;
    let value = u64::from(*c).wrapping_mul(0x0101_0101_0101_0101);
    let before: Vec<u64> = (0..count).map(|index| refcount::get(&block, order, index)).collect();
    let fits = order == 6 || value >> (1_u32 << order) == 0;
    assert_eq!(refcount::set(&mut block, order, index, value).is_ok(), fits);
    for (other, before) in before.iter().enumerate() {
        let expected = if fits && other as u64 == index { value } else { *before };
        assert_eq!(refcount::get(&block, order, other as u64), expected);
    }
}

fn words(data: &[u8]) -> impl Iterator<Item = u64> {
    data.chunks_exact(8).map(|word| u64::from_be_bytes(word.try_into().expect("eight bytes")))
}
