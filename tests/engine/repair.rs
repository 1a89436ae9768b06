//! The fear: a repair that makes things worse. It must leave what `qemu-img check -r` leaves, or less; take nothing away that
//! could be read before; change nothing when it comes a second time; and, whenever the power goes, leave an image that
//! another repair mends.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::check::exit_code;
use crate::support::mutants::{Random, Tables, be, mutate, victims};
use crate::support::open::MemoryGate;
use crate::support::{Case, TestImage, cases, qemu};
use cowshed::image::check::{
    CheckObserver, CheckOptions, CheckReport, Finding, FindingKind, Repair, RepairReport,
    RepairStep, check_storage, repair_storage,
};
use cowshed::image::{
    CreateOptions, Format, Image, OpenOptions, RefuseAll, SnapshotSelector, Source, WriteOptions,
    create,
};
use cowshed::storage::{Buf, MemoryStorage, SendStorage};
use futures::executor::block_on;
use serde_json::Value;

/// Everything that is said, in order.
#[derive(Default)]
struct Log {
    lines: Vec<String>,
    kinds: Vec<FindingKind>,
}

impl CheckObserver for Log {
    fn finding(&mut self, finding: &Finding) {
        self.lines.push(finding.to_string());
        self.kinds.push(finding.kind.clone());
    }

    fn step(&mut self, step: &RepairStep) {
        self.lines.push(step.to_string());
    }
}

fn repair(bytes: Vec<u8>, what: Repair) -> cowshed::Result<(Vec<u8>, RepairReport, Log)> {
    let storage = MemoryStorage::new(bytes);
    let mut log = Log::default();
    let report = block_on(repair_storage(&storage, what, &CheckOptions::default(), &mut log))?;
    Ok((storage.into_vec(), report, log))
}

fn check(bytes: &[u8]) -> cowshed::Result<(CheckReport, Log)> {
    let storage = MemoryStorage::new(bytes.to_vec());
    let mut log = Log::default();
    let report = block_on(check_storage(&storage, &CheckOptions::default(), &mut log))?;
    Ok((report, log))
}

/// Check errors, corruptions, leaks left, and corruptions and leaks repaired.
type Totals = [u64; 5];

/// What the command would end with, and print in JSON.
fn outcome(after: &[u8], report: &RepairReport) -> (i32, Totals) {
    let left = if report.corruptions_fixed > 0 || report.leaks_fixed > 0 {
        check(after).unwrap().0
    } else {
        report.check.clone()
    };
    let code = if report.gave_up { 1 } else { exit_code(&left) };
    let fixed = [report.corruptions_fixed, report.leaks_fixed];
    (code, [left.check_errors, left.corruptions, left.leaks, fixed[0], fixed[1]])
}

fn qemu_repair(path: &Path, what: Repair) -> Option<(i32, Option<Totals>, String)> {
    let mut command = qemu::qemu_img();
    let what = if what == Repair::All { "all" } else { "leaks" };
    command.current_dir(path.parent().unwrap());
    command.args(["check", "-r", what, "-f", "qcow2", "--output=json"]).arg(path);
    let output = qemu::output_within(&mut command, Duration::from_secs(10))?;
    let totals = serde_json::from_slice::<Value>(&output.stdout).ok().map(|json| {
        ["check-errors", "corruptions", "leaks", "corruptions-fixed", "leaks-fixed"]
            .map(|key| json[key].as_u64().unwrap_or(0))
    });
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Some((output.status.code().unwrap_or(-1), totals, said))
}

fn qemu_check(path: &Path) -> i32 {
    let mut command = qemu::qemu_img();
    command.current_dir(path.parent().unwrap()).args(["check", "-f", "qcow2"]).arg(path);
    let output = qemu::output_within(&mut command, Duration::from_secs(10));
    output.and_then(|output| output.status.code()).unwrap_or(-1)
}

/// What can be read of an image: the active state and each snapshot, in pieces.
type Disks = BTreeMap<Vec<u8>, Vec<Option<Vec<u8>>>>;

const PIECE_LEN: usize = 4096;

/// Reads all that can be read. What cannot be opened or read is missing.
fn disks(bytes: &[u8], dir: &Path) -> Disks {
    let mut disks = Disks::new();
    let gate = MemoryGate::new(dir);
    let mut ids = vec![Vec::new()];
    while let Some(id) = ids.pop() {
        let mut options = OpenOptions::default();
        if !id.is_empty() {
            options.snapshot = Some(SnapshotSelector::Id(id.clone()));
        }
        let source = Source {
            storage: Arc::new(MemoryStorage::new(bytes.to_vec())),
            format: Format::Qcow2,
            location: "image".into(),
            identity: None,
        };
        let Ok(opened) = block_on(Image::open(source, &gate, options)) else { continue };
        let image = opened.image;
        if id.is_empty() {
            ids.extend(image.snapshots().iter().map(|snapshot| snapshot.id.clone()));
            ids.retain(|id| !id.is_empty());
        }
        let size = image.virtual_size().min(16 << 20);
        let pieces = (0..size).step_by(PIECE_LEN).map(|offset| {
            let mut piece = vec![0; PIECE_LEN.min((size - offset) as usize)];
            block_on(image.read_at(&mut piece, offset)).is_ok().then_some(piece)
        });
        disks.insert(id, pieces.collect());
    }
    disks
}

