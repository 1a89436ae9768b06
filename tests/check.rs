//! The check against `qemu-img check`: the same totals, on good images of every kind and on images with one wrong
//! number in their metadata. Where the two may differ is a list with reasons.

#![cfg(not(target_family = "wasm"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::cast_possible_truncation)]

mod support;

use std::io::{Read, Seek};
use std::path::Path;
use std::process::{Command, Output};

use cowshed::image::check::{
    CheckOptions, CheckReport, Finding, FindingClass, FindingKind, check_storage,
};
use cowshed::storage::MemoryStorage;
use futures::executor::block_on;
use serde_json::Value;
use support::{Case, TestImage, cases, qemu};

/// What `qemu-img check` says.
#[derive(Debug, PartialEq, Eq)]
struct Verdict {
    exit_code: i32,
    /// Check errors, corruptions, leaks, image end offset, total, allocated, compressed, fragmented clusters; `None` if
    /// QEMU gave up before it had them.
    totals: Option<[u64; 8]>,
    said: String,
}

fn qemu_verdict(path: &Path) -> Verdict {
    let mut command = qemu::qemu_img();
    // A data file's name is relative to the folder that the program runs in.
    command.current_dir(path.parent().unwrap());
    command.args(["check", "-f", "qcow2", "--output=json"]).arg(path);
    let Some(output) = output_within(&mut command, std::time::Duration::from_secs(10)) else {
        return Verdict { exit_code: -1, totals: None, said: "it does not end".to_owned() };
    };
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let totals = serde_json::from_str::<Value>(&stdout).ok().map(|json| {
        [
            "check-errors",
            "corruptions",
            "leaks",
            "image-end-offset",
            "total-clusters",
            "allocated-clusters",
            "compressed-clusters",
            "fragmented-clusters",
        ]
        .map(|key| json[key].as_u64().unwrap_or(0))
    });
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Verdict { exit_code: output.status.code().unwrap_or(-1), totals, said }
}

/// Runs a command to its end, or kills it when the time is over.
fn output_within(command: &mut Command, time: std::time::Duration) -> Option<Output> {
    let mut said = [tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap()];
    let [stdout, stderr] = &said;
    command.stdout(stdout.try_clone().unwrap()).stderr(stderr.try_clone().unwrap());
    let mut child = command.spawn().unwrap_or_else(|_| {
        // Says how to install it.
        qemu::output(command);
        unreachable!("it could not be started before")
    });
    let start = std::time::Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if start.elapsed() > time {
            child.kill().unwrap();
            child.wait().unwrap();
            return None;
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    };
    let [stdout, stderr] = said.each_mut().map(|file| {
        let mut bytes = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut bytes).unwrap();
        bytes
    });
    Some(Output { status, stdout, stderr })
}

fn ours(bytes: Vec<u8>) -> cowshed::Result<(CheckReport, Vec<Finding>)> {
    let mut findings = Vec::new();
    let storage = MemoryStorage::new(bytes);
    let report = block_on(check_storage(&storage, &CheckOptions::default(), &mut findings))?;
    Ok((report, findings))
}

fn totals(report: &CheckReport) -> [u64; 8] {
    [
        report.check_errors,
        report.corruptions,
        report.leaks,
        report.image_end_offset,
        report.total_clusters,
        report.allocated_clusters,
        report.compressed_clusters,
        report.fragmented_clusters,
    ]
}

fn exit_code(report: &CheckReport) -> i32 {
    match report {
        report if report.check_errors > 0 => 1,
        report if report.corruptions > 0 => 2,
        report if report.leaks > 0 => 3,
        _ => 0,
    }
}

#[test]
fn good_images_have_qemus_totals() {
    let count = support::for_each_image(|image| {
        let verdict = qemu_verdict(&image.path);
        let (report, findings) = ours(image.file_bytes()).unwrap();
        assert_eq!(Some(totals(&report)), verdict.totals, "{}: {findings:#?}", image.description);
        assert!(report.is_clean() && findings.is_empty());
        assert_eq!(verdict.exit_code, 0);
    });
    assert!(count > 100, "{count} images");
}

