//! `blkdebug`: requests fail as the rules say, wait as the commands say, and are as long as the options say; `copy-on-read`
//! as a driver.

use super::Pair;
use crate::support::qemu;
use crate::{Folder, text};

/// An image with a backing file, a raw file, and files of rules.
fn make(folder: &Folder) {
    folder.create(&[], "base.qcow2", "1M");
    folder.qemu_io("base.qcow2", &["write -q -P 3 0 1M"]);
    folder.create(&["-b", "base.qcow2", "-F", "qcow2"], "a.qcow2", "1M");
    folder.qemu_io("a.qcow2", &["write -q -P 7 64k 64k"]);
    folder.write("r.raw", vec![1; 1 << 20]);
    for (name, rules) in [
        ("write", "[inject-error]\nevent = \"write_aio\"\nsector = \"1\"\n"),
        (
            "states",
            "# Two states.\n[set-state]\nstate = \"1\"\nevent = \"pwritev\"\nnew_state = \"2\"\n\n\
             [inject-error]\nstate = \"2\"\nevent = \"read_aio\"\nerrno = \"28\"\nonce = \"on\"\n",
        ),
        ("flush", "[inject-error \"a\"]\nevent = \"flush_to_disk\"\nonce = \"on\"\n"),
        ("cor", "[inject-error]\nevent = \"cor_write\"\nsector = \"128\"\n"),
        ("cor-new", "[inject-error]\nevent = \"cor_write\"\nsector = \"0\"\n"),
        ("group", "[foo]\na = \"b\"\n"),
        ("no-event", "[inject-error]\nerrno = \"5\"\n"),
        ("no-group", "event = \"none\"\n"),
        ("no-such-event", "[inject-error]\nevent = \"nonsense\"\n"),
    ] {
        folder.write(name, rules);
    }
}

#[test]
fn requests_fail_as_the_rules_say() {
    let pair = Pair::new(make);
    let raw = |rules: &str| ["-f".to_owned(), "raw".to_owned(), format!("blkdebug:{rules}:r.raw")];
    let same = |rules: &str, commands: &[&str]| {
        let options = raw(rules);
        pair.same_commands(&options.each_ref().map(String::as_str), commands);
    };
    same("", &["read -P 1 0 1M", "write -P 2 0 1k", "length", "flush"]);
    same("write", &["write 0 1k", "write 1k 512", "write 512 512", "read 0 1k"]);
    let commands =
        ["read 0 512", "write 0 1k", "read 0 512", "read 0 512", "write 0 1k", "read 0 1"];
    same("states", &commands);
    for rules in ["group", "no-event", "no-group", "no-such-event", "gone"] {
        same(rules, &["read 0 512"]);
    }
    pair.same_commands(&["-f", "raw", "blkdebug:r.raw"], &["length"]);

    let open = |options: &str| {
        let options = options.replace("rule.", "file.inject-error.");
        format!("open -o driver=raw,file.driver=blkdebug,file.image.filename=r.raw,{options}")
    };
    for options in [
        "rule.0.event=none,rule.0.iotype=read,rule.0.sector=2",
        "rule.event=none,rule.errno=28,rule.iotype=read",
        "rule.0.event=none,rule.0.iotype=write,rule.1.event=none,rule.1.iotype=read,rule.1.sector=0",
        "rule.0.event=none,rule.0.iotype=discard",
        "rule.0.event=none,rule.0.errno=0",
        "rule.0.event=nonsense",
        "rule.0.errno=5",
        "file.align=3",
        "file.align=1k,file.max-transfer=512",
        "file.align=1k,file.max-transfer=4k",
        "file.max-transfer=2G",
        "file.opt-write-zero=1000",
        "file.opt-write-zero=64k,file.align=4k",
    ] {
        let commands = ["read 0 512", "read 1k 512", "write 100 9000", "discard 0 4k", "read 1k 1"];
        let open = open(options);
        pair.same_commands(&[], &[&[&*open][..], &commands].concat());
    }
    // Most of what happens inside a format cannot be seen from below it.
    let (_, error) = pair.cowshed(&["-c", &open("rule.0.event=cluster_free")]);
    assert!(error[0].ends_with("the event 'cluster_free' is not supported"), "{error:?}");
}

#[test]
fn rules_tell_a_disks_bytes_from_tables() {
    let pair = Pair::new(make);
    let open = |rule: &str| {
        let rule = rule.replace("rule.", "file.inject-error.0.");
        format!("open -o driver=qcow2,file.driver=blkdebug,file.image.filename=a.qcow2,{rule}")
    };
    for (rule, commands) in [
        ("rule.event=read_aio", ["map", "read 64k 64k", "read -P 3 0 64k"]),
        ("rule.event=l2_load,rule.once=on", ["read 64k 1k", "read -P 7 64k 1k", "map"]),
        ("rule.event=write_aio,rule.once=on", ["write -P 9 64k 4k", "write -P 8 64k 4k", "map"]),
        ("rule.event=l2_update", ["write -P 9 64k 4k", "flush", "read -P 9 64k 4k"]),
    ] {
        pair.same_commands(&[], &[&[&*open(rule)][..], &commands].concat());
    }
    // Every write is flushed, unless a cache mode says that it need not be.
    let open = open("rule.event=refblock_update_part,rule.once=on");
    let write = "write -P 1 512k 64k";
    let (said, _) =
        pair.cowshed(&["-c", &open, "-c", write, "-c", write, "-c", "read -P 1 512k 64k"]);
    assert_eq!(said[0], "write failed: Input/output error");
    assert_eq!((said.len(), &*said[1]), (5, "wrote 65536/65536 bytes at offset 524288"));
    pair.ours.qemu_img(&["check", "a.qcow2"]);
}

