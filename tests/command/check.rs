//! `check` prints what `qemu-img check` prints, findings, totals and JSON, and ends with its exit codes.

use crate::Folder;

#[track_caller]
fn same(folder: &Folder, image: &str) {
    folder.same(&["check", image]);
    folder.same(&["check", "--output=json", image]);
    folder.same(&["check", "-q", image]);
}

#[test]
fn sound_images_have_no_errors() {
    let folder = Folder::new();
    for (name, options) in [
        ("v2.qcow2", &["-o", "compat=0.10"][..]),
        ("v3.qcow2", &[]),
        ("extended.qcow2", &["-o", "extended_l2=on"]),
        ("small.qcow2", &["-o", "cluster_size=512,refcount_bits=1"]),
        ("data.qcow2", &["-o", "data_file=data.raw"]),
        ("full.qcow2", &["-o", "preallocation=metadata"]),
    ] {
        folder.create(options, name, "3M");
        same(&folder, name);
        folder.qemu_io(name, &["write -P 1 0 1M", "write -P 1 2M 4k"]);
        same(&folder, name);
    }
    folder.create(&[], "empty.qcow2", "0");
    same(&folder, "empty.qcow2");
    folder.qemu_img(&["convert", "-c", "-O", "qcow2", "v3.qcow2", "packed.qcow2"]);
    same(&folder, "packed.qcow2");
    folder.qemu_img(&["snapshot", "-c", "s", "v3.qcow2"]);
    folder.qemu_img(&["bitmap", "--add", "v3.qcow2", "b"]);
    folder.qemu_io("v3.qcow2", &["write -P 2 0 100k"]);
    same(&folder, "v3.qcow2");
}

#[test]
fn raw_files_cannot_be_checked() {
    let folder = Folder::new();
    folder.write("file.raw", vec![7; 4096]);
    let output = folder.same_but_for_errors(&["check", "file.raw"]);
    assert_eq!(output.status.code(), Some(63));
    folder.same(&["check", "--output=json", "file.raw"]);
}

#[test]
fn leaks_and_errors_are_found() {
    let folder = Folder::new();
    folder.create(&[], "image.qcow2", "10M");
    folder.qemu_io("image.qcow2", &["write -P 1 0 1M", "write -P 3 5M 64k"]);
    let block = folder.number("image.qcow2", folder.number("image.qcow2", 48));
    let table = folder.first_l2_table("image.qcow2");
    let refcount = |cluster: u64, refcount: u16| {
        folder.patch("image.qcow2", block + 2 * cluster, &refcount.to_be_bytes())
    };
    let entry = |index: u64, entry: u64| {
        folder.patch("image.qcow2", table + 8 * index, &entry.to_be_bytes())
    };

    // An unused cluster within the file with a refcount.
    let end = folder.read("image.qcow2").len() as u64;
    std::fs::File::options()
        .write(true)
        .open(folder.path("image.qcow2"))
        .unwrap()
        .set_len(end + 65536)
        .unwrap();
    refcount(end / 65536, 1);
    let output = folder.same(&["check", "image.qcow2"]);
    assert_eq!(output.status.code(), Some(3));
    same(&folder, "image.qcow2");

    // A refcount too high, a cluster used twice, one without the copied flag, one with reserved bits, one behind the end of the file.
    refcount(7, 3);
    let first = folder.number("image.qcow2", table);
    entry(1, first);
    entry(2, folder.number("image.qcow2", table + 16) & !(1 << 63));
    entry(4, 0x8000_0001_0000_0000);
    let output = folder.same(&["check", "image.qcow2"]);
    assert_eq!(output.status.code(), Some(2));
    same(&folder, "image.qcow2");
}

#[test]
fn progress_ends_before_the_result() {
    // qemu-img has none.
    let folder = Folder::new();
    folder.create(&[], "image.qcow2", "1M");
    folder.qemu_io("image.qcow2", &["write -P 1 0 1M"]);
    let block = folder.number("image.qcow2", folder.number("image.qcow2", 48));
    for (repair, leaks) in [(&[][..], false), (&["-r", "all"], false), (&["-r", "all"], true)] {
        if leaks {
            folder.patch("image.qcow2", block + 2 * 7, &[0, 3]);
        }
        let printed = folder.cowshed_prints(&[&["check", "-p"], repair, &["image.qcow2"]].concat());
        let (progress, result) = printed.split_once("(100.00/100%)\r\n").unwrap();
        assert!(progress.contains("(0.00/100%)\r") && !result.contains('\r'), "{printed:?}");
        assert!(result.starts_with("No errors were found on the image.\n"), "{printed:?}");
    }
}

#[test]
fn dirty_and_corrupt_images_are_checked() {
    let folder = Folder::new();
    folder.create(&[], "image.qcow2", "1M");
    for bits in 1..=3 {
        folder.patch("image.qcow2", 79, &[bits]);
        same(&folder, "image.qcow2");
    }
}

#[test]
fn memory_changes_no_result() {
    let folder = Folder::new();
    folder.create(&["-o", "cluster_size=512,preallocation=metadata"], "image.qcow2", "20M");
    let roomy = folder.cowshed_prints(&["check", "--memory", "1G", "image.qcow2"]);
    assert_eq!(folder.cowshed_prints(&["check", "--memory", "0", "image.qcow2"]), roomy);
}

#[test]
fn backing_file_is_not_needed() {
    // qemu-img opens it, and fails; to the check it makes no difference.
    let folder = Folder::new();
    folder.create(&["-u", "-b", "gone.qcow2", "-F", "qcow2"], "image.qcow2", "1M");
    folder.cowshed_prints(&["check", "image.qcow2"]);
}