/// Asserts that what could be read before can be read after, and reads the same.
#[track_caller]
fn assert_kept(before: &Disks, after: &Disks, context: &str) {
    for (id, pieces) in before {
        let disk = after.get(id).unwrap_or_else(|| panic!("{context}: disk {id:?} is gone"));
        for (number, piece) in pieces.iter().enumerate() {
            if let Some(piece) = piece {
                let now = disk.get(number).and_then(Option::as_ref);
                assert!(now == Some(piece), "{context}: disk {id:?}, piece {number} has changed");
            }
        }
    }
}

/// Why we may end otherwise than QEMU.
fn reason(
    kinds: &[FindingKind],
    told: &[String],
    rebuilt: bool,
    sound: bool,
    theirs: Option<&(i32, Option<Totals>, String)>,
) -> Option<&'static str> {
    let Some((their_code, totals, said)) = theirs else { return Some("QEMU does not end") };
    let found = |wanted: &dyn Fn(&FindingKind) -> bool| kinds.iter().any(wanted);
    if said.contains("Preventing invalid write") || said.contains("Overlap check failed") {
        return Some("QEMU stops before it would write to metadata");
    }
    if said.contains("Marking image as corrupt") {
        return Some("QEMU stops at a refcount block that it cannot read");
    }
    if found(&|kind| matches!(kind, FindingKind::SnapshotTableBroken { .. })) {
        return Some("QEMU takes what the file does not have of the snapshot table for zeros");
    }
    if found(&|kind| matches!(kind, FindingKind::BitmapDirectoryBroken { .. })) {
        return Some("a broken bitmap directory");
    }
    if found(&|kind| matches!(kind, FindingKind::L2TableUnaligned { .. })) {
        return Some("QEMU writes to L2 tables that are not aligned");
    }
    if found(&|kind| matches!(kind, FindingKind::CutShort { .. })) {
        return Some("QEMU takes what the file does not have of a structure for zeros");
    }
    if found(&|kind| matches!(kind, FindingKind::Overlap { .. })) {
        return Some(
            "QEMU does not see an overlap if the refcounts agree, and writes to tables that share a cluster",
        );
    }
    if told.iter().any(|line| line.contains("the header is used as a table")) {
        return Some("QEMU changes the header though it is read as a table");
    }
    if rebuilt && !said.contains("Rebuilding") {
        return Some("QEMU goes on with refcount structures that are something else too");
    }
    if found(&|kind| matches!(kind, FindingKind::RefcountOverflow { .. })) {
        return Some(
            "QEMU writes to a refcount block that is something else too if refcounts do not tell",
        );
    }
    if found(
        &|kind| matches!(kind, FindingKind::L2Reserved { entry } if entry & 0x3f00_0000_0000_01ff == 1),
    ) {
        return Some("QEMU says nothing of the zero flag where it is reserved");
    }
    if totals.is_none() && said.contains("I/O error in check_refcounts_l1") {
        return Some("QEMU stops at a snapshot's L1 table where no file can have it");
    }
    let past_end = found(&|kind| matches!(kind, FindingKind::PastEnd { .. }));
    if rebuilt && sound && past_end && *their_code == 2 {
        return Some(
            "QEMU's new refcount blocks lie in front of clusters past the end of the file",
        );
    }
    if found(&|kind| matches!(kind, FindingKind::RefcountBlockOutside { .. })) {
        return Some("QEMU extends the file to a refcount block past its end");
    }
    None
}

