//! `dd` copies what `qemu-img dd` copies, in its words.

use crate::{Folder, text};

#[test]
fn blocks_are_copied_as_by_qemu_img() {
    let folders = [Folder::new(), Folder::new()];
    for folder in &folders {
        folder.create(&[], "d.qcow2", "5M");
        folder.qemu_io("d.qcow2", &["write -P 3 1M 70k", "write -P 9 100 1"]);
        folder.create(&["-o", "compat=0.10"], "v2.qcow2", "1M");
        folder.write("odd.raw", (0..1000_u32).map(|i| i.to_le_bytes()[0]).collect::<Vec<_>>());
    }
    let [theirs, ours] = &folders;
    for arguments in [
        &["if=d.qcow2", "of=o"][..],
        &["if=d.qcow2", "of=o", "bs=1M", "count=2", "skip=1"],
        &["if=d.qcow2", "of=o", "bs=64k", "count=20", "skip=15"],
        &["-O", "qcow2", "if=d.qcow2", "of=o", "bs=512"],
        &["-O", "qcow2", "-f", "qcow2", "if=d.qcow2", "of=o", "bs=1000", "skip=7"],
        &["-f", "raw", "if=d.qcow2", "of=o", "bs=3k"],
        &["-f", "raw", "if=odd.raw", "of=o", "bs=300"],
        &["-f", "raw", "if=odd.raw", "of=o", "bs=300", "skip=1"],
        &["-f", "raw", "-O", "qcow2", "if=odd.raw", "of=o", "bs=300", "skip=1"],
        &["if=d.qcow2", "of=o", "skip=100000000"],
        &["if=d.qcow2", "of=o", "skip=9223372036854775807"],
        &["if=d.qcow2", "of=o", "count=0"],
        &["if=d.qcow2", "of=o", "count=9223372036854775807"],
        &["if=missing", "if=v2.qcow2", "bs=1M", "bs=2k", "of=o"],
        &["-U", "if=d.qcow2", "of=o"],
    ] {
        let arguments = [&["dd"], arguments].concat();
        let said =
            [theirs.run(crate::qemu::qemu_img().args(&arguments)), ours.stand_in(&arguments)];
        let [left, right] = said.map(|s| (text(&s.stdout), text(&s.stderr), s.status.code()));
        assert_eq!(right, left, "{arguments:?} (ours left)");
        let read = |folder: &Folder| {
            let format = if arguments.contains(&"qcow2") { "qcow2" } else { "raw" };
            let format = if arguments.contains(&"-O") { format } else { "raw" };
            folder.qemu_img(&["convert", "-f", format, "-O", "raw", "o", "flat"]);
            folder.read("flat")
        };
        assert!(read(ours) == read(theirs), "{arguments:?}");
    }
}

#[test]
fn wrong_operands_get_the_words_of_qemu_img() {
    let folder = Folder::new();
    folder.create(&[], "d.qcow2", "5M");
    for arguments in [
        &["of=x"][..],
        &["if=d.qcow2"],
        &["if=missing", "of=x"],
        &["if=d.qcow2", "of=o", "bs=0"],
        &["if=d.qcow2", "of=o", "bs=abc"],
        &["if=d.qcow2", "of=o", "bs=3G"],
        &["if=d.qcow2", "of=o", "bs=8E"],
        &["if=d.qcow2", "of=o", "foo=1"],
        &["if=d.qcow2", "of=o", "foo"],
        &["if=d.qcow2", "of=o", "count=-1"],
        &["if=d.qcow2", "of=o", "count=1k"],
        &["if=d.qcow2", "of=o", "count="],
        &["if=d.qcow2", "of=o", "skip=-1"],
        &["if=d.qcow2", "of=o", "count=99999999999999999999"],
        &["-O", "foo", "if=d.qcow2", "of=o"],
        &["-f", "foo", "if=d.qcow2", "of=o"],
        &["if=d.qcow2", "of=missing/o"],
        &["-x", "if=d.qcow2", "of=o"],
    ] {
        folder.same(&[&["dd"], arguments].concat());
    }
}