#[test]
fn a_killed_writer_leaves_tables_with_their_references() {
    let pair = Pair::new(|folder| folder.create(&["-o", "lazy_refcounts=on"], "a.qcow2", "1G"));
    let commands = ["write 0 1k", "flush", "write 600M 128k", "flush", "sigraise 9"];
    pair.same_commands(&["a.qcow2"], &commands);
    let checked = |folder: &Folder| {
        let check = qemu::output(qemu::qemu_img().args(["check"]).arg(folder.path("a.qcow2")));
        (check.status.code(), text(&check.stdout), text(&check.stderr))
    };
    let ours = checked(&pair.ours);
    assert_eq!(ours, checked(&pair.theirs));
    assert_eq!(ours.0, Some(2), "refcounts of data are behind");
}

#[test]
fn failures_below_an_image_are_its_own() {
    let pair = Pair::new(make);
    let failing = "open -o driver=qcow2,file.driver=blkdebug,file.image.filename=a.qcow2,\
                   file.inject-error.0.event=none,file.inject-error.0.iotype=write";
    pair.same_commands(&[], &[failing, "read -P 7 64k 64k", "read -P 3 0 64k", "length"]);
    pair.same_commands(&["blkdebug::a.qcow2"], &["write -P 9 0 64k", "read -P 9 0 64k", "map"]);
    let aligned = "open -o driver=qcow2,file.align=4k blkdebug::a.qcow2";
    pair.same_commands(&[], &[aligned, "write -P 5 1000 3000", "read -P 5 1000 3000", "map"]);
}

#[test]
fn zeros_between_the_borders_are_zeros_and_others_are_data() {
    let pair = Pair::new(|folder| {
        folder.create(&["-o", "cluster_size=4k"], "a.qcow2", "4M");
        folder.qemu_io("a.qcow2", &["write -q -P 7 0 4M"]);
    });
    let open =
        |limits: &str| format!("open -o driver=blkdebug,image.driver=qcow2,{limits} a.qcow2");
    for (limits, commands) in [
        ("align=512,opt-write-zero=512k", ["write -z 100k 1M", "write -P 3 4k 1k", "map"]),
        (
            "align=512,opt-write-zero=768k,max-write-zero=768k",
            ["write -z 1536k 1536k", "discard 3M 100k", "map"],
        ),
        ("align=4k,max-transfer=64k", ["write -P 33 1000 128k", "read -P 33 1000 128k", "map"]),
        ("align=4k", ["alloc 1 1", "alloc 1M 4M", "map"]),
    ] {
        pair.same_commands(&[], &[&*open(limits), commands[0], commands[1], commands[2]]);
        let map = |folder: &Folder| {
            let map = folder.qemu_img(&["map", "--output=json", "a.qcow2"]);
            // Where a cluster is, is not what this is about.
            let lines =
                map.lines().map(|line| line.split(", \"offset\"").next().unwrap().to_owned());
            lines.collect::<Vec<_>>()
        };
        assert_eq!(map(&pair.ours), map(&pair.theirs), "{limits}");
    }
}

#[test]
fn copies_on_read_are_made_by_a_driver_and_can_fail() {
    let pair = Pair::new(make);
    let open = "open -o driver=copy-on-read,file.driver=qcow2 a.qcow2";
    pair.same_commands(&[], &[open, "map", "read -P 3 130k 1", "map", "read 0 0", "map"]);
    let failing = "open -o driver=copy-on-read,file.driver=blkdebug,file.config=cor,\
                   file.image.driver=qcow2 a.qcow2";
    pair.same_commands(&[], &[failing, "read 64k 128k", "map"]);
    // What the image has is read before something is copied, and not written again.
    let beside = "open -C -o driver=blkdebug,config=cor,image.driver=qcow2 a.qcow2";
    pair.same_commands(&[], &[beside, "read 64k 192k", "map"]);
    let failing = "open -C -o driver=blkdebug,config=cor-new,image.driver=qcow2 a.qcow2";
    pair.same_commands(&[], &[failing, "read 0 128k", "read 512k 64k", "map"]);
    let read_only = "open -r -o driver=copy-on-read,file.driver=qcow2 a.qcow2";
    pair.same_commands(&[], &[read_only, "length"]);
    // qemu-img opens what it reads for reading only.
    let name =
        "json:{'driver': 'copy-on-read', 'file': {'driver': 'qcow2', 'file.filename': 'a.qcow2'}}";
    let error = pair.ours.cowshed_fails(&["convert", "-O", "raw", name, "b.raw"], 1);
    assert!(error.ends_with("copy-on-read is for io alone"), "{error}");
}

#[test]
fn requests_wait_until_they_are_let_go_on() {
    let pair = Pair::new(make);
    let script = "open -o driver=qcow2 blkdebug::a.qcow2\n\
                  break write_aio A\n\
                  aio_write -P 5 0 64k\n\
                  wait_break A\n\
                  resume A\n\
                  aio_flush\n\
                  read -P 5 0 64k\n\
                  resume A\n\
                  remove_break B\n\
                  break nonsense A\n\
                  break read_aio C\n\
                  remove_break C\n\
                  read -P 7 64k 64k\n";
    pair.same_with_input(&[], script);
    pair.same_commands(&["a.qcow2"], &["break write_aio A", "resume A", "remove_break A"]);
}
