//! Entries of tables against the specification's bit layouts, with numbers written by hand or made by QEMU.

use cowshed::format::{
    ClusterKind, CompressedCluster, Geometry, GuestOffset, HostOffset, L1Entry, L2Context, L2Entry,
    RefcountTableEntry, SubclusterKind, Version, refcount,
};
use proptest::prelude::*;

fn host(offset: u64) -> HostOffset {
    HostOffset::new(offset)
}

fn context(cluster_bits: u32, extended_l2: bool) -> L2Context {
    L2Context::new(Geometry::new(cluster_bits, extended_l2, 4).unwrap(), Version::V3, false)
}

#[test]
fn geometry_splits_offsets_as_the_specification_does() {
    for cluster_bits in 9..=21 {
        for extended in [false, true] {
            let Ok(geometry) = Geometry::new(cluster_bits, extended, 4) else {
                assert!(extended && cluster_bits < 14);
                continue;
            };
            let cluster_size = 1_u64 << cluster_bits;
            let l2_entries = cluster_size / if extended { 16 } else { 8 };
            assert_eq!(geometry.cluster_size(), cluster_size);
            assert_eq!(geometry.l2_entries(), l2_entries);
            assert_eq!(geometry.l2_coverage(), l2_entries * cluster_size);
            for offset in [0, 1, cluster_size - 1, cluster_size, 0x1234_5678_9abc, u64::MAX] {
                let guest = GuestOffset::new(offset);
                assert_eq!(geometry.l2_index(guest), (offset / cluster_size) % l2_entries);
                assert_eq!(geometry.l1_index(guest), (offset / cluster_size) / l2_entries);
                assert_eq!(geometry.offset_in_cluster(offset), offset % cluster_size);
                let subcluster_size = cluster_size / if extended { 32 } else { 1 };
                let subcluster = (offset % cluster_size) / subcluster_size;
                assert_eq!(u64::from(geometry.subcluster_index(offset)), subcluster);
                assert_eq!(geometry.clusters_for(offset), offset.div_ceil(cluster_size));
            }
            assert_eq!(geometry.align_up(u64::MAX), None);
            assert_eq!(geometry.align_up(1), Some(cluster_size));
        }
    }
}

#[test]
fn refcount_block_has_the_specifications_number_of_entries() {
    for order in 0..=6 {
        let geometry = Geometry::new(16, false, order).unwrap();
        assert_eq!(geometry.refcount_block_entries(), 65536 * 8 / (1 << order));
        assert_eq!(geometry.refcount_max(), ((1_u128 << (1 << order)) - 1) as u64);
    }
}

#[test]
fn l1_entry_has_offset_and_copied_and_tells_reserved_bits() {
    let geometry = Geometry::new(9, false, 4).unwrap();
    let parse = |raw| L1Entry::parse(raw, 0, host(0), &geometry).unwrap();
    assert_eq!(parse(0).l2_table(), None);
    assert_eq!(parse(0x8000_0000_0003_0000).l2_table(), Some(host(0x30000)));
    assert!(parse(0x8000_0000_0003_0000).copied());
    assert!(!parse(0x30000).copied());
    assert_eq!(parse(u64::MAX).l2_table(), Some(host(0x00ff_ffff_ffff_fe00)));
    assert_eq!(parse(u64::MAX).reserved_bits(), 0x7f00_0000_0000_01ff);
    assert_eq!(L1Entry::new(host(0x30000), true).raw(), 0x8000_0000_0003_0000);
}

#[test]
fn refcount_table_entry_has_an_offset_of_64_bits() {
    let geometry = Geometry::new(9, false, 4).unwrap();
    let entry = RefcountTableEntry::parse(u64::MAX, 0, host(0), &geometry).unwrap();
    assert_eq!(entry.block(), Some(host(0xffff_ffff_ffff_fe00)));
    assert_eq!(entry.reserved_bits(), 0x1ff);
    assert_eq!(RefcountTableEntry::from_raw(0x1ff).block(), None);
}

#[test]
fn standard_entries_are_what_qemu_writes() {
    // `write`, `write -z` onto it, `write -z -u` onto it, in an image of QEMU.
    let context = context(16, false);
    let cluster = |raw| L2Entry::from_raw(raw, 0).cluster(&context).unwrap();
    let data = cluster(0x8000_0000_0005_0000);
    assert_eq!(data, ClusterKind::Data { host: host(0x50000) });
    let zero = cluster(0x8000_0000_0005_0001);
    assert_eq!(zero, ClusterKind::Zero { host: Some(host(0x50000)) });
    assert_eq!(cluster(1), ClusterKind::Zero { host: None });
    assert_eq!(cluster(0), ClusterKind::Unallocated);
    assert_eq!(cluster(0x8000_0000_0000_0000), ClusterKind::Unallocated);
}

