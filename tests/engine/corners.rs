//! The corners of the format: where its description is vague, or QEMU does otherwise. Each has a number; the table says what
//! it is about and which tests hold it, here or elsewhere, and one test asks whether they are there.
//!
//! Sources: QEMU, docs/interop/qcow2.rst, and block/qcow2*.c, whose behaviour was tried out.

use std::path::Path;
use std::sync::Arc;

use crate::support::open::MemoryGate;
use crate::support::qemu;
use crate::support::tables::Tables;
use cowshed::image::{
    AmendOptions, CreateOptions, Image, NewSnapshot, OpenOptions, Preallocation, RefuseAll,
    ResizeOptions, SnapshotSelector, Source, WriteOptions, ZeroMode, create,
};
use cowshed::storage::MemoryStorage;
use cowshed::{Error, Result};
use futures::executor::block_on;

/// The number of a corner, what it is about, and the tests that hold it.
const CORNERS: &[(usize, &str, &[&str])] = &[
    (
        1,
        "header lengths: 72, 104 and more, and the fields that nobody knows",
        &[
            "engine/corners.rs::corner_1_headers_keep_their_length_and_what_is_behind_the_known_fields",
            "engine/format_errors.rs::version_3_header_below_104_bytes_is_refused",
            "engine/format_errors.rs::header_length_off_its_alignment_is_a_deviation",
            "engine/format_header.rs::version_2_image_of_qemu_comes_out_the_same",
        ],
    ),
    (
        2,
        "header extensions end in the cluster, and may come twice",
        &[
            "engine/format_errors.rs::extension_longer_than_the_cluster_is_refused",
            "engine/format_errors.rs::extension_cut_by_the_backing_file_name_is_refused",
            "engine/format_errors.rs::extension_that_comes_twice_is_a_deviation",
        ],
    ),
    (
        3,
        "the backing file's name is in the first cluster, or there is no room for it",
        &[
            "engine/corners.rs::corner_3_name_without_room_in_the_first_cluster_is_refused",
            "engine/format_errors.rs::backing_file_name_above_1023_bytes_is_refused",
            "engine/format_errors.rs::backing_file_name_that_leaves_the_first_cluster_is_refused",
        ],
    ),
    (
        4,
        "a size in the header that is no multiple of 512 is rounded down, a new one up",
        &["engine/corners.rs::corner_4_sizes_are_rounded"],
    ),
    (
        5,
        "unknown features are refused, kept, or cleared by the first write",
        &[
            "engine/corners.rs::corner_5_unknown_features_are_kept_or_cleared",
            "engine/format_errors.rs::unknown_incompatible_features_are_named_by_the_images_table",
        ],
    ),
    (
        6,
        "the dirty and the corrupt bit",
        &[
            "engine/repair.rs::dirty_image_is_repaired_when_it_is_opened_for_writing",
            "engine/repair.rs::image_that_is_marked_as_corrupt_is_not_opened_for_writing",
            "command/check.rs::dirty_and_corrupt_images_are_checked",
        ],
    ),
    (
        7,
        "the compression bit and the type go together",
        &[
            "engine/format_errors.rs::compression_bit_without_type_is_refused",
            "engine/format_errors.rs::compression_type_without_bit_is_refused",
        ],
    ),
    (
        8,
        "the bitmaps bit and the extension",
        &[
            "engine/bitmaps.rs::bitmaps_are_dropped_when_something_else_has_written_to_the_image",
            "engine/bitmaps.rs::extra_data_is_kept_or_keeps_the_bitmap_from_being_used",
            "engine/format_errors.rs::bitmaps_bit_without_extension_is_a_deviation",
            "engine/format_errors.rs::bitmaps_extension_with_reserved_field_is_refused",
        ],
    ),
    (
        9,
        "a raw data file without a data file",
        &["engine/format_errors.rs::data_file_raw_without_data_file_is_refused"],
    ),
    (
        10,
        "encryption: its extension, whose offset counts, and what is compressed",
        &[
            "engine/format_errors.rs::luks_without_crypto_extension_is_refused",
            "engine/format_errors.rs::crypto_extension_without_luks_is_refused",
            "engine/encryption.rs::legacy_encryption_goes_both_ways",
            "engine/encryption.rs::snapshots_and_their_vm_state_are_encrypted_too",
            "engine/encryption.rs::compressed_clusters_are_read_in_the_clear_and_no_new_ones_are_written",
        ],
    ),
    (
        11,
        "L1 entries and their reserved bits",
        &[
            "engine/format_entries.rs::l1_entry_has_offset_and_copied_and_tells_reserved_bits",
            "engine/malformed.rs::every_malformed_image_is_told_by_code_structure_place_and_text",
        ],
    ),
    (
        12,
        "standard L2 entries",
        &[
            "engine/format_entries.rs::standard_entries_are_what_qemu_writes",
            "engine/format_errors.rs::cluster_off_its_alignment_is_refused",
            "engine/format_errors.rs::zero_flag_in_version_2_is_refused",
        ],
    ),
    (
        13,
        "zero clusters with a place in the file",
        &["engine/corners.rs::corner_13_zero_clusters_keep_their_place_or_give_it_up"],
    ),
    (
        14,
        "the copied flag is that of refcount 1, recomputed with every snapshot",
        &[
            "engine/alternate.rs::qemu_and_the_engine_take_snapshots_in_turns",
            "sim_write/mutants.rs::each_rule_that_is_switched_off_is_missed",
            "engine/format_entries.rs::copied_flag_is_not_set_for_what_has_no_cluster_of_its_own",
        ],
    ),
    (
        15,
        "offset 0 with the copied flag is a cluster of a data file",
        &[
            "engine/format_entries.rs::offset_0_with_copied_is_a_cluster_of_a_data_file",
            "engine/corners.rs::corner_15_first_cluster_of_a_data_file_is_zeroed_and_written",
        ],
    ),
    (
        16,
        "offset 0 is never handed out",
        &["engine/corners.rs::corner_16_header_is_not_handed_out_though_its_refcount_is_0"],
    ),
    (
        17,
        "how the descriptor of a compressed cluster splits",
        &[
            "engine/format_entries.rs::compressed_descriptor_splits_at_62_minus_cluster_bits_plus_8",
            "engine/format_errors.rs::compressed_cluster_beyond_2_to_the_56_is_refused",
        ],
    ),
    (
        18,
        "streams end before their sectors do, and the file in the last of them",
        &[
            "engine/malformed/good.rs::stream_at_the_end_of_a_cut_file_is_read",
            "engine/corrupt_reads.rs::stream_that_ends_before_the_cluster_does_is_an_error",
        ],
    ),
    (
        19,
        "streams share host clusters, and straddle two",
        &[
            "engine/corners.rs::corner_19_each_stream_has_a_reference_to_each_cluster_that_it_touches",
        ],
    ),
    (
        20,
        "deflate without a header, a window of 4 KiB",
        &[
            "../src/image/deflate.rs::no_match_reaches_back_further_than_qemus_window",
            "../src/image/deflate.rs::what_cannot_be_compressed_is_left_alone",
            "command/convert_qcow2.rs::compressed_images_hold_the_same_disk",
        ],
    ),
    (
        21,
        "compressed clusters are copied before they are written to, and take nothing's place",
        &["engine/corners.rs::corner_21_compressed_clusters_are_not_written_in_place"],
    ),
    (
        22,
        "the bits of subclusters",
        &[
            "engine/corners.rs::corner_22_zeroed_subclusters_have_the_bits_of_qemu",
            "engine/format_entries.rs::subclusters_are_what_qemu_writes",
            "engine/format_errors.rs::extended_l2_entries_need_clusters_of_16_kib",
        ],
    ),
    (
        23,
        "subclusters that contradict themselves, wherever in the entry",
        &[
            "engine/format_errors.rs::subcluster_both_allocated_and_zero_is_refused",
            "engine/format_errors.rs::subcluster_allocated_without_cluster_is_refused",
        ],
    ),
    (
        24,
        "a subcluster without both bits reads the backing file though its cluster has a place",
        &["engine/corners.rs::corner_24_subclusters_of_an_allocated_cluster_read_the_backing_file"],
    ),
    (
        25,
        "preallocation of extended L2 entries hides no backing file",
        &[
            "engine/corners.rs::corner_25_preallocated_subclusters_read_the_backing_file",
            "engine/create.rs::preallocated_images_are_those_of_qemu_byte_for_byte",
        ],
    ),
    (
        26,
        "narrow refcounts begin with the least significant bits",
        &[
            "engine/format_entries.rs::refcounts_below_a_byte_count_from_the_least_significant_bit",
            "engine/format_entries.rs::refcounts_of_a_byte_and_more_are_big_endian",
        ],
    ),
    (
        27,
        "refcount table entries, and a table of no clusters",
        &[
            "engine/format_entries.rs::refcount_table_entry_has_an_offset_of_64_bits",
            "engine/format_errors.rs::image_without_refcount_table_opens_for_check_only",
        ],
    ),
    (
        28,
        "a refcount table that grows describes itself",
        &[
            "sim_write/dropped.rs::write_that_moves_the_refcount_table_can_be_dropped_at_any_poll",
            "sim_write/mutants.rs::each_rule_that_is_switched_off_is_missed",
        ],
    ),
    (
        29,
        "refcounts that have no room for another reference",
        &[
            "engine/corners.rs::corner_29_refcounts_of_one_bit_refuse_a_snapshot_and_nothing_changes",
        ],
    ),
    (
        30,
        "the refcount table's limit is one of bytes",
        &["engine/format_errors.rs::refcount_table_above_8_mib_is_not_supported"],
    ),
    (
        31,
        "all that is used has refcounts by whole clusters",
        &["engine/check.rs::good_images_have_qemus_totals"],
    ),
    (
        32,
        "the last cluster may be partial",
        &["engine/corners.rs::corner_32_last_cluster_may_be_partial_and_no_other"],
    ),
    (
        33,
        "extra data of snapshots, of any length",
        &[
            "engine/malformed/good.rs::odd_images_are_read_as_qemu_reads_them",
            "engine/format_errors.rs::snapshot_with_extra_data_above_1024_bytes_is_not_supported",
            "command/amend.rs::snapshots_that_do_not_say_their_size_say_it_in_version_3",
        ],
    ),
    (
        34,
        "snapshots by id first, then by name, and names twice",
        &["engine/corners.rs::corner_34_an_id_comes_before_a_name"],
    ),
    (
        35,
        "a snapshot of a disk of another size",
        &[
            "engine/corners.rs::corner_35_snapshot_brings_its_size_back",
            "command/snapshot.rs::snapshot_of_a_disk_of_another_size_brings_it_back",
            "command/snapshot.rs::image_with_bitmaps_does_not_go_back",
        ],
    ),
    (
        36,
        "references go up before something leads to them, and down afterwards",
        &["sim_write/mutants.rs::each_rule_that_is_switched_off_is_missed"],
    ),
    (
        37,
        "the VM state behind the disk, and that it goes with the snapshot",
        &[
            "engine/corners.rs::corner_37_vm_state_is_the_snapshots_alone",
            "command/snapshot.rs::vm_state_goes_with_a_snapshot",
        ],
    ),
    (
        38,
        "what snapshots prevent, and what prevents snapshots",
        &[
            "engine/alternate.rs::image_with_a_data_file_has_no_snapshots",
            "engine/corners.rs::corner_38_version_2_with_snapshots_keeps_its_size",
        ],
    ),
    (
        39,
        "an overlay that grows over its backing file",
        &["engine/corners.rs::corner_39_growth_hides_a_longer_backing_file"],
    ),
    (
        40,
        "discards leave zeros where there is a backing file",
        &["engine/corners.rs::corner_40_discards_do_not_show_the_backing_file"],
    ),
    (
        41,
        "zeros over a part of a cluster, the rest of which reads as zeros",
        &[
            "command/io/write.rs::zeros_over_all_that_a_cluster_shows_of_its_backing_file_are_metadata_only",
        ],
    ),
    (
        42,
        "an L1 table that shrinks keeps its length",
        &["engine/corners.rs::corner_42_shrinking_keeps_the_length_of_the_l1_table"],
    ),
    (
        43,
        "a backing chain that is a loop",
        &[
            "engine/chain.rs::a_loop_is_found_by_identity_and_else_by_depth",
            "engine/corrupt_reads.rs::image_that_is_its_own_backing_file_is_an_error",
        ],
    ),
    (
        44,
        "data files: offsets, names, and who opens them",
        &[
            "engine/format_errors.rs::cluster_at_another_offset_of_the_data_file_is_refused",
            "engine/format_errors.rs::compressed_cluster_with_data_file_is_refused",
            "engine/gate.rs::names_with_a_protocol_are_refused_in_every_mode",
            "command/gate.rs::info_and_check_open_nothing_that_is_named",
        ],
    ),
    (
        45,
        "raw data files",
        &[
            "engine/corners.rs::corner_45_raw_data_file_has_the_zeros_and_no_backing_file",
            "command/amend.rs::data_file_gets_another_name_and_need_not_be_raw",
        ],
    ),
    (
        46,
        "entries of the bitmap directory and of bitmap tables",
        &[
            "engine/format_errors.rs::bitmap_with_reserved_flags_is_refused",
            "engine/format_errors.rs::bitmap_granularity_outside_9_to_31_is_not_supported",
            "engine/format_errors.rs::bitmap_table_entry_with_reserved_bits_is_refused",
            "engine/format_errors.rs::bitmap_table_entry_with_ones_and_offset_is_refused",
        ],
    ),
    (
        47,
        "bitmaps are in use while an image is, and inconsistent after a crash",
        &[
            "engine/bitmaps.rs::bitmap_of_an_image_that_was_not_closed_is_inconsistent_and_can_only_be_removed",
            "engine/bitmaps.rs::qemu_and_the_engine_keep_bitmaps_in_turns",
        ],
    ),
    (
        48,
        "version 2 has no bitmaps, and a bitmap has the size of the disk",
        &[
            "engine/corners.rs::corner_48_version_2_takes_no_bitmap",
            "engine/bitmaps.rs::resize_cuts_and_extends_bitmaps_as_qemu_does",
        ],
    ),
];

