//! What is parsed comes out as it was, and what is encoded is read as it was meant, for random values of every structure.

use cowshed::format::feature::FeatureNames;
use cowshed::format::{
    Autoclear, BitmapDirectory, BitmapDirectoryEntry, BitmapFlags, BitmapTableEntry,
    BitmapsExtension, Compatible, Compression, CryptMethod, CryptoHeader, Extension, Geometry,
    Header, HostOffset, Incompatible, Parsed, Snapshot, SnapshotTable, Version,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

fn bytes(len: impl Into<proptest::collection::SizeRange>) -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), len)
}

fn extensions(luks: bool) -> impl Strategy<Value = Vec<Extension>> {
    let unknown = (1_u32.., bytes(0..40)).prop_map(|(kind, data)| {
        // Not one of the known types.
        Extension::Unknown { kind: kind | 0xff, data }
    });
    let bitmaps = (1..=65535_u32, 0..=0x3ff_fc00_u64, 0..=u64::MAX >> 21).prop_map(
        |(count, directory_len, offset)| {
            Extension::Bitmaps(BitmapsExtension {
                count,
                reserved: 0,
                directory_len,
                directory_offset: HostOffset::new(offset << 21),
            })
        },
    );
    let extension = prop_oneof![
        4 => unknown,
        1 => bytes(0..16).prop_map(Extension::BackingFormat),
        1 => bytes(0..60).prop_map(Extension::DataFile),
        1 => bytes(0..100).prop_map(|data| Extension::FeatureNames(FeatureNames::from_bytes(data))),
        1 => bitmaps,
    ];
    (vec(extension, 0..5), any::<u64>()).prop_map(move |(mut extensions, len)| {
        if luks {
            let offset = HostOffset::new(len >> 30 << 21);
            extensions.push(Extension::CryptoHeader(CryptoHeader { offset, len }));
        }
        extensions
    })
}

/// Headers that are valid; clusters are large enough for all of it.
fn headers() -> impl Strategy<Value = Header> {
    let shape = (any::<bool>(), 14..=21_u32, any::<bool>(), 0..=6_u32, 0..3_u8);
    shape.prop_flat_map(|(version_2, cluster_bits, extended, order, crypt)| {
        let geometry = if version_2 {
            Geometry::new(cluster_bits, false, 4)
        } else {
            Geometry::new(cluster_bits, extended, order)
        };
        let geometry = geometry.unwrap();
        let fields = (
            0..=1_u64 << 31,
            0..=u64::MAX >> 22,
            0..=u64::MAX >> 22,
            0..=4_u32,
            any::<u32>(),
            any::<u64>(),
        );
        let features = (0..4_u64, any::<u64>(), any::<u64>(), any::<bool>(), 0..5_usize);
        let names = (option::of(bytes(1..=1023)), extensions(crypt == 2));
        (fields, features, names).prop_map(move |(fields, features, names)| {
            let version = if version_2 { Version::V2 } else { Version::V3 };
            let mut header = Header::new(version, geometry);
            header.size = fields.0;
            header.l1_entries = geometry.l1_entries_for(fields.0) as u32 + fields.3;
            header.l1_table_offset = HostOffset::new(fields.1 >> 21 << 21);
            header.refcount_table_offset = HostOffset::new(fields.2 >> 21 << 21);
            header.refcount_table_clusters = fields.3;
            header.snapshot_count = fields.4;
            header.snapshot_table_offset = HostOffset::new(fields.5);
            header.crypt =
                [CryptMethod::None, CryptMethod::Aes, CryptMethod::Luks][usize::from(crypt)];
            header.backing_file = names.0;
            header.extensions = names.1;
            if !version_2 {
                let zstd = features.3;
                header.incompatible = Incompatible::from_raw(features.0 | 4)
                    .with(Incompatible::EXTENDED_L2, geometry.extended_l2())
                    .with(Incompatible::COMPRESSION_TYPE, zstd);
                header.compatible = Compatible::from_raw(features.1);
                header.autoclear = Autoclear::from_raw(features.2);
                header.compression = if zstd { Compression::Zstd } else { Compression::Deflate };
                header.unknown_fields = match features.4 {
                    0 if !zstd => Vec::new(),
                    words => (0..7 + 8 * words).map(|byte| byte as u8).collect(),
                };
            }
            header
        })
    })
}

fn snapshots() -> impl Strategy<Value = Snapshot> {
    let numbers =
        (any::<u64>(), any::<u32>(), any::<u32>(), any::<u32>(), any::<u64>(), any::<u32>());
    let extra = prop_oneof![bytes(0..70), bytes(24), bytes(1024)];
    (numbers, bytes(0..30), bytes(0..30), extra).prop_map(|(numbers, id, name, extra)| {
        // As a parser sees them: the fields follow from the extra data.
        let field = |at: usize| {
            extra.get(at..at + 8).map(|field| u64::from_be_bytes(field.try_into().unwrap()))
        };
        Snapshot {
            l1_table_offset: HostOffset::new(numbers.0),
            l1_entries: numbers.1,
            id,
            name,
            date_sec: numbers.2,
            date_nsec: numbers.3,
            vm_clock_nsec: numbers.4,
            vm_state_len: field(0).unwrap_or(u64::from(numbers.5)),
            disk_size: field(8),
            icount: field(16),
            extra,
        }
    })
}

fn bitmap_entries() -> impl Strategy<Value = BitmapDirectoryEntry> {
    let numbers = (1..0x1000_u64, 1..=256_u32, 0..8_u32, 9..=31_u8);
    (numbers, bytes(0..40), bytes(0..40)).prop_map(|(numbers, extra, name)| BitmapDirectoryEntry {
        table_offset: HostOffset::new(numbers.0 << 21),
        table_entries: numbers.1,
        flags: BitmapFlags::from_raw(numbers.2),
        granularity_bits: numbers.3,
        extra,
        name,
    })
}

