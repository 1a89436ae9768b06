//! The check against `qemu-img check`: the same totals, on good images of every kind and on images with one wrong
//! number in their metadata. Where the two may differ is a list with reasons.

use std::path::Path;

use crate::support::mutants::{Random, Tables, mutate, victims};
use crate::support::{Case, cases, qemu};
use cowshed::image::check::{
    CheckOptions, CheckReport, Finding, FindingClass, FindingKind, check_storage,
};
use cowshed::storage::MemoryStorage;
use futures::executor::block_on;
use serde_json::Value;

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
    let Some(output) = qemu::output_within(&mut command, std::time::Duration::from_secs(10)) else {
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

/// What the command ends with.
pub(super) fn exit_code(report: &CheckReport) -> i32 {
    match report {
        report if report.check_errors > 0 => 1,
        report if report.corruptions > 0 => 2,
        report if report.leaks > 0 => 3,
        _ => 0,
    }
}

#[test]
fn good_images_have_qemus_totals() {
    let count = crate::support::for_each_image(|image| {
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
