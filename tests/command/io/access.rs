//! Opening, closing and opening anew, with the options of QEMU's drivers.

use super::{Pair, lines};
use crate::support::qemu;

/// Options, good and bad, of the engine and of the file.
const OPTIONS: &[&str] = &[
    "lazy-refcounts=on",
    "lazy-refcounts=foo",
    "cache-size=foo",
    "cache-size=1M",
    "l2-cache-size=2M,cache-size=1M",
    "refcount-cache-size=2M,cache-size=1M",
    "l2-cache-size=1M,refcount-cache-size=1M,cache-size=1M",
    "l2-cache-entry-size=1000",
    "l2-cache-entry-size=128k",
    "l2-cache-entry-size=512",
    "l2-cache-size=99999999999999999999",
    "l2-cache-size=-1",
    "l2-cache-size=5x",
    "overlap-check=foo",
    "overlap-check=all",
    "overlap-check.template=foo",
    "overlap-check=none,overlap-check.template=all",
    "overlap-check.template=none,overlap-check.main-header=on",
    "overlap-check.main-header=foo",
    "overlap-check.foo=on",
    "discard=foo",
    "discard=ignore",
    "foo=bar",
    "foo",
    "nofoo",
    ",",
    "=x",
    "a=b,c",
    "cache-clean-interval=0",
    "cache-clean-interval=-1",
    "cache-clean-interval=99999999999",
    "cache-clean-interval=foo",
    "cache-clean-interval=99999999999999999999",
    "pass-discard-request=off,pass-discard-other=on",
    "discard-no-unref=on",
    "cache.direct=on",
    "cache.direct=foo",
    "cache.no-flush=on",
    "detect-zeroes=on",
    "detect-zeroes=foo",
    "detect-zeroes=unmap",
    "discard=ignore,detect-zeroes=unmap",
    "file.foo=bar",
    "file.driver=file",
    "driver=foo",
];

fn images() -> Pair {
    Pair::new(|folder| {
        folder.create(&[], "a.qcow2", "1M");
        folder.create(&["-o", "compat=0.10"], "v2.qcow2", "1M");
        folder.write("a.raw", [0; 4096]);
    })
}

#[test]
fn options_of_drivers_are_checked_as_qemu_checks_them() {
    let pair = images();
    for options in OPTIONS {
        pair.same(&["-c", &format!("open -r -o {options} a.qcow2"), "-c", "length"]);
        pair.same(&["-r", "-c", &format!("reopen -o {options}"), "-c", "length", "a.qcow2"]);
        pair.same(&["-c", &format!("open -o {options}")]);
    }
    pair.same(&["-c", "open -r -o driver=raw a.qcow2", "-c", "map"]);
    pair.same(&["-c", "open -r -o driver=qcow2,driver=raw a.qcow2", "-c", "map"]);
    pair.same(&["-c", "open -r -o driver=qcow2,file.filename=a.qcow2", "-c", "length"]);
    pair.same(&["-c", "open -r -o driver=qcow2,file.filename=a.qcow2 a.qcow2", "-c", "length"]);
    pair.same(&[
        "-r",
        "--image-opts",
        "driver=qcow2,file.driver=file,file.filename=a.qcow2",
        "-c",
        "map",
    ]);
    pair.same(&[
        "-r",
        "--image-opts",
        "file.filename=a.qcow2",
        "-c",
        "open -o x y",
        "-c",
        "length",
    ]);
    pair.same(&["--image-opts", "a.qcow2", "-c", "length"]);
}

#[test]
fn data_file_is_found_where_the_options_say() {
    let pair = Pair::new(|folder| {
        folder.create(&["-o", "data_file=a.data"], "a.qcow2", "1M");
        folder.qemu_io("a.qcow2", &["write -q -P 7 0 64k"]);
        std::fs::rename(folder.path("a.data"), folder.path("b.data")).unwrap();
    });
    let commands = [
        "open -o data-file.filename=b.data a.qcow2",
        "read -P 7 0 64k",
        "write -P 8 64k 64k",
        "close",
        "open -o data-file.filename=b.data,file.filename=a.qcow2",
        "read -P 8 64k 64k",
        "close",
        "open -r -o data-file.driver=file,data-file.filename=b.data,file.filename=a.qcow2",
        "read -P 7 0 64k",
        "close",
        "open -r -o data-file.driver=raw,data-file.file.filename=b.data a.qcow2",
        "read -P 8 64k 64k",
        "close",
        "open a.qcow2",
    ];
    pair.same_commands(&[], &commands);
}

#[test]
fn images_are_closed_and_opened() {
    let pair = images();
    pair.same_commands(
        &["-r", "a.qcow2"],
        &[
            "open -r a.qcow2",
            "close",
            "length",
            "close",
            "c",
            "open none",
            "open -x a.qcow2",
            "open -r a.qcow2 b",
            "o -r a.qcow2",
            "l",
            "close",
            "open -r -t foo a.qcow2",
            "open -r -d foo a.qcow2",
            "open -r -i foo a.qcow2",
            "open -rk a.qcow2",
            "open -U a.qcow2",
            "open -rU a.qcow2",
            "l",
            "open -rU -o force-share=off x",
            "map",
        ],
    );
}