#[test]
fn small_windows_find_the_same_as_one() {
    let image = Case { snapshots: 2, ..cases()[2] }.make();
    let mut bytes = image.file_bytes();
    // Refcounts of clusters all over the image, wrong in both directions.
    let whole = bytes.clone();
    let tables = Tables::of(&whole);
    for (at, step) in [(4, 7), (8, 9), (16, 31)] {
        for cluster in (at..tables.clusters()).step_by(step) {
            if let Some(place) = tables.refcount_at(cluster) {
                bytes[place + 1] = bytes[place + 1].wrapping_add(if step == 9 { 1 } else { 255 });
            }
        }
    }
    let (mut wide, mut narrow) = (Vec::new(), Vec::new());
    let storage = MemoryStorage::new(bytes.clone());
    let options = CheckOptions::default();
    let report = block_on(check_storage(&storage, &options, &mut wide)).unwrap();
    assert!(report.corruptions > 10 && report.leaks > 10);
    // A file that seems long takes many windows; what it has is in the first of them.
    bytes.resize(64 << 20, 0);
    let storage = MemoryStorage::new(bytes);
    let options = CheckOptions::default().memory_bytes_max(0);
    let long = block_on(check_storage(&storage, &options, &mut narrow)).unwrap();
    assert_eq!(totals(&report), totals(&long));
    let sorted = |mut findings: Vec<Finding>| {
        findings.sort_by_key(|finding| (finding.offset, finding.to_string()));
        findings
    };
    assert_eq!(sorted(wide), sorted(narrow));
}

/// Images whose metadata is mutated: one of each kind of structure.
fn victims() -> Vec<TestImage> {
    let mut kinds: Vec<Case> = Vec::new();
    let all = cases();
    let mut take = |wanted: &dyn Fn(&Case) -> bool| {
        kinds.push(*all.iter().find(|case| wanted(case)).expect("a case of this kind"));
    };
    use support::matrix::{Compression, DataFile};
    for cluster_size in [512, 4096, 64 << 10] {
        take(&|c| {
            c.cluster_size == cluster_size && c.version == 2 && c.compression == Compression::Zlib
        });
        take(&|c| c.cluster_size == cluster_size && c.version == 3 && c.snapshots == 2);
        take(&|c| c.cluster_size == cluster_size && c.refcount_bits == 1);
        take(&|c| c.cluster_size == cluster_size && c.refcount_bits == 64);
    }
    take(&|c| c.refcount_bits == 2 && c.cluster_size == 4096);
    take(&|c| c.refcount_bits == 8 && c.cluster_size == 512);
    take(&|c| c.refcount_bits == 32 && c.cluster_size == 512);
    take(&|c| c.extended_l2 && c.compression == Compression::Zlib);
    take(&|c| c.extended_l2 && c.snapshots == 0 && c.data_file == DataFile::Internal);
    take(&|c| c.data_file == DataFile::External && c.cluster_size == 4096);
    support::images(kinds).collect()
}

/// The tables of an image, found by the specification's offsets and nothing of ours.
struct Tables<'a> {
    bytes: &'a [u8],
    cluster_size: u64,
    refcount_bits: u64,
}

impl<'a> Tables<'a> {
    fn of(bytes: &'a [u8]) -> Self {
        let version = be(bytes, 4, 4);
        Self {
            bytes,
            cluster_size: 1 << be(bytes, 20, 4),
            refcount_bits: if version == 2 { 16 } else { 1 << be(bytes, 96, 4) },
        }
    }

    fn clusters(&self) -> u64 {
        (self.bytes.len() as u64).div_ceil(self.cluster_size)
    }

    /// Places of the words of the tables: L1, L2, refcount table, refcount blocks, snapshot table and its L1s.
    fn words(&self) -> Vec<(&'static str, usize)> {
        let mut words = Vec::new();
        let mut l1s = vec![("L1", be(self.bytes, 40, 8), be(self.bytes, 36, 4))];
        let mut at = be(self.bytes, 64, 8);
        for _ in 0..be(self.bytes, 60, 4) {
            let place = at as usize;
            l1s.push(("snapshot L1", be(self.bytes, place, 8), be(self.bytes, place + 8, 4)));
            words.push(("snapshot", place));
            words.push(("snapshot", place + 8));
            let len = 40
                + be(self.bytes, place + 36, 4)
                + be(self.bytes, place + 12, 2)
                + be(self.bytes, place + 14, 2);
            at = (at + len).next_multiple_of(8);
        }
        let mut l2s = Vec::new();
        for (name, offset, entries) in l1s {
            for index in 0..entries {
                let place = (offset + index * 8) as usize;
                words.push((name, place));
                l2s.push(be(self.bytes, place, 8) & 0x00ff_ffff_ffff_fe00);
            }
        }
        l2s.sort_unstable();
        l2s.dedup();
        for l2 in l2s.into_iter().filter(|l2| *l2 != 0) {
            words.extend((0..self.cluster_size / 8).map(|i| ("L2", (l2 + i * 8) as usize)));
        }
        for (index, block) in self.refcount_blocks().into_iter().enumerate() {
            words.push(("refcount table", be(self.bytes, 48, 8) as usize + index * 8));
            if block != 0 {
                words.extend(
                    (0..self.cluster_size / 8).map(|i| ("block", (block + i * 8) as usize)),
                );
            }
        }
        words.retain(|(_, place)| place + 8 <= self.bytes.len());
        words
    }