/// Repairs one mutant with ours and QEMU's, and holds them against each other; says what differs, or why it may.
fn compare(
    image: &TestImage,
    bytes: &[u8],
    what: Repair,
    context: &str,
    excused: &mut BTreeMap<&'static str, usize>,
) -> Result<bool, String> {
    let path = image.dir.path().join("mutant.qcow2");
    std::fs::write(&path, bytes).unwrap();
    let theirs = qemu_repair(&path, what);
    let Ok((_, found)) = check(bytes) else {
        return match theirs {
            Some((1, _, _)) => Ok(false),
            _ => Err(format!("{context}: we do not open it, they do: {theirs:?}")),
        };
    };
    let before = disks(bytes, image.dir.path());
    let (after, report, log) = repair(bytes.to_vec(), what).unwrap();
    let (code, totals) = outcome(&after, &report);
    assert_kept(&before, &disks(&after, image.dir.path()), context);

    // What is repaired stays so.
    let (again, second, second_log) = repair(after.clone(), what).unwrap();
    let lines = |log: &Log| log.lines.iter().take(20).cloned().collect::<Vec<_>>().join("\n    ");
    let told = || {
        let lines = [&log, &second_log].map(lines);
        format!("{context}, {what:?}\n    {}\n  again\n    {}", lines[0], lines[1])
    };
    assert!(again == after, "a second repair changes something: {}", told());
    assert!(report.gave_up || second.corruptions_fixed + second.leaks_fixed == 0, "{}", told());
    if what == Repair::All && !report.gave_up {
        assert_eq!(totals[2], 0, "leaks are left: {}", told());
    }
    let changed = after != bytes;
    std::fs::write(&path, &after).unwrap();
    let checked = qemu_check(&path);
    let their_verdict = theirs.as_ref().map(|(code, totals, _)| (*code, *totals));
    let same = match their_verdict {
        Some((their_code, Some(their_totals))) => their_code == code && their_totals == totals,
        Some((their_code, None)) => their_code == code,
        None => false,
    };
    let sound = match code {
        0 => checked == 0,
        // What we leave is a corruption in QEMU's eyes, or one that it does not see.
        _ => checked == code || checked < 2 || report.gave_up,
    };
    if same && sound {
        return Ok(changed);
    }
    let after_kinds = check(&after).unwrap().1.kinds;
    let kinds = [found.kinds, log.kinds.clone(), after_kinds].concat();
    if sound
        && let Some(reason) =
            reason(&kinds, &log.lines, report.rebuilt, code == 0 && checked == 0, theirs.as_ref())
    {
        *excused.entry(reason).or_default() += 1;
        return Ok(changed);
    }
    let said: Vec<_> = theirs.iter().flat_map(|(.., said)| said.lines()).take(20).collect();
    Err(format!(
        "{context}, {what:?}\n  we   {code} {totals:?}, then QEMU's check {checked}\n  QEMU {their_verdict:?}\n  \
         we:\n    {}\n  QEMU:\n    {}",
        lines(&log),
        said.join("\n    ")
    ))
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().expect("a number"))
}

#[test]
fn one_wrong_number_is_repaired_as_qemu_repairs_it() {
    let seed = number("COWSHED_SEED", 0x5eed_2026_1122_0002);
    let rounds = number("COWSHED_ROUNDS", 16);
    println!("COWSHED_SEED={seed} COWSHED_ROUNDS={rounds}");
    let mut excused = BTreeMap::new();
    let mut failures = Vec::new();
    let mut changed = 0;
    for (number, image) in victims().into_iter().enumerate() {
        let whole = image.file_bytes();
        for round in 0..rounds {
            let mut random = Random(seed ^ ((number as u64) << 40) ^ (round << 8) ^ 0x9e37_79b9);
            for _ in 0..8 {
                random.next();
            }
            let mut bytes = whole.clone();
            let mut changes = mutate(&mut bytes, &mut random);
            // Some have two faults, some are shorter than they should be.
            if random.below(4) == 0 && bytes.len() > 4096 {
                let mut other = whole.clone();
                changes += &format!(" and {}", mutate(&mut other, &mut random));
                for (at, (new, old)) in other.iter().zip(&whole).enumerate() {
                    if new != old {
                        bytes[at] = *new;
                    }
                }
            } else if random.below(8) == 0 {
                let len = bytes.len() - random.below(bytes.len() / 2);
                bytes.truncate(len);
                changes += &format!(" and cut to {len}");
            }
            let what = if random.below(3) == 0 { Repair::Leaks } else { Repair::All };
            let context = format!("{}, round {round}, {changes}", image.description);
            match compare(&image, &bytes, what, &context, &mut excused) {
                Ok(true) => changed += 1,
                Ok(false) => {}
                Err(failure) => failures.push(failure),
            }
        }
    }
    println!("excused: {excused:#?}\n{changed} mutants were changed");
    assert!(failures.is_empty(), "{} differ:\n{}", failures.len(), failures.join("\n\n"));
    assert!(changed > 50, "{changed} mutants only were changed");
}