#[test]
fn every_corner_has_a_test() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let numbers: Vec<_> = CORNERS.iter().map(|(number, ..)| *number).collect();
    assert_eq!(numbers, (1..=48).collect::<Vec<_>>());
    for (number, what, held_by) in CORNERS {
        assert!(!held_by.is_empty(), "corner {number}, {what}, has no test");
        for test in *held_by {
            let (file, name) = test.split_once("::").expect("FILE::TEST");
            let text = std::fs::read_to_string(tests.join(file))
                .unwrap_or_else(|error| panic!("corner {number}: {file}: {error}"));
            let is_test = text.match_indices("#[test]").any(|(at, _)| {
                let next = text[at..].split_once("fn ").map(|(_, rest)| rest);
                next.is_some_and(|rest| rest.starts_with(&format!("{name}()")))
            });
            assert!(is_test, "corner {number}: there is no test {name} in tests/{file}");
        }
    }
    // Those that bear a number are of that corner.
    let own = std::fs::read_to_string(tests.join("engine/corners.rs")).unwrap();
    for (_, rest) in own.match_indices("\nfn corner_").map(|(at, _)| own[at..].split_at(4)) {
        let name = rest.split_once('(').unwrap().0;
        let number: usize = name.split('_').nth(1).unwrap().parse().unwrap();
        let held_by = CORNERS[number - 1].2;
        assert!(held_by.contains(&&*format!("engine/corners.rs::{name}")), "{name} is in no row");
    }
}