    fn refcount_blocks(&self) -> Vec<u64> {
        let (table, clusters) = (be(self.bytes, 48, 8), be(self.bytes, 56, 4));
        (0..clusters * self.cluster_size / 8)
            .map(|index| be(self.bytes, (table + index * 8) as usize, 8))
            .collect()
    }

    /// Where a refcount of 16 bits stands.
    fn refcount_at(&self, cluster: u64) -> Option<usize> {
        assert_eq!(self.refcount_bits, 16);
        let entries = self.cluster_size / 2;
        let block = *self.refcount_blocks().get((cluster / entries) as usize)?;
        (block != 0).then_some((block + cluster % entries * 2) as usize)
    }
}

fn be(bytes: &[u8], at: usize, len: usize) -> u64 {
    bytes[at..at + len].iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

/// xorshift: all that choosing needs.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }
}

/// Changes one number of the metadata, and says which and how.
fn mutate(bytes: &mut [u8], random: &mut Random) -> String {
    let tables = Tables::of(bytes);
    let words = tables.words();
    let kinds = ["L1", "L2", "refcount table", "block", "snapshot", "snapshot L1"];
    let (name, place) = loop {
        // A structure first, so that the few words of the small ones are met; then mostly one that says something.
        let kind = kinds[random.below(kinds.len())];
        let of_kind: Vec<_> = words.iter().filter(|(name, _)| *name == kind).collect();
        let used: Vec<_> =
            of_kind.iter().copied().filter(|(_, place)| be(bytes, *place, 8) != 0).collect();
        let from = if random.below(4) > 0 && !used.is_empty() { used } else { of_kind };
        if !from.is_empty() {
            break *from[random.below(from.len())];
        }
    };
    let old = be(bytes, place, 8);
    let cluster_size = tables.cluster_size;
    let end = tables.clusters();
    let other = words[random.below(words.len())].1;
    let new = match random.below(12) {
        0 => old ^ (1 << random.below(64)),
        1 => old ^ (1 << 63),
        2 => old ^ (1 << 62),
        3 => old ^ 1,
        4 => 0,
        5 => old.wrapping_add(cluster_size),
        6 => old.wrapping_sub(cluster_size),
        7 => (old & (1 << 63)) | (random.next() % (end + 2) * cluster_size),
        8 => be(bytes, other, 8),
        9 => old ^ (1 << (9 + random.below(12))),
        10 => (old & !0x00ff_ffff_ffff_fe00) | ((end + random.next() % 4) * cluster_size),
        _ => random.next(),
    };
    bytes[place..place + 8].copy_from_slice(&new.to_be_bytes());
    format!("{name} word at {place:#x}: {old:#x} -> {new:#x}")
}

