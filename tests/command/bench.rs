//! `bench` says what `qemu-img bench` says, but for the time, and asks for the same of its options.

use crate::{Folder, qemu, text};

fn image() -> Folder {
    let folder = Folder::new();
    folder.create(&[], "image.qcow2", "2M");
    folder.qemu_io("image.qcow2", &["write -P 1 0 1M"]);
    folder.write("image.raw", vec![1; 1 << 20]);
    folder
}

/// Runs both, which must say the same.
#[track_caller]
fn same(folder: &Folder, options: &[&str], image: &str) {
    let arguments = [&["bench"], options, &[image]].concat();
    let theirs = folder.run(qemu::qemu_img().args(&arguments));
    let ours = folder.stand_in(&arguments);
    assert_eq!(text(&ours.stderr), text(&theirs.stderr), "standard error of {arguments:?}");
    let lines = |out: &[u8]| -> Vec<String> {
        let time = |line: &str| match line.strip_prefix("Run completed in ") {
            Some(time) => {
                let (seconds, rest) = time.split_once(' ').unwrap();
                assert!(
                    seconds.split_once('.').unwrap().1.len() == 3 && rest == "seconds.",
                    "{line}"
                );
                "Run completed".to_owned()
            }
            None => line.to_owned(),
        };
        text(out).lines().map(time).collect()
    };
    assert_eq!(lines(&ours.stdout), lines(&theirs.stdout), "standard output of {arguments:?}");
    assert_eq!(ours.status.code(), theirs.status.code(), "exit code of {arguments:?}");
}

#[test]
fn reads_are_counted_as_qemu_img_counts_them() {
    let folder = image();
    for options in [
        &["-c", "100"][..],
        &["-c", "1000", "-d", "1", "-f", "qcow2"],
        &["-c", "10", "-s", "3000", "-S", "1k", "-o", "1k", "-d", "4"],
        &["-c", "600", "-s", "64k", "-d", "200", "-q"],
        &["-c", "10", "-S", "0", "--no-drain", "--pattern", "3"],
        &["-c", "10", "-t", "none", "-n"],
        &["-c", "10", "-i", "io_uring", "-U"],
        // The first request lies behind the end of the disk.
        &["-c", "10", "-o", "128M"],
        &["-c", "10", "-s", "128M"],
    ] {
        same(&folder, options, "image.qcow2");
    }
    same(&folder, &["-c", "100"], "image.raw");
}

#[test]
fn wrong_options_are_refused_as_qemu_img_does() {
    let folder = image();
    for options in [
        &["-c", "0"][..],
        &["-c", "-1"],
        &["-c", "x"],
        &["-d", "x"],
        &["-d", "0"],
        &["-o", "x"],
        &["-o", "-1"],
        &["-s", "x"],
        &["-s", "0"],
        &["-S", "x"],
        &["--pattern", "256"],
        &["--pattern", "x"],
        &["-i", "foo"],
        &["-i", "native"],
        &["-n"],
        &["-t", "foo"],
        &["--flush-interval=x"],
        &["--flush-interval=100"],
        &["-w", "--flush-interval=10"],
        &["-x"],
        &["-f", "foo"],
        &["-w", "-U"],
        &["another"],
    ] {
        same(&folder, options, "image.qcow2");
    }
    same(&folder, &["-c", "1"], "none.qcow2");
}

#[test]
fn writes_land_where_those_of_qemu_img_land() {
    for options in [
        &["-w", "-c", "100", "--pattern", "7"][..],
        &[
            "-w",
            "-c",
            "1000",
            "-d",
            "8",
            "--flush-interval",
            "100",
            "--pattern",
            "200",
            "-o",
            "100k",
        ],
        &[
            "-w",
            "-c",
            "500",
            "-d",
            "4",
            "--flush-interval",
            "10",
            "--no-drain",
            "-s",
            "3000",
            "-S",
            "7k",
        ],
        &["-w", "-c", "40", "-t", "none", "-s", "64k", "--pattern", "3", "-n"],
        &["-w", "-c", "40", "-t", "writethrough", "-s", "512", "-S", "64k"],
    ] {
        let [theirs, ours] = [image(), image()];
        let arguments = [&["bench"], options, &["-f", "qcow2", "image.qcow2"]].concat();
        theirs.qemu_img(&arguments);
        let output = ours.stand_in(&arguments);
        assert!(output.status.success(), "{options:?}: {}", text(&output.stderr));
        let other = theirs.path("image.qcow2");
        let other = other.to_str().unwrap();
        ours.qemu_img(&["compare", "-f", "qcow2", "-F", "qcow2", "image.qcow2", other]);
        ours.qemu_img(&["check", "image.qcow2"]);
    }
}