/// An image in memory, which is written to and looked at afterwards.
type Disk = Arc<MemoryStorage>;

fn new(size: u64, change: impl FnOnce(&mut CreateOptions)) -> Disk {
    let mut options = CreateOptions::new(size);
    change(&mut options);
    let storage = Disk::default();
    block_on(create(&storage, None, &options)).unwrap();
    storage
}

fn from(tables: &Tables) -> Disk {
    Arc::new(MemoryStorage::new(tables.bytes.clone()))
}

fn tables(disk: &Disk) -> Tables {
    Tables { bytes: disk.to_vec() }
}

fn open(disk: &Disk, write: bool) -> Result<Image<Disk>> {
    let mut options = OpenOptions::default();
    options.write = write.then(WriteOptions::default);
    let source = Source::qcow2(Arc::clone(disk), "image");
    Ok(block_on(Image::open(source, &RefuseAll::new(), options))?.image)
}

/// Opens it for writing, does something, and closes it.
fn change<T>(disk: &Disk, work: impl AsyncFnOnce(&Image<Disk>) -> Result<T>) -> Result<T> {
    let image = open(disk, true)?;
    block_on(async {
        let done = work(&image).await;
        image.close().await.and(done)
    })
}

fn read(disk: &Disk, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0xa5; len];
    block_on(open(disk, false).unwrap().read_at(&mut bytes, at)).unwrap();
    bytes
}