#[test]
fn leaks_beside_an_incomplete_snapshot_are_given_up_as_qemu_gives_them_up() {
    let is_wanted = |case: &Case| {
        case.cluster_size == 64 << 10
            && case.version == 3
            && case.refcount_bits == 16
            && case.snapshots == 2
    };
    let image = cases().into_iter().find(is_wanted).unwrap().make();
    let mut bytes = image.file_bytes();
    // The first name reaches over what follows, so that the second entry is zeros: one without extra data.
    let name_len = be(&bytes, 64, 8) as usize + 14;
    bytes[name_len] |= 0x40;
    let (_, found) = check(&bytes).unwrap();
    let incomplete = |kind: &FindingKind| matches!(kind, FindingKind::SnapshotIncomplete { .. });
    assert!(found.kinds.iter().any(incomplete), "{:?}", found.lines);
    let mut excused = BTreeMap::new();
    let changed = compare(&image, &bytes, Repair::Leaks, &image.description, &mut excused);
    assert_eq!((changed, excused.len()), (Ok(true), 0));
}

/// Images with two snapshots: one with several refcount blocks, and one in which clusters can be unaligned.
fn crowded() -> impl Iterator<Item = TestImage> {
    [512, 4096].into_iter().map(|cluster_size| {
        let case = cases().into_iter().find(|case| {
            case.cluster_size == cluster_size && case.version == 3 && case.refcount_bits == 16
        });
        Case { snapshots: 2, ..case.unwrap() }.make()
    })
}

/// Images that take every kind of repair, by name.
fn broken(whole: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let tables = Tables::of(whole);
    let words = tables.words();
    let places = |kind: &str| -> Vec<usize> {
        let used = words.iter().filter(|(name, place)| *name == kind && be(whole, *place, 8) != 0);
        used.map(|(_, place)| *place).collect()
    };
    let table = be(whole, 48, 8) as usize;
    let (l1, l2) = (places("L1"), places("L2"));
    let data: Vec<usize> =
        l2.iter().copied().filter(|place| be(whole, *place, 8) >> 62 == 2).collect();
    let clusters = tables.clusters();
    let refcount = |cluster: u64| tables.refcount_at(cluster).unwrap();
    let mut all = Vec::new();
    let mut case = |name, change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = whole.to_vec();
        bytes[79] = 1;
        change(&mut bytes);
        assert!(bytes != whole, "{name}");
        all.push((name, bytes));
    };
    let put = |bytes: &mut Vec<u8>, place: usize, word: u64| {
        bytes[place..place + 8].copy_from_slice(&word.to_be_bytes());
    };
    case("dirty", &|_| ());
    case("leaks", &|bytes| {
        for cluster in (6..clusters).step_by(5) {
            bytes[refcount(cluster) + 1] += 3;
        }
    });
    case("too low and cross-linked", &|bytes| {
        for pair in data.windows(2).step_by(7) {
            put(bytes, pair[1], be(whole, pair[0], 8));
        }
    });
    case("copied flags", &|bytes| {
        for place in l1.iter().chain(&l2).step_by(3) {
            // A compressed cluster never has it, and nobody repairs that.
            bytes[*place] ^= if bytes[*place] & 0x40 == 0 { 0x80 } else { 0 };
        }
    });
    case("lost refcounts", &|bytes| {
        for cluster in (6..clusters).step_by(3) {
            bytes[refcount(cluster)..refcount(cluster) + 2].fill(0);
        }
    });
    case("no refcount block", &|bytes| put(bytes, table, 0));
    case("unaligned refcount block", &|bytes| bytes[table + 6] ^= 1);
    case("refcount block outside", &|bytes| put(bytes, table, (clusters + 70) << be(whole, 20, 4)));
    case("refcount block in use", &|bytes| put(bytes, table, be(whole, 40, 8)));
    case("no refcount table", &|bytes| bytes[56..60].fill(0));
    case("refcount table outside", &|bytes| put(bytes, 48, (clusters + 9) << be(whole, 20, 4)));
    case("cut short", &|bytes| bytes.truncate(bytes.len() - 300));
    case("unaligned preallocation", &|bytes| {
        if be(whole, 20, 4) == 9 {
            return;
        }
        for place in data.iter().step_by(9) {
            put(bytes, *place, be(bytes, *place, 8) & 0x00ff_ffff_ffff_fe00 | 0x201);
        }
    });
    case("corrupt", &|bytes| bytes[79] = 2);
    case("incomplete snapshots", &|bytes| {
        let at = be(whole, 64, 8) as usize;
        // Their extra data becomes a part of the ID.
        let mut at = at;
        for _ in 0..be(whole, 60, 4) {
            let (extra, id) = (be(whole, at + 36, 4), be(whole, at + 12, 2));
            let (name, len) = (be(whole, at + 14, 2), 40 + extra + id);
            bytes[at + 36..at + 40].copy_from_slice(&8_u32.to_be_bytes());
            bytes[at + 12..at + 14].copy_from_slice(&((id + extra - 8) as u16).to_be_bytes());
            at = (at + (len + name) as usize).next_multiple_of(8);
        }
    });
    all
}

/// A change of a storage.
#[derive(Clone)]
enum Change {
    Write(u64, Vec<u8>),
    Len(u64),
    Flush,
}