#[test]
fn offset_0_with_copied_is_a_cluster_of_a_data_file() {
    let geometry = Geometry::new(16, false, 4).unwrap();
    let context = L2Context::new(geometry, Version::V3, true);
    let guest = GuestOffset::new(5);
    let entry = L2Entry::from_raw(0x8000_0000_0000_0000, 0);
    assert_eq!(entry.cluster_for(&context, guest), Ok(ClusterKind::Data { host: host(0) }));
    let entry = L2Entry::from_raw(0x8000_0000_0000_0001, 0);
    assert_eq!(entry.cluster_for(&context, guest), Ok(ClusterKind::Zero { host: None }));
}

#[test]
fn reserved_bits_of_entries_are_ignored_by_readers_and_told_to_checks() {
    let standard = L2Entry::from_raw(0xbfff_ffff_ffff_01ff, 0);
    let kind = standard.cluster(&context(16, false)).unwrap();
    assert_eq!(kind, ClusterKind::Zero { host: Some(host(0x00ff_ffff_ffff_0000)) });
    assert_eq!(standard.reserved_bits(&context(16, false)), (0x3f00_0000_0000_01fe, 0));
    assert_eq!(standard.reserved_bits(&context(16, true)), (0x3f00_0000_0000_01ff, 0));
    // With extended entries the zero flag is reserved, and ignored like the others.
    let kind = L2Entry::from_raw(0x50001, 0).cluster(&context(16, true)).unwrap();
    assert_eq!(kind, ClusterKind::Data { host: host(0x50000) });
    // The bitmap of a compressed cluster is reserved.
    let compressed = L2Entry::from_raw(0x4000_0000_0005_0000, 0x1_0000_0001);
    assert_eq!(compressed.reserved_bits(&context(16, true)), (0, 0x1_0000_0001));
    assert!(compressed.subcluster_run(&context(16, true), 0).is_ok());
}

#[test]
fn compressed_descriptor_splits_at_62_minus_cluster_bits_plus_8() {
    // (cluster_bits, descriptor, host offset, sectors beyond the first)
    let cases = [
        // x = 61: one bit of sectors.
        (9, 0x6000_0000_0000_0200, 0x200, 1),
        // x = 54.
        (16, 0x4040_0000_0005_0123, 0x50123, 1),
        (16, 0x7fff_ffff_ffff_ffff, 0x003f_ffff_ffff_ffff, 255),
        // x = 49.
        (21, 0x4001_ffff_ffff_ffff, 0x0001_ffff_ffff_ffff, 0),
        (21, 0x7ffe_0000_0000_0000, 0, 8191),
    ];
    for (cluster_bits, descriptor, offset, sectors) in cases {
        let len = (sectors + 1) * 512 - (offset & 511);
        let cluster = CompressedCluster { host: host(offset), len };
        let context = context(cluster_bits, false);
        let kind = L2Entry::from_raw(descriptor, 0).cluster(&context).unwrap();
        assert_eq!(kind, ClusterKind::Compressed(cluster), "{descriptor:#x}");
        assert_eq!(L2Entry::new(kind, true, context.geometry()).descriptor(), descriptor);
    }
}

#[test]
fn copied_flag_is_not_set_for_what_has_no_cluster_of_its_own() {
    let geometry = Geometry::new(16, false, 4).unwrap();
    let entry = |kind| L2Entry::new(kind, true, geometry).descriptor();
    assert_eq!(entry(ClusterKind::Unallocated), 0);
    assert_eq!(entry(ClusterKind::Zero { host: None }), 1);
    assert_eq!(entry(ClusterKind::Zero { host: Some(host(0x50000)) }), 0x8000_0000_0005_0001);
    assert_eq!(entry(ClusterKind::Data { host: host(0x50000) }), 0x8000_0000_0005_0000);
}