fn is_all(bytes: &[u8], byte: u8) -> bool {
    bytes.iter().all(|it| *it == byte)
}

/// The L2 entry of a guest cluster.
fn entry(disk: &Disk, cluster: u64) -> u64 {
    let tables = tables(disk);
    tables.entry_of(tables.l1(), cluster).map_or(0, |at| tables.word(at))
}

/// An image over one that is full of a byte, in a folder.
struct Overlay(tempfile::TempDir);

impl Overlay {
    fn new(base: &str, options: &str, size: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        qemu::img(dir.path(), ["create", "-q", "-f", "raw", "base", base]);
        qemu::io(dir.path(), "raw", "base", &[format!("write -q -P 9 0 {base}")]);
        let mut arguments = vec!["create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw"];
        if !options.is_empty() {
            arguments.extend(["-o", options]);
        }
        qemu::img(dir.path(), [&arguments[..], &["image", size]].concat());
        Self(dir)
    }

    /// Writes to it, leaves it as a file, and has QEMU check it.
    fn change(&self, work: impl AsyncFnOnce(&Image<Disk>) -> Result<()>) {
        let dir = self.0.path();
        let gate = MemoryGate::new(dir);
        let mut options = OpenOptions::default();
        options.write = Some(WriteOptions::default());
        let source = gate.source("image", cowshed::image::Format::Qcow2);
        block_on(async {
            let image = Image::open(source, &gate, options).await.unwrap().image;
            work(&image).await.unwrap();
            // What a flush makes free another one makes durable.
            for _ in 0..3 {
                image.flush().await.unwrap();
            }
            let len = image.layers().next().unwrap().file_len;
            let mut bytes = vec![0; len as usize];
            image.read_host(&mut bytes, 0).await.unwrap();
            image.close().await.unwrap();
            std::fs::write(dir.join("image"), bytes).unwrap();
        });
        qemu::img(dir, ["check", "-q", "image"]);
    }

    fn map(&self) -> String {
        qemu::img(self.0.path(), ["map", "--output=json", "image"])
    }

    fn reads(&self, patterns: &[&str]) {
        qemu::io(self.0.path(), "qcow2", "image", patterns);
    }
}

#[test]
fn corner_1_headers_keep_their_length_and_what_is_behind_the_known_fields() {
    for len in [104, 112, 120] {
        let mut tables = tables(&new(1 << 20, |_| ()));
        // The extensions move to where it ends.
        let extensions = tables.bytes[112..4096].to_vec();
        tables.bytes[104..120].copy_from_slice(b"\0\0\0\0\0\0\0\0unknown!");
        let at = len as usize;
        tables.bytes[at..at + extensions.len()].copy_from_slice(&extensions);
        tables.put_half(100, len);
        let before = tables.bytes[100..at + 64].to_vec();
        let disk = from(&tables);
        let mut image = open(&disk, true).unwrap();
        let mut options = AmendOptions::default();
        options.lazy_refcounts = Some(true);
        block_on(image.amend(&options, |_, _| ())).unwrap();
        block_on(image.close()).unwrap();
        let after = disk.to_vec();
        assert!(after[100..at + 64] == before, "a header of {len} bytes");
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("image"), after).unwrap();
        let info = qemu::img(dir.path(), ["info", "image"]);
        assert!(info.contains("lazy refcounts: true"), "a header of {len} bytes: {info}");
    }
}

#[test]
fn corner_3_name_without_room_in_the_first_cluster_is_refused() {
    let disk = new(1 << 20, |options| options.cluster_size = 512);
    let before = disk.to_vec();
    let long = vec![b'n'; 480];
    let error = change(&disk, async |image| image.set_backing_file(Some((&long, b"raw"))).await);
    assert!(matches!(error, Err(Error::LimitExceeded { .. })), "{error:?}");
    assert!(disk.to_vec() == before);
    change(&disk, async |image| image.set_backing_file(Some((&long[..300], b"raw"))).await)
        .unwrap();
    let tables = tables(&disk);
    assert_eq!((tables.half(16), tables.word(8) < 212), (300, true));
}

#[test]
fn corner_4_sizes_are_rounded() {
    let mut tables = tables(&new(1 << 20, |_| ()));
    tables.put(24, (1 << 20) + 100);
    assert_eq!(open(&from(&tables), false).unwrap().virtual_size(), 1 << 20);
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("image"), &tables.bytes).unwrap();
    assert!(qemu::img(dir.path(), ["info", "image"]).contains("(1048576 bytes)"));
    // And the last cluster of a disk may be a part of one.
    let disk = new((1 << 20) + 512, |_| ());
    change(&disk, async |image| image.write_at(&[1; 512], 1 << 20).await).unwrap();
    change(&disk, async |image| image.discard_at(1 << 20, 512).await).unwrap();
    assert_eq!(entry(&disk, 16) & !1, 0, "its cluster is not given up");
}

#[test]
fn corner_5_unknown_features_are_kept_or_cleared() {
    let mut made = tables(&new(1 << 20, |_| ()));
    made.put(80, 1 << 40);
    made.put(88, 1 << 41);
    let disk = from(&made);
    assert!(is_all(&read(&disk, 0, 512), 0));
    assert_eq!((tables(&disk).word(80), tables(&disk).word(88)), (1 << 40, 1 << 41));
    change(&disk, async |image| image.write_at(&[1; 512], 0).await).unwrap();
    assert_eq!((tables(&disk).word(80), tables(&disk).word(88)), (1 << 40, 0));
    made.put(72, 1 << 42);
    assert!(matches!(open(&from(&made), false), Err(Error::Unsupported(_))));
}