/// Memory that keeps a list of its changes, and fails from one of them on.
struct Recorder {
    storage: MemoryStorage,
    changes: Mutex<Vec<Change>>,
    fails_at: usize,
    failed: AtomicBool,
}

impl Recorder {
    fn new(bytes: Vec<u8>, fails_at: usize) -> Self {
        let failed = AtomicBool::new(false);
        Self { storage: MemoryStorage::new(bytes), changes: Mutex::default(), fails_at, failed }
    }

    fn note(&self, change: Change) -> io::Result<()> {
        let mut changes = self.changes.lock().unwrap();
        if changes.len() >= self.fails_at {
            self.failed.store(true, Ordering::Relaxed);
            return Err(io::Error::other("it fails on purpose"));
        }
        changes.push(change);
        Ok(())
    }
}

impl SendStorage for Recorder {
    async fn read_at(&self, buf: Buf, offset: u64) -> io::Result<Buf> {
        SendStorage::read_at(&self.storage, buf, offset).await
    }

    async fn write_at(&self, buf: Buf, offset: u64) -> io::Result<Buf> {
        self.note(Change::Write(offset, buf.to_vec()))?;
        SendStorage::write_at(&self.storage, buf, offset).await
    }

    async fn write_zeroes(&self, _offset: u64, _len: u64) -> io::Result<()> {
        unreachable!("a repair writes what it writes")
    }

    async fn discard(&self, _offset: u64, _len: u64) -> io::Result<()> {
        unreachable!("a repair discards nothing")
    }

    async fn flush(&self) -> io::Result<()> {
        self.note(Change::Flush)
    }

    async fn len(&self) -> io::Result<u64> {
        SendStorage::len(&self.storage).await
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        self.note(Change::Len(len))?;
        SendStorage::set_len(&self.storage, len).await
    }
}

/// What the disk holds if the power goes after `changes`: all before the last flush, and of the rest what the choice says.
fn after_power_loss(bytes: &[u8], changes: &[Change], mut lands: impl FnMut() -> bool) -> Vec<u8> {
    let flushed =
        changes.iter().rposition(|change| matches!(change, Change::Flush)).map_or(0, |at| at + 1);
    let mut bytes = bytes.to_vec();
    for (number, change) in changes.iter().enumerate() {
        match change {
            Change::Write(offset, written) => {
                // Sectors are whole or not written at all.
                let mut at = 0;
                while at < written.len() {
                    let start = *offset as usize + at;
                    let len = (512 - start % 512).min(written.len() - at);
                    if number < flushed || lands() {
                        bytes.resize(bytes.len().max(start + len), 0);
                        bytes[start..start + len].copy_from_slice(&written[at..at + len]);
                    }
                    at += len;
                }
            }
            Change::Len(len) if number < flushed || lands() => bytes.resize(*len as usize, 0),
            Change::Len(_) | Change::Flush => {}
        }
    }
    bytes
}

#[test]
fn another_repair_mends_what_a_power_loss_leaves() {
    let mut random = Random(number("COWSHED_SEED", 0x5eed_2026_1122_0003));
    let (mut states, mut switched) = (0, 0);
    let images: Vec<_> = crowded().collect();
    let cases = images
        .iter()
        .flat_map(|image| broken(&image.file_bytes()).into_iter().map(move |case| (image, case)));
    for (image, (name, bytes)) in cases {
        let path = image.dir.path().join("mutant.qcow2");
        let before = disks(&bytes, image.dir.path());
        let storage = Arc::new(Recorder::new(bytes.clone(), usize::MAX));
        let options = CheckOptions::default();
        let mut log = Log::default();
        let report = block_on(repair_storage(&storage, Repair::All, &options, &mut log)).unwrap();
        assert!(!report.gave_up, "{name}: {:#?}", log.lines);
        switched += usize::from(report.rebuilt);
        let sound = check(&storage.storage.to_vec()).unwrap();
        assert_eq!(exit_code(&sound.0), 0, "{name}: {:#?}\n{:#?}", log.lines, sound.1.lines);
        assert_kept(&before, &disks(&storage.storage.to_vec(), image.dir.path()), name);
        let changes = storage.changes.lock().unwrap().clone();
        for count in 0..=changes.len() {
            for kind in 0..4 {
                let crashed = after_power_loss(&bytes, &changes[..count], || match kind {
                    0 => true,
                    1 => false,
                    _ => random.below(2) == 0,
                });
                let context = format!("{name}, {count} of {} changes, {kind}", changes.len());
                let (after, report, log) = repair(crashed, Repair::All).unwrap();
                assert!(!report.gave_up, "{context}: {:#?}", log.lines);
                let (verdict, found) = check(&after).unwrap();
                assert_eq!(exit_code(&verdict), 0, "{context}: {:#?}", found.lines);
                if count % 4 == 0 {
                    assert_kept(&before, &disks(&after, image.dir.path()), &context);
                }
                if states % 61 == 0 {
                    std::fs::write(&path, &after).unwrap();
                    assert_eq!(qemu_check(&path), 0, "{context}");
                }
                states += 1;
            }
        }
    }
    println!("{states} states");
    assert!(states > 200 && switched >= 5, "{states} states, {switched} rebuilt");
}