#[test]
fn subclusters_are_what_qemu_writes() {
    // Zeroing [4K, 6K) of an allocated cluster of 64 KiB: subcluster 2.
    let entry = L2Entry::from_raw(0x8000_0000_0005_0000, 0x0000_0004_ffff_fffb);
    let run = |index| entry.subcluster_run(&context(16, true), index).unwrap();
    assert_eq!(run(0), (SubclusterKind::Data { host: host(0x50000) }, 2));
    assert_eq!(run(1), (SubclusterKind::Data { host: host(0x50000) }, 1));
    assert_eq!(run(2), (SubclusterKind::Zero { host: Some(host(0x50000)) }, 1));
    assert_eq!(run(3), (SubclusterKind::Data { host: host(0x50000) }, 29));
    assert_eq!(run(31), (SubclusterKind::Data { host: host(0x50000) }, 1));
}

#[test]
fn images_without_subclusters_have_one_to_a_cluster() {
    let entry = L2Entry::from_raw(0x50000, 0);
    let run = entry.subcluster_run(&context(16, false), 0).unwrap();
    assert_eq!(run, (SubclusterKind::Data { host: host(0x50000) }, 1));
}

#[test]
fn compressed_cluster_is_one_run_of_subclusters() {
    let entry = L2Entry::from_raw(0x4000_0000_0005_0000, 0);
    let (kind, run) = entry.subcluster_run(&context(16, true), 7).unwrap();
    assert!(matches!(kind, SubclusterKind::Compressed(_)));
    assert_eq!(run, 25);
}

/// What the specification says of one subcluster.
fn subcluster_by_specification(offset: u64, bitmap: u64, index: u32) -> SubclusterKind {
    let bit = |bit: u32| bitmap >> bit & 1 == 1;
    match (offset, bit(index), bit(32 + index)) {
        (0, _, true) => SubclusterKind::Zero { host: None },
        (0, _, false) => SubclusterKind::Unallocated,
        (_, _, true) => SubclusterKind::Zero { host: Some(host(offset)) },
        (_, true, false) => SubclusterKind::Data { host: host(offset) },
        (_, false, false) => SubclusterKind::UnallocatedAllocated { host: host(offset) },
    }
}

/// Bitmaps with long runs as well as noise.
fn bitmaps() -> impl Strategy<Value = (u32, u32)> {
    let mask = prop_oneof![
        any::<u32>(),
        Just(0),
        Just(u32::MAX),
        (0..32_u32).prop_map(|bits| u32::MAX >> bits),
        (0..32_u32).prop_map(|bits| u32::MAX << bits),
    ];
    (mask.clone(), mask)
}

proptest! {
    #[test]
    fn subcluster_runs_are_what_the_bits_say((allocated, zero) in bitmaps(), offset in 0..3_u64) {
        let offset = offset * 0x10000;
        let allocated = if offset == 0 { 0 } else { allocated & !zero };
        let bitmap = u64::from(zero) << 32 | u64::from(allocated);
        let entry = L2Entry::from_raw(offset, bitmap);
        for index in 0..32 {
            let expected = subcluster_by_specification(offset, bitmap, index);
            let same = |&other: &u32| subcluster_by_specification(offset, bitmap, other) == expected;
            let run = (index..32).take_while(same).count() as u32;
            prop_assert_eq!(entry.subcluster_run(&context(16, true), index), Ok((expected, run)));
        }
    }

    #[test]
    fn any_entry_is_parsed_or_refused_without_a_panic(
        descriptor: u64,
        bitmap: u64,
        cluster_bits in 9..=21_u32,
        extended: bool,
        version_2: bool,
        data_file: bool,
        index in 0..32_u32,
    ) {
        let Ok(geometry) = Geometry::new(cluster_bits, extended, 4) else { return Ok(()) };
        let version = if version_2 { Version::V2 } else { Version::V3 };
        let context = L2Context::new(geometry, version, data_file);
        let entry = L2Entry::from_raw(descriptor, bitmap);
        match entry.subcluster_run_for(&context, index, GuestOffset::new(0)) {
            Ok((kind, run)) => {
                prop_assert!(run >= 1);
                prop_assert!(run <= geometry.subclusters());
                if let Some(host) = kind.host() {
                    prop_assert!(host.is_aligned(geometry.cluster_size()));
                    prop_assert!(host.get() < 1 << 56);
                }
                if let SubclusterKind::Compressed(cluster) = kind {
                    prop_assert!(cluster.host.get() < 1 << 56);
                    prop_assert!(cluster.len >= 1);
                    prop_assert!(cluster.len <= 2 * geometry.cluster_size());
                    prop_assert_eq!((cluster.host.get() + cluster.len) % 512, 0);
                }
            }
            Err(fault) => prop_assert!(!fault.at(host(0), 0).to_string().is_empty()),
        }
        // What a reader takes from an entry without reserved bits, a writer puts back.
        if !extended
            && entry.reserved_bits(&context) == (0, 0)
            && let Ok(kind) = entry.cluster(&context)
        {
            let copied = kind.host().is_some() && entry.copied();
            let again = L2Entry::new(kind, copied, geometry);
            prop_assert_eq!(again.cluster(&context), Ok(kind));
        }
    }
}