#[test]
fn images_are_opened_anew() {
    let pair = images();
    pair.same_commands(
        &["-r", "a.qcow2"],
        &[
            "reopen",
            "reopen -r",
            "write 0 1",
            "reopen -rw",
            "reopen -r -w",
            "reopen -c foo",
            "reopen -c none",
            "reopen -c writeback",
            "reopen -r -o read-only=on",
            "reopen -c none -o cache.direct=on",
            "reopen -o l2-cache-size=64k",
            "length",
            "reopen -o cache-size=1M,l2-cache-size=2M",
            "length",
            "read 0 1k",
            "reopen -o read-only=foo",
        ],
    );
    pair.same_commands(&["-r", "v2.qcow2"], &["reopen -o l2-cache-size=1M", "length"]);
}

#[test]
fn a_temporary_snapshot_takes_what_is_written_and_leaves_the_image_alone() {
    let pair = images();
    let before = std::fs::read(pair.ours.path("a.qcow2")).unwrap();
    let commands = [
        "read 0 64k",
        "write -P 5 1000 64k",
        "read -P 5 1000 64k",
        "flush",
        "write -z 4k 4k",
        "read -P 0 4k 4k",
        "discard 0 64k",
        "alloc 0",
        "length",
        "reopen -o l2-cache-size=64k",
        "read -P 5 64k 1000",
        "close",
        "open -r a.qcow2",
        "read -P 5 64k 1000",
    ];
    pair.same_commands(&["-s", "a.qcow2"], &commands);
    pair.same_commands(&["-s", "-f", "raw", "a.qcow2"], &["write -P 5 0 1k", "read -P 5 0 1k"]);
    pair.same_commands(&["-s", "none"], &["length"]);
    assert!(std::fs::read(pair.ours.path("a.qcow2")).unwrap() == before);
}

#[test]
fn caches_have_the_sizes_that_are_said_last() {
    let pair = images();
    for changes in [
        &["cache-size=1M", "l2-cache-size=512k", "refcount-cache-size=128k"][..],
        &["l2-cache-size=512k", "refcount-cache-size=128k", "cache-size=1M"],
        &["cache-size=1M", "l2-cache-size=2M", "refcount-cache-size=2M"],
        &["cache-size=1M,l2-cache-size=512k", "l2-cache-entry-size=4k", "refcount-cache-size=64k"],
        &[
            "cache-size=1M,l2-cache-size=2M",
            "cache-size=2M,l2-cache-size=1M,refcount-cache-size=1M",
        ],
    ] {
        let commands: Vec<_> = changes.iter().map(|change| format!("reopen -o {change}")).collect();
        let commands: Vec<_> = commands.iter().map(String::as_str).collect();
        pair.same_commands(&["a.qcow2"], &[&commands[..], &["read 0 1k"]].concat());
    }
}

#[test]
fn drivers_want_the_kinds_of_files_that_they_are_for() {
    let pair = Pair::new(|folder| std::fs::create_dir(folder.path("folder")).unwrap());
    for driver in ["file", "host_device", "host_cdrom"] {
        for file in ["folder", "gone"] {
            for option in ["-r ", ""] {
                let open = format!("open {option}-o driver={driver},filename={file}");
                pair.same_commands(&[], &[&open, "length"]);
            }
        }
    }
    for option in ["-r ", ""] {
        let open = format!("open {option}-o driver=file,filename=/dev/null,locking=off");
        pair.same_commands(&[], &[&open, "length"]);
    }
}

#[test]
fn image_that_was_not_closed_is_repaired_in_the_words_of_qemu() {
    let pair = Pair::new(|folder| {
        folder.create(&["-o", "lazy_refcounts=on"], "a.qcow2", "1M");
        let commands = ["-c", "write -q -P 1 0 100k", "-c", "abort"];
        let mut io = qemu::qemu_io();
        io.args(["-f", "qcow2", "a.qcow2"]).args(commands);
        assert!(!folder.run(&mut io).status.success());
        let bytes = folder.read("a.qcow2");
        assert_eq!(bytes[79] & 1, 1, "the dirty bit");
        folder.write("b.qcow2", &bytes);
    });
    pair.same_commands(&["-r", "a.qcow2"], &["read -P 1 0 100k"]);
    pair.same_commands(&["a.qcow2"], &["read -P 1 0 100k"]);
    pair.same_commands(&["a.qcow2"], &["read -P 1 0 100k"]);
    let amend = ["amend", "-o", "compat=0.10", "b.qcow2"];
    let theirs = pair.theirs.run(qemu::qemu_img().args(amend));
    let ours = pair.ours.stand_in(&amend);
    assert_eq!(lines(&ours.stderr), lines(&theirs.stderr));
    assert!(ours.status.success() && theirs.status.success());
}

#[test]
fn settings_change_while_an_image_is_open() {
    let pair = images();
    let commands = [
        "write -P 7 0 100k",
        "reopen -o l2-cache-entry-size=512",
        "read -P 7 0 100k",
        "reopen -r",
        "write 0 512",
        "reopen -w",
        "write -P 8 0 512",
        "reopen -o l2-cache-entry-size=3",
        "reopen -o overlap-check=all",
        "reopen -o overlap-check.template=foo",
        "reopen -o cache-clean-interval=0",
        "reopen -o cache-clean-interval=-1",
        "reopen -o lazy-refcounts=on",
        "write -P 9 512 512",
        "reopen -o lazy-refcounts=off",
        "reopen -c writeback",
        "read -P 9 512 512",
    ];
    pair.same_commands(&["a.qcow2"], &commands);
    for folder in [&pair.ours, &pair.theirs] {
        qemu::run(qemu::qemu_img().arg("check").arg(folder.path("a.qcow2")));
        let read = ["-r", "-c", "read -P 8 0 512", "-c", "read -P 9 512 512"];
        qemu::run(qemu::qemu_io().args(read).arg(folder.path("a.qcow2")));
    }
}