#[test]
fn failed_change_is_an_error_and_leaves_an_image_to_repair() {
    let image = crowded().last().unwrap();
    for (name, bytes) in broken(&image.file_bytes()) {
        let before = disks(&bytes, image.dir.path());
        for fails_at in 0.. {
            let storage = Arc::new(Recorder::new(bytes.clone(), fails_at));
            let options = CheckOptions::default();
            let repaired = block_on(repair_storage(&storage, Repair::All, &options, &mut ()));
            let failed = storage.failed.load(Ordering::Relaxed);
            assert_eq!(repaired.is_err(), failed, "{name}, {fails_at}");
            if !failed {
                break;
            }
            let (after, report, _) = repair(storage.storage.to_vec(), Repair::All).unwrap();
            assert!(!report.gave_up && check(&after).unwrap().0.is_clean(), "{name}, {fails_at}");
            assert_kept(&before, &disks(&after, image.dir.path()), name);
        }
    }
}

#[test]
#[cfg(all(target_os = "linux", feature = "file"))]
fn little_memory_repairs_the_same() {
    use cowshed::rt::{FileOptions, FileStorage};
    let image = crowded().next().unwrap();
    let dir = image.dir.path();
    for (name, bytes) in broken(&image.file_bytes()) {
        let (whole, roomy, _) = repair(bytes.clone(), Repair::All).unwrap();
        std::fs::write(dir.join("roomy.qcow2"), whole).unwrap();
        // A file that seems long takes many windows, and new refcount structures go to its end.
        let path = dir.join("mutant.qcow2");
        std::fs::write(&path, &bytes).unwrap();
        std::fs::File::options().write(true).open(&path).unwrap().set_len(5 << 29).unwrap();
        let storage = FileStorage::open(&path, &FileOptions::new().writable(true)).unwrap();
        let options = CheckOptions::default().memory_bytes_max(0);
        let report = block_on(repair_storage(&storage, Repair::All, &options, &mut ())).unwrap();
        assert!(report.check.passes >= 3, "{name}");
        let fixed = |report: &RepairReport| [report.corruptions_fixed, report.leaks_fixed];
        if !["cut short", "refcount table outside", "refcount block outside"].contains(&name) {
            assert_eq!(fixed(&report), fixed(&roomy), "{name}");
        }
        let checked = block_on(check_storage(&storage, &options, &mut ())).unwrap();
        assert!(checked.is_clean(), "{name}: {checked:?}");
        drop(storage);
        assert_eq!(qemu_check(&path), 0, "{name}");
        let disk = |name| qemu::raw_bytes(dir, &["-f", "qcow2"], name);
        assert!(disk("roomy.qcow2") == disk("mutant.qcow2"), "{name}");
    }
}

#[test]
fn broken_bitmap_directory_keeps_everything_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    qemu::img(dir, ["create", "-q", "-f", "qcow2", "image.qcow2", "1M"]);
    qemu::img(dir, ["bitmap", "--add", "image.qcow2", "b"]);
    let mut bytes = std::fs::read(dir.join("image.qcow2")).unwrap();
    let extension = bytes.windows(4).position(|word| word == [0x23, 0x85, 0x28, 0x75]).unwrap();
    let directory = be(&bytes, extension + 24, 8) as usize;
    bytes[directory + 16] = 9;
    let (after, report, _) = repair(bytes.clone(), Repair::All).unwrap();
    assert!(report.gave_up && after == bytes);
}

#[test]
fn snapshot_that_ends_behind_the_file_keeps_everything_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    qemu::img(dir, ["create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", "image.qcow2", "64k"]);
    qemu::io(dir, "qcow2", "image.qcow2", &["write -P 1 0 8k"]);
    qemu::img(dir, ["snapshot", "-c", "s", "image.qcow2"]);
    let mut bytes = std::fs::read(dir.join("image.qcow2")).unwrap();
    let entry = be(&bytes, 64, 8) as usize;
    // Without a name nothing is read behind the extra data, so the end of the file is not met.
    bytes[entry + 12..entry + 16].fill(0);
    for extra_len in [1_u32 << 12, 0x0101_0101] {
        bytes[entry + 36..entry + 40].copy_from_slice(&extra_len.to_be_bytes());
        let (after, report, _) = repair(bytes.clone(), Repair::All).unwrap();
        assert!(report.gave_up && after == bytes, "{extra_len}: {report:?}");
    }
}