// Refcounts.

#[test]
fn refcounts_below_a_byte_count_from_the_least_significant_bit() {
    // QEMU: four clusters in use, refcounts of one bit.
    let block = [0x0f, 0, 0, 0, 0, 0, 0, 0];
    let refcounts: Vec<_> = (0..8).map(|index| refcount::get(&block, 0, index)).collect();
    assert_eq!(refcounts, [1, 1, 1, 1, 0, 0, 0, 0]);
    let block = [0b11_10_01_00, 0b00_00_00_11, 0, 0, 0, 0, 0, 0];
    let refcounts: Vec<_> = (0..5).map(|index| refcount::get(&block, 1, index)).collect();
    assert_eq!(refcounts, [0, 1, 2, 3, 3]);
    let block = [0xa5, 0x3c, 0, 0, 0, 0, 0, 0];
    let refcounts: Vec<_> = (0..4).map(|index| refcount::get(&block, 2, index)).collect();
    assert_eq!(refcounts, [5, 10, 12, 3]);
}

#[test]
fn refcounts_of_a_byte_and_more_are_big_endian() {
    let block = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16];
    assert_eq!(refcount::get(&block, 3, 10), 11);
    assert_eq!(refcount::get(&block, 4, 5), 0x0b0c);
    assert_eq!(refcount::get(&block, 5, 1), 0x0506_0708);
    assert_eq!(refcount::get(&block, 5, 2), 0x090a_0b0c);
    assert_eq!(refcount::get(&block, 6, 1), 0x090a_0b0c_0d0e_0f10);
}

/// The bit positions that the specification gives refcount `index`: (byte, bit from the least significant), from bit 0 of
/// the refcount up.
fn bits_by_specification(order: u32, index: usize) -> Vec<(usize, usize)> {
    let width = 1_usize << order;
    (0..width)
        .map(|bit| {
            if width < 8 {
                (index * width / 8, index * width % 8 + bit)
            } else {
                // Big-endian: bit 0 is in the last byte.
                ((index + 1) * width / 8 - 1 - bit / 8, bit % 8)
            }
        })
        .collect()
}

#[test]
fn every_refcount_width_reads_and_writes_its_own_bits_only() {
    for order in 0..=6 {
        let width = 1_usize << order;
        for index in 0..16 * 8 / width {
            for fill in [0x00_u8, 0xff, 0x5a] {
                let mut block = [fill; 16];
                let max = u64::MAX >> (64 - width);
                for value in [0, 1, max, max / 3, max - max / 3] {
                    refcount::set(&mut block, order, index as u64, value).unwrap();
                    assert_eq!(refcount::get(&block, order, index as u64), value);
                    let mut expected = [fill; 16];
                    for (bit, (byte, at)) in bits_by_specification(order, index).iter().enumerate()
                    {
                        expected[*byte] &= !(1 << at);
                        expected[*byte] |= ((value >> bit & 1) as u8) << at;
                    }
                    assert_eq!(block, expected, "order {order}, index {index}, {value:#x}");
                }
                let before = block;
                if let Some(above) = max.checked_add(1) {
                    assert!(refcount::set(&mut block, order, index as u64, above).is_err());
                }
                assert_eq!(block, before);
            }
        }
    }
}

#[test]
fn words_of_a_block_hold_the_same_refcounts_as_its_bytes() {
    let block: Vec<u8> = (0..64).map(|byte: u8| byte.wrapping_mul(37) ^ 0x5a).collect();
    let words: Vec<u64> =
        block.chunks(8).map(|word| u64::from_be_bytes(word.try_into().unwrap())).collect();
    for order in 0..=6 {
        for index in 0..64 * 8 / (1 << order) {
            let word = words[refcount::word_index(order, index)];
            let expected = refcount::get(&block, order, index);
            assert_eq!(refcount::get_in_word(word, order, index), expected);
        }
    }
}