#[test]
fn corner_13_zero_clusters_keep_their_place_or_give_it_up() {
    let disk = new(1 << 20, |_| ());
    let zero = async |image: &Image<Disk>, mode| image.write_zeroes_at(0, 65536, mode).await;
    change(&disk, async |image| image.write_at(&[7; 65536], 0).await).unwrap();
    let data = entry(&disk, 0);
    change(&disk, async |image| zero(image, ZeroMode::KeepSpace).await).unwrap();
    assert_eq!(entry(&disk, 0), data | 1);
    assert!(is_all(&read(&disk, 0, 65536), 0));
    // In place, and the rest of it is zeros and not what was there.
    change(&disk, async |image| image.write_at(&[8; 512], 512).await).unwrap();
    assert_eq!(entry(&disk, 0), data);
    let bytes = read(&disk, 0, 65536);
    assert!(is_all(&bytes[..512], 0) && is_all(&bytes[512..1024], 8) && is_all(&bytes[1024..], 0));
    change(&disk, async |image| zero(image, ZeroMode::MayUnmap).await).unwrap();
    assert_eq!(entry(&disk, 0), 1);
    change(&disk, async |image| image.write_at(&[7; 65536], 0).await).unwrap();
    change(&disk, async |image| image.discard_at(0, 65536).await).unwrap();
    assert_eq!(entry(&disk, 0), 1);
}

#[test]
fn corner_15_first_cluster_of_a_data_file_is_zeroed_and_written() {
    let dir = tempfile::tempdir().unwrap();
    qemu::img(dir.path(), ["create", "-q", "-f", "qcow2", "-o", "data_file=data", "image", "1M"]);
    qemu::io(dir.path(), "qcow2", "image", &["write -q -P 5 0 128k", "write -q -z 0 64k"]);
    let made = Tables { bytes: std::fs::read(dir.path().join("image")).unwrap() };
    let at = made.entry_of(made.l1(), 0).unwrap();
    assert_eq!((made.word(at), made.word(at + 8)), (1 << 63 | 1, 1 << 63 | 0x1_0000));
    let gate = MemoryGate::new(dir.path());
    let mut options = OpenOptions::default();
    options.write = Some(WriteOptions::default());
    block_on(async {
        let source = gate.source("image", cowshed::image::Format::Qcow2);
        let image = Image::open(source, &gate, options).await.unwrap().image;
        let mut bytes = vec![1; 65536];
        image.read_at(&mut bytes, 0).await.unwrap();
        assert!(is_all(&bytes, 0));
        image.write_at(&[6; 512], 0).await.unwrap();
        image.read_at(&mut bytes, 0).await.unwrap();
        assert!(is_all(&bytes[..512], 6) && is_all(&bytes[512..], 0));
        image.flush().await.unwrap();
        let mut written = [0; 8];
        image.read_host(&mut written, at).await.unwrap();
        assert_eq!(u64::from_be_bytes(written), 1 << 63);
        image.close().await.unwrap();
    });
}

#[test]
fn corner_16_header_is_not_handed_out_though_its_refcount_is_0() {
    let disk = new(1 << 20, |_| ());
    change(&disk, async |image| image.write_at(&[7; 65536], 0).await).unwrap();
    let mut made = tables(&disk);
    let block = made.refcount_block(0) as usize;
    let clusters = made.clusters() as usize;
    made.bytes[block..block + 2 * clusters].fill(0);
    let disk = from(&made);
    let header = disk.to_vec()[..512].to_vec();
    let written = change(&disk, async |image| {
        image.write_at(&[8; 65536], 131_072).await?;
        image.write_compressed_at(&[8; 65536], 262_144).await
    });
    let after = disk.to_vec();
    assert!(after[..72] == header[..72], "the header was written over: {written:?}");
    for cluster in [2, 4] {
        let entry = entry(&disk, cluster) & 0x00ff_ffff_ffff_fe00;
        assert!(written.is_err() || entry != 0, "cluster {cluster} is at offset 0");
    }
    if written.is_ok() {
        assert!(is_all(&read(&disk, 0, 65536), 7) && is_all(&read(&disk, 131_072, 65536), 8));
    }
}

#[test]
fn corner_19_each_stream_has_a_reference_to_each_cluster_that_it_touches() {
    let disk = new(4 << 20, |_| ());
    // About half of a cluster each: some straddle two.
    let noise = |seed: u32| -> Vec<u8> {
        let mut state = seed;
        let mut byte = || {
            state = state.wrapping_mul(1_103_515_245).wrapping_add(12345);
            (state >> 16) as u8
        };
        (0..65536).map(|at| if at < 30000 { byte() } else { 0 }).collect()
    };
    change(&disk, async |image| {
        for cluster in 0..8_u32 {
            let at = u64::from(cluster) << 16;
            image.write_compressed_at(&noise(cluster + 1), at).await?;
        }
        Ok(())
    })
    .unwrap();
    let refcounts = |disk: &Disk| -> Vec<u16> {
        let tables = tables(disk);
        let block = tables.refcount_block(0) as usize;
        let bytes = &tables.bytes[block..block + 2 * tables.clusters() as usize];
        bytes.chunks(2).map(|it| u16::from_be_bytes([it[0], it[1]])).collect()
    };
    assert!(refcounts(&disk).contains(&3), "{:?}", refcounts(&disk));
    let check = |disk: &Disk| {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("image"), disk.to_vec()).unwrap();
        qemu::img(dir.path(), ["check", "-q", "image"]);
    };
    check(&disk);
    // Each that goes takes its references along, and no more.
    for cluster in [1, 2, 5] {
        change(&disk, async |image| image.discard_at(cluster << 16, 65536).await).unwrap();
        check(&disk);
    }
    for cluster in [0, 3, 4, 6, 7_u32] {
        assert!(read(&disk, u64::from(cluster) << 16, 65536) == noise(cluster + 1), "{cluster}");
    }
}

