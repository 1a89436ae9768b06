//! The cache options are QEMU's: what QEMU refuses is refused, in its words, and the sizes are those of its manual.
//!
//! Sources of what is expected: qemu-io, asked for every combination; QEMU's docs/qcow2-cache.txt for the sizes.

use std::time::Duration;

use crate::support::qemu;
use cowshed::Error;
use cowshed::cache::{CacheOptions, CacheSizes};
use cowshed::format::Geometry;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Clusters of 64 KiB, refcounts of 16 bits.
fn geometry() -> Geometry {
    Geometry::new(16, false, 4).unwrap()
}

fn resolve(size: u64, change: impl FnOnce(&mut CacheOptions)) -> CacheSizes {
    let mut options = CacheOptions::default();
    change(&mut options);
    options.resolve(&geometry(), size).unwrap()
}

/// QEMU's name of an option, its value, and how to set it.
type Setting = (&'static str, u64);

fn set(options: &mut CacheOptions, (name, value): Setting) {
    match name {
        "cache-size" => options.cache_size = Some(value),
        "l2-cache-size" => options.l2_cache_size = Some(value),
        "l2-cache-entry-size" => options.l2_cache_entry_size = Some(value),
        "refcount-cache-size" => options.refcount_cache_size = Some(value),
        "cache-clean-interval" => {
            options.cache_clean_interval = Some(Duration::from_secs(value));
        }
        _ => unreachable!(),
    }
}

#[test]
fn qemu_refuses_the_same_options_in_the_same_words() {
    let dir = tempfile::tempdir().unwrap();
    qemu::img(dir.path(), ["create", "-q", "-f", "qcow2", "t.qcow2", "64K"]);

    let mut cases: Vec<Vec<Setting>> = Vec::new();
    let none_or = |name, values: &[u64]| -> Vec<Option<Setting>> {
        std::iter::once(None).chain(values.iter().map(|value| Some((name, *value)))).collect()
    };
    for both in none_or("cache-size", &[0, MIB, 2 * MIB]) {
        for l2 in none_or("l2-cache-size", &[0, MIB, 2 * MIB]) {
            for refcount in none_or("refcount-cache-size", &[0, 512 * KIB, 2 * MIB]) {
                cases.push([both, l2, refcount].into_iter().flatten().collect());
            }
        }
    }
    for entry in [0, 1, 256, 511, 512, 4242, 4096, 64 * KIB, 64 * KIB + 1, 128 * KIB] {
        cases.push(vec![("l2-cache-entry-size", entry)]);
    }
    for seconds in [0, 1, 600, u64::from(u32::MAX), u64::from(u32::MAX) + 1] {
        cases.push(vec![("cache-clean-interval", seconds)]);
    }
    cases.push(vec![("refcount-cache-size", 1 << 49)]);

    let mut refused = 0;
    for case in cases {
        let list: Vec<_> = case.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let open = ["-r", "-o", &list.join(","), "t.qcow2"].join(" ").replace("-o  ", "");
        let output = qemu::output(
            qemu::qemu_io().current_dir(dir.path()).args(["-c", &format!("open {open}")]),
        );
        let said =
            String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
        let qemu = said.trim().split_once("can't open device t.qcow2: ").map(|(_, text)| text);

        let mut options = CacheOptions::default();
        case.into_iter().for_each(|setting| set(&mut options, setting));
        let ours = match options.resolve(&geometry(), 64 * KIB) {
            Ok(_) => None,
            Err(Error::InvalidArgument(text)) => Some(text),
            Err(error) => panic!("{list:?}: {error:?}"),
        };
        assert_eq!(ours.as_deref(), qemu, "{list:?}");
        refused += usize::from(ours.is_some());
    }
    assert!(refused >= 20, "QEMU has refused {refused} only: has its output changed?");
}

#[test]
fn l2_cache_is_as_large_as_the_image_needs_and_32_mib_at_most() {
    // "l2_cache_size = disk_size * 8 / cluster_size": 1 MiB covers 8 GiB.
    assert_eq!(resolve(8 * GIB, |_| ()).l2_bytes, MIB);
    assert_eq!(resolve(8 * GIB + 1, |_| ()).l2_bytes, MIB + 64 * KIB);
    assert_eq!(resolve(256 * GIB, |_| ()).l2_bytes, 32 * MIB);
    assert_eq!(resolve(1024 * GIB, |_| ()).l2_bytes, 32 * MIB);
    assert_eq!(
        resolve(1024 * GIB, |options| options.l2_cache_size = Some(GIB)).l2_bytes,
        128 * MIB
    );
    assert_eq!(resolve(8 * GIB, |options| options.l2_cache_size = Some(GIB)).l2_bytes, MIB);
    assert_eq!(resolve(1024 * GIB, |options| options.l2_cache_size = Some(MIB)).l2_bytes, MIB);
}

#[test]
fn extended_l2_entries_need_twice_the_cache() {
    let geometry = Geometry::new(16, true, 4).unwrap();
    let sizes = CacheOptions::default().resolve(&geometry, 8 * GIB).unwrap();
    assert_eq!(sizes.l2_bytes, 2 * MIB);
}

#[test]
fn entries_are_4_kib_or_a_shorter_cluster() {
    for cluster_bits in 9..=21 {
        let geometry = Geometry::new(cluster_bits, false, 4).unwrap();
        for size in [0, GIB, 1024 * GIB] {
            let sizes = CacheOptions::default().resolve(&geometry, size).unwrap();
            let expected = if cluster_bits < 12 { 1 << cluster_bits } else { 4096 };
            assert_eq!((sizes.l2_entry_bytes, sizes.refcount_entry_bytes), (expected, expected));
            assert!(sizes.l2_bytes.is_multiple_of(expected));
        }
    }
    let sizes = resolve(1024 * GIB, |options| options.l2_cache_entry_size = Some(64 * KIB));
    assert_eq!((sizes.l2_entry_bytes, sizes.refcount_entry_bytes), (64 * KIB, 4096));
}

#[test]
fn refcount_cache_is_four_clusters_by_default_and_at_least() {
    assert_eq!(resolve(GIB, |_| ()).refcount_bytes, 256 * KIB);
    assert_eq!(
        resolve(GIB, |options| options.refcount_cache_size = Some(0)).refcount_bytes,
        256 * KIB
    );
    assert_eq!(resolve(GIB, |options| options.refcount_cache_size = Some(MIB)).refcount_bytes, MIB);
}

#[test]
fn one_size_for_both_is_divided_as_in_qemu() {
    // 1 TiB needs 128 MiB of L2 tables: all but four clusters go to the L2 cache.
    let sizes = resolve(1024 * GIB, |options| options.cache_size = Some(64 * MIB));
    assert_eq!((sizes.l2_bytes, sizes.refcount_bytes), (64 * MIB - 256 * KIB, 256 * KIB));
    // 8 GiB need 1 MiB: the rest goes to the refcount cache.
    let sizes = resolve(8 * GIB, |options| options.cache_size = Some(4 * MIB));
    assert_eq!((sizes.l2_bytes, sizes.refcount_bytes), (MIB, 3 * MIB));
    // Zero asks for the least that works: two entries, four clusters.
    let sizes = resolve(8 * GIB, |options| options.cache_size = Some(0));
    assert_eq!((sizes.l2_bytes, sizes.refcount_bytes), (8 * KIB, 256 * KIB));
    // With one of them set, the other gets the remainder.
    let sizes = resolve(1024 * GIB, |options| {
        options.cache_size = Some(4 * MIB);
        options.l2_cache_size = Some(MIB);
    });
    assert_eq!((sizes.l2_bytes, sizes.refcount_bytes), (MIB, 3 * MIB));
    let sizes = resolve(1024 * GIB, |options| {
        options.cache_size = Some(4 * MIB);
        options.refcount_cache_size = Some(MIB);
    });
    assert_eq!((sizes.l2_bytes, sizes.refcount_bytes), (3 * MIB, MIB));
}

#[test]
fn interval_is_600_seconds_by_default_and_zero_is_none() {
    assert_eq!(resolve(GIB, |_| ()).interval, Duration::from_secs(600));
    let off = resolve(GIB, |options| options.cache_clean_interval = Some(Duration::ZERO));
    assert_eq!(off.interval, Duration::ZERO);
}

#[test]
fn sizes_of_any_image_are_computed_without_overflow() {
    for cluster_bits in 9..=21 {
        for extended in [false, true] {
            let Ok(geometry) = Geometry::new(cluster_bits, extended, 4) else { continue };
            for value in [0, 1, u64::MAX / 2, u64::MAX] {
                for size in [0, 1, u64::MAX - 511, u64::MAX] {
                    for names in 0..8 {
                        let mut options = CacheOptions::default();
                        options.cache_size = (names & 1 != 0).then_some(value);
                        options.l2_cache_size = (names & 2 != 0).then_some(value);
                        options.refcount_cache_size = (names & 4 != 0).then_some(value);
                        let _ = options.resolve(&geometry, size);
                    }
                }
            }
        }
    }
}