proptest! {
    #[test]
    fn header_is_read_as_it_was_meant(header in headers()) {
        let mut bytes = header.encode().unwrap();
        prop_assert_eq!(Header::probe_len(&bytes[..72]).unwrap() as u64, header.geometry().cluster_size());
        bytes.resize(header.geometry().cluster_size() as usize, 0);
        let parsed = Header::parse_for_check(&bytes, u64::MAX).unwrap();
        prop_assert_eq!(&parsed, &header);
        prop_assert_eq!(header.header_len() % 8, 0);
    }

    #[test]
    fn header_that_was_parsed_comes_out_as_it_was(header in headers(), at in 72..1200_usize, byte: u8) {
        // A byte changed anywhere behind the fields of version 2; what is still accepted is stable.
        let mut bytes = header.encode().unwrap();
        bytes.resize(header.geometry().cluster_size() as usize, 0);
        bytes[at] = byte;
        if let Ok(parsed) = Header::parse_for_check(&bytes, u64::MAX)
            && let Ok(mut again) = parsed.encode()
        {
            again.resize(header.geometry().cluster_size() as usize, 0);
            prop_assert_eq!(Header::parse_for_check(&again, u64::MAX).unwrap(), parsed);
        }
        let _ = Header::deviations(&bytes);
    }

    #[test]
    fn any_bytes_are_a_header_or_refused(mut bytes in bytes(0..300), version in 2..4_u8, cluster_bits in 9..22_u8) {
        let fixed = [0x51, 0x46, 0x49, 0xfb, 0, 0, 0, version];
        let len = bytes.len().min(8);
        bytes[..len].copy_from_slice(&fixed[..len]);
        if let Some(field) = bytes.get_mut(20..24) {
            field.copy_from_slice(&[0, 0, 0, cluster_bits]);
        }
        let _ = Header::probe_len(&bytes);
        let _ = Header::parse(&bytes, bytes.len() as u64);
        let _ = Header::parse_for_check(&bytes, u64::MAX);
        let _ = Header::deviations(&bytes);
    }

    #[test]
    fn snapshot_table_is_read_as_it_was_meant(snapshots in vec(snapshots(), 0..6)) {
        let bytes = SnapshotTable::encode(&snapshots).unwrap();
        let count = snapshots.len() as u32;
        let parsed = SnapshotTable::parse(&bytes, count, HostOffset::new(0)).unwrap();
        let Parsed::Complete(table) = parsed else { panic!("{parsed:?}") };
        prop_assert_eq!(bytes.len() as u64, table.len.next_multiple_of(8));
        for (parsed, meant) in table.snapshots.iter().zip(&snapshots) {
            // -1 means that there is no count.
            let icount = meant.icount.filter(|&icount| icount != u64::MAX);
            prop_assert_eq!(parsed, &Snapshot { icount, ..meant.clone() });
        }
        // And from what is parsed the same bytes are made again.
        prop_assert_eq!(SnapshotTable::encode(&table.snapshots).unwrap(), bytes);
    }

    #[test]
    fn snapshot_table_asks_for_no_more_than_it_needs(snapshots in vec(snapshots(), 1..6)) {
        let bytes = SnapshotTable::encode(&snapshots).unwrap();
        let count = snapshots.len() as u32;
        let mut len = 0;
        let table = loop {
            match SnapshotTable::parse(&bytes[..len], count, HostOffset::new(0)).unwrap() {
                Parsed::Complete(table) => break table,
                Parsed::Incomplete { len_min } => {
                    prop_assert!(len_min > len as u64);
                    len = len_min as usize;
                }
            }
        };
        prop_assert_eq!(table.len, len as u64);
    }

    #[test]
    fn any_bytes_are_a_snapshot_table_or_refused(bytes in bytes(0..400), count in 0..10_u32) {
        let _ = SnapshotTable::parse(&bytes, count, HostOffset::new(0));
    }

    #[test]
    fn bitmap_directory_is_read_as_it_was_meant(mut bitmaps in vec(bitmap_entries(), 1..6)) {
        for (index, bitmap) in bitmaps.iter_mut().enumerate() {
            bitmap.name.push(index as u8);
        }
        let directory = BitmapDirectory { bitmaps };
        let bytes = directory.encode().unwrap();
        let extension = BitmapsExtension {
            count: directory.bitmaps.len() as u32,
            reserved: 0,
            directory_len: bytes.len() as u64,
            directory_offset: HostOffset::new(0),
        };
        let geometry = Geometry::new(21, false, 4).unwrap();
        prop_assert_eq!(BitmapDirectory::parse(&bytes, &extension, &geometry).unwrap(), directory);
    }

    #[test]
    fn any_bytes_are_a_bitmap_directory_or_refused(bytes in bytes(0..200), count in 0..9_u32) {
        let extension = BitmapsExtension {
            count,
            reserved: 0,
            directory_len: 0,
            directory_offset: HostOffset::new(0),
        };
        let _ = BitmapDirectory::parse(&bytes, &extension, &Geometry::new(9, false, 4).unwrap());
    }

    #[test]
    fn bitmap_table_entry_comes_out_as_it_was(raw: u64, mask: u64, cluster_bits in 9..=21_u32) {
        let geometry = Geometry::new(cluster_bits, false, 4).unwrap();
        for raw in [raw, raw & mask & 0x00ff_ffff_ffe0_0000, raw & 1] {
            if let Ok(entry) = BitmapTableEntry::parse(raw, 0, HostOffset::new(0), &geometry) {
                prop_assert_eq!(entry.raw(), raw);
            }
        }
    }
}