/// Repairs a copy with QEMU's program and one with ours: same words, same code, no errors left where QEMU leaves none, and a
/// second repair that changes nothing.
#[track_caller]
fn same_repair(folder: &Folder, image: &str, arguments: &[&str]) -> i32 {
    let broken = folder.read(image);
    let arguments = [&["check"], arguments, &[image]].concat();
    let theirs = folder.run(crate::qemu::qemu_img().args(&arguments));
    folder.write(image, &broken);
    let ours = folder.stand_in(&arguments);
    let shown = arguments.join(" ");
    assert_eq!(crate::text(&ours.stderr), crate::text(&theirs.stderr), "{shown}: standard error");
    assert_eq!(crate::text(&ours.stdout), crate::text(&theirs.stdout), "{shown}: standard output");
    assert_eq!(ours.status.code(), theirs.status.code(), "{shown}: exit code");
    if theirs.status.code() == Some(0) {
        let repaired = folder.read(image);
        folder.qemu_img(&["check", image]);
        folder.cowshed_prints(&["check", "-r", "all", image]);
        assert!(folder.read(image) == repaired, "{shown}: a second repair changes something");
    }
    folder.write(image, &broken);
    ours.status.code().unwrap()
}

#[test]
fn repairs_are_those_of_qemu() {
    let folder = Folder::new();
    folder.create(&[], "sound.qcow2", "10M");
    folder.qemu_io("sound.qcow2", &["write -P 1 0 1M", "write -P 3 5M 64k"]);
    let sound = folder.read("sound.qcow2");
    let block = folder.number("sound.qcow2", folder.number("sound.qcow2", 48));
    let table = folder.number("sound.qcow2", 48);
    let l1 = folder.number("sound.qcow2", 40);
    let l2 = folder.first_l2_table("sound.qcow2");
    let first = folder.number("sound.qcow2", l2);
    let refcount =
        |cluster: u64, refcount: u16| (block + 2 * cluster, refcount.to_be_bytes().to_vec());
    let word = |offset: u64, word: u64| (offset, word.to_be_bytes().to_vec());
    // Bytes to put at offsets.
    type Pokes = Vec<(u64, Vec<u8>)>;
    let cases: &[(&str, Pokes)] = &[
        ("nothing", vec![]),
        ("leak", vec![refcount(7, 3)]),
        ("too low", vec![refcount(7, 3), word(l2 + 8, first), refcount(9, 2)]),
        ("zero refcount", vec![refcount(9, 0)]),
        ("copied flags", vec![word(l2 + 16, folder.number("sound.qcow2", l2 + 16) & !(1 << 63))]),
        ("copied flag of L1", vec![word(l1, l2)]),
        ("past the end", vec![word(l2 + 32, 0x8000_0001_0000_0000)]),
        ("refcount block in use", vec![word(table, l2)]),
        ("second refcount block is the first", vec![word(table + 8, block)]),
        ("refcount block missing", vec![word(table, 0)]),
        ("no refcount table", vec![(56, vec![0; 4])]),
        ("unaligned preallocation", vec![word(l2 + 8 * 20, (0x60000 + 512) | 1)]),
        ("unaligned data", vec![word(l2 + 8 * 20, 0x60000 + 512)]),
        ("dirty", vec![(79, vec![1])]),
        ("dirty with leaks", vec![(79, vec![1]), refcount(7, 3)]),
        ("dirty with lost refcounts", vec![(79, vec![1]), refcount(7, 0), refcount(8, 0)]),
        ("corrupt", vec![(79, vec![2])]),
        ("corrupt with errors", vec![(79, vec![2]), word(l2 + 8, first)]),
    ];
    let mut codes = std::collections::BTreeMap::<i32, usize>::new();
    let mut failures = Vec::new();
    for (name, patches) in cases {
        folder.write("image.qcow2", &sound);
        for (offset, bytes) in patches {
            folder.patch("image.qcow2", *offset, bytes);
        }
        for arguments in [
            &["-r", "leaks"][..],
            &["-r", "all"],
            &["-r", "all", "--output=json"],
            &["-q", "-r", "all"],
        ] {
            let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                same_repair(&folder, "image.qcow2", arguments)
            }));
            match code {
                Ok(code) => *codes.entry(code).or_default() += 1,
                Err(_) => failures.push(format!("{name} {arguments:?}")),
            }
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
    assert!(codes[&0] > 20 && codes.len() == 3, "{codes:?}");
}

#[test]
fn reserved_bits_in_the_refcount_table_are_repaired() {
    // qemu-img wants to write a new refcount block over the old one, and stops itself.
    let folder = Folder::new();
    folder.create(&[], "image.qcow2", "1M");
    let table = folder.number("image.qcow2", 48);
    let block = folder.number("image.qcow2", table);
    folder.patch("image.qcow2", table, &(block | 2).to_be_bytes());
    folder.cowshed_prints(&["check", "-r", "all", "image.qcow2"]);
    folder.same(&["check", "image.qcow2"]);
}

#[test]
fn image_in_use_is_not_repaired() {
    let folder = Folder::new();
    folder.create(&[], "image.qcow2", "1M");
    let options = cowshed::rt::FileOptions::new();
    let reader = cowshed::rt::FileStorage::open(folder.path("image.qcow2"), &options).unwrap();
    folder.same(&["check", "-r", "all", "image.qcow2"]);
    drop(reader);
    folder.same(&["check", "-r", "all", "image.qcow2"]);
    folder.same(&["check", "-U", "-r", "all", "image.qcow2"]);
}