#[test]
fn corner_21_compressed_clusters_are_not_written_in_place() {
    let disk = new(1 << 20, |_| ());
    change(&disk, async |image| image.write_compressed_at(&[7; 65536], 0).await).unwrap();
    let compressed = entry(&disk, 0);
    assert_ne!(compressed & 1 << 62, 0);
    change(&disk, async |image| image.write_at(&[8; 512], 512).await).unwrap();
    assert_eq!(entry(&disk, 0) & (1 << 62 | 1 << 63), 1 << 63);
    let bytes = read(&disk, 0, 65536);
    assert!(is_all(&bytes[..512], 7) && is_all(&bytes[512..1024], 8) && is_all(&bytes[1024..], 7));
    let error =
        change(&disk, async |image| image.write_compressed_at(&[9; 65536], 0).await).unwrap_err();
    assert!(matches!(error, Error::InvalidArgument(_)), "{error}");
    assert!(read(&disk, 0, 65536) == bytes);
    // The last one is filled up with zeros.
    let disk = new(65536 + 512, |_| ());
    change(&disk, async |image| image.write_compressed_at(&[5; 512], 65536).await).unwrap();
    assert_ne!(entry(&disk, 1) & 1 << 62, 0);
    assert!(is_all(&read(&disk, 65536, 512), 5));
}

#[test]
fn corner_22_zeroed_subclusters_have_the_bits_of_qemu() {
    let disk = new(1 << 20, |options| options.extended_l2 = true);
    change(&disk, async |image| image.write_at(&[7; 65536], 0).await).unwrap();
    change(&disk, async |image| image.write_zeroes_at(4096, 2048, ZeroMode::KeepSpace).await)
        .unwrap();
    let tables = tables(&disk);
    let at = tables.entry_of(tables.l1(), 0).unwrap();
    assert_eq!(tables.word(at + 8), 0x0000_0004_ffff_fffb);
    assert_eq!(tables.word(at) & 1, 0);
}

#[test]
fn corner_24_subclusters_of_an_allocated_cluster_read_the_backing_file() {
    let overlay = Overlay::new("128k", "extended_l2=on", "128k");
    overlay.change(async |image| image.write_at(&[1; 2048], 4096).await);
    let bytes = std::fs::read(overlay.0.path().join("image")).unwrap();
    let tables = Tables { bytes };
    let at = tables.entry_of(tables.l1(), 0).unwrap();
    assert_eq!(tables.word(at + 8), 1 << 2, "nothing is copied beside it");
    overlay.reads(&["read -P 9 0 4k", "read -P 1 4k 2k", "read -P 9 6k 58k"]);
    // A part of a subcluster brings the rest of that subcluster along.
    overlay.change(async |image| image.write_at(&[2; 512], 8192).await);
    overlay.reads(&["read -P 9 6k 2k", "read -P 2 8k 512", "read -P 9 8704 50k"]);
}

#[test]
fn corner_25_preallocated_subclusters_read_the_backing_file() {
    let overlay = Overlay::new("128k", "extended_l2=on,preallocation=metadata", "128k");
    overlay.change(async |image| image.write_at(&[1; 2048], 0).await);
    overlay.reads(&["read -P 1 0 2k", "read -P 9 2k 126k"]);
    // Ours does the same where it grows.
    overlay.change(async |image| {
        let mut options = ResizeOptions::default();
        options.preallocation = Preallocation::Metadata;
        image.resize(256 << 10, &options).await
    });
    let tables = Tables { bytes: std::fs::read(overlay.0.path().join("image")).unwrap() };
    let at = tables.entry_of(tables.l1(), 3).unwrap();
    assert_ne!(tables.word(at), 0);
    assert_eq!(tables.word(at + 8) & 0xffff_ffff, 0);
    overlay.reads(&["read -P 9 2k 126k", "read -P 0 128k 128k"]);
}

#[test]
fn corner_29_refcounts_of_one_bit_refuse_a_snapshot_and_nothing_changes() {
    let disk = new(1 << 20, |options| options.refcount_bits = 1);
    change(&disk, async |image| image.write_at(&[7; 65536], 0).await).unwrap();
    let before = disk.to_vec();
    let refused = change(&disk, async |image| image.create_snapshot(&NewSnapshot::new("a")).await);
    assert!(matches!(refused, Err(Error::LimitExceeded { .. })), "{refused:?}");
    assert!(disk.to_vec() == before, "the image has changed");
    // And narrowing fails where a value does not fit.
    let disk = new(1 << 20, |_| ());
    change(&disk, async |image| {
        image.write_at(&[7; 65536], 0).await?;
        image.create_snapshot(&NewSnapshot::new("a")).await
    })
    .unwrap();
    let mut image = open(&disk, true).unwrap();
    let mut options = AmendOptions::default();
    options.refcount_bits = Some(1);
    assert!(block_on(image.amend(&options, |_, _| ())).is_err());
    block_on(image.close()).unwrap();
    assert_eq!(tables(&disk).half(96), 4);
}

