//! What is said of commands that make no sense, and of how the program is called.

use super::Pair;

fn images() -> Pair {
    Pair::new(|folder| {
        folder.create(&[], "a.qcow2", "1M");
        folder.write("a.raw", [0; 4096]);
    })
}

#[test]
fn wrong_arguments_are_answered_as_qemu_io_does() {
    let pair = images();
    pair.same_commands(
        &["-r", "a.qcow2"],
        &[
            "read",
            "read 0",
            "read -P",
            "read -x 0 1",
            "read 0 1 2",
            "read 1x 2",
            "read 0 1 -P",
            "read 0 99999999999999999999",
            "read 0 2G",
            "read 0 8E",
            "read -P 256 0 1",
            "read -P -1 0 1",
            "read -P 1k 0 1",
            "read -s 1 0 1k",
            "read -l 1 0 1k",
            "read -P 1 -s 2k 0 1k",
            "read -P 1 -l x 0 1k",
            "read -P 1 -s x 0 1k",
            "readv 0",
            "readv 0 x",
            "readv x 1",
            "readv 0 3G",
            "readv 0 1G 1G",
            "readv -b 0 1",
            "aio_read 0",
            "aio_read 0 x",
            "aio_read -Z 0 1",
            "aio_read -P x 0 1",
            "alloc",
            "alloc 1 2 3",
            "alloc x",
            "alloc 0 x",
            "length 3",
            "map 1",
            "info 1",
            "close 1",
            "flush 1",
            "foo",
            "READ 0 1",
            "",
            "  ",
            "sleep",
            "sleep x",
            "sleep -5",
            "sleep 1",
            "sigraise 99",
            "sigraise x",
            "truncate",
            "write",
            "write 0",
            "discard 0",
            "reopen x",
            "reopen -x",
            "open",
            "aio_flush 1",
        ],
    );
}

#[test]
fn images_for_reading_are_not_written_to() {
    let pair = images();
    let commands = [
        "write 0 1k",
        "writev 0 1",
        "aio_write 0 1",
        "discard 0 1",
        "truncate 1M",
        "write -x 0 1",
        "write 0",
        "flush",
    ];
    pair.same_commands(&["-r", "a.qcow2"], &commands);
    pair.same_commands(&["-r", "-f", "raw", "a.raw"], &commands);
}

#[test]
fn help_lists_the_commands() {
    let pair = images();
    let commands =
        ["help", "?", "help q", "help map", "? ?", "help length", "help foo", "help 1 2"];
    pair.same_commands(&["-r", "a.qcow2"], &commands);
    // Of longer help, the first line.
    for name in [
        "read",
        "readv",
        "aio_read",
        "write",
        "writev",
        "aio_write",
        "discard",
        "truncate",
        "open",
        "reopen",
    ] {
        let ours = pair.cowshed(&["-c", &format!("help {name}")]).0;
        let theirs = pair.theirs.qemu_io("a.qcow2", &[&format!("help {name}")]);
        assert_eq!(ours.first().map(String::as_str), theirs.lines().next());
    }
}

#[test]
fn options_of_the_program_are_those_of_qemu_io() {
    let pair = images();
    for options in [
        &["-f", "foo"][..],
        &["-t", "foo"],
        &["-d", "foo"],
        &["-i", "foo"],
        &["-k"],
        &["-i", "native"],
        &["-U"],
        &["-rU"],
        &["-r", "-t", "none"],
        &["-rn"],
        &["-r", "-t", "off"],
        &["-r", "-t", "directsync"],
        &["-rt", "unsafe"],
        &["-r", "-d", "ignore"],
        &["-r", "-d", "on"],
        &["-r", "-i", "threads"],
        &["-r", "--image-opts", "-f", "qcow2"],
        &["-rm"],
        &["--read-only", "--nocache", "--native-aio"],
        &["--force-share", "--read"],
    ] {
        pair.same(&[options, &["-c", "length", "-c", "read -q 10 100", "a.qcow2"]].concat());
    }
    // An own text tells how the program is used.
    for options in
        [&["-x"][..], &["--foo"], &["--c"], &["-c"], &["--read-only=3"], &["a.qcow2", "a.qcow2"]]
    {
        let (out, error) = pair.cowshed(options);
        assert!(out[0].starts_with("Usage: cowshed io "), "{out:?}");
        assert_eq!(error.is_empty(), options[0] == "a.qcow2", "{error:?}");
    }
}

#[test]
fn images_that_do_not_open_end_the_program() {
    let pair = images();
    pair.same(&["none.qcow2"]);
    pair.same(&["-c", "length", "none.qcow2"]);
    pair.same(&["-c", "length"]);
    let (_, error) = pair.cowshed(&["-c", "length", "none.qcow2"]);
    assert_eq!(error, ["cowshed: none.qcow2: No such file or directory"]);
}

#[test]
fn commands_come_from_standard_input() {
    let pair = images();
    for input in [
        "",
        "\n",
        "length",
        "length\n",
        "read 0 4k\nread -P 1 0 1k\nfoo\n\n  map\nq\nlength\n",
        "read 0\nlength\n",
        "read 0 512\nquit 1 2\n",
        "close\nopen -r a.qcow2\nlength\n",
    ] {
        pair.same_with_input(&["-r", "a.qcow2"], input);
    }
    pair.same_with_input(&[], "length\nopen -r a.qcow2\nlength\nclose\nlength\n");
}

#[test]
fn what_qemu_has_and_this_lacks_is_refused() {
    let pair = images();
    for (options, reason) in [
        (&["--object", "throttle-group,id=a"][..], "does not accept value 'throttle-group'"),
        (&["-T", "x"], "--trace is not supported"),
    ] {
        let (out, error) = pair.cowshed(&[options, &["-c", "length", "a.qcow2"]].concat());
        assert!(out.is_empty() && error[0].contains(reason), "{out:?} {error:?}");
    }
    let commands = [
        "break x y",
        "remove_break x",
        "resume x",
        "zone_report 0 1",
        "zone_append 0 1k 1",
        "zo 0 1",
        "zc 0 1",
        "zone_finish 0 1",
        "zone_reset 0 1",
    ];
    pair.same_commands(&["-r", "a.qcow2"], &commands);
}
