//! Names and headers made to do harm: nothing of them reaches the terminal as it is, every error is one line, and a
//! reader that goes away is no error.

use std::io::Read as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use crate::{Folder, text};

const NAME: &str = "\x1b]0;owned\x07\x1b[31m\u{202e}gpj\r\n\u{9b}2J";

#[track_caller]
fn assert_harmless(shown: &[u8]) {
    let shown = text(shown);
    let harmful = |c: char| (c.is_control() && c != '\n') || ('\u{202a}'..='\u{202e}').contains(&c);
    assert!(!shown.contains(harmful), "{shown:?}");
}

#[test]
fn names_do_not_reach_the_terminal_as_they_are() {
    let folder = Folder::new();
    folder.create(&[], "image.qcow2", "1M");
    folder.qemu_img(&["snapshot", "-c", NAME, "image.qcow2"]);
    folder.create(&["-u", "-b", NAME, "-F", "raw"], "named.qcow2", "1M");
    for arguments in [
        &["info", "image.qcow2"][..],
        &["snapshot", "-l", "image.qcow2"],
        &["info", "named.qcow2"],
        &["info", "--backing-chain", "named.qcow2"],
        &["map", "named.qcow2"],
        &["check", "named.qcow2"],
        &["verdict", "named.qcow2"],
        &["info", "--output=json", "image.qcow2"],
    ] {
        for output in [folder.cowshed(arguments), folder.stand_in(arguments)] {
            assert_harmless(&output.stdout);
            assert_harmless(&output.stderr);
        }
    }
    let shown = folder.cowshed_prints(&["snapshot", "-l", "image.qcow2"]);
    assert!(shown.contains("\\u{1b}]0;owned\\u{7}"), "{shown}");
    // JSON says the same as qemu-img's.
    folder.same(&["info", "--output=json", "image.qcow2"]);
    folder.same(&["info", "--output=json", "named.qcow2"]);
}

#[test]
fn file_name_of_the_caller_is_escaped() {
    let folder = Folder::new();
    let output = folder.cowshed(&["info", NAME]);
    assert_harmless(&output.stderr);
    assert_eq!(text(&output.stderr).lines().count(), 1);
}

#[test]
fn broken_headers_get_one_line_each() {
    let folder = Folder::new();
    folder.create(&[], "good.qcow2", "1M");
    folder.qemu_io("good.qcow2", &["write -P 1 0 100k"]);
    let good = folder.read("good.qcow2");
    let mut seed = 0x1234_5678_9abc_def0_u64;
    for round in 0..300 {
        let mut bytes = good.clone();
        for _ in 0..=round % 4 {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let at = (seed >> 33) as usize % if round % 2 == 0 { 112 } else { bytes.len() };
            bytes[at] = (seed >> 24) as u8;
        }
        if round % 5 == 0 {
            bytes.truncate((seed >> 40) as usize % bytes.len());
        }
        folder.write("bad.qcow2", &bytes);
        for verb in [
            &["info"][..],
            &["map", "--output=json"],
            &["check", "-q"],
            &["compare", "bad.qcow2"],
            &["snapshot"],
            &["read", "-o", "/dev/null"],
        ] {
            let mut arguments = [verb, &["-f", "qcow2", "bad.qcow2"]].concat();
            if verb[0] == "read" {
                arguments.extend(["0", "4k"]);
            }
            let output = folder.cowshed(&arguments);
            let error = text(&output.stderr);
            // 101 is a panic, None a signal.
            assert!(
                output.status.code().is_some_and(|code| code <= 4),
                "{round} {arguments:?}: {error}"
            );
            if output.status.code() == Some(1) && verb[0] != "check" && verb[0] != "compare" {
                assert_eq!(error.lines().count(), 1, "{round} {arguments:?}: {error}");
            }
            assert_harmless(&output.stderr);
        }
    }
}

#[test]
fn reader_that_goes_away_is_no_error() {
    let folder = Folder::new();
    folder.create(&["-o", "cluster_size=512"], "image.qcow2", "4M");
    let commands: Vec<_> =
        (0..2000).map(|step| format!("write -P 1 {} 512", step * 2048)).collect();
    let commands: Vec<_> = commands.iter().map(String::as_str).collect();
    folder.qemu_io("image.qcow2", &commands);
    for arguments in
        [&["map", "--output=json", "image.qcow2"][..], &["read", "image.qcow2", "0", "4M"]]
    {
        let mut child = Command::new(env!("CARGO_BIN_EXE_cowshed"))
            .arg0("cowshed")
            .args(arguments)
            .current_dir(&folder.path)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut first = [0; 10];
        child.stdout.take().unwrap().read_exact(&mut first).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(text(&output.stderr), "");
        assert_eq!(output.status.code(), Some(141));
    }
}

#[test]
fn output_that_is_full_is_an_error() {
    let folder = Folder::new();
    folder.create(&[], "image.qcow2", "1M");
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_cowshed"))
        .args(["info", "image.qcow2"])
        .current_dir(&folder.path)
        .stdout(full)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("standard output: No space left on device"));
}