#[test]
fn corner_32_last_cluster_may_be_partial_and_no_other() {
    let disk = new(1 << 20, |_| ());
    change(&disk, async |image| image.write_at(&[7; 131_072], 0).await).unwrap();
    let whole = disk.to_vec();
    for (cut, is_sound) in [(300, true), (65_000, true), (65_536, false), (70_000, false)] {
        let bytes = whole[..whole.len() - cut].to_vec();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("image"), &bytes).unwrap();
        let theirs = qemu::qemu_img().current_dir(dir.path()).args(["check", "image"]).output();
        assert_eq!(theirs.unwrap().status.success(), is_sound, "{cut}");
        let disk: Disk = Arc::new(MemoryStorage::new(bytes));
        let checked = cowshed::image::check::CheckOptions::default();
        let report =
            block_on(cowshed::image::check::check_storage(&disk, &checked, &mut ())).unwrap();
        assert_eq!(report.is_clean(), is_sound, "{cut}");
        // What is missing of the last one reads as zeros.
        if is_sound {
            assert!(is_all(&read(&disk, 131_072 - cut as u64, cut), 0));
        }
    }
}

#[test]
fn corner_34_an_id_comes_before_a_name() {
    let disk = new(1 << 20, |_| ());
    change(&disk, async |image| {
        for (byte, name) in [(1, "2"), (2, "same"), (3, "same")] {
            image.write_at(&[byte; 512], 0).await?;
            let made = image.create_snapshot(&NewSnapshot::new(name)).await?;
            assert_eq!(made.id, byte.to_string().into_bytes());
        }
        Ok(())
    })
    .unwrap();
    let is = |selector: SnapshotSelector| {
        let mut options = OpenOptions::default();
        options.snapshot = Some(selector);
        let source = Source::qcow2(Arc::clone(&disk), "image");
        let image = block_on(Image::open(source, &RefuseAll::new(), options)).unwrap().image;
        let mut bytes = [0; 1];
        block_on(image.read_at(&mut bytes, 0)).unwrap();
        bytes[0]
    };
    assert_eq!(is(SnapshotSelector::IdOrName(b"2".to_vec())), 2);
    assert_eq!(is(SnapshotSelector::Name(b"2".to_vec())), 1);
    assert_eq!(is(SnapshotSelector::IdOrName(b"same".to_vec())), 2);
    // An id that was there before is not given again as long as a higher one is there.
    change(&disk, async |image| {
        image.delete_snapshot(&SnapshotSelector::Id(b"2".to_vec())).await?;
        let made = image.create_snapshot(&NewSnapshot::new("new")).await?;
        assert_eq!(made.id, b"4");
        Ok(())
    })
    .unwrap();
}

#[test]
fn corner_35_snapshot_brings_its_size_back() {
    let disk = new(1 << 20, |options| options.cluster_size = 512);
    let apply = async |image: &Image<Disk>| {
        image.apply_snapshot(&SnapshotSelector::Name(b"a".to_vec())).await
    };
    change(&disk, async |image| {
        image.write_at(&vec![1; 1 << 20], 0).await?;
        image.create_snapshot(&NewSnapshot::new("a")).await.map(drop)
    })
    .unwrap();
    // Longer, with a longer L1 table, and back; then shorter, and back.
    for size in [64 << 20, 4096] {
        change(&disk, async |image| {
            let mut options = ResizeOptions::default();
            options.shrink = true;
            image.resize(size, &options).await?;
            image.write_at(&[2; 512], size - 512).await?;
            apply(image).await
        })
        .unwrap();
        assert_eq!(tables(&disk).size(), 1 << 20);
        assert!(is_all(&read(&disk, 0, 1 << 20), 1));
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("image"), disk.to_vec()).unwrap();
        qemu::img(dir.path(), ["check", "-q", "image"]);
    }
}

#[test]
fn corner_37_vm_state_is_the_snapshots_alone() {
    let disk = new(1 << 20, |_| ());
    change(&disk, async |image| {
        image.write_vm_state_at(&[3; 70_000], 0).await?;
        let mut new = NewSnapshot::new("a");
        new.vm_state_len = 70_000;
        image.create_snapshot(&new).await.map(drop)
    })
    .unwrap();
    // It lies behind the disk, so that the L1 table is longer than the disk needs.
    assert!(tables(&disk).l1_entries() >= 2);
    let mut state = vec![0; 70_000];
    block_on(open(&disk, false).unwrap().read_vm_state_at(&mut state, 0)).unwrap();
    assert!(is_all(&state, 0), "the active state has it too");
    change(&disk, async |image| image.apply_snapshot(&SnapshotSelector::Name(b"a".to_vec())).await)
        .unwrap();
    block_on(open(&disk, false).unwrap().read_vm_state_at(&mut state, 0)).unwrap();
    assert!(is_all(&state, 3));
}

#[test]
fn corner_38_version_2_with_snapshots_keeps_its_size() {
    let disk = new(1 << 20, |options| options.version = cowshed::format::Version::V2);
    let grow = async |image: &Image<Disk>| image.resize(2 << 20, &ResizeOptions::default()).await;
    change(&disk, async |image| image.create_snapshot(&NewSnapshot::new("a")).await).unwrap();
    let refused = change(&disk, grow).unwrap_err();
    assert!(refused.to_string().contains("Can't resize a v2 image which has snapshots"));
    let disk = new(1 << 20, |_| ());
    change(&disk, async |image| image.create_snapshot(&NewSnapshot::new("a")).await).unwrap();
    change(&disk, grow).unwrap();
    let mut image = open(&disk, true).unwrap();
    let mut options = AmendOptions::default();
    options.version = Some(cowshed::format::Version::V2);
    let refused = block_on(image.amend(&options, |_, _| ())).unwrap_err();
    assert!(refused.to_string().contains("Internal snapshots prevent downgrade"), "{refused}");
}