/// Why we may say something else than QEMU; `None` if we may not.
fn reason(verdict: &Verdict, report: &CheckReport, findings: &[Finding]) -> Option<&'static str> {
    let times = |wanted: &dyn Fn(&FindingKind) -> bool| -> u64 {
        findings.iter().filter(|finding| wanted(&finding.kind)).map(|finding| finding.times).sum()
    };
    if verdict.exit_code == -1 {
        return Some("QEMU does not end");
    }
    if times(&|kind| matches!(kind, FindingKind::SnapshotTableBroken { .. })) > 0 {
        return Some(match verdict.totals {
            Some(_) => "QEMU takes what the file does not have of the snapshot table for zeros",
            None => "QEMU stops at a broken snapshot table, with the same exit code",
        });
    }
    let Some(theirs) = verdict.totals else {
        let too_far =
            |kind: &_| matches!(kind, FindingKind::PastEnd { offset, .. } if offset >> 63 != 0);
        let stopped = verdict.said.contains("I/O error in check_refcounts_l1");
        return (times(&too_far) > 0 && stopped)
            .then_some("QEMU stops at a snapshot's L1 table where no file can have it");
    };
    // What we find and QEMU does not, and nothing else, makes the difference.
    let beyond = [
        (
            times(&|kind| matches!(kind, FindingKind::CutShort { .. })),
            "QEMU takes what the file does not have of a structure for zeros",
        ),
        (
            times(&|kind| matches!(kind, FindingKind::Overlap { .. })),
            "QEMU does not see an overlap if the refcounts agree",
        ),
        (
            times(
                &|kind| matches!(kind, FindingKind::L2Reserved { entry } if entry & 0x3f00_0000_0000_01ff == 1),
            ),
            "QEMU says nothing of the zero flag where it is reserved",
        ),
    ];
    let mut ours = totals(report);
    ours[1] -= beyond.iter().map(|(times, _)| times).sum::<u64>();
    if theirs == ours {
        return beyond.iter().find(|(times, _)| *times > 0).map(|(_, reason)| *reason);
    }
    let unaligned = times(&|kind| matches!(kind, FindingKind::L2TableUnaligned { .. }));
    (theirs[..7] == ours[..7] && unaligned > 0)
        .then_some("fragmentation is not told apart where L2 tables overlap")
}

#[test]
fn one_wrong_number_is_found_as_qemu_finds_it() {
    let seed = std::env::var("COWSHED_SEED")
        .map_or(0x5eed_2026_1122_0001, |seed| seed.parse().expect("COWSHED_SEED is a number"));
    let rounds = std::env::var("COWSHED_ROUNDS")
        .map_or(40, |rounds| rounds.parse().expect("COWSHED_ROUNDS is a number"));
    println!("COWSHED_SEED={seed} COWSHED_ROUNDS={rounds}");
    let mut excused = std::collections::BTreeMap::<&str, usize>::new();
    let mut failures = Vec::new();
    let mut bad = 0;
    for (number, image) in victims().into_iter().enumerate() {
        let whole = image.file_bytes();
        let path = image.dir.path().join("mutant.qcow2");
        for round in 0..rounds {
            let mut random = Random(seed ^ ((number as u64) << 40) ^ (round << 8) ^ 0x9e37_79b9);
            for _ in 0..8 {
                random.next();
            }
            let mut bytes = whole.clone();
            let change = mutate(&mut bytes, &mut random);
            std::fs::write(&path, &bytes).unwrap();
            let verdict = qemu_verdict(&path);
            let context = format!("{}, round {round}, {change}", image.description);
            let (report, findings) = match ours(bytes) {
                Ok(found) => found,
                Err(error) => {
                    if verdict.exit_code != 1 {
                        failures.push(format!("{context}\n  we: {error}\n  QEMU: {verdict:?}"));
                    }
                    continue;
                }
            };
            bad += u64::from(exit_code(&report) != 0);
            let sum = |class| -> u64 {
                findings.iter().filter(|f| f.class() == class).map(|f| f.times).sum()
            };
            assert_eq!(sum(FindingClass::Corruption), report.corruptions, "{context}");
            assert_eq!(sum(FindingClass::Leak), report.leaks, "{context}");
            assert_eq!(sum(FindingClass::CheckError), report.check_errors, "{context}");
            let same_totals = match verdict.totals {
                Some(theirs) => theirs == totals(&report),
                None => false,
            };
            if same_totals && exit_code(&report) == verdict.exit_code {
                continue;
            }
            if let Some(reason) = reason(&verdict, &report, &findings) {
                *excused.entry(reason).or_default() += 1;
                continue;
            }
            let lines: Vec<_> = findings.iter().take(12).map(ToString::to_string).collect();
            let said: Vec<_> = verdict.said.lines().take(12).collect();
            failures.push(format!(
                "{context}\n  we   {:?} exit {}\n  QEMU {:?} exit {}\n  we:\n    {}\n  QEMU:\n    {}",
                totals(&report),
                exit_code(&report),
                verdict.totals,
                verdict.exit_code,
                lines.join("\n    "),
                said.join("\n    ")
            ));
        }
    }
    println!("excused: {excused:#?}\n{bad} mutants are bad");
    assert!(failures.is_empty(), "{} differ:\n{}", failures.len(), failures.join("\n\n"));
    assert!(bad > 100, "{bad} mutants only are bad");
}