#[test]
fn what_is_read_of_data_that_ends_behind_the_file_is_not_free() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    qemu::img(dir, ["create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", "image.qcow2", "64k"]);
    qemu::io(dir, "qcow2", "image.qcow2", &["write -c -P 1 0 4k"]);
    let path = dir.join("image.qcow2");
    let mut bytes = std::fs::read(&path).unwrap();
    let l2 = be(&bytes, be(&bytes, 40, 8) as usize, 8) & 0x00ff_ffff_ffff_fe00;
    let entry = be(&bytes, l2 as usize, 8);
    let data = entry & ((1 << 58) - 1);
    // As many sectors as an entry can say: the last one is a cluster behind the end of the file.
    bytes.truncate((data & !4095) as usize + 4096);
    bytes[l2 as usize..][..8].copy_from_slice(&(entry | 0xf << 58).to_be_bytes());
    let table = be(&bytes, 48, 8) as usize;
    bytes[table..table + 8].fill(0);
    let before = disks(&bytes, dir);
    let (after, report, _) = repair(bytes, Repair::All).unwrap();
    assert!(report.rebuilt, "{report:?}");
    assert_kept(&before, &disks(&after, dir), "a compressed cluster at the end of the file");
    let read = block_on(async {
        let source = Source::qcow2(Arc::new(MemoryStorage::new(after)), "image");
        let opened = Image::open(source, &RefuseAll::new(), OpenOptions::default()).await;
        let mut read = vec![0; 4096];
        opened.unwrap().image.read_at(&mut read, 0).await.map(|()| read)
    });
    assert_eq!(read.unwrap(), [1; 4096]);
}

#[test]
fn flags_follow_the_refcounts_of_a_snapshot_table_that_has_moved() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    qemu::img(dir, ["create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", "image.qcow2", "64k"]);
    qemu::io(dir, "qcow2", "image.qcow2", &["write -P 1 0 4k"]);
    qemu::img(dir, ["snapshot", "-c", "s", "image.qcow2"]);
    let mut bytes = std::fs::read(dir.join("image.qcow2")).unwrap();
    let snapshots = be(&bytes, 64, 8);
    // Short of what a third version has, so the table is written anew; and behind it nothing but an entry that is neither
    // aligned nor within the file.
    let entry = snapshots as usize;
    let (names, extra) = (be(&bytes, entry + 12, 4), be(&bytes, entry + 36, 4) as usize);
    let names = (names >> 16) as usize + (names & 0xffff) as usize;
    bytes.copy_within(entry + 40 + extra..entry + 40 + extra + names, entry + 40);
    bytes[entry + 36..entry + 40].fill(0);
    bytes.truncate(entry + 40 + names);
    let l2 = be(&bytes, be(&bytes, 40, 8) as usize, 8) & 0x00ff_ffff_ffff_fe00;
    bytes[l2 as usize + 8..][..8].copy_from_slice(&(snapshots + 0xc00).to_be_bytes());
    let (after, report, _) = repair(bytes, Repair::All).unwrap();
    let (left, log) = check(&after).unwrap();
    assert!(!report.gave_up && report.corruptions_fixed > 0, "{report:?}");
    assert_eq!(report.check.corruptions, left.corruptions, "{:?}", log.lines);
}

#[test]
fn unknown_autoclear_features_are_cleared_by_a_repair() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image.qcow2");
    qemu::img(folder.path(), ["create", "-q", "-f", "qcow2", "image.qcow2", "1M"]);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[88] = 0x40;
    let (after, _, _) = repair(bytes.clone(), Repair::Leaks).unwrap();
    bytes[88] = 0;
    assert!(after == bytes);
}

#[test]
fn entry_that_cannot_be_zeroed_is_reported_with_all_that_is_wrong_with_it() {
    let mut options = CreateOptions::new(1 << 20);
    options.cluster_size = 4096;
    let storage = Arc::new(MemoryStorage::default());
    block_on(async {
        create(&storage, None, &options).await.unwrap();
        let mut options = OpenOptions::default();
        options.write = Some(WriteOptions::default());
        let source = Source::qcow2(Arc::clone(&storage), "image");
        let image = Image::open(source, &RefuseAll::new(), options).await.unwrap().image;
        image.write_at(&[1; 8192], 0).await.unwrap();
        image.close().await.unwrap();
    });
    let mut bytes = storage.to_vec();
    let l2 = be(&bytes, be(&bytes, 40, 8) as usize, 8) & 0x00ff_ffff_ffff_fe00;
    let at = l2 as usize;
    // The first guest cluster lies in the table itself, so that it cannot be written to; the second one is zeros and keeps
    // a cluster that is neither aligned nor in the file.
    bytes[at..at + 8].copy_from_slice(&(1 << 63 | l2).to_be_bytes());
    bytes[at + 8..at + 16].copy_from_slice(&0x0000_0100_0000_0201_u64.to_be_bytes());
    let (after, report, _) = repair(bytes, Repair::All).unwrap();
    let (left, _) = check(&after).unwrap();
    assert_eq!(report.check.corruptions, left.corruptions, "{report:?} {left:?}");
    assert!(left.corruptions >= 2 && !report.gave_up, "{report:?}");
    let (again, ..) = repair(after.clone(), Repair::All).unwrap();
    assert!(again == after);
}

