//! What lies behind the header: L1 and L2 tables, compressed clusters, refcounts, snapshots, bitmaps.

use super::bases::{Base, Bytes};
use super::{Case, Expected, Place, case, place};

const L1: u64 = 0x30000;
const L2: u64 = 0x40000;
const REFCOUNT_TABLE: u64 = 0x10000;
const REFCOUNT_BLOCK: u64 = 0x20000;
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;

pub(super) fn cases() -> Vec<Case> {
    [
        l1(),
        l2(),
        compressed(),
        extended(),
        data_file(),
        refcounts(),
        snapshots(),
        snapshot_tables(),
        bitmaps(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn check(text: impl Into<String>, structure: &'static str, offset: u64) -> Expected {
    Expected::Check(text.into(), structure, offset)
}

fn read(
    at: u64,
    code: &'static str,
    structure: &'static str,
    offset: u64,
    text: impl Into<String>,
) -> Expected {
    Expected::Read(at, place(code, structure, offset, text))
}

fn past_end(offset: u64, len: u64) -> String {
    format!(
        "ERROR: counting reference for region exceeding the end of the file by one cluster or more: offset \
         {offset:#x} size {len:#x}"
    )
}

fn l1() -> Vec<Case> {
    let mut cases = Vec::new();
    for offset in [0x40200, 0x48000] {
        let entry = COPIED | offset;
        let text =
            format!("L1 entry 0 at 0x30000: L2 table offset {offset:#x} is not aligned to 0x10000");
        cases.push(
            case(
                format!("L1 entry {entry:#x}"),
                Base::Plain,
                move |b| b.u64(L1, entry),
                read(0, "l1-entry-unaligned", "L1 table", L1, text),
            )
            .and(check(
                format!(
                    "ERROR l2_offset={offset:x}: Table is not cluster aligned; L1 entry corrupted"
                ),
                "L1 table",
                L1,
            )),
        );
    }
    for bits in [1, 0x100, 1 << 56, 1 << 62] {
        let entry = COPIED | L2 | bits;
        let text = format!("ERROR found L1 entry with reserved bits set: {entry:x}");
        cases.push(case(
            format!("L1 entry {entry:#x}"),
            Base::Plain,
            move |b| b.u64(L1, entry),
            check(text, "L1 table", L1),
        ));
    }
    for offset in [0xb0000, 1 << 40, 0x00ff_ffff_ffff_0000] {
        let entry = COPIED | offset;
        let text = "its 0x1000 bytes end past the end of the file at 0xb0000";
        cases.push(
            case(
                format!("L1 entry {entry:#x}"),
                Base::Plain,
                move |b| b.u64(L1, entry),
                read(0, "past-end-of-file", "L2 table", offset, text),
            )
            .and(check(past_end(offset, 0x10000), "L1 table", L1)),
        );
    }
    let text = "ERROR OFLAG_COPIED L2 cluster: l1_index=1 l1_entry=90000 refcount=1";
    cases.push(case(
        "L1 entry without copied flag",
        Base::Plain,
        |b| b.u64(L1 + 8, 0x90000),
        check(text, "L1 table", L1 + 8),
    ));
    let text = "ERROR cluster 4 refcount=1 reference=2";
    cases.push(case(
        "two L1 entries of one L2 table",
        Base::Plain,
        |b| b.u64(L1 + 8, COPIED | L2),
        check(text, "refcount block", L2),
    ));
    // As an L2 table, it maps itself once more.
    let text = "ERROR cluster 3 refcount=1 reference=3";
    cases.push(case(
        "L2 table on the L1 table",
        Base::Plain,
        |b| b.u64(L1 + 8, COPIED | L1),
        check(text, "refcount block", L1),
    ));
    let both = |b: &mut Bytes| {
        b.u64(L1 + 8, COPIED | L1);
        b.u16(REFCOUNT_BLOCK + 3 * 2, 3);
    };
    let text = "ERROR cluster 3 is used twice: it belongs to the L1 table";
    cases.push(case(
        "L2 table on the L1 table, refcounts agree",
        Base::Plain,
        both,
        check(text, "L2 table", L1),
    ));
    cases
}

fn l2() -> Vec<Case> {
    let mut cases = Vec::new();
    for offset in [0x50200, 0x50e00, 0x58000] {
        let entry = COPIED | offset;
        let text =
            format!("L2 entry 0 at 0x40000: host offset {offset:#x} is not aligned to 0x10000");
        cases.push(
            case(format!("L2 entry {entry:#x}"), Base::Plain, move |b| b.u64(L2, entry), read(0, "l2-entry-unaligned", "L2 table", L2, text))
                .and(check(
                    format!("ERROR offset={offset:x}: Data cluster is not properly aligned; L2 entry corrupted."),
                    "L2 table",
                    L2,
                )),
        );
    }
    let entry = COPIED | 0x8_0200 | 1;
    let text =
        "ERROR offset=80200: Preallocated cluster is not properly aligned; L2 entry corrupted.";
    cases.push(
        case(
            "zero cluster kept off its alignment",
            Base::Plain,
            move |b| b.u64(L2 + 32, entry),
            check(text, "L2 table", L2 + 32),
        )
        .and(read(
            256 << 10,
            "l2-entry-unaligned",
            "L2 table",
            L2,
            "L2 entry 4 at 0x40000: host offset 0x80200 is not aligned to 0x10000",
        )),
    );
    for bits in [2, 0x100, 1 << 56, 1 << 61] {
        let entry = COPIED | 0x50000 | bits;
        let text = format!("ERROR found l2 entry with reserved bits set: {entry:x}");
        cases.push(case(
            format!("L2 entry {entry:#x}"),
            Base::Plain,
            move |b| b.u64(L2, entry),
            check(text, "L2 table", L2),
        ));
    }
    for offset in [0xb0000, 1 << 40, 0x00ff_ffff_ffff_0000] {
        let entry = COPIED | offset;
        cases.push(
            case(
                format!("L2 entry {entry:#x}"),
                Base::Plain,
                move |b| b.u64(L2, entry),
                check(past_end(offset, 0x10000), "L2 table", L2),
            )
            .and(check(
                format!("ERROR OFLAG_COPIED data cluster: l2_entry={entry:x} refcount=0"),
                "L2 table",
                L2,
            )),
        );
    }
    let text = "ERROR OFLAG_COPIED data cluster: l2_entry=50000 refcount=1";
    cases.push(case(
        "L2 entry without copied flag",
        Base::Plain,
        |b| b.u64(L2, 0x50000),
        check(text, "L2 table", L2),
    ));
    let text = "ERROR cluster 5 refcount=1 reference=2";
    cases.push(
        case(
            "two L2 entries of one cluster",
            Base::Plain,
            |b| b.u64(L2 + 8, COPIED | 0x50000),
            check(text, "refcount block", 0x50000),
        )
        .and(check("Leaked cluster 6 refcount=1 reference=0", "refcount block", 0x60000)),
    );
    for (name, offset, structure) in [
        ("header", 0_u64, "header"),
        ("refcount table", REFCOUNT_TABLE, "refcount table"),
        ("refcount block", REFCOUNT_BLOCK, ""),
        ("L1 table", L1, "L1 table"),
        ("L2 table", L2, ""),
    ] {
        if offset == 0 {
            continue;
        }
        let cluster = offset >> 16;
        let patch = move |b: &mut Bytes| b.u64(L2 + 8 * 100, COPIED | offset);
        let text = format!("ERROR cluster {cluster} refcount=1 reference=2");
        cases.push(case(
            format!("data on the {name}"),
            Base::Plain,
            patch,
            check(text, "refcount block", offset),
        ));
        // The refcounts say that it is all right.
        let patch = move |b: &mut Bytes| {
            b.u64(L2 + 8 * 100, offset);
            b.u16(REFCOUNT_BLOCK + cluster * 2, 2);
        };
        let belongs =
            if structure.is_empty() { "metadata".to_owned() } else { format!("the {structure}") };
        let text = format!("ERROR cluster {cluster} is used twice: it belongs to {belongs}");
        let expected = match name {
            // Counted after everything else, as QEMU does.
            "refcount block" => {
                check("ERROR refcount block 0 refcount=2", "refcount table", REFCOUNT_TABLE)
            }
            _ => check(text, "data cluster", L2 + 8 * 100),
        };
        cases.push(case(
            format!("data on the {name}, refcounts agree"),
            Base::Plain,
            patch,
            expected,
        ));
    }
    let entry = COPIED | 0x50001;
    let text = format!(
        "L2 entry 0 at 0x40000: descriptor {entry:#x} has the zero flag, which version 2 does not have"
    );
    cases.push(
        case(
            "zero flag in version 2",
            Base::V2,
            move |b| b.u64(L2, entry),
            read(0, "zero-flag-in-v2", "L2 table", L2, text),
        )
        .and(check(
            format!("ERROR found l2 entry with reserved bits set: {entry:x}"),
            "L2 table",
            L2,
        )),
    );
    cases
}

fn compressed() -> Vec<Case> {
    let mut cases = Vec::new();
    const AT: u64 = 192 << 10;
    const ENTRY: u64 = L2 + 24;
    let patch = |b: &mut Bytes| b.u64(ENTRY, COMPRESSED | 0x20_0000);
    let text = "its 0x200 bytes end past the end of the file at 0xb0000";
    cases.push(
        case(
            "compressed cluster behind the file",
            Base::Plain,
            patch,
            read(AT, "past-end-of-file", "compressed cluster", 0x20_0000, text),
        )
        .and(check(past_end(0x20_0000, 0x200), "L2 table", ENTRY)),
    );
    let patch = |b: &mut Bytes| b.bytes(0x70000, &[0xff; 512]);
    let text = "512 bytes are not a stream of the image's compression type";
    cases.push(case(
        "compressed bytes are no stream",
        Base::Plain,
        patch,
        read(AT, "stream-invalid", "compressed cluster", 0x70000, text),
    ));
    // A stream of one stored block of five bytes.
    let patch = |b: &mut Bytes| b.bytes(0x70000, &[1, 5, 0, 0xfa, 0xff, 1, 2, 3, 4, 5]);
    let text = "stream within 512 bytes ends before it has made a cluster of 65536";
    cases.push(case(
        "compressed stream is short",
        Base::Plain,
        patch,
        read(AT, "stream-short", "compressed cluster", 0x70000, text),
    ));
    let entry = COPIED | COMPRESSED | 0x70000;
    let text = "ERROR: coffset=0x70000: copied flag must never be set for compressed clusters";
    cases.push(case(
        "compressed cluster with copied flag",
        Base::Plain,
        move |b| b.u64(ENTRY, entry),
        check(text, "L2 table", ENTRY),
    ));
    // Five more sectors than there are: into the next host cluster, whose refcount says 1.
    let patch = |b: &mut Bytes| b.u64(ENTRY, COMPRESSED | (127 << 54) | 0x70200);
    let text = "ERROR cluster 8 refcount=1 reference=2";
    cases.push(case(
        "compressed cluster reaches into another",
        Base::Plain,
        patch,
        check(text, "refcount block", 0x80000),
    ));
    // To the end of the file: two streams of 20 bytes.
    let text = "40 bytes are not a stream of the image's compression type";
    for (name, bytes) in [("zeros", [0; 16]), ("another magic", *b"\x1f\x8b\x08aaaaaaaaaaaaa")] {
        let patch = move |b: &mut Bytes| b.bytes(0x50000, &bytes);
        let expected = read(0, "stream-invalid", "compressed cluster", 0x50000, text);
        cases.push(case(format!("zstd: {name}"), Base::Zstd, patch, expected));
    }
    // The frame's own checks fail; it is nothing but a stream that is not one.
    let patch = |b: &mut Bytes| b.u8(0x50004, 0xff);
    cases.push(case(
        "zstd: frame header",
        Base::Zstd,
        patch,
        read(0, "stream-invalid", "compressed cluster", 0x50000, text),
    ));
    cases
}

fn extended() -> Vec<Case> {
    let mut cases = Vec::new();
    // Entry 0: whole; entry 1: the first subcluster; entry 2: zeros.
    let patch = |b: &mut Bytes| b.u64(L2 + 8, 0x0000_0003_ffff_ffff);
    let text = "L2 entry 0 at 0x40000: subclusters 0x00000003 are both allocated and zero";
    let said = "ERROR offset=50000: Allocated cluster has corrupted subcluster allocation bitmap";
    cases.push(
        case(
            "subclusters both allocated and zero",
            Base::Extended,
            patch,
            read(0, "subcluster-allocated-and-zero", "L2 table", L2, text),
        )
        .and(check(said, "L2 table", L2)),
    );
    let patch = |b: &mut Bytes| b.u64(L2 + 8 * 5, 0xffff_fff0_0000_000f);
    let text =
        "L2 entry 2 at 0x40000: subclusters 0x0000000f are allocated, but the host offset is 0";
    let said = "ERROR: Unallocated cluster has non-zero subcluster allocation map";
    cases.push(
        case(
            "subclusters allocated nowhere",
            Base::Extended,
            patch,
            read(128 << 10, "subcluster-allocated-without-cluster", "L2 table", L2, text),
        )
        .and(check(said, "L2 table", L2 + 8 * 4)),
    );
    let patch = |b: &mut Bytes| b.u64(L2, COPIED | 0x50200);
    let text = "L2 entry 0 at 0x40000: host offset 0x50200 is not aligned to 0x10000";
    let said = "ERROR offset=50200: Data cluster is not properly aligned; L2 entry corrupted.";
    cases.push(
        case(
            "extended entry off its alignment",
            Base::Extended,
            patch,
            read(0, "l2-entry-unaligned", "L2 table", L2, text),
        )
        .and(check(said, "L2 table", L2)),
    );
    let patch = |b: &mut Bytes| {
        b.u64(L2, COPIED | 0x50200);
        b.u64(L2 + 8, 0);
    };
    let said =
        "ERROR offset=50200: Preallocated cluster is not properly aligned; L2 entry corrupted.";
    cases.push(case(
        "empty extended entry off its alignment",
        Base::Extended,
        patch,
        check(said, "L2 table", L2),
    ));
    let patch = |b: &mut Bytes| b.u64(L2, COMPRESSED | 0x50000);
    let said = "ERROR compressed cluster 0 with non-zero subcluster allocation bitmap, entry=0x4000000000050000";
    cases.push(case(
        "compressed cluster with subclusters",
        Base::Extended,
        patch,
        check(said, "L2 table", L2),
    ));
    let patch = |b: &mut Bytes| b.u64(L2, COPIED | 0x50001);
    let said = "ERROR found l2 entry with reserved bits set: 8000000000050001";
    cases.push(case(
        "zero flag beside subclusters",
        Base::Extended,
        patch,
        check(said, "L2 table", L2),
    ));
    cases
}

fn data_file() -> Vec<Case> {
    let mut cases = Vec::new();
    let base = Base::DataFile;
    let patch = |b: &mut Bytes| b.u64(L2, COPIED | 0x10000);
    let text =
        "L2 entry 0 at 0x40000: host offset 0x10000 in the data file is not the guest offset 0x0";
    cases.push(case(
        "data file: another offset",
        base,
        patch,
        read(0, "data-file-offset", "L2 table", L2, text),
    ));
    let patch = |b: &mut Bytes| b.u64(L2, COMPRESSED | 0x50000);
    let text = "L2 entry 0 at 0x40000: descriptor 0x4000000000050000 is a compressed cluster, which an image with a data file cannot have";
    cases.push(
        case(
            "data file: compressed cluster",
            base,
            patch,
            read(0, "compressed-with-data-file", "L2 table", L2, text),
        )
        .and(check(
            "ERROR compressed cluster 0 with data file, entry=0x4000000000050000",
            "L2 table",
            L2,
        )),
    );
    let patch = |b: &mut Bytes| b.u64(L2 + 24, 0x30000);
    let text = "ERROR OFLAG_COPIED data cluster: l2_entry=30000 refcount=1";
    cases.push(case(
        "data file: entry without copied flag",
        base,
        patch,
        check(text, "L2 table", L2 + 24),
    ));
    let patch = |b: &mut Bytes| {
        b.u32(60, 1);
        b.u64(64, 0x40000);
    };
    let text = "ERROR 1 snapshots in image with data file";
    cases.push(case("data file: snapshots", base, patch, check(text, "snapshot table", 0x40000)));
    cases
}

fn refcounts() -> Vec<Case> {
    let mut cases = Vec::new();
    for (cluster, refcount, said) in [
        (0, 0, "ERROR cluster 0 refcount=0 reference=1"),
        (1, 2, "Leaked cluster 1 refcount=2 reference=1"),
        (4, 0, "ERROR cluster 4 refcount=0 reference=1"),
        (5, 0, "ERROR cluster 5 refcount=0 reference=1"),
        (5, 65535, "Leaked cluster 5 refcount=65535 reference=1"),
        (7, 0, "ERROR cluster 7 refcount=0 reference=1"),
        (8, 2, "Leaked cluster 8 refcount=2 reference=1"),
    ] {
        let patch = move |b: &mut Bytes| b.u16(REFCOUNT_BLOCK + cluster * 2, refcount);
        let expected = check(said, "refcount block", cluster << 16);
        cases.push(case(
            format!("refcount {refcount} of cluster {cluster}"),
            Base::Plain,
            patch,
            expected,
        ));
    }
    for (cluster, refcount, said) in [
        (4, 2, "ERROR OFLAG_COPIED L2 cluster: l1_index=0 l1_entry=8000000000040000 refcount=2"),
        (5, 2, "ERROR OFLAG_COPIED data cluster: l2_entry=8000000000050000 refcount=2"),
        (8, 3, "ERROR OFLAG_COPIED data cluster: l2_entry=8000000000080001 refcount=3"),
    ] {
        let patch = move |b: &mut Bytes| b.u16(REFCOUNT_BLOCK + cluster * 2, refcount);
        let (structure, offset) = match cluster {
            4 => ("L1 table", L1),
            5 => ("L2 table", L2),
            _ => ("L2 table", L2 + 32),
        };
        let name = format!("copied flag and refcount {refcount} of cluster {cluster}");
        cases.push(case(name, Base::Plain, patch, check(said, structure, offset)));
    }
    for bits in [1, 0x100] {
        let patch = move |b: &mut Bytes| b.u64(REFCOUNT_TABLE, REFCOUNT_BLOCK | bits);
        let text = "ERROR refcount table entry 0 has reserved bits set";
        let expected = check(text, "refcount table", REFCOUNT_TABLE);
        cases.push(case(
            format!("refcount table entry with {bits:#x}"),
            Base::Plain,
            patch,
            expected,
        ));
    }
    let patch = |b: &mut Bytes| b.u64(REFCOUNT_TABLE, REFCOUNT_BLOCK + 512);
    let text = "ERROR refcount block 0 is not cluster aligned; refcount table entry corrupted";
    cases.push(
        case(
            "refcount block off its alignment",
            Base::Plain,
            patch,
            check(text, "refcount table", REFCOUNT_TABLE),
        )
        .and(check(
            "Can't get refcount for cluster 3: Input/output error",
            "refcount table",
            L1,
        )),
    );
    for offset in [0xb0000, 1 << 50, 1 << 63] {
        let patch = move |b: &mut Bytes| b.u64(REFCOUNT_TABLE + 8, offset);
        let text = "ERROR refcount block 1 is outside image";
        let expected = check(text, "refcount table", REFCOUNT_TABLE + 8);
        cases.push(case(format!("refcount block at {offset:#x}"), Base::Plain, patch, expected));
    }
    let patch = |b: &mut Bytes| b.u64(REFCOUNT_TABLE + 8, REFCOUNT_BLOCK);
    let text = "ERROR refcount block 1 refcount=2";
    cases.push(case(
        "two entries of one refcount block",
        Base::Plain,
        patch,
        check(text, "refcount table", REFCOUNT_TABLE + 8),
    ));
    let patch = |b: &mut Bytes| b.u64(REFCOUNT_TABLE, 0);
    let text = "ERROR cluster 3 refcount=0 reference=1";
    cases.push(case("no refcount block", Base::Plain, patch, check(text, "refcount block", L1)));
    let patch = |b: &mut Bytes| b.u32(56, 0);
    let text = "ERROR cluster 3 refcount=0 reference=1";
    cases.push(case("no refcount table", Base::Plain, patch, check(text, "refcount block", L1)));
    let patch = |b: &mut Bytes| b.u64(48, 1 << 40);
    cases.push(case(
        "refcount table behind the file",
        Base::Plain,
        patch,
        check(past_end(1 << 40, 0x10000), "refcount table", 1 << 40),
    ));
    let patch = |b: &mut Bytes| b.u64(48, L1);
    let text = "ERROR refcount block 0 is outside image";
    cases.push(case(
        "refcount table on the L1 table",
        Base::Plain,
        patch,
        check(text, "refcount table", L1),
    ));
    let patch = |b: &mut Bytes| {
        let len = b.len();
        b.cut(len - 0x8000);
        // The second L2 table is where the file ends now.
        b.u64(L1 + 8, COPIED | 0xa0000);
    };
    cases.push(case(
        "L2 table cut in the middle",
        Base::Plain,
        patch,
        check("ERROR the file ends 32768 bytes before the structure does", "L2 table", 0xa0000),
    ));
    cases
}

/// The tables that a snapshot has for itself.
fn snapshot_tables() -> Vec<Case> {
    // The L1 table of "one", and its first L2 table: the active state has another one.
    const TABLE: u64 = 0xb0000;
    let base = Base::Snapshots;
    let end = "end past the end of the file at 0x10008c";
    let mut cases = Vec::new();
    // Whoever changes an image has to know all of its clusters.
    let change = |structure, offset, text: &str| {
        let place = || Place { code: "write-unsafe", structure, offset, text: text.to_owned() };
        [Expected::Apply("one", place()), Expected::Delete("one", place())]
    };
    let unsound = || change("header", None, "refcounts and tables contradict each other");
    let mut add = |name: String, patch: Box<dyn Fn(&mut Bytes)>, expected: Vec<Expected>| {
        cases.push(Case { name, base, patch, expected });
    };
    for offset in [0x40200, 0x48000] {
        let text =
            format!("L1 entry 0 at 0xb0000: L2 table offset {offset:#x} is not aligned to 0x10000");
        let found =
            format!("ERROR l2_offset={offset:x}: Table is not cluster aligned; L1 entry corrupted");
        let said = place("l1-entry-unaligned", "L1 table", TABLE, text);
        let [apply, delete] = unsound();
        add(
            format!("snapshot's L1 entry {offset:#x}"),
            Box::new(move |b| b.u64(TABLE, offset)),
            vec![
                Expected::Snapshot("one", said),
                check(found, "snapshot L1 table", TABLE),
                apply,
                delete,
            ],
        );
    }
    for offset in [0x20_0000, 1 << 40, 0x00ff_ffff_ffff_0000] {
        let said = place("past-end-of-file", "L2 table", offset, end);
        let missing = past_end(offset, 0x10000);
        let text = missing.trim_start_matches("ERROR: ");
        let [apply, delete] = change("snapshot L1 table", Some(TABLE), text);
        add(
            format!("snapshot's L1 entry {offset:#x}"),
            Box::new(move |b| b.u64(TABLE, offset)),
            vec![
                Expected::Snapshot("one", said),
                check(past_end(offset, 0x10000), "snapshot L1 table", TABLE),
                apply,
                delete,
            ],
        );
    }
    for bits in [1, 0x100, 1 << 56, 1 << 62] {
        let entry = COPIED | L2 | bits;
        let text = format!("ERROR found L1 entry with reserved bits set: {entry:x}");
        let found = check(text, "snapshot L1 table", TABLE);
        add(
            format!("snapshot's L1 entry {entry:#x}"),
            Box::new(move |b| b.u64(TABLE, entry)),
            vec![found],
        );
    }
    for offset in [0x50200, 0x58000] {
        let text =
            format!("L2 entry 0 at 0x40000: host offset {offset:#x} is not aligned to 0x10000");
        let found = format!(
            "ERROR offset={offset:x}: Data cluster is not properly aligned; L2 entry corrupted."
        );
        let [apply, delete] = unsound();
        add(
            format!("snapshot's L2 entry {offset:#x}"),
            Box::new(move |b| b.u64(L2, offset)),
            vec![
                Expected::Snapshot("one", place("l2-entry-unaligned", "L2 table", L2, text)),
                check(found, "L2 table", L2),
                apply,
                delete,
            ],
        );
    }
    for offset in [0x20_0000, 1 << 40] {
        let [apply, delete] = unsound();
        add(
            format!("snapshot's L2 entry {offset:#x}"),
            Box::new(move |b| b.u64(L2, offset)),
            vec![check(past_end(offset, 0x10000), "L2 table", L2), apply, delete],
        );
    }
    // What nothing else has by its refcount.
    for (name, entry, at) in [
        ("snapshot's L2 table on the active L1 table", COPIED | L1, TABLE),
        ("snapshot's data on the active L1 table", L1, L2),
    ] {
        let found = check("ERROR cluster 3 refcount=1 reference=2", "refcount block", L1);
        let [apply, delete] = unsound();
        add(name.to_owned(), Box::new(move |b| b.u64(at, entry)), vec![found, apply, delete]);
    }
    cases
}

fn snapshots() -> Vec<Case> {
    // Two entries: "one" at 0x100000, "two" 72 bytes behind it.
    const TABLE: u64 = 0x10_0000;
    const SECOND: u64 = TABLE + 72;
    let base = Base::Snapshots;
    let mut cases = Vec::new();
    for offset in [0xb0001, 0xb0200] {
        let patch = move |b: &mut Bytes| b.u64(TABLE, offset);
        let text = format!(
            "ERROR snapshot 1 (one) l1_offset={offset:#x}: L1 table is not cluster aligned; snapshot table entry corrupted"
        );
        let error = format!("L1 table offset {offset:#x} is not aligned to 0x10000");
        cases.push(
            case(
                format!("snapshot's L1 table at {offset:#x}"),
                base,
                patch,
                check(text, "snapshot table", TABLE),
            )
            .and(Expected::Snapshot(
                "one",
                place("snapshot-l1-table-unaligned", "snapshot table", TABLE, error),
            )),
        );
    }
    for entries in [(4 << 20) + 1, u32::MAX] {
        let patch = move |b: &mut Bytes| b.u32(TABLE + 8, entries);
        let text = format!(
            "ERROR snapshot 1 (one) l1_size={entries:#x}: L1 table is too large; snapshot table entry corrupted"
        );
        let error = format!(
            "L1 table of {:#x} bytes is too large: the limit is 0x2000000",
            u64::from(entries) * 8
        );
        cases.push(
            case(
                format!("snapshot's L1 table of {entries}"),
                base,
                patch,
                check(text, "snapshot table", TABLE),
            )
            .and(Expected::Snapshot(
                "one",
                place("snapshot-l1-table-too-large", "snapshot table", TABLE, error),
            )),
        );
    }
    for offset in [0x100_0000, 1 << 60] {
        let patch = move |b: &mut Bytes| b.u64(SECOND, offset);
        cases.push(case(
            format!("snapshot's L1 table at {offset:#x}"),
            base,
            patch,
            check(past_end(offset, 0x10), "snapshot L1 table", offset),
        ));
    }
    let patch = |b: &mut Bytes| b.u64(TABLE, 0x100_0000);
    let expected = Expected::Snapshot(
        "one",
        place(
            "past-end-of-file",
            "snapshot L1 table",
            0x100_0000,
            "its 0x10 bytes end past the end of the file at 0x10008c",
        ),
    );
    cases.push(case("snapshot's L1 table is missing", base, patch, expected));
    let patch = |b: &mut Bytes| b.u32(TABLE + 36, 1025);
    let error = "extra data of 1025 bytes is too large: the limit is 1024";
    let expected =
        Expected::Open(place("snapshot-extra-too-large", "snapshot table", TABLE, error));
    let text = "ERROR failed to read the snapshot table: Too much extra metadata in snapshot table entry 0: 1025 bytes exceed the limit of 1024";
    cases.push(case("snapshot with extra data of 1025 bytes", base, patch, expected).and(check(
        text,
        "snapshot table",
        TABLE,
    )));
    let patch = |b: &mut Bytes| b.u32(TABLE + 36, u32::MAX);
    let error = "extra data of 4294967295 bytes is too large: the limit is 1024";
    let expected =
        Expected::Open(place("snapshot-extra-too-large", "snapshot table", TABLE, error));
    cases.push(case("snapshot with extra data of 4 GiB", base, patch, expected));
    for (name, len) in [
        ("in its fixed part", SECOND + 39),
        ("in its extra data", SECOND + 50),
        ("in its name", SECOND + 67),
        ("between two", TABLE + 72),
    ] {
        let error = format!("end past the end of the file at {len:#x}");
        let expected = Expected::Open(place("past-end-of-file", "snapshot table", TABLE, error));
        cases.push(case(
            format!("snapshot table ends {name}"),
            base,
            move |b| b.cut(len),
            expected,
        ));
    }
    let patch = |b: &mut Bytes| b.u16(SECOND + 14, 65535);
    let expected = Expected::Open(place(
        "past-end-of-file",
        "snapshot table",
        TABLE,
        "end past the end of the file at 0x10008c",
    ));
    cases.push(case("snapshot's name of 65535 bytes", base, patch, expected));
    let patch = |b: &mut Bytes| b.u32(60, 3);
    let expected = Expected::Open(place(
        "past-end-of-file",
        "snapshot table",
        TABLE,
        "end past the end of the file at 0x10008c",
    ));
    cases.push(case("one snapshot more than there are", base, patch, expected));
    let patch = |b: &mut Bytes| b.u32(TABLE + 36, 8);
    let text = "ERROR snapshot table entry 0 is incomplete";
    cases.push(case(
        "snapshot with extra data of 8 bytes",
        base,
        patch,
        check(text, "snapshot table", TABLE),
    ));
    let patch = |b: &mut Bytes| b.u64(SECOND, 0xb0000);
    let text = "ERROR cluster 11 refcount=1 reference=2";
    cases.push(case(
        "two snapshots with one L1 table",
        base,
        patch,
        check(text, "refcount block", 0xb0000),
    ));
    let patch = |b: &mut Bytes| b.u64(0xb0000, 0x40200);
    let text = "L1 entry 0 at 0xb0000: L2 table offset 0x40200 is not aligned to 0x10000";
    cases.push(
        case(
            "snapshot's L1 entry off its alignment",
            base,
            patch,
            Expected::Snapshot("one", place("l1-entry-unaligned", "L1 table", 0xb0000, text)),
        )
        .and(check(
            "ERROR l2_offset=40200: Table is not cluster aligned; L1 entry corrupted",
            "snapshot L1 table",
            0xb0000,
        )),
    );
    cases
}

/// Its name, how the directory gets it, and what is said of it.
type Fault = (&'static str, fn(&mut Bytes), &'static str);

fn bitmaps() -> Vec<Case> {
    let mut cases = Vec::new();
    let base = Base::Bitmaps;
    // Two entries of 32 bytes at 0x1d0000.
    const DIRECTORY: u64 = 0x1d_0000;
    const SECOND: u64 = DIRECTORY + 32;
    let reason = |text: &str, at: u64| {
        check(format!("ERROR failed to read the bitmap directory: {text}"), "bitmap directory", at)
    };
    let faults: [Fault; 10] = [
        ("table offset 0", |b| b.u64(SECOND, 0), "table offset 0x0 is not aligned to 0x10000"),
        (
            "table off its alignment",
            |b| b.u64(SECOND, 0x1c_0200),
            "table offset 0x1c0200 is not aligned to 0x10000",
        ),
        ("table of 0 entries", |b| b.u32(SECOND + 8, 0), "table of 0 entries is out of bounds"),
        (
            "table of 8193 entries",
            |b| b.u32(SECOND + 8, 8193),
            "table of 8193 entries is out of bounds",
        ),
        (
            "table of 2^32-1 entries",
            |b| b.u32(SECOND + 8, u32::MAX),
            "table of 4294967295 entries is out of bounds",
        ),
        ("reserved flags", |b| b.u32(SECOND + 12, 8), "flags 0x8 are reserved"),
        ("type 0", |b| b.u8(SECOND + 16, 0), "type 0 is not known"),
        ("granularity 8", |b| b.u8(SECOND + 17, 8), "granularity_bits 8 is not in 9..=31"),
        ("granularity 32", |b| b.u8(SECOND + 17, 32), "granularity_bits 32 is not in 9..=31"),
        (
            "table too small for the disk",
            |b| b.u8(SECOND + 17, 9),
            "table of 1 entries is too small for the virtual disk",
        ),
    ];
    for (name, patch, text) in faults {
        let text = format!("bitmap 1 at {SECOND:#x}: {text}");
        let patch = move |b: &mut Bytes| {
            assert_eq!(b.bitmap_directory(), DIRECTORY);
            patch(b);
        };
        cases.push(case(format!("bitmap: {name}"), base, patch, reason(&text, SECOND)));
    }
    let patch = |b: &mut Bytes| b.u16(SECOND + 18, 1024);
    cases.push(case(
        "bitmap: name behind the directory",
        base,
        patch,
        reason(&format!("entry 1 at {SECOND:#x} is cut short"), SECOND),
    ));
    let count = |n| {
        move |b: &mut Bytes| {
            let at = b.extension(0x2385_2875);
            b.u32(at + 8, n);
        }
    };
    cases.push(case(
        "bitmaps: one more in the header",
        base,
        count(3),
        reason("it has 2 bitmaps instead of 3", DIRECTORY),
    ));
    cases.push(case(
        "bitmaps: one less in the header",
        base,
        count(1),
        reason("it has more than the 1 bitmaps of the header", SECOND),
    ));
    let patch = |b: &mut Bytes| b.cut(DIRECTORY + 63);
    cases.push(case(
        "bitmap directory is cut short",
        base,
        patch,
        check(
            "ERROR the file ends 1 bytes before the structure does",
            "bitmap directory",
            DIRECTORY,
        ),
    ));
    for entry in [2, 1 << 56, 0x1b_0001, 0x1b_0200] {
        let patch = move |b: &mut Bytes| {
            let table = b.get(SECOND);
            b.u64(table, entry);
        };
        let text = format!("ERROR bitmap table entry 0 is invalid: {entry:x}");
        cases.push(case(
            format!("bitmap table entry {entry:#x}"),
            base,
            patch,
            check(text, "bitmap table", 0x1c_0000),
        ));
    }
    let patch = |b: &mut Bytes| {
        let table = b.get(SECOND);
        b.u64(table, 1 << 40);
    };
    cases.push(case(
        "bitmap data behind the file",
        base,
        patch,
        check(past_end(1 << 40, 0x10000), "bitmap table", 0x1c_0000),
    ));
    let patch = |b: &mut Bytes| {
        let table = b.get(SECOND);
        b.u64(table, 0x30000);
    };
    cases.push(case(
        "bitmap data on the L1 table",
        base,
        patch,
        check("ERROR cluster 3 refcount=1 reference=2", "refcount block", 0x30000),
    ));
    cases
}