#[test]
fn corner_39_growth_hides_a_longer_backing_file() {
    for options in ["", "compat=0.10", "extended_l2=on"] {
        let overlay = Overlay::new("1M", options, "200k");
        overlay.change(async |image| image.resize(2 << 20, &ResizeOptions::default()).await);
        overlay.reads(&["read -P 9 0 200k", "read -P 0 200k 1848k"]);
        if options.is_empty() {
            assert!(overlay.map().contains("\"depth\": 0"), "{}", overlay.map());
        }
    }
}

#[test]
fn corner_40_discards_do_not_show_the_backing_file() {
    let overlay = Overlay::new("1M", "", "1M");
    overlay.change(async |image| {
        image.write_at(&[1; 65536], 0).await?;
        // One that was the image's own, and one that was not.
        image.discard_at(0, 131_072).await
    });
    overlay.reads(&["read -P 0 0 128k", "read -P 9 128k 64k"]);
    let tables = Tables { bytes: std::fs::read(overlay.0.path().join("image")).unwrap() };
    let at = tables.entry_of(tables.l1(), 0).unwrap();
    assert_eq!((tables.word(at), tables.word(at + 8)), (1, 1));
    // Version 2 cannot say it: it keeps what it has, and writes zeros where it must.
    let overlay = Overlay::new("1M", "compat=0.10", "1M");
    overlay.change(async |image| {
        image.write_at(&[1; 65536], 0).await?;
        image.discard_at(0, 131_072).await?;
        image.write_zeroes_at(131_072, 65536, ZeroMode::MayUnmap).await
    });
    overlay.reads(&["read -P 1 0 64k", "read -P 9 64k 64k", "read -P 0 128k 64k"]);
    // Made empty, it shows its backing file.
    overlay.change(async |image| image.make_empty().await);
    overlay.reads(&["read -P 9 0 1M"]);
}

#[test]
fn corner_42_shrinking_keeps_the_length_of_the_l1_table() {
    let disk = new(64 << 20, |options| options.cluster_size = 4096);
    change(&disk, async |image| image.write_at(&[7; 4096], 48 << 20).await).unwrap();
    let before = tables(&disk).l1_entries();
    change(&disk, async |image| {
        let mut options = ResizeOptions::default();
        options.shrink = true;
        image.resize(4 << 20, &options).await
    })
    .unwrap();
    let tables = tables(&disk);
    assert_eq!((tables.l1_entries(), tables.size()), (before, 4 << 20));
    for index in 2..before {
        assert_eq!(tables.word(tables.l1() + index * 8), 0, "L1 entry {index}");
    }
    change(&disk, async |image| image.resize(64 << 20, &ResizeOptions::default()).await).unwrap();
    assert!(is_all(&read(&disk, 48 << 20, 4096), 0));
}

#[test]
fn corner_45_raw_data_file_has_the_zeros_and_no_backing_file() {
    let (disk, data) = (Disk::default(), Disk::default());
    let mut options = CreateOptions::new(1 << 20);
    options.data_file = Some("data".into());
    options.data_file_raw = true;
    block_on(create(&disk, Some(&data), &options)).unwrap();
    // It is preallocated: whoever reads the data file alone needs no map.
    let entries = tables(&disk);
    let at = entries.entry_of(entries.l1(), 3).unwrap();
    assert_eq!(entries.word(at), 1 << 63 | 0x3_0000);

    struct DataFile(Disk);
    impl cowshed::image::Gate for DataFile {
        type Storage = Disk;
        async fn open(
            &self,
            _: &cowshed::image::Reference<'_>,
        ) -> Result<cowshed::image::Answer<Disk>> {
            Ok(cowshed::image::Answer::Open(Source::raw(Arc::clone(&self.0), "data")))
        }
    }
    let mut open = OpenOptions::default();
    open.write = Some(WriteOptions::default());
    block_on(async {
        let source = Source::qcow2(Arc::clone(&disk), "image");
        let image = Image::open(source, &DataFile(Arc::clone(&data)), open).await.unwrap().image;
        image.write_at(&[7; 131_072], 0).await.unwrap();
        image.write_zeroes_at(65536, 65536, ZeroMode::MayUnmap).await.unwrap();
        let refused = image.set_backing_file(Some((b"base", b"raw"))).await.unwrap_err();
        assert!(refused.to_string().contains("raw data file"), "{refused}");
        image.close().await.unwrap();
    });
    let bytes = data.to_vec();
    assert!(is_all(&bytes[..65536], 7) && is_all(&bytes[65536..131_072], 0));
}

#[test]
fn corner_48_version_2_takes_no_bitmap() {
    let disk = new(1 << 20, |options| options.version = cowshed::format::Version::V2);
    let refused = change(&disk, async |image| image.add_bitmap(b"a", None, true).await);
    assert!(matches!(refused, Err(Error::InvalidArgument(_))), "{refused:?}");

    // Those that there are go with version 3, and nothing of them is left.
    let disk = new(1 << 20, |_| ());
    change(&disk, async |image| {
        image.write_at(&[7; 65536], 0).await?;
        image.add_bitmap(b"a", None, true).await?;
        image.add_bitmap(b"b", None, false).await?;
        image.write_at(&[8; 65536], 65536).await
    })
    .unwrap();
    let mut image = open(&disk, true).unwrap();
    let mut options = AmendOptions::default();
    options.version = Some(cowshed::format::Version::V2);
    block_on(image.amend(&options, |_, _| ())).unwrap();
    block_on(image.close()).unwrap();
    assert_eq!(tables(&disk).half(4), 2);
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("image"), disk.to_vec()).unwrap();
    let said = qemu::run(qemu::qemu_img().current_dir(dir.path()).args(["check", "image"]));
    assert!(said.contains("No errors were found"), "{said}");
    assert!(is_all(&read(&disk, 0, 65536), 7) && is_all(&read(&disk, 65536, 65536), 8));
}