#[test]
fn clusters_past_the_end_of_the_file_lose_their_refcounts() {
    // A power loss keeps a refcount and loses the length that the file had by then.
    for refcount_bits in [1, 2, 16, 64] {
        let mut options = CreateOptions::new(1 << 20);
        options.cluster_size = 512;
        options.refcount_bits = refcount_bits;
        let storage = MemoryStorage::default();
        block_on(create(&storage, None, &options)).unwrap();
        let sound = storage.into_vec();
        let block = be(&sound, be(&sound, 48, 8) as usize, 8) as usize;
        let end = sound.len().div_ceil(512);
        for cluster in [end, end + 1, end + 13] {
            let mut bytes = sound.clone();
            let bit = cluster * refcount_bits as usize;
            // The lowest bit of its refcount: numbers are big-endian, and small ones fill a byte from its lowest bit.
            match refcount_bits {
                1 | 2 => bytes[block + bit / 8] |= 1 << (bit % 8),
                bits => bytes[block + bit / 8 + bits as usize / 8 - 1] |= 1,
            }
            assert!(bytes != sound, "cluster {cluster}");
            assert_eq!(check(&bytes).unwrap().0.leaks, 0, "no space is lost");
            for what in [Repair::Leaks, Repair::All] {
                let (after, report, _) = repair(bytes.clone(), what).unwrap();
                assert!(after == sound, "{refcount_bits} bits, cluster {cluster}, {what:?}");
                assert_eq!((report.leaks_fixed, report.gave_up), (0, false));
            }
        }
    }
}

/// Opens the image for writing, and gives the bytes that it has then.
fn opened_for_writing(bytes: Vec<u8>) -> (Vec<u8>, Option<cowshed::Error>) {
    let storage = Arc::new(MemoryStorage::new(bytes));
    let mut options = OpenOptions::default();
    options.write = Some(WriteOptions::default());
    let source = Source::qcow2(Arc::clone(&storage), "image");
    let opened = block_on(Image::open(source, &RefuseAll::new(), options));
    (storage.to_vec(), opened.err())
}

#[test]
fn dirty_image_is_repaired_when_it_is_opened_for_writing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image.qcow2");
    let options = ["create", "-q", "-f", "qcow2", "-o", "lazy_refcounts=on", "image.qcow2", "1M"];
    qemu::img(folder.path(), options);
    qemu::io(folder.path(), "qcow2", "image.qcow2", &["write -P 7 0 300k"]);
    let sound = std::fs::read(&path).unwrap();
    let lost = be(&sound, be(&sound, 48, 8) as usize, 8) as usize + 10;
    let mut dirty = sound.clone();
    dirty[79] = 1;
    dirty[lost..lost + 10].fill(0);
    let before = disks(&dirty, folder.path());
    let (after, error) = opened_for_writing(dirty.clone());
    assert!(error.is_none(), "{error:?}");
    assert!(after[79] == 0 && check(&after).unwrap().0.is_clean());
    assert_kept(&before, &disks(&after, folder.path()), "dirty");
    std::fs::write(&path, &after).unwrap();
    assert_eq!(qemu_check(&path), 0);
    // Sound images are opened as they are.
    assert!(opened_for_writing(sound.clone()).0 == sound);
    // One without a way to read its snapshots cannot be repaired.
    let mut broken = dirty;
    (broken[63], broken[71]) = (1, 1);
    let (after, error) = opened_for_writing(broken.clone());
    assert!(after == broken);
    match error {
        Some(cowshed::Error::Corrupt(corrupt)) => assert_eq!(corrupt.code(), "dirty-not-repaired"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn image_that_is_marked_as_corrupt_is_not_opened_for_writing() {
    let folder = tempfile::tempdir().unwrap();
    qemu::img(folder.path(), ["create", "-q", "-f", "qcow2", "image.qcow2", "1M"]);
    let mut bytes = std::fs::read(folder.path().join("image.qcow2")).unwrap();
    bytes[79] = 3;
    let (after, error) = opened_for_writing(bytes.clone());
    assert!(after == bytes);
    let text = error.unwrap().to_string();
    assert!(text.ends_with("Image is corrupt; cannot be opened read/write"), "{text}");
}
